"""`fit`, against autograd, formulas written out, and being killed."""

from __future__ import annotations

import copy
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from rheostat.train.checkpoint import read
from rheostat.train.criteria import taylor
from rheostat.train.data import ImageLoader
from rheostat.train.fit import _sandwich_picks, distillation_loss, evaluate, fit, recalibrate
from rheostat.train.graph import trace
from rheostat.train.loop import rate_at
from rheostat.train.sample import uniform
from rheostat.train.supernet import Supernet

WIDTHS = (0.25, 0.5, 0.75, 1.0)


class Small(nn.Module):
    """Two convolutions and a classifier, for 8x8 grey images and ten classes."""

    def __init__(self, num_first: int = 8, num_second: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, num_first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_first)
        self.conv2 = nn.Conv2d(num_first, num_second, 3, 2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_second)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(num_second, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.linear(self.dropout(x.mean((2, 3))))


def supernet(widths: tuple[float, ...] = WIDTHS, dropout: float = 0.0) -> Supernet:
    torch.manual_seed(0)
    graph = trace(Small(dropout=dropout), torch.randn(2, 1, 8, 8))
    return Supernet(graph, uniform(graph, widths))


def batch(num: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, 1, 8, 8, generator=generator), torch.randint(10, (num,), generator=generator)


def digits() -> tuple[ImageLoader, ImageLoader]:
    """Training and validation loaders of scikit-learn's digits."""
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, labels = datasets.load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 1, 8, 8) * 15).astype(np.uint8)
    test = np.arange(len(labels)) % 5 == 4
    kind: dict[str, Any] = {"mean": [0.29], "std": [0.35]}
    return (
        ImageLoader(images[~test], labels[~test], 64, shuffle=True, **kind),
        ImageLoader(images[test], labels[test], 100, **kind),
    )


