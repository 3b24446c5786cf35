"""``orchestrator bench``: CPU time, added latency, memory and start-up, beside peers in one run.

Goals are ratios against the better of the Rust routers that are installed; a machine's noise then hits both.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
from pathlib import Path

import uvloop
from rich.console import Console

from bench import report
from bench.load import Wrong
from bench.measure import Plan, measure, start_seconds
from bench.subjects import Cpus, Subject, cpus, subjects

WIDTH = 140
"""Of the table where no terminal says how wide it is."""


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 0 when every subject answered rightly, 1 when one did not, 2 on wrong usage."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the subjects end with us
    parser = _parser()
    options = parser.parse_args(argv)
    if options.requests < 100 or options.rounds < 1:
        parser.error("at least 100 requests and 1 round")
    quick = options.quick
    plan = Plan(
        requests=min(options.requests, 1000) if quick else options.requests,
        rounds=1 if quick else options.rounds,
        starts=3 if quick else 7,
        cpus=Cpus() if options.no_pin else cpus(),
    )
    chosen = _chosen(parser, subjects(options.peers), options.subjects)
    figures = uvloop.run(measure(chosen, plan, lambda line: print(line, file=sys.stderr, flush=True)))
    starts_s, fault = _starts(plan.starts)
    if options.json:
        print("\n".join(report.json_lines(figures, starts_s)))
        return 1 if fault or any(each.wrong for each in figures) else 0
    if options.markdown:
        print(report.markdown(figures))
    else:
        Console(width=None if sys.stdout.isatty() else WIDTH).print(report.table(figures), markup=False)
    print(f"import to listening: {_summary(starts_s, fault)}")
    print("\n".join(map(str, report.goals(figures, starts_s))))
    return 1 if fault or any(each.wrong for each in figures) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="orchestrator bench", description=__doc__)
    parser.add_argument("--subjects", help="names to measure, with commas; default: all that are installed")
    parser.add_argument("--peers", type=Path, help="a folder to look for peers' programs in, such as an env's bin")
    parser.add_argument("--requests", type=int, default=4000, help="requests in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one small round: whether all is well, not how fast")
    parser.add_argument("--no-pin", action="store_true", help="let subjects use every CPU, not one each")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each subject and goal")
    parser.add_argument("--markdown", action="store_true", help="the README's table")
    return parser


def _chosen(parser: argparse.ArgumentParser, known: list[Subject], names: str | None) -> list[Subject]:
    if names is None:
        return known
    asked = {name.strip().casefold() for name in names.split(",")}
    if unknown := asked - {name for each in known for name in (each.key, each.name.casefold())}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(each.key for each in known)}")
    return [each for each in known if asked & {each.key, each.name.casefold()}]


def _starts(times: int) -> tuple[list[float], str]:
    try:
        return start_seconds(times), ""
    except (Wrong, OSError) as error:
        return [], f"{error!s:.300}"


def _summary(starts_s: list[float], fault: str) -> str:
    if fault:
        return f"wrong: {fault}"
    return f"best {min(starts_s):.2f} s, median {statistics.median(starts_s):.2f} s of {len(starts_s)}"


if __name__ == "__main__":
    sys.exit(main())
