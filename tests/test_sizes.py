"""The sizes of levels against the formulas of the papers and against files written one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from attacks.hostile import toy
from rheostat import artifact
from rheostat.encodings import codes, encode
from rheostat.program import ENCODINGS, LevelCode, Plan, Program
from rheostat.sizes import break_even, size_report
from rheostat.spec import SubnetInfo

SPARSITIES = (0.6024, 0.405, 0.207)  # of LeNet-5 in the pruning paper, table 2


@pytest.mark.parametrize(
    ("code", "bits", "want"),
    [
        # The pruning paper's 4 % (CPU): one 16-bit word for each 5x5 kernel; its 20 % (LEA): one for each row of 5.
        (LevelCode((6, 16, 5, 5), "pattern", 25, (1500,), 2 * 96), 16, 0.04),
        (LevelCode((6, 16, 5, 5), "pattern", 5, (1500,), 2 * 480), 16, 0.20),
        # An id of 4 bits for each kernel.
        (LevelCode((6, 16, 5, 5), "pattern", 25, (1500,), 48), 8, 0.02),
        (LevelCode((6, 16, 5, 5), "pattern", 25, (1500,), 48), 16, 0.01),
        # One bit a weight; two; three nested ones where they are longest.
        (LevelCode((80, 100), "bitmap", 1, (4000,), 1000), 32, 0.03125),
        (LevelCode((80, 100), "bitmap", 1, (4000,), 1000), 16, 0.0625),
        (LevelCode((80, 100), "bitmap", 1, (4000,), 1000), 8, 0.125),
        (LevelCode((80, 100), "bitmap", 1, (2000, 1000, 1000), 2000), 16, 0.125),
        (LevelCode((80, 100), "nested", 1, (7998, 1, 1), 3000), 8, 0.375),
        (LevelCode((80, 100), "nested", 1, (7998, 1, 1), 3000), 16, 0.1875),
        # One byte a kept weight.
        (LevelCode((80, 100), "delta", 1, (4000,), 4000), 8, 0.5),
        (LevelCode((80, 100), "delta", 1, (4000,), 4000), 16, 1 / 3),
        (LevelCode((80, 100), "delta", 1, (0,), 0), 8, 0.0),
    ],
)  # fmt: skip
def test_thresholds_are_those_of_the_paper_and_of_the_formulas(
    code: LevelCode, bits: int, want: float
) -> None:
    assert break_even(code, bits) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_above_its_threshold_an_encoding_is_smaller_and_below_it_is_not(bits: int) -> None:
    """For each encoding, at sparsities on either side of its own threshold, counted in bytes."""
    rng = np.random.default_rng(0)
    order = rng.permutation(40_000).reshape(100, 400)
    seen = set()
    for kept in (39_900, 38_000, 36_000, 30_000, 24_000, 15_000, 5_000):
        levels = (order >= kept).astype(np.uint8)
        for code in codes(levels, 1):
            size = kept * bits // 8 + len(encode(code, levels))
            smaller = size < 40_000 * bits // 8
            assert smaller == (1 - kept / 40_000 > break_even(code, bits)), (code, size)
            seen.add((code.encoding, smaller))
    assert {(e, s) for e in ("bitmap", "nested", "delta") for s in (False, True)} <= seen


def lenet() -> tuple[Program, dict[str, np.ndarray]]:
    """The weights of LeNet-5 at the paper's sparsities: kernel rows by permutation, linears anywhere."""
    rng = np.random.default_rng(0)
    shapes = {"conv1": (6, 1, 5, 5), "conv2": (16, 6, 5, 5), "fc1": (120, 256), "fc2": (84, 120)}
    tensors: dict[str, np.ndarray] = {"fc3": rng.standard_normal((10, 84)).astype(np.float32)}
    for name, shape in shapes.items():
        if name.startswith("conv"):
            rows = rng.permuted(np.tile(np.array([0, 0, 1, 2, 3], np.uint8), (*shape[:2], 1)), axis=2)
            levels = np.repeat(rows[..., None], 5, axis=3)
        else:
            levels = np.searchsorted(1 - np.array(SPARSITIES), rng.random(shape)).astype(np.uint8)
        tensors[name] = rng.standard_normal(shape).astype(np.float32) * (levels < 3)
        tensors[f"{name}@levels"] = levels
    program = replace(
        toy()[0], ops=None, values=(), outputs=(), plan=Plan(0, ()), unsupported="weights alone", aliases={}, groups=(),
        subnets=tuple(SubnetInfo(f"{1 - s:.0%}", 0, 0, 0) for s in SPARSITIES),
    )  # fmt: skip
    return program, tensors


