"""docker-compose.yml as a user brings it up: a key, a cold request, an engine beside it, a crash, and the end of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.deploy.stack import ECHO, KEPT, Stack
from tests.deploy.tools import compose_tool, haproxy, needed_weed
from tests.docker.daemon import Daemon, build_engine_image, needed
from tests.docker.engines import CHAT, HOLD
from tests.stub import ask, until

pytestmark = [
    pytest.mark.slow,
    # Docker's SDK leaves the sockets of its pools to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SHM = Path("/dev/shm")
IMAGES_BYTES_MAX = 2 * 2**30
SERVICE = "orchestrator-orchestrator-1"
CALLS = """
import json, sys, urllib.request, urllib.error
def status(method, url):
    try:
        return urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError as error:
        return type(error.reason).__name__
print(json.dumps([status(*call) for call in json.loads(sys.argv[1])]))
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Up, with a key, in the compose file's own words."""
    needed()
    compose_tool()
    haproxy()
    folder = tmp_path_factory.mktemp("up")
    data = in_memory() or folder / "dockerd"
    daemon = Daemon(data)
    try:
        build_engine_image(daemon)
        made = Stack(folder, daemon)
        try:
            made.make_images()
            keys = "keys new me --scope realtime --scope admin"
            made.secret = made.compose("run", "--rm", "-T", "orchestrator", *keys.split()).strip()
            made.up()
            yield made
        finally:
            made.close()
    finally:
        daemon.close()
        shutil.rmtree(data, ignore_errors=True)


def in_memory() -> Path | None:
    """A folder for the engine's images, where there is room: a busy disk takes half a minute more for them."""
    if SHM.is_dir() and shutil.disk_usage(SHM).free >= IMAGES_BYTES_MAX:
        return Path(tempfile.mkdtemp(prefix="dockerd-", dir=SHM))
    return None


def test_a_cold_request_starts_an_engine_and_idleness_ends_it(stack: Stack) -> None:
    with stack.client() as client:
        assert client.post(CHAT, json=ask(ECHO), headers={"authorization": "Bearer wrong"}).status_code == 401
        cold = client.post(CHAT, json=ask(ECHO))
        assert (cold.status_code, cold.json()["error"]["code"]) == (503, "model_cold")
        assert int(cold.headers["retry-after"]) >= 1
        answer = client.post(CHAT, json=ask(ECHO), headers=HOLD)
        assert answer.status_code == 200, answer.text
    [engine] = stack.engines(ECHO)
    assert_private_and_confined(stack, engine)
    until(lambda: stack.engines(ECHO) == [])


def assert_private_and_confined(stack: Stack, engine: str) -> None:
    """What an engine sees is its network, its caches, and no more; nobody outside sees it."""
    seen = stack.inspect(engine)
    assert list(seen["NetworkSettings"]["Networks"]) == ["orchestrator-engines"]
    assert not any(seen["NetworkSettings"]["Ports"].values())
    host = seen["HostConfig"]
    assert (host["CapDrop"], host["Privileged"], host["ReadonlyRootfs"]) == (["ALL"], False, True)
    assert any(option.startswith("no-new-privileges") for option in host["SecurityOpt"])
    assert seen["Config"]["User"].split(":")[0] == "10001"
    mounts = [(mount["Type"], mount["Name"], mount["Destination"]) for mount in seen["Mounts"]]
    assert mounts == [("volume", "orchestrator_engine-caches", "/engine-caches")]
    names = {each.partition("=")[0] for each in seen["Config"]["Env"]}
    assert not {name for name in names if name.startswith(("AWS_", "DOCKER_", "ORCHESTRATOR_", "HF_"))}


def calls_from_within(stack: Stack, calls: list[tuple[str, str]]) -> list[int | str]:
    """What the orchestrator's container is answered."""
    said = stack.compose("exec", "-T", "orchestrator", "python", "-c", CALLS, json.dumps(calls))
    found: list[int | str] = json.loads(said)
    return found


