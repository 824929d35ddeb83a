"""`Supernet`: sorting keeps the function, every view is the subnet it should be, training reaches the weights."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

import rheostat as rh
from cases import CASES, Case, Example, call, flatten_cnn
from masked import gather, kept, leaves, loss_of, masked, owners, relative_error, scatter, tensors
from random_nets import random_nets
from rheostat.train.graph import Graph

WIDTHS = (0.25, 0.5, 0.75, 1.0)
PARAMS = [pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else []) for case in CASES]
BY_NAME = {case.name: case for case in CASES}


@dataclass(frozen=True)
class Built:
    """A case's original model and its supernet at four widths; tests only read it."""

    case: Case
    model: nn.Module
    graph: Graph
    net: rh.Supernet

    def fresh(self) -> rh.Supernet:
        """Another supernet of the same graph, to be changed."""
        return rh.Supernet(self.graph, rh.uniform(self.graph, WIDTHS)).eval()


def supernet(case: Case, widths: tuple[float, ...] = WIDTHS) -> rh.Supernet:
    graph = rh.trace(case.model(), case.inputs())
    return rh.Supernet(graph, rh.uniform(graph, widths)).eval()


@pytest.fixture(scope="module", params=PARAMS)
def built(request: pytest.FixtureRequest) -> Built:
    case: Case = request.param
    model = case.model()
    graph = rh.trace(model, case.inputs())
    return Built(case, model, graph, rh.Supernet(graph, rh.uniform(graph, WIDTHS)).eval())


def assert_subnets_are_right(net: rh.Supernet, inputs: Example, tolerance: float = 1e-4) -> None:
    """Every view equals its extracted copy, and the full model with everything removed set to zero."""
    full = net.extract(-1)
    with torch.no_grad():
        for k, subnet in enumerate(net.subnets):
            got = call(net[k], inputs)
            assert relative_error(got, call(net.extract(k), inputs)) <= 1e-6, (
                f"{subnet.name}: view and extracted copy"
            )
            want = call(masked(net.graph, full, net[k], subnet.widths), inputs)
            error = relative_error(got, want)
            assert error <= tolerance, f"{subnet.name}: {error:.1e} from the masked full model"


# --- what a supernet is -----------------------------------------------------------------------------------


def test_sorting_keeps_the_function(built: Built) -> None:
    inputs = built.case.inputs(seed=1)
    with torch.no_grad():
        want = call(built.model, inputs)
        assert relative_error(call(built.net[-1], inputs), want) < 2e-5
        assert relative_error(call(built.net, inputs), want) < 2e-5


def test_the_model_itself_is_not_touched(built: Built) -> None:
    model = built.case.model()
    before = {name: tensor.clone() for name, tensor in tensors(model).items()}
    graph = rh.trace(model, built.case.inputs())
    rh.Supernet(graph, rh.uniform(graph, (0.5, 1.0)))
    for name, tensor in tensors(model).items():
        assert torch.equal(tensor, before[name]), name


def test_views_are_the_extracted_and_the_masked_model(built: Built) -> None:
    assert_subnets_are_right(built.net, built.case.inputs(seed=2))


def test_expected_units_stay_prunable(built: Built) -> None:
    for axis, size in built.case.units.items():
        found = owners(built.net.graph, axis)
        assert [(g.size, g.pinned) for g in found] == [(size, None)], f"{axis}: {found}"


def test_expected_pins_have_reasons(built: Built) -> None:
    for axis, reason in built.case.pinned.items():
        found = owners(built.net.graph, axis)
        assert found, axis
        for group in found:
            assert group.pinned is not None or group.size == 1, f"{axis} is prunable"
            assert reason in (group.pinned or ""), f"{axis}: {group.pinned}"


def test_pinned_groups_stay_whole(built: Built) -> None:
    for subnet in built.net.subnets:
        for group, width in zip(built.net.graph.groups, subnet.widths, strict=True):
            assert width == group.size or group.pinned is None, group.name


def test_widths_and_shapes_nest(built: Built) -> None:
    net = built.net
    for small, large in pairwise(net.subnets):
        assert all(a <= b for a, b in zip(small.widths, large.widths, strict=True))
    assert net.subnets[-1].widths == tuple(g.size for g in net.graph.groups)
    for k, subnet in enumerate(net.subnets):
        keep = kept(net.graph, subnet.widths)
        full, small = tensors(net[-1]), tensors(net[k])
        assert small.keys() == full.keys()
        for name, tensor in small.items():
            shape = list(full[name].shape)
            for dim, indices in keep.get(name, {}).items():
                shape[dim] = len(indices)
            assert list(tensor.shape) == shape, f"{subnet.name}: {name}"


