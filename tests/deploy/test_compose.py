"""What docker-compose.yml says, as the real compose tool reads it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import deployments, load
from orchestrator.config_docs import env_example
from tests.deploy.tools import ROOT, compose_tool

TOOL_TIMEOUT_S = 60
CLOSED = {"docker-api", "storage", "monitoring"}


def read(*files: str, **variables: str) -> dict[str, Any]:
    """The configuration with every profile, without this machine's .env."""
    argv = [str(compose_tool()), "--env-file", os.devnull, "--profile", "*"]
    argv += [part for file in files or ("docker-compose.yml",) for part in ("-f", file)]
    done = subprocess.run(
        [*argv, "config", "--format", "json"],
        cwd=ROOT,
        env={"PATH": os.defpath, "HOME": "/nonexistent", **variables},
        capture_output=True,
        text=True,
        timeout=TOOL_TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = read()["services"]
    return found


def test_it_validates_with_all_that_belongs_to_it(services: dict[str, Any]) -> None:
    assert set(services) == {"orchestrator", "docker-proxy", "s3", "prometheus", "grafana"}
    assert {n for n, s in services.items() if s.get("profiles") == ["monitoring"]} == {"prometheus", "grafana"}


def test_nothing_is_published_beyond_loopback(services: dict[str, Any]) -> None:
    ports = [(name, port["host_ip"]) for name, s in services.items() for port in s.get("ports", ())]
    assert ports == [("grafana", "127.0.0.1"), ("orchestrator", "127.0.0.1")]


def test_only_the_proxy_has_the_socket(services: dict[str, Any]) -> None:
    holders = [n for n, s in services.items() if any("docker.sock" in str(v) for v in s.get("volumes", ()))]
    assert holders == ["docker-proxy"]
    assert services["orchestrator"]["environment"]["DOCKER_HOST"] == "tcp://docker-proxy:2375"


def test_no_socket_is_made_up_where_there_is_none(services: dict[str, Any]) -> None:
    mounts = [v for s in services.values() for v in s["volumes"] if v["target"].endswith("docker.sock")]
    assert [m["bind"].get("create_host_path", False) for m in mounts] == [False]


def test_every_service_is_confined(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert service["restart"] == "unless-stopped", name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
        assert not service.keys() & {"privileged", "cap_add", "pid", "ipc", "network_mode", "devices"}, name
        assert "healthcheck" in service or name == "orchestrator", name  # whose image has one
    image = (ROOT / "deploy/orchestrator.Dockerfile").read_text("utf-8")
    assert "\nHEALTHCHECK " in image and "\nUSER ${RUN_UID}" in image
    assert [n for n, s in services.items() if s.get("user", "").startswith("0")] == ["docker-proxy"]


def test_images_bear_tags(services: dict[str, Any]) -> None:
    tags = {name: service["image"].partition(":")[2] for name, service in services.items()}
    assert all(tags.values()) and "latest" not in tags.values()


def test_who_reaches_whom() -> None:
    found = read()
    members = {n: sorted(s for s, v in found["services"].items() if n in v["networks"]) for n in found["networks"]}
    assert members["docker-api"] == ["docker-proxy", "orchestrator"]
    assert members["storage"] == ["orchestrator", "s3"]
    assert members["engines"] == ["orchestrator"]  # and the engines that it starts there
    assert found["networks"]["engines"]["name"] == "orchestrator-engines"
    for name in (*CLOSED, "engines"):
        network = found["networks"][name]
        assert network["internal"] is True, name
        assert network["driver_opts"] == {"com.docker.network.bridge.inhibit_ipv4": "true"}, name
    for name in ("docker-proxy", "s3", "prometheus"):
        assert found["services"][name]["networks"].keys() <= CLOSED, name


def test_gpus_are_seen_and_the_override_does_without() -> None:
    devices = read()["services"]["orchestrator"]["deploy"]["resources"]["reservations"]["devices"]
    assert [device["capabilities"] for device in devices] == [["gpu", "utility"]]
    without = read("docker-compose.yml", "deploy/compose.no-gpu.yml")["services"]["orchestrator"]
    assert "deploy" not in without


def test_variables_change_what_they_name() -> None:
    found = read(
        ORCHESTRATOR_SERVER__PORT="9000",
        ORCHESTRATOR_SERVER__HOST="10.0.0.1",
        HF_CACHE="/srv/hf",
        DOCKER_SOCKET="/run/user/1000/docker.sock",
        RUN_UID="1000",
        AWS_SECRET_ACCESS_KEY="s3cret",
    )["services"]
    service = found["orchestrator"]
    assert [(p["host_ip"], p["published"], p["target"]) for p in service["ports"]] == [("10.0.0.1", "9000", 8000)]
    assert service["environment"]["ORCHESTRATOR_SERVER__PORT"] == "8000"
    assert ("bind", "/srv/hf") in [(v["type"], v["source"]) for v in service["volumes"]]
    assert "/run/user/1000/docker.sock" in [v["source"] for v in found["docker-proxy"]["volumes"]]
    assert service["build"]["args"]["RUN_UID"] == "1000"
    assert {found[n]["environment"]["AWS_SECRET_ACCESS_KEY"] for n in ("orchestrator", "s3")} == {"s3cret"}


def test_the_orchestrator_takes_its_environment(services: dict[str, Any]) -> None:
    environ = services["orchestrator"]["environment"]
    settings = load(ROOT / "deploy/config/orchestrator.toml", environ=environ, folder=ROOT / "deploy/config")
    assert settings.runtime.kind == "docker"
    assert settings.runtime.network == "orchestrator-engines"
    assert [d.source for d in deployments(settings).values()] == ["Qwen/Qwen3-0.6B"]
    mounted = {Path(v["target"]) for v in services["orchestrator"]["volumes"]}
    assert {settings.server.data_dir, settings.runtime.caches_dir, settings.auth.keys_file.parent} <= mounted
    assert Path(environ["HF_HOME"]) in mounted


def test_env_example_has_every_variable() -> None:
    text = (ROOT / "docker-compose.yml").read_text("utf-8")
    named = set(re.findall(r"\$\{(\w+)", text)) | {"COMPOSE_FILE", "COMPOSE_PROFILES"}
    assert {name for name in named if f"# {name}=" not in env_example()} == set()


def test_the_image_gets_every_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    assert let_in == packages | {"pyproject.toml", project["project"]["readme"]}
