"""From a supernet to the program that the engine runs: one function an ATen op, one dictionary of them, then fusion."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np
import torch
from torch import fx
from torch.export.graph_signature import InputKind

import rheostat
from rheostat import artifact
from rheostat.cost import counted
from rheostat.program import (
    LEVELS,
    Activation,
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    GlobalAvgPool,
    Group,
    Input,
    Linear,
    MaxPool2d,
    Mul,
    Norm,
    Normalize,
    Op,
    PadChannels,
    Program,
    Segment,
    Shapes,
    Softmax,
    Subsample,
    Value,
    plan,
    reads,
)
from rheostat.program_check import validate, whole_groups
from rheostat.spec import ArtifactError, Subnet
from rheostat.train.graph import Graph
from rheostat.train.rules import is_aten, module_path, op_name
from rheostat.train.supernet import COUNTER, Supernet


def save(
    net: Supernet, path: str | os.PathLike[str], provenance: Mapping[str, str | float] | None = None
) -> None:
    """Write every subnet of a supernet into one artifact.

    The same supernet always gives the same bytes. Where the engine has no op for something, the file says so
    (`rheostat inspect`) and still loads back into training. `provenance` is kept as it is: the command, the data, a
    seed. Raises `ArtifactError` where the file cannot be written or a tensor is not finite, ValueError for subnets that
    do not nest.

    >>> save(net, "resnet20.safetensors")  # doctest: +SKIP
    """
    program, tensors = lower(net)
    artifact.write(path, replace(program, provenance=dict(provenance or {})), tensors)


def lower(net: Supernet) -> tuple[Program, dict[str, np.ndarray]]:
    """The program of a supernet and the tensors that it names.

    `program.ops` is None, and `program.unsupported` names the node, where the engine has no op for what the model does.
    """
    if not isinstance(net, Supernet):
        raise ValueError(
            f"save: got a {type(net).__name__}; want the Supernet, of which the file holds all subnets"
        )
    if not net.nested:
        free = next(s.name for s in net.subnets if s.units is not None)
        raise ValueError(
            f"save: subnet {free!r} keeps units that are not the first of their groups; want nested subnets, because "
            "the engine runs slices. Repair them with nest(graph, subnets) before training."
        )
    tensors, aliases = _tensors(net)
    shapes: Shapes = {n: (_DTYPE_NAMES.get(str(a.dtype), ""), a.shape) for n, a in tensors.items()}
    graph = net.graph
    given = _inputs(graph)
    leaf = given[0].meta["val"] if given else torch.zeros(1)
    groups = [
        Group(_line(g.name), g.size, tuple(s.widths[i] for s in net.subnets), g.pinned and _line(g.pinned))
        for i, g in enumerate(graph.groups)
    ]
    bare = Program(
        model=_line(type(graph.model).__qualname__),
        input=Input(given[0].name if given else "x", tuple(int(n) for n in leaf.shape[1:])),
        subnets=tuple(net.infos),
        groups=tuple(groups),
        unsupported="unknown",
        aliases=aliases,
        producer=f"rheostat {rheostat.__version__}",
    )
    try:
        values, ops, outputs = _Lowering(graph, net.subnets, shapes, aliases).run()
        program = replace(
            bare, values=values, ops=ops, outputs=outputs, plan=plan(values, ops, outputs), unsupported=None
        )
        validate(program, shapes)
        program = counted(artifact.with_levels(program, tensors), shapes)
    except _Unsupported as why:
        program = replace(bare, unsupported=_line(str(why)))
    except ArtifactError as why:
        program = replace(bare, unsupported=_line(f"the ops do not fit together: {why}"))
    validate(program, shapes)
    return program, tensors


_DTYPE_NAMES = {"float32": "F32", "int64": "I64", "float64": "F64", "uint8": "U8"}


def _line(text: str) -> str:
    """One line of printable text, as the format wants it."""
    return "".join(c if c.isprintable() else " " for c in text)[:1000]


def _tensors(net: Supernet) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The state and the levels by name, tensors that share memory once, and the other names of those."""
    stored: dict[str, np.ndarray] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in sorted(net.state_dict().items()):
        if name.partition("@")[0].endswith(COUNTER):
            continue
        if tensor.dtype not in (torch.float32, torch.float64, torch.int64):
            raise ValueError(f"save: {name} is {tensor.dtype}; want float32, as after net.float()")
        where = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.device)
        if tensor.numel() and where in first:
            aliases[name] = first[where]
            continue
        first[where] = name
        stored[name] = tensor.detach().cpu().contiguous().numpy()
    for name, level in net.levels.items():
        stored[aliases.get(name, name) + LEVELS] = level.cpu().contiguous().numpy()
    return stored, aliases


