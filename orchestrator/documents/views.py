"""Files and uploads as OpenAI's API shows them, and what follows from a file for its answers' heads. Pure."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from orchestrator.documents.model import Part, StoredFile, Upload

Json = dict[str, Any]


def file_view(file: StoredFile) -> Json:
    """A `file`. There is nothing to wait for: it is whole when it is known at all."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_unix,
        "expires_at": file.expires_unix,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def file_deleted_view(id: str) -> Json:
    """The answer to a deletion."""
    return {"id": id, "object": "file", "deleted": True}


def upload_view(upload: Upload, file: StoredFile | None = None) -> Json:
    """An `upload`; `file` once it is completed."""
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.bytes,
        "created_at": upload.created_unix,
        "expires_at": upload.expires_unix,
        "filename": upload.filename,
        "purpose": upload.purpose,
        "status": upload.status,
        "file": None if file is None else file_view(file),
    }


def part_view(part: Part) -> Json:
    """An `upload.part`."""
    return {"id": part.id, "object": "upload.part", "created_at": part.created_unix, "upload_id": part.upload}


def list_view(data: list[Json], more: bool) -> Json:
    """A page of a listing. Its ids are the cursors of the next and the one before."""
    ids = [one["id"] for one in data]
    return {
        "object": "list",
        "data": data,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
        "has_more": more,
    }


def content_headers(file: StoredFile) -> dict[str, str]:
    """Of an answer with a file's content: what makes a browser keep it and never run it."""
    return {
        "content-type": file.content_type,
        "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
        "etag": etag(file),
        "accept-ranges": "bytes",
        "cache-control": "private, no-cache",
        "x-content-type-options": "nosniff",
        "content-security-policy": "sandbox",
    }


def etag(file: StoredFile) -> str:
    """The same for the same content."""
    return f'"{file.sha256}"'
