"""Which weights each subnet keeps: masks of every granularity, and levels, which are masks that nest."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real

import torch
from torch import Tensor
from torch.nn import functional as F

from rheostat.spec import NM, Block, Channel, Column, Element, Granularity, Kernel, Pattern, Row
from rheostat.train.graph import Graph, check_graph

_T = ((3, 4, 5, 7), (1, 4, 5, 7), (1, 3, 4, 7), (1, 3, 4, 5))
"""The centre of a 3x3 kernel and three of its four neighbours: the Laplacian of Gaussian less one cell (PCONV)."""

_CORNERS = ((4, 5, 7, 8), (3, 4, 6, 7), (1, 2, 4, 5), (0, 1, 3, 4))

_PRESETS = {"pconv": _T, "corner": _CORNERS, "eight": _CORNERS + _T}


# --- masks of one tensor ----------------------------------------------------------------------------------------------


def mask(
    weight: Tensor,
    granularity: Granularity,
    sparsity: float,
    *,
    score: Tensor | None = None,
    balanced: bool = False,
) -> Tensor:
    """True where a weight is kept: bool of the weight's shape, of which `round(sparsity * groups)` groups are dropped.

    Groups with the largest root mean square of their scores stay, the first ones among equals, so that the count is
    exact. A `Pattern` or `NM` keeps the same number in each kernel or run.

    weight: a linear's [out, in] or a convolution's [out, in, ...].
    score: of the weight's shape, 0 or more; None is the magnitude.
    balanced: drop the same number in each filter (elements, kernels) or row of blocks.

    Raises ValueError for a sparsity that keeps nothing, or that the granularity does not have.

    >>> mask(torch.tensor([[4.0, 1.0], [3.0, 2.0]]), Element(), 0.5, balanced=True)
    tensor([[ True, False],
            [ True, False]])
    """
    if not isinstance(granularity, Granularity):
        raise ValueError(f"mask: got granularity {granularity!r}; want one such as Element() or Row()")
    score = weight.detach().abs() if score is None else score
    if score.shape != weight.shape:
        raise ValueError(
            f"mask: got scores of shape {tuple(score.shape)}; want {tuple(weight.shape)}, the weight's"
        )
    return _ranked("mask", score, granularity, (sparsity,), balanced) == 0


def natural(weight: Tensor, num_cells: int, num_patterns: int) -> tuple[tuple[int, ...], ...]:
    """The `num_patterns` sets of cells that most kernels of a convolution have as their `num_cells` largest.

    >>> natural(torch.arange(9.0).view(1, 1, 3, 3), 4, 8)
    ((5, 6, 7, 8),)
    """
    return _sets(_natural(weight.detach().abs().flatten(2).flatten(0, 1), num_cells, num_patterns))


def _ranked(
    where: str, score: Tensor, granularity: Granularity, sparsity: Sequence[float], balanced: bool
) -> Tensor:
    """uint8 of the scores' shape: the index of the first sparsity at which a weight is kept, or their number."""
    table = _units(where, score.shape, granularity, balanced).to(score.device)
    values = _root_mean_squares(where, score, table)
    num_units = values.shape[1]
    kept = [_num_kept(where, s, num_units, granularity) for s in sparsity]
    if isinstance(granularity, NM) and kept[0] != granularity.n:
        raise ValueError(
            f"{where}: got sparsity {sparsity[0]} for {granularity}; want {1 - granularity.n / granularity.m:g}"
        )
    if isinstance(granularity, Pattern) and granularity.patterns not in ("rows", "columns"):
        level = _chained(where, values, granularity, kept, tuple(score.shape[2:]))
    else:
        order = values.argsort(dim=1, descending=True, stable=True)
        of_rank = _bucketize(torch.arange(num_units, device=score.device), kept)
        level = torch.empty_like(order, dtype=torch.uint8).scatter_(1, order, of_rank.expand_as(order))
    return _spread(level, table, score.shape)


