"""Whether a program is what it says: nothing in it is believed, each shape is derived again from ops and tensors."""

from __future__ import annotations

import math
import reprlib
from bisect import bisect_left, insort

from rheostat.program import (
    ALIGN,
    LEVELS,
    MAX_INT,
    MAX_SHIFT,
    MAX_WINDOW,
    Activation,
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    GlobalAvgPool,
    Linear,
    MaxPool2d,
    Mul,
    Norm,
    Normalize,
    Op,
    PadChannels,
    Plan,
    Program,
    Quantization,
    QuantOp,
    Shapes,
    Softmax,
    Subsample,
    Value,
    live_ranges,
    num_factors,
    reads,
    tabled,
)
from rheostat.spec import ArtifactError, refuse

MAX_BORDERED = 2**20  # numbers of all values with their padding, or 16 times those without
MAX_PACKED = 2**26  # numbers that an engine packs, or 4 times those stored
MAX_SEGMENTS = 32_768  # read by all ops together; DenseNet-264, the worst usual case, has about 8,000


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
            refuse(f"program.groups[{i}].widths", group.widths, f"one width for each of the {num} subnets")
    for other, stored in program.aliases.items():
        if stored not in shapes:
            refuse(f"program.aliases[{other!r}]", stored, "the name of a stored tensor")
        if other in shapes:
            raise ArtifactError(f"program.aliases: {other!r} is stored as a tensor of its own as well")
    _validate_levels(program, shapes)
    if program.quant is not None and program.ops is None:
        raise ArtifactError("program.quant: there are no ops that it could say anything about")
    if program.ops is None:
        if not program.unsupported:
            refuse("program.unsupported", program.unsupported, "the reason, since ops is null")
        if program.values or program.outputs or program.plan != Plan(0, ()):
            raise ArtifactError("program: ops is null; want no values, no outputs and an empty plan")
        return
    if program.unsupported is not None:
        refuse("program.unsupported", program.unsupported, "null, since there are ops")
    _validate_values(program)
    if program.quant is not None:
        shapes = _validate_quant(program, program.quant, shapes)
    for i, op in enumerate(program.ops):
        where = f"program.ops[{i}] ({op.op})"
        if program.quant is None and isinstance(op, Normalize) and op.norm is None:
            refuse(f"{where}.norm", None, "a norm: only a quantised program has it folded away")
        got, want = program.values[op.output], infer(op, program.values, shapes, where)
        if got.space != want.space or got.layout() != want.layout():
            raise ArtifactError(
                f"{where}: output value {op.output} is declared {_shape(got)}; want {_shape(want)}"
            )
    _validate_borders(program)
    _validate_packed(program, shapes)
    _validate_plan(program)


def _validate_borders(program: Program) -> None:
    """What convolutions pad lies in memory around their inputs, so all values stay within a multiple of themselves."""
    paddings: dict[int, tuple[int, ...]] = {}
    for op in program.ops or ():
        if isinstance(op, Conv2d):
            paddings[op.input] = tuple(map(max, paddings.get(op.input, (0, 0)), op.padding))
    sizes = [value.full * value.area for value in program.values]
    limit = max(MAX_BORDERED, 16 * sum(sizes))
    for v, padding in paddings.items():
        x = program.values[v]
        sizes[v] = x.full * math.prod(n + 2 * p for n, p in zip(x.space, padding, strict=True))
    if sum(sizes) > limit:
        refuse("program.ops: values", sum(sizes), f"at most {limit} numbers with the padding")