def _inputs(graph: Graph) -> list[fx.Node]:
    """The placeholders that the caller fills with tensors."""
    kinds = {s.arg.name: s.kind for s in graph.program.graph_signature.input_specs if hasattr(s.arg, "name")}
    return [
        n
        for n in graph.program.graph.nodes
        if n.op == "placeholder"
        and kinds[n.name] == InputKind.USER_INPUT
        and isinstance(n.meta.get("val"), torch.Tensor)
    ]


class _Unsupported(Exception):
    """What the engine cannot run: node, op and reason."""


@dataclass(frozen=True)
class _Ref:
    """Where a node's tensor lives: its value, and its memory, which an in-place op changes for all who view it."""

    value: int
    memory: int


class _Call:
    """One node with its arguments by schema name."""

    def __init__(self, node: fx.Node) -> None:
        self.node = node
        self.name = op_name(node)
        self.args: dict[str, Any] = {}
        for position, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
            default = argument.default_value if argument.has_default_value() else None
            value = (
                node.args[position] if position < len(node.args) else node.kwargs.get(argument.name, default)
            )
            self.args[argument.name] = value

    @property
    def shape(self) -> tuple[int, ...]:
        return _shape(self.node)

    def pair(self, name: str) -> tuple[int, int]:
        """An argument of one or two integers as two."""
        value = self.args[name]
        items = [value] if isinstance(value, int) else list(value)
        if len(items) not in (1, 2) or not all(isinstance(i, int) for i in items):
            self.refuse(f"{name}={value}")
        return int(items[0]), int(items[-1])

    def refuse(self, why: str) -> NoReturn:
        inside = f" in {path}" if (path := module_path(self.node)) else ""
        raise _Unsupported(f"node {self.node.name}: {self.node.target}{inside}: {why}")


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(int(n) for n in node.meta["val"].shape)


