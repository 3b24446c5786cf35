"""``python -m bench.priming``: how near priming comes to what the disk and the memory can do, in one run.

Ratios only: the disk's own rate is read past the page cache (``O_DIRECT``) in the same rounds, in turns, so that a
noisy disk is noise in both.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from storage.page_cache import READERS, prime, resident_bytes

BLOCK_BYTES = 16 * 2**20
COPY_BYTES = 256 * 2**20
FILES = 2
WIDTH = 100
"""Of the table where no terminal says how wide it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """Bytes in a second."""

    disk: float
    """Past the page cache: the better of one reader and of as many as priming has."""
    cold: float
    memory: float
    """One thread that copies."""
    warm: float
    """Priming what is resident already: looking, not reading."""
    resident: float
    """The share of a cold model that was resident after priming."""


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 1 when a cold model was not resident after priming, 2 where nothing can be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.priming", description=__doc__)
    parser.add_argument("--bytes", type=int, default=2**30, help="size of the model that is made for it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to make it: the disk that is measured; default: here")
    parser.add_argument("--json", action="store_true", help="one line of JSON after the table")
    options = parser.parse_args(argv)
    if options.bytes < FILES * BLOCK_BYTES or options.rounds < 1:
        parser.error(f"at least {FILES * BLOCK_BYTES} bytes and 1 round")
    with tempfile.TemporaryDirectory(dir=options.folder or Path.cwd(), prefix=".priming-") as name:
        files = _make(Path(name), options.bytes)
        try:
            rounds = [_round(Path(name), files, turn) for turn in range(options.rounds)]
        except OSError as error:
            print(f"{name} can't be measured: {error.strerror or error}", file=sys.stderr)
            return 2
    Console(width=None if sys.stdout.isatty() else WIDTH).print(_table(rounds))
    if options.json:
        print(json.dumps({"bytes": options.bytes, "rounds": [asdict(each) for each in rounds], **_ratios(rounds)}))
    return 0 if min(each.resident for each in rounds) > 0.99 else 1


def _make(folder: Path, size: int) -> list[Path]:
    """Whole blocks of random bytes, each another, so that no layer below can share or shrink them."""
    block, files = bytearray(random.Random(1).randbytes(BLOCK_BYTES)), []
    for number in range(FILES):
        files.append(folder / f"model-{number}.safetensors")
        with files[-1].open("wb") as file:
            for index in range(size // FILES // BLOCK_BYTES):
                for at in range(0, BLOCK_BYTES, 4096):
                    block[at : at + 8] = (number << 56 | index << 32 | at).to_bytes(8, "little")
                file.write(block)
            os.fsync(file.fileno())
    return files


def _round(folder: Path, files: list[Path], turn: int) -> Round:
    total = sum(path.stat().st_size for path in files)
    found: dict[str, float] = {}

    def disk() -> None:
        found["disk"] = max(_rate(total, partial(_direct, files, count)) for count in (1, READERS))

    def cold() -> None:
        _drop(files)
        found["cold"] = _rate(total, lambda: _prime(folder))
        found["resident"] = sum(map(resident_bytes, files)) / total
        found["warm"] = _rate(total, lambda: _prime(folder))

    for step in (disk, cold) if turn % 2 else (cold, disk):  # in turns: a host may keep what the first one read
        step()
    source, target = bytearray(os.urandom(2**20)) * (COPY_BYTES >> 20), bytearray(COPY_BYTES)
    found["memory"] = _rate(COPY_BYTES, lambda: memoryview(target).__setitem__(slice(None), source))
    return Round(**found)


def _prime(folder: Path) -> None:
    prime(folder, on_bytes=lambda _: None, cancelled=lambda: False)


def _drop(files: list[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if any(map(resident_bytes, files)):
        raise OSError("its filesystem does not drop pages when asked to")


def _direct(files: list[Path], readers: int) -> None:
    """Read all past the page cache, each block by one of the readers."""
    blocks = iter([(path, at) for path in files for at in range(0, path.stat().st_size, BLOCK_BYTES)])
    lock, errors = threading.Lock(), []

    def read() -> None:
        opened = {path: os.open(path, os.O_RDONLY | os.O_DIRECT) for path in files}
        try:
            with mmap.mmap(-1, BLOCK_BYTES) as buffer:
                while True:
                    with lock:
                        block = next(blocks, None)
                    if block is None:
                        return
                    os.preadv(opened[block[0]], [buffer], block[1])
        except OSError as error:
            errors.append(error)
        finally:
            for file in opened.values():
                os.close(file)

    threads = [threading.Thread(target=read) for _ in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _rate(count: int, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def _ratios(rounds: list[Round]) -> dict[str, float]:
    """Taken round by round, then their median."""
    return {
        "cold_of_disk": statistics.median(each.cold / each.disk for each in rounds),
        "warm_of_memory": statistics.median(each.warm / each.memory for each in rounds),
    }


def _table(rounds: list[Round]) -> Table:
    table = Table("", "median GB/s", "lowest … highest", "of", title=f"{len(rounds)} rounds")
    ratios = _ratios(rounds)
    for name, title, share in (
        ("disk", "disk, past the page cache", ""),
        ("cold", "priming, cold", f"{ratios['cold_of_disk']:.2f} × disk"),
        ("memory", "memory, one thread that copies", ""),
        ("warm", "priming, warm", f"{ratios['warm_of_memory']:.2f} × memory"),
    ):
        rates = [getattr(each, name) / 1e9 for each in rounds]
        table.add_row(title, f"{statistics.median(rates):.2f}", f"{min(rates):.2f} … {max(rates):.2f}", share)
    return table


if __name__ == "__main__":
    sys.exit(main())
