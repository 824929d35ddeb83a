"""The recipes of shared-weights training, on real digits, from the dense network to the engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import rheostat as rh
from rheostat.artifact import read
from rheostat_recipes import one_network
from rheostat_recipes.data import load
from rheostat_recipes.run import Result, Run
from rheostat_recipes.shared_weights import (
    HIGH,
    KWS,
    LENET5,
    NAMES,
    RECIPES,
    kws_levels,
    lenet5_mnist_levels,
    lenet5_mnist_levels_high,
    lenet5_mnist_levels_raw,
)

QUICK = {
    lenet5_mnist_levels: LENET5,
    lenet5_mnist_levels_raw: LENET5,
    lenet5_mnist_levels_high: HIGH,
    kws_levels: KWS,
}


@pytest.mark.parametrize(
    "recipe",
    [r if r in QUICK else pytest.param(r, marks=pytest.mark.slow) for r in RECIPES],
    ids=lambda recipe: recipe.__name__,
)
def test_smoke(recipe: Callable[[Run], Result], tmp_path: Path) -> None:
    result = recipe(Run(tmp_path / "out", smoke=True, seed=3))
    assert result.artifact is not None
    program, tensors = read(result.artifact)
    record = json.loads(result.record.read_text(encoding="utf-8"))
    assert tuple(info.name for info in program.subnets) == NAMES
    levels = [array for name, array in tensors.items() if name.endswith("@levels")]
    total = sum(level.size for level in levels)
    for k, subnet in enumerate(record["subnets"]):
        assert subnet["sparsity"] == pytest.approx(1 - sum((level <= k).sum() for level in levels) / total)
        if recipe in QUICK:
            assert subnet["sparsity"] == pytest.approx(QUICK[recipe][k], abs=5e-4)
    images = load("digits", shape=program.input.shape)
    x = images.normalized(images.test_images)
    with rh.Engine(result.artifact, threads=1) as engine:
        for k, info in enumerate(program.subnets):
            engine.select(k)
            right = np.mean(engine(x).argmax(1) == images.test_labels)
            assert right == pytest.approx(info.accuracy, abs=2 / len(x))


@pytest.mark.parametrize("recipe", one_network.RECIPES, ids=lambda recipe: recipe.__name__)
def test_one_network(recipe: Callable[[Run], Result], tmp_path: Path) -> None:
    """Whatever the way, the same sparsity of each layer in the end; and the engine runs what was measured."""
    result = recipe(Run(tmp_path / "out", smoke=True, seed=3))
    program, tensors = read(result.artifact)
    for name, sparsity in one_network.SPARSITY.items():
        assert (tensors[name] == 0).mean() == pytest.approx(sparsity, abs=0.5 / tensors[name].size)
    images = load("digits", shape=program.input.shape)
    x = images.normalized(images.test_images)
    with rh.Engine(result.artifact, threads=1) as engine:
        right = np.mean(engine(x).argmax(1) == images.test_labels)
    assert right == pytest.approx(program.subnets[0].accuracy, abs=2 / len(x))
