"""The recipes' networks against published facts; converted weights against another reading of the file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rheostat as rh
from cases import lived_in
from rheostat_recipes.data import load
from rheostat_recipes.models.har import HARNet
from rheostat_recipes.models.kws import KeywordNet
from rheostat_recipes.models.lenet import LeNet5
from rheostat_recipes.models.resnet import (
    CifarResNet,
    load_published,
    load_torchvision,
    resnet18,
    resnet20,
    resnet32,
    resnet34,
    resnet44,
    resnet50,
    resnet56,
    with_shortcuts,
)
from rheostat_recipes.models.squeezenext import squeezenext23


@pytest.mark.parametrize(
    ("build", "num_parameters"),
    [
        (LeNet5, 44_426),
        # akamaster/pytorch_resnet_cifar10 says 0.27M, 0.46M, 0.66M, 0.85M
        (resnet20, 269_722),
        (resnet32, 464_154),
        (resnet44, 658_586),
        (resnet56, 853_018),
        # torchvision's documentation
        (resnet18, 11_689_512),
        (resnet34, 21_797_672),
        (resnet50, 25_557_032),
        # osmr/imgclsmob, model sqnxt23_w1
        (squeezenext23, 724_056),
        # 9·18·5 + 18·36·5 + 36·72·5 + 1152·6 weights; 25 + 9·12·24 + 9·24·48 + 9·48·48 + 48·12 of the other
        (HARNet, 23_922 + 18 + 36 + 72 + 6),
        (KeywordNet, 34_572 + 2 * (12 + 24 + 48 + 48) + 12),
    ],
)
def test_parameters(build, num_parameters: int) -> None:
    assert sum(p.numel() for p in build().parameters()) == num_parameters


def test_squeezenext_without_the_biases_is_the_authors_file() -> None:
    """717,280: the weights and norms of 111 convolutions and the classifier of 1.0-SqNxt-23/train_val.prototxt."""
    model = squeezenext23()
    biases = [m.bias.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(biases) == 111 + 1
    assert sum(p.numel() for p in model.parameters()) - sum(biases) == 717_280
    first = [block.conv1[0].kernel_size for block in model.blocks]
    assert first == [(3, 1), (1, 3)] * 3 + [(3, 1), (1, 3)] * 3 + [(3, 1), (1, 3)] * 4 + [(3, 1)]


@pytest.mark.parametrize(("size", "num_macs"), [(224, 275_920_640), (227, 281_916_416)])
def test_squeezenext_operations(size: int, num_macs: int) -> None:
    """The published 287.28M at 224 pixels are half of all operations: 2 a MAC, 4 a norm, 1 a ReLU, 9 a pooled pixel."""
    model, num = squeezenext23().eval(), {"macs": 0, "norms": 0, "relus": 0}

    def count(module: nn.Module, _: object, out: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            num["macs"] += out.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            num["macs"] += module.weight.numel()
        elif isinstance(module, nn.BatchNorm2d):
            num["norms"] += out.numel()
        elif isinstance(module, nn.ReLU) or module in model.blocks:
            num["relus"] += out.numel()

    for module in model.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, size, size)).shape == (1, 1000)
    assert num["macs"] == num_macs
    if size == 224:
        pooled, averaged = 9 * 64 * 55 * 55, 49 * 128
        operations = 2 * num["macs"] + 4 * num["norms"] + num["relus"] + pooled + averaged
        assert f"{operations / 2e6:.2f}" == "287.28"


@pytest.mark.parametrize(
    ("build", "shape"), [(HARNet, (9, 1, 128)), (KeywordNet, (1, 98, 40)), (squeezenext23, (3, 64, 64))]
)
def test_the_engine_runs_them(build, shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, *shape)
    graph = rh.trace(lived_in(build(num_classes=7), x), x[:1])
    net = rh.Supernet(graph, rh.uniform(graph, (0.5, 1.0)))
    rh.save(net, tmp_path / "net.safetensors")
    with rh.Engine(tmp_path / "net.safetensors", threads=1) as engine, torch.no_grad():
        for k, subnet in enumerate(net):
            engine.select(k)
            want = subnet.eval()(x)
            np.testing.assert_allclose(
                engine(x.numpy()), want, rtol=1e-4, atol=1e-4 * float(want.abs().max())
            )


def test_imagenet_names_are_those_of_torchvision() -> None:
    names = set(resnet50().state_dict())
    assert {
        "conv1.weight",
        "layer1.0.downsample.0.weight",
        "layer1.0.downsample.1.running_var",
        "fc.bias",
    } <= names
    assert "layer4.2.bn3.num_batches_tracked" in names
    assert not any(".shortcut" in name for name in names)
    assert not any(name.startswith("layer1.0.downsample") for name in resnet18().state_dict())


def torchvision_names(blocks: tuple[int, ...], kernels: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a torchvision ResNet's state, from its documentation: `kernels` of a block's convolutions."""
    found: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7), "fc.bias": (1000,)}

    def norm(name: str, size: int) -> None:
        found.update(
            {f"{name}.{part}": (size,) for part in ("weight", "bias", "running_mean", "running_var")}
        )
        found[f"{name}.num_batches_tracked"] = ()

    norm("bn1", 64)
    expansion, num_in = (4, 64) if len(kernels) == 3 else (1, 64)
    for stage, count in enumerate(blocks, 1):
        inner = 64 * 2 ** (stage - 1)
        for block in range(count):
            name, size = f"layer{stage}.{block}", num_in
            for number, kernel in enumerate(kernels, 1):
                out = inner * expansion if number == len(kernels) else inner
                found[f"{name}.conv{number}.weight"] = (out, size, kernel, kernel)
                norm(f"{name}.bn{number}", out)
                size = out
            if num_in != inner * expansion or (block == 0 and stage > 1):
                found[f"{name}.downsample.0.weight"] = (inner * expansion, num_in, 1, 1)
                norm(f"{name}.downsample.1", inner * expansion)
            num_in = inner * expansion
    found["fc.weight"] = (1000, num_in)
    return found


