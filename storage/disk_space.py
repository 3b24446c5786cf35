"""Least recently used snapshots are removed when free space falls under a limit, never one in use or pinned.

Only what this orchestrator has used is ever removed: `mark_used` leaves a mark of ours beside the snapshots, and what
has none was put there by another tool and is not touched; nor is a snapshot into which somebody has put a file of his
own. Links are never followed: blobs are found by what the links say, and only in the model's own folder.

A removal begins with one rename, which takes the whole snapshot out of every tool's sight; whatever kills it later
leaves blobs that nobody links to, and the renamed folder, by which `snapshots` finds it again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

USED = ".orchestrator-used"
"""In a model's folder: an empty file for each revision, whose time of change is when it was last used."""
REMOVING = ".orchestrator-removing"
"""In a model's folder: what a removal has taken out of the snapshots, at the same depth, so that links hold."""
_MODELS = "models--"
_PARTS = ("blobs", "snapshots", REMOVING)


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """One revision of a model in the cache."""

    path: Path
    """Its folder; in `REMOVING` when a removal of it broke off."""
    used_at_unix: float | None = None
    """When we last used it; None: never, it is another tool's."""
    blobs: Mapping[str, int] = field(default_factory=dict)
    """The name of each blob that it links to, and the bytes that come free with the last link to it."""

    @property
    def repo(self) -> str:
        """The model's hub id."""
        return self.path.parts[-3].removeprefix(_MODELS).replace("--", "/")

    @property
    def removing(self) -> bool:
        """Whether a removal of it began: it is gone for everybody, but not all of its bytes are free."""
        return self.path.parts[-2] == REMOVING


def choose(
    snapshots: Sequence[Snapshot], *, free_bytes: int, free_bytes_min: int, keep: Collection[str]
) -> tuple[Snapshot, ...]:
    """What to remove, in this order, until `free_bytes_min` are free. Pure.

    `snapshots` are all of the cache, so that a blob that two of them share counts as freed with the last one. `keep`
    are those in use or pinned: a snapshot's folder as in `Weights.path`, or a hub id for all of its revisions.

    1. What an interrupted removal left always goes: it is of no use to anybody.
    2. Enough is free: nothing else.
    3. Not enough: the least recently used first, until it is; all that may go when it never is.
    4. One of these whose blobs are all held by others stays: it would free nothing.
    """
    broken_off = [each for each in snapshots if each.removing]
    may_go = [each for each in snapshots if _may_go(each, keep)]
    holders = Counter((each.repo, blob) for each in snapshots for blob in each.blobs)
    free = free_bytes + sum(_let_go(each, holders) for each in broken_off)
    going = []
    for each in sorted(may_go, key=lambda each: (each.used_at_unix or 0.0, str(each.path))):
        if free >= free_bytes_min:
            break
        free += _let_go(each, holders)
        going.append(each)
    useful = [each for each in going if any(not holders[each.repo, blob] for blob in each.blobs)]
    return (*broken_off, *useful)


def _may_go(snapshot: Snapshot, keep: Collection[str]) -> bool:
    if snapshot.removing or snapshot.used_at_unix is None or snapshot.repo in keep:
        return False
    # Compared by its last parts: the same cache may be known by another path to whoever says what is in use.
    return snapshot.path.parts[-3:] not in {PurePosixPath(each).parts[-3:] for each in keep}


def _let_go(snapshot: Snapshot, holders: Counter[tuple[str, str]]) -> int:
    """The bytes that come free when this one lets go of its blobs, too."""
    freed = 0
    for blob, size in snapshot.blobs.items():
        holders[snapshot.repo, blob] -= 1
        freed += 0 if holders[snapshot.repo, blob] else size
    return freed


def snapshots(cache: Path) -> tuple[Snapshot, ...]:
    """All models' snapshots, other tools' and half removed ones, too. Blocks on look-ups.

    A model whose folder can't be read, or changes meanwhile, is left out as a whole.
    """
    found: list[Snapshot] = []
    for folder in _folders(cache):
        if folder.name.startswith(_MODELS) and not any((folder / name).is_symlink() for name in _PARTS):
            with contextlib.suppress(OSError):
                found += [_snapshot(path) for name in _PARTS[1:] for path in _folders(folder / name)]
    return tuple(found)


def _snapshot(path: Path) -> Snapshot:
    repo, blobs, strange = path.parents[1], {}, False
    for entry in _walk(path):
        blob = _blob(entry, repo)
        if blob is None:
            strange = strange or entry.is_symlink() or not entry.is_dir()
            continue
        with contextlib.suppress(FileNotFoundError):
            status = blob.lstat()
            blobs[blob.name] = status.st_size if status.st_nlink == 1 else 0
    used_at = None if strange else _used_at(path)
    return Snapshot(path=path, used_at_unix=used_at, blobs=blobs)


