"""What each subnet of an artifact costs, counted again from its ops."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

from rheostat.artifact import read_header
from rheostat.program import Conv2d, Linear, Normalize, Program, Shapes
from rheostat.spec import ArtifactError, Cost, SubnetInfo


class CostTable(tuple[SubnetInfo, ...]):
    """The `SubnetInfo` of every subnet, smallest first; `str` and `print` show them as an aligned table."""

    __slots__ = ()

    def __str__(self) -> str:
        columns = [("subnet", "parameters", "MACs", "bytes")]
        columns += [(s.name, f"{s.parameters:,}", f"{s.macs:,}", f"{s.size_bytes:,}") for s in self]
        measured = (
            ("accuracy", [s.accuracy for s in self], "{:.2%}"),
            ("p50 ms", [s.latency_ms_p50 for s in self], "{:.3g}"),
            ("p95 ms", [s.latency_ms_p95 for s in self], "{:.3g}"),
        )
        for title, numbers, form in measured:
            if any(n is not None for n in numbers):
                texts = [title, *("-" if n is None else form.format(n) for n in numbers)]
                columns = [(*row, text) for row, text in zip(columns, texts, strict=True)]
        return aligned(columns)


def aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of equally many texts as a table, the first column to the left, the others to the right.

    >>> print(aligned([("", "b"), ("aa", "1,000")]))
            b
    aa  1,000
    """
    first, *rest = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = (
        (f"{row[0]:<{first}}", *(f"{text:>{w}}" for text, w in zip(row[1:], rest, strict=True)))
        for row in rows
    )
    return "\n".join("  ".join(line).rstrip() for line in lines)


def cost(path: str | os.PathLike[str]) -> CostTable:
    """Parameters, multiply-accumulates and bytes of every subnet, smallest first.

    `macs` counts the multiply-accumulates of convolutions and linears for one sample; `parameters` the elements of
    the subnet's slices, biases and norm affines; `size_bytes` is these and the norms' statistics in float32.
    Where the artifact holds ops, the numbers are derived from them, and `ArtifactError` is raised if the
    stored ones differ. Only the header of the file is read. In a quantised artifact `parameters` counts the weights
    and one bias a channel, `size_bytes` what is stored for them: integers, multipliers and tables.

    Of a tensor with levels only the weights that the subnet keeps count: as parameters, as MACs (each works once at
    every position of the output, padding included), and as bytes, to which its encoded levels are added whole, since
    the smallest subnet needs them, too.

    >>> print(cost("resnet20.safetensors"))  # doctest: +SKIP
    subnet  parameters        MACs      bytes
    0.25        17,326   2,617,504     70,680
    0.5         68,050  10,248,512    274,952
    1.0        269,722  40,551,040  1,084,392
    """
    program, shapes = read_header(path)
    stored = CostTable(program.subnets)
    if program.ops is not None:
        for k, (info, derived) in enumerate(zip(stored, count(program, shapes), strict=True)):
            if (got := Cost(info.parameters, info.macs, info.size_bytes)) != derived:
                raise ArtifactError(
                    f"{path}: program.subnets[{k}] ({info.name}) states {got}; its ops give {derived}"
                )
    return stored


def count(program: Program, shapes: Shapes) -> tuple[Cost, ...]:
    """The cost of each subnet, derived from the ops of a validated program and the shapes of its tensors."""
    assert program.ops is not None, program.unsupported
    return tuple(_count(program, shapes, k) for k in range(len(program.subnets)))


def counted(program: Program, shapes: Shapes) -> Program:
    """The program with each subnet's parameters, MACs and bytes derived from its ops; measured numbers stay."""
    infos = (
        replace(info, parameters=c.parameters, macs=c.macs, size_bytes=c.size_bytes)
        for info, c in zip(program.subnets, count(program, shapes), strict=True)
    )
    return replace(program, subnets=tuple(infos))


def _count(program: Program, shapes: Shapes, k: int) -> Cost:
    trained: dict[str, int] = {}  # elements by tensor: one that two ops share counts once
    statistics: dict[str, int] = {}
    macs = 0
    if program.quant is not None:
        return _count_integers(program, shapes, k)
    for op in program.ops or ():
        if not isinstance(op, (Conv2d, Linear, Normalize)):
            continue
        out = program.values[op.output]
        if not isinstance(op, Normalize):
            trained[op.weight] = _kept_weights(op, program, shapes, k)
            macs += trained[op.weight] * out.area
        if not isinstance(op, Normalize) and op.bias is not None:
            trained[op.bias] = out.kept(k)
        if op.norm is not None:
            trained |= {
                names[k]: out.kept(k) for names in (op.norm.weight, op.norm.bias) if names is not None
            }
            statistics |= {names[k]: out.kept(k) for names in (op.norm.mean, op.norm.var)}
    parameters = sum(trained.values())
    return Cost(
        parameters, macs, 4 * (parameters + sum(statistics.values())) + _index_bytes(program, trained)
    )


def _kept_weights(op: Conv2d | Linear, program: Program, shapes: Shapes, k: int) -> int:
    """Weights of `op` that subnet `k` keeps."""
    if op.weight in program.levels:
        return program.levels[op.weight].kept(k)
    x, out = program.values[op.input], program.values[op.output]
    if isinstance(op, Linear):
        return out.kept(k) * x.size(k)
    return out.kept(k) * (x.kept(k) // op.groups[k]) * math.prod(shapes[op.weight][1][2:])


def _index_bytes(program: Program, names: Iterable[str]) -> int:
    return sum(program.levels[name].index_bytes for name in names if name in program.levels)


_BYTES = {"I8": 1, "I16": 2, "I32": 4, "I64": 8}


def _count_integers(program: Program, shapes: Shapes, k: int) -> Cost:
    """Weights as they are stored, and for each output channel a multiplier and a bias; tables count as bytes only."""
    assert program.quant is not None
    stored: dict[str, tuple[int, int]] = {}  # elements and bytes of each by tensor
    macs = parameters = 0
    for op, own in zip(program.ops or (), program.quant.ops, strict=True):
        if isinstance(op, (Conv2d, Linear)):
            kept = _kept_weights(op, program, shapes, k)
            stored[op.weight] = kept, _BYTES[shapes[op.weight][0]]
            macs += kept * program.values[op.output].area
        for names in (own.multiplier, own.bias, own.table):
            if names is not None:
                dtype, shape = shapes[names[k]]
                stored[names[k]] = shape[0], _BYTES[dtype]
        if own.bias is not None:
            parameters += shapes[own.bias[k]][1][0]
    parameters += sum(n for name, (n, _) in stored.items() if len(shapes[name][1]) > 1)
    size_bytes = sum(n * size for n, size in stored.values())
    return Cost(parameters, macs, size_bytes + _index_bytes(program, stored))
