"""`trace`: the groups are the right ones, the pins have reasons, the model is untouched."""

from __future__ import annotations

import copy
import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import rheostat as rh
from cases import CASES, Case, ConstantView, Through, call, flatten_cnn
from masked import owners, relative_error, tensors
from random_nets import random_nets
from rheostat.train.graph import Graph

PARAMS = [pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else []) for case in CASES]


@pytest.fixture(scope="module", params=PARAMS)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module")
def graph(case: Case) -> Graph:
    return rh.trace(case.model(), case.inputs())


def permuted(graph: Graph, seed: int = 0, only: int | None = None) -> nn.Module:
    """A copy of the model with the units of its prunable groups (or of one) in a random order."""
    random = np.random.default_rng(seed)
    orders: list[np.ndarray] = []
    for i, group in enumerate(graph.groups):
        chosen = group.pinned is None and only in (None, i, group.extends)
        order = random.permutation(group.size) if chosen else np.arange(group.size)
        if group.extends is not None:
            inner = orders[group.extends]
            order = np.concatenate([inner, len(inner) + random.permutation(group.size - len(inner))])
        orders.append(order)
    model = copy.deepcopy(graph.model)
    named = tensors(model)
    with torch.no_grad():
        for group, order in zip(graph.groups, orders, strict=True):
            for axis in group.axes:
                tensor = named[axis.tensor]
                index = np.arange(tensor.shape[axis.dim])
                index[axis.positions.ravel()] = axis.positions[order].ravel()
                tensor.copy_(tensor.index_select(axis.dim, torch.from_numpy(index)))
    return model


def test_model_is_left_as_it_was(case: Case) -> None:
    model, inputs = case.model(), case.inputs()
    hits: list[int] = []
    modules = list(model.modules())
    for i, module in enumerate(modules):
        module.train(i % 3 == 0)
    modules[-1].register_forward_hook(lambda *_: hits.append(1))
    buffers_and_parameters = tensors(model)
    first = next(iter(model.parameters()))
    first.grad = torch.ones_like(first)
    before = {
        "tensors": {
            n: (id(t), t.data_ptr(), t.requires_grad, t.clone()) for n, t in buffers_and_parameters.items()
        },
        "modules": [id(m) for m in modules],
        "training": [m.training for m in modules],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in modules
        ],
        "attributes": [sorted(vars(m)) for m in modules],
        "grad": first.grad,
        "random": torch.get_rng_state(),
    }
    rh.trace(model, inputs)
    assert [id(m) for m in model.modules()] == before["modules"]
    assert [m.training for m in modules] == before["training"]
    assert [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in modules
    ] == before["hooks"]
    assert [sorted(vars(m)) for m in modules] == before["attributes"]
    after = tensors(model)
    assert after.keys() == before["tensors"].keys()
    for name, tensor in after.items():
        identity, pointer, requires_grad, value = before["tensors"][name]
        assert (id(tensor), tensor.data_ptr(), tensor.requires_grad) == (identity, pointer, requires_grad), (
            name
        )
        assert torch.equal(tensor, value), name
    assert first.grad is before["grad"]
    assert bool((first.grad == 1).all())
    assert torch.equal(torch.get_rng_state(), before["random"])


def test_expected_units(case: Case, graph: Graph) -> None:
    for axis, size in case.units.items():
        found = owners(graph, axis)
        assert [(g.size, g.pinned) for g in found] == [(size, None)], f"{axis}: {found}"


def test_an_index_belongs_to_one_unit_at_most(graph: Graph) -> None:
    named = tensors(graph.model)
    seen = {(n, d): np.zeros(s, int) for n, t in named.items() for d, s in enumerate(t.shape)}
    first = 0
    names = [group.name for group in graph.groups]
    assert all(names)
    for group in graph.groups:
        assert group.first_unit == first
        first += group.size
        assert group.size >= 1
        assert group.axes
        for axis in group.axes:
            assert axis.positions.shape[0] == group.size
            np.add.at(seen[axis.tensor, axis.dim], axis.positions.ravel(), 1)
    for (name, dim), count in seen.items():
        assert count.max(initial=0) <= 1, f"{name}:{dim} has an index in two units"


def test_dims_match_the_values(graph: Graph) -> None:
    total = sum(group.size for group in graph.groups)
    for node in graph.program.graph.nodes:
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or node.op == "output":
            continue
        dims = graph.dims[node.name]
        assert len(dims) == value.dim(), node.name
        for dim, size in zip(dims, value.shape, strict=True):
            assert dim is None or (dim.shape == (size,) and dim.min() >= -1 and dim.max() < total), node.name


def test_a_group_of_units_can_be_permuted(case: Case, graph: Graph) -> None:
    """The definition of a channel group: its units are interchangeable, so any order computes the same function."""
    inputs = case.inputs(seed=1)
    with torch.no_grad():
        want = call(graph.model, inputs)
        if relative_error(call(permuted(graph), inputs), want) < 1e-4:
            return
        for i, group in enumerate(graph.groups):
            if group.pinned is None and group.extends is None:
                error = relative_error(call(permuted(graph, only=i), inputs), want)
                assert error < 1e-4, f"units of {group.name} are not interchangeable: {error:.1e}"


