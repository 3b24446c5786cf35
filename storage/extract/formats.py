"""Which reader a file gets: by what it holds, else by its name, else by its content type."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path, PurePath

from orchestrator.errors import Unreadable
from storage.extract.blocks import Document
from storage.extract.source_text import SNIFF_BYTES, SourceText, is_text, read_text

VERSION = "2"
"""Goes up when the same file would be read or cut otherwise."""
PDF_HEAD_BYTES = 1024
"""The mark of a PDF may stand so far in."""
MIMETYPE_BYTES_MAX = 200


class Format(StrEnum):
    """What a file can be. The value is how messages name it."""

    PDF = "PDF file"
    DOCX = "Word document"
    PPTX = "PowerPoint presentation"
    XLSX = "Excel workbook"
    EPUB = "EPUB book"
    ODT = "OpenDocument text"
    ODS = "OpenDocument spreadsheet"
    ODP = "OpenDocument presentation"
    RTF = "RTF document"
    DOC = "old Word document"
    PPT = "old PowerPoint presentation"
    XLS = "old Excel workbook"
    HTML = "HTML page"
    MARKDOWN = "Markdown text"
    DELIMITED = "table in text"
    CODE = "source text"
    EMAIL = "e-mail"
    TEXT = "text"


MEDIA_TYPES = {
    Format.PDF: "application/pdf",
    Format.ODT: "application/vnd.oasis.opendocument.text",
    Format.ODS: "application/vnd.oasis.opendocument.spreadsheet",
    Format.ODP: "application/vnd.oasis.opendocument.presentation",
    Format.RTF: "application/rtf",
    Format.DOC: "application/msword",
    Format.PPT: "application/vnd.ms-powerpoint",
    Format.XLS: "application/vnd.ms-excel",
}
"""Those that kreuzberg reads, by the name it knows them by."""
UNPACKED = frozenset({*MEDIA_TYPES, Format.DOCX, Format.PPTX, Format.XLSX, Format.EPUB})
"""Those whose size says little of how much text they hold."""
ZIPPED = {"word/": Format.DOCX, "ppt/": Format.PPTX, "xl/": Format.XLSX}
ZIP_TYPES = {
    "application/epub+zip": Format.EPUB,
    **{MEDIA_TYPES[format]: format for format in (Format.ODT, Format.ODS, Format.ODP)},
}
OLD_OFFICE = {".doc": Format.DOC, ".ppt": Format.PPT, ".xls": Format.XLS}
SUFFIXES = {
    **dict.fromkeys((".html", ".htm", ".xhtml"), Format.HTML),
    **dict.fromkeys((".md", ".markdown", ".mdx"), Format.MARKDOWN),
    **dict.fromkeys((".csv", ".tsv", ".tab"), Format.DELIMITED),
    **dict.fromkeys((".eml",), Format.EMAIL),
    **dict.fromkeys((".txt", ".text", ".log", ".rst", ".tex", ".srt", ".vtt"), Format.TEXT),
}
_CODE = """
json jsonl ndjson yaml yml toml ini cfg conf xml xsd svg sql sh bash zsh ps1 bat py pyi ipynb js mjs cjs ts tsx jsx
java kt kts scala groovy c h cc cpp cxx hpp hh cs go rs rb php pl pm lua r jl m swift dart ex exs erl hs ml fs clj
lisp el vue svelte css scss less proto graphql tf cmake make mk gradle dockerfile diff patch asm s v vhd sol zig nim
"""
CODE_SUFFIXES = frozenset(f".{suffix}" for suffix in _CODE.split())
TEXT_TYPES = {
    "text/html": Format.HTML,
    "application/xhtml+xml": Format.HTML,
    "text/markdown": Format.MARKDOWN,
    "text/csv": Format.DELIMITED,
    "text/tab-separated-values": Format.DELIMITED,
    "message/rfc822": Format.EMAIL,
    "application/json": Format.CODE,
    "application/x-ndjson": Format.CODE,
    "application/xml": Format.CODE,
    "text/xml": Format.CODE,
}
STRANGERS = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
)
"""What is often uploaded and can't be read, so that the message can name it."""