class _Lowering:
    """The walk over the exported graph: a value for every activation, an op for every node that computes one."""

    def __init__(
        self, graph: Graph, subnets: Sequence[Subnet], shapes: Shapes, aliases: Mapping[str, str]
    ) -> None:
        self.graph, self.shapes, self.aliases = graph, shapes, aliases
        self.kept = np.stack([graph.kept(s.widths) for s in subnets])
        self.values: list[Value] = []
        self.traced: list[
            int
        ] = []  # channels of each value in the traced model, which a cut supernet has fewer of
        self.ops: list[Op] = []
        self.refs: dict[fx.Node, _Ref] = {}
        self.names: dict[fx.Node, str] = {}
        self.memories = 0

    @property
    def num(self) -> int:
        return len(self.kept)

    def run(self) -> tuple[tuple[Value, ...], tuple[Op, ...], tuple[int, ...]]:
        inputs = _inputs(self.graph)
        if (
            len(inputs) != 1
            or len(_shape(inputs[0])) not in (2, 4)
            or inputs[0].meta["val"].dtype != torch.float32
        ):
            shapes = [f"{n.meta['val'].dtype} {list(_shape(n))}" for n in inputs]
            raise _Unsupported(f"the model takes {', '.join(shapes)}; the engine one float32 image or vector")
        for spec in self.graph.program.graph_signature.input_specs:
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target is not None:
                self.names |= {
                    n: spec.target for n in self.graph.program.graph.nodes if n.name == spec.arg.name
                }
        batch, channels, *space = _shape(inputs[0])
        self.bind(inputs[0], self.value((Segment(channels, (channels,) * self.num),), space, channels))
        for node in self.graph.program.graph.nodes:
            if node.op == "call_function":
                self.call(node, batch)
            elif node.op not in ("placeholder", "output"):
                raise _Unsupported(f"node {node.name}: {node.op} {node.target}")
        return _renumber(self.values, *self.finish())

    def call(self, node: fx.Node, batch: int) -> None:
        in_place = bool(getattr(getattr(node.target, "_schema", None), "is_mutable", False))
        if not node.users and not in_place:
            return
        rule = RULES.get(op_name(node).removesuffix("_")) if is_aten(node) else None
        if rule is None:
            inside = f" in {path}" if (path := module_path(node)) else ""
            raise _Unsupported(f"node {node.name}: {node.target}{inside}: the engine has no such op")
        call = _Call(node)
        if not isinstance(node.meta.get("val"), torch.Tensor) or call.shape[:1] != (batch,):
            call.refuse("the batch is not the first dimension of its output")
        value = rule(self, call)
        source = self.refs.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if in_place:
            assert source is not None
            sharing = [n for n, ref in self.refs.items() if ref.memory == source.memory]
            if any(self.refs[n].value != source.value for n in sharing):
                call.refuse("changes a tensor in place of which another view is used")
            self.refs |= dict.fromkeys([*sharing, node], _Ref(value, source.memory))
        elif source is not None and call.name in _VIEWS:
            self.refs[node] = _Ref(value, source.memory)
        else:
            self.bind(node, value)

    def bind(self, node: fx.Node, value: int) -> None:
        self.memories += 1
        self.refs[node] = _Ref(value, self.memories)

    def finish(self) -> tuple[list[Op], tuple[int, ...]]:
        """The ops, fused, and the values that the model returns."""
        output = next(n for n in self.graph.program.graph.nodes if n.op == "output")
        outputs = []
        for node in output.args[0]:
            if not isinstance(node, fx.Node) or node not in self.refs:
                raise _Unsupported(f"the model returns {node}, which is no activation")
            v = self.refs[node].value
            form = self.form(node)
            if form == "flat" and self.values[v].area == 1:
                v = self.op(
                    lambda out, v=v: GlobalAvgPool(v, out), self.values[v].channels, (), self.traced[v]
                )
            elif form != "same":
                raise _Unsupported(f"node {node.name}: the model returns a reshaped activation")
            outputs.append(v)
        if len(set(outputs)) != len(outputs):
            raise _Unsupported("the model returns one activation twice")
        return _fuse(self.ops, outputs), tuple(outputs)

    # ---- what the rules build on ----

    def value(self, channels: tuple[Segment, ...], space: Sequence[int], traced: int) -> int:
        self.values.append(Value(channels, tuple(space)))
        self.traced.append(traced)
        return len(self.values) - 1

    def op(
        self, make: Callable[[int], Op], channels: tuple[Segment, ...], space: Sequence[int], traced: int
    ) -> int:
        """A new value of this shape and the op that makes it."""
        out = self.value(channels, space, traced)
        self.ops.append(make(out))
        return out

    def like(self, v: int, make: Callable[[int], Op], space: Sequence[int] | None = None) -> int:
        """A new value with the channels of `v` and the op that makes it."""
        x = self.values[v]
        return self.op(make, x.channels, x.space if space is None else space, self.traced[v])

    def form(self, node: fx.Node) -> str:
        """How a node's shape shows its value: as it is, flattened, or one position broadcast over a space."""
        v = self.refs[node].value
        channels, value, shape = self.traced[v], self.values[v], _shape(node)[1:]
        if shape == (channels, *value.space):
            return "same"
        if value.space and shape == (channels * value.area,):
            return "flat"
        if value.area == 1 and len(shape) == 3 and shape[0] == channels:
            return "broadcast"
        return "column" if value.area == 1 and shape == (channels, 1) else "other"

    def read(self, call: _Call, name: str, *forms: str) -> int:
        """The value of a tensor argument, which must have one of `forms`; one position flattened is a "vector"."""
        node = call.args[name]
        if not isinstance(node, fx.Node) or node not in self.refs:
            call.refuse(f"{name}={self.names.get(node, node)} is no activation")
        v, form = self.refs[node].value, self.form(node)
        if form not in forms and not (form == "flat" and self.values[v].area == 1 and "vector" in forms):
            call.refuse(f"reads {name} of shape {list(_shape(node))}")
        return v

    def tensor(self, call: _Call, name: str) -> str | None:
        """The stored name of a parameter or buffer argument."""
        node = call.args[name]
        if node is None:
            return None
        stored = self.names.get(node)
        stored = self.aliases.get(stored, stored) if stored is not None else None
        if stored not in self.shapes:
            call.refuse(f"{name}={node} is not a stored parameter or buffer")
        return stored

    def private(self, call: _Call, name: str) -> tuple[str, ...] | None:
        """The stored names, one a subnet, of a norm's parameter or buffer."""
        node = call.args[name]
        if node is None:
            return None
        own = self.names.get(node, "")
        names = [f"{own}@{k}" for k in range(self.num - 1)] + [own]
        names = [self.aliases.get(n, n) for n in names]
        if any(n not in self.shapes for n in names):
            call.refuse(f"{name}={node} is not a parameter or buffer stored for each subnet")
        return tuple(names)

    def segments(self, call: _Call) -> tuple[Segment, ...]:
        """The kept channels of a node as prefixes of as few runs as possible."""
        dims = self.graph.dims.get(call.node.name)
        units = (
            dims[1] if dims is not None and isinstance(dims[1], np.ndarray) else np.full(call.shape[1], -1)
        )
        masks = self.kept[:, units]
        masks = masks[:, masks[-1]]
        rises = (masks[:, 1:] & ~masks[:, :-1]).any(0)
        starts = [0, *(np.flatnonzero(rises) + 1).tolist(), masks.shape[1]]
        runs = [masks[:, a:b] for a, b in pairwise(starts)]
        if any((run.sum(1) == 0).any() for run in runs):
            call.refuse("the channels that a subnet keeps are not a prefix of each run of channels")
        return tuple(Segment(run.shape[1], tuple(run.sum(1).tolist())) for run in runs)


