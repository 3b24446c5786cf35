"""The lexical index: what is found, that nothing a user says harms it, and what a kill or damage leaves."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.documents.model import Chunk, Piece, Place
from orchestrator.documents.ports import Indexed
from storage.lexical import Lexical
from storage.lexical_files import LexicalDamaged, LexicalError
from tests.stub import until


def document(entry: int, *texts: str, title: str = "", headings: tuple[str, ...] = ()) -> Indexed:
    chunks = [Chunk(text=text, place=Place(headings=headings)) for text in texts]
    return Indexed(entry=entry, title=title, chunks=chunks)


@pytest.fixture
def lexical(tmp_path: Path) -> Iterator[Lexical]:
    opened = Lexical(tmp_path / "words")
    yield opened
    opened.close()


def found(lexical: Lexical, query: str, allowed: set[int] | None = None, limit: int = 10) -> list[tuple[int, int]]:
    return [(hit.entry, hit.chunk) for hit in lexical.search(query, allowed=allowed, limit=limit)]


def test_what_is_added_is_found_and_what_is_removed_is_not(lexical: Lexical) -> None:
    lexical.add([document(1, "the wing of an aeroplane", "a slipstream"), document(2, "a heated wing, a wing")])
    assert lexical.entries() == {1, 2}
    assert found(lexical, "wings") == [(2, 0), (1, 0)]
    assert found(lexical, "slipstream wing")[0] == (1, 1)
    assert found(lexical, "submarine") == []
    lexical.remove([2, 77])
    assert lexical.entries() == {1}
    assert found(lexical, "wings") == [(1, 0)]


def test_an_entry_is_replaced(lexical: Lexical) -> None:
    lexical.add([document(1, "alpha", "beta"), document(1, "alpha gamma")])
    lexical.add([document(1, "alpha delta")])
    assert found(lexical, "alpha") == [(1, 0)]
    assert found(lexical, "gamma beta") == []
    assert lexical.chunks([(1, 0), (1, 1)]) == [Chunk(text="alpha delta"), None]


def test_chunks_come_back_as_they_were(lexical: Lexical) -> None:
    place = Place(page=3, headings=("Über", "alles"), start_byte=10, end_byte=2**40)
    pieces = (Piece(start=0, end=3, place=replace(place, page=4)), Piece(start=3, end=7))
    chunk = Chunk(text="x\x00y ẞ 🙂", place=place, pieces=pieces)
    lexical.add([Indexed(entry=5, title="t", chunks=[chunk])])
    lexical.add([document(6, "lone \ud800 surrogate")])
    assert lexical.chunks([(6, 0), (4, 0), (5, 0), (5, 0)]) == [
        Chunk(text="lone ? surrogate"),
        None,
        *[chunk] * 2,
    ]
    assert lexical.chunks([]) == []


def test_a_document_without_text_is_an_entry_that_no_search_finds(lexical: Lexical) -> None:
    lexical.add([document(1), document(2, ""), document(3, "word")])
    assert lexical.entries() == {1, 2, 3}
    assert found(lexical, "word") == [(3, 0)]
    lexical.remove([1, 3])
    assert lexical.entries() == {2}


def test_titles_and_headings_are_found(lexical: Lexical) -> None:
    lexical.add([document(1, "some text", title="Quarterly report", headings=("Revenue",)), document(2, "some text")])
    assert found(lexical, "quarterly") == [(1, 0)]
    assert found(lexical, "revenue text") == [(1, 0), (2, 0)]


def test_only_the_allowed_are_ranked(lexical: Lexical) -> None:
    lexical.add([document(entry, "wing " * (entry + 1) + "of it") for entry in range(50)])
    assert len(found(lexical, "wing", limit=50)) == 50
    assert found(lexical, "wing", set()) == []
    assert found(lexical, "wing", {3, 99}) == [(3, 0)]
    assert sorted(found(lexical, "wing", {1, 2, 3}, limit=2))[0][0] in {1, 2, 3}
    for allowed in ({5}, set(range(25)), set(range(1, 50)), set(range(60))):  # by those, by the others, by none
        assert {entry for entry, _ in found(lexical, "wing", allowed, limit=100)} == allowed & set(range(50))
    scores = {hit.entry: hit.score for hit in lexical.search("wing", allowed=None, limit=50)}
    for allowed in ({5, 6}, set(range(1, 50))):  # a filter does not change what a chunk is worth
        narrowed = lexical.search("wing", allowed=allowed, limit=50)
        assert all(hit.score == pytest.approx(scores[hit.entry]) for hit in narrowed)


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("Die Größte Straße", "grosste STRASSE"),
        ("naïve café", "naive cafe"),
        ("naive cafe", "naïve cafe\u0301"),
        ("東京都の検索技術を調べる", "検索"),
        ("東京都の検索技術を調べる", "税 都"),
        ("한국어 문서에서 검색합니다", "검색"),
        ("ภาษาไทยไม่มีช่องว่าง", "ไทย"),
        ("हिन्दी में खोज", "हिन्दी"),
        ("поиск документов", "ПОИСК"),
        ("مرحبا بالعالم", "بالعالم"),
        ("an efﬁcient ﬂow", "efficient flow"),
        ("Ｆｕｌｌ　ｗｉｄｔｈ", "full width"),
        ("co\u00adoperate", "cooperate"),
        ("snake_case_name", "case"),
        ("error E1042 at 10.0.0.7", "e1042"),
    ],
)
def test_words_of_many_scripts(lexical: Lexical, text: str, query: str) -> None:
    lexical.add([document(1, text), document(2, "quite another thing 別 другое")])
    assert found(lexical, query)[0] == (1, 0)


def shares(lexical: Lexical, query: str, *keys: tuple[int, int]) -> list[list[float]]:
    return [[round(share, 2) for share in found] for found in lexical.shares(query, keys)]


def test_shares_say_how_much_of_a_query_each_piece_says(lexical: Lexical) -> None:
    text = "The wing is heated. A slipstream passes it."
    pieces = (Piece(start=0, end=19), Piece(start=20, end=len(text), place=Place(headings=("Flutter",))))
    lexical.add([Indexed(entry=1, title="Report 1042", chunks=[Chunk(text=text, pieces=pieces)])])
    lexical.add([document(2, "a wing"), document(3, "")])
    assert shares(lexical, "heated wings", (1, 0)) == [[1.0, 0.0]]
    assert shares(lexical, "the flutter of the slipstream", (1, 0)) == [[0.0, 1.0]]
    assert shares(lexical, "report 1042", (1, 0), (2, 0)) == [[1.0, 1.0], [0.0]]
    assert shares(lexical, "qwzx flurb", (1, 0), (2, 0), (3, 0), (9, 9)) == [[0.0, 0.0], [0.0], [0.0], []]
    assert shares(lexical, "the", (1, 0)) == [[1.0, 0.0]]
    assert lexical.shares("?!", [(1, 0)]) == [[0.0, 0.0]]
    assert lexical.shares("wing", []) == []


def test_rare_words_weigh_more(lexical: Lexical) -> None:
    lexical.add([document(entry, "common words", *(["rare words"] if entry == 1 else [])) for entry in range(60)])
    common, rare = (lexical.shares("common rare", [(1, chunk)])[0][0] for chunk in (0, 1))
    assert 0.2 < common < 0.5 < rare < 0.8
    assert common + rare == pytest.approx(1)
    assert lexical.shares("common unheard", [(1, 0)])[0][0] < common  # nobody says it: that is the rarest


def test_stop_words_count_when_there_is_nothing_else(lexical: Lexical) -> None:
    lexical.add([document(1, "to be or not to be"), document(2, "that is the question, to some")])
    assert found(lexical, "To be, or not to be?")[0] == (1, 0)
    assert found(lexical, "the question") == [(2, 0)]
    assert found(lexical, "what is it to be a question") == [(2, 0)]


def test_the_best_passages_say_what_else_is_meant(lexical: Lexical) -> None:
    lexical.add([document(entry, "flutter flutter panel") for entry in range(3)])
    lexical.add([document(7, "flutter damping"), document(8, "flutter panel"), document(9, "a panel")])
    lexical.add([document(entry, f"another thing {entry}") for entry in range(20, 40)])
    ranked = [entry for entry, _ in found(lexical, "flutter")]
    assert ranked.index(8) < ranked.index(7)  # as the best ones speak of panels
    assert 9 not in ranked  # but what has no word of the query is not found


def test_long_queries_are_cut_to_their_rarest_words(lexical: Lexical) -> None:
    common = [f"common{number}" for number in range(200)]
    lexical.add([document(1, " ".join(common)), document(2, " ".join(common)), document(3, "needle")])
    assert (3, 0) in found(lexical, " ".join([*common, "needle"]))
    assert found(lexical, "x" * 10_000 + " needle") == []


HOSTILE = [
    "(" * 3000,
    '"' * 5001,
    "wing" + ")" * 9999,
    "* OR *",
    "*:*",
    "body:wing",
    "entry:1",
    "+wing -wing",
    "wing~99999999",
    "wing^1e999",
    "[* TO *]",
    "{a TO z}",
    "/(a+)+$/",
    "IN [wing wing]",
    "\\" * 4000,
    "a AND (b OR (c AND (d OR",
    "\x00wing\x00",
    "\ud800\udfff wing \udc80",
    "\u202ewing\u202c \u200f\u061c",
    "wing " * 200_000,
    "w" * 1_000_000,
    "\u0301\u0323" * 500_000,
    "\ufdfa" * 100_000,
    "検" * 100_000,
    "".join(map(chr, range(1, 0x3000))),
    " ".join(f"w{n}" for n in range(100_000)),
    "\n\t\r\v\f\x85\u2028",
    "",
    "'; DROP TABLE files; --",
    "%s%n{}{0}${jndi:ldap://x}",
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lexical]:
    opened = Lexical(tmp_path_factory.mktemp("shared") / "words")
    opened.add([document(entry, "a wing body entry or and to drop table w1 検索") for entry in range(20)])
    yield opened
    opened.close()


@pytest.mark.parametrize("query", HOSTILE, ids=lambda query: ascii(query[:12]))
def test_hostile_queries_are_only_words(shared: Lexical, query: str) -> None:
    started = time.monotonic()
    hits = shared.search(query, allowed={1, 2}, limit=10)
    assert {hit.entry for hit in hits} <= {1, 2}
    assert time.monotonic() - started < 2.0


HOSTILE_PARTS = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="()[]{}\"'*?~^:+-\\/!&|<> \x00\t\n", max_size=60),
    st.sampled_from(["wing", "AND", "OR", "NOT", "TO", "IN", "body:", "entry:1", "\ud800", "\u202e", "検索", "*", "("]),
)


@pytest.mark.parametrize("queries", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_query_crashes(shared: Lexical, queries: int) -> None:
    @settings(max_examples=queries, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(parts=st.lists(HOSTILE_PARTS, max_size=12), times=st.sampled_from([1, 1, 1, 1, 50]))
    def search(parts: list[str], times: int) -> None:
        hits = shared.search(" ".join(parts) * times, allowed=None, limit=5)
        assert len(hits) <= 5 and all(hit.score > 0 for hit in hits)

    search()


def test_what_was_added_is_there_after_reopening(tmp_path: Path) -> None:
    first = Lexical(tmp_path)
    first.add([document(1, "alpha"), document(2)])
    first.close()
    assert Lexical(tmp_path).entries() == {1, 2}


def test_an_open_index_holds_no_lock(tmp_path: Path) -> None:
    first, second = Lexical(tmp_path), Lexical(tmp_path)
    first.add([document(1, "alpha")])
    second.add([document(2, "beta")])
    assert second.entries() == {1, 2}


def test_a_change_that_fails_changes_nothing(lexical: Lexical) -> None:
    lexical.add([document(1, "alpha")])
    with pytest.raises(LexicalError, match="not changed"):
        lexical.add([document(1, "beta"), document(-1, "gamma")])
    assert lexical.entries() == {1}
    assert found(lexical, "alpha") == [(1, 0)]
    lexical.add([document(1, "beta")])
    assert found(lexical, "alpha") == []


def test_a_folder_that_refuses(lexical: Lexical, tmp_path: Path) -> None:
    lexical.add([document(1, "alpha")])
    for path in (tmp_path / "words").iterdir():
        path.unlink()
    (tmp_path / "words").rmdir()
    with pytest.raises(LexicalError):
        lexical.add([document(2, "beta")])
    assert found(lexical, "alpha") == [(1, 0)]  # what is mapped stays


def _version(folder: Path) -> None:
    (folder / "version").write_text("0")


def _no_version(folder: Path) -> None:
    (folder / "version").unlink()


def _binary_version(folder: Path) -> None:
    (folder / "version").write_bytes(b"\xff\xfe")


def _broken_meta(folder: Path) -> None:
    (folder / "meta.json").write_text("{")


def _missing_segment(folder: Path) -> None:
    next(folder.glob("*.term")).unlink()


def _cut_segment(folder: Path) -> None:
    for path in folder.glob("*.idx"):
        os.truncate(path, 3)


@pytest.mark.parametrize(
    "harm",
    [_version, _no_version, _binary_version, _broken_meta, _missing_segment, _cut_segment],
    ids=lambda f: f.__name__,
)
def test_damage_and_other_versions_are_refused(tmp_path: Path, harm: object) -> None:
    opened = Lexical(tmp_path)
    opened.add([document(entry, "alpha beta") for entry in range(10)])
    opened.close()
    assert callable(harm)
    harm(tmp_path)
    with pytest.raises(LexicalDamaged):
        Lexical(tmp_path)


def test_an_index_cut_off_at_its_birth_begins_anew(tmp_path: Path) -> None:
    Lexical(tmp_path).close()
    (tmp_path / "meta.json").unlink()
    opened = Lexical(tmp_path)
    opened.add([document(1, "alpha")])
    assert opened.entries() == {1}


def test_a_removal_cut_off_before_its_commit_is_made_again(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    made = Lexical(before)
    made.add([document(1, "alpha"), document(2, "beta")])
    shutil.copytree(before, after)
    Lexical(after).remove([1])
    for left in after.iterdir():  # all that the removal wrote, but not the commit
        if left.name != "meta.json":
            shutil.copy(left, before)
    opened = Lexical(before)
    assert opened.entries() == {1, 2}
    opened.remove([1])
    assert opened.entries() == {2}
    assert found(opened, "alpha beta") == [(2, 0)]


def test_many_threads_search_while_one_changes(lexical: Lexical) -> None:
    lexical.add([document(0, "wing zero")])
    stop, faults = threading.Event(), []

    def search() -> None:
        while not stop.is_set():
            try:
                assert (0, 0) in found(lexical, "wing of 検索", limit=1000)
                assert lexical.chunks([(0, 0)]) != [None]
            except Exception as error:
                faults.append(error)
                return

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for entry in range(1, 15):
        lexical.add([document(entry, "another wing", "検索")])
        lexical.remove([entry - 1] if entry > 1 else [])
    stop.set()
    for thread in threads:
        thread.join()
    assert not faults
    assert lexical.entries() == {0, 14}


WRITER = """
import sys
from pathlib import Path
from tests.storage.test_lexical import document
from storage.lexical import Lexical

lexical = Lexical(Path(sys.argv[1]))
for entry in range(10_000):
    lexical.add([document(entry, *[f"wing number {entry}"] * 20)])
    if entry % 3 == 2:
        lexical.remove([entry - 1])
    print(entry, flush=True)
"""


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 20))])
def test_a_kill_loses_nothing_acknowledged(tmp_path: Path, seed: int) -> None:
    changes = random.Random(seed).randrange(3, 40)
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert child.stdout
    with child:
        for _ in range(changes):
            assert child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        acknowledged = [changes - 1, *map(int, child.stdout.read().split())][-1]
    opened = until(lambda: Lexical(tmp_path))
    held = opened.entries()
    expected = {entry for entry in range(acknowledged + 1) if entry % 3 != 1 or entry + 1 > acknowledged}
    assert held - {acknowledged + 1} in (expected, expected - {acknowledged})  # the next change may have been made
    assert {entry for entry, _ in found(opened, "wing", limit=10_000)} == held
    assert len(found(opened, "wing", limit=10_000)) == 20 * len(held)  # no document by half
    opened.add([document(77_777, "still writable")])
