"""A service on a machine without a way out, as a program: ``python -m tests.hostile.offline FOLDER``.

To be run in a network namespace whose only way out is `WAY_OUT`, which leads nowhere: what is sent there is counted.
Ends with an AssertionError when something needs the world, or looks for it.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import httpx

from tests.documents.served import EMBEDDER, with_embedder
from tests.stub import ask, model_table, service, until, vllm_cache
from tests.tiny_model import write_tiny_model

WAY_OUT = "out0"
PAGES = ("", "/starts", "/gpus", "/requests", "/usage", "/logs", "/files", "/search", "/chat", "/keys")
_LINKED = re.compile(r'(?:src|href|action)="([^"]+)"')


def sent_packets() -> int:
    """What went out so far."""
    told = subprocess.run(["ip", "-s", "-j", "link", "show", WAY_OUT], capture_output=True, check=True).stdout
    return int(json.loads(told)[0]["stats64"]["tx"]["packets"])


def main(folder: Path) -> None:
    """All that a service does, and nothing goes out; then one attempt that does, so that the counting is proven."""
    weights = folder / "weights"
    write_tiny_model(weights)
    local = f'[models."tiny"]\nsource = "{weights}"\ngpus = 0\n'
    with service(
        folder,
        with_embedder(),
        model_table("acme/chat"),
        local,
        ORCHESTRATOR_CACHE=str(vllm_cache(folder / "cache")),
        HF_HOME=str(folder / "hub"),
    ) as running:
        with running.client() as client:
            models(client)
            documents(client)
            pages(client)
        assert running.end() == 0
    assert sent_packets() == 0, running.log()
    # It leads nowhere: that it goes out is what is asked.
    with contextlib.suppress(OSError), socket.create_connection(("192.0.2.1", 80), timeout=1):
        pass
    assert sent_packets() > 0


def models(client: httpx.Client) -> None:
    """Cold ones of two kinds answer."""
    for model in ("acme/chat", "tiny"):
        answer = client.post("/v1/chat/completions", json=ask(model), headers={"prefer": "wait=60"})
        assert answer.status_code == 200, answer.text


def documents(client: httpx.Client) -> None:
    """A file is stored, read and found, with vectors of a model of the service's own."""
    client.post(f"/api/models/{EMBEDDER}/start")
    files = {"file": ("a.txt", b"The lighthouse stands on the cliff.")}
    file = client.post("/v1/files", files=files, data={"purpose": "user_data"}).json()["id"]
    store = client.post("/v1/vector_stores", json={"file_ids": [file]}).json()["id"]
    until(lambda: client.get(f"/v1/vector_stores/{store}").json()["file_counts"]["completed"] == 1)
    found = client.post(f"/v1/vector_stores/{store}/search", json={"query": "lighthouse"}).json()["data"]
    assert found[0]["file_id"] == file


def pages(client: httpx.Client) -> None:
    """Every page is there with all that it names, and names nothing elsewhere."""
    for page in PAGES:
        text = client.get(f"/dashboard{page}", headers={"accept": "text/html"}).raise_for_status().text
        for address in _LINKED.findall(text):
            assert address.startswith(("/", "?", "#")) and not address.startswith("//"), address
            if "/static/" in address:
                client.get(address).raise_for_status()
    assert "orchestrator_" in client.get("/metrics").text
    assert client.get("/ready").status_code == 200


if __name__ == "__main__":
    main(Path(sys.argv[1]))
