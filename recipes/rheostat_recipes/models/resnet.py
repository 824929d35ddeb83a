"""Residual networks: the CIFAR ones (ResNet-20/32/44/56) and the ImageNet ones (ResNet-18/34/50).

Every size in a `forward` is read from a tensor, never written down, so that the same code runs at any width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CIFAR_WIDTHS = (16, 32, 64)
SHORTCUTS = ("stock", "conv1x1_all")
"""`conv1x1_all` puts a 1x1 convolution and a norm on every block's shortcut, beside a projection where there is one.

A block then has output channels of its own; otherwise those of a stage are coupled. The dynamic paper does not say so,
but its parameter counts do: 28.19e4 for ResNet-20 and 12.2e6 for ResNet-18 (Yang, He and Fan, DAC 2020).
"""


class CifarBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters ("option A", He et al. 2016, section 4.2), or a 1x1."""

    def __init__(self, num_in: int, num_out: int, stride: int, shortcut: str = "stock") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_out)
        self.stride = stride
        self.shortcut = _conv1x1(num_in, num_out, stride) if shortcut == "conv1x1_all" else None

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, num_in, H, W] to [N, num_out, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.stride != 1:
            x = x[:, :, :: self.stride, :: self.stride]
            # New channels go to the end: the first ones of a stage are then those of the stage before.
            x = F.pad(x, (0, 0, 0, 0, 0, out.shape[1] - x.shape[1]))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """ResNet for 32x32 images: [N, C, H, W] to [N, classes]; named as in akamaster/pytorch_resnet_cifar10."""

    def __init__(
        self,
        num_blocks: int,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: tuple[int, int, int] = CIFAR_WIDTHS,
        shortcut: str = "stock",
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(CifarBlock, widths[0], widths[0], num_blocks, stride=1, shortcut=shortcut)
        self.layer2 = _stage(CifarBlock, widths[0], widths[1], num_blocks, stride=2, shortcut=shortcut)
        self.layer3 = _stage(CifarBlock, widths[1], widths[2], num_blocks, stride=2, shortcut=shortcut)
        self.linear = nn.Linear(widths[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, C, H, W] to logits [N, classes]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        return self.linear(x)


def resnet20(num_classes: int = 10, shortcut: str = "stock") -> CifarResNet:
    """ResNet-20: 269,722 parameters; 281,904 in convolutions and classifier alone with `shortcut="conv1x1_all"`.

    >>> resnet20()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """
    return CifarResNet(3, num_classes, shortcut=shortcut)


def resnet32(num_classes: int = 10) -> CifarResNet:
    """ResNet-32: 464,154 parameters."""
    return CifarResNet(5, num_classes)


def resnet44(num_classes: int = 10) -> CifarResNet:
    """ResNet-44: 658,586 parameters."""
    return CifarResNet(7, num_classes)


def resnet56(num_classes: int = 10) -> CifarResNet:
    """ResNet-56: 853,018 parameters."""
    return CifarResNet(9, num_classes)


def load_published(model: CifarResNet, path: str | Path) -> None:
    """Load weights published by akamaster/pytorch_resnet_cifar10 (`resnet20-12fca82f.th`) into `model`.

    Those networks pad a stage's shortcut on both sides, ours at the end. The channels of the residual streams
    of stages 2 and 3 are reordered on the way, which keeps the function. The weights expect images divided by
    255 and normalised with mean (0.485, 0.456, 0.406) and deviation (0.229, 0.224, 0.225).
    Raises ValueError when the file is missing, is no such file, or belongs to another depth.

    >>> load_published(resnet20(), "resnet20-12fca82f.th")  # doctest: +SKIP
    """
    kind = "a published CIFAR-10 ResNet (.th)"
    file = _torch_file(path, kind)
    state = file.get("state_dict") if isinstance(file, dict) else None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError(f"{path}: got a {type(file).__name__} without a state_dict; want {kind}")
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    model.load_state_dict(_padded_at_end(_fitting(model, state, path)))


def load_torchvision(model: ResNet, path: str | Path) -> None:
    """Load weights published by torchvision (`resnet18-f37072fd.pth`, `resnet50-0676ba61.pth`) into `model`.

    They expect images divided by 255 and normalised with mean (0.485, 0.456, 0.406) and deviation (0.229, 0.224,
    0.225). Raises ValueError when the file is missing, is no such file, or belongs to another network.

    >>> load_torchvision(resnet18(), "resnet18-f37072fd.pth")  # doctest: +SKIP
    """
    kind = "weights of a torchvision ResNet (.pth)"
    state = _torch_file(path, kind)
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{path}: got a {type(state).__name__} that holds more than tensors; want {kind}")
    model.load_state_dict(_fitting(model, state, path))


@torch.no_grad()
def with_shortcuts(model: CifarResNet, x: Tensor) -> CifarResNet:
    """Return a ResNet-20 as `model` with a convolution and a norm on every shortcut that leave what passes as it is.

    In training mode a norm takes its own mean and deviation away; it gives them back by its bias and scale, measured
    for images `x` [N, 3, H, W] like those of the training.

    >>> x = torch.randn(8, 3, 32, 32)
    >>> stock = resnet20().eval()
    >>> torch.allclose(with_shortcuts(stock, x).eval()(x), stock(x), atol=1e-3)
    True
    """
    own = resnet20(model.linear.out_features, "conv1x1_all")
    own.load_state_dict(own.state_dict() | model.state_dict())
    own.eval()
    x = F.relu(own.bn1(own.conv1(x)))
    for block in (*own.layer1, *own.layer2, *own.layer3):
        assert isinstance(block, CifarBlock) and block.shortcut is not None
        conv, norm = block.shortcut
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        nn.init.dirac_(conv.weight)
        var, mean = torch.var_mean(conv(x), (0, 2, 3), correction=0)
        norm.running_var, norm.running_mean = var, mean
        norm.weight.copy_((var + norm.eps).sqrt())
        norm.bias.copy_(mean)
        x = block(x)
    return own.train()


def _torch_file(path: str | Path, kind: str) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; want {kind}") from None
    except Exception as error:  # torch.load raises whatever its unpickler meets
        got = type(error).__name__
        raise ValueError(f"{path}: not a file of PyTorch weights ({got}); want {kind}") from None


def _fitting(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """The state with the batch counters that files written before PyTorch 0.4.1 have not; the rest must fit."""
    own = model.state_dict()
    state = {name: tensor for name, tensor in own.items() if name.endswith("num_batches_tracked")} | state
    for name in sorted(own.keys() | state.keys()):
        got, want = (tuple(s[name].shape) if name in s else "no such tensor" for s in (state, own))
        if got != want:
            fix = "use the network that the file was made for"
            raise ValueError(f"{path}: {name}: got {got}; want {want}; {fix}")
    return state


def _padded_at_end(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same function for shortcuts that pad zeros at the end, not a quarter on either side."""
    orders = {1: torch.arange(state["layer1.0.conv2.weight"].shape[0])}
    for stage in (2, 3):
        num_out, num_before = state[f"layer{stage}.0.conv2.weight"].shape[0], len(orders[stage - 1])
        quarter = (num_out - num_before) // 2
        padding = [*range(quarter), *range(quarter + num_before, num_out)]
        orders[stage] = torch.cat([quarter + orders[stage - 1], torch.tensor(padding)])

    def reorder(name: str, tensor: Tensor) -> Tensor:
        if name == "linear.weight":
            return tensor[:, orders[3]]
        layer, _, rest = name.partition(".")
        block, _, rest = rest.partition(".")
        if not layer.startswith("layer") or tensor.dim() == 0:
            return tensor
        stage = int(layer.removeprefix("layer"))
        if rest.startswith(("conv2.", "bn2.")):
            return tensor[orders[stage]]
        if rest.startswith("conv1."):
            return tensor[:, orders[max(stage - 1, 1) if block == "0" else stage]]
        return tensor

    return {name: reorder(name, tensor) for name, tensor in state.items()}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; named and ordered as in torchvision."""

    expansion = 1

    def __init__(self, num_in: int, num_out: int, stride: int, shortcut: str = "stock") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_out)
        self.downsample = _projection(num_in, num_out, stride)
        self.shortcut = _conv1x1(num_in, num_out, stride) if shortcut == "conv1x1_all" else None

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, num_in, H, W] to [N, num_out, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.shortcut is not None:
            out = out + self.shortcut(x)
            if self.downsample is None:
                return F.relu(out)
        if self.downsample is not None:
            x = self.downsample(x)
        return F.relu(out + x)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut, the stride in the 3x3 one; named as in torchvision."""

    expansion = 4

    def __init__(self, num_in: int, num_out: int, stride: int, shortcut: str = "stock") -> None:
        super().__init__()
        if shortcut != "stock":
            raise ValueError(f"Bottleneck: got shortcut={shortcut!r}; want 'stock'")
        inner = num_out // self.expansion
        self.conv1 = nn.Conv2d(num_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, num_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(num_out)
        self.downsample = _projection(num_in, num_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, num_in, H, W] to [N, num_out, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            x = self.downsample(x)
        return F.relu(out + x)


class ResNet(nn.Module):
    """ResNet for 224x224 images: [N, 3, H, W] to [N, classes]; a torchvision state_dict loads as it is."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        num_blocks: tuple[int, int, int, int],
        num_classes: int = 1000,
        shortcut: str = "stock",
    ) -> None:
        super().__init__()
        wide = block.expansion
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(block, 64, 64 * wide, num_blocks[0], stride=1, shortcut=shortcut)
        self.layer2 = _stage(block, 64 * wide, 128 * wide, num_blocks[1], stride=2, shortcut=shortcut)
        self.layer3 = _stage(block, 128 * wide, 256 * wide, num_blocks[2], stride=2, shortcut=shortcut)
        self.layer4 = _stage(block, 256 * wide, 512 * wide, num_blocks[3], stride=2, shortcut=shortcut)
        self.fc = nn.Linear(512 * wide, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, C, H, W] to logits [N, classes]."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        return self.fc(x)


def resnet18(num_classes: int = 1000, shortcut: str = "stock") -> ResNet:
    """ResNet-18: 11,689,512 parameters at 1000 classes; `shortcut="conv1x1_all"` adds 524,288 and its norms'."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, shortcut)


def resnet34(num_classes: int = 1000) -> ResNet:
    """ResNet-34: 21,797,672 parameters at 1000 classes."""
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes)


def resnet50(num_classes: int = 1000, shortcut: str = "stock") -> ResNet:
    """ResNet-50: 25,557,032 parameters at 1000 classes; there is no other shortcut."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, shortcut)


def _stage(
    block: type[CifarBlock] | type[BasicBlock] | type[Bottleneck],
    num_in: int,
    num_out: int,
    num_blocks: int,
    stride: int,
    shortcut: str,
) -> nn.Sequential:
    if shortcut not in SHORTCUTS:
        raise ValueError(f"ResNet: got shortcut={shortcut!r}; want one of {', '.join(SHORTCUTS)}")
    first = block(num_in, num_out, stride, shortcut)
    return nn.Sequential(first, *(block(num_out, num_out, 1, shortcut) for _ in range(num_blocks - 1)))


def _projection(num_in: int, num_out: int, stride: int) -> nn.Sequential | None:
    return None if stride == 1 and num_in == num_out else _conv1x1(num_in, num_out, stride)


def _conv1x1(num_in: int, num_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(num_in, num_out, 1, stride, bias=False), nn.BatchNorm2d(num_out))