def test_shared_values_are_the_full_ones(built: Built) -> None:
    net = built.net
    full = tensors(net[-1])
    for k, subnet in enumerate(net.subnets):
        keep = kept(net.graph, subnet.widths)
        for name, tensor in tensors(net[k]).items():
            assert torch.equal(tensor, gather(full[name], keep.get(name, {}))), f"{subnet.name}: {name}"


def test_costs_increase(built: Built) -> None:
    net = built.net
    costs = [net.cost(k) for k in range(len(net))]
    prunable = any(g.pinned is None and g.size > 3 for g in net.graph.groups)
    for k, (a, b) in enumerate(pairwise(costs)):
        differ = net.subnets[k].widths != net.subnets[k + 1].widths
        assert (a.parameters < b.parameters) == differ
        assert a.macs <= b.macs
        assert a.size_bytes <= b.size_bytes
    assert not prunable or costs[0].parameters < costs[-1].parameters
    for k, cost in enumerate(costs):
        module = net.extract(k)
        assert cost.parameters == sum(p.numel() for p in module.parameters())
        stored = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
        assert cost.size_bytes == sum(t.numel() * t.element_size() for t in stored)
        if built.case.name != "torch_transformer":  # torch's counter does not look into its fused layer
            assert cost.macs == counted_macs(module.requires_grad_(False), built.case.inputs())


def counted_macs(module: nn.Module, example: Example) -> int:
    """Multiply-accumulates of one sample by torch's own counter."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        call(module, example)
    return counter.get_total_flops() // 2 // len(leaves(example)[0])


def test_extracted_is_independent_and_loadable(built: Built) -> None:
    net = built.net
    for k in (0, len(net) - 1):
        small = net.extract(k)
        assert type(small) is type(built.model)
        pointers = {t.untyped_storage().data_ptr() for t in net.state_dict().values() if t.numel()}
        own = [t for t in tensors(small).values() if t.numel()]
        assert not pointers & {t.untyped_storage().data_ptr() for t in own}
        assert all(t.is_contiguous() for t in own)
        assert small.state_dict().keys() == built.model.state_dict().keys()
        again = net.extract(k)
        again.load_state_dict({name: t.clone() for name, t in small.state_dict().items()})
        originals = dict(built.model.named_parameters())
        assert small.training == net.training
        for name, parameter in small.named_parameters():
            assert parameter.requires_grad == originals[name].requires_grad


# --- gradients --------------------------------------------------------------------------------------------


def through_slicing(net: rh.Supernet, inputs: Example) -> dict[str, Tensor]:
    """The summed gradient of all subnets by plain autograd: parameters sliced from full leaf tensors."""
    leaf = {name: t.detach().clone().requires_grad_(t.requires_grad) for name, t in net.named_parameters()}
    total = torch.zeros(())
    for k, subnet in enumerate(net.subnets):
        keep = kept(net.graph, subnet.widths)
        small = net.extract(k)
        parameters = {}
        for name, _ in small.named_parameters():
            own = leaf.get(f"{name}@{k}")
            parameters[name] = gather(leaf[name], keep.get(name, {})) if own is None else own
        args = () if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple) else (inputs,)
        kwargs = inputs if isinstance(inputs, dict) else {}
        torch.manual_seed(k)
        total = total + loss_of(torch.func.functional_call(small, parameters, args, kwargs))
    names = [name for name, tensor in leaf.items() if tensor.requires_grad]
    grads = torch.autograd.grad(total, [leaf[n] for n in names], allow_unused=True)
    found = {n: g for n, g in zip(names, grads, strict=True) if g is not None}
    return {n: found.get(n, torch.zeros_like(t)) for n, t in leaf.items()}


def step_gradients(net: rh.Supernet, inputs: Example) -> dict[str, Tensor]:
    """The summed gradient of all subnets by the training protocol."""
    net.attach_grads_()
    for k in range(len(net)):
        torch.manual_seed(k)
        loss_of(call(net[k], inputs)).backward()
    net.collect_grads_()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in net.named_parameters()}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_gradients_equal_autograd_through_slicing(built: Built, training: bool) -> None:
    net = built.fresh()
    if not any(p.requires_grad for p in net.parameters()):
        pytest.skip("all parameters are frozen")
    net.train(training)
    inputs = built.case.inputs(seed=3)
    want = through_slicing(net, inputs)
    for _ in range(2):  # the second step reuses the gradients of the first
        got = step_gradients(net, inputs)
        assert got.keys() == want.keys()
        scale = max(float(t.abs().max()) for t in want.values())
        for name, grad in got.items():
            torch.testing.assert_close(
                grad, want[name], rtol=1e-4, atol=2e-6 * scale, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_after_an_optimizer_step_views_follow(built: Built) -> None:
    net = built.fresh()
    inputs = built.case.inputs(seed=4)
    if not any(p.requires_grad for p in net.parameters()):
        net.attach_grads_()
        assert not any(call(m, inputs).requires_grad for m in net)
        net.collect_grads_()
        return
    before = {name: t.clone() for name, t in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    net.train()
    for _ in range(2):
        step_gradients(net, inputs)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        net.refresh_()
    net.eval()
    after = net.state_dict()
    assert any(not torch.equal(t, before[name]) for name, t in after.items())
    assert_subnets_are_right(net, inputs)
    shared = dict(net[-1].named_parameters())
    for k, subnet in enumerate(net.subnets[:-1]):
        keep = kept(net.graph, subnet.widths)
        for name, parameter in net[k].named_parameters():
            if f"{name}@{k}" not in after:
                assert torch.equal(parameter, gather(shared[name], keep.get(name, {}))), name
            else:
                assert torch.equal(parameter, after[f"{name}@{k}"]), name


def test_private_norms_are_independent() -> None:
    net = supernet(BY_NAME["preact"])
    assert "1.bn1.running_mean@0" in net.state_dict()
    assert "1.bn1.weight@2" in net.state_dict()
    assert "1.bn1.weight@3" not in net.state_dict()
    assert "1.conv1.weight@0" not in net.state_dict()
    before = [m.get_buffer("1.bn1.running_mean").clone() for m in net]
    net.train()
    net[1](BY_NAME["preact"].inputs(seed=5))
    changed = [
        not torch.equal(b, m.get_buffer("1.bn1.running_mean")) for b, m in zip(before, net, strict=True)
    ]
    assert changed == [False, True, False, False]


class TwoNames(nn.Module):
    """Modules that are attributes and, for the forward, parts of a sequence too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.net = nn.Sequential(self.conv, self.norm, nn.ReLU())
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.net(x).mean((2, 3)))


