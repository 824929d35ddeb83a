"""The clipped group Lasso, the subnets that it leaves, and the families that do and do not nest."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rheostat as rh
from masked import masked, relative_error
from rheostat.train.graph import Graph
from rheostat.train.lasso import Pruner, penalty
from rheostat_recipes.data import load
from rheostat_recipes.models.resnet import CifarResNet, resnet18, resnet20

QUICK = rh.Lasso(epochs=12, lr=0.02, shrink=6.0, min_units=2)


def cnn(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )


def graph_of(model: nn.Module) -> Graph:
    return rh.trace(model, torch.zeros(2, 1, 8, 8))


@pytest.fixture(scope="module")
def digits() -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    images = load("digits")
    x, y = torch.from_numpy(images.normalized(images.train_images)), torch.from_numpy(images.train_labels)
    u, v = torch.from_numpy(images.normalized(images.test_images)), torch.from_numpy(images.test_labels)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return [(x[i], y[i]) for i in order.split(64)], [(u, v)]


@pytest.fixture(scope="module")
def trained(digits: tuple) -> Graph:
    """A small network that knows the digits, traced."""
    model = cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(8):
        for x, y in digits[0]:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    model.eval()
    accuracy = rh.evaluate(model, digits[1])
    assert isinstance(accuracy, float) and accuracy > 0.93
    return graph_of(model)


def keep_of(graph: Graph, subnet: rh.Subnet) -> np.ndarray:
    return graph.kept(subnet.widths, subnet.units)


# --- equation 2 -------------------------------------------------------------------------------------------


def test_penalty_spares_what_is_above_tau_and_tau_is_a_constant() -> None:
    norms = torch.tensor([1.0, 2.0, 3.0, 6.0], requires_grad=True)
    tau = 0.9 * norms.mean()  # 2.7, and depends on the norms
    value = penalty(norms, tau)
    torch.testing.assert_close(value, torch.tensor(1.0 + 2.0 + 2 * 2.7))
    value.backward()
    assert norms.grad is not None
    assert norms.grad.tolist() == [1, 1, 0, 0]


def test_norms_are_those_of_the_filters() -> None:
    model = cnn()
    graph = graph_of(model)
    pruner = Pruner(graph, model, rh.Lasso())
    norms = pruner.norms()
    first, second, classes = graph.groups
    torch.testing.assert_close(norms[:16], model[0].weight.flatten(1).norm(dim=1))
    torch.testing.assert_close(norms[second.first_unit :][:24], model[3].weight.flatten(1).norm(dim=1))
    assert (first.name, second.name, classes.pinned) == ("0", "3", "model output")
    (gradient,) = torch.autograd.grad(penalty(norms[:16], pruner.tau(norms)[:16]), model[0].weight)
    spared = norms[:16] >= pruner.tau(norms)[:16]
    assert spared.any() and not spared.all()
    assert (gradient[spared] == 0).all()
    want = model[0].weight / norms[:16].view(-1, 1, 1, 1)
    torch.testing.assert_close(gradient[~spared], want[~spared])


def test_coupled_norms_are_over_all_producers() -> None:
    torch.manual_seed(0)
    model = CifarResNet(1, in_channels=1, widths=(4, 6, 8), shortcut="conv1x1_all").eval()
    graph = rh.trace(model, torch.zeros(2, 1, 8, 8))
    norms = Pruner(graph, model, rh.Lasso()).norms().detach()
    block = model.layer2[0]
    (group,) = [
        g for g in graph.groups if any(a.tensor == "layer2.0.conv2.weight" and a.dim == 0 for a in g.axes)
    ]
    assert block.shortcut is not None
    both = torch.cat([block.conv2.weight.flatten(1), block.shortcut[0].weight.flatten(1)], 1)
    torch.testing.assert_close(norms[group.first_unit :][: group.size], both.norm(dim=1))
    (inner,) = [g for g in graph.groups if g.name == "layer2.0.conv1"]
    torch.testing.assert_close(norms[inner.first_unit :][:6], block.conv1.weight.flatten(1).norm(dim=1))


@pytest.mark.parametrize("weight", ["matmul", "embedding"])
def test_producers_of_transposed_weights(weight: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Parameter(torch.randn(5, 8))
            self.table = nn.Embedding(5, 8)
            self.last = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            if weight == "embedding":
                return self.last(F.relu(self.table(x.argmax(1))))
            return self.last(F.relu(x @ self.first))

    torch.manual_seed(0)
    model = Net()
    graph = rh.trace(model, torch.eye(5))
    (group,) = [g for g in graph.groups if g.pinned is None]
    norms = Pruner(graph, model, rh.Lasso()).norms()[group.first_unit :][:8]
    own = model.table.weight if weight == "embedding" else model.first
    torch.testing.assert_close(norms, own.norm(dim=0))


@pytest.mark.parametrize("tau_over", ["alive", "all"])
def test_proximal_step_is_the_closed_form(tau_over: str) -> None:
    model = cnn()
    graph = graph_of(model)
    with torch.no_grad():
        model[0].weight[13] *= 0.5
    pruner = Pruner(graph, model, rh.Lasso(clip=0.9, dead_below=0.0, tau_over=tau_over, min_units=2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for unit in range(12):
        pruner.kill_(unit)
    pruner.hold_(optimizer)
    before = model[0].weight.detach().clone()
    norms = before.flatten(1).norm(dim=1)
    tau = 0.9 * (norms[12:].mean() if tau_over == "alive" else norms.mean())
    assert pruner.shrink_(0.05) == []
    want = before.clone()
    for i in range(12, 16):
        if norms[i] < tau:
            want[i] *= max(0.0, 1 - 0.05 / norms[i])
    torch.testing.assert_close(model[0].weight.detach(), want)
    assert torch.equal(want, before) == (tau_over == "all")


def test_plain_group_lasso_shrinks_all() -> None:
    model = cnn()
    before = model[0].weight.detach().flatten(1).norm(dim=1)
    Pruner(graph_of(model), model, rh.Lasso(clip=None)).shrink_(0.01)
    torch.testing.assert_close(model[0].weight.detach().flatten(1).norm(dim=1), before - 0.01)


def test_zeros_are_sticky_and_take_bias_affine_and_momentum_along() -> None:
    model = cnn().train()
    graph = graph_of(model)
    pruner = Pruner(graph, model, rh.Lasso())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    second = graph.groups[1].first_unit
    for step in range(4):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(8, 1, 8, 8)), torch.arange(8)).backward()
        optimizer.step()
        if step == 1:
            pruner.kill_(3)
            pruner.kill_(second + 5)
        pruner.hold_(optimizer)
    for tensor in (model[0].weight[3], model[1].weight[3], model[1].bias[3], model[3].weight[:, 3]):
        assert (tensor == 0).all()
    for tensor in (model[3].weight[5], model[3].bias[5], model[7].weight[:, 5]):
        assert (tensor == 0).all()
    assert (optimizer.state[model[0].weight]["momentum_buffer"][3] == 0).all()
    assert (model[0].weight[4] != 0).all()
    x = torch.randn(3, 1, 8, 8)
    keep = pruner.keep()
    subnet = rh.Subnet(
        "a", (15, 23, 10), tuple(tuple(np.flatnonzero(k)) for k in np.split(keep[:-1], [16, 40]))
    )
    model.eval()
    net = rh.Supernet(graph, [subnet, rh.uniform(graph, (1.0,))[0]]).eval()
    torch.testing.assert_close(net[0](x), model(x), atol=1e-5, rtol=1e-5)


def test_floors_hold_and_keep_the_strongest() -> None:
    model = cnn()
    norms = model[0].weight.detach().flatten(1).norm(dim=1)
    pruner = Pruner(graph_of(model), model, rh.Lasso(clip=None, min_units=4))
    assert pruner.floors == (4, 4, 10)
    for unit in (weakest := pruner.shrink_(100.0)):
        pruner.kill_(unit)
    assert len(weakest) == 12 + 20
    assert pruner.counts == [4, 4, 10]
    alive = pruner.keep()[:16]
    assert set(np.flatnonzero(alive)) == set(norms.topk(4).indices.tolist())
    torch.testing.assert_close(model[0].weight.detach().flatten(1).norm(dim=1)[alive], norms[alive])
    assert not pruner.free.any()


def test_strength_is_a_budget_of_shrinking() -> None:
    model = cnn()
    pruner = Pruner(graph_of(model), model, rh.Lasso(shrink=5.0, lr=0.01, momentum=0.9))
    mean = torch.cat([model[0].weight.flatten(1).norm(dim=1), model[3].weight.flatten(1).norm(dim=1)]).mean()
    assert pruner.strength(1000) * 1000 * 0.01 / (1 - 0.9) == pytest.approx(5 * float(mean.detach()))
    assert Pruner(graph_of(model), model, rh.Lasso(strength=0.25)).strength(1000) == 0.25


@pytest.mark.parametrize(
    "wrong",
    [
        {"clip": 0.0}, {"tau_over": "some"}, {"dead_below": 1.0}, {"min_width": 2.0}, {"epochs": 0}, {"momentum": 1.0},
        {"shrink": 0.0}, {"strength": -1.0}, {"min_units": 0}, {"lr": 0.0},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_settings(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        rh.Lasso(**wrong)


# --- sampling ---------------------------------------------------------------------------------------------


def test_single_path_hits_its_targets_nested(trained: Graph, digits: tuple) -> None:
    whole = trained.cost(tuple(g.size for g in trained.groups))
    targets = [0.7 * whole.macs, 0.4 * whole.macs, 0.25 * whole.macs]
    before = copy.deepcopy(trained.model.state_dict())
    found = rh.single_path(trained, digits[0], QUICK, macs=targets, progress=False)
    assert all(torch.equal(t, before[n]) for n, t in trained.model.state_dict().items())
    assert [s.name for s in found] == ["subnet1", "subnet2", "subnet3", "subnet4"]
    assert found[-1].widths == tuple(g.size for g in trained.groups)
    for subnet, snapshot, target in zip(found, found.snapshots, sorted(targets), strict=False):
        assert trained.cost(subnet.widths).macs == snapshot.macs
        one_unit = 24 * 16 * 9 * 4 / 16 + 9 * 16  # the dearest unit of this network
        assert target - one_unit <= snapshot.macs <= target
        assert snapshot.strength > 0 and snapshot.clip == 0.98 and 1 <= snapshot.epoch <= QUICK.epochs
    for small, large in pairwise(found):
        assert not (keep_of(trained, small) & ~keep_of(trained, large)).any()
    assert found.seconds >= found.snapshots[0].seconds >= found.snapshots[1].seconds > 0
    net = rh.Supernet(trained, found).eval()
    assert net.nested and net.copied_bytes == 0
    assert [net.cost(k).macs for k in range(4)] == [s.macs for s in found.snapshots] + [whole.macs]
    rh.fit(net, digits[0], epochs=2, lr=0.05, progress=False)
    scores = rh.evaluate(net, digits[1])
    assert isinstance(scores, dict)
    assert scores["subnet4"] > 0.9 and scores["subnet1"] > 0.7


def test_a_place_that_cannot_be_written_is_told_before_training(trained: Graph, tmp_path: Path) -> None:
    class Untouched(list[tuple[Tensor, Tensor]]):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            raise AssertionError("training began")

    with pytest.raises(OSError, match="cannot be written"):
        rh.single_path(
            trained,
            Untouched([(torch.zeros(1), torch.zeros(1))]),
            rh.Lasso(epochs=2),
            parameters=(700,),
            checkpoint=tmp_path / "missing" / "c",
            progress=False,
        )


def test_snapshots_by_epoch_and_resume(trained: Graph, digits: tuple, tmp_path: Path) -> None:
    lasso = rh.Lasso(epochs=8, lr=0.02, strength=0.16, dead_below=0.05)
    whole = rh.single_path(trained, digits[0], lasso, snapshots=(3, 8), progress=False)
    assert [s.epoch for s in whole.snapshots] == [8, 3]
    path = tmp_path / "run.safetensors"
    short = rh.Lasso(epochs=4, lr=0.02, strength=0.16, dead_below=0.05)
    with pytest.raises(ValueError, match="after 4 epochs"):
        rh.single_path(trained, digits[0], short, parameters=(700,), checkpoint=path, progress=False)
    with pytest.raises(ValueError, match="resume=True"):
        rh.single_path(trained, digits[0], lasso, parameters=(700,), checkpoint=path, progress=False)
    with pytest.raises(ValueError, match="was written with loader="):
        rh.single_path(
            trained, tuple(digits[0]), lasso, parameters=(700,), checkpoint=path, resume=True, progress=False
        )
    with pytest.raises(ValueError, match="was written with targets="):
        rh.single_path(
            trained, digits[0], lasso, parameters=(800,), checkpoint=path, resume=True, progress=False
        )
    long = rh.Lasso(epochs=20, lr=0.02, strength=0.16, dead_below=0.05)
    weak = path.read_bytes()
    stronger = rh.Lasso(epochs=20, lr=0.02, strength=0.3, dead_below=0.05)
    sooner = rh.single_path(
        trained, digits[0], stronger, parameters=(700,), checkpoint=path, resume=True, progress=False
    )
    path.write_bytes(weak)
    resumed = rh.single_path(
        trained, digits[0], long, parameters=(700,), checkpoint=path, resume=True, progress=False
    )
    through = rh.single_path(trained, digits[0], long, parameters=(700,), progress=False)
    assert tuple(resumed) == tuple(through)
    assert resumed.snapshots[0].step == through.snapshots[0].step >= sooner.snapshots[0].step
    assert (resumed.snapshots[0].strength, sooner.snapshots[0].strength) == (0.16, 0.3)


def test_compiled_sampling_finds_the_same_subnets(trained: Graph, digits: tuple) -> None:
    macs = (0.5 * trained.cost(tuple(g.size for g in trained.groups)).macs,)
    plain = rh.single_path(trained, digits[0], QUICK, macs=macs, progress=False)
    found = rh.single_path(
        trained, digits[0], QUICK, macs=macs, compile=True, channels_last=True, progress=False
    )
    assert tuple(found) == tuple(plain)
    assert found.snapshots[0].step == plain.snapshots[0].step
    # However many models of one class there are, each is compiled.
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        paths = rh.multi_path(
            trained,
            digits[0],
            QUICK,
            macs=(*macs, 0.6 * macs[0]),
            compile=True,
            channels_last=True,
            progress=False,
        )
    assert paths[1] == dataclasses.replace(found[0], name="subnet2")


def test_multi_path_inside_previous_nests(trained: Graph, digits: tuple) -> None:
    macs = trained.cost(tuple(g.size for g in trained.groups)).macs
    found = rh.multi_path(trained, digits[0], QUICK, macs=(0.7 * macs, 0.4 * macs), progress=False)
    assert not (keep_of(trained, found[0]) & ~keep_of(trained, found[1])).any()
    assert [s.macs <= t for s, t in zip(found.snapshots, (0.4 * macs, 0.7 * macs), strict=True)] == [
        True,
        True,
    ]
    assert found.seconds >= sum(s.seconds for s in found.snapshots) * 0.99
    assert rh.Supernet(trained, found).nested


def test_a_path_inside_another_is_one_of_the_small_model_alone(trained: Graph, digits: tuple) -> None:
    macs = trained.cost(tuple(g.size for g in trained.groups)).macs
    lasso = rh.Lasso(epochs=12, lr=0.02, strength=0.1, min_width=0.0, min_units=2)
    found = rh.multi_path(trained, digits[0], lasso, macs=(0.6 * macs, 0.3 * macs), progress=False)
    units = found[1].units
    assert units is not None
    first, second = list(units[0]), list(units[1])
    alone = cnn()  # cut by hand
    alone[0], alone[1] = nn.Conv2d(1, len(first), 3, 2, 1, bias=False), nn.BatchNorm2d(len(first))
    alone[3], alone[7] = nn.Conv2d(len(first), len(second), 3, 2, 1), nn.Linear(len(second), 10)
    state = trained.model.state_dict()
    cut = {n: t[first] if t.dim() and n.startswith(("0.", "1.")) else t for n, t in state.items()}
    cut["3.weight"], cut["3.bias"] = state["3.weight"][second][:, first], state["3.bias"][second]
    cut["7.weight"] = state["7.weight"][:, second]
    alone.load_state_dict(cut)
    small = rh.single_path(graph_of(alone), digits[0], lasso, macs=(0.3 * macs,), progress=False)
    assert small.snapshots[0].step == found.snapshots[0].step
    assert small[0].units is not None and found[0].units is not None
    assert [first[i] for i in small[0].units[0]] == list(found[0].units[0])
    assert [second[i] for i in small[0].units[1]] == list(found[0].units[1])


def test_paths_inside_others_where_zero_padding_chains_groups(digits: tuple) -> None:
    torch.manual_seed(0)
    graph = graph_of(CifarResNet(1, in_channels=1))
    background = rh.Supernet(graph, rh.uniform(graph, (1.0,)))
    rh.fit(background, digits[0], epochs=3, progress=False)
    graph = graph_of(background.extract(-1))
    assert graph.chained
    macs = graph.cost(tuple(g.size for g in graph.groups)).macs
    lasso = rh.Lasso(epochs=12, lr=0.02, shrink=12.0, min_units=2)
    found = rh.multi_path(graph, digits[0], lasso, macs=(0.8 * macs, 0.6 * macs), progress=False)
    assert [s.macs <= t * macs for s, t in zip(found.snapshots, (0.6, 0.8), strict=True)] == [True, True]
    assert rh.Supernet(graph, found).nested


def test_multi_path_by_strength_and_bisection(trained: Graph, digits: tuple) -> None:
    lasso = rh.Lasso(epochs=4, lr=0.05, min_units=2)
    found = rh.multi_path(
        trained, digits[0], lasso, strengths=(0.3, 0.02), inside_previous=False, progress=False
    )
    assert [s.strength for s in found.snapshots] == [0.3, 0.02]
    assert found.snapshots[0].macs < found.snapshots[1].macs
    macs = trained.cost(tuple(g.size for g in trained.groups)).macs
    start = rh.Lasso(epochs=4, lr=0.05, min_units=2, strength=0.02)
    once, often = (
        rh.multi_path(trained, digits[0], start, macs=(0.5 * macs,), bisections=n, progress=False)
        for n in (4, 6)
    )
    assert once.snapshots[0].macs <= often.snapshots[0].macs <= 0.5 * macs
    assert often.snapshots[0].epoch == 4
    with pytest.raises(ValueError, match="bisections"):
        rh.multi_path(trained, digits[0], start, macs=(0.3 * macs,), bisections=1, progress=False)


@pytest.mark.parametrize(
    "targets",
    [{}, {"macs": (1e9,)}, {"macs": (10,)}, {"macs": (5e3,), "parameters": (1e3,)}, {"snapshots": (99,)},
     {"parameters": (1500, 1500)}],
    ids=str,
)  # fmt: skip
def test_wrong_targets(trained: Graph, digits: tuple, targets: dict) -> None:
    with pytest.raises(ValueError, match="single_path"):
        rh.single_path(trained, digits[0], QUICK, progress=False, **targets)


def test_labels_that_the_model_has_no_output_for(trained: Graph, digits: tuple) -> None:
    x, y = next(iter(digits[0]))
    with pytest.raises(ValueError, match=r"Lasso: epoch 1, step 2: got labels from 99 to 99; want 0 to 9"):
        rh.single_path(trained, [(x, y), (x, y * 0 + 99)], QUICK, progress=False, snapshots=(1,))


def test_plain_group_lasso_is_not_selective_and_clipping_is(trained: Graph, digits: tuple) -> None:
    """Without clipping all filters shrink alike, and what dies dies at once or not at all."""
    spread = {}
    for clip in (None, 0.98):
        lasso = rh.Lasso(clip=clip, epochs=12, lr=0.05, shrink=3.0, min_units=2)
        model = copy.deepcopy(trained.model).train()
        graph = trained
        pruner = Pruner(graph, model, lasso)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
        before = pruner.norms().detach()[:16]
        amount = pruner.strength(12 * len(digits[0])) * 0.05 / 0.1
        for _ in range(3):
            for x, y in digits[0]:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                for unit in pruner.shrink_(amount):
                    pruner.kill_(unit)
                pruner.hold_(optimizer)
        ratio = pruner.norms().detach()[:16] / before
        spread[clip] = (float(ratio.min()), float(ratio.max()), sum(pruner.counts[:2]))
    assert spread[None][1] < 1.0, "every filter shrank"
    assert spread[0.98][1] > 1.0 > spread[0.98][0], "the strong were spared, the weak were not"
    assert spread[0.98][2] < 40, "units died"


# --- families -------------------------------------------------------------------------------------------


def family(graph: Graph, *units: tuple[tuple[int, ...], ...]) -> list[rh.Subnet]:
    whole = tuple(g.size for g in graph.groups)
    last = tuple(range(whole[-1]))
    named = [rh.Subnet(f"s{i}", (*map(len, u), whole[-1]), (*u, last)) for i, u in enumerate(units)]
    return [*named, rh.Subnet("full", whole)]


NESTED = (((1, 5), (0, 9, 23)), ((1, 5, 7), (0, 3, 9, 20, 23)))
FREE = (((1, 5), (0, 9, 23)), ((0, 5, 7), (3, 9, 20, 23)))


def test_named_units_that_nest_become_prefixes() -> None:
    graph = graph_of(model := cnn().eval())
    net = rh.Supernet(graph, family(graph, *NESTED)).eval()
    assert net.nested and [s.units for s in net.subnets] == [None] * 3
    weights = [net[k][0].weight for k in range(3)]
    for k, (units, _) in enumerate(NESTED):
        got = {tuple(row.flatten().tolist()) for row in weights[k]}
        assert got == {tuple(model[0].weight[u].flatten().tolist()) for u in units}


def test_free_family_equals_the_masked_model_and_trains(tmp_path: Path) -> None:
    graph = graph_of(model := cnn().eval())
    net = rh.Supernet(graph, family(graph, *FREE)).eval()
    assert not net.nested and net.copied_bytes > 0
    x = torch.randn(4, 1, 8, 8)

    def reference(k: int) -> nn.Module:
        """The whole model in which everything that the subnet does not keep is zero."""
        full, keep = net.extract(-1), net.graph.kept(net.subnets[k].widths, net.subnets[k].units)
        order = np.concatenate(
            [
                g.first_unit + np.argsort(~keep[g.first_unit : g.first_unit + g.size], kind="stable")
                for g in net.graph.groups
            ]
        )
        for group in net.graph.groups:  # the kept units first, so that the reference for prefixes serves
            new = order[group.first_unit : group.first_unit + group.size] - group.first_unit
            for axis in group.axes:
                tensor = (
                    full.get_parameter(axis.tensor)
                    if axis.tensor in dict(full.named_parameters())
                    else full.get_buffer(axis.tensor)
                )
                tensor.data = tensor.data.index_select(
                    axis.dim, torch.from_numpy(axis.positions[new].ravel())
                )
        return masked(net.graph, full, net[k], net.subnets[k].widths).eval()

    with torch.no_grad():
        assert relative_error(net[-1](x), model(x)) < 1e-5
        for k in range(2):
            assert relative_error(net[k](x), reference(k)(x)) < 1e-5
            assert relative_error(net[k](x), net.extract(k)(x)) < 1e-6
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    first = net.shared[0].weight.detach().clone()
    net.attach_grads_()
    for module in net:
        F.cross_entropy(module(x), torch.arange(4)).backward()
    net.collect_grads_()
    optimizer.step()
    net.refresh_()
    net.eval()
    assert not torch.equal(first, net.shared[0].weight)
    with torch.no_grad():
        for k in range(2):
            assert relative_error(net[k](x), reference(k)(x)) < 1e-5
    with pytest.raises(ValueError, match=r"save: subnet 's[01]' keeps units .* nest"):
        rh.save(net, tmp_path / "free.safetensors")


def indices(subnet: rh.Subnet) -> list[Tensor]:
    """The kept channels of the first and the second convolution, in the order of the supernet."""
    return [torch.tensor(u) for u in (subnet.units or [range(w) for w in subnet.widths])[:2]]


def test_gradients_of_a_free_family_add_up() -> None:
    graph = graph_of(cnn())
    net = rh.Supernet(graph, family(graph, *FREE)).train()
    x, y = torch.randn(6, 1, 8, 8), torch.arange(6)
    alone = [net.extract(k).train() for k in range(3)]
    for module in alone:
        F.cross_entropy(module(x), y).backward()
    for _ in range(2):  # the second step starts from zero again
        net.attach_grads_()
        for module in net:
            F.cross_entropy(module(x), y).backward()
        net.collect_grads_()
    want = torch.zeros_like(net.shared[3].weight)
    for subnet, module in zip(net.subnets, alone, strict=True):
        inputs, outputs = indices(subnet)
        want[outputs[:, None], inputs] += module[3].weight.grad
    torch.testing.assert_close(net.shared[3].weight.grad, want, rtol=1e-5, atol=1e-6)


def test_fit_trains_a_free_family_and_a_copy_is_independent(digits: tuple) -> None:
    graph = graph_of(cnn())
    net = rh.Supernet(graph, family(graph, *FREE))
    twin = copy.deepcopy(net)
    history = rh.fit(net, digits[0], epochs=2, lr=0.05, progress=False)
    assert history[-1].loss["full"] < history[0].loss["full"]
    for k, subnet in enumerate(net.subnets[:-1]):
        inputs, outputs = indices(subnet)
        torch.testing.assert_close(net[k][3].weight, net.shared[3].weight[outputs[:, None], inputs])
    torch.testing.assert_close(twin[-1][3].weight[:, :], twin.extract(-1)[3].weight)
    assert not torch.equal(twin[-1][3].weight, net[-1][3].weight)


def test_widths_alone_beside_named_units() -> None:
    """A count takes the first units of the family's order; the largest need not be the whole model."""
    graph = graph_of(model := cnn().eval())
    named = family(graph, *NESTED)[:2]
    net = rh.Supernet(graph, [rh.Subnet("least", (1, 1, 10)), *named]).eval()
    assert net.nested and [s.widths for s in net.subnets] == [(1, 1, 10), (2, 3, 10), (3, 5, 10)]
    alone = rh.Supernet(graph, [named[1], family(graph)[0]]).eval()
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(net[2](x), alone[0](x))
    weights = [t.detach() for t in (model[0].weight, model[3].weight)]
    norms = [float(weights[0][u].square().sum() + weights[1][:, u].square().sum()) for u in (1, 5)]
    assert torch.equal(net[0][0].weight[0], model[0].weight[(1, 5)[int(np.argmax(norms))]])