def _units(where: str, shape: torch.Size, granularity: Granularity, balanced: bool) -> Tensor:
    """int64 [sets, units, cells]: the flat indices of the weights of every unit; units are compared within their set.

    -1 fills up units that are smaller than others.
    """
    if len(shape) < 2:
        raise ValueError(f"{where}: got shape {tuple(shape)}; want a weight with two dimensions or more")
    kernels = isinstance(granularity, Kernel | Pattern)
    if kernels and len(shape) < 3:
        raise ValueError(
            f"{where}: got shape {tuple(shape)} for {granularity}; want a convolution's weight. Give a mapping of "
            "granularities, or skip this one"
        )
    if balanced and not isinstance(granularity, Element | Kernel | Block):
        raise ValueError(
            f"{where}: got {granularity} to be balanced over filters; want Element, Kernel or Block"
        )
    index = torch.arange(math.prod(shape)).view(shape)
    if isinstance(granularity, Element):
        table = index.flatten(1).unsqueeze(2)
    elif isinstance(granularity, Row):
        table = index.flatten(1).unsqueeze(0)
    elif isinstance(granularity, Column):
        table = index.flatten(1).T.unsqueeze(0)
    elif isinstance(granularity, Channel):
        table = index.transpose(0, 1).flatten(1).unsqueeze(0)
    elif isinstance(granularity, Kernel):
        table = index.flatten(2)
    elif isinstance(granularity, Block):
        table = _tiles(index.flatten(1), granularity)
    elif isinstance(granularity, NM):
        if index.flatten(1).shape[1] % granularity.m:
            raise ValueError(
                f"{where}: got {index.flatten(1).shape[1]} inputs for {granularity}; want a multiple of "
                f"{granularity.m}. Skip this one"
            )
        table = index.reshape(-1, granularity.m, 1)
    elif granularity.patterns in ("rows", "columns"):
        if len(shape) != 4:
            raise ValueError(
                f"{where}: got shape {tuple(shape)} for {granularity}; want [out, in, height, width]"
            )
        table = index.flatten(0, 1)
        table = table if granularity.patterns == "rows" else table.transpose(1, 2)
    else:
        table = index.flatten(2).flatten(0, 1).unsqueeze(2)
    if balanced or isinstance(granularity, Row | Column | Channel | Pattern | NM):
        return table
    return table.flatten(0, 1).unsqueeze(0)


def _tiles(index: Tensor, block: Block) -> Tensor:
    """[rows of tiles, tiles in a row, cells] of a matrix, with -1 where a tile hangs over the edge."""
    rows, columns = index.shape
    index = F.pad(index, (0, -columns % block.columns, 0, -rows % block.rows), value=-1)
    index = index.unflatten(1, (-1, block.columns)).unflatten(0, (-1, block.rows))
    return index.transpose(1, 2).flatten(2)


def _root_mean_squares(where: str, score: Tensor, table: Tensor) -> Tensor:
    """float64 [sets, units]: exactly the score for units of one cell, so that no ties appear that were none."""
    if not bool((score.isfinite() & (score >= 0)).all()):
        raise ValueError(
            f"{where}: got a score that is negative or not finite; want 0 or more for every weight"
        )
    flat = torch.cat([score.detach().flatten().double(), torch.zeros(1, device=score.device).double()])
    if table.shape[2] == 1:
        return flat[table.squeeze(2)]
    return (flat[table].square().sum(2) / (table >= 0).sum(2)).sqrt()


def _num_kept(where: str, sparsity: float, num_units: int, granularity: Granularity) -> int:
    if not 0 <= sparsity < 1:
        raise ValueError(f"{where}: got sparsity {sparsity}; want from 0 to below 1, the fraction removed")
    kept = num_units - round(sparsity * num_units)
    if kept < 1:
        raise ValueError(
            f"{where}: sparsity {sparsity} keeps 0 of {num_units} groups of {granularity}; want at least 1. Lower "
            "sparsity, or skip this one"
        )
    return kept


def _bucketize(values: Tensor, ends: Sequence[int]) -> Tensor:
    """uint8: how many of the ascending ends are not above each value."""
    return torch.bucketize(values, torch.tensor(ends, device=values.device), right=True).to(torch.uint8)


