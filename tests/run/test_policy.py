"""What any policy must do: deterministic, valid, monotone, without memory; and the formulas written the long way."""

from __future__ import annotations

import math
import sys
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rheostat import CapSlack, Decision, Fixed, Observation, Profile, Signals, arrival_rate, choose
from rheostat.run.policy import Policy, SlackFit

latencies = st.lists(st.floats(0, 1e3), min_size=1, max_size=9)
budgets = st.floats(-1, 2e3)

BUDGET_MS = 25.0
# fixed + per-request · batch: (0.4, 0.1) (0.6, 0.25) (0.9, 0.5) (1.2, 0.8)
ROWS = ((0.5, 2.0), (0.85, 4.6), (1.4, 8.9), (2.0, 14.0))
PROFILE = Profile((1, 16), ROWS, ROWS)
POLICIES: tuple[Policy, ...] = (
    Fixed(PROFILE),
    Fixed(PROFILE, 1, max_batch=4),
    CapSlack(PROFILE, BUDGET_MS),
    CapSlack(PROFILE, BUDGET_MS, max_batch=5, horizon=0.3, margin=0.6),
    SlackFit(PROFILE),
    SlackFit(PROFILE, max_batch=7, buckets=3, margin=0.4),
)


def queue(waiting: int, slack_ms: float, rate: float = 0.0, slowdown: float = 1.0) -> Observation:
    deadlines = tuple(100.0 + slack_ms + 0.01 * k for k in range(waiting))
    return Observation(100.0, deadlines, rate, slowdown=slowdown)


slacks = st.floats(-30, 60)
waitings = st.integers(0, 60)
rates = st.floats(0, 5000)
slowdowns = st.floats(0.2, 20)
caps = st.one_of(st.none(), st.integers(0, 9))


@given(latencies, budgets)
def test_largest_that_fits_else_smallest(latencies_ms: list[float], budget_ms: float) -> None:
    index = choose(latencies_ms, budget_ms)
    if latencies_ms[index] <= budget_ms:
        assert all(latency > budget_ms for latency in latencies_ms[index + 1 :])
    else:
        assert index == 0
        assert min(latencies_ms) > budget_ms


@given(latencies, budgets, budgets)
def test_more_time_never_gives_less(latencies_ms: list[float], one: float, other: float) -> None:
    assert choose(latencies_ms, min(one, other)) <= choose(latencies_ms, max(one, other))


def test_no_limit() -> None:
    assert choose((1.0, 2.0, 3.0), math.inf) == 2


@pytest.mark.parametrize(
    ("latencies_ms", "budget_ms"), [((), 1.0), ((1.0, math.nan), 1.0), ((1.0,), math.nan)]
)
def test_nothing_to_choose_from(latencies_ms: tuple[float, ...], budget_ms: float) -> None:
    with pytest.raises(ValueError, match=r"^choose: got"):
        choose(latencies_ms, budget_ms)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@given(waitings, slacks, rates, slowdowns, caps)
def test_valid_and_deterministic(
    policy: Policy, waiting: int, slack_ms: float, rate: float, slowdown: float, cap: int | None
) -> None:
    seen = queue(waiting, slack_ms, rate, slowdown)
    decision = policy.decide(seen, cap)
    assert decision == policy.decide(queue(waiting, slack_ms, rate, slowdown), cap)
    top = 3 if cap is None else min(cap, 3)
    assert 0 <= decision.subnet <= top
    assert decision.shed >= 0
    assert decision.shed + decision.batch <= waiting
    assert decision.batch <= getattr(policy, "max_batch", 16)
    # Whatever is waiting is either shed or some of it runs: a loop around it makes progress.
    assert decision.shed + decision.batch > 0 or waiting == 0
    assert decision.batch > 0 or decision.shed == waiting


@pytest.mark.parametrize("policy", POLICIES[:4], ids=repr)
@given(waitings, waitings, slacks, slacks, rates, rates, slowdowns)
def test_more_load_or_less_slack_never_raises_the_subnet(
    policy: Policy, q1: int, q2: int, s1: float, s2: float, r1: float, r2: float, slowdown: float
) -> None:
    easy = policy.decide(queue(min(q1, q2), max(s1, s2), min(r1, r2), slowdown))
    hard = policy.decide(queue(max(q1, q2), min(s1, s2), max(r1, r2), slowdown))
    # Shedding a hopeless request changes which one is the oldest; compared is what happens to the same queue head.
    if easy.shed == hard.shed == 0:
        assert hard.subnet <= easy.subnet


@given(waitings, slacks, rates, slowdowns, slowdowns)
def test_a_slower_machine_never_raises_the_subnet(
    waiting: int, slack_ms: float, rate: float, one: float, other: float
) -> None:
    policy = CapSlack(PROFILE, BUDGET_MS)
    slow = policy.decide(queue(waiting, slack_ms, rate, max(one, other)))
    assert slow.subnet <= policy.decide(queue(waiting, slack_ms, rate, min(one, other))).subnet


