"""Non-uniform subnets of ResNet-20: sampled by group Lasso, then trained together or alone (dynamic paper, Table 3).

Each recipe first trains the background model and samples the subnets, once for an output folder: give the recipe of a
row and its `_individual` the same `--out DIR` to train both on the same subnets. `--resume` goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

import rheostat as rh
from rheostat_recipes.data import Images
from rheostat_recipes.models.resnet import CifarResNet, resnet20
from rheostat_recipes.run import Result, Run, finish, loaders
from rheostat_recipes.uniform import WIDTHS

LASSO = rh.Lasso(epochs=60, lr=0.01)
"""Section 3.1: SGD with learning rate 0.01 for 60 epochs; the rest is not given."""

NUM_EPOCHS = 60

# Multiply-accumulates of subnets 1 to 3, Table 3.
MACS_MULTI_PATH = (2.21e6, 9.56e6, 19.75e6)
MACS_SINGLE_PATH = (2.48e6, 9.11e6, 20.07e6)
MACS_GROUP_LASSO = (2.71e6, 7.91e6, 22.27e6)


def resnet20_cifar10_multi_path(run: Run) -> Result:
    """ResNet-20 on CIFAR-10, one sampling run for each subnet (Table 3, Ours-M, Dynamic).

    Command: `rheostat train resnet20_cifar10_multi_path --data DIR`. Expected: 80.7, 86.3, 88.4 and 89.9 % (paper).
    Time: not measured; the four subnets, 60 epochs of each kind of training, at most 180 of sampling.
    """
    return _dynamic("resnet20_cifar10_multi_path", run, multi_path)


def resnet20_cifar10_single_path(run: Run) -> Result:
    """ResNet-20 on CIFAR-10, all subnets from one sampling run (Table 3, Ours-S, Dynamic).

    Command: `rheostat train resnet20_cifar10_single_path --data DIR`. Expected: 79.5, 85.9, 88.2 and 89.9 % (paper).
    Time: not measured; as above with at most 60 epochs of sampling.
    """
    return _dynamic("resnet20_cifar10_single_path", run, single_path)


def resnet20_cifar10_group_lasso(run: Run) -> Result:
    """ResNet-20 on CIFAR-10, sampled by plain group Lasso, without clipping (Table 3, Group Lasso, Dynamic).

    Command: `rheostat train resnet20_cifar10_group_lasso --data DIR`. Expected: unknown, the paper repeats another row.
    Time: not measured.
    """
    return _dynamic("resnet20_cifar10_group_lasso", run, group_lasso)


def resnet20_cifar10_multi_path_individual(run: Run) -> Result:
    """The subnets of Ours-M, each trained alone from scratch (Table 3, Ours-M, Individual).

    Command: `rheostat train resnet20_cifar10_multi_path_individual --data DIR`. Expected: 81.3, 87, 89.3 and 91.4 %.
    """
    return _individual("resnet20_cifar10_multi_path_individual", run, multi_path)


def resnet20_cifar10_single_path_individual(run: Run) -> Result:
    """The subnets of Ours-S, each trained alone from scratch (Table 3, Ours-S, Individual).

    Command: `rheostat train resnet20_cifar10_single_path_individual --data DIR`. Expected: 80.3, 86.8, 88.9, 91.4 %.
    """
    return _individual("resnet20_cifar10_single_path_individual", run, single_path)


def resnet20_cifar10_group_lasso_individual(run: Run) -> Result:
    """The subnets of plain group Lasso, each trained alone from scratch (Table 3, Group Lasso, Individual).

    Command: `rheostat train resnet20_cifar10_group_lasso_individual --data DIR`. Expected: 76.5, 85.5, 89.1, 91.4 %.
    """
    return _individual("resnet20_cifar10_group_lasso_individual", run, group_lasso)


def resnet20_cifar10_snn_individual(run: Run) -> Result:
    """The uniform subnets, each trained alone from scratch (Table 3, S-NN, Individual).

    Command: `rheostat train resnet20_cifar10_snn_individual --data DIR`. Expected: 80.1, 86.5, 89.5 and 91.3 % (paper).
    """
    return _individual("resnet20_cifar10_snn_individual", run, None)


Sample = Callable[[Run, rh.ImageLoader], Any]
"""Trains the background model and samples it: the result of `rh.single_path` or `rh.multi_path`."""


def multi_path(run: Run, train: rh.ImageLoader) -> Any:
    """Sample Ours-M, each subnet inside the larger one."""
    graph = rh.trace(_background(run, train), _example(run))
    return rh.multi_path(graph, train, _lasso(run), macs=MACS_MULTI_PATH, **_sampling(run, "multi_path"))


def single_path(run: Run, train: rh.ImageLoader) -> Any:
    """Sample Ours-S."""
    graph = rh.trace(_background(run, train), _example(run))
    return rh.single_path(graph, train, _lasso(run), macs=MACS_SINGLE_PATH, **_sampling(run, "single_path"))


def group_lasso(run: Run, train: rh.ImageLoader) -> Any:
    """Sample the baseline without clipping."""
    graph, plain = rh.trace(_background(run, train), _example(run)), replace(_lasso(run), clip=None)
    return rh.multi_path(graph, train, plain, macs=MACS_GROUP_LASSO, **_sampling(run, "group_lasso"))


def _dynamic(recipe: str, run: Run, sample: Sample) -> Result:
    """Sample, then train all subnets together from scratch."""
    images, train, test = _data(run)
    subnets = _subnets(run, sample, train)
    net = rh.Supernet(rh.trace(_fresh(run), torch.zeros(1, 3, 32, 32)), subnets).to(run.device())
    seconds = _fit(run, net, train, test)
    return finish(recipe, run, net, images, seconds)


def _individual(recipe: str, run: Run, sample: Sample | None) -> Result:
    """Train every subnet alone, from the same fresh weights; one result each, in folders of their own."""
    images, train, test = _data(run)
    graph = rh.trace(_fresh(run, "stock" if sample is None else "conv1x1_all"), torch.zeros(1, 3, 32, 32))
    subnets = rh.uniform(graph, WIDTHS) if sample is None else _subnets(run, sample, train)
    results = []
    for subnet in subnets:
        own = replace(run, out=run.out / subnet.name)
        net = rh.Supernet(graph, [subnet]).to(run.device())
        seconds = _fit(own, net, train, test)
        results.append(finish(recipe, own, net, images, seconds))
    return results[-1]


def _data(run: Run) -> tuple[Images, rh.ImageLoader, rh.ImageLoader]:
    images = run.images("cifar10", (3, 32, 32))
    return images, *loaders(images, run, batch_size=128, crop=4, flip=True, channels_last=True)


def _fresh(run: Run, shortcut: str = "conv1x1_all") -> CifarResNet:
    torch.manual_seed(run.seed)
    return resnet20(shortcut=shortcut)


def _example(run: Run) -> torch.Tensor:
    return torch.zeros(1, 3, 32, 32, device=run.device())


def _background(run: Run, train: rh.ImageLoader) -> nn.Module:
    """The trained model that subnets are sampled from."""
    graph = rh.trace(_fresh(run), torch.zeros(1, 3, 32, 32))
    net = rh.Supernet(graph, rh.uniform(graph, (1.0,))).to(run.device())
    own = replace(run, out=run.out / "background")
    _fit(own, net, train, None)
    return net.extract(-1)


def _lasso(run: Run) -> rh.Lasso:
    # In a smoke run a step shrinks a filter by more than its norm, so that two epochs come to every target.
    return replace(LASSO, epochs=2, shrink=100.0) if run.smoke else LASSO


def _sampling(run: Run, name: str) -> dict[str, Any]:
    folder = replace(run, out=run.out / f"sampling-{name}")
    precision = "float32" if run.smoke else "bfloat16"
    return {
        "checkpoint": folder.checkpoint(),
        "resume": run.resume,
        "seed": run.seed,
        "precision": precision,
        "channels_last": True,
    }


def _subnets(run: Run, sample: Sample, train: rh.ImageLoader) -> Sequence[rh.Subnet]:
    """Sample once for an output folder, and keep what was found, and when, beside the results."""
    path = run.out / f"subnets-{sample.__name__}.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))["subnets"]
        return [
            rh.Subnet(s["name"], tuple(s["widths"]), s["units"] and tuple(map(tuple, s["units"])))
            for s in found
        ]
    sampled = sample(run, train)
    record = {
        "subnets": [asdict(subnet) for subnet in sampled],
        "snapshots": [asdict(snapshot) for snapshot in sampled.snapshots],
        "seconds": sampled.seconds,
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return sampled


def _fit(run: Run, net: rh.Supernet, train: rh.ImageLoader, test: rh.ImageLoader | None) -> list[float]:
    """METHODS 4.7: Nesterov SGD, rate 0.1, cosine."""
    history = rh.fit(
        net,
        train,
        epochs=run.epochs(NUM_EPOCHS),
        lr=0.1,
        weight_decay=1e-4,
        warmup=1,
        precision="float32" if run.smoke else "bfloat16",
        compile=not run.smoke,
        channels_last=True,
        validation=test,
        checkpoint=run.checkpoint(),
        resume=run.resume,
        seed=run.seed,
    )
    return [epoch.seconds for epoch in history]


RECIPES = (
    resnet20_cifar10_multi_path,
    resnet20_cifar10_multi_path_individual,
    resnet20_cifar10_single_path,
    resnet20_cifar10_single_path_individual,
    resnet20_cifar10_group_lasso,
    resnet20_cifar10_group_lasso_individual,
    resnet20_cifar10_snn_individual,
)
