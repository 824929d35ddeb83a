"""The one table of test models: small, with every coupling of channels that `trace` must get right.

Every test that runs over models takes them from `CASES`, so that a new architecture is one entry here.
`Case.model()` gives a model whose norms have lived (running statistics of random batches, random affines) and
whose biases are not zero: at their initial values most mistakes in the channel bookkeeping do not show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

Example = Tensor | tuple[Any, ...] | dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One model of the table.

    `units` says which axes must be prunable and into how many units: {"conv1.weight": 8} for dimension 0,
    or {"fc.weight:1": 8} for another. `pinned` says which axes must be kept whole and a text that the reason
    must contain (empty: any reason). `engine`: plain convolutional ops, which the native engine runs.
    """

    name: str
    build: Callable[[], nn.Module]
    example: Callable[[], Example]
    engine: bool = False
    units: Mapping[str, int] = field(default_factory=dict)
    pinned: Mapping[str, str] = field(default_factory=dict)
    slow: bool = False

    def model(self, seed: int = 0) -> nn.Module:
        """The model in eval mode with lived-in norms and non-zero biases; the same one for the same seed."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return lived_in(self.build(), self.example())

    def inputs(self, seed: int = 0) -> Example:
        """Random inputs of the example's shape; the same ones for the same seed."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.example()


def call(model: nn.Module, example: Example) -> Any:
    """Run `model` on an example as `trace` takes it: a tensor, a tuple or a dict of keyword tensors."""
    if isinstance(example, dict):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def lived_in(model: nn.Module, example: Example) -> nn.Module:
    """Give `model` random biases, affines and scales and running statistics of random batches; eval mode."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim <= 1 or bool((parameter == 0).all()):
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.train()
        for _ in range(2):
            call(model, _shifted(example))
    return model.eval()


def _shifted(example: Example) -> Example:
    """The example with noise on its float tensors, so that the statistics are not those of one batch."""

    def shifted(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value + 0.5 * torch.randn_like(value) + 0.1
        return value

    return tree_map(shifted, example)


def images(channels: int = 3, size: int = 16, batch: int = 3) -> Callable[[], Tensor]:
    return lambda: torch.randn(batch, channels, size, size)


def vectors(features: int, batch: int = 4) -> Callable[[], Tensor]:
    return lambda: torch.randn(batch, features)


def tokens(vocabulary: int = 50, length: int = 7, batch: int = 2) -> Callable[[], dict[str, Tensor]]:
    return lambda: {
        "input_ids": torch.randint(0, vocabulary, (batch, length)),
        "attention_mask": torch.ones(batch, length, dtype=torch.long),
    }


def conv_norm(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: nn.Module | None = None
) -> nn.Sequential:
    """Convolution without bias, batch norm, activation (ReLU unless given)."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU() if act is None else act,
    )


def classifier(features: int, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes))


# --- convolutional models ---------------------------------------------------------------------------------


def lenet() -> nn.Module:
    from rheostat_recipes.models.lenet import LeNet5

    return LeNet5()


def resnet20() -> nn.Module:
    from rheostat_recipes.models.resnet import resnet20 as build

    return build()


def resnet18() -> nn.Module:
    from rheostat_recipes.models.resnet import resnet18 as build

    return build(num_classes=7)


def resnet50() -> nn.Module:
    from rheostat_recipes.models.resnet import resnet50 as build

    return build(num_classes=7)


def flatten_cnn() -> nn.Module:
    """Convolution, flatten, linear: every channel is a block of the linear's columns."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12 * 3 * 3, 20),
        nn.ReLU(),
        nn.Linear(20, 5),
    )


class Basic(nn.Module):
    """Basic residual block with the zero-padding shortcut, padded at the end, of a CIFAR ResNet.

    `constant`: the number of zeros is a number in Python, which no subnet can change, else it is read from shapes.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, constant: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, outputs - inputs if constant else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        extra = y.shape[1] - x.shape[1] if self.extra is None else self.extra
        return F.relu(y + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, extra)))


class ZeroPad(nn.Module):
    """Stem and three stages whose shortcuts pad zero channels at the end."""

    def __init__(self, constant: bool) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.layer1 = Basic(8, 8, 1, constant)
        self.layer2 = Basic(8, 16, 2, constant)
        self.layer3 = Basic(16, 24, 2, constant)
        self.head = classifier(24)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer3(self.layer2(self.layer1(self.stem(x)))))