def test_the_largest_must_hold_all() -> None:
    graph = graph_of(cnn())
    with pytest.raises(ValueError, match="'s0' keeps units that the last one, 's1'"):
        rh.Supernet(graph, family(graph, *FREE)[:2])
    bad = rh.Subnet("bad", (2, 24, 10), ((0, 99), tuple(range(24)), tuple(range(10))))
    with pytest.raises(ValueError, match="from 0 to 15"):
        rh.Supernet(graph, [bad])


def test_named_subnets_come_smallest_first() -> None:
    graph = graph_of(cnn())
    small, large, full = family(graph, *NESTED)
    for subnets in ([large, small, full], [large, rh.Subnet("counts", (2, 3, 10)), full]):
        with pytest.raises(ValueError, match="smallest first"):
            rh.Supernet(graph, subnets)


def test_nest_leaves_a_nested_family_alone() -> None:
    graph = graph_of(cnn())
    for by in ("union", "votes"):
        nested = rh.nest(graph, family(graph, *NESTED), by)
        assert [s.units for s in nested.subnets[:2]] == [s.units for s in family(graph, *NESTED)[:2]]
        assert nested.added == nested.removed == (0, 0, 0)
        assert nested.before == nested.after


def test_votes_by_hand() -> None:
    """Unit 5 has all votes; 0, 1 and 2 have one fewer each, and 0 is the one that the smallest subnet keeps."""
    graph, every = graph_of(cnn()), tuple(range(24))
    nested = rh.nest(graph, family(graph, ((0, 5), every), ((1, 2, 5), every)), "votes")
    assert [(s.units or ())[0] for s in nested.subnets[:2]] == [(0, 5), (0, 1, 5)]
    assert (nested.added, nested.removed) == ((0, 1, 0), (0, 1, 0))


