"""The frozen values that both halves of the package, training and running, speak in."""

from __future__ import annotations

from dataclasses import dataclass


class ArtifactError(Exception):
    """An artifact that cannot be trusted: the message says where, got, want and, where there is one, the fix."""


@dataclass(frozen=True)
class Subnet:
    """One operating point: how many units of each channel group it keeps.

    `widths[g]` counts the kept units (channels, heads, whole groups) of `graph.groups[g]`; they are always the first
    ones, so that every smaller subnet is a prefix of the larger.

    >>> Subnet("0.5", (8, 16)).widths
    (8, 16)
    """

    name: str
    widths: tuple[int, ...]


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
