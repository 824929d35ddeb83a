"""Choosing subnets: which widths each operating point has."""

from __future__ import annotations

from collections.abc import Sequence

from rheostat.spec import Subnet
from rheostat.train.graph import Graph


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
    if not widths or any(not 0 < w <= 1 for w in widths) or len(set(widths)) != len(widths):
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
