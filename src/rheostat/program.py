"""The program of an artifact: what the engine executes, for every subnet at once, and how it is checked.

A `Program` is read from one JSON text (`from_json`), checked against the tensors it names (`validate`) and written back
canonically (`to_json`). Nothing in a program is believed: each shape is derived again from the ops and the tensors.
"""

from __future__ import annotations

import gc
import json
import math
import reprlib
from bisect import bisect_left, insort
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any, ClassVar, NoReturn

import numpy as np

from rheostat.spec import ArtifactError, SubnetInfo

VERSION = 1  # of a program of floats
VERSION_QUANT = 2  # of one with a section `quant`
VERSION_LEVELS = 3  # of one with a section `levels`, and `quant` or not
MAX_INT = 2**31 - 1  # sizes, indices and offsets fit the engine's int32
MAX_WINDOW = 65_535  # kernel, stride, padding, dilation
MAX_SUBNETS = 64
MAX_ITEMS = 8_192  # ops, values, groups, provenance entries
MAX_SEGMENTS = 32_768  # read by all ops together; DenseNet-264, the worst usual case, has about 8,000
MAX_JSON_VALUES = 500_000  # bounds the time and memory of parsing
MAX_NAME = 256
MAX_TEXT = 4_096
MAX_SHIFT = 61
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


# ---- JSON: strict types, exact keys, bounded sizes ----


def _fail(where: str, got: object, want: str) -> NoReturn:
    raise ArtifactError(f"{where}: got {reprlib.repr(got)}; want {want}")


def load_json(text: str, where: str) -> Any:
    """Parse JSON of bounded size and depth without duplicate keys, NaN or infinities, or raise `ArtifactError`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(k for k, _ in pairs if k in seen or seen.add(k))
            raise ArtifactError(f"{where}: the key {reprlib.repr(twice)} appears twice in one object")
        return found

    def constant(name: str) -> NoReturn:
        raise ArtifactError(f"{where}: got the number {name}; want a finite number")

    if (n := sum(text.count(mark) for mark in ",[{")) > MAX_JSON_VALUES:
        raise ArtifactError(f"{where}: got about {n} JSON values; want at most {MAX_JSON_VALUES}")
    collects = gc.isenabled()
    gc.disable()  # there is nothing to collect yet, and each look at all else the process holds takes longer than this
    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except RecursionError:
        raise ArtifactError(f"{where}: the JSON is nested too deeply") from None
    except ValueError as error:  # malformed JSON, an integer of thousands of digits
        raise ArtifactError(f"{where}: not JSON ({reprlib.repr(str(error))})") from None
    finally:
        if collects:
            gc.enable()


def dump_json(data: object) -> str:
    r"""The one spelling of `data`: sorted keys, no spaces, ASCII.

    >>> dump_json({"b": [1.5, None], "a": "ü"})
    '{"a":"\\u00fc","b":[1.5,null]}'
    """
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def check_name(name: object, where: str) -> str:
    """`name` if it is safe as a tensor's name: printable, at most 256 characters, nothing like a path."""
    want = f"a printable name of 1 to {MAX_NAME} characters without '/', '\\' or '..'"
    if type(name) is not str or not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        _fail(where, name, want)
    if "/" in name or "\\" in name or ".." in name:
        _fail(where, name, want)
    return name


def _text(x: object, where: str) -> str:
    if type(x) is not str or len(x) > MAX_TEXT or not x.isprintable():
        _fail(where, x, f"one line of printable text, at most {MAX_TEXT} characters")
    return x


def _optional_text(x: object, where: str) -> str | None:
    return None if x is None else _text(x, where)


def _optional_name(x: object, where: str) -> str | None:
    return None if x is None else check_name(x, where)


def _int(x: object, where: str, low: int = 0, high: int = MAX_INT) -> int:
    if type(x) is not int or not low <= x <= high:
        _fail(where, x, f"an integer from {low} to {high}")
    return x


def _bool(x: object, where: str) -> bool:
    if type(x) is not bool:
        _fail(where, x, "true or false")
    return x


def _number(x: object, where: str) -> float:
    if type(x) not in (int, float):
        _fail(where, x, "a number")
    try:
        number = float(x)  # type: ignore[arg-type]
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        _fail(where, x, "a finite number")
    return number


def _list(x: object, where: str, low: int = 0, high: int = MAX_ITEMS) -> list[Any]:
    if type(x) is not list or not low <= len(x) <= high:
        _fail(where, x, f"a list of {low} to {high} items" if low != high else f"a list of {low} items")
    return x


def _ints(x: object, where: str, low: int = 0, count: tuple[int, int] = (0, MAX_ITEMS)) -> tuple[int, ...]:
    return tuple(_int(v, f"{where}[{i}]", low) for i, v in enumerate(_list(x, where, *count)))


def _pair(x: object, where: str, low: int) -> tuple[int, int]:
    a, b = _list(x, where, 2, 2)
    return _int(a, where, low, MAX_WINDOW), _int(b, where, low, MAX_WINDOW)


