"""One set of weights, many ordinary small modules that alias it."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import nn

from rheostat import artifact
from rheostat.program import LEVELS
from rheostat.spec import ArtifactError, Cost, Subnet, SubnetInfo
from rheostat.train.check import check_copy, disturbed_example, verify
from rheostat.train.graph import Graph, check_graph, trace
from rheostat.train.masks import Levels
from rheostat.train.order import sort
from rheostat.train.small import Slice, own, small_module

COUNTER = "num_batches_tracked"
"""A batch norm's count of training steps: it says nothing about the network, and artifacts leave it out."""

_MEASURED = ("accuracy", "latency_ms_p50", "latency_ms_p95")


class Supernet(nn.Module):
    """Nested subnets of one model on one set of weights.

    `net[k]` (or `net["0.5"]`) is an ordinary module of the small shapes whose parameters alias the shared tensors;
    `net[-1]` is the largest. Norms, and buffers of floats, are private to each subnet. Channels are sorted by the
    `importance` ("l2" or "l1" norm of a unit over all its weights) so that every subnet is a prefix; where subnets name
    their units, by the smallest subnet that keeps the unit first. Named units that do not nest are gathered: trainable,
    at the price of copies (`net.copied_bytes`), but not to be saved (see `nest`).

    `levels` removes single weights: `net[k]` keeps those of level k or less, in the channels of `subnets[k]`, or in
    all channels, unsorted, where `subnets` is None. Pruned parameters are masked copies; what no subnet keeps is zero.

    Construction checks every subnet on the example against the full model under masks; a group whose removal does not
    give the same function is pinned with the reason (`net.graph`), and a warning says so. Raises ValueError for widths
    that do not nest, subnets or levels that do not fit the graph, or a largest subnet that does not hold all others.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> net = Supernet(graph := trace(model, torch.randn(1, 4)), uniform(graph, (0.5, 1.0)))
    >>> net["0.5"][0].weight.shape
    torch.Size([4, 4])
    """

    def __init__(
        self,
        graph: Graph,
        subnets: Sequence[Subnet] | None = None,
        importance: str = "l2",
        levels: Levels | None = None,
    ) -> None:
        super().__init__()
        if importance not in ("l1", "l2"):
            raise ValueError(f"Supernet: importance={importance!r}; want 'l1' or 'l2'")
        check_graph("Supernet", graph)
        whole = subnets is None
        if subnets is None:
            sizes = tuple(g.size for g in graph.groups)
            subnets = [Subnet(name, sizes) for name in (levels.names if levels is not None else ())]
        _validate(graph, subnets)
        probe = disturbed_example(graph)
        check_copy(probe)
        full = copy.deepcopy(graph.model)
        last = len(subnets) - 1
        pruned = {} if levels is None else _levels_of(graph, full, subnets, levels)
        of = {id(full.get_parameter(name)): level for name, level in pruned.items()}
        named = {n: of[id(p)] for n, p in full.named_parameters(remove_duplicate=False) if id(p) in of}
        # Where no channel goes, all stay where they are.
        in_order = (probe, tuple(subnets)) if whole else sort(probe, full, importance, subnets, named)
        checked, self.subnets = verify(*in_order, full)
        self.graph = replace(checked, args=graph.args, kwargs=graph.kwargs)
        _warn_of_pins(graph, self.graph)
        keeps = [self.graph.kept(s.widths, s.units) for s in self.subnets]
        _check_order(self.subnets, keeps)
        self.shared = full
        if not keeps[-1].all():
            cut, slices = small_module(self.graph, full, keeps[-1], np.ones_like(keeps[-1]), pruned, last)
            names = {id(p): name for name, p in full.named_parameters()}
            pruned = {names[id(s.shared)]: s.level for s in slices if s.level is not None}
            self.shared = own(cut)
        small = [
            small_module(self.graph, self.shared, keep, keeps[-1], pruned, k)
            for k, keep in enumerate(keeps[:-1])
        ]
        # Plain lists: their parameters are not the optimizer's.
        self._smaller = [module for module, _ in small]
        self._slices = [s for _, slices in small for s in slices]
        self._pruned = [
            Slice(p, p, (slice(None),), pruned[name], last)
            for name, p in self.shared.named_parameters()
            if name in pruned
        ]
        self._frozen: list[tuple[nn.Parameter, torch.Tensor, torch.Tensor]] = []
        self._first_free = 0  # the smallest subnet that may change
        self.active = len(self.subnets) - 1
        self._measured: dict[int, dict[str, float]] = {}

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
        state = {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}
        found = {name: state.pop(name + LEVELS) for name in program.levels}
        if found:
            first = {id(p): name for name, p in graph.model.named_parameters()}
            found = {first[id(graph.model.get_parameter(name))]: level for name, level in found.items()}
            blank = {n: torch.zeros_like(graph.model.get_parameter(n), dtype=torch.uint8) for n in found}
            names = tuple(s.name for s in subnets)
            whole = all(s.widths == tuple(g.size for g in graph.groups) for s in subnets)
            net = cls(graph, None if whole else subnets, levels=Levels(names, blank))
            net.relevel_(Levels(names, found))
        else:
            net = cls(graph, subnets)
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
        return own(self[key])

    # --- the protocol of a training step ------------------------------------------------------------------------------

    def attach_grads_(self) -> None:
        """Zero all gradients and make those of the aliases views of the shared ones, so that backward accumulates.

        What the shared parameter is, frozen or not, its aliases and copies are too.
        """
        with torch.no_grad():
            for parameter in self.parameters():
                if not parameter.requires_grad:
                    parameter.grad = None
                elif parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            if grads := [p.grad for p in self.parameters() if p.grad is not None]:
                torch._foreach_zero_(grads)  # pyright: ignore[reportPrivateImportUsage]
            for s in self._slices:
                s.small.requires_grad_(s.shared.requires_grad)
                grad = None if s.copied else s.shared.grad
                if grad is None:
                    s.small.grad = None
                elif not _in_memory_of(grad, s.small.grad):
                    s.small.grad = grad[s.index]

    @torch.no_grad()
    def collect_grads_(self) -> None:
        """Add the gradients of copies to the shared ones, as aliases do by themselves; none for what must not move."""
        for s in self._slices:
            if s.copied and s.small.grad is not None:
                s.add_grad_()
        for s in self._pruned:
            if s.mask is not None and s.shared.grad is not None:
                s.shared.grad.mul_(s.mask)
        for parameter, frozen, _ in self._frozen:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(frozen, 0)

    @torch.no_grad()
    def refresh_(self) -> None:
        """After a change of the shared values: put back what is frozen, zero what is pruned, and renew the copies."""
        for parameter, frozen, values in self._frozen:
            parameter.copy_(values.where(frozen, parameter))
        for s in (*self._pruned, *self._slices):
            if s.copied:
                s.small.copy_(s.read())

    @torch.no_grad()
    def freeze_except_(self, key: int | str | None) -> None:
        """Let only those weights move that subnet `key` has and no smaller one: its increment; None: let all move.

        `refresh_` puts all others back after each step, to the last bit, whatever the optimizer does.
        """
        self._frozen, self._first_free = [], 0
        if key is None:
            return
        k = self._first_free = self.index(key)
        has = self._holdings()
        for name, parameter in self.named_parameters():
            frozen = ~has(name, parameter, k)
            for j in range(k):
                frozen |= has(name, parameter, j)
            self._frozen.append((parameter, frozen, parameter.detach().clone()))

    @contextmanager
    def holding_(self, keys: Iterable[int]) -> Iterator[None]:
        """Hold the weights that none of these subnets has, and what is frozen already, in the `with` block."""
        keys, before, has = list(keys), self._frozen, self._holdings()
        frozen = {id(parameter): mask for parameter, mask, _ in before}
        if len(keys) < len(self):
            self._frozen = []
            for name, parameter in self.named_parameters():
                outside = ~torch.stack([has(name, parameter, k) for k in keys]).any(0)
                mask = outside | frozen.get(id(parameter), outside)
                self._frozen.append((parameter, mask, parameter.detach().clone()))
        try:
            yield
        finally:
            self._frozen = before

    def _holdings(self) -> Callable[[str, nn.Parameter, int], torch.Tensor]:
        """A function that is True at those weights of a parameter, by its name, that a subnet has."""
        last = len(self) - 1
        slices = [{id(s.shared): s for s in self._slices if s.k == j} for j in range(last)]
        slices.append({id(s.shared): s for s in self._pruned})

        def has(name: str, parameter: nn.Parameter, k: int) -> torch.Tensor:
            path, _, owner = name.partition("@")
            if path in self.graph.private:
                return torch.full_like(parameter, int(owner or last) == k, dtype=torch.bool)
            s = slices[k].get(id(parameter))
            if s is None:
                return torch.ones_like(parameter, dtype=torch.bool)
            mask = torch.zeros_like(parameter, dtype=torch.bool)
            mask[s.index] = True if s.mask is None else s.mask
            return mask

        return has

    @torch.no_grad()
    def refreeze_(self) -> None:
        """Hold what is frozen at the values that it has now, when others have been loaded or received."""
        self._frozen = [
            (parameter, frozen, parameter.detach().clone()) for parameter, frozen, _ in self._frozen
        ]

    @torch.no_grad()
    def relevel_(self, levels: Levels) -> None:
        """Change the levels of the pruned parameters, in the order of `net.shared`; a weight once zero starts at zero.

        Raises ValueError for other parameters, shapes or numbers of subnets than the supernet was made with.
        """
        if {n: t.shape for n, t in levels.tensors.items()} != {n: t.shape for n, t in self.levels.items()}:
            raise ValueError("Supernet.relevel_: got other parameters or shapes; want those of net.levels")
        if len(levels.names) != len(self):
            raise ValueError(f"Supernet.relevel_: got {len(levels.names)} subnets; want {len(self)}")
        new = {id(self.shared.get_parameter(n)): t for n, t in levels.tensors.items()}
        for s in (*self._pruned, *self._slices):
            if s.level is not None:
                s.level.copy_(new[id(s.shared)][s.index])
        self.refresh_()
        self.forget_()

    @property
    def levels(self) -> dict[str, torch.Tensor]:
        """The uint8 level of every weight of each pruned parameter: subnet k keeps those of level k or less."""
        names = {id(p): name for name, p in self.shared.named_parameters()}
        return {names[id(s.shared)]: s.level for s in self._pruned if s.level is not None}

    @property
    def nested(self) -> bool:
        """Every subnet is a prefix of each group, as the artifact and the engine want it."""
        return all(s.units is None for s in self.subnets)

    @property
    def copied_bytes(self) -> int:
        """Bytes of the copies that subnets need where they keep single weights, or channels that are not one range."""
        return sum(s.small.numel() * s.small.element_size() for s in self._slices if s.copied)

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
        private = self._private(lambda m: m.named_parameters(remove_duplicate=remove_duplicate))
        for name, parameter in (*shared, *private):
            yield prefix + name, parameter

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Shared buffers under the model's own names, then the private ones of smaller subnets as `name@k`."""
        assert recurse, "the buffers of a supernet are all below it"
        prefix = prefix + "." if prefix else ""
        shared = self.shared.named_buffers(remove_duplicate=remove_duplicate)
        private = self._private(lambda m: m.named_buffers(remove_duplicate=remove_duplicate))
        for name, buffer in (*shared, *private):
            yield prefix + name, buffer

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """All tensors: plain names hold the largest subnet, `name@k` the private ones of subnet k."""
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
        self.refreeze_()
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
        for slices in (self._slices, self._pruned):
            slices[:] = [s if s.level is None else replace(s, level=fn(s.level)) for s in slices]
        self._frozen = [(p, fn(frozen), fn(values)) for p, frozen, values in self._frozen]
        self._alias_()
        return self

    def _alias_(self) -> None:
        for s in self._slices:
            s.small.data = s.read()
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
        subnet, slices = self.subnets[k], self._pruned if k == len(self) - 1 else self._slices
        names = {id(p): name for name, p in self.shared.named_parameters()}
        kept = {names[id(s.shared)]: int(s.mask.sum()) for s in slices if s.k == k and s.mask is not None}
        return self.graph.cost(subnet.widths, subnet.units, kept)

    def record(self, key: int | str, **measured: float) -> None:
        """Keep measured numbers (`accuracy` 0..1, `latency_ms_p50`, `latency_ms_p95`) for the artifact."""
        unknown = measured.keys() - set(_MEASURED)
        if unknown:
            raise ValueError(
                f"Supernet.record: got {sorted(unknown)}; want accuracy, latency_ms_p50 or latency_ms_p95"
            )
        self._measured.setdefault(self.index(key), {}).update(measured)

    def forget_(self) -> None:
        """Drop the recorded accuracies of all subnets that may change; see `freeze_except_`."""
        for k, measured in self._measured.items():
            if k >= self._first_free:
                measured.pop("accuracy", None)

    @property
    def infos(self) -> tuple[SubnetInfo, ...]:
        """What is known of each subnet; `save` adds to the bytes of pruned weights those that say where they are."""
        costs = [self.cost(k) for k in range(len(self))]
        return tuple(
            SubnetInfo(s.name, c.parameters, c.macs, c.size_bytes, **self._measured.get(k, {}))
            for k, (s, c) in enumerate(zip(self.subnets, costs, strict=True))
        )


