"""An artifact as C99 for microcontrollers: tables and one file of layers, beside the kernels that run them."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rheostat.artifact import first_subnets, read
from rheostat.program import (
    ACTIVATIONS,
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    GlobalAvgPool,
    Linear,
    MaxPool2d,
    Mul,
    Normalize,
    Op,
    PadChannels,
    Program,
    Softmax,
    Subsample,
    live_ranges,
    reads,
)
from rheostat.run.engine import Engine

MAX_STEPS = 253  # ops: the progress record counts them in one byte
MAX_SPACE = 2**15 - 1  # positions along an axis, padding included: C's int may have 16 bits
MAX_INDEX = 2**16 - 1  # of rh_index where 16 bits are enough for every offset
BLOCK = 255  # RH_BLOCK of rh_layers.h
STATE_BYTES = 4  # of the level in use, in RAM
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror")
KERNELS = ("rh_api.h", "rh_golden.h", "rh_layers.h", "rh_net.h", "net_host.c")


@dataclass(frozen=True)
class CSource:
    """The C source of an artifact: where it lies, what it takes of a device, and how to check it on this computer.

    constant_bytes: weights, multipliers, tables, for each op; they stay in flash or other non-volatile memory.
    arena_bytes: activations, in RAM or, where an inference can be resumed, in non-volatile memory.
    column_bytes: what a convolution gathers, always in RAM. record_bytes: what `net_switch` writes to, in all.
    The code, the stack and the C structures that describe the layers come on top: `size net.o` tells.
    """

    folder: Path
    program: Program = field(repr=False)
    constant_bytes: tuple[int, ...] = field(repr=False)
    arena_bytes: int
    column_bytes: int
    record_bytes: int = 8

    def compile(
        self,
        compiler: str = "cc",
        flags: Sequence[str] = ("-O2",),
        sanitize: bool = False,
        resume: bool = False,
    ) -> Path:
        """Compile for this computer, every warning an error, and return the program's path.

        sanitize: with AddressSanitizer and UndefinedBehaviorSanitizer. resume: with NET_RESUME. Raises ValueError
        where the compiler is missing or fails.
        """
        program = self.folder / f"net_host{'_sanitized' * sanitize}{'_resume' * resume}"
        sources = [self.folder / "net.c", self.folder / "net_host.c"]
        defines = ["-DNET_RESUME"] * resume
        command = [
            compiler,
            *WARNINGS,
            *flags,
            *defines,
            *(SANITIZE if sanitize else ()),
            *sources,
            "-o",
            program,
        ]
        _run(list(map(str, command)), b"")
        return program

    def check(self, compiler: str = "cc", sanitize: bool = True) -> None:
        """Compile, run every level on the golden vectors, and raise ValueError where an output differs.

        With integers every bit must be the engine's; with floats 1e-4 of the largest output is allowed.
        """
        for resume in (False, True):
            program = self.compile(compiler, sanitize=sanitize, resume=resume)
            if wrong := int(_run([str(program)], b"")):
                raise ValueError(f"{program}: {wrong} outputs differ from the golden ones; want the engine's")

    def run(self, program: Path, x: np.ndarray, level: int) -> np.ndarray | tuple[np.ndarray, ...]:
        """Run a compiled program on a batch: float32 [N, ...] in, what the engine returns out.

        program: what `compile` returned. level: the index of a subnet, smallest first.
        """
        if not 0 <= level < len(self.program.subnets):
            raise ValueError(f"level: got {level}; want 0 to {len(self.program.subnets) - 1}")
        if x.shape[1:] != self.program.input.shape:
            raise ValueError(
                f"x: got {list(x.shape)}; want [N, {', '.join(map(str, self.program.input.shape))}]"
            )
        outputs = [self.program.values[v] for v in self.program.outputs]
        shapes = [(o.kept(level), *o.space) for o in outputs]
        sizes = [int(np.prod(shape)) for shape in shapes]
        got = np.frombuffer(
            _run([str(program), str(level)], to_numbers(self.program, x, level).tobytes()),
            np.float32 if self.program.quant is None else np.int16,
        ).reshape(len(x), sum(sizes))
        parts = np.split(got, np.cumsum(sizes)[:-1], axis=1)
        ys = [part.reshape(len(x), *shape) for part, shape in zip(parts, shapes, strict=True)]
        if self.program.quant is not None:
            scales = [np.float32(self.program.quant.scales[v][level]) for v in self.program.outputs]
            ys = [y.astype(np.float32) * s for y, s in zip(ys, scales, strict=True)]
        return ys[0] if len(ys) == 1 else tuple(ys)


def export_c(
    artifact: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    examples: np.ndarray | None = None,
    flash_bytes: int | None = None,
    ram_bytes: int | None = None,
) -> CSource:
    """Write an artifact as C99: `net.h`, `net.c`, golden vectors and the kernels; level k of the C is subnet k.

    examples: float32 [N, ...] of which the golden vectors are made, two random ones by default. flash_bytes,
    ram_bytes: what the device has for constants and activations; a net that needs more is refused. Calls no function
    of the C library but memcpy, allocates nothing, and has no float where the artifact holds integers
    (docs/microcontrollers.md). Raises ArtifactError for a file that cannot be read or run, ValueError for a net that
    does not fit or that this C cannot express.

    >>> rh.save(net, "dial.safetensors")
    >>> source = export_c("dial.safetensors", "firmware")
    >>> source.check()
    >>> source.arena_bytes, sum(source.constant_bytes)
    (80, 260)
    """
    program, tensors = read(artifact)
    if program.ops is None:
        raise ValueError(
            f"{artifact}: has no program to export ({program.unsupported}); want a model the engine can run"
        )
    _check_limits(program, str(artifact))
    writer = _Writer(program, tensors)
    _check_fit(writer, flash_bytes, ram_bytes, str(artifact))
    if examples is not None and len(examples) == 0:
        raise ValueError("examples: got none; want at least one input, or None for two random ones")
    if examples is None:
        examples = np.random.default_rng(0).standard_normal((2, *program.input.shape), np.float32)
    outputs = []
    with Engine(artifact, threads=1) as engine:
        for k in range(len(program.subnets)):
            engine.select(k)
            ys = engine(examples)
            outputs.append(ys if isinstance(ys, tuple) else (ys,))
    texts = {
        "net.h": writer.header(),
        "net.c": writer.source(),
        "net_golden.h": _golden(program, examples, outputs),
    }
    for name in (*KERNELS, "rh_float.h" if program.quant is None else "rh_integer.h"):
        texts[name] = Path(__file__).with_name("mcu").joinpath(name).read_text(encoding="ascii")
    folder = Path(out_dir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="ascii", newline="\n")
    return CSource(folder, program, tuple(writer.constant_bytes), writer.arena_bytes, writer.column_bytes)


def to_numbers(program: Program, x: np.ndarray, level: int) -> np.ndarray:
    """What `net_run` takes in `level` for float32 inputs: themselves, or round(x / scale) to the even and clamped."""
    quant = program.quant
    if quant is None:
        return np.ascontiguousarray(x, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        q = np.rint(x.astype(np.float32) / np.float32(quant.scales[0][level]))
    q = np.where(np.isnan(q), quant.low(0), np.clip(q, quant.low(0), quant.top(0)))
    return q.astype(_input_dtype(program))


# ---- limits ----


def _check_limits(program: Program, where: str) -> None:
    """What the C cannot express: more steps than a byte counts, images that a 16-bit int cannot walk over."""
    ops = program.ops or ()
    if len(ops) > MAX_STEPS:
        raise ValueError(f"{where}: got {len(ops)} ops; the C runs at most {MAX_STEPS}")
    for i, op in enumerate(ops):
        space = program.values[reads(op)[0]].space or (1, 1)
        padding, stride = getattr(op, "padding", (0, 0)), getattr(op, "stride", (1, 1))
        if any(n + 2 * p + s > MAX_SPACE for n, p, s in zip(space, padding, stride, strict=True)):
            raise ValueError(
                f"{where}: ops[{i}] ({op.op}) walks over {list(space)} with padding {list(padding)}; the C walks over "
                f"at most {MAX_SPACE} positions along an axis"
            )


def _check_fit(writer: _Writer, flash_bytes: int | None, ram_bytes: int | None, where: str) -> None:
    need, program = sum(writer.constant_bytes), writer.program
    if flash_bytes is not None and need > flash_bytes:
        sums = np.cumsum(writer.constant_bytes)
        first, largest = int(np.argmax(sums > flash_bytes)), int(np.argmax(writer.constant_bytes))
        raise ValueError(
            f"{where}: its constants take {need} bytes of flash, {need - flash_bytes} more than the {flash_bytes} "
            f"given; {_title(program, first)} is the first that does not fit, {_title(program, largest)} the largest "
            f"with {writer.constant_bytes[largest]} bytes"
        )
    need = writer.arena_bytes + writer.column_bytes + STATE_BYTES
    if ram_bytes is not None and need > ram_bytes:
        ranges = live_ranges(program.ops or (), program.outputs, len(program.values))
        alive = [
            sum(v.size(-1) for v, (a, b) in zip(program.values, ranges, strict=True) if a <= i <= b)
            for i in range(len(program.ops or ()))
        ]
        worst = int(np.argmax(alive))
        raise ValueError(
            f"{where}: its activations and state take {need} bytes of RAM, {need - ram_bytes} more than the "
            f"{ram_bytes} given; {_title(program, worst)} needs {alive[worst] * writer.element.itemsize} of them "
            "at once"
        )


def _title(program: Program, i: int) -> str:
    op = (program.ops or ())[i]
    return f"ops[{i}] ({' '.join([op.op, *([op.weight] if isinstance(op, (Conv2d, Linear)) else [])])})"


# ---- text ----

_C_TYPES: Mapping[str, str] = {
    "int8": "int8_t",
    "uint8": "uint8_t",
    "int16": "int16_t",
    "uint16": "uint16_t",
    "int32": "int32_t",
    "uint32": "uint32_t",
    "int64": "int64_t",
    "float32": "float",
}


def _numbers(array: np.ndarray) -> str:
    """The numbers between braces, exact, in lines of about 100 characters."""
    if array.dtype == np.float32:
        if not np.isfinite(array).all():
            raise ValueError("export_c: got NaN or infinity in a norm or an example; want finite numbers")
        texts = [float(v).hex() + "f" for v in array.ravel()]
    else:
        texts = [f"{v}LL" if array.dtype == np.int64 else str(v) for v in array.ravel().tolist()]
    width = max(map(len, texts)) + 2
    each = max(1, 110 // width)
    lines = [", ".join(texts[i : i + each]) for i in range(0, len(texts), each)]
    return "{\n    " + ",\n    ".join(lines) + "}" if len(lines) > 1 else f"{{{lines[0]}}}"


def _plain(text: str) -> str:
    """`text` as it may stand in a C comment or string."""
    return re.sub(r"[^A-Za-z0-9_.,:+@ \[\]()-]", "_", text)


def _runs(indices: np.ndarray) -> list[tuple[int, int]]:
    """Increasing numbers as (first, count).

    >>> _runs(np.array([0, 1, 2, 7, 8]))
    [(0, 3), (7, 2)]
    """
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    return [(int(part[0]), len(part)) for part in np.split(indices, breaks) if len(part)]


def _input_dtype(program: Program) -> np.dtype:
    quant = program.quant
    if quant is None:
        return np.dtype(np.float32)
    if quant.bits_activations == 16:
        return np.dtype(np.int16)
    return np.dtype(np.uint8 if quant.unsigned[0] else np.int8)


class _Writer:
    """Every layer as C constants and one call; the layout is that of the largest subnet, channel after channel."""

    def __init__(self, program: Program, tensors: Mapping[str, np.ndarray]) -> None:
        assert program.ops is not None
        quant = program.quant
        self.program, self._tensors, self._ops = program, tensors, program.ops
        self._num = len(program.subnets)
        bits = 32 if quant is None else quant.bits_activations
        self.element = np.dtype({8: np.uint8, 16: np.int16, 32: np.float32}[bits])
        self._bits = bits, 32 if quant is None else quant.bits_weights
        sizes = [
            program.plan.size,
            *(tensors[op.weight].size for op in self._ops if isinstance(op, (Conv2d, Linear))),
        ]
        self._index = np.dtype(np.uint16 if max(sizes) <= MAX_INDEX else np.uint32)
        self._names: dict[tuple[str, bytes], str] = {}
        self._definitions: list[str] = []
        self._calls: list[str] = []
        self._dense = self._pruned = False
        self._columns = 1
        self.constant_bytes: list[int] = []
        for i, op in enumerate(self._ops):
            self._definitions.append(f"\n/* {i}: {_plain(_title(program, i).partition(' ')[2][1:-1])} */")
            self.constant_bytes.append(0)
            self._calls.append(self._layer(i, op))
        self._outputs = [self._output(i, v) for i, v in enumerate(program.outputs)]
        self.arena_bytes = program.plan.size * self.element.itemsize
        self.column_bytes = self._columns * self.element.itemsize

    # ---- constants ----

    def _array(self, kind: str, array: np.ndarray) -> str:
        """The name of a constant array; equal ones are written once."""
        array = array if array.size else np.zeros(1, array.dtype)  # C has no empty arrays
        key = str(array.dtype), array.tobytes()
        if key not in self._names:
            self._names[key] = f"{kind}_{len(self._names)}"
            self.constant_bytes[-1] += array.nbytes
            self._definitions.append(
                f"static const {_C_TYPES[str(array.dtype)]} {self._names[key]}[{array.size}] = {_numbers(array)};"
            )
        return self._names[key]

    def _run_list(self, indices: np.ndarray) -> str:
        runs = _runs(indices)
        if not runs:
            return "{0, 0}"
        key = "rh_run", repr(runs).encode()
        if key not in self._names:
            self._names[key] = f"runs_{len(self._names)}"
            self.constant_bytes[-1] += 2 * self._index.itemsize * len(runs)
            text = ", ".join(f"{{{first}, {count}}}" for first, count in runs)
            self._definitions.append(f"static const rh_run {self._names[key]}[{len(runs)}] = {{{text}}};")
        return f"{{{self._names[key]}, {len(runs)}}}"

    def _channels(self, v: int, k: int) -> np.ndarray:
        """Where the channels of value `v` that subnet `k` keeps lie among those of the largest subnet."""
        value = self.program.values[v]
        return np.searchsorted(value.indices(-1), value.indices(k))

    def _value(self, v: int, offset: int = 0) -> str:
        quant = self.program.quant
        signed = quant is not None and quant.bits_activations == 8 and not quant.unsigned[v]
        return f"{{{self.program.plan.offsets[v] + offset}, {128 if signed else 0}}}"

    # ---- layers ----

    def _layer(self, i: int, op: Op) -> str:
        """Write the constants of one op and return the call that runs it."""
        if isinstance(op, Concat):
            return " ".join(self._concat(i, op, j) for j in range(len(op.inputs)))
        source, out = reads(op)[0], op.output
        fields = {
            "input": self._value(source),
            "output": self._value(out),
            "area": str(self.program.values[out].area),
        }
        others = reads(op)[1:]
        if others:
            fields |= {
                "other": self._value(others[0]),
                "other_area": str(self.program.values[others[0]].area),
                "has_other": "1",
            }
        rows = [self._channels(out, k) for k in range(self._num)]
        inputs, taps = [self._channels(source, k) for k in range(self._num)], 0
        if isinstance(op, (Conv2d, Linear)):
            size, taps = self._matrix(op, fields)
            # Where all groups are kept each keeps a prefix; where groups are removed the kept ones are whole.
            inputs = [channels[channels < size] for channels in inputs]
            conv = isinstance(op, Conv2d)
            call = (
                f"rh_conv2d(arena, column, &layer_{i}, level);"
                if conv
                else f"rh_linear(arena, &layer_{i}, level);"
            )
        elif isinstance(op, (MaxPool2d, AvgPool2d, GlobalAvgPool, Subsample)):
            fields["window"] = self._window(op)
            fields["include_pad"] = str(int(isinstance(op, AvgPool2d) and op.count_include_pad))
            mean = int(isinstance(op, (AvgPool2d, GlobalAvgPool)))
            call = f"rh_pool(arena, &layer_{i}, level, {mean});"
        elif isinstance(op, PadChannels):
            call = f"rh_pad(arena, &layer_{i}, level);"
        elif isinstance(op, Softmax):
            call = f"rh_softmax(arena, &layer_{i}, level);"
        else:
            call = f"rh_pointwise(arena, &layer_{i}, level, {self._kind(i, op)});"
        self._write(i, op, f"layer_{i}", fields, rows, inputs, taps)
        return call

    def _concat(self, i: int, op: Concat, j: int) -> str:
        """One input of a concatenation: rescaled to the place of its channels."""
        before = sum(self.program.values[v].size(-1) for v in op.inputs[:j])
        fields = {
            "input": self._value(op.inputs[j]),
            "output": self._value(op.output, before),
            "area": str(self.program.values[op.output].area),
        }
        rows = [self._channels(op.inputs[j], k) for k in range(self._num)]
        self._write(i, op, f"layer_{i}_{j}", fields, rows, rows, factor=j)
        return f"rh_pointwise(arena, &layer_{i}_{j}, level, RH_RESCALE);"

    def _write(
        self,
        i: int,
        op: Op,
        name: str,
        fields: Mapping[str, str],
        rows: Sequence[np.ndarray],
        inputs: Sequence[np.ndarray],
        taps: int = 0,
        factor: int = 0,
    ) -> None:
        """Write what the layer is in each level, then the layer; an input channel has `taps` columns of a matrix."""
        levels = []
        for k in range(self._num):
            columns = (inputs[k][:, None] * taps + np.arange(taps)).ravel()
            lists = [self._run_list(indices) for indices in (rows[k], inputs[k], columns)]
            levels.append(f"{{{', '.join(lists)}, {self._epilogue(i, op, k, factor)}}}")
        text = ",\n    ".join(levels)
        self._definitions.append(f"static const rh_level {name}_levels[RH_LEVELS] = {{\n    {text}}};")
        text = ",\n    ".join(
            f".{key} = {value}" for key, value in {**fields, "level": f"{name}_levels"}.items()
        )
        self._definitions.append(f"static const rh_layer {name} = {{\n    {text}}};")

    def _kind(self, i: int, op: Op) -> str:
        if isinstance(op, Add):
            return "RH_ADD"
        if isinstance(op, Mul):
            return "RH_MUL"
        if isinstance(op, Normalize):
            return "RH_NORM"
        quant = self.program.quant
        return "RH_TABLE" if quant is not None and quant.ops[i].table is not None else "RH_RESCALE"

    def _window(self, op: Conv2d | MaxPool2d | AvgPool2d | GlobalAvgPool | Subsample) -> str:
        source, out = self.program.values[op.input].space, self.program.values[op.output].space or (1, 1)
        if isinstance(op, Conv2d):
            kernel = self._tensors[op.weight].shape[2:]
            dilation = [d if n > 1 else 1 for n, d in zip(kernel, op.dilation, strict=True)]
            parts = (kernel, op.stride, op.padding, dilation)
        elif isinstance(op, (MaxPool2d, AvgPool2d)):
            parts = (op.kernel, op.stride, op.padding, (1, 1))
        elif isinstance(op, GlobalAvgPool):
            parts = (source, (1, 1), (0, 0), (1, 1))
        else:
            parts = ((1, 1), op.stride, (0, 0), (1, 1))
        return "{" + ", ".join(f"{{{a}, {b}}}" for a, b in (source, out, *parts)) + "}"

    def _matrix(self, op: Conv2d | Linear, fields: dict[str, str]) -> tuple[int, int]:
        """Write the weights of the largest subnet; returns the input channels of one group and the taps of each."""
        source, out = self.program.values[op.input], self.program.values[op.output]
        weight = self._tensors[op.weight]
        taps = source.area if isinstance(op, Linear) else weight.shape[2] * weight.shape[3]
        full = weight.reshape(len(weight), -1, taps)  # [O, I / groups, taps]
        # The first group, which every subnet keeps; the others are like it.
        kept = source.indices(-1)
        kept = kept[kept < full.shape[1]]
        matrix = full[out.indices(-1)][:, kept]
        num_columns = len(kept) * taps
        fields |= {"columns": str(num_columns), "taps": str(taps)}
        if isinstance(op, Conv2d):
            fields |= {
                "window": self._window(op),
                "group_rows": str(len(matrix) // op.groups[-1]),
                "group_size": str(len(kept) * source.area),
            }
            self._columns = max(self._columns, 2 * num_columns)  # two positions at a time
        levels = self._tensors.get(f"{op.weight}@levels")
        if levels is None:
            self._dense = True
            fields["weight"] = self._array("weight", matrix)
        else:
            # Of a weight that several ops read, a level may be below what the widths of this one hold.
            levels = np.maximum(levels, first_subnets(op, self.program, weight.shape))
            self._prune(matrix, levels.reshape(full.shape)[out.indices(-1)][:, kept], fields)
        return len(kept), taps

    def _prune(self, matrix: np.ndarray, levels: np.ndarray, fields: dict[str, str]) -> None:
        """Rows of weights sorted by level, block after block of `BLOCK` columns."""
        weights, columns, counts, starts = [], [], [], [0]
        for row, level in zip(matrix.reshape(len(matrix), -1), levels.reshape(len(matrix), -1), strict=True):
            for begin in range(0, len(row), BLOCK):
                block = level[begin : begin + BLOCK]
                order = np.argsort(block, kind="stable")
                order = order[block[order] < self._num]
                weights.append(row[begin + order])
                columns.append(order)
                counts.append(np.searchsorted(block[order], np.arange(self._num), "right"))
            starts.append(sum(map(len, weights)))
        self._pruned = True
        fields |= {
            "weight": self._array("weight", np.concatenate(weights)),
            "start": self._array("start", np.array(starts[:-1], self._index)),
            "column": self._array("column", np.concatenate(columns).astype(np.uint8)),
            "count": self._array("count", np.concatenate(counts).astype(np.uint8)),
            "blocks": str(len(counts) // len(matrix)),
        }

    def _epilogue(self, i: int, op: Op, k: int, factor: int) -> str:
        """What follows the sums in subnet `k`; `factor` is the first of the op's factors that is needed."""
        if self.program.quant is None:
            return self._float_epilogue(op, k)
        own = self.program.quant.ops[i]
        multiplier = bias = table = "0"
        if own.multiplier is not None and own.bias is not None:
            half = 1 << (own.shift[k] - 1)
            multiplier = self._array("multiplier", self._tensors[own.multiplier[k]].astype(np.int32))
            bias = self._array("bias", self._tensors[own.bias[k]].astype(np.int64) + half)
        if own.table is not None:
            table = self._array("table", self._tensors[own.table[k]].astype(np.int16))
        factors = (*own.factors[k][factor : factor + 2], 0, 0)
        low, high = self.program.quant.low(op.output), own.high[k]
        return (
            f"{{{multiplier}, {bias}, {table}, {{{factors[0]}, {factors[1]}}}, {own.pre[k]}, {own.shift[k]}, "
            f"{low}, {high}}}"
        )

    def _float_epilogue(self, op: Op, k: int) -> str:
        """Scale and shift in double precision until they are stored, as the engine makes them."""
        activation = getattr(op, "activation", None)
        code = 0 if activation is None else 1 + ACTIVATIONS.index(activation)
        norm, bias = getattr(op, "norm", None), getattr(op, "bias", None)
        before = None if bias is None else self._tensors[bias][self.program.values[op.output].indices(k)]
        if norm is None:
            return f"{{0, {'0' if before is None else self._array('shift', before)}, {code}}}"
        weight, offset, mean, var = (
            None if names is None else self._tensors[names[k]].astype(np.float64)
            for names in (norm.weight, norm.bias, norm.mean, norm.var)
        )
        assert mean is not None and var is not None
        scale = (1.0 if weight is None else weight) / np.sqrt(var + norm.eps)
        shift = ((0.0 if before is None else before) - mean) * scale + (0.0 if offset is None else offset)
        with np.errstate(over="ignore"):
            names = [
                self._array("scale", scale.astype(np.float32)),
                self._array("shift", shift.astype(np.float32)),
            ]
        return f"{{{names[0]}, {names[1]}, {code}}}"

    def _output(self, i: int, v: int) -> str:
        rows = [self._channels(v, k) for k in range(self._num)]
        fields = {"input": self._value(v), "area": str(self.program.values[v].area)}
        levels = ",\n    ".join(f"{{.rows = {self._run_list(r)}}}" for r in rows)
        self._definitions.append(
            f"\nstatic const rh_level output_{i}_levels[RH_LEVELS] = {{\n    {levels}}};"
        )
        text = ", ".join(
            f".{key} = {value}" for key, value in {**fields, "level": f"output_{i}_levels"}.items()
        )
        self._definitions.append(f"static const rh_layer output_{i} = {{{text}}};")
        return f"y = rh_read(arena, &output_{i}, level, y);"

    # ---- files ----

    def header(self) -> str:
        """The text of net.h."""
        program, quant = self.program, self.program.quant
        sizes = [sum(program.values[v].size(k) for v in program.outputs) for k in range(self._num)]
        macros = {
            "LEVELS": self._num,
            "LEVEL_NAMES": _braced(f'"{_plain(info.name)}"' for info in program.subnets),
            "INPUT_SIZE": program.values[0].size(-1),
            "OUTPUT_SIZE": max(sizes),
            "OUTPUT_SIZES": _braced(sizes),
            "CONSTANT_BYTES": sum(self.constant_bytes),
            "ARENA_BYTES": self.arena_bytes,
            "KEPT_BYTES": self.arena_bytes + self.element.itemsize,
            "COLUMN_BYTES": self.column_bytes,
        }
        if quant is not None:
            macros["INPUT_SCALES"] = _braced(f"{s!r}f" for s in quant.scales[0])
            macros["OUTPUT_SCALES"] = _braced(
                _braced(f"{s!r}f" for s in quant.scales[v]) for v in program.outputs
            )
        return _HEADER.format(
            model=_plain(program.model),
            producer=_plain(program.producer),
            macros="\n".join(f"#define NET_{name} {value}" for name, value in macros.items()),
            input=_C_TYPES[str(_input_dtype(program))],
            output="float" if quant is None else "int16_t",
        )

    def source(self) -> str:
        """The text of net.c."""
        cases = "\n".join(f"        case {i}: {call} break;" for i, call in enumerate(self._calls))
        macros = {
            "RH_BITS_ACTIVATIONS": self._bits[0],
            "RH_BITS_WEIGHTS": self._bits[1],
            "RH_LEVELS": "NET_LEVELS",
            "RH_DENSE": int(self._dense),
            "RH_PRUNED": int(self._pruned),
            "NET_ID": _number_of(self.program),
            "NET_ARENA": self.program.plan.size,
            "NET_COLUMN": self._columns,
            "NET_STEPS": len(self._ops),
            "NET_INPUT_AT": self.program.plan.offsets[0],
        }
        return _SOURCE.format(
            macros="\n".join(f"#define {name} {value}" for name, value in macros.items()),
            index=_C_TYPES[str(self._index)],
            definitions="\n".join(self._definitions),
            cases=cases,
            outputs="\n    ".join(self._outputs),
        )