def _object(x: object, where: str, keys: tuple[str, ...]) -> list[Any]:
    """The values of exactly `keys`, in that order."""
    if type(x) is not dict:
        _fail(where, x, "an object with the keys " + ", ".join(keys))
    if missing := [k for k in keys if k not in x]:
        raise ArtifactError(f"{where}: the key {missing[0]!r} is missing")
    if len(x) != len(keys):
        unknown = next(k for k in x if k not in keys)
        raise ArtifactError(f"{where}: unknown key {reprlib.repr(unknown)}; want only {', '.join(keys)}")
    return [x[k] for k in keys]


def _map(x: object, where: str) -> dict[str, Any]:
    if type(x) is not dict or len(x) > MAX_ITEMS:
        _fail(where, x, f"an object of at most {MAX_ITEMS} entries")
    return x


def _names(x: object, where: str) -> tuple[str, ...]:
    return tuple(check_name(v, f"{where}[{i}]") for i, v in enumerate(_list(x, where, 1, MAX_SUBNETS)))


def _optional_names(x: object, where: str) -> tuple[str, ...] | None:
    return None if x is None else _names(x, where)


def _norm(x: object, where: str) -> Norm:
    weight, bias, mean, var, eps = _object(x, where, ("weight", "bias", "mean", "var", "eps"))
    eps = _number(eps, f"{where}.eps")
    if not 0 < eps <= 1:
        _fail(f"{where}.eps", eps, "a number above 0, at most 1")
    return Norm(
        _optional_names(weight, f"{where}.weight"),
        _optional_names(bias, f"{where}.bias"),
        _names(mean, f"{where}.mean"),
        _names(var, f"{where}.var"),
        eps,
    )


def _activation(x: object, where: str) -> str:
    if type(x) is not str or x not in ACTIVATIONS:
        _fail(where, x, "one of " + ", ".join(ACTIVATIONS))
    return x


_FIELDS: Mapping[str, Callable[[object, str], Any]] = {
    "input": _int,
    "output": lambda x, w: _int(x, w, 1),
    "inputs": lambda x, w: _ints(x, w, 0, (2, MAX_ITEMS)),
    "weight": check_name,
    "bias": _optional_name,
    "stride": lambda x, w: _pair(x, w, 1),
    "kernel": lambda x, w: _pair(x, w, 1),
    "dilation": lambda x, w: _pair(x, w, 1),
    "padding": lambda x, w: _pair(x, w, 0),
    "groups": lambda x, w: _ints(x, w, 1, (1, MAX_SUBNETS)),
    "norm": _norm,
    "activation": _activation,
    "add": lambda x, w: None if x is None else _int(x, w),
    "ceil_mode": _bool,
    "count_include_pad": _bool,
}


def _op(x: object, where: str) -> Op:
    if type(x) is not dict:
        _fail(where, x, "an object with the key op")
    name = x.get("op")
    if type(name) is not str or name not in OPS:
        _fail(f"{where}.op", name, "one of " + ", ".join(OPS))
    kind = OPS[name]
    parts = fields(kind)
    given = _object(x, where, ("op", *(f.name for f in parts)))[1:]
    values = {
        f.name: None if v is None and f.default is None else _FIELDS[f.name](v, f"{where}.{f.name}")
        for f, v in zip(parts, given, strict=True)
    }
    return kind(**values)  # type: ignore[arg-type]  # each parser returns its field's type


def _value(x: object, where: str) -> Value:
    channels, space = _object(x, where, ("channels", "space"))
    segments = []
    for i, item in enumerate(_list(channels, f"{where}.channels", 1)):
        here = f"{where}.channels[{i}]"
        full, kept = _list(item, here, 2, 2)
        full = _int(full, here, 1)
        segments.append(Segment(full, _widths(kept, here, full)))
    space = _ints(space, f"{where}.space", 1, (0, 2))
    if len(space) == 1:
        _fail(f"{where}.space", list(space), "[] or [H, W]")
    return Value(tuple(segments), space)


def _widths(x: object, where: str, size: int) -> tuple[int, ...]:
    widths = tuple(_int(v, where, 1, size) for v in _list(x, where, 1, MAX_SUBNETS))
    if any(b < a for a, b in pairwise(widths)):
        _fail(where, list(widths), "widths that never decrease: every subnet contains the smaller ones")
    return widths


def _group(x: object, where: str) -> Group:
    name, size, widths, pinned = _object(x, where, ("name", "size", "widths", "pinned"))
    size = _int(size, f"{where}.size", 1)
    return Group(
        _text(name, f"{where}.name"),
        size,
        _widths(widths, f"{where}.widths", size),
        _optional_text(pinned, f"{where}.pinned"),
    )


def _subnet(x: object, where: str) -> SubnetInfo:
    name, parameters, macs, size_bytes, *measured = _object(
        x, where, tuple(f.name for f in fields(SubnetInfo))
    )
    accuracy, p50, p95 = (None if m is None else _number(m, where) for m in measured)
    if accuracy is not None and not 0 <= accuracy <= 1:
        _fail(f"{where}.accuracy", accuracy, "a fraction from 0 to 1")
    if any(latency is not None and latency < 0 for latency in (p50, p95)):
        _fail(where, [p50, p95], "latencies of at least 0 ms")
    parameters, macs, size_bytes = (_int(n, where, 0, 2**63 - 1) for n in (parameters, macs, size_bytes))
    return SubnetInfo(check_name(name, f"{where}.name"), parameters, macs, size_bytes, accuracy, p50, p95)


