"""The commands for files, vector stores and searches, and their options."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.options import Config, Json, Url, Yes

files_app = typer.Typer(help="Put, list, get and remove files.", no_args_is_help=True, rich_markup_mode=None)
stores_app = typer.Typer(help="Make, list, fill and remove vector stores.", no_args_is_help=True, rich_markup_mode=None)

Store = Annotated[str, typer.Argument(help="A store's id or name.")]
Wait = Annotated[bool, typer.Option(help="Wait until the store has read it.")]


@files_app.command("put")
def files_put(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Files; - is the standard input.")],
    purpose: Annotated[str, typer.Option(help="What it is for: assistants, batch, user_data, …")] = "assistants",
    name: Annotated[str | None, typer.Option(help="What it is called; for one file.")] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="All files below a folder.")] = False,
    store: Annotated[str | None, typer.Option(help="Put it into this store, too: an id or a name.")] = None,
    expires_after: Annotated[str | None, typer.Option(help="Remove it after this long, as 12h or 7d.")] = None,
    wait: Wait = True,
    as_json: Json = False,
    url: Url = None,
    config: Config = None,
) -> None:
    """Send files; exit code 1 when any was not sent, or not read by the store."""
    from orchestrator.cli import files, remote

    code = files.put(
        remote.connect(url, config),
        paths,
        purpose=purpose,
        name=name,
        recursive=recursive,
        store=store,
        expires_after=expires_after,
        wait=wait,
        as_json=as_json,
    )
    raise typer.Exit(code)


@files_app.command("ls")
def files_ls(
    purpose: Annotated[str | None, typer.Option(help="Only those of this purpose.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many; default: all.")] = None,
    as_json: Json = False,
    url: Url = None,
    config: Config = None,
) -> None:
    """List the files, newest first."""
    from orchestrator.cli import files, remote

    files.ls(remote.connect(url, config), purpose=purpose, limit=limit, as_json=as_json)


@files_app.command("get")
def files_get(
    id: Annotated[str, typer.Argument(help="A file's id.")],
    output: Annotated[str | None, typer.Option("--output", "-o", help="Where to; - is the standard output.")] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace what is there.")] = False,
    as_json: Json = False,
    url: Url = None,
    config: Config = None,
) -> None:
    """Bring a file here, under its own name made safe."""
    from orchestrator.cli import files, remote

    files.get(remote.connect(url, config), id, output, force=force, as_json=as_json)


@files_app.command("rm")
def files_rm(
    ids: Annotated[list[str], typer.Argument(metavar="ID", help="Files' ids.")],
    yes: Yes = False,
    as_json: Json = False,
    url: Url = None,
    config: Config = None,
) -> None:
    """Remove files for good."""
    from orchestrator.cli import files, remote

    raise typer.Exit(files.rm(remote.connect(url, config), ids, yes=yes, as_json=as_json))


@stores_app.command("ls")
def stores_ls(as_json: Json = False, url: Url = None, config: Config = None) -> None:
    """List the stores, newest first."""
    from orchestrator.cli import remote, stores

    stores.ls(remote.connect(url, config), as_json=as_json)


@stores_app.command("new")
def stores_new(name: str, as_json: Json = False, url: Url = None, config: Config = None) -> None:
    """Make a store; prints its id."""
    from orchestrator.cli import remote, stores

    stores.new(remote.connect(url, config), name, as_json=as_json)


@stores_app.command("rm")
def stores_rm(
    names: Annotated[list[str], typer.Argument(metavar="STORE", help="Stores' ids or names.")],
    yes: Yes = False,
    as_json: Json = False,
    url: Url = None,
    config: Config = None,
) -> None:
    """Remove stores; their files stay."""
    from orchestrator.cli import remote, stores

    raise typer.Exit(stores.rm(remote.connect(url, config), names, yes=yes, as_json=as_json))


@stores_app.command("add")
def stores_add(
    store: Store,
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Files' ids.")],
    wait: Wait = True,
    as_json: Json = False,
    url: Url = None,
    config: Config = None,
) -> None:
    """Put files into a store; exit code 1 when any can't be read."""
    from orchestrator.cli import remote, stores

    raise typer.Exit(stores.add(remote.connect(url, config), store, files, wait=wait, as_json=as_json))


def search(
    store: Store,
    query: str,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=50, help="At most so many passages.")] = 10,
    filters: Annotated[
        list[str] | None, typer.Option("--filter", metavar="KEY=VALUE", help="Only files with this attribute.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Only scores from here up.")] = None,
    as_json: Json = False,
    url: Url = None,
    config: Config = None,
) -> None:
    """Find passages in a store; exit code 1 when nothing is found."""
    from orchestrator.cli import remote
    from orchestrator.cli.search import search as search_store

    code = search_store(
        remote.connect(url, config),
        store,
        query,
        limit=limit,
        filters=filters or [],
        threshold=threshold,
        as_json=as_json,
    )
    raise typer.Exit(code)