class Spy(torch.optim.SGD):
    """Notes the gradients and learning rates that it is given, and moves nothing."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, lr=0.5)
        self.grads: list[dict[int, Tensor]] = []
        self.rates: list[float] = []

    def step(self, closure: Any = None) -> None:
        self.rates.append(self.param_groups[0]["lr"])
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self.grads.append({id(p): p.grad.detach().clone() for p in parameters})


def spied(net: Supernet, loader: Any, epochs: int = 1, **settings: Any) -> Spy:
    spies: list[Spy] = []

    def make(groups: list[dict[str, Any]]) -> Spy:
        spies.append(Spy(groups))
        return spies[0]

    fit(net, loader, epochs=epochs, optimizer=make, progress=False, **settings)
    return spies[0]


def gradients(net: Supernet, loader: Any, **settings: Any) -> dict[str, Tensor]:
    """The summed gradient of one step, by parameter name."""
    (grads,) = spied(net, loader, **settings).grads
    return {name: grads[id(parameter)] for name, parameter in net.named_parameters()}


def sliced_logits(net: Supernet, leaves: dict[str, Tensor], k: int, x: Tensor) -> Tensor:
    """Subnet k written out: autograd through slices of full-size leaves, batch norm by its definition."""

    def norm(x: Tensor, name: str) -> Tensor:
        suffix = "" if k == len(net) - 1 else f"@{k}"
        weight, bias = leaves[f"{name}.weight{suffix}"], leaves[f"{name}.bias{suffix}"]
        mean = x.mean((0, 2, 3), keepdim=True)
        var = (x - mean).square().mean((0, 2, 3), keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt() * weight[:, None, None] + bias[:, None, None]

    first, second = round(8 * WIDTHS[k]), round(16 * WIDTHS[k])
    x = F.relu(norm(F.conv2d(x, leaves["conv1.weight"][:first], padding=1), "bn1"))
    x = F.relu(norm(F.conv2d(x, leaves["conv2.weight"][:second, :first], stride=2, padding=1), "bn2"))
    return x.mean((2, 3)) @ leaves["linear.weight"][:, :second].T + leaves["linear.bias"]


def sliced_gradients(
    net: Supernet, x: Tensor, loss: Any, ks: tuple[int, ...] = (0, 1, 2, 3)
) -> dict[str, Tensor]:
    leaves = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    logits = {k: sliced_logits(net, leaves, k, x) for k in ks}
    torch.stack([loss(k, logits) for k in ks]).sum().backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in leaves.items()}


def log_softmax(z: Tensor) -> Tensor:
    return z - z.exp().sum(1, keepdim=True).log()


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    return -log_softmax(z)[torch.arange(len(y)), y].mean()


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-9, atol=1e-12, msg=f"{name} differs")


def assert_same_state(got: nn.Module, want: nn.Module) -> None:
    assert got.state_dict().keys() == want.state_dict().keys()
    for name, tensor in want.state_dict().items():
        assert torch.equal(got.state_dict()[name], tensor), name


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_fused_gradient_is_the_sum_of_the_subnets_own() -> None:
    net = supernet().double()
    x, y = batch()
    x = x.double()
    want = sliced_gradients(net, x, lambda k, logits: cross_entropy(logits[k], y))
    assert_equal(gradients(net, [(x, y)]), want)


def test_loss_weights_weigh_each_subnets_gradient() -> None:
    net = supernet().double()
    x, y = batch()
    x, weights = x.double(), (2.0, 1.0, 0.25)
    want = sliced_gradients(net, x, lambda k, logits: weights[k] * cross_entropy(logits[k], y), ks=(0, 1, 2))
    assert_equal(gradients(net, [(x, y)], subnets=(0, 1, 2), loss_weights=weights), want)


def test_every_width_learns_labels_and_teacher() -> None:
    net, teacher = supernet().double(), Small(16, 16).double()
    x, y = batch()
    x = x.double()
    with torch.no_grad():
        wanted = log_softmax(teacher.eval()(x) / 3)

    def loss(k: int, logits: dict[int, Tensor]) -> Tensor:
        divergence = (wanted.exp() * (wanted - log_softmax(logits[k] / 3))).sum(1).mean()
        return 0.7 * cross_entropy(logits[k], y) + 0.3 * 9 * divergence

    want = sliced_gradients(net, x, loss)
    assert_equal(gradients(net, [(x, y)], teacher=teacher.train(), distill=0.3, temperature=3.0), want)
    for k in range(4):
        assert want["bn1.weight" if k == 3 else f"bn1.weight@{k}"].norm() > 0


def test_in_place_distillation_teaches_the_others_what_the_largest_says() -> None:
    net = supernet().double()
    x, y = batch()
    x = x.double()

    def loss(k: int, logits: dict[int, Tensor]) -> Tensor:
        if k == 3:
            return cross_entropy(logits[3], y)
        return -(log_softmax(logits[3]).exp().detach() * log_softmax(logits[k])).sum(1).mean()

    assert_equal(gradients(net, [(x, y)], inplace=True), sliced_gradients(net, x, loss))


def test_distillation_loss_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    z, t, y = rng.normal(size=(5, 7)), rng.normal(size=(5, 7)), rng.integers(0, 7, 5)

    def value(z: np.ndarray) -> float:
        def softmax(z: np.ndarray) -> np.ndarray:
            return np.exp(z) / np.exp(z).sum(1, keepdims=True)

        hard = -np.log(softmax(z)[np.arange(5), y])
        p, q = softmax(t / 4), softmax(z / 4)
        return float(np.mean(0.6 * hard + 0.4 * 16 * (p * np.log(p / q)).sum(1)))

    logits = torch.from_numpy(z).requires_grad_()
    loss = distillation_loss(logits, torch.from_numpy(y), torch.from_numpy(t), 0.4, 4.0)
    assert loss.item() == pytest.approx(value(z), rel=1e-12)
    loss.backward()
    assert logits.grad is not None
    for index in np.ndindex(z.shape):
        step = np.zeros_like(z)
        step[index] = 1e-6
        assert logits.grad[index].item() == pytest.approx(
            (value(z + step) - value(z - step)) / 2e-6, abs=1e-8
        )


def test_the_soft_gradient_keeps_its_size_when_the_temperature_rises() -> None:
    z, t = torch.randn(8, 10, dtype=torch.float64), torch.randn(8, 10, dtype=torch.float64)
    norms = []
    for temperature in (20.0, 40.0):
        logits = z.clone().requires_grad_()
        distillation_loss(logits, torch.zeros(8, dtype=torch.int64), t, 1.0, temperature).backward()
        assert logits.grad is not None
        norms.append(logits.grad.norm().item())
    assert norms[1] == pytest.approx(norms[0], rel=0.05)


@pytest.mark.parametrize("with_teacher", [False, True])
def test_label_smoothing_spreads_the_label(with_teacher: bool) -> None:
    net = supernet().double()
    x, y = batch()
    x = x.double()
    wanted = torch.full((16, 10), 0.2 / 10, dtype=torch.float64)
    wanted[torch.arange(16), y] += 0.8
    want = sliced_gradients(net, x, lambda k, logits: -(wanted * log_softmax(logits[k])).sum(1).mean())
    # A teacher that counts nothing: the labels are smoothed on that path too.
    teacher: dict[str, Any] = {"teacher": Small().double(), "distill": 0.0} if with_teacher else {}
    assert_equal(gradients(net, [(x, y)], label_smoothing=0.2, **teacher), want)


def test_a_teacher_is_copied_frozen_and_asked_once_a_step() -> None:
    teacher = Small(dropout=0.5).train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    calls: list[bool] = []
    teacher.linear.register_forward_hook(lambda module, args, out: calls.append(module.training))
    fit(supernet(), [batch(seed=seed) for seed in range(3)], epochs=1, teacher=teacher, progress=False)
    assert calls == [False] * 3
    assert teacher.training
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_batches_that_come_again_are_not_asked_about_again() -> None:
    train, _ = digits()
    pixels = train._images_MHWC[:192].permute(0, 3, 1, 2)
    loader = ImageLoader(
        pixels, train._labels_M[:192], 64, mean=[0.29], std=[0.35], crop=1, shuffle=True, cycle=2
    )
    calls: list[Tensor] = []
    teacher = Small().eval()
    teacher.linear.register_forward_hook(lambda module, args, out: calls.append(out))
    net, other = supernet(), supernet()
    fit(net, loader, epochs=5, teacher=teacher, progress=False)
    assert len(calls) == 2 * len(loader)
    # The same batches from a loader that says nothing of it.
    fit(other, Unknown(loader), epochs=5, teacher=teacher, progress=False)
    assert len(calls) == (2 + 5) * len(loader)
    assert_same_state(other, net)


class Unknown:
    """Another loader that gives what this one does."""

    def __init__(self, loader: ImageLoader) -> None:
        self.set_epoch, self._loader = loader.set_epoch, loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._loader)


def test_distillation_alone_ignores_the_labels_and_brings_all_widths_to_the_teacher() -> None:
    train, _ = digits()
    teacher_net = supernet((1.0,))
    fit(teacher_net, train, epochs=6, progress=False)
    teacher = teacher_net[-1].eval()
    net, other = supernet(), supernet()
    settings: dict[str, Any] = {"teacher": teacher, "distill": 1.0, "progress": False}
    history = fit(net, train, epochs=8, **settings)
    rotated = ImageLoader(
        train._images_MHWC.permute(0, 3, 1, 2),
        (train._labels_M + 1) % 10,
        64,
        mean=[0.29],
        std=[0.35],
        shuffle=True,
    )
    fit(other, rotated, epochs=8, **settings)
    assert_same_state(other, net)
    for name in net.names:
        assert history[-1].loss[name] < 0.5 * history[0].loss[name]


# --- the sandwich -----------------------------------------------------------------------------------------------------


def test_the_sandwich_has_the_ends_and_two_others() -> None:
    picks = _sandwich_picks(9, 200, seed=0, epoch=0)
    assert all(len(set(pick)) == 4 and pick[0] == 0 and pick[-1] == 8 for pick in picks)
    counts = np.bincount(np.concatenate(picks), minlength=9)
    assert counts[0] == counts[8] == 200
    assert all(30 < count < 90 for count in counts[1:8])  # 400 draws over seven subnets
    assert picks == _sandwich_picks(9, 200, seed=0, epoch=0)
    assert picks != _sandwich_picks(9, 200, seed=0, epoch=1) != _sandwich_picks(9, 200, seed=1, epoch=1)


@pytest.mark.parametrize("num_subnets", [1, 2, 3, 4])
def test_the_sandwich_of_up_to_four_subnets_is_all_of_them(num_subnets: int) -> None:
    assert _sandwich_picks(num_subnets, 3, seed=0, epoch=0) == [list(range(num_subnets))] * 3


def test_the_sandwich_trains_what_it_picked() -> None:
    net = supernet((0.125, 0.25, 0.375, 0.5, 0.625, 1.0))
    spy = spied(net, [batch(seed=seed) for seed in range(6)], sandwich=True)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    for grads, pick in zip(spy.grads, _sandwich_picks(6, 6, seed=0, epoch=0), strict=True):
        moved = {names[key] for key, grad in grads.items() if grad.any()}
        assert [k for k in range(5) if f"bn2.bias@{k}" in moved] == [k for k in pick if k < 5]
        assert "bn2.bias" in moved


# --- the optimizer ----------------------------------------------------------------------------------------------------


def test_a_step_is_sgd_with_nesterov_momentum_and_decay_of_matrices_only() -> None:
    net = supernet((0.5, 1.0)).double()
    batches = [(x.double(), y) for x, y in (batch(seed=seed) for seed in range(3))]
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    velocity = {name: torch.zeros_like(p) for name, p in weights.items()}
    other = supernet((0.5, 1.0)).double()
    for step, pair in enumerate(batches):
        other.load_state_dict(other.state_dict() | weights)
        grads = gradients(other, [pair])
        for name, weight in weights.items():
            grad = grads[name] + (0.01 * weight if weight.ndim > 1 else 0)
            velocity[name] = 0.8 * velocity[name] + grad
            rate = 0.2 * 0.5 * (1 + math.cos(math.pi * step / 3))
            weights[name] = weight - rate * (grad + 0.8 * velocity[name])
    fit(net, batches, epochs=1, lr=0.2, momentum=0.8, weight_decay=0.01, progress=False)
    assert_equal({name: p.detach() for name, p in net.named_parameters()}, weights)


def test_the_learning_rate_rises_in_a_line_and_falls_along_a_cosine() -> None:
    spy = spied(supernet((1.0,)), [batch(4)] * 4, epochs=3, warmup=0.5)
    falling = [0.25 * (1 + math.cos(math.pi * step / 10)) for step in range(10)]
    assert spy.rates == pytest.approx([0.25, 0.5, *falling])  # of Spy's own 0.5
    assert rate_at(999, 1000, 0) < 1e-5


def test_clip_norm_limits_the_summed_gradient() -> None:
    free = gradients(supernet(), [batch()])
    clipped = gradients(supernet(), [batch()], clip_norm=0.01)
    norm = math.sqrt(sum(float(grad.square().sum()) for grad in free.values()))
    assert norm > 0.01
    for name, grad in free.items():
        torch.testing.assert_close(clipped[name], grad * 0.01 / norm, rtol=1e-3, atol=1e-8)


def test_another_optimizer_keeps_its_own_settings() -> None:
    groups: list[list[dict[str, Any]]] = []

    def make(given: list[dict[str, Any]]) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(given, lr=0.01, weight_decay=0.5)
        groups.append(optimizer.param_groups)
        return optimizer

    net = supernet()
    history = fit(net, [batch()] * 2, epochs=2, lr=9.0, weight_decay=9.0, optimizer=make, progress=False)
    assert [group["weight_decay"] for group in groups[0]] == [0.5, 0.0]
    assert history[0].lr == pytest.approx(0.01 * rate_at(1, 4, 0))
    assert all(p.ndim > 1 for p in groups[0][0]["params"])
    assert all(p.ndim == 1 for p in groups[0][1]["params"])
    assert sum(len(group["params"]) for group in groups[0]) == len(list(net.parameters()))


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, {"precision": "bfloat16", "channels_last": True, "label_smoothing": 0.1}]
)
def test_every_width_learns_digits(settings: dict[str, Any]) -> None:
    net, (train, test) = supernet(), digits()
    history = fit(net, train, epochs=6, lr=0.2, validation=test, progress=False, **settings)
    assert [record.epoch for record in history] == list(range(1, 7))
    for name in net.names:
        assert history[-1].loss[name] < history[2].loss[name] < history[0].loss[name]
        assert history[-1].accuracy[name] > history[0].accuracy[name]
    assert history[-1].validation["1.0"] > 0.85
    assert history[-1].validation["0.25"] > 0.4
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())
    assert history[-1].validation == evaluate(net, test)
    assert [info.accuracy for info in net.infos] == list(history[-1].validation.values())


def test_accuracies_of_weights_that_have_moved_since_are_dropped() -> None:
    def known() -> list[bool]:
        return [info.accuracy is not None for info in net.infos]

    net = supernet((0.5, 0.75, 1.0))
    fit(net, [batch()], epochs=1, validation=[batch()], progress=False)
    assert known() == [True] * 3
    net.freeze_except_(1)
    fit(net, [batch()], epochs=1, subnets=[1], validation=[batch()], progress=False)
    assert known() == [True, True, False]
    net.freeze_except_(None)
    fit(net, [batch()], epochs=1, progress=False)
    assert known() == [False] * 3
    net.record(0, accuracy=0.5, latency_ms_p50=1.0)
    recalibrate(net, [batch()])
    assert known() == [False] * 3
    assert net.infos[0].latency_ms_p50 == 1.0


@pytest.mark.parametrize("trained", [[0], [0, 1], [1]])
def test_weights_that_no_trained_subnet_has_stay(trained: list[int]) -> None:
    net = supernet((0.25, 0.5, 1.0))
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    fit(net, [batch()] * 3, epochs=2, weight_decay=0.1, subnets=trained, progress=False)
    half = (2, 4)[max(trained)]
    moved = {name: parameter != before[name] for name, parameter in net.named_parameters()}
    assert moved["conv1.weight"][:half].all() and not moved["conv1.weight"][half:].any()
    assert not moved["conv2.weight"][:, half:].any()
    for k in range(3):
        own = "bn1.weight" if k == 2 else f"bn1.weight@{k}"
        assert moved[own].any() == (k in trained)
    fit(net, [batch()], epochs=1, progress=False)  # and move again afterwards
    assert (net.shared.get_parameter("conv1.weight") != before["conv1.weight"]).all()


def test_a_subnet_that_was_not_drawn_has_no_loss() -> None:
    net = supernet(tuple(k / 8 for k in range(1, 9)))
    (record,) = fit(net, [batch()], epochs=1, sandwich=True, progress=False)
    drawn = [net.names[k] for k in _sandwich_picks(8, 1, 0, 0)[0]]
    assert list(record.loss) == list(record.accuracy) == drawn
    assert min(record.loss.values()) > 0


def test_an_optimizer_of_other_parameters_is_refused(tmp_path: Path) -> None:
    other = Small()
    with pytest.raises(ValueError, match="parameters that are not the supernet's"):
        fit(
            supernet(),
            [batch()],
            epochs=1,
            optimizer=lambda _: torch.optim.Adam(other.parameters()),
            checkpoint=tmp_path / "c",
            progress=False,
        )


def test_a_record_holds_the_means_of_its_epoch() -> None:
    net, twin = supernet(), supernet()
    batches = [batch(16, 1), batch(8, 2)]
    (record,) = fit(net, batches, epochs=1, lr=1e-30, progress=False)
    loss, right = 0.0, 0
    for x, y in batches:
        logits = twin["0.5"].train()(x)
        loss += len(y) / 24 * cross_entropy(logits, y).item()
        right += int((logits.argmax(1) == y).sum())
    assert record.loss["0.5"] == pytest.approx(loss, rel=1e-5)
    assert record.accuracy["0.5"] == pytest.approx(right / 24)
    assert record.validation == {}


def test_a_data_loader_and_keyword_tensors_will_do() -> None:
    x, y = batch(40)

    class Keyword(Small):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image)

    torch.manual_seed(0)
    graph = trace(Keyword(), {"image": x[:2]})
    by_name, plain = Supernet(graph, uniform(graph, WIDTHS)), supernet()
    fit(plain, DataLoader(TensorDataset(x, y), 8, shuffle=True), epochs=2, progress=False)
    data = [({"image": image, "label": label}) for image, label in zip(x, y, strict=True)]
    pairs = DataLoader(
        data,  # pyright: ignore[reportArgumentType]
        8,
        shuffle=True,
        collate_fn=lambda rows: (
            {"image": torch.stack([row["image"] for row in rows])},
            torch.stack([row["label"] for row in rows]),
        ),
    )
    fit(by_name, pairs, epochs=2, progress=False)
    assert_same_state(by_name, plain)


def test_training_leaves_torchs_generator_alone_and_does_not_depend_on_it() -> None:
    nets = []
    for seed in (1, 2):
        net = supernet(dropout=0.3)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        fit(net, DataLoader(TensorDataset(*batch(40)), 8, shuffle=True), epochs=2, progress=False)
        assert torch.equal(torch.get_rng_state(), before)
        nets.append(net)
    assert_same_state(*nets)


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_training_is_the_same_training(precision: str, channels_last: bool) -> None:
    train, _ = digits()
    nets = []
    for flag in (False, True):
        nets.append(supernet())
        history = fit(
            nets[-1], train, epochs=2, teacher=Small(), compile=flag, channels_last=flag and channels_last,
            precision=precision, progress=False,
        )  # fmt: skip
        assert history[1].loss["0.25"] < history[0].loss["0.25"]
    tolerance = 1e-3 if precision == "float32" else 0.1
    for name, tensor in nets[0].state_dict().items():
        torch.testing.assert_close(nets[1].state_dict()[name], tensor, rtol=tolerance, atol=tolerance)


def test_progress_shows_every_subnet(capsys: pytest.CaptureFixture[str]) -> None:
    net = supernet()
    (record,) = fit(net, [batch()], epochs=1, validation=[batch()])
    text = capsys.readouterr().out
    assert "epoch 1/1" in text
    for name in net.names:
        scores = f"{100 * record.accuracy[name]:.1f}% {100 * record.validation[name]:.1f}%"
        assert f"{name}: {record.loss[name]:.3f} {scores}" in text


# --- measuring --------------------------------------------------------------------------------------------------------


def test_recalibrate_gives_the_plain_average_over_the_batches() -> None:
    net, batches = supernet((0.5, 1.0)), [batch(seed=seed)[0] for seed in range(3)]
    fit(net, [batch()], epochs=1, progress=False)
    net[0].bn2.eval()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    modes = [part.training for part in net[0].modules()]
    recalibrate(net, [(x, torch.zeros(16)) for x in batches])
    for module in net:
        assert isinstance(module, nn.Module)
        outs = [F.conv2d(x, module.get_parameter("conv1.weight"), padding=1) for x in batches]
        mean = np.mean([out.detach().numpy().mean((0, 2, 3)) for out in outs], 0)
        var = np.mean([out.detach().numpy().var((0, 2, 3), ddof=1) for out in outs], 0)
        np.testing.assert_allclose(module.get_buffer("bn1.running_mean"), mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(module.get_buffer("bn1.running_var"), var, rtol=1e-4)
        assert module.get_submodule("bn1").momentum == 0.1
        assert int(module.get_buffer("bn2.num_batches_tracked")) == 3
    assert [part.training for part in net[0].modules()] == modes
    assert_equal({name: p.detach() for name, p in net.named_parameters()}, weights)


def test_recalibrate_takes_as_many_batches_as_it_is_told_and_any_module() -> None:
    module = Small()
    recalibrate(module, [batch(seed=seed) for seed in range(5)], batches=2)
    assert int(module.bn1.num_batches_tracked) == 2  # pyright: ignore[reportArgumentType]
    before = copy.deepcopy(module)
    with pytest.raises(ValueError, match="no batch"):
        recalibrate(module, [])
    with pytest.raises(RuntimeError):
        recalibrate(module, [batch(), (torch.zeros(1, 7, 8, 8), torch.zeros(1))])
    assert_same_state(module, before)
    assert module.bn1.momentum == 0.1


def test_evaluate_counts_right_answers_in_eval_mode() -> None:
    net, loader = supernet((0.5, 1.0), dropout=0.9), [batch(16, 1), batch(7, 2)]
    net.train()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    scores = evaluate(net, loader)
    assert net.training
    assert net[0].training
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())
    for k, name in enumerate(net.names):
        module = net.extract(k).eval()
        right = sum(int((module(x).argmax(1) == y).sum()) for x, y in loader)
        assert isinstance(scores, dict)
        assert scores[name] == right / 23
        assert evaluate(module, loader) == scores[name]
    with pytest.raises(ValueError, match="empty loader"):
        evaluate(net, [])
    with pytest.raises(ValueError, match="precision='float16'; want 'float32' or 'bfloat16'"):
        evaluate(net, loader, precision="float16")
    x, y = batch(10)
    for labels in (y[:, None], F.one_hot(y, 10), y.float(), y[:1]):
        with pytest.raises(ValueError, match=r"for outputs \[10, 10\]; want integers \[N\]"):
            evaluate(net, [(x, labels)])
        with pytest.raises(ValueError, match="want integers"):
            fit(supernet((1.0,)), [(x, y)], epochs=1, validation=[(x, labels)], progress=False)
    with pytest.raises(ValueError, match=r"outputs \[10, 1, 8, 8\]"):
        evaluate(nn.Identity(), [(x, y)])


class Slowing(torch.optim.SGD):
    """Counts its steps in its groups, as optimizers without a schedule do, and takes ever smaller ones."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, 0.5)
        for group in self.param_groups:
            group["k"] = 0

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["k"] += 1
            group["lr"] /= group["k"]
        return super().step(closure)


