"""Where things lie in the object store. Pure.

::

    content/<tenant>/files/<file>              what was uploaded
    content/<tenant>/uploads/<upload>/<part>
    derived/<tenant>/passages/<digest>         what was read of it; can be made anew
    derived/<tenant>/vectors/<digest>-<embedder>
    records/<tenant>/<kind>/<id>.json          the catalogue's facts, from which it is rebuilt
    records/serials.json                       a number above all that the catalogue gave
    owner.json                                 whose it is, see `ownership`

A tenant's and an embedder's name may hold anything, so their digests stand for them. Ids and digests are ours.
"""

from __future__ import annotations

from hashlib import sha256

DERIVED = "derived/"
"""What the keys of all that was made of documents begin with."""
RECORDS = "records/"
"""What all records' keys begin with."""
SERIALS = f"{RECORDS}serials.json"
OWNER = "owner.json"
_TENANT_CHARS = 32
_EMBEDDER_CHARS = 16


def file_key(tenant: str, id: str) -> str:
    """The content of a file."""
    return f"content/{_tenant(tenant)}/files/{id}"


def part_key(tenant: str, upload: str, part: str) -> str:
    """The content of one part of an upload."""
    return f"content/{_tenant(tenant)}/uploads/{upload}/{part}"


def passages_key(tenant: str, digest: str) -> str:
    """What was read of a document."""
    return f"{DERIVED}{_tenant(tenant)}/passages/{digest}"


def vectors_key(tenant: str, digest: str, embedder: str) -> str:
    """The vectors of those passages by one embedder."""
    return f"{DERIVED}{_tenant(tenant)}/vectors/{digest}-{_short(embedder, _EMBEDDER_CHARS)}"


def record_key(tenant: str, kind: str, id: str) -> str:
    """One fact of the catalogue."""
    return f"{RECORDS}{_tenant(tenant)}/{kind}/{id}.json"


def _tenant(name: str) -> str:
    return _short(name, _TENANT_CHARS)


def _short(name: str, chars: int) -> str:
    return sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:chars]
