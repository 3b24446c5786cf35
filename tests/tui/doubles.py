"""A service and a model for the screens, in memory: they answer what a test puts into them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from time import monotonic
from typing import Any

from textual.pilot import Pilot

from orchestrator.errors import OrchestratorError
from ui.tui.conversation import Heard, Message
from ui.tui.snapshot import Counts, Snapshot, View
from ui.tui.terminal import TerminalApp

SIZE = (80, 24)
WAIT_S = 10.0


def model(name: str = "acme/echo", **fields: Any) -> View:
    """A model as the control API shows it, cold."""
    usual: View = dict.fromkeys(
        ("progress", "eta_s", "expected_s", "retry_s", "idle_s", "stops_in_s", "sleeps_in_s", "last_replica", "weights")
    )
    usual |= {"id": name, "engine": "command", "source": "", "phase": "cold", "note": "", "error": ""}
    usual |= {"elapsed_s": 1.0, "in_flight": 0, "held": 0, "min_replicas": 0, "pinned": False, "replicas": []}
    return usual | fields


def replica(name: str, of: str = "acme/echo", **fields: Any) -> View:
    """A replica likewise, ready."""
    usual = {"id": name, "model": of, "phase": "ready", "age_s": 5.0, "ready_s": 4.0, "endpoint": "http://127.0.0.1:1"}
    return usual | {"host": "", "gpus": [], "in_flight": 0, "adopted": False, "error": ""} | fields


def gpu(uuid: str = "GPU-0", **fields: Any) -> View:
    """A GPU likewise, empty."""
    usual: View = {"uuid": uuid, "index": 0, "name": "NVIDIA H200", "host": "", "mig": False, "fault": ""}
    usual |= {"memory_bytes": 140 * 2**30, "free_bytes": 140 * 2**30, "foreign_bytes": 0, "healthy": True}
    return usual | {"holders": []} | fields


def server(name: str, of: str = "acme/echo", **fields: Any) -> View:
    """The way to an engine likewise, idle."""
    usual: View = {"replica": name, "model": of, "in_rotation": True, "load": 0.0, "capacity": 4, "utilisation": 0.0}
    usual |= {"weight": 1.0, "in_flight": 0, "running": 0, "waiting": 0, "cache_use": 0.0, "told_s": 1.0}
    return usual | {"breaker": "closed", "fault": None, "retry_s": None, "failures": 0} | fields


class BoardDouble:
    """Shows `models`; `away` makes every call fail with it."""

    url = "http://127.0.0.1:8000"

    def __init__(self, *models: View) -> None:
        self.models = models
        self.gpus: tuple[View, ...] = ()
        self.servers: tuple[View, ...] = ()
        self.trouble = ""
        self.counts: dict[str, Counts] = {}
        self.logs: dict[str, list[str]] = {}
        self.away = ""
        self.eventless = ""
        self.asked: list[tuple[str, str]] = []
        self.refusal = ""
        self.news: asyncio.Queue[tuple[str, View]] = asyncio.Queue()

    async def snapshot(self) -> Snapshot:
        """What there is."""
        self._check(self.away)
        return Snapshot(
            at=monotonic(),
            models=self.models,
            gpus=self.gpus,
            servers=self.servers,
            trouble=self.trouble,
            counts=self.counts,
        )

    async def events(self) -> AsyncIterator[tuple[str, View]]:
        """What a test puts into `news`."""
        self._check(self.away or self.eventless)
        yield ":", {}
        while True:
            yield await self.news.get()
            self._check(self.away or self.eventless)

    async def ask(self, model: str, verb: str) -> None:
        """Noted in `asked`."""
        self._check(self.refusal)
        self.asked.append((model, verb))

    async def log(self, replica: str) -> AsyncIterator[str]:
        """The lines of `logs`."""
        for line in self.logs.get(replica, []):
            yield line

    def _check(self, trouble: str) -> None:
        if trouble:
            raise OrchestratorError(trouble)


class TalkerDouble:
    """Answers each question with the next of `answers`; an error is raised, None waits for ever."""

    url = "http://127.0.0.1:8000"
    model = "acme/echo"

    def __init__(self, *answers: Sequence[Heard | Exception | None]) -> None:
        self.answers = list(answers)
        self.asked: list[list[Message]] = []
        self.closed = 0

    async def answer(self, messages: Sequence[Message]) -> AsyncIterator[Heard]:
        """The next one."""
        self.asked.append(list(messages))
        try:
            for heard in self.answers.pop(0):
                if isinstance(heard, Exception):
                    raise heard
                if heard is None:
                    await asyncio.Event().wait()
                    continue
                yield heard
        finally:
            self.closed += 1


class PromptsDouble:
    """A history in memory."""

    def __init__(self, *past: str) -> None:
        self.prompts = list(past)

    def past(self) -> list[str]:
        """A copy."""
        return list(self.prompts)

    def keep(self, prompt: str) -> None:
        """At the end."""
        self.prompts.append(prompt)


def screen(app: TerminalApp) -> str:
    """What the terminal shows."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips)


async def shows(pilot: Pilot[None], *texts: str) -> str:
    """Wait until the screen holds all `texts`; returns it."""
    app = pilot.app
    assert isinstance(app, TerminalApp)
    ends_at = monotonic() + WAIT_S
    while not all(text in screen(app) for text in texts):
        assert monotonic() < ends_at, f"{texts} not in\n{screen(app)}"
        await pilot.pause(0.01)
    return screen(app)