@given(waitings, slacks, rates, slowdowns)
def test_cap_slack_is_its_formula(waiting: int, slack_ms: float, rate: float, slowdown: float) -> None:
    observation = queue(waiting, slack_ms, rate, slowdown)
    decision = CapSlack(PROFILE, BUDGET_MS).decide(observation)
    alive = [d - 100.0 for d in observation.deadlines_ms if d >= 100.0 + 0.5]
    assert decision.shed == waiting - len(alive)
    if not alive:
        assert decision == Decision(3, 0, waiting, "idle")
        return
    batch = min(len(alive), 16)
    need = max(1.1 * rate, len(alive) / (0.5 * BUDGET_MS / 1e3))
    fits = [
        k
        for k, (one, sixteen) in enumerate(ROWS)
        if 16e3 / sixteen >= need * slowdown
        and (one + (sixteen - one) * (batch - 1) / 15) <= 0.85 * alive[0] / slowdown
    ]
    assert decision.batch == batch
    assert (decision.subnet, decision.reason) == ((max(fits), "fits") if fits else (0, "overload"))


def test_workers_share_the_load() -> None:
    policy = CapSlack(PROFILE, BUDGET_MS)
    alone = policy.decide(Observation(0.0, [20.0] * 30))
    shared = policy.decide(Observation(0.0, [20.0] * 30, workers=8))
    assert alone.subnet < shared.subnet == 3


def test_shed_everything_and_still_recover() -> None:
    """A slowdown that makes everything look hopeless must not stop the machine: nothing would ever correct it."""
    decision = CapSlack(PROFILE, BUDGET_MS).decide(queue(3, 25.0, slowdown=1e6))
    assert decision == Decision(0, 3, 0, "overload")


def test_slack_fit_picks_the_slowest_bucket_that_fits() -> None:
    policy = SlackFit(PROFILE)
    choices = policy._choices
    assert choices == tuple(sorted(choices, reverse=True))
    assert len(choices) == 8
    for latency_ms, batch, subnet in choices:
        assert latency_ms == PROFILE.latency_ms(subnet, batch)
        decision = policy.decide(Observation(0.0, [latency_ms] * 20))
        assert (decision.subnet, decision.batch) == (subnet, batch)
    assert policy.decide(Observation(0.0, [0.6] * 20)).batch > 0


def test_fixed_sheds_what_it_cannot_answer() -> None:
    # Its own latency is 2 ms; the smallest would still make the second one.
    decision = Fixed(PROFILE).decide(Observation(0.0, (0.1, 1.0, 2.0, 30.0)))
    assert decision == Decision(3, 2, 2, "fixed")
    assert Fixed(PROFILE).decide(Observation(0.0, (1.0, 2.0)), cap=0) == Decision(0, 2, 0, "fixed")


@pytest.mark.parametrize(
    "wrong",
    [
        {"now_ms": math.nan},
        {"arrivals_per_s": math.nan},
        {"arrivals_per_s": -1.0},
        {"workers": 0},
        {"slowdown": 0.0},
        {"slowdown": math.nan},
        {"p95_ms": math.nan},
        {"subnet": -1},
    ],
)
def test_observations_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Observation: got "):
        Observation(**wrong)
    with pytest.raises(ValueError, match=r"arrival_rate: .*previous=nan"):
        arrival_rate(math.nan, 1.0, 50.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"battery": 80.0},
        {"battery": math.nan},
        {"harvest_w": math.inf},
        {"temp_c": math.nan},
        {"cpu_quota": -1.0},
        {"pressure": 12.5},
    ],
)
def test_signals_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"Signals\(.*want a battery and a pressure from 0 to 1"):
        Signals(**wrong)


def test_a_deadline_that_is_no_number_is_not_late() -> None:
    assert Fixed(PROFILE).decide(Observation(100.0, (math.nan,))).batch == 1


def test_numbers_may_come_from_numpy() -> None:
    assert choose(np.array([0.1, 0.2, 0.4]), 0.25) == 1


def test_idle_returns_to_the_ceiling() -> None:
    policy, rate = CapSlack(PROFILE, BUDGET_MS), 0.0
    for _ in range(400):
        rate = arrival_rate(rate, 0.25, 2 * BUDGET_MS)
    busy = policy.decide(Observation(0.0, [BUDGET_MS], rate))
    assert busy.subnet < 3
    # Ten budgets without a request later, one comes.
    rate = arrival_rate(rate, 10 * BUDGET_MS, 2 * BUDGET_MS)
    assert policy.decide(Observation(0.0, [BUDGET_MS], rate)).subnet == 3
    assert policy.decide(Observation(0.0, (), rate)) == Decision(3, 0, 0, "idle")


@pytest.mark.parametrize("policy", [POLICIES[2], POLICIES[4]], ids=repr)
def test_a_hundred_thousand_requests_leave_no_state(policy: Policy) -> None:
    draw = np.random.default_rng(0)
    slack_ms, waiting = draw.uniform(0, 30, 100_000).tolist(), draw.integers(0, 20, 100_000).tolist()
    first = policy.decide(queue(5, 20.0, 800.0))
    before = {name: sys.getsizeof(value) for name, value in vars(policy).items()}
    for slack, length in zip(slack_ms, waiting, strict=True):
        policy.decide(Observation(0.0, deque([slack] * length)))
    assert {name: sys.getsizeof(value) for name, value in vars(policy).items()} == before
    assert policy.decide(queue(5, 20.0, 800.0)) == first


