"""A program run in numpy, float64, op by op from the text of docs/format.md: slow, and independent of the engine."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from rheostat.program import Program, reads


def run(program: Program, tensors: dict[str, np.ndarray], k: int, x: np.ndarray) -> list[np.ndarray]:
    """The outputs of subnet `k` for a batch x [N, ...]."""
    assert program.ops is not None, program.unsupported
    tensors = of_subnet(tensors, k)
    values = {0: x.astype(np.float64)}
    for op in program.ops:
        inputs = [values[v] for v in reads(op)]
        y = _run(op, program, tensors, k, inputs)
        out = program.values[op.output]
        assert y.shape == (len(x), out.kept(k), *out.space), (op, y.shape)
        values[op.output] = y
    return [values[v] for v in program.outputs]


def of_subnet(tensors: dict[str, np.ndarray], k: int) -> dict[str, np.ndarray]:
    """The tensors with zeros where their levels are above `k`."""
    levels = {name: tensors.get(f"{name}@levels", np.zeros((), np.uint8)) for name in tensors}
    return {name: np.where(levels[name] <= k, array, array.dtype.type(0)) for name, array in tensors.items()}


def _run(
    op: Any, program: Program, tensors: dict[str, np.ndarray], k: int, inputs: list[np.ndarray]
) -> np.ndarray:
    x, out = inputs[0], program.values[op.output]
    if op.op == "conv2d":
        y = _conv(op, program, tensors[op.weight].astype(np.float64), k, x)
    elif op.op == "linear":
        source = program.values[op.input]
        columns = (source.indices(k)[:, None] * source.area + np.arange(source.area)).ravel()
        y = x.reshape(len(x), -1) @ tensors[op.weight].astype(np.float64)[np.ix_(out.indices(k), columns)].T
    else:
        return _activate(getattr(op, "activation", None), _plain(op, tensors, k, inputs, out))
    if op.bias is not None:
        y = y + _channels(tensors[op.bias][out.indices(k)], y)
    y = _normalise(op.norm, tensors, k, y)
    return _activate(op.activation, y + inputs[1] if op.add is not None else y)


def _plain(op: Any, tensors: dict[str, np.ndarray], k: int, inputs: list[np.ndarray], out: Any) -> np.ndarray:
    x = inputs[0]
    match op.op:
        case "norm":
            return _normalise(op.norm, tensors, k, x)
        case "activation":
            return x
        case "max_pool2d":
            return _windows(x, op.kernel, op.stride, op.padding, out.space, -math.inf).max((-2, -1))
        case "avg_pool2d":
            ones = np.ones_like(x)
            if op.count_include_pad:  # the padding counts, what ceil_mode reaches beyond it does not
                ones = np.pad(ones, [(0, 0), (0, 0), *((p, p) for p in op.padding)], constant_values=1)
                count = _windows(ones, op.kernel, op.stride, (0, 0), out.space, 0).sum((-2, -1))
            else:
                count = _windows(ones, op.kernel, op.stride, op.padding, out.space, 0).sum((-2, -1))
            return _windows(x, op.kernel, op.stride, op.padding, out.space, 0).sum((-2, -1)) / count
        case "global_avg_pool":
            return x.mean((2, 3), keepdims=bool(out.space))
        case "add":
            return x + inputs[1]
        case "mul":
            scale = inputs[1]
            return x * (scale[:, :, None, None] if scale.ndim < x.ndim else scale)
        case "concat":
            return np.concatenate(inputs, 1)
        case "subsample":
            return x[:, :, :: op.stride[0], :: op.stride[1]]
        case "pad_channels":
            zeros = np.zeros((len(x), out.kept(k) - x.shape[1], *x.shape[2:]))
            return np.concatenate([x, zeros], 1)
        case "softmax":
            e = np.exp(x - x.max(1, keepdims=True))
            return e / e.sum(1, keepdims=True)
    raise AssertionError(op)


def _conv(op: Any, program: Program, weight: np.ndarray, k: int, x: np.ndarray) -> np.ndarray:
    source, out = program.values[op.input], program.values[op.output]
    full_groups = source.full // weight.shape[1]
    rows, columns = out.indices(k), source.indices(k)
    # Dense form of the grouped weight: zero wherever input and output belong to different groups.
    dense = np.zeros((out.full, source.full, *weight.shape[2:]))
    per_out, per_in = out.full // full_groups, weight.shape[1]
    for g in range(full_groups):
        r, c = slice(g * per_out, (g + 1) * per_out), slice(g * per_in, (g + 1) * per_in)
        dense[r, c] = weight[r]
    dense = dense[np.ix_(rows, columns)]
    reach = tuple(d * (n - 1) + 1 for d, n in zip(op.dilation, weight.shape[2:], strict=True))
    windows = _windows(x, reach, op.stride, op.padding, out.space, 0)[
        ..., :: op.dilation[0], :: op.dilation[1]
    ]
    return np.einsum("nchwij,ocij->nohw", windows, dense, optimize=True)


def _windows(x: np.ndarray, kernel: Any, stride: Any, padding: Any, space: Any, fill: float) -> np.ndarray:
    """[N, C, H', W', kh, kw], with enough of `fill` beyond the end for windows that ceil_mode adds."""
    pads = [
        (p, max(p, (n - 1) * s + k - p - size))
        for n, s, k, p, size in zip(space, stride, kernel, padding, x.shape[2:], strict=True)
    ]
    x = np.pad(x, [(0, 0), (0, 0), *pads], constant_values=fill)
    return sliding_window_view(x, kernel, (2, 3))[:, :, :: stride[0], :: stride[1]][
        :, :, : space[0], : space[1]
    ]


def _channels(a: np.ndarray, like: np.ndarray) -> np.ndarray:
    return a.astype(np.float64).reshape(1, -1, *[1] * (like.ndim - 2))


def _normalise(norm: Any, tensors: dict[str, np.ndarray], k: int, x: np.ndarray) -> np.ndarray:
    if norm is None:
        return x
    y = (x - _channels(tensors[norm.mean[k]], x)) / np.sqrt(_channels(tensors[norm.var[k]], x) + norm.eps)
    y = y * _channels(tensors[norm.weight[k]], x) if norm.weight else y
    return y + _channels(tensors[norm.bias[k]], x) if norm.bias else y


def _activate(name: str | None, x: np.ndarray) -> np.ndarray:
    match name:
        case None:
            return x
        case "relu":
            return np.maximum(x, 0)
        case "relu6":
            return np.clip(x, 0, 6)
        case "hardsigmoid":
            return np.clip(x + 3, 0, 6) / 6
        case "hardswish":
            return x * np.clip(x + 3, 0, 6) / 6
        case "sigmoid":
            return 1 / (1 + np.exp(-x))
        case "silu":
            return x / (1 + np.exp(-x))
        case "tanh":
            return np.tanh(x)
        case "gelu":
            return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
        case "gelu_tanh":
            return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    raise AssertionError(name)
