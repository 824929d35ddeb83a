"""Reading a model once: which channels of which parameters must be kept or removed together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_leaves

from rheostat.spec import Cost
from rheostat.train.rules import Dims, Labels, apply, is_aten, op_name

_INNER_FIRST = ("mm", "addmm", "matmul", "embedding")
"""Ops whose weight is [in, out], where a linear's or a convolution's is [out, in]; transposed convolutions too."""


@dataclass(frozen=True)
class Axis:
    """Where the units of a group sit on one axis of a tensor: `positions[u]` are the indices of unit u."""

    tensor: str
    dim: int
    positions: np.ndarray


@dataclass(frozen=True)
class ChannelGroup:
    """Interchangeable units (channels, heads, convolution groups) that are sorted and cut together.

    `axes` are the parameter and buffer axes that carry them; `pinned` says why the group is kept whole, or is None;
    `extends` is the index of a group whose order this one's first units follow (a zero-padding shortcut).
    """

    name: str
    size: int
    first_unit: int
    axes: tuple[Axis, ...]
    pinned: str | None = None
    extends: int | None = None


@dataclass(frozen=True)
class Graph:
    """A traced model: its channel groups, and the units that every dim of every value carries.

    `dims[node name]` has one entry a dim: None (a fixed size) or the global unit id at each index (-1: always kept);
    unit `u` of group `g` is `groups[g].first_unit + u`. `axes` says the same of parameters and buffers. `counts` are
    module attributes that count units (`groups`, `num_heads` …); `private` names what every subnet has for itself: the
    parameters and buffers of norms, and buffers of floats.
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    program: torch.export.ExportedProgram
    groups: tuple[ChannelGroup, ...]
    dims: dict[str, Any]
    axes: dict[str, tuple[np.ndarray | None, ...]]
    counts: tuple[tuple[str, str, np.ndarray], ...]
    private: frozenset[str]

    def pin(self, group: int, why: str) -> Graph:
        """The same graph with one more group kept whole."""
        groups = list(self.groups)
        groups[group] = replace(groups[group], pinned=why)
        return replace(self, groups=tuple(groups))

    def kept(self, widths: Sequence[int], units: Sequence[Sequence[int]] | None = None) -> np.ndarray:
        """True for every global unit that a subnet keeps: the first `widths[g]` of a group, or those in `units[g]`.

        The last entry, which unit -1 (an index that belongs to no group) reads, is True.
        """
        keep = np.zeros(sum(g.size for g in self.groups) + 1, bool)
        keep[-1] = True
        for g, (group, width) in enumerate(zip(self.groups, widths, strict=True)):
            keep[group.first_unit + np.asarray(range(width) if units is None else units[g], np.int64)] = True
        return keep

    def legal(self, widths: Sequence[int]) -> tuple[int, ...]:
        """Pinned groups whole, and extending groups at least as wide as the group that is padded to them."""
        legal = [g.size if g.pinned else w for g, w in zip(self.groups, widths, strict=True)]
        for _ in self.groups:
            legal = [
                w if g.extends is None else max(w, legal[g.extends])
                for g, w in zip(self.groups, legal, strict=True)
            ]
        return tuple(legal)

    @property
    def chained(self) -> frozenset[int]:
        """Groups that extend another or are extended: one order must do for all of them, so they are cut by count."""
        pairs = [(i, g.extends) for i, g in enumerate(self.groups) if g.extends is not None]
        return frozenset(i for pair in pairs for i in pair)

    def filter_dims(self) -> dict[str, int]:
        """The dim of every weight along which its filters lie: 1 where it is stored [in, out], else 0."""
        inner_first: set[str] = set()
        for node in self.program.graph.nodes:
            if node.op == "call_function" and (
                op_name(node).startswith("conv_transpose") or op_name(node) in _INNER_FIRST
            ):
                inner_first |= {arg.name for arg in node.all_input_nodes}
        targets = {
            s.arg.name: s.target for s in self.program.graph_signature.input_specs if hasattr(s.arg, "name")
        }
        transposed = {targets[name] for name in inner_first if name in targets}
        return {
            name: 1 if name in transposed else 0
            for name, dims in self.axes.items()
            if len(dims) > 1  # biases and norm affines follow their filters
        }

    def cost(
        self,
        widths: Sequence[int],
        units: Sequence[Sequence[int]] | None = None,
        weights: Mapping[str, int] | None = None,
    ) -> Cost:
        """What a subnet of these widths (or `units`) costs, counted from the graph; no module is built.

        `weights` says how many weights of a pruned parameter the subnet keeps; its multiply-accumulates count in the
        same proportion. Multiply-accumulates are those of convolutions, linears, matrix products, `einsum` of two and
        attention.
        """
        keep, pruned = self.kept(widths, units), weights or {}

        def kept(shape: Sequence[int], dims: Dims) -> list[int]:
            return [n if d is None else int(keep[d].sum()) for n, d in zip(shape, dims, strict=True)]

        names: dict[int, str] = {}
        for name, tensor in (
            *self.model.named_parameters(remove_duplicate=False),
            *self.model.named_buffers(remove_duplicate=False),
        ):
            if id(tensor) not in names or name in self.axes:
                names[id(tensor)] = name

        def whole(tensor: torch.Tensor) -> int:
            return math.prod(kept(tensor.shape, self.axes.get(names[id(tensor)], (None,) * tensor.dim())))

        own = dict(self.model.named_parameters(remove_duplicate=False))
        fewer = {id(own[name]): number for name, number in pruned.items()}

        def count(tensor: torch.Tensor) -> int:
            return fewer.get(id(tensor), whole(tensor))

        parameters = sum(count(t) for t in self.model.parameters())
        stored = [*self.model.parameters(), *self.model.buffers()]
        size = sum(count(t) * t.element_size() for t in stored if t.is_floating_point())
        batch = next(len(t) for t in tree_leaves((self.args, self.kwargs)) if isinstance(t, torch.Tensor))

        def shape(node: Any) -> list[int]:
            return kept(node.meta["val"].shape, self.dims[node.name])

        holds = {
            s.arg.name: own[s.target] for s in self.program.graph_signature.input_specs if s.target in own
        }  # type: ignore[union-attr]

        def macs(node: Any) -> int:
            total = _macs(node, shape)
            for arg in node.args:
                if (name := _weight(arg)) in holds:
                    total = total * count(holds[name]) // whole(holds[name])
            return total

        total = sum(macs(n) for n in self.program.graph.nodes if n.op == "call_function" and is_aten(n))
        return Cost(parameters, total // batch, size)

    def call(self, model: nn.Module) -> Any:
        """Run a model of this graph's interface on the example, in evaluation mode and without gradients."""
        with evaluating(model), torch.no_grad():
            return model(*self.args, **self.kwargs)

    def __str__(self) -> str:
        lines = []
        for group in self.groups:
            state = f"pinned: {group.pinned}" if group.pinned else "prunable"
            lines.append(f"{group.name:40} {group.size:6}  {state}")
        return "\n".join(lines)


class evaluating:
    """Every module in evaluation mode for a while; each one's own flag comes back afterwards."""

    def __init__(self, *models: nn.Module) -> None:
        self._modules = [m for model in models for m in model.modules()]

    def __enter__(self) -> None:
        self._flags = [m.training for m in self._modules]
        for module in self._modules:
            module.training = False

    def __exit__(self, *_: object) -> None:
        for module, flag in zip(self._modules, self._flags, strict=True):
            module.training = flag


def trace(model: nn.Module, example: torch.Tensor | tuple[Any, ...] | Mapping[str, Any]) -> Graph:
    """Find the coupled channel groups of any exportable model; the model is left as it was.

    `example` is an input tensor, a tuple of positional or a mapping of keyword arguments (batch first). An op without
    a rule pins the channels that it touches, with the reason; nothing is assumed harmless. Raises ValueError where
    `torch.export` cannot read the model.

    >>> graph = trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 4))
    >>> [(g.name, g.size) for g in graph.groups if g.pinned is None]
    [('0', 8)]
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"trace: got a {type(model).__name__}; want an nn.Module")
    if arrays := [type(x).__name__ for x in tree_leaves(example) if isinstance(x, np.ndarray)]:
        raise ValueError(f"trace: got an {arrays[0]} in the example; want tensors, as torch.from_numpy gives")
    if isinstance(example, Mapping):
        args, kwargs = (), dict(example)
    else:
        args, kwargs = (example if isinstance(example, tuple) else (example,)), {}
    with evaluating(model), torch.no_grad():
        try:
            program = torch.export.export(model, args, kwargs, strict=False)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(
                f"trace: torch.export cannot read {type(model).__name__}: {reason}; want a forward without branches on "
                "tensor values and an example of the right shapes and types"
            ) from error
    return _Builder(model, args, kwargs, program).build()


def check_graph(where: str, graph: object) -> None:
    """Raise ValueError where a model, a supernet or something else stands for the graph."""
    if not isinstance(graph, Graph):
        raise ValueError(
            f"{where}: got a {type(graph).__name__}; want the Graph that trace gives for a model"
        )


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers under every name they have."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )


class _Builder:
    def __init__(
        self, model: nn.Module, args: tuple, kwargs: dict, program: torch.export.ExportedProgram
    ) -> None:
        self.model, self.args, self.kwargs, self.program = model, args, kwargs, program
        self.labels = Labels()
        self.tensors: dict[str, Dims] = {}
        self.values: dict[str, Any] = {}

    def build(self) -> Graph:
        private = self._propagate()
        groups, ids = self._group()
        groups = self._extend(groups, ids)

        def units(dim: np.ndarray) -> np.ndarray:
            return ids[self.labels.find(dim)]

        return Graph(
            self.model,
            self.args,
            self.kwargs,
            self.program,
            tuple(groups),
            {name: _map_dims(value, units) for name, value in self.values.items()},
            {name: _map_dims(value, units) for name, value in self.tensors.items()},
            tuple((path, attribute, units(labels)) for path, attribute, labels in self.labels.counts),
            self._private(private, groups),
        )

    def _private(self, norms: frozenset[str], groups: list[ChannelGroup]) -> frozenset[str]:
        """Parameters of norms, buffers of their modules, that carry units or that are of floats, by all their names.

        A forward pass in training may change buffers of floats: what one subnet leaves there is not the others'.
        """
        layers = {name.rpartition(".")[0] for name in norms}
        carried = {axis.tensor for group in groups for axis in group.axes}
        found = norms | {
            name
            for name, buffer in self.model.named_buffers(remove_duplicate=False)
            if buffer.is_floating_point() or name.rpartition(".")[0] in layers or name in carried
        }
        tensors = tensors_of(self.model)
        same = {id(tensors[name]) for name in found}
        return frozenset(name for name, tensor in tensors.items() if id(tensor) in same)

    def _propagate(self) -> frozenset[str]:
        """Dims of every value, in order; parameters and buffers get fresh labels on every axis."""
        specs = {
            spec.arg.name: spec
            for spec in self.program.graph_signature.input_specs
            if hasattr(spec.arg, "name")
        }
        stored = tensors_of(self.model)
        shared: dict[int, Dims] = {}
        name_of: dict[str, str] = {}
        for node in self.program.graph.nodes:
            value = node.meta.get("val")
            if node.op == "placeholder":
                spec = specs[node.name]
                if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target in stored:
                    tensor = stored[spec.target]
                    if id(tensor) not in shared:
                        shared[id(tensor)] = tuple(self.labels.fresh(int(s)) for s in tensor.shape)
                        self.tensors[spec.target] = shared[id(tensor)]
                    self.values[node.name] = shared[id(tensor)]
                    name_of[node.name] = spec.target
                else:
                    self.values[node.name] = (None,) * value.dim() if isinstance(value, torch.Tensor) else ()
            elif node.op == "call_function":
                self.values[node.name] = apply(node, self.values, self.labels)
            elif node.op == "output":
                for result in node.all_input_nodes:
                    for dim in self.values[result.name]:
                        if isinstance(dim, np.ndarray):
                            self.labels.pin(dim, "model output")
            else:
                self.values[node.name] = ()
        return frozenset(name_of[n] for n in self.labels.norms if n in name_of)

    def _group(self) -> tuple[list[ChannelGroup], np.ndarray]:
        """Units with the same signature (on which axes of which values, how often) are one group."""
        total = len(self.labels)
        root = self.labels.find(np.arange(total))
        signature = np.zeros(total, np.uint64)
        random = np.random.default_rng(0)
        seen: set[int] = set()
        calls = [self.values[n.name] for n in self.program.graph.nodes if n.op == "call_function"]
        flowing = np.zeros(total, bool)  # kernel axes and the input's channels never reach a value
        for dim in (*_arrays(tuple(calls)), *self.labels.unruled):
            flowing[root[dim]] = True
        for dims in [*self.tensors.values(), *calls]:
            for dim in _arrays(dims):
                if id(dim) in seen:
                    continue
                seen.add(id(dim))
                units, counts = np.unique(root[dim], return_counts=True)
                signature[units] += random.integers(1, 2**63, dtype=np.uint64) * counts.astype(np.uint64)
        pinned: dict[int, str] = {}
        for labels, why in self.labels.pins:
            for unit in np.unique(root[labels]).tolist():
                pinned.setdefault(unit, why)

        members: dict[int, list[int]] = {}
        order: dict[int, int] = {}
        axes: dict[int, list[tuple[str, int]]] = {}
        for name, dims in self.tensors.items():
            for d, dim in enumerate(dims):
                if dim is None or dim.size == 0:
                    continue
                roots = root[dim]
                units, first = np.unique(roots, return_index=True)
                for unit in units[np.argsort(first)].tolist():
                    if not flowing[unit]:
                        continue
                    key = int(signature[unit])
                    if unit not in order:
                        order[unit] = len(members.setdefault(key, []))
                        members[key].append(unit)
                    where = axes.setdefault(key, [])
                    if (name, d) not in where:
                        where.append((name, d))
        groups: list[ChannelGroup] = []
        ids = np.full(total, -1, np.int64)
        next_unit = 0
        parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        for key, units in members.items():
            if (len(units) == 1 and axes[key][0][1] != 0) or not any(
                name in parameters for name, _ in axes[key]
            ):
                continue
            why = next((pinned[u] for u in units if u in pinned), None)
            ids[units] = np.arange(next_unit, next_unit + len(units))
            positions = []
            for name, d in axes[key]:
                dim = self.tensors[name][d]
                assert dim is not None
                local = ids[root[dim]] - next_unit
                inside = np.flatnonzero((local >= 0) & (local < len(units)))
                inside = inside[np.argsort(local[inside], kind="stable")]
                positions.append(Axis(name, d, inside.reshape(len(units), -1)))
            name = _name(axes[key])
            same = sum(g.name.partition("#")[0] == name for g in groups)
            name = f"{name}#{same + 1}" if same else name
            groups.append(ChannelGroup(name, len(units), next_unit, tuple(positions), why))
            next_unit += len(units)
        return groups, ids

    def _extend(self, groups: list[ChannelGroup], ids: np.ndarray) -> list[ChannelGroup]:
        """Turn every zero-padding into `extends`, or pin both sides where the two dims are not one group each."""
        owner = {n: i for i, g in enumerate(groups) for n in range(g.first_unit, g.first_unit + g.size)}
        for shorter, longer, where in self.labels.extensions:
            a, b = ids[self.labels.find(shorter)], ids[self.labels.find(longer)]
            owners = {owner.get(int(u), -1) for u in a}, {owner.get(int(u), -1) for u in b}
            why = None
            if any(len(o) > 1 or -1 in o for o in owners):
                why = f"{where} pads channels of several groups"
            else:
                (i,), (j,) = owners
                start_a, start_b = groups[i].first_unit, groups[j].first_unit
                aligned = (a - start_a == np.arange(len(a))).all() and (
                    b - start_b == np.arange(len(b))
                ).all()
                if i == j or not aligned or groups[j].extends not in (None, i):
                    why = f"{where} pads channels in another order"
                else:
                    groups[j] = replace(groups[j], extends=i)
            for index in {o for owner in owners for o in owner if o >= 0} if why else ():
                groups[index] = replace(groups[index], pinned=groups[index].pinned or why)
        return groups


def _macs(node: fx.Node, shape: Callable[[Any], list[int]]) -> int:
    """Multiply-accumulates of a node, where `shape` gives the kept sizes of a value."""
    name, args = op_name(node), cast("tuple[Any, ...]", node.args)
    if name.startswith("conv_transpose"):
        return math.prod(shape(args[0])) * math.prod(shape(args[1])[1:])
    if name.startswith("conv") or name == "linear":
        return math.prod(shape(node)) * math.prod(shape(args[1])[1:])
    if name in ("matmul", "mm", "bmm"):
        return math.prod(shape(node)) * shape(args[0])[-1]
    if name in ("addmm", "baddbmm"):
        return math.prod(shape(node)) * shape(args[1])[-1]
    if name == "einsum" and len(operands := args[1]) == 2:
        terms, _, result = args[0].replace(" ", "").partition("->")
        sizes: dict[str, int] = {}
        for term, operand in zip(terms.split(","), operands, strict=True):
            left, _, right = term.partition("...")
            sizes |= dict(zip(left, shape(operand), strict=False))
            sizes |= dict(zip(reversed(right), reversed(shape(operand)), strict=False))
        return math.prod(shape(node)) * math.prod(n for letter, n in sizes.items() if letter not in result)
    if name == "scaled_dot_product_attention":
        query, key, value = (shape(arg) for arg in args[:3])
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    return 0


def _weight(arg: Any) -> str | None:
    """The placeholder that an operand is, transposed or not."""
    while (
        isinstance(arg, fx.Node)
        and arg.op == "call_function"
        and op_name(arg) in ("t", "transpose", "permute")
    ):
        arg = arg.args[0]
    return arg.name if isinstance(arg, fx.Node) and arg.op == "placeholder" else None


def _arrays(dims: Any) -> list[np.ndarray]:
    if isinstance(dims, np.ndarray):
        return [dims]
    return [a for d in dims for a in _arrays(d)] if isinstance(dims, tuple) else []


def _map_dims(dims: Any, f: Callable[[np.ndarray], np.ndarray]) -> Any:
    if isinstance(dims, np.ndarray):
        return f(dims)
    return tuple(_map_dims(d, f) for d in dims) if isinstance(dims, tuple) else dims


def _name(axes: list[tuple[str, int]]) -> str:
    """A group is called after the first layer whose weight produces it (axis 0), else the first that reads it."""
    producer = next(
        (name for name, dim in axes if dim == 0 and name.endswith(("weight", "weight_v"))), axes[0][0]
    )
    return producer.rpartition(".")[0] or producer
