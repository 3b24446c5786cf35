"""Asks engines for the usage of streams, and takes it out again where the client did not ask. Pure.

vLLM and SGLang report usage with every event when asked for `continuous_usage_stats`, so that a stream's tokens are
known wherever it is cut; other engines know OpenAI's `include_usage` only, or ignore both. What the client then sees
is what it would have seen, but for a trifle: vLLM moves the `system_fingerprint` to the event that is taken out, and
SGLang's events lack their ``"usage": null``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

LINE_BYTES_MAX = 2**20
"""A longer line is no event of an engine's; it passes as it comes."""
LAST_BYTES = 2048
"""The usage-only event is looked for in so much of the end of what comes at once: only ``[DONE]`` follows it."""

_ASK = b'"stream_options":{"include_usage":true,"continuous_usage_stats":true},'
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TRUE = msgspec.Raw(b"true")
_USAGE = re.compile(rb'"usage"\s*:\s*\{')


@dataclass(frozen=True, slots=True)
class _Style:
    """How an engine writes JSON."""

    choices: bytes
    empty: bytes
    usage: bytes
    member: re.Pattern[bytes]
    """Usage behind another member of an event."""
    flat: re.Pattern[bytes]
    """Usage without objects in it at the end of an event, as most engines write it: found in two fifths of the time."""


_OBJECT_REST = rb"\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}"
_FLAT_END = rb"[^}]*\}\}\n\n"


def _style(space: bytes) -> _Style:
    usage = b"," + space + b'"usage":' + space
    return _Style(
        choices=b'"choices":' + space + b"[",
        empty=b'"choices":' + space + b"[]",
        usage=usage + b"{",
        member=re.compile(usage + _OBJECT_REST),
        flat=re.compile(usage + rb"\{" + _FLAT_END),
    )


_STYLES = (_style(b""), _style(b" "))
"""Without spaces, as pydantic and msgspec do, or with them, as `json` does."""


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

    __slots__ = ("_continuous", "_held", "_style", "_wanted", "_was_cut")

    def __init__(self, *, wanted: bool) -> None:
        """`wanted`: the client asked for the usage at the end, but not with each event."""
        self._wanted = wanted
        self._style: _Style | None = None
        self._continuous = False
        """Whether this engine reports usage with each event."""
        self._held = b""
        self._was_cut = False
        """Whether the blank line is still to come that ended the event which was taken out."""

    def through(self, data: bytes) -> bytes:
        """The part of what came that the client sees now. An unfinished line is held back."""
        if self._held or not data.endswith(b"\n"):
            data = self._whole_lines(data)
        style = self._style or self._learn(data)
        if style is None:
            return data
        at = data.find(style.empty, max(len(data) - LAST_BYTES, 0))
        if at >= 0 or self._was_cut:
            return self._last(data, style)
        return self._plain(data, style)

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

    def _learn(self, data: bytes) -> _Style | None:
        """How this engine writes, by its first event; None: it is still to come."""
        for style in _STYLES:
            at = data.find(style.choices)
            if at >= 0:
                self._style = style
                self._continuous = style.member.search(data, at, data.find(b"\n", at)) is not None
                return style
        return None

    def _last(self, data: bytes, style: _Style) -> bytes:
        """Where the usage-only event is: it stays for a client that wants it, and goes, with the blank line that ends
        it, for another."""
        if self._was_cut:
            self._was_cut = False
            data = data.removeprefix(b"\r").removeprefix(b"\n")
        at = max(data.find(style.empty, max(len(data) - LAST_BYTES, 0)), 0)
        start, stop = data.rfind(b"\n", 0, at) + 1, data.find(b"\n", at) + 1
        if not data.startswith(style.empty, at) or not _USAGE.search(data, start, stop):
            return self._plain(data, style)
        before, event, after = self._plain(data[:start], style), data[start:stop], data[stop:]
        if self._wanted:
            return before + event + after
        self._was_cut = not after
        return before + after.removeprefix(b"\r").removeprefix(b"\n")

    def _plain(self, data: bytes, style: _Style) -> bytes:
        """Without usage. One event, of which it is the last member, is what comes most often, and is quickest so."""
        if not self._continuous:
            return data
        if data.endswith(b"}}\n\n") and data.find(b"\n") == len(data) - 2:
            at = data.rfind(style.usage)
            if at >= 0 and data.find(b"}", at) == len(data) - 4:
                return data[:at] + b"}\n\n"
        data = style.flat.sub(b"}\n\n", data)
        return style.member.sub(b"", data) if style.usage in data else data
