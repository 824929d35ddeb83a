"""What an exported net takes of simulated microcontrollers: instructions, memory, accuracy, and when pruning pays.

    python bench/microcontrollers.py --data DIR --json results.json

Trains a small LeNet (24,894 weights, so that it fits the 64 KB of an MSP430) on MNIST, then three levels of it at 60,
40 and 20 % sparsity, rounds it to 8 bits and exports it twice: level-ordered, and as dense C, where a zero costs what a
weight costs. Accuracy is that of the C on the 10,000 test images. Then the same network pruned at ten sparsities, one
at a time: where its line crosses the dense one, pruning breaks even. simulators.py has the devices; those whose tools
are missing are left out. Everything is compiled with -O2; --optimize takes another.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from simulators import DEVICES, Device, measure, missing
from torch import nn

import rheostat as rh
from rheostat import artifact
from rheostat.program import Conv2d, Linear
from rheostat_recipes.data import Images, load

SPARSITIES = (0.6, 0.4, 0.2)
SWEEP = tuple(round(0.1 * i, 1) for i in range(10))


def small_lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def trained(images: Images, path: Path, epochs: int) -> None:
    """Write the integer artifact with three levels."""
    torch.manual_seed(0)
    loader = rh.ImageLoader(
        images.train_images,
        images.train_labels,
        batch_size=128,
        mean=images.mean,
        std=images.std,
        shuffle=True,
    )
    model = small_lenet()
    graph = rh.trace(model, torch.randn(1, 1, 28, 28))
    dense = rh.Supernet(graph, rh.uniform(graph, (1.0,)))
    rh.fit(dense, loader, epochs=epochs, lr=0.05, progress=False)
    model = dense.extract(0)
    graph = rh.trace(model, torch.randn(1, 1, 28, 28))
    net = rh.Supernet(graph, levels=rh.levels(graph, SPARSITIES))
    rh.fit_nested(net, loader, epochs=epochs, lr=0.02, teacher=model, progress=False)
    calibration = torch.from_numpy(images.normalized(images.train_images[:1024]))
    rh.quantize(net, calibration.split(128)).save(path)


def dense(path: Path, out: Path) -> None:
    """The largest subnet's weights without levels."""
    program, tensors = artifact.read(path)
    kept = {name: array for name, array in tensors.items() if not name.endswith("@levels")}
    artifact.write(out, replace(program, levels={}), kept)


def pruned(path: Path, out: Path, sparsity: float) -> None:
    """One level: the largest weights of each tensor."""
    program, tensors = artifact.read(path)
    for op in program.ops or ():
        if isinstance(op, (Conv2d, Linear)):
            weight = tensors[op.weight].astype(np.int16)
            size = np.abs(weight) + np.random.default_rng(0).random(weight.shape)
            kept = size >= np.quantile(size, sparsity)
            tensors |= {
                op.weight: (weight * kept).astype(tensors[op.weight].dtype),
                f"{op.weight}@levels": np.where(kept, 0, len(program.subnets)).astype(np.uint8),
            }
    artifact.write(out, replace(program, levels={}), tensors)


def crossing(sparsities: Sequence[float], counts: Sequence[int], level: int) -> float | None:
    """The sparsity at which falling counts reach `level`, on the line between two of them; None where none is above."""
    if counts[0] < level:
        return None
    return float(np.interp(-level, [-n for n in counts], sparsities))


def rows(
    path: Path, folder: Path, devices: Sequence[Device], x: np.ndarray, optimize: str
) -> list[dict[str, Any]]:
    dense(path, folder / "dense.safetensors")
    ours = rh.export_c(path, folder / "levels", x)
    plain = rh.export_c(folder / "dense.safetensors", folder / "dense", x)
    sweep = []
    for sparsity in SWEEP:
        pruned(folder / "dense.safetensors", folder / "one.safetensors", sparsity)
        sweep.append(rh.export_c(folder / "one.safetensors", folder / f"one-{sparsity}", x))
    found = []
    for device in devices:
        a, b = (measure(device, source.folder, optimize) for source in (ours, plain))
        # What no longer fits the memory of a device says nothing about its instructions.
        counts = {
            s: _instructions(device, source.folder, optimize) for s, source in zip(SWEEP, sweep, strict=True)
        }
        fits = {s: n for s, n in counts.items() if n is not None}
        assert a.wrong == b.wrong == 0, device.name
        found.append(
            {
                "device": device.name,
                "dense": asdict(b),
                "levels": asdict(a),
                "sweep": fits,
                "break_even_sparsity": crossing(list(fits), list(fits.values()), b.instructions[0]),
            }
        )
        show(found[-1])
    return found


def _instructions(device: Device, folder: Path, optimize: str) -> int | None:
    try:
        return measure(device, folder, optimize).instructions[0]
    except RuntimeError as error:
        if "overlaps" not in str(error) and "overflowed" not in str(error):
            raise
        return None


def show(row: dict[str, Any]) -> None:
    levels, dense = row["levels"], row["dense"]
    each = ", ".join(f"{n:,}" for n in levels["instructions"])
    print(f"{row['device']}: {dense['instructions'][0]:,} instructions dense; at 60, 40, 20 % {each}")
    if dense["cycles"]:
        each = ", ".join(f"{n:,}" for n in levels["cycles"])
        print(f"  estimated cycles {dense['cycles'][0]:,} dense; {each}")
    even = row["break_even_sparsity"]
    lowest = min(row["sweep"])
    print(
        f"  break-even sparsity {f'below {lowest:.0%}, the lowest that fits' if even is None else f'{even:.0%}'}"
    )
    print(
        f"  code {dense['code_bytes']:,} bytes dense, {levels['code_bytes']:,} level-ordered; "
        f"RAM {levels['ram_bytes']:,}"
    )
    print(f"  a switch writes {levels['written_bytes']} bytes")


def accuracies(path: Path, folder: Path, images: Images) -> list[float]:
    """Of the C, on the whole test set, in each level."""
    source = rh.export_c(path, folder)
    program, x = source.compile(), images.normalized(images.test_images)
    found = []
    for k in range(len(source.program.subnets)):
        y = source.run(program, x, k)
        assert isinstance(y, np.ndarray)
        found.append(float(np.mean(y.argmax(1) == images.test_labels)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of packed data sets")
    parser.add_argument("--epochs", type=int, default=3, help="of the dense network and of each level")
    parser.add_argument("--optimize", default="-O2")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    arguments = parser.parse_args()
    devices = [device for device in DEVICES if not missing(device)]
    for device in DEVICES:
        if device not in devices:
            print(f"{device.name}: left out, not installed: {', '.join(missing(device))}")
    images = load("mnist", arguments.data)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = folder / "net.safetensors"
        trained(images, path, arguments.epochs)
        right = accuracies(path, folder / "host", images)
        print("accuracy at 60, 40, 20 %:", ", ".join(f"{a:.2%}" for a in right))
        source = rh.export_c(path, folder / "sizes")
        dense(path, folder / "dense.safetensors")
        plain = rh.export_c(folder / "dense.safetensors", folder / "sizes-dense")
        sizes = {"levels": sum(source.constant_bytes), "dense": sum(plain.constant_bytes)}
        print(f"constants {sizes['levels']:,} bytes level-ordered, {sizes['dense']:,} dense")
        print(f"activations {source.arena_bytes:,} bytes, column {source.column_bytes:,}")
        x = images.normalized(images.test_images[:1])
        found = rows(path, folder, devices, x, arguments.optimize)
    if arguments.json:
        report = {"accuracy": right, "constant_bytes": sizes, "optimize": arguments.optimize, "rows": found}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
