"""The vector index: what is nearest, filtered or not, and what is left by whatever ends a change early."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from orchestrator.documents.model import Hit
from orchestrator.documents.ports import Indexed
from storage import vector_files, vectors
from storage import vector_scan as scan
from storage.vector_files import VectorsDamaged, VectorsError
from storage.vector_scan import Floats
from storage.vectors import Vectors

DIMENSION = 24


def unit(rows: NDArray[np.floating]) -> Floats:
    """Each row at length 1."""
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def drawn(seed: int, rows: int, dimension: int = DIMENSION) -> Floats:
    """Vectors in some clusters, as those of texts are."""
    chance = np.random.default_rng(seed)
    topics = chance.standard_normal((20, dimension))
    return unit(topics[chance.integers(0, 20, rows)] + 0.7 * chance.standard_normal((rows, dimension)))


def document(entry: int, rows: Floats, rows_a_chunk: int = 1) -> Indexed:
    owners = [row // rows_a_chunk for row in range(len(rows))]
    return Indexed(entry=entry, title="", chunks=[], owners=owners, vectors=rows)


def exact(held: Mapping[int, Floats], vector: Floats, allowed: Collection[int] | None, limit: int) -> list[Hit]:
    """As `Vectors.nearest`, the long way round; three rows a chunk."""
    best: dict[tuple[int, int], float] = {}
    for entry, rows in held.items():
        if allowed is None or entry in allowed:
            for row, score in enumerate((rows @ vector).tolist()):
                key = (entry, row // 3)
                best[key] = max(best.get(key, -1), score)
    ranked = sorted(best.items(), key=lambda item: -item[1])
    return [Hit(entry=entry, chunk=chunk, score=score) for (entry, chunk), score in ranked[:limit]]


def check_same(found: list[Hit], expected: list[Hit]) -> None:
    """The same scores, and the same chunks but for those that are equally near."""
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-4)
    assert len({(hit.entry, hit.chunk) for hit in found}) == len(found)
    scores = {(hit.entry, hit.chunk): hit.score for hit in found}
    for hit in expected[:-1]:
        assert scores.get((hit.entry, hit.chunk), expected[-1].score) == pytest.approx(hit.score, abs=1e-4)


@pytest.mark.parametrize("exact_rows", [0, vectors.EXACT_ROWS])
@pytest.mark.parametrize("seed", range(4))
def test_after_any_changes_it_finds_what_is_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, exact_rows: int
) -> None:
    """A shortlist of all rows is as good as none; compaction comes often."""
    monkeypatch.setattr(vectors, "EXACT_ROWS", exact_rows)
    monkeypatch.setattr(vectors, "FEW_ROWS", 0)
    monkeypatch.setattr(vectors, "WASTE_MIN", 30)
    chance = random.Random(seed)
    index = Vectors(tmp_path, DIMENSION)
    held: dict[int, Floats] = {}
    for step in range(30):
        new = {entry: drawn(chance.randrange(10**6), chance.choice([0, 1, 7])) for entry in chance.sample(range(40), 3)}
        index.add([document(entry, rows, 3) for entry, rows in new.items()])
        gone = chance.sample(range(50), 2)
        index.remove(gone)
        held = {entry: rows for entry, rows in (held | new).items() if entry not in gone}
        assert index.entries() == held.keys()
        if step % 10 == 9:
            index = Vectors(tmp_path, DIMENSION)
        for allowed in (None, set(), {1}, set(range(0, 60, 2)), set(held)):
            limit = chance.choice([1, 5, 1000])
            vector = drawn(chance.randrange(10**6), 1)[0]
            found = index.nearest(vector, allowed=allowed, limit=limit)
            check_same(found, exact(held, vector, allowed, limit))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Vectors, Floats]:
    """An index of 80,000 rows of 64 dimensions, in entries of 20."""
    rows = drawn(1, 80_000, 64)
    index = Vectors(tmp_path_factory.mktemp("many"), 64)
    documents = [document(entry, rows[entry * 20 : entry * 20 + 20]) for entry in range(4000)]
    for start in range(0, 4000, 1111):
        index.add(documents[start : start + 1111])
    return index, rows


@pytest.mark.parametrize("share", [None, 1.0, 0.5, 0.01, 0.001])
def test_a_shortlist_keeps_the_recall_whatever_the_filter(
    many: tuple[Vectors, Floats], monkeypatch: pytest.MonkeyPatch, share: float | None
) -> None:
    monkeypatch.setattr(vectors, "EXACT_ROWS", 100)
    monkeypatch.setattr(vectors, "FEW_ROWS", 100)
    index, rows = many
    allowed = None if share is None else random.Random(3).sample(range(4000), int(4000 * share))
    outside = np.ones(4000, bool)
    outside[list(range(4000)) if allowed is None else allowed] = False
    right = 0
    for vector in drawn(1, 80_010, 64)[-10:]:
        cosines = rows @ vector
        cosines[np.repeat(outside, 20)] = -2
        best = set(np.argsort(-cosines)[:10].tolist())
        found = index.nearest(vector, allowed=allowed, limit=10)
        right += len(best & {hit.entry * 20 + hit.chunk for hit in found})
    assert right >= 95


def test_vectors_that_all_point_the_same_way_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some models' texts have cosines of 0.9 with each other: once the index is large, its bits have a centre."""
    monkeypatch.setattr(vectors, "EXACT_ROWS", 10_000)
    monkeypatch.setattr(vectors, "SHORTLIST_ROWS", 800)
    rows = unit(drawn(1, 20_010, 128) + 3 * drawn(2, 1, 128))
    index = Vectors(tmp_path, 128)
    for start in range(0, 20_000, 5000):
        index.add([document(start, rows[start : start + 5000])])
    assert [path.name for path in tmp_path.glob("centre.*")] == ["centre.1"]
    right = 0
    for vector in rows[-10:]:
        best = set(np.argsort(-(rows[:-10] @ vector))[:10].tolist())
        found = Vectors(tmp_path, 128).nearest(vector, allowed=None, limit=10)
        right += len(best & {hit.entry + hit.chunk for hit in found})
    assert right >= 97


