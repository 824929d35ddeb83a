"""Costs against numbers counted by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from attacks.hostile import toy
from attacks.test_integers import toy as integers
from rheostat import artifact
from rheostat.cost import CostTable, cost, count, counted
from rheostat.program import Plan
from rheostat.spec import ArtifactError, Cost, SubnetInfo


def shapes_of(tensors: dict) -> dict:
    return {n: ("F32" if a.dtype.kind == "f" else "I64", a.shape) for n, a in tensors.items()}


def by_hand(a: int) -> Cost:
    """The toy with `a` of 4 channels: 3x3 over 3 inputs, norm, 3x3 with bias, linear from 2a to 5 with bias; 6x6."""
    parameters = (a * 3 * 9) + (2 * a) + (a * a * 9 + a) + (5 * 2 * a + 5)
    macs = 36 * (a * 3 * 9) + 36 * (a * a * 9) + 5 * 2 * a
    return Cost(parameters, macs, 4 * (parameters + 2 * a))


def test_counts_are_those_by_hand() -> None:
    program, tensors = toy()
    assert count(program, shapes_of(tensors)) == (by_hand(2), by_hand(4))
    assert counted(program, shapes_of(tensors)) == program


def test_integers_with_levels_by_hand() -> None:
    """A byte for each kept weight, twelve for each channel's multiplier and bias, the table, and the index."""
    program, tensors = integers()
    kinds = {"int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64", "uint8": "U8"}
    levels = np.random.default_rng(0).integers(0, 3, (4, 3, 3, 3)).astype(np.uint8)
    levels[2:] = np.maximum(levels[2:], 1)  # channels of the larger subnet
    tensors |= {"a.weight": tensors["a.weight"] * (levels < 2), "a.weight@levels": levels}
    program = artifact.with_levels(program, tensors)
    index = program.levels["a.weight"].index_bytes
    shapes = {n: (kinds[str(a.dtype)], a.shape) for n, a in tensors.items()}
    for k, (found, channels) in enumerate(zip(count(program, shapes), (2, 4), strict=True)):
        kept = int((levels <= k).sum())
        assert found.parameters == kept + 5 * channels + channels + 5
        assert found.macs == 36 * kept + 5 * channels
        assert found.size_bytes == kept + 5 * channels + 12 * (channels + 5) + 2 * 256 + index


def test_measured_numbers_stay() -> None:
    program, tensors = toy()
    wrong = replace(program, subnets=tuple(replace(s, parameters=1, macs=2) for s in program.subnets))
    assert counted(wrong, shapes_of(tensors)) == program


def test_a_shared_weight_counts_once_and_works_twice() -> None:
    program, tensors = toy()
    assert program.ops is not None
    second = program.ops[1]
    values = (*program.values, program.values[2])
    again = replace(program, values=values, ops=(*program.ops, replace(second, input=2, add=None, output=6)))
    small, large = count(again, shapes_of(tensors))
    assert (small.parameters, large.parameters) == (by_hand(2).parameters, by_hand(4).parameters)
    assert large.macs - by_hand(4).macs == 36 * 4 * 4 * 9


def test_the_table_of_a_file(tmp_path: Path) -> None:
    artifact.write(tmp_path / "toy.safetensors", *toy())
    table = cost(tmp_path / "toy.safetensors")
    assert table == toy()[0].subnets
    assert table[-1].name == "1.0"
    assert str(table) == (
        "subnet  parameters   MACs  bytes  accuracy  p50 ms  p95 ms\n"
        "0.5            121  3,260    500    50.00%       -       -\n"
        "1.0            309  9,112  1,268    75.00%     0.1     0.2"
    )


def test_only_what_was_measured_has_a_column() -> None:
    assert str(CostTable([SubnetInfo("whole", 1234, 5, 6)])).splitlines() == [
        "subnet  parameters  MACs  bytes",
        "whole        1,234     5      6",
    ]


def test_a_file_that_lies_is_refused(tmp_path: Path) -> None:
    program, tensors = toy()
    lie = replace(program, subnets=(replace(program.subnets[0], macs=1), program.subnets[1]))
    artifact.write(tmp_path / "toy.safetensors", lie, tensors)
    with pytest.raises(
        ArtifactError, match=r"subnets\[0\] \(0.5\) states .*macs=1.*its ops give .*macs=3260"
    ):
        cost(tmp_path / "toy.safetensors")


def test_without_ops_the_stored_numbers_are_given(tmp_path: Path) -> None:
    program, tensors = toy()
    program = replace(program, ops=None, values=(), outputs=(), plan=Plan(0, ()), unsupported="node x")
    artifact.write(tmp_path / "toy.safetensors", program, tensors)
    assert cost(tmp_path / "toy.safetensors") == program.subnets
