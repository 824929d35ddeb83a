"""Latency on a clock that the test turns."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rheostat as rh
from rheostat import measure
from rheostat.measure import accuracy, calibrate, engine_ms, latency


class Answers:
    """An engine of two subnets: the first answers with the sign of the input, the second as it should."""

    active, subnets = 1, ("0.5", "1.0")

    def select(self, index: int) -> None:
        self.active = index

    def __call__(self, x: np.ndarray) -> np.ndarray:
        chosen = (x[:, 0] > 0) if self.active == 0 else x[:, 1]
        return np.eye(2)[chosen.astype(int)]


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_accuracy_counts_every_sample_once(batch: int) -> None:
    labels = np.random.default_rng(0).integers(0, 2, 53)
    x = np.stack([np.random.default_rng(1).standard_normal(53), labels], 1)
    engine: Any = Answers()
    batches = ((x[i : i + batch], labels[i : i + batch]) for i in range(0, 53, batch))
    assert accuracy(engine, batches) == [np.mean((x[:, 0] > 0) == labels), 1.0]
    assert engine.active == 1
    with pytest.raises(ValueError, match="got no samples"):
        accuracy(engine, [])
    for labels in (np.zeros((4, 1), int), np.zeros(1, int), np.zeros(4), np.eye(2, dtype=int)[[0, 1, 0, 1]]):
        with pytest.raises(ValueError, match=r"for 4 samples; want integers \[N\]"):
            accuracy(engine, [(x[:4], labels)])
    assert engine.active == 1


def test_accuracy_is_of_one_output_of_classes() -> None:
    class Image(Answers):
        def __call__(self, x: np.ndarray) -> Any:
            return np.zeros((len(x), 2, 3, 3), np.float32)

    class Several(Answers):
        def __call__(self, x: np.ndarray) -> Any:
            return super().__call__(x), super().__call__(x)

    for engine in (Image(), Several()):
        with pytest.raises(ValueError, match=r"want one output \[N, classes\]"):
            accuracy(engine, [(np.zeros((4, 2)), np.zeros(4, int))])  # pyright: ignore[reportArgumentType]


class Clock:
    """An engine whose subnets take known times, and the clock that they move."""

    def __init__(self, *times_ms: tuple[float, ...]) -> None:
        self.times_ms, self.now_ns, self.active = times_ms, 0, 1
        self.subnets = tuple(map(str, range(len(times_ms))))
        self.ran: list[int] = []

    def perf_counter_ns(self) -> int:
        return self.now_ns

    def select(self, index: int) -> None:
        self.now_ns += 5_000_000  # not part of an inference
        self.active = index

    def __call__(self, x: np.ndarray) -> np.ndarray:
        times = self.times_ms[self.active]
        self.now_ns += round(1e6 * times[self.ran.count(self.active) % len(times)])
        self.ran.append(self.active)
        return x


def measured(monkeypatch: pytest.MonkeyPatch, clock: Clock, **settings: int) -> list[tuple[float, float]]:
    monkeypatch.setattr(measure, "time", clock)
    engine: Any = clock
    return latency(engine, np.zeros((1, 1), np.float32), **settings)


def test_percentiles_are_those_of_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tuple(float(ms) for ms in np.random.default_rng(0).permutation(100) + 1)
    got = measured(monkeypatch, Clock((2.0,), slow), repeats=100, warmup=0)
    assert got[0] == (2.0, 2.0)
    assert got[1] == pytest.approx(tuple(np.percentile(slow, [50, 95])))


def test_subnets_take_turns_and_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock((100.0, 1.0, 1.0, 1.0), (100.0, 2.0, 2.0, 2.0), (100.0, 3.0, 3.0, 3.0))
    got = measured(monkeypatch, clock, repeats=3, warmup=1)
    assert clock.ran == [0, 1, 2] * 4
    assert got == [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]


def test_the_active_subnet_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock((1.0,), (1.0,), (1.0,))
    measured(monkeypatch, clock, repeats=1)
    assert clock.active == 1


@pytest.mark.parametrize("settings", [{"repeats": 0}, {"warmup": -1}])
def test_nothing_to_measure(monkeypatch: pytest.MonkeyPatch, settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="want at least 1 and 0"):
        measured(monkeypatch, Clock((1.0,), (1.0,)), **settings)


class Batches(Clock):
    """A clock on which every sample takes the same time, but the third and the fourth are free."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.now_ns += round(1e6 * self.times_ms[self.active][0] * min(len(x), 2))
        return x


@pytest.mark.parametrize(("num", "batches"), [(1, (1,)), (4, (1, 2, 4)), (6, (1, 2, 4, 6))])
def test_calibrate_measures_powers_of_two_and_all(
    monkeypatch: pytest.MonkeyPatch, num: int, batches: tuple[int, ...]
) -> None:
    engine: Any = Batches((1.0,), (3.0,))
    monkeypatch.setattr(measure, "time", engine)
    profile = calibrate(engine, np.zeros((num, 1), np.float32), repeats=2)
    assert profile.batches == batches
    assert profile.latency_ms_p50 == profile.latency_ms_p95
    assert profile.latency_ms_p50[1] == pytest.approx([3.0 * min(size, 2) for size in batches])


def test_a_larger_batch_is_never_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = Clock((5.0,) * 11 + (2.0,) * 11)  # ten rounds of warming up, one that counts
    monkeypatch.setattr(measure, "time", engine)
    engine.active = 0
    profile = calibrate(engine, np.zeros((2, 1), np.float32), repeats=1)
    assert profile.latency_ms_p50 == ((5.0, 5.0),)


@pytest.mark.parametrize("batches", [(), (0, 1), (1, 5), (2, 1)])
def test_batches_that_x_cannot_give(monkeypatch: pytest.MonkeyPatch, batches: tuple[int, ...]) -> None:
    engine: Any = Batches((1.0,), (3.0,))
    monkeypatch.setattr(measure, "time", engine)
    with pytest.raises(ValueError, match=r"got batches=(\(|\[)"):
        calibrate(engine, np.zeros((4, 1), np.float32), batches, repeats=1)


class Slowing:
    """The real clock of a machine that becomes slower when the test says so."""

    slowdown = 1

    def perf_counter_ns(self) -> int:
        return self.slowdown * time.perf_counter_ns()


def test_a_machine_that_slows_down_does_not_make_modules_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Slowing()
    monkeypatch.setattr(measure, "time", clock)
    cost = engine_ms(np.zeros((1, 8, 16, 16), np.float32))
    module = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 4))
    first = cost(module)
    clock.slowdown = 1000
    assert 0 < cost(module) < 100 * first


def test_what_the_engine_cannot_run_has_no_milliseconds() -> None:
    cost = engine_ms(np.zeros((1, 8, 16), np.float32))
    with pytest.raises(rh.ArtifactError, match="the engine cannot run this model"):
        cost(Recurrent())
    with pytest.raises(ValueError, match="engine_ms: got repeats=0"):
        engine_ms(np.zeros((1, 4), np.float32), repeats=0)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(16, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gru(x)[0]