def test_norms_of_two_names_are_private_too() -> None:
    graph = rh.trace(TwoNames(), torch.randn(2, 3, 8, 8))
    net = rh.Supernet(graph, rh.uniform(graph, (0.5, 1.0)))
    tensors = [dict(m.norm.named_parameters()) | dict(m.norm.named_buffers()) for m in net]  # type: ignore[union-attr]
    for name, tensor in tensors[0].items():
        assert tensor is not tensors[1][name], name
    batches = [(torch.randn(8, 3, 8, 8) + 1, None) for _ in range(3)]
    alone = [net.extract(k) for k in range(2)]
    rh.recalibrate(net, batches)
    for small, module in zip(net, alone, strict=True):
        rh.recalibrate(module, batches)
        for name, buffer in module.named_buffers():
            torch.testing.assert_close(small.get_buffer(name), buffer)


@pytest.mark.parametrize("train", [rh.fit, rh.finetune])
def test_everything_of_two_names_is_trained(train: Any) -> None:
    graph = rh.trace(TwoNames(), torch.randn(2, 3, 8, 8))
    net = rh.Supernet(graph, rh.uniform(graph, (0.5, 1.0)))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    train(net, [(torch.randn(8, 3, 8, 8), torch.arange(8) % 4)] * 4, epochs=2, lr=0.1)
    moved = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    # The bias in front of a norm moves nothing, and fine-tuning leaves statistics as they are.
    assert {n for n in before if n.endswith(("weight", "weight@0")) or n.startswith("fc.")} <= moved


def test_a_parameter_is_frozen_and_freed_for_all_subnets_alike() -> None:
    graph = rh.trace(TwoNames(), torch.randn(2, 3, 8, 8))
    x = torch.randn(8, 3, 8, 8)

    def gradient(net: rh.Supernet) -> Tensor:
        net.attach_grads_()
        for module in net:
            module(x).square().mean().backward()
        net.collect_grads_()
        return net[-1].get_parameter("conv.weight").grad  # type: ignore[return-value]

    net = rh.Supernet(graph, rh.uniform(graph, (0.5, 1.0)))
    want = gradient(net).clone()
    parameter = net[-1].get_parameter("conv.weight")
    parameter.requires_grad_(False)
    assert gradient(net) is None
    assert net[0].get_parameter("conv.weight").grad is None
    parameter.requires_grad_(True)
    torch.testing.assert_close(gradient(net), want)


