"""One fused training step of N subnets beside N separate small models, and beside masks at full width.

    python bench/training_step.py --json results.json

A step is forward, backward and the optimizer (SGD, Nesterov momentum) for every width on one batch of CIFAR shape.
"fused" is what `fit` does: one set of weights, N forwards and backwards, one update. "separate" is what one would do
without Rheostat: N independent models of the small shapes, N updates. "masked" is the step of libraries that only
simulate widths: the full model with its weights multiplied by a mask, N times. The three take turns in one process;
medians; a ratio below 1 means that fused is faster. The bar is 1.05 times the separate models.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.compiler.config
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import rheostat as rh
from rheostat.train.norm import norms_in_rows
from rheostat_recipes.models import resnet

MODELS = {"resnet20": resnet.resnet20, "resnet56": resnet.resnet56}
# Whether a mode compiles, whether it runs in bfloat16, and whether batch norms run over rows of images, as in `fit`.
MODES = {
    "eager float32": (False, False, False),
    "eager bfloat16": (False, True, False),
    "compiled float32": (True, False, False),
    "compiled bfloat16": (True, True, False),
    "norms in rows": (True, True, True),
}


class Masked(nn.Module):
    """The full model whose shared weights are multiplied by the mask of one subnet; its norms are its own."""

    def __init__(self, full: nn.Module, small: nn.Module) -> None:
        super().__init__()
        self.full, self.own = full, copy.deepcopy(full)
        self.shared = [name for name, p in full.named_parameters() if p.ndim > 1]
        for name in self.shared:
            mask = torch.zeros_like(full.get_parameter(name))
            mask[tuple(slice(0, size) for size in small.get_parameter(name).shape)] = 1
            self.register_buffer(name.replace(".", "_"), mask)

    def forward(self, x: Tensor) -> Tensor:
        weights = {
            name: self.full.get_parameter(name) * self.get_buffer(name.replace(".", "_"))
            for name in self.shared
        }
        return functional_call(self.own, weights, (x,))

    def trained(self) -> list[nn.Parameter]:
        """The private parameters; those of `full` are trained once for all masks."""
        return [p for name, p in self.own.named_parameters() if name not in self.shared]


def sgd(parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.01, 0.9, nesterov=True, weight_decay=1e-4)


def steps(
    net: rh.Supernet, x: Tensor, y: Tensor, compiled: bool, bfloat16: bool
) -> dict[str, Callable[[], None]]:
    """One function for each way to train all widths by one step."""
    ready = torch.compile(dynamic=False) if compiled else lambda module: module
    order = range(len(net) - 1, -1, -1)
    masked_full = net.extract(-1)
    masked = [Masked(masked_full, net[k]) for k in order]
    separate = [net.extract(k) for k in order]
    separate_optimizers = [sgd(list(module.parameters())) for module in separate]
    fused_optimizer = sgd(list(net.parameters()))
    shared = [p for p in masked_full.parameters() if p.ndim > 1]
    masked_optimizer = sgd(shared + [p for module in masked for p in module.trained()])
    fused_runs, separate_runs = [ready(net[k]) for k in order], [ready(module) for module in separate]
    masked_runs = [ready(module) for module in masked]

    def learn(run: Callable[[Tensor], Tensor]) -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
            logits = run(x)
        F.cross_entropy(logits.float(), y).backward()

    def fused() -> None:
        net.attach_grads_()
        for run in fused_runs:
            learn(run)
        net.collect_grads_()
        fused_optimizer.step()
        net.refresh_()

    def separately() -> None:
        for run, optimizer in zip(separate_runs, separate_optimizers, strict=True):
            optimizer.zero_grad()
            learn(run)
            optimizer.step()

    def with_masks() -> None:
        masked_optimizer.zero_grad()
        for run in masked_runs:
            learn(run)
        masked_optimizer.step()

    return {"fused": fused, "separate": separately, "masked": with_masks}


def measure(
    name: str, widths: Sequence[float], batch: int, mode: str, repeats: int, device: torch.device
) -> dict:
    torch.manual_seed(0)
    compiled, bfloat16, rows = MODES[mode]
    graph = rh.trace(MODELS[name](), torch.randn(1, 3, 32, 32))
    net = rh.Supernet(graph, rh.uniform(graph, widths)).to(device)
    x, y = torch.randn(batch, 3, 32, 32, device=device), torch.randint(10, (batch,), device=device)
    if bfloat16:
        x = x.to(memory_format=torch.channels_last)
    with norms_in_rows(net if rows else []):  # the copies of `extract` keep them
        candidates = steps(net.train(), x, y, compiled, bfloat16)
        for step in candidates.values():
            for _ in range(3):  # compiles, allocates gradients and momenta
                step()
        times: dict[str, list[float]] = {way: [] for way in candidates}
        for _ in range(repeats):
            for way, step in candidates.items():
                wait(device)
                start = time.perf_counter()
                step()
                wait(device)
                times[way].append((time.perf_counter() - start) * 1e3)
    ms = {f"{way}_ms": statistics.median(values) for way, values in times.items()}
    return {
        "model": name,
        "mode": mode,
        "batch": batch,
        "threads": torch.get_num_threads(),
        **ms,
        "to_separate": ms["fused_ms"] / ms["separate_ms"],
        "to_masked": ms["fused_ms"] / ms["masked_ms"],
    }


def show(row: dict) -> None:
    print(
        f"{row['model']:9} {row['mode']:17} {row['batch']:5} {row['threads']:3} {row['fused_ms']:9.1f} "
        f"{row['separate_ms']:9.1f} {row['to_separate']:6.2f} {row['masked_ms']:9.1f} {row['to_masked']:6.2f}",
        flush=True,
    )


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=["resnet20"])
    parser.add_argument("--widths", nargs="+", type=float, default=[0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=30, help="timed steps of each way")
    parser.add_argument("--threads", type=int, help="of torch; its own choice if not given")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--json", type=Path, help="write the rows, machine and versions here too")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    # Aliases have the layout of a slice, which is the point of them; torch warns once.
    warnings.filterwarnings("ignore", "grad and param do not obey the gradient layout contract")
    print(f"{'model':9} {'mode':17} batch thr  fused ms  separate  ratio    masked  ratio")
    rows = []
    for name in arguments.models:
        for mode in arguments.modes:
            # torch gives up compiling the code of a class at its eighth variant.
            with torch.compiler.config.patch(recompile_limit=64):
                row = measure(
                    name, arguments.widths, arguments.batch, mode, arguments.repeats, arguments.device
                )
            rows.append(row)
            show(row)
            torch.compiler.reset()
    if arguments.json:
        machine = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {arguments.device}"
        versions = {"rheostat": rh.__version__, "torch": torch.__version__}
        report = {"machine": machine, "date": time.strftime("%Y-%m-%d"), "versions": versions, "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
