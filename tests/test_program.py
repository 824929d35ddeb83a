"""The program: canonical text, shapes derived again, and a memory plan that never overlaps."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from attacks.hostile import toy
from rheostat.program import (
    ACTIVATIONS,
    ENCODINGS,
    OPS,
    Activation,
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    LevelCode,
    MaxPool2d,
    Op,
    PadChannels,
    Plan,
    Program,
    Quantization,
    QuantOp,
    Segment,
    Subsample,
    Value,
    live_ranges,
    plan,
    reads,
)
from rheostat.program_check import infer, pool_size, validate, whole_groups
from rheostat.program_json import from_json, to_json
from rheostat.spec import ArtifactError

SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "artifact.schema.json").read_text(encoding="utf-8"))


def shapes_of(tensors: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {n: ("F32" if a.dtype.kind == "f" else "I64", a.shape) for n, a in tensors.items()}


def channels(full: int, *kept: int) -> tuple[Segment, ...]:
    return (Segment(full, kept),)


def test_text_comes_back_as_the_same_program_and_text() -> None:
    program, tensors = toy()
    text = to_json(program)
    assert from_json(text) == program
    assert to_json(from_json(text)) == text
    assert text.isascii()
    validate(from_json(text), shapes_of(tensors))


def test_a_program_without_ops_comes_back_too() -> None:
    program, tensors = toy()
    program = replace(
        program, ops=None, values=(), outputs=(), plan=Plan(0, ()), unsupported="node x: aten.foo"
    )
    assert from_json(to_json(program)) == program
    validate(program, shapes_of(tensors))


def test_every_op_is_in_the_schema_with_its_fields() -> None:
    defined = {d["properties"]["op"]["const"]: d for d in SCHEMA["$defs"]["op"]["oneOf"]}
    assert set(defined) == set(OPS)
    for name, kind in OPS.items():
        want = {"op", *(f.name for f in fields(kind))}
        assert set(defined[name]["properties"]) == set(defined[name]["required"]) == want, name
    assert SCHEMA["$defs"]["activation"]["enum"] == list(ACTIVATIONS)
    assert set(SCHEMA["$defs"]["program"]["properties"]) == {"version", *(f.name for f in fields(Program))}
    assert set(SCHEMA["$defs"]["program"]["required"]) == {*SCHEMA["$defs"]["program"]["properties"]} - {
        "quant",
        "levels",
    }
    for name, kind in (("quant", Quantization), ("quant_op", QuantOp), ("level_code", LevelCode)):
        want = {f.name for f in fields(kind)}
        assert set(SCHEMA["$defs"][name]["properties"]) == set(SCHEMA["$defs"][name]["required"]) == want
    assert SCHEMA["$defs"]["level_code"]["properties"]["encoding"]["enum"] == list(ENCODINGS)


def test_the_schema_accepts_the_toy_and_refuses_what_from_json_refuses() -> None:
    schema = Draft202012Validator({"$defs": SCHEMA["$defs"], "$ref": "#/$defs/program"})
    good = json.loads(to_json(toy()[0]))
    schema.validate(good)
    for change in (
        lambda p: p.update(version=2),
        lambda p: p.update(version=3),
        lambda p: p.update(version=4),
        lambda p: p.update(levels={}),
        lambda p: p.update(quant={}),
        lambda p: p.update(extra=1),
        lambda p: p["ops"][0].update(op="system"),
        lambda p: p["ops"][0].update(stride=[0, 1]),
        lambda p: p["ops"][0].pop("norm"),
        lambda p: p["ops"][4].update(weight="../x"),
        lambda p: p["values"][3].update(space=[6]),
        lambda p: p["subnets"][0].update(accuracy=90),
        lambda p: p["groups"][0].update(widths=[0, 4]),
        lambda p: p.update(sha256="x"),
    ):
        bad = json.loads(to_json(toy()[0]))
        change(bad)
        assert not schema.is_valid(bad)
        with pytest.raises(ArtifactError):
            from_json(json.dumps(bad))


def test_a_program_with_levels_comes_back_and_is_in_the_schema() -> None:
    schema = Draft202012Validator({"$defs": SCHEMA["$defs"], "$ref": "#/$defs/program"})
    for code in (
        LevelCode((4, 4, 3, 3), "pattern", 9, (30, 40), 7),
        LevelCode((144,), "delta", 1, (0, 0), 0),
    ):
        program = replace(toy()[0], levels={"b.weight": code})
        text = to_json(program)
        assert json.loads(text)["version"] == 3
        assert from_json(text) == program
        assert to_json(from_json(text)) == text
        schema.validate(json.loads(text))
    for change in (
        lambda p: p.update(version=1),
        lambda p: p.update(version=2),
        lambda p: p.update(levels={}),
        lambda p: p["levels"]["b.weight"].update(encoding="zip"),
        lambda p: p["levels"]["b.weight"].update(group=0),
        lambda p: p["levels"]["b.weight"].update(shape=[]),
        lambda p: p["levels"]["b.weight"].pop("counts"),
    ):
        bad = json.loads(text)
        change(bad)
        assert not schema.is_valid(bad)
        with pytest.raises(ArtifactError):
            from_json(json.dumps(bad))


def test_indices_are_a_prefix_of_each_segment() -> None:
    value = Value((Segment(4, (1, 4)), Segment(3, (2, 2))), (2, 5))
    assert value.indices(0).tolist() == [0, 4, 5]
    assert value.indices(1).tolist() == [0, 1, 2, 3, 4, 5]
    assert (value.full, value.kept(0), value.size(1)) == (7, 3, 60)


segments = st.integers(1, 5).flatmap(
    lambda full: st.builds(
        Segment, st.just(full), st.tuples(*[st.integers(1, full)] * 2).map(lambda t: tuple(sorted(t)))
    )
)


@given(st.lists(segments, min_size=1, max_size=5))
def test_merging_segments_keeps_the_channels(given_segments: list[Segment]) -> None:
    value = Value(tuple(given_segments), ())
    merged = Value(value.layout(), ())
    assert merged.full == value.full
    assert len(merged.channels) <= len(value.channels)
    for k in range(2):
        assert merged.indices(k).tolist() == value.indices(k).tolist()
    assert merged.layout() == merged.channels


@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 5), st.data(), st.booleans())
def test_pool_sizes_are_those_of_pytorch(
    size: int, kernel: int, stride: int, data: st.DataObject, ceil: bool
) -> None:
    padding = data.draw(st.integers(0, kernel // 2))
    pool = torch.nn.MaxPool1d(kernel, stride, padding, ceil_mode=ceil)
    if size + 2 * padding < kernel:
        with pytest.raises(ArtifactError):
            pool_size(size, kernel, stride, padding, ceil)
        return
    assert pool_size(size, kernel, stride, padding, ceil) == pool(torch.zeros(1, 1, size)).shape[-1]


def pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@given(st.integers(1, 12), st.integers(1, 12), pairs(1, 4), pairs(1, 3), pairs(0, 3), pairs(1, 3))
@settings(max_examples=50)
def test_convolution_sizes_are_those_of_pytorch(
    height: int, width: int, kernel: tuple, stride: tuple, padding: tuple, dilation: tuple
) -> None:
    values = [Value(channels(2, 2), (height, width)), Value(channels(4, 4), (1, 1))]
    op = Conv2d(0, 1, "w", None, stride, padding, dilation, (1,))
    shapes = {"w": ("F32", (4, 2, *kernel))}
    try:
        with torch.no_grad():
            want = torch.nn.Conv2d(2, 4, kernel, stride, padding, dilation)(
                torch.zeros(1, 2, height, width)
            ).shape[2:]
    except RuntimeError:
        with pytest.raises(ArtifactError, match="does not fit"):
            infer(op, values, shapes, "op")
        return
    assert infer(op, values, shapes, "op").space == tuple(want)


def test_pad_channels_only_appends() -> None:
    def padded(x: tuple[Segment, ...], out: tuple[Segment, ...]) -> Value:
        return infer(PadChannels(0, 1), [Value(x, (2, 2)), Value(out, (2, 2))], {}, "op")

    assert padded(channels(4, 2, 4), channels(8, 4, 8)).channels == channels(8, 4, 8)
    with pytest.raises(ArtifactError, match="appended"):
        padded(channels(4, 2, 4), channels(8, 1, 8))
    with pytest.raises(ArtifactError, match="appended"):
        padded((*channels(4, 2, 4), *channels(2, 2, 2)), channels(8, 4, 8))


@pytest.mark.parametrize(
    ("groups", "weight", "x", "out", "good"),
    [
        ((2, 4), (8, 1, 3, 3), channels(4, 2, 4), channels(8, 4, 8), True),  # whole groups removed
        ((4, 4), (8, 1, 3, 3), channels(4, 2, 4), channels(8, 4, 8), False),
        (
            (2, 2),
            (8, 4, 3, 3),
            channels(4, 2, 4) * 2,
            channels(4, 1, 4) * 2,
            True,
        ),  # each group keeps a prefix
        ((2, 2), (8, 4, 3, 3), channels(8, 8, 8), channels(4, 1, 4) * 2, True),
        ((2, 2), (8, 4, 3, 3), channels(8, 4, 8), channels(4, 1, 4) * 2, False),
        ((1, 2), (8, 4, 3, 3), channels(8, 4, 8), channels(8, 4, 8), True),
        (
            (3, 5),
            (5, 1, 3, 3),
            channels(2, 1, 2) + channels(3, 2, 3),
            channels(2, 1, 2) + channels(3, 2, 3),
            True,
        ),
        ((3, 5), (5, 1, 3, 3), channels(2, 1, 2) + channels(3, 2, 3), channels(5, 3, 5), False),
        ((1, 1), (8, 4, 3, 3), channels(4, 1, 4), channels(8, 3, 8), True),
    ],
)
def test_grouped_convolutions(groups: tuple, weight: tuple, x: tuple, out: tuple, good: bool) -> None:
    op = Conv2d(0, 1, "w", None, (1, 1), (1, 1), (1, 1), groups)
    values = [Value(x, (4, 4)), Value(out, (4, 4))]
    if good:
        assert infer(op, values, {"w": ("F32", weight)}, "op") == values[1]
    else:
        with pytest.raises(ArtifactError, match="groups"):
            infer(op, values, {"w": ("F32", weight)}, "op")


def test_whole_groups_tells_the_two_kinds_apart() -> None:
    op = Conv2d(0, 1, "w", None, (1, 1), (1, 1), (1, 1), (2, 4))
    assert whole_groups(op, 4, Value(channels(4, 2, 4), ()), Value(channels(8, 4, 8), ()))
    assert not whole_groups(op, 2, Value(channels(4, 2, 4) * 2, ()), Value(channels(4, 1, 4) * 2, ()))


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[Value], list[Op], tuple[int, ...]]:
    """Any graph of activations, adds and concatenations, wide and narrow, with outputs in the middle."""
    values = [Value(channels(draw(st.integers(1, 40)), 1), (draw(st.integers(1, 9)),) * 2)]
    ops: list[Op] = []
    for out in range(1, draw(st.integers(2, 14))):
        values.append(Value(channels(n := draw(st.integers(1, 40)), n), (draw(st.integers(1, 9)),) * 2))
        inputs = draw(st.lists(st.integers(0, out - 1), min_size=1, max_size=3))
        ops.append(Activation(inputs[0], out, "relu") if len(inputs) == 1 else Concat(tuple(inputs), out))
    outputs = draw(st.lists(st.integers(0, len(ops)), min_size=1, max_size=3, unique=True))
    return values, ops, tuple(outputs)


@given(programs())
def test_values_in_use_together_never_overlap(case: tuple[list[Value], list[Op], tuple[int, ...]]) -> None:
    """Against a simulation that fills the arena op by op and checks that what was written is still there."""
    values, ops, outputs = case
    arena = plan(values, ops, outputs)
    memory = [-1] * arena.size

    def fill(v: int) -> None:
        start = arena.offsets[v]
        memory[start : start + values[v].size(-1)] = [v] * values[v].size(-1)

    def whole(v: int) -> bool:
        start = arena.offsets[v]
        return memory[start : start + values[v].size(-1)] == [v] * values[v].size(-1)

    fill(0)
    for op in ops:
        fill(op.output)  # an op may write all of its output before it has read all of its inputs
        assert all(whole(v) for v in reads(op))
    assert all(whole(v) for v in outputs)
    assert len(memory) == arena.size


@given(programs())
def test_a_plan_is_no_larger_than_everything_and_no_smaller_than_what_is_alive(case: Any) -> None:
    values, ops, outputs = case
    ranges = live_ranges(ops, outputs, len(values))
    alive = max(
        sum(v.size(-1) for v, (a, b) in zip(values, ranges, strict=True) if a <= t <= b)
        for t in range(-1, len(ops) + 1)
    )
    assert alive <= plan(values, ops, outputs).size <= sum(v.size(-1) + 16 for v in values)


def test_a_chain_takes_two_buffers() -> None:
    values = [Value(channels(16, 16), (4, 4))] * 20
    ops = [Activation(i, i + 1, "relu") for i in range(19)]
    assert plan(values, ops, (19,)).size == 2 * 256


def test_ops_with_space_refuse_vectors() -> None:
    vector, image = Value(channels(4, 4), ()), Value(channels(4, 4), (1, 1))
    for op in (
        MaxPool2d(0, 1, (1, 1), (1, 1), (0, 0), False),
        AvgPool2d(0, 1, (1, 1), (1, 1), (0, 0), False, True),
        Subsample(0, 1, (1, 1)),
    ):
        with pytest.raises(ArtifactError, match="vector"):
            infer(op, [vector, image], {}, "op")
        assert infer(op, [image, image], {}, "op") == image
    with pytest.raises(ArtifactError, match="cannot combine"):
        infer(Add((0, 1), 2), [vector, image, image], {}, "op")
