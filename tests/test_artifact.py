"""The file: deterministic, readable by others, replaced whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import resource
import struct
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jsonschema import Draft202012Validator

from attacks.hostile import take_apart, toy
from attacks.test_integers import toy as integers
from rheostat import artifact
from rheostat.program import Conv2d, Input, Linear, Plan, Program, Segment, Value, plan
from rheostat.program_json import to_json
from rheostat.spec import ArtifactError, SubnetInfo

SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "artifact.schema.json").read_text(encoding="utf-8"))


def bare() -> Program:
    """A program that the engine cannot run: any tensors will do."""
    return replace(
        toy()[0], ops=None, values=(), outputs=(), plan=Plan(0, ()), unsupported="none", aliases={}
    )


def test_comes_back(tmp_path: Path) -> None:
    program, tensors = toy()
    artifact.write(tmp_path / "a.safetensors", program, tensors)
    got, arrays = artifact.read(tmp_path / "a.safetensors")
    assert replace(got, sha256=program.sha256) == program
    assert list(arrays) == sorted(tensors)
    for name, array in arrays.items():
        assert array.dtype == tensors[name].dtype
        assert array.shape == tensors[name].shape
        assert np.array_equal(array, tensors[name])
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    assert artifact.read_program(tmp_path / "a.safetensors") == got


def test_same_content_same_bytes_whatever_the_order(tmp_path: Path) -> None:
    program, tensors = toy()
    artifact.write(tmp_path / "a.safetensors", program, tensors)
    backwards = {n: np.array(tensors[n], order="F") for n in reversed(tensors)}
    reordered = replace(program, provenance=dict(reversed(program.provenance.items())))
    artifact.write(tmp_path / "b.safetensors", reordered, backwards)
    artifact.write(tmp_path / "c.safetensors", *artifact.read(tmp_path / "a.safetensors"))
    first = (tmp_path / "a.safetensors").read_bytes()
    assert first == (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()


finite = {"allow_nan": False, "allow_infinity": False, "width": 32}
arrays = st.one_of(
    hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=0, min_side=0, max_side=4), elements=st.floats(**finite)
    ),
    hnp.arrays(np.dtype(">f8"), hnp.array_shapes(min_dims=0, max_side=3), elements=st.floats(-1, 1)),
    hnp.arrays(np.int64, hnp.array_shapes(min_dims=0, max_side=3)),
    hnp.arrays(np.bool_, hnp.array_shapes(min_dims=0, min_side=0, max_side=5)),
    hnp.arrays(np.uint8, hnp.array_shapes(max_side=5)),
    hnp.arrays(np.float16, hnp.array_shapes(max_side=3), elements=st.floats(-1, 1, width=16)),
)
names = st.text(st.characters(blacklist_characters="/\\"), min_size=1, max_size=20).filter(
    lambda s: s.isprintable() and ".." not in s and s != "__metadata__" and not s.endswith("@levels")
)
numbers = st.one_of(st.integers(-(2**63), 2**63), st.floats(allow_nan=False, allow_infinity=False), names)


@given(st.dictionaries(names, arrays, max_size=6), st.dictionaries(names, numbers, max_size=4))
@settings(max_examples=60, deadline=None)
def test_write_read_write_is_byte_identical(tmp_path_factory, tensors, provenance) -> None:
    folder = tmp_path_factory.mktemp("any")
    artifact.write(folder / "a.safetensors", replace(bare(), provenance=provenance), tensors)
    program, back = artifact.read(folder / "a.safetensors")
    assert program.provenance == provenance
    for name, array in tensors.items():
        assert back[name].dtype == array.dtype.newbyteorder("<")
        assert np.array_equal(back[name], array)
    artifact.write(folder / "b.safetensors", program, back)
    assert (folder / "a.safetensors").read_bytes() == (folder / "b.safetensors").read_bytes()


def test_the_safetensors_library_reads_it(tmp_path: Path) -> None:
    program, tensors = toy()
    path = tmp_path / "a.safetensors"
    artifact.write(path, program, tensors)
    got = safetensors.numpy.load_file(path)
    assert set(got) == set(tensors)
    assert all(np.array_equal(got[n], tensors[n]) for n in tensors)
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata()["format"] == "rheostat"
        assert json.loads(file.metadata()["program"])["version"] == 1


def test_what_the_safetensors_library_rewrites_is_read(tmp_path: Path) -> None:
    """It orders the tensors differently, which the hashes do not see."""
    program, tensors = toy()
    path = tmp_path / "a.safetensors"
    artifact.write(path, program, tensors)
    with safetensors.safe_open(path, "np") as file:
        metadata = file.metadata()
    before = path.read_bytes()
    safetensors.numpy.save_file(tensors, path, metadata)
    assert path.read_bytes() != before
    got, arrays = artifact.read(path)
    assert replace(got, sha256=program.sha256) == program
    assert all(np.array_equal(arrays[n], tensors[n]) for n in tensors)
    artifact.write(path, got, arrays)
    assert path.read_bytes() == before


def test_a_plain_safetensors_file_is_no_artifact(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"x": np.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(ArtifactError, match="no artifact"):
        artifact.read(tmp_path / "x.safetensors")


def test_layout_and_hashes_as_documented(tmp_path: Path) -> None:
    program, tensors = toy()
    path = tmp_path / "a.safetensors"
    artifact.write(path, program, tensors)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    Draft202012Validator(SCHEMA).validate(header)
    Draft202012Validator({"$defs": SCHEMA["$defs"], "$ref": "#/$defs/program"}).validate(
        json.loads(header["__metadata__"]["program"])
    )
    assert (8 + length) % 8 == 0
    text = header["__metadata__"]["program"]
    assert header["__metadata__"]["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    digest, position = hashlib.sha256(), 0
    for name in sorted(tensors):
        item = header[name]
        assert item["data_offsets"][0] == position
        position = item["data_offsets"][1]
        digest.update(
            json.dumps([name, item["dtype"], item["shape"]], separators=(",", ":")).encode() + b"\n"
        )
        digest.update(data[8 + length :][slice(*item["data_offsets"])])
        assert data[8 + length :][slice(*item["data_offsets"])] == tensors[name].tobytes()
    assert 8 + length + position == len(data)
    assert json.loads(text)["sha256"] == digest.hexdigest()


def test_read_header_does_not_touch_the_tensors(tmp_path: Path) -> None:
    program, tensors = toy()
    path = tmp_path / "a.safetensors"
    artifact.write(path, program, tensors)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    got, shapes = artifact.read_header(path)
    assert got.model == program.model
    assert shapes["a.weight"] == ("F32", (4, 3, 3, 3))
    with pytest.raises(ArtifactError, match="SHA-256"):
        artifact.read(path)


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        ("a/b", np.zeros(3), "printable name"),
        ("x" * 300, np.zeros(3), "printable name"),
        ("z", np.array([1, np.nan], np.float32), "NaN"),
        ("z", np.array([1, np.inf]), "NaN or infinity"),
        ("z", np.zeros(3, complex), "dtype"),
        ("z", np.array(["text"]), "dtype"),
        ("z", np.array([None]), "dtype"),
        ("z", np.zeros((1,) * 9), "shape"),
        ("n.running_var", np.array([1, 1, -1, 1], np.float32), "negative variance"),
        ("b.weight", np.zeros((4, 4, 5), np.float32), "b.weight"),
        ("b.weight", np.zeros((4, 4, 3, 3)), "want F32"),
    ],
)
def test_what_would_not_be_read_is_not_written(
    name: str, array: np.ndarray, says: str, tmp_path: Path
) -> None:
    program, tensors = toy()
    path = tmp_path / "a.safetensors"
    with pytest.raises(ArtifactError, match=says):
        artifact.write(path, program, tensors | {name: array})
    assert not list(tmp_path.iterdir())


def test_a_wrong_program_is_not_written(tmp_path: Path) -> None:
    program, tensors = toy()
    with pytest.raises(ArtifactError, match="overlap"):
        artifact.write(tmp_path / "a.safetensors", replace(program, plan=Plan(576, (0,) * 6)), tensors)
    assert not list(tmp_path.iterdir())


# ---- Levels ----


def leveled(quantised: bool) -> tuple[Program, dict[str, np.ndarray]]:
    """The toy of floats or of integers with random levels for all its weights, within the widths or below."""
    program, tensors = integers() if quantised else toy()
    rng = np.random.default_rng(0)
    for name in ("a.weight", "b.weight", "fc.weight"):
        if name in tensors:
            levels = rng.integers(0, 3, tensors[name].shape).astype(np.uint8)
            tensors |= {name: tensors[name] * (levels < 2), f"{name}@levels": levels}
    return program, tensors


@pytest.mark.parametrize("quantised", [False, True])
def test_levels_come_back_and_the_bytes_with_them(quantised: bool, tmp_path: Path) -> None:
    program, tensors = leveled(quantised)
    assert artifact.with_levels(program, tensors).levels
    artifact.write(tmp_path / "a.safetensors", program, tensors)
    got, arrays = artifact.read(tmp_path / "a.safetensors")
    assert got.levels == artifact.with_levels(program, tensors).levels
    assert artifact.with_levels(got, arrays).levels == got.levels
    assert replace(got, sha256=program.sha256, levels={}) == program
    assert list(arrays) == sorted(tensors)
    for k, info in enumerate(program.subnets):  # what a subnet uses of a tensor has not changed
        assert info.name == got.subnets[k].name
        for name in got.levels:
            levels = arrays[f"{name}@levels"]
            for before, after in zip(tensors[name][levels <= k], arrays[name][levels <= k], strict=True):
                assert before == after
            assert (levels[levels <= k] >= tensors[f"{name}@levels"][levels <= k]).all()
            assert not arrays[name][levels == 2].any()
            assert got.levels[name].kept(k) == (levels <= k).sum()
    for name in ("a.weight", "a.weight@levels"):
        with pytest.raises(ValueError, match="read-only"):
            arrays[name][...] = 0
    artifact.write(tmp_path / "b.safetensors", got, arrays)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    program_only, shapes = artifact.read_header(tmp_path / "a.safetensors")
    assert program_only == got
    assert {n: shape for n, (_, shape) in shapes.items()} == {n: a.shape for n, a in arrays.items()}


def test_a_weight_outside_the_widths_has_the_level_of_the_first_subnet_that_holds_it(tmp_path: Path) -> None:
    program, tensors = toy()
    for name in ("a.weight", "b.weight", "fc.weight"):
        tensors[f"{name}@levels"] = np.zeros(tensors[name].shape, np.uint8)
    artifact.write(tmp_path / "a.safetensors", program, tensors)
    _, arrays = artifact.read(tmp_path / "a.safetensors")
    first = np.array([0, 0, 1, 1])
    assert np.array_equal(arrays["a.weight@levels"][:, 1, 2, 0], first)
    assert np.array_equal(arrays["b.weight@levels"][:, :, 1, 1], np.maximum(first[:, None], first))
    assert np.array_equal(arrays["fc.weight@levels"], np.tile(first, (5, 2)))
    assert all(np.array_equal(arrays[n], tensors[n]) for n in toy()[1])


def test_levels_of_groups_within_a_convolution(tmp_path: Path) -> None:
    """Whole groups removed, a prefix of each group, and a linear behind a space: by the definition, index by index."""
    half = (Segment(4, (2, 4)),)
    values = (
        Value((Segment(4, (4, 4)),), (3, 2)),
        Value(half, (3, 2)),
        Value(half, (3, 2)),  # two groups of two: the first stays
        Value((Segment(3, (1, 3)),) * 2, (3, 2)),
        Value((Segment(4, (3, 4)),) * 2, (3, 2)),  # both groups stay, three of four channels each
        Value((Segment(5, (5, 5)),), ()),
    )
    one, none = (1, 1), (0, 0)
    ops = (
        Conv2d(0, 1, "first", None, one, none, one, (1, 1)),
        Conv2d(1, 2, "whole", None, one, none, one, (1, 2)),
        Conv2d(2, 3, "spread", None, one, none, one, (1, 1)),
        Conv2d(3, 4, "prefix", None, one, none, one, (2, 2)),
        Linear(4, 5, "fc", None),
    )
    program = replace(
        bare(), input=Input("x", (4, 3, 2)), values=values, ops=ops, outputs=(5,), unsupported=None,
        plan=plan(values, ops, (5,)), groups=(),
    )  # fmt: skip
    shapes = {
        "first": (4, 4, 1, 1),
        "whole": (4, 2, 1, 1),
        "spread": (6, 4, 1, 1),
        "prefix": (8, 3, 1, 1),
        "fc": (5, 48),
    }
    tensors = {n: np.ones(shape, np.float32) for n, shape in shapes.items()}
    tensors |= {f"{n}@levels": np.zeros(shape, np.uint8) for n, shape in shapes.items()}
    artifact.write(tmp_path / "a.safetensors", program, tensors)
    _, arrays = artifact.read(tmp_path / "a.safetensors")
    for op in ops:
        x, out, levels = values[op.input], values[op.output], arrays[f"{op.weight}@levels"]
        per_group = shapes[op.weight][1] if isinstance(op, Conv2d) else x.full
        groups = x.full // per_group
        for o, i in np.ndindex(levels.shape[:2]):
            channel = i // 6 if isinstance(op, Linear) else o // (out.full // groups) * per_group + i
            held = o in out.indices(0) and channel in x.indices(0)
            assert levels[o, i].item() == (0 if held else 1), (op.weight, o, i)


def test_levels_of_a_weight_that_two_ops_share(tmp_path: Path) -> None:
    """It counts as held as soon as one of them holds it."""
    values = (Value((Segment(4, (4, 4)),), ()), *(Value((Segment(4, (n, 4)),), ()) for n in (1, 3)))
    ops = (Linear(0, 1, "w", None), Linear(0, 2, "w", None))
    program = replace(
        bare(), input=Input("x", (4,)), values=values, ops=ops, outputs=(1, 2), unsupported=None,
        plan=plan(values, ops, (1, 2)), groups=(),
    )  # fmt: skip
    tensors = {"w": np.ones((4, 4), np.float32), "w@levels": np.zeros((4, 4), np.uint8)}
    artifact.write(tmp_path / "a.safetensors", program, tensors)
    got, arrays = artifact.read(tmp_path / "a.safetensors")
    assert arrays["w@levels"][:, 0].tolist() == [0, 0, 0, 1]
    assert got.levels["w"].counts == (12, 4)


@pytest.mark.parametrize("quantised", [False, True])
def test_levels_in_the_file_as_documented(quantised: bool, tmp_path: Path) -> None:
    """Level after level, each in row-major order; nested bitmaps read by hand."""
    program, tensors = leveled(quantised)
    path = tmp_path / "a.safetensors"
    artifact.write(path, program, tensors)
    stored = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, "np") as file:
        text = json.loads(file.metadata()["program"])
    Draft202012Validator({"$defs": SCHEMA["$defs"], "$ref": "#/$defs/program"}).validate(text)
    assert text["version"] == 3
    assert ("quant" in text) == quantised
    assert set(text["levels"]) == {n.removesuffix("@levels") for n in tensors if n.endswith("@levels")}
    code = text["levels"]["a.weight"]
    assert code["encoding"] == "nested"
    digits = "".join(f"{byte:08b}" for byte in stored["a.weight@levels"])
    small = iter(digits[108:])
    levels = [1 - int(next(small)) if digit == "1" else 2 for digit in digits[:108]]
    assert code["shape"] == [4, 3, 3, 3]
    assert code["counts"] == [levels.count(0), levels.count(1)]
    want = [
        w
        for k in range(2)
        for w, level in zip(tensors["a.weight"].ravel(), levels, strict=True)
        if level == k
    ]
    assert stored["a.weight"].tolist() == want
    assert stored["a.weight"].dtype == tensors["a.weight"].dtype


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_levels_come_back(tmp_path_factory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("any")
    subnets = data.draw(st.integers(1, 5))
    program = replace(
        bare(), subnets=tuple(SubnetInfo(str(k), 0, 0, 0) for k in range(subnets)), groups=()
    )  # fmt: skip
    tensors: dict[str, np.ndarray] = {}
    for name in "xyz":
        shape = data.draw(hnp.array_shapes(max_dims=4, max_side=5))
        levels = data.draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, subnets)))
        kind = data.draw(st.sampled_from([np.float32, np.float64, np.float16, np.int8, np.int16]))
        weights = data.draw(hnp.arrays(kind, shape, elements=st.integers(-100, 100)))
        tensors |= {name: np.where(levels < subnets, weights, kind(0)), f"{name}@levels": levels}
    artifact.write(folder / "a.safetensors", program, tensors)
    got, arrays = artifact.read(folder / "a.safetensors")
    for name, array in tensors.items():
        assert arrays[name].dtype == array.dtype
        assert np.array_equal(arrays[name], array)
    artifact.write(folder / "b.safetensors", got, arrays)
    assert (folder / "a.safetensors").read_bytes() == (folder / "b.safetensors").read_bytes()


def test_without_its_levels_a_tensor_is_dense_again(tmp_path: Path) -> None:
    program, tensors = leveled(False)
    artifact.write(tmp_path / "a.safetensors", program, tensors)
    got, arrays = artifact.read(tmp_path / "a.safetensors")
    dense = {n: a for n, a in arrays.items() if not n.endswith("@levels")}
    artifact.write(tmp_path / "b.safetensors", got, dense)
    again, arrays = artifact.read(tmp_path / "b.safetensors")
    assert again.levels == {}
    assert all(np.array_equal(arrays[n], dense[n]) for n in dense)


# ---- Failing disks ----


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A good artifact that a failing write must leave alone."""
    path = tmp_path / "a.safetensors"
    artifact.write(path, *toy())
    return path