# ---- one function an op ----


def _conv2d(low: _Lowering, call: _Call) -> int:
    v = low.read(call, "input", "same")
    weight = low.tensor(call, "weight")
    assert weight is not None
    kernel = low.shapes[weight][1][2:]
    stride, dilation = call.pair("stride"), call.pair("dilation")
    padding = call.args["padding"]
    if padding == "valid":
        padding = (0, 0)
    elif padding == "same":
        ends = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if any(e % 2 for e in ends):
            call.refuse("padding='same' of an even kernel is not symmetric")
        padding = (ends[0] // 2, ends[1] // 2)
    else:
        padding = call.pair("padding")
    x, channels = low.values[v], low.segments(call)
    full = x.full // low.shapes[weight][1][1]

    def make(out: int) -> Op:
        op = Conv2d(
            v, out, weight, low.tensor(call, "bias"), stride, padding, dilation, (full,) * low.num
        )  # fmt: skip
        if full > 1:  # whole groups are removed, or else all groups stay and are cut
            cut = replace(op, groups=tuple(x.kept(k) // low.shapes[weight][1][1] for k in range(low.num)))
            op = cut if whole_groups(cut, full, x, low.values[out]) else op
        return op

    return low.op(make, channels, call.shape[2:], call.shape[1])


def _linear(low: _Lowering, call: _Call) -> int:
    v = low.read(call, "input", "same", "flat")
    if len(call.shape) != 2:
        call.refuse(f"acts on the last dimension of {list(call.shape)}")
    weight = low.tensor(call, "weight")
    assert weight is not None
    bias = low.tensor(call, "bias")
    return low.op(lambda out: Linear(v, out, weight, bias), low.segments(call), (), call.shape[1])


def _batch_norm(low: _Lowering, call: _Call) -> int:
    v = low.read(call, "input", "same", "vector")
    weight, bias, mean, var = (
        low.private(call, n) for n in ("weight", "bias", "running_mean", "running_var")
    )
    if mean is None or var is None or call.args["training"]:
        call.refuse("normalises with the statistics of the batch")
    norm = Norm(weight, bias, mean, var, float(call.args["eps"]))
    return low.like(v, lambda out: Normalize(v, out, norm))


def _activation(low: _Lowering, call: _Call) -> int:
    name = call.name.removesuffix("_")
    if name == "gelu" and call.args["approximate"] == "tanh":
        name = "gelu_tanh"
    return _pointwise(low, call, name)


def _clamp(low: _Lowering, call: _Call) -> int:
    """hardtanh, clamp and clamp_min are relu or relu6 with the right limits."""
    low_end = call.args.get("min_val", call.args.get("min"))
    high = call.args.get("max_val", call.args.get("max"))
    if low_end != 0 or high not in (None, 6):
        call.refuse(f"clamps to {low_end}..{high}")
    return _pointwise(low, call, "relu" if high is None else "relu6")


def _pointwise(low: _Lowering, call: _Call, name: str) -> int:
    v = low.read(call, "self" if "self" in call.args else "input", "same", "flat", "broadcast")
    return low.like(v, lambda out: Activation(v, out, name))


def _identity(low: _Lowering, call: _Call) -> int:
    if call.args.get("train"):
        call.refuse("drops activations in evaluation mode")
    if call.node.meta["val"].dtype != torch.float32:
        call.refuse(f"converts to {call.node.meta['val'].dtype}")
    return low.read(call, next(iter(call.args)), "same", "flat", "broadcast")


def _reshape(low: _Lowering, call: _Call) -> int:
    """Flattening, its inverse, and one position given or denied a space: the memory is the same."""
    v = low.read(call, next(iter(call.args)), "same", "flat", "broadcast", "column")
    channels, value = low.traced[v], low.values[v]
    wanted = call.shape[1:]
    one = value.area == 1 and wanted in ((channels,), (channels, 1), (channels, 1, 1))
    if not one and wanted not in ((channels, *value.space), (channels * value.area,)):
        call.refuse(f"to {list(call.shape)}")
    return v


def _expand(low: _Lowering, call: _Call) -> int:
    v = low.read(call, "self", "same", "broadcast")
    if low.values[v].area != 1 or len(call.shape) != 4 or call.shape[1] != low.traced[v]:
        call.refuse(f"to {list(call.shape)}")
    return v


def _max_pool2d(low: _Lowering, call: _Call) -> int:
    if call.pair("dilation") != (1, 1):
        call.refuse(f"dilation={call.args['dilation']}")
    v = low.read(call, "self", "same")
    kernel = call.pair("kernel_size")
    stride = call.pair("stride") if call.args["stride"] else kernel
    ceil = bool(call.args["ceil_mode"])
    return low.like(
        v, lambda out: MaxPool2d(v, out, kernel, stride, call.pair("padding"), ceil), call.shape[2:]
    )


def _avg_pool2d(low: _Lowering, call: _Call) -> int:
    if call.args["divisor_override"] is not None:
        call.refuse(f"divisor_override={call.args['divisor_override']}")
    v = low.read(call, "self", "same")
    kernel = call.pair("kernel_size")
    stride = call.pair("stride") if call.args["stride"] else kernel
    flags = bool(call.args["ceil_mode"]), bool(call.args["count_include_pad"])
    return low.like(
        v, lambda out: AvgPool2d(v, out, kernel, stride, call.pair("padding"), *flags), call.shape[2:]
    )


def _adaptive_avg_pool2d(low: _Lowering, call: _Call) -> int:
    v = low.read(call, "self", "same")
    size, want = low.values[v].space, call.shape[2:]
    if want == (1, 1):
        return low.like(v, lambda out: GlobalAvgPool(v, out), (1, 1))
    if any(n % m for n, m in zip(size, want, strict=True)):
        call.refuse(f"from {list(size)} to {list(want)}, which does not divide evenly")
    kernel = (size[0] // want[0], size[1] // want[1])
    return low.like(v, lambda out: AvgPool2d(v, out, kernel, kernel, (0, 0), False, True), want)


def _mean(low: _Lowering, call: _Call) -> int:
    v = low.read(call, "self", "same")
    dims = call.args.get("dim")
    if (
        len(low.values[v].space) != 2
        or dims is None
        or sorted(d % 4 for d in dims) != [2, 3]
        or call.args["dtype"]
    ):
        call.refuse(f"over dim={dims}")
    return low.like(v, lambda out: GlobalAvgPool(v, out), (1, 1) if call.args["keepdim"] else ())


def _add(low: _Lowering, call: _Call) -> int:
    if call.args.get("alpha", 1) != 1:
        call.refuse(f"alpha={call.args['alpha']}")
    a, b = (low.read(call, name, "same", "flat") for name in ("self", "other"))
    if _shape(call.args["self"]) != _shape(call.args["other"]) or low.values[a].space != low.values[b].space:
        call.refuse("adds tensors of different shapes")
    return low.like(a, lambda out: Add((a, b), out))


def _mul(low: _Lowering, call: _Call) -> int:
    a, b = (low.read(call, name, "same", "flat", "broadcast") for name in ("self", "other"))
    if low.values[a].area < low.values[b].area:
        a, b = b, a
    dims = [len(_shape(call.args[name])) for name in ("self", "other")]
    if dims[0] != dims[1] or (low.values[b].area != 1 and low.values[a].space != low.values[b].space):
        call.refuse("multiplies tensors of different shapes")
    return low.like(a, lambda out: Mul((a, b), out))


def _cat(low: _Lowering, call: _Call) -> int:
    nodes = call.args["tensors"]
    if call.args["dim"] % len(call.shape) != 1:
        call.refuse(f"along dim={call.args['dim']}")
    if len(nodes) == 1:
        return low.read(_with(call, nodes[0]), "tensors", "same")
    inputs = tuple(low.read(_with(call, node), "tensors", "same", "vector") for node in nodes)
    channels = tuple(s for v in inputs for s in low.values[v].channels)
    return low.op(lambda out: Concat(inputs, out), channels, low.values[inputs[0]].space, call.shape[1])


def _with(call: _Call, node: fx.Node) -> _Call:
    one = _Call(call.node)
    one.args["tensors"] = node
    return one


def _slice(low: _Lowering, call: _Call) -> int:
    v = low.read(call, "self", "same", "flat")
    dim, start, end, step = (call.args[n] for n in ("dim", "start", "end", "step"))
    source = _shape(call.args["self"])
    dim %= len(source)
    if start not in (None, 0) or (end is not None and end < source[dim]):
        call.refuse(f"takes {start}:{end} of dimension {dim}")
    if step == 1:
        return v
    if dim not in (2, 3) or len(source) != 4:
        call.refuse(f"takes every {step}. of dimension {dim}")
    stride = (step, 1) if dim == 2 else (1, step)
    return low.like(v, lambda out: Subsample(v, out, stride), call.shape[2:])


def _pad(low: _Lowering, call: _Call) -> int:
    v = low.read(call, "self" if "self" in call.args else "input", "same")
    amounts = [int(n) for n in call.args["pad"]]
    if call.args.get("mode", "constant") != "constant" or call.args["value"] not in (None, 0, 0.0):
        call.refuse(f"mode={call.args.get('mode')}, value={call.args['value']}")
    if not any(amounts):
        return v
    amounts += [0] * (2 * len(call.shape) - len(amounts))
    channel = 2 * (
        len(call.shape) - 2
    )  # amounts go from the last dimension to the first, (before, after) each
    if any(n for i, n in enumerate(amounts) if i != channel + 1) or amounts[channel + 1] < 0:
        call.refuse(f"pads {amounts}; the engine pads only the end of the channels")
    return low.op(lambda out: PadChannels(v, out), low.segments(call), low.values[v].space, call.shape[1])


def _softmax(low: _Lowering, call: _Call) -> int:
    v = low.read(call, "self", "same", "vector")
    if call.args["dim"] % len(call.shape) != 1 or call.args["dtype"] is not None:
        call.refuse(f"over dim={call.args['dim']}")
    return low.like(v, lambda out: Softmax(v, out))


RULES: Mapping[str, Callable[[_Lowering, _Call], int]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "batch_norm": _batch_norm,
    **dict.fromkeys(
        ("relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu", "tanh"), _activation
    ),
    **dict.fromkeys(("hardtanh", "clamp", "clamp_min"), _clamp),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"), _identity),
    **dict.fromkeys(("alias", "detach", "contiguous", "clone", "to", "lift_fresh_copy"), _identity),
    **dict.fromkeys(
        ("flatten", "view", "reshape", "squeeze", "unsqueeze", "unflatten", "_unsafe_view"), _reshape
    ),
    **dict.fromkeys(("expand", "expand_as"), _expand),
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "mean": _mean,
    "add": _add,
    "mul": _mul,
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    "slice": _slice,
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    "softmax": _softmax,
}

_VIEWS = frozenset(
    name
    for name, rule in RULES.items()
    if rule in (_identity, _reshape, _expand, _slice, _pad) and name not in ("clone", "lift_fresh_copy")
)
"""Ops whose output may share its input's memory; an in-place op on it is refused where another value is in it."""


# ---- fusion ----


def _fuse(ops: Sequence[Op], outputs: Sequence[int]) -> list[Op]:
    """Join norms, residual adds and activations to the op before them where nothing else reads what is between."""
    uses = Counter(v for op in ops for v in reads(op)) + Counter(outputs)
    done: list[Op | None] = []
    maker: dict[int, int] = {}
    for op in ops:
        joined: Op = op
        for v in sorted(
            reads(op), key=lambda v: -maker.get(v, -1)
        ):  # the latest made one, so that no op has to wait
            before = done[maker[v]] if v in maker else None
            if before is not None and uses[v] == 1 and (one := _join(before, op, v)) is not None:
                joined, done[maker[v]] = one, None
                break
        maker[op.output] = len(done)
        done.append(joined)
    return [op for op in done if op is not None]


def _join(a: Op, b: Op, v: int) -> Op | None:
    """`a` then `b` as one op, where `b` reads the value `v` of `a`; None where no op does both."""
    plain = getattr(a, "activation", None) is None and getattr(a, "add", None) is None
    if isinstance(b, Normalize) and isinstance(a, (Conv2d, Linear)) and plain and a.norm is None:
        return replace(a, norm=b.norm, activation=b.activation, output=b.output)
    if isinstance(b, Add) and isinstance(a, (Conv2d, Linear)) and plain:
        other = b.inputs[0] if b.inputs[1] == v else b.inputs[1]
        return replace(a, add=other, activation=b.activation, output=b.output)
    if (
        isinstance(b, Activation)
        and isinstance(a, (Conv2d, Linear, Normalize, Add, Mul))
        and a.activation is None
    ):
        return replace(a, activation=b.activation, output=b.output)
    if isinstance(a, Subsample) and isinstance(b, Subsample):
        return replace(a, stride=(a.stride[0] * b.stride[0], a.stride[1] * b.stride[1]), output=b.output)
    if isinstance(a, GlobalAvgPool) and isinstance(b, GlobalAvgPool):
        return replace(a, output=b.output)
    return None


def _renumber(
    values: Sequence[Value], ops: Sequence[Op], outputs: Sequence[int]
) -> tuple[tuple[Value, ...], tuple[Op, ...], tuple[int, ...]]:
    """Number the values that are left in the order in which they are made."""
    number = {0: 0} | {op.output: i + 1 for i, op in enumerate(ops)}

    def again(op: Op) -> Op:
        changed: dict[str, Any] = {"output": number[op.output]}
        for name in ("input", "add"):
            if getattr(op, name, None) is not None:
                changed[name] = number[getattr(op, name)]
        if isinstance(op, (Add, Mul, Concat)):
            changed["inputs"] = tuple(number[v] for v in op.inputs)
        return replace(op, **changed)

    return tuple(values[v] for v in number), tuple(map(again, ops)), tuple(number[v] for v in outputs)
