"""A prepared sentence model in memory, as onnxruntime runs it on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from storage.embed.bert import TOKENIZER, Shape
from storage.embed.fetch import GRAPH

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from orchestrator.documents.ports import Vectors

TOKENS_MAX = 256
"""What all-MiniLM-L6-v2 was made for (its sentence_bert_config.json); a longer text is cut."""
SPECIAL_TOKENS = 2
RUN_TOKENS_MAX = 1024
"""The most in one run of the graph, padding included: more is slower, as it leaves the processor's caches."""
TEXT_CHARS_MAX = 8192
"""Of a text, for the tokenizer: far more than `TOKENS_MAX` tokens are in words."""


class Session:
    """Made and used off the event loop, by one thread at a time. Making one takes a fifth of a second.

    Raises whatever onnxruntime and tokenizers do when the files are damaged.
    """

    def __init__(self, folder: Path, shape: Shape, threads: int) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Waiting threads would take the processor from the engines and the event loop beside us.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Without it, processors that lack VNNI compute wrong sums in eight bits.
        options.add_session_config_entry("session.x64quantprecision", "1")
        self._session = onnxruntime.InferenceSession(folder / GRAPH, options, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(min(TOKENS_MAX, shape.positions))
        self._dimension = shape.dimension

    def run(self, texts: Sequence[str]) -> Vectors:
        """A vector for each. Blocks; onnxruntime leaves the interpreter to others meanwhile."""
        import numpy as np

        # One by one: a batch would start the tokenizer's own threads, which don't outlive a fork.
        ids = [self._tokenizer.encode(_plain(text)).ids for text in texts]
        vectors = np.empty((len(ids), self._dimension), np.float32)
        for rows in runs([len(each) for each in ids]):
            tokens, lengths = _padded([ids[row] for row in rows])
            (vectors[rows],) = self._session.run(None, {"input_ids": tokens, "lengths": lengths})
        return vectors


def give_back_memory() -> None:
    """Return to the system what a dropped session freed: glibc keeps 50 MB of it otherwise. Blocks for milliseconds."""
    import ctypes

    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def runs(lengths: Sequence[int]) -> list[list[int]]:
    """Which rows go together: of like length, so that little is padding, and `RUN_TOKENS_MAX` at most (or one row)."""
    found: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not found or (len(found[-1]) + 1) * lengths[row] > RUN_TOKENS_MAX:
            found.append([])
        found[-1].append(row)
    return found


def _padded(ids: Sequence[Sequence[int]]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    import numpy as np

    lengths = np.array([len(each) for each in ids], np.int32)
    tokens = np.zeros((len(ids), lengths.max()), np.int32)
    for row, each in zip(tokens, ids, strict=True):
        row[: len(each)] = each
    return tokens, lengths


def _plain(text: str) -> str:
    """Cut, and without lone surrogates, which no tokenizer takes."""
    return text[:TEXT_CHARS_MAX].encode("utf-8", "replace").decode("utf-8")
