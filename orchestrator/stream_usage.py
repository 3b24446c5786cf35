"""Asks engines for the usage of streams, and takes it out again where the client did not ask. Pure.

vLLM and SGLang report usage with every event when asked for `continuous_usage_stats`, so that a stream's tokens are
known wherever it is cut; other engines know OpenAI's `include_usage` only, or ignore both. What the client then sees
is what it would have seen, but for one thing: vLLM moves the `system_fingerprint` to the event that is taken out.
"""

from __future__ import annotations

import re

import msgspec

LINE_BYTES_MAX = 2**20
"""A longer line is no event of an engine's; it passes as it comes."""
LAST_BYTES = 2048
"""The usage-only event is looked for in so much of the end of what comes at once: only ``[DONE]`` follows it."""

_ASK = b'"stream_options":{"include_usage":true,"continuous_usage_stats":true},'
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TRUE = msgspec.Raw(b"true")
# As engines write JSON: without spaces (pydantic, msgspec), or with them (json).
_MEMBER = re.compile(rb',"usage":\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}')
_SPACED_MEMBER = re.compile(rb', "usage": \{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}')
_EMPTY, _SPACED_EMPTY = b'"choices":[]', b'"choices": []'
_ANY_USAGE = re.compile(rb'"usage"\s*:\s*\{')


def ask(body: bytes, options: bytes) -> tuple[bytes, Veil | None]:
    """The body that asks for usage, and what hides it from a client that did not; None: the client asked for all.

    `body` is a valid JSON object, `options` its `stream_options` as they stand there, empty where they don't.
    """
    if not options:
        at = body.index(b"{") + 1
        return body[:at] + _ASK + body[at:], Veil(wanted=False)
    try:
        given = {} if options == b"null" else _OBJECT.decode(options)
        whole = _OBJECT.decode(body)
    except msgspec.MsgspecError:
        return body, None  # the engine will say what is wrong with it
    wanted = bytes(given.get("include_usage", b"")) == b"true"
    if wanted and bytes(given.get("continuous_usage_stats", b"")) == b"true":
        return body, None
    given |= {"include_usage": _TRUE, "continuous_usage_stats": _TRUE}
    whole["stream_options"] = msgspec.Raw(msgspec.json.encode(given))
    return msgspec.json.encode(whole), Veil(wanted=wanted)


class Veil:
    """What one stream's client sees: `through` for all that comes, then `rest`."""

    __slots__ = ("_after_cut", "_empty", "_held", "_member", "_wanted")

    def __init__(self, *, wanted: bool) -> None:
        """`wanted`: the client asked for the usage at the end, but not with each event."""
        self._wanted = wanted
        self._member: re.Pattern[bytes] | None = None
        self._empty = b""
        self._held = b""
        self._after_cut = False

    def through(self, data: bytes) -> bytes:
        """The part of what came that the client sees now. An unfinished line is held back."""
        if self._held or not data.endswith(b"\n"):
            data = self._whole_lines(data)
        if not self._empty:
            self._learn(data)
        if not self._empty:
            return data
        at = data.find(self._empty, max(len(data) - LAST_BYTES, 0))
        if at >= 0 or self._after_cut:
            return self._end(data, at)
        return self._member.sub(b"", data) if self._member is not None else data

    def rest(self) -> bytes:
        """What was held back, at the end of the stream."""
        held, self._held = self._held, b""
        return held

    def _whole_lines(self, data: bytes) -> bytes:
        data = self._held + data
        at = data.rfind(b"\n") + 1
        if len(data) - at > LINE_BYTES_MAX:
            at = len(data)
        self._held = data[at:]
        return data[:at]

    def _learn(self, data: bytes) -> None:
        """How this engine writes, by its first event; and, for a client that wants its usage at the end, whether
        there is any before: where there is not, all of it is the client's."""
        for choices, empty, member in (
            (b'"choices":[', _EMPTY, _MEMBER),
            (b'"choices": [', _SPACED_EMPTY, _SPACED_MEMBER),
        ):
            at = data.find(choices)
            if at >= 0:
                first = data[: data.find(b"\n", at)]
                self._empty = empty
                self._member = member if not self._wanted or member.search(first) else None
                return

    def _end(self, data: bytes, at: int) -> bytes:
        """Where the usage-only event is: it stays for a client that wants it, and goes, with the blank line that ends
        it, for another."""
        if self._after_cut:
            self._after_cut = False
            data = data.removeprefix(b"\r").removeprefix(b"\n")
            at = data.find(self._empty)
        start = data.rfind(b"\n", 0, max(at, 0)) + 1
        stop = data.find(b"\n", max(at, 0)) + 1
        if at < 0 or not _ANY_USAGE.search(data, start, stop):
            return self._plain(data)
        if self._wanted:
            return self._plain(data[:start]) + data[start:stop] + self._plain(data[stop:])
        after = data[stop:]
        self._after_cut = not after
        return self._plain(data[:start]) + self._plain(after.removeprefix(b"\r").removeprefix(b"\n"))

    def _plain(self, data: bytes) -> bytes:
        return self._member.sub(b"", data) if self._member is not None else data
