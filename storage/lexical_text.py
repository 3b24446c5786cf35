"""How text becomes the terms of the lexical index, for passages and for queries."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tantivy

NORMALIZE_CHARS = 1000
"""Normalised at once: it takes time quadratic in a run of combining marks, some 1 ms at this length."""
TERM_BYTES_MAX = 100
"""A longer word is not text: a digest of SHA-512 in hex is left out, SHA-256 is not."""

UNSPACED = re.compile(
    "["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u1100-\u11ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"  # Hangul, kana, Han
    "\U00020000-\U0003ffff"
    "]+"
)
"""Runs of scripts that put no space between words, and Hangul, whose words carry their particles."""

STOP_WORDS = """
i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it its
itself they them their theirs themselves what which who whom this that these those am is are was were be been being have
has had having do does did doing would should could ought can will a an the and but if or because as until while of at
by for with about against between into through during before after above below to from up down in out on off over under
again further then once here there when where why how all any both each few more most other some such no nor not only
own same so than too very just
"""
"""Snowball's English ones (https://snowballstem.org/algorithms/english/stop.txt), with ``can will just``.

Passages keep them, so that a query of nothing else is answered; other queries go without.
"""


class Words:
    """The analyzers. Words of any script; lower case, without accents, English endings off."""

    def __init__(self) -> None:
        self.every = _analyzer([])
        """What the index is made with."""
        self._telling = _analyzer(STOP_WORDS.split())

    def of_query(self, text: str) -> Counter[str]:
        """The terms of a query and how often it says each; without stop words, unless it has no others."""
        plain = _query_text(text)
        return Counter(self._telling.analyze(plain) or self.every.analyze(plain))

    def of_passage(self, text: str) -> Counter[str]:
        """The terms of a passage and how often it says each, without stop words."""
        return Counter(self._telling.analyze(passage_text(text)))

    def in_passage(self, text: str) -> frozenset[str]:
        """The terms of a passage, as the index has them."""
        return frozenset(self.every.analyze(passage_text(text)))


def passage_text(text: str) -> str:
    """`text` for the analyzer: unspaced runs as their characters and the pairs of them."""
    return UNSPACED.sub(lambda run: f" {' '.join(run[0])} {_pairs(run[0])} ", _normal(text))


def _query_text(text: str) -> str:
    """As `passage_text`, but a run is its pairs alone, unless it is one character."""
    return UNSPACED.sub(lambda run: f" {_pairs(run[0]) or run[0]} ", _normal(text))


def _pairs(run: str) -> str:
    return " ".join(map("".join, itertools.pairwise(run)))


def _analyzer(stop_words: list[str]) -> tantivy.TextAnalyzer:
    import tantivy

    return (
        tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.regex(r"[\p{L}\p{M}\p{N}]+"))
        .filter(tantivy.Filter.remove_long(TERM_BYTES_MAX))
        .filter(tantivy.Filter.lowercase())
        .filter(tantivy.Filter.ascii_fold())
        .filter(tantivy.Filter.custom_stopword(stop_words))
        .filter(tantivy.Filter.stemmer("english"))
        .build()
    )


def _normal(text: str) -> str:
    """NFKC, so that ligatures, full-width and decomposed letters compare; no soft hyphens, no lone surrogates."""
    if text.isascii():
        return text
    clean = text.replace("\u00ad", "").encode("utf-8", "replace").decode()
    parts = (clean[start : start + NORMALIZE_CHARS] for start in range(0, len(clean), NORMALIZE_CHARS))
    return "".join(unicodedata.normalize("NFKC", part) for part in parts)
