"""The passages of one vector store by words: a tantivy index in a folder. A cache, rebuilt when it is not as it should.

One tantivy document a chunk. tantivy's query parsers never see the user's text: it is cut into terms, and those make
the query. An idle index has no writer, so it costs a few mapped files and no lock.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from orchestrator.documents.model import Chunk, Hit
from orchestrator.documents.passages import Row
from orchestrator.documents.ports import Indexed
from storage import lexical_feedback
from storage.lexical_files import LexicalDamaged, LexicalError, claim, committed, damage, documents, faults, verify
from storage.lexical_text import Words, passage_text
from storage.seals import Seals

if TYPE_CHECKING:
    import tantivy

    _Found = Sequence[tuple[float, tantivy.DocAddress]]
    _Filters = list[tuple[tantivy.Occur, tantivy.Query]]

BOOSTS = {"title": 0.3, "headings": 0.3, "body": 1.0}
"""Of the fields' scores. Every chunk of a document has its title, so a title says less than the body."""
WRITER_BYTES = 15_000_000
"""The least that tantivy takes, for its one indexing thread."""
QUERY_CHARS_MAX = 10_000
QUERY_TERMS_MAX = 64
"""The rarest ones; each is looked for in each field."""
FEEDBACK_HITS = 4 * lexical_feedback.PASSAGES
"""Looked through for passages of different documents."""
FEEDBACK_CHARS_MAX = 4000
"""Read of each of them."""
PASSAGES_ASSUMED = 1000
"""That have none of the query's words, beside those of the index: a small one can't tell what is rare."""
CHUNKS_MAX = 2**24
"""Of one entry."""
ENTRY_MAX = 2**40


class _Payload(msgspec.Struct, array_like=True):
    title: str
    row: Row


class _State(NamedTuple):
    """What searches see: one commit, with its entries, so that a filter by them holds."""

    searcher: tantivy.Searcher
    entries: frozenset[int]
    files: tuple[Path, ...]
    """Those that are mapped."""


