"""The ids of documents, in OpenAI's forms: a prefix for the kind, then letters and digits that nobody can guess."""

from __future__ import annotations

import re
import secrets
from hashlib import sha256
from typing import Literal

Kind = Literal["file", "upload", "part", "vector_store", "vector_store_file_batch"]
RANDOM_BYTES = 16
_PREFIXES: dict[Kind, str] = {
    "file": "file-",
    "upload": "upload_",
    "part": "part_",
    "vector_store": "vs_",
    "vector_store_file_batch": "vsfb_",
}
_FORMS = {kind: re.compile(f"{prefix}[0-9a-f]{{{2 * RANDOM_BYTES}}}") for kind, prefix in _PREFIXES.items()}


def new_id(kind: Kind) -> str:
    """A fresh id: 128 random bits after the kind's prefix. Safe in URLs and in the keys of objects."""
    return _PREFIXES[kind] + secrets.token_hex(RANDOM_BYTES)


def derived_id(kind: Kind, *seeds: str) -> str:
    """The same id for the same seeds; as hard to guess as they are."""
    return _PREFIXES[kind] + sha256("\0".join(seeds).encode()).hexdigest()[: 2 * RANDOM_BYTES]


def is_id(kind: Kind, text: str) -> bool:
    """Whether `text` can be an id of this kind. Cheap, whatever `text` is: what can't be one needs no look-up."""
    return _FORMS[kind].fullmatch(text) is not None
