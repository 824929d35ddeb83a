"""How each ATen op carries channels: one function a rule, one dictionary of rules.

A **dim** of a value is either None (a fixed size, no channels) or an int64 array with one label an index. Rules merge
labels (union-find) where an op ties two channels together, and pin them where removing a channel would change what the
op means. An op without a rule pins every label that it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import fx

Dim = np.ndarray | None
Dims = tuple[Dim, ...]


class Labels:
    """Union-find over channel labels, with the reasons for which some are pinned and what the rules noted on the way.

    >>> labels = Labels()
    >>> a, b = labels.fresh(2), labels.fresh(2)
    >>> labels.merge(a, b, "add")
    >>> bool((labels.find(a) == labels.find(b)).all())
    True
    """

    def __init__(self) -> None:
        self._parent: list[int] = []
        self.pins: list[tuple[np.ndarray, str]] = []
        self.counts: list[tuple[str, str, np.ndarray]] = []
        """(module path, attribute or "" for any head-count attribute, labels): attributes that count these units."""
        self.extensions: list[tuple[np.ndarray, np.ndarray, str]] = []
        """(labels of the shorter dim, labels of the padded dim, node): zero padding at the end of the channels."""
        self.norms: set[str] = set()
        """Names of the nodes whose parameters are norm statistics or affines."""
        self.unruled: list[np.ndarray] = []
        """First dims of what ops without a rule read: to be told, though what they give carries no channels."""

    def __len__(self) -> int:
        return len(self._parent)

    def fresh(self, size: int) -> np.ndarray:
        start = len(self._parent)
        self._parent.extend(range(start, start + size))
        return np.arange(start, start + size)

    def _root(self, label: int) -> int:
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    def find(self, labels: np.ndarray) -> np.ndarray:
        return np.array([self._root(int(i)) for i in labels.ravel()], np.int64).reshape(labels.shape)

    def pin(self, labels: Dim, why: str) -> None:
        if labels is not None and labels.size:
            self.pins.append((labels, why))

    def merge(self, a: Dim, b: Dim, why: str) -> None:
        """Tie two dims index by index; a labelled dim that meets a fixed one is pinned."""
        if a is None or b is None:
            self.pin(b if a is None else a, f"{why} ties it to a fixed size")
            return
        if a.size != b.size:
            self.pin(a, f"{why} joins {a.size} and {b.size} channels")
            self.pin(b, f"{why} joins {a.size} and {b.size} channels")
            return
        for i, j in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True):
            self._parent[self._root(j)] = self._root(i)

    def merge_along(self, labels: np.ndarray, keep: int) -> np.ndarray:
        """Merge an array of labels over all its axes but `keep`: what is left has one label an index of `keep`."""
        rows = np.moveaxis(labels, keep, 0).reshape(labels.shape[keep], -1)
        for column in range(1, rows.shape[1]):
            self.merge(rows[:, 0], rows[:, column], "reshape")
        return rows[:, 0]


class Op:
    """One node as its rule sees it: arguments by schema name, dims of tensor arguments, output shape."""

    def __init__(self, node: fx.Node, dims: dict[str, Any], labels: Labels) -> None:
        self.node, self.labels, self._dims = node, labels, dims
        schema = getattr(node.target, "_schema", None)
        self.args: dict[str, Any] = {}
        if schema is not None:
            for position, argument in enumerate(schema.arguments):
                default = argument.default_value if argument.has_default_value() else None
                value = (
                    node.args[position]
                    if position < len(node.args)
                    else node.kwargs.get(argument.name, default)
                )
                self.args[argument.name] = value

    @property
    def where(self) -> str:
        """The op and the module that calls it, for reasons: `aten.mean.dim (layer1.0.norm)`."""
        module = module_path(self.node)
        return f"{self.node.target}" + (f" in {module}" if module else "")

    def dims(self, value: Any) -> Dims:
        return self._dims[value.name]

    def shape(self, value: Any = None) -> tuple[int, ...]:
        return tuple(int(s) for s in (value if value is not None else self.node).meta["val"].shape)

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def get(self, name: str, default: Any = None) -> Any:
        value = self.args.get(name, default)
        return default if value is None else value


def module_path(node: fx.Node) -> str:
    """The path of the innermost module that a node was traced in, "" for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return list(stack.values())[-1][0] if stack else ""


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]