class Lexical:
    """One index. Blocks. Any number of threads may search, one at a time may change.

    Raises `LexicalError`, `LexicalDamaged` where it can't go on with what is in the folder.
    """

    def __init__(self, folder: Path, seals: Seals | None = None) -> None:
        """Open the index in `folder`, or make an empty one where there is none. Reads all of it, but for what `seals`
        knows to be whole."""
        import tantivy

        self._tantivy = tantivy
        self._words = Words()
        self._schema = _schema()
        self._swept = False
        """No change that was cut off has left files: the next one would stumble over their names."""
        self._folder = folder
        self._seals = seals or Seals()
        claim(folder)
        with damage():
            self._seals.check(folder, committed(folder), verify)
            self._index = tantivy.Index(self._schema, path=str(folder), reuse=True)
            self._index.register_tokenizer("prose", self._words.every)
            self._index.config_reader("manual")  # the default watches the folder from a thread
            self._state = self._read_state()
            if documents(folder) != sum(self._state.searcher.doc_freq("head", head) for head in (True, False)):
                raise LexicalDamaged("the index does not have as many documents as it says")

    def entries(self) -> frozenset[int]:
        """What is in it, durably."""
        return self._state.entries

    def add(self, documents: Sequence[Indexed]) -> None:
        """Put them in, each anew if it was there. Durable and found by searches on return; all or nothing."""
        with self._change() as writer:
            for document in documents:
                writer.delete_documents_by_query(self._of([document.entry]))
                for row in self._rows(document):
                    writer.add_document(row)

    def remove(self, entries: Collection[int]) -> None:
        """Take them out. Durable on return; all or nothing."""
        gone = self._state.entries.intersection(entries)
        if not gone:
            return
        with self._change() as writer:
            writer.delete_documents_by_query(self._of(gone))

    def search(self, query: str, *, allowed: Collection[int] | None, limit: int) -> list[Hit]:
        """The best chunks by BM25, best first, each once, of the `allowed` entries (None: all).

        `query` is the user's text, whatever it holds: `QUERY_CHARS_MAX` of it are read. A chunk is found that has any
        of its words; what the best of them say besides counts, too, see `lexical_feedback`.
        """
        state = self._whole()
        searcher = state.searcher
        with damage():
            said = self._said(searcher, query)
            if not said or limit < 1 or (allowed is not None and state.entries.isdisjoint(allowed)):
                return []
            among = self._among(state.entries, allowed)
            best = self._best(searcher, self._query(said, said, among))
            terms = lexical_feedback.expanded(said, best, lambda term: _rarity(searcher, term))
            return _hits(searcher, self._query(said, terms, among), limit)

    def chunks(self, keys: Sequence[tuple[int, int]]) -> list[Chunk | None]:
        """The chunks of (entry, chunk), in order; None for what is gone."""
        held = self._held(self._whole().searcher, keys)
        return [found.row.chunk() if (found := held.get(_key(*key))) else None for key in keys]

    def shares(self, query: str, keys: Sequence[tuple[int, int]]) -> list[list[float]]:
        """For each (entry, chunk), how much of the query each of its pieces says, 0 to 1; of what is gone, nothing.

        That is the share of the query's words, each weighed by its rarity, that are in the piece, its headings or its
        document's title. A word that no passage has is the rarest.
        """
        searcher = self._whole().searcher
        held = self._held(searcher, keys)
        with damage():
            weights = {term: self._weight(searcher, term) for term in self._words.of_query(query[:QUERY_CHARS_MAX])}
            said = _Said(self._words, weights)
            return [said.shares(found) if (found := held.get(_key(*key))) else [] for key in keys]

    def close(self) -> None:
        """Let go of files and memory. Nothing may be asked of it after."""
        del self._state, self._index

    def _whole(self) -> _State:
        """What is searched now. Raises `LexicalDamaged` where its files are not as they were."""
        state = self._state
        with damage():
            self._seals.check(self._folder, state.files, verify)
        return state

    def _held(self, searcher: tantivy.Searcher, keys: Sequence[tuple[int, int]]) -> dict[int, _Payload]:
        wanted = list({_key(*key) for key in keys})
        if not wanted:
            return {}
        with damage():
            query = self._tantivy.Query.term_set_query(self._schema, "key", wanted)
            found = searcher.search(query, len(wanted), count=False).hits
            rows = [searcher.doc(address).to_dict() for _, address in found]
            return {row["key"][0]: _unpack(row["payload"][0]) for row in rows}

    def _weight(self, searcher: tantivy.Searcher, term: str) -> float:
        frequency = max(searcher.doc_freq(field, term) for field in BOOSTS)
        return math.log(1 + (searcher.num_docs + PASSAGES_ASSUMED) / (frequency + 0.5))

    def _rows(self, document: Indexed) -> Iterator[tantivy.Document]:
        """One for each chunk; a document without any has one that no search finds. The first is its `head`."""
        for number, chunk in enumerate(document.chunks):
            row = self._tantivy.Document()
            row.add_unsigned("chunk", number)
            row.add_unsigned("key", _key(document.entry, number))
            row.add_bytes("payload", _pack(document.title, chunk))
            row.add_text("title", passage_text(document.title))
            row.add_text("headings", passage_text("\n".join(chunk.place.headings)))
            row.add_text("body", passage_text(chunk.text))
            yield _marked(row, document.entry, head=number == 0)
        if not document.chunks:
            yield _marked(self._tantivy.Document(), document.entry, head=True)

    @contextlib.contextmanager
    def _change(self) -> Iterator[tantivy.IndexWriter]:
        """A writer for one change, committed at the end; on any error the change is not made."""
        with faults(LexicalError, "the index was not changed"):
            self._whole()
            writer = self._index.writer(WRITER_BYTES, 1)
            try:
                if not self._swept:
                    writer.garbage_collect_files()
                self._swept = False
                yield writer
                writer.commit()
                self._swept = True
                with damage():
                    self._index.reload()
                    self._state = self._read_state()
            finally:  # each change leaves a segment: unmerged, they make searches and the next changes slow
                with contextlib.suppress(ValueError):  # a merge that fails is tried again after the next change
                    writer.wait_merging_threads()  # lets go of the lock, too
        with damage():
            self._index.reload()
            self._state = self._state._replace(searcher=self._index.searcher(), files=self._written())

    def _read_state(self) -> _State:
        searcher = self._index.searcher()
        heads = self._tantivy.Query.term_query(self._schema, "head", True)
        found = searcher.search(heads, max(1, searcher.num_docs), count=False).hits
        return _State(searcher, frozenset(_values(searcher, "entry", found)), self._written())

    def _written(self) -> tuple[Path, ...]:
        """The files of the last commit, which was just made or looked at."""
        files = committed(self._folder)
        self._seals.trust(self._folder, files)
        return files

    def _said(self, searcher: tantivy.Searcher, query: str) -> dict[str, int]:
        """The query's terms that occur at all, with how often it says them: the rarest among them."""
        said = self._words.of_query(query[:QUERY_CHARS_MAX])
        found = {term: max(searcher.doc_freq(field, term) for field in BOOSTS) for term in said}
        rarest = sorted((term for term in said if found[term]), key=lambda term: (found[term], term))
        return {term: said[term] for term in rarest[:QUERY_TERMS_MAX]}

    def _best(self, searcher: tantivy.Searcher, query: tantivy.Query) -> list[tuple[float, Mapping[str, int]]]:
        """The best passages: scores and terms. Of one document only the best, since the others may overlap it."""
        best: dict[int, tuple[float, Mapping[str, int]]] = {}
        found = searcher.search(query, FEEDBACK_HITS, count=False).hits
        for (score, address), entry in zip(found, _values(searcher, "entry", found), strict=True):
            if entry not in best and len(best) < lexical_feedback.PASSAGES:
                text = _unpack(searcher.doc(address).to_dict()["payload"][0]).row.text
                best[entry] = float(score), self._words.of_passage(text[:FEEDBACK_CHARS_MAX])
        return list(best.values())

    def _query(self, said: Collection[str], weights: Mapping[str, float], among: _Filters) -> tantivy.Query:
        """Any of the terms `said`; all of `weights` count."""
        make, occur = self._tantivy.Query, self._tantivy.Occur
        wanted, more = (
            make.boolean_query(
                [
                    (occur.Should, make.boost_query(make.term_query(self._schema, field, term, "freq"), boost * weight))
                    for term, weight in weights.items()
                    if (term in said) is is_wanted
                    for field, boost in BOOSTS.items()
                ]
            )
            for is_wanted in (True, False)
        )
        return make.boolean_query([(occur.Must, wanted), (occur.Should, more), *among])

    def _of(self, entries: Collection[int]) -> tantivy.Query:
        return self._tantivy.Query.term_set_query(self._schema, "entry", list(entries))

    def _among(self, entries: frozenset[int], allowed: Collection[int] | None) -> _Filters:
        """What leaves the `allowed` alone, at no score. The shorter list filters: those, or all others.

        Of 10,000 entries with 10 chunks each, a search takes 4 ms when all are allowed, and at most 15 ms (half).
        """
        inside = entries if allowed is None else entries.intersection(allowed)
        outside = entries - inside
        if not outside:
            return []
        if len(outside) < len(inside):
            return [(self._tantivy.Occur.MustNot, self._of(outside))]
        return [(self._tantivy.Occur.Must, self._tantivy.Query.const_score_query(self._of(inside), 0.0))]