def test_trace_is_deterministic(case: Case, graph: Graph) -> None:
    again = rh.trace(case.model(), case.inputs(seed=5))
    assert [(g.name, g.size, g.first_unit, g.pinned, g.extends) for g in again.groups] == [
        (g.name, g.size, g.first_unit, g.pinned, g.extends) for g in graph.groups
    ]
    for a, b in zip(again.groups, graph.groups, strict=True):
        for x, y in zip(a.axes, b.axes, strict=True):
            assert (x.tensor, x.dim) == (y.tensor, y.dim)
            np.testing.assert_array_equal(x.positions, y.positions)


def test_groups_do_not_depend_on_the_batch(case: Case, graph: Graph) -> None:
    """A batch of one, whose size 1 must not be taken for a channel or the other way round."""
    one = tree_map(lambda x: x[:1] if isinstance(x, Tensor) else x, case.inputs())
    again = rh.trace(case.model(), one)
    want = [(g.name, g.size) for g in graph.groups if g.pinned is None]
    assert [(g.name, g.size) for g in again.groups if g.pinned is None] == want


def test_frozen_model_has_the_same_groups() -> None:
    x = torch.randn(2, 1, 16, 16)
    graph = rh.trace(flatten_cnn().requires_grad_(False), x)
    assert str(graph) == str(rh.trace(flatten_cnn(), x))
    assert not any(p.requires_grad for p in graph.model.parameters())


def test_flatten_gives_blocks_of_columns() -> None:
    graph = rh.trace(flatten_cnn(), torch.randn(2, 1, 16, 16))
    (group,) = owners(graph, "3.weight")
    axes = {(a.tensor, a.dim): a.positions for a in group.axes}
    assert set(axes) == {("3.weight", 0), ("3.bias", 0), ("7.weight", 1)}
    np.testing.assert_array_equal(axes["7.weight", 1], np.arange(108).reshape(12, 9))


def test_fused_qkv_removes_whole_heads() -> None:
    case = next(c for c in CASES if c.name == "vit_timm")
    graph = rh.trace(case.model(), case.inputs())
    (group,) = owners(graph, "blocks.0.attn.qkv.weight")
    axes = {(a.tensor, a.dim): a.positions for a in group.axes}
    want = np.arange(48).reshape(3, 4, 4).transpose(1, 0, 2).reshape(4, 12)
    np.testing.assert_array_equal(np.sort(axes["blocks.0.attn.qkv.weight", 0]), want)
    np.testing.assert_array_equal(axes["blocks.0.attn.proj.weight", 1], np.arange(16).reshape(4, 4))


def test_grouped_queries_remove_whole_key_value_groups() -> None:
    case = next(c for c in CASES if c.name == "hf_llama_eager")
    graph = rh.trace(case.model(), case.inputs())
    (group,) = owners(graph, "model.layers.0.self_attn.k_proj.weight")
    axes = {(a.tensor.removeprefix("model.layers.0.self_attn."), a.dim): a.positions for a in group.axes}
    for name, dim, per_unit in (("q_proj", 0, 8), ("k_proj", 0, 4), ("v_proj", 0, 4), ("o_proj", 1, 8)):
        want = np.arange(4 * per_unit).reshape(4, per_unit)
        np.testing.assert_array_equal(axes[f"{name}.weight", dim], want)


def test_zero_padding_extends_the_shorter_group() -> None:
    case = next(c for c in CASES if c.name == "zero_pad")
    graph = rh.trace(case.model(), case.inputs())
    stem, second, third = (owners(graph, f"layer{i}.conv2.weight")[0] for i in (1, 2, 3))
    assert (stem.size, second.size, third.size) == (8, 16, 24)
    assert stem.extends is None
    assert graph.groups[second.extends] is stem
    assert graph.groups[third.extends] is second


def test_custom_op_pins_by_name() -> None:
    @torch.library.custom_op("rheostat_test::mystery", mutates_args=())
    def mystery(x: Tensor) -> Tensor:
        return x.flip(1) * 2

    @mystery.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    graph = rh.trace(Through(mystery), torch.randn(2, 6))
    (pinned,) = owners(graph, "fc2.weight")
    assert pinned.pinned is not None
    assert "mystery" in pinned.pinned
    assert owners(graph, "fc1.weight")[0].pinned is None


