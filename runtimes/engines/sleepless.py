"""For engines that can't sleep."""

from __future__ import annotations

from orchestrator.errors import EngineUnreachable
from orchestrator.model import Deployment


class Sleepless:
    """The part of `ports.Engine` that is about sleep, for those that never do."""

    def sleeps(self, deployment: Deployment) -> bool:
        """Never."""
        return False

    async def asleep(self, endpoint: str) -> bool:
        """Never."""
        return False

    async def sleep(self, endpoint: str, deployment: Deployment) -> None:
        """Raises `EngineUnreachable`: it is stopped instead."""
        raise EngineUnreachable("this engine can't sleep")

    async def wake(self, endpoint: str, deployment: Deployment) -> None:
        """It is awake."""
