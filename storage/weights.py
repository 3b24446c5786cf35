"""Model weights in the hub's standard cache, where every engine and tool looks for them.

A pull fetches blobs first and links them into a snapshot last, with the configuration at the very end, so that a
snapshot that looks whole is whole, whatever was killed when.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path

from orchestrator.errors import WeightsError, WeightsMissing, WeightsTooLarge, WeightsUnreachable
from orchestrator.model import Deployment, Weights, WeightsState
from storage.disk_space import mark_used
from storage.download import PART_SUFFIX, Cancelled, Refused, fetch, part_of
from storage.hub import HubFile, Plan, cache_folder, of_status, plan, token

FILES_AT_ONCE_MAX = 4
DISK_MARGIN_BYTES = 512 * 2**20
RATE_WINDOW_S = 5.0
JUNK_AGE_S = 3600.0
"""A partial file that nobody has written to for this long is nobody's."""
LOCK_POLL_S = 0.5


class _Pull:
    """A running pull and its progress; threads add bytes, the event loop reads."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._now = monotonic
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, int]] = deque()
        self.cancel = threading.Event()
        self.done_bytes = 0
        self.total_bytes: int | None = None
        self.task: asyncio.Task[None] | None = None

    def add(self, count: int) -> None:
        with self._lock:
            self.done_bytes += count
            self._samples.append((self._now(), max(count, 0)))

    def bytes_per_s(self) -> float | None:
        """Over the last seconds; None before anything has come."""
        now = self._now()
        with self._lock:
            while self._samples and self._samples[0][0] < now - RATE_WINDOW_S:
                self._samples.popleft()
            if not self._samples:
                return None
            span_s = max(now - self._samples[0][0], 0.5)
            return sum(count for _, count in self._samples) / span_s


class HubWeights:
    """`ports.WeightsStore`. One pull a source, shared by all who ask, in this process and in others."""

    def __init__(
        self,
        *,
        pulls_max: int,
        environ: Mapping[str, str] = os.environ,
        monotonic: Callable[[], float] = time.monotonic,
        free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
        make_room: Callable[[int], None] = lambda for_bytes: None,
    ) -> None:
        self._environ = environ
        self._cache = cache_folder(environ)
        self._now = monotonic
        self._free_bytes = free_bytes
        self._make_room = make_room
        self._slots = asyncio.Semaphore(pulls_max)
        self._pulls: dict[tuple[str, str], _Pull] = {}
        self._errors: dict[tuple[str, str], WeightsError] = {}
        self._found: dict[tuple[str, str], Weights] = {}

    def look(self, deployment: Deployment) -> Weights:
        """See `ports.WeightsStore.look`. A disk that can't be read is told, not raised."""
        try:
            return self._look(deployment)
        except OSError as error:
            return Weights(state=WeightsState.FAILED, error=f"{deployment.source} can't be read: {error.strerror}")

    def _look(self, deployment: Deployment) -> Weights:
        source, key = deployment.source, _key(deployment)
        if not source:
            return Weights(state=WeightsState.PRESENT)
        if pull := self._pulls.get(key):
            return Weights(
                state=WeightsState.PULLING,
                done_bytes=pull.done_bytes,
                total_bytes=pull.total_bytes,
                bytes_per_s=pull.bytes_per_s(),
            )
        found = self._found.get(key)
        if found is not None and found.path and Path(found.path).is_dir():
            return found
        self._found.pop(key, None)
        path = Path(source) if source.startswith("/") else snapshot(self._cache, *key)
        if path is not None and path.is_dir():
            size = snapshot_bytes(path)
            found = Weights(state=WeightsState.PRESENT, path=str(path), done_bytes=size, total_bytes=size)
            self._found[key] = found
            return found
        if source.startswith("/"):
            return Weights(state=WeightsState.FAILED, error=f"{source}: no such folder", permanent=True)
        if error := self._errors.get(key):
            return Weights(state=WeightsState.FAILED, error=str(error), permanent=error.permanent)
        return Weights(state=WeightsState.ABSENT)

    async def pull(self, deployment: Deployment) -> None:
        """See `ports.WeightsStore.pull`. It goes on when a caller is cancelled; `aclose` ends it."""
        key = _key(deployment)
        state = self.look(deployment).state
        if state is WeightsState.PRESENT:
            return
        if deployment.source.startswith("/"):
            raise WeightsMissing(f"{deployment.source}: no such folder")
        pull = self._pulls.get(key)
        if pull is None or pull.task is None:
            pull = self._pulls[key] = _Pull(self._now)
            pull.task = asyncio.create_task(self._run(key, pull))
        await asyncio.shield(pull.task)

    def used(self, deployment: Deployment) -> None:
        """See `ports.WeightsStore.used`. Only what was pulled by its hub id is ours to remove one day."""
        weights = self.look(deployment)
        if weights.path and not deployment.source.startswith("/"):
            mark_used(Path(weights.path))

    async def aclose(self) -> None:
        """Give up what runs; blocks until its threads have noticed."""
        pulls = list(self._pulls.values())
        for pull in pulls:
            pull.cancel.set()
        tasks = [pull.task for pull in pulls if pull.task]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, key: tuple[str, str], pull: _Pull) -> None:
        self._errors.pop(key, None)
        self._found.pop(key, None)  # what comes may be cut short: it is looked at anew
        try:
            async with self._slots:
                await self._fetch_all(key, pull)
        except WeightsError as error:
            self._errors[key] = error
            raise
        finally:
            del self._pulls[key]

    async def _fetch_all(self, key: tuple[str, str], pull: _Pull) -> None:
        try:
            wanted = await asyncio.to_thread(plan, *key, self._environ)
            folder = repo_folder(self._cache, wanted.repo)
            async with _locked(self._cache / ".locks" / folder.name, pull):
                missing = await asyncio.to_thread(self._prepare, wanted, folder, pull)
                await self._fetch_files(wanted, missing, folder, pull)
                await asyncio.to_thread(_link, wanted, folder)
        except Cancelled:
            raise WeightsUnreachable("the pull was given up") from None
        except Refused as refused:
            raise of_status(refused.status, key[0], self._environ) from None
        except OSError as error:
            raise WeightsUnreachable(f"{key[0]} can't be written to {self._cache}: {error.strerror or error}") from None

    def _prepare(self, wanted: Plan, folder: Path, pull: _Pull) -> tuple[HubFile, ...]:
        """Make the folders, sweep junk, count what is there, and check that the rest fits. Blocks."""
        blobs = folder / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        by_blob = {file.blob: file for file in wanted.files}
        _sweep(blobs, keep={part_of(blobs / blob).name for blob in by_blob}, now_unix=time.time())
        missing = tuple(f for f in by_blob.values() if not _whole(blobs / f.blob, f.size))
        parts = {f.blob: min(_part_size(blobs / f.blob), f.size) for f in missing}
        pull.total_bytes = sum(f.size for f in by_blob.values())
        pull.done_bytes = pull.total_bytes - sum(f.size - parts[f.blob] for f in missing)
        needed, free = pull.total_bytes - pull.done_bytes, self._free_bytes(blobs)
        if needed and needed + DISK_MARGIN_BYTES > free:
            self._make_room(needed + DISK_MARGIN_BYTES)
            free = self._free_bytes(blobs)
        if needed and needed + DISK_MARGIN_BYTES > free:
            raise WeightsTooLarge(
                f"{wanted.repo} needs {_gb(needed)} more and {_gb(DISK_MARGIN_BYTES)} to spare,"
                f" but {self._cache} has {_gb(free)} free"
            )
        return missing

    async def _fetch_files(self, wanted: Plan, missing: Iterable[HubFile], folder: Path, pull: _Pull) -> None:
        import httpx

        secret = await asyncio.to_thread(token, self._environ)
        # httpx drops the Authorization field when it is redirected to another host.
        headers = {"authorization": f"Bearer {secret}"} if secret else {}
        slots = asyncio.Semaphore(FILES_AT_ONCE_MAX)
        with httpx.Client(headers=headers) as client:

            async def one(file: HubFile) -> None:
                async with slots:
                    blob = folder / "blobs" / file.blob
                    await asyncio.to_thread(
                        fetch, client, file.url, blob, file.size, on_bytes=pull.add, cancelled=pull.cancel.is_set
                    )

            # Small files first: a missing permission or a wrong token shows before gigabytes have come.
            work = [asyncio.create_task(one(file)) for file in sorted(missing, key=lambda file: file.size)]
            try:
                await asyncio.gather(*work)
            except BaseException:
                pull.cancel.set()
                await asyncio.gather(*work, return_exceptions=True)
                raise


