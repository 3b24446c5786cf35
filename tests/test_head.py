"""Heads of requests, as values."""

from __future__ import annotations

from orchestrator.head import judge, path_of, size, without_upgrade


def test_heads_are_judged() -> None:
    host = (b"host", b"t")
    assert judge(b"POST", "1.1", b"/a", [host, (b"content-length", b"7")]) == ("", 7)
    assert judge(b"GET", "1.0", b"/a", []) == ("", None)
    assert judge(b"GET", "1.1", b"/a", [])[0]
    assert judge(b"GET", "1.0", b"/a", [host, host])[0]
    assert judge(b"CONNECT", "1.1", b"/a", [host])[0]
    assert size(b"/a", [host]) == len(b"/ahost: t\r\n")


def test_heads_lose_only_their_upgrade() -> None:
    fields = [(b"connection", b"Upgrade, close"), (b"upgrade", b"h2c"), (b"x", b"1")]
    assert without_upgrade(b"GET", "1.1", b"/a", fields) == b"GET /a HTTP/1.1\r\nx: 1\r\nconnection: close\r\n\r\n"


def test_the_path_is_what_stands_before_the_query() -> None:
    assert path_of(b"/a/b?c=/d?e") == b"/a/b"
    assert path_of(b"/a") == b"/a"
