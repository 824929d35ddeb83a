"""Lowering: the program, run by an independent interpreter, computes what each extracted subnet computes in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reference
from cases import CASES, call, classifier, conv_norm, images, lived_in, vectors
from rheostat import artifact
from rheostat.cost import cost
from rheostat.program import Activation, Add, Conv2d, Linear, Program, Subsample
from rheostat.spec import ArtifactError
from rheostat.train.graph import trace
from rheostat.train.lower import lower, save
from rheostat.train.sample import uniform
from rheostat.train.supernet import Supernet

ENGINE = [c for c in CASES if c.engine and not c.slow]
WIDTHS = (0.25, 0.5, 1.0)


def supernet(model: nn.Module, example: Tensor, widths: tuple[float, ...] = WIDTHS) -> Supernet:
    graph = trace(model, example)
    return Supernet(graph, uniform(graph, widths)).eval()


def agrees(net: Supernet, program: Program, tensors: dict[str, np.ndarray], x: Tensor) -> None:
    """Every subnet, in float64: what is left is rounding, 1e-16, so that no float32 tolerance hides a mistake."""
    assert program.ops is not None, program.unsupported
    for k in range(len(net)):
        with torch.no_grad():
            want = net.extract(k).double()(x.double())
        got = reference.run(program, tensors, k, x.numpy())
        for a, b in zip(want if isinstance(want, tuple) else (want,), got, strict=True):
            assert a.shape == b.shape
            assert np.abs(a.numpy() - b).max() <= 1e-9 * max(1.0, np.abs(b).max()), f"subnet {k}"


def lowered(model: nn.Module, example: Tensor) -> Program:
    """The program of a model with lived-in norms, checked against it at every width on another batch."""
    net = supernet(lived_in(model, example), example)
    program, tensors = lower(net)
    if program.ops is not None:
        agrees(net, program, tensors, torch.randn_like(example))
    return program


def names(program: Program) -> list[str]:
    return [op.op for op in program.ops or ()]


@pytest.mark.parametrize("case", ENGINE, ids=lambda c: c.name)
def test_computes_what_pytorch_computes_and_comes_back(case, tmp_path: Path) -> None:
    net = supernet(case.model(), case.inputs())
    program, tensors = lower(net)
    agrees(net, program, tensors, case.inputs(1))
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save(net, first)
    table = cost(first)  # derived from the ops
    for k in range(len(net)):
        counted = net.cost(k)
        assert (table[k].parameters, table[k].macs) == (counted.parameters, counted.macs)
    back = Supernet.load(first, case.build(), case.inputs())
    save(back, second)
    assert first.read_bytes() == second.read_bytes()
    with torch.no_grad():
        for k in range(len(net)):
            assert torch.equal(net.eval()[k](case.inputs(1)), back.eval()[k](case.inputs(1)))


@pytest.mark.parametrize("name", ["inception", "squeeze_linear", "batch_norm_mlp", "reused", "constant_view"])
def test_more_than_the_engine_table_asks_for(name: str) -> None:
    case = next(c for c in CASES if c.name == name)
    net = supernet(case.model(), case.inputs())
    agrees(net, *lower(net), case.inputs(1))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("group_norm", "aten.group_norm.default in 1: the engine has no such op"),
        ("middle_pad", "pads only the end of the channels"),
        ("conv1d", "one float32 image or vector"),
        ("two_inputs", "one float32 image or vector"),
        ("hf_bert_sdpa", "torch.int64"),
        ("tied_embedding", "torch.int64"),
        ("lstm", "the engine one float32"),
        ("vit_timm", "aten.flatten"),
    ],
)
def test_what_the_engine_cannot_run_is_saved_and_trained_on(name: str, says: str, tmp_path: Path) -> None:
    case = next(c for c in CASES if c.name == name)
    net = supernet(case.model(), case.inputs(), (0.5, 1.0))
    path = tmp_path / "a.safetensors"
    save(net, path, {"seed": 3})
    program = artifact.read_program(path)
    assert program.ops is None
    assert says in (program.unsupported or "")
    assert program.provenance == {"seed": 3}
    assert cost(path) == net.infos
    back = Supernet.load(path, case.build(), case.inputs()).eval()
    with torch.no_grad():
        for k in range(len(net)):
            got, want = (call(n.eval()[k], case.inputs(1)) for n in (net, back))
            for a, b in zip(
                torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(want), strict=True
            ):
                assert not isinstance(a, Tensor) or torch.equal(a, b)


class Block(nn.Module):
    """Residual block with the zero-padding shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.a, self.b = (
            conv_norm(inputs, outputs, 3, stride),
            conv_norm(outputs, outputs, 3, act=nn.Identity()),
        )
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
        return F.relu(self.b(self.a(x)) + shortcut)


