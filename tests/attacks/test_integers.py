"""Hostile quantised artifacts: what could overflow an accumulator or leave a table is refused with a reason."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attacks.hostile import Json, header_edit, program_edit, put_together, take_apart
from rheostat import artifact
from rheostat.cost import counted
from rheostat.program import (
    Activation,
    Add,
    Conv2d,
    GlobalAvgPool,
    Group,
    Input,
    Linear,
    MaxPool2d,
    Program,
    Quantization,
    QuantOp,
    Segment,
    Value,
    plan,
)
from rheostat.spec import ArtifactError, SubnetInfo

SIZES = {"F32": 4, "I8": 1, "I16": 2, "I32": 4, "I64": 8}


def toy() -> tuple[Program, dict[str, np.ndarray]]:
    """Two subnets of: convolution, max pool, table, sum, mean, linear."""
    random = np.random.default_rng(0)
    half = (Segment(4, (2, 4)),)
    values = (
        Value((Segment(3, (3, 3)),), (6, 6)),
        Value(half, (6, 6)),
        Value(half, (3, 3)),
        Value(half, (3, 3)),
        Value(half, (3, 3)),
        Value(half, ()),
        Value((Segment(5, (5, 5)),), ()),
    )
    one, two, none = (1, 1), (2, 2), (0, 0)
    ops = (
        Conv2d(0, 1, "a.weight", None, one, one, one, one, None, "relu"),
        MaxPool2d(1, 2, two, two, none, False),
        Activation(2, 3, "hardswish"),
        Add((2, 3), 4),
        GlobalAvgPool(4, 5),
        Linear(5, 6, "fc.weight", None),
    )
    tensors = {
        "a.weight": random.integers(-127, 128, (4, 3, 3, 3), np.int8),
        "fc.weight": random.integers(-127, 128, (5, 4), np.int8),
    }
    for name, widths in (("a", (2, 4)), ("fc", (5, 5))):
        for k, n in zip(("@0", ""), widths, strict=True):
            tensors[f"{name}.m{k}"] = random.integers(-(2**31), 2**31, n, np.int32)
            tensors[f"{name}.b{k}"] = random.integers(-(2**61), 2**61, n, np.int64)
            tensors[f"t{k}"] = random.integers(-127, 128, 256, np.int16)

    def own(high: int, factors: tuple[int, ...] = (), *, shift: int = 40, **names: Any) -> QuantOp:
        return QuantOp((high,) * 2, (shift,) * 2, (0, 0), (factors,) * 2, **names)

    quant = Quantization(
        8,
        8,
        (False, True, True, False, False, False, False),
        ((0.5, 0.25),) * 7,
        (
            own(255, multiplier=("a.m@0", "a.m"), bias=("a.b@0", "a.b")),
            own(255, shift=0),
            own(127, shift=0, table=("t@0", "t")),
            own(127, (2**31 - 1, 1)),
            own(127, (7,)),
            own(127, multiplier=("fc.m@0", "fc.m"), bias=("fc.b@0", "fc.b")),
        ),
    )
    program = Program(
        model="Toy",
        input=Input("x", (3, 6, 6)),
        subnets=(SubnetInfo("0.5", 0, 0, 0), SubnetInfo("1.0", 0, 0, 0)),
        groups=(Group("a", 4, (2, 4)),),
        values=values,
        ops=ops,
        outputs=(6,),
        plan=plan(values, ops, (6,)),
        quant=quant,
    )
    dtypes = {"int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64"}
    return counted(program, {n: (dtypes[str(a.dtype)], a.shape) for n, a in tensors.items()}), tensors


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "toy.safetensors"
    artifact.write(path, *toy())
    artifact.read(path)
    return path.read_bytes()


def quant(**changes: Any) -> Callable[[bytes], bytes]:
    return program_edit(lambda p: p["quant"].update(changes))


def own(index: int, **changes: Any) -> Callable[[bytes], bytes]:
    return program_edit(lambda p: p["quant"]["ops"][index].update(changes))


def op(index: int, **changes: Any) -> Callable[[bytes], bytes]:
    return program_edit(lambda p: p["ops"][index].update(changes))


def value(name: str, form: str, number: int) -> Callable[[bytes], bytes]:
    """The first integer of one tensor, with a true hash."""

    def apply(data: bytes) -> bytes:
        header, program, tensors = take_apart(data)
        start, packed = header[name]["data_offsets"][0], struct.pack(form, number)
        return put_together(header, program, tensors[:start] + packed + tensors[start + len(packed) :])

    return apply


def as_dtype(name: str, dtype: str) -> Callable[[bytes], bytes]:
    """The same bytes, said to be of another type."""

    def edit(header: Json) -> None:
        item = header[name]
        count = (item["data_offsets"][1] - item["data_offsets"][0]) // SIZES[dtype]
        item.update(dtype=dtype, shape=[count])

    return header_edit(edit)


def vast_layer(program: Json) -> None:
    """A linear layer of more inputs than an int32 accumulator holds, with true shapes but for the weight's."""
    program["values"][0] = {"channels": [[3, [3, 3]]], "space": [60_000, 6]}


