"""Subnets of an artifact as ONNX files: written from the program, without the model's class and without PyTorch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rheostat.artifact import read
from rheostat.program import (
    LEVELS,
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
    Softmax,
    Subsample,
    Value,
)  # fmt: skip

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

# 20 is the first operator set with Gelu; every runtime since 2024 reads it.
OPSET = 20


def export_onnx(artifact: str | os.PathLike[str], out_dir: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Write every subnet of an artifact as an ONNX file of its own and return the paths, smallest subnet first.

    The files are named after the artifact and the subnet (`resnet20-0.25.onnx`), hold the small tensors only, and
    take any batch size: input [N, C, H, W], output as the engine gives it. Raises ArtifactError for an artifact that
    cannot be read, ValueError for one without a program (a model that the engine cannot run).

    >>> export_onnx("resnet20.safetensors", "onnx")  # doctest: +SKIP
    (PosixPath('onnx/resnet20-0.5.onnx'), PosixPath('onnx/resnet20-1.0.onnx'))
    """
    try:
        import onnx
    except ModuleNotFoundError:
        raise ImportError('export_onnx needs onnx: pip install "rheostat[export]"') from None

    program, tensors = read(artifact)
    if program.ops is None:
        raise ValueError(
            f"{artifact}: has no program to export ({program.unsupported}); want a model the engine can run"
        )
    if program.quant is not None:
        raise ValueError(
            f"{artifact}: holds integers for the engine; export the float artifact it was made from"
        )
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, info in enumerate(program.subnets):
        path = folder / f"{Path(artifact).stem}-{info.name}.onnx"
        model = _model(program, tensors, index)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, str(path))
        paths.append(path)
    return tuple(paths)


def _model(program: Program, tensors: Mapping[str, np.ndarray], index: int) -> ModelProto:
    from onnx import TensorProto, helper

    assert program.ops is not None
    writer = _Writer(program, tensors, index)
    for op in program.ops:
        writer.write(op)

    def declare(value: int) -> ValueInfoProto:
        shape = ["N", program.values[value].kept(index), *program.values[value].space]
        return helper.make_tensor_value_info(writer.name(value), TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        writer.nodes,
        f"{program.model} {program.subnets[index].name}"[:256],
        [declare(0)],
        [declare(value) for value in program.outputs],
        writer.constants,
    )
    # Version 10 of the file format is what operator set 20 came with.
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10, producer_name=program.producer)


