"""One set of weights, many ordinary small modules that alias it."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from rheostat import artifact
from rheostat.spec import ArtifactError, Cost, Subnet, SubnetInfo
from rheostat.train.graph import Graph, trace
from rheostat.train.rules import op_name

_TOLERANCE = 1e-4
"""Largest difference, relative to the largest output, that float32 summation order explains."""

COUNTER = "num_batches_tracked"
"""A batch norm's count of training steps: it says nothing about the network, and artifacts leave it out."""

_MEASURED = ("accuracy", "latency_ms_p50", "latency_ms_p95")

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
class _Slice:
    """How a subnet's parameter is made from the shared one: by a range of every dim, or gathered by index tensors."""

    small: nn.Parameter
    shared: nn.Parameter
    index: tuple[Any, ...]
    gathered: bool


class Supernet(nn.Module):
    """Nested subnets of one model on one set of weights.

    `net[k]` (or `net["0.5"]`) is an ordinary module of the small shapes whose parameters alias the shared tensors;
    `net[-1]` is the largest. Norms are private to each subnet. Channels are sorted by the `importance` ("l2" or "l1"
    norm of a unit over all its weights) so that every subnet is a prefix; where subnets name their units, by the
    smallest subnet that keeps the unit first. Named units that do not nest are gathered: trainable, at the price of
    copies (`net.gathered_bytes`), but not to be saved (see `nest`). Construction checks every subnet on the
    example against the full model under masks; a group whose removal does not give the same function is pinned with the
    reason (`net.graph`). Raises ValueError for widths that do not nest, subnets that do not fit the graph, or a largest
    one that does not hold all the others.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> net = Supernet(graph := trace(model, torch.randn(1, 4)), uniform(graph, (0.5, 1.0)))
    >>> net["0.5"][0].weight.shape
    torch.Size([4, 4])
    """

    def __init__(self, graph: Graph, subnets: Sequence[Subnet], importance: str = "l2") -> None:
        super().__init__()
        if importance not in ("l1", "l2"):
            raise ValueError(f"Supernet: importance={importance!r}; want 'l1' or 'l2'")
        _validate(graph, subnets)
        full = copy.deepcopy(graph.model)
        self.graph, self.subnets = _verify(*_sort(graph, full, importance, subnets), full)
        keeps = [self.graph.kept(s.widths, s.units) for s in self.subnets]
        _check_order(self.subnets, keeps)
        self.shared = full
        if not keeps[-1].all():
            self.shared = _own(_small(self.graph, full, keeps[-1], np.ones_like(keeps[-1]))[0])
        small = [_small(self.graph, self.shared, keep, keeps[-1]) for keep in keeps[:-1]]
        self._smaller = [
            module for module, _ in small
        ]  # a plain list: their parameters are not the optimizer's
        self._slices = [s for _, slices in small for s in slices]
        self.active = len(self.subnets) - 1
        self._measured: dict[int, dict[str, float]] = {}
        self._costs: dict[int, Cost] = {}

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: nn.Module,
        example: torch.Tensor | tuple[Any, ...] | None = None,
    ) -> Supernet:
        """The supernet of an artifact, back in training: `model` is any instance of the class that was saved.

        Without an `example` the model is traced on zeros of the saved input's shape, which suits one float tensor.
        Raises ArtifactError where the file is not whole, ValueError where the model is another one than was saved.

        >>> net = Supernet.load("resnet20.safetensors", resnet20())  # doctest: +SKIP
        """
        program, tensors = artifact.read(path)
        if program.quant is not None:
            raise ArtifactError(
                f"{path}: holds integers for the engine; load the float artifact it was made from"
            )
        try:
            graph = trace(model, torch.zeros(2, *program.input.shape) if example is None else example)
        except ValueError as error:
            if example is not None:
                raise
            raise ValueError(
                f"{path}: zeros of {program.input.shape} do not do, for want of an example=: {error}"
            ) from error
        saved = [(g.name, g.size) for g in program.groups]
        if (found := [(g.name, g.size) for g in graph.groups]) != saved:
            got, want = next((a, b) for a, b in zip_longest(found, saved) if a != b)
            raise ValueError(
                f"{path}: got a model with channel group {got}; want {want}, the class that was saved"
            )
        for i, group in enumerate(program.groups):
            if group.pinned is not None:
                graph = graph.pin(i, group.pinned)
        subnets = [
            Subnet(info.name, tuple(g.widths[k] for g in program.groups))
            for k, info in enumerate(program.subnets)
        ]
        net = cls(graph, subnets)
        state = {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}
        state |= {other: state[stored] for other, stored in program.aliases.items()}
        counters = {n: t for n, t in net.state_dict().items() if n.partition("@")[0].endswith(COUNTER)}
        net.load_state_dict(counters | state)
        for k, info in enumerate(program.subnets):
            net.record(k, **{n: m for n in _MEASURED if (m := getattr(info, n)) is not None})
        return net

    # --- subnets as modules -------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.subnets)

    def index(self, key: int | str) -> int:
        """The index of a subnet given by index (negative from the largest) or name."""
        if isinstance(key, str):
            if key not in self.names:
                raise ValueError(f"Supernet: no subnet {key!r}; want one of {', '.join(self.names)}")
            return self.names.index(key)
        if not -len(self) <= key < len(self):
            raise ValueError(
                f"Supernet: subnet {key}; want an index below {len(self)} or one of {', '.join(self.names)}"
            )
        return key % len(self)

    def __len__(self) -> int:
        return len(self.subnets)

    def __getitem__(self, key: int | str) -> nn.Module:
        k = self.index(key)
        return self.shared if k == len(self) - 1 else self._smaller[k]

    def __iter__(self) -> Iterator[nn.Module]:
        return (self[k] for k in range(len(self)))

    def select(self, key: int | str) -> None:
        """Make a subnet the one that `net(x)` runs."""
        self.active = self.index(key)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self[self.active](*args, **kwargs)

    def extract(self, key: int | str) -> nn.Module:
        """An independent copy of a subnet: its own contiguous tensors, the model's own class and keys.

        >>> net.extract("0.5")[0].weight.shape
        torch.Size([4, 4])
        """
        self.refresh_()
        return _own(self[key])

    # --- the protocol of a training step ------------------------------------------------------------------------------

    def attach_grads_(self) -> None:
        """Zero all gradients and make those of the aliases views of the shared ones, so that backward accumulates."""
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            if grads := [p.grad for p in self.parameters() if p.grad is not None]:
                torch._foreach_zero_(grads)  # pyright: ignore[reportPrivateImportUsage]
            for s in self._slices:
                if s.gathered:
                    s.small.grad = None
                elif (grad := s.shared.grad) is not None and (
                    s.small.grad is None or not _same(s.small.grad, grad)
                ):
                    s.small.grad = grad[s.index]

    def collect_grads_(self) -> None:
        """Add the gradients of gathered tensors to the shared ones (aliases have done so already)."""
        for s in self._slices:
            if s.gathered and s.small.grad is not None:
                assert s.shared.grad is not None
                s.shared.grad.index_put_(s.index, s.small.grad, accumulate=True)
                s.small.grad = None

    @torch.no_grad()
    def refresh_(self) -> None:
        """Copy the shared values into gathered tensors after the shared ones have changed."""
        for s in self._slices:
            if s.gathered:
                s.small.copy_(s.shared[s.index])

    @property
    def nested(self) -> bool:
        """Every subnet is a prefix of each group, as the artifact and the engine want it."""
        return all(s.units is None for s in self.subnets)

    @property
    def gathered_bytes(self) -> int:
        """Bytes of the copies that subnets need where their channels are not one range of the shared tensor."""
        return sum(s.small.numel() * s.small.element_size() for s in self._slices if s.gathered)

    # --- tensors by name ----------------------------------------------------------------------------------------------

    def _private(
        self, tensors: Callable[[nn.Module], Iterable[tuple[str, Any]]]
    ) -> Iterator[tuple[str, Any]]:
        for k, module in enumerate(self._smaller):
            yield from ((f"{name}@{k}", t) for name, t in tensors(module) if name in self.graph.private)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Shared parameters under the model's own names, then the private ones of smaller subnets as `name@k`."""
        assert recurse, "the parameters of a supernet are all below it"
        prefix = prefix + "." if prefix else ""
        shared = self.shared.named_parameters(remove_duplicate=remove_duplicate)
        for name, parameter in (*shared, *self._private(nn.Module.named_parameters)):
            yield prefix + name, parameter

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Shared buffers under the model's own names, then the private ones of smaller subnets as `name@k`."""
        assert recurse, "the buffers of a supernet are all below it"
        prefix = prefix + "." if prefix else ""
        shared = self.shared.named_buffers(remove_duplicate=remove_duplicate)
        for name, buffer in (*shared, *self._private(nn.Module.named_buffers)):
            yield prefix + name, buffer

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """All tensors: plain names hold the largest subnet, `name@k` the private norms of subnet k."""
        return dict(self.shared.state_dict(*args, **kwargs)) | dict(
            self._private(lambda m: m.state_dict().items())
        )

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True, assign: bool = False) -> None:  # type: ignore[override]
        """Copy tensors of `state_dict()` back in place; a missing, surplus or misshapen one is a ValueError."""
        if assign:
            raise ValueError(
                "Supernet.load_state_dict: assign=True would break the aliases; want assign=False"
            )
        own = self.state_dict()
        wrong = sorted(own.keys() ^ state_dict.keys()) if strict else []
        wrong += [n for n in own.keys() & state_dict.keys() if own[n].shape != state_dict[n].shape]
        if wrong:
            raise ValueError(
                f"Supernet.load_state_dict: {len(wrong)} tensors are missing, surplus or of another shape, first "
                f"{wrong[0]}; want the state of a supernet with the same subnets"
            )
        with torch.no_grad():
            for name in own.keys() & state_dict.keys():
                own[name].copy_(state_dict[name])
        self.refresh_()

    def requires_grad_(self, requires_grad: bool = True) -> Supernet:
        super().requires_grad_(requires_grad)
        for module in self._smaller:
            module.requires_grad_(requires_grad)
        return self

    def train(self, mode: bool = True) -> Supernet:
        super().train(mode)
        for module in self._smaller:
            module.train(mode)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Supernet:
        super()._apply(fn, recurse)
        for module in self._smaller:
            module._apply(fn)
        self._alias_()
        return self

    def _alias_(self) -> None:
        for s in self._slices:
            s.small.data = s.shared.data[s.index]
            s.small.grad = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Supernet:
        memo[id(self.graph)] = self.graph
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        new._alias_()
        return new

    # --- what the subnets cost ----------------------------------------------------------------------------------------

    def cost(self, key: int | str) -> Cost:
        """Parameters, multiply-accumulates of one sample and float bytes of a subnet."""
        k = self.index(key)
        if k not in self._costs:
            module = self.extract(k).requires_grad_(False)
            counter = FlopCounterMode(display=False)
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), counter:
                self.graph.call(module)
            leaves = [
                t for t in tree_leaves((self.graph.args, self.graph.kwargs)) if isinstance(t, torch.Tensor)
            ]
            parameters = sum(p.numel() for p in module.parameters())
            tensors = (t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point())
            size = sum(t.numel() * t.element_size() for t in tensors)
            self._costs[k] = Cost(parameters, counter.get_total_flops() // 2 // len(leaves[0]), size)
        return self._costs[k]

    def record(self, key: int | str, **measured: float) -> None:
        """Keep measured numbers (`accuracy` 0..1, `latency_ms_p50`, `latency_ms_p95`) for the artifact."""
        unknown = measured.keys() - set(_MEASURED)
        if unknown:
            raise ValueError(
                f"Supernet.record: got {sorted(unknown)}; want accuracy, latency_ms_p50 or latency_ms_p95"
            )
        self._measured.setdefault(self.index(key), {}).update(measured)

    @property
    def infos(self) -> tuple[SubnetInfo, ...]:
        """What `save` writes of each subnet."""
        costs = [self.cost(k) for k in range(len(self))]
        return tuple(
            SubnetInfo(s.name, c.parameters, c.macs, c.size_bytes, **self._measured.get(k, {}))
            for k, (s, c) in enumerate(zip(self.subnets, costs, strict=True))
        )


def _validate(graph: Graph, subnets: Sequence[Subnet]) -> None:
    if not subnets:
        raise ValueError("Supernet: no subnets; want at least one, such as uniform(graph, (0.5, 1.0))")
    names = [s.name for s in subnets]
    if len(set(names)) != len(names):
        raise ValueError(f"Supernet: subnet names {names} repeat; want different names")
    smaller: tuple[int, ...] = (0,) * len(graph.groups)
    for subnet in subnets:
        _validate_units(graph, subnet)
        if len(subnet.widths) != len(graph.groups):
            raise ValueError(
                f"Supernet: subnet {subnet.name!r} has {len(subnet.widths)} widths; want one for each of the "
                f"{len(graph.groups)} groups of this graph"
            )
        for group, width, below in zip(graph.groups, subnet.widths, smaller, strict=True):
            where = f"{group.name}: subnet {subnet.name!r} keeps {width} of {group.size} units"
            if not 1 <= width <= group.size:
                raise ValueError(f"{where}; a subnet keeps at least 1 and at most {group.size}")
            if width < below and subnet.units is None:
                raise ValueError(
                    f"{where}, the smaller one before it {below}; want nested subnets, smallest first"
                )
            if group.pinned and width != group.size:
                raise ValueError(f"{where}, but it is pinned ({group.pinned}); want it whole")
            if group.extends is not None and width < subnet.widths[group.extends] and subnet.units is None:
                padded = graph.groups[group.extends].name
                raise ValueError(
                    f"{where}, fewer than {padded}, which is padded to it, keeps; want at least as many"
                )
        smaller = smaller if subnet.units else subnet.widths


def _validate_units(graph: Graph, subnet: Subnet) -> None:
    if subnet.units is None:
        return
    if len(subnet.units) != len(graph.groups) or tuple(map(len, subnet.units)) != tuple(subnet.widths):
        raise ValueError(
            f"Supernet: subnet {subnet.name!r}: units name {tuple(map(len, subnet.units))} units; want as many as its "
            f"widths {subnet.widths}"
        )
    for group, units in zip(graph.groups, subnet.units, strict=True):
        if list(units) != sorted(set(units)) or any(not 0 <= u < group.size for u in units):
            raise ValueError(
                f"{group.name}: subnet {subnet.name!r} names units {units}; want different ones, ascending, from 0 to "
                f"{group.size - 1}"
            )


def _check_order(subnets: tuple[Subnet, ...], keeps: list[np.ndarray]) -> None:
    """Sorted subnets: the last holds all others, and none is inside one before it."""
    for k, (subnet, keep) in enumerate(zip(subnets, keeps, strict=True)):
        if (keep & ~keeps[-1]).any():
            raise ValueError(
                f"Supernet: subnet {subnet.name!r} keeps units that the last one, {subnets[-1].name!r}, does not; want "
                "the largest subnet last, to hold the shared weights of all"
            )
        for before, held in zip(subnets[:k], keeps[:k], strict=True):
            shrinks = any(a > b for a, b in zip(before.widths, subnet.widths, strict=True))
            if shrinks and ((subnet.units is None and before.units is None) or not (keep & ~held).any()):
                raise ValueError(
                    f"Supernet: subnet {subnet.name!r} is narrower than {before.name!r} before it; want nested subnets,"
                    " smallest first"
                )


# --- sorting ----------------------------------------------------------------------------------------------------------


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )


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


