"""Which GPUs a model gets, and who leaves for it: tables and properties."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.gpu import Gpu, Need
from orchestrator.model import Phase, Replica
from orchestrator.placement import (
    ASLEEP_BYTES,
    ENGINE_DEFAULT_FRACTION,
    RESERVE_BYTES,
    Place,
    Room,
    feasible,
    lease_bytes,
    place,
    plan,
    unfit,
    would_fit,
)
from tests.gpus import GB, gpu, holder, machine, need, on, size

ASLEEP = ASLEEP_BYTES / GB
MIG = tuple(gpu(n, 10, mig=True) for n in range(2))
UNKNOWN = need()


def where(wanted: Need, gpus: tuple[Gpu, ...], *replicas: Replica, **more: Any) -> str:
    """The GPUs' uuids in short; empty: no place."""
    found = place(wanted, on(gpus, *replicas, **more))
    return "" if found is None else " ".join(found.gpus)


# --- where ---


@pytest.mark.parametrize(
    ("wanted", "gpus", "found"),
    [
        # one of a size of which nothing is known takes a whole one, the smallest
        (UNKNOWN, machine(80), "G0"),
        (UNKNOWN, machine(80, 24), "G1"),
        (UNKNOWN, (), ""),
        (UNKNOWN, (gpu(0, healthy=False),), ""),
        (UNKNOWN, (gpu(0, healthy=False), gpu(1)), "G1"),
        (UNKNOWN, machine(4), "G0"),
        (UNKNOWN, machine(2), "G0"),
        # one that says what it needs: the smallest that holds it
        (need(20), machine(80, 24, 40), "G1"),
        (need(30), machine(80, 24, 40), "G2"),
        (need(50), machine(80, 24, 40), "G0"),
        (need(79.4), machine(80), "G0"),
        (need(79.6), machine(80), ""),
        # wishes: what gives all it makes good use of comes first
        (need(10, 20), machine(80, 24), "G1"),
        (need(10, 40), machine(80, 24), "G0"),
        (need(10, 20), machine(12, 80), "G1"),
        (need(10, 20), machine(12), "G0"),
        # several: of one size, on one host
        (need(0, gpus=2), machine(80, 24), ""),
        (need(0, gpus=2), machine(80, 24, 24, 80), "G1 G2"),
        (need(40, gpus=2), machine(80, 24, 24, 80), "G0 G3"),
        (need(20, gpus=4), machine(24, 24, 24, 24), "G0 G1 G2 G3"),
        (need(20, gpus=4), machine(24, 24, 24), ""),
        (need(20, gpus=2), (gpu(0, host="a"), gpu(0, host="b")), ""),
        (need(20, gpus=2), (gpu(0, host="a"), gpu(0, host="b"), gpu(1, host="b")), "bG0 bG1"),
        # slices: each by itself
        (need(5), MIG, "G0"),
        (need(5, 6), (*MIG, gpu(2, 10.5)), "G0"),
        (need(5, gpus=2), MIG, ""),
        (need(5, gpus=2), (*MIG, gpu(2, 10), gpu(3, 10)), "G2 G3"),
        # auto: the smallest number that could fit
        (need(100, None, 1, size(50, gpus=2), size(25, gpus=4)), machine(80, 80, 80, 80), "G0 G1"),
        (need(100, None, 1, size(50, gpus=2), size(25, gpus=4)), machine(40, 40, 40, 40), "G0 G1 G2 G3"),
        (need(100, None, 1, size(50, gpus=2), size(25, gpus=4)), machine(40, 40, 40), ""),
        (need(100, None, 1, size(50, gpus=2)), (*machine(80, 80), gpu(2, 141)), "G2"),
    ],
)
def test_empty_gpus(wanted: Need, gpus: tuple[Gpu, ...], found: str) -> None:
    assert where(wanted, gpus) == found