def larger() -> tuple[Program, dict[str, np.ndarray]]:
    program, tensors = toy()
    return program, tensors | {"extra": np.zeros(1_000_000, np.float32)}


def test_a_full_disk_leaves_the_old_file_and_nothing_else(old: Path) -> None:
    """The limit on the size of files fails in the middle of a write, as a full disk does."""
    before = old.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(ArtifactError, match="not written: File too large"):
            artifact.write(old, *larger())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert old.read_bytes() == before
    assert [p.name for p in old.parent.iterdir()] == [old.name]
    artifact.read(old)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_call_leaves_the_old_file_and_nothing_else(
    call: str, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = old.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(
        ArtifactError, match=r"not written: No space left on device; what was there before is unchanged"
    ):
        artifact.write(old, *larger())
    monkeypatch.undo()
    assert old.read_bytes() == before
    assert [p.name for p in old.parent.iterdir()] == [old.name]


def test_an_interrupt_leaves_the_old_file_and_nothing_else(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    before = old.read_bytes()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        artifact.write(old, *larger())
    monkeypatch.undo()
    assert old.read_bytes() == before
    assert [p.name for p in old.parent.iterdir()] == [old.name]


def test_a_read_only_directory_is_a_clear_error(old: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    old.parent.chmod(0o500)
    try:
        with pytest.raises(ArtifactError, match="not written: Permission denied"):
            artifact.write(old, *toy())
    finally:
        old.parent.chmod(0o700)
    artifact.read(old)


def test_a_missing_directory_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not written: No such file or directory"):
        artifact.write(tmp_path / "nowhere" / "a.safetensors", *toy())
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="not written: Not a directory"):
        artifact.write(tmp_path / "file" / "a.safetensors", *toy())
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArtifactError, match="not written: a folder or a device"):
        artifact.write(tmp_path / "folder", *toy())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_a_device_is_not_replaced() -> None:
    with pytest.raises(ArtifactError, match="a device"):
        artifact.write(os.devnull, *toy())
    assert Path(os.devnull).is_char_device()


def test_a_system_that_is_read_only_is_a_clear_error() -> None:
    if not Path("/proc/self").exists():
        pytest.skip("needs /proc")
    with pytest.raises(ArtifactError, match="not written"):
        artifact.write("/proc/a.safetensors", *toy())


def test_what_crashes_left_is_removed_and_what_others_write_is_not(old: Path) -> None:
    stale, young, other, alike = (
        old.parent / f".{name}.tmp"
        for name in (
            "a.safetensors.0123456789abcdef",
            "a.safetensors.fedcba9876543210",
            "b.safetensors.0123456789abcdef",
            "a.safetensors.backup",
        )
    )
    for path in (stale, young, other, alike):
        path.touch()
    long_ago = time.time() - 2 * artifact.STALE_S
    for path in (stale, other, alike):
        os.utime(path, (long_ago, long_ago))
    artifact.write(old, *toy())
    assert sorted(old.parent.iterdir()) == sorted([old, young, other, alike])


def test_a_long_name_is_written_and_its_leftovers_removed(tmp_path: Path) -> None:
    name = "ä" * 115 + ".safetensors"  # 242 bytes
    stale = tmp_path / f".{'ä' * 100}.0123456789abcdef.tmp"
    stale.touch()
    os.utime(stale, (0, 0))
    artifact.write(tmp_path / name, *toy())
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("field", "value", "where"),
    [
        ("provenance", {"loss": math.nan}, "program.provenance['loss']: got nan"),
        ("provenance", {"seed": np.int64(1)}, "program.provenance['seed']: got np.int64(1)"),
        ("accuracy", math.nan, "program.subnets[0].accuracy: got nan"),
    ],
)
def test_what_json_has_no_word_for_is_named(tmp_path: Path, field: str, value: Any, where: str) -> None:
    program, tensors = toy()
    if field == "accuracy":
        first, *others = program.subnets
        field, value = "subnets", (replace(first, accuracy=value), *others)
    with pytest.raises(ArtifactError, match=re.escape(where)):
        artifact.write(tmp_path / "a.safetensors", replace(program, **{field: value}), tensors)
    assert not list(tmp_path.iterdir())


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "a.safetensors")
    artifact.write(tmp_path / "link", *toy())
    assert (tmp_path / "link").is_symlink()
    artifact.read(tmp_path / "deep" / "a.safetensors")