def _sort(
    graph: Graph, model: nn.Module, importance: str, subnets: Sequence[Subnet]
) -> tuple[Graph, tuple[Subnet, ...]]:
    """Order the units of every group in place, and name the subnets' units in the new order.

    A group whose order matters to the model is pinned.
    """
    tensors, probe = _tensors(model), _disturbed(model)
    orders = _orders(graph, tensors, importance, subnets)
    probed = _tensors(probe)
    want = _outputs(graph, probe)
    for g, order in enumerate(orders):
        _permute_(graph, g, probed, order)
    if _difference(_outputs(graph, probe), want) > _TOLERANCE:
        for g, order in enumerate(orders):
            _permute_(graph, g, probed, np.argsort(order))
        for g, order in enumerate(orders):
            if graph.groups[g].pinned or graph.groups[g].extends is not None:
                orders[g] = np.arange(graph.groups[g].size)
                continue
            _permute_(graph, g, probed, order)
            if _difference(_outputs(graph, probe), want) > _TOLERANCE:
                _permute_(graph, g, probed, np.argsort(order))
                orders[g] = np.arange(graph.groups[g].size)
                graph = graph.pin(g, "the order of its channels matters to the model")
    for g, order in enumerate(orders):
        _permute_(graph, g, tensors, order)
    places = [np.argsort(order) for order in orders]
    moved = (
        s
        if s.units is None
        else replace(s, units=tuple(_ascending(p[list(u)]) for p, u in zip(places, s.units, strict=True)))
        for s in subnets
    )
    return graph, tuple(_legal(graph, s) for s in moved)


