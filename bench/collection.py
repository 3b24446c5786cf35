"""A retrieval test collection in a folder: ``docs.xml``, ``queries.xml``, ``qrels.xml``.

``<doc id="1">text</doc>``, with or without elements for its fields inside; ``<query id="1">text</query>``;
``<res id="1">12 15 184</res>``: the relevant documents of a query. Relevance has no grades.
"""

from __future__ import annotations

import html
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Collection as Members
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

BARE = re.compile(r"&(?!(?:amp|lt|gt|quot|apos|#\d+|#x[0-9a-fA-F]+);)")
"""An ampersand that XML does not allow."""
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")


class CollectionError(Exception):
    """The folder holds no such collection; the message is one sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Collection:
    """What is searched, what is asked, and what should be found."""

    name: str
    documents: Mapping[str, str]
    queries: Mapping[str, str]
    """Those that have relevant documents."""
    relevant: Mapping[str, Members[str]]


def read(folder: Path) -> Collection:
    """The collection in `folder`. Raises `CollectionError`."""
    documents = {_id(each): _text(each) for each in _elements(folder / "docs.xml")}
    relevant = {_id(each): frozenset(_text(each).split()) for each in _elements(folder / "qrels.xml")}
    queries = {_id(each): _text(each) for each in _elements(folder / "queries.xml")}
    asked = {id: query for id, query in queries.items() if relevant.get(id)}
    if not documents or not asked:
        raise CollectionError(f"{folder} has no documents, or no query with relevant ones")
    return Collection(name=folder.name, documents=documents, queries=asked, relevant=relevant)


def ndcg(ranking: Sequence[str], relevant: Members[str], depth: int = 10) -> float:
    """Normalised discounted cumulative gain: each relevant document at rank r gives 1 / log2(r + 1), and the sum is
    divided by that of the best ranking there could be."""
    gains = [1 / math.log2(rank + 1) for rank in range(1, depth + 1)]
    gained = sum(gain for gain, id in zip(gains, ranking, strict=False) if id in relevant)
    return gained / sum(gains[: len(relevant)])


def recall(ranking: Sequence[str], relevant: Members[str], depth: int = 10) -> float:
    """The share of the relevant documents that are among the first."""
    return len(set(ranking[:depth]).intersection(relevant)) / len(relevant)


def _elements(path: Path) -> Iterator[ET.Element]:
    """The children of the root."""
    try:
        text = path.read_text("utf-8", errors="replace")
        yield from ET.fromstring(BARE.sub("&amp;", CONTROL.sub(" ", text)))
    except (OSError, ET.ParseError) as error:
        raise CollectionError(f"{path} can't be read: {error}") from error


def _id(element: ET.Element) -> str:
    id = element.get("id")
    if id is None:
        raise CollectionError(f"an element <{element.tag}> has no id")
    return id.strip()


def _text(element: ET.Element) -> str:
    """All that is in it, its fields apart from each other by an empty line."""
    parts = (html.unescape(part).strip() for part in element.itertext())
    return "\n\n".join(part for part in parts if part)
