"""Sort the units of every channel group by importance, so that each subnet is a prefix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from rheostat.spec import Subnet
from rheostat.train.check import TOLERANCE, difference, disturbed, legal, outputs
from rheostat.train.graph import Graph, tensors_of


def sort(
    graph: Graph,
    model: nn.Module,
    importance: str,
    subnets: Sequence[Subnet],
    levels: Mapping[str, torch.Tensor] | None = None,
) -> tuple[Graph, tuple[Subnet, ...]]:
    """Order the units of every group in place, in `levels` too, and name the subnets' units in the new order.

    A group whose order matters to the model is pinned.
    """
    tensors, probe = tensors_of(model), disturbed(model)
    orders = _orders(graph, tensors, importance, subnets)
    probed = tensors_of(probe)
    want = outputs(graph, probe)
    for g, order in enumerate(orders):
        _permute_(graph, g, probed, order)
    if difference(outputs(graph, probe), want) > TOLERANCE:
        for g, order in enumerate(orders):
            _permute_(graph, g, probed, np.argsort(order))
        for g, order in enumerate(orders):
            if graph.groups[g].pinned or graph.groups[g].extends is not None:
                orders[g] = np.arange(graph.groups[g].size)
                continue
            _permute_(graph, g, probed, order)
            if difference(outputs(graph, probe), want) > TOLERANCE:
                _permute_(graph, g, probed, np.argsort(order))
                orders[g] = np.arange(graph.groups[g].size)
                graph = graph.pin(g, "the order of its channels matters to the model")
    for g, order in enumerate(orders):
        _permute_(graph, g, tensors, order)
        _permute_(graph, g, levels or {}, order)
    places = [np.argsort(order) for order in orders]
    moved = (
        s
        if s.units is None
        else replace(s, units=tuple(_ascending(p[list(u)]) for p, u in zip(places, s.units, strict=True)))
        for s in subnets
    )
    return graph, tuple(legal(graph, s) for s in moved)


def _orders(
    graph: Graph, tensors: dict[str, torch.Tensor], importance: str, subnets: Sequence[Subnet]
) -> list[np.ndarray]:
    """The new order of each group's units: by the smallest subnet that names the unit, then the most important first.

    Extending groups follow the one that they extend.
    """
    scores = [_scores(graph, g, tensors, importance) for g in range(len(graph.groups))]
    levels = [np.zeros(g.size, np.int64) for g in graph.groups]
    if any(s.units is not None for s in subnets):
        levels = [np.full(g.size, len(subnets)) for g in graph.groups]
        for k, subnet in reversed(list(enumerate(subnets))):
            for level, units in zip(levels, subnet.units or (), strict=subnet.units is not None):
                level[list(units)] = k
    children = {g.extends: i for i, g in enumerate(graph.groups) if g.extends is not None}
    orders: list[np.ndarray] = [np.arange(g.size) for g in graph.groups]
    for g, group in enumerate(graph.groups):
        if group.pinned or group.extends is not None:
            continue
        chain = [g]
        while chain[-1] in children:
            chain.append(children[chain[-1]])
        if any(graph.groups[c].pinned for c in chain):
            continue
        start = 0
        head = np.zeros(0, np.int64)
        for c in chain:  # units that several groups of the chain share count with all their norms
            size = graph.groups[c].size
            sharing = [d for d in chain if graph.groups[d].size >= size]
            score = np.asarray(sum(scores[d][start:size] for d in sharing))
            keys = (-score, *(levels[d][start:size] for d in reversed(sharing)))
            head = np.concatenate([head, start + np.lexsort(keys)])
            orders[c], start = head, size
    return orders


def _scores(graph: Graph, group: int, tensors: dict[str, torch.Tensor], importance: str) -> np.ndarray:
    """L1 or L2 norm of every unit over all the weights that it owns, those of coupled layers together."""
    total = torch.zeros(graph.groups[group].size, dtype=torch.float64)
    for axis in graph.groups[group].axes:
        tensor = tensors[axis.tensor]
        if tensor.dim() < 2 or axis.tensor in graph.private or not tensor.is_floating_point():
            continue
        rows = tensor.detach().double().movedim(axis.dim, 0).flatten(1)
        norm = (rows.abs() if importance == "l1" else rows.square()).sum(1).cpu()
        total += norm[torch.from_numpy(axis.positions)].sum(1)
    return total.numpy()


def _permute_(graph: Graph, group: int, tensors: Mapping[str, torch.Tensor], order: np.ndarray) -> None:
    done: set[tuple[int, int]] = set()
    for axis in graph.groups[group].axes:
        if (tensor := tensors.get(axis.tensor)) is None:
            continue
        index = np.arange(tensor.shape[axis.dim])
        index[axis.positions.ravel()] = axis.positions[order].ravel()
        if (tensor.data_ptr(), axis.dim) not in done and not (order == np.arange(len(order))).all():
            done.add((tensor.data_ptr(), axis.dim))
            with torch.no_grad():
                tensor.copy_(tensor.index_select(axis.dim, torch.from_numpy(index).to(tensor.device)))


def _ascending(units: np.ndarray) -> tuple[int, ...]:
    return tuple(sorted(units.tolist()))
