"""The commands for the servers of static models."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.options import Config, Json, Url

endpoints_app = typer.Typer(
    help="List, add, drain and remove the servers of static models.", no_args_is_help=True, rich_markup_mode=None
)
Model = Annotated[str, typer.Argument(help="A static model's id.")]
Server = Annotated[str, typer.Argument(help="An endpoint's id, as `list` shows it, or its address.")]


@endpoints_app.command("list")
def endpoints_list(
    model: Annotated[str | None, typer.Argument(help="Only of this model; default: of all static ones.")] = None,
    as_json: Json = False,
    url: Url = None,
    config: Config = None,
) -> None:
    """Show endpoints, and how each of their servers is."""
    from orchestrator.cli import endpoints, remote

    endpoints.show(remote.connect(url, config), model, as_json=as_json)


@endpoints_app.command("add")
def endpoints_add(
    model: Model,
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="http(s)://host[:port][/base].")],
    max_concurrent_requests: Annotated[int, typer.Option(min=0, help="Most requests at each server; 0: all.")] = 0,
    served_model: Annotated[str, typer.Option(help="What it calls the model; default: the model's id.")] = "",
    weight: Annotated[float, typer.Option(help="Its part of what its capacity would get.")] = 1.0,
    key_file: Annotated[str | None, typer.Option(help="A file with the server's key; - is the standard input.")] = None,
    as_json: Json = False,
    url: Url = None,
    config: Config = None,
) -> None:
    """Add an endpoint, or take one that is drained back in. It is kept over restarts."""
    from orchestrator.cli import endpoints, remote

    body = {
        "url": address,
        "max_concurrent_requests": max_concurrent_requests,
        "model": served_model,
        "weight": weight,
        "key": endpoints.read_key(key_file),
    }
    endpoints.add(remote.connect(url, config), model, body, as_json=as_json)


@endpoints_app.command("drain")
def endpoints_drain(
    model: Model, server: Server, as_json: Json = False, url: Url = None, config: Config = None
) -> None:
    """Send an endpoint no more requests; what it has in hand it finishes."""
    from orchestrator.cli import endpoints, remote

    endpoints.drain(remote.connect(url, config), model, server, as_json=as_json)


@endpoints_app.command("remove")
def endpoints_remove(
    model: Model, server: Server, as_json: Json = False, url: Url = None, config: Config = None
) -> None:
    """Remove an endpoint that was added; one of the configuration is removed there."""
    from orchestrator.cli import endpoints, remote

    endpoints.remove(remote.connect(url, config), model, server, as_json=as_json)
