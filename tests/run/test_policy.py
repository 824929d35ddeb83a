"""The choice of a subnet: the definition, written the long way, on every input that hypothesis can think of."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rheostat import choose

latencies = st.lists(st.floats(0, 1e3), min_size=1, max_size=9)
budgets = st.floats(-1, 2e3)


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