def _disturbed(model: nn.Module) -> nn.Module:
    """A copy with noise on every parameter: a branch that starts at zero would hide what it computes from a check."""
    probe = copy.deepcopy(model)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in probe.parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=random, dtype=torch.float32).to(parameter)
                spread = float(parameter.std(correction=0)) or 1.0
                parameter.add_(noise, alpha=0.1 * spread)
    return probe


def _ascending(units: np.ndarray) -> tuple[int, ...]:
    return tuple(sorted(units.tolist()))


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


def _permute_(graph: Graph, group: int, tensors: dict[str, torch.Tensor], order: np.ndarray) -> None:
    done: set[tuple[int, int]] = set()
    for axis in graph.groups[group].axes:
        tensor = tensors[axis.tensor]
        index = np.arange(tensor.shape[axis.dim])
        index[axis.positions.ravel()] = axis.positions[order].ravel()
        if (tensor.data_ptr(), axis.dim) not in done and not (order == np.arange(len(order))).all():
            done.add((tensor.data_ptr(), axis.dim))
            with torch.no_grad():
                tensor.copy_(tensor.index_select(axis.dim, torch.from_numpy(index).to(tensor.device)))


# --- small modules ----------------------------------------------------------------------------------------------------


def _same(view: torch.Tensor, grad: torch.Tensor) -> bool:
    return view.untyped_storage().data_ptr() == grad.untyped_storage().data_ptr()


