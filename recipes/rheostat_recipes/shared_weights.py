"""Shared-weights training: one network at three sparsities on one set of weights (pruning paper, section 3.1, Table 2).

Every recipe first trains the dense network, in the folder `dense` of its own, and then the subnets M1, M2 and M3, the
sparsest first. Biases are shared; the classifier and what no subnet keeps are as METHODS has them: one is left whole,
the other is zero. `--resume` goes on where a run stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import nn

import rheostat as rh
from rheostat_recipes.dense import Dense, har, kws, lenet5, squeezenext
from rheostat_recipes.run import Result, Run, finish, measure, one_thread

NAMES = ("M1", "M2", "M3")
HIGH = (0.95, 0.9, 0.8)
"""Where the paper stops, these go on."""

LENET5 = (0.6024, 0.405, 0.207)
HAR = (0.2413, 0.0531, 0.0269)
KWS = (0.8376, 0.5632, 0.3078)
SQUEEZENEXT = (0.5539, 0.543, 0.5407)

Granularities = Mapping[str, rh.Element | rh.Pattern]


def lenet5_mnist_levels(run: Run) -> Result:
    """LeNet-5 on MNIST, staged: kernel rows in the convolutions, single weights in the linears (Table 2).

    Command: `rheostat train lenet5_mnist_levels --data DIR`. Expected: 98.94, 98.96 and 99.02 % (paper).
    Time: 6 minutes on 1 core.
    """
    return _lenet5("lenet5_mnist_levels", run, "staged")


def lenet5_mnist_levels_joint(run: Run) -> Result:
    """LeNet-5 on MNIST, the three subnets trained together.

    Command: `rheostat train lenet5_mnist_levels_joint --data DIR`. Expected: the staged ones within 0.1 points, after
    8 epochs instead of 24. Time: 6 minutes on 1 core.
    """
    return _lenet5("lenet5_mnist_levels_joint", run, "joint")


def lenet5_mnist_levels_raw(run: Run) -> Result:
    """LeNet-5 on MNIST by the paper's literal equations: M2 and M3 add weights that were not trained again.

    Command: `rheostat train lenet5_mnist_levels_raw --data DIR`. Expected: M3 below M1. Time: 3 minutes on 1 core.
    """
    return _lenet5("lenet5_mnist_levels_raw", run, "raw")


def lenet5_mnist_levels_subset(run: Run) -> Result:
    """LeNet-5 on MNIST, only masked.

    Command: `rheostat train lenet5_mnist_levels_subset --data DIR`. Expected: M1 far behind. Time: 1 minute on 1 core.
    """
    return _lenet5("lenet5_mnist_levels_subset", run, "subset")


def lenet5_mnist_levels_high(run: Run) -> Result:
    """LeNet-5 on MNIST at 95, 90 and 80 % of single weights, staged.

    Command: `rheostat train lenet5_mnist_levels_high --data DIR`. Expected: about 99 %. Time: 6 minutes on 1 core.
    """
    convs = {"conv1.weight": (0.4, 0.3, 0.2), "conv2.weight": (0.85, 0.75, 0.6)}
    return _levels(
        "lenet5_mnist_levels_high", run, lenet5, _with(_LENET5, convs, HIGH), rh.Element(), lr=2e-3, epochs=8
    )


def har_levels(run: Run) -> Result:
    """HAR-Net on UCI HAR, staged, single weights (Table 2).

    Command: `rheostat train har_levels --data DIR`. Expected: 90.19, 89.78 and 87.21 % (paper). Time: 2 minutes on
    1 core.
    """
    return _levels("har_levels", run, har, HAR, rh.Element(), lr=5e-4, epochs=10)


def har_levels_high(run: Run) -> Result:
    """HAR-Net on UCI HAR at 95, 90 and 80 %, staged.

    Command: `rheostat train har_levels_high --data DIR`. Expected: 86.7, 90.4 and 92.3 %. Time: 2 minutes on 1 core.
    """
    return _levels("har_levels_high", run, har, HIGH, rh.Element(), lr=5e-4, epochs=10)


def kws_levels(run: Run) -> Result:
    """The keyword network on Speech Commands, staged, single weights, M1 pruned gradually (Table 2, OKG-Net).

    Command: `rheostat train kws_levels --data DIR`. Expected: 82.01, 83.43 and 83.5 % (paper, another network).
    Time: 12 minutes on 1 core.
    """
    convs = {
        "conv1.weight": (0.2, 0.1, 0.05),
        "conv2.weight": (0.5, 0.3, 0.15),
        "conv3.weight": (0.78, 0.5, 0.28),
    }
    return _kws("kws_levels", run, _with(_KWS, convs, KWS))


def kws_levels_high(run: Run) -> Result:
    """The keyword network on Speech Commands at 95, 90 and 80 %, staged, M1 pruned gradually.

    Command: `rheostat train kws_levels_high --data DIR`. Expected: 88.9, 90.6 and 92.0 %. Time: 12 minutes on 1 core.
    """
    convs = {
        "conv1.weight": (0.3, 0.25, 0.2),
        "conv2.weight": (0.75, 0.6, 0.5),
        "conv3.weight": (0.93, 0.86, 0.75),
    }
    return _kws("kws_levels_high", run, _with(_KWS, convs, HIGH))


_KWS = {"conv1.weight": 300, "conv2.weight": 2592, "conv3.weight": 10368, "conv4.weight": 20736}


def _kws(recipe: str, run: Run, sparsity: Mapping[str, Sequence[float]]) -> Result:
    return _levels(recipe, run, kws, sparsity, rh.Element(), lr=3e-3, epochs=(16, 8, 8), gradual=16)


def squeezenext_imagenette_levels(run: Run) -> Result:
    """SqueezeNext-23 on Imagenette at 112 pixels, staged, single weights: stands in for Table 2's ImageNet row.

    M2 has 1.1 % more of the weights than M1, and M3 another 0.2 %: their stages are short.
    Command: `rheostat train squeezenext_imagenette_levels --data DIR`. Expected: 81.1, 81.0 and 81.3 %;
    80.6 % for the dense network, which overfits. Time: 112 epochs of 40 to 60 s on 2 free cores.
    """
    epochs = (20, 8, 4)
    return _levels(
        "squeezenext_imagenette_levels", run, squeezenext, SQUEEZENEXT, rh.Element(), 1e-3, epochs, large=True
    )


def squeezenext_imagenet_levels(run: Run) -> Result:
    """SqueezeNext-23 on ImageNet, staged, single weights (Table 2, SqNxt-23).

    Command: `rheostat train squeezenext_imagenet_levels --data DIR`. Expected: the paper's 73.8, 75.02 and 77.36 % can
    only be top-5; the dense network has 59 % top-1. Time: never run; days on one GPU.
    """

    def train(run: Run) -> Dense:
        return squeezenext(run, "imagenet")

    epochs = (10, 4, 2)
    return _levels(
        "squeezenext_imagenet_levels", run, train, SQUEEZENEXT, rh.Element(), 1e-3, epochs, large=True
    )


_LENET5 = {"conv1.weight": 150, "conv2.weight": 2400, "fc1.weight": 30720, "fc2.weight": 10080}


def _with(
    sizes: Mapping[str, int], fixed: Mapping[str, Sequence[float]], total: Sequence[float]
) -> dict[str, tuple[float, ...]]:
    """Sparsities of parameters of these sizes: the fixed ones, and in the others what brings each subnet to `total`."""
    others = [name for name in sizes if name not in fixed]
    weights = sum(sizes[name] for name in others)
    gone = [sum(sizes[name] * s[k] for name, s in fixed.items()) for k in range(len(total))]
    rest = tuple((t * sum(sizes.values()) - g) / weights for t, g in zip(total, gone, strict=True))
    return {**{name: tuple(s) for name, s in fixed.items()}, **dict.fromkeys(others, rest)}


def _lenet5(recipe: str, run: Run, mode: str) -> Result:
    """Two, three and four of five kernel rows are kept; the linears bring each subnet to the paper's sparsity."""
    rows: dict[str, Sequence[float]] = {"conv1.weight": (0.6, 0.4, 0.2), "conv2.weight": (0.6, 0.4, 0.2)}
    granularity = {name: rh.Pattern("rows") if name in rows else rh.Element() for name in _LENET5}
    return _levels(
        recipe, run, lenet5, _with(_LENET5, rows, LENET5), granularity, lr=1e-3, epochs=8, mode=mode
    )


