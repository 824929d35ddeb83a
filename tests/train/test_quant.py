"""Quantisation: PyTorch, numpy and the engine agree on every bit, the numbers are right, accuracy stays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import integer
import rheostat as rh
from cases import CASES, Case, lived_in
from random_nets import random_nets
from rheostat import artifact
from rheostat.program import Conv2d, Linear, Program, num_factors, tabled
from rheostat.run.engine import Engine
from rheostat.spec import ArtifactError, Quant
from rheostat.train.lower import lower
from rheostat.train.quant import (
    Quantized,
    _fake,
    _float_values,
    _rounded,
    _rounded_weights,
    _split,
    finetune,
    quantize,
)

ENGINE = [c for c in CASES if c.engine and not c.slow]
BITS = [Quant(8, 8), Quant(16, 16), Quant(8, 16), Quant(16, 8)]
TABLES = {"flatten_cnn", "frozen", "mobilenet"}  # their activations need tables, which are of 8 bits


def supernet(case: Case, widths: tuple[float, ...] = (0.25, 0.5, 1.0)) -> rh.Supernet:
    graph = rh.trace(case.model(), case.example())
    return rh.Supernet(graph, rh.uniform(graph, widths))


def named(name: str) -> Case:
    return next(c for c in CASES if c.name == name)


def case_id(x: Any) -> str:
    return x.name if isinstance(x, Case) else f"w{x.bits_weights}a{x.bits_activations}"


def assert_bits(quantized: Quantized, path: Path, *inputs: Tensor) -> None:
    """PyTorch, numpy and the engine, one thread and three, on every subnet: the same float32."""
    quantized.save(path)
    program, tensors = artifact.read(path)
    for threads in (1, 3):
        with Engine(path, threads=threads) as engine:
            for k in reversed(range(len(program.subnets))):
                engine.select(k)
                for x in inputs:
                    got, want = engine(x.numpy()), integer.run(program, tensors, k, x.numpy())
                    ours = quantized(x, k)
                    for a, b, c in zip(
                        got if isinstance(got, tuple) else (got,),
                        want,
                        ours if isinstance(ours, tuple) else (ours,),
                        strict=True,
                    ):
                        np.testing.assert_array_equal(a, b)
                        np.testing.assert_array_equal(c.numpy(), b)
                        assert a.dtype == b.dtype == np.float32


# ---- one arithmetic, three times ----


@pytest.mark.parametrize("case", ENGINE, ids=case_id)
@pytest.mark.parametrize("bits", BITS, ids=case_id)
def test_torch_numpy_and_the_engine_agree_on_every_bit(case: Case, bits: Quant, tmp_path: Path) -> None:
    net, x = supernet(case), case.inputs(1)
    if case.name in TABLES and bits.bits_activations == 16:
        with pytest.raises(ArtifactError, match="table, which needs 8-bit"):
            quantize(net, [x], bits)
        return
    quantized = quantize(net, [x], bits)
    other = case.inputs(2)
    extreme = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1e30, 0.0, -0.0]).repeat(
        other.numel() // 7 + 1
    )
    assert_bits(
        quantized, tmp_path / "a.safetensors", x, 50 * other, extreme[: other.numel()].view(other.shape)
    )
    worst = max(
        float(((quantized(x, k) - net[k](x)).abs().max() / net[k](x).abs().max()).detach())
        for k in range(len(net))
    )
    assert worst < (0.06 if 8 in (bits.bits_weights, bits.bits_activations) else 5e-4)


@pytest.mark.usefixtures("isa")
def test_every_instruction_set_agrees(tmp_path: Path) -> None:
    for name in ("mobilenet", "densenet"):
        case = named(name)
        quantized = quantize(supernet(case), [case.inputs(1)])
        assert_bits(quantized, tmp_path / "a.safetensors", case.inputs(2))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: nn.Linear(1001, 20), (1001,)),
        (lambda: nn.Conv2d(33, 20, 3), (33, 7, 7)),
        (lambda: nn.Conv2d(33, 33, 17, groups=33), (33, 20, 20)),
    ],
    ids=["linear", "conv", "depthwise"],
)
def test_sums_of_16_bits_are_exact_at_the_ends(build: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Inputs as large as they get, low bytes of the weights, too; the sums stay where outputs do not saturate."""
    graph = rh.trace(nn.Sequential(build()).eval(), torch.randn(2, *shape))
    path, x = tmp_path / "a.safetensors", np.full((2, *shape), 1e9, np.float32)
    quantize(rh.Supernet(graph, rh.uniform(graph, (1.0,))), [torch.randn(16, *shape)], 16).save(path)
    program, tensors = artifact.read(path)
    weight = np.random.default_rng(0).integers(-4, 5, tensors["0.weight"].shape) * 256 - 1
    artifact.write(path, program, tensors | {"0.weight": weight.astype(np.int16)})
    program, tensors = artifact.read(path)
    for sign in (1, -1):
        want = integer.run(program, tensors, 0, sign * x)[0]
        assert len(np.unique(want)) > 10
        with Engine(path) as engine:
            np.testing.assert_array_equal(engine(sign * x), want)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(net=random_nets(), data=st.data())