@pytest.mark.parametrize("by", ["union", "votes"])
@pytest.mark.parametrize("seed", range(5))
def test_nest_repairs_a_free_family(by: str, seed: int) -> None:
    graph, random = graph_of(cnn()), np.random.default_rng(seed)

    def draw(size: int, width: int) -> tuple[int, ...]:
        return tuple(sorted(random.choice(size, width, replace=False).tolist()))

    subnets = family(graph, *((draw(16, w), draw(24, 2 * w)) for w in (3, 5, 9)))
    nested = rh.nest(graph, subnets, by)
    for small, large in pairwise(nested.subnets):
        assert not (keep_of(graph, small) & ~keep_of(graph, large)).any()
    for k, (old, new) in enumerate(zip(subnets, nested.subnets, strict=True)):
        a, b = keep_of(graph, old), keep_of(graph, new)
        assert (nested.added[k], nested.removed[k]) == (int((b & ~a).sum()), int((a & ~b).sum()))
        if by == "union":  # brute force: all that this one or a smaller one keeps
            want = np.any([keep_of(graph, s) for s in subnets[: k + 1]], 0)
            assert np.array_equal(b, want) and nested.removed[k] == 0
        else:
            assert new.widths == old.widths
    votes = np.sum([keep_of(graph, s)[:16] for s in subnets], 0)
    if by == "votes":
        kept = np.zeros(16, bool)
        kept[list((nested.subnets[0].units or ())[0])] = True
        assert votes[kept].min() >= votes[~kept].max()
    assert rh.Supernet(graph, nested.subnets).nested
    assert all(a.macs <= b.macs for a, b in zip(nested.before, nested.after, strict=True))


