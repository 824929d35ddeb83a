"""What switching costs, what all subnets together hold in memory, and what they take on disk.

    python bench/select_and_memory.py --json results.json

`select` is timed from Python, the call included. The engine's packed weights for all subnets, norms included, are set
against the bytes of the full network's tensors. Beside them stands what a fresh process grows by, in pages of its own
and of mapped files: once when the artifact is loaded, and once every subnet has run, activations included. The artifact
is set against a plain safetensors file of the full network alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from pathlib import Path

import torch
from engine_vs_onnxruntime import MODELS, calibrated_supernet, cpu_name
from safetensors.torch import save_file

import rheostat as rh

# Run in a process of its own, without torch, so that nothing else grows in the meantime.
GROWTH = """
import sys
import numpy, rheostat

def held():
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))

rheostat.Engine(sys.argv[2]).close()  # the library itself, and whatever Python grows by on first use
shape = [int(size) for size in sys.argv[3].split(",")]
x = numpy.zeros((1, *shape), numpy.float32)
before = held()
engine = rheostat.Engine(sys.argv[1], threads=1)
loaded = held()
for name in engine.subnets:
    engine.select(name)
    engine(x)
print(loaded - before, held() - before)
"""


def growth(artifact: Path, tiny: Path, shape: tuple[int, ...]) -> tuple[int, int]:
    command = [sys.executable, "-c", GROWTH, str(artifact), str(tiny), ",".join(map(str, shape))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded, run = done.stdout.split()
    return int(loaded), int(run)


def select_ns(engine: rh.Engine, choices: tuple[int | str, ...]) -> float:
    """Nanoseconds of one call: the best of 20 rounds, each going through `choices` 10,000 times."""
    number = 10_000
    lines = "; ".join(f"select({choice!r})" for choice in choices)
    rounds = timeit.repeat(lines, repeat=20, number=number, globals={"select": engine.select})
    return min(rounds) / (number * len(choices)) * 1e9


def median_load_ms(artifact: Path) -> float:
    """Milliseconds from the path to an engine that can run, the file in the page cache."""
    times = []
    for _ in range(7):
        start = time.perf_counter()
        rh.Engine(artifact).close()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def measure(name: str, widths: list[float]) -> dict:
    net = calibrated_supernet(name, widths)
    full = {key: tensor.detach().clone() for key, tensor in net[-1].state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        artifact, plain, tiny = (
            Path(folder) / file for file in ("net.safetensors", "full.safetensors", "tiny.safetensors")
        )
        rh.save(net, artifact)
        save_file(full, plain)
        graph = rh.trace(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)), torch.randn(1, 4))
        rh.save(rh.Supernet(graph, rh.uniform(graph, (1.0,))), tiny)
        load_ms = median_load_ms(artifact)
        with rh.Engine(artifact) as engine:
            by_index = select_ns(engine, tuple(range(len(engine.subnets))))
            by_name = select_ns(engine, engine.subnets)
            packed = engine.weight_bytes
        loaded, run = (
            growth(artifact, tiny, MODELS[name][1]) if Path("/proc/self/smaps_rollup").exists() else (0, 0)
        )
        weights = sum(tensor.numel() * tensor.element_size() for tensor in full.values())
        return {
            "model": name,
            "subnets": len(net),
            "select_index_ns": by_index,
            "select_name_ns": by_name,
            "load_ms": load_ms,
            "full_weights_bytes": weights,
            "packed_bytes": packed,
            "packed_to_full": packed / weights,
            "process_loaded_bytes": loaded,
            "process_after_running_bytes": run,
            "artifact_bytes": artifact.stat().st_size,
            "full_file_bytes": plain.stat().st_size,
            "artifact_to_full": artifact.stat().st_size / plain.stat().st_size,
        }


def show(row: dict) -> None:
    mb = {key.removesuffix("_bytes"): value / 1e6 for key, value in row.items() if key.endswith("_bytes")}
    print(f"{row['model']}, {row['subnets']} subnets")
    print(f"  select       by index {row['select_index_ns']:.0f} ns, by name {row['select_name_ns']:.0f} ns")
    print(f"  load         {row['load_ms']:.1f} ms")
    print(f"  in memory    full network's tensors {mb['full_weights']:.3f} MB")
    print(f"               all subnets, packed {mb['packed']:.3f} MB, {row['packed_to_full']:.3f} of them")
    print(f"               a process grows by {mb['process_loaded']:.2f} MB")
    print(f"               and by {mb['process_after_running']:.2f} MB once each has run")
    print(f"  on disk      full network {mb['full_file']:.3f} MB")
    print(f"               all subnets {mb['artifact']:.3f} MB, {row['artifact_to_full']:.3f} of it")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=["resnet20", "resnet18"])
    parser.add_argument("--widths", nargs="+", type=float, default=[0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--json", type=Path, help="write the rows and the machine here too")
    arguments = parser.parse_args()
    rows = [measure(name, arguments.widths) for name in arguments.models]
    for row in rows:
        show(row)
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"cpu": cpu_name(), "rows": rows}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
