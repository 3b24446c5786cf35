"""The settings: layers, mistakes, sources, ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config import Watched, deployments, load
from orchestrator.errors import ConfigError
from orchestrator.model import EngineKind

ENV = "ORCHESTRATOR_SERVER__PORT"


def test_flag_wins_over_environment_over_dotenv_over_file(tmp_path: Path) -> None:
    def port(**more: object) -> int:
        return load(folder=tmp_path, **{"environ": {}, **more}).server.port  # type: ignore[arg-type]  # any field

    assert port() == 8000
    (tmp_path / "orchestrator.toml").write_text("[server]\nport = 1\n")
    assert port() == 1
    (tmp_path / ".env").write_text(f"{ENV}=2\nUNRELATED=x\n")
    assert port() == 2
    assert port(environ={ENV: "3"}) == 3
    assert port(environ={ENV: "3"}, flags={"server": {"port": 4}}) == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[server]\nprt = 1", "server.prt: unknown key (did you mean port?)"),
        ("[serverr]\nport = 1", "serverr: unknown key (did you mean server?)"),
        ('[models."a"]\nidle_timeout = 1', 'models."a".idle_timeout: unknown key (did you mean idle_timeout_s?)'),
        ("[defaults]\nidle_timeout_s = -1", "defaults.idle_timeout_s"),
        ("[defaults]\nidle_timeout_s = inf", "defaults.idle_timeout_s"),
        ("[activator]\nretry_after_max_s = 500", "activator.retry_after_max_s"),
        ('[models."a"]\nengine = "vlm"', 'models."a".engine'),
        ('[models."a"]\nsource = "not a source"', 'models."a".source'),
        ('[models."a"]\nenv = { "A=B" = "c" }', 'models."a".env'),
        ('[models."a"]\nmin_replicas = 3\nmax_replicas = 2', 'models."a".min_replicas'),
        ('[defaults]\nmin_replicas = 2\n[models."a"]', 'models."a".min_replicas'),
        ('[models."a"]\nmax_replicas = 0', 'models."a".max_replicas'),
        ("not toml", "orchestrator.toml"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "orchestrator.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        deployments(load(folder=tmp_path, environ={}), folder=tmp_path)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "name", ["", "..", "a/../b", "/a", "a/", "-a", "a b", "a\0", "é", "a//b", "a" * 201, "a/b/c/d/e"]
)
def test_hostile_ids_are_refused(tmp_path: Path, name: str) -> None:
    table = f"[models.{name!r}]" if "\0" not in name else '[models."a\\u0000"]'
    (tmp_path / "orchestrator.toml").write_text(table)
    with pytest.raises(ConfigError):
        load(folder=tmp_path, environ={})


def test_sources(tmp_path: Path) -> None:
    (tmp_path / "orchestrator.toml").write_text(
        '[models."org/a"]\n[models."b"]\nsource = "org/b@v1"\n[models."c"]\nsource = "./w"\nidle_timeout_s = 7\n'
        '[models."d"]\nengine = "command"\ncommand = ["x"]\ngpus = 0\n[defaults]\nidle_timeout_s = 9\n'
    )
    found = deployments(load(folder=tmp_path, environ={}), folder=tmp_path)
    assert (found["org/a"].source, found["org/a"].revision, found["org/a"].gpus) == ("org/a", None, None)
    assert (found["b"].source, found["b"].revision) == ("org/b", "v1")
    assert (found["c"].source, found["c"].idle_timeout_s) == (str(tmp_path / "w"), 7)
    assert (found["d"].source, found["d"].engine, found["d"].idle_timeout_s) == ("", EngineKind.COMMAND, 9)


def test_the_target_of_a_replica(tmp_path: Path) -> None:
    (tmp_path / "orchestrator.toml").write_text(
        '[defaults]\nmax_replicas = 3\n[models."a"]\n[models."b"]\nargs = ["--max-num-seqs", "10"]\n'
        '[models."c"]\nargs = ["--max-num-seqs", "10"]\nmax_concurrent = 100\n[models."d"]\ntarget_concurrency = 2.5\n'
    )
    found = deployments(load(folder=tmp_path, environ={}), folder=tmp_path)
    assert [found[name].target_concurrency for name in "abcd"] == [32, 7, 70, 2.5]
    assert {deployment.max_replicas for deployment in found.values()} == {3}


def test_spec_changes_with_what_an_engine_is_started_with(tmp_path: Path) -> None:
    specs = set()
    for extra in ("", 'args = ["-x"]', "idle_timeout_s = 1", 'env = { A = "1" }', "gpus = 2", "priority = 3"):
        (tmp_path / "orchestrator.toml").write_text(f'[models."a"]\n{extra}\n')
        specs.add(deployments(load(folder=tmp_path, environ={}))["a"].spec)
    assert len(specs) == 4  # the time-out and the priority need no new engine


def test_a_watched_file_that_breaks_keeps_the_old(tmp_path: Path) -> None:
    path = tmp_path / "orchestrator.toml"
    path.write_text('[models."a"]\n')
    watched = Watched(path)
    assert watched.refresh() is None
    path.write_text("[models.")
    assert [watched.refresh(), watched.refresh()] == [None, None] and watched.error
    path.write_text('[models."b"]\n[models."c"]\n')
    assert watched.refresh() is None
    fresh = watched.refresh()
    assert fresh is not None and set(fresh) == {"b", "c"} and not watched.error


def test_a_watched_file_caught_empty_in_mid_rewrite_is_not_one_without_models(tmp_path: Path) -> None:
    path = tmp_path / "orchestrator.toml"
    path.write_text('[models."a"]\n')
    watched = Watched(path)
    path.write_text("")
    assert watched.refresh() is None
    path.write_text('[models."a"]\n[models."b"]\n')
    assert watched.refresh() is None
    fresh = watched.refresh()
    assert fresh is not None and set(fresh) == {"a", "b"}
    assert watched.refresh() is None