def _provenance(x: object, where: str) -> dict[str, str | int | float]:
    for key, value in _map(x, where).items():
        _text(key, f"{where} key")
        if type(value) is str:
            _text(value, f"{where}[{reprlib.repr(key)}]")
        else:
            _number(value, f"{where}[{reprlib.repr(key)}]")
    return dict(x)  # type: ignore[call-overload]


def _per_subnet(x: object, where: str, high: int = MAX_INT) -> tuple[int, ...]:
    return tuple(_int(v, f"{where}[{k}]", 0, high) for k, v in enumerate(_list(x, where, 1, MAX_SUBNETS)))


def _quant_op(x: object, where: str) -> QuantOp:
    high, shift, pre, factors, *names = _object(x, where, tuple(f.name for f in fields(QuantOp)))
    multiplier, bias, table = (_optional_names(n, where) for n in names)
    return QuantOp(
        _per_subnet(high, f"{where}.high"),
        _per_subnet(shift, f"{where}.shift", MAX_SHIFT),
        _per_subnet(pre, f"{where}.pre", 31),
        tuple(
            _ints(f, f"{where}.factors[{k}]")
            for k, f in enumerate(_list(factors, f"{where}.factors", 1, MAX_SUBNETS))
        ),
        multiplier,
        bias,
        table,
    )


def _quant(x: object, where: str) -> Quantization:
    bits_weights, bits_activations, unsigned, scales, ops = _object(
        x, where, tuple(f.name for f in fields(Quantization))
    )
    for name, bits in (("bits_weights", bits_weights), ("bits_activations", bits_activations)):
        if type(bits) is not int or bits not in (8, 16):
            _fail(f"{where}.{name}", bits, "8 or 16")
    found = []
    for v, each in enumerate(_list(scales, f"{where}.scales", 1)):
        here = f"{where}.scales[{v}]"
        found.append(tuple(_number(s, here) for s in _list(each, here, 1, MAX_SUBNETS)))
        for s in found[-1]:
            if not 1e-30 <= s <= 1e30 or float(np.float32(s)) != s:
                _fail(here, s, "a float32 from 1e-30 to 1e30")
    return Quantization(
        bits_weights,
        bits_activations,
        tuple(
            _bool(u, f"{where}.unsigned[{v}]") for v, u in enumerate(_list(unsigned, f"{where}.unsigned", 1))
        ),
        tuple(found),
        tuple(_quant_op(o, f"{where}.ops[{i}]") for i, o in enumerate(_list(ops, f"{where}.ops", 1))),
    )


def _levels(x: object, where: str, num_subnets: int) -> dict[str, LevelCode]:
    if not _map(x, where):
        _fail(where, x, "at least one tensor; a program without levels has no such key")
    found: dict[str, LevelCode] = {}
    for name, item in _map(x, where).items():
        here = f"{where}[{reprlib.repr(name)}]"
        check_name(name + LEVELS, f"{where} key")
        shape, encoding, group, counts, index_bytes = _object(
            item, here, tuple(f.name for f in fields(LevelCode))
        )
        shape = _ints(shape, f"{here}.shape", 1, (1, 8))
        size = math.prod(shape)
        if size > MAX_INT:
            _fail(f"{here}.shape", shape, f"at most {MAX_INT} weights")
        if type(encoding) is not str or encoding not in ENCODINGS:
            _fail(f"{here}.encoding", encoding, "one of " + ", ".join(ENCODINGS))
        group = _int(group, f"{here}.group", 1, size if encoding == "pattern" else 1)
        if size % group:
            _fail(f"{here}.group", group, f"a divisor of the {size} weights")
        counts = _ints(counts, f"{here}.counts", 0, (num_subnets, num_subnets))
        if sum(counts) > size:
            _fail(f"{here}.counts", counts, f"no more than the {size} weights together")
        index_bytes = _int(index_bytes, f"{here}.index_bytes")
        found[name] = LevelCode(shape, encoding, group, counts, index_bytes)
    return found