class MiddlePadBlock(nn.Module):
    """The published akamaster ResNet's shortcut: planes // 4 zeros on both sides, a constant in Python."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.planes = outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        pad = self.planes // 4
        return F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, pad, pad), "constant", 0))


class MiddlePad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.layer1 = MiddlePadBlock(8, 16)
        self.layer2 = MiddlePadBlock(16, 32)
        self.head = classifier(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer2(self.layer1(self.stem(x))))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a projection shortcut; `cardinality` > 1 is ResNeXt."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int = 1, cardinality: int = 1):
        super().__init__()
        self.reduce = conv_norm(inputs, middle, 1)
        self.conv = conv_norm(middle, middle, 3, stride, groups=cardinality)
        self.expand = conv_norm(middle, outputs, 1, act=nn.Identity())
        project = stride > 1 or inputs != outputs
        self.shortcut = conv_norm(inputs, outputs, 1, stride, act=nn.Identity()) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.expand(self.conv(self.reduce(x))) + self.shortcut(x))


def bottleneck(cardinality: int = 1) -> nn.Module:
    """Stem with max-pool, a projection, an identity and a strided block, as in ResNet-50."""
    return nn.Sequential(
        conv_norm(3, 8, 7, 2),
        nn.MaxPool2d(3, 2, 1),
        Bottleneck(8, 16, 24, 1, cardinality),
        Bottleneck(24, 16, 24, 1, cardinality),
        Bottleneck(24, 32, 40, 2, cardinality),
        classifier(40),
    )


class PreAct(nn.Module):
    """Pre-activation residual block: the norm stands alone in front of the convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 12, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu_())


def preact() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), PreAct(8), PreAct(8), nn.BatchNorm2d(8), nn.ReLU(), classifier(8)
    )


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = F.adaptive_avg_pool2d(x, 1)
        return x * F.hardsigmoid(self.expand(F.relu(self.reduce(scale))))


class InvertedResidual(nn.Module):
    """MobileNetV3: expand, depthwise, squeeze-excite, project."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int):
        super().__init__()
        self.expand = conv_norm(inputs, middle, 1, act=nn.Hardswish())
        self.depthwise = conv_norm(middle, middle, 3, stride, groups=middle, act=nn.Hardswish())
        self.se = SqueezeExcite(middle, 8)
        self.project = conv_norm(middle, outputs, 1, act=nn.Identity())
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.se(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


def mobilenet() -> nn.Module:
    return nn.Sequential(
        conv_norm(3, 8, 3, 2, act=nn.ReLU6()),
        InvertedResidual(8, 24, 8, 1),
        InvertedResidual(8, 24, 12, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 16),
        nn.Hardswish(),
        nn.Dropout(0.2),
        nn.Linear(16, 5),
    )


class SqueezeLinear(nn.Module):
    """Squeeze-excite written with mean, linear layers and view."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, squeezed)
        self.fc2 = nn.Linear(squeezed, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        scale = self.fc2(F.silu(self.fc1(x.mean((2, 3))))).sigmoid().view(batch, channels, 1, 1)
        return x * scale.expand_as(x)


def squeeze_linear() -> nn.Module:
    return nn.Sequential(
        conv_norm(3, 12, act=nn.SiLU()), SqueezeLinear(12, 6), conv_norm(12, 8), classifier(8)
    )


class DenseLayer(nn.Module):
    """Norm, activation, convolution, twice; appends `growth` channels to its input."""

    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = (
            nn.BatchNorm2d(2 * growth),
            nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(y)))], 1)


def densenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        DenseLayer(8, 4),
        DenseLayer(12, 4),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 8, 1, bias=False),
        nn.AvgPool2d(2),
        DenseLayer(8, 4),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        classifier(12),
    )


class Inception(nn.Module):
    """Three branches concatenated, then flattened into a linear: segments of segments."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv_norm(3, 4, 1)
        self.b = conv_norm(3, 8, 3)
        self.c = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_norm(3, 6, 1))
        self.fuse = conv_norm(18, 8, 3, 2)
        self.fc = nn.Linear((8 + 4) * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        branches = torch.cat((self.a(x), self.b(x), self.c(x)), dim=1)
        y = F.max_pool2d(torch.cat((self.fuse(branches), self.a(x)[:, :, ::2, ::2]), dim=1), 2)
        return self.fc(torch.flatten(y, 1))


def grouped(groups: int) -> nn.Module:
    """Grouped convolutions in a row, with other numbers of channels in and out."""
    return nn.Sequential(
        conv_norm(3, 16),
        conv_norm(16, 32, 3, groups=groups),
        conv_norm(32, 16, 1),
        classifier(16),
    )


def grouped_chain() -> nn.Module:
    """Grouped after grouped with other group counts: units of one must be whole in the other, or pinned."""
    return nn.Sequential(
        conv_norm(3, 12, groups=1), conv_norm(12, 12, groups=2), conv_norm(12, 24, groups=3), classifier(24)
    )


def depth_multiplier() -> nn.Module:
    """Depthwise convolution with two outputs a channel: output units are pairs."""
    return nn.Sequential(
        conv_norm(3, 8),
        nn.Conv2d(8, 16, 3, padding=1, groups=8),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        classifier(16),
    )


class Shuffle(nn.Module):
    """Channel shuffle as everyone writes it: view, transpose, reshape."""

    def __init__(self, groups: int):
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.size()
        x = x.view(batch, self.groups, channels // self.groups, height, width)
        return torch.transpose(x, 1, 2).contiguous().view(batch, -1, height, width)


class ShuffleUnit(nn.Module):
    """ShuffleNet unit: grouped 1x1, shuffle, depthwise, grouped 1x1, residual."""

    def __init__(self, channels: int, middle: int, groups: int, shuffle: nn.Module):
        super().__init__()
        self.reduce = conv_norm(channels, middle, 1, groups=groups)
        self.shuffle = shuffle
        self.depthwise = conv_norm(middle, middle, 3, groups=middle, act=nn.Identity())
        self.expand = conv_norm(middle, channels, 1, groups=groups, act=nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.expand(self.depthwise(self.shuffle(self.reduce(x)))))


def shufflenet(shuffle: Callable[[int], nn.Module], groups: int, middle: int) -> nn.Module:
    """Two units; where `middle / groups` is no multiple of `groups`, the two grouped convolutions tie all channels."""
    return nn.Sequential(
        conv_norm(3, 24),
        ShuffleUnit(24, middle, groups, shuffle(groups)),
        ShuffleUnit(24, middle, groups, shuffle(groups)),
        classifier(24),
    )


class ShuffleV2(nn.Module):
    """ShuffleNetV2 unit: one half of the channels passes, the other is convolved, both are shuffled."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            conv_norm(half, half, 1),
            conv_norm(half, half, 3, groups=half, act=nn.Identity()),
            conv_norm(half, half, 1),
        )
        self.shuffle = Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return self.shuffle(torch.cat((a, self.branch(b)), dim=1))


