"""SqueezeNext (Gholami et al. 2018): the pruning paper's ImageNet network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SqueezeNextBlock(nn.Module):
    """Two 1x1 convolutions that squeeze, a 3x1, a 1x3, and a 1x1 that expands, beside a shortcut."""

    def __init__(self, num_in: int, num_out: int, stride: int, tall_first: bool) -> None:
        super().__init__()
        half, first, second = num_out // 2, (3, 1), (1, 3)
        if not tall_first:
            first, second = second, first
        self.squeeze1 = _conv(num_in, half, (1, 1), stride)
        self.squeeze2 = _conv(half, num_out // 4, (1, 1))
        self.conv1 = _conv(num_out // 4, half, first)
        self.conv2 = _conv(half, half, second)
        self.expand = _conv(half, num_out, (1, 1))
        self.shortcut = _conv(num_in, num_out, (1, 1), stride) if num_in != num_out else None

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, num_in, H, W] to [N, num_out, H / stride, W / stride]."""
        out = self.squeeze2(self.squeeze1(x))
        out = self.expand(self.conv2(self.conv1(out)))
        if self.shortcut is not None:
            x = self.shortcut(x)
        return F.relu(out + x)


class SqueezeNext(nn.Module):
    """SqueezeNext for 224x224 images: [N, 3, H, W] to [N, classes].

    The blocks of a stage begin in turn with their 3x1 and their 1x3 convolution, as in the authors' own file. Every
    convolution has a bias in front of its norm: the published number of parameters counts it.
    """

    def __init__(
        self,
        num_blocks: tuple[int, int, int, int] = (6, 6, 8, 1),
        widths: tuple[int, int, int, int] = (32, 64, 128, 256),
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 64, 7, 2, padding=1), nn.BatchNorm2d(64), nn.ReLU())
        blocks, num_in = [], 64
        for stage, (num, width) in enumerate(zip(num_blocks, widths, strict=True)):
            for block in range(num):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(SqueezeNextBlock(num_in, width, stride, tall_first=block % 2 == 0))
                num_in = width
        self.blocks = nn.Sequential(*blocks)
        self.conv2 = _conv(num_in, 128, (1, 1))
        self.fc = nn.Linear(128, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, 3, H, W] to logits [N, classes]."""
        x = F.max_pool2d(self.conv1(x), 3, stride=2, ceil_mode=True)
        x = self.conv2(self.blocks(x))
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        return self.fc(x)


def squeezenext23(num_classes: int = 1000) -> SqueezeNext:
    """1.0-SqNxt-23: 724,056 parameters; 275,920,640 MACs at 224 pixels, 281,916,416 at 227.

    The 287.28M that are published for 224 pixels (osmr/imgclsmob) are half of all operations, norms, ReLUs and the
    pooling included.

    >>> sum(p.numel() for p in squeezenext23().parameters())
    724056
    """
    return SqueezeNext(num_classes=num_classes)


def _conv(num_in: int, num_out: int, kernel: tuple[int, int], stride: int = 1) -> nn.Sequential:
    padding = (kernel[0] // 2, kernel[1] // 2)
    return nn.Sequential(
        nn.Conv2d(num_in, num_out, kernel, stride, padding), nn.BatchNorm2d(num_out), nn.ReLU()
    )