def _schema() -> tantivy.Schema:
    import tantivy

    builder = tantivy.SchemaBuilder()
    builder.add_unsigned_field("entry", indexed=True, fast=True)
    builder.add_unsigned_field("chunk", fast=True)
    builder.add_unsigned_field("key", indexed=True, stored=True)
    builder.add_boolean_field("head", indexed=True)
    builder.add_bytes_field("payload", stored=True)
    for field in BOOSTS:
        builder.add_text_field(field, tokenizer_name="prose", index_option="freq")
    return builder.build()


def _hits(searcher: tantivy.Searcher, query: tantivy.Query, limit: int) -> list[Hit]:
    found = searcher.search(query, limit, count=False).hits
    places = zip(_values(searcher, "entry", found), _values(searcher, "chunk", found), found, strict=True)
    return [Hit(entry=entry, chunk=chunk, score=float(score)) for entry, chunk, (score, _) in places]


def _values(searcher: tantivy.Searcher, field: str, found: _Found) -> list[int]:
    values = searcher.fast_field_values(field, [address for _, address in found])
    return [int(value) for value in values if value is not None]


def _rarity(searcher: tantivy.Searcher, term: str) -> float:
    """BM25's inverse document frequency."""
    frequency = searcher.doc_freq("body", term)
    return math.log(1 + (searcher.num_docs - frequency + 0.5) / (frequency + 0.5))


def _marked(row: tantivy.Document, entry: int, *, head: bool) -> tantivy.Document:
    row.add_unsigned("entry", entry)
    row.add_boolean("head", head)
    return row


def _key(entry: int, chunk: int) -> int:
    if not (0 <= entry < ENTRY_MAX and 0 <= chunk < CHUNKS_MAX):
        raise ValueError(f"no such chunk: {chunk} of {entry}")
    return entry * CHUNKS_MAX + chunk


def _pack(title: str, chunk: Chunk) -> bytes:
    clean = replace(chunk, text=_encodable(chunk.text))
    return msgspec.msgpack.encode(_Payload(_encodable(title), Row.of(clean)))


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _unpack(payload: bytes) -> _Payload:
    return msgspec.msgpack.decode(payload, type=_Payload)


class _Said:
    """What pieces say of a query's words; a text that several have is looked at once."""

    def __init__(self, words: Words, weights: Mapping[str, float]) -> None:
        self._words = words
        self._weights = weights
        self._total = sum(weights.values())
        self._known: dict[str, frozenset[str]] = {}

    def shares(self, held: _Payload) -> list[float]:
        """Of each piece of the chunk."""
        chunk, found = held.row.chunk(), []
        for piece in chunk.parts:
            text = chunk.text[piece.start : piece.end]
            above = "\n".join([held.title, *piece.place.headings])
            terms = self._terms(text) | self._terms(above)
            found.append(sum(map(self._weights.__getitem__, terms)) / self._total if terms else 0.0)
        return found

    def _terms(self, text: str) -> frozenset[str]:
        """Those of the query's that it has."""
        if text not in self._known:
            self._known[text] = self._words.in_passage(text).intersection(self._weights)
        return self._known[text]
