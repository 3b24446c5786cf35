"""The kinds of engine we can start, each behind `ports.Engine`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orchestrator.model import EngineKind
from orchestrator.ports import Engine
from runtimes.engines.command import CommandEngine
from runtimes.engines.sglang import SglangEngine, find_sglang
from runtimes.engines.vllm import VllmEngine, find_vllm


def engines(cache: Path) -> Mapping[EngineKind, Engine]:
    """The adapter of each kind. `cache` is where `orchestrator demo` keeps engines that it prepared."""
    return {
        EngineKind.VLLM: VllmEngine(find_vllm(cache)),
        EngineKind.SGLANG: SglangEngine(find_sglang()),
        EngineKind.COMMAND: CommandEngine(),
    }
