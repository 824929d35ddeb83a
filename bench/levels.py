"""What levels cost the engine: an inference of a subnet whose weights are masked first, against one that uses them all.

    python bench/levels.py --json results.json

Every weight has a random level: 40, 60 and 80 % of each tensor are kept. The three subnets have the same widths, so
that they differ in one thing: the largest uses the packed weights as they are, the others mask them into scratch memory
first. Subnets take turns; the least of many rounds counts, because whatever else the machine does only adds. One
thread, batch 1 and 8.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from engine_vs_onnxruntime import cpu_name
from torch import nn

import rheostat as rh
from rheostat import artifact
from rheostat_recipes.models.lenet import LeNet5
from rheostat_recipes.models.resnet import resnet20

KEPT = (0.4, 0.6, 0.8)
CASES = {
    "conv 5x5, 6 to 16 channels, 12x12": (lambda: nn.Conv2d(6, 16, 5), (6, 12, 12)),
    "linear 256 to 120": (lambda: nn.Linear(256, 120), (256,)),
    "conv 3x3, 16 to 16 channels, 32x32": (lambda: nn.Conv2d(16, 16, 3, padding=1), (16, 32, 32)),
    "conv 3x3, 64 to 64 channels, 8x8": (lambda: nn.Conv2d(64, 64, 3, padding=1), (64, 8, 8)),
    "linear 2048 to 1000": (lambda: nn.Linear(2048, 1000), (2048,)),
    "LeNet-5": (LeNet5, (1, 28, 28)),
    "ResNet-20": (resnet20, (3, 32, 32)),
}


def supernet(name: str) -> rh.Supernet:
    torch.manual_seed(0)
    build, shape = CASES[name]
    graph = rh.trace(build().eval(), torch.randn(2, *shape))
    widths = rh.uniform(graph, (1.0,))[0].widths
    return rh.Supernet(graph, [rh.Subnet(f"{kept:.0%}", widths) for kept in KEPT]).eval()


def pruned(path: Path, bits: int, net: rh.Supernet, shape: tuple[int, ...]) -> None:
    """The artifact with random levels, of floats or of integers."""
    if bits == 32:
        rh.save(net, path)
    else:
        rh.quantize(net, [torch.randn(16, *shape)], bits).save(path)
    program, tensors = artifact.read(path)
    rng = np.random.default_rng(0)
    for name in {op.weight for op in program.ops or () if op.op in ("conv2d", "linear")}:
        levels = np.searchsorted(KEPT, rng.random(tensors[name].shape)).astype(np.uint8)
        tensors |= {name: tensors[name] * (levels < len(KEPT)), f"{name}@levels": levels}
    artifact.write(path, program, tensors)


def least_us(engine: rh.Engine, x: np.ndarray, rounds: int) -> list[float]:
    """Microseconds of one call of each subnet; a timed stretch is short enough to be left alone now and then."""
    best = [float("inf")] * len(engine.subnets)
    start = time.perf_counter_ns()
    engine(x)
    calls = max(1, min(10, 200_000 // (time.perf_counter_ns() - start)))
    for _ in range(rounds):
        for k in range(len(best)):
            engine.select(k)
            engine(x)
            start = time.perf_counter_ns()
            for _ in range(calls):
                engine(x)
            best[k] = min(best[k], (time.perf_counter_ns() - start) / calls / 1e3)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        for name, (_, shape) in CASES.items():
            if options.only not in (None, name):
                continue
            for bits in (32, 16, 8):
                pruned(path, bits, supernet(name), shape)
                with rh.Engine(path, threads=1) as engine:
                    for batch in (1, 8):
                        x = np.random.default_rng(1).standard_normal((batch, *shape), np.float32)
                        small, middle, whole = least_us(engine, x, options.rounds)
                        weights = sum(c.kept(2) for c in artifact.read_program(path).levels.values())
                        rows.append(
                            {
                                "net": name,
                                "bits": bits,
                                "batch": batch,
                                "weights": weights,
                                "whole_us": whole,
                                "masked_us": middle,
                                "masked_small_us": small,
                                "weight_bytes": engine.weight_bytes,
                            }
                        )
                        print(
                            f"{name}, {bits} bits, batch {batch}: {whole:.1f} us whole, {middle:.1f} us masked "
                            f"({small:.1f} us the smallest): {middle / whole:.2f}x"
                        )
    if options.json is not None:
        options.json.write_text(json.dumps({"cpu": cpu_name(), "rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
