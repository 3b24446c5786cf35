"""The options that many commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path | None, typer.Option("--config", "-c", help="orchestrator.toml to read.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Url = Annotated[str | None, typer.Option("--url", help="The service; default: ORCHESTRATOR_URL, or as configured.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]