def test_random_networks_agree(net: nn.Module, data: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    x = torch.randn(2, 3, 6, 6, generator=generator)
    graph = rh.trace(lived_in(net, x), x)
    supernet = rh.Supernet(graph, rh.uniform(graph, (0.4, 1.0)))
    if lower(supernet)[0].ops is None:
        return
    quantized = quantize(supernet, [x])
    assert_bits(quantized, tmp_path_factory.mktemp("random") / "a.safetensors", x, 9 * x)


@given(t=st.integers(-(2**62), 2**62), n=st.integers(0, 61))
def test_rounding_is_to_the_nearest_and_halves_go_up(t: int, n: int) -> None:
    want = math.floor(Fraction(t, 2**n) + Fraction(1, 2))
    assert int(_rounded(torch.tensor(t), n)) == int(integer.rounded(t, n)) == want
    assert abs(want - Fraction(t, 2**n)) <= Fraction(1, 2)


# ---- what the numbers are ----


def test_weights_are_shared_and_rounded_once_by_the_full_layer() -> None:
    net = supernet(named("resnet20"), (0.5, 1.0))
    program, tensors = lower(net)
    for bits in (8, 16):
        quantized = quantize(net, [named("resnet20").inputs(1)], bits)
        top = 2 ** (bits - 1) - 1
        assert quantized.program.quant is not None
        for op in program.ops or ():
            if not isinstance(op, (Conv2d, Linear)):
                continue
            w, q = tensors[op.weight], quantized.tensors[op.weight]
            scale = quantized.tensors[f"{op.weight}.scale"].reshape(-1, *[1] * (w.ndim - 1))
            assert q.dtype == np.dtype(f"int{bits}")
            np.testing.assert_allclose(scale.ravel(), np.abs(w).reshape(len(w), -1).max(1) / top, rtol=1e-6)
            assert np.abs(w - q * scale.astype(np.float64)).max() <= 0.5001 * scale.max()
            assert (np.abs(q.reshape(len(q), -1).astype(int)).max(1) == top).all()


def test_multipliers_fold_each_subnets_own_norm_and_ranges() -> None:
    case = named("resnet20")
    net, x = supernet(case, (0.5, 1.0)), case.inputs(1)
    program, tensors = lower(net)
    quantized = quantize(net, [x])
    quant = quantized.program.quant
    assert quant is not None
    assert program.ops is not None
    op, own = program.ops[0], quant.ops[0]
    assert isinstance(op, Conv2d)
    assert op.norm is not None
    for k in range(2):
        gamma, beta, mean, var = (
            tensors[names[k]].astype(float)  # type: ignore[index]
            for names in (op.norm.weight, op.norm.bias, op.norm.mean, op.norm.var)
        )
        rows = program.values[op.output].indices(k)
        g = gamma / np.sqrt(var + op.norm.eps)
        s_x, s_y = quant.scales[op.input][k], quant.scales[op.output][k]
        s_w = quantized.tensors[f"{op.weight}.scale"][rows].astype(float)
        real = s_x * s_w * g / s_y
        multiplier = quantized.tensors[own.multiplier[k]]  # type: ignore[index]
        bias = quantized.tensors[own.bias[k]]  # type: ignore[index]
        np.testing.assert_allclose(multiplier / 2.0 ** own.shift[k], real, atol=2.0 ** -own.shift[k])
        np.testing.assert_allclose(bias / 2.0 ** own.shift[k], (beta - mean * g) / s_y, rtol=1e-6, atol=1e-6)
        assert np.abs(multiplier).max() >= 2**30 / 2 or own.shift[k] == 61
    assert quant.unsigned[op.output]


def test_ranges_are_a_moving_average_of_each_batch() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    x = [torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    x[1] *= 4
    graph = rh.trace(model, x[0])
    net = rh.Supernet(graph, rh.uniform(graph, (1.0,)))
    largest = 0.0
    for i, batch in enumerate(x):
        largest = float(batch.max()) if i == 0 else 0.9 * largest + 0.1 * float(batch.max())
    quant = quantize(net, x).program.quant
    assert quant is not None
    assert quant.unsigned == (True, True, False)
    assert quant.scales[0][0] == pytest.approx(largest / 255)
    assert quantize(net, x, 16).program.quant.scales[0][0] == pytest.approx(largest / 32767)  # type: ignore[union-attr]
    quant = quantize(net, x, ranges="percentile", batches=1).program.quant
    assert quant is not None
    assert quant.scales[0][0] == pytest.approx(float(x[0].flatten().kthvalue(128).values) / 255)
    signed = quantize(net, [b - 0.5 for b in x]).program.quant
    assert signed is not None
    assert (signed.unsigned[0], signed.low(0), signed.top(0)) == (False, -127, 127)


def test_outputs_saturate() -> None:
    case = named("lenet")
    quantized = quantize(supernet(case, (1.0,)), [case.inputs(1)])
    program: Program = quantized.program
    assert program.quant is not None
    scale = program.quant.scales[program.outputs[0]][0]
    far = integer.integers(program, dict(quantized.tensors), 0, 1e9 * case.inputs(2).numpy())[0]
    assert np.abs(far).max() <= 127
    assert float(quantized(1e9 * case.inputs(2)).abs().max()) == pytest.approx(scale * np.abs(far).max())


def test_a_zero_layer_stays_zero() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, 1, 8, 8)
    graph = rh.trace(model, x)
    quantized = quantize(rh.Supernet(graph, rh.uniform(graph, (0.5, 1.0))), [x])
    assert not quantized(x, 0).any()
    assert not quantized(x, 1).any()


# ---- the artifact ----


@pytest.mark.parametrize("bits", [Quant(16, 16), Quant(8, 16)], ids=case_id)
def test_a_filter_of_zeros_costs_the_others_no_digits(bits: Quant) -> None:
    """Its norm has seen a variance of 0: were its scale 1, its multiplier would be the largest by far."""

    def worst(dead: bool) -> float:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
        )
        with torch.no_grad():
            model[0].weight[2] *= 0 if dead else 1
        x = torch.randn(64, 3, 8, 8)
        model.train()
        for _ in range(100):
            model(x)
        graph = rh.trace(model.eval(), x)
        quantized = rh.quantize(rh.Supernet(graph, rh.uniform(graph, (1.0,))), [x], bits)
        assert (quantized.tensors["quant.0.multiplier"] == 0).sum() == dead
        with torch.no_grad():
            want = model(x)
        return float((quantized(x) - want).abs().max() / want.abs().max())

    assert worst(dead=True) < 2 * worst(dead=False)