def from_json(text: str) -> Program:
    """Read a program, checking every field's type, range and key; `validate` checks what the fields mean together."""
    data = load_json(text, "program")
    version = data.get("version") if type(data) is dict else data
    known = (VERSION, VERSION_QUANT, VERSION_LEVELS)
    if type(data) is not dict or type(version) is not int or version not in known:
        _fail("program.version", version, "1, 2 or 3, the versions this release reads")
    keys = (
        "version", "model", "sha256", "producer", "input", "provenance", "subnets", "groups", "aliases", "values",
        "ops", "unsupported", "outputs", "plan",
    )  # fmt: skip
    if (section := {VERSION_QUANT: "quant", VERSION_LEVELS: "levels"}.get(version, "version")) not in data:
        raise ArtifactError(f"program: the key {section!r} is missing")
    quant = None
    if version != VERSION and "quant" in data:
        quant = _quant(data.pop("quant"), "program.quant")
    levels = data.pop("levels") if version == VERSION_LEVELS else None
    _, model, sha256, producer, given, provenance, *rest = _object(data, "program", keys)
    subnets, groups, aliases, values, ops, unsupported, outputs, plan = rest
    if type(sha256) is not str or len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        _fail("program.sha256", sha256, "64 lower-case hexadecimal digits")
    name, shape = _object(given, "program.input", ("name", "shape"))
    size, offsets = _object(plan, "program.plan", ("size", "offsets"))

    def items(x: object, where: str, read: Callable[[object, str], Any], low: int = 0, high: int = MAX_ITEMS):
        return tuple(read(v, f"{where}[{i}]") for i, v in enumerate(_list(x, where, low, high)))

    return Program(
        model=_text(model, "program.model"),
        input=Input(check_name(name, "program.input.name"), _ints(shape, "program.input.shape", 1, (0, 8))),
        subnets=items(subnets, "program.subnets", _subnet, 1, MAX_SUBNETS),
        groups=items(groups, "program.groups", _group),
        values=items(values, "program.values", _value),
        ops=None if ops is None else items(ops, "program.ops", _op, 1),
        unsupported=_optional_text(unsupported, "program.unsupported"),
        outputs=_ints(outputs, "program.outputs"),
        plan=Plan(_int(size, "program.plan.size"), _ints(offsets, "program.plan.offsets")),
        aliases={
            check_name(k, "program.aliases key"): check_name(v, f"program.aliases[{k!r}]")
            for k, v in _map(aliases, "program.aliases").items()
        },
        provenance=_provenance(provenance, "program.provenance"),
        producer=_text(producer, "program.producer"),
        sha256=sha256,
        quant=quant,
        levels={} if version != VERSION_LEVELS else _levels(levels, "program.levels", len(subnets)),
    )


def to_json(program: Program) -> str:
    """The canonical text of a program: `to_json(from_json(t)) == t` for every `t` that `to_json` wrote."""

    def plain(x: object) -> Any:
        if isinstance(x, Segment):
            return [x.full, list(x.kept)]
        if isinstance(x, (tuple, list)):
            return [plain(v) for v in x]
        if isinstance(x, Mapping):
            return {k: plain(v) for k, v in x.items()}
        if hasattr(x, "__dataclass_fields__"):
            data = {f.name: plain(getattr(x, f.name)) for f in fields(x)}  # type: ignore[arg-type]
            return {"op": x.op, **data} if isinstance(x, Op) else data
        return x

    data = plain(program)
    version = VERSION if program.quant is None else VERSION_QUANT
    if program.quant is None:
        del data["quant"]
    if program.levels:
        version = VERSION_LEVELS
    else:
        del data["levels"]
    return dump_json({"version": version, **data})


# ---- What the fields mean together ----


def validate(program: Program, shapes: Shapes) -> None:
    """Check a program against its tensors' dtypes and shapes, deriving each value again; raise `ArtifactError`.

    A tensor with levels is there with its whole shape, and so are its levels.
    """
    num = len(program.subnets)
    names = [s.name for s in program.subnets]
    if len(set(names)) != num:
        raise ArtifactError(f"program.subnets: got the names {reprlib.repr(names)}; want each once")
    for i, group in enumerate(program.groups):
        if len(group.widths) != num:
            _fail(f"program.groups[{i}].widths", group.widths, f"one width for each of the {num} subnets")
    for other, stored in program.aliases.items():
        if stored not in shapes:
            _fail(f"program.aliases[{other!r}]", stored, "the name of a stored tensor")
        if other in shapes:
            raise ArtifactError(f"program.aliases: {other!r} is stored as a tensor of its own as well")
    _validate_levels(program, shapes)
    if program.quant is not None and program.ops is None:
        raise ArtifactError("program.quant: there are no ops that it could say anything about")
    if program.ops is None:
        if not program.unsupported:
            _fail("program.unsupported", program.unsupported, "the reason, since ops is null")
        if program.values or program.outputs or program.plan != Plan(0, ()):
            raise ArtifactError("program: ops is null; want no values, no outputs and an empty plan")
        return
    if program.unsupported is not None:
        _fail("program.unsupported", program.unsupported, "null, since there are ops")
    _validate_values(program)
    if program.quant is not None:
        shapes = _validate_quant(program, program.quant, shapes)
    for i, op in enumerate(program.ops):
        where = f"program.ops[{i}] ({op.op})"
        if program.quant is None and isinstance(op, Normalize) and op.norm is None:
            _fail(f"{where}.norm", None, "a norm: only a quantised program has it folded away")
        got, want = program.values[op.output], infer(op, program.values, shapes, where)
        if got.space != want.space or _layout(got) != _layout(want):
            raise ArtifactError(
                f"{where}: output value {op.output} is declared {_shape(got)}; want {_shape(want)}"
            )
    _validate_plan(program)