# --- checkpoints ------------------------------------------------------------------------------------------------------


class StoppedError(Exception):
    pass


class Stopping:
    """A loader that breaks down in the middle of one epoch."""

    def __init__(self, inner: Any, epoch: int) -> None:
        self.inner, self.left = inner, epoch * len(inner) + len(inner) // 2
        self.generator = getattr(inner, "generator", None)
        self.sampler = getattr(inner, "sampler", None)

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[Any]:
        for pair in self.inner:
            self.left -= 1
            if self.left < 0:
                raise StoppedError
            yield pair


def shuffled(generator: torch.Generator | None) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*batch(64)), 8, shuffle=True, generator=generator)


@pytest.mark.parametrize("own_generator", [False, True, "sampler's"])
@pytest.mark.parametrize(
    "make", [None, lambda groups: torch.optim.AdamW(groups, 0.01), Slowing], ids=["sgd", "adam", "slowing"]
)
def test_stopped_and_resumed_is_the_same_as_straight(
    tmp_path: Path, own_generator: bool | str, make: Any
) -> None:
    def run(loader: Any, checkpoint: Path, resume: bool) -> Supernet:
        net = supernet(dropout=0.2)
        fit(
            net,
            loader,
            epochs=4,
            optimizer=make,
            sandwich=True,
            checkpoint=checkpoint,
            resume=resume,
            progress=False,
        )
        return net

    def loader(seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed) if own_generator else None
        if own_generator == "sampler's":
            data = TensorDataset(*batch(64))
            return Stopping(DataLoader(data, 8, sampler=RandomSampler(data, generator=generator)), 99)
        return Stopping(shuffled(generator), 99)

    straight = run(loader(0), tmp_path / "straight", resume=False)
    stopping = loader(1)
    stopping.left = 20
    with pytest.raises(StoppedError):
        run(stopping, tmp_path / "c", resume=True)
    assert len(read(tmp_path / "c").state["history"]) == 2
    assert_same_state(run(loader(2), tmp_path / "c", resume=True), straight)


