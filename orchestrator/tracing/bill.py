"""A request's way as it is traced: who wants it, when, and the bill that keeps the times.

Both ways of a request, `proxy` and `express`, admit it first, then open its bill, then write the head to its engine,
all in one context (`contextvars`): that is where these three find each other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Protocol

from orchestrator import wire
from orchestrator.access.auth import Admission
from orchestrator.access.key import Key
from orchestrator.activator import Route
from orchestrator.balance.lane import Lane
from orchestrator.metering.gate import Leave
from orchestrator.metering.meter import Bill, Meter, Outcome
from orchestrator.metering.tap import Tokens
from orchestrator.metrics import ModelMetrics
from orchestrator.model import Deployment, Scope, Track
from orchestrator.reader import Peek
from orchestrator.tracing.context import Context, parent_of, passed_on
from orchestrator.tracing.spans import HOLD_S_MIN, Ended, Hold, Span, Visit, request_spans
from orchestrator.upstream import Headers


class Sink(Protocol):
    """Takes spans."""

    boot: str
    """Tells this run's starts from another's; see `context.start_context`."""

    def samples(self, trace_id: int, parent: Context | None) -> bool:
        """Whether a trace is kept, as the sampler says. Cheap."""

    def export(self, spans: tuple[Span, ...]) -> None:
        """Send them some time soon, or drop them where too many wait. Does not block."""


class Arrival:
    """A request that has been admitted."""

    __slots__ = ("admitted_at", "arrived_at", "engine", "headers", "parent")

    def __init__(self, headers: Headers, arrived_at: float, admitted_at: float) -> None:
        self.headers = headers
        self.arrived_at = arrived_at
        self.admitted_at = admitted_at
        self.parent = parent_of(headers)
        self.engine: Context | None = None
        """The span of its engine, once its bill is open."""


_IN_HAND: ContextVar[Arrival] = ContextVar("orchestrator.tracing.arrival")


class TimedAdmission:
    """Admits as another does, and notes when. Implements `auth.Admission`."""

    def __init__(self, keys: Admission, monotonic: Callable[[], float]) -> None:
        self._keys = keys
        self._now = monotonic

    def admit(self, headers: Headers, *scopes: Scope) -> Key:
        """See `auth.Admission.admit`."""
        arrived_at = self._now()
        key = self._keys.admit(headers, *scopes)
        _IN_HAND.set(Arrival(headers, arrived_at, self._now()))
        return key


def request_head(
    path: bytes, query: bytes, authority: bytes, headers: Headers, request_id: bytes, size: int, end: bytes = b"\r\n"
) -> bytes:
    """`wire.request_head`, with the request's span at its engine as what the engine's own spans are to hang on."""
    arrival = _IN_HAND.get()
    if arrival.engine is not None:
        headers = passed_on(headers, arrival.engine, continued=arrival.parent is not None)
    return wire.request_head(path, query, authority, headers, request_id, size, end)


def new_id() -> int:
    """A span's; random as the SDK's own are."""
    return random.getrandbits(64) or 1


class _Visit:
    """At an engine, so far."""

    __slots__ = ("began_at", "ended_at", "first_byte_at", "replica", "status")

    def __init__(self, replica: str, began_at: float) -> None:
        self.replica = replica
        self.began_at = began_at
        self.ended_at: float | None = None
        self.first_byte_at: float | None = None
        self.status = 0


class TracedBill(Bill):
    """A bill that tells its spans when it is closed."""

    __slots__ = (
        "_arrival",
        "_free_at",
        "_holds",
        "_now",
        "_path",
        "_root",
        "_routes",
        "_sink",
        "_told",
        "_took",
        "_visits",
    )

    def __init__(
        self,
        meter: Meter,
        key: Key,
        deployment: Deployment,
        leave: Leave | None,
        asked: Peek,
        body_bytes: int,
        now: float,
        *,
        sink: Sink,
        routes: Callable[[], Mapping[str, Route]],
    ) -> None:
        super().__init__(meter, key, deployment, leave, asked, body_bytes, now)
        self._sink = sink
        self._routes = routes
        self._now = meter.monotonic
        self._arrival = arrival = _IN_HAND.get()
        self._free_at = now
        """Since when it has neither been at an engine nor in a wait that is told."""
        parent = arrival.parent
        trace_id = parent.trace_id if parent is not None else random.getrandbits(128) or 1
        sampled = sink.samples(trace_id, parent)
        self._root = Context(trace_id, new_id(), sampled)
        arrival.engine = Context(trace_id, new_id(), sampled)
        self._path = ""
        self._holds: list[Hold] = []
        self._visits: list[_Visit] = []
        self._took = Tokens()
        self._told = False

    # --- the times ---

    def ask(self, target: bytes, body: bytes, asked: Peek) -> bytes:
        """See `Bill.ask`."""
        self._path = target.decode()
        return super().ask(target, body, asked)

    def stood(self, seconds: float) -> None:
        """See `Bill.stood`."""
        super().stood(seconds)
        now = self._now()
        self._hold(now - seconds, now)

    def enter(self, lane: Lane) -> None:
        """See `Bill.enter`."""
        super().enter(lane)
        self._visits.append(_Visit(lane.replica, self._now()))

    def leave(self) -> None:
        """See `Bill.leave`."""
        super().leave()
        if self._visits and self._visits[-1].ended_at is None:
            self._free_at = self._visits[-1].ended_at = self._now()

    def head(self, status: int, *, sized: bool) -> None:
        """See `Bill.head`."""
        super().head(status, sized=sized)
        self._visits[-1].first_byte_at, self._visits[-1].status = self._now(), status

    # --- the end ---

    def close(self, outcome: Outcome) -> None:
        """See `Bill.close`."""
        super().close(outcome)
        if self._told:
            return
        self._told = True
        if self._root.sampled:
            self._tell(outcome, self._now())

    def withdraw(self) -> None:
        """See `Bill.withdraw`: it is traced on the other way."""
        self._told = True
        super().withdraw()

    def _tell(self, outcome: Outcome, now: float) -> None:
        away = self._visits and self._visits[-1].ended_at is None
        if outcome in (Outcome.REFUSED, Outcome.CANCELLED) and not away and now - self._free_at > HOLD_S_MIN:
            self._hold(self._free_at, now)  # it was let go by nobody
        if outcome is Outcome.OK and self._tap is not None and self._tap.broken:
            outcome = Outcome.ERROR
        arrival = self._arrival
        assert arrival.engine is not None
        ended = Ended(
            root=self._root,
            parent=arrival.parent,
            engine=arrival.engine,
            path=self._path,
            model=self.deployment.name,
            provider=self.deployment.engine.value,
            key=self.key.name,
            stream=self.streamed,
            cold=self.cold,
            arrived_at=arrival.arrived_at,
            admitted_at=arrival.admitted_at,
            routed_at=self.began_at,
            ended_at=now,
            holds=tuple(self._holds),
            visits=tuple(_whole(visit, now) for visit in self._visits),
            outcome=outcome.value,
            tokens=self._took,
        )
        self._sink.export(request_spans(ended, self._sink.boot, new_id))

    def _tokens(self, outcome: Outcome, metrics: ModelMetrics) -> tuple[Tokens, bool]:
        found = super()._tokens(outcome, metrics)
        self._took = found[0]
        return found

    def _hold(self, began_at: float, ended_at: float) -> None:
        route = self._routes().get(self.deployment.name)
        track: Track | None = None if route is None else route.track
        self._holds.append(Hold(began_at=began_at, ended_at=ended_at, track=track))
        self._free_at = ended_at


def _whole(visit: _Visit, now: float) -> Visit:
    return Visit(
        replica=visit.replica,
        began_at=visit.began_at,
        ended_at=now if visit.ended_at is None else visit.ended_at,
        first_byte_at=visit.first_byte_at,
        status=visit.status,
    )