def _spread(level: Tensor, table: Tensor, shape: torch.Size) -> Tensor:
    """A value for each unit, [sets, units], written to all of its cells."""
    flat = torch.empty(math.prod(shape) + 1, dtype=level.dtype, device=level.device)
    flat[table] = level.unsqueeze(2).expand_as(table)  # -1 is the last one, which is cut off
    return flat[:-1].view(shape)


# --- patterns: sets of cells, each inside a larger one ----------------------------------------------------------------


def _chained(
    where: str, values: Tensor, granularity: Pattern, kept: Sequence[int], kernel: tuple[int, ...]
) -> Tensor:
    """The levels [kernels, cells] of the best pattern, then of the best one that holds it, and so on.

    Where no pattern of the next size holds the last one, the kernel's largest remaining cells join it.
    """
    num_cells = values.shape[1]
    squares = values.square()
    level = torch.full_like(values, len(kept), dtype=torch.uint8)
    for k, num_kept in enumerate(kept):
        held = level < k
        best = _largest(squares.masked_fill(held, torch.inf), num_kept)
        patterns = _patterns(where, values, granularity, num_kept, kernel)
        if len(patterns):
            norms = squares @ patterns.T.double()
            fits = (held.double() @ (~patterns).T.double()) == 0
            chosen = patterns[norms.masked_fill(~fits, -1).argmax(1)]
            best = torch.where(fits.any(1, keepdim=True), chosen, best)
        elif k == 0:
            raise ValueError(
                f"{where}: {granularity} has no pattern of {num_kept} cells, which the sparsity leaves of {num_cells}; "
                "want one that the patterns have, such as 5 / 9 for four cells of a 3x3 kernel"
            )
        level[best & ~held] = k
    return level


def _patterns(
    where: str, values: Tensor, granularity: Pattern, num_kept: int, kernel: tuple[int, ...]
) -> Tensor:
    """Bool [patterns, cells]: those of a granularity that keep so many cells."""
    num_cells = values.shape[1]
    if granularity.patterns == "natural":
        return _natural(values, num_kept, granularity.num_patterns)
    if isinstance(granularity.patterns, str):
        if kernel != (3, 3):
            raise ValueError(
                f"{where}: got a kernel of {kernel} for {granularity}; want 3x3. Take 'natural', 'rows' or 'columns'"
            )
        sets = _PRESETS[granularity.patterns]
    else:
        sets = granularity.patterns
        if max(cells[-1] for cells in sets) >= num_cells:
            raise ValueError(
                f"{where}: got a kernel of {num_cells} cells for {granularity}; want cells below that"
            )
    chosen = [cells for cells in sets if len(cells) == num_kept]
    patterns = torch.zeros(len(chosen), num_cells, dtype=torch.bool, device=values.device)
    for row, cells in zip(patterns, chosen, strict=True):
        row[list(cells)] = True
    return patterns


def _natural(values: Tensor, num_cells: int, num_patterns: int) -> Tensor:
    supports, counts = _largest(values, num_cells).unique(dim=0, return_counts=True)
    return supports[counts.argsort(descending=True, stable=True)[:num_patterns]]


def _sets(patterns: Tensor) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row.nonzero().ravel().tolist()) for row in patterns)


def _largest(values: Tensor, count: int) -> Tensor:
    """True at the `count` largest of each row, the first ones among equals."""
    order = values.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, order, True)