def _number_of(p: Program) -> int:
    """1 to 65,535, of all that the inference of a net depends on."""
    text = repr((p.sha256, p.values, p.ops, p.outputs, p.plan, p.quant, p.levels))
    return max(1, int(hashlib.sha256(text.encode()).hexdigest()[:4], 16))


def _golden(program: Program, examples: np.ndarray, outputs: Sequence[Sequence[np.ndarray]]) -> str:
    """The text of net_golden.h: what each level makes of the examples, in the numbers of the C."""
    quant, inputs, wanted = program.quant, [], []
    for k, ys in enumerate(outputs):
        if quant is not None:  # exact: the engine's float is an integer times the scale
            scales = [np.float32(quant.scales[v][k]) for v in program.outputs]
            ys = [np.rint(y / s).astype(np.int16) for y, s in zip(ys, scales, strict=True)]
        flat = np.concatenate([y.reshape(len(examples), -1) for y in ys], axis=1)
        inputs.append(to_numbers(program, examples, k))
        wanted.append(flat)
    definitions, names = [], []
    for k, x in enumerate(inputs):
        same = next((j for j in range(k) if np.array_equal(inputs[j], x)), k)
        names.append(f"golden_input_{same}")
        if same == k:
            definitions.append(f"static const net_input golden_input_{k}[{x.size}] = {_numbers(x)};")
    for k, y in enumerate(wanted):
        definitions.append(f"static const net_output golden_output_{k}[{y.size}] = {_numbers(y)};")
    return _GOLDEN.format(
        num=len(examples),
        definitions="\n".join(definitions),
        inputs=_braced(names),
        outputs=_braced(f"golden_output_{k}" for k in range(len(wanted))),
        tolerance="0" if quant is not None else "1e-4f",
        number="float" if quant is None else "int32_t",
    )


