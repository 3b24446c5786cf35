"""``python -m tests.sim --seeds 200 --steps 2000``: PROMISES R12, as a JSON line and an exit code; ``--policy``: what
the GPU policy does to those who wait; ``--autoscale``: what a day costs with replicas that come and go."""

from __future__ import annotations

import argparse
import json
import sys

from tests.sim import autoscale
from tests.sim.laws import Broken
from tests.sim.policy import report
from tests.sim.sim import Sim


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--policy", action="store_true")
    parser.add_argument("--autoscale", action="store_true")
    parser.add_argument("--hours", type=float, default=4)
    options = parser.parse_args()
    if options.policy:
        report(options.hours)
        return 0
    if options.autoscale:
        autoscale.report()
        return 0
    totals = {"served": 0, "refused": 0, "failed": 0, "crashes": 0, "launches": 0}
    for seed in range(options.first, options.first + options.seeds):
        sim = Sim(seed)
        try:
            sim.run(options.steps)
        except Broken as broken:
            print(json.dumps({"seed": seed, "at_s": round(sim.now - 1000, 1), "broken": str(broken)}))
            return 1
        for name in ("served", "refused", "failed", "crashes"):
            totals[name] += getattr(sim, name)
        totals["launches"] += len(sim.world.launches)
    print(json.dumps({"seeds": options.seeds, "steps": options.steps, "broken": 0, **totals}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
