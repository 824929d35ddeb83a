"""Random small convolutional networks for property tests: layers, residual sums and concatenations wired at random."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RandomNet(nn.Module):
    """Runs `steps` on a growing list of values; every value is [N, channels, 6, 6].

    A step is (kind, indices of its inputs); its layer, where it has one, is `layers[str(position)]`.
    """

    def __init__(self, steps: list[tuple[str, tuple[int, ...]]], layers: dict[str, nn.Module], features: int):
        super().__init__()
        self.steps, self.layers = steps, nn.ModuleDict(layers)
        self.head = nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for position, (kind, inputs) in enumerate(self.steps):
            picked = [values[i] for i in inputs]
            if kind == "add":
                y = picked[0] + picked[1]
            elif kind == "mul":
                y = picked[0] * torch.sigmoid(picked[1].mean((2, 3), keepdim=True))
            elif kind == "cat":
                y = torch.cat(picked, 1)
            elif kind == "shuffle":
                n, c, h, w = picked[0].shape
                y = picked[0].view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
            elif kind == "halves":
                a, b = picked[0].chunk(2, 1)
                y = F.relu(a) * b
            else:
                y = self.layers[str(position)](picked[0])
            values.append(y)
        return self.head(F.avg_pool2d(F.relu(values[-1]), 6).flatten(1))


@st.composite
def random_nets(draw: st.DrawFn, kinds: tuple[str, ...] = ()) -> RandomNet:
    """A stem and 2 to 7 random steps on values of 4 to 16 channels."""
    kinds = kinds or (
        "conv",
        "conv",
        "norm",
        "add",
        "add",
        "cat",
        "depthwise",
        "grouped",
        "mul",
        "shuffle",
        "halves",
    )
    steps: list[tuple[str, tuple[int, ...]]] = [("conv", (0,))]
    layers: dict[str, nn.Module] = {"0": nn.Conv2d(3, draw(st.sampled_from((4, 8))), 3, padding=1)}
    channels = [3, layers["0"].out_channels]
    for position in range(1, draw(st.integers(3, 8))):
        kind = draw(st.sampled_from(kinds))
        i = draw(st.integers(1, len(channels) - 1))
        same = [j for j in range(1, len(channels)) if channels[j] == channels[i]]
        inputs, outputs = (i,), channels[i]
        if kind in ("add", "mul"):
            inputs = (i, draw(st.sampled_from(same)))
        elif kind == "cat":
            j = draw(st.integers(1, len(channels) - 1))
            if channels[i] + channels[j] > 16:
                kind = "norm"
            else:
                inputs, outputs = (i, j), channels[i] + channels[j]
        elif kind == "halves":
            outputs = channels[i] // 2
            if outputs < 4:
                kind, outputs = "norm", channels[i]
        if kind == "conv":
            outputs = draw(st.sampled_from((4, 8, 12)))
            layers[str(position)] = nn.Conv2d(channels[i], outputs, 3, padding=1)
        elif kind == "depthwise":
            layers[str(position)] = nn.Conv2d(outputs, outputs, 3, padding=1, groups=outputs)
        elif kind == "grouped":
            layers[str(position)] = nn.Conv2d(outputs, 8, 1, groups=draw(st.sampled_from((2, 4))))
            outputs = 8
        elif kind == "norm":
            layers[str(position)] = nn.Sequential(nn.BatchNorm2d(outputs), nn.ReLU())
        steps.append((kind, inputs))
        channels.append(outputs)
    return RandomNet(steps, layers, channels[-1])