@pytest.mark.parametrize(
    ("wanted", "replicas", "foreign", "found"),
    [
        (UNKNOWN, [holder("a", 0)], {}, "G1"),
        (UNKNOWN, [holder("a", 0, gigabytes=5)], {}, "G1"),
        (UNKNOWN, [], {"G0": 1}, "G0"),  # the rest of a GPU that somebody uses a little is enough
        (UNKNOWN, [], {"G0": 20}, "G1"),
        (UNKNOWN, [], {"G0": 20, "G1": 20}, ""),
        (need(50), [], {"G0": 20, "G1": 20}, "G0"),
        (need(60), [], {"G0": 20, "G1": 20}, ""),
        (need(10, 20), [holder("a", 0, gigabytes=20)], {}, "G0"),  # large ones stay whole
        (need(10, 20), [holder("a", 1, gigabytes=20)], {}, "G1"),
        (need(10, 20), [holder("a", 0, gigabytes=65)], {}, "G1"),  # not squeezed where it need not be
        (need(10, 20), [holder("a", 0, gigabytes=65), holder("b", 1)], {}, "G0"),
        (need(10, 20), [holder("a", 0, gigabytes=75), holder("b", 1)], {}, ""),
        (need(10, 20), [holder("a", 0), holder("b", 1)], {}, ""),
        (need(10, 20), [holder("a", 0, gigabytes=40)], {"G0": 30}, "G1"),
        (need(10, 60), [holder("a", 0, gigabytes=10)], {}, "G1"),  # too large a part to share
        (need(60, gpus=2), [holder("a", 0, gigabytes=5)], {}, ""),
        (UNKNOWN, [holder("a", 0, phase=Phase.SLEEPING)], {"G1": 1}, "G0"),  # sleepers leave nearly all
        (need(78), [holder("a", 0, phase=Phase.SLEEPING)], {}, "G1"),
        (need(60, gpus=2), [holder("a", 0, 1, phase=Phase.SLEEPING)], {}, "G0 G1"),
        (UNKNOWN, [holder("a", 0, phase=Phase.DRAINING), holder("b", 1, phase=Phase.FAILED)], {}, ""),
    ],
)
def test_two_gpus_in_use(wanted: Need, replicas: list[Replica], foreign: dict[str, float], found: str) -> None:
    assert where(wanted, machine(80, 80), *replicas, foreign=foreign) == found


def test_more_gpus_are_not_taken_because_fewer_are_busy() -> None:
    wanted = need(40, None, 1, size(21, gpus=2))
    gpus = machine(80, 24, 24)
    assert where(wanted, gpus, holder("a", 0)) == ""
    assert where(wanted, machine(24, 24)) == "G0 G1"
    assert where(wanted, (gpu(0, healthy=False), *gpus[1:])) == "G1 G2"


def test_without_gpus_anywhere_will_do() -> None:
    assert place(Need(), ()) == Place()


# --- how much ---


@pytest.mark.parametrize(
    ("wanted", "foreign", "gigabytes", "fraction"),
    [
        (UNKNOWN, 0, 79.44, None),
        (need(20), 0, 79.44, None),
        (need(20), 7, 72.4, None),
        (need(20), 20, 59.44, 0.743),  # not the default: it is not there
        (need(10, 20), 0, 20, 0.25),
        (need(10, 20.01), 0, 20.08, 0.251),  # a thousandth too much rather than too little
        (need(10, 20), 65, 14.4, 0.18),
        (need(71), 0, 79.44, None),
        (need(76), 0, 79.44, 0.95),  # the default would not hold it
        (need(79.3), 0, 79.44, 0.992),
        (need(30, gpus=2), 0, 79.44, None),
    ],
)
def test_shares(wanted: Need, foreign: float, gigabytes: float, fraction: float | None) -> None:
    free = on(machine(80, 80), foreign={"G0": foreign, "G1": foreign})
    found = place(wanted, free)
    assert found is not None
    assert found.gpu_bytes == int(gigabytes * GB)
    assert found.memory_fraction == fraction


def test_spread_over_gpus_it_gets_as_much_as_the_fullest_has() -> None:
    found = place(need(30, gpus=2), on(machine(80, 80), foreign={"G1": 30}))
    assert found is not None and (found.gpu_bytes, found.memory_fraction) == (int(49.44 * GB), 0.618)


def test_a_sleeper_holds_little() -> None:
    one = gpu(0)
    assert lease_bytes(holder("a", 0), one) == one.memory_bytes
    assert lease_bytes(holder("a", 0, gigabytes=20), one) == 20 * GB
    assert lease_bytes(holder("a", 0, gigabytes=20, phase=Phase.SLEEPING), one) == ASLEEP_BYTES


# --- never ---


def of(text: str, wanted: Need) -> Need:
    return Need(sizes=wanted.sizes, arithmetic=text)


