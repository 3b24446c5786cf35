"""A service whose data folder runs full, as a program: ``python -m tests.documents.full_disk FOLDER``.

FOLDER/data must be a small file system of its own. Ends with an AssertionError when something is not as it should be.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.documents.embedder import counting_embedder
from tests.documents.survival import (
    CHAT,
    FILES,
    documents_of,
    inference_goes_on,
    is_ready,
    is_refused,
    words,
)
from tests.stub import service, until

UPLOADS_KEEP_FREE = 2**28


def main(folder: Path) -> None:
    """Fill it up to where uploads stop, then wholly, then free it."""
    data = folder / "data"
    filler = data / "filler"
    with (
        counting_embedder() as embedder,
        service(folder, embedder.config, CHAT) as running,
        documents_of(running) as documents,
    ):
        with inference_goes_on(running):
            documents.put(*words(FILES))
            until(documents.completed)
            before = documents.state()
            fill(filler, free_bytes=UPLOADS_KEEP_FREE // 2)
            assert is_refused(documents.upload(b"not kept"), "storage_full")
            assert documents.found("word0001")
            fill(filler, free_bytes=0)
            assert is_refused(documents.upload(b"not kept"), "storage_full")
            made = documents.ask("POST", "/v1/vector_stores", json={})
            assert made.status_code == 503 and made.headers["retry-after"], made.text
            until(lambda: is_ready(documents, "is full"))
            assert documents.found("word0001")
            filler.unlink()
            until(lambda: is_ready(documents))
            assert documents.state() == before
            documents.put("afterwards")
            until(documents.completed)
            until(documents.all_found)
        before = documents.state()
        fill(filler, free_bytes=0)
        running.end()
        running.restart()
        until(lambda: is_ready(documents, "is full"))
        assert is_refused(documents.upload(b"not kept"), "storage_full")
        filler.unlink()
        until(lambda: is_ready(documents))
        until(documents.all_found)
        assert documents.state() == before


def fill(filler: Path, *, free_bytes: int) -> None:
    """Leave so much."""
    with filler.open("ab") as file:
        found = os.statvfs(filler)
        taken = found.f_bavail * found.f_frsize - free_bytes
        os.posix_fallocate(file.fileno(), file.tell(), taken)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