def shufflenet_v2() -> nn.Module:
    return nn.Sequential(conv_norm(3, 16), ShuffleV2(16), ShuffleV2(16), conv_norm(16, 12, 1), classifier(12))


def group_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv2d(16, 12, 3, padding=1),
        nn.GroupNorm(1, 12),
        nn.GELU(),
        nn.Conv2d(12, 8, 3),
        nn.GroupNorm(8, 8),
        nn.ReLU(),
        classifier(8),
    )


def instance_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.InstanceNorm2d(8, affine=True),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.InstanceNorm2d(6),
        nn.LeakyReLU(0.1),
        classifier(6),
    )


def layer_norm_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(10, 16),
        nn.LayerNorm(16),
        nn.GELU(),
        nn.Linear(16, 12),
        nn.LayerNorm(12),
        nn.GELU(approximate="tanh"),
        nn.Linear(12, 5),
    )


def prelu() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.PReLU(8),
        nn.Conv2d(8, 12, 3),
        nn.PReLU(),
        nn.BatchNorm2d(12),
        nn.ELU(),
        classifier(12),
    )


def transposed() -> nn.Module:
    """Transposed convolutions: weight is [in, out / groups, kh, kw]; the last one is depthwise."""
    return nn.Sequential(
        conv_norm(3, 8, 3, 2),
        nn.ConvTranspose2d(8, 12, 4, 2, 1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.ConvTranspose2d(12, 12, 2, 2, groups=12),
        nn.Conv2d(12, 3, 1),
    )


class UNet(nn.Module):
    """Two levels; skips are concatenated; one up-sampling by transposed convolution, one by interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = conv_norm(3, 8), conv_norm(8, 12), conv_norm(12, 16)
        self.up2 = nn.ConvTranspose2d(16, 12, 2, 2)
        self.mix2 = conv_norm(24, 12)
        self.mix1 = conv_norm(20, 8)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.bottom(F.max_pool2d(b, 2))
        b = self.mix2(torch.cat([b, self.up2(c)], 1))
        a = self.mix1(
            torch.cat([F.interpolate(b, scale_factor=2, mode="bilinear", align_corners=False), a], 1)
        )
        return self.out(a)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, channels-last LayerNorm and MLP, layer scale, residual."""

    def __init__(self, channels: int, middle: int):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pointwise1, self.pointwise2 = nn.Linear(channels, middle), nn.Linear(middle, channels)
        self.gamma = nn.Parameter(0.5 * torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pointwise2(F.gelu(self.pointwise1(y)))
        return x + y.permute(0, 3, 1, 2)


class ChannelsFirstNorm(nn.Module):
    """ConvNeXt's LayerNorm over dimension 1, written out."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ConvNeXt(nn.Module):
    def __init__(self, written_out: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.block1 = ConvNeXtBlock(8, 24)
        self.between = ChannelsFirstNorm(8) if written_out else nn.GroupNorm(1, 8)
        self.down = nn.Conv2d(8, 12, 2, 2)
        self.block2 = ConvNeXtBlock(12, 20)
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.down(self.between(self.block1(self.stem(x)))))
        return self.head(self.norm(x.mean([-2, -1])))


def rms_norm_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 12), nn.RMSNorm(12), nn.SiLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)
    )


def weight_norm(groups: int) -> nn.Module:
    """A convolution whose weight is computed: nothing but a rule could say what its channels are."""
    norm = nn.utils.parametrizations.weight_norm
    return nn.Sequential(
        conv_norm(3, 8),
        norm(nn.Conv2d(8, 12, 3, groups=groups)),
        nn.ReLU(),
        conv_norm(12, 10),
        classifier(10),
    )


class DynamicConvolution(nn.Module):
    """A depthwise convolution with weights predicted from another branch, as one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.predict, self.head = conv_norm(3, 8), nn.Linear(3, 72), classifier(8)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.predict(x.mean((0, 2, 3))).view(8, 1, 3, 3)
        return self.head(F.conv2d(self.stem(x), weight, padding=1, groups=8))


class PyramidPooling(nn.Module):
    """The same channels concatenated four times (SPPF), one weight column for each copy."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = (
            conv_norm(3, 8),
            conv_norm(8, 6, 1),
            conv_norm(24, 10, 1),
            classifier(10),
        )

    def forward(self, x: Tensor) -> Tensor:
        pooled = [self.b(self.a(x))]
        for _ in range(3):
            pooled.append(F.max_pool2d(pooled[-1], 5, 1, 2))
        return self.head(self.c(torch.cat(pooled, 1)))


class CrossStage(nn.Module):
    """YOLO's C2f: the halves of a convolution, and every step from the second half on, are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.split = conv_norm(3, 16, 1, act=nn.SiLU())
        self.steps = nn.ModuleList(nn.Sequential(conv_norm(8, 6), conv_norm(6, 8)) for _ in range(2))
        self.fuse, self.head = conv_norm(32, 12, 1), classifier(12)

    def forward(self, x: Tensor) -> Tensor:
        values = list(self.split(x).chunk(2, 1))
        for step in self.steps:
            values.append(values[-1] + step(values[-1]))
        return self.head(self.fuse(torch.cat(values, 1)))


class Mixer(nn.Module):
    """MLP-Mixer: linears over tokens (a fixed number) and over channels."""

    def __init__(self, length: int = 16, channels: int = 12):
        super().__init__()
        self.patch, self.norm1, self.norm2 = (
            nn.Conv2d(3, channels, 4, 4),
            nn.LayerNorm(channels),
            nn.LayerNorm(channels),
        )
        self.tokens = nn.Sequential(nn.Linear(length, 20), nn.GELU(), nn.Linear(20, length))
        self.channels = nn.Sequential(nn.Linear(channels, 18), nn.GELU(), nn.Linear(18, channels))
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.channels(self.norm2(x))).mean(1))


