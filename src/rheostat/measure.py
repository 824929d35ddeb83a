"""Measurements of an engine: accuracy; latency as it is delivered, all subnets in the same slices of time."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rheostat.run.engine import Engine
from rheostat.run.policy import Profile

if TYPE_CHECKING:
    from torch import nn


def latency(engine: Engine, x: np.ndarray, repeats: int = 200, warmup: int = 10) -> list[tuple[float, float]]:
    """Time every subnet on `x` and return (p50, p95) in milliseconds for each, smallest first.

    x: float32 [N, C, H, W]; the whole batch counts as one inference. The subnets take turns, so that whatever else
    the machine does falls on all of them alike. `warmup` rounds come first and are not counted. The engine's active
    subnet is restored. Raises ValueError for fewer than one repeat.

    >>> with Engine("digits.safetensors", threads=1) as engine:  # doctest: +SKIP
    ...     latency(engine, np.zeros((1, 1, 8, 8), np.float32))
    [(0.011, 0.012), (0.016, 0.018), (0.022, 0.024), (0.03, 0.033)]
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"latency: got repeats={repeats}, warmup={warmup}; want at least 1 and 0")
    active = engine.active
    try:
        times_ms = _by_turns([(engine, index) for index in range(len(engine.subnets))], x, repeats, warmup)
    finally:
        engine.select(active)
    p50, p95 = np.percentile(times_ms, (50, 95), axis=1)
    return [(float(a), float(b)) for a, b in zip(p50, p95, strict=True)]


def engine_ms(x: np.ndarray, *, threads: int = 1, repeats: int = 50) -> Callable[[nn.Module], float]:
    """Give a function that says how many milliseconds a module takes on `x` in the engine: a cost for `slim`.

    x: float32 [N, C, H, W]; the whole batch counts as one inference. Each module is traced, saved and loaded. It takes
    turns with the first one that was measured, and its time is that one's times the median ratio, so that a machine
    which slows down in between does not change what is faster. The function raises ValueError for modules that `trace`
    refuses, ArtifactError for those that the engine does not run. Needs PyTorch.

    >>> slimmed = slim(net, validation, budgets=(0.2, 0.4), cost=engine_ms(x))  # doctest: +SKIP
    """
    if repeats < 1:
        raise ValueError(f"engine_ms: got repeats={repeats}; want at least 1")
    first: Engine | None = None
    first_ms = 0.0

    def milliseconds(module: nn.Module) -> float:
        nonlocal first, first_ms
        engine = _engine_of(module, x, threads)
        if first is None:
            first, first_ms = engine, float(np.median(_by_turns([(engine, 0)], x, repeats)))
            return first_ms
        with engine:
            own, reference = _by_turns([(engine, 0), (first, 0)], x, repeats)
        return first_ms * float(np.median(own / reference))

    return milliseconds


def accuracy(engine: Engine, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    """Fraction of right answers of every subnet, smallest first.

    batches: (x float32 [N, C, H, W], labels integers [N]), read once for all subnets. The engine's active subnet is
    restored. Raises ValueError when there is no sample, for labels that are not one integer for each, and for an engine
    that does not give one output [N, classes].

    >>> with Engine("digits.safetensors") as engine:  # doctest: +SKIP
    ...     accuracy(engine, [(x, labels)])
    [0.9688, 0.9833, 0.9866, 0.9889]
    """
    active, right, count = engine.active, [0] * len(engine.subnets), 0
    try:
        for x, labels in batches:
            labels = np.asarray(labels)
            if labels.shape != (len(x),) or labels.dtype.kind not in "iu":
                raise ValueError(
                    f"accuracy: got labels {labels.dtype} {list(labels.shape)} for {len(x)} samples; want integers [N]"
                )
            count += len(labels)
            for index in range(len(right)):
                engine.select(index)
                logits = engine(x)
                if isinstance(logits, tuple) or logits.ndim != 2:
                    raise ValueError(
                        "accuracy: got several outputs, or an image; want one output [N, classes]"
                    )
                right[index] += int((logits.argmax(1) == labels).sum())
    finally:
        engine.select(active)
    if count == 0:
        raise ValueError("accuracy: got no samples; want at least one batch")
    return [number / count for number in right]


def calibrate(
    engine: Engine, x: np.ndarray, batches: Sequence[int] | None = None, repeats: int = 100
) -> Profile:
    """Measure every subnet for several batch sizes on this machine: the profile that policies work with.

    x: float32 [N, C, H, W]; a batch is its first samples. batches: sizes up to N, rising; None means 1, 2, 4, … and
    N. The machine should be as busy as usual; what changes later is caught by `Profile.slowdown`. A larger batch that
    was measured faster than a smaller one counts as equally fast. Raises ValueError for sizes that x cannot give.

    >>> with Engine("digits.safetensors", threads=1) as engine:  # doctest: +SKIP
    ...     calibrate(engine, np.zeros((16, 1, 8, 8), np.float32)).latency_ms(0, 8)
    0.061
    """
    if batches is None:
        batches = sorted({1 << power for power in range(len(x).bit_length())} | {len(x)})
    if len(batches) == 0 or min(batches) < 1 or max(batches) > len(x):
        raise ValueError(f"calibrate: got batches={list(batches)} for {len(x)} samples; want 1 to {len(x)}")
    # Axes: batch, subnet, percentile.
    measured = np.array([latency(engine, x[:size], repeats) for size in batches])
    p50, p95 = np.maximum.accumulate(measured, axis=0).transpose(2, 1, 0).tolist()
    return Profile(tuple(batches), tuple(map(tuple, p50)), tuple(map(tuple, p95)))


def _by_turns(
    subnets: Sequence[tuple[Engine, int]], x: np.ndarray, repeats: int, warmup: int = 10
) -> np.ndarray:
    """Milliseconds [subnet, repeat] of subnets that run on `x` one after the other, again and again."""
    times_ms = np.empty((len(subnets), repeats))
    for repeat in range(-warmup, repeats):
        for row, (engine, index) in enumerate(subnets):
            engine.select(index)
            start = time.perf_counter_ns()
            engine(x)
            elapsed = time.perf_counter_ns() - start
            if repeat >= 0:
                times_ms[row, repeat] = elapsed / 1e6
    return times_ms


def _engine_of(module: nn.Module, x: np.ndarray, threads: int) -> Engine:
    import torch

    from rheostat.train.graph import trace
    from rheostat.train.lower import save
    from rheostat.train.sample import uniform
    from rheostat.train.supernet import Supernet

    graph = trace(module, torch.from_numpy(x))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "module.safetensors"
        save(Supernet(graph, uniform(graph, (1.0,))), path)
        return Engine(path, threads=threads)
