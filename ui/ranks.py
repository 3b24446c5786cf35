"""One search as three rankings. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ui.ports import Json

PASSAGE_CHARS_MAX = 600


def hits(results: Sequence[Json]) -> list[Json]:
    """The results as a page shows them, each with its place in every ranking."""
    return [_hit(result, place) for place, result in enumerate(results, 1)]


def side_by_side(shown: Sequence[Json]) -> list[Json]:
    """The hits in the order of the words, of the vectors, and of both; each tells its place in the fused one."""
    rankings = (
        ("By words", "text", "the words are in no document"),
        ("By vectors", "embedding", "no vectors were asked"),
        ("Fused", "fused", "nothing"),
    )
    return [
        {
            "title": title,
            "none": none,
            "places": sorted(
                (
                    {"rank": hit[leg], "fused": hit["fused"], "filename": hit["filename"]}
                    for hit in shown
                    if hit[leg] is not None
                ),
                key=lambda place: int(place["rank"]),
            ),
        }
        for title, leg, none in rankings
    ]


def _hit(result: Json, place: int) -> Json:
    text = " ".join(part["text"] for part in result["content"])
    return {
        "fused": place,
        "text": result["ranks"]["text"],
        "embedding": result["ranks"]["embedding"],
        "filename": result["filename"],
        "score": result["score"],
        "passage": text if len(text) <= PASSAGE_CHARS_MAX else text[:PASSAGE_CHARS_MAX] + " …",
        "page": result["place"]["page"],
        "headings": result["place"]["headings"],
    }