class NonLocal(nn.Module):
    """Convolutional self-attention by bmm, with a learnt scalar gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.gate = conv_norm(3, 12), classifier(12), nn.Parameter(torch.ones(1))
        self.q, self.k, self.v = nn.Conv2d(12, 4, 1), nn.Conv2d(12, 4, 1), nn.Conv2d(12, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        q, k, v = (layer(x).flatten(2) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(torch.bmm(q.transpose(1, 2), k), -1)
        return self.head(x + self.gate * torch.bmm(v, weights.transpose(1, 2)).view_as(x))


def conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(4, 8, 3),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(8, 12, 3, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


def conv3d() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 6, 3),
        nn.BatchNorm3d(6),
        nn.ReLU(),
        nn.Conv3d(6, 8, 2),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def batch_norm_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(10, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 16, bias=False),
        nn.BatchNorm1d(16, affine=False),
        nn.Sigmoid(),
        nn.Dropout(),
        nn.Linear(16, 5),
    )


class Reused(nn.Module):
    """One convolution called three times in a row: its input and output channels are the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = conv_norm(3, 8), nn.Conv2d(8, 8, 3, padding=1), classifier(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = torch.relu(self.conv(x))
        return self.head(x)


class TwoInputsTwoOutputs(nn.Module):
    """Two inputs, two outputs (a tensor and a dict of tensors), a learnt scale and a registered buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 12), nn.Linear(4, 12)
        self.out1, self.out2 = nn.Linear(12, 3), nn.Linear(12, 2)
        self.scale = nn.Parameter(torch.ones(12))
        self.register_buffer("shift", torch.linspace(-1, 1, 12))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.scale * torch.tanh(self.left(a) - self.right(b)) + self.shift
        return self.out1(x), {"second": self.out2(F.softplus(x))}


class Structured(nn.Module):
    """A list of tensors, an argument that is None and a flag; inner features are an output, so they are kept whole."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, pair: list[Tensor], scale: Tensor | None = None, features: bool = False) -> Any:
        x = torch.relu(self.fc1(pair[0] + pair[1]))
        y = self.fc3(torch.relu(self.fc2(x if scale is None else x * scale)))
        return {"logits": y, "features": x} if features else y


class RegisteredTwice(nn.Module):
    """One linear and one norm under two names each, and a frozen first layer."""

    def __init__(self) -> None:
        super().__init__()
        linear, norm = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.layers = nn.Sequential(nn.Linear(6, 8), norm, linear, nn.ReLU(), linear, norm, nn.Linear(8, 3))
        self.layers[0].requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Gated(nn.Module):
    """SwiGLU with one fused projection, split by chunk; and nn.GLU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fused, self.down = nn.LayerNorm(8), nn.Linear(8, 2 * 12, bias=False), nn.Linear(12, 8)
        self.stem, self.glu, self.head = (
            nn.Linear(6, 8),
            nn.Sequential(nn.Linear(8, 20), nn.GLU()),
            nn.Linear(10, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate, up = self.fused(self.norm(x)).chunk(2, dim=-1)
        return self.head(self.glu(x + self.down(F.silu(gate) * up)))


# --- transformers -----------------------------------------------------------------------------------------


class TimmAttention(nn.Module):
    """Fused qkv as in timm: reshape(B, N, 3, heads, dim).permute(2, 0, 3, 1, 4).unbind(0)."""

    def __init__(self, channels: int, heads: int, dim: int, fused: bool):
        super().__init__()
        self.heads, self.dim, self.fused = heads, dim, fused
        self.qkv, self.proj = nn.Linear(channels, 3 * heads * dim), nn.Linear(heads * dim, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q * self.dim**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.proj(y.transpose(1, 2).reshape(batch, length, self.heads * self.dim))


class ChunkAttention(nn.Module):
    """Fused qkv split by chunk, heads by view; causal masked attention written out."""

    def __init__(self, channels: int, heads: int, dim: int):
        super().__init__()
        self.heads, self.dim = heads, dim
        self.qkv, self.proj = nn.Linear(channels, 3 * heads * dim), nn.Linear(heads * dim, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            t.view(batch, length, self.heads, self.dim).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1)
        )
        scores = torch.matmul(q, k.transpose(2, 3)) / self.dim**0.5
        mask = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        y = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v
        return self.proj(y.permute(0, 2, 1, 3).contiguous().flatten(2))


class EinsumAttention(nn.Module):
    """Separate projections, heads by view, products by einsum."""

    def __init__(self, channels: int, heads: int, dim: int):
        super().__init__()
        self.heads, self.dim = heads, dim
        self.q, self.k, self.v = (nn.Linear(channels, heads * dim) for _ in range(3))
        self.proj = nn.Linear(heads * dim, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (layer(x).view(batch, length, -1, self.dim) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(torch.einsum("bqhd,bkhd->bhqk", q, k) * self.dim**-0.5, dim=-1)
        return self.proj(torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, length, -1))


class ViTBlock(nn.Module):
    def __init__(self, channels: int, attention: nn.Module):
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(channels), attention, nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 20), nn.GELU(), nn.Linear(20, channels))
        self.ls1, self.ls2 = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1 * self.attn(self.norm1(x))
        return x + self.ls2 * self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patch embedding, class token, position embedding, two blocks, head on the class token."""

    def __init__(self, attention: Callable[[], nn.Module], channels: int = 16):
        super().__init__()
        self.patch = nn.Conv2d(3, channels, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, channels))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, channels))
        self.blocks = nn.Sequential(*(ViTBlock(channels, attention()) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class TorchTransformer(nn.Module):
    """nn.TransformerEncoderLayer: nn.MultiheadAttention with its packed in_proj."""

    def __init__(self, need_weights: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 16)
        self.layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.stem(x)).mean(1))


