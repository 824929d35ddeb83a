"""Scores of weights: streamed calibration gives what stored activations and gradients of every batch give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rheostat as rh
from rheostat.train.graph import Graph


class Net(nn.Module):
    """Strides, padding of two kinds, groups, a layer that runs twice, and one that takes sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, (3, 1), padding="same", dilation=(2, 1), groups=4)
        self.conv3 = nn.Conv2d(12, 12, 3, padding=1, padding_mode="circular", bias=False)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv1(x)))
        y = F.relu(self.conv2(y))
        y = self.conv3(F.relu(self.conv3(y)))
        return self.fc(self.drop(y.flatten(2).transpose(1, 2))).mean(1)


@pytest.fixture
def graph() -> Graph:
    torch.manual_seed(0)
    net = Net()
    net(torch.randn(16, 3, 8, 8))  # the norm has lived
    return rh.trace(net.eval(), torch.randn(2, 3, 8, 8))


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 3, 8, 8, generator=random), torch.randint(5, (n,), generator=random))
        for n in (4, 6, 3)
    ]


def stored_norms(graph: Graph, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """L2 norms of the columns of all inputs, kept and unfolded: what the paper writes."""
    met: dict[str, list[Tensor]] = {}
    hooks = []
    for name, layer in graph.model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):

            def keep(layer: nn.Module, args: tuple[Tensor], _: Tensor, name: str = name) -> None:
                met.setdefault(name, []).append(args[0])

            hooks.append(layer.register_forward_hook(keep))
    with torch.no_grad():
        for x, _ in batches:
            graph.model(x)
    for hook in hooks:
        hook.remove()
    norms = {}
    for name, inputs in met.items():
        layer = graph.model.get_submodule(name)
        if isinstance(layer, nn.Linear):
            columns = torch.cat([x.flatten(0, -2) for x in inputs])
            norms[name] = columns.norm(dim=0).expand_as(layer.weight)
            continue
        assert isinstance(layer, nn.Conv2d)
        total = torch.zeros(layer.in_channels, *layer.kernel_size)
        for x in inputs:
            x = F.pad(
                x,
                layer._reversed_padding_repeated_twice,
                mode="circular" if layer.padding_mode == "circular" else "constant",
            )
            unfolded = F.unfold(
                x, layer.kernel_size, layer.dilation, 0, layer.stride
            )  # [N, in * kernel, places]
            total += unfolded.square().sum((0, 2)).view_as(total)
        own = total.sqrt().unflatten(0, (layer.groups, -1))  # [groups, in / groups, height, width]
        norms[name] = own.repeat_interleave(layer.out_channels // layer.groups, 0)
    return norms


def test_wanda_is_what_stored_activations_give(graph: Graph, batches: list) -> None:
    before = {name: tensor.clone() for name, tensor in graph.model.state_dict().items()}
    outputs = graph.model(batches[0][0])
    scores = rh.wanda(graph, batches)
    norms = stored_norms(graph, batches)
    assert {f"{name}.weight" for name in norms} == set(scores)
    for name, norm in norms.items():
        weight = graph.model.get_parameter(f"{name}.weight").detach()
        torch.testing.assert_close(scores[f"{name}.weight"], weight.abs() * norm, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(t, before[name]) for name, t in graph.model.state_dict().items())
    torch.testing.assert_close(graph.model(batches[0][0]), outputs)
    assert not any(m._forward_hooks for m in graph.model.modules())


def test_wanda_prunes_what_meets_nothing(graph: Graph, batches: list) -> None:
    """A channel that is always zero is dropped first, however large its weights."""
    with torch.no_grad():
        graph.model.get_parameter("conv1.weight")[:, 1] *= 100
    silent = [(x * torch.tensor([1.0, 0.0, 1.0]).view(1, 3, 1, 1), y) for x, y in batches]
    only = {"conv1.weight": rh.Channel()}
    found = rh.levels(graph, (1 / 3,), only, scores=rh.wanda(graph, silent))
    assert found.mask("conv1.weight", 0).any((0, 2, 3)).tolist() == [True, False, True]
    assert rh.levels(graph, (1 / 3,), only).mask("conv1.weight", 0)[:, 1].all()


def test_taylor_is_the_mean_over_batches(graph: Graph, batches: list) -> None:
    model = graph.model
    model.train()
    model.get_parameter("fc.weight").grad = mark = torch.ones(5, 12)
    scores = rh.taylor(graph, batches, batches=2)
    assert model.training and model.get_parameter("fc.weight").grad is mark
    assert model.get_parameter("conv1.weight").grad is None
    model.eval()
    for name in ("conv1.weight", "conv2.weight", "conv3.weight", "fc.weight"):
        weight = model.get_parameter(name)
        gradients = [torch.autograd.grad(F.cross_entropy(model(x), y), weight)[0] for x, y in batches[:2]]
        want = sum((weight.detach() * g).abs() for g in gradients) / 2
        torch.testing.assert_close(scores[name], want)
    assert scores.keys() == {"conv1.weight", "conv2.weight", "conv3.weight", "fc.weight"}


def test_taylor_predicts_the_loss_without_a_weight(graph: Graph, batches: list) -> None:
    scores = rh.taylor(graph, batches[:1])["fc.weight"]
    x, y = batches[0]
    weight = graph.model.get_parameter("fc.weight")
    with torch.no_grad():
        loss = F.cross_entropy(graph.model(x), y)
        for index in ((0, 0), (3, 7), (4, 11)):
            value = float(weight[index])
            weight[index] = value * (1 - 1e-2)
            change = abs(float(F.cross_entropy(graph.model(x), y) - loss)) / 1e-2
            weight[index] = value
            assert change == pytest.approx(float(scores[index]), rel=0.05, abs=2e-5)


def test_no_batch(graph: Graph, batches: list) -> None:
    for criterion in (rh.taylor, rh.wanda):
        with pytest.raises(ValueError, match="got no batch; want at least one"):
            criterion(graph, [])
        with pytest.raises(ValueError, match="got no batch"):
            criterion(graph, batches, 0)


def test_layers_without_a_norm_have_no_score() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc = nn.Embedding(7, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.table(x).mean(1))

    graph = rh.trace(Embedded(), torch.zeros(2, 5, dtype=torch.long))
    scores = rh.wanda(graph, [(torch.ones(4, 5, dtype=torch.long), torch.zeros(4))])
    assert list(scores) == ["fc.weight"]
    with pytest.raises(ValueError, match=r"table\.weight: got no score for it; want \(7, 4\), or skip"):
        rh.levels(graph, (0.5,), scores=scores)
