"""What a container is made of, and what a listing and a pull tell: tables, without Docker."""

from __future__ import annotations

import json
from typing import Any

import pytest
from docker.errors import APIError

from orchestrator.model import InstanceState
from orchestrator.ports import LaunchSpec
from runtimes.docker import container, paths, probe
from runtimes.docker.container import Mount, Options
from runtimes.docker.images import RATE_WINDOW_S, Layers
from runtimes.docker.said import not_run, refusal, said

OPTIONS = Options(
    instance="i1",
    user="65534:65534",
    read_only=True,
    shm_bytes=2**30,
    memory_bytes_max=2**31,
    log_bytes_max=1000,
    network="",
)
SPEC = LaunchSpec(
    id="echo-b-0",
    model="acme/echo",
    spec="s1",
    argv=("serve", "--host={host}", "--port", "{port}", "{else}"),
    env=(("A", "1=2"), ("HOME", "/mine")),
    image="acme/engine:1",
    gpus=("GPU-1", "GPU-2"),
    gpu_bytes=7,
)


def made(spec: LaunchSpec = SPEC, options: Options = OPTIONS, *mounts: Mount) -> dict[str, Any]:
    return container.creation(spec, options, mounts, "/caches/x")


def with_options(**changes: Any) -> Options:
    from dataclasses import replace

    return replace(OPTIONS, **changes)


# --- creation ---


def test_the_port_and_the_address_are_filled_in_and_nothing_else() -> None:
    body = made()
    assert body["Entrypoint"] == ["serve"]
    assert body["Cmd"] == ["--host=0.0.0.0", "--port", "8000", "{else}"]


def test_the_models_environment_wins_over_ours() -> None:
    env = made()["Env"]
    assert "A=1=2" in env
    assert [pair for pair in env if pair.startswith("HOME=")] == ["HOME=/mine"]


def test_labels_tell_all_that_a_restart_needs() -> None:
    assert made()["Labels"] == {
        "orchestrator.instance": "i1",
        "orchestrator.model": "acme/echo",
        "orchestrator.replica": "echo-b-0",
        "orchestrator.spec": "s1",
        "orchestrator.gpus": "GPU-1,GPU-2",
        "orchestrator.gpu_bytes": "7",
    }


def test_gpus_are_asked_for_by_id() -> None:
    [request] = made()["HostConfig"]["DeviceRequests"]
    assert (request["DeviceIDs"], request["Count"], request["Capabilities"]) == (["GPU-1", "GPU-2"], 0, [["gpu"]])
    assert not any(pair.startswith("NVIDIA_VISIBLE_DEVICES") for pair in made()["Env"])


def test_without_gpus_none_are_seen_even_where_nvidias_runtime_is_the_default() -> None:
    body = made(LaunchSpec(id="a", model="m", spec="s", argv=("x",), image="i"))
    assert body["HostConfig"]["DeviceRequests"] == []
    assert "NVIDIA_VISIBLE_DEVICES=void" in body["Env"]


def test_a_port_is_published_on_one_address_only() -> None:
    [binding] = made(SPEC, with_options(address="10.0.0.7"))["HostConfig"]["PortBindings"]["8000/tcp"]
    assert binding == {"HostIp": "10.0.0.7", "HostPort": ""}


def test_on_a_network_of_its_own_nothing_is_published() -> None:
    host = made(SPEC, with_options(network="engines"))["HostConfig"]
    assert host["NetworkMode"] == "engines"
    assert "PortBindings" not in host


def test_mounts_are_those_given() -> None:
    host = made(SPEC, OPTIONS, Mount(kind="bind", source="/w", target="/w"))["HostConfig"]
    assert host["Mounts"] == [{"Type": "bind", "Source": "/w", "Target": "/w", "ReadOnly": True}]
    assert "Binds" not in host


@pytest.mark.parametrize("body", [made(), probe.creation("i", OPTIONS)], ids=["engine", "probe"])
def test_every_container_is_confined(body: dict[str, Any]) -> None:
    host = body["HostConfig"]
    assert (host["CapDrop"], host["SecurityOpt"]) == (["ALL"], ["no-new-privileges"])
    assert (host["Privileged"], host["ReadonlyRootfs"], host["Init"]) == (False, True, True)
    assert host["RestartPolicy"] == {"Name": "no"}
    assert host["LogConfig"]["Config"] == {"max-size": "500", "max-file": "2"}
    assert body["User"] == "65534:65534"
    assert "docker.sock" not in json.dumps(body)


# --- what a listing tells ---


def listed(**facts: Any) -> dict[str, Any]:
    labels = {"orchestrator.replica": "a-b-0", "orchestrator.model": "m", "orchestrator.spec": "s"}
    return {"Labels": {**labels, **facts.pop("labels", {})}, "State": "running", "Status": "Up", **facts}


