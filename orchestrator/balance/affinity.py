"""What makes two requests parts of one conversation, so that the engine that has its KV cache gets both. Pure."""

from __future__ import annotations

import re
from hashlib import blake2b

import msgspec

FIRST_PART_BYTES = 4096
"""How much of a prompt counts as its first part. What is longer and the same in all of it is worth sharing."""
FIRST_MESSAGES_MAX = 8
ANSWER_HEAD_BYTES = 4096
_RESPONSE_ID = re.compile(rb'"id"\s*:\s*"(resp_[^"\\]{1,200})"')
_ABSENT = msgspec.Raw()
_EMPTY = frozenset({b"", b"null", b'""', b"[]"})


class _Asked(msgspec.Struct):
    previous_response_id: msgspec.Raw = _ABSENT
    prompt_cache_key: msgspec.Raw = _ABSENT
    user: msgspec.Raw = _ABSENT
    system: msgspec.Raw = _ABSENT
    instructions: msgspec.Raw = _ABSENT
    messages: msgspec.Raw = _ABSENT
    prompt: msgspec.Raw = _ABSENT
    input: msgspec.Raw = _ABSENT


class _Message(msgspec.Struct):
    role: str = ""


_DECODER = msgspec.json.Decoder(_Asked)
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_MESSAGE = msgspec.json.Decoder(_Message)


def thread(body: bytes) -> bytes:
    """The name of the conversation that a JSON request belongs to; empty: it tells none. Never raises.

    In this order: `previous_response_id`, `prompt_cache_key`, `user`, and else the conversation's first part, which
    all of its turns begin with: what comes up to and with the first message of the user.
    """
    try:
        asked = _DECODER.decode(body)
        for kind, raw in ((b"r", asked.previous_response_id), (b"k", asked.prompt_cache_key), (b"u", asked.user)):
            if bytes(raw) not in _EMPTY:
                return kind + bytes(raw)[:FIRST_PART_BYTES]
        return _first_part(asked)
    except (msgspec.MsgspecError, RecursionError):
        return b""


def point(name: bytes) -> int:
    """Where a name lies on a ring of 2**64 places; the same in every process."""
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "big")


def response_id(answer: bytes) -> bytes:
    """The id that the beginning of an answer of ``/v1/responses`` gives it, as `thread` names it; empty: none."""
    found = _RESPONSE_ID.search(answer, 0, ANSWER_HEAD_BYTES)
    return b'r"' + found[1] + b'"' if found else b""


def _first_part(asked: _Asked) -> bytes:
    said = bytes(asked.messages) or bytes(asked.input) or bytes(asked.prompt)
    if said in _EMPTY:
        return b""
    before = bytes(asked.system)[:FIRST_PART_BYTES] + bytes(asked.instructions)[:FIRST_PART_BYTES]
    return before + (_opening(said) if said[:1] == b"[" else said[:FIRST_PART_BYTES])


def _opening(said: bytes) -> bytes:
    """The messages up to and with the user's first."""
    opening = b""
    for message in _LIST.decode(said)[:FIRST_MESSAGES_MAX]:
        opening += bytes(message)[:FIRST_PART_BYTES]
        if bytes(message)[:1] != b"{" or _MESSAGE.decode(message).role == "user":
            break
    return opening
