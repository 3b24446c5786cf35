"""The text of a file that is text: decoded, cleaned, and each character traceable to the bytes it came from. Pure."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from storage.extract.blocks import Locate, clean

STRETCH_CHARS = 2048
"""Anchors stand at least so close, so that a look-up encodes no more than this."""
SNIFF_BYTES = 64 * 2**10
CONTROL_SHARE_MAX = 0.1
"""Text has fewer control characters than this; a binary file has more, or a NUL."""
GARBLED_SHARE_MAX = 0.1
"""Of what is not ASCII, so much may be broken before UTF-8 is given up."""

_MARKS = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\x00\x00", "utf-32-le"),
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
_CHARSETS = re.compile(
    r"(?:iso-?8859-?\d{1,2}|latin-?1|windows-?125\d|cp125\d|koi8-[ru]|shift_jis|euc-(?:jp|kr)|gb2312|gbk|gb18030|big5)",
    re.I,
)
"""What a content type may name: each character for itself, no state between them."""
_ASCII = bytes(range(128))
_SAFE = re.compile("[ -~\u0430-\u044f\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff]")
"""Nothing before such a character composes with it."""
_CONTROL = bytes(set(range(32)) - set(b"\t\n\r\f\v\x1b"))


def is_text(head: bytes) -> bool:
    """Whether the beginning of a file looks like text."""
    if any(head.startswith(mark) for mark, _ in _MARKS):
        return True
    if b"\0" in head:
        return False
    controls = len(head) - len(head.translate(None, _CONTROL))
    return controls <= CONTROL_SHARE_MAX * len(head)


@dataclass(frozen=True, slots=True)
class SourceText:
    """The clean text of a file, and how to find its bytes."""

    text: str
    locate: Locate | None
    """None where characters can't be told apart in the bytes."""


def read_text(data: bytes, charset: str = "") -> SourceText:
    """The text of `data`: by its byte order mark, else UTF-8 where it is that, else `charset`, else Windows' Latin."""
    raw, encoding, skipped = _decoded(data, charset)
    anchors = _Anchors(raw, encoding, skipped)
    return SourceText(anchors.text, anchors.locate if anchors.bytes[-1] == len(data) else None)


def _decoded(data: bytes, charset: str) -> tuple[str, str, int]:
    """The text, its encoding, and how many bytes come before it."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace"), encoding, len(mark)
    try:
        return data.decode("utf-8"), "utf-8", 0
    except UnicodeDecodeError:
        pass
    text = data.decode("utf-8", "replace")
    if text.count("\ufffd") <= GARBLED_SHARE_MAX * len(data.translate(None, _ASCII)):
        return text, "utf-8", 0
    encoding = charset.strip().lower() if _CHARSETS.fullmatch(charset.strip()) else "cp1252"
    return data.decode(encoding, "replace"), encoding, 0


class _Anchors:
    """The clean text, and where its stretches begin: in it and in the bytes."""

    def __init__(self, raw: str, encoding: str, skipped: int) -> None:
        self.chars = array("Q", [0])
        self.bytes = array("Q", [skipped])
        self._encoding = encoding
        self._exact = bytearray()
        """For each stretch: its characters are the source's, but for the end of its line."""
        text = clean(raw)
        if text == raw:
            self.text = text
            for start in range(0, len(raw), STRETCH_CHARS):
                stretch = raw[start : start + STRETCH_CHARS]
                self._add(stretch, stretch)
        else:
            self.text = "".join(self._add(stretch, clean(stretch)) for stretch in _stretches(raw))

    def _add(self, stretch: str, text: str) -> str:
        self.chars.append(self.chars[-1] + len(text))
        self.bytes.append(self.bytes[-1] + len(stretch.encode(self._encoding, "replace")))
        self._exact.append(stretch == text or (stretch.endswith("\r\n") and stretch[:-2] == text[:-1]))
        return text

    def locate(self, start: int, end: int) -> tuple[int, int]:
        """The bytes of these characters; some more around them where cleaning changed them."""
        return self._byte(start, outward=0), self._byte(end, outward=1)

    def _byte(self, char: int, *, outward: int) -> int:
        at = bisect_right(self.chars, char) - 1
        if self.chars[at] == char:
            return self.bytes[at]
        if not self._exact[at]:
            return self.bytes[at + outward]
        return self.bytes[at] + len(self.text[self.chars[at] : char].encode(self._encoding, "replace"))


def _stretches(raw: str) -> Iterator[str]:
    """`raw` in lines, long ones cut where nothing composes across the edge."""
    start = line = 0
    while start < len(raw):
        if start == line:
            line = raw.find("\n", start) + 1 or len(raw)
        safe = _SAFE.search(raw, start + STRETCH_CHARS, line)
        end = safe.start() if safe else line
        yield raw[start:end]
        start = end
