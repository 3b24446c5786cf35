"""``GET /api/usage``: who used what."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.access.auth import KeyRing
from orchestrator.access.key import Key
from orchestrator.errors import ApiError
from orchestrator.json_response import Json
from orchestrator.metering.usage import GROUPS, HOUR_S, Counts, Query, grouped
from orchestrator.metering.usage_book import UsageBook
from orchestrator.model import Scope
from orchestrator.ports import UsageStore

PARAMETERS = ("by", "from", "to", "key", "model", "format")
BY_DEFAULT = "key,model,day"
ROWS_MAX = 100_000
"""Of an answer, before models that the key may not see are left out."""
ENDLESS_HOUR = 2**31 - 1

TableFile = Callable[[Mapping[str, list[Any]], str], bytes]
_MEDIA = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}


class UsageApi:
    """A key with `monitor` sees everybody's rows, any other its own."""

    def __init__(self, *, book: UsageBook, store: UsageStore, keys: KeyRing, table_file: TableFile) -> None:
        self._book = book
        self._store = store
        self._keys = keys
        self._table_file = table_file

    def routes(self) -> list[Route]:
        """The one there is."""
        return [Route("/api/usage", self._usage)]

    async def _usage(self, request: Request) -> Response:
        key = self._keys.admit(request.scope["headers"], *Scope)
        query, kind = _query(request, key), request.query_params.get("format", "json")
        if kind != "json" and kind not in _MEDIA:
            raise ApiError(400, "format is json, csv or parquet", param="format", code="invalid_value")
        sums = await self._sums(query, key)
        if kind != "json":
            content = await asyncio.to_thread(self._table_file, _columns(query.by, sums), kind)
            headers = {"content-disposition": f'attachment; filename="usage.{kind}"'}
            return Response(content, media_type=_MEDIA[kind], headers=headers)
        totals = Counts()
        for counts in sums.values():
            totals.add(counts)
        data = [{**dict(zip(query.by, group, strict=True)), **asdict(counts)} for group, counts in sums.items()]
        return Json({"object": "list", "by": list(query.by), "data": data, "totals": asdict(totals)})

    async def _sums(self, query: Query, key: Key) -> dict[tuple[str, ...], Counts]:
        """What has been counted until now is among them."""
        if not await self._book.flush():
            raise ApiError(503, self._book.error, code="storage_unavailable", headers={"retry-after": "5"})
        rows = await self._store.rows(query, rows_max=ROWS_MAX + 1)
        if len(rows) > ROWS_MAX:
            raise ApiError(400, f"more than {ROWS_MAX} rows: ask for less time, or by less", code="too_many_rows")
        return grouped(((place, counts) for place, counts in rows if key.may_use(place.model)), query.by)


def _query(request: Request, key: Key) -> Query:
    asked = request.query_params
    if unknown := asked.keys() - set(PARAMETERS):
        text = f"there is no {min(unknown)[:40]!r}; there are {', '.join(PARAMETERS)}"
        raise ApiError(400, text, param=min(unknown)[:40], code="unknown_parameter")
    by = tuple(name for name in asked.get("by", BY_DEFAULT).split(",") if name)
    if not set(by) <= set(GROUPS) or len(set(by)) < len(by) or {"day", "hour"} <= set(by):
        text = "by is some of key, model, and day or hour, with commas"
        raise ApiError(400, text, param="by", code="invalid_value")
    all_keys = Scope.MONITOR in key.scopes or Scope.ADMIN in key.scopes
    if not all_keys and asked.get("key", key.name) != key.name:
        raise ApiError(403, "this key sees its own usage only", code="insufficient_scope", param="key")
    return Query(
        by=by,
        first_hour=_hour(asked.get("from"), "from", 0, math.floor),
        end_hour=_hour(asked.get("to"), "to", ENDLESS_HOUR, math.ceil),
        key=asked.get("key") if all_keys else key.name,
        model=asked.get("model"),
    )


def _hour(text: str | None, param: str, default: int, rounded: Callable[[float], int]) -> int:
    """The hour of a time: an hour that `from` or `to` lies in counts whole, one that begins at `to` does not."""
    if text is None:
        return default
    try:
        when = datetime.fromisoformat(text)
        unix = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        message = f"{param} is a day or a time as 2027-01-31 or 2027-01-31T12:00:00Z"
        raise ApiError(400, message, param=param, code="invalid_value") from None
    return min(max(rounded(unix / HOUR_S), 0), ENDLESS_HOUR)


def _columns(by: tuple[str, ...], sums: Mapping[tuple[str, ...], Counts]) -> dict[str, list[Any]]:
    """The same as columns, for a file."""
    places = {name: [group[at] for group in sums] for at, name in enumerate(by)}
    rows = [asdict(counts) for counts in sums.values()]
    return places | {name: [row[name] for row in rows] for name in asdict(Counts())}
