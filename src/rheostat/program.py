"""The program of an artifact: what the engine executes, for every subnet at once, and where in memory.

`program_json` reads and writes one, `program_check` says whether it fits the tensors that it names.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from rheostat.spec import SubnetInfo

MAX_INT = 2**31 - 1  # sizes, indices and offsets fit the engine's int32
MAX_WINDOW = 65_535  # kernel, stride, padding, dilation
MAX_SHIFT = 61
ALIGN = 16  # floats that a value's place in memory is a multiple of: one cache line, one AVX-512 register
LEVELS = "@levels"  # the levels of tensor NAME are the tensor NAME@levels
MAX_BIAS = 2**61  # with it no integer op exceeds int64 (docs/quant.md)

ENCODINGS = ("bitmap", "nested", "delta", "pattern")
ACTIVATIONS = ("relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu", "gelu_tanh", "tanh")

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
"""Tensor name -> (safetensors dtype such as "F32", shape): all that checking a program needs to know of the tensors."""


@dataclass(frozen=True)
class Segment:
    """A run of `full` channels of which subnet k keeps the first `kept[k]`, stored compactly.

    >>> Segment(16, (4, 8, 16)).kept[0]
    4
    """

    full: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """One activation without its batch dimension: segments of channels times a space of (H, W), or () for a vector.

    >>> value = Value((Segment(4, (2, 4)), Segment(3, (1, 3))), (8, 8))
    >>> value.full, value.kept(0), value.size(0), value.indices(0).tolist()
    (7, 3, 192, [0, 1, 4])
    """

    channels: tuple[Segment, ...]
    space: tuple[int, ...]

    @property
    def full(self) -> int:
        """Channels of the shared weights' axis, kept or not."""
        return sum(s.full for s in self.channels)

    @property
    def area(self) -> int:
        """Positions: H * W, or 1 for a vector."""
        return math.prod(self.space)

    def kept(self, k: int) -> int:
        """Channels that subnet `k` keeps."""
        return sum(s.kept[k] for s in self.channels)

    def size(self, k: int) -> int:
        """Floats of one sample in subnet `k`."""
        return self.kept(k) * self.area

    def indices(self, k: int) -> np.ndarray:
        """Positions on the full channel axis of the channels that subnet `k` keeps, int64 and increasing."""
        starts = np.cumsum([0] + [s.full for s in self.channels[:-1]])
        return np.concatenate(
            [np.arange(a, a + s.kept[k]) for a, s in zip(starts, self.channels, strict=True)]
        )

    def whole(self) -> bool:
        """Whether every subnet keeps every channel."""
        return all(n == s.full for s in self.channels for n in s.kept)

    def layout(self) -> tuple[Segment, ...]:
        """Segments merged where a prefix of both together is the same; values of equal layout keep the same channels.

        >>> Value((Segment(4, (4, 4)), Segment(3, (1, 3))), ()).layout()
        (Segment(full=7, kept=(5, 7)),)
        """
        merged: list[Segment] = []
        for s in self.channels:
            if merged and all(n == merged[-1].full for n in merged[-1].kept):
                whole = merged.pop().full
                s = Segment(whole + s.full, tuple(whole + n for n in s.kept))
            merged.append(s)
        return tuple(merged)


@dataclass(frozen=True)
class Group:
    """A channel group: interchangeable units, of which subnet k keeps the first `widths[k]`."""

    name: str
    size: int
    widths: tuple[int, ...]
    pinned: str | None = None


@dataclass(frozen=True)
class Norm:
    """Batch normalisation y = (x - mean) / sqrt(var + eps) * weight + bias, one compact tensor name per subnet."""

    weight: tuple[str, ...] | None
    bias: tuple[str, ...] | None
    mean: tuple[str, ...]
    var: tuple[str, ...]
    eps: float


@dataclass(frozen=True)
class Conv2d:
    """y = activation(norm(conv(x)) + add): weight [O, I/g, kh, kw], zero padding, `groups[k]` groups in subnet k.

    With g > 1 either whole groups are removed (each segment of input and output keeps the same groups; sizes within a
    group are constant) or each group keeps a prefix (groups[k] = g; g equal segments on each side that is not whole).
    """

    op: ClassVar[str] = "conv2d"
    input: int
    output: int
    weight: str
    bias: str | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: tuple[int, ...]
    norm: Norm | None = None
    activation: str | None = None
    add: int | None = None


@dataclass(frozen=True)
class Linear:
    """y = activation(norm(W x + b) + add): weight [O, I]; a spatial input is flattened in C, H, W order."""

    op: ClassVar[str] = "linear"
    input: int
    output: int
    weight: str
    bias: str | None
    norm: Norm | None = None
    activation: str | None = None
    add: int | None = None


