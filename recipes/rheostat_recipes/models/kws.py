"""A keyword network for log-mel spectrograms: it stands for the pruning paper's OKG-Net."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class KeywordNet(nn.Module):
    """Four convolutions with batch norm: [N, 1, 98, 40] to [N, classes]; 1,787,568 MACs at 12 classes.

    The pruning paper does not draw its OKG-Net. This one reads a second of sound as 98 frames of 40 mel bands and
    halves both sides before the second convolution, so that its weights fit 64 KB at 8 bit with room for the code.

    >>> sum(p.numel() for p in KeywordNet().parameters())
    34848
    """

    def __init__(self, num_classes: int = 12, widths: tuple[int, int, int, int] = (12, 24, 48, 48)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, widths[0], 5, stride=2, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.conv2 = nn.Conv2d(widths[0], widths[1], 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(widths[1])
        self.conv3 = nn.Conv2d(widths[1], widths[2], 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(widths[2])
        self.conv4 = nn.Conv2d(widths[2], widths[3], 3, padding=1, bias=False)
        self.bn4 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map spectrograms [N, 1, frames, bands] to logits [N, classes]."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.max_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        x = F.relu(self.bn4(self.conv4(x)))
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        return self.fc(x)
