"""How text becomes the terms of the lexical index; the same for passages and for queries."""

from __future__ import annotations

import itertools
import re
import unicodedata
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


def analyzer() -> tantivy.TextAnalyzer:
    """Words of any script; lower case, without accents, English stop words and endings."""
    import tantivy

    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.regex(r"[\p{L}\p{M}\p{N}]+"))
    for step in (
        tantivy.Filter.remove_long(TERM_BYTES_MAX),
        tantivy.Filter.lowercase(),
        tantivy.Filter.ascii_fold(),
        tantivy.Filter.stopword("english"),
        tantivy.Filter.stemmer("english"),
    ):
        builder = builder.filter(step)
    return builder.build()


def passage_text(text: str) -> str:
    """`text` for the analyzer: unspaced runs as their characters and the pairs of them."""
    return UNSPACED.sub(lambda run: f" {' '.join(run[0])} {_pairs(run[0])} ", _normal(text))


def query_text(text: str) -> str:
    """As `passage_text`, but a run is its pairs alone, unless it is one character."""
    return UNSPACED.sub(lambda run: f" {_pairs(run[0]) or run[0]} ", _normal(text))


def _pairs(run: str) -> str:
    return " ".join(map("".join, itertools.pairwise(run)))


def _normal(text: str) -> str:
    """NFKC, so that ligatures, full-width and decomposed letters compare; no soft hyphens, no lone surrogates."""
    if text.isascii():
        return text
    clean = text.replace("\u00ad", "").encode("utf-8", "replace").decode()
    parts = (clean[start : start + NORMALIZE_CHARS] for start in range(0, len(clean), NORMALIZE_CHARS))
    return "".join(unicodedata.normalize("NFKC", part) for part in parts)