def test_a_block_is_two_ops_and_its_shortcut() -> None:
    program = lowered(
        nn.Sequential(conv_norm(3, 8), Block(8, 16, 2), Block(16, 16, 1), classifier(16)), images()()
    )
    assert names(program) == [
        "conv2d",
        "subsample",
        "pad_channels",
        *["conv2d"] * 4,
        "global_avg_pool",
        "linear",
    ]
    _, subsample, pad, _, second, _, last, _, _ = program.ops or ()
    assert isinstance(subsample, Subsample)
    assert subsample.stride == (2, 2)
    assert isinstance(second, Conv2d)
    assert second.add == pad.output
    assert second.norm is not None
    assert second.activation == "relu"
    assert isinstance(last, Conv2d)
    assert last.add == second.output


class Each(nn.Module):
    """A convolution, `op`, a convolution: nothing of `op` is fused away but activations."""

    def __init__(self, op: Callable[[Tensor], Tensor], channels: int = 8) -> None:
        super().__init__()
        self.first, self.last, self.op = nn.Conv2d(3, 8, 3), nn.Conv2d(channels, 4, 1), op

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.op(self.first(x)))


@pytest.mark.parametrize(
    ("op", "want"),
    [
        *(
            (f, "conv2d")
            for f in (F.relu, F.relu6, F.hardswish, F.hardsigmoid, torch.sigmoid, F.silu, F.gelu, torch.tanh)
        ),
        (lambda x: F.gelu(x, approximate="tanh"), "conv2d"),
        (lambda x: x.clamp(0, 6), "conv2d"),
        (lambda x: x.clamp(min=0), "conv2d"),
        (lambda x: x.clamp_min(0), "conv2d"),
        (lambda x: F.dropout(x, 0.5, training=False), "conv2d"),
        (lambda x: x.clone().contiguous().detach(), "conv2d"),
        (lambda x: F.relu(torch.tanh(x)), "conv2d activation"),
        (lambda x: F.max_pool2d(x, 3, 2, 1), "conv2d max_pool2d"),
        (lambda x: F.max_pool2d(x, 2, ceil_mode=True), "conv2d max_pool2d"),
        (lambda x: F.max_pool2d(x, (3, 2), (2, 1), (1, 0)), "conv2d max_pool2d"),
        (lambda x: F.avg_pool2d(x, 3, 2, 1), "conv2d avg_pool2d"),
        (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), "conv2d avg_pool2d"),
        (lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), "conv2d avg_pool2d"),
        (lambda x: F.avg_pool2d(x, 4, 3, 1, True, False), "conv2d avg_pool2d"),
        (lambda x: F.adaptive_avg_pool2d(x, 1), "conv2d global_avg_pool"),
        (lambda x: F.adaptive_avg_pool2d(x, (7, 2)), "conv2d avg_pool2d"),
        (lambda x: x.mean((2, 3), keepdim=True), "conv2d global_avg_pool"),
        (lambda x: x.mean((-1, -2), keepdim=True), "conv2d global_avg_pool"),
        (lambda x: x[:, :, ::2, ::3], "conv2d subsample"),
        (lambda x: x[:, :, ::2], "conv2d subsample"),
        (lambda x: x[:, :, 0:], "conv2d"),
        (lambda x: F.pad(x, (0, 0, 0, 0)), "conv2d"),
        (lambda x: x + x, "conv2d add"),
        (lambda x: F.relu(x * torch.sigmoid(x)), "conv2d activation mul"),
        (lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)), "conv2d global_avg_pool activation mul"),
        (
            lambda x: torch.sigmoid(x.mean((2, 3)))[:, :, None, None] * x,
            "conv2d global_avg_pool activation mul",
        ),
        (lambda x: x.softmax(1), "conv2d softmax"),
        (lambda x: x.flatten(1).unflatten(1, (8, 14, 14)), "conv2d"),
        (lambda x: x.reshape(x.shape[0], -1).relu().view(x.shape), "conv2d"),
    ],
)
def test_one_op(op: Callable[[Tensor], Tensor], want: str) -> None:
    example = images()()
    program = lowered(Each(op), example)
    assert names(program)[:-1] == want.split()