def fixed(op: Op) -> Any:
    """Dims for an output without channels."""
    value = op.node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return (None,) * value.dim()
    if isinstance(value, (list, tuple)):
        return tuple((None,) * v.dim() if isinstance(v, torch.Tensor) else () for v in value)
    return ()


def unknown(op: Op) -> Any:
    """No rule: every channel that the op reads is kept whole. An assertion, which has no output, changes nothing."""
    if op.node.meta.get("val") is None:
        return ()
    for value in tensor_inputs(op.node):
        dims = op.dims(value)
        for dim in dims:
            op.labels.pin(dim, f"no rule for {op.where}")
        op.labels.unruled += [dim for dim in dims[:1] if isinstance(dim, np.ndarray)]
    return fixed(op)


# --- element-wise and shape -------------------------------------------------------------------------------------------


def elementwise(op: Op) -> Dims:
    """Broadcasting ops that treat all channels alike: the channels of the operands are the same channels."""
    shape = op.shape()
    out: list[Dim] = [None] * len(shape)
    for i in range(1, len(shape) + 1):
        size = shape[-i]
        met = [
            op.dims(v)[-i]
            for v in tensor_inputs(op.node)
            if len(op.dims(v)) >= i and op.shape(v)[-i] == size and size > 1
        ]
        labelled = [d for d in met if d is not None]
        for dim in met[1:] if labelled else []:
            op.labels.merge(met[0], dim, op.where)
        out[-i] = labelled[0] if labelled else None
    return tuple(out)


def permute(op: Op) -> Dims:
    dims = op.dims(op["self"])
    return tuple(dims[d] for d in op["dims"])


def transpose(op: Op) -> Dims:
    dims = list(op.dims(op["self"]))
    a, b = op["dim0"], op["dim1"]
    dims[a], dims[b] = dims[b], dims[a]
    return tuple(dims)


def transpose_2d(op: Op) -> Dims:
    """t, .T, .mT: the last two dims change places (.T of another rank than 2 has no rule)."""
    dims = op.dims(op["self"])
    return (*dims[:-2], *dims[-2:][::-1]) if len(dims) == 2 or op_name(op.node) == "mT" else unknown(op)


def reshape(op: Op) -> Dims:
    """Blocks of dims with equal products: merging repeats labels, splitting picks the unit of removal."""
    source, dims = op["self"], op.dims(op["self"])
    sizes, target = op.shape(source), op.shape()
    out: list[Dim] = [None] * len(target)
    i = j = 0
    while i < len(sizes) or j < len(target):
        i_end, j_end = i + 1, j + 1
        left = sizes[i] if i < len(sizes) else 1
        right = target[j] if j < len(target) else 1
        while left != right:
            if left < right:
                left, i_end = left * sizes[i_end], i_end + 1
            else:
                right, j_end = right * target[j_end], j_end + 1
        block = dims[i : min(i_end, len(sizes))]
        flat = _flatten(op, block, sizes[i : min(i_end, len(sizes))])
        if flat is not None and j < len(target):
            for position, dim in _split(op, flat, target, j, min(j_end, len(target))):
                out[position] = dim
        i, j = i_end, j_end
    return tuple(out)


def _flatten(op: Op, block: Sequence[Dim], sizes: Sequence[int]) -> Dim:
    """One label array for a block of dims read in row-major order."""
    labelled = [d for d, size in zip(block, sizes, strict=True) if d is not None and size > 1]
    if not labelled:
        return None
    if len(labelled) > 1:
        for dim in labelled:
            op.labels.pin(dim, f"{op.where} merges two channel dims")
        return None
    shape = [len(d) if d is not None and size > 1 else 1 for d, size in zip(block, sizes, strict=True)]
    return np.broadcast_to(labelled[0].reshape(shape), tuple(sizes)).reshape(-1)


