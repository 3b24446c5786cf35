"""The commands and their options."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orchestrator.cli.document_commands import files_app, search, stores_app
from orchestrator.cli.endpoint_commands import endpoints_app
from orchestrator.cli.options import Config, Json, Url

app = typer.Typer(
    name="orchestrator",
    help="Serverless for self-hosted language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
keys_app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(keys_app, name="keys")
app.add_typer(endpoints_app, name="endpoints")
app.add_typer(files_app, name="files")
app.add_typer(stores_app, name="stores")
app.command()(search)

Model = Annotated[str, typer.Argument(help="A configured model's id.")]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"orchestrator {version('orchestrator')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Serverless for self-hosted language models."""


@app.command()
def gateway(
    controller: Annotated[str, typer.Option(help="The service's URL; its admin key: ORCHESTRATOR_API_KEY.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    descriptor: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run another front door for a service."""
    from orchestrator.cli.gateway import gateway

    gateway(controller, host, port, descriptor)


@app.command()
def serve(
    config: Config = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
) -> None:
    """Run the service."""
    from orchestrator.cli.service import run_service

    flags: dict[str, Any] = {key: value for key, value in (("host", host), ("port", port)) if value is not None}
    run_service(config, {"server": flags})


@app.command()
def demo(
    keep: Annotated[bool, typer.Option(help="Keep the service running at the end.")] = False,
) -> None:
    """First run: a small real model on a real engine of this machine, from cold to an answer and back."""
    from orchestrator.demo.run import run_demo

    raise typer.Exit(run_demo(keep=keep))


@app.command()
def ps(as_json: Json = False, url: Url = None, config: Config = None) -> None:
    """Show the models: phase, progress, requests, when they stop."""
    from orchestrator.cli import remote

    remote.ps(remote.connect(url, config), as_json=as_json)


@app.command()
def top(
    once: Annotated[bool, typer.Option(help="Print one snapshot; so it does where there is no terminal.")] = False,
    as_json: Json = False,
    url: Url = None,
    config: Config = None,
) -> None:
    """Watch models, engines, GPUs, requests and logs live; keys to wake, drain, filter and sort."""
    from orchestrator.cli import remote
    from orchestrator.cli.top import top as show

    show(*remote.where(url, config), once=once, as_json=as_json)


@app.command()
def chat(
    model: Model,
    system: Annotated[str | None, typer.Option(help="What the model is told before the conversation.")] = None,
    remember: Annotated[
        bool, typer.Option(help="Keep prompts in ~/.local/state/orchestrator for the up arrow.")
    ] = True,
    url: Url = None,
    config: Config = None,
) -> None:
    """Talk to a model; with a pipe, answer what stdin asks on stdout."""
    from orchestrator.cli import remote
    from orchestrator.cli.chat import chat as talk

    talk(*remote.where(url, config), model, system=system, remember=remember)


@app.command()
def start(
    model: Model,
    wait: Annotated[bool, typer.Option(help="Wait until it is ready.")] = True,
    as_json: Json = False,
    url: Url = None,
    config: Config = None,
) -> None:
    """Start a model as a request would, and watch it."""
    from orchestrator.cli import remote

    raise typer.Exit(remote.start(remote.connect(url, config), model, wait=wait, as_json=as_json))


@app.command()
def stop(model: Model, as_json: Json = False, url: Url = None, config: Config = None) -> None:
    """Drain a model and stop it; returns when it is gone."""
    from orchestrator.cli import remote

    raise typer.Exit(remote.stop(remote.connect(url, config), model, as_json=as_json))


@app.command()
def pull(model: Model, as_json: Json = False, url: Url = None, config: Config = None) -> None:
    """Fetch a model's weights."""
    from orchestrator.cli import remote

    raise typer.Exit(remote.pull(remote.connect(url, config), model, as_json=as_json))


@app.command()
def logs(
    model: Annotated[str, typer.Argument(help="A model's or a replica's id.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as the engine writes.")] = False,
    tail_kib: Annotated[int, typer.Option("--tail", min=0, max=4096, help="How much of the end, in KiB.")] = 64,
    url: Url = None,
    config: Config = None,
) -> None:
    """Show the log of a model's newest engine, live or gone."""
    from orchestrator.cli import remote

    remote.logs(remote.connect(url, config), model, follow=follow, tail_bytes=tail_kib * 1024)


@app.command()
def usage(
    by: Annotated[str, typer.Option(help="Some of key, model, and day or hour, with commas.")] = "key,model",
    since: Annotated[str | None, typer.Option("--from", help="A day or a time (UTC), as 2027-01-31.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="Likewise; it does not count any more.")] = None,
    key: Annotated[str | None, typer.Option(help="Of this key only.")] = None,
    model: Annotated[str | None, typer.Option(help="Of this model only.")] = None,
    as_json: Json = False,
    url: Url = None,
    config: Config = None,
) -> None:
    """Show who used what: requests, tokens, seconds, GPU-seconds."""
    from orchestrator.cli import remote
    from orchestrator.cli.usage import usage

    query = {"by": by, "from": since, "to": until, "key": key, "model": model}
    usage(remote.connect(url, config), query, as_json=as_json)


@app.command()
def doctor(
    repair: Annotated[bool, typer.Option("--repair", help="Mend what is wrong with stored documents.")] = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Check this machine, the configuration and, while no service runs, the documents; each finding with its remedy."""
    from orchestrator.cli.doctor import run_doctor

    raise typer.Exit(run_doctor(config, as_json=as_json, repair=repair))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def bench(context: typer.Context) -> None:
    """Reproduce the README's figures; see `orchestrator bench --help`."""
    from bench.__main__ import main as bench_main

    raise typer.Exit(bench_main(context.args))


@keys_app.command("new")
def keys_new(
    name: str,
    scope: Annotated[list[str], typer.Option(help="realtime, batch, upload, eval, monitor, admin; repeatable.")],
    model: Annotated[list[str] | None, typer.Option(help="Pattern of models it may use; repeatable.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose files it sees; default: the key's name.")] = None,
    expires: Annotated[str | None, typer.Option(help="As 2027-01-31T00:00:00Z.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="Beyond it 429.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Of prompts and answers; beyond it 429.")] = None,
    max_concurrent: Annotated[int | None, typer.Option(help="Requests at a time, held ones too; then 429.")] = None,
    request_bytes_max: Annotated[int | None, typer.Option(help="Largest request; beyond it 413.")] = None,
    tokens_per_month: Annotated[int | None, typer.Option(help="A budget for each calendar month; then 429.")] = None,
    priority: Annotated[
        int | None, typer.Option(help="Where requests wait for a model: each step up goes twice as often. -10 to 10.")
    ] = None,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Make a key. Its secret is shown this once."""
    from orchestrator.cli.keys import new

    limits = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "max_concurrent": max_concurrent,
        "request_bytes_max": request_bytes_max,
        "tokens_per_month": tokens_per_month,
        "priority": priority,
    }
    given = {field: value for field, value in limits.items() if value is not None}
    new(config, name, scope, tenant=tenant, models=model or [], expires=expires, limits=given, as_json=as_json)


@keys_app.command("list")
def keys_list(as_json: Json = False, config: Config = None) -> None:
    """List the keys, without secrets."""
    from orchestrator.cli.keys import show

    show(config, as_json=as_json)


@keys_app.command("revoke")
def keys_revoke(name: str, config: Config = None) -> None:
    """Remove a key; a running service follows within seconds."""
    from orchestrator.cli.keys import revoke

    revoke(config, name)