# --- masks of a whole model, nested -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Levels:
    """Which subnets keep which weights: for every pruned parameter, by name, a uint8 tensor of its shape.

    Subnet k of `names`, smallest first, keeps the weights of level k or less; level `len(names)` is kept by none. A
    tensor of which the smallest subnet keeps nothing is a ValueError.

    >>> found = Levels(("0.25", "0.5"), {"fc.weight": torch.tensor([[0, 1, 2, 2]], dtype=torch.uint8)})
    >>> found.mask("fc.weight", 1)
    tensor([[ True,  True, False, False]])
    """

    names: tuple[str, ...]
    tensors: dict[str, Tensor]

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) != len(self.names) or len(self.names) > 255:
            raise ValueError(
                f"Levels: got names {self.names}; want 1 to 255 different ones, smallest subnet first"
            )
        if not self.tensors:
            raise ValueError("Levels: got no tensor; want the levels of at least one parameter")
        for name, level in self.tensors.items():
            if level.dtype != torch.uint8:
                raise ValueError(f"Levels: {name}: got {level.dtype}; want torch.uint8")
            if int(level.max()) > len(self.names):
                raise ValueError(
                    f"Levels: {name}: got level {int(level.max())}; want {len(self.names)} or less"
                )
            if not bool((level == 0).any()):
                raise ValueError(
                    f"Levels: {name}: subnet {self.names[0]!r} keeps nothing of it; want at least one weight. Lower "
                    "its sparsity, or leave this parameter out"
                )

    @classmethod
    def from_masks(cls, names: Sequence[str], masks: Sequence[Mapping[str, Tensor]]) -> Levels:
        """The levels of masks made elsewhere, one mapping a subnet, smallest first; ValueError where they do not nest.

        >>> small, large = torch.tensor([[True, False]]), torch.tensor([[True, True]])
        >>> Levels.from_masks(("0.5", "1.0"), [{"fc.weight": small}, {"fc.weight": large}]).tensors
        {'fc.weight': tensor([[0, 1]], dtype=torch.uint8)}
        """
        if len(names) != len(masks) or len({frozenset(m) for m in masks}) != 1:
            raise ValueError(
                f"Levels: got masks of {[sorted(m) for m in masks]} for names {tuple(names)}; want one mapping for "
                "each name, of the same parameters"
            )
        for k, (small, large) in enumerate(pairwise(masks)):
            for name in small:
                if lost := int((small[name] & ~large[name]).sum()):
                    raise ValueError(
                        f"Levels: {name}: subnet {names[k + 1]!r} drops {lost} weights that the smaller {names[k]!r} "
                        "keeps; want masks that nest, smallest first"
                    )
        return cls(
            tuple(names),
            {name: sum((~m[name]).to(torch.uint8) for m in masks) for name in masks[0]},  # pyright: ignore[reportArgumentType]
        )

    def mask(self, name: str, k: int) -> Tensor:
        """True where subnet `k` (negative: from the largest) keeps a weight of the parameter `name`."""
        return self.tensors[name] <= range(len(self.names))[k]

    def sparsity(self, k: int) -> float:
        """The fraction of the pruned parameters' weights that subnet `k` removes."""
        return _sparsity(self.tensors, range(len(self.names))[k])


def _sparsity(tensors: Mapping[str, Tensor], k: int) -> float:
    return sum(int((level > k).sum()) for level in tensors.values()) / sum(
        t.numel() for t in tensors.values()
    )