def _split(op: Op, flat: np.ndarray, target: Sequence[int], start: int, end: int) -> list[tuple[int, Dim]]:
    sizes = tuple(target[start:end])
    wide = [k for k, size in enumerate(sizes) if size > 1]
    if len(wide) <= 1:
        return [(start + wide[0], flat)] if wide else []
    array = op.labels.find(flat).reshape(sizes)
    for k in wide:  # the labels may vary along one dim only already
        line = array[tuple(slice(None) if axis == k else slice(0, 1) for axis in range(len(sizes)))]
        if (array == line).all():
            op.labels.counts.append((module_path(op.node), "", line.ravel()))
            return [(start + k, line.ravel())]
    k = _unit_dim(op.node, start, sizes)
    kept = op.labels.merge_along(flat.reshape(sizes), k)
    op.labels.counts.append((module_path(op.node), "", kept))
    return [(start + k, kept)]


_CHAIN = {"contiguous", "clone", "dropout", "to", "detach", "alias", "mul", "div", "expand"}


def _unit_dim(node: fx.Node, start: int, sizes: tuple[int, ...]) -> int:
    """Which of the new dims of a split is the unit of removal.

    Dims that are taken apart (unbind, select: the 3 of a fused qkv) must stay whole. A pair that is swapped and joined
    again is a channel shuffle: its inner dim is the unit. Else the outermost: heads, not the elements of a head.
    """
    structural: set[int] = set()
    swapped = False
    queue = [
        (node, list(range(start, start + len(sizes))))
    ]  # a node, and which of its dims the new ones became
    while queue:
        current, where = queue.pop()
        rank = _rank(current)
        for user in current.users:
            name, args = op_name(user), Op(user, {}, Labels()).args
            if name == "permute":
                order = [d % rank for d in args["dims"]]
                queue.append((user, [order.index(p) for p in where]))
            elif name in ("transpose", "swapaxes"):
                a, b = args["dim0"] % rank, args["dim1"] % rank
                queue.append((user, [b if p == a else a if p == b else p for p in where]))
            elif name in ("unbind", "select", "split", "chunk", "split_with_sizes", "slice"):
                structural |= {k for k, p in enumerate(where) if p == args["dim"] % rank}
            elif RULES.get(name) is reshape:
                swapped |= _rank(user) < rank and any(b == a - 1 for a, b in pairwise(where))
            elif name in _CHAIN and _rank(user) == rank:
                queue.append((user, where))
    candidates = [k for k, size in enumerate(sizes) if size > 1 and k not in structural] or [0]
    return candidates[-1] if swapped else candidates[0]


def _rank(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, torch.Tensor) else 0


def squeeze(op: Op) -> Dims:
    wanted = len(op.shape())
    dims, sizes = list(op.dims(op["self"])), list(op.shape(op["self"]))
    chosen = op.args.get("dim")
    drop = range(len(sizes)) if chosen is None else [chosen] if isinstance(chosen, int) else chosen
    gone = {d % len(sizes) for d in drop if sizes[d] == 1}
    out = tuple(d for i, d in enumerate(dims) if i not in gone)
    assert len(out) == wanted
    return out


def unsqueeze(op: Op) -> Dims:
    dims = list(op.dims(op["self"]))
    dims.insert(op["dim"] % (len(dims) + 1), None)
    return tuple(dims)


def expand(op: Op) -> Dims:
    dims, sizes, shape = op.dims(op["self"]), op.shape(op["self"]), op.shape()
    lead = len(shape) - len(sizes)
    return (None,) * lead + tuple(
        d if s == t else None for d, s, t in zip(dims, sizes, shape[lead:], strict=True)
    )


def repeat(op: Op) -> Dims:
    dims, repeats = op.dims(op["self"]), op["repeats"]
    lead = len(repeats) - len(dims)
    return (None,) * lead + tuple(
        None if d is None else np.tile(d, r) for d, r in zip(dims, repeats[lead:], strict=True)
    )