@dataclass(frozen=True)
class Normalize:
    """A batch norm of its own, as in pre-activation networks; `norm` is None only where it is folded into integers."""

    op: ClassVar[str] = "norm"
    input: int
    output: int
    norm: Norm | None = None
    activation: str | None = None


@dataclass(frozen=True)
class Activation:
    """One of `ACTIVATIONS`, elementwise."""

    op: ClassVar[str] = "activation"
    input: int
    output: int
    activation: str


@dataclass(frozen=True)
class MaxPool2d:
    """Maximum over windows; padding counts as minus infinity. `ceil_mode` as in PyTorch."""

    op: ClassVar[str] = "max_pool2d"
    input: int
    output: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    ceil_mode: bool


@dataclass(frozen=True)
class AvgPool2d:
    """Mean over windows; with `count_include_pad` the padding counts as zeros. `ceil_mode` as in PyTorch."""

    op: ClassVar[str] = "avg_pool2d"
    input: int
    output: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    ceil_mode: bool
    count_include_pad: bool


@dataclass(frozen=True)
class GlobalAvgPool:
    """Mean over the space; the output's space is (1, 1) or ()."""

    op: ClassVar[str] = "global_avg_pool"
    input: int
    output: int


@dataclass(frozen=True)
class Add:
    """activation(a + b), equal shapes."""

    op: ClassVar[str] = "add"
    inputs: tuple[int, ...]
    output: int
    activation: str | None = None


@dataclass(frozen=True)
class Mul:
    """activation(a * b); b may have space (1, 1) or () and is then broadcast (squeeze and excite)."""

    op: ClassVar[str] = "mul"
    inputs: tuple[int, ...]
    output: int
    activation: str | None = None


@dataclass(frozen=True)
class Concat:
    """The inputs' channels one after the other, segment by segment."""

    op: ClassVar[str] = "concat"
    inputs: tuple[int, ...]
    output: int


@dataclass(frozen=True)
class Subsample:
    """x[:, ::stride[0], ::stride[1]]."""

    op: ClassVar[str] = "subsample"
    input: int
    output: int
    stride: tuple[int, int]


@dataclass(frozen=True)
class PadChannels:
    """The input's channels, then zero channels up to the output's, in every subnet."""

    op: ClassVar[str] = "pad_channels"
    input: int
    output: int


@dataclass(frozen=True)
class Softmax:
    """Softmax over the channels."""

    op: ClassVar[str] = "softmax"
    input: int
    output: int


Op = (
    Conv2d | Linear | Normalize | Activation | MaxPool2d | AvgPool2d | GlobalAvgPool
    | Add | Mul | Concat | Subsample | PadChannels | Softmax
)  # fmt: skip
OPS: Mapping[str, type[Op]] = {c.op: c for c in Op.__args__}