def snapshot(cache: Path, repo: str, revision: str) -> Path | None:
    """The whole snapshot of a revision in the cache, whoever put it there; None when it lacks something."""
    folder = repo_folder(cache, repo)
    ref = folder / "refs" / revision
    with contextlib.suppress(OSError):
        revision = ref.read_text().strip()
    path = folder / "snapshots" / revision
    return path if _complete(path) else None


def repo_folder(cache: Path, repo: str) -> Path:
    """huggingface_hub's name for a model's folder."""
    return cache / ("models--" + repo.replace("/", "--"))


def snapshot_bytes(path: Path) -> int:
    """The bytes of the weight files of a folder. Blocks on a few look-ups."""
    suffixes = {".safetensors", ".bin", ".pt", ".pth", ".gguf"}
    return sum(file.stat().st_size for file in path.iterdir() if file.suffix in suffixes and file.is_file())


def _complete(path: Path) -> bool:
    """As far as can be seen offline: a configuration, weights, every shard of the index, no dangling link."""
    if not path.is_dir():
        return False
    names = {file.name for file in path.iterdir() if file.exists()}
    if len(names) < sum(1 for _ in path.iterdir()):
        return False
    index = path / "model.safetensors.index.json"
    if index.exists():
        try:
            return set(json.loads(index.read_text("utf-8"))["weight_map"].values()) <= names and "config.json" in names
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
    has_weights = any(name.endswith((".safetensors", ".bin", ".pt", ".pth")) for name in names)
    return (has_weights and "config.json" in names) or any(name.endswith(".gguf") for name in names)


