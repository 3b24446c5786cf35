"""The settings table as text: the README's section and ``.env.example`` are generated, and tests compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from orchestrator.settings import ENV_PREFIX, EndpointSettings, HostSettings, Lifecycle, ModelSettings, Settings, Table

COMPOSE = (
    (
        "docker-compose.yml reads this file too. There ORCHESTRATOR_SERVER__HOST and __PORT are where the container's\n"
        "# port is published; paths, HF_HOME and DOCKER_HOST are the container's own. On a machine without a GPU:",
        "COMPOSE_FILE=docker-compose.yml:deploy/compose.no-gpu.yml",
    ),
    (
        "Compose: with Prometheus and Grafana, on this port of loopback.",
        "COMPOSE_PROFILES=monitoring",
        "GRAFANA_PORT=3000",
    ),
    ("Compose: how long Prometheus keeps its figures.", "PROMETHEUS_RETENTION=15d"),
    ("Compose: the folder with orchestrator.toml.", "CONFIG_DIR=./deploy/config"),
    (
        "Compose: a folder for the weights instead of a volume, and who owns it. The image is built for that user and\n"
        "# volumes take him over when they are made: set it before the first start.",
        "HF_CACHE=/srv/huggingface",
        "RUN_UID=10001",
        "RUN_GID=10001",
    ),
    ("Compose: Docker's socket.", "DOCKER_SOCKET=/var/run/docker.sock"),
    ("Compose: what the orchestrator's image is built on.", "BASE_IMAGE=python:3.12-slim"),
    (
        "Where s3:// leads, and the key to it. Compose: its own S3, which nothing but the orchestrator reaches.",
        "AWS_ENDPOINT_URL_S3=http://s3:8333",
        "AWS_REGION=us-east-1",
        "AWS_ACCESS_KEY_ID=orchestrator",
        "AWS_SECRET_ACCESS_KEY=orchestrator",
    ),
)
"""Of each variable of docker-compose.yml: what it is for, and its default."""


def settings_markdown() -> str:
    """A table of every key with its default and help."""
    rows = ["| key | default | what it does |", "|---|---|---|"]
    rows += [f"| `{section}.{key}` | `{_shown(field)}` | {field.description} |" for section, key, field in _keys()]
    rows += [f"| `runtime.hosts[].{key}` | `{_shown(f)}` | {f.description} |" for key, f in _fields(HostSettings)]
    rows += [
        f'| `models."id".{key}` | {"as in defaults" if key in Lifecycle.model_fields else f"`{_shown(field)}`"} '
        f"| {field.description or Lifecycle.model_fields[key].description} |"
        for key, field in ModelSettings.model_fields.items()
    ]
    rows += [
        f'| `models."id".endpoints[].{key}` | `{_shown(f)}` | {f.description} |' for key, f in _fields(EndpointSettings)
    ]
    return "\n".join(rows)


def env_example() -> str:
    """``.env.example``: every variable, commented out, with its default."""
    lines = [
        "# Copy to .env and uncomment what you want to change. Flags and the environment win over this file,",
        "# this file wins over orchestrator.toml. Models are configured in orchestrator.toml only.",
    ]
    for section, key, field in _keys():
        if (section, key) == ("runtime", "hosts"):  # tables: for the file only
            continue
        lines += ["", f"# {field.description}", f"# {ENV_PREFIX}{section.upper()}__{key.upper()}={_shown(field)}"]
    lines += ["", "# Where `orchestrator demo` keeps what it prepares.", "# ORCHESTRATOR_CACHE=~/.cache/orchestrator"]
    lines += ["", "# The service that the command line talks to, and the key it uses."]
    lines += ["# ORCHESTRATOR_URL=http://127.0.0.1:8000", "# ORCHESTRATOR_API_KEY="]
    lines += ["", "# The key to the server of embeddings.url.", "# EMBEDDINGS_API_KEY="]
    lines += ["", "# As everywhere: where weights are kept and fetched from, and the token for gated ones."]
    lines += ["# HF_HOME=~/.cache/huggingface", "# HF_ENDPOINT=https://huggingface.co", "# HF_TOKEN="]
    for text, *variables in COMPOSE:
        lines += ["", f"# {text}", *(f"# {variable}" for variable in variables)]
    return "\n".join(lines) + "\n"


def _keys() -> list[tuple[str, str, FieldInfo]]:
    found = []
    for section, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Table):
            found += [(section, key, sub) for key, sub in field.annotation.model_fields.items()]
    return found


def _fields(table: type[Table]) -> list[tuple[str, FieldInfo]]:
    return list(table.model_fields.items())


def _shown(field: FieldInfo) -> str:
    value: Any = "" if field.is_required() else field.default
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Path):
        return str(value)
    if value is None or value == () or value == {}:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def write(root: Path) -> None:
    """Bring README.md and .env.example under `root` up to date."""
    (root / ".env.example").write_text(env_example(), "utf-8")
    readme = root / "README.md"
    before, _, rest = readme.read_text("utf-8").partition("<!-- settings -->")
    after = rest.partition("<!-- /settings -->")[2]
    readme.write_text(f"{before}<!-- settings -->\n{settings_markdown()}\n<!-- /settings -->{after}", "utf-8")


if __name__ == "__main__":
    write(Path.cwd())
