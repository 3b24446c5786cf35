"""How sure a result is: its score, 0 to 1, and which of its pieces it is found by. Pure.

`fusion` says in what order chunks come, and nothing of whether any of them is to the point. That is said here:

1. A piece is *near* the query by ``n = (cosine - floor) / (1 - floor)``, at least 0. Embedders differ in what cosine
   two texts have that nothing connects, some 0.05, some 0.7: so `floor` is measured for each, on `UNRELATED`.
2. A piece *says* the query by ``s``, the share of its words, each weighed by its rarity (`storage.lexical`).
3. The two are taken for independent evidence: ``1 - (1 - n) (1 - s²)``. Squared, as half the words of a question are
   in many a text that does not answer it. Without vectors ``s²`` is left, without words ``n``.
4. A chunk has what its best piece has.
5. Where the order of the results is another than that of these scores, one that stands before a better one gets its
   score: so none is above one before it, a threshold cuts off an end, and never a result that reaches it by itself.

With a reranker, its own scores are the results'.

Measured by `bench.retrieval` on Cranfield and CISI with all-MiniLM-L6-v2, over the first ten results: relevant ones
have 0.63 and 0.56 in the median, the others 0.53 and 0.51 (area under the ROC curve 0.68 and 0.64); the best results of
queries that belong to the other collection at most 0.23 and 0.19 in 95 of 100 cases, those of nonsense 0.06. By words
alone scores are lower: 0.30 and 0.09 for relevant ones. The order that fusion gave, and so nDCG, is as it was.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import accumulate, combinations, zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.documents.ports import Vectors

DEVIATIONS = 3.0
"""So many standard deviations above the mean cosine of unrelated texts is the floor: of some thousand unrelated texts,
the nearest is about there."""
FLOOR_MAX = 0.95
UNRELATED = (
    "The bakery on the corner sells fresh bread every morning.",
    "Interest rates rose by a quarter of a percent in March.",
    "The goalkeeper saved two penalties in the final match.",
    "Photosynthesis turns light, water and carbon dioxide into sugar.",
    "Please restart the printer after you replace the toner.",
    "The treaty was signed in the spring of 1648.",
    "Her new novel tells of three sisters on a remote island.",
    "A total knee replacement needs weeks of physiotherapy.",
    "The function returns an empty list when no rows match.",
    "Glaciers carve deep valleys as they move downhill.",
    "The orchestra tuned its instruments before the concert.",
    "Tenants must give two months' notice before they move out.",
    "Lithium batteries lose capacity in the cold.",
    "He planted tomatoes and beans behind the garden shed.",
    "The night train to Vienna leaves from platform seven.",
    "Most spiders have eight eyes and poor sight.",
    "Voters will elect a new mayor on Sunday.",
    "The dough should rest in a warm place for an hour.",
    "Prime numbers have exactly two divisors.",
    "The lawyer asked the court to dismiss the claim.",
    "A cold front brings heavy rain to the coast tonight.",
    "The museum bought a portrait by an unknown painter.",
    "Employees accrue vacation at two days a month.",
    "The telescope observed a distant cluster of galaxies.",
)
"""Texts that have nothing to do with each other. all-MiniLM-L6-v2 finds a floor of 0.26 by them."""


def floor_of(vectors: Vectors) -> float:
    """The cosine up to which texts are unrelated, by the vectors of `UNRELATED`."""
    cosines: list[list[float]] = (vectors @ vectors.T).tolist()
    pairs = [cosines[one][other] for one, other in combinations(range(len(cosines)), 2)]
    return min(max(statistics.fmean(pairs) + DEVIATIONS * statistics.pstdev(pairs), 0.0), FLOOR_MAX)


def relevance(cosine: float | None, share: float, floor: float) -> float:
    """Of one piece, 0 to 1. `cosine`: None without vectors; `share`: 0 without words."""
    near = 0.0 if cosine is None else (cosine - floor) / (1 - floor)
    return 1 - (1 - _within(near)) * (1 - _within(share) ** 2)


def best_piece(cosines: Sequence[float], shares: Sequence[float], floor: float) -> tuple[int, float]:
    """The place of the most relevant piece of a chunk, and its relevance; the first, and 0, where nothing is known.

    Either may be empty: the chunk has no vectors, or words have no say.
    """
    found = [relevance(cosine, share or 0.0, floor) for cosine, share in zip_longest(cosines, shares)]
    best = max(range(len(found)), key=found.__getitem__, default=0)
    return best, found[best] if found else 0.0


def descending(scores: Sequence[float]) -> list[float]:
    """The lowest scores that are no lower than these, and of which none is above one before it."""
    return list(accumulate(reversed(scores), max))[::-1]


def _within(value: float) -> float:
    return min(max(value, 0.0), 1.0)
