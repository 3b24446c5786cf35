"""The kinds of engine we can start, each behind `ports.Engine`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orchestrator.model import EngineKind
from orchestrator.ports import Engine
from runtimes.engines.command import CommandEngine
from runtimes.engines.sglang import Sglang, SglangEngine, find_sglang
from runtimes.engines.vllm import Vllm, VllmEngine, find_vllm


def engines(cache: Path) -> Mapping[EngineKind, Engine]:
    """The adapter of each kind. `cache` is where `orchestrator demo` keeps engines that it prepared."""
    return {
        EngineKind.VLLM: VllmEngine(find_vllm(cache)),
        EngineKind.SGLANG: SglangEngine(find_sglang()),
        EngineKind.COMMAND: CommandEngine(),
    }


def container_engines() -> Mapping[EngineKind, Engine]:
    """The adapters for engines in images of their makers', or others with the same programs in them."""
    return {
        EngineKind.VLLM: VllmEngine(Vllm(python="python3", cpu=False)),
        EngineKind.SGLANG: SglangEngine(Sglang(python="python3", cpu=False)),
        EngineKind.COMMAND: CommandEngine(in_image=True),
    }