@pytest.mark.parametrize(
    ("build", "blocks", "kernels"),
    [(resnet18, (2, 2, 2, 2), (3, 3)), (resnet34, (3, 4, 6, 3), (3, 3)), (resnet50, (3, 4, 6, 3), (1, 3, 1))],
    ids=["resnet18", "resnet34", "resnet50"],
)
def test_states_of_torchvision_load(build, blocks, kernels, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(shape, generator=generator) if shape else torch.tensor(7)
        for name, shape in torchvision_names(blocks, kernels).items()
    }
    torch.save(state, tmp_path / "resnet.pth")
    model = build()
    load_torchvision(model, tmp_path / "resnet.pth")
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    state["fc.weight"] = torch.zeros(10, 1)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: fc\.weight: got \(10, 1\); want \(1000, "):
        load_torchvision(model, tmp_path / "other.pth")
    torch.save({"state_dict": state}, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match=r"checkpoint\.pth: got a dict that holds more than tensors"):
        load_torchvision(model, tmp_path / "checkpoint.pth")


@pytest.mark.parametrize(("build", "layer"), [(resnet18, "basic"), (resnet50, "bottleneck")])
def test_imagenet_networks_are_those_of_transformers(build, layer: str) -> None:
    """Another implementation of both, with the same weights, computes the same logits."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        depths=[2, 2, 2, 2] if layer == "basic" else [3, 4, 6, 3],
        hidden_sizes=[width * (1 if layer == "basic" else 4) for width in (64, 128, 256, 512)],
        layer_type=layer,
        num_labels=1000,
    )
    torch.manual_seed(0)
    theirs, x = transformers.ResNetForImageClassification(config).eval(), torch.randn(2, 3, 64, 64)
    ours = lived_in(build(), x).eval()
    # Both list a block's tensors in the same order, but for the shortcut, which stands first there and last here.
    own: list[Tensor] = []
    for name, module in ours.named_children():
        for block in module if name.startswith("layer") else [module]:
            parts = dict(block.state_dict())
            shortcut = [tensor for key, tensor in parts.items() if key.startswith("downsample")]
            own += shortcut + [tensor for key, tensor in parts.items() if not key.startswith("downsample")]
    names = list(theirs.state_dict())
    assert len(names) == len(own)
    theirs.load_state_dict(dict(zip(names, own, strict=True)))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [32, 40, 64])
def test_any_image_size(size: int) -> None:
    assert resnet20()(torch.zeros(2, 3, size, size)).shape == (2, 10)
    assert resnet18(7)(torch.zeros(2, 3, 2 * size, 2 * size)).shape == (2, 7)


def published(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The published network as a function of its file: the shortcut pads half of the new channels on each side."""

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            state[f"module.{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias)

    x = norm("bn1", F.conv2d(x, state["module.conv1.weight"], padding=1)).relu()
    for stage in (1, 2, 3):
        block = 0
        while f"module.layer{stage}.{block}.conv1.weight" in state:
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            out = F.conv2d(x, state[f"module.{name}.conv1.weight"], stride=stride, padding=1)
            out = F.conv2d(norm(f"{name}.bn1", out).relu(), state[f"module.{name}.conv2.weight"], padding=1)
            out = norm(f"{name}.bn2", out)
            if stride == 2:
                side = out.shape[1] // 4
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, side, side))
            x, block = (out + x).relu(), block + 1
    return F.linear(x.mean((2, 3)), state["module.linear.weight"], state["module.linear.bias"])