def hf_bert(attention: str) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=16,
        initializer_range=0.2,
        attn_implementation=attention,
        num_labels=3,
    )
    return BertForSequenceClassification(config)


def hf_vit(attention: str) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        image_size=16,
        patch_size=4,
        initializer_range=0.2,
        attn_implementation=attention,
        num_labels=3,
    )
    return ViTForImageClassification(config)


def hf_llama(attention: str, tied: bool = False) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=4,
        max_position_embeddings=16,
        initializer_range=0.2,
        use_cache=False,
        attn_implementation=attention,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


def hf_t5() -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4))


def hf_gpt2(attention: str) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=50,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=4,
        n_inner=24,
        initializer_range=0.2,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=attention,
    )
    return GPT2LMHeadModel(config)


class TiedAutoencoder(nn.Module):
    """Embedding, MLP, output projection whose weight is the embedding's: its channels are the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 12)
        self.fc1, self.fc2 = nn.Linear(12, 24), nn.Linear(24, 12)
        self.out = nn.Linear(12, 20)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.out(x + self.fc2(torch.relu(self.fc1(x))))


class TiedTranspose(nn.Module):
    """Autoencoder whose decoder is the encoder's weight transposed, read as a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.bias = nn.Linear(10, 16), nn.Parameter(torch.zeros(10))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.encoder(x)), self.encoder.weight.t(), self.bias)


def frozen() -> nn.Module:
    """All parameters frozen; prunable all the same."""
    return flatten_cnn().requires_grad_(False)


# --- constants in Python, and ops that keep their channels whole -------------------------------------------


class ConstantView(nn.Module):
    """view(-1, 192) after a convolution: a constant that only the full width fits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv, self.fc = (
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.Conv2d(8, 12, 3, 2, 1),
            nn.Linear(192, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(F.relu(self.conv0(x)))).view(-1, 192))


class ConstantSlice(nn.Module):
    """x[:, :8] and x[:, 8:]: the first eight of twelve channels go one way, the others another."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv = conv_norm(3, 6), conv_norm(6, 12)
        self.left, self.right, self.head = conv_norm(8, 10), conv_norm(4, 10), classifier(10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.conv0(x))
        return self.head(self.left(x[:, :8]) + self.right(x[:, 8:]))


