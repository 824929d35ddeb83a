"""Uniform subnets: the same width in every layer, all widths trained together (dynamic paper, 2.1.1 and 2.2)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

import rheostat as rh
from rheostat_recipes.data import Images
from rheostat_recipes.models.lenet import LeNet5
from rheostat_recipes.models.resnet import (
    CifarResNet,
    load_published,
    load_torchvision,
    resnet20,
    resnet32,
    resnet44,
    resnet50,
)
from rheostat_recipes.run import (
    Recipe,
    Result,
    Run,
    check_length,
    finish,
    loaders,
    one_thread,
    provenance,
    put_down,
)
from rheostat_recipes.task import CIFAR10, IMAGENETTE, RESNET18, RESNET50, Task

WIDTHS = (0.25, 0.5, 0.75, 1.0)
NINE_WIDTHS = tuple(0.25 + 3 * step / 32 for step in range(9))


def digits(run: Run) -> Result:
    """Small residual network on scikit-learn's digits, without a download: what `rheostat demo` trains.

    Command: `rheostat train digits`. Expected: 98 to 99 %, a point less at 0.25x than at 1.0x. Time: 10 s on 1 core.
    """
    images = run.images("digits", (1, 8, 8))
    train, test = loaders(images, run, batch_size=64, crop=1)
    torch.manual_seed(run.seed)
    model = CifarResNet(num_blocks=1, in_channels=1, widths=(24, 48, 96))
    graph = rh.trace(model, torch.zeros(1, 1, 8, 8))
    net = rh.Supernet(graph, rh.uniform(graph, WIDTHS)).to(run.device())
    with one_thread():
        history = rh.fit(
            net,
            train,
            epochs=run.epochs(16),
            warmup=run.warmup(16),
            validation=test,
            checkpoint=run.checkpoint(),
            resume=run.resume,
            seed=run.seed,
        )
    return finish("digits", run, net, images, [epoch.seconds for epoch in history])


def lenet5_mnist(run: Run) -> Result:
    """LeNet-5 on MNIST.

    Command: `rheostat train lenet5_mnist --data DIR`. Expected: 98.3, 99.0, 99.2 and 99.3 %. Time: 6 minutes on 1 core.
    """
    images = run.images("mnist", (1, 28, 28))
    train, test = loaders(images, run, batch_size=128, crop=1)
    torch.manual_seed(run.seed)
    graph = rh.trace(LeNet5(), torch.zeros(1, 1, 28, 28))
    net = rh.Supernet(graph, rh.uniform(graph, WIDTHS)).to(run.device())
    with one_thread():
        history = rh.fit(
            net,
            train,
            epochs=run.epochs(30),
            # SGD leaves the quarter width, 3,077 parameters, at 97.9 %.
            optimizer=lambda groups: torch.optim.Adam(groups, lr=2e-3),
            warmup=run.warmup(30),
            validation=test,
            checkpoint=run.checkpoint(),
            resume=run.resume,
            seed=run.seed,
        )
    return finish("lenet5_mnist", run, net, images, [epoch.seconds for epoch in history])


def resnet20_cifar10_snn(run: Run) -> Result:
    """ResNet-20 on CIFAR-10 from labels alone: the dynamic paper's slimmable baseline (Tables 1 and 3, S-NN).

    Command: `rheostat train resnet20_cifar10_snn --data DIR`. Expected: 79.5, 85.6, 88.4 and 89.8 % (paper).
    Time: with `--epochs 20`, 75 minutes on one core when nothing disturbs it.
    """
    return together("resnet20_cifar10_snn", run, CIFAR10)


def resnet20_cifar10_snn_individual(run: Run) -> Result:
    """The uniform subnets, each trained alone from scratch (Table 3, S-NN, Individual).

    Command: `rheostat train resnet20_cifar10_snn_individual --data DIR`. Expected: 80.1, 86.5, 89.5 and 91.3 % (paper).
    Time: with `--epochs 20`, 15 to 40 minutes for each on one core.
    """
    return alone("resnet20_cifar10_snn_individual", run, CIFAR10)


def resnet20_cifar10_distill20(run: Run) -> Result:
    """ResNet-20 on CIFAR-10, every width taught by a ResNet-20 (Table 1, FP, and Table 5, ResNet20).

    Command: `rheostat train resnet20_cifar10_distill20 --data DIR`, with the published weights in DIR: see
    `resnet20_cifar10_distill`. Expected: 81.0, 87.5, 90.2 and 91.1 % (paper); with
    `--epochs 20`: 78.7, 87.6, 90.5 and 91.4 %. Time: then two hours on one core.
    """
    return _distilled("resnet20_cifar10_distill20", run, resnet20(), "resnet20-12fca82f.th")


def resnet20_cifar10_distill32(run: Run) -> Result:
    """ResNet-20 on CIFAR-10, every width taught by a ResNet-32 (Table 5, ResNet32).

    Command: `rheostat train resnet20_cifar10_distill32 --data DIR`, with the published weights in DIR: see
    `resnet20_cifar10_distill`. Expected: 82.9, 88.6, 90.7 and 91.4 % (paper); with
    `--epochs 20`: 79.2, 87.2, 90.4 and 91.6 %. Time: then two and a half hours on one core.
    """
    return _distilled("resnet20_cifar10_distill32", run, resnet32(), "resnet32-d509ac18.th")


def resnet20_cifar10_distill(run: Run) -> Result:
    """ResNet-20 on CIFAR-10 from published weights, every width taught by ResNet-44 (Table 5, column ResNet44).

    Command: `rheostat train resnet20_cifar10_distill --data DIR`; DIR also holds the published weights,
    `resnet_cifar10/resnet20-12fca82f.th` and `resnet44-014dd654.th` of akamaster/pytorch_resnet_cifar10.
    Expected: 82.5, 88.7, 91.2 and 91.9 % (paper); measured: 80.8, 88.5, 91.2 and 92.1 %.
    Time: 60 epochs of 2 minutes on 2 free cores with AVX-512 and bf16.
    """
    return _distilled("resnet20_cifar10_distill", run, resnet44(), "resnet44-014dd654.th")


def resnet20_cifar10_16b(run: Run) -> Result:
    """The network of `resnet20_cifar10_distill20` in 16-bit integers (Table 1, 16b).

    Command: `rheostat train resnet20_cifar10_16b --data DIR`; trains that network first where it is not yet.
    Expected: 80.7, 87.0, 89.8 and 91.0 % (paper); of 20
    epochs: 78.7, 87.6, 90.5 and 91.4 %. Time: the rounding takes half a minute.
    """
    return _rounded("resnet20_cifar10_16b", run, 16)


def resnet20_cifar10_8b(run: Run) -> Result:
    """The network of `resnet20_cifar10_distill20` in 8-bit integers (Table 1, 8b).

    Command: `rheostat train resnet20_cifar10_8b --data DIR`; trains that network first where it is not yet.
    Expected: 80.6, 86.9, 89.8 and 91.1 % (paper); of 20
    epochs: 79.0, 87.6, 90.4 and 91.5 %. Time: the rounding takes half a minute.
    """
    return _rounded("resnet20_cifar10_8b", run, 8)


def resnet20_cifar10_nine_uniform(run: Run) -> Result:
    """Nine uniform widths of ResNet-20 on CIFAR-10, the sandwich rule (Figure 7, S-NN).

    Command: `rheostat train resnet20_cifar10_nine_uniform --data DIR`. Expected: a curve without numbers in the paper;
    with `--epochs 20`: 77.0 to 87.6 %. Time: then two hours on one core.
    """
    return together("resnet20_cifar10_nine_uniform", run, CIFAR10, NINE_WIDTHS, sandwich=True)


def resnet20_cifar10_nine_distill20(run: Run) -> Result:
    """Nine uniform widths of ResNet-20 on CIFAR-10, taught by a ResNet-20, the sandwich rule (Figure 7, taught).

    Command: `rheostat train resnet20_cifar10_nine_distill20 --data DIR`, with the published weights in DIR: see
    `resnet20_cifar10_distill`. Expected: not in the paper; with `--epochs 20`: 80.2 to 90.9 %.
    Time: then 75 minutes on one core.
    """
    return _distilled(
        "resnet20_cifar10_nine_distill20", run, resnet20(), "resnet20-12fca82f.th", NINE_WIDTHS, sandwich=True
    )


def resnet50_imagenet_snn(run: Run) -> Result:
    """ResNet-50 on ImageNet from labels alone (Table 2, S-NN).

    Command: `rheostat train resnet50_imagenet_snn --data DIR`, with `imagenet/train` and `imagenet/val` in DIR.
    Expected: 65.0, 72.1, 74.9 and 76.0 % (paper). Time: 100 epochs; not run, for want of ImageNet and of the hardware.
    """
    return together("resnet50_imagenet_snn", run, RESNET50)


def resnet50_imagenet_snn_individual(run: Run) -> Result:
    """The uniform subnets of ResNet-50, each trained alone from scratch (Table 2, I-NN).

    Command: `rheostat train resnet50_imagenet_snn_individual --data DIR`, as above. Expected: 63.8, 72.0, 74.7 and
    76.1 % (paper). Time: four times 100 epochs; not run, for want of ImageNet and of the hardware.
    """
    return alone("resnet50_imagenet_snn_individual", run, RESNET50)


def resnet50_imagenet_distill(run: Run) -> Result:
    """ResNet-50 on ImageNet from published weights, every width taught by that same network (Table 2, Ours-U).

    Command: `rheostat train resnet50_imagenet_distill --data DIR`; DIR holds ImageNet as above, and torchvision's
    `resnet50-0676ba61.pth`. The paper names no teacher. Expected: 65.2, 72.4, 75.4 and 76.6 % (paper).
    Time: 100 epochs; not run, for want of ImageNet and of the hardware.
    """
    student, teacher = resnet50(), resnet50()
    if not run.smoke:
        for network in (student, teacher):
            load_torchvision(network, published("resnet50_imagenet_distill", run) / "resnet50-0676ba61.pth")
    return together("resnet50_imagenet_distill", run, RESNET50, student=student, teacher=teacher)


def resnet18_imagenet_snn(run: Run) -> Result:
    """ResNet-18 on ImageNet from labels alone (Table 4, S-NN, Dynamic).

    Command: `rheostat train resnet18_imagenet_snn --data DIR`, with ImageNet as for `resnet50_imagenet_snn`.
    Expected: 48.7, 60.9, 66.6 and 69.4 % (paper). Time: 100 epochs; not run, for want of ImageNet and of the hardware.
    """
    return together("resnet18_imagenet_snn", run, RESNET18)


def resnet18_imagenet_snn_individual(run: Run) -> Result:
    """The uniform subnets of ResNet-18, each trained alone from scratch (Table 4, S-NN, Individual).

    Command: `rheostat train resnet18_imagenet_snn_individual --data DIR`, as above. Expected: 49.9, 61.1, 66.7 and
    69.7 % (paper). Time: four times 100 epochs; not run, for want of ImageNet and of the hardware.
    """
    return alone("resnet18_imagenet_snn_individual", run, RESNET18)


def resnet18_imagenette_snn(run: Run) -> Result:
    """ResNet-18 on Imagenette at 112 pixels from labels alone: a stand-in for Table 4, S-NN, Dynamic.

    Command: `rheostat train resnet18_imagenette_snn --data DIR`. Expected: unknown, another task than the paper's; with
    `--epochs 5`: 65.1, 67.0, 67.8 and 68.4 %. Time: then 29 minutes on one core.
    """
    return together("resnet18_imagenette_snn", run, IMAGENETTE)


def resnet18_imagenette_snn_individual(run: Run) -> Result:
    """The uniform subnets of ResNet-18 on Imagenette, each trained alone: a stand-in for Table 4, S-NN, Individual.

    Command: `rheostat train resnet18_imagenette_snn_individual --data DIR`. Expected: unknown; with `--epochs 5`: 68.4,
    73.2, 72.9 and 73.7 %. Time: then 25 minutes on one core.
    """
    return alone("resnet18_imagenette_snn_individual", run, IMAGENETTE)


def together(
    recipe: str,
    run: Run,
    task: Task,
    widths: Sequence[float] = WIDTHS,
    *,
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
    sandwich: bool = False,
) -> Result:
    """Train uniform subnets together, from scratch without a `student`."""
    images, train, test = task.loaders(run)
    graph = rh.trace(student or task.fresh(run), task.example(run))
    net = rh.Supernet(graph, rh.uniform(graph, widths)).to(run.device())
    seconds = task.fit(run, net, train, test, teacher=teacher, sandwich=sandwich)
    return finish(recipe, run, net, images, seconds)


def alone(
    recipe: str, run: Run, task: Task, shortcut: str = "stock", subnets: Sequence[rh.Subnet] = ()
) -> Result:
    """Train every subnet alone from the same fresh weights, each in a folder of its own; no `subnets`: the uniform."""
    images, train, test = task.loaders(run)
    graph = rh.trace(task.fresh(run, shortcut), task.example(run))
    results = []
    for subnet in subnets or rh.uniform(graph, WIDTHS):
        own = replace(run, out=run.out / subnet.name)
        net = rh.Supernet(graph, [subnet]).to(run.device())
        seconds = task.fit(own, net, train, test)
        results.append(finish(recipe, own, net, images, seconds))
    return results[-1]


def published(recipe: str, run: Run) -> Path:
    """Return the folder in which published weights lie. Raises ValueError without a folder of data."""
    if run.data_dir is None:
        raise ValueError(f"{recipe}: got no --data DIR; want one with the published weights")
    return run.data_dir


def _distilled(
    recipe: str,
    run: Run,
    teacher: CifarResNet,
    weights: str,
    widths: Sequence[float] = WIDTHS,
    *,
    sandwich: bool = False,
) -> Result:
    """ResNet-20 from published weights, taught by another published network."""
    student = resnet20()
    if not run.smoke:
        folder = published(recipe, run) / "resnet_cifar10"
        load_published(student, folder / "resnet20-12fca82f.th")
        load_published(teacher, folder / weights)
    return together(recipe, run, CIFAR10, widths, student=student, teacher=teacher, sandwich=sandwich)


def _rounded(recipe: str, run: Run, bits: int) -> Result:
    """Round the trained network; where that costs a subnet more than 0.3 points, fine-tune with the rounding in it.

    Fine-tuning takes a tenth of the epochs at a tenth of the learning rate; it counts where it helps.
    """
    trained = run.part("resnet20_cifar10_distill20")
    floats = trained.out / "resnet20_cifar10_distill20.safetensors"
    if not floats.exists():
        resnet20_cifar10_distill20(trained)
    check_length(trained.out / f"resnet20_cifar10_distill20-seed{run.seed}.json", run)
    images, train, _ = CIFAR10.loaders(run)
    # As `rheostat quantize` does: a thousand training images without augmentation.
    chosen = np.random.default_rng(run.seed).permutation(len(images.train_images))[:1024]
    calibration = torch.from_numpy(images.normalized(images.train_images[chosen])).split(64)
    started, epochs, note = time.perf_counter(), 0, "rounded"
    artifact, before = run.checkpoint().with_name(f"{recipe}.safetensors"), rh.cost(floats)
    quantized = rh.quantize(floats, calibration, bits)
    quantized.save(artifact)
    accuracies = _accuracies(artifact, images)
    lost = _lost(before, accuracies)
    if max(lost) > 0.003:
        epochs = run.epochs(6)
        tuned = rh.finetune(
            rh.Supernet.load(floats, resnet20()).to(run.device()),
            train,
            bits,
            epochs=epochs,
            lr=0.0 if run.smoke else 0.01,  # what a smoke run leaves is no network: tuning it diverges
            batches=16,
            checkpoint=run.checkpoint(),
            resume=run.resume,
            seed=run.seed,
        )
        tuned.save(artifact)
        found = _accuracies(artifact, images)
        better = max(_lost(before, found)) < max(lost)
        points = ", ".join(f"{info.name}: {100 * loss:.2f}" for info, loss in zip(before, lost, strict=True))
        note = f"{'fine-tuned' if better else 'rounded; fine-tuning did not help'}; rounding lost points: {points}"
        if better:
            quantized, accuracies = tuned, found
    infos = tuple(
        replace(info, accuracy=accuracy)
        for info, accuracy in zip(quantized.program.subnets, accuracies, strict=True)
    )
    program = replace(quantized.program, subnets=infos, provenance=provenance(recipe, run, images))
    replace(quantized, program=program).save(artifact)
    return put_down(recipe, run, infos, images, epochs, time.perf_counter() - started, artifact, note)


def _lost(before: Sequence[rh.SubnetInfo], accuracies: Sequence[float]) -> list[float]:
    """How much less each subnet has than its float form."""
    return [(info.accuracy or 0) - accuracy for info, accuracy in zip(before, accuracies, strict=True)]


def _accuracies(artifact: Path, images: Images) -> list[float]:
    with rh.Engine(artifact) as engine:
        return rh.accuracy(engine, images.test_batches())


RECIPES: tuple[Recipe, ...] = (
    digits,
    lenet5_mnist,
    resnet20_cifar10_snn,
    resnet20_cifar10_snn_individual,
    resnet20_cifar10_distill20,
    resnet20_cifar10_distill32,
    resnet20_cifar10_distill,
    resnet20_cifar10_16b,
    resnet20_cifar10_8b,
    resnet20_cifar10_nine_uniform,
    resnet20_cifar10_nine_distill20,
    resnet18_imagenette_snn,
    resnet18_imagenette_snn_individual,
    resnet18_imagenet_snn,
    resnet18_imagenet_snn_individual,
    resnet50_imagenet_snn,
    resnet50_imagenet_snn_individual,
    resnet50_imagenet_distill,
)
