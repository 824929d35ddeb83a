"""Uniform subnets: the same width in every layer, all widths trained together (dynamic paper, 2.1.1 and 2.2)."""

from __future__ import annotations

import torch

import rheostat as rh
from rheostat_recipes.models.lenet import LeNet5
from rheostat_recipes.models.resnet import CifarResNet, load_published, resnet20, resnet44
from rheostat_recipes.run import Result, Run, finish, loaders, one_thread

WIDTHS = (0.25, 0.5, 0.75, 1.0)


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
            warmup=1,
            validation=test,
            checkpoint=run.checkpoint(),
            resume=run.resume,
            seed=run.seed,
        )
    return finish("digits", run, net, images, [epoch.seconds for epoch in history])


def lenet5_mnist(run: Run) -> Result:
    """LeNet-5 on MNIST.

    Command: `rheostat train lenet5_mnist --data DIR`. Expected: 98.1, 98.9, 99.2 and 99.3 %. Time: 6 minutes on 1 core.
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
            warmup=1,
            validation=test,
            checkpoint=run.checkpoint(),
            resume=run.resume,
            seed=run.seed,
        )
    return finish("lenet5_mnist", run, net, images, [epoch.seconds for epoch in history])


def resnet20_cifar10_snn(run: Run) -> Result:
    """ResNet-20 on CIFAR-10 from labels alone: the dynamic paper's slimmable baseline (Table 1, column S-NN).

    Command: `rheostat train resnet20_cifar10_snn --data DIR`. Expected: 79.5, 85.6, 88.4 and 89.8 % (paper).
    Time: 60 epochs, not timed yet; a teacher makes an epoch about a quarter longer.
    """
    torch.manual_seed(run.seed)
    return _resnet20_cifar10("resnet20_cifar10_snn", run, resnet20(), None, num_epochs=60)


def resnet20_cifar10_distill(run: Run) -> Result:
    """ResNet-20 on CIFAR-10 from published weights, every width taught by ResNet-44 (Table 5, column ResNet44).

    Command: `rheostat train resnet20_cifar10_distill --data DIR`; DIR also holds the published weights,
    `resnet_cifar10/resnet20-12fca82f.th` and `resnet44-014dd654.th` of akamaster/pytorch_resnet_cifar10.
    Expected: 82.5, 88.7, 91.2 and 91.9 % (paper). Time: 60 epochs, 161 s each on 2 busy cores with AVX-512 and bf16.
    """
    torch.manual_seed(run.seed)
    student, teacher = resnet20(), resnet44()
    if not run.smoke:
        if run.data_dir is None:
            raise ValueError("resnet20_cifar10_distill: got no --data DIR; want one with resnet_cifar10/*.th")
        load_published(student, run.data_dir / "resnet_cifar10" / "resnet20-12fca82f.th")
        load_published(teacher, run.data_dir / "resnet_cifar10" / "resnet44-014dd654.th")
    return _resnet20_cifar10("resnet20_cifar10_distill", run, student, teacher, num_epochs=60)


def _resnet20_cifar10(
    recipe: str, run: Run, model: CifarResNet, teacher: CifarResNet | None, num_epochs: int
) -> Result:
    images = run.images("cifar10", (3, 32, 32))
    train, test = loaders(images, run, batch_size=128, crop=4, flip=True, channels_last=True)
    graph = rh.trace(model, torch.zeros(1, 3, 32, 32))
    net = rh.Supernet(graph, rh.uniform(graph, WIDTHS)).to(run.device())
    history = rh.fit(
        net,
        train,
        epochs=run.epochs(num_epochs),
        lr=0.1,
        weight_decay=1e-4,
        warmup=1,
        teacher=teacher,
        distill=0.9,
        precision="float32" if run.smoke else "bfloat16",
        compile=not run.smoke,
        channels_last=True,
        validation=test,
        checkpoint=run.checkpoint(),
        resume=run.resume,
        seed=run.seed,
    )
    return finish(recipe, run, net, images, [epoch.seconds for epoch in history])


RECIPES = (digits, lenet5_mnist, resnet20_cifar10_snn, resnet20_cifar10_distill)
