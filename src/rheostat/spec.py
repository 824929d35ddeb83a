"""The frozen values that both halves of the package, training and running, speak in."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import NoReturn


class ArtifactError(Exception):
    """An artifact that cannot be trusted: the message says where, got, want and, where there is one, the fix."""


def refuse(where: str, got: object, want: str) -> NoReturn:
    """Raise the `ArtifactError` of one field, what it holds cut short."""
    raise ArtifactError(f"{where}: got {reprlib.repr(got)}; want {want}")


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


# --- granularities: the groups of weights that a mask keeps or drops whole --------------------------------------------
# Shapes are torch's: a linear's [out, in], a convolution's [out, in, height, width].


@dataclass(frozen=True)
class Element:
    """Single weights, anywhere (irregular): 8,192 groups of 1 in [64, 128].

    >>> mask(torch.tensor([[1.0, 4.0], [3.0, 2.0]]), Element(), 0.5)
    tensor([[False,  True],
            [ True, False]])
    """


@dataclass(frozen=True)
class Row:
    """Output neurons or filters: 64 groups of 128 in [64, 128], 64 of 288 in [64, 32, 3, 3].

    >>> mask(torch.tensor([[1.0, 4.0], [3.0, 2.0]]), Row(), 0.5)
    tensor([[ True,  True],
            [False, False]])
    """


@dataclass(frozen=True)
class Column:
    """Input features, or one position of every filter: 128 groups of 64 in [64, 128], 288 of 64 in [64, 32, 3, 3].

    >>> mask(torch.tensor([[1.0, 4.0], [3.0, 2.0]]), Column(), 0.5)
    tensor([[False,  True],
            [False,  True]])
    """


@dataclass(frozen=True)
class Channel:
    """Input channels: 32 groups of 576 in [64, 32, 3, 3]; the columns of a linear.

    >>> mask(torch.rand(64, 32, 3, 3), Channel(), 0.25).any((0, 2, 3)).sum()
    tensor(24)
    """


@dataclass(frozen=True)
class Kernel:
    """Connections of an input channel to a filter (connectivity): 2,048 groups of 9 in [64, 32, 3, 3].

    >>> mask(torch.rand(64, 32, 3, 3), Kernel(), 0.25, balanced=True).any((2, 3)).sum(1).unique()
    tensor([24])
    """


@dataclass(frozen=True)
class Block:
    """Tiles of the matrix [out, in * height * width]: 8 groups of 1,024 in [64, 128], 18 in [64, 32, 3, 3].

    Tiles at the edge may be smaller; they count with the root mean square of the weights that they have.

    >>> mask(torch.rand(64, 128), Block(), 0.5).sum()
    tensor(4096)
    """

    rows: int = 32
    columns: int = 32

    def __post_init__(self) -> None:
        for name, size in (("rows", self.rows), ("columns", self.columns)):
            if type(size) is not int or size < 1:
                raise ValueError(f"Block: {name}: got {size!r}; want 1 or more")


@dataclass(frozen=True)
class Pattern:
    """Cells inside each kernel, as many in each: 2,048 kernels that keep 4 of 9 cells in [64, 32, 3, 3].

    patterns: the sets of cells (numbered row by row) of which each kernel keeps the best, as cells or by name: "pconv",
        "corner", "eight" (both) are sets of 4 cells for 3x3; "natural" the `num_patterns` sets that most kernels of the
        tensor have as their largest cells, "rows" and "columns" all sets of whole kernel rows or columns: any size.
    num_patterns: of "natural" only.

    The sparsity says how many cells are kept: of a 3x3 kernel 4 at 5/9, of a 5x5 one 2 rows at 0.6.

    >>> mask(torch.arange(9.0).view(1, 1, 3, 3), Pattern("pconv"), 5 / 9)[0, 0]
    tensor([[False, False, False],
            [ True,  True,  True],
            [False,  True, False]])
    """

    patterns: str | tuple[tuple[int, ...], ...] = "pconv"
    num_patterns: int = 8

    def __post_init__(self) -> None:
        if isinstance(self.patterns, str):
            good = self.patterns in ("pconv", "corner", "eight", "natural", "rows", "columns")
        else:
            good = bool(self.patterns) and all(
                cells and cells[0] >= 0 and list(cells) == sorted(set(cells)) for cells in self.patterns
            )
        if not good:
            raise ValueError(
                f"Pattern: patterns: got {self.patterns!r}; want 'pconv', 'corner', 'eight', 'natural', 'rows', "
                "'columns', or tuples of ascending cells such as ((0, 1, 3, 4), (4, 5, 7, 8))"
            )
        if type(self.num_patterns) is not int or self.num_patterns < 1:
            raise ValueError(f"Pattern: num_patterns: got {self.num_patterns!r}; want 1 or more")


@dataclass(frozen=True)
class NM:
    """`n` of every `m` consecutive inputs of an output: 2,048 runs of 4 that keep 2 each in [64, 128].

    >>> mask(torch.tensor([[1.0, 4.0, 3.0, 2.0]]), NM(2, 4), 0.5)
    tensor([[False,  True,  True, False]])
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        if type(self.n) is not int or type(self.m) is not int or not 1 <= self.n < self.m:
            raise ValueError(f"NM: got n={self.n!r}, m={self.m!r}; want 1 <= n < m, such as 2 and 4")


Granularity = Element | Row | Column | Channel | Kernel | Block | Pattern | NM
