"""Stand-ins for the images that docker-compose.yml names, made of this machine's programs: no registry is asked.

Each is laid over the tests' engine image (`tests.docker.daemon.IMAGE`), which has this Python and its libraries.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import re
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.tools import ROOT, haproxy

HOME = "opt/orchestrator"
"""Where the Dockerfile has the virtual environment."""
HAPROXY_CONFIG = "/usr/local/etc/haproxy/haproxy.cfg"
PATH = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
WGET = b"#!/usr/bin/python3 -S\nimport sys, urllib.request\nurllib.request.urlopen(sys.argv[-1], timeout=4)\n"
SCRIPT = b"#!/opt/orchestrator/bin/python\nimport sys\nfrom orchestrator.cli import main\nsys.exit(main())\n"
RUN_UID = 10001
S3_UID = 1000


def haproxy_image() -> tuple[bytes, list[str]]:
    """What is laid over, and its settings, which are those of Docker Hub's."""
    image = Layer()
    image.program("usr/local/sbin/haproxy", Path(haproxy()))
    image.text("usr/bin/wget", WGET, 0o755)
    settings = ['ENTRYPOINT ["haproxy", "-W", "-db"]', f'CMD ["-f", "{HAPROXY_CONFIG}"]']
    return image.done(), [PATH, "USER 99:99", *settings]


def s3_image(weed: Path) -> tuple[bytes, list[str]]:
    """The same of SeaweedFS."""
    image = Layer()
    image.program("usr/bin/weed", weed)
    image.text("usr/bin/wget", WGET, 0o755)
    image.folder("data", owner=S3_UID)
    return image.done(), [PATH]


def orchestrator_image() -> tuple[bytes, list[str]]:
    """What deploy/orchestrator.Dockerfile would build of this tree, had it a base image and an index of packages."""
    image = Layer()
    python = f"{HOME}/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    image.link(f"{HOME}/bin/python", os.path.realpath(sys.executable))
    image.text(f"{HOME}/pyvenv.cfg", f"home = {Path(os.path.realpath(sys.executable)).parent}\n".encode())
    image.text(f"{HOME}/bin/orchestrator", SCRIPT, 0o755)
    for name, file in (*_installed(), *_of_this_tree()):
        image.file(f"{python}/{name}", file)
    project = _project()["project"]
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    image.text(f"{python}/{project['name']}-{project['version']}.dist-info/METADATA", metadata.encode())
    for folder, mode in (("data", 0o750), ("huggingface", 0o755), ("engine-caches", 0o755)):
        image.folder(folder, mode, RUN_UID)
    return image.done(), [PATH, *dockerfile_settings()]


def dockerfile_settings() -> list[str]:
    """The last stage's instructions about how the image is run, a line each, with the arguments' defaults."""
    text = (ROOT / "deploy/orchestrator.Dockerfile").read_text("utf-8").replace("\\\n", " ")
    stage = text[text.rindex("\nFROM ") :].splitlines()
    values = dict(re.findall(r"^ARG (\w+)=(\S+)", text, re.MULTILINE))
    kept = [line for line in stage if re.match("(ENV|WORKDIR|USER|EXPOSE|HEALTHCHECK|ENTRYPOINT|CMD) ", line)]
    return [re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], line) for line in kept]


class Layer:
    """A layer that grows. A program brings along the shared libraries that ldd names."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w")  # noqa: SIM115 - `done` closes it
        self._names: set[str] = set()

    def done(self) -> bytes:
        self._tar.close()
        return self._buffer.getvalue()

    def folder(self, name: str, mode: int = 0o755, owner: int = 0) -> None:
        self._add(name, type=tarfile.DIRTYPE, mode=mode, uid=owner, gid=owner)

    def link(self, name: str, to: str) -> None:
        self._add(name, type=tarfile.SYMTYPE, linkname=to)

    def text(self, name: str, data: bytes, mode: int = 0o644) -> None:
        self._add(name, data, mode=mode)

    def file(self, name: str, path: Path, mode: int = 0o644) -> None:
        self._add(name, path.read_bytes(), mode=mode)
        if ".so" in path.suffixes:
            self._libraries(path)

    def program(self, name: str, path: Path) -> None:
        self.file(name, path, 0o755)
        self._libraries(path)

    def _libraries(self, path: Path) -> None:
        out = subprocess.run(("ldd", str(path)), capture_output=True, text=True, timeout=60, check=False).stdout
        found = {word for line in out.splitlines() for word in line.split() if word.startswith("/")}
        for library in sorted(word for word in found if Path(word).is_file()):
            if library.lstrip("/") not in self._names:
                self._add(library.lstrip("/"), Path(library).read_bytes(), mode=0o755)

    def _add(self, name: str, data: bytes = b"", **more: Any) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        for key, value in more.items():
            setattr(info, key, value)
        self._names.add(name)
        self._tar.addfile(info, io.BytesIO(data))


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def _installed() -> Iterable[tuple[str, Path]]:
    """The files of what the project needs to run, and what that needs: nothing that only its tests do."""
    asked = [Requirement(text) for text in _project()["project"]["dependencies"]]
    taken: set[tuple[str, str]] = set()
    while asked:
        wanted = asked.pop()
        for extra in ("", *wanted.extras):
            key = (canonicalize_name(wanted.name), extra)
            if key not in taken:
                taken.add(key)
                needs = [Requirement(text) for text in importlib.metadata.requires(wanted.name) or ()]
                asked += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    for name in sorted({name for name, _ in taken}):
        for file in importlib.metadata.files(name) or ():
            path = Path(str(file.locate()))
            if ".." not in file.parts and path.is_file():
                yield str(file), path


def _of_this_tree() -> Iterable[tuple[str, Path]]:
    """The packages as they would be installed: their modules, and the data that pyproject.toml names."""
    setuptools = _project()["tool"]["setuptools"]
    for package in (name.rstrip("*") for name in setuptools["packages"]["find"]["include"]):
        patterns = ("**/*.py", *setuptools["package-data"].get(package, ()))
        files = (path for pattern in patterns for path in (ROOT / package).glob(pattern))
        yield from ((str(path.relative_to(ROOT)), path) for path in files)
