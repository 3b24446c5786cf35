"""What must be on the disk before an engine starts, from several stores, as one: weights, and an image to run in."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from orchestrator.errors import WeightsError
from orchestrator.model import Deployment, Weights, WeightsState
from orchestrator.ports import WeightsStore

_WORST = (WeightsState.PULLING, WeightsState.FAILED, WeightsState.ABSENT, WeightsState.PRESENT)


class Stock:
    """`ports.WeightsStore` over others, of which the first knows the weights' path."""

    def __init__(self, stores: Sequence[WeightsStore]) -> None:
        self._stores = stores

    def look(self, deployment: Deployment) -> Weights:
        """All that is missing, in one: see `combined`."""
        return combined([store.look(deployment) for store in self._stores])

    def used(self, deployment: Deployment) -> None:
        """All of it."""
        for store in self._stores:
            store.used(deployment)

    async def pull(self, deployment: Deployment) -> None:
        """All at the same time. The first failure is raised once each has ended."""
        results = await asyncio.gather(*(store.pull(deployment) for store in self._stores), return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        known = [failure for failure in failures if isinstance(failure, WeightsError)]
        for failure in [f for f in failures if f not in known] or known:
            raise failure


def combined(parts: Sequence[Weights]) -> Weights:
    """The state of the one that is furthest from present; bytes of all that is being pulled.

    `path` and size are the first part's.
    """
    worst = min(parts, key=lambda part: _WORST.index(part.state))
    if worst.state is WeightsState.PRESENT:
        return parts[0]
    if worst.state is not WeightsState.PULLING:
        return replace(worst, path=parts[0].path)
    pulling = [part for part in parts if part.state is WeightsState.PULLING]
    rates = [part.bytes_per_s for part in pulling if part.bytes_per_s is not None]
    totals = [part.total_bytes for part in pulling]
    return Weights(
        state=WeightsState.PULLING,
        what=" and ".join(dict.fromkeys(part.what for part in pulling)),
        path=parts[0].path,
        done_bytes=sum(part.done_bytes for part in pulling),
        total_bytes=None if None in totals else sum(total for total in totals if total is not None),
        bytes_per_s=sum(rates) if rates else None,
    )
