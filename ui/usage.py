"""The page of who used what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

from starlette.requests import Request

from orchestrator.access.key import Key
from orchestrator.model import Scope
from ui import inside
from ui.pages import HOME, Page
from ui.ports import Json
from ui.routes import View

DAYS = (1, 7, 30, 90)
ROWS_MAX = 200
WIDTH, HEIGHT = 1000.0, 120.0
GAP = 0.2
"""Of a bar's room, what is left free."""


class UsagePage:
    """The handler."""

    def __init__(self, unix: Callable[[], float]) -> None:
        self._unix = unix

    def views(self) -> tuple[View, ...]:
        """The one there is. Who may see whose is decided by the API."""
        return (View(f"{HOME}/usage", "GET", tuple(Scope), self._usage),)

    async def _usage(self, request: Request, key: Key) -> Page:
        asked = request.query_params.get("days", "7")
        days = int(asked) if asked in map(str, DAYS) else 7
        today = datetime.fromtimestamp(self._unix(), UTC).date()
        since = {"from": (today - timedelta(days=days - 1)).isoformat()}
        step = "hour" if days == 1 else "day"
        over_time = await _asked(request, since, step)
        by_key = await _asked(request, since, "key")
        by_model = await _asked(request, since, "model")
        tables = [{"title": "By key", **by_key}, {"title": "By model", **by_model}]
        drawn, peak = bars(over_time["rows"], step)
        export = "/api/usage?" + urlencode({"by": f"key,model,{step}", **since})
        data = {"days": days, "totals": over_time["totals"], "over_time": over_time["rows"], "tables": tables}
        more = {"bars": drawn, "peak": peak, "step": step, "export": export}
        return Page(template="usage.html", title="Usage", data=data, more=more)


async def _asked(request: Request, since: dict[str, str], by: str) -> Json:
    found = await inside.call(request, "GET", "/api/usage", query={"by": by, **since})
    rows = sorted(found["data"], key=lambda row: -row["completion_tokens"]) if by in ("key", "model") else found["data"]
    return {"by": found["by"], "rows": rows[:ROWS_MAX], "totals": found["totals"]}


def bars(rows: Sequence[Json], step: str) -> tuple[list[Json], int]:
    """One bar a day or hour: completion tokens on top of prompt tokens; and what the highest comes to. Pure."""
    rows = sorted(rows, key=lambda row: str(row[step]))
    peak = max((row["prompt_tokens"] + row["completion_tokens"] for row in rows), default=0)
    room = WIDTH / max(len(rows), 12)
    drawn = []
    for at, row in enumerate(rows):
        prompt = HEIGHT * row["prompt_tokens"] / max(peak, 1)
        completion = HEIGHT * row["completion_tokens"] / max(peak, 1)
        drawn.append(
            {
                "label": str(row[step]),
                "prompt_tokens": row["prompt_tokens"],
                "completion_tokens": row["completion_tokens"],
                "x": round(at * room, 1),
                "width": round(room * (1 - GAP), 1),
                "prompt_y": round(HEIGHT - prompt, 1),
                "prompt_height": round(prompt, 1),
                "completion_y": round(HEIGHT - prompt - completion, 1),
                "completion_height": round(completion, 1),
            }
        )
    return drawn, peak