@pytest.mark.parametrize(
    ("op", "says"),
    [
        (lambda x: F.leaky_relu(x), "leaky_relu"),
        (lambda x: x.clamp(-1, 1), "clamps to -1..1"),
        (lambda x: F.max_pool2d(x, 2, dilation=2), "dilation"),
        (lambda x: F.avg_pool2d(x, 2, divisor_override=3), "divisor_override"),
        (lambda x: F.adaptive_avg_pool2d(x, 5), "divide evenly"),
        (lambda x: x.mean(2, keepdim=True), "over dim"),
        (lambda x: x[:, :, 1:], "takes 1:"),
        (lambda x: F.pad(x, (1, 1, 1, 1)), "pads"),
        (lambda x: F.pad(x, (0, 0, 0, 0, 0, 0), value=1.0) + 1, "value=1.0"),
        (lambda x: x * 2, "mul.Tensor"),
        (lambda x: torch.add(x, x, alpha=2), "alpha=2"),
        (lambda x: x.permute(0, 1, 3, 2), "permute"),
        (lambda x: x.softmax(2), "over dim=2"),
        (lambda x: torch.cat((x, x), 2), "along dim=2"),
        (lambda x: F.conv2d(x, torch.ones(8, 8, 1, 1)), "ones"),
        (lambda x: x + x.mean((2, 3), keepdim=True), "adds tensors of different shapes"),
        (lambda x: torch.cat((x[:, 4:], x[:, :4]), 1), "takes 4:"),
        (lambda x: x + 1, "add.Tensor"),
    ],
)
def test_refusals_name_the_node_and_the_reason(op: Callable[[Tensor], Tensor], says: str) -> None:
    program = lowered(Each(op), images()())
    assert program.ops is None
    assert (program.unsupported or "").startswith("node ")
    assert says in (program.unsupported or "")