def mark_used(path: Path, *, now_unix: float | None = None) -> None:
    """Note that a snapshot is used now, which also makes it ours to remove later. Lasts; costs one small file.

    For snapshots of models that are configured by their hub id, before an engine is launched on them. A folder that
    is not a snapshot in a hub's cache is left alone; so is a cache that can't be written, from which nothing can be
    removed either.
    """
    if path.parent.name != "snapshots" or not path.parents[1].name.startswith(_MODELS):
        return
    mark, now = _mark(path), time.time() if now_unix is None else now_unix
    with contextlib.suppress(OSError):
        mark.parent.mkdir(exist_ok=True)
        mark.touch()
        os.utime(mark, (now, now))


def remove(snapshot: Snapshot) -> bool:
    """Remove one revision, and finish what broke off before in its model. False: not now, somebody pulls or uses it.

    Blocks. Takes the lock that a pull takes (`storage.weights`) without waiting for it, and does nothing when the
    snapshot was used since it was looked at. Raises OSError where the disk refuses; the next call goes on from there.
    """
    from filelock import FileLock, Timeout

    if snapshot.used_at_unix is None and not snapshot.removing:
        raise ValueError(f"{snapshot.path} is not ours to remove")
    repo = snapshot.path.parents[1]
    locks = repo.parent / ".locks" / repo.name
    locks.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(locks / "orchestrator.lock", thread_local=False).acquire(timeout=0):
            for left in _folders(repo / REMOVING):
                _finish(left)
            if snapshot.removing or not snapshot.path.is_dir():
                return True
            if _snapshot(snapshot.path).used_at_unix != snapshot.used_at_unix:
                return False
            out = repo / REMOVING / snapshot.path.name
            out.parent.mkdir(exist_ok=True)
            snapshot.path.rename(out)  # from here on it is whole nowhere
            _finish(out)
            return True
    except Timeout:
        return False


def _finish(out: Path) -> None:
    """Remove what belonged to a snapshot that was taken out: refs, blobs nobody else links to, links, mark, folder.

    The links go after the blobs, since they are how the next call knows of those. Idempotent.
    """
    repo = out.parents[1]
    if not (repo / "snapshots" / out.name).exists():  # pulled again since
        for ref in [path for path in _walk(repo / "refs") if path.is_file() and not path.is_symlink()]:
            if ref.read_bytes().strip() == out.name.encode():
                ref.unlink()
        _mark(out).unlink(missing_ok=True)
    entries = list(_walk(out))
    others = {blob.name for path in _folders(repo / "snapshots") for blob in _blobs(path)}
    for blob in _blobs(out):
        if blob.name not in others:
            blob.unlink(missing_ok=True)
    for entry in reversed(entries):  # what a folder holds before the folder
        if entry.is_symlink():
            entry.unlink(missing_ok=True)
        elif entry.is_dir():
            _remove_empty(entry)
    _remove_empty(out)
    _remove_empty(out.parent)


def _blobs(path: Path) -> list[Path]:
    found = (_blob(entry, path.parents[1]) for entry in _walk(path))
    return [blob for blob in found if blob is not None]


def _blob(entry: Path, repo: Path) -> Path | None:
    """The blob that a link names, by its text alone; None when it is no link, or one to anywhere else."""
    if not entry.is_symlink():
        return None
    target = Path(os.path.normpath(entry.parent / entry.readlink()))
    return target if target.parent == Path(os.path.normpath(repo / "blobs")) else None


def _walk(folder: Path) -> Iterator[Path]:
    """All below a folder, each folder before what it holds; links are named, never followed.

    Raises OSError for what can't be listed: a snapshot that seems empty seems to need no blobs.
    """
    if not folder.is_symlink():
        for root, folders, files in os.walk(folder, onerror=_unless_gone):
            yield from (Path(root, name) for name in (*folders, *files))


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _folders(parent: Path) -> list[Path]:
    """The real folders in a folder; none when it is not there."""
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir() and not path.is_symlink())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _mark(path: Path) -> Path:
    return path.parents[1] / USED / path.name


def _used_at(path: Path) -> float | None:
    try:
        return _mark(path).stat().st_mtime
    except FileNotFoundError:
        return None


def _remove_empty(folder: Path) -> None:
    """Somebody's file in it keeps it."""
    with contextlib.suppress(OSError):
        folder.rmdir()
