"""Requests that are wrong in every way we know of, and seeded mutations of good ones."""

from __future__ import annotations

import random

GOOD_BODY = b'{"model":"acme/echo","messages":[{"role":"user","content":"hi"}],"stream":false}'


def post(body: bytes, *fields: bytes, path: bytes = b"/v1/chat/completions") -> bytes:
    """A well-formed request."""
    head = [b"POST %b HTTP/1.1" % path, b"host: test", b"content-length: %d" % len(body), *fields]
    return b"\r\n".join([*head, b"", body])


def raw(*lines: bytes, body: bytes = b"") -> bytes:
    """A request line by line."""
    return b"\r\n".join([*lines, b"", body])


_LINE = b"POST /v1/chat/completions HTTP/1.1"
_SMUGGLED = b"POST /pause HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"

FRAMING: dict[str, bytes] = {
    "CL and TE": raw(
        _LINE, b"host: t", b"content-length: 6", b"transfer-encoding: chunked", body=b"0\r\n\r\n" + _SMUGGLED
    ),
    "unequal CLs": raw(_LINE, b"host: t", b"content-length: 5", b"content-length: 6", body=b"{}...." + _SMUGGLED),
    "plus sign": raw(_LINE, b"host: t", b"content-length: +5", body=b"{}..." + _SMUGGLED),
    "space before colon": raw(_LINE, b"host: t", b"transfer-encoding : chunked", body=b"0\r\n\r\n" + _SMUGGLED),
    "xchunked": raw(_LINE, b"host: t", b"transfer-encoding: xchunked", body=b"0\r\n\r\n" + _SMUGGLED),
    "bad chunk end": raw(_LINE, b"host: t", b"transfer-encoding: chunked", body=b"2\r\n{}XX0\r\n\r\n" + _SMUGGLED),
    "bare LF": b"POST /v1/chat/completions HTTP/1.1\nhost: t\ncontent-length: 2\n\n{}" + _SMUGGLED,
    "NUL": raw(_LINE, b"host: t", b"x: a\0b", b"content-length: 2", body=b"{}" + _SMUGGLED),
    "obs-fold": raw(_LINE, b"host: t", b"x: a", b" b", b"content-length: 2", body=b"{}" + _SMUGGLED),
    "junk": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + _SMUGGLED,
    "no host": raw(_LINE, b"content-length: 2", body=b"{}" + _SMUGGLED),
    "two hosts": raw(_LINE, b"host: a", b"host: b", b"content-length: 2", body=b"{}" + _SMUGGLED),
    "huge header": raw(_LINE, b"host: t", b"x: " + b"a" * 1_000_000, b"content-length: 2", body=b"{}"),
    "many headers": raw(_LINE, b"host: t", *[b"x-%d: 1" % n for n in range(5000)], b"content-length: 2", body=b"{}"),
    "connect": raw(b"CONNECT evil:443 HTTP/1.1", b"host: evil:443"),
    "asterisk": raw(b"POST * HTTP/1.1", b"host: t", b"content-length: 0"),
    "fragment": raw(b"GET /health#x HTTP/1.1", b"host: t"),
    "bad percent": raw(b"GET /%zz%ff%00 HTTP/1.1", b"host: t", b"connection: close"),
    "not ascii": raw(b"GET /\xff\xfe HTTP/1.1", b"host: t", b"connection: close"),
    "version": raw(b"GET / HTTP/9.9", b"host: t"),
}

_LENGTH = b"content-length: %d" % len(_SMUGGLED)
DISGUISED: dict[str, bytes] = {
    "plain": raw(_LINE, b"host: t", _LENGTH, b"connection: close", body=_SMUGGLED),
    "behind h2c": raw(_LINE, b"host: t", _LENGTH, b"connection: upgrade, close", b"upgrade: h2c", body=_SMUGGLED),
    "behind websocket": raw(
        _LINE, b"host: t", _LENGTH, b"connection: close", b"connection: Upgrade", b"upgrade: websocket", body=_SMUGGLED
    ),
    "chunked, behind h2c": raw(
        _LINE,
        b"host: t",
        b"transfer-encoding: chunked",
        b"connection: upgrade, close",
        b"upgrade: h2c",
        body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(_SMUGGLED), _SMUGGLED),
    ),
    "trailer": raw(
        _LINE,
        b"host: t",
        b"transfer-encoding: chunked",
        b"connection: close",
        body=b"1\r\n{\r\n0\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\nhost: x\r\n\r\n",
    ),
}
"""Good framing around a body that is a request."""

BODIES: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"model=a",
    "array": b"[]",
    "no model": b"{}",
    "model is a number": b'{"model":1}',
    "model is null": b'{"model":null}',
    "deep": b'{"model":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "huge integer": b'{"model":"a","x":' + b"9" * 50_000 + b"}",
    "bad UTF-8": b'{"model":"a","x":"\xff\xfe"}',
    "BOM": b'\xef\xbb\xbf{"model":"a"}',
    "NaN": b'{"model":"a","x":NaN}',
    "trailing": b'{"model":"a"} {}',
    "stream is text": b'{"model":"a","stream":"yes"}',
    "cut": b'{"model":"a","messages":[{"role":"user"',
}


def mutations(seed: int, count: int) -> list[bytes]:
    """Good requests with bytes flipped, dropped, doubled and swapped."""
    dice = random.Random(seed)
    seeds = [
        post(GOOD_BODY),
        post(GOOD_BODY, b"authorization: Bearer x"),
        *FRAMING.values(),
        *DISGUISED.values(),
        *map(post, BODIES.values()),
    ]
    seeds = [data for data in seeds if len(data) < 4000]
    return [_mutated(dice, dice.choice(seeds)) for _ in range(count)]


def _mutated(dice: random.Random, data: bytes) -> bytes:
    mutable = bytearray(data)
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(mutable))
        match dice.randrange(4):
            case 0:
                mutable[at] = dice.randrange(256)
            case 1:
                del mutable[at : at + dice.randint(1, 8)]
            case 2:
                mutable[at:at] = mutable[at : at + dice.randint(1, 30)]
            case _:
                mutable[at:at] = bytes(dice.randrange(256) for _ in range(dice.randint(1, 5)))
        if not mutable:
            mutable = bytearray(b"\r\n")
    return bytes(mutable)
