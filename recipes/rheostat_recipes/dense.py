"""The dense networks of the pruning paper's Table 2, trained: where its shared-weights training starts from.

`lenet5`, `har`, `kws` and `squeezenext` train a network with its data; a nested recipe calls one of them with an output
folder of its own and traces `dense.net.extract(-1)`. The recipes here do nothing but measure them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import rheostat as rh
from rheostat_recipes.data import Images
from rheostat_recipes.models.har import HARNet
from rheostat_recipes.models.kws import KeywordNet
from rheostat_recipes.models.lenet import LeNet5
from rheostat_recipes.models.squeezenext import squeezenext23
from rheostat_recipes.run import Loader, Result, Run, file_loaders, finish, loaders, one_thread


@dataclass(frozen=True)
class Dense:
    """A trained dense network and what it was trained on; the only subnet of `net` is the network itself.

    train, test: the loaders of the training, with its augmentation and batch size. seconds: of each epoch.
    """

    net: rh.Supernet
    images: Images
    train: Loader
    test: Loader
    seconds: tuple[float, ...]


def lenet5(run: Run) -> Dense:
    """Train LeNet-5 on MNIST: Adam, 15 epochs."""
    images = run.images("mnist", (1, 28, 28))
    train, test = loaders(images, run, batch_size=128, crop=1)
    torch.manual_seed(run.seed)
    with one_thread():
        return _fit(
            run,
            LeNet5(images.num_classes),
            images,
            train,
            test,
            epochs=run.epochs(15),
            optimizer=lambda groups: torch.optim.Adam(groups, lr=2e-3),
            warmup=run.warmup(15),
        )


def har(run: Run) -> Dense:
    """Train HAR-Net on UCI HAR's raw windows: AdamW, 15 epochs."""
    images = run.images("har", (9, 1, 128))
    train, test = loaders(images, run, batch_size=64)
    torch.manual_seed(run.seed)
    with one_thread():
        return _fit(
            run,
            HARNet(images.num_classes),
            images,
            train,
            test,
            epochs=run.epochs(15),
            optimizer=lambda groups: torch.optim.AdamW(groups, lr=2e-3, weight_decay=0.01),
        )


def kws(run: Run) -> Dense:
    """Train the keyword network on Speech Commands, packed spectrograms or recordings: AdamW, 12 epochs."""
    packed = run.data_dir is not None and (run.data_dir / "speech_commands_mel.npz").exists()
    images = run.images("speech" if packed else "speech_wav", (1, 98, 40))
    # A shift by up to 40 ms, and by four bands: voices are higher and lower.
    train, test = loaders(images, run, batch_size=128, crop=4)
    torch.manual_seed(run.seed)
    with one_thread():
        return _fit(
            run,
            KeywordNet(images.num_classes),
            images,
            train,
            test,
            epochs=run.epochs(12),
            optimizer=lambda groups: torch.optim.AdamW(groups, lr=4e-3, weight_decay=0.01),
            warmup=0.5,
        )


def squeezenext(run: Run, data: str = "imagenette") -> Dense:
    """Train 1.0-SqNxt-23 on "imagenette" at 112 pixels, 80 epochs, or on "imagenet" at 224, 120 epochs.

    For ImageNet batch, rate, decay and warm-up are those of the authors' solver file, with a cosine in the place of
    their polynomial; it needs a GPU and many cores that decode. For Imagenette nothing was tuned.
    """
    images = run.images(data, (3, 64, 64))
    large = data == "imagenet" and not run.smoke
    train, test = (
        file_loaders(images, run, batch_size=1024)
        if large
        else loaders(images, run, batch_size=64, crop=12, flip=True, channels_last=True)
    )
    torch.manual_seed(run.seed)
    return _fit(
        run,
        squeezenext23(images.num_classes),
        images,
        train,
        test,
        epochs=run.epochs(120 if large else 80),
        lr=0.4 if large else 0.1,
        weight_decay=1e-4,
        warmup=0.6 * run.warmup(120) if large else run.warmup(80),
        precision="float32" if run.smoke else "bfloat16",
        compile=not run.smoke,
        channels_last=True,
    )


def _fit(run: Run, model: nn.Module, images: Images, train: Loader, test: Loader, **settings: Any) -> Dense:
    """Train on the best device there is, going on from the checkpoint where the run says so."""
    graph = rh.trace(model, torch.zeros(1, *images.test_images.shape[1:]))
    net = rh.Supernet(graph, rh.uniform(graph, (1.0,))).to(run.device())
    history = rh.fit(
        net, train, validation=test, checkpoint=run.checkpoint(), resume=run.resume, seed=run.seed, **settings
    )
    return Dense(net, images, train, test, tuple(epoch.seconds for epoch in history))


def lenet5_mnist_dense(run: Run) -> Result:
    """LeNet-5 on MNIST, dense.

    Command: `rheostat train lenet5_mnist_dense --data DIR`. Expected: 99.2 %. Time: a minute or two on 1 core.
    """
    return _finish("lenet5_mnist_dense", run, lenet5(run))


def har_dense(run: Run) -> Result:
    """HAR-Net on UCI HAR, dense.

    Command: `rheostat train har_dense --data DIR`. Expected: 92.8 %. Time: 50 s on 1 busy core.
    """
    return _finish("har_dense", run, har(run))


def kws_dense(run: Run) -> Result:
    """A keyword network for OKG-Net on Speech Commands, twelve classes, dense.

    Command: `rheostat train kws_dense --data DIR`. Expected: 93.3 %. Time: 9 minutes on 1 busy core.
    """
    return _finish("kws_dense", run, kws(run))


def squeezenext_imagenette_dense(run: Run) -> Result:
    """SqueezeNext-23 on Imagenette at 112 pixels, dense.

    Command: `rheostat train squeezenext_imagenette_dense --data DIR`. Expected: 80.6 %. Time: 80 epochs of
    40 s on 2 free cores.
    """
    return _finish("squeezenext_imagenette_dense", run, squeezenext(run))


def squeezenext_imagenet_dense(run: Run) -> Result:
    """SqueezeNext-23 on ImageNet, dense.

    Command: `rheostat train squeezenext_imagenet_dense --data DIR`. Expected: 59 % (Gholami et al.
    2018). Time: never run.
    """
    return _finish("squeezenext_imagenet_dense", run, squeezenext(run, "imagenet"))


def _finish(recipe: str, run: Run, dense: Dense) -> Result:
    return finish(recipe, run, dense.net, dense.images, dense.seconds)


RECIPES = (lenet5_mnist_dense, har_dense, kws_dense, squeezenext_imagenette_dense, squeezenext_imagenet_dense)