@pytest.mark.parametrize(
    ("wanted", "gpus", "told"),
    [
        (UNKNOWN, machine(80), ""),
        (Need(), (), ""),
        (UNKNOWN, (gpu(0, healthy=False),), ""),  # it may recover
        (UNKNOWN, (), "it needs 1 GPU; there are no GPUs"),
        (need(gpus=4), machine(80, 80), "it needs 4 GPUs of one size on one host; there are 2 GPUs: 2 of 79.5 GB"),
        (
            need(gpus=2),
            machine(80, 24),
            "it needs 2 GPUs of one size on one host; there are 2 GPUs: 1 of 23.5 GB, 1 of 79.5 GB",
        ),
        (
            of("40.0 GB of weights + …", need(43.2)),
            machine(24),
            "it needs 43.2 GB on a GPU: 40.0 GB of weights + …; there is 1 GPU: 1 of 23.5 GB",
        ),
        (
            need(150, None, 1, size(77, gpus=2)),
            machine(24, 24),
            "it needs 150.0 GB on a GPU or 77.0 GB on each of 2 GPUs of one size on one host; there are 2 GPUs: "
            "2 of 23.5 GB",
        ),
        (
            need(5, gpus=2),
            MIG,
            "it needs 5.0 GB on each of 2 GPUs of one size on one host; there are 2 GPUs: "
            "2 of 9.5 GB (MIG, for one-GPU models only)",
        ),
        (
            need(5, gpus=2),
            (gpu(0, host="a"), gpu(0, host="b")),
            "it needs 5.0 GB on each of 2 GPUs of one size on one host; there are 2 GPUs: "
            "1 of 79.5 GB on a, 1 of 79.5 GB on b",
        ),
    ],
)
def test_what_can_never_fit_is_told_with_the_arithmetic(wanted: Need, gpus: tuple[Gpu, ...], told: str) -> None:
    assert unfit(wanted, gpus) == told


# --- evictions ---


def chosen(wanted: Need, all_rooms: tuple[Room, ...], victims: list[Replica], sleepers: str = "") -> str | None:
    """Who stops, who sleeps (in brackets), and where it goes."""
    found = plan(wanted, all_rooms, victims, lambda model: model in sleepers.split())
    if found is None:
        return None
    gone = [r.id for r in found.stop] + [f"({r.id})" for r in found.sleep]
    return " ".join([*gone, "→", *found.place.gpus])


A, B, C = holder("a", 0), holder("b", 1), holder("c", 2)
SMALL = [holder(name, 0, gigabytes=20) for name in "xyz"]
DOZING = holder("s", 0, phase=Phase.SLEEPING)


@pytest.mark.parametrize(
    ("wanted", "gpus", "victims", "sleepers", "expected"),
    [
        (UNKNOWN, machine(80), [], "", "→ G0"),
        (UNKNOWN, machine(80), [A], "", "a → G0"),
        (UNKNOWN, machine(80, 80), [B, A], "", "b → G1"),
        (UNKNOWN, machine(24, 80), [B, A], "", "b → G1"),
        (need(50), machine(24, 80), [A, B], "", "b → G1"),  # who is not in the way is spared
        (need(50, gpus=2), machine(80, 80, 80), [A, B, C], "", "a b → G0 G1"),
        (need(50, gpus=2), machine(80, 24, 80), [A, B, C], "", "a c → G0 G2"),
        (need(50), machine(24), [A], "", None),
        (need(10, 25), machine(80), SMALL, "", "→ G0"),  # less than it wants is no reason to evict,
        (need(50), machine(80), SMALL, "", "x y z → G0"),
        (need(25, 40), machine(80), SMALL, "", "x → G0"),
        (need(10), machine(80), SMALL, "", "x y z → G0"),  # wants a GPU to itself
        (UNKNOWN, machine(80), [A], "a", "(a) → G0"),
        (need(78), machine(80), [A], "a", "a → G0"),  # asleep it would still be in the way
        (need(50, gpus=2), machine(80, 80), [A, B], "b", "a (b) → G1 G0"),
        (need(78), machine(80), [DOZING], "s", "s → G0"),
        (UNKNOWN, machine(80), [DOZING, holder("a", 0, gigabytes=40)], "", "a → G0"),  # the sleeper may sleep on
        (UNKNOWN, machine(80, 80), [A, holder("w", 0, 1), B], "", "a w → G0"),
    ],
)
def test_plans(
    wanted: Need, gpus: tuple[Gpu, ...], victims: list[Replica], sleepers: str, expected: str | None
) -> None:
    assert chosen(wanted, on(gpus, *victims), victims, sleepers) == expected


def test_those_who_should_go_last_are_spared_first() -> None:
    last, first, both = holder("last", 0), holder("first", 1), holder("both", 0, 1, gigabytes=1)
    everyone = on(machine(80, 80), last, first, both)
    assert chosen(UNKNOWN, everyone, [first, last, both]) == "first both → G1"


# --- properties ---

SIZES = st.sampled_from((10.0, 24.0, 24.0, 40.0, 80.0, 80.0))
NEEDS = st.builds(
    lambda least, more, gpus: need(least, more and least + more, gpus),
    st.sampled_from((0.0, 5.0, 12.5, 30.0, 77.0)),
    st.sampled_from((None, 1.0, 10.001, 30.0)),
    st.sampled_from((1, 1, 1, 2)),
)


@st.composite
def machines(draw: st.DrawFn) -> tuple[Gpu, ...]:
    return tuple(
        gpu(n, draw(SIZES), healthy=draw(st.integers(0, 7)) > 0, mig=draw(st.integers(0, 5)) == 0)
        for n in range(draw(st.integers(1, 5)))
    )


