"""What the recipes of one network on one data set share: the data, a fresh network, the settings of its training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

import rheostat as rh
from rheostat_recipes.data import Images
from rheostat_recipes.files import ImageFiles
from rheostat_recipes.models.resnet import resnet18, resnet20, resnet50
from rheostat_recipes.run import Loader, Run, file_loaders, loaders


@dataclass(frozen=True)
class Task:
    """A network and its data.

    name: the front of the recipes' names. data: as `load` knows it. network: makes a fresh one, given the number of
        classes and a shortcut of `models.resnet`.
    shape, smoke_shape: (C, H, W) of an input, and of the enlarged digits of a smoke run.
    epochs, batch_size, crop: of its training, with Nesterov SGD at rate 0.1 that falls to 0 in a cosine. The papers do
        not give these; slimmable networks train ImageNet 100 epochs in batches of 256, in three steps of rate. Images
        in files are cut out at random places and sizes, the others padded by `crop` first.
    """

    name: str
    data: str
    network: Callable[[int, str], nn.Module]
    num_classes: int
    shape: tuple[int, int, int]
    smoke_shape: tuple[int, int, int]
    epochs: int
    batch_size: int
    crop: int

    def loaders(self, run: Run, cycle: int | None = None) -> tuple[Images, Loader, Loader]:
        """Return the data, and the loaders of training and test; images in files do not come again in a cycle."""
        images = run.images(self.data, self.smoke_shape)
        if isinstance(images.train_images, ImageFiles):
            return images, *file_loaders(images, run, batch_size=self.batch_size)
        size = {"batch_size": self.batch_size, "crop": self.crop, "cycle": cycle}
        return images, *loaders(images, run, **size, flip=True, channels_last=True)

    def example(self, run: Run) -> torch.Tensor:
        """Return one input of zeros."""
        return torch.zeros(1, *(self.smoke_shape if run.smoke else self.shape))

    def fresh(self, run: Run, shortcut: str = "stock") -> nn.Module:
        """Return the network with the weights that the run's seed gives it."""
        torch.manual_seed(run.seed)
        return self.network(self.num_classes, shortcut)

    def macs(self, run: Run, full: tuple[float, ...]) -> tuple[float, ...]:
        """Return targets in multiply-accumulates, in a smoke run those of its smaller input."""
        smaller = math.prod(self.smoke_shape[1:]) / math.prod(self.shape[1:]) if run.smoke else 1.0
        return tuple(smaller * macs for macs in full)

    def fit(
        self,
        run: Run,
        net: rh.Supernet,
        train: Loader,
        test: Loader | None,
        epochs: int | None = None,
        teacher: nn.Module | None = None,
        sandwich: bool = False,
        subnets: Sequence[int] | None = None,
        loss_weights: Sequence[float] | None = None,
    ) -> list[float]:
        """Train all subnets of `net` together, or some of them; the seconds of each epoch."""
        epochs = epochs or self.epochs
        history = rh.fit(
            net,
            train,
            epochs=run.epochs(epochs),
            lr=0.1,
            weight_decay=1e-4,
            warmup=run.warmup(epochs),
            teacher=teacher,
            distill=0.9,
            sandwich=sandwich,
            subnets=subnets,
            loss_weights=loss_weights,
            precision="float32" if run.smoke else "bfloat16",
            compile=not run.smoke,
            channels_last=True,
            validation=test,
            checkpoint=run.checkpoint(),
            resume=run.resume,
            seed=run.seed,
        )
        return [epoch.seconds for epoch in history]


SMALL = (3, 32, 32)
CIFAR10 = Task("resnet20_cifar10", "cifar10", resnet20, 10, SMALL, SMALL, epochs=60, batch_size=128, crop=4)
IMAGENETTE = Task(
    "resnet18_imagenette",
    "imagenette",
    resnet18,
    10,
    (3, 112, 112),
    SMALL,
    epochs=60,
    batch_size=128,
    crop=12,
)
RESNET18 = Task("resnet18_imagenet", "imagenet", resnet18, 1000, (3, 224, 224), SMALL, 100, 256, crop=0)
RESNET50 = Task("resnet50_imagenet", "imagenet", resnet50, 1000, (3, 224, 224), SMALL, 100, 256, crop=0)