def repeat_interleave(op: Op) -> Dims:
    if op.args.get("dim") is None or not isinstance(op.args.get("repeats"), int):
        return unknown(op)
    dims = list(op.dims(op["self"]))
    axis = op["dim"] % len(dims)
    if (dim := dims[axis]) is not None:
        dims[axis] = np.repeat(dim, op["repeats"])
    return tuple(dims)


def cat(op: Op) -> Dims:
    tensors = op["tensors"]
    rank = len(op.shape())
    axis = op.get("dim", 0) % rank
    tensors = [t for t in tensors if len(op.shape(t)) == rank]
    out: list[Dim] = list(op.dims(tensors[0]))
    for tensor in tensors[1:]:
        for i in range(rank):
            if i != axis and (out[i] is not None or op.dims(tensor)[i] is not None):
                op.labels.merge(out[i], op.dims(tensor)[i], op.where)
                out[i] = out[i] if out[i] is not None else op.dims(tensor)[i]
    parts = [op.dims(t)[axis] for t in tensors]
    if any(p is not None for p in parts):
        out[axis] = np.concatenate(
            [_pinned(op, op.shape(t)[axis]) if p is None else p for t, p in zip(tensors, parts, strict=True)]
        )
    return tuple(out)


def _pinned(op: Op, size: int) -> np.ndarray:
    labels = op.labels.fresh(size)
    op.labels.pin(labels, f"{op.where} joins channels with a fixed tensor")
    return labels


def stack(op: Op) -> Dims:
    tensors, rank = op["tensors"], len(op.shape())
    out = list(op.dims(tensors[0]))
    for tensor in tensors[1:]:
        for i, dim in enumerate(op.dims(tensor)):
            if out[i] is not None or dim is not None:
                op.labels.merge(out[i], dim, op.where)
    out.insert(op.get("dim", 0) % rank, None)
    return tuple(out)


def split(op: Op) -> tuple[Dims, ...]:
    """split, chunk: consecutive ranges of one dim."""
    dims = op.dims(op["self"])
    axis = op.get("dim", 0) % len(dims)
    out, start = [], 0
    for part in op.node.meta["val"]:
        size = int(part.shape[axis])
        piece = dims[axis]
        out.append(dims[:axis] + (None if piece is None else piece[start : start + size],) + dims[axis + 1 :])
        start += size
    return tuple(out)


def unbind(op: Op) -> tuple[Dims, ...]:
    dims = op.dims(op["self"])
    axis = op.get("dim", 0) % len(dims)
    op.labels.pin(dims[axis], f"{op.where} takes the channels apart")
    return (dims[:axis] + dims[axis + 1 :],) * len(op.node.meta["val"])


def select(op: Op) -> Dims:
    dims = op.dims(op["self"])
    axis = op["dim"] % len(dims)
    op.labels.pin(dims[axis], f"{op.where} picks one channel")
    return dims[:axis] + dims[axis + 1 :]


def slice_(op: Op) -> Dims:
    dims = list(op.dims(op["self"]))
    axis = op.get("dim", 0) % len(dims)
    if (dim := dims[axis]) is not None:
        dims[axis] = dim[slice(op.args.get("start"), op.args.get("end"), op.get("step", 1))]
    return tuple(dims)


def getitem(op: Op) -> Any:
    source, index = op.node.args
    return op.dims(source)[index]  # type: ignore[index]


