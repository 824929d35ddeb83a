"""Non-uniform subnets, sampled by group Lasso, then trained together or alone (dynamic paper, Tables 3 and 4).

Each recipe needs a trained background model and subnets sampled from it. They are made once for each seed and kept in
`Run.shared`, where the recipe of a row and its `_individual`, and all rows of one network, find them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

import rheostat as rh
from rheostat_recipes.models.resnet import load_published, resnet20, resnet44, with_shortcuts
from rheostat_recipes.run import (
    Loader,
    Recipe,
    Result,
    Run,
    check_length,
    finish,
    hardware,
    measure,
    write_json,
)
from rheostat_recipes.task import CIFAR10, IMAGENETTE, RESNET18, Task
from rheostat_recipes.uniform import alone, published

LASSO = rh.Lasso(epochs=180, shrink=15.0, lr=0.01)
"""Section 3.1: SGD with learning rate 0.01 for 60 epochs; the rest is not given.

Lambda is that of 60 epochs and `shrink=5`; a run that has not come to its smallest subnet by then goes on at the same
lambda, for three times as long at most, and stops when it has.
"""

SHORTCUT = "conv1x1_all"


@dataclass(frozen=True)
class Family:
    """How subnets are sampled.

    macs: multiply-accumulates that the subnets may have, smallest first; the whole network is the last subnet.
    paths: "single", one training for all, or "multi", one for each, inside the larger one before.
    free: in "multi", runs that know nothing of each other, in orders of images of their own: how much of lambda each
        gets. The paper has another lambda for each, without saying which.
    """

    name: str
    macs: tuple[float, ...]
    paths: str = "multi"
    lasso: rh.Lasso = LASSO
    free: tuple[float, ...] = ()


MULTI_PATH = Family("multi_path", (2.21e6, 9.56e6, 19.75e6))
SINGLE_PATH = Family("single_path", (2.48e6, 9.11e6, 20.07e6), paths="single")
# All units shrink alike, and batch norm lets them, so that few come down to half of the mean, and less lambda lets the
# last path stall: at half of this one it was at 3.5 million after 124 epochs.
GROUP_LASSO = Family(
    "group_lasso",
    (2.71e6, 7.91e6, 22.27e6),
    lasso=replace(LASSO, clip=None, strength=0.01, dead_below=0.75),
)
FREE = Family("multi_path_free", MULTI_PATH.macs, free=(1.0, 0.7, 0.5))
# Widths of `resnet20_cifar10_best`, of each stage on the shortcuts and between them. Of several shapes of the smallest,
# in short trainings, the best was narrow between the shortcuts of its first stage, which pays for more weights in the
# last than a quarter of every width has. So it was for the second, against half of every width; the third is untried.
BEST = (
    ((4, 2), (6, 6), (20, 19)),
    ((8, 6), (13, 13), (39, 37)),
    ((12, 9), (22, 21), (49, 48)),
    ((16, 16), (32, 32), (64, 64)),
)
# Between a quarter of every width, which takes 2.75 million here and is neared ever more slowly, and all of it, at the
# sizes of nine uniform widths.
NINE = Family(
    "nine",
    (2.95e6, 5.24e6, 7.87e6, 12.07e6, 15.94e6, 21.73e6, 26.84e6, 34.2e6),
    lasso=replace(LASSO, min_width=0.25),
)
IMAGENET = Family("multi_path", (0.89e8, 3.97e8, 7.17e8))
# The same fractions of the whole network's, which has 507.2 million at 112 pixels.
IMAGENETTE_FAMILY = Family("multi_path", tuple(507.2e6 * macs / 19.8e8 for macs in IMAGENET.macs))


def resnet20_cifar10_multi_path(run: Run) -> Result:
    """ResNet-20 on CIFAR-10, one sampling run for each subnet (Table 3, Ours-M, Dynamic; Figure 4).

    Command: `rheostat train resnet20_cifar10_multi_path --data DIR`. Expected: 80.7, 86.3, 88.4 and 89.9 % (paper).
    Time: with `--epochs 20`, 13 minutes of background and 40 of sampling on 2 cores, 90 of the subnets on one.
    """
    return _dynamic("resnet20_cifar10_multi_path", run, CIFAR10, MULTI_PATH)


def resnet20_cifar10_multi_path_individual(run: Run) -> Result:
    """The subnets of Ours-M, each trained alone from scratch (Table 3, Ours-M, Individual).

    Command: `rheostat train resnet20_cifar10_multi_path_individual --data DIR`. Expected: 81.3, 87, 89.3 and 91.4 %.
    Time: with `--epochs 20`, 20 to 45 minutes for each on one core, besides the sampling.
    """
    return _individual("resnet20_cifar10_multi_path_individual", run, CIFAR10, MULTI_PATH)


def resnet20_cifar10_multi_path_free(run: Run) -> Result:
    """Ours-M with every subnet sampled from the whole network, as in the paper: masks that need not nest.

    Beside `resnet20_cifar10_multi_path_nested` it says what nesting costs. Where they do not nest, tensors are
    gathered, training is slower, and there is no artifact. With seed 0 they nest.

    Command: `rheostat train resnet20_cifar10_multi_path_free --data DIR`. Expected: 80.7, 86.3, 88.4, 89.9 % (paper).
    Time: with `--epochs 20`, about two and a half hours on 2 cores that had other work besides.
    """
    return _dynamic("resnet20_cifar10_multi_path_free", run, CIFAR10, FREE)


def resnet20_cifar10_multi_path_nested(run: Run) -> Result:
    """The free family of Ours-M, nested with all widths left as they are (`rh.nest`, by votes).

    Command: `rheostat train resnet20_cifar10_multi_path_nested --data DIR`. Expected: unknown, not in the paper.
    Time: as `resnet20_cifar10_multi_path_free`, with whose sampling it begins.
    """
    return _dynamic("resnet20_cifar10_multi_path_nested", run, CIFAR10, FREE, nest=True)


def resnet20_cifar10_single_path(run: Run) -> Result:
    """ResNet-20 on CIFAR-10, all subnets from one sampling run (Table 3, Ours-S, Dynamic).

    Command: `rheostat train resnet20_cifar10_single_path --data DIR`. Expected: 79.5, 85.9, 88.2 and 89.9 % (paper).
    Time: with `--epochs 20`, 13 minutes of background and 15 of sampling on 2 cores, 90 of the subnets on one.
    """
    return _dynamic("resnet20_cifar10_single_path", run, CIFAR10, SINGLE_PATH)


def resnet20_cifar10_single_path_individual(run: Run) -> Result:
    """The subnets of Ours-S, each trained alone from scratch (Table 3, Ours-S, Individual).

    Command: `rheostat train resnet20_cifar10_single_path_individual --data DIR`. Expected: 80.3, 86.8, 88.9, 91.4 %.
    Time: with `--epochs 20`, 10, 17 and 33 minutes on one core, besides background and sampling.
    """
    return _individual("resnet20_cifar10_single_path_individual", run, CIFAR10, SINGLE_PATH)


def resnet20_cifar10_group_lasso(run: Run) -> Result:
    """ResNet-20 on CIFAR-10, sampled by plain group Lasso, without clipping (Table 3, Group Lasso, Dynamic).

    Command: `rheostat train resnet20_cifar10_group_lasso --data DIR`. Expected: unknown, the paper repeats another row;
    with `--epochs 20`: 77.1, 81.9, 86.2 and 87.7 %. Time: then 13 minutes of background on 2 cores, 22 of sampling and
    65 of the subnets on one.
    """
    return _dynamic("resnet20_cifar10_group_lasso", run, CIFAR10, GROUP_LASSO)


def resnet20_cifar10_group_lasso_individual(run: Run) -> Result:
    """The subnets of plain group Lasso, each trained alone from scratch (Table 3, Group Lasso, Individual).

    Command: `rheostat train resnet20_cifar10_group_lasso_individual --data DIR`. Expected: 76.5, 85.5, 89.1, 91.4 %
    (paper); with `--epochs 20`: 78.2, 82.9, 86.2, 88.3 %. Time: then 14 to 23 minutes for each on one core, besides the
    sampling.
    """
    return _individual("resnet20_cifar10_group_lasso_individual", run, CIFAR10, GROUP_LASSO)


def resnet20_cifar10_best(run: Run) -> Result:
    """Four subnets as good as they get, from published weights, taught by ResNet-44: the smallest alone, then together.

    Not a row of the paper, which trains non-uniform subnets on labels. At 2.3, 10.0, 20.7 and 42.6 million MACs one set
    of weights is to beat the paper's networks that were trained one by one. The smallest learns slowest: it has 200
    epochs to itself, and twice the others' weight in the 60 of all.

    Command: `rheostat train resnet20_cifar10_best --data DIR`, with the published weights in DIR: see
    `resnet20_cifar10_distill`; on two cores by `torchrun --nproc-per-node 2 -m`. Expected: 83.0,
    89.0, 91.0 and 92.0 %. Time: two hours on one core for the smallest, then two on two cores.
    """
    torch.manual_seed(run.seed)
    student, teacher = resnet20(), resnet44()
    if not run.smoke:
        folder = published("resnet20_cifar10_best", run) / "resnet_cifar10"
        load_published(student, folder / "resnet20-12fca82f.th")
        load_published(teacher, folder / "resnet44-014dd654.th")
    images, train, test = CIFAR10.loaders(run)
    _, cycling, _ = CIFAR10.loaders(run, cycle=40)  # the teacher takes longer than the smallest subnet
    some = torch.from_numpy(images.normalized(images.train_images[:1024]))
    graph = rh.trace(with_shortcuts(student, some), CIFAR10.example(run))
    subnets = [
        rh.Subnet(f"subnet{k}", (s1, *(i1, s1) * 3, *(i2, s2) * 3, *(i3, s3) * 3, 10))
        for k, ((s1, i1), (s2, i2), (s3, i3)) in enumerate(BEST, 1)
    ]
    net = rh.Supernet(graph, subnets).to(run.device())
    net.freeze_except_(0)  # the others' published weights stay for now
    smallest = run.part("resnet20_cifar10_best_smallest")
    seconds = CIFAR10.fit(smallest, net, cycling, test, epochs=200, teacher=teacher, subnets=(0,))
    net.freeze_except_(None)
    seconds += CIFAR10.fit(run, net, train, test, epochs=60, teacher=teacher, loss_weights=(2, 1, 1, 1))
    return finish("resnet20_cifar10_best", run, net, images, seconds)


def resnet20_cifar10_nine(run: Run) -> Result:
    """Nine subnets of ResNet-20 on CIFAR-10, multi-path, trained by the sandwich rule (Figure 7, ours).

    Command: `rheostat train resnet20_cifar10_nine --data DIR`. Expected: above `resnet20_cifar10_nine_uniform` at most
    sizes (paper, a curve without numbers); with `--epochs 20`: 77.0 to 87.2 %. Time: then two and a half hours for
    eight samplings, and 80 minutes for the subnets, on 2 cores.
    """
    return _dynamic("resnet20_cifar10_nine", run, CIFAR10, NINE, sandwich=True)


def resnet18_imagenet_multi_path(run: Run) -> Result:
    """ResNet-18 on ImageNet, one sampling run for each subnet (Table 4, Ours-M, Dynamic; Figure 5).

    Command: `rheostat train resnet18_imagenet_multi_path --data DIR`, with ImageNet as for `resnet50_imagenet_snn`.
    Expected: 48.4, 61.8, 66.8 and 69.8 % (paper). Time: not run, for want of ImageNet and of the hardware.
    """
    return _dynamic("resnet18_imagenet_multi_path", run, RESNET18, IMAGENET)


def resnet18_imagenet_multi_path_individual(run: Run) -> Result:
    """The subnets of Ours-M of ResNet-18, each trained alone from scratch (Table 4, Ours-M, Individual).

    Command: `rheostat train resnet18_imagenet_multi_path_individual --data DIR`, as above.
    Expected: 50.1, 62.6, 66.9 and 71.4 % (paper). Time: not run, for want of ImageNet and of the hardware.
    """
    return _individual("resnet18_imagenet_multi_path_individual", run, RESNET18, IMAGENET)


def resnet18_imagenette_multi_path(run: Run) -> Result:
    """ResNet-18 on Imagenette at 112 pixels: a stand-in for Table 4, Ours-M, Dynamic, and for Figure 5.

    Command: `rheostat train resnet18_imagenette_multi_path --data DIR`. Expected: unknown, it is another task than the
    paper's; with `--epochs 5`, too few to sample well: 60.6, 61.4, 64.4 and 73.5 %. Time: then 11 minutes of
    background, 14 of sampling and 24 of the subnets on one core.
    """
    return _dynamic("resnet18_imagenette_multi_path", run, IMAGENETTE, IMAGENETTE_FAMILY)


def resnet18_imagenette_multi_path_individual(run: Run) -> Result:
    """The subnets of Ours-M of ResNet-18 on Imagenette, each alone: a stand-in for Table 4, Ours-M, Individual.

    Command: `rheostat train resnet18_imagenette_multi_path_individual --data DIR`. Expected: unknown; with
    `--epochs 5`: 61.5, 65.1, 68.4 and 74.1 %. Time: then 13 minutes on one core, besides background and sampling.
    """
    return _individual("resnet18_imagenette_multi_path_individual", run, IMAGENETTE, IMAGENETTE_FAMILY)


def _dynamic(
    recipe: str, run: Run, task: Task, family: Family, *, nest: bool = False, sandwich: bool = False
) -> Result:
    """Sample, then train all subnets together from scratch."""
    images, train, test = task.loaders(run)
    subnets = _subnets(run, task, family, train)
    graph = rh.trace(task.fresh(run, SHORTCUT), task.example(run))
    if nest:
        subnets = rh.nest(graph, subnets, by="votes").subnets
    net = rh.Supernet(graph, subnets).to(run.device())
    seconds = task.fit(run, net, train, test, sandwich=sandwich)
    return finish(recipe, run, net, images, seconds)


def _individual(recipe: str, run: Run, task: Task, family: Family) -> Result:
    """Sample, then train every subnet alone; the whole network was, before the sampling."""
    images, train, test = task.loaders(run)
    *smaller, whole = _subnets(run, task, family, train)
    alone(recipe, run, task, SHORTCUT, smaller)
    model, seconds = _background(run, task, train)
    net = rh.Supernet(rh.trace(model, task.example(run).to(run.device())), [whole]).to(run.device())
    measure(net, test)
    return finish(recipe, replace(run, out=run.out / whole.name), net, images, seconds)


def _background(run: Run, task: Task, train: Loader) -> tuple[nn.Module, list[float]]:
    """The trained model that subnets are sampled from, and the seconds of each epoch."""
    graph = rh.trace(task.fresh(run, SHORTCUT), task.example(run))
    net = rh.Supernet(graph, rh.uniform(graph, (1.0,))).to(run.device())
    seconds = task.fit(run.part(f"{task.name}_background"), net, train, None)
    return net.extract(-1), seconds


def _subnets(run: Run, task: Task, family: Family, train: Loader) -> Sequence[rh.Subnet]:
    """Sample once, and keep what was found, and when."""
    own = run.part(f"{task.name}_subnets")
    path = own.out / f"subnets-{task.name}_{family.name}-seed{run.seed}.json"
    if path.exists():
        found = check_length(path, run)["subnets"]
        return [
            rh.Subnet(s["name"], tuple(s["widths"]), s["units"] and tuple(map(tuple, s["units"])))
            for s in found
        ]
    runs = _sample(run, own, task, family, train)
    # A free path gives its subnet and the whole network, all others give the whole family at once.
    found = [subnet for sampled in runs for subnet in sampled[:-1]] + [runs[-1][-1]]
    subnets = [replace(subnet, name=f"subnet{k + 1}") for k, subnet in enumerate(found)]
    record = {
        "subnets": [asdict(subnet) for subnet in subnets],
        "snapshots": [asdict(snapshot) for sampled in runs for snapshot in sampled.snapshots],
        "seconds": sum(sampled.seconds for sampled in runs),
        "task": task.name,
        "family": family.name,
        "seed": run.seed,
        "smoke": run.smoke,
        "max_epochs": run.max_epochs,
        "hardware": hardware(run.device()),
    }
    write_json(path, record)
    return subnets


def _sample(run: Run, own: Run, task: Task, family: Family, train: Loader) -> list[Any]:
    """The results of `rh.single_path` or `rh.multi_path`: one, or one for each path of a free family."""
    model, _ = _background(run, task, train)
    graph = rh.trace(model, task.example(run).to(run.device()))
    # In a smoke run a few steps come to every target; a shorter run shrinks as much, faster.
    lasso = replace(family.lasso, epochs=8, shrink=20.0, strength=None) if run.smoke else family.lasso
    lasso = replace(lasso, epochs=min(lasso.epochs, 3 * (run.max_epochs or lasso.epochs)))
    macs, folder = task.macs(run, family.macs), replace(own, out=own.out / family.name)
    settings: dict[str, Any] = {
        "precision": "float32" if run.smoke else "bfloat16",
        "compile": not run.smoke,
        "channels_last": True,
        "resume": True,
        "seed": run.seed,
    }
    if family.paths == "single":
        return [rh.single_path(graph, train, lasso, macs=macs, checkpoint=folder.checkpoint(), **settings)]
    if not family.free:
        return [rh.multi_path(graph, train, lasso, macs=macs, checkpoint=folder.checkpoint(), **settings)]
    runs = []
    for k, share in enumerate(family.free):
        path = replace(folder, out=folder.out / f"subnet{k + 1}", seed=run.seed + 1000 * (k + 1))
        _, train, _ = task.loaders(path)
        weaker, checkpoint = replace(lasso, shrink=share * lasso.shrink), path.checkpoint()
        runs.append(
            rh.multi_path(graph, train, weaker, macs=macs[k : k + 1], checkpoint=checkpoint, **settings)
        )
    return runs


RECIPES: tuple[Recipe, ...] = (
    resnet20_cifar10_multi_path,
    resnet20_cifar10_multi_path_individual,
    resnet20_cifar10_multi_path_free,
    resnet20_cifar10_multi_path_nested,
    resnet20_cifar10_single_path,
    resnet20_cifar10_single_path_individual,
    resnet20_cifar10_group_lasso,
    resnet20_cifar10_group_lasso_individual,
    resnet20_cifar10_best,
    resnet20_cifar10_nine,
    resnet18_imagenette_multi_path,
    resnet18_imagenette_multi_path_individual,
    resnet18_imagenet_multi_path,
    resnet18_imagenet_multi_path_individual,
)