# --- costs, shortcuts, slimming -----------------------------------------------------------------------------------


def weights(model: nn.Module) -> int:
    return sum(
        p.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear) for p in m.parameters()
    )


def test_parameter_counts_of_the_paper() -> None:
    """Table 3: S-NN 26.83e4 and Ours-M 28.19e4; Table 4: 12.2e6, without norms."""
    assert weights(resnet20()) == 268_346  # the paper leaves out the ten biases
    assert weights(resnet20(shortcut="conv1x1_all")) == 268_346 + 13_568
    assert round((weights(resnet20()) - 10) / 1e4, 2) == 26.83
    assert round((weights(resnet20(shortcut="conv1x1_all")) - 10) / 1e4, 2) == 28.19
    with torch.device("meta"):
        stock, extra = resnet18(), resnet18(shortcut="conv1x1_all")
    assert weights(extra) - weights(stock) == 524_288
    assert round(weights(extra) / 1e6, 3) == 12.204
    assert round((weights(extra) - 1000) / 1e6, 3) == 12.203
    with pytest.raises(ValueError, match="conv1x1_all"):
        resnet20(shortcut="conv3x3")


def test_every_block_has_channels_of_its_own_with_conv1x1_all() -> None:
    graph = rh.trace(resnet20(shortcut="conv1x1_all").eval(), torch.zeros(1, 3, 32, 32))
    prunable = [g for g in graph.groups if g.pinned is None]
    assert len(prunable) == 1 + 9 * 2  # the stem; inside and after each block
    assert not graph.chained
    stock = rh.trace(resnet20().eval(), torch.zeros(1, 3, 32, 32))
    assert len([g for g in stock.groups if g.pinned is None]) == 9 + 3
    assert len(stock.chained) == 3