def pad(op: Op) -> Dims:
    """Zero padding behind the channels makes a longer dim that extends the shorter one; in front of them it pins."""
    dims = list(op.dims(op["self"]))
    amounts = list(op["pad"])
    constant = op.get("mode", "constant") == "constant" and not op.get("value", 0)
    for i in range(len(amounts) // 2):
        before, after = amounts[2 * i], amounts[2 * i + 1]
        axis = len(dims) - 1 - i
        dim = dims[axis]
        if dim is None or (before == 0 and after == 0):
            continue
        size = op.shape()[axis]
        longer = op.labels.fresh(size)
        if before == 0 and after > 0 and constant:
            op.labels.extensions.append((dim, longer, op.where))
        else:
            why = f"{op.where} pads in front of the channels; only zeros behind them keep the order"
            op.labels.pin(dim, why)
            op.labels.pin(longer, why)
        dims[axis] = longer
    return tuple(dims)


def channel_shuffle(op: Op) -> Dims:
    dims = list(op.dims(op["self"]))
    if (dim := dims[1]) is not None:
        grid = dim.reshape(op["groups"], -1)
        op.labels.merge_along(grid, 1)
        dims[1] = grid.T.reshape(-1)
    return tuple(dims)


def pixel_shuffle(op: Op) -> Dims:
    dims = list(op.dims(op["self"]))
    channels = dims[-3]
    if channels is not None:
        dims[-3] = op.labels.merge_along(channels.reshape(-1, op["upscale_factor"] ** 2), 0)
    return (*dims[:-2], None, None)


def pixel_unshuffle(op: Op) -> Dims:
    dims = list(op.dims(op["self"]))
    channels = dims[-3]
    if channels is not None:
        dims[-3] = np.repeat(channels, op["downscale_factor"] ** 2)
    return (*dims[:-2], None, None)


# --- reductions -------------------------------------------------------------------------------------------------------


def _reduced_axes(op: Op) -> set[int]:
    rank = len(op.dims(op["self"]))
    axes = op.args.get("dim")
    if axes is None or axes == []:
        return set(range(rank))
    return {a % rank for a in ([axes] if isinstance(axes, int) else axes)}


def reduction(op: Op) -> Any:
    """Reductions whose value depends on how many channels there are (mean, max, norm, ...)."""
    if "other" in op.args:  # max and min of two tensors
        return elementwise(op)
    for axis in _reduced_axes(op):
        op.labels.pin(op.dims(op["self"])[axis], f"{op.where} reduces over the channels")
    return _drop_reduced(op)


def sum_(op: Op) -> Any:
    return _drop_reduced(op)


def _drop_reduced(op: Op) -> Any:
    axes, dims = _reduced_axes(op), op.dims(op["self"])
    out = tuple(None if i in axes else d for i, d in enumerate(dims))
    if not op.get("keepdim", False):
        out = tuple(d for i, d in enumerate(out) if i not in axes)
    value = op.node.meta["val"]
    return out if isinstance(value, torch.Tensor) else (out,) * len(value)


def along_dim(op: Op) -> Dims:
    """What softmax and its like do: a channel's value depends on all the others."""
    dims = op.dims(op["self"])
    op.labels.pin(dims[op["dim"] % len(dims)], f"{op.where} runs over the channels")
    return dims


def glu(op: Op) -> Dims:
    dims = list(op.dims(op["self"]))
    axis = op.get("dim", -1) % len(dims)
    if (dim := dims[axis]) is not None:
        half = len(dim) // 2
        op.labels.merge(dim[:half], dim[half:], op.where)
        dims[axis] = dim[:half]
    return tuple(dims)


def einsum(op: Op) -> Dims:
    """One letter, one dim: the same letter ties the channels of its operands."""
    inputs, equals, output = op["equation"].replace(" ", "").partition("->")
    if "." in inputs or not equals or any(len(set(term)) < len(term) for term in inputs.split(",")):
        return unknown(op)
    letters: dict[str, Dim] = {}
    for term, tensor in zip(inputs.split(","), op["tensors"], strict=True):
        for letter, dim in zip(term, op.dims(tensor), strict=True):
            known = letters.get(letter)
            if letter in letters and (known is not None or dim is not None):
                op.labels.merge(known, dim, op.where)
            letters[letter] = dim if known is None else known
    return tuple(letters[letter] for letter in output)


# --- layers -----------------------------------------------------------------------------------------------------------


def linear(op: Op) -> Dims:
    x, weight = op.dims(op["input"]), op.dims(op["weight"])
    if any(dim is None for dim in weight):
        return unknown(op)
    op.labels.merge(weight[1], x[-1], op.where)
    if op.args.get("bias") is not None:
        op.labels.merge(weight[0], op.dims(op["bias"])[0], op.where)
    return (*x[:-1], weight[0])


def matmul(op: Op) -> Dims:
    a, b = (op.dims(v) for v in op.node.args[:2])
    if len(a) < 2 or len(b) < 2:
        return unknown(op)
    if a[-1] is not None or b[-2] is not None:
        op.labels.merge(a[-1], b[-2], op.where)
    shapes = [op.shape(v) for v in op.node.args[:2]]
    return (*_batch(op, [a[:-2], b[:-2]], [s[:-2] for s in shapes]), a[-2], b[-1])


def _batch(op: Op, dims: Sequence[Dims], shapes: Sequence[tuple[int, ...]]) -> Dims:
    """Batch dims of a product, broadcast and merged as in an element-wise op."""
    rank = max(len(d) for d in dims)
    out: list[Dim] = [None] * rank
    for i in range(1, rank + 1):
        size = max(s[-i] for s in shapes if len(s) >= i)
        met = [d[-i] for d, s in zip(dims, shapes, strict=True) if len(d) >= i and s[-i] == size and size > 1]
        labelled = [d for d in met if d is not None]
        for dim in met[1:] if labelled else []:
            op.labels.merge(met[0], dim, op.where)
        out[-i] = labelled[0] if labelled else None
    return tuple(out)


def addmm(op: Op) -> Dims:
    a, b, bias = op.dims(op["mat1"]), op.dims(op["mat2"]), op.dims(op["self"])
    if a[1] is not None or b[0] is not None:
        op.labels.merge(a[1], b[0], op.where)
    if b[1] is not None or bias[-1] is not None:
        op.labels.merge(b[1], bias[-1], op.where)
    return (a[0], b[1])


def attention(op: Op) -> Dims:
    names = ("query", "key", "value")
    query, key, value = (op.dims(op[n]) for n in names)
    matrix = (query[-2], value[-1])
    shapes = [op.shape(op[n]) for n in names]
    if query[-1] is not None or key[-1] is not None:
        op.labels.merge(query[-1], key[-1], op.where)
        if op.args.get("scale") is None:
            op.labels.pin(query[-1], f"{op.where} scales by the number of channels")
    heads = [list(d) for d in (query, key, value)]
    if len(query) >= 3 and shapes[0][-3] != shapes[1][-3]:
        factor = shapes[0][-3] // shapes[1][-3]
        for d in heads[1:]:
            d[-3] = None if d[-3] is None else np.repeat(d[-3], factor)
        shapes = [(*s[:-3], shapes[0][-3], *s[-2:]) for s in shapes]
    outer, sizes = [tuple(h[:-2]) for h in heads], [s[:-2] for s in shapes]
    if (mask := op.args.get("attn_mask")) is not None:  # a bias per head goes with its head
        outer, sizes = [*outer, op.dims(mask)[:-2]], [*sizes, op.shape(mask)[:-2]]
    return (*_batch(op, outer, sizes), *matrix)


def convolution(op: Op) -> Dims:
    x, weight = op.dims(op["input"]), op.dims(op["weight"])
    groups, out = op.get("groups", 1), weight[0]
    if any(dim is None for dim in weight):
        return unknown(op)  # a computed weight: weight norm, a dynamic convolution
    for kernel in weight[2:]:
        op.labels.pin(kernel, "kernel of a convolution")
    if groups == 1:
        op.labels.merge(weight[1], x[1], op.where)
    else:
        out = _grouped(op, groups, out, weight[1], x[1])
    _bias(op, out)
    return (x[0], out, *(None,) * (len(x) - 2))


def _grouped(op: Op, groups: int, out: Dim, inner: Dim, x: Dim) -> Dim:
    """Remove whole groups where there are many (depthwise, ResNeXt), else the same channels of every group."""
    assert out is not None and inner is not None
    if x is None:
        op.labels.pin(out, f"{op.where} groups a fixed input")
        op.labels.pin(inner, f"{op.where} groups a fixed input")
        return out
    per_group = len(out) // groups
    if groups >= per_group and groups >= len(inner):
        kept = op.labels.merge_along(out.reshape(groups, -1), 0)
        op.labels.merge(kept, op.labels.merge_along(x.reshape(groups, -1), 0), op.where)
        op.labels.pin(inner, "inside a convolution group")
        op.labels.counts.append((module_path(op.node), "groups", kept))
    else:
        op.labels.merge_along(out.reshape(groups, -1), 1)
        op.labels.merge(inner, op.labels.merge_along(x.reshape(groups, -1), 1), op.where)
    return out


def _bias(op: Op, out: Dim) -> None:
    if op.args.get("bias") is not None:
        op.labels.merge(out, op.dims(op["bias"])[0], op.where)


def conv_transpose(op: Op) -> Dims:
    x, weight = op.dims(op["input"]), op.dims(op["weight"])
    groups = op.get("groups", 1)
    if groups != 1 or any(dim is None for dim in weight):
        return unknown(op)
    op.labels.merge(weight[0], x[1], op.where)
    _bias(op, weight[1])
    return (x[0], weight[1], *(None,) * (len(x) - 2))


def spatial(rank: int) -> Callable[[Op], Any]:
    """Pooling, resizing: the last `rank` dims are space, the others pass through."""

    def rule(op: Op) -> Any:
        dims = op.dims(op.node.args[0])
        for dim in dims[-rank:]:
            op.labels.pin(dim, f"{op.where} treats the channels as space")
        out = (*dims[:-rank], *(None,) * rank)
        value = op.node.meta["val"]
        return out if isinstance(value, torch.Tensor) else (out,) * len(value)

    return rule


def _tie_norm(op: Op, dim: Dim, names: Iterable[str]) -> None:
    for name in names:
        value = op.args.get(name)
        if value is not None:
            op.labels.norms.add(value.name)
            op.labels.merge(dim, op.dims(value)[0], op.where)


def batch_norm(op: Op) -> Dims:
    dims = op.dims(op["input"])
    _tie_norm(op, dims[1], ("weight", "bias", "running_mean", "running_var"))
    return dims


def layer_norm(op: Op) -> Dims:
    """Normalises over the kept channels only; that it is so is part of what a subnet means."""
    dims = op.dims(op["input"])
    shape = op["normalized_shape"]
    if len(shape) != 1:
        for dim in dims[-len(shape) :]:
            op.labels.pin(dim, f"{op.where} normalises over several dims")
        for name in ("weight", "bias"):
            for dim in op.dims(op[name]) if op.args.get(name) is not None else ():
                op.labels.pin(dim, f"{op.where} normalises over several dims")
        return dims
    _tie_norm(op, dims[-1], [n for n in ("weight", "bias") if n in op.args])
    return dims


def group_norm(op: Op) -> Dims:
    dims = op.dims(op["input"])
    dim, groups = dims[1], op["num_groups"]
    _tie_norm(op, dim, ("weight", "bias"))
    if dim is not None and groups > 1:
        kept = op.labels.merge_along(dim.reshape(groups, -1), 0)
        op.labels.counts.append((module_path(op.node), "num_groups", kept))
    return dims


def prelu(op: Op) -> Dims:
    dims, weight = op.dims(op["self"]), op.dims(op["weight"])
    if op.shape(op["weight"])[0] > 1:
        op.labels.merge(dims[1], weight[0], op.where)
    else:
        op.labels.pin(weight[0], "one slope for all channels")
    return dims


def embedding(op: Op) -> Dims:
    weight = op.dims(op["weight"])
    op.labels.pin(weight[0], "rows of an embedding table")
    return (*op.dims(op["indices"]), weight[1])


_ELEMENTWISE = """
abs add addcmul bitwise_and bitwise_not bitwise_or celu clamp clamp_max clamp_min clip cos div elu eq erf exp floor ge
gelu gt hardsigmoid hardswish hardtanh le leaky_relu log logical_and logical_not logical_or lt masked_fill maximum
minimum mish mul ne neg pow reciprocal relu relu6 rsqrt rsub selu sigmoid sign silu sin softplus sqrt square sub tanh
threshold where
""".split()
_IDENTITY = """
__and__ _to_copy alias alpha_dropout clone contiguous detach dropout empty_like feature_dropout full_like
lift_fresh_copy ones_like to type_as zeros_like
""".split()
_POOL = {1: "1d", 2: "2d", 3: "3d"}

RULES: Mapping[str, Callable[[Op], Any]] = {
    **dict.fromkeys(_ELEMENTWISE, elementwise),
    **dict.fromkeys(_IDENTITY, elementwise),
    **dict.fromkeys([f"{name}_" for name in (*_ELEMENTWISE, "dropout", "feature_dropout")], elementwise),
    **dict.fromkeys(
        ["view", "reshape", "flatten", "unflatten", "_unsafe_view", "view_as", "reshape_as"], reshape
    ),
    **dict.fromkeys(["conv1d", "conv2d", "conv3d"], convolution),
    **dict.fromkeys(["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"], conv_transpose),
    **dict.fromkeys(
        ["mean", "amax", "amin", "max", "min", "var", "std", "prod", "any", "all", "argmax"], reduction
    ),
    **dict.fromkeys(["linalg_vector_norm", "norm", "logsumexp", "var_mean", "std_mean"], reduction),
    **dict.fromkeys(["softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum"], along_dim),
    **dict.fromkeys(["split", "chunk", "split_with_sizes", "tensor_split"], split),
    **dict.fromkeys(["matmul", "bmm", "mm"], matmul),
    **dict.fromkeys(["cat", "concat", "concatenate"], cat),
    **{f"{kind}_pool{_POOL[n]}": spatial(n) for kind in ("max", "avg") for n in _POOL},
    **{f"adaptive_{kind}_pool{_POOL[n]}": spatial(n) for kind in ("max", "avg") for n in _POOL},
    **{f"max_pool{_POOL[n]}_with_indices": spatial(n) for n in _POOL},
    **{f"upsample_{kind}2d": spatial(2) for kind in ("nearest", "bilinear", "bicubic", "nearest_exact")},
    **dict.fromkeys(["transpose", "swapaxes", "swapdims"], transpose),
    "sum": sum_,
    "permute": permute,
    **dict.fromkeys(["t", "numpy_T", "mT"], transpose_2d),
    "squeeze": squeeze,
    "unsqueeze": unsqueeze,
    "expand": expand,
    "expand_as": expand,
    "repeat": repeat,
    "repeat_interleave": repeat_interleave,
    "stack": stack,
    "unbind": unbind,
    "select": select,
    "slice": slice_,
    "getitem": getitem,
    "pad": pad,
    "constant_pad_nd": pad,
    "channel_shuffle": channel_shuffle,
    "native_channel_shuffle": channel_shuffle,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "glu": glu,
    "einsum": einsum,
    "instance_norm": batch_norm,
    "linear": linear,
    "addmm": addmm,
    "scaled_dot_product_attention": attention,
    "batch_norm": batch_norm,
    "layer_norm": layer_norm,
    "rms_norm": layer_norm,
    "group_norm": group_norm,
    "prelu": prelu,
    "embedding": embedding,
}
"""Op name without overload → rule. A rule reads `op` and returns the dims of the output."""


def op_name(node: fx.Node) -> str:
    """`aten.conv2d.default` → `conv2d`; anything else by its own name."""
    packet = getattr(node.target, "overloadpacket", None)
    return packet.__name__ if packet is not None else getattr(node.target, "__name__", str(node.target))


def is_aten(node: fx.Node) -> bool:
    return getattr(node.target, "namespace", "") == "aten" or op_name(node) == "getitem"


def apply(node: fx.Node, dims: dict[str, Any], labels: Labels) -> Any:
    """The dims of a node's output, by its rule."""
    op = Op(node, dims, labels)
    rule = RULES.get(op_name(node)) if is_aten(node) else None
    if rule is None or not (tensor_inputs(node) or op_name(node) == "getitem"):
        return unknown(op)
    out = rule(op)
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        assert len(out) == value.dim(), f"{op.where}: rule gave {len(out)} dims, the value has {value.dim()}"
        for dim, size in zip(out, value.shape, strict=True):
            assert dim is None or len(dim) == size, (
                f"{op.where}: rule gave {len(dim)} labels for size {int(size)}"
            )
    return out
