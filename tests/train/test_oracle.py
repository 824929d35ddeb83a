"""The groups of `trace` against those of Torch-Pruning, an independent implementation, where that library works.

Left out are the models that version 1.6.1 cannot read or reads wrongly: zero-padding shortcuts, channel shuffles,
fused qkv without a hint, grouped queries, GPT-2's transposed linears, nn.MultiheadAttention (it misses `out_proj`),
depth multipliers, nn.GLU, modules called twice beside a concatenation, and constants in Python.
"""

from __future__ import annotations

from collections import defaultdict

import pytest
from torch import nn

import rheostat as rh
from cases import CASES, Case
from masked import tensors
from rheostat.train.graph import ChannelGroup

WORKS = """lenet resnet18 resnet50 flatten_cnn bottleneck preact mobilenet squeeze_linear densenet instance_norm
layer_norm_mlp batch_norm_mlp prelu unet convnext_group_norm conv3d reused two_inputs hf_bert_eager hf_bert_sdpa
hf_vit_eager hf_vit_sdpa tied_embedding frozen""".split()

PARAMS = [
    pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else [])
    for case in CASES
    if case.name in WORKS
]

Touched = dict[tuple[str, str], set[int]]
"""(module, "in" or "out") → channel indices of its weight."""


def ours(model: nn.Module, group: ChannelGroup, unit: int) -> Touched:
    """What goes with a unit: channels of the convolutions, linears and norms of the model, tied ones by all names."""
    touched: Touched = defaultdict(set)
    named = tensors(model)
    for axis in group.axes:
        for name in (n for n, t in named.items() if t is named[axis.tensor] and n.endswith(".weight")):
            module = name.removesuffix(".weight")
            layer = model.get_submodule(module)
            if type(layer).__module__.startswith("torch.nn"):
                reads = axis.dim == (0 if getattr(layer, "transposed", False) else 1) and _has_inputs(layer)
                touched[module, "in" if reads else "out"] |= set(axis.positions[unit].tolist())
    return touched


def theirs(oracle, model: nn.Module, module: str, outputs: list[int]) -> Touched:
    import torch_pruning as tp

    names = {layer: name for name, layer in model.named_modules()}
    layer = model.get_submodule(module)
    prune = tp.prune_linear_out_channels if isinstance(layer, nn.Linear) else tp.prune_conv_out_channels
    touched: Touched = defaultdict(set)
    for dependency, indices in oracle.get_pruning_group(layer, prune, idxs=outputs):
        target = dependency.target.module
        weight = getattr(target, "weight", None)
        if target in names and weight is not None and weight.numel() > 1:  # one slope for all channels stays
            reads = "in_channels" in dependency.handler.__name__ and _has_inputs(target)
            touched[names[target], "in" if reads else "out"] |= {int(i) for i in indices}
    return touched


def _has_inputs(layer: nn.Module) -> bool:
    """Layers whose weight has an axis of input channels (a depthwise convolution's has not)."""
    return isinstance(layer, nn.Linear | nn.modules.conv._ConvNd) and getattr(layer, "groups", 1) == 1


@pytest.mark.parametrize("case", PARAMS)
def test_groups_are_those_of_torch_pruning(case: Case) -> None:
    tp = pytest.importorskip("torch_pruning")
    model = case.model()
    graph = rh.trace(model, case.inputs())
    copy = case.model().requires_grad_(True)  # it finds nothing in a frozen model
    oracle = tp.DependencyGraph().build_dependency(copy, example_inputs=case.inputs())
    compared = 0
    for group in graph.groups:
        roots = [
            (axis.tensor.removesuffix(".weight"), axis.positions)
            for axis in group.axes
            if axis.tensor.endswith(".weight")
            and _has_inputs(model.get_submodule(axis.tensor.removesuffix(".weight")))
            and axis.dim == 0
        ]
        if group.pinned is not None or not roots:
            continue
        for unit in {0, group.size // 2, group.size - 1}:
            module, positions = roots[0]
            got = ours(model, group, unit)
            assert got == theirs(oracle, copy, module, sorted(positions[unit].tolist())), (
                f"{group.name}: unit {unit}"
            )
            compared += 1
    assert compared >= 3