class InPlace(nn.Module):
    """What a relu_ or add_ changes, every later reader sees changed; a copy made before is not."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.last, self.kind = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), kind

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.kind == "relu":
            y = torch.tanh(x)
            F.relu_(x)
            return self.last(x + y)
        if self.kind == "add":
            y = torch.tanh(x)
            y += x
            return self.last(y * x)
        if self.kind == "view":
            y = x.view(x.shape)
            x.relu_()
            return self.last(torch.tanh(y))
        if self.kind == "copy":
            y = x.clone()
            x.relu_()
            return self.last(torch.tanh(y) + x)
        y = x[:, :, ::2, ::2]
        x.relu_()
        return self.last(y)


@pytest.mark.parametrize("kind", ["relu", "add", "view", "copy"])
def test_in_place_ops(kind: str) -> None:
    assert lowered(InPlace(kind), images()()).ops is not None


def test_an_in_place_op_on_a_tensor_with_another_view_is_refused() -> None:
    program = lowered(InPlace("slice"), images()())
    assert "another view" in (program.unsupported or "")


def test_a_value_that_others_read_is_not_fused_away() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            y = self.bn(x)
            return self.fc((F.relu(y) + y * x).mean((2, 3)))

    assert names(lowered(Shared(), images()())) == [
        "conv2d", "norm", "activation", "mul", "add", "global_avg_pool", "linear"
    ]  # fmt: skip


def test_the_residual_may_come_from_either_side() -> None:
    class Sides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (conv_norm(3, 6, act=nn.Identity()) for _ in range(3))
            self.fc1, self.fc2 = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.a(x) + self.b(x))
            y = F.relu(self.c(x) + y).mean((2, 3))
            return self.fc2(y + F.relu(self.fc1(y)))

    program = lowered(Sides(), images()())
    assert names(program) == ["conv2d", "conv2d", "conv2d", "global_avg_pool", "linear", "add", "linear"]
    second, third = (program.ops or ())[1:3]
    assert isinstance(second, Conv2d)
    assert isinstance(third, Conv2d)
    assert (second.add, second.activation, third.add, third.activation) == (1, "relu", 2, "relu")


def test_linear_layers_fuse_norm_and_residual() -> None:
    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 3)
            self.n = nn.BatchNorm1d(8, affine=False)

        def forward(self, x: Tensor) -> Tensor:
            x = F.silu(self.a(x))
            return self.c(F.relu(self.n(self.b(x)) + x)).softmax(-1)

    program = lowered(Mlp(), vectors(6)())
    assert names(program) == ["linear", "linear", "linear", "softmax"]
    second = (program.ops or ())[1]
    assert isinstance(second, Linear)
    assert second.norm is not None
    assert second.norm.weight is None
    assert (second.add, second.activation) == (1, "relu")


def test_outputs_may_be_many_and_in_the_middle() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = F.relu(self.a(x))
            z = self.b(y)
            return z, y, F.adaptive_avg_pool2d(z, 1).flatten(1)

    program = lowered(Two(), images()())
    assert len(program.outputs) == 3
    assert program.values[program.outputs[2]].space == ()


def test_one_position_flattened_is_a_vector_output() -> None:
    def model(*tail: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 16), nn.ReLU(), nn.Conv2d(8, 4, 1), *tail, nn.Flatten())

    assert names(lowered(model(), images()())) == ["conv2d", "conv2d", "global_avg_pool"]
    assert names(lowered(model(nn.AdaptiveAvgPool2d(1)), images()())) == [
        "conv2d",
        "conv2d",
        "global_avg_pool",
    ]
    wide = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Flatten())
    assert "reshaped" in (lowered(wide, images()()).unsupported or "")


def test_same_and_valid_padding() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding="same", dilation=2), nn.Conv2d(6, 4, 3, padding="valid"))
    program = lowered(model, images()())
    assert [op.padding for op in program.ops or () if isinstance(op, Conv2d)] == [(2, 2), (0, 0)]
    even = lowered(nn.Sequential(nn.Conv2d(3, 6, 2, padding="same"), nn.Conv2d(6, 4, 1)), images()())
    assert "not symmetric" in (even.unsupported or "")


def test_a_padding_far_larger_than_its_small_input_is_saved(tmp_path: Path) -> None:
    """As in an ASPP, whose dilation outgrows the last feature map: 44 by 44 around 8 by 8, 600 channels."""
    model = nn.Sequential(
        nn.Conv2d(3, 128, 3, padding=1),
        nn.Conv2d(128, 600, 3, stride=9, padding=1),
        nn.Conv2d(600, 8, 3, padding=18, dilation=18),
    )
    x = torch.randn(1, 3, 64, 64)
    net = supernet(model, x, (0.5, 1.0))
    save(net, tmp_path / "a.safetensors")
    program, tensors = artifact.read(tmp_path / "a.safetensors")
    agrees(net, program, tensors, x)


def test_a_supernet_whose_largest_is_cut(tmp_path: Path) -> None:
    for case in (
        c for c in CASES if c.name in ("zero_pad", "mobilenet", "flatten_cnn", "resnext", "inception")
    ):
        net = supernet(case.model(), case.inputs(), (0.25, 0.5))
        program, tensors = lower(net)
        agrees(net, program, tensors, case.inputs(1))
        save(net, tmp_path / "a.safetensors")
        save(
            Supernet.load(tmp_path / "a.safetensors", case.build(), case.inputs()), tmp_path / "b.safetensors"
        )
        assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.c.weight = self.b.weight
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.head(F.relu(self.c(F.relu(self.b(x)) + x)))


def test_a_tied_weight_is_stored_once(tmp_path: Path) -> None:
    net = supernet(Tied(), vectors(6)())
    program, tensors = lower(net)
    assert program.aliases == {"c.weight": "b.weight"}
    assert "c.weight" not in tensors
    agrees(net, program, tensors, torch.randn(3, 6))
    assert (
        program.subnets[-1].parameters
        == net.cost(-1).parameters
        == sum(p.numel() for p in Tied().parameters())
    )
    save(net, tmp_path / "a.safetensors")
    save(Supernet.load(tmp_path / "a.safetensors", Tied()), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def small() -> nn.Module:
    return nn.Sequential(conv_norm(3, 8), conv_norm(8, 12), classifier(12))


def test_saving_again_gives_the_same_bytes_and_measured_numbers_stay(tmp_path: Path) -> None:
    net = supernet(small(), images()())
    net.record("0.5", accuracy=0.5, latency_ms_p50=1.25)
    save(net, tmp_path / "a.safetensors")
    save(net, tmp_path / "b.safetensors")
    back = Supernet.load(tmp_path / "a.safetensors", small())  # traced with zeros of the saved input's shape
    save(back, tmp_path / "c.safetensors")
    first = (tmp_path / "a.safetensors").read_bytes()
    assert first == (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()
    assert [s.accuracy for s in cost(tmp_path / "a.safetensors")] == [None, 0.5, None]


def test_loading_into_another_model_is_a_clear_error(tmp_path: Path) -> None:
    save(supernet(small(), images()()), tmp_path / "a.safetensors")
    other = nn.Sequential(conv_norm(3, 8), conv_norm(8, 13), classifier(13))
    with pytest.raises(ValueError, match=r"channel group .*13.*; want .*12"):
        Supernet.load(tmp_path / "a.safetensors", other)


def test_loading_tokens_without_an_example_is_a_clear_error(tmp_path: Path) -> None:
    case = next(c for c in CASES if c.name == "tied_embedding")
    save(supernet(case.model(), case.inputs()), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a\.safetensors: .*for want of an example="):
        Supernet.load(tmp_path / "a.safetensors", case.build())


@pytest.mark.parametrize("name", ["lenet", "zero_pad", "mobilenet", "densenet", "squeeze_linear"])
def test_a_batch_of_one_lowers_to_the_same_program(name: str) -> None:
    case = next(c for c in CASES if c.name == name)
    one, more = (lower(supernet(case.model(), x))[0] for x in (case.inputs()[:1], case.inputs()))
    assert one == more


def test_a_diverged_model_is_not_saved(tmp_path: Path) -> None:
    net = supernet(small(), images()())
    with torch.no_grad():
        net[-1].get_parameter("0.0.weight")[0, 0, 0, 0] = float("nan")
    with pytest.raises(ArtifactError, match=r"0\.0\.weight: holds NaN"):
        save(net, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_half_precision_model_is_a_clear_error(tmp_path: Path) -> None:
    net = supernet(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), vectors(4)())
    with pytest.raises(ValueError, match=r"bfloat16; want float32"):
        save(net.bfloat16(), tmp_path / "a.safetensors")


def test_ops_and_names_are_exported() -> None:
    program = lowered(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), vectors(4)())
    assert program.model == "Sequential"
    assert program.input.shape == (4,)
    assert program.producer.startswith("rheostat ")
    assert not any(isinstance(op, (Activation, Add)) for op in program.ops or ())
