"""Switch costs and their constants: the pruning paper's numbers, and what must hold whatever the sizes are."""

from __future__ import annotations

import doctest
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rheostat.energy import CPU, FLASH, FRAM, LAYOUTS, MEMORIES, PAPER, RECORD_BYTES, Memory, lea, switch_cost

# LeNet-5 of 61,706 weights at 16 bits; sparsities of the pruning paper's Table 2
SIZES = [round(2 * 61_706 * (1 - sparsity)) for sparsity in (0.6024, 0.405, 0.207)]
HIGH, MEDIUM, LOW = range(3)

sizes = st.lists(st.integers(0, 10**6), min_size=2, max_size=5).map(sorted)


def test_the_worked_example() -> None:
    """49.1, 73.4 and 97.9 kB; a byte read and written costs 0.8333 + 0.7692 us and 1.2250 + 1.1615 nJ."""
    assert [round(size / 1e3, 1) for size in SIZES] == [49.1, 73.4, 97.9]
    whole, shared = (switch_cost(SIZES, HIGH, LOW, layout) for layout in ("swap", "differences"))
    assert (round(whole.read_bytes / 1e3, 1), round(shared.read_bytes / 1e3, 1)) == (97.9, 48.8)
    assert (round(whole.time_ms), round(shared.time_ms)) == (157, 78)
    assert (round(whole.energy_mj, 3), round(shared.energy_mj, 3)) == (0.234, 0.116)
    assert 1 - shared.read_bytes / whole.read_bytes == pytest.approx(0.50, abs=0.005)
    some, more = (switch_cost(SIZES, HIGH, MEDIUM, layout) for layout in ("differences", "swap"))
    assert (round(some.read_bytes / 1e3, 1), round(more.read_bytes / 1e3, 1)) == (24.4, 73.4)
    assert 1 - some.read_bytes / more.read_bytes == pytest.approx(0.67, abs=0.005)


def test_level_order_writes_a_record_and_no_weight_in_either_direction() -> None:
    for active in range(3):
        for target in range(3):
            cost = switch_cost(SIZES, active, target, "level order")
            assert (cost.read_bytes, cost.written_bytes) == (0, 8 * (active != target))


def test_differences_are_not_free_downwards() -> None:
    """A dense array must be told which weights are gone; measured elsewhere: as many bytes down as up."""
    down, up = (switch_cost(SIZES, a, b, "differences") for a, b in ((LOW, HIGH), (HIGH, LOW)))
    assert down.written_bytes == up.written_bytes
    assert down.read_bytes == 0


@given(sizes, st.data())
def test_bytes_of_every_layout(sizes: list[int], data: st.DataObject) -> None:
    active, target = (data.draw(st.integers(0, len(sizes) - 1)) for _ in range(2))
    swap, differences, order = (switch_cost(sizes, active, target, layout) for layout in LAYOUTS)
    assert order.written_bytes <= RECORD_BYTES
    assert order.read_bytes == 0
    if active == target:
        assert {swap, differences, order} == {order}
        assert order.energy_mj == order.time_ms == 0
        return
    assert swap.read_bytes == sizes[target]
    if target > active:
        assert differences.written_bytes <= swap.written_bytes
        # through every subnet between, the same weights are read
        steps = [switch_cost(sizes, k, k + 1, "differences") for k in range(active, target)]
        assert sum(step.read_bytes for step in steps) == differences.read_bytes


@given(sizes, st.sampled_from(LAYOUTS))
def test_time_and_energy_are_bytes_times_constants(sizes: list[int], layout: str) -> None:
    memory = Memory("test", read_ns=3, read_nj=5, write_ns=7, write_nj=11, source="")
    cost = switch_cost(sizes, 0, 1, layout, memory)
    assert cost.time_ms == pytest.approx((3 * cost.read_bytes + 7 * cost.written_bytes) * 1e-6)
    assert cost.energy_mj == pytest.approx((5 * cost.read_bytes + 11 * cost.written_bytes) * 1e-6)


def test_constants_are_those_of_their_sources() -> None:
    assert [round(number * 1e6) for number in (PAPER.read_ns, PAPER.read_nj)] == [833_333_333, 1_225_000]
    million = switch_cost([0, 10**6], 0, 1, "swap")  # per MB: 0.8333 s and 1.2250 mJ, 0.7692 s and 1.1615 mJ
    assert million.time_ms == pytest.approx(833.3 + 769.2, abs=0.1)
    assert million.energy_mj == pytest.approx(1.2250 + 1.1615, abs=2e-4)
    assert 2 * FRAM.read_nj == 27
    assert FRAM.read_ns == 2 * 1000  # 64 cycles of 62.5 ns for two bytes
    assert FRAM.read_nj / PAPER.read_nj == pytest.approx(11, abs=0.1)
    assert FLASH.write_nj > 10 * FRAM.write_nj > 100 * PAPER.write_nj
    assert len({memory.name for memory in MEMORIES}) == len(MEMORIES) == 3
    assert all(len(item.source) > 40 for item in (*MEMORIES, CPU, lea(25)))


def test_arithmetic() -> None:
    """What does not depend on the kept fraction aside, LeNet-5 takes 1.012 s in the paper: 281,640 MACs on this CPU."""
    assert 281_640 * CPU.mac_ns * 1e-9 == pytest.approx(1.012, rel=0.03)
    assert lea(1).mac_nj > CPU.mac_nj > lea(10).mac_nj
    assert lea(10_000).mac_nj == pytest.approx(0.53, rel=0.05)
    for length in (1, 10, 256):
        assert length * lea(length).mac_ns == pytest.approx((616 + 1.5 * length) * 62.5)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="layout='sorted'; want one of: swap, differences, level order"):
        switch_cost(SIZES, 0, 1, "sorted")
    for sizes in ([], [math.nan, 2], [1.5, 2], [2, 1], ["1", "2"]):
        with pytest.raises(ValueError, match="want bytes, smallest subnet first, in whole numbers"):
            switch_cost(sizes, 0, 1, "swap")  # pyright: ignore[reportArgumentType]
    for active in (-1, 3, 0.0, "a"):
        with pytest.raises(ValueError, match="want 0 to 2"):
            switch_cost(SIZES, active, 1, "swap")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="got active=0, target=3; want 0 to 2"):
        switch_cost(SIZES, 0, 3, "swap")
    with pytest.raises(ValueError, match="target=-1"):
        switch_cost(SIZES, 0, -1, "swap")
    with pytest.raises(ValueError, match="want bytes, smallest subnet first"):
        switch_cost(SIZES[::-1], 0, 1, "swap")
    with pytest.raises(ValueError, match="length=0"):
        lea(0)


def test_the_example_in_the_documentation() -> None:
    page = Path(__file__).parents[1] / "docs" / "energy.md"
    done = doctest.testfile(str(page), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert done.attempted == 3
    assert done.failed == 0
