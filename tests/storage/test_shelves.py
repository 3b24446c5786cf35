"""The indexes on disk: both legs as one, what a kill or damage leaves, and which are open."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from orchestrator.documents.model import Chunk
from orchestrator.documents.ports import Indexed
from storage import vector_files
from storage.lexical import Lexical
from storage.lexical_files import LexicalDamaged, LexicalError
from storage.shelves import DiskIndex, DiskShelves, IndexClosed
from storage.vector_files import VectorsError
from tests.storage import index_writer
from tests.storage.index_writer import DIMENSION, chunks, document, quiet_steps, steps, vector, word

ROOT = Path(__file__).parents[2]
POINTS = ("index.before_lexical", "index.after_lexical", "index.before_manifest", "index.after_manifest")


def check_whole(index: DiskIndex, state: dict[int, int]) -> None:
    """The index holds just the documents of `state`, each entry's version, in both legs."""
    assert index.entries() == state.keys()
    keys = {(entry, chunk) for entry, version in state.items() for chunk in chunks(entry, version)}
    everything = 1 + len(keys)
    assert {(hit.entry, hit.chunk) for hit in index.words("common", allowed=None, limit=everything)} == keys
    nearest = index.nearest(vector(0, 0, 0), allowed=None, limit=everything)
    assert sorted((hit.entry, hit.chunk) for hit in nearest) == sorted(keys)
    for entry, chunk in keys:
        version = state[entry]
        (said,) = index.words(word(entry, chunk, version), allowed=None, limit=5)
        near = index.nearest(vector(entry, chunk, version), allowed=None, limit=1)[0]
        assert (said.entry, said.chunk) == (near.entry, near.chunk) == (entry, chunk)
        assert near.score == pytest.approx(1, abs=1e-3)


def test_both_legs_hold_the_same(tmp_path: Path) -> None:
    index = index_writer.opened(tmp_path)
    state: dict[int, int] = {}
    for _, step in zip(range(6), steps(7), strict=False):
        index.add([document(entry, version) for entry, version in step.add.items()])
        index.remove(step.remove)
        state = step.after(state)
    check_whole(index, state)
    index.close()
    check_whole(index_writer.opened(tmp_path), state)


def test_a_document_without_vectors_is_in(tmp_path: Path) -> None:
    index = index_writer.opened(tmp_path)
    index.add([Indexed(entry=1, title="", chunks=[Chunk(text="only words")])])
    assert index.entries() == {1}
    assert index.nearest(vector(1, 0, 0), allowed=None, limit=3) == []
    assert [hit.entry for hit in index.words("words", allowed=None, limit=3)] == [1]
    assert index.chunks([(1, 0)]) == [Chunk(text="only words")]


def test_without_an_embedder(tmp_path: Path) -> None:
    index = DiskShelves(tmp_path).open("vs_1", "", 0)
    index.add([Indexed(entry=1, title="", chunks=[Chunk(text="only words")])])
    assert index.entries() == {1}
    assert index.nearest(np.empty(0, np.float32), allowed=None, limit=3) == []


def test_what_fails_by_half_is_in_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = index_writer.opened(tmp_path)
    index.add([document(1, 1), document(2, 1)])

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(vector_files, "write_manifest", refuse)
        with pytest.raises(VectorsError, match="No space"):
            index.add([document(3, 1)])
    check_whole(index, {1: 1, 2: 1})
    with pytest.raises(ValueError, match="owner"):
        index.add([Indexed(entry=2, title="", chunks=[], vectors=np.ones((1, DIMENSION), np.float32))])
    check_whole(index, {1: 1})


def told(folder: Path, seed: int, point: str) -> int:
    """Run the writer until it dies at `point`, or kill it at some moment: how many changes it acknowledged."""
    command = (sys.executable, "-m", "tests.storage.index_writer", str(folder), str(seed), point)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as writer:
        assert writer.stdout is not None
        output = [writer.stdout.readline() for _ in range(quiet_steps(seed))]
        if not point:
            writer.kill()
        output += writer.stdout.readlines()
    assert writer.returncode == (137 if point else -signal.SIGKILL)
    return len([line for line in output if line.endswith("\n")])


def kill_and_look(folder: Path, seed: int, point: str = "") -> None:
    """Each entry is as it was acknowledged; one that was being changed may also be as it will be, or not in at all."""
    acknowledged = told(folder, seed, point)
    made = steps(seed)
    state: dict[int, int] = {}
    for _ in range(acknowledged):
        state = next(made).after(state)
    under_way = next(made)
    after = under_way.after(state)
    index = index_writer.opened(folder)
    held = index.entries()
    assert held - under_way.touched == state.keys() - under_way.touched
    check_whole(index, {entry: _version(index, entry, (state, after)) for entry in held})
    index.add([document(entry, version) for entry, version in under_way.add.items()])
    index.remove(under_way.remove)
    check_whole(index, after)


def _version(index: DiskIndex, entry: int, states: Iterable[dict[int, int]]) -> int:
    """Which version is in, of those that may be."""
    for version in (state[entry] for state in states if entry in state):
        own = chunks(entry, version)
        texts = [Chunk(text=f"common {word(entry, chunk, version)}") for chunk in own]
        if index.chunks([(entry, chunk) for chunk in range(len(own) + 1)]) == [*texts, None]:
            return version
    raise AssertionError(f"{entry} is in by half")


@pytest.mark.parametrize("seed", [1, 2])
def test_kill_9(tmp_path: Path, seed: int) -> None:
    kill_and_look(tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 21))
