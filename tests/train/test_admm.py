"""ADMM against closed forms, autograd and numpy, resumed, and on real digits; the gradual schedule."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rheostat as rh
from rheostat.spec import Granularity
from rheostat.train import checkpoint as checkpoints
from rheostat.train.admm import Pair, Pruned, Update, _next_rho
from rheostat.train.graph import Graph
from rheostat.train.masks import Cut
from rheostat_recipes.data import load

Batches = list[tuple[Tensor, Tensor]]


def linear(seed: int = 0) -> Graph:
    """One layer: nothing is sorted, so that weights keep their places."""
    torch.manual_seed(seed)
    return rh.trace(nn.Linear(12, 4), torch.zeros(2, 12))


def convolution(seed: int = 0) -> Graph:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(8, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return rh.trace(model, torch.zeros(2, 8, 5, 5))


def batches(graph: Graph, num: int = 1, seed: int = 0) -> Batches:
    random = torch.Generator().manual_seed(seed)
    shape = graph.args[0].shape[1:]
    return [
        (torch.randn(16, *shape, generator=random), torch.randint(4, (16,), generator=random))
        for _ in range(num)
    ]


def gradients(graph: Graph, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    loss = F.cross_entropy(graph.model(batch[0]), batch[1])
    names, parameters = zip(*graph.model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def prune_in_one_step(graph: Graph, **changed: Any) -> Pruned:
    """One step on one batch, plain SGD, and one update."""
    settings: dict[str, Any] = {
        "sparsity": 0.5, "rho": (0.25,), "updates": 1, "epochs": 1, "lr": 0.1, "momentum": 0.0,
        "weight_decay": 0.0, "tolerance": 0.0, "progress": False,
    }  # fmt: skip
    return rh.admm(graph, batches(graph), **(settings | changed))


# --- the algorithm ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "granularity", "sparsity"),
    [
        ((8, 12), rh.Element(), 0.75),
        ((8, 12), rh.Row(), 0.5),
        ((8, 12), rh.Block(2, 3), 0.5),
        ((8, 12), rh.NM(2, 4), 0.5),
        ((6, 4, 3, 3), rh.Pattern("pconv"), 5 / 9),
        ((6, 4, 3, 3), rh.Pattern("rows"), 2 / 3),
        ((6, 4, 3, 3), rh.Kernel(), 0.5),
    ],
    ids=lambda x: str(x).replace(" ", ""),
)
def test_converges_to_the_projection_on_a_quadratic(
    shape: tuple[int, ...], granularity: Granularity, sparsity: float
) -> None:
    """Of all weights of the structure the closest to A minimises 1/2 ||W - A||^2; lambda is the gradient at it."""
    a = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rho, weight = 2.0, a.clone()
    pair = Pair("here", weight, Cut(granularity, (sparsity,), 0), False)
    for _ in range(200):
        weight = (a + rho * (pair.z - pair.u)) / (1 + rho)  # the exact W-step
        torch.testing.assert_close((weight - a) + rho * pair.pull(weight), torch.zeros_like(a))
        primal, dual, churn = pair.update_(weight, rho)
    projected = a * rh.mask(a, granularity, sparsity)
    torch.testing.assert_close(weight, projected)
    torch.testing.assert_close(pair.z, projected)
    torch.testing.assert_close(rho * pair.u, a - projected)
    assert max(primal, dual) < 1e-6 and churn == 0


def test_starts_at_the_projection_and_takes_the_gradient_of_the_penalty() -> None:
    graph = linear()
    weight, bias = graph.model.get_parameter("weight").detach(), graph.model.get_parameter("bias").detach()
    found = prune_in_one_step(graph)
    variable = weight.clone().requires_grad_()
    z = weight * rh.mask(weight, rh.Element(), 0.5)
    x, y = batches(graph)[0]
    loss = F.cross_entropy(F.linear(x, variable, bias), y) + 0.25 / 2 * (variable - z).square().sum()
    (gradient,) = torch.autograd.grad(loss, variable)
    torch.testing.assert_close(found.graph.model.get_parameter("weight").detach(), weight - 0.1 * gradient)


def test_decoupled_with_adam() -> None:
    graph = linear()
    want = {name: p.detach().clone().requires_grad_() for name, p in graph.model.named_parameters()}
    grads = gradients(graph, batches(graph)[0])
    z = (want["weight"] * rh.mask(want["weight"], rh.Element(), 0.5)).detach()
    adam = torch.optim.Adam(want.values(), lr=0.1)
    for name, parameter in want.items():
        parameter.grad = grads[name]
    adam.step()
    moved = want["weight"].detach()
    moved = moved - 0.1 * 0.25 * (moved - z)
    found = prune_in_one_step(
        graph, decoupled=True, optimizer=lambda groups: torch.optim.Adam(groups, lr=0.1)
    )
    torch.testing.assert_close(found.graph.model.get_parameter("weight").detach(), moved)
    torch.testing.assert_close(found.graph.model.get_parameter("bias"), want["bias"])


def test_constrained_weights_do_not_decay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 6), nn.Linear(6, 4))
    graph = rh.trace(model, torch.zeros(2, 12))
    settings = {"sparsity": {"1.weight": 0.5}, "rho": (1e-9,), "lr": 1e-6}
    plain = prune_in_one_step(graph, **settings).graph.model
    decayed = prune_in_one_step(graph, weight_decay=1e5, **settings).graph.model
    torch.testing.assert_close(decayed.get_parameter("1.weight"), plain.get_parameter("1.weight"))
    torch.testing.assert_close(
        decayed.get_parameter("0.weight"), 0.9 * plain.get_parameter("0.weight"), rtol=1e-4, atol=1e-5
    )


def test_residuals_and_churn_as_numpy_says() -> None:
    graph = linear()
    before = graph.model.get_parameter("weight").detach().clone()
    found = prune_in_one_step(graph, lr=1.0)
    after = found.graph.model.get_parameter("weight").detach()
    masks = [rh.mask(w, rh.Element(), 0.5).numpy() for w in (before, after)]
    (z0, z1), w1 = (
        ((w * m for w, m in zip((before.numpy(), after.numpy()), masks, strict=True))),
        after.numpy(),
    )
    (update,) = found.history
    norm = np.linalg.norm(w1)
    assert update.rho == 0.25
    assert update.primal["weight"] == pytest.approx(np.linalg.norm(w1 - z1) / norm, rel=1e-5)
    assert update.dual["weight"] == pytest.approx(0.25 * np.linalg.norm(z1 - z0) / norm, rel=1e-5)
    assert (
        update.churn["weight"] == pytest.approx((masks[0] != masks[1]).mean()) and update.churn["weight"] > 0
    )
    assert torch.equal(found.levels.mask("weight", 0), torch.from_numpy(masks[1]))
    assert found.levels.names == ("0.5",)
    assert torch.equal(graph.model.get_parameter("weight"), before), "the model is left as it was"


def test_lambda_stays_when_rho_changes(tmp_path: Path) -> None:
    graph, path = linear(), tmp_path / "admm.safetensors"
    prune_in_one_step(graph, checkpoint=path)
    first = checkpoints.read(path).network
    prune_in_one_step(graph, checkpoint=path, resume=True, rho=(0.25, 2.5), lr=0.1)
    second = checkpoints.read(path).network
    rescaled = second["1.u"] - (second["0.weight"] - second["1.z"])
    torch.testing.assert_close(2.5 * rescaled, 0.25 * first["1.u"])
    assert first["1.u"].abs().max() > 0.01
    torch.testing.assert_close(second["1.z"], (second["0.weight"] + rescaled) * second["1.kept"])


def test_pattern_and_connectivity() -> None:
    """Two pairs, both of which pull; and a mask that has both structures."""
    graph = convolution()
    weight = graph.model.get_parameter("0.weight").detach().clone()
    pattern = rh.mask(weight, rh.Pattern(), 5 / 9)
    kernels = rh.mask(weight, rh.Kernel(), 0.25, balanced=True)
    gradient = gradients(graph, batches(graph)[0])["0.weight"]
    gradient = gradient + 0.25 * (weight - weight * pattern) + 0.25 * (weight - weight * kernels)
    found = prune_in_one_step(graph, sparsity=5 / 9, granularity=rh.Pattern(), connectivity=0.25)
    after = found.graph.model.get_parameter("0.weight").detach()
    torch.testing.assert_close(after, weight - 0.1 * gradient)
    kept = found.levels.mask("0.weight", 0)
    assert kept.flatten(2).any(2).sum(1).tolist() == [6] * 6
    assert set(kept.flatten(2).sum(2).ravel().tolist()) == {0, 4}
    first = rh.mask(after, rh.Pattern(), 5 / 9)
    assert torch.equal(kept, first & rh.mask(after * first, rh.Kernel(), 0.25, balanced=True))
    assert found.levels.sparsity(0) == pytest.approx(1 - 4 / 9 * 0.75)
    of_each = [
        (after - after * m).norm() / after.norm()
        for m in (first, rh.mask(after, rh.Kernel(), 0.25, balanced=True))
    ]
    assert found.history[0].primal["0.weight"] == pytest.approx(float(max(of_each)), rel=1e-5)


def test_natural_patterns_are_settled_on_the_first_weights() -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    pair = Pair("here", weight, Cut(rh.Pattern("natural", 3), (5 / 9,), 0), False)
    before = {tuple(m.nonzero().ravel().tolist()) for m in pair.kept.flatten(2).flatten(0, 1)}
    pair.update_(weight.flip(0, 1, 2, 3), 1.0)
    after = {tuple(m.nonzero().ravel().tolist()) for m in pair.kept.flatten(2).flatten(0, 1)}
    assert len(before) == 3 and after <= before


def record(rho: float, residual: float, churn: float) -> Update:
    return Update(rho, 1.0, {"w": residual}, {"w": residual / 2}, {"w": churn}, 0.0, 0.0)


def test_when_rho_changes_and_a_run_ends() -> None:
    rhos = (0.1, 1.0)
    moving = record(0.1, 0.5, 0.1)
    assert _next_rho([], rhos, 3, 0.01) == 0.1
    assert _next_rho([moving] * 2, rhos, 3, 0.01) == 0.1
    assert _next_rho([moving] * 3, rhos, 3, 0.01) == 1.0
    assert _next_rho([moving] * 6, rhos, 3, 0.01) is None
    assert _next_rho([moving] * 6, (*rhos, 2.0), 3, 0.01) == 2.0
    assert _next_rho([record(0.1, 0.009, 0.1)], rhos, 3, 0.01) is None
    assert _next_rho([record(0.1, 0.5, 0.0)] * 2, rhos, 3, 0.01) == 0.1, "masks that rest are no end"


# --- runs -------------------------------------------------------------------------------------------------


def image_loader(seed: int = 0) -> rh.ImageLoader:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (48, 8, 5, 5), np.uint8)
    return rh.ImageLoader(
        images, random.integers(0, 4, 48), 16, mean=[0.5] * 8, std=[0.3] * 8, crop=1, shuffle=True
    )


def untimed(found: Pruned) -> list[Update]:
    return [replace(update, seconds=0.0) for update in found.history]


def test_resumed_is_uninterrupted(tmp_path: Path) -> None:
    graph = convolution()
    graph.model[0].register_buffer("unused", torch.zeros(1))  # pyright: ignore[reportIndexIssue, reportCallIssue]
    settings: dict[str, Any] = {
        "sparsity": 5 / 9, "granularity": rh.Pattern("natural"), "connectivity": 0.25, "rho": (0.1, 1.0),
        "updates": 1, "epochs": 2, "tolerance": 0.0, "progress": False,
    }  # fmt: skip
    whole = rh.admm(graph, image_loader(), **settings)
    path = tmp_path / "admm.safetensors"
    rh.admm(graph, image_loader(), checkpoint=path, **(settings | {"rho": (0.1,)}))
    resumed = rh.admm(graph, image_loader(), checkpoint=path, resume=True, **settings)
    assert untimed(resumed) == untimed(whole) and len(whole.history) == 2
    for (name, a), b in zip(
        whole.graph.model.state_dict().items(), resumed.graph.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert torch.equal(whole.levels.tensors["0.weight"], resumed.levels.tensors["0.weight"])
    again = rh.admm(graph, image_loader(), checkpoint=path, resume=True, **settings)
    assert untimed(again) == untimed(whole), "a run that is over is read back"
    with pytest.raises(ValueError, match="exists; want resume=True"):
        rh.admm(graph, image_loader(), checkpoint=path, **settings)
    with pytest.raises(ValueError, match="was written with epochs=2; got epochs=3"):
        rh.admm(graph, image_loader(), checkpoint=path, resume=True, **(settings | {"epochs": 3}))
    other = settings | {"optimizer": torch.optim.Adam}
    with pytest.raises(ValueError, match=r"was written with optimizer=\['SGD', .*; got optimizer=\['Adam', "):
        rh.admm(graph, image_loader(), checkpoint=path, resume=True, **other)


def test_every_update_sees_other_batches() -> None:
    class Watched(rh.ImageLoader):
        def set_epoch(self, epoch: int) -> None:
            seen.append(epoch)
            super().set_epoch(epoch)

    seen: list[int] = []
    images = np.zeros((8, 8, 5, 5), np.uint8)
    loader = Watched(images, np.arange(8) % 4, 8, mean=[0.5] * 8, std=[0.3] * 8)
    rh.admm(convolution(), loader, 0.5, rho=(0.1,), updates=3, epochs=2, tolerance=0.0, progress=False)
    assert seen[:4] == [0, 1, 2, 3] and seen == list(range(len(seen)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rho": ()}, r"got rho=\(\)"),
        ({"rho": (0.1, 0.0)}, "want one or more above 0"),
        ({"updates": 0}, "got updates=0"),
        ({"epochs": 0}, "got epochs=0"),
        ({"tolerance": -1.0}, "got tolerance=-1"),
        ({"connectivity": 1.0}, "got connectivity=1"),
        ({"sparsity": 1.0}, r"admm: 0.weight: got sparsity \(1.0,\)"),
        ({"connectivity": 0.99}, "0.weight: sparsity 0.99 keeps 0 of 8 groups"),
        ({"granularity": {"1.weight": rh.Row()}}, "got the parameter '1.weight'"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune_in_one_step(convolution(), **arguments)


def test_weights_that_cannot_be_constrained() -> None:
    with pytest.raises(
        ValueError, match=r"admm: weight: got shape \(4, 12\) for Pattern.*want a convolution's"
    ):
        prune_in_one_step(linear(), granularity=rh.Pattern("natural"))
    (graph := linear()).model.get_parameter("weight").requires_grad_(False)
    with pytest.raises(ValueError, match="admm: weight: got requires_grad=False"):
        prune_in_one_step(graph)


@pytest.fixture(scope="module")
def digits() -> tuple[Batches, Batches]:
    images = load("digits")
    x, y = torch.from_numpy(images.normalized(images.train_images)), torch.from_numpy(images.train_labels)
    u, v = torch.from_numpy(images.normalized(images.test_images)), torch.from_numpy(images.test_labels)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return [(x[i], y[i]) for i in order.split(64)], [(u, v)]


@pytest.fixture(scope="module")
def trained(digits: tuple[Batches, Batches]) -> Graph:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
    graph = rh.trace(model, torch.zeros(2, 1, 8, 8))
    net = rh.Supernet(graph, rh.uniform(graph, (1.0,)))
    rh.fit(net, digits[0], epochs=8, lr=0.05, progress=False)
    return rh.trace(net.extract(-1), torch.zeros(2, 1, 8, 8))


def accuracy_of(graph: Graph, found: rh.Levels, train: Batches, test: Batches, epochs: int = 0) -> float:
    """Of the model without the pruned weights, trained on or with its norms measured again."""
    net = rh.Supernet(graph, levels=found)
    if epochs:
        rh.fit(net, train, epochs=epochs, lr=0.02, progress=False)
    else:
        rh.recalibrate(net, train)
    for name in found.tensors:
        assert not net[-1].get_parameter(name)[~found.mask(name, -1)].any()
    scores = rh.evaluate(net, test)
    assert isinstance(scores, dict)
    return scores[found.names[-1]]


def test_digits_residuals_fall_and_cutting_costs_less_than_at_once(
    trained: Graph, digits: tuple[Batches, Batches]
) -> None:
    train, test = digits
    skip = ("0.weight",)  # of 9 weights a filter none is redundant
    settings: dict[str, Any] = {"lr": 0.05, "rho": (0.1, 0.3, 1.0), "updates": 3, "epochs": 6}
    found = rh.admm(trained, train, 0.9, skip=skip, progress=False, **settings)
    primal = [max(update.primal.values()) for update in found.history]
    assert primal[-1] < 0.1 * primal[0], primal
    at_once = rh.levels(trained, (0.9,), skip=skip)
    assert found.levels.sparsity(0) == at_once.sparsity(0)
    scores = accuracy_of(found.graph, found.levels, train, test), accuracy_of(trained, at_once, train, test)
    assert scores[0] > 0.92 > 0.75 > scores[1], scores
    assert accuracy_of(found.graph, found.levels, train, test, epochs=3) > 0.93


# --- gradual pruning --------------------------------------------------------------------------------------


def test_gradual_follows_the_schedule_and_ends_at_what_levels_finds() -> None:
    graph = linear(3)
    net = rh.Supernet(graph, rh.uniform(graph, (1.0,)))
    weight = net.shared.get_parameter("weight")
    prune = rh.gradual(net, 0.75, num_steps=10, every=3, start=0.25)
    zeros: list[int] = []

    def watched(step: int, lr: float) -> None:
        prune(step, lr)
        zeros.append(int((weight == 0).sum()))

    rh.fit(
        net,
        batches(graph, 6),
        epochs=2,
        optimizer=lambda groups: torch.optim.AdamW(groups, 0.05, weight_decay=0.1),
        after_step=watched,
        progress=False,
    )
    want, last = [], 0
    for done in range(1, 13):
        if done == 1 or done == 10 or (done % 3 == 0 and done < 10):
            last = round(48 * rh.cubic(done, 10, 0.25, 0.75))
        want.append(last)
    assert zeros == want and zeros[-1] == 36
    levels = rh.levels(rh.trace(net.extract(-1), torch.zeros(2, 12)), (0.75,))
    assert torch.equal(levels.mask("weight", 0), weight != 0)


def test_gradual_rows_of_one_parameter() -> None:
    graph = convolution()
    net = rh.Supernet(graph, rh.uniform(graph, (1.0,)))
    prune = rh.gradual(net, {"0.weight": 0.5}, rh.Row(), num_steps=2, every=1)
    rh.fit(net, batches(graph, 2), epochs=1, after_step=prune, progress=False)
    alive = net.shared.get_parameter("0.weight").flatten(1).any(1)
    assert int(alive.sum()) == 3


def test_gradual_never_gives_weights_back() -> None:
    graph = rh.trace(nn.Linear(10, 10), torch.ones(1, 10))
    net = rh.Supernet(graph, rh.uniform(graph, (1.0,)))
    prune, found = rh.gradual(net, 0.5, num_steps=4, start=0.9, every=1), []
    for step in range(4):
        prune(step, 0.1)
        found.append(float((net[-1].weight == 0).float().mean()))
    assert found == [0.5] * 4


def test_bad_gradual() -> None:
    net = rh.Supernet(graph := linear(), rh.uniform(graph, (1.0,)))
    for wrong in ({"num_steps": 0}, {"num_steps": 1, "every": 0}, {"num_steps": 1, "start": math.inf}):
        with pytest.raises(ValueError, match=r"gradual: got num_steps=\d, every=\d+, start="):
            rh.gradual(net, 0.5, **wrong)
    with pytest.raises(ValueError, match=r"gradual: weight: got sparsity"):
        rh.gradual(net, 1.5, num_steps=3)
    with pytest.raises(ValueError, match=r"gradual: weight: got NM\(n=2, m=4\), which keeps one number"):
        rh.gradual(net, 0.5, rh.NM(2, 4), num_steps=3)
    with pytest.raises(ValueError, match=r"gradual: weight: .*keeps 0 of"):
        rh.gradual(net, 0.999, num_steps=3)
    with pytest.raises(ValueError, match="gradual: got a Linear; want a Supernet"):
        rh.gradual(nn.Linear(2, 2), 0.5, num_steps=3)  # pyright: ignore[reportArgumentType]