def test_parameters_are_each_tensor_once(built: Built) -> None:
    parameters = list(built.net.parameters())
    assert len({id(p) for p in parameters}) == len(parameters)
    names = {name for name, _ in built.net.named_parameters()}
    assert names <= built.net.state_dict().keys()
    spans = sorted(
        (p.data_ptr(), p.data_ptr() + p.numel() * p.element_size()) for p in parameters if p.numel()
    )
    assert all(a[1] <= b[0] for a, b in pairwise(spans)), "two parameters overlap"
    plain = {name for name, _ in built.model.named_parameters()}
    assert {name for name in names if "@" not in name} == plain


# --- the module protocol ----------------------------------------------------------------------------------


def test_names_and_selection() -> None:
    case = BY_NAME["flatten_cnn"]
    net, inputs = supernet(case), case.inputs()
    assert len(net) == 4
    assert net.names == tuple(s.name for s in net.subnets) == ("0.25", "0.5", "0.75", "1.0")
    assert [m is net[k] for k, m in enumerate(net)] == [True] * 4
    assert net["0.5"] is net[1]
    assert net[-1] is net[3] is net["1.0"]
    assert net.active == 3
    for key in (1, "0.5"):
        net.select(key)
        assert net.active == 1
        assert torch.equal(net(inputs), net[1](inputs))
    net.select(-1)
    assert net.active == 3


@pytest.mark.parametrize("key", ["nope", 4, -5, 100])
def test_unknown_subnet_is_a_value_error(key: int | str) -> None:
    net = supernet(BY_NAME["flatten_cnn"])
    for use in (net.select, net.__getitem__, net.extract, net.cost):
        with pytest.raises((ValueError, IndexError), match=str(key)):
            use(key)
    assert net.active == 3


def test_state_dict_round_trip(built: Built) -> None:
    net, inputs = built.net, built.case.inputs(seed=6)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    other = built.fresh()
    with torch.no_grad():
        for tensor in other.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(0.5).add_(0.1)
        other.load_state_dict(state)
        for name, tensor in other.state_dict().items():
            assert torch.equal(tensor, state[name]), name
        for k in range(len(net)):
            for a, b in zip(leaves(call(net[k], inputs)), leaves(call(other[k], inputs)), strict=True):
                assert torch.equal(a, b)


def test_train_and_eval_reach_every_subnet(built: Built) -> None:
    net = built.fresh()
    for mode in (True, False):
        assert net.train(mode) is net
        assert {m.training for small in net for m in small.modules()} == {mode}


def test_double_precision(built: Built) -> None:
    case, net = built.case, built.fresh()
    if case.name.startswith("hf_"):
        pytest.skip("the library builds its masks in the configured dtype")
    assert net.to(torch.float64) is net
    inputs = to_double(case.inputs(seed=7))
    if case.name == "constant_tensor":
        pytest.skip("the model itself adds a float32 constant")
    for small in net:
        assert {p.dtype for p in small.parameters()} == {torch.float64}
    assert_subnets_are_right(net, inputs, tolerance=1e-9)
    pointers = {t.untyped_storage().data_ptr() for t in net[-1].parameters()}
    for name, parameter in net[0].named_parameters():
        keep = kept(net.graph, net.subnets[0].widths).get(name, {})
        one_range = all((np.diff(indices) == 1).all() for indices in keep.values())
        if one_range and f"{name}@0" not in net.state_dict():
            assert parameter.untyped_storage().data_ptr() in pointers, (
                f"{name} no longer aliases the shared tensor"
            )


def to_double(example: Example) -> Example:
    floating = lambda x: isinstance(x, Tensor) and x.is_floating_point()  # noqa: E731
    return tree_map(lambda x: x.double() if floating(x) else x, example)


@pytest.mark.parametrize("name", ["preact", "densenet", "shufflenet_view", "transposed"])
@pytest.mark.parametrize("when", ["model", "net"])
def test_channels_last(name: str, when: str) -> None:
    case = BY_NAME[name]
    model = case.model()
    if when == "model":
        model.to(memory_format=torch.channels_last)
    graph = rh.trace(model, case.inputs())
    net = rh.Supernet(graph, rh.uniform(graph, WIDTHS)).eval()
    if when == "net":
        net.to(memory_format=torch.channels_last)
    inputs = case.inputs(seed=11).to(memory_format=torch.channels_last)
    assert_subnets_are_right(net, inputs)
    got, want = step_gradients(net, inputs), through_slicing(net, inputs)
    for key, grad in got.items():
        torch.testing.assert_close(grad, want[key], rtol=1e-4, atol=1e-5)


