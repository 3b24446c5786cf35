"""Addresses of servers in one form, and the names of models: who stands and who answers for whom."""

from __future__ import annotations

import pytest

from orchestrator.errors import ConfigError
from orchestrator.servers.endpoint import Endpoint, normal_url
from orchestrator.servers.names import chains, check_aliases


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("http://gpu-1:8081", "http://gpu-1:8081"),
        ("HTTP://GPU-1:8081/", "http://gpu-1:8081"),
        ("http://gpu-1:80", "http://gpu-1"),
        ("https://host:443/llm/v1", "https://host/llm"),
        ("https://host:443/llm/v1/", "https://host/llm"),
        ("https://host/v1", "https://host"),
        ("https://host/dev1", "https://host/dev1"),
        ("http://my_service.ns.svc.cluster.local.:8000", "http://my_service.ns.svc.cluster.local.:8000"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
        ("http://127.0.0.1", "http://127.0.0.1"),
    ],
)
def test_each_server_has_one_address(given: str, normal: str) -> None:
    assert normal_url(given) == normal
    assert normal_url(normal) == normal


@pytest.mark.parametrize(
    "url",
    [
        *("", "gpu-1:8081", "ftp://host", "http://", "http:///v1", "file:///etc/passwd", "http://host:0", "http://a b"),
        *("http://user:pass@host", "http://host?x=1", "http://host#x", "http://host/../etc", "http://host/%2e%2e"),
        *(
            "http://host:99999",
            "http://host\r\nx: y",
            "http://ho\nst",
            "http://é",
            "http://-a",
            "http://[::1",
            "http://h//x",
        ),
        "http://" + "a" * 600,
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        normal_url(url)
    assert "pass" not in str(caught.value).replace("no password", "")


def test_parts_of_an_address() -> None:
    endpoint = Endpoint(url=normal_url("https://[fd00::1]:8443/llm/v1"), key="secret")
    assert (endpoint.secure, endpoint.host, endpoint.port) == (True, "fd00::1", 8443)
    assert (endpoint.authority, endpoint.base) == ("[fd00::1]:8443", "/llm")
    assert Endpoint(url="http://a").port == 80
    assert "secret" not in repr(endpoint)


def test_an_alias_stands_for_one_model() -> None:
    check_aliases({"a": ("x", "y"), "b": ("z",)})
    with pytest.raises(ConfigError, match=r'models."b".aliases: .x. stands for .a. already'):
        check_aliases({"a": ("x",), "b": ("x",)})
    with pytest.raises(ConfigError, match=r'models."b".aliases: .a. is a model itself'):
        check_aliases({"a": (), "b": ("a",)})


def test_who_answers_for_whom_in_order() -> None:
    own = {"a": ("b", "e"), "b": ("c", "d"), "c": (), "d": ("e",), "e": ()}
    assert chains(own) == {"a": ("b", "c", "d", "e"), "b": ("c", "d", "e"), "c": (), "d": ("e",), "e": ()}


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"a": ("a",)}, 'models."a".fallback goes round in a circle: a → a'),
        ({"a": ("b",), "b": ("c",), "c": ("b",)}, "circle: b → c → b"),
        ({"acme/large": ("acme/smal",), "acme/small": ()}, 'no models."acme/smal" (did you mean acme/small?)'),
    ],
)
def test_circles_and_strangers_are_refused(own: dict[str, tuple[str, ...]], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        chains(own)
    assert said in str(caught.value)