def _validate_values(program: Program) -> None:
    """Every value is made once, before it is read, and sized within the limits."""
    values, ops, num = program.values, program.ops or (), len(program.subnets)
    if len(values) != len(ops) + 1:
        raise ArtifactError(
            f"program.values: got {len(values)}; want {len(ops) + 1}, the input and one for each op"
        )
    for i, value in enumerate(values):
        if any(len(s.kept) != num for s in value.channels):
            raise ArtifactError(
                f"program.values[{i}].channels: want kept channels for each of the {num} subnets"
            )
        if value.full * value.area > MAX_INT:
            raise ArtifactError(
                f"program.values[{i}]: {value.full * value.area} elements; want at most {MAX_INT}"
            )
    first, shape = values[0], program.input.shape
    if not first.whole() or (first.full, *first.space) != shape:
        raise ArtifactError(f"program.values[0]: got {_shape(first)}; want the whole input, {list(shape)}")
    made, segments = {0}, 0
    for i, op in enumerate(ops):
        for v in reads(op):
            if v not in made:
                raise ArtifactError(
                    f"program.ops[{i}] ({op.op}): reads value {v}, which no op before it makes"
                )
            segments += len(values[v].channels)
        if op.output in made or op.output >= len(values):
            _fail(f"program.ops[{i}] ({op.op}).output", op.output, f"a new value below {len(values)}")
        made.add(op.output)
    if segments > MAX_SEGMENTS:
        raise ArtifactError(f"program.ops: read {segments} segments of channels; want at most {MAX_SEGMENTS}")
    if not program.outputs or len(set(program.outputs)) != len(program.outputs):
        _fail("program.outputs", program.outputs, "at least one value, each once")
    for v in program.outputs:
        if v not in made:
            _fail("program.outputs", v, f"a value below {len(values)}")


def _validate_levels(program: Program, shapes: Shapes) -> None:
    """Each is of a stored tensor of numbers that no op reads but as its weight."""
    for name, code in program.levels.items():
        where = f"program.levels[{name!r}]"
        if name not in shapes:
            _fail(where, name, "the name of a stored tensor")
        dtype, shape = shapes[name]
        if dtype not in ("F16", "F32", "F64", "I8", "I16") or shape != code.shape:
            raise ArtifactError(f"{where}: {name} is {dtype} {list(shape)}; want weights {list(code.shape)}")
        if shapes.get(name + LEVELS) != ("U8", code.shape):
            got = shapes.get(name + LEVELS)
            raise ArtifactError(f"{where}: {name}{LEVELS} is {got}; want U8 {list(code.shape)}")
    integers = program.quant.ops if program.quant is not None else ()
    for i, op in enumerate(program.ops or ()):
        norm = getattr(op, "norm", None)
        parts = [(norm.weight, norm.bias, norm.mean, norm.var)] if norm is not None else []
        parts += [(own.multiplier, own.bias, own.table) for own in integers[i : i + 1]]
        others = [
            getattr(op, "bias", None),
            *(name for names in parts for part in names for name in part or ()),
        ]
        if pruned := [name for name in others if name in program.levels]:
            raise ArtifactError(
                f"program.ops[{i}] ({op.op}): {pruned[0]} has levels; only a weight may have them"
            )


def _validate_quant(program: Program, quant: Quantization, shapes: Shapes) -> Shapes:
    """Check section `quant`; returns the shapes with integer weights, once checked, in the place of float ones."""
    ops, num, where = program.ops or (), len(program.subnets), "program.quant"
    for name, items, count in (
        ("unsigned", quant.unsigned, len(program.values)),
        ("scales", quant.scales, len(program.values)),
        ("ops", quant.ops, len(ops)),
    ):
        if len(items) != count:
            raise ArtifactError(f"{where}.{name}: got {len(items)} entries; want {count}")
    for v, scales in enumerate(quant.scales):
        if len(scales) != num:
            _fail(f"{where}.scales[{v}]", scales, f"one scale for each of the {num} subnets")
    swapped = dict(shapes)
    for op in ops:
        if isinstance(op, (Conv2d, Linear)) and op.weight in shapes:
            dtype, shape = shapes[op.weight]
            if dtype != quant.weight_dtype:
                raise ArtifactError(f"{where}: {op.weight} is {dtype}; want {quant.weight_dtype}")
            swapped[op.weight] = "F32", shape
    for i, (op, own) in enumerate(zip(ops, quant.ops, strict=True)):
        _validate_quant_op(program, quant, op, own, shapes, f"{where}.ops[{i}] ({op.op})")
    return swapped


_COPIES = (MaxPool2d, Subsample, PadChannels)


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


def _validate_quant_op(
    program: Program, quant: Quantization, op: Op, own: QuantOp, shapes: Shapes, where: str
) -> None:
    num = len(program.subnets)
    if isinstance(op, Softmax):
        raise ArtifactError(f"{where}: softmax has no integer form")
    if getattr(op, "norm", None) is not None or getattr(op, "bias", None) is not None:
        raise ArtifactError(f"{where}: norm and bias of an integer op are folded into it; want null")
    activation = getattr(op, "activation", None)
    if activation not in (None, "relu", "relu6") and not tabled(op):
        _fail(f"{where}.activation", activation, "null, relu or relu6; others stand alone, as a table")
    if activation in ("relu", "relu6") and not quant.unsigned[op.output]:
        raise ArtifactError(f"{where}: value {op.output} follows a {activation}; want it unsigned")
    for name, items in (("high", own.high), ("shift", own.shift), ("pre", own.pre), ("factors", own.factors)):
        if len(items) != num:
            _fail(f"{where}.{name}", items, f"one entry for each of the {num} subnets")
    if any(h > quant.top(op.output) for h in own.high):
        _fail(f"{where}.high", own.high, f"at most {quant.top(op.output)}")
    if any(len(f) != num_factors(op) for f in own.factors):
        _fail(f"{where}.factors", own.factors, f"{num_factors(op)} for each subnet")
    _check_integers(op, own, shapes, program, quant, where)
    if isinstance(op, _COPIES):
        v = op.input
        if (quant.scales[v], quant.unsigned[v]) != (quant.scales[op.output], quant.unsigned[op.output]):
            raise ArtifactError(f"{where}: copies value {v}; want the scales and sign of {op.output} equal")
        if any(own.shift) or any(h != quant.top(op.output) for h in own.high):
            raise ArtifactError(f"{where}: copies value {v}; want shift 0 and high {quant.top(op.output)}")
    elif any((s != 0) if tabled(op) else (s < 1) for s in own.shift):
        _fail(f"{where}.shift", own.shift, "0" if tabled(op) else f"1 to {MAX_SHIFT}")
    for k in range(num):
        _check_bounds(op, own, k, shapes, program, quant, where)