def test_deep_copy_is_a_supernet_of_its_own() -> None:
    case = BY_NAME["densenet"]
    net = supernet(case)
    other, inputs = copy.deepcopy(net), case.inputs(seed=12)
    before = [call(m, inputs) for m in net]
    step_gradients(other, inputs)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.sub_(0.1 * parameter.grad)
    other.refresh_()
    assert_subnets_are_right(other, inputs)
    for k, output in enumerate(before):
        assert torch.equal(call(net[k], inputs), output)
        assert not torch.equal(call(other[k], inputs), output)


def test_aliases_share_storage() -> None:
    net = supernet(BY_NAME["preact"])
    with torch.no_grad():
        net[-1].get_parameter("1.conv1.weight")[0, 0] += 1
    assert net[0].get_parameter("1.conv1.weight")[0, 0].equal(net[-1].get_parameter("1.conv1.weight")[0, 0])
    assert (
        net[0].get_parameter("1.conv1.weight").data_ptr()
        == net[-1].get_parameter("1.conv1.weight").data_ptr()
    )


@pytest.mark.parametrize(
    "name", ["constant_pick", "constant_head", "constant_slice", "middle_pad", "shufflenet_v2"]
)
@pytest.mark.parametrize("width", [0.05, 0.1, 0.34, 0.6, 0.9])
def test_odd_widths_of_index_constants(name: str, width: float) -> None:
    """Constants in Python fit at some widths and not at others: whatever is kept computes the right function."""
    case = BY_NAME[name]
    assert_subnets_are_right(supernet(case, (width, 1.0)), case.inputs(seed=10))


class ZeroGate(nn.Module):
    """A branch that divides by its width and is multiplied by a scalar that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.fc0, self.fc1, self.fc2, self.head = (
            nn.Linear(a, b) for a, b in ((6, 12), (12, 16), (16, 12), (12, 3))
        )
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc0(x)
        y = torch.relu(self.fc1(x))
        return self.head(x + self.gate * self.fc2(y / y.shape[1] ** 0.5))


def test_a_branch_that_starts_at_zero_is_checked_too() -> None:
    graph = rh.trace(ZeroGate(), torch.randn(4, 6))
    with pytest.warns(UserWarning, match=r"channel group fc1 stays whole \(its subnet"):
        net = rh.Supernet(graph, rh.uniform(graph, (0.5, 1.0)))
    (group,) = owners(net.graph, "fc1.weight")
    assert group.pinned is not None


class Average(nn.Module):
    """Divides by its width a value that is zero wherever the input is: no layer before it has a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.fc0, self.fc1 = nn.Linear(6, 12, bias=False), nn.Linear(12, 12, bias=False)
        self.head = nn.Linear(12, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc0(x)
        return self.head(torch.relu(self.fc1(x / x.shape[1])))


class Root(nn.Module):
    """Has no finite output for a negative input."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.fc(x.sqrt())))


class Numbers(nn.Module):
    """Wants whole numbers of at least 0, as floats."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc, self.head = nn.Embedding(2, 6), nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.fc(self.embed(x.long()).mean(1))))


def test_zeros_as_an_example_tell_as_much_as_noise() -> None:
    for example in (torch.zeros(4, 6), torch.randn(4, 6)):
        graph = rh.trace(Average(), example)
        net = rh.Supernet(graph, rh.uniform(graph, (0.5, 1.0)))
        (group,) = owners(net.graph, "fc0.weight")
        assert "something else" in (group.pinned or "")
        assert net.subnets[0].widths == (12, 6, 3)
        assert net.graph.args[0] is example
    for model in (Root(), Numbers()):
        graph = rh.trace(model, torch.ones(4, 6))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # there is nothing to warn of
            (group,) = owners(rh.Supernet(graph, rh.uniform(graph, (0.5, 1.0))).graph, "fc.weight")
        assert group.pinned is None


class Closure(nn.Module):
    """Its copy still runs the convolution of the model that was copied."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(6, 12), nn.Linear(12, 3)
        self.stem = lambda x: torch.relu(self.fc(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x))


def test_a_model_whose_copy_computes_with_its_own_tensors_is_refused() -> None:
    graph = rh.trace(Closure(), torch.zeros(4, 6))
    with pytest.raises(ValueError, match="a copy of Closure computes with tensors of the model"):
        rh.Supernet(graph, rh.uniform(graph, (0.5, 1.0)))


class Gain(nn.Module):
    """A buffer of no norm, which training replaces."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(6, 12), nn.Linear(12, 3)
        self.gain = nn.Buffer(torch.tensor(gain))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.fc(x))
        if self.training:
            self.gain = self.gain * 0.5 + 0.5 * x.abs().mean().detach()
        return self.head(x * self.gain)