@dataclass(frozen=True)
class Input:
    """Name and shape, without the batch dimension, of what the model takes."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """The activation arena: `size` floats per sample, value v at `offsets[v]`, for the largest subnet."""

    size: int
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class QuantOp:
    """The integers of one op (docs/quant.md); every tuple has one entry a subnet.

    `multiplier`, `bias` and `table` name tensors; `factors` has one number for each input that is rescaled.
    """

    high: tuple[int, ...]
    shift: tuple[int, ...]
    pre: tuple[int, ...]
    factors: tuple[tuple[int, ...], ...]
    multiplier: tuple[str, ...] | None = None
    bias: tuple[str, ...] | None = None
    table: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Quantization:
    """How a program runs on integers: bits, and for each value its sign and its scale in every subnet.

    >>> q = Quantization(8, 8, (True, False), ((0.5,), (0.25,)), ())
    >>> q.low(0), q.top(0), q.low(1), q.top(1)
    (0, 255, -127, 127)
    """

    bits_weights: int
    bits_activations: int
    unsigned: tuple[bool, ...]
    scales: tuple[tuple[float, ...], ...]
    ops: tuple[QuantOp, ...]

    @property
    def weight_dtype(self) -> str:
        """The safetensors dtype of the weights."""
        return f"I{self.bits_weights}"

    def low(self, v: int) -> int:
        """The smallest integer of value `v`."""
        return 0 if self.unsigned[v] else -self.top(v)

    def top(self, v: int) -> int:
        """The largest integer of value `v`."""
        if self.bits_activations == 16:
            return 2**15 - 1
        return 255 if self.unsigned[v] else 127

    def sum_bound(self, v: int, inputs: int) -> int:
        """The largest size of a sum of `inputs` weights times elements of value `v`."""
        return inputs * self.top(v) * 2 ** (self.bits_weights - 1)


@dataclass(frozen=True)
class LevelCode:
    """How the levels of one tensor of `shape` are stored (docs/format.md): subnet k keeps the weights of level <= k.

    `counts[k]` weights have level k; the rest no subnet keeps. `group` consecutive weights share an id of a "pattern";
    it is 1 for the other encodings. `index_bytes` is what the encoded levels take.

    >>> LevelCode((2, 3), "bitmap", 1, (1, 3), 2).kept(1)
    4
    """

    shape: tuple[int, ...]
    encoding: str
    group: int
    counts: tuple[int, ...]
    index_bytes: int

    def kept(self, k: int) -> int:
        """Weights that subnet `k` keeps."""
        return sum(self.counts[: k + 1])


@dataclass(frozen=True)
class Program:
    """Everything an artifact says besides its tensors. `ops` is None where the engine cannot run the model.

    `sha256` covers the tensors and `levels` says how those named NAME@levels are stored (docs/format.md);
    `artifact.write` fills both in.
    """

    model: str
    input: Input
    subnets: tuple[SubnetInfo, ...]
    groups: tuple[Group, ...]
    values: tuple[Value, ...] = ()
    ops: tuple[Op, ...] | None = None
    unsupported: str | None = None
    outputs: tuple[int, ...] = ()
    plan: Plan = Plan(0, ())
    aliases: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, str | int | float] = field(default_factory=dict)
    producer: str = ""
    sha256: str = "0" * 64
    quant: Quantization | None = None
    levels: Mapping[str, LevelCode] = field(default_factory=dict)


def reads(op: Op) -> tuple[int, ...]:
    """The values that `op` reads, the residual of its epilogue included.

    >>> reads(Add((1, 2), 3))
    (1, 2)
    """
    if isinstance(op, (Add, Mul, Concat)):
        return op.inputs
    if isinstance(op, (Conv2d, Linear)) and op.add is not None:
        return (op.input, op.add)
    return (op.input,)


def tabled(op: Op) -> bool:
    """Whether the integer form of `op` is a table: an activation other than ReLU and ReLU6.

    >>> tabled(Activation(0, 1, "hardswish")), tabled(Activation(0, 1, "relu6"))
    (True, False)
    """
    return isinstance(op, Activation) and op.activation not in ("relu", "relu6")


def num_factors(op: Op) -> int:
    """How many factors the integer form of `op` has: one for each input that is rescaled as a whole.

    >>> num_factors(Concat((0, 1, 2), 3)), num_factors(MaxPool2d(0, 1, (2, 2), (2, 2), (0, 0), False))
    (3, 0)
    """
    if isinstance(op, (Add, Concat)):
        return len(op.inputs)
    if isinstance(op, (Conv2d, Linear)):
        return int(op.add is not None)
    return int(isinstance(op, (Mul, AvgPool2d, GlobalAvgPool, Activation)) and not tabled(op))


def live_ranges(
    ops: tuple[Op, ...] | list[Op], outputs: tuple[int, ...], num_values: int
) -> list[tuple[int, int]]:
    """For each value the first and last op during which its memory is in use; the input from -1, outputs to the end.

    >>> live_ranges([Activation(0, 1, "relu"), Softmax(1, 2)], (2,), 3)
    [(-1, 0), (0, 1), (1, 2)]
    """
    first, last = [-1] * num_values, [-1] * num_values
    for t, op in enumerate(ops):
        first[op.output] = last[op.output] = t
        for v in reads(op):
            last[v] = t
    for v in outputs:
        last[v] = len(ops)
    return list(zip(first, last, strict=True))


def plan(
    values: tuple[Value, ...] | list[Value], ops: tuple[Op, ...] | list[Op], outputs: tuple[int, ...]
) -> Plan:
    """Place every value of the largest subnet in one arena; values alive at the same time never overlap.

    Greedy by size (Pisarchyk & Lee 2020, "Efficient Memory Management for Deep Neural Net Inference", section 5): the
    largest value first, each in the smallest gap that fits. An op's output never overlaps its inputs. Offsets are
    multiples of 16 floats.

    >>> vector = Value((Segment(10, (5, 10)),), ())
    >>> plan([vector] * 4, [Activation(0, 1, "relu"), Activation(1, 2, "relu"), Softmax(2, 3)], (3,))
    Plan(size=26, offsets=(0, 16, 0, 16))
    """
    ranges = live_ranges(ops, outputs, len(values))
    sizes = [v.size(-1) for v in values]
    offsets: list[int] = [0] * len(values)
    placed: list[tuple[int, int]] = []  # (offset, value), sorted
    for v in sorted(range(len(values)), key=lambda v: (-sizes[v], ranges[v], v)):
        best, gap, end = -1, math.inf, 0
        for start, other in placed:
            if ranges[other][0] > ranges[v][1] or ranges[v][0] > ranges[other][1]:
                continue
            if sizes[v] <= start - end < gap:
                best, gap = end, start - end
            end = max(end, -(-(start + sizes[other]) // ALIGN) * ALIGN)
        offsets[v] = end if best < 0 else best
        insort(placed, (offsets[v], v))
    return Plan(max(o + s for o, s in zip(offsets, sizes, strict=True)), tuple(offsets))