def data_bytes(path: Path, names: set[str]) -> int:
    """What the tensors take in the file, read by nobody of ours."""
    import safetensors.numpy

    return sum(a.nbytes for n, a in safetensors.numpy.load_file(path).items() if n.partition("@")[0] in names)


def test_the_report_counts_what_files_hold(tmp_path: Path) -> None:
    program, tensors = lenet()
    path = tmp_path / "lenet.safetensors"
    artifact.write(path, program, tensors)
    report = size_report(path)
    pruned = {n.partition("@")[0] for n in tensors if n.endswith("@levels")}
    assert {layer.name for layer in report.layers} == pruned
    assert report.shared_bytes(32) == data_bytes(path, pruned)
    assert report.dense_bytes(32) == sum(tensors[n].nbytes for n in pruned)
    separate = 0
    for k, info in enumerate(program.subnets):
        one = {
            n: a * (tensors[f"{n}@levels"] <= k) if n in pruned else a
            for n, a in tensors.items()
            if "@" not in n
        }
        one |= {f"{n}@levels": (tensors[f"{n}@levels"] > k).astype(np.uint8) for n in pruned}
        artifact.write(tmp_path / "one.safetensors", replace(program, subnets=(info,)), one)
        separate += data_bytes(tmp_path / "one.safetensors", pruned)
    assert report.separate_bytes(32) == separate
    for layer in report.layers:
        levels = tensors[f"{layer.name}@levels"]
        assert layer.chosen == layer.codes[0]
        assert {code.encoding for code in layer.codes} <= set(ENCODINGS)
        for k in range(3):
            assert layer.sparsity(k) == pytest.approx((levels > k).mean())
    # 8 bits: the three subnets together take about half of what three files take, and little more than one dense model.
    assert 0.45 < report.shared_bytes(8) / report.separate_bytes(8) < 0.6
    assert report.shared_bytes(8) < 1.15 * report.dense_bytes(8)


def test_where_pruning_saves_nothing_a_model_of_its_own_is_dense(tmp_path: Path) -> None:
    program, tensors = lenet()
    levels = np.zeros((120, 256), np.uint8)
    levels[3, 5] = 2
    tensors = {"fc1": np.ones((120, 256), np.float32), "fc1@levels": levels}
    artifact.write(tmp_path / "a.safetensors", program, tensors)
    report = size_report(tmp_path / "a.safetensors")
    # One weight fewer and a two-byte index is more than the weights; of all weights no index is needed.
    assert report.layers[0].separate_index_bytes[2] == 0
    assert report.separate_bytes(8) == 3 * 120 * 256
    assert report.shared_bytes(8) > 120 * 256


def test_the_table_is_aligned_and_says_what_it_cannot(tmp_path: Path) -> None:
    artifact.write(tmp_path / "a.safetensors", *lenet())
    text = str(size_report(tmp_path / "a.safetensors"))
    tables = text.split("\n\n")
    assert len(tables) == 3
    head, *rows = tables[0].splitlines()
    assert head.split() == "tensor weights 40% 60% 79% levels bytes s* 32 bit s* 16 bit s* 8 bit".split()
    assert len(rows) == 4 * len(ENCODINGS)
    assert sum(" *" in row for row in rows) == 4
    assert len({len(row) for row in [head, *rows]}) == 1
    assert tables[1].splitlines()[0].split() == "one dense model this file 3 files saved".split()
    assert "not the engine faster" in tables[2]


def test_without_levels_there_is_nothing_to_report(tmp_path: Path) -> None:
    artifact.write(tmp_path / "a.safetensors", *toy())
    with pytest.raises(ValueError, match="no tensor has levels"):
        size_report(tmp_path / "a.safetensors")
