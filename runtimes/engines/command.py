"""Any program that speaks the OpenAI API."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from orchestrator.errors import PreflightFailed
from orchestrator.gpu import Grant, ModelShape
from orchestrator.model import Deployment, Progress
from runtimes.engines.reading import failure_sentence
from runtimes.engines.sleepless import Sleepless


class CommandEngine(Sleepless):
    """`ports.Engine` for ``engine = "command"``; `in_image`: its program is in a container's image, out of sight."""

    def __init__(self, *, in_image: bool = False) -> None:
        self._in_image = in_image

    def argv(self, deployment: Deployment, weights_path: str | None, grant: Grant) -> tuple[str, ...]:
        """The operator's argv with ``{weights}`` and ``{model}`` filled in; other braces stay."""
        return tuple(
            part.replace("{weights}", weights_path or "").replace("{model}", deployment.name)
            for part in (*deployment.command, *deployment.args)
        )

    def env(self, deployment: Deployment) -> Mapping[str, str]:
        """Nothing of its own."""
        return {}

    def health_path(self, deployment: Deployment) -> str:
        """As configured."""
        return deployment.health_path

    def preflight(self, deployment: Deployment, weights_path: str | None) -> None:
        """The program exists, and has the weights that it asks for."""
        program = deployment.command[0]
        if not self._in_image and shutil.which(program, path=dict(deployment.env).get("PATH")) is None:
            raise PreflightFailed(f"{program}: no such program")
        if not weights_path and any("{weights}" in part for part in (*deployment.command, *deployment.args)):
            raise PreflightFailed("the command asks for {weights}, but the model has no source")

    def progress(self, log_tail: str) -> Progress:
        """Unknown programs tell nothing that we could read."""
        return Progress()

    accelerated = False
    """Nobody knows; ``gpus = N`` says so."""

    def shape(self, deployment: Deployment, weights_path: str | None) -> ModelShape | None:
        """Unknown."""
        return None

    def fixed_bytes(self, log_tail: str) -> int | None:
        """Unknown."""
        return None

    def failure(self, log_tail: str, exit_code: int | None) -> str:
        """See `reading.failure_sentence`."""
        return failure_sentence(log_tail, exit_code)