def _in_memory_of(grad: torch.Tensor, view: torch.Tensor | None) -> bool:
    return view is not None and view.untyped_storage().data_ptr() == grad.untyped_storage().data_ptr()


def _levels_of(
    graph: Graph, model: nn.Module, subnets: Sequence[Subnet], levels: Levels
) -> dict[str, torch.Tensor]:
    """A copy of the levels on the model's device; what no subnet keeps is set to zero in the model."""
    if len(levels.names) != len(subnets):
        raise ValueError(
            f"Supernet: got levels of {len(levels.names)} subnets and {len(subnets)} subnets; want one for each"
        )
    parameters = dict(model.named_parameters())
    found = {}
    for name, level in levels.tensors.items():
        if name not in parameters or name in graph.private:
            raise ValueError(
                f"Supernet: levels name {name!r}; want a parameter of the model, not of a norm, by its first name"
            )
        if level.shape != parameters[name].shape:
            raise ValueError(
                f"Supernet: {name}: got levels of shape {tuple(level.shape)}; want {tuple(parameters[name].shape)}"
            )
        found[name] = level.to(parameters[name].device, copy=True)
        with torch.no_grad():
            parameters[name].mul_(found[name] < len(subnets))
    return found


def _warn_of_pins(before: Graph, after: Graph) -> None:
    """What the checks have pinned is wider than it was asked to be."""
    pins = [
        new for old, new in zip(before.groups, after.groups, strict=True) if new.pinned and not old.pinned
    ]
    if pins:
        more = f", and {len(pins) - 1} more" if len(pins) > 1 else ""
        warnings.warn(
            f"Supernet: channel group {pins[0].name} stays whole ({pins[0].pinned}){more}: see print(net.graph)",
            stacklevel=3,
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