@pytest.mark.parametrize(
    ("op", "name"),
    [
        (lambda x: x.softmax(1), "softmax"),
        (lambda x: x.log_softmax(-1), "log_softmax"),
        (lambda x: x - x.mean(1, keepdim=True), "mean"),
        (lambda x: x / x.norm(dim=1, keepdim=True), "norm"),
        (lambda x: x + x.amax(1, keepdim=True), "amax"),
        (lambda x: x.median(1, keepdim=True).values + x, "median"),
        (lambda x: x * x.argsort(1), "argsort"),
        (lambda x: torch.fft.rfft(x, n=22).real, "fft"),
        (lambda x: x[:, torch.tensor([1, 0, 2, 3, 5, 4, 6, 7, 8, 9, 11, 10])], "index"),
        (lambda x: torch.cdist(x.unsqueeze(1), x.unsqueeze(1)).squeeze(1) + x, "cdist"),
        (lambda x: x @ torch.ones(12, 12), ""),
        (lambda x: nn.functional.layer_norm(x.view(-1, 3, 4), (3, 4)).flatten(1), ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_ops_across_channels_pin_them(op, name: str) -> None:
    graph = rh.trace(Through(op), torch.randn(5, 6))
    found = owners(graph, "fc2.weight")
    assert found
    for group in found:
        assert group.pinned is not None
        assert name in group.pinned
    assert owners(graph, "fc1.weight")[0].pinned is None


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc1(x)
        if y.sum() > 0:
            y = -y
        return self.fc2(y)


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (Branches(), torch.randn(2, 6), "Branches"),
        (nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2)), torch.randn(2, 5), "Sequential"),
        (nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2)), (), "Sequential"),
        (nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2)), {"nope": torch.randn(2, 6)}, "Sequential"),
        (nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2)), "x", "trace"),
        (nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2)), None, "trace"),
        (lambda x: x, torch.randn(2, 6), "trace"),
        (ConstantView(), torch.randn(2, 3, 15, 16, 1), "ConstantView"),
    ],
    ids=["branch", "shape", "no-input", "keyword", "text", "none", "function", "rank"],
)
def test_bad_input_is_a_value_error(model, example, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rh.trace(model, example)


def test_failed_trace_leaves_the_model_alone() -> None:
    model = Branches()
    model.fc1.eval()
    flags = [m.training for m in model.modules()]
    with pytest.raises(ValueError, match="Branches"):
        rh.trace(model, torch.randn(2, 6))
    assert [m.training for m in model.modules()] == flags
    assert isinstance(model.fc1.weight, nn.Parameter)
    model(torch.randn(2, 6))


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(net=random_nets(), seed=st.integers(0, 2**20))
def test_random_nets_can_be_permuted(net, seed: int) -> None:
    case = Case("random", lambda: net, lambda: torch.randn(2, 3, 6, 6))
    graph = rh.trace(case.model(seed), case.inputs(seed))
    x = case.inputs(seed + 1)
    with torch.no_grad():
        error = relative_error(permuted(graph, seed)(x), graph.model(x))
    assert error < 1e-4
    assert math.isfinite(error)
    assert any(g.pinned is None for g in graph.groups)


def test_layers_whose_weight_an_unknown_op_makes_are_listed_with_the_op() -> None:
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 16, 3)), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 4),
    )  # fmt: skip
    listed = {group.size: group for group in rh.trace(model, torch.randn(2, 1, 8, 8)).groups}
    assert listed[16].name.startswith("0") and "no rule for" in str(listed[16].pinned)
    assert listed[8].pinned is None
    assert set(listed) == {16, 8, 4}  # the kernel's axes are no channels


def test_an_array_for_an_example_is_told() -> None:
    for example in (
        np.zeros((2, 4), np.float32),
        (np.zeros((2, 4), np.float32),),
        {"input": np.zeros((2, 4))},
    ):
        with pytest.raises(
            ValueError, match=r"got an ndarray in the example; want tensors, as torch.from_numpy"
        ):
            rh.trace(nn.Linear(4, 2), example)  # pyright: ignore[reportArgumentType]


def test_one_thing_for_another_is_told() -> None:
    """A model, a graph and a supernet are easily taken for each other."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    graph = rh.trace(model, torch.randn(2, 4))
    net: Any = rh.Supernet(graph, subnets := rh.uniform(graph, (0.5, 1.0)))
    batches = [(torch.randn(4, 4), torch.zeros(4, dtype=torch.int64))]
    for wrong in (net, model):
        for use in (
            lambda wrong=wrong: rh.uniform(wrong), lambda wrong=wrong: rh.Supernet(wrong, subnets),
            lambda wrong=wrong: rh.nest(wrong, subnets), lambda wrong=wrong: rh.levels(wrong, 0.5),
            lambda wrong=wrong: rh.magnitude(wrong), lambda wrong=wrong: rh.taylor(wrong, batches),
            lambda wrong=wrong: rh.wanda(wrong, [batches[0][0]]),
            lambda wrong=wrong: rh.single_path(wrong, batches, macs=(20,)),
        ):  # fmt: skip
            with pytest.raises(
                ValueError, match=rf"got a {type(wrong).__name__}; want the Graph that trace gives"
            ):
                use()
    for use in (lambda: rh.fit(net[0], batches, epochs=1), lambda: rh.save(net[0], "never")):
        with pytest.raises(ValueError, match=r"got a Sequential; want (a|the) Supernet"):
            use()
    for use in (rh.Engine, rh.cost, lambda path: rh.export_onnx(path, "never")):
        with pytest.raises(ValueError, match=r"got a Supernet; want the path of a file"):
            use(net)
    with pytest.raises(ValueError, match=r"widths=0.5; want several"):
        rh.uniform(graph, 0.5)  # pyright: ignore[reportArgumentType]