def test_chained_groups_are_cut_by_count() -> None:
    torch.manual_seed(0)
    graph = rh.trace(CifarResNet(1, in_channels=1, widths=(8, 12, 16)).eval(), torch.zeros(2, 1, 8, 8))
    units = tuple(
        tuple(range(g.size)) if g.pinned else tuple(range(g.size - 5, g.size)) for g in graph.groups
    )
    subnet = rh.Subnet("s", tuple(map(len, units)), units)
    net = rh.Supernet(graph, [subnet, rh.uniform(graph, (1.0,))[0]])
    assert net.nested
    assert net.subnets[0].widths == subnet.widths


def test_slim_meets_its_budgets_and_keeps_what_it_can(trained: Graph, digits: tuple) -> None:
    net = rh.Supernet(trained, rh.uniform(trained, (1.0,)))
    macs = net.cost(-1).macs
    slimmed = rh.slim(
        net, digits[1], (0.3 * macs, 0.6 * macs), step=0.25, round_to=2, calibration=digits[0][:4]
    )
    assert len(slimmed) == 3 and slimmed.nested
    assert slimmed.cost(0).macs <= 0.3 * macs < slimmed.cost(1).macs <= 0.6 * macs
    assert all(w % 2 == 0 for s in slimmed.subnets for w in s.widths)
    x = digits[1][0][0]
    scores, uniform = (
        rh.evaluate(slimmed, digits[1]),
        rh.Supernet(trained, rh.uniform(trained, (0.5, 0.75, 1.0))),
    )
    rh.recalibrate(uniform, digits[0])
    others = rh.evaluate(uniform, digits[1])
    assert isinstance(scores, dict) and isinstance(others, dict)
    assert slimmed.cost(1).macs <= uniform.cost(1).macs * 1.1
    assert scores[slimmed.names[1]] >= others["0.75"] - 0.05
    assert relative_error(slimmed.extract(-1)(x).shape and slimmed[-1](x), slimmed.extract(-1)(x)) < 1e-5
    by_parameters = rh.slim(
        net, digits[1], (2000,), cost=lambda m: sum(p.numel() for p in m.parameters()), step=0.25
    )
    assert by_parameters.cost(0).parameters <= 2000
    with pytest.raises(ValueError, match="slim"):
        rh.slim(net, digits[1], (1.0,), step=0.5)