_HTML = re.compile(rb"\s{0,100}(?:<\?xml[^>]{0,200}>)?\s{0,100}<(?:!doctype html|html|head|body)\b", re.I)
_META = re.compile(rb"<meta[^>]{1,200}charset=[\"']?([\w-]{1,40})", re.I)
_CHARSET = re.compile(r"charset=\"?([\w-]{1,40})", re.I)
_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")


def recognise(path: Path, filename: str, content_type: str) -> Format:
    """What the file is. Raises `Unreadable`, with the code ``unsupported_file``, when it is nothing of these."""
    with path.open("rb") as file:
        head = file.read(SNIFF_BYTES)
    suffix = PurePath(filename).suffix.lower()
    if b"%PDF-" in head[:PDF_HEAD_BYTES]:
        return Format.PDF
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zipped(path)
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return _old_office(path, suffix)
    if head.startswith(b"{\\rtf"):
        return Format.RTF
    for mark, what in STRANGERS:
        if head.startswith(mark) and not is_text(head):
            raise Unreadable(f"is {what}, not a document", code="unsupported_file")
    _check_promise(suffix)
    if not is_text(head):
        raise Unreadable("is of no kind that can be read: neither a known document nor text", code="unsupported_file")
    return _textual(head, suffix, content_type.partition(";")[0].strip().lower())


def _zipped(path: Path) -> Format:
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if "mimetype" in names:
                with archive.open("mimetype") as file:
                    kind = file.read(MIMETYPE_BYTES_MAX).decode("ascii", "replace").strip()
                if kind in ZIP_TYPES:
                    return ZIP_TYPES[kind]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise Unreadable(f"has a broken archive: {error}") from error
    for folder, format in ZIPPED.items():
        if any(name.startswith(folder) for name in names):
            return format
    raise Unreadable("is an archive, not a document: upload what is in it", code="unsupported_file")


def _old_office(path: Path, suffix: str) -> Format:
    if suffix in OLD_OFFICE:
        return OLD_OFFICE[suffix]
    with path.open("rb") as file:
        if _ENCRYPTED in file.read(SNIFF_BYTES):
            raise Unreadable("is encrypted")
    raise Unreadable("is of no kind that can be read: an OLE file of unknown use", code="unsupported_file")


def _check_promise(suffix: str) -> None:
    """A name that promises what the content is not."""
    promised = {
        ".pdf": Format.PDF,
        ".docx": Format.DOCX,
        ".pptx": Format.PPTX,
        ".xlsx": Format.XLSX,
        ".epub": Format.EPUB,
    }
    if suffix in promised:
        raise Unreadable(f"is not a {promised[suffix]}, whatever its name says")


def _textual(head: bytes, suffix: str, media_type: str) -> Format:
    if _HTML.match(head):
        return Format.HTML
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    if suffix in CODE_SUFFIXES:
        return Format.CODE
    return TEXT_TYPES.get(media_type, Format.TEXT)


def read(format: Format, path: Path, content_type: str) -> Document:
    """The blocks of the file. Imports only what its format needs. Raises `Unreadable`."""
    match format:
        case Format.DOCX:
            from storage.extract.wordprocessing import docx

            return docx(path)
        case Format.PPTX:
            from storage.extract.slides import pptx

            return pptx(path)
        case Format.XLSX:
            from storage.extract.sheets import xlsx

            return xlsx(path)
        case Format.EPUB:
            from storage.extract.ebook import epub

            return epub(path)
        case Format.EMAIL:
            from storage.extract.mail import eml

            return eml(path.read_bytes())
        case _ if format in MEDIA_TYPES:
            from storage.extract.binary import binary

            return binary(path, MEDIA_TYPES[format], format)
    return _read_text(format, path.read_bytes(), content_type)


def _read_text(format: Format, data: bytes, content_type: str) -> Document:
    from storage.extract import plain

    named = _CHARSET.search(content_type)
    charset = named[1] if named else ""
    if format is Format.HTML:
        from storage.extract.markup import html

        meta = _META.search(data, 0, SNIFF_BYTES)
        return html(read_text(data, charset or (meta[1].decode() if meta else "")))
    source: SourceText = read_text(data, charset)
    match format:
        case Format.MARKDOWN:
            return plain.markdown(source)
        case Format.DELIMITED:
            return plain.delimited(source)
        case Format.CODE:
            return plain.code(source)
    return plain.prose(source)
