"""When an engine gets nothing more, and when it is tried again. Pure: times and chances are handed in.

    state       a request or probe                                    becomes
    closed      takes no connection                                   open
                `FAILURES_MAX` failures before the first byte in a row  open
                `ERRORS_MAX` answers of 5xx in a row                  open
                `PROBES_MAX` probes without an answer in a row        open
                `outliers` names it                                   open
    open        its time is over, and its last probe was answered     half-open
                a probe is answered, where only such were missed      half-open
    half-open   any failure                                           open, for twice as long
                an answer                                             closed; its weight grows back, see `lane`

After M. Nygard, Release It! (2007), and Envoy's outlier detection
(https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier), whose runs of five these are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from statistics import median

FAILURES_MAX = 2
ERRORS_MAX = 5
PROBES_MAX = 2
BACKOFF_S = 1.0
BACKOFF_MAX_S = 60.0
JITTER = 0.2
"""An opening lasts up to this part longer, so that those who were opened together do not come back together."""
FORGIVEN_S = 60.0
"""Closed for this long, what was before does not count."""
SAMPLES_MIN = 4
SAMPLES_MAX = 7
"""Four slow answers make the median of the last seven."""
SLOW_TIMES = 5.0
SLOW_MIN_S = 0.1
SLOW_TOKEN_MIN_S = 0.02
"""An outlier's answers take so many times as long as its peers', and at least so much longer: whole ones,
the tokens of streams."""


class State(StrEnum):
    """What a breaker lets through: all, nothing, a little."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Fault(StrEnum):
    """Why one opened."""

    REFUSED = "refused"
    """It takes no connection."""
    SILENT = "silent"
    """It does not answer its probes."""
    BROKEN = "broken"
    """Requests end, or hang, before the first byte, or what comes is not HTTP."""
    ERRORS = "errors"
    SLOW = "slow"
    """Its peers are much faster."""


PROBED = frozenset({Fault.REFUSED, Fault.SILENT})
"""Those that an answered probe disproves."""


class Breaker:
    """One engine's. What it is told returns whether the state changed. `chance` is 0 … 1."""

    __slots__ = (
        "_closed_at",
        "_errors",
        "_failures",
        "_missed",
        "_strikes",
        "_until",
        "failed",
        "fault",
        "opened_at",
        "state",
        "took",
    )

    def __init__(self) -> None:
        self.state = State.CLOSED
        self.fault: Fault | None = None
        """Why it opened last; None: it never did, or that is forgiven."""
        self.opened_at = 0.0
        self.failed = 0
        """All failures ever."""
        self.took: tuple[deque[float], deque[float]] = (deque(maxlen=SAMPLES_MAX), deque(maxlen=SAMPLES_MAX))
        """The seconds that its last answers took: whole ones; streams, by the token."""
        self._failures = self._errors = self._missed = self._strikes = 0
        self._until = self._closed_at = 0.0

    def answered(self, status: int, first_byte_s: float, now: float, chance: float, *, streamed: bool) -> bool:
        """The head of an answer is here."""
        self._failures = 0
        if status >= 500:
            self.failed += 1
            self._errors += 1
            tried = self.state is State.HALF_OPEN or self._errors >= ERRORS_MAX
            return tried and self._open(Fault.ERRORS, now, chance)
        self._errors = 0
        if status < 400 and not streamed:
            self.took[False].append(first_byte_s)
        return self._close(now)

    def paced(self, seconds: float, tokens: int) -> None:
        """A stream has ended well."""
        self.took[True].append(seconds / max(tokens, 1))

    def missed(self, now: float, chance: float, *, refused: bool) -> bool:
        """A request failed before its first byte; `refused`: there was no connection."""
        self.failed += 1
        self._failures += 1
        if refused:
            return self._open(Fault.REFUSED, now, chance)
        tried = self.state is State.HALF_OPEN or self._failures >= FAILURES_MAX
        return tried and self._open(Fault.BROKEN, now, chance)

    def probed(self, answered: bool, now: float, chance: float, *, refused: bool = False) -> bool:
        """A probe was answered, by whatever status, or was not. A breaker stays open while they are not."""
        if not answered:
            self._missed += 1
            if not (refused or self._missed >= PROBES_MAX):
                return False
            return self._open(Fault.REFUSED if refused else Fault.SILENT, now, chance)
        self._missed = 0
        if self.state is State.OPEN and self.fault in PROBED:
            self.state = State.HALF_OPEN
            return True
        return False

    def slow(self, now: float, chance: float) -> bool:
        """Its peers are much faster."""
        return self._open(Fault.SLOW, now, chance)

    def settle(self, now: float) -> State:
        """The state now."""
        if self.state is State.OPEN and now >= self._until and not self._missed:
            self.state = State.HALF_OPEN
        return self.state

    def retry_s(self, now: float) -> float | None:
        """How long it is open yet; None: it is not. Its probes may keep it so for longer."""
        return max(self._until - now, 0.0) if self.state is State.OPEN else None

    def _open(self, fault: Fault, now: float, chance: float) -> bool:
        if self.state is State.OPEN:
            return False
        if self.state is State.CLOSED and now - self._closed_at > FORGIVEN_S:
            self._strikes = 0
        backoff_s = min(BACKOFF_S * 2.0**self._strikes, BACKOFF_MAX_S)
        self._strikes = min(self._strikes + 1, 16)
        self._until = now + backoff_s * (1 + JITTER * chance)
        self.state, self.fault, self.opened_at = State.OPEN, fault, now
        self._failures = self._errors = 0
        for samples in self.took:
            samples.clear()
        return True

    def _close(self, now: float) -> bool:
        """Of an open one, an answer to what was sent before it opened proves nothing."""
        if self.state is not State.HALF_OPEN:
            return False
        self.state, self._closed_at = State.CLOSED, now
        return True


def outliers(breakers: Sequence[Breaker]) -> list[Breaker]:
    """Those whose answers take much longer than their peers'. Whole answers, and streams by the token, since an engine
    may begin them before it has one, are compared apart, by their medians: one long answer tells nothing."""
    found: list[Breaker] = []
    for streamed in (False, True):
        typical = {
            breaker: median(breaker.took[streamed])
            for breaker in breakers
            if len(breaker.took[streamed]) >= SAMPLES_MIN
        }
        for breaker, own_s in typical.items():
            peers = [peer_s for peer, peer_s in typical.items() if peer is not breaker]
            if (
                peers
                and own_s >= SLOW_TIMES * median(peers)
                and own_s - median(peers) >= (SLOW_TOKEN_MIN_S if streamed else SLOW_MIN_S)
            ):
                found.append(breaker)
    return found
