"""HAR-Net for windows of nine inertial channels: the pruning paper's activity network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class HARNet(nn.Module):
    """Three convolutions along time: [N, 9, 1, 128] to [N, classes]; 732,672 MACs at 6 classes.

    The pruning paper does not draw its HAR-Net. Channels and pooling are those of the network that iPrune (Lin et al.
    2023) prunes for the same kind of device; its kernels of two weights are five wide here, so that a pattern inside
    a kernel has something to choose from.

    >>> sum(p.numel() for p in HARNet().parameters())
    24054
    """

    def __init__(self, num_classes: int = 6) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(9, 18, (1, 5), padding=(0, 2))
        self.conv2 = nn.Conv2d(18, 36, (1, 5), padding=(0, 2))
        self.conv3 = nn.Conv2d(36, 72, (1, 5), padding=(0, 2))
        self.fc = nn.Linear(72 * 16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map windows [N, 9, 1, 128] to logits [N, classes]."""
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.max_pool2d(F.relu(conv(x)), (1, 2))
        return self.fc(torch.flatten(x, 1))