@given(st.integers(0, 3), st.integers(1, 40), st.integers(1, 40))
def test_latency_does_not_fall_with_the_batch(subnet: int, one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert PROFILE.latency_ms(subnet, small) <= PROFILE.latency_ms(subnet, large)
    line = ROWS[subnet][0] + (ROWS[subnet][1] - ROWS[subnet][0]) * (one - 1) / 15
    assert PROFILE.latency_ms(subnet, one) == pytest.approx(line)


@given(st.integers(0, 3), st.integers(1, 30))
def test_max_rate_is_the_best_of_all_batches(subnet: int, max_batch: int) -> None:
    profile = Profile((1, 4, 16), ((1.0, 2.0, 20.0),) * 4, ((1.0, 2.0, 20.0),) * 4)
    best = max(1e3 * b / profile.latency_ms(subnet, b) for b in range(1, max_batch + 1))
    assert profile.max_rate(subnet, max_batch) == pytest.approx(best)


def test_one_measured_batch_grows_in_proportion() -> None:
    profile = Profile((4,), ((2.0,),), ((3.0,),))
    assert [profile.latency_ms(0, batch) for batch in (1, 4, 8)] == [3.0, 3.0, 6.0]


@given(st.floats(0.1, 50), st.floats(0.1, 50))
def test_slowdown_approaches_the_ratio(start: float, true: float) -> None:
    slowdown = start
    for _ in range(800):
        slowdown = PROFILE.slowdown(slowdown, 2, 16, 8.9 * true)
    assert slowdown == pytest.approx(true, rel=1e-5)


def test_slowdown_goes_up_at_once_and_down_slowly() -> None:
    up = PROFILE.slowdown(2.0, 0, 1, 0.5 * 4.0)
    down = PROFILE.slowdown(4.0, 0, 1, 0.5 * 2.0)
    assert up - 2.0 == pytest.approx(0.6)
    assert 4.0 - down == pytest.approx(0.1)


def test_arrival_rate_of_a_steady_stream_and_of_silence() -> None:
    rate = 0.0
    for _ in range(5000):
        rate = arrival_rate(rate, 1.0, 50.0)
    assert rate == pytest.approx(1000, rel=0.02)
    assert arrival_rate(rate, 1000.0, 50.0, num=0) < 1e-5


@pytest.mark.parametrize(
    ("batches", "p50", "p95"),
    [
        ((), ((),), ((),)),
        ((0, 1), ((1.0, 2.0),), ((1.0, 2.0),)),
        ((2, 1), ((1.0, 2.0),), ((1.0, 2.0),)),
        ((1, 1), ((1.0, 2.0),), ((1.0, 2.0),)),
        ((1,), (), ()),
        ((1,), ((1.0,), (2.0,)), ((1.0,),)),
        ((1, 2), ((1.0,),), ((1.0, 2.0),)),
        ((1, 2), ((2.0, 1.0),), ((1.0, 2.0),)),
        ((1,), ((0.0,),), ((1.0,),)),
        ((1,), ((math.nan,),), ((1.0,),)),
        ((1,), ((1.0,),), ((math.inf,),)),
        ((1, 2, 3), ((1.0, math.nan, 3.0),), ((1.0, 2.0, 3.0),)),
    ],
)
def test_no_profile(batches: tuple[int, ...], p50: tuple, p95: tuple) -> None:
    with pytest.raises(ValueError, match=r"^Profile: got"):
        Profile(batches, p50, p95)


def test_settings_that_make_no_sense() -> None:
    for name in ("budget_ms", "max_batch", "horizon", "margin", "headroom"):
        with pytest.raises(ValueError, match=rf"^CapSlack: got {name}=0"):
            CapSlack(PROFILE, **{"budget_ms": 1.0, name: 0})
    with pytest.raises(ValueError, match=r"^Fixed: got subnet=4; want -1 to 3"):
        Fixed(PROFILE, 4)
    with pytest.raises(ValueError, match=r"^SlackFit: got buckets=0"):
        SlackFit(PROFILE, buckets=0)
    with pytest.raises(ValueError, match=r"^decide: got cap=-1"):
        Fixed(PROFILE).decide(Observation(), cap=-1)
    with pytest.raises(ValueError, match=r"^arrival_rate: got gap_ms=-1"):
        arrival_rate(1.0, -1.0, 1.0)
    with pytest.raises(ValueError, match=r"^slowdown: got measured_ms=0"):
        PROFILE.slowdown(1.0, 0, 1, 0.0)
    with pytest.raises(ValueError, match=r"^slowdown: got rise=0"):
        PROFILE.slowdown(1.0, 0, 1, 1.0, rise=0)