def _levels(
    recipe: str,
    run: Run,
    train: Callable[[Run], Dense],
    sparsity: Sequence[float] | Mapping[str, Sequence[float]],
    granularity: rh.Element | Granularities,
    lr: float,
    epochs: int | tuple[int, ...],
    mode: str = "staged",
    gradual: int = 0,
    large: bool = False,
) -> Result:
    """Train the dense network, give its weights levels and train those, `epochs` each stage.

    gradual: epochs in which the sparsest subnet is pruned step by step before the levels are given.
    large: on all cores with bfloat16, not on one with float32.
    """
    dense = train(replace(run, out=run.out / "dense"))
    model = dense.net.extract(-1).cpu()
    example = torch.zeros(1, *dense.images.test_images.shape[1:])
    scores, seconds = None, list(dense.seconds)
    if isinstance(sparsity, Mapping):
        skip: tuple[str, ...] = ()
        if gradual:
            smallest = {name: s[0] for name, s in sparsity.items()}
            model, scores = _pruned(run, dense, model, example, smallest, lr, gradual, seconds)
    else:
        skip = (list(dict(model.named_parameters()))[-2],)  # the classifier
    graph = rh.trace(model, example)
    levels = rh.levels(graph, sparsity, granularity, scores=scores, names=NAMES, skip=skip)
    net = rh.Supernet(graph, levels=levels).to(run.device())
    with nullcontext() if large else one_thread():
        stages = rh.fit_nested(
            net,
            dense.train,
            epochs=[run.epochs(n) for n in epochs] if isinstance(epochs, tuple) else run.epochs(epochs),
            mode=mode,
            optimizer=lambda groups: torch.optim.Adam(groups, lr=lr),
            warmup=0.5,
            teacher=dense.net.extract(-1),
            precision="bfloat16" if large and not run.smoke else "float32",
            channels_last=large,
            validation=dense.test,
            checkpoint=run.checkpoint(),
            resume=run.resume,
            seed=run.seed,
        )
    if mode in ("raw", "subset"):
        # No stage has measured these, and their norms have the dense network's statistics.
        rh.recalibrate(net, dense.train, 50)
        measure(net, dense.test)
    seconds += (epoch.seconds for stage in stages for epoch in stage)
    return finish(recipe, run, net, dense.images, seconds)