def test_buffers_of_floats_are_each_subnets_own() -> None:
    def build(gain: float) -> rh.Supernet:
        torch.manual_seed(0)
        graph = rh.trace(Gain(gain), torch.zeros(4, 6))
        return rh.Supernet(graph, rh.uniform(graph, (0.5, 1.0))).double()

    net, again, x = build(3.0), build(1.0), torch.randn(4, 6, dtype=torch.float64)
    net.train()
    for _ in range(3):
        net[0](x)
    net.eval()
    assert float(net[1].gain) == 3.0 != float(net[0].gain)
    again.load_state_dict(net.state_dict())
    for a, b in zip(net, again.eval(), strict=True):
        assert torch.equal(a(x), b(x))


def test_building_a_supernet_moves_no_buffer_of_a_parametrization() -> None:
    spectral = torch.nn.utils.parametrizations.spectral_norm
    model = nn.Sequential(nn.Linear(6, 12), spectral(nn.Linear(12, 12)), nn.ReLU(), nn.Linear(12, 3)).train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = rh.trace(model, torch.zeros(4, 6))
    net = rh.Supernet(graph, rh.uniform(graph, (0.5, 1.0)))
    for small in (model, *net):
        found = small.state_dict()
        assert all(torch.equal(found[n], t) for n, t in state.items() if n.endswith(("._u", "._v")))


def test_freezing_reaches_every_subnet() -> None:
    net = supernet(BY_NAME["preact"])
    net.requires_grad_(False)
    assert not any(m(BY_NAME["preact"].inputs()).requires_grad for m in net)


def test_tied_weights_stay_tied() -> None:
    case = BY_NAME["tied_embedding"]
    net = supernet(case)
    for small in (*net, *(net.extract(k) for k in range(len(net)))):
        assert small.out.weight is small.embed.weight


def test_recorded_numbers() -> None:
    net = supernet(BY_NAME["flatten_cnn"], (0.5, 1.0))
    assert [(i.name, i.accuracy, i.latency_ms_p50) for i in net.infos] == [
        ("0.5", None, None),
        ("1.0", None, None),
    ]
    net.record("0.5", accuracy=0.75)
    net.record(-1, accuracy=0.9, latency_ms_p50=1.5, latency_ms_p95=2.0)
    assert [(i.accuracy, i.latency_ms_p50, i.latency_ms_p95) for i in net.infos] == [
        (0.75, None, None),
        (0.9, 1.5, 2.0),
    ]
    for k, info in enumerate(net.infos):
        assert (info.parameters, info.macs, info.size_bytes) == (
            net.cost(k).parameters, net.cost(k).macs, net.cost(k).size_bytes
        )  # fmt: skip


def test_cost_by_hand() -> None:
    """[1, 16, 16], conv 5x5 to 8, pool, conv 3x3 to 12 at 6x6, pool, 108 to 20 to 5, at full and at half width."""
    net = supernet(BY_NAME["flatten_cnn"], (0.5, 1.0))

    def by_hand(a: int, b: int, c: int) -> tuple[int, int]:
        parameters = 25 * a + a + 9 * a * b + b + 9 * b * c + c + 5 * c + 5
        return parameters, 16 * 16 * 25 * a + 6 * 6 * 9 * a * b + 9 * b * c + 5 * c

    for k, widths in enumerate(((4, 6, 10), (8, 12, 20))):
        cost = net.cost(k)
        assert (cost.parameters, cost.macs) == by_hand(*widths)
        assert cost.size_bytes == 4 * cost.parameters


def macs_by_hooks(model: nn.Module, example: Example) -> float:
    """Multiply-accumulates of one sample: every convolution and linear that runs, counted from its output's shape."""
    total = 0.0

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        outputs = module.weight.shape[0]
        total += output.numel() * module.weight.numel() / outputs

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        call(model, example)
    for hook in hooks:
        hook.remove()
    return total / len(leaves(example)[0])