def test_one_chunk_of_very_many_rows_does_not_hide_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "SHORTLIST_ROWS", 10)
    index = Vectors(tmp_path, DIMENSION)
    rows = drawn(1, 3)
    index.add([document(1, np.repeat(rows[:1], 500, axis=0), 500), document(2, rows[1:])])
    for exact_rows in (0, 10_000):
        monkeypatch.setattr(vectors, "EXACT_ROWS", exact_rows)
        found = index.nearest(rows[0], allowed=None, limit=3)
        assert sorted((hit.entry, hit.chunk) for hit in found) == [(1, 0), (2, 0), (2, 1)]
        assert found[0].score == pytest.approx(1, abs=1e-4)


def test_scores_are_cosines(tmp_path: Path) -> None:
    index = Vectors(tmp_path, DIMENSION)
    row = drawn(5, 1)
    index.add([document(1, np.concatenate([row, -row])), document(2, np.eye(DIMENSION, dtype=np.float32)[:1] * 0)])
    found = index.nearest(row[0], allowed=None, limit=9)
    assert [hit.score for hit in found] == pytest.approx([1, 0, -1], abs=1e-4)
    assert all(-1 <= hit.score <= 1 for hit in found)


def test_the_cosine_of_each_piece(tmp_path: Path) -> None:
    index = Vectors(tmp_path, DIMENSION)
    rows = drawn(1, 5)
    index.add([Indexed(entry=7, title="", chunks=[], owners=[0, 0, 1, 3, 3], vectors=rows)])
    index.add([document(8, drawn(2, 3)), document(9, rows[:0])])
    index.add([document(8, rows[:1])])  # what it had before counts no more
    keys = [(7, 3), (7, 0), (7, 2), (8, 0), (8, 1), (9, 0), (10, 0), (7, 1)]
    expected = [rows[3:5], rows[:2], rows[:0], rows[:1], *[rows[:0]] * 3, rows[2:3]]
    for opened in (index, Vectors(tmp_path, DIMENSION)):
        found = opened.cosines(rows[0], keys)
        for cosines, own in zip(found, expected, strict=True):
            assert cosines == pytest.approx((own @ rows[0]).tolist(), abs=1e-4)
    assert index.cosines(rows[0], []) == []