class ConstantHead(nn.Module):
    """x[:, :8] of twelve channels, and all twelve: silently the wrong channels if x is made smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.left, self.right, self.head = (
            conv_norm(3, 12),
            conv_norm(8, 10),
            conv_norm(12, 10),
            classifier(10),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(self.left(x[:, :8]) + self.right(x))


class ConstantScale(nn.Module):
    """A scale that is the width, read from the shape: 1 / sqrt(12) at full width, not for a subnet."""

    def __init__(self, from_shape: bool) -> None:
        super().__init__()
        self.fc1, self.fc2, self.from_shape = nn.Linear(6, 12), nn.Linear(12, 3), from_shape

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.fc1(x))
        return self.fc2(x / (x.shape[-1] if self.from_shape else 12) ** 0.5)


class ConstantTensor(nn.Module):
    """Adds a tensor of twelve constants made in forward: no parameter to slice along with the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(x)) + torch.arange(12, dtype=torch.float32))


class Through(nn.Module):
    """A prunable MLP in which `op` acts on the channels of `fc2` only; `fc1` stays prunable."""

    def __init__(self, op: Callable[[Tensor], Tensor]):
        super().__init__()
        self.fc1, self.fc2, self.fc3, self.op = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3), op

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.op(self.fc2(torch.relu(self.fc1(x)))))


def pixel_shuffle() -> nn.Module:
    return nn.Sequential(
        conv_norm(3, 8), nn.Conv2d(8, 16, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(4, 2, 1)
    )


class Recurrent(nn.Module):
    """An LSTM between linears."""

    def __init__(self) -> None:
        super().__init__()
        self.fc0, self.fc1, self.lstm = nn.Linear(6, 16), nn.Linear(16, 8), nn.LSTM(8, 10, batch_first=True)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.fc1(torch.relu(self.fc0(x))))[0][:, -1])


def through(name: str, op: Callable[[Tensor], Tensor], reason: str) -> Case:
    return Case(
        name, lambda: Through(op), vectors(6), units={"fc1.weight": 16}, pinned={"fc2.weight": reason}
    )


