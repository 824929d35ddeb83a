"""The dynamic paper's figures from our own runs: what each shows, and the numbers that it is drawn from.

Figures 1 to 3 are drawings of the method. `rheostat figure` draws the others, from the results that
`rheostat train RECIPE` leaves; figure 6 measures latencies when it is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import rheostat as rh
from rheostat_recipes.tables import KEPT, longest

if TYPE_CHECKING:
    from torch import nn

SOURCE = "Yang and Fan, Dynamic Neural Network to Enable Run-Time Trade-off between Accuracy and Latency, ASP-DAC 2021"


@dataclass(frozen=True)
class Series:
    """One network in a figure: the panel it stands in, its name there, and the recipe that trains it."""

    panel: str
    name: str
    recipe: str


@dataclass(frozen=True)
class Figure:
    """A figure of the paper. kind: "channels" of each layer, or accuracy over "latency" or "macs"."""

    title: str
    kind: str
    series: tuple[Series, ...]

    @property
    def needs(self) -> Mapping[str, frozenset[tuple[str, str]]]:
        """The recipes that measure something in it, as `missing` takes them."""
        return {series.recipe: frozenset() for series in self.series}


CIFAR10, IMAGENET, IMAGENETTE = "ResNet-20 on CIFAR-10", "ResNet-18 on ImageNet", "ResNet-18 on Imagenette"


def figure4() -> Figure:
    """Channels of each layer, ResNet-20 on CIFAR-10.

    Command: `rheostat figure dynamic 4 --out FILE --results DIR`. Expected: the first layers of all subnets but the
    largest are alike, the layers after a down-sampling are widest, the last ones grow with the subnet; plain group
    Lasso is less balanced (paper). Time: seconds, from the artifacts of its recipes. Not drawn from full runs yet.
    """
    return Figure(
        "Channels that each subnet keeps",
        "channels",
        (
            Series(f"{CIFAR10}, Ours-M", "Ours-M", "resnet20_cifar10_multi_path"),
            Series(f"{CIFAR10}, group Lasso", "Group Lasso", "resnet20_cifar10_group_lasso"),
        ),
    )


def figure5() -> Figure:
    """Channels of each layer, ResNet-18 on ImageNet; beside it Imagenette, which is another task and says so.

    Command: `rheostat figure dynamic 5 --out FILE --results DIR`. Expected: as figure 4. Time: seconds. Not drawn from
    full runs yet.
    """
    return Figure(
        "Channels that each subnet keeps",
        "channels",
        (
            Series(f"{IMAGENET}, Ours-M", "Ours-M", "resnet18_imagenet_multi_path"),
            Series(f"{IMAGENETTE}, not in the paper", "Ours-M", "resnet18_imagenette_multi_path"),
        ),
    )


def figure6() -> Figure:
    """Accuracy over latency on a CPU (the engine, one image) and on a GPU where there is one (PyTorch, 128 images).

    Command: `rheostat figure dynamic 6 --out FILE --results DIR`. Expected: Ours-M above S-NN. For ResNet-18 Yang, He
    and Fan (DAC 2020) name 13.4, 24.6, 41.3 and 62.1 ms on a Titan Xp and 30.5, 38.7, 51 and 65.4 ms on a Xeon: a
    concave curve, because about half of the CPU's time does not depend on the width. Time: a minute, on a machine that
    does nothing else. Not drawn from full runs yet.
    """
    return Figure(
        "Accuracy for latency",
        "latency",
        (
            Series(CIFAR10, "S-NN", "resnet20_cifar10_snn"),
            Series(CIFAR10, "Ours-M", "resnet20_cifar10_multi_path"),
            Series(IMAGENET, "S-NN", "resnet18_imagenet_snn"),
            Series(IMAGENET, "Ours-M", "resnet18_imagenet_multi_path"),
            Series(f"{IMAGENETTE}, not in the paper", "S-NN", "resnet18_imagenette_snn"),
            Series(f"{IMAGENETTE}, not in the paper", "Ours-M", "resnet18_imagenette_multi_path"),
        ),
    )


def figure7() -> Figure:
    """Accuracy over multiply-accumulates of nine subnets, ours and nine uniform widths, all by the sandwich rule.

    Beside the paper's two the uniform widths with a teacher, which it has for four widths only.

    Command: `rheostat figure dynamic 7 --out FILE --results DIR`. Expected: ours above at most sizes (paper, without
    numbers). Time: seconds, from the results of its recipes. Not drawn from full runs yet.
    """
    return Figure(
        "Nine subnets",
        "macs",
        (
            Series(CIFAR10, "S-NN", "resnet20_cifar10_nine_uniform"),
            Series(CIFAR10, "Ours-M", "resnet20_cifar10_nine"),
            Series(CIFAR10, "S-NN with a teacher", "resnet20_cifar10_nine_distill20"),
        ),
    )


FIGURES = {("dynamic", n): figure for n, figure in ((4, figure4), (5, figure5), (6, figure6), (7, figure7))}


def load_figure(paper: str, number: int) -> Figure:
    """Return what a figure shows. Raises ValueError for one that does not exist or is a drawing of the method.

    >>> [series.name for series in load_figure("dynamic", 7).series]
    ['S-NN', 'Ours-M', 'S-NN with a teacher']
    """
    if (paper, number) not in FIGURES:
        raise ValueError(
            f"figure: got {paper} {number}; want one of: {', '.join(f'{p} {n}' for p, n in FIGURES)}"
        )
    return FIGURES[paper, number]()


def artifact(recipe: str, folders: Sequence[Path] = (KEPT,)) -> Path | None:
    """Return the artifact of a recipe's first seed, or None where it has no result, or the file is gone."""
    results = [r for r in longest(recipe, folders) if r.get("artifact")]
    found = [r["path"].with_name(r["artifact"]) for r in results]
    return next((path for path in found if path.exists()), None)


