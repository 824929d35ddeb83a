"""The front door: exactly these names, sorted, documented, typed, and none of them a catch-all."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import rheostat

PUBLIC = [
    "ArtifactError", "Block", "Cap", "CapSlack", "Channel", "Column", "Cost", "Decision", "Element",
    "EnergyGovernor", "Engine", "Fixed", "ImageLoader", "Kernel", "Lasso", "LatencyGovernor", "Levels", "Memory",
    "NM", "Observation", "Pattern", "Profile", "Quant", "Row", "Signals", "Subnet", "SubnetInfo", "Supernet",
    "SystemGovernor", "accuracy", "admm", "arrival_rate", "calibrate", "choose", "cost", "cubic", "engine_ms",
    "evaluate", "export_c", "export_onnx", "finetune", "fit", "fit_nested", "gradual", "latency", "levels", "magnitude",
    "mask", "multi_path", "nest", "quantize", "read_signals", "recalibrate", "save", "single_path", "size_report",
    "slim", "switch_cost", "taylor", "trace", "uniform", "wanda",
]  # fmt: skip


def test_exactly_these_sorted() -> None:
    assert rheostat.__all__ == PUBLIC == sorted(PUBLIC)
    assert set(PUBLIC) <= set(dir(rheostat))


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Superset'"):
        _ = rheostat.Superset  # pyright: ignore[reportAttributeAccessIssue]


def test_type_checkers_see_the_same_homes() -> None:
    module = ast.parse(Path(rheostat.__file__).read_text(encoding="utf-8"))
    (guarded,) = (node for node in module.body if isinstance(node, ast.If))
    for_types = {
        alias.name: node.module
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert for_types == rheostat._HOMES
    assert {*for_types, "cost"} == set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_resolves_to_its_home(name: str) -> None:
    value = getattr(rheostat, name)
    assert inspect.isclass(value) or inspect.isfunction(value)
    assert value.__name__ == name
    assert value.__module__ == rheostat._HOMES.get(name, "rheostat.cost")


@pytest.mark.parametrize("name", PUBLIC)
def test_documented(name: str) -> None:
    text = inspect.getdoc(getattr(rheostat, name)) or ""
    first = text.partition("\n\n")[0]
    assert first.endswith((".", ":", ").")), f"{name}: the first paragraph is one sentence; got {first!r}"


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "ArtifactError"])
def test_typed_and_no_catch_all(name: str) -> None:
    value = getattr(rheostat, name)
    function = value.__init__ if inspect.isclass(value) else value
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    assert all(p.kind not in {p.VAR_KEYWORD, p.VAR_POSITIONAL} for p in parameters)
    assert all(p.annotation is not p.empty for p in parameters), [
        p.name for p in parameters if p.annotation is p.empty
    ]


def test_cost_is_the_function_whatever_was_imported_before() -> None:
    import rheostat.cost
    import rheostat.program
    from rheostat.cost import cost

    assert rheostat.cost is cost
    assert callable(rheostat.cost)
