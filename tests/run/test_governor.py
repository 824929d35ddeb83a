"""Caps: down at once, up slowly, back at the ceiling when nothing is wrong; caps that hold a plan, and step aside."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rheostat import (
    Cap,
    EnergyGovernor,
    LatencyGovernor,
    Observation,
    Profile,
    Signals,
    SystemGovernor,
)
from rheostat.run.governor import Governor

ROWS = ((1.0,), (2.0,), (4.0,), (8.0,))
PROFILE = Profile((1,), ROWS, ROWS)
LATENCY = LatencyGovernor(PROFILE, budget_ms=10.0, clean=3)
ENERGY = EnergyGovernor((1.0, 2.0, 4.0, 8.0), capacity_j=1000.0, horizon_s=1000.0, idle_w=0.1)
SYSTEM = SystemGovernor(PROFILE, budget_ms=10.0, threads=2)

fractions = st.floats(0, 1)
observations = st.builds(
    Observation,
    now_ms=st.floats(0, 2e6),
    arrivals_per_s=st.floats(0, 5000),
    subnet=st.one_of(st.none(), st.integers(0, 3)),
    p95_ms=st.one_of(st.none(), st.floats(0.1, 100), st.just(math.inf)),
    signals=st.builds(
        Signals,
        battery=st.one_of(st.none(), fractions),
        on_ac=st.one_of(st.none(), st.booleans()),
        harvest_w=st.one_of(st.none(), st.floats(0, 10)),
        temp_c=st.one_of(st.none(), st.floats(-20, 120)),
        cpu_quota=st.one_of(st.none(), st.floats(0, 8)),
        pressure=st.one_of(st.none(), fractions),
    ),
)


@pytest.mark.parametrize("governor", [LATENCY, ENERGY, SYSTEM], ids=lambda governor: type(governor).__name__)
@given(st.lists(observations, min_size=1, max_size=30))
def test_valid_deterministic_and_back_at_the_ceiling(governor: Governor, seen: list[Observation]) -> None:
    one: Cap | None = None
    other: Cap | None = None
    for observation in sorted(seen, key=lambda observation: observation.now_ms):
        one, other = governor.cap(one, observation), governor.cap(other, observation)
        assert one == other
        assert 0 <= one.subnet <= 3
    # Nothing runs and nothing is said to be wrong: at the ceiling within clean · subnets periods.
    for tick in range(9):
        one = governor.cap(one, Observation(now_ms=2e6 + 1e4 * tick))
    assert one is not None
    assert one.subnet == 3


def latency(state: Cap | None, p95_ms: float | None, subnet: int | None = None) -> Cap:
    return LATENCY.cap(state, Observation(subnet=subnet, p95_ms=p95_ms))


def test_latency_goes_down_at_once_as_far_as_needed() -> None:
    # 40 ms on the largest: five times slower than the profile, so only 2 ms · 5 fits.
    assert latency(None, 40.0, 3) == Cap(1, "latency", since_ms=0.0)
    assert latency(None, 10.1, 3).subnet == 2
    assert latency(None, 10.0, 3).subnet == 3
    assert latency(None, math.inf, 3).subnet == 0
    assert latency(Cap(0), 99.0, 0).subnet == 0


def test_latency_goes_up_one_at_a_time_after_clean_windows() -> None:
    state, seen = Cap(0), []
    for _ in range(12):
        state = latency(state, ROWS[state.subnet][0], state.subnet)
        seen.append(state.subnet)
    assert seen == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]


def test_latency_does_not_go_where_it_could_not_stay() -> None:
    state = Cap(1)
    for _ in range(20):
        state = latency(state, 5.0, 1)  # the next would take 10 ms: in the budget, not within 0.85 of it
    assert state.subnet == 1
    state = latency(latency(state, 4.0, 1), 4.0, 1)
    assert state.clean == 2
    state = latency(state, 5.0, 1)  # one window that is not clean starts the count again
    assert (state.subnet, state.clean) == (1, 0)


def test_latency_goes_up_past_a_subnet_that_a_larger_one_beats() -> None:
    uneven = Profile((1,), ((1.0,), (2.0,), (3.0,), (4.0,)), ((1.2,), (9.0,), (3.3,), (4.4,)))
    governor = LatencyGovernor(uneven, budget_ms=8.0, clean=1)
    state, seen = governor.cap(None, Observation(subnet=3, p95_ms=40.0)), []
    for _ in range(3):
        seen.append(state.subnet)
        p95_ms = uneven.latency_ms_p95[state.subnet][0]
        state = governor.cap(state, Observation(subnet=state.subnet, p95_ms=p95_ms))
    assert [*seen, state.subnet] == [0, 2, 3, 3]


@given(st.integers(0, 3), st.integers(0, 3), st.floats(0.1, 100), st.floats(0.1, 100))
def test_a_higher_latency_never_raises_the_cap(held: int, ran: int, one: float, other: float) -> None:
    state = Cap(held, clean=2)
    assert latency(state, max(one, other), ran).subnet <= latency(state, min(one, other), ran).subnet


def energy(
    state: Cap | None, battery: float | None, rate: float, now_s: float = 0.0, **signals: float
) -> Cap:
    return ENERGY.cap(state, Observation(1e3 * now_s, (), rate, signals=Signals(battery, **signals)))


def test_energy_is_its_formula() -> None:
    # (1 − 0.1) · 1000 J / 1000 s = 0.9 W; without the idle 0.1 W, 0.8 W for requests
    for rate, subnet in ((100, 3), (101, 2), (200, 2), (201, 1), (400, 1), (401, 0), (5000, 0), (0, 3)):
        assert energy(None, 1.0, rate).subnet == subnet, rate
    # harvest adds its watts
    assert energy(None, 1.0, 200, harvest_w=0.8).subnet == 3
    # half of the time later with half of what may be spent left: still on the line
    assert energy(None, 0.55, 200, now_s=500).subnet == 2


@given(fractions, fractions, st.floats(0, 900), st.floats(1, 5000))
def test_less_battery_never_raises_the_cap(one: float, other: float, now_s: float, rate: float) -> None:
    assert (
        energy(None, min(one, other), rate, now_s).subnet <= energy(None, max(one, other), rate, now_s).subnet
    )


def test_energy_holds_the_smallest_until_the_battery_has_recovered() -> None:
    state = energy(None, 0.2, 0.0)
    assert (state.subnet, state.reason, state.held) == (0, "battery", True)
    state = energy(state, 0.24, 0.0, now_s=60)
    assert state.subnet == 0
    state = energy(state, 0.25, 0.0, now_s=120)
    assert (state.subnet, state.held) == (3, False)


def test_energy_remembers_what_was_held_while_the_battery_cannot_be_read() -> None:
    state = energy(energy(None, 0.15, 0.0), None, 0.0, now_s=60)
    assert (state.subnet, state.held) == (3, True)
    state = energy(state, 0.22, 0.0, now_s=120)
    assert (state.subnet, state.reason, state.held) == (0, "battery", True)
    assert not energy(energy(state, 0.22, 0.0, now_s=180, on_ac=True), 0.22, 0.0, now_s=240).held


def test_after_the_horizon_only_the_harvest_is_spent() -> None:
    governor, state = (
        EnergyGovernor((1.0, 2.0, 4.0, 8.0), capacity_j=1000.0, horizon_s=10.0, dwell_ms=0.0),
        None,
    )
    for second in range(200):  # always far above the plan
        seen = Observation(1e3 * second, (), 1e3, signals=Signals(0.9, harvest_w=2.0))
        state = governor.cap(state, seen)
        assert state.subnet == (3 if second < 10 else 1)  # 2 W for 1,000 requests of 2 mJ


def test_a_cap_that_stays_was_not_changed() -> None:
    governor, state = LatencyGovernor(PROFILE, budget_ms=1e-3), None
    for window in range(1, 5):
        state = governor.cap(state, Observation(100.0 * window, subnet=0, p95_ms=5.0))
    assert (state.subnet, state.since_ms, state.at_ms) == (0, 100.0, 400.0)


def test_energy_dwells() -> None:
    state = energy(None, 1.0, 401)
    assert state.subnet == 0
    assert energy(state, 1.0, 10, now_s=4.9).subnet == 0
    assert energy(state, 1.0, 10, now_s=5.0).subnet == 3


def test_energy_on_ac_or_without_a_battery_has_no_cap() -> None:
    assert energy(Cap(0), 0.05, 5000.0, on_ac=True).subnet == 3
    assert energy(Cap(0), None, 5000.0).subnet == 3


@pytest.mark.parametrize("bias", [0.7, 1.0, 1.4])
def test_a_battery_lasts_as_planned(bias: float) -> None:
    """An hour with energies that the plan has wrong by 30 or 40 %: the reserve is not touched, little is left over."""
    governor = EnergyGovernor(
        (1.0, 2.0, 4.0, 8.0), capacity_j=1000.0, horizon_s=3600.0, low=0.0, restored=0.0
    )
    stored_j, state, used = 1000.0, None, []
    for second in range(3600):
        seen = Observation(1e3 * second, (), 100.0, signals=Signals(stored_j / 1000.0))
        state = governor.cap(state, seen)
        used.append(state.subnet)
        stored_j -= bias * governor.energy_mj[state.subnet] * 1e-3 * 100.0
    assert 0.07 <= stored_j / 1000.0 <= 0.18
    assert len(set(used)) > 1
    assert sum(a != b for a, b in zip(used, used[1:], strict=False)) <= 3600 / 5


def system(state: Cap | None, **signals: float) -> Cap:
    return SYSTEM.cap(state, Observation(signals=Signals(**signals)))


def test_heat_steps_down_while_rising_and_up_when_cool() -> None:
    state, seen = None, []
    for temp_c in (80, 86, 88, 87, 89, 80, 74, 74, 74):
        state = system(state, temp_c=temp_c)
        seen.append(state.subnet)
    assert seen == [3, 2, 1, 1, 0, 0, 1, 2, 3]


def test_pressure_steps_down_and_up() -> None:
    state, seen = None, []
    for pressure in (0.1, 0.5, 0.5, 0.3, 0.1):
        state = system(state, pressure=pressure)
        seen.append(state.subnet)
    assert seen == [3, 2, 1, 1, 2]
    assert system(None, pressure=0.9).reason == "pressure"


def test_a_quota_stretches_the_latencies() -> None:
    # Half of the two threads: 16 ms for the largest, 8 ms for the next.
    assert system(None, cpu_quota=1.0) == Cap(2, "quota", since_ms=0.0)
    assert system(None, cpu_quota=2.0).subnet == 3
    assert system(None, cpu_quota=0.0).subnet == 0


def test_caps_compose_by_min() -> None:
    caps = [latency(None, 10.1, 3), energy(None, 1.0, 401), system(None, temp_c=90.0)]
    assert min(cap.subnet for cap in caps) == 0


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (LatencyGovernor, {"budget_ms": 0.0}),
        (LatencyGovernor, {"budget_ms": 1.0, "clean": 0}),
        (LatencyGovernor, {"budget_ms": 1.0, "restore": 1.5}),
        (SystemGovernor, {"threads": 0}),
        (SystemGovernor, {"hot_c": 60.0}),
        (SystemGovernor, {"pressed": 0.1}),
    ],
)
def test_settings_that_make_no_sense(kind: type, settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"^{kind.__name__}: got"):
        kind(PROFILE, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"energy_mj": ()},
        {"energy_mj": (1.0, 0.0)},
        {"capacity_j": 0.0},
        {"capacity_j": math.inf},
        {"horizon_s": math.nan},
        {"gain": math.nan},
        {"reserve": 0.5, "start": 0.4},
        {"low": 0.5},
    ],
)
def test_plans_that_are_none(settings: dict[str, float]) -> None:
    plan = {"energy_mj": (1.0,), "capacity_j": 1.0, "horizon_s": 1.0, **settings}
    with pytest.raises(ValueError, match=r"^EnergyGovernor: got"):
        EnergyGovernor(**plan)  # pyright: ignore[reportArgumentType]
