"""Progress on a terminal; nothing where there is none, so that logs and pipes stay clean."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from orchestrator.cli.text import printable

NAME_CHARS = 40


@contextlib.contextmanager
def bytes_bar(name: str, total: int | None, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar of bytes, their rate and the time left, gone at the end. Yields what sets how many are done."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True, highlight=False)
    if quiet or not console.is_terminal:
        yield lambda _: None
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    shown = TextColumn("{task.description}", markup=False)
    with Progress(shown, *columns, console=console, transient=True) as progress:
        task = progress.add_task(printable(name)[:NAME_CHARS], total=total)
        yield lambda done: progress.update(task, completed=done)


@contextlib.contextmanager
def count_bar(what: str, total: int, *, quiet: bool) -> Iterator[Callable[[float, str], None]]:
    """A bar of things done out of `total`, gone at the end. Yields what sets how many, and which one is next."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False)
    if quiet or not console.is_terminal:
        yield lambda done, name: None
        return
    shown = TextColumn("{task.fields[count]} {task.description}", markup=False)
    with Progress(shown, BarColumn(), TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=total, count="")

        def update(done: float, name: str) -> None:
            count = f"{int(done)} of {total} {what}"
            progress.update(task, completed=done, description=printable(name)[:NAME_CHARS], count=count)

        yield update
