"""The frozen values that both halves of the package, training and running, speak in."""

from __future__ import annotations

from dataclasses import dataclass


class ArtifactError(Exception):
    """An artifact that cannot be trusted: the message says where, got, want and, where there is one, the fix."""


@dataclass(frozen=True)
class Subnet:
    """One operating point: how many units of each channel group it keeps.

    `widths[g]` counts the kept units (channels, heads, whole groups) of `graph.groups[g]`. Without `units` they are the
    first ones in the order of importance; `units[g]`, ascending, says which ones they are in the traced model.

    >>> Subnet("0.5", (2, 1), ((0, 3), (1,))).widths
    (2, 1)
    """

    name: str
    widths: tuple[int, ...]
    units: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True)
class Quant:
    """How many bits `quantize` gives to weights and to activations: 8 or 16 each.

    >>> Quant().bits_weights, Quant(16, 16).bits_activations
    (8, 16)
    """

    bits_weights: int = 8
    bits_activations: int = 8

    def __post_init__(self) -> None:
        for name, bits in (
            ("bits_weights", self.bits_weights),
            ("bits_activations", self.bits_activations),
        ):
            if type(bits) is not int or bits not in (8, 16):
                raise ValueError(f"Quant: {name}: got {bits!r}; want 8 or 16")


@dataclass(frozen=True)
class Cost:
    """What one subnet costs: parameters, multiply-accumulates for one sample, bytes of its tensors.

    >>> Cost(parameters=10, macs=20, size_bytes=40).size_bytes
    40
    """

    parameters: int
    macs: int
    size_bytes: int


@dataclass(frozen=True)
class SubnetInfo:
    """A subnet as the artifact describes it: its cost and, once measured, accuracy (0 to 1) and latency (ms, batch 1).

    >>> SubnetInfo("0.5", 10, 20, 40).accuracy is None
    True
    """

    name: str
    parameters: int
    macs: int
    size_bytes: int
    accuracy: float | None = None
    latency_ms_p50: float | None = None
    latency_ms_p95: float | None = None
