"""Quantisation after training: integer weights shared by all subnets, activation ranges of each.

`docs/quant.md` defines the arithmetic; `Quantized.__call__` is its PyTorch form, equal to the engine bit for bit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from numbers import Integral
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rheostat import artifact
from rheostat.cost import counted
from rheostat.program import (
    LEVELS,
    MAX_BIAS,
    MAX_INT,
    MAX_SHIFT,
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
    Program,
    Quantization,
    QuantOp,
    Shapes,
    Softmax,
    Subsample,
    Value,
    num_factors,
    plan,
    reads,
    tabled,
)
from rheostat.program_check import pool_size, validate, whole_groups
from rheostat.spec import ArtifactError, Quant
from rheostat.train import checkpoint as checkpoints
from rheostat.train import distributed
from rheostat.train.loop import batches_of, check_labels, rate_at, seeded, steps_of
from rheostat.train.lower import lower
from rheostat.train.supernet import Supernet

_MOMENTUM = 0.9  # of the moving average of the batches' ranges
_PERCENTILE = 0.999

Arrays = Mapping[str, np.ndarray]
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Quantized:
    """A program of integers and its tensors, as `quantize` makes them.

    `quantized(x, k)` runs subnet `k` (index or name) in exactly the arithmetic of docs/quant.md, on integers held in
    int64 and float64, and returns float32: one tensor, or a tuple for several outputs.
    """

    program: Program
    tensors: Arrays

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the artifact, which `Engine` runs on integers; see `rheostat.save`."""
        artifact.write(path, self.program, self.tensors)

    @torch.no_grad()
    def __call__(self, x: Tensor, subnet: str | int = -1) -> Any:
        names = [s.name for s in self.program.subnets]
        k = names.index(subnet) if isinstance(subnet, str) else range(len(names))[subnet]
        values = {0: self._enter(x, k)}
        for i, op in enumerate(self.program.ops or ()):
            values[op.output] = self._run(i, op, k, [values[v] for v in reads(op)])
        quant = self.program.quant
        assert quant is not None
        outputs = [
            values[v].float() * torch.tensor(quant.scales[v][k], dtype=torch.float32)
            for v in self.program.outputs
        ]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def evaluate(self, loader: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Fraction of right answers of each subnet by name. Raises ValueError when the loader is empty."""
        right, count = [0] * len(self.program.subnets), 0
        for x, y in loader:
            count += len(y)
            for k in range(len(right)):
                right[k] += int((self(x.cpu(), k).argmax(1) == y.cpu()).sum())
        if count == 0:
            raise ValueError("evaluate: the loader is empty; want at least one batch")
        return {s.name: n / count for s, n in zip(self.program.subnets, right, strict=True)}

    def _enter(self, x: Tensor, k: int) -> Tensor:
        quant = self.program.quant
        assert quant is not None
        q = torch.round(x.float() / torch.tensor(quant.scales[0][k], dtype=torch.float32))
        low, top = quant.low(0), quant.top(0)
        q = torch.where(q >= low, q, torch.tensor(float(low)))
        return torch.where(q <= top, q, torch.tensor(float(top))).long()

    def _run(self, i: int, op: Op, k: int, inputs: Sequence[Tensor]) -> Tensor:
        quant = self.program.quant
        assert quant is not None
        own, x, values = quant.ops[i], inputs[0], self.program.values
        factors, shift, out = own.factors[k], own.shift[k], values[op.output]
        if isinstance(op, MaxPool2d):
            return _max_pool(op, x.double(), out).long()
        if isinstance(op, Subsample):
            return x[:, :, :: op.stride[0], :: op.stride[1]]
        if isinstance(op, PadChannels):
            return _pad_channels(x, out.kept(k))
        if own.table is not None:
            return self._tensor(own.table[k])[x - quant.low(reads(op)[0])]
        if isinstance(op, (AvgPool2d, GlobalAvgPool)):
            total, count = _sums(op, x, out)
            t = 2 * factors[0] * total + (count << shift)
            t = torch.div(t, count << (shift + 1), rounding_mode="floor")
        elif isinstance(op, (Conv2d, Linear, Normalize)):
            assert own.multiplier is not None and own.bias is not None
            if not isinstance(op, Normalize):
                weight, groups = weight_of(op, values, self._tensor(op.weight), k, self._levels(op.weight))
                # float64 holds every partial sum exactly: |sum| < 2^53 is checked.
                assert quant.sum_bound(op.input, weight[0].numel()) < 2**53
                x = _weigh(op, x.double(), weight.double(), groups).long()
            t = _rounded(x, own.pre[k]) * _channels(self._tensor(own.multiplier[k]), x)
            t = t + _channels(self._tensor(own.bias[k]), x)
            t = t + factors[0] * inputs[1] if len(factors) == 1 else t
            t = _rounded(t, shift)
        elif isinstance(op, Concat):
            t = _rounded(torch.cat([f * v for f, v in zip(factors, inputs, strict=True)], 1), shift)
        elif isinstance(op, Add):
            t = _rounded(factors[0] * x + factors[1] * inputs[1], shift)
        else:
            assert isinstance(op, (Mul, Activation)), op
            t = _rounded(factors[0] * (_times(x, inputs[1]) if isinstance(op, Mul) else x), shift)
        return t.clamp(quant.low(op.output), own.high[k])

    def _tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.tensors[name].astype(np.int64))

    def _levels(self, name: str) -> Tensor | None:
        return self._tensor(name + LEVELS) if name + LEVELS in self.tensors else None


def quantize(
    net: Supernet | str | os.PathLike[str],
    loader: Iterable[Any],
    quant: Quant | int = 8,
    *,
    ranges: str = "max",
    batches: int | None = None,
) -> Quantized:
    """Integer weights and activations for every subnet, without training.

    net: a supernet, or the path of a float artifact. loader: batches (x, anything) or x of calibration data, like those
    of training but without augmentation. quant: the bits, or one number for both. ranges: "max", the moving average of
    each batch's largest magnitude, or "percentile", of the 99.9th percentile. batches: how many are used; None means
    all. Weights are rounded once, with scales from the full layer, and shared; activation ranges, and norms folded into
    multipliers, are each subnet's own.

    Raises ArtifactError where the engine has no ops for the model or an op has no integer form, ValueError for an empty
    loader.

    >>> quantized = quantize(net, loader)  # doctest: +SKIP
    >>> quantized.save("resnet20.int8.safetensors")  # doctest: +SKIP
    """
    bits = Quant(quant, quant) if isinstance(quant, int) else quant
    if ranges not in ("max", "percentile"):
        raise ValueError(f"quantize: ranges: got {ranges!r}; want 'max' or 'percentile'")
    program, tensors = lower(net) if isinstance(net, Supernet) else artifact.read(net)
    if program.quant is not None:
        raise ArtifactError(f"{net}: it is quantised already; quantize the float artifact it was made from")
    if program.ops is None:
        raise ArtifactError(f"quantize: the engine cannot run this model: {program.unsupported}")
    program = _split(program)
    for i, op in enumerate(program.ops or ()):
        if isinstance(op, Softmax):
            raise ArtifactError(f"quantize: op {i}: softmax has no integer form; let the model return logits")
        if tabled(op) and bits.bits_activations != 8:
            raise ArtifactError(
                f"quantize: op {i} ({op.activation}) is a table, which needs 8-bit activations"  # type: ignore[union-attr]
            )
    largest, lowest = _calibrate(program, tensors, loader, ranges, batches)
    return _Quantizer(program, tensors, bits, largest, lowest).run()


def finetune(
    net: Supernet,
    loader: Iterable[tuple[Tensor, Tensor]],
    quant: Quant | int = 8,
    *,
    epochs: int = 1,
    lr: float = 1e-3,
    ranges: str = "max",
    batches: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    seed: int = 0,
) -> Quantized:
    """Quantisation-aware fine-tuning of all subnets together, then `quantize`.

    The forward pass rounds weights and values as the integers will be; gradients pass the rounding straight through and
    stop where a value is clamped. Activation ranges and norm statistics stay as they are at the start. A tenth of the
    epochs of training at a tenth of its learning rate is enough, where rounding costs more than 0.3 points. SGD with
    momentum 0.9, the rate falling to 0 in a cosine, the loss summed over the subnets. Changes `net` in place.

    checkpoint, resume, seed: as in `fit`; to resume, give the same float network as the first time.

    Raises what `quantize` raises, and ValueError when the loss is no longer finite and under several processes.

    >>> quantized = finetune(net, loader, epochs=3, lr=0.01)  # doctest: +SKIP
    """
    distributed.check_alone("finetune")
    if not isinstance(epochs, Integral) or epochs < 1:
        raise ValueError(f"finetune: got epochs={epochs}; want 1 or more")
    steps, device, first = steps_of(loader), next(net.parameters()).device, 0

    def now() -> Quantized:
        """Calibrated on the same batches at the start, at the end, and when resumed."""
        with seeded(seed, 0, device):
            return quantize(net, batches_of(loader, steps, seed, 0), quant, ranges=ranges, batches=batches)

    bits = now().program.quant
    assert bits is not None
    program, fixed = lower(net)
    program = _split(program)
    levels = {name: torch.tensor(a, device=device) for name, a in fixed.items() if name.endswith(LEVELS)}
    optimizer = torch.optim.SGD(net.parameters(), lr, momentum=0.9, nesterov=True)
    settings = {"quant": asdict(bits), "epochs": epochs, "lr": lr, "steps": steps, "seed": seed}
    if checkpoint is not None:
        if saved := checkpoints.resumed("finetune", checkpoint, resume, settings):
            checkpoints.restore_(net, optimizer, saved)
            first = saved.state["epoch"]
        else:  # finds out now, and not after an epoch, that nothing can be written there
            checkpoints.write(checkpoint, net, optimizer, {"settings": settings, "epoch": 0})
    net.forget_()
    for epoch in range(first, epochs):
        total = torch.zeros((), device=device)
        with seeded(seed, epoch, device):
            for step, (x, y) in enumerate(batches_of(loader, steps, seed, epoch)):
                optimizer.param_groups[0]["lr"] = lr * rate_at(epoch * steps + step, epochs * steps, 0)
                state = net.state_dict() | dict(net.named_parameters(remove_duplicate=False)) | levels
                tensors = _rounded_weights(program, state, bits.bits_weights)
                loss = torch.zeros((), device=device)
                check_labels("finetune", epoch, step, program.values[program.outputs[0]].full, y)
                for k in range(len(program.subnets)):
                    values = _float_values(program, tensors, k, x.to(device), _fake(bits, k))
                    loss = loss + F.cross_entropy(values[program.outputs[0]], y.to(device))
                optimizer.zero_grad(set_to_none=False)
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    net.refresh_()
                total += loss.detach()
        if not math.isfinite(float(total)):
            raise ValueError(f"finetune: epoch {epoch + 1}: the loss is not finite; lower lr")
        if checkpoint is not None:
            checkpoints.write(checkpoint, net, optimizer, {"settings": settings, "epoch": epoch + 1})
    return now()


def _straight(rounded: Tensor, x: Tensor) -> Tensor:
    """`rounded`, with the gradient of `x`."""
    return x + (rounded - x).detach()


def _fake(quant: Quantization, k: int) -> Callable[[int, Tensor], Tensor]:
    def keep(v: int, value: Tensor) -> Tensor:
        scale = quant.scales[v][k]
        clamped = value.clamp(quant.low(v) * scale, quant.top(v) * scale)
        return _straight((clamped / scale).round() * scale, clamped)

    return keep


def _rounded_weights(program: Program, state: Tensors, bits: int) -> dict[str, Tensor]:
    """The state with the weights of all ops rounded by the scales of their full layers."""
    top, tensors = 2 ** (bits - 1) - 1, dict(state)
    for op in program.ops or ():
        if isinstance(op, (Conv2d, Linear)):
            w = state[op.weight]
            scale = (
                w.detach().abs().flatten(1).amax(1).clamp_min(1e-20).reshape(-1, *[1] * (w.ndim - 1)) / top
            )
            tensors[op.weight] = _straight((w / scale).round() * scale, w)
    return tensors


# ---- The float program ----


def _split(program: Program) -> Program:
    """The program with every fused activation but ReLU and ReLU6 as an op of its own."""
    values, ops = list(program.values), []
    for op in program.ops or ():
        activation = getattr(op, "activation", None)
        if isinstance(op, Activation) or activation in (None, "relu", "relu6"):
            ops.append(op)
            continue
        values.append(program.values[op.output])
        between = len(values) - 1
        ops += [
            replace(op, output=between, activation=None),  # type: ignore[call-arg]
            Activation(between, op.output, activation),
        ]
    if len(values) == len(program.values):
        return program
    return replace(program, values=tuple(values), ops=tuple(ops), plan=plan(values, ops, program.outputs))


@torch.no_grad()
def _calibrate(
    program: Program, tensors: Arrays, loader: Iterable[Any], ranges: str, batches: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """For each value and subnet the range of its magnitudes, and the smallest number seen: [values, subnets]."""
    shape = len(program.values), len(program.subnets)
    floats = {name: torch.tensor(array) for name, array in tensors.items()}
    largest, lowest, count = np.zeros(shape), np.full(shape, np.inf), 0
    if isinstance(loader, Tensor | np.ndarray):
        raise ValueError(f"quantize: got a {type(loader).__name__} as the loader; want batches, such as [x]")
    for batch in islice(loader, batches):
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"quantize: got a batch of {got}; want tensors of floats, normalized as in training"
            )
        if len(x) == 0 or tuple(x.shape[1:]) != program.input.shape:
            want = ", ".join(map(str, program.input.shape))
            raise ValueError(f"quantize: got a batch {list(x.shape)}; want [N, {want}], at least one sample")
        x = x.detach().cpu().float()
        for k in range(shape[1]):
            for v, value in _float_values(program, floats, k, x).items():
                if not value.isfinite().all():
                    raise ValueError(
                        f"quantize: value {v} of subnet {k} is not finite on the calibration data"
                    )
                size = _range(value, ranges)
                largest[v, k] = size if count == 0 else _MOMENTUM * largest[v, k] + (1 - _MOMENTUM) * size
                lowest[v, k] = min(lowest[v, k], float(value.min()))
        count += 1
    if count == 0:
        raise ValueError("quantize: the loader is empty; want at least one batch")
    return largest, lowest


def _range(value: Tensor, ranges: str) -> float:
    sizes = value.abs().flatten()
    if ranges == "max":
        return float(sizes.max())
    return float(sizes.kthvalue(max(1, math.ceil(_PERCENTILE * len(sizes)))).values)


def _same(_: int, value: Tensor) -> Tensor:
    return value


def _float_values(
    program: Program, tensors: Tensors, k: int, x: Tensor, keep: Callable[[int, Tensor], Tensor] = _same
) -> dict[int, Tensor]:
    """Every value of subnet `k` in float32, each replaced by `keep(number, value)` before it is read."""
    values = {0: keep(0, x)}
    for op in program.ops or ():
        inputs = [values[v] for v in reads(op)]
        y = _float_op(op, program.values, tensors, k, inputs)
        norm = getattr(op, "norm", None)
        if norm is not None:
            weight, bias = (
                None if names is None else tensors[names[k]] for names in (norm.weight, norm.bias)
            )
            y = F.batch_norm(
                y, tensors[norm.mean[k]], tensors[norm.var[k]], weight, bias, False, 0.0, norm.eps
            )
        if isinstance(op, (Conv2d, Linear)) and op.add is not None:
            y = y + inputs[1]
        values[op.output] = keep(op.output, _ACTIVATE[getattr(op, "activation", None)](y))
    return values


def _float_op(op: Op, values: Sequence[Value], tensors: Tensors, k: int, inputs: Sequence[Tensor]) -> Tensor:
    x, out = inputs[0], values[op.output]
    if isinstance(op, (Conv2d, Linear)):
        weight, groups = weight_of(op, values, tensors[op.weight], k, tensors.get(op.weight + LEVELS))
        y = _weigh(op, x, weight, groups)
        return y if op.bias is None else y + _channels(tensors[op.bias][torch.from_numpy(out.indices(k))], y)
    if isinstance(op, MaxPool2d):
        return _max_pool(op, x, out)
    if isinstance(op, (AvgPool2d, GlobalAvgPool)):
        total, count = _sums(op, x, out)
        return total / count
    if isinstance(op, (Add, Mul)):
        return _times(x, inputs[1]) if isinstance(op, Mul) else x + inputs[1]
    if isinstance(op, Concat):
        return torch.cat(list(inputs), 1)
    if isinstance(op, Subsample):
        return x[:, :, :: op.stride[0], :: op.stride[1]]
    return _pad_channels(x, out.kept(k)) if isinstance(op, PadChannels) else x


_ACTIVATE: Mapping[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
}


# ---- Ops that floats and integers share ----


def weight_of(
    op: Conv2d | Linear, values: Sequence[Value], weight: Tensor, k: int, levels: Tensor | None = None
) -> tuple[Tensor, int]:
    """Subnet `k`'s slice of a full weight, zero where its level is above `k`, and its number of groups."""
    weight = weight if levels is None else weight * (levels <= k)
    x, out = values[op.input], values[op.output]
    rows, columns = torch.from_numpy(out.indices(k)), torch.from_numpy(x.indices(k))
    if isinstance(op, Linear):
        columns = (columns[:, None] * x.area + torch.arange(x.area)).flatten()
        return weight[rows][:, columns], 1
    groups = x.full // weight.shape[1]
    if groups == 1:
        return weight[rows][:, columns], 1
    if whole_groups(op, groups, x, out):
        return weight[rows], op.groups[k]
    return weight[rows][:, columns[: len(columns) // groups]], groups


def _weigh(op: Conv2d | Linear, x: Tensor, weight: Tensor, groups: int) -> Tensor:
    if isinstance(op, Linear):
        return F.linear(x.flatten(1), weight)
    return F.conv2d(x, weight, None, op.stride, op.padding, op.dilation, groups)


def _max_pool(op: MaxPool2d, x: Tensor, out: Value) -> Tensor:
    pads = _end_padding(op, x, out)
    return F.max_pool2d(F.pad(x, pads, value=-math.inf), op.kernel, op.stride)


def _end_padding(op: MaxPool2d | AvgPool2d, x: Tensor, out: Value) -> list[int]:
    """The padding of `F.pad` with which the windows fit exactly, those that ceil_mode adds included."""
    pads: list[int] = []
    for d in (1, 0):
        size = x.shape[2 + d]
        assert pool_size(size, op.kernel[d], op.stride[d], op.padding[d], op.ceil_mode) == out.space[d]
        end = (out.space[d] - 1) * op.stride[d] + op.kernel[d] - op.padding[d] - size
        pads += [op.padding[d], max(end, -size)]
    return pads


def _sums(op: AvgPool2d | GlobalAvgPool, x: Tensor, out: Value) -> tuple[Tensor, Tensor]:
    """The sums over the windows and how many positions of each count, both of x's dtype."""
    if isinstance(op, GlobalAvgPool):
        total = x.sum((2, 3), keepdim=bool(out.space))
        return total, torch.full_like(total, x.shape[2] * x.shape[3])
    ones = torch.ones_like(x[:1, :1])
    if op.count_include_pad:  # padding counts, what ceil_mode reaches beyond it does not
        ones = F.pad(ones, [op.padding[1], op.padding[1], op.padding[0], op.padding[0]], value=1)
    pads = _end_padding(op, x, out)
    rest = [p - (op.padding[1 - i // 2] if op.count_include_pad else 0) for i, p in enumerate(pads)]
    windows = (F.pad(x, pads), F.pad(ones, rest))
    total, count = (
        w.unfold(2, op.kernel[0], op.stride[0]).unfold(3, op.kernel[1], op.stride[1]).sum((-2, -1))
        for w in windows
    )
    return total, count


def _times(a: Tensor, b: Tensor) -> Tensor:
    return a * b.reshape(*b.shape, *[1] * (a.ndim - b.ndim))


def _pad_channels(x: Tensor, channels: int) -> Tensor:
    zeros = x.new_zeros((len(x), channels - x.shape[1], *x.shape[2:]))
    return torch.cat([x, zeros], 1)


def _channels(a: Tensor, like: Tensor) -> Tensor:
    return a.reshape(1, -1, *[1] * (like.ndim - 2))


def _rounded(t: Tensor, n: int) -> Tensor:
    return (t + (1 << (n - 1))) >> n if n > 0 else t


def _affine(norm: Norm, tensors: Arrays, k: int) -> tuple[np.ndarray, np.ndarray]:
    """A norm as y = x * scale + shift in float64, for the kept channels of subnet `k`."""
    weight, bias, mean, var = (
        None if names is None else tensors[names[k]].astype(np.float64)
        for names in (norm.weight, norm.bias, norm.mean, norm.var)
    )
    assert mean is not None and var is not None
    scale = (1.0 if weight is None else weight) / np.sqrt(var + norm.eps)
    return scale, (0.0 if bias is None else bias) - mean * scale


# ---- From ranges to integers ----

_NONNEGATIVE = ("relu", "relu6", "sigmoid", "hardsigmoid")


class _Quantizer:
    """The integers of every op, from a split program and what calibration saw."""

    def __init__(
        self, program: Program, tensors: Arrays, bits: Quant, largest: np.ndarray, lowest: np.ndarray
    ) -> None:
        self.program, self.tensors, self.bits, self.largest = program, tensors, bits, largest
        self.num = len(program.subnets)
        self.stored: dict[str, np.ndarray] = {}
        self.weight_scales: dict[str, np.ndarray] = {}
        self.unsigned = [False] * len(program.values)
        self.unsigned[0] = bool((lowest[0] >= 0).all())
        self.scales: list[tuple[float, ...]] = [()] * len(program.values)

    @property
    def quant(self) -> Quantization:
        return Quantization(
            self.bits.bits_weights,
            self.bits.bits_activations,
            tuple(self.unsigned),
            tuple(self.scales),
            (),
        )

    def run(self) -> Quantized:
        ops = self.program.ops or ()
        self.scale(0)
        made = []
        for i, op in enumerate(ops):
            inputs = reads(op)
            if isinstance(op, (MaxPool2d, Subsample, PadChannels)):
                self.unsigned[op.output], self.scales[op.output] = (
                    self.unsigned[op.input],
                    self.scales[op.input],
                )
            else:
                positive = all(self.unsigned[v] for v in inputs) and isinstance(
                    op, (Add, Mul, Concat, AvgPool2d, GlobalAvgPool)
                )
                self.unsigned[op.output] = positive or getattr(op, "activation", None) in _NONNEGATIVE
                self.scale(op.output)
            made.append(self.op(i, op))
        stripped = tuple(
            replace(op, **{name: None for name in ("norm", "bias") if hasattr(op, name)}) for op in ops
        )
        for name in [name for name in self.stored if name + LEVELS in self.tensors]:
            self.stored[name + LEVELS] = self.tensors[name + LEVELS]
        kept = {name: a for name, a in self.tensors.items() if name in self.stored} | self.stored
        program = replace(
            self.program,
            ops=stripped,
            quant=replace(self.quant, ops=tuple(made)),
            aliases={other: name for other, name in self.program.aliases.items() if name in kept},
            subnets=tuple(
                replace(s, accuracy=None, latency_ms_p50=None, latency_ms_p95=None)
                for s in self.program.subnets
            ),
        )
        shapes: Shapes = {n: (_DTYPE_NAMES[str(a.dtype)], a.shape) for n, a in self.stored.items()}
        validate(program, shapes)
        return Quantized(counted(artifact.with_levels(program, self.stored), shapes), self.stored)

    def scale(self, v: int) -> None:
        top = self.quant.top(v)
        self.scales[v] = tuple(
            float(np.float32(min(max(r / top, 1e-20), 1e20))) if r > 0 else 1.0 for r in self.largest[v]
        )

    def op(self, i: int, op: Op) -> QuantOp:
        high = [self.quant.top(op.output)] * self.num
        if getattr(op, "activation", None) == "relu6":
            high = [min(h, round(6 / s)) for h, s in zip(high, self.scales[op.output], strict=True)]
        if isinstance(op, (MaxPool2d, Subsample, PadChannels)) or tabled(op):
            table = self.table(i, op) if isinstance(op, Activation) else None
            zeros = (0,) * self.num
            return QuantOp(tuple(high), zeros, zeros, ((),) * self.num, table=table)
        parts = [self.part(i, op, k) for k in range(self.num)]
        shifts, pres, factors, names = zip(*parts, strict=True)
        multiplier, bias = (None, None) if names[0] is None else zip(*names, strict=True)
        return QuantOp(tuple(high), shifts, pres, factors, multiplier, bias)

    def part(self, i: int, op: Op, k: int) -> tuple[int, int, tuple[int, ...], tuple[str, str] | None]:
        """Shift, pre, factors and the names of multiplier and bias of one op in one subnet."""
        out = self.scales[op.output][k]
        ins = [self.scales[v][k] for v in reads(op)]
        if not isinstance(op, (Conv2d, Linear, Normalize)):
            real = [ins[0] * ins[1] / out] if isinstance(op, Mul) else [s / out for s in ins]
            assert len(real) == num_factors(op), op
            shift = _shift(real, [])
            if isinstance(op, (AvgPool2d, GlobalAvgPool)):
                source = self.program.values[op.input]
                window = math.prod(op.kernel) if isinstance(op, AvgPool2d) else source.area
                top = self.quant.top(op.input)
                while 2 * window * (round(real[0] * 2**shift) * top + 2**shift) >= 2**63:
                    shift -= 1
            return shift, 0, tuple(_integer(r, shift) for r in real), None
        pre, scale, offset = self.channels(op, k)
        real = [ins[1] / out] if len(ins) > 1 else []
        scale, offset = scale * ins[0] / out * 2.0**pre, offset / out
        shift = _shift([*real, *np.abs(scale).tolist()], np.abs(offset).tolist())
        names = self.name(i, "multiplier", k), self.name(i, "bias", k)
        self.stored[names[0]] = np.rint(np.ldexp(scale, shift)).clip(-MAX_INT, MAX_INT).astype(np.int32)
        self.stored[names[1]] = np.rint(np.ldexp(offset, shift)).clip(-MAX_BIAS, MAX_BIAS).astype(np.int64)
        return shift, pre, tuple(_integer(r, shift) for r in real), names

    def channels(self, op: Conv2d | Linear | Normalize, k: int) -> tuple[int, np.ndarray, np.ndarray]:
        """`pre`, and y = sum * scale + offset in real units of input steps and of y, for each kept channel."""
        values, pre = self.program.values, 0
        rows = values[op.output].indices(k)
        scale, offset = np.ones(len(rows)), np.zeros(len(rows))
        if not isinstance(op, Normalize):
            scale = self.weight(op.weight)[rows]
            offset = offset if op.bias is None else self.tensors[op.bias][rows].astype(np.float64)
            weight, _ = weight_of(op, values, torch.from_numpy(self.stored[op.weight]), k)
            bound = self.quant.sum_bound(op.input, weight[0].numel())
            if self.bits != Quant(8, 8):
                pre = max(0, (bound + 1).bit_length() - 31)
        if op.norm is not None:
            g, shift = _affine(op.norm, self.tensors, k)
            scale, offset = scale * g, offset * g + shift
        return pre, scale, offset

    def weight(self, name: str) -> np.ndarray:
        """Round a weight once, for all subnets and all ops that read it; returns its scales, 0 for filters of zeros.

        With that these have the multiplier 0, and not the largest of all, to which the others would lose their digits.
        """
        if name not in self.weight_scales:
            w = self.tensors[name].astype(np.float64)
            top = 2 ** (self.bits.bits_weights - 1) - 1
            largest = np.abs(w).reshape(len(w), -1).max(1)
            scale = (largest / top).astype(np.float32).astype(np.float64)
            steps = np.where(scale > 0, scale, 1.0)
            q = np.rint(w / steps.reshape(-1, *[1] * (w.ndim - 1))).clip(-top, top)
            self.stored[name] = q.astype(np.int8 if self.bits.bits_weights == 8 else np.int16)
            self.stored[f"{name}.scale"] = scale.astype(np.float32)
            self.weight_scales[name] = scale
        return self.weight_scales[name]

    def table(self, i: int, op: Activation) -> tuple[str, ...]:
        quant, names = self.quant, [self.name(i, "table", k) for k in range(self.num)]
        steps = torch.arange(quant.low(op.input), quant.top(op.input) + 1, dtype=torch.float64)
        for k, name in enumerate(names):
            y = _ACTIVATE[op.activation](steps * self.scales[op.input][k]) / self.scales[op.output][k]
            y = y.round().clamp(quant.low(op.output), quant.top(op.output))
            self.stored[name] = y.numpy().astype(np.int16)
        return tuple(names)

    def name(self, i: int, part: str, k: int) -> str:
        """Plain for the largest subnet, `@k` for the others, as all tensors are named."""
        return f"quant.{i}.{part}" + ("" if k == self.num - 1 else f"@{k}")


_DTYPE_NAMES = {"uint8": "U8", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64", "float32": "F32"}


def _integer(real: float, shift: int) -> int:
    return min(round(math.ldexp(real, shift)), MAX_INT)


def _shift(multipliers: Sequence[float], biases: Sequence[float]) -> int:
    """The largest shift with which every multiplier fits int32 and every bias stays within `MAX_BIAS`."""
    shift = MAX_SHIFT
    for numbers, limit in ((multipliers, MAX_INT), (biases, MAX_BIAS)):
        largest = max(numbers, default=0.0)
        if largest > 0:
            shift = min(shift, math.floor(math.log2(limit / largest)))
    return max(shift, 1)