@pytest.mark.parametrize("ranges", ["max", "percentile"])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_not_finite_is_refused_in_calibration(ranges: str, number: float) -> None:
    graph = rh.trace(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(2, 6))
    net, x = rh.Supernet(graph, rh.uniform(graph, (0.5, 1.0))), torch.randn(4000, 6)
    x[7, 3] = number
    with pytest.raises(ValueError, match="value 0 of subnet 0 is not finite on the calibration data"):
        rh.quantize(net, [x], ranges=ranges)


def test_saved_loaded_and_saved_again_it_is_the_same_file(tmp_path: Path) -> None:
    case = named("mobilenet")
    quantized = quantize(supernet(case), [case.inputs(1)])
    quantized.save(tmp_path / "a")
    artifact.write(tmp_path / "b", *artifact.read(tmp_path / "a"))
    quantized.save(tmp_path / "c")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()
    rh.save(supernet(case), tmp_path / "float")
    quantize(tmp_path / "float", [case.inputs(1)]).save(tmp_path / "d")
    assert (tmp_path / "d").read_bytes() == (tmp_path / "a").read_bytes()


def test_cost_counts_integers(tmp_path: Path) -> None:
    case = named("resnet20")
    net = supernet(case, (0.5, 1.0))
    rh.save(net, tmp_path / "float")
    quantize(net, [case.inputs(1)]).save(tmp_path / "int8")
    floats, integers = rh.cost(tmp_path / "float"), rh.cost(tmp_path / "int8")
    for a, b in zip(floats, integers, strict=True):
        assert a.macs == b.macs
        assert 3.5 < a.size_bytes / b.size_bytes < 4
    weights = sum(p.numel() for name, p in net[1].named_parameters() if p.ndim > 1)
    channels = sum(p.shape[0] for name, p in net[1].named_parameters() if p.ndim > 1)
    assert integers[1].size_bytes == weights + 12 * channels
    assert integers[1].parameters == weights + channels