def test_kill_9_at_many_moments(tmp_path: Path, seed: int) -> None:
    kill_and_look(tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("point", POINTS)
def test_a_crash_at_each_point(tmp_path: Path, point: str, seed: int) -> None:
    kill_and_look(tmp_path, seed, point)


def some(entry: int) -> Indexed:
    return Indexed(entry=entry, title="", chunks=[Chunk(text="some words")])


def damaged_at(folder: Path) -> Path:
    """The folder of the one index there is."""
    (home,) = (folder / "v1" / "vs_1").iterdir()
    return home


@pytest.mark.parametrize("part", ["vectors/manifest", "words/meta.json", "words/version"])
def test_a_damaged_index_is_begun_anew(tmp_path: Path, part: str) -> None:
    shelves = DiskShelves(tmp_path)
    index = shelves.open("vs_1", "m", DIMENSION)
    index.add([document(1, 1)])
    shelves.close()
    (damaged_at(tmp_path) / part).write_bytes(b"\x00 nonsense")
    index = DiskShelves(tmp_path).open("vs_1", "m", DIMENSION)
    check_whole(index, {})
    index.add([document(2, 1)])
    check_whole(index, {2: 1})
    assert list((tmp_path / "trash").iterdir()) == []


def test_an_index_of_another_dimension_is_begun_anew(tmp_path: Path) -> None:
    shelves = DiskShelves(tmp_path)
    shelves.open("vs_1", "m", DIMENSION).add([some(1)])
    assert shelves.open("vs_1", "m", 8).entries() == frozenset()
    assert DiskShelves(tmp_path).open("vs_1", "m", DIMENSION).entries() == frozenset()


def test_damage_that_a_search_meets_ends_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelves = DiskShelves(tmp_path)
    index = shelves.open("vs_1", "m", DIMENSION)
    index.add([some(1)])

    def broken(*_: object, **__: object) -> None:
        raise LexicalDamaged("the index can't be read")

    with monkeypatch.context() as patch:
        patch.setattr(Lexical, "search", broken)
        with pytest.raises(LexicalDamaged):
            index.words("some", allowed=None, limit=1)
    anew = shelves.open("vs_1", "m", DIMENSION)
    assert anew is not index
    assert anew.entries() == frozenset()
    with pytest.raises(IndexClosed):
        index.add([some(2)])


@pytest.mark.parametrize("harm", [shutil.rmtree, lambda folder: (folder / "words" / "meta.json").write_bytes(b"{")])
def test_damage_that_a_change_meets_ends_the_index(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    shelves = DiskShelves(tmp_path)
    index = shelves.open("vs_1", "m", DIMENSION)
    index.add([some(1)])
    harm(damaged_at(tmp_path))
    assert index.words("some", allowed=None, limit=1) != []
    with pytest.raises(LexicalError):
        index.add([some(2)])
    anew = shelves.open("vs_1", "m", DIMENSION)
    anew.add([some(2)])
    assert anew.entries() == {2}


def test_embedders_and_stores_are_apart_and_discarded_apart(tmp_path: Path) -> None:
    shelves = DiskShelves(tmp_path)
    names = [("vs_1", "old"), ("vs_1", "../new"), ("vs_2", "old")]
    for entry, (store, embedder) in enumerate(names):
        shelves.open(store, embedder, 8).add([some(entry)])
    old = shelves.open("vs_1", "old", 8)
    shelves.discard("vs_1", keep="../new")
    with pytest.raises(IndexClosed):
        old.words("some", allowed=None, limit=1)
    assert [shelves.open(*name, 8).entries() for name in names] == [frozenset(), {1}, {2}]
    shelves.discard("vs_1")
    shelves.discard("vs_1")
    assert [path.name for path in (tmp_path / "v1").iterdir()] == ["vs_2"]
    with pytest.raises(ValueError, match="id"):
        shelves.discard("../v1")


def test_other_versions_and_leftovers_are_removed(tmp_path: Path) -> None:
    for name in ("v0/vs_1/x", "v12", "trash/1234", "notes", "v1/vs_1"):
        (tmp_path / name).mkdir(parents=True)
    DiskShelves(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "v1"]


def test_the_last_used_stay_open_and_so_does_what_is_in_use(tmp_path: Path) -> None:
    shelves = DiskShelves(tmp_path, open_max=2)
    in_use = shelves.open("vs_0", "m", 8)
    unused = weakref.ref(shelves.open("vs_1", "m", 8))
    for number in (2, 3):
        shelves.open(f"vs_{number}", "m", 8).add([some(number)])
    assert unused() is None
    assert shelves.open("vs_0", "m", 8) is in_use
    assert shelves.open("vs_3", "m", 8) is shelves.open("vs_3", "m", 8)


def test_none_is_closed_under_a_search(tmp_path: Path) -> None:
    """Three stores take turns on one place while others are searched and changed."""
    shelves = DiskShelves(tmp_path, open_max=1)
    for number in range(3):
        shelves.open(f"vs_{number}", "m", DIMENSION).add([document(1, number + 1)])
    faults: list[BaseException] = []

    def search(seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(12):
                number = chance.randrange(3)
                index = shelves.open(f"vs_{number}", "m", DIMENSION)
                if chance.random() < 0.1:
                    index.add([document(100 + seed, 1)])
                (hit, *_) = index.nearest(vector(1, 0, number + 1), allowed=[1], limit=1)
                assert hit.score > 0.99
                assert index.words(word(1, 0, number + 1), allowed=None, limit=9)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=search, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == []


def test_opened_by_many_at_once_it_is_one(tmp_path: Path) -> None:
    shelves = DiskShelves(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: shelves.open("vs_1", "m", 8), range(16)))
    assert len({id(index) for index in opened}) == 1