@pytest.mark.parametrize(
    ("docker", "launching", "stopping", "expected"),
    [
        ("running", False, False, InstanceState.RUNNING),
        ("paused", False, False, InstanceState.RUNNING),
        ("restarting", False, False, InstanceState.RUNNING),
        ("created", True, False, InstanceState.RUNNING),
        ("created", False, False, InstanceState.EXITED),
        ("exited", False, False, InstanceState.EXITED),
        ("dead", False, False, InstanceState.EXITED),
        ("exited", False, True, InstanceState.STOPPING),
        ("running", False, True, InstanceState.STOPPING),
        ("removing", False, False, InstanceState.STOPPING),
    ],
)
def test_states(docker: str, launching: bool, stopping: bool, expected: InstanceState) -> None:
    assert container.instance_of(listed(State=docker), "h", launching=launching, stopping=stopping).state is expected


@pytest.mark.parametrize(
    ("status", "code"), [("Exited (137) 2 seconds ago", 137), ("Exited (0) 1 hour ago", 0), ("Created", None)]
)
def test_exit_codes(status: str, code: int | None) -> None:
    seen = container.instance_of(listed(State="exited", Status=status), "", launching=False, stopping=False)
    assert seen.exit_code == code
    assert bool(seen.reason) == (code is None)


@pytest.mark.parametrize(("text", "number"), [("7", 7), ("", 0), ("-1", 0), ("x", 0)])
def test_leases_survive_odd_labels(text: str, number: int) -> None:
    labels = {"orchestrator.gpu_bytes": text, "orchestrator.gpus": "GPU-1,,GPU-2"}
    seen = container.instance_of(listed(labels=labels), "h", launching=False, stopping=False)
    assert (seen.gpu_bytes, seen.gpus, seen.host) == (number, ("GPU-1", "GPU-2"), "h")


@pytest.mark.parametrize(
    ("facts", "endpoint"),
    [
        ({"Ports": [{"PrivatePort": 8000, "PublicPort": 5, "IP": "127.0.0.1"}]}, "http://127.0.0.1:5"),
        ({"Ports": [{"PrivatePort": 9, "PublicPort": 5, "IP": "127.0.0.1"}]}, None),
        ({"Ports": [{"PrivatePort": 8000}]}, None),
        ({"NetworkSettings": {"Networks": {"engines": {"IPAddress": "10.1.0.2"}}}}, "http://10.1.0.2:8000"),
        ({"NetworkSettings": {"Networks": {"bridge": {"IPAddress": "172.17.0.2"}}}}, None),
        ({"NetworkSettings": {"Networks": {"engines": {"IPAddress": ""}}}}, None),
        ({"Ports": None, "NetworkSettings": None}, None),
    ],
)
def test_endpoints(facts: dict[str, Any], endpoint: str | None) -> None:
    assert container.endpoint_of(listed(**facts)) == endpoint


# --- what a pull tells ---


def downloading(layer: str, current: int, total: int) -> dict[str, Any]:
    return {"status": "Downloading", "id": layer, "progressDetail": {"current": current, "total": total}}


def heard(*lines: tuple[float, dict[str, Any]]) -> Layers:
    layers = Layers()
    for now, line in lines:
        layers.heard(line, now)
    return layers


@pytest.mark.parametrize(
    ("lines", "done", "total"),
    [
        ([], 0, 0),
        ([{"status": "Pulling from acme/engine", "id": "latest"}], 0, 0),
        ([downloading("a", 10, 100)], 10, 100),
        ([downloading("a", 10, 100), downloading("b", 5, 50), downloading("a", 20, 100)], 25, 150),
        ([downloading("a", 10, 100), {"status": "Download complete", "id": "a"}], 100, 100),
        ([downloading("a", 10, 100), {"status": "Pull complete", "id": "a"}], 100, 100),
        ([{"status": "Already exists", "id": "a"}, {"status": "Pull complete", "id": "b"}], 0, 0),
        ([downloading("a", 100, 100), {"status": "Extracting", "id": "a", "progressDetail": {"current": 1}}], 100, 100),
        ([downloading("a", 60, 100), {"status": "Retrying in 5 seconds", "id": "a"}], 60, 100),
        ([{"status": "Downloading", "id": "a", "progressDetail": {}}, {"status": "Downloading", "id": "a"}], 0, 0),
    ],
)
def test_layers_are_added_up(lines: list[dict[str, Any]], done: int, total: int) -> None:
    layers = heard(*((float(at), line) for at, line in enumerate(lines)))
    assert (sum(layers.done.values()), sum(layers.total.values())) == (done, total)