def levels(
    graph: Graph,
    sparsity: float | Sequence[float] | Mapping[str, float | Sequence[float]],
    granularity: Granularity | Mapping[str, Granularity] = Element(),
    *,
    scores: Mapping[str, Tensor] | None = None,
    allocation: str = "layer",
    floor: float = 0.05,
    skip: Collection[str] = (),
    names: Sequence[str] | None = None,
) -> Levels:
    """One subnet for each sparsity, the sparsest (smallest) first, on one ranking of each parameter's weights.

    Cut at every sparsity, one ranking gives masks that nest. Patterns are chained instead: of the patterns that hold
    the smaller subnet's, the best; where there is none, that one and the largest remaining cells.

    sparsity: fractions removed, descending, such as (0.6, 0.4, 0.2), or one; 0 is dense. A mapping gives each
        parameter its own, and only those are pruned.
    granularity: of all, or a mapping from the parameters to be pruned. Parameters of one dimension are never pruned.
    scores: what ranks the weights, such as `taylor(...)` or `wanda(...)`; None is the magnitude.
    allocation: "layer" removes the same fraction of every parameter's groups; "balanced" of every filter's, too;
        "global" ranks all parameters together by score over the parameter's mean score, removes that fraction of their
        weights, and leaves each parameter the fraction `floor` of its groups, at least one.
    skip: names of parameters to leave whole.
    names: of the subnets; by default the fraction kept.

    Raises ValueError for what does not fit the graph, for a sparsity outside [0, 1) and for a parameter left empty.

    >>> found = levels(graph, (0.75, 0.5), skip=("2.weight",))
    >>> found.names, [int(found.mask("0.weight", k).sum()) for k in range(2)]
    (('0.25', '0.5'), [8, 16])
    """
    if allocation not in ("layer", "balanced", "global"):
        raise ValueError(f"levels: got allocation={allocation!r}; want 'layer', 'balanced' or 'global'")
    plan = planned("levels", graph, sparsity, granularity, skip)
    scores = magnitude(graph) if scores is None else scores
    for name in plan:
        want = tuple(graph.model.get_parameter(name).shape)
        if name not in scores or scores[name].shape != want:
            got = f"scores of shape {tuple(scores[name].shape)}" if name in scores else "no score"
            raise ValueError(f"levels: {name}: got {got} for it; want {want}, or skip this parameter")
    if allocation == "global":
        if isinstance(sparsity, Mapping):
            raise ValueError(
                "levels: got sparsity of each parameter with allocation='global'; want one for all"
            )
        tensors = _globally(plan, scores, floor)
    else:
        tensors = {
            name: cut.levels(f"levels: {name}", scores[name], allocation == "balanced")
            for name, cut in plan.items()
        }
    cuts = next(iter(plan.values())).sparsity
    if names is None:
        own = isinstance(sparsity, Mapping)
        found = [_sparsity(tensors, k) for k in range(len(cuts))] if own else cuts
        names = [str(round(1.0 - fraction, 4)) for fraction in found]
    if len(names) != len(cuts):
        raise ValueError(f"levels: got names={tuple(names)} for {len(cuts)} sparsities; want one for each")
    return Levels(tuple(names), tensors)


def magnitude(graph: Graph) -> dict[str, Tensor]:
    """`|w|` for every parameter of two dimensions or more, norms apart.

    >>> magnitude(graph)["0.weight"].shape
    torch.Size([8, 4])
    """
    return {name: weight.detach().abs() for name, weight in prunable(graph).items()}


def prunable(graph: Graph) -> dict[str, Tensor]:
    """The parameters of two dimensions or more, norms apart."""
    check_graph("pruning", graph)
    return {
        name: parameter
        for name, parameter in graph.model.named_parameters()
        if parameter.dim() > 1 and parameter.is_floating_point() and name not in graph.private
    }


@dataclass(frozen=True)
class Cut:
    """How one parameter is pruned: in which groups, at which sparsities, and along which dim its filters lie."""

    granularity: Granularity
    sparsity: tuple[float, ...]
    filter_dim: int

    def levels(self, where: str, score: Tensor, balanced: bool) -> Tensor:
        """The levels, of the shape of the scores; the groups are those of a weight whose filters come first."""
        level = _ranked(where, score.movedim(self.filter_dim, 0), self.granularity, self.sparsity, balanced)
        return level.movedim(0, self.filter_dim).contiguous()


