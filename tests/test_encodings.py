"""Encoded levels: the bytes by hand, one way to write any levels, and nothing else is read."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rheostat.encodings import codes, decode, encode
from rheostat.program import ENCODINGS, LevelCode
from rheostat.spec import ArtifactError


def array(*numbers: Any) -> np.ndarray:
    return np.array(numbers, np.uint8)


def bits(text: str) -> np.ndarray:
    digits = text.replace(" ", "")
    return array(*(int(digits[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(digits), 8)))


# Two rows of three weights, three subnets: 0 1 3 / 2 0 3.
LEVELS = array([0, 1, 3], [2, 0, 3])
BY_HAND = {
    # two bits a weight
    ("bitmap", 1): bits("00 01 11 10 00 11"),
    # kept by the largest, of these kept by the middle one, of these kept by the smallest
    ("nested", 1): bits("110110 1101 101"),
    # level 0 at 0 and 4, level 1 at 1, level 2 at 3: gaps from the weight before, the first from -1
    ("delta", 1): array(1, 4, 2, 4),
    # 2 patterns less 1; 000111 and 100011 filled up; ids 0 1
    ("pattern", 3): np.concatenate([array(0, 1), bits("000111 00"), bits("100011 00"), bits("0 1")]),
    # 3 patterns: 0001, 1100, 1110... as 0 1 | 3 2 | 0 3
    ("pattern", 2): np.concatenate([array(0, 2), bits("0001"), bits("0011"), bits("1110"), bits("00 10 01")]),
}


@pytest.mark.parametrize(("encoding", "group"), BY_HAND)
def test_bytes_by_hand(encoding: str, group: int) -> None:
    want = BY_HAND[encoding, group]
    code = LevelCode((2, 3), encoding, group, (2, 1, 1), len(want))
    assert encode(code, LEVELS).tolist() == want.tolist()
    assert np.array_equal(decode(code, want), LEVELS)
    if group != 2:  # a row is 3 long: pairs run over its end, which is allowed
        assert code in codes(LEVELS, 3)


def test_an_escape_goes_255_on() -> None:
    for gap, want in ((255, [255]), (256, [0, 1]), (510, [0, 255]), (511, [0, 0, 1]), (1000, [0, 0, 0, 235])):
        levels = np.ones(gap, np.uint8)
        levels[-1] = 0
        code = LevelCode((gap,), "delta", 1, (1,), len(want))
        assert encode(code, levels).tolist() == want
        assert np.array_equal(decode(code, array(*want)), levels)
        assert code in codes(levels, 1)


@st.composite
def leveled(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    num_subnets = draw(st.sampled_from([1, 2, 3, 4, 7, 8, 64]))
    shape = draw(hnp.array_shapes(max_dims=4, max_side=6))
    some = st.one_of(st.integers(0, num_subnets), st.sampled_from([0, num_subnets]))
    return draw(hnp.arrays(np.uint8, shape, elements=some)), num_subnets


@given(leveled())
@settings(max_examples=150, deadline=None)
def test_every_encoding_comes_back_and_says_its_size(case: tuple[np.ndarray, int]) -> None:
    levels, num_subnets = case
    found = codes(levels, num_subnets)
    assert {code.encoding for code in found} >= {"bitmap", "nested", "delta"}
    assert [c.index_bytes for c in found] == sorted(c.index_bytes for c in found)
    for code in found:
        data = encode(code, levels)
        assert data.dtype == np.uint8
        assert data.shape == (code.index_bytes,)
        got = decode(code, data)
        assert got.dtype == np.uint8
        assert np.array_equal(got, levels)
        assert [code.kept(k) for k in range(num_subnets)] == [(levels <= k).sum() for k in range(num_subnets)]


@given(leveled(), st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_bytes_are_refused_or_are_the_code_of_other_levels(case: Any, data: st.DataObject) -> None:
    levels, num_subnets = case
    code = data.draw(st.sampled_from(codes(levels, num_subnets)))
    damaged = encode(code, levels).copy()
    for _ in range(data.draw(st.integers(1, 3))):
        if damaged.size:
            damaged[data.draw(st.integers(0, damaged.size - 1))] ^= data.draw(st.integers(1, 255))
    try:
        other = decode(code, damaged)
    except ArtifactError:
        return
    assert np.array_equal(encode(code, other), damaged)


@given(st.binary(max_size=60), st.sampled_from(ENCODINGS), st.data())
@settings(max_examples=400, deadline=None)
def test_any_bytes_are_refused_or_are_a_code(raw: bytes, encoding: str, data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    size = int(np.prod(shape))
    group = data.draw(st.sampled_from([g for g in range(1, size + 1) if size % g == 0]))
    counts = tuple(data.draw(st.lists(st.integers(0, size), min_size=1, max_size=3)))
    code = LevelCode(shape, encoding, group if encoding == "pattern" else 1, counts, len(raw))
    try:
        levels = decode(code, np.frombuffer(raw, np.uint8))
    except ArtifactError:
        return
    assert encode(code, levels).tobytes() == raw


def chosen(levels: np.ndarray, num_subnets: int) -> tuple[str, int, int]:
    code = codes(levels, num_subnets)[0]
    return code.encoding, code.group, code.index_bytes


def test_what_is_structured_costs_next_to_nothing() -> None:
    """The encoding that suits each granularity wins, at the size that its structure predicts."""
    rng = np.random.default_rng(0)
    rows = np.broadcast_to(rng.integers(0, 4, (64, 1)).astype(np.uint8), (64, 96))
    assert chosen(np.ascontiguousarray(rows), 3) == ("pattern", 32, 2 + 4 * 8 + 48)
    columns = np.tile(rng.integers(0, 4, 96).astype(np.uint8), (64, 1))
    assert chosen(columns, 3) == ("pattern", 96, 2 + 24)
    # One of eight patterns of 4 cells in each 3x3 kernel: 3 bits would do, ids have 4.
    eight = [
        np.isin(np.arange(9), cells) for cells in itertools.islice(itertools.combinations(range(9), 4), 8)
    ]
    kernels = 1 - np.array(eight)[rng.integers(0, 8, (32, 16))].astype(np.uint8)
    assert chosen(kernels.reshape(32, 16, 3, 3), 1) == ("pattern", 9, 2 + 8 * 2 + 256)
    # Each 5x5 kernel orders its five rows: one word holds all levels.
    orders = np.array(list(itertools.permutations([0, 1, 2, 3, 3])), np.uint8)
    rows_of_kernels = orders[rng.integers(0, len(orders), (64, 32))]
    levels = np.repeat(rows_of_kernels[..., None], 5, axis=3)
    assert chosen(levels, 3) == ("pattern", 25, 2 + 60 * 7 + 2048)
    # 1:4 in the small subnet, everything in the large one: four patterns.
    one = 1 - np.eye(4, dtype=np.uint8)
    assert chosen(one[rng.integers(0, 4, (64, 24))].reshape(64, 96), 2) == ("pattern", 4, 2 + 4 + 384)


def test_what_has_no_structure_takes_the_nested_bitmaps_or_the_gaps() -> None:
    rng = np.random.default_rng(0)
    score = rng.random((84, 120))
    some = np.searchsorted([0.2, 0.3, 0.4], score).astype(np.uint8)
    encoding, _, size = chosen(some, 3)
    assert encoding == "nested"
    assert size == -(-(84 * 120 + (some <= 1).sum() + (some <= 2).sum()) // 8)
    few = np.searchsorted([0.01, 0.02, 0.03], score).astype(np.uint8)
    assert chosen(few, 3)[0] == "delta"


# ---- what no encoder wrote ----

REFUSED: dict[str, tuple[LevelCode, np.ndarray, str]] = {
    "a byte too many": (LevelCode((4,), "bitmap", 1, (4,), 2), array(0, 0), "2 bytes for 4 numbers"),
    "a byte too few": (LevelCode((9,), "bitmap", 1, (9,), 1), array(0), "1 bytes for 9 numbers"),
    "another size than it says": (LevelCode((4,), "bitmap", 1, (4,), 1), array(0, 0), "2 bytes of levels"),
    "a level too high": (LevelCode((2,), "bitmap", 1, (1, 0), 1), bits("00 11"), "a level is 3; want at most 2"),
    "bits after the end": (LevelCode((2,), "bitmap", 1, (1, 0), 1), bits("00 10 01"), "after the last number"),
    "other counts": (LevelCode((2,), "bitmap", 1, (1, 0), 1), bits("00 01"), "counts are [1, 1]; want [1, 0]"),
    "a plane too full": (LevelCode((4,), "nested", 1, (1, 1), 1), bits("1110 10"), "3 weights up to level 1; want 2"),
    "a plane too empty": (LevelCode((4,), "nested", 1, (1, 1), 1), bits("1100 00"), "0 weights up to level 0; want 1"),
    "bits after the planes": (LevelCode((4,), "nested", 1, (1, 1), 1), bits("1100 10 1"), "after the last number"),
    "a gap beyond the end": (LevelCode((4,), "delta", 1, (1,), 1), array(5), "at 4; want at most 3"),
    "gaps far beyond the end": (LevelCode((4,), "delta", 1, (1,), 9), array(*[0] * 8, 1), "at 2040; want at most 3"),
    "gaps too few": (LevelCode((4,), "delta", 1, (1, 1), 1), array(1), "1 gaps; want 2"),
    "gaps too many": (LevelCode((4,), "delta", 1, (1, 0), 2), array(1, 1), "2 gaps; want 1"),
    "an escape at the end": (LevelCode((4,), "delta", 1, (1,), 2), array(1, 0), "none open at the end"),
    "a weight of two levels": (LevelCode((4,), "delta", 1, (1, 1), 2), array(2, 2), "counts are [0, 1]; want [1, 1]"),
    "no patterns": (LevelCode((4,), "pattern", 2, (4,), 1), array(0), "no number of patterns"),
    "patterns without end": (LevelCode((4,), "pattern", 2, (4,), 3), array(255, 255, 0), "for 65536 patterns; want"),
    "a pattern twice": (
        LevelCode((4,), "pattern", 2, (4,), 5), array(0, 1, 0, 0, 0), "not sorted, or one is there twice"
    ),
    "patterns out of order": (
        LevelCode((4,), "pattern", 2, (2,), 5), np.concatenate([array(0, 1), bits("11"), bits("00"), bits("01")]),
        "not sorted",
    ),
    "an id beyond the patterns": (
        LevelCode((6,), "pattern", 2, (3,), 6),
        np.concatenate([array(0, 2), bits("00"), bits("01"), bits("11"), bits("00 01 11")]), "an id is 3; want at most",
    ),
    "a pattern that no group has": (
        LevelCode((4,), "pattern", 2, (4,), 5), np.concatenate([array(0, 1), bits("00"), bits("11"), bits("00")]),
        "no group has pattern 1 of 2",
    ),
    "bits after a pattern": (
        LevelCode((4,), "pattern", 2, (4,), 3), np.concatenate([array(0, 0), bits("001")]), "last level of a pattern"
    ),
    "bits after the ids": (
        LevelCode((4,), "pattern", 2, (2,), 5), np.concatenate([array(0, 1), bits("00"), bits("11"), bits("011")]),
        "after the last number",
    ),
    "a pattern with a level too high": (
        LevelCode((2,), "pattern", 2, (1, 0), 3), np.concatenate([array(0, 0), bits("0011")]), "a level is 3"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(name: str) -> None:
    code, data, expected = REFUSED[name]
    with pytest.raises(ArtifactError) as caught:
        decode(code, data)
    assert expected in str(caught.value)
