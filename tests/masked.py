"""An independent reference for subnets: the full model in which everything that a subnet removes is zero.

Nothing here slices a module. The reference keeps every shape of the full model, so that it computes what a subnet must
compute if the channels that `Graph` ties together are the right ones, and something else if not.
"""

from __future__ import annotations

import copy
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rheostat.train.graph import ChannelGroup, Graph


def kept(graph: Graph, widths: tuple[int, ...]) -> dict[str, dict[int, np.ndarray]]:
    """For every tensor that carries units, per axis: the ascending indices that a subnet of these widths keeps.

    Tied tensors are there under all their names.
    """
    named = tensors(graph.model)
    masks: dict[int, dict[int, np.ndarray]] = defaultdict(dict)
    for group, width in zip(graph.groups, widths, strict=True):
        for axis in group.axes:
            tensor = named[axis.tensor]
            mask = masks[id(tensor)].setdefault(axis.dim, np.ones(tensor.shape[axis.dim], bool))
            mask[axis.positions[width:].ravel()] = False
    indices = {i: {d: np.flatnonzero(mask) for d, mask in axes.items()} for i, axes in masks.items()}
    return {name: indices[id(tensor)] for name, tensor in named.items() if id(tensor) in indices}


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by every name that they have."""
    named = dict(model.named_parameters(remove_duplicate=False))
    return {**named, **dict(model.named_buffers(remove_duplicate=False))}


def gather(tensor: Tensor, axes: dict[int, np.ndarray]) -> Tensor:
    """The kept part of a full tensor; differentiable."""
    for dim, indices in axes.items():
        tensor = tensor.index_select(dim, torch.from_numpy(indices))
    return tensor


def scatter(small: Tensor, axes: dict[int, np.ndarray], shape: torch.Size) -> Tensor:
    """A full tensor that is `small` where it is kept and zero elsewhere."""
    full = small
    for dim, indices in axes.items():
        size = list(full.shape)
        size[dim] = shape[dim]
        full = full.new_zeros(size).index_copy_(dim, torch.from_numpy(indices), full)
    assert full.shape == shape
    return full


def masked(graph: Graph, full: nn.Module, small: nn.Module, widths: tuple[int, ...]) -> nn.Module:
    """A copy of `full` that computes what `small`, its subnet of these widths, must compute.

    Shared weights are the full model's, zero where removed; norms have the subnet's private tensors (and a variance
    of 1 where removed, not to divide by zero). Norms over channels (LayerNorm, GroupNorm) run on the kept channels
    alone, which is what they mean in a subnet.
    """
    keep = kept(graph, widths)
    reference, values = copy.deepcopy(full), tensors(full)
    private = {name: tensor for name, tensor in tensors(small).items() if name in graph.private}
    with torch.no_grad():
        for name, tensor in tensors(reference).items():
            if name not in keep:
                continue
            source = private.get(name, gather(values[name], keep[name]))
            value = scatter(source, keep[name], tensor.shape)
            if name.endswith("running_var"):
                value += scatter(torch.ones_like(source), keep[name], tensor.shape) == 0
            tensor.copy_(value)
    for name, module in reference.named_modules():
        axes = keep.get(f"{name}.weight", {}).get(0)
        if axes is None or not _over_channels(module):
            continue
        dim = (
            1
            if isinstance(module, nn.GroupNorm) or getattr(module, "data_format", "") == "channels_first"
            else -1
        )
        module.forward = _on_kept(small.get_submodule(name), torch.from_numpy(axes), dim)  # type: ignore[method-assign]
    return reference


def _over_channels(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.RMSNorm)


def _on_kept(module: nn.Module, indices: Tensor, dim: int):
    def forward(x: Tensor) -> Tensor:
        y = module(x.index_select(dim, indices))
        return torch.zeros_like(x).index_copy(dim, indices, y)

    return forward


def owners(graph: Graph, axis: str) -> list[ChannelGroup]:
    """The groups that own indices of an axis written "conv.weight" (dimension 0) or "conv.weight:1"."""
    name, _, dim = axis.partition(":")
    return [g for g in graph.groups if any(a.tensor == name and a.dim == int(dim or 0) for a in g.axes)]


def leaves(output: object) -> list[Tensor]:
    """The tensors of any model output, in a fixed order."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def relative_error(got: object, want: object) -> float:
    """Largest difference over the outputs, divided by the largest value of that output."""
    worst = 0.0
    pairs = list(zip(leaves(got), leaves(want), strict=True))
    assert pairs
    for a, b in pairs:
        assert a.shape == b.shape, f"{tuple(a.shape)} and {tuple(b.shape)}"
        worst = max(worst, float((a - b).detach().abs().max() / b.detach().abs().max().clamp_min(1e-6)))
    return worst


def loss_of(output: object) -> Tensor:
    """A scalar that every output element enters with another weight."""
    total = torch.zeros(())
    for tensor in leaves(output):
        if tensor.is_floating_point():
            weights = torch.linspace(-1, 1, tensor.numel(), dtype=tensor.dtype).reshape(tensor.shape)
            total = total + (tensor * weights).sum() + tensor.square().mean()
    return total