def test_slim_saves_the_most_where_the_loss_does_not_rise() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.narrow_out = nn.Linear(2, 4), nn.Linear(4, 2)
            self.wide, self.wide_out = nn.Linear(2, 64), nn.Linear(64, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.narrow_out(self.narrow(x).relu()) + self.wide_out(self.wide(x).relu())

    model = Two()
    with torch.no_grad():  # the last quarter of either layer speaks for the wrong class
        for name, size in (("narrow", 4), ("wide", 64)):
            hidden, out = getattr(model, name), getattr(model, name + "_out")
            hidden.weight.fill_(0.5), hidden.bias.zero_(), out.weight.zero_(), out.bias.zero_()
            out.weight[1, -(size // 4) :] = 16 / size
    graph = rh.trace(model, torch.ones(1, 2))
    net = rh.Supernet(graph, rh.uniform(graph, (1.0,)))
    data = [(torch.ones(8, 2), torch.zeros(8, dtype=torch.long))]
    slimmed = rh.slim(net, data, (net.cost(-1).macs - 1,), step=0.25)
    assert slimmed.extract(0).wide.out_features == 48  # 64 operations for the same loss, not 4
    assert slimmed.extract(0).narrow.out_features == 4


def test_slim_refuses_budgets_of_one_name(trained: Graph, digits: tuple) -> None:
    net = rh.Supernet(trained, rh.uniform(trained, (1.0,)))
    with pytest.raises(
        ValueError, match=r"slim: got budgets=\(8313.6, 8313.601\); want their first six digits"
    ):
        rh.slim(net, digits[1], (8313.6, 8313.601))


def test_slim_refuses_what_is_no_number_and_levels(trained: Graph, digits: tuple) -> None:
    net = rh.Supernet(trained, rh.uniform(trained, (1.0,)))
    x, y = digits[1][0]
    broken = x.clone()
    broken[0] = math.nan
    with pytest.raises(ValueError, match="slim: got a loss that is no number"):
        rh.slim(net, [(broken, y)], (8000.0,), calibration=digits[0][:1])
    with pytest.raises(ValueError, match="slim: got cost=nan"):
        rh.slim(net, digits[1], (8000.0,), cost=lambda _: math.nan)
    with pytest.raises(ValueError, match=r"slim: got budgets=\(nan,\)"):
        rh.slim(net, digits[1], (math.nan,))
    pruned = rh.Supernet(trained, levels=rh.levels(trained, (0.5, 0.25)))
    with pytest.raises(ValueError, match="slim: got a supernet with levels"):
        rh.slim(pruned, digits[1], (8000.0,))


@pytest.mark.parametrize("wrong", [{"epochs": 1.5}, {"weight_decay": -1.0}, {"weight_decay": math.nan}])
def test_settings_of_a_lasso_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"Lasso: got {next(iter(wrong))}="):
        rh.Lasso(**wrong)


def test_moments_and_searches_that_are_none(trained: Graph, digits: tuple) -> None:
    with pytest.raises(ValueError, match=r"got snapshots=\(2.5,\)"):
        rh.single_path(trained, digits[0], rh.Lasso(epochs=3), snapshots=(2.5,))
    with pytest.raises(ValueError, match="got strengths= and a target or bisections="):
        rh.multi_path(trained, digits[0], strengths=(0.1,), bisections=3)
    with pytest.raises(ValueError, match="nest: got no subnets"):
        rh.nest(trained, [])


def test_slim_meets_a_budget_measured_in_the_engine(trained: Graph, digits: tuple, tmp_path: Path) -> None:
    # Of packed bytes, which grow by panels as milliseconds do, but need no clock; every try has milliseconds too.
    net, x, measured = rh.Supernet(trained, rh.uniform(trained, (1.0,))), digits[1][0][0], []
    milliseconds = rh.engine_ms(np.zeros((64, 1, 8, 8), np.float32), repeats=1)

    def packed(module: nn.Module) -> int:
        assert milliseconds(module) > 0
        graph = rh.trace(module, x)
        rh.save(rh.Supernet(graph, rh.uniform(graph, (1.0,))), tmp_path / "small.safetensors")
        with rh.Engine(tmp_path / "small.safetensors") as engine:
            measured.append(engine.weight_bytes)
        return measured[-1]

    budget = 0.8 * packed(net.extract(-1))
    slimmed = rh.slim(net, digits[1], (budget,), cost=packed, step=0.25, round_to=4)
    assert packed(slimmed.extract(0)) <= budget < packed(slimmed.extract(-1)) and len(measured) > 4
    assert all(w % 4 == 0 for w in slimmed.subnets[0].widths[:-1])
