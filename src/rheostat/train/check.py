"""The check that every subnet passes: it computes what the full model computes with the removed channels at zero."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_leaves, tree_map

from rheostat.spec import Subnet
from rheostat.train.graph import Graph, tensors_of
from rheostat.train.rules import op_name
from rheostat.train.small import small_module

TOLERANCE = 1e-4
"""Largest difference, relative to the largest output, that float32 summation order explains."""


def verify(graph: Graph, subnets: tuple[Subnet, ...], model: nn.Module) -> tuple[Graph, tuple[Subnet, ...]]:
    """Check every subnet against the masked model; pin the groups that make it fail, one by one, until it passes."""
    model = disturbed(model)
    for subnet in subnets:
        while (why := _fault(graph, model, legal(graph, subnet))) is not None:
            culprit = _culprit(graph, model, legal(graph, subnet))
            graph = graph.pin(culprit, why)
    return graph, tuple(legal(graph, s) for s in subnets)


def check_copy(graph: Graph) -> None:
    """Raise ValueError where a copy of the model does not compute with its own tensors, but still with the model's.

    Subnets are copies: they would share nothing, and never learn.
    """
    whole = graph.kept([group.size for group in graph.groups])

    def faithful(model: nn.Module) -> bool:
        return difference(outputs(graph, model), _masked_outputs(graph, model, whole)) <= TOLERANCE

    if faithful(graph.model) and not faithful(disturbed(graph.model)):
        raise ValueError(
            f"Supernet: a copy of {type(graph.model).__name__} computes with tensors of the model it was copied from, "
            "through a lambda, say, that holds on to that; want methods, of which a copy has its own"
        )


def legal(graph: Graph, subnet: Subnet) -> Subnet:
    """The subnet with legal widths; it names units only where they are not the first ones of each group."""
    widths = graph.legal(subnet.widths)
    if subnet.units is None:
        return replace(subnet, widths=widths)
    firsts = tuple(tuple(range(width)) for width in widths)
    units = tuple(
        first if group.pinned or g in graph.chained else named
        for g, (group, first, named) in enumerate(zip(graph.groups, firsts, subnet.units, strict=True))
    )
    return replace(subnet, widths=widths, units=None if units == firsts else units)


def _fault(graph: Graph, model: nn.Module, subnet: Subnet) -> str | None:
    """Why the small module of a subnet does not compute what the masked model does, or None."""
    keep = graph.kept(subnet.widths, subnet.units)
    if keep.all():
        return None
    try:
        got = outputs(graph, small_module(graph, model, keep, np.ones_like(keep))[0])
    except Exception as error:
        return f"its subnet fails: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
    if difference(got, _masked_outputs(graph, model, keep)) > TOLERANCE:
        return "its subnet computes something else than the model with these channels removed"
    return None


def _culprit(graph: Graph, model: nn.Module, subnet: Subnet) -> int:
    """A group without which the subnet would pass: the last of the shortest run of groups that must be whole."""
    cut = [g for g, (w, group) in enumerate(zip(subnet.widths, graph.groups, strict=True)) if w < group.size]

    def passes(count: int) -> bool:
        tried = graph
        for g in cut[:count]:
            tried = tried.pin(g, "tried whole")
        return _fault(tried, model, legal(tried, subnet)) is None

    low, high = 0, len(cut)  # `low` groups whole fail, `high` pass
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return cut[high - 1]


class _Masked(fx.Interpreter):
    """The full model with every removed channel set to zero wherever it appears: what a subnet must compute.

    A norm over removed channels normalises over the kept ones.
    """

    def __init__(self, graph: Graph, keep: np.ndarray) -> None:
        super().__init__(graph.program.graph_module)
        self._graph, self._keep = graph, keep

    def run_node(self, n: fx.Node) -> Any:
        if op_name(n) in ("layer_norm", "rms_norm"):
            result = self._kept_norm(n, -1)
        elif op_name(n) == "group_norm" and n.args[1] == 1:
            result = self._kept_norm(n, 1)
        else:
            result = super().run_node(n)
        if n.op != "call_function" or not isinstance(result, torch.Tensor) or not result.is_floating_point():
            return result
        for axis, dim in enumerate(self._graph.dims[n.name]):
            gone = self._gone(dim, result.device)
            if gone is not None:
                result = result.masked_fill(gone.view([-1] + [1] * (result.dim() - 1 - axis)), 0.0)
        return result

    def _gone(self, dim: np.ndarray | None, device: torch.device) -> torch.Tensor | None:
        if dim is None or self._keep[dim].all():
            return None
        return torch.from_numpy(~self._keep[dim]).to(device)

    def _kept_norm(self, n: fx.Node, axis: int) -> torch.Tensor:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        x, shape, *rest = args
        gone = self._gone(self._graph.dims[n.name][axis], x.device)
        if gone is None:
            return n.target(*args, **kwargs)  # type: ignore[operator]
        index = torch.nonzero(~gone).ravel()
        affine = [t[index] if isinstance(t, torch.Tensor) else t for t in rest]
        kept = n.target(x.index_select(axis, index), [len(index)] if axis == -1 else shape, *affine, **kwargs)  # type: ignore[operator]
        return torch.zeros_like(x).index_copy(axis, index, kept)


def _masked_outputs(graph: Graph, model: nn.Module, keep: np.ndarray) -> list[torch.Tensor]:
    tensors = tensors_of(model)
    given = iter(tree_leaves((graph.args, graph.kwargs)))
    inputs = []
    for spec in graph.program.graph_signature.input_specs:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            assert spec.target is not None
            inputs.append(tensors[spec.target])
        elif spec.kind == InputKind.USER_INPUT:
            inputs.append(next(given))
        else:
            inputs.append(graph.program.constants[spec.target])  # type: ignore[index]
    inputs = [i.clone() if isinstance(i, torch.Tensor) else i for i in inputs]
    with torch.no_grad():
        return _leaves(_Masked(graph, keep).run(*inputs))


def disturbed(model: nn.Module) -> nn.Module:
    """A copy with noise on every parameter: a branch that starts at zero would hide what it computes from a check."""
    probe = copy.deepcopy(model)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in probe.parameters():
            if parameter.is_floating_point():
                spread = float(parameter.std(correction=0)) or 1.0
                parameter.add_(_noise(parameter, random), alpha=0.1 * spread)
    return probe


def disturbed_example(graph: Graph) -> Graph:
    """The graph with noise on a constant example of floats: zeros may stay zeros whatever a model does with them.

    Where the model cannot do with that or makes no finite numbers of it (a root, say), the example is left as it is.
    """
    random = torch.Generator().manual_seed(0)

    def noisy(x: Any) -> Any:
        constant = (
            isinstance(x, torch.Tensor) and x.is_floating_point() and bool((x == x.flatten()[:1]).all())
        )
        return x + _noise(x, random) if constant else x

    args, kwargs = tree_map(noisy, (graph.args, graph.kwargs))
    probe = replace(graph, args=args, kwargs=kwargs)
    try:
        return probe if all(y.isfinite().all() for y in outputs(probe, graph.model)) else graph
    except Exception:  # such as an index below zero
        return graph


def _noise(like: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    return torch.randn(like.shape, generator=random, dtype=torch.float32).to(like)


def outputs(graph: Graph, model: nn.Module) -> list[torch.Tensor]:
    """All tensors that the model returns for the example, in float64."""
    return _leaves(graph.call(model))


def difference(got: list[torch.Tensor], want: list[torch.Tensor]) -> float:
    """Largest difference relative to the largest output; infinite where shapes differ or a NaN is new."""
    if [t.shape for t in got] != [t.shape for t in want]:
        return float("inf")
    worst = 0.0
    for a, b in zip(got, want, strict=True):
        if b.numel() == 0:
            continue
        difference = float((a - b).abs().max() / b.abs().max().clamp(min=1e-12))
        worst = max(worst, difference if difference == difference else float("inf"))
    return worst


def _leaves(output: Any) -> list[torch.Tensor]:
    return [t.detach().double() for t in tree_leaves(output) if isinstance(t, torch.Tensor)]