# fmt: off
CASES: tuple[Case, ...] = (
    Case("lenet", lenet, images(1, 28), engine=True,
         units={"conv1.weight": 6, "conv2.weight": 16, "fc1.weight": 120, "fc1.weight:1": 16, "fc2.weight": 84}),
    Case("resnet20", resnet20, images(3, 32, 2), engine=True,
         units={"conv1.weight": 16, "layer1.2.conv2.weight": 16, "layer2.0.conv1.weight": 32,
                "layer2.0.conv2.weight": 32, "layer3.0.conv2.weight": 64, "layer3.2.conv1.weight": 64}),
    Case("resnet18", resnet18, images(3, 64, 2), engine=True, slow=True,
         units={"conv1.weight": 64, "layer2.0.conv1.weight": 128, "layer4.1.conv2.weight": 512}),
    Case("resnet50", resnet50, images(3, 64, 2), engine=True, slow=True,
         units={"conv1.weight": 64, "layer1.0.conv1.weight": 64, "layer1.2.conv3.weight": 256,
                "layer4.2.conv3.weight": 2048}),
    Case("flatten_cnn", flatten_cnn, images(1, 16), engine=True,
         units={"0.weight": 8, "3.weight": 12, "7.weight:1": 12, "7.weight": 20, "9.weight:1": 20},
         pinned={"9.weight": "output"}),
    Case("zero_pad", lambda: ZeroPad(False), images(), engine=True,
         units={"stem.0.weight": 8, "layer1.conv1.weight": 8, "layer2.conv1.weight": 16,
                "layer2.conv2.weight": 16, "layer3.conv1.weight": 24, "layer3.conv2.weight": 24}),
    Case("middle_pad", MiddlePad, images(), units={"layer1.conv1.weight": 16, "layer2.conv1.weight": 32},
         pinned={"stem.0.weight": "pad", "layer2.conv2.weight": "pad"}),
    Case("bottleneck", bottleneck, images(3, 32), engine=True,
         units={"0.0.weight": 8, "2.reduce.0.weight": 16, "2.expand.0.weight": 24, "4.expand.0.weight": 40}),
    Case("preact", preact, images(), engine=True, units={"0.weight": 8, "1.conv1.weight": 12}),
    Case("mobilenet", mobilenet, images(), engine=True,
         units={"0.0.weight": 8, "1.expand.0.weight": 24, "1.se.reduce.weight": 8, "2.project.0.weight": 12,
                "5.weight": 16}),
    Case("squeeze_linear", squeeze_linear, images(),
         units={"0.0.weight": 12, "1.fc1.weight": 6, "2.0.weight": 8}),
    Case("densenet", densenet, images(), engine=True,
         units={"0.weight": 8, "1.conv1.weight": 8, "1.conv2.weight": 4, "2.conv2.weight": 4, "5.weight": 8}),
    Case("inception", Inception, images(), units={"a.0.weight": 4, "b.0.weight": 8, "c.1.0.weight": 6}),
    Case("resnext", lambda: bottleneck(8), images(3, 32), engine=True,
         units={"2.conv.0.weight": 8, "2.expand.0.weight": 24}),
    Case("grouped_few", lambda: grouped(2), images(), engine=True,
         units={"0.0.weight": 8, "1.0.weight": 16, "2.0.weight": 16}),
    Case("grouped_many", lambda: grouped(8), images(), engine=True,
         units={"1.0.weight": 8, "2.0.weight": 16}),
    Case("grouped_chain", grouped_chain, images(), engine=True,
         units={"0.0.weight": 6, "1.0.weight": 2, "2.0.weight": 8}),
    Case("depth_multiplier", depth_multiplier, images(), engine=True,
         units={"0.0.weight": 8, "1.weight": 8, "4.2.weight:1": 8}),
    Case("shufflenet_view", lambda: shufflenet(Shuffle, 3, 18), images(),
         units={"0.0.weight": 8, "1.reduce.0.weight": 2, "2.depthwise.0.weight": 2}),
    Case("shufflenet_module", lambda: shufflenet(nn.ChannelShuffle, 2, 16), images(),
         units={"0.0.weight": 12, "1.reduce.0.weight": 4, "2.depthwise.0.weight": 4}),
    Case("shufflenet_tangled", lambda: shufflenet(Shuffle, 3, 12), images(),
         units={"0.0.weight": 8, "1.reduce.0.weight": 1}),
    Case("shufflenet_v2", shufflenet_v2, images(), units={"3.0.weight": 12}),
    Case("group_norm", group_norm, images(), units={"0.weight": 4, "3.weight": 12, "6.weight": 8}),
    Case("instance_norm", instance_norm, images(), units={"0.weight": 8, "3.weight": 6}),
    Case("layer_norm_mlp", layer_norm_mlp, vectors(10), units={"0.weight": 16, "3.weight": 12}),
    Case("rms_norm_mlp", rms_norm_mlp, vectors(6), units={"0.weight": 12, "3.weight": 8}),
    Case("weight_norm", lambda: weight_norm(1), images(), units={"3.0.weight": 10}, pinned={"0.0.weight": ""}),
    Case("weight_norm_grouped", lambda: weight_norm(2), images(), units={"3.0.weight": 10},
         pinned={"0.0.weight": ""}),
    Case("dynamic_convolution", DynamicConvolution, images()),
    Case("pyramid_pooling", PyramidPooling, images(), engine=True,
         units={"a.0.weight": 8, "b.0.weight": 6, "c.0.weight": 10}),
    Case("cross_stage", CrossStage, images(), units={"steps.0.0.0.weight": 6, "fuse.0.weight": 12}),
    Case("mixer", Mixer, images(3, 16, 2),
         units={"patch.weight": 12, "tokens.0.weight": 20, "channels.0.weight": 18}, pinned={"tokens.2.weight": ""}),
    Case("non_local", NonLocal, images(3, 8, 2), units={"stem.0.weight": 12, "q.weight": 4}),
    Case("batch_norm_mlp", batch_norm_mlp, vectors(10), units={"0.weight": 16, "3.weight": 16}),
    Case("prelu", prelu, images(), units={"0.weight": 8, "2.weight": 12}),
    Case("transposed", transposed, images(), units={"0.0.weight": 8}, pinned={"1.weight:1": "conv_transpose"}),
    Case("unet", UNet, images(), units={"down1.0.weight": 8, "bottom.0.weight": 16, "up2.weight:1": 12}),
    Case("convnext", lambda: ConvNeXt(True), images(3, 32, 2),
         units={"block1.pointwise1.weight": 24, "down.weight": 12}, pinned={"stem.weight": "mean"}),
    Case("convnext_group_norm", lambda: ConvNeXt(False), images(3, 32, 2),
         units={"stem.weight": 8, "block1.pointwise1.weight": 24, "down.weight": 12}),
    Case("conv1d", conv1d, lambda: torch.randn(3, 4, 20), units={"0.weight": 4, "4.weight": 6}),
    Case("conv3d", conv3d, lambda: torch.randn(2, 2, 8, 8, 8), units={"0.weight": 6, "3.weight": 8}),
    Case("reused", Reused, images(), units={"stem.0.weight": 8, "conv.weight": 8, "conv.weight:1": 8}),
    Case("two_inputs", TwoInputsTwoOutputs, lambda: (torch.randn(4, 6), torch.randn(4, 4)),
         units={"left.weight": 12, "right.weight": 12, "scale": 12}),
    Case("structured", Structured,
         lambda: {"pair": [torch.randn(4, 6), torch.randn(4, 6)], "scale": None, "features": True},
         units={"fc2.weight": 12}, pinned={"fc1.weight": "output"}),
    Case("registered_twice", RegisteredTwice, vectors(6), units={"layers.0.weight": 8, "layers.2.weight:1": 8}),
    Case("gated", Gated, vectors(6), units={"stem.weight": 8, "fused.weight": 12, "glu.0.weight": 10}),
    Case("vit_timm", lambda: ViT(lambda: TimmAttention(16, 4, 4, True)), images(3, 16, 2),
         units={"patch.weight": 16, "blocks.0.attn.qkv.weight": 4, "blocks.0.mlp.0.weight": 20}),
    Case("vit_timm_eager", lambda: ViT(lambda: TimmAttention(16, 4, 4, False)), images(3, 16, 2),
         units={"patch.weight": 16, "blocks.0.attn.qkv.weight": 4, "blocks.0.mlp.0.weight": 20}),
    Case("vit_chunk", lambda: ViT(lambda: ChunkAttention(16, 4, 4)), images(3, 16, 2),
         units={"patch.weight": 16, "blocks.0.attn.qkv.weight": 4, "blocks.0.mlp.0.weight": 20}),
    Case("vit_einsum", lambda: ViT(lambda: EinsumAttention(16, 4, 4)), images(3, 16, 2),
         units={"blocks.0.attn.q.weight": 4, "blocks.0.attn.proj.weight:1": 4, "blocks.0.mlp.0.weight": 20}),
    Case("torch_transformer", TorchTransformer, lambda: torch.randn(2, 7, 6),
         units={"layer.linear1.weight": 24}),
    Case("hf_bert_eager", lambda: hf_bert("eager"), tokens(),
         units={"bert.encoder.layer.0.attention.self.query.weight": 4,
                "bert.encoder.layer.0.intermediate.dense.weight": 24}),
    Case("hf_bert_sdpa", lambda: hf_bert("sdpa"), tokens(),
         units={"bert.encoder.layer.0.attention.self.query.weight": 4,
                "bert.encoder.layer.0.intermediate.dense.weight": 24}),
    Case("hf_vit_eager", lambda: hf_vit("eager"), lambda: {"pixel_values": torch.randn(2, 3, 16, 16)},
         units={"vit.layers.0.attention.q_proj.weight": 4, "vit.layers.0.mlp.fc1.weight": 24}),
    Case("hf_vit_sdpa", lambda: hf_vit("sdpa"), lambda: {"pixel_values": torch.randn(2, 3, 16, 16)},
         units={"vit.layers.0.attention.q_proj.weight": 4, "vit.layers.0.mlp.fc1.weight": 24}),
    Case("hf_llama_eager", lambda: hf_llama("eager"), tokens(),
         units={"model.layers.0.self_attn.k_proj.weight": 4, "model.layers.0.self_attn.q_proj.weight": 4,
                "model.layers.0.mlp.gate_proj.weight": 24}),
    Case("hf_llama_sdpa", lambda: hf_llama("sdpa", tied=True), tokens(),
         units={"model.layers.0.self_attn.k_proj.weight": 4, "model.layers.0.self_attn.q_proj.weight": 4,
                "model.layers.0.mlp.gate_proj.weight": 24}),
    Case("hf_t5", hf_t5, lambda: {"input_ids": torch.randint(0, 50, (2, 7))},
         units={"encoder.block.0.layer.1.DenseReluDense.wi.weight": 24}),
    Case("hf_gpt2_eager", lambda: hf_gpt2("eager"), tokens(),
         units={"transformer.h.0.attn.c_attn.weight:1": 4, "transformer.h.0.mlp.c_fc.weight:1": 24}),
    Case("hf_gpt2_sdpa", lambda: hf_gpt2("sdpa"), tokens(),
         units={"transformer.h.0.attn.c_attn.weight:1": 4, "transformer.h.0.mlp.c_fc.weight:1": 24}),
    Case("tied_embedding", TiedAutoencoder, lambda: torch.randint(0, 20, (2, 6)),
         units={"embed.weight:1": 12, "fc1.weight": 24}, pinned={"embed.weight": ""}),
    Case("tied_transpose", TiedTranspose, vectors(10), units={"encoder.weight": 16}),
    Case("frozen", frozen, images(1, 16), engine=True, units={"0.weight": 8, "3.weight": 12, "7.weight": 20}),
    Case("constant_view", ConstantView, images(), units={"conv0.weight": 8}, pinned={"conv.weight": "192"}),
    Case("constant_pad", lambda: ZeroPad(True), images(), engine=True,
         units={"layer1.conv1.weight": 8, "layer2.conv1.weight": 16, "layer3.conv1.weight": 24}),
    Case("constant_slice", ConstantSlice, images(), units={"conv0.0.weight": 6, "left.0.weight": 10}),
    Case("constant_head", ConstantHead, images(), units={"left.0.weight": 10}),
    Case("constant_scale", lambda: ConstantScale(False), vectors(6), units={"fc1.weight": 12}),
    Case("shape_scale", lambda: ConstantScale(True), vectors(6), pinned={"fc1.weight": ""}),
    Case("constant_tensor", ConstantTensor, vectors(6), pinned={"fc1.weight": ""}),
    Case("constant_pick", lambda: Through(lambda x: x + x[:, 3:4]), vectors(6), units={"fc1.weight": 16}),
    through("cumsum", lambda x: x.cumsum(1), "cumsum"),
    through("sort", lambda x: x.sort(dim=1).values, "sort"),
    through("roll", lambda x: x.roll(1, dims=1), "roll"),
    through("flip", lambda x: x.flip(1), ""),
    through("topk", lambda x: x.topk(12, dim=1).values, "topk"),
    Case("pixel_shuffle", pixel_shuffle, images(), units={"0.0.weight": 8, "1.weight": 4}),
    Case("lstm", Recurrent, lambda: torch.randn(2, 5, 6),
         units={"fc0.weight": 16}, pinned={"fc1.weight": "lstm"}),
)
# fmt: on
