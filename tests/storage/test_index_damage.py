"""Files of an index that are spoiled, cut while in use, touched, or can't be opened for now."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from storage.lexical_files import LexicalDamaged, LexicalError, faults
from storage.seals import Seals, crc32_of, refused
from storage.shelves import DiskShelves
from storage.vector_files import VectorsDamaged
from tests.storage import index_spoiler
from tests.storage.index_writer import DIMENSION, document

ROOT = Path(__file__).parents[2]


def faults_of(folder: Path, *what: str) -> list[str]:
    """What a run of the spoiler prints, which must come to its end."""
    command = [sys.executable, "-m", "tests.storage.index_spoiler", str(folder), *what]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return [line for line in ended.stdout.splitlines() if "[warning" not in line]


@pytest.mark.parametrize(
    "harm",
    [pytest.param(harm, marks=() if harm == "noise" else pytest.mark.slow) for harm in index_spoiler.HARMS],
)
def test_any_one_spoiled_file_leads_to_a_new_index_or_to_no_harm(tmp_path: Path, harm: str) -> None:
    assert faults_of(tmp_path, harm) == []


@pytest.mark.parametrize(
    ("part", "act"), [("words", "search"), ("vectors", "search"), ("words", "add"), ("vectors", "add")]
)
def test_files_that_are_cut_while_in_use_end_the_index_and_not_the_process(tmp_path: Path, part: str, act: str) -> None:
    assert faults_of(tmp_path, "cut-in-use", part, act) == []


def test_too_many_open_files_are_no_damage(tmp_path: Path) -> None:
    assert faults_of(tmp_path, "descriptors") == []


def test_a_file_that_is_only_touched_is_whole(tmp_path: Path) -> None:
    index_spoiler.build(tmp_path)
    shelves = DiskShelves(tmp_path)
    index = shelves.open("vs_1", "m", DIMENSION)
    before = index_spoiler.seen(index)
    for path in index_spoiler.files(tmp_path):
        os.utime(tmp_path / path, (1, 1))
    assert index_spoiler.seen(index) == before
    index.add([document(1, 2)])
    assert shelves.open("vs_1", "m", DIMENSION) is index


def test_vectors_that_are_written_over_while_in_use_are_seen_by_the_next_search(tmp_path: Path) -> None:
    index_spoiler.build(tmp_path)
    shelves = DiskShelves(tmp_path)
    index = shelves.open("vs_1", "m", DIMENSION)
    (path,) = tmp_path.rglob("values.0")
    index_spoiler.HARMS["middle"](path)
    with pytest.raises(VectorsDamaged):
        index_spoiler.seen(index)
    assert shelves.open("vs_1", "m", DIMENSION).entries() == frozenset()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "full"), True),
        (OSError(errno.EMFILE, "too many"), True),
        (PermissionError(errno.EACCES, "no"), True),
        (FileNotFoundError(errno.ENOENT, "gone"), False),
        (OSError(errno.EIO, "broken"), False),
        (ValueError("IoError { io_error: Os { code: 28, kind: StorageFull } }"), True),
        (ValueError("An IO error occurred: 'No space left on device (os error 28)'"), True),
        (ValueError("Os { code: 2, kind: NotFound }"), False),
        (ValueError("footer magic byte mismatch"), False),
    ],
)
def test_what_the_machine_refuses_is_no_damage(error: Exception, expected: bool) -> None:
    assert refused(error) is expected
    with pytest.raises(LexicalError) as raised, faults(LexicalDamaged, "it can't be read"):
        raise error
    assert isinstance(raised.value, LexicalDamaged) is not expected


def test_seals_have_each_file_verified_once_and_again_when_it_was_touched(tmp_path: Path) -> None:
    looked: list[str] = []
    files = [tmp_path / name for name in ("a", "b", "gone")]
    for path in files[:2]:
        path.write_text(path.name)
    seals = Seals()

    def check() -> list[str]:
        looked.clear()
        seals.check(tmp_path, files, lambda path: looked.append(path.name))
        return list(looked)

    assert check() == ["a", "b"]
    assert check() == []
    os.utime(files[1], (1, 1))
    assert check() == ["b"]
    files[0].write_text("longer")
    seals.trust(tmp_path, files)
    assert check() == []
    seals.forget(tmp_path.parent)
    assert check() == ["a", "b"]


def test_a_checksum_is_of_so_many_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"123456789" + b"x" * 3_000_000)
    assert crc32_of(tmp_path / "file", 9) == 0xCBF43926
    assert crc32_of(tmp_path / "file", 0) == 0
    assert crc32_of(tmp_path / "file", 4_000_000) is None