def test_readers_see_the_old_file_or_the_new_one(old: Path) -> None:
    program, tensors = toy()
    done, seen, errors = threading.Event(), set(), []

    def watch() -> None:
        while not done.is_set():
            try:
                seen.add(artifact.read(old)[0].model)
            except ArtifactError as error:
                errors.append(error)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for i in range(30):
        artifact.write(old, replace(program, model=f"{i % 2}"), tensors)
    done.set()
    watcher.join()
    assert not errors
    assert seen <= {"Toy", "0", "1"}


def test_no_file_a_folder_and_a_pipe_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read: No such file"):
        artifact.read(tmp_path / "nothing.safetensors")
    with pytest.raises(ArtifactError, match="want a regular file"):
        artifact.read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="want a regular file"):
        artifact.read(tmp_path / "pipe")


def test_the_example_in_the_documentation_is_what_is_written(tmp_path: Path) -> None:
    """docs/format.md shows the two-op program of `example` and the first bytes of its file."""
    text = (Path(__file__).parents[1] / "docs" / "format.md").read_text(encoding="utf-8")
    data = example(tmp_path / "example.safetensors")
    header, program, _ = take_apart(data)
    dump = [line for line in text.splitlines() if line[:8].isalnum() and line[8:10] == "  "]
    assert dump == [hexdump(data, i) for i in range(0, 16 * len(dump), 16)]
    assert len(dump) >= 4
    blocks = [block.partition("```")[0] for block in text.split("```json\n")[1:]]
    assert program in [json.loads(block) for block in blocks]
    table = {k: v for k, v in header.items() if k != "__metadata__"}
    assert table in [json.loads(block) for block in blocks]


