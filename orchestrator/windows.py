"""When models are kept warm: cron expressions as sets of minutes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from orchestrator.model import Deployment
from orchestrator.settings import cron


def matches(expression: str, at: datetime) -> bool:
    """Whether the minute of `at`, an aware time, is one of the expression's (UTC)."""
    minute = at.replace(second=0, microsecond=0)
    fires = cron(expression).get_next_fire_time(None, minute)
    return fires is not None and fires < minute + timedelta(minutes=1)


def warmed(deployments: Mapping[str, Deployment], at: datetime) -> dict[str, Deployment]:
    """The deployments as they are to be at this time: in one of its windows a model keeps a replica."""
    return {
        name: replace(deployment, min_replicas=max(deployment.min_replicas, 1))
        if any(matches(window, at) for window in deployment.keep_warm)
        else deployment
        for name, deployment in deployments.items()
    }
