"""E-mail to blocks: what it says of itself, its text, the names of what is attached. By the standard library."""

from __future__ import annotations

import email
from collections.abc import Iterator
from dataclasses import replace
from email.header import decode_header
from email.message import Message

from storage.extract.blocks import Block, Document, Kind, heading, one_line
from storage.extract.markup import html
from storage.extract.plain import prose
from storage.extract.source_text import SourceText, read_text

HEADERS = ("Subject", "From", "To", "Cc", "Date")
HEADER_CHARS_MAX = 2_000
PARTS_MAX = 1_000
"""Of a message; what comes after is left out."""


def eml(data: bytes) -> Document:
    """Its subject is the title. Attached text is read, anything else only named."""
    message = email.message_from_bytes(data)
    headers = [(name, _header(message, name)) for name in HEADERS]
    head = "\n".join(f"{name}: {value}" for name, value in headers if value)
    blocks = [Block(Kind.PARAGRAPH, head)] if head else []
    return Document([*blocks, *_body(message)], title=_header(message, "Subject"))


def _body(message: Message) -> Iterator[Block]:
    waiting = [message]
    for _ in range(PARTS_MAX):
        if not waiting:
            return
        part = waiting.pop()
        if part.is_multipart():
            waiting.extend(reversed(_chosen(part)))
        else:
            yield from _part(part)


def _chosen(part: Message) -> list[Message]:
    """Of alternatives the plain text, else the last, which is the richest; else all."""
    parts = [inner for inner in part.get_payload() if isinstance(inner, Message)]
    if part.get_content_type() != "multipart/alternative":
        return parts
    plain = [inner for inner in parts if inner.get_content_type() == "text/plain"]
    return plain[:1] or parts[-1:]


def _part(part: Message) -> Iterator[Block]:
    name = one_line(_decoded(part.get_filename() or ""))
    if name:
        yield heading(f"Attachment: {name}", 2)
    if part.get_content_maintype() != "text":
        return
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        return
    text = read_text(payload, str(part.get_content_charset() or "")).text
    source = SourceText(text, None)
    read = html(source) if part.get_content_subtype() == "html" else prose(source)
    for block in read.blocks:
        yield replace(block, start=None, end=None)


def _header(message: Message, name: str) -> str:
    return one_line(_decoded(str(message.get(name, ""))[:HEADER_CHARS_MAX]))


def _decoded(value: str) -> str:
    """A header's text, its encoded words decoded as far as they can be."""
    try:
        parts = decode_header(value[:HEADER_CHARS_MAX])
        return "".join(
            text if isinstance(text, str) else text.decode(charset or "ascii", "replace") for text, charset in parts
        )
    except (LookupError, ValueError, email.errors.MessageError):
        return value