class _Writer:
    """The nodes and constants of one subnet, op by op."""

    def __init__(self, program: Program, tensors: Mapping[str, np.ndarray], index: int) -> None:
        self.program, self.tensors, self.index = program, tensors, index
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._arrays: dict[str, np.ndarray] = {}

    def name(self, value: int) -> str:
        """Constants, other values and nodes have a slash in their names; the input's has none."""
        if value == 0:
            return self.program.input.name
        if value in self.program.outputs:
            number = self.program.outputs.index(value)
            only = len(self.program.outputs) == 1 and self.program.input.name != "output"
            return "output" if only else f"output/{number}"
        return f"value/{value}"

    def write(self, op: Op) -> None:
        out = self.program.values[op.output]
        if isinstance(op, Conv2d):
            x = self._convolution(op)
            self._epilogue(x, op.norm, op.add, op.activation, op.output)
        elif isinstance(op, Linear):
            x = self._linear(op)
            self._epilogue(x, op.norm, op.add, op.activation, op.output)
        elif isinstance(op, Normalize):
            self._epilogue(self.name(op.input), op.norm, None, op.activation, op.output)
        elif isinstance(op, Activation):
            self._epilogue(self.name(op.input), None, None, op.activation, op.output)
        elif isinstance(op, MaxPool2d | AvgPool2d):
            self._pool(op)
        elif isinstance(op, GlobalAvgPool):
            self._global_pool(self.name(op.input), op.output, out)
        elif isinstance(op, Add | Mul):
            a, b = (self._broadcast(value, self.program.values[op.inputs[0]]) for value in op.inputs)
            x = self._node("Add" if isinstance(op, Add) else "Mul", [a, b])
            self._epilogue(x, None, None, op.activation, op.output)
        elif isinstance(op, Concat):
            self._node("Concat", [self.name(value) for value in op.inputs], self.name(op.output), axis=1)
        elif isinstance(op, Subsample):
            self._subsample(op)
        elif isinstance(op, PadChannels):
            self._pad(op)
        else:
            assert isinstance(op, Softmax), op
            self._node("Softmax", [self.name(op.input)], self.name(op.output), axis=1)

    def _weight(self, op: Conv2d | Linear) -> np.ndarray:
        """The whole weight, with zeros where the subnet's level does not reach."""
        weight, levels = self.tensors[op.weight], self.tensors.get(op.weight + LEVELS)
        return weight if levels is None else np.where(levels <= self.index, weight, np.float32(0))

    def _convolution(self, op: Conv2d) -> str:
        """The rows of the kept output channels; of each row the kept inputs, the same ones in every group."""
        source, rows = self.program.values[op.input], self.program.values[op.output].indices(self.index)
        weight, groups, kept = self._weight(op), op.groups[self.index], source.indices(self.index)
        weight = weight[np.ix_(rows, kept[kept < weight.shape[1]])]
        inputs = [self.name(op.input), self._constant(op.weight, weight)]
        if op.bias is not None:
            inputs.append(self._constant(op.bias, self.tensors[op.bias][rows]))
        return self._node(
            "Conv",
            inputs,
            strides=list(op.stride),
            pads=[*op.padding, *op.padding],
            dilations=list(op.dilation),
            group=groups,
            kernel_shape=list(weight.shape[2:]),
        )

    def _linear(self, op: Linear) -> str:
        source, rows = self.program.values[op.input], self.program.values[op.output].indices(self.index)
        # A column belongs to channel c and position p: c * positions + p.
        columns = (source.indices(self.index)[:, None] * source.area + np.arange(source.area)).ravel()
        x = self._node("Flatten", [self.name(op.input)], axis=1) if source.space else self.name(op.input)
        inputs = [x, self._constant(op.weight, self._weight(op)[np.ix_(rows, columns)])]
        if op.bias is not None:
            inputs.append(self._constant(op.bias, self.tensors[op.bias][rows]))
        return self._node("Gemm", inputs, transB=1)

    def _epilogue(
        self, x: str, norm: Norm | None, add: int | None, activation: str | None, output: int
    ) -> None:
        if norm is not None:
            mean, var = norm.mean[self.index], norm.var[self.index]
            num = len(self.tensors[mean])
            weight = self.tensors[norm.weight[self.index]] if norm.weight else np.ones(num, np.float32)
            bias = self.tensors[norm.bias[self.index]] if norm.bias else np.zeros(num, np.float32)
            names = [
                self._constant(norm.weight[self.index] if norm.weight else f"{mean}/ones", weight),
                self._constant(norm.bias[self.index] if norm.bias else f"{mean}/zeros", bias),
                self._constant(mean, self.tensors[mean]),
                self._constant(var, self.tensors[var]),
            ]
            x = self._node("BatchNormalization", [x, *names], epsilon=norm.eps)
        if add is not None:
            x = self._node("Add", [x, self.name(add)])
        self._activate(x, activation, self.name(output))

    def _activate(self, x: str, activation: str | None, output: str) -> None:
        if activation is None and self.nodes and self.nodes[-1].output[0] == x:
            self.nodes[-1].output[0] = output
        elif activation is None:
            self._node("Identity", [x], output)
        elif activation == "relu6":
            bounds = [self._constant(f"clip/{n}", np.array(n, np.float32)) for n in (0, 6)]
            self._node("Clip", [x, *bounds], output)
        elif activation == "hardsigmoid":
            self._node("HardSigmoid", [x], output, alpha=1 / 6, beta=0.5)
        elif activation == "silu":
            self._node("Mul", [x, self._node("Sigmoid", [x])], output)
        elif activation in ("gelu", "gelu_tanh"):
            self._node("Gelu", [x], output, approximate="tanh" if activation == "gelu_tanh" else "none")
        else:
            self._node(
                {"relu": "Relu", "hardswish": "HardSwish", "sigmoid": "Sigmoid", "tanh": "Tanh"}[activation],
                [x],
                output,
            )

    def _pool(self, op: MaxPool2d | AvgPool2d) -> None:
        source, target = self.program.values[op.input], self.program.values[op.output]
        top, left = op.padding
        # Where rounding up adds a window, ONNX gets it as explicit padding: runtimes differ in how they round up.
        extra = [
            max((n_out - 1) * stride + kernel - (n_in + 2 * padding), 0)
            for n_in, n_out, kernel, stride, padding in zip(
                source.space, target.space, op.kernel, op.stride, op.padding, strict=True
            )
        ]
        inputs, output = [self.name(op.input)], self.name(op.output)
        window = {"kernel_shape": list(op.kernel), "strides": list(op.stride)}
        pads = [top, left, top + extra[0], left + extra[1]]
        if isinstance(op, MaxPool2d):
            self._node("MaxPool", inputs, output, pads=pads, **window)
        elif not any(extra) or not op.count_include_pad:
            self._node(
                "AveragePool",
                inputs,
                output,
                pads=pads,
                count_include_pad=int(op.count_include_pad),
                **window,
            )
        else:
            # PyTorch counts the declared padding but not the cells that rounding up adds: pad first, then count none.
            padded = self._node(
                "Pad", [*inputs, self._integers([top, left, top, left]), "", self._integers([2, 3])]
            )
            self._node("AveragePool", [padded], output, pads=[0, 0, *extra], count_include_pad=0, **window)

    def _global_pool(self, x: str, output: int, value: Value) -> None:
        if value.space:
            self._node("GlobalAveragePool", [x], self.name(output))
        else:
            self._node("Flatten", [self._node("GlobalAveragePool", [x])], self.name(output), axis=1)

    def _broadcast(self, value: int, like: Value) -> str:
        """A vector beside a space needs the two axes of the space."""
        if like.space and not self.program.values[value].space:
            return self._node("Unsqueeze", [self.name(value), self._integers([2, 3])])
        return self.name(value)

    def _subsample(self, op: Subsample) -> None:
        starts, ends = self._integers([0, 0]), self._integers([2**31 - 1] * 2)
        axes, steps = self._integers([2, 3]), self._integers(list(op.stride))
        self._node("Slice", [self.name(op.input), starts, ends, axes, steps], self.name(op.output))

    def _pad(self, op: PadChannels) -> None:
        added = self.program.values[op.output].kept(self.index) - self.program.values[op.input].kept(
            self.index
        )
        inputs = [self.name(op.input), self._integers([0, added]), "", self._integers([1])]
        self._node("Pad", inputs, self.name(op.output))

    def _node(self, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        from onnx import helper

        output = output or f"node/{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, inputs, [output], name=f"{kind}_{len(self.nodes)}", **attributes)
        )
        return output

    def _integers(self, numbers: list[int]) -> str:
        return self._constant("integers/" + "_".join(map(str, numbers)), np.array(numbers, np.int64))

    def _constant(self, name: str, array: np.ndarray) -> str:
        from onnx import numpy_helper

        name = f"constant/{name}"
        # Layers with tied weights may each keep another part of the one tensor.
        while name in self._arrays and not np.array_equal(self._arrays[name], array):
            name += "/"
        if name not in self._arrays:
            self._arrays[name] = array
            self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name
