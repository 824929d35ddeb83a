"""ONNX files of every subnet against the subnet itself in PyTorch, run by onnxruntime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rheostat as rh
from cases import CASES, call, lived_in
from rheostat import artifact
from rheostat.train.export import export_onnx

WIDTHS = (0.4, 0.7, 1.0)


def run(path: Path, x: Tensor) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    return [np.asarray(y) for y in session.run(None, {entry.name: x.numpy()})]


def check(model: nn.Module, x: Tensor, folder: Path) -> None:
    """Every subnet of `model`, exported and run on another batch size than the traced one, gives what PyTorch gives."""
    net = rh.Supernet(graph := rh.trace(model, x), rh.uniform(graph, WIDTHS)).eval()
    rh.save(net, folder / "net.safetensors")
    if why := artifact.read_program(folder / "net.safetensors").unsupported:
        pytest.skip(why)
    paths = export_onnx(folder / "net.safetensors", folder / "onnx")
    assert [path.name for path in paths] == ["net-0.4.onnx", "net-0.7.onnx", "net-1.0.onnx"]
    x = torch.cat([x, x.flip(0)])[:-1]
    for index, path in enumerate(paths):
        with torch.no_grad():
            want = call(net.extract(index), x).numpy()
        (got,) = run(path, x)
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max(), rtol=0)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.engine and not case.slow], ids=lambda c: c.name
)
def test_models(case, tmp_path: Path) -> None:
    x = case.inputs(1)
    assert isinstance(x, Tensor)
    check(case.model(), x, tmp_path)


@pytest.mark.parametrize("name", ["lenet", "grouped_few"])
def test_levels_are_zeros_in_the_files(name: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == name)
    graph = rh.trace(case.model(), x := case.inputs(1))
    net = rh.Supernet(
        graph, rh.uniform(graph, (0.5, 0.7, 1.0)), levels=rh.levels(graph, (0.8, 0.5, 0.2))
    ).eval()
    rh.save(net, tmp_path / "net.safetensors")
    for index, path in enumerate(export_onnx(tmp_path / "net.safetensors", tmp_path)):
        with torch.no_grad():
            want = call(net.extract(index), x).numpy()
        np.testing.assert_allclose(run(path, x)[0], want, atol=1e-4 * np.abs(want).max(), rtol=0)


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.MaxPool2d(2, 3, 1, ceil_mode=True),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.AvgPool2d(4, 3, 2, ceil_mode=True),
        nn.AvgPool2d(4, 3, 2, ceil_mode=True, count_include_pad=False),
        nn.AdaptiveAvgPool2d(5),
    ],
    ids=repr,
)
def test_pools_round_and_count_as_pytorch_does(pool: nn.Module, tmp_path: Path) -> None:
    size = 10 if isinstance(pool, nn.AdaptiveAvgPool2d) else 11
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), pool, nn.Conv2d(6, 4, 1), nn.Flatten(), nn.LazyLinear(3)
    )
    x = torch.randn(2, 2, size, size)
    model(x)  # gives the lazy layer its size
    check(lived_in(model, x), x, tmp_path)


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(), nn.ReLU6(), nn.Hardswish(), nn.Hardsigmoid(), nn.Sigmoid(), nn.SiLU(), nn.GELU(),
        nn.GELU(approximate="tanh"), nn.Tanh(),
    ],
    ids=repr,
)  # fmt: skip
def test_activations(activation: nn.Module, tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), activation, nn.Flatten(), nn.Linear(6 * 36, 3)
    )
    x = 3 * torch.randn(3, 2, 8, 8)
    check(lived_in(model, x), x, tmp_path)


def test_a_file_holds_the_small_tensors_only(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "lenet")
    net = rh.Supernet(graph := rh.trace(case.model(), case.inputs()), rh.uniform(graph, WIDTHS)).eval()
    rh.save(net, tmp_path / "net.safetensors")
    for info, path in zip(net.infos, export_onnx(tmp_path / "net.safetensors", tmp_path), strict=True):
        constants = onnx.load(path).graph.initializer
        floats = sum(int(np.prod(c.dims)) for c in constants if c.data_type == onnx.TensorProto.FLOAT)
        assert floats == info.parameters


def test_tied_layers_that_keep_different_parts(tmp_path: Path) -> None:
    """The same tensor behind two layers of different kept channels becomes two constants, not the first one twice."""
    x = torch.randn(3, 4)
    net = rh.Supernet(
        graph := rh.trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 8)), x),
        rh.uniform(graph, (0.5, 1.0)),
    ).eval()
    rh.save(net, tmp_path / "net.safetensors")
    program, tensors = artifact.read(tmp_path / "net.safetensors")
    assert program.ops is not None
    middle, last = (op for op in program.ops if getattr(op, "weight", "") in ("2.weight", "3.weight"))
    tied = replace(program, ops=(*program.ops[:-1], replace(last, weight=middle.weight)))
    artifact.write(tmp_path / "tied.safetensors", tied, tensors)
    small, _ = export_onnx(tmp_path / "tied.safetensors", tmp_path)
    (got,) = run(small, x)
    first, weight = net.extract(0)[0], tensors["2.weight"]
    hidden = np.maximum(first(x).detach().numpy(), 0) @ weight[:4, :4].T + tensors["2.bias"][:4]
    want = hidden @ weight[:, :4].T + tensors["3.bias"]
    np.testing.assert_allclose(got, want, atol=1e-5)


class Named(nn.Module):
    """Its input has the name of its own parameter, or of what an output is called."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 12))
        self.last = nn.Linear(8, 3)

    def forward(self, weight: Tensor) -> Tensor:
        return self.last(F.relu(F.linear(weight, self.weight)))


class Out(Named):
    def forward(self, output: Tensor) -> Tensor:
        return super().forward(output)


@pytest.mark.parametrize("kind", [Named, Out])
def test_an_input_named_like_a_parameter_or_an_output(kind: type[Named], tmp_path: Path) -> None:
    check(kind(), torch.randn(3, 12), tmp_path)


def test_what_the_engine_cannot_run_has_no_program_to_export(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "group_norm")
    net = rh.Supernet(graph := rh.trace(case.model(), case.inputs()), rh.uniform(graph, WIDTHS)).eval()
    rh.save(net, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"net\.safetensors: has no program to export \(.*group_norm"):
        export_onnx(tmp_path / "net.safetensors", tmp_path)


def test_damaged_artifact(tmp_path: Path) -> None:
    (tmp_path / "net.safetensors").write_bytes(b"nothing")
    with pytest.raises(rh.ArtifactError, match=r"net\.safetensors"):
        export_onnx(tmp_path / "net.safetensors", tmp_path)
