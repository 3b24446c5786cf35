"""The retrieval benchmark: reading collections, and its measures."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bench.collection import CollectionError, ndcg, read, recall


def write(folder: Path, docs: str, queries: str, qrels: str) -> Path:
    for name, text in (("docs", docs), ("queries", queries), ("qrels", qrels)):
        (folder / f"{name}.xml").write_text(f"<root>{text}</root>")
    return folder


def test_a_collection_is_read_however_it_is_laid_out(tmp_path: Path) -> None:
    docs = (
        '<doc id="1">flow &amp; heat & more\x0c</doc>'
        '<doc id="2"><title>T</title><text>body <b>x</b></text></doc><doc id="3"/>'
    )
    queries = (
        '<query id="1">\n what is heat\n</query><query id="2">nothing relevant</query><query id="9">no line</query>'
    )
    read_back = read(write(tmp_path, docs, queries, '<res id="1">1 3\n2</res><res id="2"></res>'))
    assert read_back.documents == {"1": "flow & heat & more", "2": "T\n\nbody\n\nx", "3": ""}
    assert read_back.queries == {"1": "what is heat"}
    assert read_back.relevant["1"] == {"1", "2", "3"}


@pytest.mark.parametrize(
    ("docs", "queries", "qrels"),
    [
        ("", '<query id="1">q</query>', '<res id="1">1</res>'),
        ('<doc id="1">a</doc>', "", '<res id="1">1</res>'),
        ("<doc>a</doc>", '<query id="1">q</query>', '<res id="1">1</res>'),
        ('<doc id="1">a', '<query id="1">q</query>', '<res id="1">1</res>'),
    ],
)
def test_what_is_no_collection(tmp_path: Path, docs: str, queries: str, qrels: str) -> None:
    with pytest.raises(CollectionError):
        read(write(tmp_path, docs, queries, qrels))
    with pytest.raises(CollectionError):
        read(tmp_path / "nowhere")


def test_measures() -> None:
    assert ndcg(["a", "b"], {"a", "b"}) == 1.0
    assert ndcg(["x", "a"], {"a"}) == pytest.approx(1 / math.log2(3))
    assert ndcg(["x"] * 10 + ["a"], {"a"}) == 0.0
    assert ndcg([str(n) for n in range(10)], {str(n) for n in range(30)}) == 1.0
    assert recall(["a", "x", "b"], {"a", "b", "c", "d"}) == 0.5
    assert recall(["x"] * 10 + ["a"], {"a"}) == 0.0
