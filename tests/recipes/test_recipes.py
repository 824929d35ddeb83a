"""Every recipe, on real digits, from the first line to the artifact: `--smoke` is the recipe itself, only shorter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import rheostat as rh
from rheostat.artifact import read_program
from rheostat_recipes.data import load
from rheostat_recipes.run import Result, Run
from rheostat_recipes.uniform import RECIPES, WIDTHS, digits, resnet20_cifar10_distill


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_smoke(recipe: Callable[[Run], Result], tmp_path: Path) -> None:
    result = recipe(Run(tmp_path / "out", smoke=True, seed=3))
    program = read_program(result.artifact)
    assert [info.name for info in program.subnets] == [str(width) for width in WIDTHS]
    record = json.loads(result.record.read_text(encoding="utf-8"))
    assert record["recipe"] == recipe.__name__
    assert record["command"] == f"rheostat train {recipe.__name__} --smoke --seed 3"
    assert (record["data"], record["smoke"], record["epochs"], record["seed"]) == ("digits", True, 2, 3)
    assert record["seconds"] > 0
    assert [s["accuracy"] for s in record["subnets"]] == [info.accuracy for info in program.subnets]
    assert (tmp_path / "out" / "checkpoint.safetensors").exists()
    # The accuracies of the training are those of the file in the engine.
    images = load("digits", shape=program.input.shape)
    x = images.normalized(images.test_images)
    with rh.Engine(result.artifact, threads=1) as engine:
        for info in program.subnets:
            engine.select(info.name)
            right = np.mean(engine(x).argmax(1) == images.test_labels)
            assert right == pytest.approx(info.accuracy, abs=1 / len(x) + 1e-9)


def test_resume_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    first = digits(Run(tmp_path, smoke=True))
    tensors = first.artifact.read_bytes()
    again = digits(Run(tmp_path, smoke=True, resume=True))
    assert again.artifact.read_bytes() == tensors


def test_a_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    one, two, three = (
        digits(Run(tmp_path / name, smoke=True, seed=seed)).artifact.read_bytes()
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert one == two
    assert one != three


def test_published_weights_need_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got no --data DIR; want one with resnet_cifar10/\*\.th"):
        resnet20_cifar10_distill(Run(tmp_path))
    with pytest.raises(ValueError, match=r"resnet20-12fca82f\.th: no such file"):
        resnet20_cifar10_distill(Run(tmp_path, data_dir=tmp_path))