def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Vectors(tmp_path, DIMENSION)
    row = drawn(1, 1)
    with pytest.raises(ValueError, match="shape"):
        index.nearest(row[0, 1:], allowed=None, limit=1)
    with pytest.raises(ValueError, match="owner"):
        index.add([Indexed(entry=1, title="", chunks=[], owners=[0, 0], vectors=row)])
    with pytest.raises(ValueError, match="numbers"):
        index.add([document(1, row * np.float32("nan"))])
    with pytest.raises(ValueError, match="dimension"):
        index.add([document(1, row[:, 1:])])
    monkeypatch.setattr(vectors, "ROWS_MAX", 2)
    index.add([document(1, drawn(2, 2))])
    with pytest.raises(VectorsError, match="at most 2"):
        index.add([document(2, row)])
    assert index.entries() == {1}
    assert index.nearest(row[0], allowed=None, limit=0) == []


def fails(code: int) -> Callable[..., int]:
    """A system call that does."""

    def call(*_: object) -> int:
        raise OSError(code, "refused")

    return call


@pytest.mark.parametrize("step", ["pwrite", "fsync", "replace"])
def test_a_change_that_the_disk_refuses_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    index = Vectors(tmp_path, DIMENSION)
    rows = drawn(1, 60)
    index.add([document(1, rows[:20])])
    with monkeypatch.context() as patch:
        patch.setattr(Path if step == "replace" else os, step, fails(errno.ENOSPC))
        with pytest.raises(VectorsError, match="refused"):
            index.add([document(2, rows[20:40])])
        with pytest.raises(VectorsError, match="refused"):
            index.remove([1])
    for opened in (index, Vectors(tmp_path, DIMENSION)):
        assert opened.entries() == {1}
        assert len(opened.nearest(rows[0], allowed=None, limit=99)) == 20
    index.add([document(3, rows[40:])])
    check_same(
        Vectors(tmp_path, DIMENSION).nearest(rows[50], allowed=[3], limit=1), [Hit(entry=3, chunk=10, score=1.0)]
    )


def test_what_was_cut_off_is_written_over(tmp_path: Path) -> None:
    rows = drawn(1, 40)
    Vectors(tmp_path, DIMENSION).add([document(1, rows[:20])])
    for path in tmp_path.glob("*.0"):
        with path.open("ab") as file:
            file.write(b"\xff" * 1001)
    (tmp_path / "values.1").write_bytes(b"half a compaction")
    index = Vectors(tmp_path, DIMENSION)
    index.add([document(2, rows[20:])])
    index = Vectors(tmp_path, DIMENSION)
    for row, vector in enumerate(rows):
        (hit,) = index.nearest(vector, allowed=None, limit=1)
        assert (hit.entry, hit.chunk) == (1 + row // 20, row % 20)
    assert not (tmp_path / "values.1").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "harm"),
    [(name, harm) for name in ("values.0", "codes.0", "chunks.0", "records.0") for harm in (cut, Path.unlink)]
    + [("records.0", flip), ("manifest", cut), ("manifest", flip), ("manifest", Path.unlink)],
)
def test_damage_is_told(tmp_path: Path, name: str, harm: Callable[[Path], None]) -> None:
    Vectors(tmp_path, DIMENSION).add([document(1, drawn(1, 20))])
    harm(tmp_path / name)
    with pytest.raises(VectorsDamaged):
        Vectors(tmp_path, DIMENSION)


@pytest.mark.parametrize("other", [{"version": 1}, {"dimension": 25}])
def test_another_version_or_dimension_is_told(tmp_path: Path, other: dict[str, int]) -> None:
    facts = {"version": vector_files.VERSION, "dimension": DIMENSION} | other
    manifest = vector_files.Manifest(version=facts["version"], dimension=facts["dimension"])
    vector_files.write_manifest(tmp_path, manifest)
    with pytest.raises(VectorsDamaged):
        Vectors(tmp_path, DIMENSION)


