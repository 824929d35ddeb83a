"""One sparse network, three ways of pruning it that train for as long (pruning paper, section 2.3).

All start from the same dense LeNet-5 and end with the same sparsity in each layer, so that what differs is when and how
the weights are chosen: at once, in steps, or by ADMM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

import rheostat as rh
from rheostat_recipes.dense import Dense, lenet5
from rheostat_recipes.run import Result, Run, finish, one_thread

SPARSITY = {"conv1.weight": 0.5, "conv2.weight": 0.92, "fc1.weight": 0.985, "fc2.weight": 0.95}
"""Of each layer, 97.2 % in all."""

NUM_EPOCHS = 24
EXAMPLE = torch.zeros(1, 1, 28, 28)
_CUTS = {name: (sparsity,) for name, sparsity in SPARSITY.items()}


def lenet5_mnist_one_shot(run: Run) -> Result:
    """LeNet-5 on MNIST at 97 %: cut at once by magnitude, then trained on.

    Command: `rheostat train lenet5_mnist_one_shot --data DIR`. Expected: 98.1 %. Time: 5 minutes on 1 core.
    """
    with one_thread():
        dense = _dense(run)
        graph = rh.trace(dense.net.extract(-1), EXAMPLE)
        net = rh.Supernet(graph, levels=rh.levels(graph, _CUTS, names=("pruned",)))
        return _finish("lenet5_mnist_one_shot", run, net, dense, _fit(run, net, dense, NUM_EPOCHS))


def lenet5_mnist_gradual(run: Run) -> Result:
    """LeNet-5 on MNIST at 97 %: pruned in steps through half of the training (Zhu and Gupta 2017).

    Command: `rheostat train lenet5_mnist_gradual --data DIR`. Expected: 98.9 %. Time: 5 minutes on 1 core.
    """
    with one_thread():
        dense, half = _dense(run), NUM_EPOCHS // 2
        graph = rh.trace(dense.net.extract(-1), EXAMPLE)
        net = rh.Supernet(graph, rh.uniform(graph, (1.0,)))
        assert isinstance(dense.train, rh.ImageLoader)
        steps = run.epochs(half) * len(dense.train)
        prune = rh.gradual(net, SPARSITY, num_steps=steps, every=max(1, steps // 50))
        seconds = _fit(replace(run, out=run.out / "gradual"), net, dense, half, prune)
        graph = rh.trace(net.extract(-1), EXAMPLE)
        net = rh.Supernet(graph, levels=rh.levels(graph, _CUTS, names=("pruned",)))
        seconds += _fit(run, net, dense, NUM_EPOCHS - half)
        return _finish("lenet5_mnist_gradual", run, net, dense, seconds)


def lenet5_mnist_admm(run: Run) -> Result:
    """LeNet-5 on MNIST at 97 %: three quarters of the training under ADMM, the rest masked.

    Command: `rheostat train lenet5_mnist_admm --data DIR`. Expected: 98.7 %, above one-shot. Time: 4 minutes on 1 core.
    """
    with one_thread():
        dense = _dense(run)
        graph = rh.trace(dense.net.extract(-1), EXAMPLE)
        epochs = run.epochs(18)
        found = rh.admm(
            graph,
            dense.train,
            SPARSITY,
            # The best of thirteen settings on seed 0: larger rho settle the masks too early, SGD is half a point worse.
            rho=(0.003, 0.01, 0.03)[:epochs],
            updates=max(1, epochs // 3),
            epochs=1,
            optimizer=lambda groups: torch.optim.Adam(groups, lr=1e-3),
            checkpoint=replace(run, out=run.out / "admm").checkpoint(),
            resume=run.resume,
            seed=run.seed,
        )
        net = rh.Supernet(found.graph, levels=rh.Levels(("pruned",), found.levels.tensors))
        seconds = [update.seconds for update in found.history]  # an epoch each
        seconds += _fit(run, net, dense, NUM_EPOCHS - len(seconds))
        return _finish("lenet5_mnist_admm", run, net, dense, seconds)


def _dense(run: Run) -> Dense:
    return lenet5(replace(run, out=run.out / "dense"))


def _fit(
    run: Run,
    net: rh.Supernet,
    dense: Dense,
    epochs: int,
    after_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    history = rh.fit(
        net,
        dense.train,
        epochs=run.epochs(epochs),
        optimizer=lambda groups: torch.optim.Adam(groups, lr=2e-3),
        warmup=0.5,
        validation=dense.test,
        checkpoint=run.checkpoint(),
        resume=run.resume,
        seed=run.seed,
        after_step=after_step,
    )
    return [epoch.seconds for epoch in history]


def _finish(recipe: str, run: Run, net: rh.Supernet, dense: Dense, seconds: Sequence[float]) -> Result:
    return finish(recipe, run, net, dense.images, [*dense.seconds, *seconds])


RECIPES = (lenet5_mnist_one_shot, lenet5_mnist_gradual, lenet5_mnist_admm)
