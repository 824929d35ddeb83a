"""Every example in a docstring is run, and what it prints is what it says."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import rheostat

ROOT = Path(__file__).parents[1]
MODULES = [
    ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
    for folder in (ROOT / "src", ROOT / "recipes")
    for path in sorted(folder.rglob("*.py"))
    if path.name != "__main__.py"
]


@pytest.fixture(scope="module")
def names() -> dict[str, object]:
    """What an example may use without importing it: the public names, and a supernet called `net`."""
    public = {name: getattr(rheostat, name) for name in rheostat.__all__}
    graph = rheostat.trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 4))
    net = rheostat.Supernet(graph, rheostat.uniform(graph, (0.5, 1.0)))
    return {**public, "np": np, "torch": torch, "nn": nn, "rh": rheostat, "graph": graph, "net": net}


@pytest.mark.parametrize("name", MODULES)
def test_examples(
    name: str, names: dict[str, object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    printed: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder().find(module, globs={**names, **vars(module)}):
        runner.run(test, out=printed.append)
    assert not runner.failures, "".join(printed)


def test_there_are_examples() -> None:
    found = doctest.DocTestFinder().find(importlib.import_module("rheostat.spec"))
    assert sum(len(test.examples) for test in found) >= 3
