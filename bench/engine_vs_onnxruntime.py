"""The engine beside onnxruntime: the same subnets, one process, interleaved, medians; ratios below 1 mean faster.

    python bench/engine_vs_onnxruntime.py --json results.json

Every subnet runs in the engine from the one artifact, and in onnxruntime as an ONNX file of its own, the way it would
be shipped without Rheostat. onnxruntime runs twice, its waiting threads spinning and sleeping, and the faster one
counts. Both outputs are compared with PyTorch in float64. Weights are random; the norm statistics are calibrated,
because with statistics that do not fit, the logits hardly depend on the input and hide errors. Times on a shared
machine wander; ratios of interleaved medians hardly do. With `--bits 8` both run in integers: ours as `rh.quantize`
makes them, onnxruntime's as its static quantisation does, per channel, with activations of either sign; the faster
counts here too.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import rheostat as rh
from rheostat_recipes.models import resnet

MODELS = {
    "resnet18": (resnet.resnet18, (3, 224, 224)),
    "resnet20": (resnet.resnet20, (3, 32, 32)),
}
# Calls at the head of a block that are not timed: they wake the threads and warm the caches that the others used.
NUM_WARM = 2
# Between two blocks, so that the waiting threads of one candidate have stopped spinning when the next one starts.
PAUSE_S = 0.005


def calibrated_supernet(name: str, widths: list[float]) -> tuple[rh.Supernet, list[torch.Tensor]]:
    """The supernet, and what it was calibrated with."""
    torch.manual_seed(0)
    build, shape = MODELS[name]
    graph = rh.trace(build(), torch.randn(1, *shape))
    net = rh.Supernet(graph, rh.uniform(graph, widths))
    batches = [torch.randn(16, *shape) for _ in range(2)]
    rh.recalibrate(net, [(x, torch.zeros(16, dtype=torch.int64)) for x in batches])
    return net.eval(), batches


class Batches(CalibrationDataReader):
    """One image at a time, for onnxruntime."""

    def __init__(self, name: str, batches: list[torch.Tensor]) -> None:
        self.images = iter([{name: image[None].numpy()} for x in batches for image in x])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.images, None)


def in_integers(onnx: Path, batches: list[torch.Tensor]) -> list[Path]:
    """The model with 8-bit weights, and activations without sign and with."""
    quant_pre_process(onnx, onnx, skip_symbolic_shape=True)
    name = onnxruntime.InferenceSession(onnx).get_inputs()[0].name
    made = []
    for kind in (QuantType.QUInt8, QuantType.QInt8):
        made.append(onnx.with_suffix(f".{kind}.onnx"))
        reader = Batches(name, batches)
        quantize_static(
            onnx, made[-1], reader, per_channel=True, activation_type=kind, weight_type=QuantType.QInt8
        )
    return made


def session(path: Path, num_threads: int, spin: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def interleaved(candidates: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median milliseconds of one call of each candidate; they take turns in short blocks until the time is up."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for call in candidates.values():
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 10:
        for name, call in candidates.items():
            time.sleep(PAUSE_S)
            for _ in range(NUM_WARM):
                call()
            for _ in range(5):
                start = time.perf_counter()
                call()
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


def compare_one(
    artifact: Path,
    index: int,
    files: list[Path],
    num_threads: int,
    x: np.ndarray,
    want: np.ndarray,
    seconds: float,
) -> dict[str, float | str]:
    """One subnet at one number of threads; the sessions end with the call, and with them their waiting threads."""
    with rh.Engine(artifact, threads=num_threads) as engine:
        engine.select(index)
        sessions = {
            f"{path.stem}, {'spinning' if spin else 'sleeping'}": session(path, num_threads, spin)
            for path in files
            for spin in (True, False)
        }
        feed = {next(iter(sessions.values())).get_inputs()[0].name: x}
        calls = {name: (lambda s=s: s.run(None, feed)) for name, s in sessions.items()}
        ms = interleaved({"ours": lambda: engine(x), **calls}, seconds)
        best = min(sessions, key=ms.__getitem__)
        return {
            "ours_ms": ms["ours"],
            "onnxruntime_ms": ms[best],
            "onnxruntime_best": best,
            "ratio": ms["ours"] / ms[best],
            "error_ours": relative_error(engine(x), want),
            "error_onnxruntime": relative_error(np.asarray(sessions[best].run(None, feed)[0]), want),
        }


def compare(
    name: str, widths: list[float], threads: list[int], batch: int, bits: int, seconds: float
) -> list[dict]:
    net, batches = calibrated_supernet(name, widths)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, *MODELS[name][1]), dtype=np.float32)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / f"{name}.safetensors"
        if bits == 8:
            rh.quantize(net, batches).save(artifact)
        else:
            rh.save(net, artifact)
        for index, subnet in enumerate(net.names):
            module = net.extract(index).eval()
            onnx = Path(folder) / f"{name}-{index}.onnx"
            example = torch.from_numpy(x[:1] if bits == 8 else x)  # calibration runs image by image
            dynamic = {"dynamic_shapes": ({0: torch.export.Dim("n", max=1024)},)} if bits == 8 else {}
            torch.onnx.export(
                module, (example,), onnx, dynamo=True, external_data=False, verbose=False, **dynamic
            )
            files = in_integers(onnx, batches) if bits == 8 else [onnx]
            with torch.no_grad():
                want = module.double()(torch.from_numpy(x).double()).numpy()
            for num_threads in threads:
                timed = compare_one(artifact, index, files, num_threads, x, want, seconds)
                where = {"width": subnet, "batch": batch, "bits": bits, "threads": num_threads}
                rows.append({"model": name, **where, **timed})
                show(rows[-1])
    return rows


def show(row: dict) -> None:
    print(
        f"{row['model']:9} {row['width']:>5} {row['batch']:3} {row['threads']:3}   {row['ours_ms']:9.3f} "
        f"{row['onnxruntime_ms']:9.3f} {row['ratio']:6.2f}   {row['error_ours']:.1e} {row['error_onnxruntime']:.1e}",
        flush=True,
    )


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=["resnet20", "resnet18"])
    parser.add_argument("--widths", nargs="+", type=float, default=[0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--bits", type=int, choices=(32, 8), default=32)
    parser.add_argument("--seconds", type=float, default=3.0, help="time for one line of the table")
    parser.add_argument("--json", type=Path, help="write the rows, machine and versions here too")
    arguments = parser.parse_args()
    # The exporter speaks of torchvision, which nothing here needs, and of its own deprecations.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore", FutureWarning)
    print("model     width   b thr        ours onnxruntime ratio  errors against float64: ours, onnxruntime")
    rows = []
    for name in arguments.models:
        rows += compare(
            name, arguments.widths, arguments.threads, arguments.batch, arguments.bits, arguments.seconds
        )
    if arguments.json:
        versions = {
            "rheostat": rh.__version__,
            "onnxruntime": onnxruntime.__version__,
            "torch": torch.__version__,
        }
        report = {"cpu": cpu_name(), "date": time.strftime("%Y-%m-%d"), "versions": versions, "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