@st.composite
def crowds(draw: st.DrawFn) -> tuple[tuple[Gpu, ...], list[Replica], dict[str, float]]:
    """A machine that was filled by `place` itself, as it always is; then some fell asleep."""
    gpus, foreign = draw(machines()), {}
    if draw(st.booleans()):
        foreign = {draw(st.sampled_from(gpus)).uuid: draw(st.sampled_from((1.0, 9.0, 30.0)))}
    replicas: list[Replica] = []
    for number in range(draw(st.integers(0, 7))):
        if found := place(draw(NEEDS), on(gpus, *replicas, foreign=foreign)):
            phase = draw(st.sampled_from((Phase.READY, Phase.READY, Phase.STARTING, Phase.SLEEPING)))
            lease: dict[str, Any] = {"gpus": found.gpus, "gpu_bytes": found.gpu_bytes}
            replicas.append(holder(f"r{number}", phase=phase, **lease))
    return gpus, replicas, foreign


Crowd = tuple[tuple[Gpu, ...], list[Replica], dict[str, float]]


@settings(deadline=None)
@given(machine_and=machines(), wanted=st.lists(NEEDS, max_size=12))
def test_leases_never_exceed_a_gpu_and_fractions_never_exceed_it_either(
    machine_and: tuple[Gpu, ...], wanted: list[Need]
) -> None:
    replicas: list[Replica] = []
    told: dict[str, float] = {}
    for number, one in enumerate(wanted):
        found = place(one, on(machine_and, *replicas))
        if found is None:
            continue
        replicas.append(holder(f"r{number}", gpus=found.gpus, gpu_bytes=found.gpu_bytes))
        for uuid in found.gpus:
            fraction = ENGINE_DEFAULT_FRACTION if found.memory_fraction is None else found.memory_fraction
            told[uuid] = told.get(uuid, 0.0) + fraction
    for one_gpu in machine_and:
        leased = sum(lease_bytes(r, one_gpu) for r in replicas if one_gpu.uuid in r.gpus)
        assert leased <= one_gpu.memory_bytes - RESERVE_BYTES
        assert told.get(one_gpu.uuid, 0.0) <= 1
        assert one_gpu.healthy or not leased


@settings(deadline=None)
@given(crowd=crowds(), wanted=NEEDS)
def test_what_is_placed_has_what_it_needs(crowd: Crowd, wanted: Need) -> None:
    gpus, replicas, foreign = crowd
    found = place(wanted, on(gpus, *replicas, foreign=foreign))
    if found is None:
        return
    size_found = feasible(wanted, [g for g in gpus if g.healthy])
    chosen_gpus = [g for g in gpus if g.uuid in found.gpus]
    assert size_found is not None and len(chosen_gpus) == size_found.gpus
    assert len({(g.host, g.memory_bytes) for g in chosen_gpus}) == 1
    memory = chosen_gpus[0].memory_bytes
    fraction = ENGINE_DEFAULT_FRACTION if found.memory_fraction is None else found.memory_fraction
    assert fraction * memory >= size_found.bytes_min - memory // 1000
    assert fraction * memory <= found.gpu_bytes + 1


@settings(deadline=None)
@given(crowd=crowds(), wanted=NEEDS, dice=st.randoms())
def test_the_order_in_which_gpus_are_told_does_not_matter(crowd: Crowd, wanted: Need, dice: Any) -> None:
    gpus, replicas, foreign = crowd
    shuffled_gpus, shuffled = list(gpus), list(replicas)
    dice.shuffle(shuffled_gpus)
    dice.shuffle(shuffled)
    first = place(wanted, on(gpus, *replicas, foreign=foreign))
    assert first == place(wanted, on(tuple(shuffled_gpus), *shuffled, foreign=foreign))


@settings(deadline=None)
@given(crowd=crowds(), wanted=NEEDS, sleepers=st.sets(st.sampled_from([f"r{n}" for n in range(7)])))
def test_no_victim_of_a_plan_could_be_spared(crowd: Crowd, wanted: Need, sleepers: set[str]) -> None:
    gpus, replicas, foreign = crowd
    everyone = on(gpus, *replicas, foreign=foreign)
    found = plan(wanted, everyone, replicas, lambda model: model in sleepers)
    assert (found is not None) == would_fit(wanted, everyone, replicas)
    if found is None:
        return
    going = (*found.stop, *found.sleep)
    assert len({r.id for r in going}) == len(going)
    for spared in going:
        assert not would_fit(wanted, everyone, [r for r in going if r is not spared])
    assert all(r.model in sleepers and r.phase is Phase.READY for r in found.sleep)
    after = [room.without([r.id for r in found.stop], [r.id for r in found.sleep]) for room in everyone]
    assert place(wanted, after) == found.place