def test_the_engine_holds_a_quarter_of_the_bytes(tmp_path: Path) -> None:
    case = named("resnet20")
    net = supernet(case, (1.0,))
    rh.save(net, tmp_path / "float")
    quantize(net, [case.inputs(1)]).save(tmp_path / "int8")
    with Engine(tmp_path / "float", threads=1) as a, Engine(tmp_path / "int8", threads=1) as b:
        assert 3.5 < a.weight_bytes / b.weight_bytes < 4


def test_refusals(tmp_path: Path) -> None:
    case = named("lenet")
    net, x = supernet(case, (1.0,)), case.inputs(1)
    with pytest.raises(ValueError, match="loader is empty"):
        quantize(net, [])
    with pytest.raises(ValueError, match="bits_weights: got 4; want 8 or 16"):
        quantize(net, [x], 4)
    with pytest.raises(ValueError, match="ranges: got 'median'"):
        quantize(net, [x], ranges="median")
    with pytest.raises(ValueError, match="not finite"):
        quantize(net, [x * math.nan])
    for wrong, message in (
        (x, "got a Tensor as the loader"),
        (x.numpy(), "got a ndarray as the loader"),
        ([x.numpy()], "a batch of ndarray"),
        ([(x * 255).to(torch.uint8)], r"a batch of torch\.uint8"),
        ([x[:0]], "at least one sample"),
        ([x[0]], r"want \[N, "),
        ([x[..., :-1]], r"want \[N, "),
    ):
        with pytest.raises(ValueError, match=message):
            quantize(net, wrong)
    with pytest.raises(ValueError, match=r"finetune: epoch 1, step 1: got labels from 0 to 198; want 0 to 9"):
        finetune(net, [(x, torch.arange(len(x)) * 99)])
    quantized = quantize(net, [x])
    with pytest.raises(ValueError, match="loader is empty"):
        quantized.evaluate([])
    quantized.save(tmp_path / "a")
    with pytest.raises(ArtifactError, match="quantised already"):
        quantize(tmp_path / "a", [x])
    with pytest.raises(ArtifactError, match="load the float artifact"):
        rh.Supernet.load(tmp_path / "a", case.model())
    with pytest.raises(ValueError, match="export the float artifact"):
        rh.export_onnx(tmp_path / "a", tmp_path)
    soft = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Softmax(1))
    graph = rh.trace(soft, torch.randn(2, 1, 2, 2))
    with pytest.raises(ArtifactError, match="softmax has no integer form"):
        quantize(rh.Supernet(graph, rh.uniform(graph, (1.0,))), [torch.randn(2, 1, 2, 2)])


