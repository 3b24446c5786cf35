"""What the scores of results say: those of relevant ones, of others, and of queries that nothing answers. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from orchestrator.documents.fusion import Fused
from orchestrator.documents.ports import Index
from orchestrator.documents.relevance import best_piece, descending

if TYPE_CHECKING:
    from orchestrator.documents.ports import Vectors

DEPTH = 10
THRESHOLDS = (0.3, 0.5, 0.7)
NONSENSE = (
    "qwzx flurb",
    "gribbleflax wumtor zindle",
    "asdf jkl qwerty uiop",
    "xyzzy plugh",
    "vrrm tklo bnuu sdde",
    "floopernaut drizzenbach",
    "zzzzzz",
    "mxcv poiu lkjh",
    "snorf blatt quimble in the wozzle",
    "0x7f3a9c qqq 998877665544",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """The scores of what was found, over the queries of one kind, of the first `DEPTH` results each."""

    relevant: Sequence[float]
    others: Sequence[float]
    firsts: Sequence[float]
    """Of each query's best."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRow:
    """What a threshold does, for queries of one kind. None: there is nothing of that."""

    collection: str
    queries: str
    relevant: float | None
    """The median score of relevant results."""
    others: float | None
    """Of the others."""
    first_95: float
    """95 of 100 queries' best results score at most this."""
    area: float | None
    """How often a relevant result scores above another of the same kind of queries: the area under the ROC curve."""
    kept: Mapping[str, float]
    """By threshold: of the relevant results, or where none are, of all, the share that it keeps."""
    precision: Mapping[str, float | None]
    """By threshold: of what it keeps, the share that is relevant."""


def scored(index: Index, query: str, vector: Vectors | None, floor: float, fused: Sequence[Fused]) -> list[float]:
    """The scores of these results, as a search gives them. `vector`: None where words alone decide."""
    keys = [(one.entry, one.chunk) for one in fused]
    cosines: list[list[float]] = [[] for _ in keys] if vector is None else index.cosines(vector, keys)
    pairs = zip(cosines, index.shares(query, keys), strict=True)
    return descending([best_piece(near, said, floor)[1] for near, said in pairs])


def score_row(collection: str, queries: str, scores: Scores) -> ScoreRow:
    """The figures of `scores`."""
    relevant, others = scores.relevant, scores.others
    return ScoreRow(
        collection=collection,
        queries=queries,
        relevant=statistics.median(relevant) if relevant else None,
        others=statistics.median(others) if others else None,
        first_95=sorted(scores.firsts)[int(0.95 * (len(scores.firsts) - 1))],
        area=_area(relevant, others) if relevant and others else None,
        kept={f"{least}": _share(relevant or others, least) for least in THRESHOLDS},
        precision={f"{least}": _precision(relevant, others, least) for least in THRESHOLDS},
    )


def together(each: Iterable[tuple[Sequence[float], Sequence[bool]]]) -> Scores:
    """Of every query, the scores of its results and which of them are relevant."""
    queries = [list(zip(scores, flags, strict=False))[:DEPTH] for scores, flags in each]
    return Scores(
        relevant=[score for score, is_relevant in chain(*queries) if is_relevant],
        others=[score for score, is_relevant in chain(*queries) if not is_relevant],
        firsts=[found[0][0] if found else 0.0 for found in queries],
    )


def _share(scores: Sequence[float], least: float) -> float:
    return sum(score >= least for score in scores) / len(scores) if scores else 0.0


def _precision(relevant: Sequence[float], others: Sequence[float], least: float) -> float | None:
    kept = sum(score >= least for score in relevant)
    total = kept + sum(score >= least for score in others)
    return kept / total if total and relevant else None


def _area(relevant: Sequence[float], others: Sequence[float]) -> float:
    wins = sum((one > other) + (one == other) / 2 for one in relevant for other in others)
    return wins / (len(relevant) * len(others))