def test_cost_counts_multiplications(built: Built) -> None:
    """Against forward hooks, for models whose multiplications are all in convolutions and linears."""
    if not built.case.engine:
        pytest.skip("products outside of layers")
    net = built.net
    for k in range(len(net)):
        assert net.cost(k).macs == macs_by_hooks(net.extract(k), built.case.inputs())


# --- subnets and importance -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("widths", "round_to"),
    [
        ((), 1),
        ((0.0, 1.0), 1),
        ((-0.5, 1.0), 1),
        ((0.5, 1.5), 1),
        ((float("nan"),), 1),
        ((0.5, 0.5), 1),
        ((0.5,), 0),
    ],
)
def test_bad_widths(widths: tuple[float, ...], round_to: int) -> None:
    graph = rh.trace(flatten_cnn(), torch.randn(2, 1, 16, 16))
    with pytest.raises(ValueError, match="uniform"):
        rh.uniform(graph, widths, round_to)


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(
    widths=st.sets(st.floats(0.01, 1.0), min_size=1, max_size=5),
    round_to=st.integers(1, 9),
)
def test_uniform_nests(widths: set[float], round_to: int) -> None:
    graph = FLATTEN_GRAPH
    subnets = rh.uniform(graph, tuple(widths), round_to)
    assert len(subnets) == len(widths)
    for small, large in pairwise(subnets):
        assert all(a <= b for a, b in zip(small.widths, large.widths, strict=True))
    for subnet in subnets:
        for group, width in zip(graph.groups, subnet.widths, strict=True):
            assert 1 <= width <= group.size
            assert width % round_to == 0 or width == group.size
            assert group.pinned is None or width == group.size


FLATTEN_GRAPH = rh.trace(flatten_cnn(), torch.randn(2, 1, 16, 16))


def by_hand(*widths: tuple[int, ...]) -> list[rh.Subnet]:
    return [rh.Subnet(f"s{i}", w) for i, w in enumerate(widths)]


@pytest.mark.parametrize(
    ("subnets", "message"),
    [
        ([], "no subnets"),
        (by_hand((8, 12, 20)), "widths"),
        (by_hand((0, 6, 10, 5), (8, 12, 20, 5)), "at least 1"),
        (by_hand((4, -1, 10, 5), (8, 12, 20, 5)), "at least 1"),
        (by_hand((4, 6, 10, 5), (8, 12, 21, 5)), "20"),
        (by_hand((4, 6, 10, 5), (3, 12, 20, 5)), "nested"),
        (by_hand((8, 12, 20, 5), (4, 6, 10, 5)), "nested"),
        (by_hand((4, 6, 10, 4), (8, 12, 20, 5)), "pinned"),
        ([rh.Subnet("a", (4, 6, 10, 5)), rh.Subnet("a", (8, 12, 20, 5))], "name"),
    ],
    ids=["none", "count", "zero", "negative", "large", "shrinks", "order", "pinned", "repeats"],
)
def test_bad_subnets(subnets: list[rh.Subnet], message: str) -> None:
    assert [g.size for g in FLATTEN_GRAPH.groups] == [8, 12, 20, 5]
    with pytest.raises(ValueError, match=message):
        rh.Supernet(FLATTEN_GRAPH, subnets)


def test_subnets_by_hand_need_not_be_uniform() -> None:
    net = rh.Supernet(FLATTEN_GRAPH, by_hand((1, 12, 3, 5), (5, 12, 3, 5), (8, 12, 20, 5))).eval()
    assert_subnets_are_right(net, torch.randn(3, 1, 16, 16))


def test_largest_subnet_may_be_smaller_than_the_model() -> None:
    net = rh.Supernet(FLATTEN_GRAPH, by_hand((2, 3, 4, 5), (4, 6, 10, 5))).eval()
    assert net[-1][0].weight.shape[0] == 4
    x = torch.randn(3, 1, 16, 16)
    for k in range(2):
        assert torch.equal(net[k](x), net.extract(k)(x))
    wanted = rh.Supernet(FLATTEN_GRAPH, by_hand((2, 3, 4, 5), (4, 6, 10, 5), (8, 12, 20, 5))).eval()
    for k in range(2):
        torch.testing.assert_close(net[k](x), wanted[k](x))


def test_one_subnet_is_enough() -> None:
    net = rh.Supernet(FLATTEN_GRAPH, by_hand((8, 12, 20, 5)))
    assert len(net) == 1
    assert net[0] is net[-1]