def test_compaction_gives_room_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "WASTE_MIN", 100)
    index = Vectors(tmp_path, DIMENSION)
    for number in range(50):
        index.add([document(1, drawn(number, 50)), document(100 + number, drawn(0, 0))])
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 4 * 50 * (DIMENSION * 2 + 24)
    (hit,) = index.nearest(drawn(49, 50)[7], allowed=None, limit=1)
    assert (hit.entry, hit.chunk) == (1, 7)
    assert Vectors(tmp_path, DIMENSION).entries() == index.entries() == {1, *range(100, 150)}


def test_a_compaction_that_the_disk_refuses_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "WASTE_MIN", 10)
    index = Vectors(tmp_path, DIMENSION)
    rows = drawn(1, 50)
    index.add([document(1, rows[:30]), document(2, rows[30:])])
    with monkeypatch.context() as patch:
        patch.setattr(Vectors, "_live", lambda *_: (fails(errno.ENOSPC)() for _ in range(1)))
        index.remove([1])
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".0", ".0", ".0", ".0"]
    assert index.entries() == Vectors(tmp_path, DIMENSION).entries() == {2}
    index.add([document(3, rows[:1])])
    assert index.nearest(rows[0], allowed=None, limit=1)[0].entry == 3


def test_a_search_sees_an_index_before_or_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A document's two rows are found together or not at all, while it is replaced and the index compacted; and what
    we change ourselves is neither read through again nor taken for damage."""
    monkeypatch.setattr(vectors, "WASTE_MIN", 50)
    index = Vectors(tmp_path, DIMENSION)
    monkeypatch.setattr(vector_files, "crc32_of", lambda path, length: faults.append(path))
    rows = drawn(1, 100)
    pair = np.repeat(rows[:1], 2, axis=0)
    index.add([document(0, rows), document(7, pair)])
    ended = threading.Event()
    faults: list[object] = []

    def search() -> None:
        while not ended.is_set():
            found = [hit.chunk for hit in index.nearest(rows[0], allowed=None, limit=3) if hit.entry == 7]
            if sorted(found) not in ([], [0, 1]):
                faults.append(found)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(15):
        index.add([document(7, pair), document(100 + number, rows[number + 1 : number + 9])])
        index.remove([7] if number % 3 == 0 else [100 + number - 1])
    ended.set()
    for thread in threads:
        thread.join(30)
    assert faults == []


@given(st.integers(1, 200), st.integers(1, 300), st.integers(0, 10**6))
def test_differences_are_counted_bit_by_bit(dimension: int, rows: int, seed: int) -> None:
    chance = np.random.default_rng(seed)
    given_rows = chance.standard_normal((rows, dimension)).astype(np.float32)
    vector = chance.standard_normal(dimension).astype(np.float32)
    block = np.zeros((scan.words(dimension), scan.BLOCK_ROWS), np.uint64)
    centre = 0.3 * chance.standard_normal(dimension).astype(np.float32)
    block[:, :rows] = scan.codes_of(given_rows, centre).T
    (code,) = scan.codes_of(vector[None], centre)
    expected = ((given_rows > centre) != (vector > centre)).sum(axis=1)
    assert scan.differences([block], rows, code).tolist() == expected.tolist()


@given(st.lists(st.integers(0, 20), min_size=1, max_size=60), st.integers(1, 70))
def test_the_smallest_and_the_largest(numbers: list[int], count: int) -> None:
    smallest = scan.smallest(np.array(numbers, np.uint16), count)
    last = sorted(numbers)[min(count, len(numbers)) - 1]
    assert smallest.tolist() == [place for place, number in enumerate(numbers) if number <= last]
    largest = scan.largest(np.array(numbers, np.float32), count)
    assert largest.tolist() == sorted(range(len(numbers)), key=lambda place: -numbers[place])[:count]
