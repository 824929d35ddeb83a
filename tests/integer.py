"""A quantised program run in numpy on integers, op by op from the text of docs/quant.md: slow, and independent of both
`rheostat.train.quant` and the engine."""

from __future__ import annotations

from typing import Any

import numpy as np

from reference import _conv, _windows, of_subnet
from rheostat.program import Program, reads


def run(program: Program, tensors: dict[str, np.ndarray], k: int, x: np.ndarray) -> list[np.ndarray]:
    """The float32 outputs of subnet `k` for a batch x [N, ...]."""
    return [
        q.astype(np.float32) * np.float32(program.quant.scales[v][k])
        for v, q in zip(program.outputs, integers(program, tensors, k, x), strict=True)
    ]


def integers(program: Program, tensors: dict[str, np.ndarray], k: int, x: np.ndarray) -> list[np.ndarray]:
    """The outputs before their last multiplication, int64."""
    quant = program.quant
    assert quant is not None
    assert program.ops is not None
    tensors = of_subnet(tensors, k)
    low, top = bounds(program, 0)
    with np.errstate(over="ignore", invalid="ignore"):
        q = np.rint(x.astype(np.float32) / np.float32(quant.scales[0][k]))
    q = np.where(np.isnan(q), low, np.clip(q, low, top))
    values = {0: q.astype(np.int64)}
    for i, op in enumerate(program.ops):
        y = _run(program, tensors, i, k, [values[v] for v in reads(op)])
        out = program.values[op.output]
        assert y.shape == (len(x), out.kept(k), *out.space), (op, y.shape)
        values[op.output] = y
        low, top = bounds(program, op.output)
        assert y.min() >= low
        assert y.max() <= top
    return [values[v] for v in program.outputs]


def bounds(program: Program, v: int) -> tuple[int, int]:
    """The table of docs/quant.md."""
    unsigned, bits = program.quant.unsigned[v], program.quant.bits_activations
    top = 32767 if bits == 16 else 255 if unsigned else 127
    return (0 if unsigned else -top), top


def rounded(t: Any, n: int) -> Any:
    """floor((t + 2^(n-1)) / 2^n), by division instead of a shift."""
    return (t + 2 ** (n - 1)) // 2**n if n else t


def _run(
    program: Program, tensors: dict[str, np.ndarray], i: int, k: int, inputs: list[np.ndarray]
) -> np.ndarray:
    op, own = program.ops[i], program.quant.ops[i]
    x, out, n, factors = inputs[0], program.values[op.output], own.shift[k], own.factors[k]
    low, high = bounds(program, op.output)[0], own.high[k]
    match op.op:
        case "conv2d" | "linear" | "norm":
            total = x if op.op == "norm" else _exact(op, program, tensors[op.weight], k, x)
            t = rounded(total, own.pre[k]) * _whole(tensors[own.multiplier[k]], total)
            t = t + _whole(tensors[own.bias[k]], total)
            if getattr(op, "add", None) is not None:
                t = t + factors[0] * inputs[1]
        case "add":
            t = factors[0] * x + factors[1] * inputs[1]
        case "mul":
            scale = inputs[1]
            t = factors[0] * x * (scale[:, :, None, None] if scale.ndim < x.ndim else scale)
        case "concat":
            t = np.concatenate([f * v for f, v in zip(factors, inputs, strict=True)], 1)
        case "activation" if op.activation in ("relu", "relu6"):
            t = factors[0] * x
        case "activation":
            return tensors[own.table[k]].astype(np.int64)[x - bounds(program, op.input)[0]]
        case "avg_pool2d" | "global_avg_pool":
            total, count = _mean(op, x, out)
            return np.clip((2 * factors[0] * total + count * 2**n) // (2 * count * 2**n), low, high)
        case "max_pool2d":
            return _windows(x, op.kernel, op.stride, op.padding, out.space, -(2**40)).max((-2, -1))
        case "subsample":
            return x[:, :, :: op.stride[0], :: op.stride[1]]
        case "pad_channels":
            return np.concatenate(
                [x, np.zeros((len(x), out.kept(k) - x.shape[1], *x.shape[2:]), np.int64)], 1
            )
        case _:
            raise AssertionError(op)
    return np.clip(rounded(t, n), low, high)


def _exact(op: Any, program: Program, weight: np.ndarray, k: int, x: np.ndarray) -> np.ndarray:
    """The sums of products; float64 holds each of them exactly."""
    weight, x = weight.astype(np.float64), x.astype(np.float64)
    if op.op == "conv2d":
        total = _conv(op, program, weight, k, x)
    else:
        source, out = program.values[op.input], program.values[op.output]
        columns = (source.indices(k)[:, None] * source.area + np.arange(source.area)).ravel()
        total = x.reshape(len(x), -1) @ weight[np.ix_(out.indices(k), columns)].T
    assert np.abs(total).max() < 2**53
    assert (total == np.rint(total)).all()
    return total.astype(np.int64)


def _mean(op: Any, x: np.ndarray, out: Any) -> tuple[np.ndarray, Any]:
    if op.op == "global_avg_pool":
        return x.sum((2, 3), keepdims=bool(out.space)), x.shape[2] * x.shape[3]
    ones, padding = np.ones_like(x), op.padding
    if op.count_include_pad:
        ones = np.pad(ones, [(0, 0), (0, 0), *((p, p) for p in op.padding)], constant_values=1)
        padding = (0, 0)
    count = _windows(ones, op.kernel, op.stride, padding, out.space, 0).sum((-2, -1))
    return _windows(x, op.kernel, op.stride, op.padding, out.space, 0).sum((-2, -1)), count


def _whole(a: np.ndarray, like: np.ndarray) -> np.ndarray:
    return a.astype(np.int64).reshape(1, -1, *[1] * (like.ndim - 2))
