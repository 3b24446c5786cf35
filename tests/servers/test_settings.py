"""Static models in the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config import deployments, load
from orchestrator.errors import ConfigError
from orchestrator.model import Deployment
from orchestrator.servers.added import Changes, with_added
from orchestrator.servers.endpoint import Endpoint, HealthRules
from orchestrator.servers.state import endpoint_id


def read(folder: Path, text: str, **environ: str) -> dict[str, Deployment]:
    (folder / "orchestrator.toml").write_text(text)
    return deployments(load(folder=folder, environ={}), folder=folder, environ=environ)


def test_a_pool(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        [defaults]
        health_interval_s = 3
        [models."acme/pool"]
        engine = "static"
        endpoints = [{ url = "http://gpu-1:8081/v1", max_concurrent_requests = 3, key_env = "GPU_KEY" },
                     { url = "https://h/llm", model = "there", weight = 2 }]
        aliases = ["short"]
        fallback = ["acme/other"]
        health_timeout_s = 1
        [models."acme/other"]
        engine = "static"
        endpoints = []
        """,
        GPU_KEY="sk-1",
    )["acme/pool"]
    assert found.endpoints == (
        Endpoint(url="http://gpu-1:8081", max_concurrent_requests=3, key="sk-1"),
        Endpoint(url="https://h/llm", model="there", weight=2.0),
    )
    assert (found.aliases, found.fallback) == (("short",), ("acme/other",))
    assert found.health == HealthRules(interval_s=3, timeout_s=1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ('engine = "static"', 'models."a".endpoints goes with engine = "static"'),
        ('engine = "command"\ncommand = ["x"]\nendpoints = []', 'models."a".endpoints goes with'),
        ("endpoints = [{ ur = 'http://h' }]", "endpoints.0.ur: unknown key (did you mean url?)"),
        ("endpoints = [{ url = 'ftp://secret' }]", "endpoints.0.url: an address is http(s)://"),
        ("endpoints = [{ url = 'http://u:secret@h' }]", "no user and no password"),
        ("endpoints = [{ url = 'http://h' }, { url = 'http://H:80/v1' }]", "endpoints.1.url: it stands there twice"),
        ("endpoints = [{ url = 'http://h', key = 'secret key' }]", "endpoints.0.key"),
        ("endpoints = [{ url = 'http://h', key = 'secret', key_env = 'A' }]", "key or key_env, not both"),
        ("endpoints = [{ url = 'http://h', key_env = 'NOT_SET' }]", "endpoints.0.key_env: the environment has no"),
        ("endpoints = [{ url = 'http://h', weight = 0 }]", "endpoints.0.weight"),
        ("endpoints = []\nhealth_intervall_s = 1", "unknown key (did you mean health_interval_s?)"),
        ("endpoints = []\nhealth_interval_s = 0", "health_interval_s"),
        ("endpoints = []\naliases = ['../x']", "aliases"),
        ("endpoints = []\naliases = ['a']", "'a' is a model itself"),
        ("endpoints = []\nfallback = ['b']", 'models."a".fallback: there is no models."b"'),
    ],
)
def test_mistakes_are_named_and_secrets_are_not(tmp_path: Path, settings: str, said: str) -> None:
    engine = "" if "engine" in settings else 'engine = "static"\n'
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, f'[models."a"]\n{engine}{settings}\n')
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_what_was_added_comes_after_what_is_configured(tmp_path: Path) -> None:
    static = read(tmp_path, '[models."a"]\nengine = "static"\nendpoints = [{ url = "http://one" }]\n')
    one, two = Endpoint(url="http://one"), Endpoint(url="http://two", key="k")
    changes = Changes(
        added={"a": (two, Endpoint(url="http://one", weight=5)), "gone": (two,)},
        drained=frozenset({endpoint_id("a", one)}),
    )
    found = with_added(static, changes)["a"].endpoints
    assert [(e.url, e.added, e.draining, e.weight) for e in found] == [
        ("http://one", False, True, 1.0),
        ("http://two", True, False, 1.0),
    ]