def test_the_rate_is_that_of_the_last_seconds() -> None:
    layers = heard((0.0, downloading("a", 0, 1000)), (1.0, downloading("a", 100, 1000)))
    assert layers.bytes_per_s == 100.0
    layers.heard(downloading("a", 200, 1000), 1.0 + RATE_WINDOW_S)
    assert layers.bytes_per_s == pytest.approx(100 / RATE_WINDOW_S)


def test_the_rate_is_unknown_at_first_after_a_long_silence_and_never_below_zero() -> None:
    assert Layers().bytes_per_s is None
    assert heard((0.0, downloading("a", 1, 9))).bytes_per_s is None
    assert heard((0.0, downloading("a", 1, 9)), (0.0, downloading("a", 2, 9))).bytes_per_s is None
    assert heard((0.0, downloading("a", 1, 9)), (99.0, downloading("a", 2, 9))).bytes_per_s is None
    assert heard((0.0, downloading("a", 5, 9)), (1.0, downloading("a", 0, 9))).bytes_per_s == 0.0


# --- words ---


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("pull access denied for x, repository does not exist or may require 'docker login'", "docker login"),
        ("unauthorized: authentication required", "docker login"),
        ("manifest for x:1 not found: manifest unknown", "tag"),
        ("no matching manifest for linux/arm64/v8 in the manifest list entries", "processor"),
        ('Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused', ""),
        ("toomanyrequests: You have reached your pull rate limit.", ""),
        ("unexpected EOF", ""),
    ],
)
def test_refusals(text: str, word: str) -> None:
    assert word in refusal(text)
    assert bool(refusal(text)) == bool(word)


def test_what_docker_says_is_one_line_with_a_remedy() -> None:
    assert said(APIError("x", explanation="one\ntwo")) == "one"
    assert said(ValueError()) == "ValueError"
    told = said(APIError("x", explanation='could not select device driver "" with capabilities: [[gpu]]'))
    assert "nvidia-ctk" in told
    assert len(said(APIError("x", explanation="y" * 5000))) == 300


def test_a_program_that_was_not_run() -> None:
    assert (
        not_run("[FATAL tini (7)] exec x failed: No such file or directory\n")
        == "the image does not have the program x"
    )
    assert "Permission denied" in not_run("[FATAL tini (7)] exec /etc failed: Permission denied")
    assert not_run("x: command not found") == ""


# --- paths ---

VOLUME = {"Type": "volume", "Name": "hub", "Source": "/var/lib/docker/volumes/hub/_data", "Destination": "/hub"}
BIND = {"Type": "bind", "Source": "/srv/models", "Destination": "/models"}
INNER = {"Type": "bind", "Source": "/fast", "Destination": "/models/fast"}


@pytest.mark.parametrize(
    ("folder", "mounted", "kind", "source", "target"),
    [
        ("/models/a", (), "bind", "/models/a", "/models/a"),
        ("/models/a", (BIND,), "bind", "/srv/models/a", "/models/a"),
        ("/models/fast/a", (BIND, INNER), "bind", "/fast/a", "/models/fast/a"),
        ("/models-b/a", (BIND,), "bind", "/models-b/a", "/models-b/a"),
        ("/hub/a", (VOLUME,), "volume", "hub", "/hub"),
    ],
)
def test_a_folder_as_its_host_knows_it(folder: str, mounted: Any, kind: str, source: str, target: str) -> None:
    mount = paths.mount_of(folder, mounted)
    assert (mount.kind, mount.source, mount.target, mount.read_only) == (kind, source, target, True)


@pytest.mark.parametrize(
    ("path", "folder"),
    [("/w/m", "/w/m"), ("/hub/models--a--b/snapshots/0123", "/hub/models--a--b")],
)
def test_a_snapshot_is_seen_with_its_blobs(path: str, folder: str) -> None:
    assert paths.weights_folder(path) == folder


# --- a distant host's GPUs ---


def test_the_newest_line_of_each_gpu_counts() -> None:
    log = "\n".join(
        (
            "GPU-b, 1, NVIDIA L4, 23034, 20000, Disabled",
            "GPU-a, 0, NVIDIA L4, 23034, 10000, [N/A]",
            "GPU-a, 0, NVIDIA L4, 23034, 5000, [N/A]",
            "GPU-c, 2, NVIDIA H100, 81559, [N/A], Enabled",
            "GPU-d, x, y",
            "NVIDIA-SMI has failed",
        )
    )
    seen = probe.read(log)
    assert [(gpu.uuid, gpu.index, gpu.free_bytes >> 20, gpu.healthy) for gpu in seen] == [
        ("GPU-a", 0, 5000, True),
        ("GPU-b", 1, 20000, True),
        ("GPU-c", 2, 0, False),
    ]
