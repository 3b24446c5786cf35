"""How large the body of a request may be, by its path. Pure."""

from __future__ import annotations

import re

from orchestrator.documents.api_files import FILES
from orchestrator.documents.api_uploads import PART_BYTES_MAX, UPLOADS
from orchestrator.documents.form import FORM_BYTES_MAX
from orchestrator.head import path_of

_PARTS = re.compile(f"{UPLOADS}/[^/]+/parts".encode())


def body_limit(target: bytes, *, file_bytes_max: int, otherwise: int) -> int:
    """The most bytes of a body sent to `target`; see `head.BodyLimit`. The handlers weigh the file in it exactly."""
    path = path_of(target)
    if path == FILES.encode():
        return file_bytes_max + FORM_BYTES_MAX
    if _PARTS.fullmatch(path):
        return PART_BYTES_MAX + FORM_BYTES_MAX
    return otherwise
