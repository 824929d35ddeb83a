"""The recipes of Table 3, on digits: background, sampling, the subnets together and alone, and the table's row."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import rheostat as rh
from rheostat.artifact import read_program
from rheostat_recipes.nonuniform import (
    IMAGENET,
    IMAGENETTE_FAMILY,
    NINE,
    RECIPES,
    SHORTCUT,
    SINGLE_PATH,
    resnet20_cifar10_multi_path_free,
    resnet20_cifar10_multi_path_nested,
    resnet20_cifar10_single_path,
    resnet20_cifar10_single_path_individual,
)
from rheostat_recipes.run import Result, Run, check_length, write_json
from rheostat_recipes.tables import load_table
from rheostat_recipes.task import CIFAR10
from rheostat_recipes.uniform import alone

ELSEWHERE = {
    resnet20_cifar10_multi_path_free,
    resnet20_cifar10_multi_path_nested,
    resnet20_cifar10_single_path,
    resnet20_cifar10_single_path_individual,
}
SUBNETS = "resnet20_cifar10_subnets-0/subnets-resnet20_cifar10_{}-seed0.json"


def test_single_path_together(tmp_path: Path) -> None:
    run = Run(tmp_path, smoke=True)
    together = resnet20_cifar10_single_path(run)
    assert together.artifact is not None
    program = read_program(together.artifact)
    assert [info.name for info in program.subnets] == ["subnet1", "subnet2", "subnet3", "subnet4"]
    for info, target in zip(program.subnets, SINGLE_PATH.macs, strict=False):
        assert 0.95 * target <= info.macs <= target
    assert not any(group.pinned for group in program.groups if "shortcut" in group.name)
    sampled = json.loads((tmp_path / SUBNETS.format("single_path")).read_text())
    assert [s["macs"] for s in sampled["snapshots"]] == [info.macs for info in program.subnets[:3]]


def test_what_a_smoke_run_sampled_is_not_built_on(tmp_path: Path) -> None:
    run = Run(tmp_path, smoke=True, data_dir=tmp_path)
    path = tmp_path / SUBNETS.format("single_path")
    write_json(path, {"subnets": [], "smoke": True, "max_epochs": None})
    for other in (replace(run, smoke=False), replace(run, max_epochs=20)):
        with pytest.raises(
            ValueError, match=r"single_path-seed0\.json: made with .*; want .*, as in this run"
        ):
            check_length(path, other)
    assert check_length(path, run)["subnets"] == []


@pytest.mark.slow
def test_single_path_alone(tmp_path: Path) -> None:
    run = Run(tmp_path, smoke=True)
    program = read_program(resnet20_cifar10_single_path(run).artifact)
    sampled = tmp_path / SUBNETS.format("single_path")
    before = sampled.read_bytes()
    resnet20_cifar10_single_path_individual(run)
    assert sampled.read_bytes() == before
    records = [json.loads(p.read_text()) for p in sorted(tmp_path.glob("subnet?/*.json"))]
    assert [r["subnets"][0]["name"] for r in records] == ["subnet1", "subnet2", "subnet3", "subnet4"]
    for info, record in zip(program.subnets, records, strict=True):
        assert [s["macs"] for s in record["subnets"]] == [info.macs]
        (tmp_path / "real" / info.name).mkdir(parents=True)
        path = tmp_path / "real" / info.name / "result.json"
        path.write_text(json.dumps({**record, "smoke": False}))
    cells = {(c.row, c.column): c.ours for c in load_table("dynamic", 3, [tmp_path / "real"]).cells if c.ours}
    assert list(cells) == [(f"Ours-S {k}", "Individual") for k in (1, 2, 3, 4)]
    # The whole network is the background, which is what training it alone gives; its channels lie in another order.
    graph = rh.trace(CIFAR10.fresh(run, SHORTCUT), CIFAR10.example(run))
    alone("again", replace(run, out=tmp_path / "again"), CIFAR10, SHORTCUT, rh.uniform(graph, (1.0,)))
    again = rh.Engine(tmp_path / "again" / "1.0" / "again.safetensors")
    whole = rh.Engine(next((tmp_path / "subnet4").glob("*.safetensors")))
    x = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
    np.testing.assert_allclose(whole(x), again(x), atol=1e-5)


@pytest.mark.slow
def test_what_nesting_costs(tmp_path: Path) -> None:
    """The same free family, gathered and nested by votes: the same widths, one background, one sampling."""
    run = Run(tmp_path, smoke=True)
    free = resnet20_cifar10_multi_path_free(run)
    assert free.artifact is None
    sampled = (tmp_path / SUBNETS.format("multi_path_free")).stat().st_mtime_ns
    nested = resnet20_cifar10_multi_path_nested(replace(run, out=tmp_path / "nested", shared=tmp_path))
    assert (tmp_path / SUBNETS.format("multi_path_free")).stat().st_mtime_ns == sampled
    assert nested.artifact is not None
    ours, theirs = (json.loads(r.record.read_text())["subnets"] for r in (nested, free))
    assert [info.macs for info in read_program(nested.artifact).subnets] == [s["macs"] for s in ours]
    # Where a smaller subnet was wider somewhere, the larger one had to grow.
    assert all(a["macs"] >= b["macs"] for a, b in zip(ours, theirs, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [r for r in RECIPES if r not in ELSEWHERE], ids=lambda r: r.__name__)
def test_smoke(recipe: Callable[[Run], Result], tmp_path: Path) -> None:
    result = recipe(Run(tmp_path, smoke=True))
    assert result.artifact is not None
    infos = read_program(result.artifact).subnets
    assert all(a.macs < b.macs for a, b in pairwise(infos))
    alone = recipe.__name__.endswith("_individual")
    assert len(infos) == (1 if alone else 9 if recipe.__name__.endswith("nine") else 4)
    assert len(list(tmp_path.glob("subnet?/*.json"))) == (4 if alone else 0)


def test_targets_are_those_of_the_paper() -> None:
    # Nine subnets from the cost of a quarter of the width to the whole, as nine uniform widths.
    assert len(NINE.macs) == 8 and list(NINE.macs) == sorted(NINE.macs)
    # The stand-in keeps the fractions of Table 4: 0.89, 3.97 and 7.17 of 19.8.
    for own, paper in zip(IMAGENETTE_FAMILY.macs, IMAGENET.macs, strict=True):
        assert own / 507.2e6 == pytest.approx(paper / 19.8e8)