class Untouched(list[Any]):
    pass


def test_a_finished_run_returns_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"epochs": 2, "checkpoint": tmp_path / "c", "progress": False}
    net = supernet()
    history = fit(net, Untouched([batch()] * 2), validation=[batch()], **settings)
    again = supernet()
    monkeypatch.setattr(Untouched, "__iter__", None)
    assert fit(again, Untouched([batch()] * 2), resume=True, **settings) == history
    assert_same_state(again, net)
    assert [info.accuracy for info in again.infos] == [info.accuracy for info in net.infos]


def test_the_first_weights_are_in_the_checkpoint_too(tmp_path: Path) -> None:
    net, other = supernet(), supernet()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    settings: dict[str, Any] = {"epochs": 1, "checkpoint": tmp_path / "c", "progress": False}
    with pytest.raises(StoppedError):
        fit(net, Stopping([batch()] * 4, 0), **settings)
    fit(other, Stopping([batch()] * 4, 9), resume=True, **settings)
    straight = supernet()
    fit(straight, Stopping([batch()] * 4, 9), epochs=1, progress=False)
    assert_same_state(other, straight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.2}, r"lr=\[0\.1, 0\.1\]; got lr=\[0\.2, 0\.2\]"),
        ({"epochs": 3}, "epochs=2; got epochs=3"),
        ({"teacher": Small()}, "teacher=None"),
        ({"inplace": True}, "inplace=False; got inplace=True"),
        ({"label_smoothing": 0.1}, "label_smoothing"),
        ({"loss_weights": (2, 1, 1, 1)}, r"loss_weights=\[1\.0, 1\.0, 1\.0, 1\.0\]; got loss_weights=\[2\.0"),
        ({"optimizer": lambda groups: torch.optim.AdamW(groups, 0.1)}, "optimizer=SGD; got optimizer=AdamW"),
        ({"loader": [batch()] * 3}, "steps=2; got steps=3"),
        ({"net": (0.5, 1.0)}, "subnets="),
        ({"seed": 1}, "seed=0; got seed=1"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"epochs": 2, "checkpoint": tmp_path / "c", "progress": False}
    fit(supernet(), [batch()] * 2, **settings)
    before = (tmp_path / "c").read_bytes()
    change = dict(change)
    net, loader = supernet(change.pop("net", WIDTHS)), change.pop("loader", [batch()] * 2)
    with pytest.raises(ValueError, match=message):
        fit(net, loader, resume=True, **(settings | change))
    assert (tmp_path / "c").read_bytes() == before