def _own(module: nn.Module) -> nn.Module:
    """A deep copy whose tensors are contiguous and its own."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        value = parameter.detach().clone(memory_format=torch.contiguous_format)
        memo[id(parameter)] = nn.Parameter(value, parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.detach().clone(memory_format=torch.contiguous_format)
    return copy.deepcopy(module, memo)


def _kept(graph: Graph, keep: np.ndarray) -> dict[tuple[str, int], np.ndarray]:
    """For every tensor axis that carries units, True at the indices that a subnet keeps."""
    kept: dict[tuple[str, int], np.ndarray] = {}
    sizes = {n: t.shape for n, t in _tensors(graph.model).items()}
    for group in graph.groups:
        gone = ~keep[group.first_unit : group.first_unit + group.size]
        for axis in group.axes:
            mask = kept.setdefault((axis.tensor, axis.dim), np.ones(sizes[axis.tensor][axis.dim], bool))
            mask[axis.positions[gone]] = False
    return kept


def _small(
    graph: Graph, shared: nn.Module, keep: np.ndarray, present: np.ndarray
) -> tuple[nn.Module, list[_Slice]]:
    """The model's structure with the parameters of a subnet, aliasing those of `shared`, which has the units `present`.

    Private tensors are copies; a parameter whose kept indices are not one range is gathered.
    """
    kept, had = _kept(graph, keep), _kept(graph, present)
    ranges = {key: np.flatnonzero(mask[had[key]]) for key, mask in kept.items()}
    module = copy.deepcopy(shared, {id(t): t for t in _tensors(shared).values()})
    slices: list[_Slice] = []
    made: dict[int, Any] = {}
    for name, tensor in (*shared.named_parameters(), *shared.named_buffers()):
        indices = [ranges.get((name, d), np.arange(size)) for d, size in enumerate(tensor.shape)]
        whole = all(len(i) == size for i, size in zip(indices, tensor.shape, strict=True))
        index, gathered = _index(indices)
        if name in graph.private:
            value = tensor.detach()[index].clone()
            made[id(tensor)] = (
                nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
            )
        elif whole:
            made[id(tensor)] = tensor
        else:
            assert isinstance(tensor, nn.Parameter), f"{name}: buffers that carry units are private"
            small = nn.Parameter(tensor.detach()[index], tensor.requires_grad)
            made[id(tensor)] = small
            slices.append(_Slice(small, tensor, index, gathered))
    for layer in module.modules():
        for store in (layer._parameters, layer._buffers):
            for key, tensor in store.items():
                if tensor is not None:
                    store[key] = made[id(tensor)]
    _set_attributes(graph, module, present, keep)
    return module, slices


def module_of(graph: Graph, model: nn.Module, keep: np.ndarray) -> nn.Module:
    """An independent small module of the units of `model` at which `keep` is True."""
    return _own(_small(graph, model, keep, np.ones_like(keep))[0])


def _index(indices: list[np.ndarray]) -> tuple[tuple[Any, ...], bool]:
    """Slices where every dim keeps one range, else index tensors that broadcast to the block."""
    if all(i[-1] - i[0] + 1 == len(i) for i in indices if len(i)):
        return tuple(slice(int(i[0]), int(i[-1]) + 1) if len(i) else slice(0, 0) for i in indices), False
    return tuple(torch.from_numpy(i) for i in np.ix_(*indices)), True


def _set_attributes(graph: Graph, module: nn.Module, had: np.ndarray, keep: np.ndarray) -> None:
    """Channel attributes of the small modules; whatever this misses fails the check of `_verify` and is pinned."""
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


# --- the check --------------------------------------------------------------------------------------------------------


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
    tensors = _tensors(model)
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


def _outputs(graph: Graph, model: nn.Module) -> list[torch.Tensor]:
    return _leaves(graph.call(model))


def _leaves(output: Any) -> list[torch.Tensor]:
    return [t.detach().double() for t in tree_leaves(output) if isinstance(t, torch.Tensor)]


def _difference(got: list[torch.Tensor], want: list[torch.Tensor]) -> float:
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


def _fault(graph: Graph, model: nn.Module, subnet: Subnet) -> str | None:
    """Why the small module of a subnet does not compute what the masked model does, or None."""
    keep = graph.kept(subnet.widths, subnet.units)
    if keep.all():
        return None
    try:
        got = _outputs(graph, _small(graph, model, keep, np.ones_like(keep))[0])
    except Exception as error:
        return f"its subnet fails: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
    if _difference(got, _masked_outputs(graph, model, keep)) > _TOLERANCE:
        return "its subnet computes something else than the model with these channels removed"
    return None


def _legal(graph: Graph, subnet: Subnet) -> Subnet:
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


def _verify(graph: Graph, subnets: tuple[Subnet, ...], model: nn.Module) -> tuple[Graph, tuple[Subnet, ...]]:
    """Check every subnet against the masked model; pin the groups that make it fail, one by one, until it passes."""
    model = _disturbed(model)
    for subnet in subnets:
        while (why := _fault(graph, model, _legal(graph, subnet))) is not None:
            culprit = _culprit(graph, model, _legal(graph, subnet))
            graph = graph.pin(culprit, why)
    return graph, tuple(_legal(graph, s) for s in subnets)


def _culprit(graph: Graph, model: nn.Module, subnet: Subnet) -> int:
    """A group without which the subnet would pass: the last of the shortest run of groups that must be whole."""
    cut = [g for g, (w, group) in enumerate(zip(subnet.widths, graph.groups, strict=True)) if w < group.size]

    def passes(count: int) -> bool:
        tried = graph
        for g in cut[:count]:
            tried = tried.pin(g, "tried whole")
        return _fault(tried, model, _legal(tried, subnet)) is None

    low, high = 0, len(cut)  # `low` groups whole fail, `high` pass
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return cut[high - 1]