def test_the_example_with_levels_is_what_is_written(tmp_path: Path) -> None:
    """docs/format.md gives the same weights levels, and shows levels, header, section and bytes."""
    text = (Path(__file__).parents[1] / "docs" / "format.md").read_text(encoding="utf-8")
    example(tmp_path / "example.safetensors")
    program, tensors = artifact.read(tmp_path / "example.safetensors")
    shown = text.partition("## Example with levels")[2]
    rows = [line for line in shown.partition("```\n")[2].partition("```")[0].splitlines() if line]
    levels = np.array([[int(level) for level in row.replace("|", " ").split()] for row in rows], np.uint8)
    levels = levels.reshape(3, 2, 3).transpose(1, 0, 2)[:, None]
    weights = tensors["conv.weight"] * (levels < 2)
    path = tmp_path / "levels.safetensors"
    artifact.write(path, program, {**tensors, "conv.weight": weights, "conv.weight@levels": levels})
    assert np.array_equal(artifact.read(path)[1]["conv.weight@levels"], levels)
    header, written, data = take_apart(path.read_bytes())
    section, table = (json.loads(block.partition("```")[0]) for block in shown.split("```json\n")[1:])
    assert section == {"version": 3, "levels": written["levels"]} == {k: written[k] for k in section}
    assert table == {name: header[name] for name in table}
    for name, number in (("conv.weight@levels", int), ("conv.weight", float)):
        line = next(line for line in shown.splitlines() if line.startswith(f"`{name}`:"))
        begin, end = header[name]["data_offsets"]
        got = np.frombuffer(data[begin:end], np.uint8 if number is int else np.float32)
        want = [int(w, 16) if number is int else 16 * float(w) / 16 for w in line.split("`")[3].split()]
        assert (got if number is int else 16 * got).tolist() == want


