"""What the figures are drawn from: the first seed's artifact, means over seeds, a network for every recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rheostat_recipes import figures
from rheostat_recipes.queue import RECIPES
from rheostat_recipes.tables import missing

ALL = [figures.load_figure("dynamic", number) for number in (4, 5, 6, 7)]


def put(folder: Path, seed: int, accuracies: tuple[float, float], artifact: str | None) -> None:
    folder.mkdir(exist_ok=True)
    subnets = [
        {"name": n, "macs": m, "accuracy": a} for n, m, a in zip("ab", (30, 10), accuracies, strict=True)
    ]
    record = {"recipe": "one", "seed": seed, "subnets": subnets, "artifact": artifact, "smoke": False}
    (folder / f"one-seed{seed}.json").write_text(json.dumps(record))


def test_figures_name_recipes_that_exist() -> None:
    recipes = {recipe.__name__ for recipe in RECIPES}
    for figure in ALL:
        assert {series.recipe for series in figure.series} == set(figure.needs) <= recipes
        assert figure.kind in ("channels", "latency", "macs")
    for number in (1, 2, 3, 8):
        with pytest.raises(ValueError, match=f"got dynamic {number}; want one of: dynamic 4, dynamic 5"):
            figures.load_figure("dynamic", number)


def test_every_figure_says_command_expectation_and_time() -> None:
    for number, function in zip((4, 5, 6, 7), figures.FIGURES.values(), strict=True):
        text = " ".join((function.__doc__ or "").split())
        for words in (f"Command: `rheostat figure dynamic {number} --out FILE", "Expected: ", "Time: "):
            assert words in text


def test_points_are_means_over_seeds_smallest_first(tmp_path: Path) -> None:
    put(tmp_path / "0", 0, (0.9, 0.5), None)
    put(tmp_path / "1", 1, (0.8, 0.6), None)
    assert figures.sizes_and_accuracies("one", [tmp_path]) == [
        (10, pytest.approx(0.55)),
        (30, pytest.approx(0.85)),
    ]
    assert figures.sizes_and_accuracies("two", [tmp_path]) == []
    assert figures.length("one", [tmp_path]) == ""
    record = json.loads((tmp_path / "0" / "one-seed0.json").read_text())
    (tmp_path / "0" / "two.json").write_text(json.dumps(record | {"recipe": "two", "max_epochs": 5}))
    assert figures.length("two", [tmp_path]) == ", 5 epochs"
    assert missing({"one": (), "two": ()}, [tmp_path], (0, 2)) == [("two", 0), ("one", 2), ("two", 2)]


def test_the_artifact_is_the_first_seeds_that_is_there(tmp_path: Path) -> None:
    put(tmp_path / "0", 0, (0.9, 0.5), "gone.safetensors")
    put(tmp_path / "2", 2, (0.9, 0.5), "one.safetensors")
    put(tmp_path / "1", 1, (0.9, 0.5), None)
    assert figures.artifact("one", [tmp_path]) is None
    (tmp_path / "2" / "one.safetensors").touch()
    assert figures.artifact("one", [tmp_path]) == tmp_path / "2" / "one.safetensors"


@pytest.mark.parametrize(
    ("recipe", "classes", "shortcut"),
    [
        ("resnet20_cifar10_snn", 10, False),
        ("resnet20_cifar10_multi_path", 10, True),
        ("resnet18_imagenet_multi_path", 1000, True),
        ("resnet18_imagenette_snn", 10, False),
    ],
)
def test_networks_are_those_of_the_recipes(recipe: str, classes: int, shortcut: bool) -> None:
    network = figures.network(recipe).eval()
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, classes)
    assert any(".shortcut." in name for name in network.state_dict()) == shortcut


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_no_gpu_curve(tmp_path: Path) -> None:
    assert figures.gpu_latencies_ms(tmp_path / "none.safetensors", "resnet20_cifar10_snn") == []