def _validate_packed(program: Program, shapes: Shapes) -> None:
    """What an engine lays out anew for each op and subnet stays within a multiple of the tensors that these read.

    At most: the weights in panels of 16 outputs, and for each subnet the panels, the rows and two numbers a channel.
    """
    num, packed = len(program.subnets), 0
    for op in program.ops or ():
        out = program.values[op.output]
        packed += 2 * num * out.full
        if isinstance(op, (Conv2d, Linear)):
            x = program.values[op.input]
            inputs = shapes[op.weight][1][1] if isinstance(op, Conv2d) else x.full
            taps = math.prod(shapes[op.weight][1]) // (out.full * inputs)
            groups = x.full // inputs
            panels = min(out.full, groups * -(-out.full // groups // ALIGN) + len(out.channels))
            packed += ALIGN * taps * inputs * panels + num * (4 * panels + 3 * taps * len(x.channels))
    if packed > (limit := max(MAX_PACKED, 4 * sum(math.prod(shape) for _, shape in shapes.values()))):
        refuse("program.ops: packed", packed, f"at most {limit} numbers for what is stored")


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
            refuse(f"program.ops[{i}] ({op.op}).output", op.output, f"a new value below {len(values)}")
        made.add(op.output)
    if segments > MAX_SEGMENTS:
        raise ArtifactError(f"program.ops: read {segments} segments of channels; want at most {MAX_SEGMENTS}")
    if not program.outputs or len(set(program.outputs)) != len(program.outputs):
        refuse("program.outputs", program.outputs, "at least one value, each once")
    for v in program.outputs:
        if v not in made:
            refuse("program.outputs", v, f"a value below {len(values)}")


def _validate_levels(program: Program, shapes: Shapes) -> None:
    """Each is of a stored tensor of numbers that no op reads but as its weight."""
    for name, code in program.levels.items():
        where = f"program.levels[{name!r}]"
        if name not in shapes:
            refuse(where, name, "the name of a stored tensor")
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
            refuse(f"{where}.scales[{v}]", scales, f"one scale for each of the {num} subnets")
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
        refuse(f"{where}.activation", activation, "null, relu or relu6; others stand alone, as a table")
    if activation in ("relu", "relu6") and not quant.unsigned[op.output]:
        raise ArtifactError(f"{where}: value {op.output} follows a {activation}; want it unsigned")
    for name, items in (("high", own.high), ("shift", own.shift), ("pre", own.pre), ("factors", own.factors)):
        if len(items) != num:
            refuse(f"{where}.{name}", items, f"one entry for each of the {num} subnets")
    if any(h > quant.top(op.output) for h in own.high):
        refuse(f"{where}.high", own.high, f"at most {quant.top(op.output)}")
    if any(len(f) != num_factors(op) for f in own.factors):
        refuse(f"{where}.factors", own.factors, f"{num_factors(op)} for each subnet")
    _check_integers(op, own, shapes, program, quant, where)
    if isinstance(op, _COPIES):
        v = op.input
        if (quant.scales[v], quant.unsigned[v]) != (quant.scales[op.output], quant.unsigned[op.output]):
            raise ArtifactError(f"{where}: copies value {v}; want the scales and sign of {op.output} equal")
        if any(own.shift) or any(h != quant.top(op.output) for h in own.high):
            raise ArtifactError(f"{where}: copies value {v}; want shift 0 and high {quant.top(op.output)}")
    elif any((s != 0) if tabled(op) else (s < 1) for s in own.shift):
        refuse(f"{where}.shift", own.shift, "0" if tabled(op) else f"1 to {MAX_SHIFT}")
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
            refuse(f"{where}.{part}", names, "names" if wanted else "null")
        if names is None:
            continue
        if len(names) != num:
            refuse(f"{where}.{part}", names, f"one name for each of the {num} subnets")
        for k, name in enumerate(names):
            v = reads(op)[0]
            count = out.kept(k) if channels else quant.top(v) - quant.low(v) + 1
            if name not in shapes:
                refuse(f"{where}.{part}[{k}]", name, "the name of a stored tensor")
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
        refuse(f"{where}.pre", own.pre, "0")
    if isinstance(op, (AvgPool2d, GlobalAvgPool)):
        window = math.prod(op.kernel) if isinstance(op, AvgPool2d) else x.area
        if 2 * window * (own.factors[k][0] * top + 2 ** own.shift[k]) >= 2**63:
            raise ArtifactError(
                f"{where}: factor and shift make the mean of {window} positions exceed 63 bits"
            )


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
            refuse(f"{where}.padding", op.padding, f"at most half of the kernel {op.kernel}")
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
        refuse(f"{where}.inputs", op.inputs, "two values")
    spaces = (x.space, (), (1, 1)) if isinstance(op, Mul) else (x.space,)
    if ins[1].layout() != x.layout() or ins[1].space not in spaces:
        raise ArtifactError(f"{where}: cannot combine {_shape(x)} with {_shape(ins[1])}")
    return x


def _spatial(x: Value, where: str) -> tuple[int, ...]:
    if len(x.space) != 2:
        raise ArtifactError(f"{where}: the input {_shape(x)} is a vector; want a space of [H, W]")
    return x.space


def _check_tensor(name: str, shapes: Shapes, want: tuple[int, ...], where: str) -> None:
    if name not in shapes:
        refuse(where, name, "the name of a stored tensor")
    dtype, shape = shapes[name]
    if dtype != "F32" or shape != want:
        raise ArtifactError(f"{where}: {name} is {dtype} {list(shape)}; want F32 {list(want)}")


def _conv_space(op: Conv2d, x: Value, out: Value, shapes: Shapes, where: str) -> tuple[int, ...]:
    """The output's space, after checking weight, bias and groups."""
    space = _spatial(x, where)
    if op.weight not in shapes:
        refuse(f"{where}.weight", op.weight, "the name of a stored tensor")
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
        refuse(f"{where}.weight", list(shape), f"a kernel of 1 to {MAX_WINDOW}")
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
        refuse(f"{where}.groups", op.groups, f"{num} counts, for a convolution of {groups} groups")
    if groups == 1:
        if any(n != 1 for n in op.groups):
            refuse(f"{where}.groups", op.groups, "1 for each subnet: the weight has one group")
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
    left, right = x.layout(), out.layout()
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
                refuse(
                    f"{where}.norm.{part}", names, f"one name for each of {len(out.channels[0].kept)} subnets"
                )
            for k, name in enumerate(names):
                _check_tensor(name, shapes, (out.kept(k),), f"{where}.norm.{part}[{k}]")
    if add is not None and (values[add].space != out.space or values[add].layout() != out.layout()):
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
    left, right = x.layout(), out.layout()
    grown = right[len(left) - 1 :]
    same = left[:-1] == right[: len(left) - 1] and len(grown) == 1
    if not same or any(
        b < a for a, b in zip((left[-1].full, *left[-1].kept), (grown[0].full, *grown[0].kept), strict=True)
    ):
        raise ArtifactError(f"{where}: {_shape(out)} is not {_shape(x)} with channels appended")
    return Value(out.channels, x.space)


def _validate_plan(program: Program) -> None:
    values, ops = program.values, program.ops or ()
    size, offsets = program.plan.size, program.plan.offsets
    if len(offsets) != len(values):
        refuse("program.plan.offsets", offsets, f"one offset for each of the {len(values)} values")
    sizes = [v.size(-1) for v in values]
    if size > sum(sizes) + ALIGN * len(values):
        refuse("program.plan.size", size, "no more than the values together need")
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