def length(recipe: str, folders: Sequence[Path] = (KEPT,)) -> str:
    """Return what a legend adds for a recipe whose trainings were kept short, such as ", 20 epochs"."""
    short = {result.get("max_epochs") for result in longest(recipe, folders)} - {None}
    return "".join(f", {epochs} epochs" for epochs in short)


def sizes_and_accuracies(recipe: str, folders: Sequence[Path] = (KEPT,)) -> list[tuple[float, float]]:
    """Return (multiply-accumulates, accuracy) of each subnet of a recipe, smallest first: the means over seeds."""
    by_subnet: dict[str, list[Any]] = {}
    for result in longest(recipe, folders):
        for subnet in result["subnets"]:
            numbers = subnet.get("macs"), subnet.get("accuracy")
            if None not in numbers:
                by_subnet.setdefault(subnet["name"], []).append(numbers)
    return sorted(tuple(np.mean(seeds, axis=0).tolist()) for seeds in by_subnet.values())


def gpu_latencies_ms(path: Path, recipe: str, batch: int = 128, repeats: int = 50) -> list[float]:
    """Median of `batch` images in PyTorch, float32, on the GPU, for each subnet of a recipe's artifact, in turns.

    Empty where there is no GPU, or no PyTorch.
    """
    try:
        import torch
    except ModuleNotFoundError:
        return []
    if not torch.cuda.is_available():
        return []
    net = rh.Supernet.load(path, network(recipe))
    modules = [net.extract(k).cuda().eval() for k in range(len(net))]
    x = torch.zeros(batch, *net.graph.args[0].shape[1:], device="cuda")
    times = np.empty((repeats, len(modules)))
    with torch.no_grad():
        for repeat in range(-10, repeats):
            for k, module in enumerate(modules):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                module(x)
                end.record()
                torch.cuda.synchronize()
                if repeat >= 0:
                    times[repeat, k] = start.elapsed_time(end)
    return np.median(times, axis=0).tolist()


def network(recipe: str) -> nn.Module:
    """Return an untrained network of the class that a recipe trains."""
    from rheostat_recipes.nonuniform import SHORTCUT
    from rheostat_recipes.task import CIFAR10, IMAGENETTE, RESNET18

    task = next(task for task in (CIFAR10, IMAGENETTE, RESNET18) if recipe.startswith(f"{task.name}_"))
    return task.network(task.num_classes, "stock" if recipe.endswith("_snn") else SHORTCUT)
