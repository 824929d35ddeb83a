"""Hostile artifacts with levels: wrong counts, bytes and shapes are refused with a reason, soon, in little memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attacks.hostile import Json, header_edit, program_edit, put_together, renamed, take_apart
from attacks.hostile import toy as without_levels
from rheostat import artifact
from rheostat.cost import count, counted
from rheostat.program import ENCODINGS, Program
from rheostat.spec import ArtifactError


def toy() -> tuple[Program, dict[str, np.ndarray]]:
    """The toy of hostile.py with levels of two of its weights, and in every encoding of tensors that no op reads."""
    program, tensors = without_levels()
    rng = np.random.default_rng(1)
    levels = {
        "b.weight": rng.choice(np.array([0, 1, 2], np.uint8), (4, 4, 3, 3), p=[0.3, 0.3, 0.4]),
        "fc.weight": np.full((5, 8), 2, np.uint8),
        # Rows of kernels that subnet 0 keeps, that only subnet 1 keeps, that are gone.
        "x": np.tile(np.array([0, 1, 2], np.uint8)[:, None], (4, 3, 1, 3)),
        "z": rng.permutation(np.arange(36, dtype=np.uint8) % 2).reshape(4, 9),
    }
    assert levels["z"][0, 0] == 1
    levels["fc.weight"][1, 0] = levels["fc.weight"][4, 7] = 0
    tensors["x"] = rng.integers(-9, 9, (4, 3, 3, 3)).astype(np.int16)
    tensors["z"] = rng.integers(-9, 9, (4, 9)).astype(np.int8)
    for name, found in levels.items():
        tensors |= {name: tensors[name] * (found < 2), f"{name}@levels": found}
    return program, tensors


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "toy.safetensors"
    artifact.write(path, *toy())
    program = artifact.read(path)[0]
    used = {name: (code.encoding, code.group) for name, code in program.levels.items()}
    assert used == {
        "b.weight": ("nested", 1),
        "fc.weight": ("delta", 1),
        "x": ("pattern", 9),
        "z": ("bitmap", 1),
    }
    assert {encoding for encoding, _ in used.values()} == set(ENCODINGS)
    return path.read_bytes()


def code(name: str, **changes: Any) -> Callable[[bytes], bytes]:
    return program_edit(lambda p: p["levels"][name].update(changes))


def with_bytes(name: str, edit: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """The bytes of one tensor of bytes changed, its length said truly everywhere, with true hashes."""

    def apply(data: bytes) -> bytes:
        header, program, tensors = take_apart(data)
        begin, end = header[name]["data_offsets"]
        new = edit(tensors[begin:end])
        grown = len(new) - (end - begin)
        for key, item in header.items():
            if key != "__metadata__":
                item["data_offsets"] = [n + grown * (n >= end and key != name) for n in item["data_offsets"]]
        header[name].update(shape=[len(new)], data_offsets=[begin, begin + len(new)])
        program["levels"][name.removesuffix("@levels")]["index_bytes"] = len(new)
        return put_together(header, program, tensors[:begin] + new + tensors[end:])

    return apply


def flip(name: str, position: int, mask: int) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[position] ^= mask
        return bytes(changed)

    return with_bytes(f"{name}@levels", edit)


def bomb(encoding: str, size: int, raw: bytes, group: int = 1) -> Callable[[bytes], bytes]:
    """A tensor of `size` weights, none of them kept, in a few bytes; no op reads it."""

    def apply(data: bytes) -> bytes:
        header, program, tensors = take_apart(data)
        end = len(tensors)
        header["y"] = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
        header["y@levels"] = {"dtype": "U8", "shape": [len(raw)], "data_offsets": [end, end + len(raw)]}
        program["levels"]["y"] = {
            "shape": [size],
            "encoding": encoding,
            "group": group,
            "counts": [0, 0],
            "index_bytes": len(raw),
        }
        return put_together(header, program, tensors + raw)

    return apply


def many_bombs(data: bytes) -> bytes:
    """Each within the limit, all together not."""
    header, program, tensors = take_apart(data)
    for i in range(2000):
        end = len(tensors)
        header[f"y{i}"] = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
        header[f"y{i}@levels"] = {"dtype": "U8", "shape": [0], "data_offsets": [end, end]}
        program["levels"][f"y{i}"] = {
            "shape": [2**20], "encoding": "delta", "group": 1, "counts": [0, 0], "index_bytes": 0
        }  # fmt: skip
    return put_together(header, program, tensors)


def swap_levels(name: str, new: str) -> Callable[[bytes], bytes]:
    """Levels said to be of another tensor."""
    return program_edit(lambda p: p["levels"].update({new: p["levels"].pop(name)}))


def keep_outside(program: Json) -> None:
    """Subnet 0 loses a channel that its levels still use."""
    for v in (1, 2, 3):
        for segment in program["values"][v]["channels"]:
            segment[1] = [1, 4]


def of_a_bias(data: bytes) -> bytes:
    header, program, tensors = take_apart(data)
    end = len(tensors)
    header["b.bias@levels"] = {"dtype": "U8", "shape": [1], "data_offsets": [end, end + 1]}
    program["levels"]["b.bias"] = {
        "shape": [4], "encoding": "bitmap", "group": 1, "counts": [4, 0], "index_bytes": 1
    }  # fmt: skip
    return put_together(header, program, tensors + b"\0")


HOSTILE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    # The section
    "a version of floats": (program_edit(lambda p: p.update(version=1)), "unknown key 'levels'"),
    "a version of integers": (program_edit(lambda p: p.update(version=2)), "'quant' is missing"),
    "no section": (program_edit(lambda p: p.pop("levels")), "'levels' is missing"),
    "an empty section": (program_edit(lambda p: p.update(levels={})), "at least one tensor"),
    "a list": (program_edit(lambda p: p.update(levels=[1])), "an object"),
    "integers that are null": (program_edit(lambda p: p.update(quant=None)), "program.quant"),
    "a path as a name": (swap_levels("z", "../z"), "printable name"),
    "levels of nothing": (swap_levels("z", "nothing"), "is no tensor; want"),
    "levels of another tensor": (swap_levels("fc.weight", "z2"), "is no tensor; want"),
    "levels of a dense tensor": (swap_levels("fc.weight", "fc.bias"), "fc.bias is [5]; want the 2 kept weights"),
    "levels of a bias": (of_a_bias, "b.bias has levels; only a weight may have them"),
    "levels that are forgotten": (program_edit(lambda p: p["levels"].pop("b.weight")), "b.weight@levels: program"),
    "levels that nothing declares": (renamed("n.num_batches_tracked", "a.weight@levels"), "says nothing of it"),
    "a key missing": (program_edit(lambda p: p["levels"]["z"].pop("group")), "missing"),
    "a key too many": (code("z", code="x"), "unknown key"),
    "an unknown encoding": (code("z", encoding="zip"), "one of bitmap, nested, delta, pattern"),
    "an encoding that is a list": (code("z", encoding=[]), "one of bitmap"),
    "a group of zero": (code("x", group=0), "from 1"),
    "a group that does not divide": (code("x", group=5), "a divisor of the 108 weights"),
    "a group beyond the tensor": (code("x", group=216), "from 1 to 108"),
    "a group for a bitmap": (code("z", group=2), "from 1 to 1"),
    "counts too few": (code("z", counts=[36]), "a list of 2 items"),
    "counts too many": (code("z", counts=[18, 18, 0]), "a list of 2 items"),
    "a negative count": (code("z", counts=[37, -1]), "from 0"),
    "counts beyond the tensor": (code("z", counts=[18, 19]), "no more than the 36 weights"),
    "counts that are true": (code("z", counts=[True, 35]), "integer"),
    "other counts": (code("z", counts=[17, 19]), "the levels' counts are [18, 18]; want [17, 19]"),
    "fewer weights than counts": (code("z", counts=[18, 17]), "z is [36]; want the 35 kept weights as [35]"),
    "no shape": (code("z", shape=[]), "a list of 1 to 8"),
    "nine dimensions": (code("z", shape=[36] + [1] * 8), "a list of 1 to 8"),
    "a shape of zero": (code("z", shape=[0, 36]), "from 1"),
    "a shape of floats": (code("z", shape=[36.0]), "integer"),
    "another shape": (code("z", shape=[37]), "for 37 numbers"),
    "another shape of as many": (code("fc.weight", shape=[8, 5]), "want F32 [5, 8]"),
    "a shape beyond 31 bits": (code("z", shape=[2**16, 2**16]), "at most 2147483647 weights"),
    "a shape that wraps": (code("z", shape=[2**31 - 1] * 8), "at most 2147483647 weights"),
    "fewer bytes than there are": (code("z", index_bytes=8), "want U8 [8]"),
    "levels that are no bytes": (header_edit(lambda h: h["z@levels"].update(dtype="I8")), "want U8"),
    "levels in two dimensions": (header_edit(lambda h: h["z@levels"].update(shape=[3, 3])), "want U8 [9]"),
    "weights in two dimensions": (header_edit(lambda h: h["z"].update(shape=[4, 9])), "want the 36 kept weights"),
    "weights that are truth values": (header_edit(lambda h: h["z"].update(dtype="BOOL")), "z is BOOL"),
    "a subnet that keeps what it does not have": (program_edit(keep_outside), "program.ops"),
    # The bytes
    "a bit of a bitmap": (flip("z", 0, 0x40), "z@levels (bitmap): the levels' counts are [19, 17]; want [18, 18]"),
    "a weight that is gone": (flip("z", 0, 0xC0), "the levels' counts are [18, 17]; want [18, 18]"),
    "a level that does not exist": (flip("z", 0, 0x80), "a level is 3; want at most 2"),
    "a byte more": (with_bytes("z@levels", lambda b: b + b"\0"), "10 bytes for 36 numbers of 2 bits"),
    "a byte less": (with_bytes("z@levels", lambda b: b[:-1]), "8 bytes for 36 numbers of 2 bits"),
    "a bit of a plane": (flip("b.weight", 0, 0x80), "b.weight@levels (nested): "),
    "a bit of the last plane": (flip("b.weight", 18, 0x80), "weights up to level 0; want"),
    "a bit after the planes": (flip("b.weight", -1, 0x01), "after the last number"),
    "a plane more": (with_bytes("b.weight@levels", lambda b: b + b"\0" * 18), "numbers of 1 bits"),
    "gaps beyond the end": (with_bytes("fc.weight@levels", lambda b: b"\x09\xff"), "at 254; want at most 39"),
    "escapes beyond the end": (with_bytes("fc.weight@levels", lambda b: b"\x09" + b"\0" * 9999 + b"\1"), "want at"),
    "an escape at the end": (with_bytes("fc.weight@levels", lambda b: b + b"\0"), "none open at the end"),
    "no gaps": (with_bytes("fc.weight@levels", lambda b: b""), "0 gaps; want 2"),
    "gaps without end": (with_bytes("fc.weight@levels", lambda b: b"\1" * 100_000), "100000 gaps; want 2"),
    "more patterns than bytes": (flip("x", 0, 0xFF), "patterns; want"),
    "a pattern too many": (flip("x", 1, 0x01), "patterns; want"),
    "a pattern changed": (flip("x", 2, 0x80), "x@levels (pattern): "),
    "an id changed": (flip("x", -1, 0x80), "x@levels (pattern): "),
    "no patterns": (with_bytes("x@levels", lambda b: b"\0"), "no number of patterns"),
    # Bombs
    "two billion weights in no bytes": (bomb("delta", 2**31 - 1, b""), "weights; want at most 16777216"),
    "two billion weights of one pattern": (bomb("pattern", 2**31 - 1, b"\0\0\x80"), "weights; want at most 16777216"),
    "a pattern of two billion weights": (bomb("pattern", 2**31 - 1, b"\0\0\x80", 2**31 - 1), "want at most 16777216"),
    "two thousand tensors of a million weights": (many_bombs, "want at most 16777216"),
    "a bitmap of sixteen million weights": (bomb("bitmap", 2**24 - 400, b""), "0 bytes for"),
    "planes of sixteen million weights": (bomb("nested", 2**24 - 400, b""), "0 bytes for"),
    "sixteen million weights of a wrong pattern": (bomb("pattern", 2**24 - 400, b"\0\0\xc0"), "a level is 3"),
    "sixteen million weights that are kept": (bomb("pattern", 2**24 - 400, b"\0\0\0"), "counts are [16776816, 0]"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_with_a_reason_in_under_a_second(name: str, good: bytes, tmp_path: Path) -> None:
    change, expected = HOSTILE[name]
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(change(good))
    start = time.process_time()
    with pytest.raises(ArtifactError) as caught:
        artifact.read(path)
    assert time.process_time() - start < 1
    message = str(caught.value)
    assert expected in message
    assert message.isprintable()
    assert len(message) < 1000 + len(str(path))


def test_memory_stays_within_the_limit(good: bytes, tmp_path: Path) -> None:
    """The largest weightless tensor that is let through, and the hostile ones: a few bytes a weight of the limit."""
    path = tmp_path / "large.safetensors"
    path.write_bytes(bomb("delta", artifact.MAX_SPARSE - 400, b"")(good))
    assert artifact.read(path)[1]["y"].size == artifact.MAX_SPARSE - 400
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for change, _ in HOSTILE.values():
        path.write_bytes(change(good))
        with pytest.raises(ArtifactError):
            artifact.read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_every_change_of_one_byte_is_refused_or_changes_nothing(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(good)
    want, tensors = artifact.read(path)
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(1000):
        data = bytearray(good)
        position = int(random.integers(len(good)))
        data[position] ^= int(random.integers(1, 256))
        path.write_bytes(data)
        try:
            got, arrays = artifact.read(path)
        except ArtifactError:
            refused += 1
            continue
        assert got == want, position
        assert all(np.array_equal(arrays[n], tensors[n]) for n in tensors), position
    assert refused > 960


def test_every_field_of_every_wrong_type_is_refused(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "hostile.safetensors"
    _, program, _ = take_apart(good)
    for wrong in ("x", -1, 2**70, 1.5, None, {}, [[]], [None] * 2, True):
        for name in program["levels"]:
            for key in program["levels"][name]:
                if key == "group" and wrong is True:
                    continue  # JSON's true is no integer, but where 1 is meant Python cannot tell from the text alone
                path.write_bytes(code(name, **{key: wrong})(good))
                with pytest.raises(ArtifactError):
                    artifact.read(path)


# ---- what is not written ----


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"q@levels": np.zeros(3, np.uint8)}, "of the shape of q, which is missing"),
        ({"z@levels": np.zeros((4, 9), np.int64)}, r"got int64 \[4, 9\]; want uint8"),
        ({"z@levels": np.zeros((9, 4), np.uint8)}, r"got uint8 \[9, 4\]; want uint8 of the shape of z \[4, 9\]"),
        ({"z@levels": np.full((4, 9), 3, np.uint8)}, "want levels from 0 to 2"),
        ({"z@levels": np.full((4, 9), 2, np.uint8)}, "z: a weight that no subnet keeps is not zero"),
        ({"e": np.zeros((0, 3), np.float32), "e@levels": np.zeros((0, 3), np.uint8)}, "at least one weight"),
        ({"b.bias@levels": np.zeros(4, np.uint8)}, "only a weight may have them"),
        ({"n.weight@levels": np.zeros(4, np.uint8)}, "only a weight may have them"),
        ({"n.num_batches_tracked@levels": np.zeros((), np.uint8)}, "n.num_batches_tracked"),
        ({"x": np.ones((4, 3, 3, 3), np.float32)}, "x: a weight that no subnet keeps"),
    ],
)  # fmt: skip
def test_what_would_not_be_read_is_not_written(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    program, tensors = toy()
    with pytest.raises(ArtifactError, match=says):
        artifact.write(tmp_path / "a.safetensors", program, tensors | change)
    assert not list(tmp_path.iterdir())


def test_costs_count_what_is_kept() -> None:
    """Of the toy by hand: 36 positions for the convolutions, 1 for the linear; `a` has no levels."""
    program, tensors = toy()
    program = artifact.with_levels(program, tensors)
    names = {"float32": "F32", "int64": "I64", "uint8": "U8", "int8": "I8", "int16": "I16"}
    shapes = {n: (names[str(a.dtype)], a.shape) for n, a in tensors.items()}
    b, fc = (tensors[f"{n}.weight@levels"] for n in ("b", "fc"))
    index = sum(program.levels[f"{n}.weight"].index_bytes for n in ("b", "fc"))
    columns = [0, 1, 4, 5]
    for cost, b_kept, fc_kept, a in zip(
        count(program, shapes),
        ((b[:2, :2] == 0).sum(), (b <= 1).sum()),
        ((fc[:, columns] == 0).sum(), (fc <= 1).sum()),
        (2, 4),
        strict=True,
    ):
        weights = a * 27 + b_kept
        assert cost.macs == 36 * weights + fc_kept
        assert cost.parameters == weights + fc_kept + 2 * a + a + 5
        assert cost.size_bytes == 4 * (cost.parameters + 2 * a) + index
    assert counted(program, shapes) == counted(counted(program, shapes), shapes)