def test_the_program_holds_what_each_op_needs() -> None:
    case = named("mobilenet")
    program = quantize(supernet(case), [case.inputs(1)]).program
    assert program.quant is not None
    for op, own in zip(program.ops or (), program.quant.ops, strict=True):
        assert {len(f) for f in own.factors} == {num_factors(op)}
        assert (own.table is not None) == tabled(op)
        assert getattr(op, "norm", None) is None
        assert getattr(op, "bias", None) is None


# ---- accuracy ----


@pytest.mark.parametrize("name", ["mobilenet", "densenet"])
def test_fine_tuning_sees_what_the_integers_give(name: str) -> None:
    case = named(name)
    net, x = supernet(case, (0.5, 1.0)), case.inputs(1)
    quantized = quantize(net, [x])
    assert quantized.program.quant is not None
    program = _split(lower(net)[0])
    state = net.state_dict() | dict(net.named_parameters())
    for k in range(2):
        weights = _rounded_weights(program, state, 8)
        y = _float_values(program, weights, k, x, _fake(quantized.program.quant, k))[program.outputs[0]]
        want = quantized(x, k)
        scale = quantized.program.quant.scales[program.outputs[0]][k]
        assert float((y - want).detach().abs().max()) <= 2.5 * scale  # roundings that fell the other way
        y.sum().backward()
    reached = [n for n, p in net.named_parameters() if p.grad is not None and p.grad.any()]
    assert len(reached) > 0.8 * len(list(net.named_parameters()))


def test_gradients_pass_rounding_and_stop_where_clamped() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1))
    x = torch.rand(1, 1, 4, 4)
    graph = rh.trace(model, x)
    quant = quantize(rh.Supernet(graph, rh.uniform(graph, (1.0,))), [x]).program.quant
    assert quant is not None
    top = quant.scales[0][0] * 255
    value = torch.tensor([-0.1 * top, 0.3 * top, 0.7 * top, 1.1 * top], requires_grad=True)
    fake = _fake(quant, 0)(0, value)
    fake.sum().backward()
    assert value.grad is not None
    assert value.grad.tolist() == [0, 1, 1, 0]
    steps = fake.detach() / quant.scales[0][0]
    torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
    assert steps[0] == 0
    assert round(float(steps[3])) == 255


def digits() -> tuple[rh.ImageLoader, rh.ImageLoader]:
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, labels = datasets.load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 1, 8, 8) * 15).astype(np.uint8)
    test = np.arange(len(labels)) % 5 == 4
    kind: dict[str, Any] = {"mean": [0.29], "std": [0.35]}
    return (
        rh.ImageLoader(images[~test], labels[~test], 64, shuffle=True, **kind),
        rh.ImageLoader(images[test], labels[test], 100, **kind),
    )


