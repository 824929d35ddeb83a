"""Exported C on simulated devices, skipped where a tool is missing: the engine's bits, power cuts, instructions."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rheostat as rh
from rheostat import artifact
from rheostat.run.export_c import CSource, export_c
from rheostat.spec import Quant

ROOT = Path(__file__).parents[2]
NAMES = ("cortex-m4", "cortex-m3", "cortex-m0plus", "riscv32", "msp430")

pytestmark = pytest.mark.slow


@pytest.fixture
def simulators(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "bench")
    return importlib.import_module("simulators")


def device(simulators: Any, name: str) -> Any:
    found = next(d for d in simulators.DEVICES if d.name == name)
    if tools := simulators.missing(found):
        pytest.skip(f"not installed: {', '.join(tools)}")
    return found


def exported(folder: Path, quant: Quant | None, sparsities: tuple[float, ...] = ()) -> CSource:
    """A small network at three widths or, with sparsities, at full width with a level for each."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 12, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(108, 24), nn.ReLU(), nn.Linear(24, 10),
    )  # fmt: skip
    x = torch.randn(8, 1, 16, 16)
    graph = rh.trace(model, x[:1])
    if sparsities:
        net = rh.Supernet(graph, levels=rh.levels(graph, sparsities))
    else:
        net = rh.Supernet(graph, rh.uniform(graph, (0.25, 0.5, 1.0)))
    if quant is None:
        rh.save(net.eval(), folder / "net.safetensors")
    else:
        rh.quantize(net, [x], quant).save(folder / "net.safetensors")
    return export_c(folder / "net.safetensors", folder / "c", x[:1].numpy())


def without_levels(source: CSource, folder: Path) -> CSource:
    """The largest subnet of the same artifact as dense C: a zero costs what a weight costs."""
    program, tensors = artifact.read(source.folder.parent / "net.safetensors")
    dense = {name: array for name, array in tensors.items() if not name.endswith("@levels")}
    artifact.write(folder / "dense.safetensors", replace(program, levels={}), dense)
    return export_c(folder / "dense.safetensors", folder / "dense", np.zeros((1, 1, 16, 16), np.float32))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quant", [Quant(8, 8), Quant(16, 16), None], ids=["int8", "int16", "float"])
def test_devices_give_the_golden_outputs(
    name: str, quant: Quant | None, simulators: Any, tmp_path: Path
) -> None:
    found = device(simulators, name)
    if name == "msp430" and quant is None:
        pytest.skip("firmware/msp430.c has no floating point")
    measured = simulators.measure(found, exported(tmp_path, quant).folder)
    assert measured.wrong == 0
    assert measured.written_bytes == 4
    assert sorted(measured.instructions) == list(measured.instructions)  # a wider subnet takes longer


@pytest.mark.parametrize("name", NAMES)
def test_level_ordered_rows_beat_dense_ones_at_60_percent(name: str, simulators: Any, tmp_path: Path) -> None:
    found = device(simulators, name)
    source = exported(tmp_path, Quant(8, 8), (0.6, 0.4, 0.2))
    pruned = simulators.measure(found, source.folder)
    dense = simulators.measure(found, without_levels(source, tmp_path).folder)
    assert pruned.wrong == dense.wrong == 0
    assert pruned.instructions[0] < pruned.instructions[1] < pruned.instructions[2]
    assert pruned.instructions[0] < 0.9 * dense.instructions[0]


def test_an_inference_survives_power_cuts_at_any_instruction(simulators: Any, tmp_path: Path) -> None:
    """mspdebug stops anywhere, within layers and record bytes too, fills RAM with garbage, and resets."""
    found = device(simulators, "msp430")
    source = exported(tmp_path, Quant(8, 8), (0.6, 0.4, 0.2))
    whole = simulators.measure(found, source.folder).instructions[1]
    kept = '-DNET_NVM=__attribute__((section(".kept")))'
    program = simulators.build(found, source.folder, tmp_path, "power.c", ("-O2", "-DNET_RESUME", kept))
    rng = np.random.default_rng(0)
    commands, num = ["setbreak finish"], 40
    for _ in range(num):
        commands += ["fill nvm 16 255", "fill wrong 4 255"]
        for _ in range(rng.integers(1, 6)):
            garbage = " ".join(map(str, rng.integers(0, 256, 5)))
            commands += [
                f"step {rng.integers(1, whole)}",
                f"fill 0x200 0x1400 {garbage}",
                "reset",
            ]
        commands += ["run", "md wrong 4", "reset"]
    assert simulators.memory(simulators.mspdebug(program, commands)) == [0] * num