def test_extending_group_is_never_narrower() -> None:
    case = BY_NAME["zero_pad"]
    graph = rh.trace(case.model(), case.inputs())
    widths = [g.size for g in graph.groups]
    long = next(i for i, g in enumerate(graph.groups) if g.extends is not None)
    short = graph.groups[long].extends
    assert short is not None
    widths[long] = graph.groups[short].size - 1
    with pytest.raises(ValueError, match=graph.groups[long].name):
        rh.Supernet(graph, [rh.Subnet("bad", tuple(widths)), rh.uniform(graph, (1.0,))[0]])
    widths[long] = graph.groups[short].size
    good = rh.Supernet(graph, [rh.Subnet("good", tuple(widths)), rh.uniform(graph, (1.0,))[0]]).eval()
    assert_subnets_are_right(good, case.inputs(seed=8))


def test_unknown_importance() -> None:
    with pytest.raises(ValueError, match="importance"):
        rh.Supernet(FLATTEN_GRAPH, rh.uniform(FLATTEN_GRAPH, (0.5, 1.0)), importance="magic")


@pytest.mark.parametrize("importance", ["l1", "l2"])
def test_kept_channels_are_the_most_important(importance: str) -> None:
    """Brute force: a unit's importance is the norm of every weight that would go with it."""
    case = BY_NAME["flatten_cnn"]
    model = case.model()
    graph = rh.trace(model, case.inputs())
    net = rh.Supernet(graph, rh.uniform(graph, (0.5, 1.0)), importance=importance)

    def norm(x: Tensor) -> Tensor:
        return (
            x.double().abs().flatten(1).sum(1)
            if importance == "l1"
            else x.double().square().flatten(1).sum(1)
        )

    conv, fc = model[3], model[7]
    score = norm(conv.weight) + norm(fc.weight.reshape(20, 12, 9).transpose(0, 1))
    order = score.argsort(descending=True)
    torch.testing.assert_close(net[-1][3].bias, conv.bias[order])
    torch.testing.assert_close(net[0][3].bias, conv.bias[order[:6]])


def test_residual_stream_is_ranked_by_all_its_weights() -> None:
    case = BY_NAME["preact"]
    model = case.model()
    graph = rh.trace(model, case.inputs())
    net = rh.Supernet(graph, rh.uniform(graph, (0.5, 1.0)))
    score = model[0].weight.double().square().sum((1, 2, 3))
    for block in (model[1], model[2]):
        score += block.conv2.weight.double().square().sum((1, 2, 3))
        score += block.conv1.weight.double().square().sum((0, 2, 3))
    score += model[5][2].weight.double().square().sum(0)
    torch.testing.assert_close(net[0][0].bias, model[0].bias[score.argsort(descending=True)[:4]])


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(
    net=random_nets(),
    seed=st.integers(0, 2**20),
    widths=st.sets(st.floats(0.05, 0.95), min_size=1, max_size=3),
)
def test_random_nets(net: nn.Module, seed: int, widths: set[float]) -> None:
    case = Case("random", lambda: copy.deepcopy(net), lambda: torch.randn(2, 3, 6, 6))
    model, inputs = case.model(seed), case.inputs(seed)
    graph = rh.trace(model, inputs)
    built = rh.Supernet(graph, rh.uniform(graph, (*widths, 1.0))).eval()
    with torch.no_grad():
        assert relative_error(built(inputs), model(inputs)) < 2e-5
    assert_subnets_are_right(built, case.inputs(seed + 1))
    got, want = step_gradients(built, inputs), through_slicing(built, inputs)
    scale = max(float(t.abs().max()) for t in want.values())
    for name, grad in got.items():
        torch.testing.assert_close(grad, want[name], rtol=1e-4, atol=2e-6 * scale)


def test_masked_reference_notices_a_wrong_channel() -> None:
    """The reference itself must be able to fail: another channel of the same norm is another function."""
    net = supernet(BY_NAME["flatten_cnn"])
    x = BY_NAME["flatten_cnn"].inputs(seed=9)
    wrong = copy.deepcopy(net.extract(0))
    with torch.no_grad():
        wrong[0].weight.copy_(wrong[0].weight.flip(0))
        want = masked(net.graph, net.extract(-1), net[0], net.subnets[0].widths)(x)
        assert relative_error(wrong(x), want) > 1e-3


def test_scatter_is_the_inverse_of_gather() -> None:
    full = torch.randn(5, 7)
    axes = {0: np.array([0, 3]), 1: np.array([1, 2, 6])}
    again = scatter(gather(full, axes), axes, full.shape)
    assert torch.equal(gather(again, axes), gather(full, axes))
    assert int((again != 0).sum()) == 6