def _check_integers(
    op: Op, own: QuantOp, shapes: Shapes, program: Program, quant: Quantization, where: str
) -> None:
    """The tensors of one op: all that it needs, none that it does not, of the right type and length."""
    num, out = len(program.subnets), program.values[op.output]
    channels = isinstance(op, (Conv2d, Linear, Normalize))
    if tabled(op) and quant.bits_activations != 8:
        raise ArtifactError(f"{where}: a table needs activations of 8 bits; got {quant.bits_activations}")
    for part, names, dtype, wanted in (
        ("multiplier", own.multiplier, "I32", channels),
        ("bias", own.bias, "I64", channels),
        ("table", own.table, "I16", tabled(op)),
    ):
        if (names is not None) != wanted:
            _fail(f"{where}.{part}", names, "names" if wanted else "null")
        if names is None:
            continue
        if len(names) != num:
            _fail(f"{where}.{part}", names, f"one name for each of the {num} subnets")
        for k, name in enumerate(names):
            v = reads(op)[0]
            count = out.kept(k) if channels else quant.top(v) - quant.low(v) + 1
            if name not in shapes:
                _fail(f"{where}.{part}[{k}]", name, "the name of a stored tensor")
            if shapes[name] != (dtype, (count,)):
                raise ArtifactError(
                    f"{where}.{part}[{k}]: {name} is {shapes[name][0]} {list(shapes[name][1])}; want {dtype} [{count}]"
                )


def _check_bounds(
    op: Op, own: QuantOp, k: int, shapes: Shapes, program: Program, quant: Quantization, where: str
) -> None:
    """No sum exceeds its accumulator, whatever the numbers in the tensors are."""
    x = program.values[reads(op)[0]]
    top = quant.top(reads(op)[0])
    if isinstance(op, (Conv2d, Linear)):
        shape: tuple[int, ...] = shapes[op.weight][1] if op.weight in shapes else ()
        if isinstance(op, Conv2d) and (len(shape) != 4 or len(op.groups) <= k):
            return  # `infer` says what is wrong
        inputs = x.size(k)
        if isinstance(op, Conv2d):
            inputs = x.kept(k) // op.groups[k] * math.prod(shape[2:])
        bound = quant.sum_bound(op.input, inputs)
        narrow = quant.bits_weights == quant.bits_activations == 8
        if (bound >> own.pre[k]) + 1 >= 2**31 or (narrow and own.pre[k] != 0):
            raise ArtifactError(
                f"{where}: a sum of {inputs} products reaches {bound}; pre={own.pre[k]} does not bring it to 31 bits"
                + (" (8 bits want pre=0 and a smaller layer)" if narrow else "")
            )
    elif own.pre[k] != 0:
        _fail(f"{where}.pre", own.pre, "0")
    if isinstance(op, (AvgPool2d, GlobalAvgPool)):
        window = math.prod(op.kernel) if isinstance(op, AvgPool2d) else x.area
        if 2 * window * (own.factors[k][0] * top + 2 ** own.shift[k]) >= 2**63:
            raise ArtifactError(
                f"{where}: factor and shift make the mean of {window} positions exceed 63 bits"
            )


def _layout(value: Value) -> tuple[Segment, ...]:
    """Segments merged where a prefix of both together is the same; values of equal layout keep the same channels."""
    merged: list[Segment] = []
    for s in value.channels:
        if merged and all(n == merged[-1].full for n in merged[-1].kept):
            whole = merged.pop().full
            s = Segment(whole + s.full, tuple(whole + n for n in s.kept))
        merged.append(s)
    return tuple(merged)


def merge(value: Value) -> Value:
    """`value` with the fewest segments.

    >>> merge(Value((Segment(4, (4, 4)), Segment(3, (1, 3))), ())).channels
    (Segment(full=7, kept=(5, 7)),)
    """
    return Value(_layout(value), value.space)


def _shape(value: Value) -> str:
    return reprlib.repr([[s.full, list(s.kept)] for s in value.channels]) + f" x {list(value.space)}"