def test_every_width_keeps_its_accuracy_on_digits(tmp_path: Path) -> None:
    """Within one point in 8 bits (4 of 359 images) and one image in 16, at every width."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    train, test = digits()
    graph = rh.trace(model, torch.randn(2, 1, 8, 8))
    net = rh.Supernet(graph, rh.uniform(graph, (0.25, 0.5, 1.0)))
    rh.fit(net, train, epochs=5, lr=0.2, progress=False)
    want = rh.evaluate(net, test)
    assert isinstance(want, dict)
    assert want["1.0"] > 0.9
    for bits, margin in ((8, 0.0112), (16, 0.0028)):
        quantized = quantize(net, train, bits, batches=8)
        got = quantized.evaluate(test)
        assert got.keys() == want.keys()
        for name in want:
            assert got[name] >= want[name] - margin, (bits, name)
        x = next(iter(test))[0]
        assert_bits(quantized, tmp_path / f"{bits}.safetensors", x)


def test_fine_tuning_gives_back_what_rounding_took() -> None:
    """No width loses more than one image of 359, all together none."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10)
    )
    train, test = digits()
    graph = rh.trace(model, torch.randn(2, 1, 8, 8))
    net = rh.Supernet(graph, rh.uniform(graph, (0.5, 1.0)))
    rh.fit(net, train, epochs=3, lr=0.2, progress=False)
    before = quantize(net, train, batches=8).evaluate(test)
    weight = net.state_dict()["0.weight"].clone()
    after = finetune(net, train, epochs=2, lr=0.005, batches=8).evaluate(test)
    assert not torch.equal(net.state_dict()["0.weight"], weight)
    assert all(after[name] >= before[name] - 0.0028 for name in before), (before, after)
    assert sum(after.values()) >= sum(before.values())


def test_fine_tuning_holds_what_is_frozen_while_it_trains() -> None:
    torch.manual_seed(0)
    train, _ = digits()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    graph = rh.trace(model, torch.randn(2, 1, 8, 8))
    net = rh.Supernet(graph, rh.uniform(graph, (0.5, 1.0)))
    net.freeze_except_(1)
    held, found = net.shared.get_parameter("1.weight")[:4].detach().clone(), []

    class Watched:
        def __len__(self) -> int:
            return len(train)

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for pair in train:
                found.append(torch.equal(net.shared.get_parameter("1.weight")[:4], held))
                yield pair

    finetune(net, Watched(), epochs=1, lr=0.1, batches=1)
    assert len(found) > 2 and all(found)
    assert not torch.equal(net.shared.get_parameter("1.weight")[4:], held)
    for epochs in (0, 1.5):
        with pytest.raises(ValueError, match=f"finetune: got epochs={epochs}; want 1 or more"):
            finetune(net, train, epochs=epochs)  # pyright: ignore[reportArgumentType]


def test_fine_tuning_resumes_to_the_same_bits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3, 2, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten())
    model.append(nn.Linear(54, 10))
    train, _ = digits()
    net = rh.Supernet(graph := rh.trace(model, torch.randn(2, 1, 8, 8)), rh.uniform(graph, (0.5, 1.0)))
    fresh = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    class Stopped(Exception):
        pass

    class Stopping:
        """Goes on to the second epoch, and there no further than its first batch."""

        epoch = 0

        def __len__(self) -> int:
            return len(train)

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch
            train.set_epoch(epoch)

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for batch in train:
                yield batch
                if self.epoch == 1:
                    raise Stopped

    def tuned(loader: Any, **more: Any) -> Quantized:
        net.load_state_dict(fresh)
        return finetune(net, loader, epochs=2, lr=0.005, batches=2, **more)

    straight, path = tuned(train), tmp_path / "tuning.safetensors"
    with pytest.raises(Stopped):
        tuned(Stopping(), checkpoint=path)
    with pytest.raises(ValueError, match=r"finetune: .*tuning\.safetensors exists; want resume=True"):
        tuned(train, checkpoint=path)
    with pytest.raises(ValueError, match="was written with epochs=2; got epochs=3"):
        finetune(net, train, epochs=3, lr=0.005, batches=2, checkpoint=path, resume=True)
    resumed = tuned(train, checkpoint=path, resume=True)
    assert all(np.array_equal(straight.tensors[name], resumed.tensors[name]) for name in straight.tensors)
