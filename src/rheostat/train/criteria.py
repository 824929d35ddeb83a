"""What a weight is worth beyond its magnitude: a score for every weight, from a few batches of calibration data."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rheostat.train.graph import Graph
from rheostat.train.loop import call, device_of, eval_mode, tensor_of, to_device
from rheostat.train.masks import prunable


def taylor(
    graph: Graph, loader: Iterable[tuple[Any, Tensor]], batches: int | None = None
) -> dict[str, Tensor]:
    """`|w * dL/dw|`: by how much the loss would change without the weight, to first order; the mean over batches.

    L is the cross-entropy of the model in evaluation mode; `batches` of the loader are read (None: all), one at a time,
    and gradients that the model has are left alone (Molchanov et al. 2017). Frozen parameters have no score. Raises
    ValueError when there is no batch.

    >>> taylor(graph, [(torch.randn(8, 4), torch.arange(8) % 2)])["0.weight"].shape
    torch.Size([8, 4])
    """
    weights = {name: weight for name, weight in prunable(graph).items() if weight.requires_grad}
    totals = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    device, num_batches = device_of(graph.model), 0
    with eval_mode(graph.model):
        for x, y in islice(loader, batches):
            loss = F.cross_entropy(
                tensor_of(call(graph.model, to_device(x, device, False))).float(), y.to(device)
            )
            gradients = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
            for total, weight, gradient in zip(totals.values(), weights.values(), gradients, strict=True):
                total += (weight.detach() * gradient).abs()
            num_batches += 1
    if num_batches == 0:
        raise ValueError("taylor: got no batch; want at least one. Check the loader and batches=")
    return {name: total / num_batches for name, total in totals.items()}


@torch.no_grad()
def wanda(
    graph: Graph, loader: Iterable[tuple[Any, Tensor]], batches: int | None = None
) -> dict[str, Tensor]:
    """`|w| * ||x||`: magnitude times the L2 norm of all that the weight is multiplied with (Wanda, Sun et al. 2023).

    For the weights of linears and convolutions; others have no score. Norms are summed up in float32 while `batches` of
    the loader (None: all) run once through the dense model in evaluation mode; no activation is kept. Wanda compares
    weights of one output: `levels(..., allocation="balanced")`. Raises ValueError when there is no batch.

    >>> wanda(graph, [(torch.randn(8, 4), torch.arange(8) % 2)])["0.weight"].shape
    torch.Size([8, 4])
    """
    names = {id(weight): name for name, weight in prunable(graph).items()}
    totals: dict[str, Tensor] = {}

    def add(
        layer: Any, args: tuple[Tensor, ...], _: Any
    ) -> None:  # returns None, so the output stays as it is
        name = names[id(layer.weight)]
        totals[name] = totals.get(name, 0) + _input_squares(layer, args[0].float())

    kinds = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    layers = [m for m in graph.model.modules() if isinstance(m, kinds) and id(m.weight) in names]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    device, num_batches = device_of(graph.model), 0
    try:
        with eval_mode(graph.model):
            for x, _ in islice(loader, batches):
                call(graph.model, to_device(x, device, False))
                num_batches += 1
    finally:
        for hook in hooks:
            hook.remove()
    if num_batches == 0:
        raise ValueError("wanda: got no batch; want at least one. Check the loader and batches=")
    weights = prunable(graph)
    return {name: weights[name].abs() * total.sqrt() for name, total in totals.items()}


def _input_squares(layer: Any, x: Tensor) -> Tensor:
    """The sum of squares of what each weight of a layer is multiplied with, of a shape that broadcasts to the weight's.

    For a convolution that is the gradient of a convolution of the squares, so that nothing is unfolded.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, layer.in_features).square().sum(0, keepdim=True)
    with torch.enable_grad():
        ones = torch.ones(layer.groups, *layer.weight.shape[1:], device=x.device, requires_grad=True)
        (sums,) = torch.autograd.grad(layer._conv_forward(x.square(), ones, None).sum(), ones)
    return sums.repeat_interleave(layer.out_channels // layer.groups, 0)