def infer(op: Op, values: tuple[Value, ...] | list[Value], shapes: Shapes, where: str) -> Value:
    """The output of `op` derived from its inputs and tensors.

    What an op is free to choose is taken from the declared output after being checked: the kept channels of a
    convolution, a linear or a padding, and whether a global pool's space is (1, 1) or ().
    """
    out = values[op.output]
    ins = [values[v] for v in reads(op)]
    x = ins[0]
    if isinstance(op, Conv2d):
        want = Value(out.channels, _conv_space(op, x, out, shapes, where))
        return _epilogue(op.norm, op.add, want, values, shapes, where)
    if isinstance(op, Linear):
        _check_tensor(op.weight, shapes, (out.full, x.full * x.area), f"{where}.weight")
        if op.bias is not None:
            _check_tensor(op.bias, shapes, (out.full,), f"{where}.bias")
        return _epilogue(op.norm, op.add, Value(out.channels, ()), values, shapes, where)
    if isinstance(op, Normalize):
        return _epilogue(op.norm, None, x, values, shapes, where)
    if isinstance(op, (Activation, Softmax)):
        return x
    if isinstance(op, (MaxPool2d, AvgPool2d)):
        if any(2 * p > k for p, k in zip(op.padding, op.kernel, strict=True)):
            _fail(f"{where}.padding", op.padding, f"at most half of the kernel {op.kernel}")
        window = zip(_spatial(x, where), op.kernel, op.stride, op.padding, strict=True)
        return Value(x.channels, tuple(pool_size(n, k, s, p, op.ceil_mode, where) for n, k, s, p in window))
    if isinstance(op, GlobalAvgPool):
        _spatial(x, where)
        return Value(x.channels, () if out.space == () else (1, 1))
    if isinstance(op, Subsample):
        return Value(
            x.channels, tuple(-(-n // s) for n, s in zip(_spatial(x, where), op.stride, strict=True))
        )
    if isinstance(op, PadChannels):
        return _padded(x, out, where)
    if isinstance(op, Concat):
        if any(v.space != x.space for v in ins):
            raise ArtifactError(f"{where}: the inputs' spaces differ: {reprlib.repr([v.space for v in ins])}")
        return Value(tuple(s for v in ins for s in v.channels), x.space)
    assert isinstance(op, (Add, Mul)), op
    if len(ins) != 2:
        _fail(f"{where}.inputs", op.inputs, "two values")
    spaces = (x.space, (), (1, 1)) if isinstance(op, Mul) else (x.space,)
    if _layout(ins[1]) != _layout(x) or ins[1].space not in spaces:
        raise ArtifactError(f"{where}: cannot combine {_shape(x)} with {_shape(ins[1])}")
    return x


def _spatial(x: Value, where: str) -> tuple[int, ...]:
    if len(x.space) != 2:
        raise ArtifactError(f"{where}: the input {_shape(x)} is a vector; want a space of [H, W]")
    return x.space


def _check_tensor(name: str, shapes: Shapes, want: tuple[int, ...], where: str) -> None:
    if name not in shapes:
        _fail(where, name, "the name of a stored tensor")
    dtype, shape = shapes[name]
    if dtype != "F32" or shape != want:
        raise ArtifactError(f"{where}: {name} is {dtype} {list(shape)}; want F32 {list(want)}")


def _conv_space(op: Conv2d, x: Value, out: Value, shapes: Shapes, where: str) -> tuple[int, ...]:
    """The output's space, after checking weight, bias and groups."""
    space = _spatial(x, where)
    if op.weight not in shapes:
        _fail(f"{where}.weight", op.weight, "the name of a stored tensor")
    shape = shapes[op.weight][1]
    if len(shape) != 4 or shape[1] == 0 or x.full % shape[1]:
        raise ArtifactError(
            f"{where}.weight: {op.weight} is {list(shape)}; want [O, I/g, kh, kw] with I = {x.full}"
        )
    groups = x.full // shape[1]
    _check_tensor(op.weight, shapes, (out.full, *shape[1:]), f"{where}.weight")
    if op.bias is not None:
        _check_tensor(op.bias, shapes, (out.full,), f"{where}.bias")
    _check_groups(op, groups, x, out, where)
    kernel = shape[2:]
    if not all(1 <= k <= MAX_WINDOW for k in kernel):
        _fail(f"{where}.weight", list(shape), f"a kernel of 1 to {MAX_WINDOW}")
    sizes = []
    for n, k, s, p, d in zip(space, kernel, op.stride, op.padding, op.dilation, strict=True):
        size = (n + 2 * p - d * (k - 1) - 1) // s + 1
        if size < 1:
            raise ArtifactError(f"{where}: a kernel of {k} (dilation {d}) does not fit {n} + 2 * {p}")
        sizes.append(size)
    return tuple(sizes)


def _check_groups(op: Conv2d, groups: int, x: Value, out: Value, where: str) -> None:
    num = len(x.channels[0].kept)
    if len(op.groups) != num or out.full % groups:
        _fail(f"{where}.groups", op.groups, f"{num} counts, for a convolution of {groups} groups")
    if groups == 1:
        if any(n != 1 for n in op.groups):
            _fail(f"{where}.groups", op.groups, "1 for each subnet: the weight has one group")
        return
    if whole_groups(op, groups, x, out):
        return
    if any(n != groups for n in op.groups) or not all(
        v.whole() or _equal_segments(v, groups) for v in (x, out)
    ):
        raise ArtifactError(
            f"{where}.groups: {list(op.groups)} of {groups} groups are neither whole groups removed nor an equal "
            f"prefix of each group, from {_shape(x)} to {_shape(out)}"
        )


def whole_groups(op: Conv2d, groups: int, x: Value, out: Value) -> bool:
    """Whether a convolution of `groups` groups (of the full weight) keeps whole groups, the same on both sides."""
    left, right = _layout(x), _layout(out)
    if len(left) != len(right):
        return False
    per_in, per_out = x.full // groups, out.full // groups
    counts = [0] * len(op.groups)
    for a, b in zip(left, right, strict=True):
        for n, m in zip((a.full, *a.kept), (b.full, *b.kept), strict=True):
            if n % per_in or m % per_out or n // per_in != m // per_out:
                return False
        counts = [c + n // per_in for c, n in zip(counts, a.kept, strict=True)]
    return tuple(counts) == op.groups


def _equal_segments(value: Value, count: int) -> bool:
    """Whether the segments are the same few, `count` times over."""
    each = len(value.channels) // count
    return each > 0 and value.channels == value.channels[:each] * count


def _epilogue(
    norm: Norm | None,
    add: int | None,
    out: Value,
    values: tuple[Value, ...] | list[Value],
    shapes: Shapes,
    where: str,
) -> Value:
    """`out`, after checking a norm's tensors and the residual against it."""
    if norm is not None:
        for part in ("weight", "bias", "mean", "var"):
            names = getattr(norm, part)
            if names is None:
                continue
            if len(names) != len(out.channels[0].kept):
                _fail(
                    f"{where}.norm.{part}", names, f"one name for each of {len(out.channels[0].kept)} subnets"
                )
            for k, name in enumerate(names):
                _check_tensor(name, shapes, (out.kept(k),), f"{where}.norm.{part}[{k}]")
    if add is not None and (values[add].space != out.space or _layout(values[add]) != _layout(out)):
        raise ArtifactError(f"{where}.add: cannot add {_shape(values[add])} to {_shape(out)}")
    return out


def pool_size(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool, where: str = "pool") -> int:
    """Output positions of a pooling window, by PyTorch's rule: with `ceil_mode` no window starts in the end padding.

    >>> pool_size(6, 3, 2, 0, ceil_mode=False), pool_size(6, 3, 2, 0, ceil_mode=True)
    (2, 3)
    """
    span = size + 2 * padding - kernel
    if span < 0:
        raise ArtifactError(f"{where}: a window of {kernel} does not fit {size} + 2 * {padding}")
    if not ceil_mode:
        return span // stride + 1
    count = -(-span // stride) + 1
    return count - 1 if (count - 1) * stride >= size + padding else count


def _padded(x: Value, out: Value, where: str) -> Value:
    """`out` if it is `x` with channels appended: every segment but the last is the same, the last only grows."""
    left, right = _layout(x), _layout(out)
    grown = right[len(left) - 1 :]
    same = left[:-1] == right[: len(left) - 1] and len(grown) == 1
    if not same or any(
        b < a for a, b in zip((left[-1].full, *left[-1].kept), (grown[0].full, *grown[0].kept), strict=True)
    ):
        raise ArtifactError(f"{where}: {_shape(out)} is not {_shape(x)} with channels appended")
    return Value(out.channels, x.space)


# ---- Memory ----

_ALIGN = 16  # floats: one cache line, one AVX-512 register


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
            end = max(end, -(-(start + sizes[other]) // _ALIGN) * _ALIGN)
        offsets[v] = end if best < 0 else best
        insort(placed, (offsets[v], v))
    return Plan(max(o + s for o, s in zip(offsets, sizes, strict=True)), tuple(offsets))


def _validate_plan(program: Program) -> None:
    values, ops = program.values, program.ops or ()
    size, offsets = program.plan.size, program.plan.offsets
    if len(offsets) != len(values):
        _fail("program.plan.offsets", offsets, f"one offset for each of the {len(values)} values")
    sizes = [v.size(-1) for v in values]
    if size > sum(sizes) + _ALIGN * len(values):
        _fail("program.plan.size", size, "no more than the values together need")
    for v, (start, n) in enumerate(zip(offsets, sizes, strict=True)):
        if start + n > size:
            raise ArtifactError(
                f"program.plan: value {v} ends at {start + n}, outside the arena of {size} floats"
            )
    ranges = live_ranges(ops, program.outputs, len(values))
    starts: list[list[int]] = [[] for _ in range(len(ops) + 2)]
    ends: list[list[int]] = [[] for _ in range(len(ops) + 2)]
    for v, (first, last) in enumerate(ranges):
        starts[first + 1].append(v)
        ends[last + 1].append(v)
    alive: list[tuple[int, int]] = []  # (offset, value), sorted: only neighbours can overlap
    for born, dying in zip(starts, ends, strict=True):
        for v in born:
            at = bisect_left(alive, (offsets[v], v))
            for start, other in alive[max(at - 1, 0) : at + 1]:
                if start < offsets[v] + sizes[v] and offsets[v] < start + sizes[other]:
                    raise ArtifactError(f"program.plan: values {v} and {other} overlap while both are in use")
            insort(alive, (offsets[v], v))
        for v in dying:
            alive.pop(bisect_left(alive, (offsets[v], v)))