def _run(command: list[str], given: bytes) -> bytes:
    try:
        done = subprocess.run(command, input=given, capture_output=True, check=False)
    except OSError as error:
        raise ValueError(f"{command[0]}: cannot be run: {error.strerror or error}") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise ValueError(f"{' '.join(command)}: exit status {done.returncode}: {said[-2000:]}")
    return done.stdout


def _braced(items: Iterable[object]) -> str:
    return "{" + ", ".join(map(str, items)) + "}"


_HEADER = """/* {model}, exported by {producer}. Made by rheostat.export_c; do not edit. */
#ifndef NET_H
#define NET_H

#include <stddef.h>
#include <stdint.h>

/* Sizes are counts of numbers, which lie channel after channel. CONSTANT: weights and tables, without the code and the
 * structures that describe the layers. ARENA: activations. COLUMN: what a convolution gathers. An integer stands for
 * itself times its scale, which depends on the level: q = round(x / scale), halves to the even one, clamped. */
{macros}

typedef {input} net_input;
typedef {output} net_output;

#include "rh_api.h"

#endif
"""

_SOURCE = """/* Made by rheostat.export_c; do not edit. */
#include "net.h"

/* All that is called of the C library, declared here because small systems have no string.h. */
void *memcpy(void *to, const void *from, size_t size);

{macros}
typedef {index} rh_index;
#include "rh_layers.h"
{definitions}

static void net_layer(rh_element *arena, rh_element *column, uint8_t step, uint8_t level) {{
    (void)column;
    switch (step) {{
{cases}
        default: break;
    }}
}}

static void net_read(const rh_element *arena, uint8_t level, net_output *y) {{
    {outputs}
    (void)y;
}}

#include "rh_net.h"
"""

_GOLDEN = """/* Made by rheostat.export_c; do not edit. */
#ifndef NET_GOLDEN_H
#define NET_GOLDEN_H

#include "net.h"

{definitions}
#define NET_GOLDEN {num}
#define NET_GOLDEN_TOLERANCE {tolerance}
#define NET_GOLDEN_NUMBER {number}
#define NET_GOLDEN_INPUTS {inputs}
#define NET_GOLDEN_OUTPUTS {outputs}

#include "rh_golden.h"

#endif
"""
