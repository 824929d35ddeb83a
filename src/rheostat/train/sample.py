"""Choosing subnets: which widths each operating point has, and making a family nest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np

from rheostat.spec import Cost, Subnet
from rheostat.train.graph import Graph, check_graph


def uniform(
    graph: Graph, widths: Sequence[float] = (0.25, 0.5, 0.75, 1.0), round_to: int = 1
) -> tuple[Subnet, ...]:
    """The same fraction of every channel group, one subnet a width, smallest first (dynamic paper, equation 1).

    A group keeps `round(width * size)` units, rounded to a multiple of `round_to`, at least one; pinned groups stay
    whole. Raises ValueError for widths outside (0, 1] or given twice.

    >>> graph = trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 4))
    >>> [(s.name, s.widths[0]) for s in uniform(graph, (0.25, 1.0))]
    [('0.25', 2), ('1.0', 8)]
    """
    check_graph("uniform", graph)
    if isinstance(widths, Real):
        raise ValueError(f"uniform: widths={widths}; want several, such as (0.5, 1.0)")
    if not len(widths) or any(not 0 < w <= 1 for w in widths) or len(set(widths)) != len(widths):
        raise ValueError(
            f"uniform: widths={tuple(widths)}; want different fractions above 0 and at most 1, such as (0.5, 1.0)"
        )
    if round_to < 1:
        raise ValueError(f"uniform: round_to={round_to}; want a positive number of units")
    return tuple(
        Subnet(
            str(float(width)),
            tuple(g.size if g.pinned else _rounded(width * g.size, g.size, round_to) for g in graph.groups),
        )
        for width in sorted(widths)
    )


def _rounded(units: float, size: int, round_to: int) -> int:
    multiple = int(units / round_to + 0.5) * round_to
    return min(size, max(multiple, min(round_to, size)))


@dataclass(frozen=True)
class Nested:
    """A family repaired by `nest`: its subnets, the units that each gained and lost, its costs before and after."""

    subnets: tuple[Subnet, ...]
    added: tuple[int, ...]
    removed: tuple[int, ...]
    before: tuple[Cost, ...]
    after: tuple[Cost, ...]


def nest(graph: Graph, subnets: Sequence[Subnet], by: str = "union") -> Nested:
    """Change subnets that name their units as little as it takes for each to hold all smaller ones, smallest first.

    by: "union" gives a subnet whatever a smaller one has, so that nothing is lost and subnets grow; "votes" leaves
        every width as it is (at least the smaller one's) and fills it with the units that most subnets keep, those
        of the smaller subnets first among equals. Groups of a zero-padding chain keep their counts in either case.

    A family that nests comes back as it is. Raises ValueError for no subnets, and for one without units that is
    not whole.

    >>> graph = trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 4))
    >>> free = [Subnet("a", (2, 2), ((0, 5), (0, 1))), Subnet("b", (3, 2), ((0, 1, 2), (0, 1)))]
    >>> nested = nest(graph, free)
    >>> nested.subnets[1].units[0], nested.added
    ((0, 1, 2, 5), (0, 1))
    """
    check_graph("nest", graph)
    if by not in ("union", "votes"):
        raise ValueError(f"nest: got by={by!r}; want 'union' or 'votes'")
    if not subnets:
        raise ValueError("nest: got no subnets; want at least one")
    sizes = tuple(g.size for g in graph.groups)
    for subnet in subnets:
        if subnet.units is None and subnet.widths != sizes:
            raise ValueError(f"nest: subnet {subnet.name!r} names no units; want units=, or the whole model")
        for group, units in zip(graph.groups, subnet.units or (), strict=False):
            if any(not 0 <= unit < group.size for unit in units):
                raise ValueError(
                    f"nest: {group.name}: subnet {subnet.name!r} names units {units}; want them from 0 to "
                    f"{group.size - 1}"
                )
    before = [graph.kept(s.widths, s.units) for s in subnets]
    votes = np.sum(before, 0)
    order = np.lexsort([*(~keep for keep in reversed(before)), -votes])  # the last key counts first
    after, held = [], np.zeros_like(before[0])
    for keep in before:
        chosen = np.zeros_like(keep)
        for group in graph.groups:
            own = slice(group.first_unit, group.first_unit + group.size)
            if by == "union":
                chosen[own] = keep[own] | held[own]
            else:
                ranked = order[(order >= own.start) & (order < own.stop)]
                chosen[ranked[: max(keep[own].sum(), held[own].sum())]] = True
        chosen[-1] = True
        after.append(held := chosen)
    nested = tuple(subnet_of(graph, s.name, keep) for s, keep in zip(subnets, after, strict=True))
    return Nested(
        nested,
        tuple(int((b & ~a).sum()) for a, b in zip(before, after, strict=True)),
        tuple(int((a & ~b).sum()) for a, b in zip(before, after, strict=True)),
        tuple(graph.cost(graph.legal(s.widths)) for s in subnets),
        tuple(graph.cost(graph.legal(s.widths)) for s in nested),
    )


def subnet_of(graph: Graph, name: str, keep: np.ndarray) -> Subnet:
    """The subnet that keeps the global units at which `keep` is True."""
    kept = (keep[g.first_unit : g.first_unit + g.size] for g in graph.groups)
    units = tuple(tuple(np.flatnonzero(k).tolist()) for k in kept)
    return Subnet(name, tuple(map(len, units)), units)