def _pruned(
    run: Run,
    dense: Dense,
    model: nn.Module,
    example: torch.Tensor,
    sparsity: Mapping[str, float],
    lr: float,
    epochs: int,
    seconds: list[float],
) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The dense network with the weights of its gradually pruned self, and scores that rank those before all others."""
    graph = rh.trace(model, example)
    net = rh.Supernet(graph, rh.uniform(graph, (1.0,)))
    assert isinstance(dense.train, rh.ImageLoader)
    steps = run.epochs(epochs) * len(dense.train)
    with one_thread():
        history = rh.fit(
            net,
            dense.train,
            epochs=run.epochs(epochs),
            optimizer=lambda groups: torch.optim.AdamW(groups, lr=lr, weight_decay=0.01),
            warmup=0.5,
            teacher=model,
            distill=0.7,
            validation=dense.test,
            after_step=rh.gradual(
                net, sparsity, num_steps=steps * 3 // 4, start=0.3, every=max(1, steps // 100)
            ),
            checkpoint=replace(run, out=run.out / "gradual").checkpoint(),
            resume=run.resume,
            seed=run.seed,
        )
    seconds += (epoch.seconds for epoch in history)
    # The supernet has sorted its channels: the dense network in the same order is what its graph was made from.
    merged, before = net.extract(-1), rh.Supernet(graph, rh.uniform(graph, (1.0,))).extract(-1)
    scores = {}
    for name, parameter in merged.named_parameters():
        if name in sparsity:
            own, kept = before.get_parameter(name).detach(), parameter.detach() != 0
            scores[name] = own.abs() + kept * (own.abs().max() + parameter.detach().abs())
            parameter.data = torch.where(kept, parameter.detach(), own)
    return merged, scores


RECIPES = (
    lenet5_mnist_levels,
    lenet5_mnist_levels_joint,
    lenet5_mnist_levels_raw,
    lenet5_mnist_levels_subset,
    lenet5_mnist_levels_high,
    har_levels,
    har_levels_high,
    kws_levels,
    kws_levels_high,
    squeezenext_imagenette_levels,
    squeezenext_imagenet_levels,
)
