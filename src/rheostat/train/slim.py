"""Slimming a trained supernet: the widths that lose least under a budget, found one group at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rheostat.spec import Subnet
from rheostat.train import distributed
from rheostat.train.fit import recalibrate
from rheostat.train.loop import device_of, eval_mode, logits_of, to_device
from rheostat.train.sample import subnet_of
from rheostat.train.small import module_of
from rheostat.train.supernet import Supernet


def slim(
    net: Supernet,
    loader: Iterable[tuple[Any, Tensor]],
    budgets: Sequence[float],
    *,
    cost: Callable[[nn.Module], float] | None = None,
    step: float = 0.1,
    round_to: int = 1,
    calibration: Iterable[tuple[Any, Tensor]] | None = None,
    batches: int | None = None,
) -> Supernet:
    """Narrow the largest subnet greedily, and give a supernet of the subnets that first meet each budget (AutoSlim).

    Each round tries every channel group narrower by `step` of its size, with norm statistics measured anew, and keeps
    the try whose loss on `loader` rises least for what it saves; of several that do not rise, the one that saves most.
    Units go in the order of the supernet. The result starts from the trained weights, holds the largest subnet too, and
    is to be trained on with `fit`.

    budgets: the most a subnet may cost: multiply-accumulates, or whatever `cost` says of a small module, such as its
        measured latency (a noisy one may keep the search from saving anything: measure medians).
    round_to: widths are multiples of it, as in `uniform`.
    calibration, batches: what statistics are measured on (the loader itself when None), and how much of it.

    Raises ValueError for budgets that no width meets, a supernet with levels, a loss or cost of NaN, and under several
    processes.

    >>> small = slim(net, validation, budgets=(10e6, 20e6), calibration=loader)  # doctest: +SKIP
    """
    distributed.check_alone("slim")
    if not len(budgets) or not all(budget > 0 for budget in budgets) or not 0 < step <= 1 or round_to < 1:
        raise ValueError(
            f"slim: got budgets={tuple(budgets)}, step={step}, round_to={round_to}; want some above 0, 0 to 1, and "
            "1 or more."
        )
    if net.levels:
        raise ValueError(
            "slim: got a supernet with levels; want one without: narrow it first, prune its weights then."
        )
    names = {budget: f"{budget:g}" for budget in budgets}
    if len(set(names.values())) < len(budgets):
        raise ValueError(
            f"slim: got budgets={tuple(budgets)}; want their first six digits to differ, which name the subnets."
        )
    trained = net.extract(-1)
    if tuple(g.size for g in net.graph.groups) != net.subnets[-1].widths:
        raise ValueError("slim: the largest subnet is not the whole model; want a supernet that has it.")
    graph = replace(net.graph, model=trained)
    calibration = loader if calibration is None else calibration

    def build(widths: Sequence[int]) -> nn.Module:
        return module_of(graph, trained, graph.kept(widths))

    def price(widths: Sequence[int]) -> float:
        spent = graph.cost(widths).macs if cost is None else cost(build(widths))
        if not spent >= 0:
            raise ValueError(
                f"slim: got cost={spent} of widths {tuple(widths)}; want a number of at least 0."
            )
        return spent

    def loss(widths: Sequence[int]) -> float:
        module = build(widths)
        recalibrate(module, calibration, batches)
        return _loss(module, loader)

    widths = net.subnets[-1].widths
    now, spent, found = loss(widths), price(widths), []
    for budget in sorted(budgets, reverse=True):
        while spent > budget:
            tries = [
                t for g in range(len(widths)) if (t := _narrower(graph, widths, g, step, round_to)) != widths
            ]
            prices = {t: p for t in dict.fromkeys(tries) if (p := price(t)) < spent}
            if not prices:
                raise ValueError(
                    f"slim: got a budget of {budget:.6g}; want at least {spent:.6g}, what remains."
                )
            losses = {t: loss(t) for t in prices}
            # Where the loss does not rise there is nothing to weigh: the most is saved.
            widths = min(prices, key=lambda t: (max(0.0, losses[t] - now) / (spent - prices[t]), prices[t]))
            now, spent = losses[widths], price(widths)  # anew: the least of many noisy prices is too low
        found.append(subnet_of(graph, names[budget], graph.kept(widths)))
    whole = Subnet(net.names[-1], net.subnets[-1].widths)
    slimmed = Supernet(graph, [*reversed(found), whole])
    recalibrate(slimmed, calibration, batches)
    return slimmed


def _narrower(graph: Any, widths: tuple[int, ...], group: int, step: float, round_to: int) -> tuple[int, ...]:
    """Widths with one group narrower by a step, at least one unit; groups that are padded to others pull them along."""
    size, width = graph.groups[group].size, widths[group]
    wanted = width - max(1, round(step * size))
    tried = list(widths)
    tried[group] = min(width, max(int(wanted // round_to) * round_to, min(round_to, size)))
    return graph.legal(tried)


@torch.no_grad()
def _loss(module: nn.Module, loader: Iterable[tuple[Any, Tensor]]) -> float:
    device = device_of(module)
    exact = torch.autocast(device.type, enabled=False)
    losses, sizes = [], []
    with eval_mode(module):
        for x, y in loader:
            logits = logits_of(module, to_device(x, device, False), exact)
            losses.append(float(F.cross_entropy(logits, y.to(device), reduction="sum")))
            sizes.append(len(y))
    if not sizes:
        raise ValueError("slim: got an empty loader; want at least one batch.")
    if math.isnan(loss := float(np.sum(losses) / np.sum(sizes))):
        raise ValueError("slim: got a loss that is no number; want samples and a network without NaN.")
    return loss