def planned(
    where: str,
    graph: Graph,
    sparsity: float | Sequence[float] | Mapping[str, float | Sequence[float]],
    granularity: Granularity | Mapping[str, Granularity],
    skip: Collection[str],
) -> dict[str, Cut]:
    """How every parameter is pruned that is to be, checked, in the order of the model."""
    candidates = prunable(graph)
    mappings = [set(given) for given in (sparsity, granularity) if isinstance(given, Mapping)]
    for given, known in (
        *((names, candidates.keys()) for names in mappings),
        (set(skip), dict(graph.model.named_parameters()).keys()),
    ):
        if unknown := given - known:
            raise ValueError(
                f"{where}: got the parameter {min(unknown)!r}; want names of this model's weights: "
                f"{', '.join(candidates)}"
            )
    if len(mappings) == 2 and mappings[0] != mappings[1]:
        raise ValueError(
            f"{where}: {min(mappings[0] ^ mappings[1])}: got a sparsity or a granularity for it, not both; want both"
        )
    dims = graph.filter_dims()
    plan: dict[str, Cut] = {}
    for name in candidates:
        if name in skip or (mappings and name not in mappings[0]):
            continue
        own = granularity[name] if isinstance(granularity, Mapping) else granularity
        cut = sparsity[name] if isinstance(sparsity, Mapping) else sparsity
        cuts = tuple(cut) if isinstance(cut, Iterable) else (cut,)
        if not isinstance(own, Granularity):
            raise ValueError(f"{where}: {name}: got granularity {own!r}; want one such as Element() or Row()")
        fractions = all(isinstance(s, Real) and 0 <= s < 1 for s in cuts)
        if not cuts or not fractions or any(a <= b for a, b in pairwise(cuts)):
            raise ValueError(
                f"{where}: {name}: got sparsity {cuts}; want fractions from 0 to below 1, descending, like (0.6, 0.4)"
            )
        plan[name] = Cut(own, cuts, dims.get(name, 0))
    if not plan:
        raise ValueError(f"{where}: nothing is left to prune; want at least one parameter. Shorten skip=")
    if len({len(cut.sparsity) for cut in plan.values()}) > 1:
        raise ValueError(
            f"{where}: got parameters with different numbers of sparsities; want one for each subnet"
        )
    return plan


def _globally(plan: Mapping[str, Cut], scores: Mapping[str, Tensor], floor: float) -> dict[str, Tensor]:
    """Levels on one ranking of the groups of all parameters."""
    if not 0 <= floor <= 1:
        raise ValueError(f"levels: got floor={floor}; want 0 to 1, the fraction that each parameter keeps")
    tables, values, sizes, num_floor = {}, [], [], 0
    for name, cut in plan.items():
        where, score = f"levels: {name}", scores[name].movedim(cut.filter_dim, 0)
        if isinstance(cut.granularity, Pattern | NM):
            raise ValueError(
                f"{where}: got {cut.granularity} with allocation='global'; want 'layer': it keeps the same everywhere"
            )
        table = _units(where, score.shape, cut.granularity, False).to(score.device)
        value = _root_mean_squares(where, score, table)
        size = (table[0] >= 0).sum(1)
        spared = _largest(value, max(1, math.ceil(floor * len(size))))[0]
        num_floor += int(size[spared].sum())
        value = value[0] / value.mean().clamp(min=torch.finfo(torch.float64).tiny)
        tables[name] = table, score.shape
        values.append(value.masked_fill(spared, torch.inf))
        sizes.append(size)
    order = torch.cat(values).argsort(descending=True, stable=True)
    size = torch.cat(sizes)[order]
    num_weights = int(size.sum())
    kept = [num_weights - round(s * num_weights) for s in next(iter(plan.values())).sparsity]
    if num_floor > kept[0]:
        raise ValueError(
            f"levels: floor={floor} keeps {num_floor} weights, the sparsest subnet {kept[0]} of {num_weights}; want at "
            "least as many. Lower floor or sparsity"
        )
    level = torch.empty_like(order, dtype=torch.uint8)
    level[order] = _bucketize(size.cumsum(0) - size, kept)
    parts = level.split([len(value) for value in values])
    return {
        name: _spread(part.unsqueeze(0), *tables[name]).movedim(0, cut.filter_dim).contiguous()
        for (name, cut), part in zip(plan.items(), parts, strict=True)
    }


def cubic(step: int, num_steps: int, start: float, end: float) -> float:
    """The sparsity at a step of gradual pruning: from `start` to `end`, fast at first (Zhu & Gupta 2017, eq. 1).

    >>> [round(cubic(step, 4, 0.0, 0.8), 3) for step in range(5)]
    [0.0, 0.463, 0.7, 0.788, 0.8]
    """
    left = (1 - min(max(step / num_steps, 0.0), 1.0)) ** 3
    return left * start + (1 - left) * end