def test_other_options_of_the_optimizer_and_pixels_of_another_scale_are_refused(tmp_path: Path) -> None:
    images = np.zeros((8, 1, 8, 8), np.uint8)

    def run(betas: tuple[float, float], mean: float) -> None:
        loader = ImageLoader(images, np.arange(8) % 2, 4, mean=[mean], std=[0.25])
        fit(
            supernet(),
            loader,
            epochs=1,
            optimizer=lambda groups: torch.optim.AdamW(groups, 0.1, betas),
            checkpoint=tmp_path / "c",
            resume=True,
            progress=False,
        )

    run((0.9, 0.99), 0.5)
    run((0.9, 0.99), 0.5)
    with pytest.raises(ValueError, match=r"betas=\[\[0.9, 0.99\], .*got betas=\[\[0.8, 0.99\]"):
        run((0.8, 0.99), 0.5)
    with pytest.raises(ValueError, match=r"mean=\(0.5,\).*mean=\(0.4,"):
        run((0.9, 0.99), 0.4)


def test_an_existing_checkpoint_is_not_overwritten_without_resume(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 1, "checkpoint": tmp_path / "c", "progress": False}
    fit(supernet(), [batch()], **settings)
    with pytest.raises(ValueError, match="resume=True"):
        fit(supernet(), [batch()], **settings)


