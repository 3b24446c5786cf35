"""What each request is let do and what it took: its limits, its tokens, its part of a GPU."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import msgspec

from orchestrator.access.key import Key
from orchestrator.balance.lane import Lane
from orchestrator.errors import ApiError
from orchestrator.metering import stream_usage
from orchestrator.metering.gate import Gate, Leave
from orchestrator.metering.tap import NO_TOKENS, Tap, Tokens
from orchestrator.metering.usage import HOUR_S, Ledger
from orchestrator.metrics import Metrics, ModelMetrics
from orchestrator.model import Deployment
from orchestrator.reader import Peek

BYTES_PER_TOKEN = 4
"""OpenAI's rule of thumb for English text. What is reserved by it is corrected when the answer ends."""
NUMBER_DIGITS_MAX = 9
STREAMS_WITH_OPTIONS = (b"/v1/chat/completions", b"/v1/completions")
"""The paths whose streams report usage only where `stream_options` ask for it."""


class Outcome(StrEnum):
    """How a request ended."""

    OK = "ok"
    ERROR = "error"
    """By the engine's fault, or that of the way to it."""
    CANCELLED = "cancelled"
    """The client left."""
    REFUSED = "refused"
    """Its model was not to be had: come back."""


class Meter:
    """Makes a `Bill` for each request, and keeps the sums. With `ledger` None usage is not kept, nor asked for. `bill`
    makes them, `Bill` by default."""

    def __init__(
        self,
        *,
        gate: Gate,
        ledger: Ledger | None,
        metrics: Metrics,
        monotonic: Callable[[], float],
        unix: Callable[[], float],
        bill: MakeBill | None = None,
    ) -> None:
        self.gate = gate
        self.ledger = ledger
        self.metrics = metrics
        self.monotonic = monotonic
        self.unix = unix
        self._bill = bill or Bill

    def open(self, key: Key, deployment: Deployment, asked: Peek, body_bytes: int) -> Bill:
        """A request's bill. Raises `ApiError` 413 or 429 where the key or the model is at its limits.

        Tokens are reserved by what the body's size and the most that the answer may have tell.
        """
        limits = key.limits
        if limits.request_bytes_max and body_bytes > limits.request_bytes_max:
            message = f"the key's requests have at most {limits.request_bytes_max} bytes"
            raise ApiError(413, message, code="request_too_large")
        by_tokens = limits.tokens_per_minute or limits.tokens_per_month or deployment.limits.tokens_per_minute
        reserved = reserve(asked, body_bytes) if by_tokens else 0
        now = self.monotonic()
        leave = self.gate.enter(key, deployment, reserved, now, self.unix())
        return self._bill(self, key, deployment, leave, asked, body_bytes, now)

    def refused(self, key: Key, model: str) -> None:
        """A request was refused at its limits."""
        if self.ledger is not None:
            self.ledger.counts(key.name, model, int(self.unix() // HOUR_S)).refused += 1


class Bill:
    """One request's. Settled once, by `close` or `withdraw`."""

    __slots__ = (
        "_body_bytes",
        "_closed",
        "_first_at",
        "_gpu_s",
        "_lane",
        "_lane_since",
        "_leave",
        "_meter",
        "_metrics",
        "_tap",
        "_veil",
        "began_at",
        "cold",
        "completion_tokens",
        "deployment",
        "key",
        "streamed",
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
    ) -> None:
        self.began_at = now
        self.key = key
        self.deployment = deployment
        self.cold = False
        """Whether it found its model not ready."""
        self.completion_tokens = 0
        """Of its answer; known once it is closed."""
        self._meter = meter
        self._metrics = meter.metrics.of(deployment.name)
        self._leave = leave
        self._body_bytes = body_bytes
        self.streamed = bool(asked.stream)
        self._closed = False
        self._tap: Tap | None = None
        self._veil: stream_usage.Veil | None = None
        self._first_at = 0.0
        self._lane: Lane | None = None
        self._lane_since = 0.0
        self._gpu_s = 0.0

    # --- on the way to the engine ---

    def ask(self, target: bytes, body: bytes, asked: Peek) -> bytes:
        """The body to send: of a stream, one that asks for its usage."""
        counted = self._meter.ledger is not None and self.deployment.stream_usage
        if asked.stream and counted and target in STREAMS_WITH_OPTIONS:
            body, self._veil = stream_usage.ask(body, bytes(asked.stream_options))
        return body

    def stood(self, seconds: float) -> None:
        """It had to wait for so long for a lane."""
        self._metrics.held_seconds.observe(seconds)

    def enter(self, lane: Lane) -> None:
        """It is at an engine from now on, until `leave`."""
        self._lane = lane
        self._lane_since = lane.enter(self._meter.monotonic())

    def leave(self) -> None:
        """It is not at that engine any more, if it was."""
        if self._lane is not None:
            self._leave_lane(self._meter.monotonic())

    # --- on the way back ---

    def told(self) -> bytes:
        """The ``x-ratelimit-*`` fields of a good answer, as lines of its head."""
        return self._leave.told(self._meter.monotonic()) if self._leave is not None else b""

    def head(self, status: int, *, sized: bool) -> None:
        """The head of its answer is here; `sized`: with a length, so that nothing can be taken out of the body."""
        self._metrics.first_byte_seconds.observe(self._meter.monotonic() - self.began_at)
        if status < 400:
            self._tap = Tap(streamed=self.streamed)
        if sized:
            self._veil = None

    def through(self, data: bytes) -> bytes:
        """The part of a good answer's body that the client sees; may be nothing yet. Call `head` first."""
        tap = self._tap
        if tap is None or not data:
            return data
        if not self._first_at:
            self._first_at = self._meter.monotonic()
        tap.feed(data)
        return self._veil.through(data) if self._veil is not None else data

    def rest(self) -> bytes:
        """What was held back of it; call this at its end."""
        return self._veil.rest() if self._veil is not None else b""

    # --- in the end ---

    def close(self, outcome: Outcome) -> None:
        """It has ended; later calls do nothing. A stream that ended whole but reports an error has not gone well."""
        if self._closed:
            return
        self._closed = True
        meter, metrics = self._meter, self._metrics
        now = meter.monotonic()
        if self._lane is not None:
            self._leave_lane(now)
        seconds = now - self.began_at
        tokens, estimated = self._tokens(outcome, metrics)
        self.completion_tokens = tokens.completion
        if outcome is Outcome.OK and self._tap is not None and self._tap.broken:
            outcome = Outcome.ERROR
        metrics.ended(outcome, seconds)
        if self._leave is not None:
            self._leave.settle(tokens.prompt + tokens.completion, now)
        if meter.ledger is not None:
            self._book(meter.ledger, outcome, tokens, seconds, estimated=estimated)

    def _book(self, ledger: Ledger, outcome: Outcome, tokens: Tokens, seconds: float, *, estimated: bool) -> None:
        unix = self._meter.unix()
        counts = ledger.counts(self.key.name, self.deployment.name, int(unix // HOUR_S))
        if self.cold:
            counts.cold_starts += 1
        if outcome is Outcome.REFUSED:
            counts.refused += 1
            return
        counts.requests += 1
        if outcome is not Outcome.OK:
            counts.errors += outcome is Outcome.ERROR
            counts.cancelled += outcome is Outcome.CANCELLED
        if estimated:
            counts.estimated += 1
        if tokens.cached:
            counts.cached_tokens += tokens.cached
        if self._gpu_s:
            counts.gpu_seconds += self._gpu_s
        counts.prompt_tokens += tokens.prompt
        counts.completion_tokens += tokens.completion
        counts.seconds += seconds
        if self._first_at:
            counts.first_token_seconds += self._first_at - self.began_at
        self._meter.gate.spend(self.key.name, tokens.prompt + tokens.completion, unix)

    def withdraw(self) -> None:
        """It goes another way, and is counted there."""
        self._closed = True
        self.leave()
        if self._leave is not None:
            self._leave.take_back(self._meter.monotonic())

    def refuse(self) -> None:
        """Its model was not to be had: it counts for nothing at its limits."""
        if self._leave is not None:
            self._leave.take_back(self._meter.monotonic())
        self.close(Outcome.REFUSED)

    def _leave_lane(self, now: float) -> None:
        lane, self._lane = self._lane, None
        assert lane is not None
        self._gpu_s += lane.leave(now, self._lane_since)

    def _tokens(self, outcome: Outcome, metrics: ModelMetrics) -> tuple[Tokens, bool]:
        """What it took, and whether that is an estimate: the engine was cut off before it reported all, or tells
        nothing of a stream. Then each event counts for a token, and the prompt by its size."""
        tap = self._tap
        if tap is None:
            return NO_TOKENS, False
        told = tap.reported()
        metrics.prompt_tokens += told.prompt if told else 0
        metrics.completion_tokens += told.completion if told else 0
        if told is not None and (outcome is Outcome.OK or not tap.events):
            return told, False
        if not tap.events:
            return told or NO_TOKENS, False
        told = told or Tokens(prompt=self._body_bytes // BYTES_PER_TOKEN)
        completion = max(told.completion, tap.events)
        return Tokens(prompt=told.prompt, completion=completion, cached=told.cached), True


MakeBill = Callable[[Meter, Key, Deployment, Leave | None, Peek, int, float], Bill]


def reserve(asked: Peek, body_bytes: int) -> int:
    """How many tokens a request may take: a quarter of its bytes, and as many answers as it wants of the length that
    it allows; a length that is not given is not reserved."""
    longest = 0
    for length in (asked.max_tokens, asked.max_completion_tokens, asked.max_output_tokens):
        if length:
            longest = max(longest, _number(length))
    answers = max(_number(asked.n), 1) if asked.n else 1
    return body_bytes // BYTES_PER_TOKEN + longest * answers


def _number(raw: msgspec.Raw) -> int:
    """As engines read it: a number in quotes, too, or one with a point. What is none is the engine's to refuse."""
    text = bytes(raw)
    if text.isdigit() and len(text) <= NUMBER_DIGITS_MAX:
        return int(text)
    try:
        return int(min(max(float(text.strip(b'"')), 0.0), 10.0**NUMBER_DIGITS_MAX))
    except ValueError:
        return 0