def _link(wanted: Plan, folder: Path) -> None:
    """Put the blobs' names in place, the configuration last, then say which commit the revision is."""
    target = folder / "snapshots" / wanted.commit
    for file in sorted(wanted.files, key=lambda file: file.path == "config.json"):
        link = target / file.path
        link.parent.mkdir(parents=True, exist_ok=True)
        up = "../" * (2 + file.path.count("/"))
        with contextlib.suppress(FileNotFoundError):
            link.unlink()
        link.symlink_to(f"{up}blobs/{file.blob}")
    if wanted.revision != wanted.commit:
        ref = folder / "refs" / wanted.revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        fresh = ref.with_name(ref.name + ".new")
        fresh.write_text(wanted.commit)
        fresh.replace(ref)


def _sweep(blobs: Path, *, keep: set[str], now_unix: float) -> None:
    """Remove partial files that nothing will go on with: the library's never are, ours when no longer wanted."""
    for path in blobs.iterdir():
        junk = path.name.endswith(".incomplete") or (path.name.endswith(PART_SUFFIX) and path.name not in keep)
        with contextlib.suppress(FileNotFoundError):
            if junk and now_unix - path.stat().st_mtime > JUNK_AGE_S:
                path.unlink()


@contextlib.asynccontextmanager
async def _locked(folder: Path, pull: _Pull) -> AsyncIterator[None]:
    """The lock among processes on one model's pull. Waits off the event loop, for as long as the other pulls."""
    from filelock import FileLock, Timeout

    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    lock = FileLock(folder / "orchestrator.lock", thread_local=False)
    while True:
        if pull.cancel.is_set():
            raise Cancelled
        try:
            await asyncio.to_thread(lock.acquire, timeout=0)
            break
        except Timeout:
            await asyncio.sleep(LOCK_POLL_S)
    try:
        yield
    finally:
        lock.release()


def _key(deployment: Deployment) -> tuple[str, str]:
    return deployment.source, deployment.revision or "main"


def _whole(blob: Path, size: int) -> bool:
    return blob.exists() and blob.stat().st_size == size


def _part_size(blob: Path) -> int:
    part = part_of(blob)
    return part.stat().st_size if part.exists() else 0


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