def test_the_proxy_lets_through_what_is_in_use_only(stack: Stack) -> None:
    own = stack.inspect(SERVICE)["Id"]
    calls = [
        ("GET", "/_ping"),
        ("GET", f"/containers/{own}/json"),
        ("POST", f"/containers/{own}/exec"),
        ("GET", "/volumes"),
        ("POST", "/volumes/create"),
        ("GET", f"/containers/{own}/archive?path=/data"),
    ]
    said = calls_from_within(stack, [(method, f"http://docker-proxy:2375{path}") for method, path in calls])
    assert said == [200, 200, 403, 403, 403, 403]


def test_the_s3_wants_a_key_and_nothing_else_of_it_is_open(stack: Stack) -> None:
    needed_weed()
    calls = [("GET", "http://s3:8333/"), ("PUT", "http://s3:8333/orchestrator")]
    calls += [("GET", f"http://s3:{port}/") for port in (9333, 8080, 8888)]
    assert calls_from_within(stack, calls) == [403, 403, *["ConnectionRefusedError"] * 3]


def test_after_a_kill_docker_starts_it_again_and_its_engine_is_kept(stack: Stack) -> None:
    with stack.client() as client:
        assert client.post(CHAT, json=ask(KEPT), headers=HOLD).status_code == 200
        engines = stack.engines(KEPT)
        before = stack.inspect(SERVICE)
        os.kill(before["State"]["Pid"], signal.SIGKILL)
        until(lambda: stack.inspect(SERVICE)["RestartCount"] > before["RestartCount"])
        until(lambda: ready(client))
        assert client.post(CHAT, json=ask(KEPT), headers=HOLD).status_code == 200
        assert len(engines) == 1 and stack.engines(KEPT) == engines


def ready(client: httpx.Client) -> bool:
    """Whether it answers, and takes requests."""
    with contextlib.suppress(httpx.TransportError):
        return client.get("/ready").status_code == 200
    return False


def test_killed_and_brought_up_anew_it_adopts_the_engine(stack: Stack) -> None:
    with stack.client() as client:
        assert client.post(CHAT, json=ask(KEPT), headers=HOLD).status_code == 200
    engines = stack.engines(KEPT)
    began = stack.inspect(engines[0])["State"]["StartedAt"]
    stack.compose("kill", "--signal", "SIGKILL", "orchestrator")
    assert stack.inspect(SERVICE)["State"]["Running"] is False
    stack.compose("up", "-d", "--wait", "--force-recreate", "--no-deps", "orchestrator")
    with stack.client() as client:
        assert client.post(CHAT, json=ask(KEPT)).status_code == 200  # warm: it was not asked to wait
    assert stack.engines(KEPT) == engines
    assert stack.inspect(engines[0])["State"]["StartedAt"] == began


def test_documents_are_kept_in_the_stacks_s3(stack: Stack) -> None:
    with stack.client() as client:
        form = {"purpose": "assistants"}
        file = client.post("/v1/files", data=form, files={"file": ("a.md", b"# Ships\n\na vessel")}).json()
        store = client.post("/v1/vector_stores", json={"file_ids": [file["id"]]}).json()
        path = f"/v1/vector_stores/{store['id']}"
        until(lambda: client.get(path).json()["file_counts"]["completed"] == 1)
        found = client.post(f"{path}/search", json={"query": "vessel"}).json()["data"]
        assert [hit["filename"] for hit in found] == ["a.md"]
        assert client.get("/ready").status_code == 200


def test_down_leaves_nothing(stack: Stack) -> None:
    with stack.client() as client:
        assert client.post(CHAT, json=ask(KEPT), headers=HOLD).status_code == 200
    stack.compose("stop")
    assert stack.exit_codes().values() and set(stack.exit_codes().values()) == {0}  # nobody had to be killed
    stack.compose("down", "-v")
    assert stack.left() == {"containers": [], "networks": [], "volumes": []}