def hexdump(data: bytes, start: int) -> str:
    """One line as `hexdump -C` prints it."""
    row = data[start : start + 16]
    columns = "  ".join(" ".join(f"{b:02x}" for b in row[i : i + 8]) for i in (0, 8))
    return f"{start:08x}  {columns}  |{''.join(chr(b) if 32 <= b < 127 else '.' for b in row)}|"


def example(path: Path) -> bytes:
    """A convolution and a linear at two widths, as shown in docs/format.md."""
    from rheostat.program import Group

    values = (
        Value((Segment(1, (1, 1)),), (4, 4)),
        Value((Segment(2, (1, 2)),), (2, 2)),
        Value((Segment(3, (3, 3)),), ()),
    )
    ops = (
        Conv2d(0, 1, "conv.weight", None, (2, 2), (1, 1), (1, 1), (1, 1), None, "relu"),
        Linear(1, 2, "fc.weight", "fc.bias"),
    )
    program = Program(
        model="Example",
        input=Input("x", (1, 4, 4)),
        subnets=(SubnetInfo("0.5", 24, 48, 96, 0.75), SubnetInfo("1.0", 45, 96, 180, 0.875)),
        groups=(Group("conv", 2, (1, 2)), Group("fc", 3, (3, 3), "model output")),
        values=values,
        ops=ops,
        outputs=(2,),
        plan=plan(values, ops, (2,)),
        producer="rheostat 0.1.0",
        provenance={"seed": 0},
    )
    tensors = {
        "conv.weight": np.arange(18, dtype=np.float32).reshape(2, 1, 3, 3) / 16,
        "fc.weight": np.arange(24, dtype=np.float32).reshape(3, 8) / 16,
        "fc.bias": np.zeros(3, np.float32),
    }
    artifact.write(path, program, tensors)
    assert to_json(artifact.read_program(path))
    return path.read_bytes()
