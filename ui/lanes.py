"""From what the API shows of servers to what their page says. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ui.ports import Json

BAR = 100
"""The width of a bar, in its own units."""
FAULTS = {
    "refused": "takes no connections",
    "silent": "does not answer",
    "broken": "breaks off before it answers",
    "errors": "answers with errors",
    "slow": "much slower than the others",
}
"""What opened a breaker, in words."""


def found(models: Sequence[Json], loads: Sequence[Json], endpoints: Sequence[Json]) -> list[Json]:
    """Each model that has servers or endpoints: ``{"model", "static", "servers", "endpoints"}``. A server is what
    ``/load-stats`` says of it, with its phase, where it is and its error; what is not known is None."""
    told = {load["replica"]: load for load in loads}
    each = [
        {
            "model": model["id"],
            "static": model["engine"] == "static",
            "servers": [_server(replica, told.get(replica["id"])) for replica in model["replicas"]],
            "endpoints": [endpoint for endpoint in endpoints if endpoint["model"] == model["id"]],
        }
        for model in models
    ]
    return [one for one in each if one["servers"] or one["static"]]


def totals(found: Sequence[Json]) -> Json:
    """All servers in a few numbers."""
    servers = [server for model in found for server in model["servers"]]
    return {
        "servers": len(servers),
        "in_rotation": sum(server["in_rotation"] for server in servers),
        "failed": sum(server["phase"] == "failed" or server["breaker"] == "open" for server in servers),
        **{name: sum(server[name] or 0 for server in servers) for name in ("in_flight", "running", "waiting")},
    }


def groups(found: Sequence[Json], now_unix: float) -> list[Json]:
    """Each model's part of the page."""
    return [
        {
            "model": one["model"],
            "static": one["static"],
            "servers": [_row(server, now_unix) for server in one["servers"]],
            "endpoints": [_endpoint(endpoint) for endpoint in one["endpoints"]],
        }
        for one in found
    ]


def gateways(views: Sequence[Json], now_unix: float) -> list[Json]:
    """The gateways; since when each is known, so that it stays the same."""
    kept = ("name", "address", "in_flight", "current")
    return [
        {
            **{name: view[name] for name in kept},
            "since_unix": round(now_unix - view["since_s"]),
            "heard_unix": round(now_unix - view["heard_s"], 1),
        }
        for view in views
    ]


def _server(replica: Json, load: Json | None) -> Json:
    names = ("capacity", "utilisation", "weight", "load", "running", "waiting", "cache_use", "fault", "retry_s")
    known = load or {"breaker": "closed", "failures": 0, "in_rotation": False}
    return {
        "id": replica["id"],
        "phase": str(replica["phase"]),
        "endpoint": replica["endpoint"],
        "host": replica["host"],
        "gpus": list(replica["gpus"]),
        "error": replica["error"],
        "in_flight": replica["in_flight"],
        **{name: known.get(name) for name in names},
        **{name: known[name] for name in ("breaker", "failures", "in_rotation")},
    }


def _row(server: Json, now_unix: float) -> Json:
    retry_s = server["retry_s"]
    fault = FAULTS.get(str(server["fault"]), "") if server["fault"] else ""
    return {
        **{name: value for name, value in server.items() if name not in ("retry_s", "fault", "weight")},
        "breaker": str(server["breaker"]),
        "cause": server["error"] or fault,
        "retry_unix": round(now_unix + retry_s, 1) if retry_s else None,
        "bar": None if server["utilisation"] is None else round(BAR * min(server["utilisation"], 1.0)),
        "cache_bar": None if server["cache_use"] is None else round(BAR * server["cache_use"]),
    }


def _endpoint(view: Json) -> Json:
    """One endpoint, and what may be done to it."""
    return {
        "id": view["id"],
        "url": view["url"],
        "added": view["from"] == "api",
        "draining": view["draining"],
        "servers": len(view["servers"]),
        "error": view["error"],
    }
