"""What requests for files and uploads may say, checked. Pure: each function raises `ApiError` that names the field."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.documents.checks import bad, known
from orchestrator.errors import ApiError

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
"""What clients may say: https://platform.openai.com/docs/api-reference/files/create."""
EXPIRY_S_MIN = 3600
EXPIRY_S_MAX = 30 * 86400
FILENAME_CHARS_MAX = 255
CONTENT_TYPE_CHARS_MAX = 255
CONTENT_TYPE_DEFAULT = "application/octet-stream"
PART_IDS_MAX = 10_000
DIGITS_MAX = 18

_TOKEN = r"[A-Za-z0-9!#$&^_.+-]+"
_CONTENT_TYPE = re.compile(rf"{_TOKEN}/{_TOKEN}( *; *{_TOKEN}=(\"[ !#-\[\]-~]*\"|{_TOKEN}))*")
_RANGE = re.compile(r"bytes=([0-9]*)-([0-9]*)")
_MD5 = re.compile("[0-9a-fA-F]{32}")


@dataclass(frozen=True, kw_only=True, slots=True)
class NewFile:
    """What a client says of a file."""

    filename: str
    purpose: str
    content_type: str
    expires_after_s: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class NewUpload:
    """What a client says of a file that comes in parts."""

    file: NewFile
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """How the parts make a file."""

    part_ids: tuple[str, ...]
    md5: str | None
    """Hex digest, lower case."""


def new_file(fields: Mapping[str, str], filename: str | None, content_type: str) -> NewFile:
    """Of a form: its fields, and what its file's part says."""
    known(fields, ("purpose", "expires_after[anchor]", "expires_after[seconds]"))
    names = {"anchor": "expires_after[anchor]", "seconds": "expires_after[seconds]"}
    expiry: dict[str, Any] = {key: fields[name] for key, name in names.items() if name in fields}
    seconds = expiry.get("seconds", "")
    if seconds.isascii() and seconds.isdigit() and len(seconds) <= DIGITS_MAX:
        expiry["seconds"] = int(seconds)
    return NewFile(
        filename=_filename(filename, "file"),
        purpose=_purpose(fields.get("purpose")),
        content_type=_content_type(content_type),
        expires_after_s=_expires_after_s(expiry or None),
    )


def new_upload(body: Mapping[str, Any], bytes_max: int) -> NewUpload:
    """Of a JSON body."""
    known(body, ("bytes", "filename", "mime_type", "purpose", "expires_after"))
    size = body.get("bytes")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= bytes_max:
        raise bad("bytes", f"bytes is a whole number from 0 to {bytes_max}")
    mime_type = body.get("mime_type")
    if not isinstance(mime_type, str):
        raise bad("mime_type", "mime_type is a string")
    file = NewFile(
        filename=_filename(body.get("filename"), "filename"),
        purpose=_purpose(body.get("purpose")),
        content_type=_content_type(mime_type),
        expires_after_s=_expires_after_s(body.get("expires_after")),
    )
    return NewUpload(file=file, bytes=size)


def completion(body: Mapping[str, Any]) -> Completion:
    """Of a JSON body."""
    known(body, ("part_ids", "md5"))
    ids, md5 = body.get("part_ids"), body.get("md5")
    if not isinstance(ids, list) or len(ids) > PART_IDS_MAX or not all(isinstance(id, str) for id in ids):
        raise bad("part_ids", f"part_ids is a list of at most {PART_IDS_MAX} ids")
    if len(set(ids)) < len(ids):
        raise bad("part_ids", "part_ids has a part twice")
    if md5 is not None and not (isinstance(md5, str) and _MD5.fullmatch(md5)):
        raise bad("md5", "md5 is 32 hex digits")
    return Completion(part_ids=tuple(ids), md5=None if md5 is None else md5.lower())


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The part that a Range field asks for, as (start, end) with the end not included; None: all of it.

    RFC 9110, 14.1.2: one range, also of the last bytes. Several, or a field that makes no sense, are passed over.
    Raises `ApiError` 416 for one that lies outside.
    """
    found = _RANGE.fullmatch((header or "").replace(" ", "").lower())
    if found is None or max(map(len, found.groups())) > DIGITS_MAX or found[0] == "bytes=-":
        return None
    first, last = found.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < int(first):
            return None
    if start >= end:
        headers = {"content-range": f"bytes */{size}"}
        raise ApiError(416, f"the file has {size} bytes", code="range_not_satisfiable", headers=headers)
    return start, end


def _filename(given: object, param: str) -> str:
    """Kept as it is: it names nothing on any disk. Control characters would spoil heads, terminals and logs."""
    if not isinstance(given, str) or not 1 <= len(given) <= FILENAME_CHARS_MAX:
        raise bad(param, f"a file has a name of 1 to {FILENAME_CHARS_MAX} characters")
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in given):
        raise bad(param, "the file's name holds a control character")
    return given


def _purpose(given: object) -> str:
    if given not in PURPOSES:
        raise bad("purpose", f"purpose is one of {', '.join(PURPOSES)}")
    return str(given)


def _content_type(given: str) -> str:
    """As given where it is one, else the most general."""
    if len(given) <= CONTENT_TYPE_CHARS_MAX and _CONTENT_TYPE.fullmatch(given):
        return given
    return CONTENT_TYPE_DEFAULT


def _expires_after_s(given: object) -> int | None:
    if given is None:
        return None
    shape = f'{{"anchor": "created_at", "seconds": N}}, {EXPIRY_S_MIN} to {EXPIRY_S_MAX} seconds'
    if not isinstance(given, dict) or given.get("anchor") != "created_at":
        raise bad("expires_after", f"expires_after is {shape}")
    seconds = given.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not EXPIRY_S_MIN <= seconds <= EXPIRY_S_MAX:
        raise bad("expires_after", f"expires_after is {shape}")
    return seconds