def softmax(program: Json) -> None:
    program["ops"][2] = {"op": "softmax", "input": 2, "output": 3}


def sign_flip(program: Json) -> None:
    program["quant"]["unsigned"][2] = False
    program["quant"]["ops"][1]["high"] = [127, 127]


def sixteen(program: Json) -> None:
    program["quant"]["bits_activations"] = 16
    for i in (0, 1):
        program["quant"]["ops"][i]["high"] = [32767, 32767]


HOSTILE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a version of floats": (program_edit(lambda p: p.update(version=1)), "unknown key 'quant'"),
    "no quant": (program_edit(lambda p: p.pop("quant")), "'quant' is missing"),
    "quant is null": (program_edit(lambda p: p.update(quant=None)), "program.quant"),
    "4 bits": (quant(bits_weights=4), "bits_weights"),
    "bits that are true": (quant(bits_activations=True), "bits_activations"),
    "a key too many": (quant(code="x"), "unknown key"),
    "one sign too few": (quant(unsigned=[True] * 6), "unsigned: got 6 entries; want 7"),
    "a sign that is a number": (quant(unsigned=[1] * 7), "true or false"),
    "an op too few": (program_edit(lambda p: p["quant"]["ops"].pop()), "ops: got 5 entries; want 6"),
    "a scale of zero": (quant(scales=[[0.5, 0.0]] * 7), "a float32 from"),
    "a negative scale": (quant(scales=[[0.5, -0.5]] * 7), "a float32 from"),
    "a scale that is no float32": (quant(scales=[[0.5, 0.1]] * 7), "a float32 from"),
    "a scale missing": (quant(scales=[[0.5]] * 7), "one scale for each"),
    "a text as scale": (quant(scales=[["0.5", 0.5]] * 7), "a number"),
    "a shift of zero": (own(0, shift=[0, 40]), "shift"),
    "a shift of 62": (own(0, shift=[40, 62]), "shift"),
    "a negative shift": (own(0, shift=[-1, 40]), "shift"),
    "a shift missing": (own(0, shift=[40]), "one entry for each"),
    "a shift for a copy": (own(1, shift=[1, 1]), "want shift 0"),
    "a shift for a table": (own(2, shift=[1, 1]), "shift"),
    "a pre of 32": (own(0, pre=[32, 0]), "pre"),
    "a pre in 8 bits": (own(0, pre=[1, 1]), "8 bits want pre=0"),
    "a pre for a sum": (own(3, pre=[1, 1]), "pre"),
    "a high beyond the range": (own(0, high=[256, 255]), "at most 255"),
    "a high beyond a signed range": (own(3, high=[128, 127]), "at most 127"),
    "a negative high": (own(3, high=[-1, 127]), "integer from 0"),
    "a high for a copy": (own(1, high=[200, 255]), "high 255"),
    "a factor beyond 31 bits": (own(3, factors=[[2**31, 1], [1, 1]]), "integer from 0"),
    "a negative factor": (own(3, factors=[[-1, 1], [1, 1]]), "integer from 0"),
    "a factor too few": (own(3, factors=[[1], [1]]), "2 for each subnet"),
    "a factor too many": (own(1, factors=[[1], [1]]), "0 for each subnet"),
    "a mean that overflows": (own(4, factors=[[2**31 - 1], [7]], shift=[59, 59]), "exceed 63 bits"),
    "no multipliers": (own(0, multiplier=None), "multiplier"),
    "multipliers for a sum": (own(3, multiplier=["a.m@0", "a.m"]), "null"),
    "multipliers of the other subnet": (own(0, multiplier=["a.m", "a.m"]), "want I32 [2]"),
    "multipliers for one subnet": (own(0, multiplier=["a.m"]), "one name for each"),
    "multipliers of another type": (as_dtype("a.m", "I8"), "want I32 [4]"),
    "biases of another type": (own(0, bias=["a.m@0", "a.m"]), "want I64 [2]"),
    "a bias that is missing": (own(0, bias=["a.b@0", "nothing"]), "stored tensor"),
    "a bias beyond 2^61": (value("a.b", "<q", 2**61 + 1), "a.b holds a number beyond"),
    "the smallest bias": (value("a.b@0", "<q", -(2**63)), "a.b@0 holds a number beyond"),
    "a table that leaves the range": (value("t", "<h", 128), "t holds a number outside [-127, 127]"),
    "a table that leaves it below": (value("t@0", "<h", -128), "t@0 holds a number outside"),
    "no table": (own(2, table=None), "table"),
    "a table for a sum": (own(3, table=["t@0", "t"]), "null"),
    "a table of another type": (own(2, table=["fc.m@0", "t"]), "want I16 [256]"),
    "a table in 16 bits": (program_edit(sixteen), "a table needs activations of 8 bits"),
    "a copy that changes the sign": (program_edit(sign_flip), "equal"),
    "a relu that is signed": (program_edit(lambda p: p["quant"]["unsigned"].__setitem__(1, False)), "want it unsigned"),
    "a fused hardswish": (op(0, activation="hardswish"), "stand alone"),
    "a bias in floats": (op(5, bias="fc.b"), "folded"),
    "weights of another type": (quant(bits_weights=16), "a.weight is I8; want I16"),
    "a weight of floats": (as_dtype("a.weight", "F32"), "a.weight is F32; want I8"),
    "a softmax": (program_edit(softmax), "softmax has no integer form"),
    "another space": (program_edit(vast_layer), "program"),
    "no ops": (
        program_edit(
            lambda p: p.update(ops=None, unsupported="x", values=[], outputs=[], plan={"size": 0, "offsets": []})
        ),
        "there are no ops",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_with_a_reason(name: str, good: bytes, tmp_path: Path) -> None:
    change, expected = HOSTILE[name]
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(change(good))
    with pytest.raises(ArtifactError) as caught:
        artifact.read(path)
    message = str(caught.value)
    assert expected in message
    assert message.isprintable()


def test_every_field_of_every_wrong_type_is_refused(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "hostile.safetensors"
    _, program, _ = take_apart(good)
    for wrong in ("x", -1, 2**70, 1.5, {}, [[]], [None] * 2, True):
        for key in program["quant"]:
            path.write_bytes(quant(**{key: wrong})(good))
            with pytest.raises(ArtifactError):
                artifact.read(path)
        for key in program["quant"]["ops"][0]:
            path.write_bytes(own(0, **{key: wrong})(good))
            with pytest.raises(ArtifactError):
                artifact.read(path)


def test_a_sum_that_does_not_fit_its_accumulator_is_refused(tmp_path: Path) -> None:
    """65,793 products of 255 and 128 fit 31 bits, 65,794 do not; with a `pre` more do."""
    for inputs, bits, pre, fits in (
        (65_793, 8, 0, True),
        (65_794, 8, 0, False),
        (2, 16, 0, True),
        (3, 16, 0, False),
        (4, 16, 1, True),
        (5, 16, 1, False),
    ):
        values = (Value((Segment(inputs, (inputs,)),), ()), Value((Segment(1, (1,)),), ()))
        ops = (Linear(0, 1, "w", None),)
        top = 255 if bits == 8 else 32767
        integers = QuantOp((top,), (1,), (pre,), ((),), ("m",), ("b",))
        program = Program(
            "Sum", Input("x", (inputs,)), (SubnetInfo("1.0", 0, 0, 0),), (), values, ops, None, (1,),
            plan(values, ops, (1,)), quant=Quantization(bits, bits, (True, True), ((1.0,), (1.0,)), (integers,)),
        )  # fmt: skip
        tensors = {
            "w": np.zeros((1, inputs), np.int8 if bits == 8 else np.int16),
            "m": np.zeros(1, np.int32),
            "b": np.zeros(1, np.int64),
        }
        if fits:
            artifact.write(tmp_path / "a", program, tensors)
        else:
            with pytest.raises(ArtifactError, match="does not bring it to 31 bits"):
                artifact.write(tmp_path / "a", program, tensors)