def test_what_is_frozen_has_the_values_of_the_checkpoint(tmp_path: Path) -> None:
    def run(net: Supernet, loader: Any) -> None:
        net.freeze_except_(0)
        fit(net, loader, epochs=2, subnets=[0], checkpoint=tmp_path / "c", resume=True, progress=False)

    first, other = supernet(), supernet()
    before = {name: parameter.detach().clone() for name, parameter in first.shared.named_parameters()}
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    with pytest.raises(StoppedError):
        run(first, Stopping([batch()] * 4, 1))
    run(other, Stopping([batch()] * 4, 99))
    smallest = dict(other[0].named_parameters())
    for name, parameter in other.shared.named_parameters():
        moved = parameter != before[name]
        if name not in other.graph.private:
            inside = tuple(slice(size) for size in smallest[name].shape)
            assert moved[inside].any(), name
            moved[inside] = False
        assert not moved.any(), name


def test_stale_temporary_files_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".c.tmp").write_bytes(b"half")
    settings: dict[str, Any] = {"epochs": 1, "checkpoint": tmp_path / "c", "progress": False}
    fit(supernet(), [batch()], **settings)
    (tmp_path / ".c.tmp").write_bytes(b"half")
    fit(supernet(), [batch()], resume=True, **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_disk_that_fills_up_costs_one_epoch_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"epochs": 3, "checkpoint": tmp_path / "c", "progress": False}
    straight, net = supernet(), supernet()
    fit(straight, [batch()] * 2, epochs=3, progress=False)
    sync, left = os.fsync, [5]  # file and directory of the first two checkpoints, and a file

    def full(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device.*previous checkpoint is untouched"):
            fit(net, [batch()] * 2, **settings)
    assert len(read(tmp_path / "c").state["history"]) >= 1
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    resumed = supernet()
    fit(resumed, [batch()] * 2, resume=True, **settings)
    assert_same_state(resumed, straight)


def test_a_place_that_cannot_be_written_is_told_before_training(tmp_path: Path) -> None:
    stopping = Stopping([batch()], 0)
    with pytest.raises(OSError, match="cannot be written"):
        fit(supernet(), stopping, epochs=1, checkpoint=tmp_path / "missing" / "c", progress=False)


# The parent only imports, and forks a child for each attempt, so that a kill costs no second import of torch.
KILLED = """
import os, random, signal, sys, time
import torch
from torch import nn
from pathlib import Path
from rheostat.train.data import ImageLoader
from rheostat.train.fit import fit
from rheostat.train.graph import trace
from rheostat.train.sample import uniform
from rheostat.train.supernet import Supernet

class Told:
    def __init__(self, inner, pipe):
        self.inner, self.pipe, self.set_epoch = inner, pipe, inner.set_epoch
    def __len__(self):
        return len(self.inner)
    def __iter__(self):
        for pair in self.inner:
            yield pair
            os.write(self.pipe, b".")

def train(checkpoint, pipe):
    torch.set_num_threads(1)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Dropout(0.1), nn.Flatten(), nn.Linear(288, 10),
    )
    graph = trace(model, torch.randn(2, 1, 8, 8))
    net = Supernet(graph, uniform(graph, (0.25, 0.5, 0.75, 1.0)))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (160, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (160,), generator=generator)
    loader = ImageLoader(images, labels, 16, mean=[0.5], std=[0.25], crop=1, flip=True, shuffle=True)
    fit(net, Told(loader, pipe), epochs=4, sandwich=True, checkpoint=checkpoint, resume=True, progress=False)

def attempt(checkpoint, kill_after, delay):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        torch.manual_seed(0 if not Path(checkpoint).exists() else kill_after)
        try:
            train(checkpoint, write)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(write)
    left = kill_after
    while left and (told := os.read(read, left)):
        left -= len(told)
    if not left:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    os.close(read)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

straight, killed = sys.argv[1:]
assert attempt(straight, 10**6, 0) == 0
rng, kills = random.Random(int(os.environ["SEED"])), 0
for after in (3, 10, 12, 9, 20, 10):  # ten batches an epoch: also between the last one and the checkpoint
    kills += attempt(killed, after, rng.uniform(0, 0.02)) == -signal.SIGKILL
print(kills, attempt(killed, 10**6, 0))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork and SIGKILL")
def test_killed_at_any_instant_and_resumed_is_the_same_as_straight(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "straight", tmp_path / "killed"],
        env={**os.environ, "SEED": str(random.Random(1).randrange(1000))},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    kills, last = map(int, done.stdout.split())
    assert kills >= 3
    assert last == 0
    straight, killed = read(tmp_path / "straight"), read(tmp_path / "killed")
    assert len(killed.state["history"]) == 4
    assert killed.network.keys() == straight.network.keys()
    for name, tensor in straight.network.items():
        assert torch.equal(killed.network[name], tensor), name
    for name, slots in straight.optimizer.items():
        for slot, value in slots.items():
            assert torch.equal(torch.as_tensor(killed.optimizer[name][slot]), torch.as_tensor(value)), (
                name,
                slot,
            )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "straight"]


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_epoch(tmp_path: Path) -> None:
    class Spoilt(list[Any]):
        epoch = 0

        def __iter__(self) -> Iterator[Any]:
            self.epoch += 1
            for step, (x, y) in enumerate(list.__iter__(self)):
                yield (x * math.inf if (self.epoch, step) == (2, 1) else x), y

    with pytest.raises(
        ValueError, match=r"epoch 2, step 2: got loss nan in subnet '0\.25'.*keeps epoch 1.*lr"
    ):
        fit(supernet(), Spoilt([batch()] * 3), epochs=3, checkpoint=tmp_path / "c", progress=False)
    checkpoint = read(tmp_path / "c")
    assert len(checkpoint.state["history"]) == 1
    assert all(tensor.isfinite().all() for tensor in checkpoint.network.values())


def test_the_subnet_whose_loss_is_not_finite_is_named() -> None:
    net = supernet()
    net[1].get_parameter("bn2.weight").data.fill_(math.inf)
    with pytest.raises(ValueError, match=r"epoch 1, step 1: got loss \S+ in subnet '0\.5'"):
        fit(net, [batch()], epochs=1, progress=False)


def test_weights_spoilt_by_the_last_step_never_reach_the_checkpoint(tmp_path: Path) -> None:
    class Spoiling(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            self.param_groups[1]["params"][0].data.fill_(math.nan)

    with pytest.raises(ValueError, match=r"epoch 1: bn1\.weight: got a value that is not finite"):
        fit(
            supernet(), [batch()], epochs=1, checkpoint=tmp_path / "c", progress=False,
            optimizer=lambda groups: Spoiling(groups, 0.1),
        )  # fmt: skip
    assert all(tensor.isfinite().all() for tensor in read(tmp_path / "c").network.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": -3}, "epochs=-3"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"warmup": -1}, "warmup=-1"),
        ({"warmup": 1}, "warmup=1"),
        ({"distill": 1.5}, "distill=1.5"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"clip_norm": 0.0}, "clip_norm=0.0"),
        (
            {"loss_weights": (1.0, 2.0)},
            r"loss_weights=\[1\.0, 2\.0\]; want a number above 0 for each of 1\.0",
        ),
        ({"loss_weights": (0.0,)}, r"loss_weights=\[0\.0\]"),
        ({"precision": "float16"}, "precision='float16'"),
        ({"inplace": True, "teacher": Small()}, "one source of soft labels"),
    ],
)
def test_wrong_settings_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(supernet((1.0,)), [batch()], **({"epochs": 1, "progress": False} | settings))


X, Y = batch(8)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "empty loader"),
        (iter([(X, Y)]), "without len"),
        ([(X.repeat(1, 3, 1, 1), Y)], r"\[\[8, 3, 8, 8\]\].*does not take.*\[\[2, 1, 8, 8\]\]"),
        ([(X[0], Y[:1])], "does not take"),
        ([((X, X), Y)], "does not take"),
        ([({"image": X}, Y)], "does not take"),
        ([(X, Y[:7])], "8 samples and 7 labels"),
        ([(X, Y.float())], r"float32 \[8\]; want int64 \[N\]"),
        ([(X, Y[:, None])], r"\[8, 1\]; want int64"),
        ([(X, Y.tolist())], "labels list"),
        ([(X, Y * 0 + 10)], "labels from 10 to 10; want 0 to 9"),
        ([(X, Y * 0 - 1)], "labels from -1 to -1"),
    ],
)
def test_wrong_batches_are_told(loader: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(supernet((0.5, 1.0)), loader, epochs=1, progress=False)


def test_outputs_that_are_not_logits_are_told() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 10, 3))
    graph = trace(model, X)
    with pytest.raises(ValueError, match=r"outputs \[8, 10, 4, 4\] for 8 labels; want \[N, classes\]"):
        fit(Supernet(graph, uniform(graph, (0.5, 1.0))), [(X, Y)], epochs=1, progress=False)


@pytest.mark.parametrize("several", [lambda y: (y, y), lambda y: [y], lambda y: {"out": y}])
def test_several_outputs_are_told(several: Callable[[Tensor], Any]) -> None:
    class Several(Small):
        def forward(self, x: Tensor) -> Any:
            return several(super().forward(x))

    graph = trace(Several(), X)
    net = Supernet(graph, uniform(graph, (0.5, 1.0)))
    for use in (
        lambda: fit(net, [(X, Y)], epochs=1, progress=False),
        lambda: fit(supernet(), [(X, Y)], epochs=1, teacher=Several(), progress=False),
        lambda: evaluate(net, [(X, Y)]),
        lambda: taylor(graph, [(X, Y)]),
    ):
        with pytest.raises(
            ValueError, match=r"got a (tuple|list|dict) as the model's output; want one tensor"
        ):
            use()


def test_labels_of_a_later_batch_are_looked_at_too() -> None:
    with pytest.raises(ValueError, match=r"epoch 1, step 2: got labels from 3 to 12; want 0 to 9"):
        fit(supernet(), [(X, Y), (X[:2], torch.tensor([3, 12]))], epochs=1, progress=False)


@pytest.mark.parametrize("num_classes", [1, 5, 20])
def test_a_teacher_of_other_classes_is_told(num_classes: int) -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(X[0].numel(), num_classes))
    with pytest.raises(ValueError, match=rf"\[8, {num_classes}\] of the teacher; want \[8, 10\]"):
        fit(supernet(), [(X, Y)], epochs=1, teacher=teacher, progress=False)


@pytest.mark.parametrize("x", [X.numpy(), (X.numpy(),), {"x": X.numpy()}])
def test_arrays_are_told(x: Any) -> None:
    for use in (
        lambda: fit(supernet(), [(x, Y)], epochs=1, progress=False),
        lambda: evaluate(supernet(), [(x, Y)]),
    ):
        with pytest.raises(ValueError, match=r"got a ndarray in a batch; want a tensor"):
            use()


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    def run(kind: Any, real: Any, resume: bool) -> list[float]:
        history = fit(
            supernet(), [batch()], epochs=kind(2), seed=kind(3), lr=real(0.5), weight_decay=real(0.25),
            warmup=real(0.5), checkpoint=tmp_path / "c", resume=resume, progress=False,
        )  # fmt: skip
        return [record.loss["1.0"] for record in history]

    assert run(np.int64, np.float32, False) == run(int, float, True)


def test_a_loader_that_runs_out_early_is_told() -> None:
    class Short(list[Any]):
        def __len__(self) -> int:
            return 5

    with pytest.raises(ValueError, match="got 2 batches; want the 5"):
        fit(supernet((1.0,)), Short([batch()] * 2), epochs=1, progress=False)