def other(num_blocks: int = 3) -> dict[str, Tensor]:
    """Weights of a file as published: another network's names, with `module.` in front."""
    model = lived_in(CifarResNet(num_blocks), torch.randn(4, 3, 32, 32))
    return {f"module.{name}": tensor for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("counters", [True, False], ids=["with counters", "written before PyTorch 0.4.1"])
def test_published_weights_keep_their_function(counters: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = {n: t for n, t in other().items() if counters or not n.endswith("num_batches_tracked")}
    torch.save({"state_dict": state, "best_prec1": 91.7}, tmp_path / "resnet20.th")
    model = resnet20()
    load_published(model, tmp_path / "resnet20.th")
    x = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), published(state, x), rtol=1e-4, atol=1e-4)


def test_convolutions_on_the_shortcuts_start_as_shortcuts_in_training_too() -> None:
    torch.manual_seed(2)
    x = torch.randn(64, 3, 32, 32)
    stock = lived_in(resnet20(), x)
    rh.recalibrate(stock, [(x, torch.zeros(64))])
    model = with_shortcuts(stock, x)
    with torch.no_grad():
        for train in (False, True):
            torch.testing.assert_close(model.train(train)(x), stock.train(train)(x), rtol=1e-3, atol=1e-3)


def test_another_depth(tmp_path: Path) -> None:
    torch.save({"state_dict": other(5)}, tmp_path / "resnet32.th")
    with pytest.raises(
        ValueError, match=r"resnet32\.th: layer1\.3\.bn1\.bias: got \(16,\); want no such tensor"
    ):
        load_published(resnet20(), tmp_path / "resnet32.th")


def test_not_a_published_file(tmp_path: Path) -> None:
    path = tmp_path / "model.th"
    with pytest.raises(ValueError, match=r"model\.th: no such file"):
        load_published(resnet20(), path)
    path.write_text("MIT License")
    with pytest.raises(ValueError, match=r"model\.th: not a file of PyTorch weights"):
        load_published(resnet20(), path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"model\.th: got a list without a state_dict"):
        load_published(resnet20(), path)


class Opened:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_hostile_file_runs_nothing(tmp_path: Path) -> None:
    torch.save({"state_dict": Opened(tmp_path / "opened")}, tmp_path / "model.th")
    with pytest.raises(ValueError, match="not a file of PyTorch weights"):
        load_published(resnet20(), tmp_path / "model.th")
    assert not (tmp_path / "opened").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "file", "num_right"),
    [(resnet20(), "resnet20-12fca82f.th", 9173), (resnet32(), "resnet32-d509ac18.th", 9263)],
    ids=["resnet20", "resnet32"],
)
def test_published_accuracy(model: nn.Module, file: str, num_right: int, data: Path) -> None:
    """The published errors are 8.27 % and 7.37 %."""
    assert isinstance(model, CifarResNet)
    load_published(model, data / "resnet_cifar10" / file)
    model.eval().to(memory_format=torch.channels_last)
    images = load("cifar10", data)
    right = 0
    with torch.no_grad():
        for start in range(0, 10_000, 1000):
            x = torch.from_numpy(images.normalized(images.test_images[start : start + 1000]))
            answer = model(x.to(memory_format=torch.channels_last)).argmax(1).numpy()
            right += int(np.sum(answer == images.test_labels[start : start + 1000]))
    assert right == num_right
