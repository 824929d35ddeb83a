"""The small modules of a supernet: the model's structure with parameters that alias or copy the shared ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from rheostat.train.graph import Graph, evaluating, tensors_of

_SIZES = frozenset(
    """in_features out_features in_channels out_channels num_features num_channels embedding_dim num_parameters nf nx
    embed_dim all_head_size split_size hidden_size inner_dim dim attn_dim kdim vdim channels width""".split()
)
"""Attributes in which modules keep a channel count."""

_COUNTS = frozenset(
    "num_heads num_attention_heads num_key_value_heads n_head n_heads heads num_kv_heads nhead".split()
)
"""Attributes in which modules keep a number of heads."""


@dataclass(frozen=True)
class Slice:
    """How a subnet's parameter is made from the shared one: the part at `index`, of that the weights up to a level.

    `index` has a range for every dim, or index tensors where what is kept is not one range. Only a range without levels
    can be an alias; else `small` is a copy. `level` has the shape of `small`.
    """

    small: nn.Parameter
    shared: nn.Parameter
    index: tuple[Any, ...]
    level: torch.Tensor | None
    k: int

    @property
    def copied(self) -> bool:
        """Whether `small` has memory of its own."""
        return self.level is not None or not all(isinstance(i, slice) for i in self.index)

    @property
    def mask(self) -> torch.Tensor | None:
        """True at the weights that the subnet keeps; None for all."""
        return None if self.level is None else self.level <= self.k

    def read(self) -> torch.Tensor:
        """The part of the shared values: a view of them unless it is `copied`."""
        part = self.shared.detach()[self.index]
        return part if self.mask is None else part * self.mask

    def add_grad_(self) -> None:
        """Add the gradient of a copy to the shared one."""
        assert self.copied and self.small.grad is not None and self.shared.grad is not None
        grad = self.small.grad if self.mask is None else self.small.grad * self.mask
        if isinstance(self.index[0], slice):
            self.shared.grad[self.index] += grad
        else:
            self.shared.grad.index_put_(self.index, grad, accumulate=True)
        self.small.grad = None


def own(module: nn.Module) -> nn.Module:
    """A deep copy whose tensors are contiguous and its own."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        value = parameter.detach().clone(memory_format=torch.contiguous_format)
        memo[id(parameter)] = nn.Parameter(value, parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.detach().clone(memory_format=torch.contiguous_format)
    return copy.deepcopy(module, memo)


def small_module(
    graph: Graph,
    shared: nn.Module,
    keep: np.ndarray,
    present: np.ndarray,
    levels: Mapping[str, torch.Tensor] | None = None,
    k: int = 0,
) -> tuple[nn.Module, list[Slice]]:
    """The model's structure with the parameters of a subnet, aliasing those of `shared`, which has the units `present`.

    Private tensors are copies, and so is a parameter whose kept indices are not one range or of which `levels`, by
    name and of its shape, leaves out the weights above `k`.
    """
    kept, had = _kept(graph, keep), _kept(graph, present)
    ranges = {key: np.flatnonzero(mask[had[key]]) for key, mask in kept.items()}
    module = copy.deepcopy(shared, {id(t): t for t in tensors_of(shared).values()})
    slices: list[Slice] = []
    made: dict[int, Any] = {}
    levels = levels or {}
    for name, tensor in (*shared.named_parameters(), *shared.named_buffers()):
        indices = [ranges.get((name, d), np.arange(size)) for d, size in enumerate(tensor.shape)]
        whole = all(len(i) == size for i, size in zip(indices, tensor.shape, strict=True))
        index = _index(indices)
        if name in graph.private:
            value = tensor.detach()[index].clone()
            made[id(tensor)] = (
                nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
            )
        elif whole and name not in levels:
            made[id(tensor)] = tensor
        else:
            assert isinstance(tensor, nn.Parameter), f"{name}: buffers that carry units are private"
            level = levels[name][index].clone() if name in levels else None
            small = nn.Parameter(tensor.detach()[index], tensor.requires_grad)
            slices.append(Slice(small, tensor, index, level, k))
            small.data = slices[-1].read()
            made[id(tensor)] = small
    for layer in module.modules():
        for store in (layer._parameters, layer._buffers):
            for key, tensor in store.items():
                if tensor is not None:
                    store[key] = made[id(tensor)]
    with evaluating(module):  # a parametrization that is read in training mode moves its buffers
        _set_attributes(graph, module, present, keep)
    return module, slices


def module_of(graph: Graph, model: nn.Module, keep: np.ndarray) -> nn.Module:
    """An independent small module of the units of `model` at which `keep` is True."""
    return own(small_module(graph, model, keep, np.ones_like(keep))[0])


def _kept(graph: Graph, keep: np.ndarray) -> dict[tuple[str, int], np.ndarray]:
    """For every tensor axis that carries units, True at the indices that a subnet keeps."""
    kept: dict[tuple[str, int], np.ndarray] = {}
    sizes = {n: t.shape for n, t in tensors_of(graph.model).items()}
    for group in graph.groups:
        gone = ~keep[group.first_unit : group.first_unit + group.size]
        for axis in group.axes:
            mask = kept.setdefault((axis.tensor, axis.dim), np.ones(sizes[axis.tensor][axis.dim], bool))
            mask[axis.positions[gone]] = False
    return kept


def _index(indices: list[np.ndarray]) -> tuple[Any, ...]:
    """Slices where every dim keeps one range, else index tensors that broadcast to the block."""
    if all(i[-1] - i[0] + 1 == len(i) for i in indices if len(i)):
        return tuple(slice(int(i[0]), int(i[-1]) + 1) if len(i) else slice(0, 0) for i in indices)
    return tuple(torch.from_numpy(i) for i in np.ix_(*indices))


def _set_attributes(graph: Graph, module: nn.Module, had: np.ndarray, keep: np.ndarray) -> None:
    """Channel attributes of the small modules; whatever this misses fails the check of `verify` and is pinned."""
    for path, attribute, units in graph.counts:
        layer = module.get_submodule(path)
        for name in [attribute] if attribute else _COUNTS & vars(layer).keys():
            if getattr(layer, name, None) == had[units].sum():
                setattr(layer, name, int(keep[units].sum()))
    for path, layer in module.named_modules():
        own = _layer_sizes(layer)
        found = _axis_sizes(graph, path, had, keep)
        for name in _SIZES & vars(layer).keys():
            after = found.get(value, set()) if isinstance(value := getattr(layer, name), int) else set()
            setattr(layer, name, own.get(name, next(iter(after)) if len(after) == 1 else value))
        for name in own.keys() - _SIZES:
            setattr(layer, name, own[name])


def _axis_sizes(graph: Graph, path: str, had: np.ndarray, keep: np.ndarray) -> dict[int, set[int]]:
    """Size before → kept sizes of the channel axes of all parameters below a module."""
    found: dict[int, set[int]] = {}
    for name, axes in graph.axes.items():
        if name.startswith(path + "." if path else ""):
            for units in axes:
                if units is not None:
                    found.setdefault(int(had[units].sum()), set()).add(int(keep[units].sum()))
    return found


def _layer_sizes(layer: nn.Module) -> dict[str, Any]:
    """The size attributes of torch's own layers, read off their tensors."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return {}
    shape = tuple(weight.shape)
    match layer:
        case nn.Linear():
            return {"out_features": shape[0], "in_features": shape[1]}
        case nn.modules.conv._ConvNd():
            ends = (shape[0], shape[1] * layer.groups)
            return dict(
                zip(
                    ("in_channels", "out_channels") if layer.transposed else ("out_channels", "in_channels"),
                    ends,
                    strict=True,
                )
            )
        case nn.modules.batchnorm._NormBase():
            return {"num_features": shape[0]}
        case nn.LayerNorm() | nn.RMSNorm():
            return {"normalized_shape": shape}
        case nn.GroupNorm():
            return {"num_channels": shape[0]}
        case nn.Embedding():
            return {"embedding_dim": shape[1]}
        case nn.PReLU():
            return {"num_parameters": shape[0]}
    if {"nf", "nx"} <= vars(layer).keys():  # the transposed linear of GPT-2
        return {"nx": shape[0], "nf": shape[1]}
    return {}
