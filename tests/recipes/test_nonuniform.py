"""The recipes of Table 3, on digits: background, sampling, the subnets together and alone, and the table's row."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from rheostat.artifact import read_program
from rheostat_recipes.nonuniform import (
    MACS_SINGLE_PATH,
    RECIPES,
    resnet20_cifar10_single_path,
    resnet20_cifar10_single_path_individual,
)
from rheostat_recipes.run import Result, Run
from rheostat_recipes.tables import load_table

SLOW = [r for r in RECIPES if "single_path" not in r.__name__]


def test_single_path_together(tmp_path: Path) -> None:
    run = Run(tmp_path, smoke=True)
    together = resnet20_cifar10_single_path(run)
    program = read_program(together.artifact)
    assert [info.name for info in program.subnets] == ["subnet1", "subnet2", "subnet3", "subnet4"]
    for info, target in zip(program.subnets, MACS_SINGLE_PATH, strict=False):
        assert 0.95 * target <= info.macs <= target
    assert not any(group.pinned for group in program.groups if "shortcut" in group.name)
    sampled = json.loads((tmp_path / "subnets-single_path.json").read_text())
    assert [s["macs"] for s in sampled["snapshots"]] == [info.macs for info in program.subnets[:3]]


@pytest.mark.slow
def test_single_path_alone(tmp_path: Path) -> None:
    run = Run(tmp_path, smoke=True)
    program = read_program(resnet20_cifar10_single_path(run).artifact)
    before = (tmp_path / "subnets-single_path.json").read_bytes()
    resnet20_cifar10_single_path_individual(run)
    assert (tmp_path / "subnets-single_path.json").read_bytes() == before
    records = [json.loads(p.read_text()) for p in sorted(tmp_path.glob("subnet?/*.json"))]
    assert [r["subnets"][0]["name"] for r in records] == ["subnet1", "subnet2", "subnet3", "subnet4"]
    for info, record in zip(program.subnets, records, strict=True):
        assert [s["macs"] for s in record["subnets"]] == [info.macs]
        (tmp_path / "real" / info.name).mkdir(parents=True)
        path = tmp_path / "real" / info.name / "result.json"
        path.write_text(json.dumps({**record, "smoke": False}))
    cells = {
        c.column: c.ours
        for c in load_table("dynamic", 3, tmp_path / "real").cells
        if c.row == "Ours-S" and c.ours
    }
    assert list(cells) == [f"subnet {k} Individual" for k in (1, 2, 3, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", SLOW, ids=lambda recipe: recipe.__name__)
def test_smoke(recipe: Callable[[Run], Result], tmp_path: Path) -> None:
    result = recipe(Run(tmp_path, smoke=True))
    macs = [info.macs for info in read_program(result.artifact).subnets]
    assert all(a < b for a, b in pairwise(macs))
