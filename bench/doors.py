"""What stands in front of several engines of one model, each with a policy of its own, as processes on loopback."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.subjects import free_port, search_path

MODEL = "bench/model"
OURS = "orchestrator"


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """An engine that is there."""

    port: int
    capacity: int
    """Requests that it works on at a time."""

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Door:
    """One subject of a comparison."""

    name: str
    policy: str
    argv: Callable[[Path, int, Sequence[Server]], list[str]]
    """From a folder of its own, its port, and the engines."""
    needs: str = ""
    """The program it cannot run without; empty: none."""

    @property
    def is_missing(self) -> bool:
        """Whether that is not on this machine."""
        return bool(self.needs) and shutil.which(self.needs) is None


def ours(balance: str, *, told: bool) -> Door:
    """The service with static servers; `told`: their capacities are configured."""

    def argv(folder: Path, port: int, servers: Sequence[Server]) -> list[str]:
        limits = [f", max_concurrent_requests = {server.capacity}" if told else "" for server in servers]
        endpoints = ", ".join(
            f'{{ url = "{server.url}"{limit} }}' for server, limit in zip(servers, limits, strict=True)
        )
        (folder / "orchestrator.toml").write_text(
            f'[server]\nport = {port}\nconnections_max = 10000\n[models."{MODEL}"]\nengine = "static"\n'
            f'balance = "{balance}"\nendpoints = [{endpoints}]\n'
        )
        return [sys.executable, "-m", "orchestrator", "serve"]

    return Door(name=OURS, policy=balance if told else f"{balance}, capacities unknown", argv=argv)


def peer(name: str, policy: str, peers: Path | None) -> Door:
    """One of the routers written in Rust, its program looked for in the folder `peers` first. They know of no
    capacities; all else is as they come."""
    program = shutil.which(name, path=search_path(peers)) or name
    launch = ["launch"] if name == "sglang-router" else []

    def argv(folder: Path, port: int, servers: Sequence[Server]) -> list[str]:
        return [
            program, *launch, "--worker-urls", *(server.url for server in servers), "--policy", policy,
            "--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port()), "--log-level", "error",
        ]  # fmt: skip

    return Door(name=name, policy=policy, argv=argv, needs=program)
