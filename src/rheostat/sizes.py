"""What levels cost in storage: every encoding's bytes, and one shared file beside one model a subnet."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import numpy as np

from rheostat import artifact
from rheostat.cost import aligned
from rheostat.encodings import codes
from rheostat.program import ENCODINGS, LEVELS, LevelCode

_BITS = (32, 16, 8)
_NOTE = """\
Pruned tensors only. Below each subnet's name is its sparsity; * is how the file stores the levels; s* is the sparsity
above which an encoding and the weights that are left take less than all weights.
Levels make the file smaller, not the engine faster: it masks a layer's weights before the layer runs. Exported C skips
the removed ones; from which sparsity on that is faster than dense code depends on the processor."""


@dataclass(frozen=True)
class LayerSize:
    """One pruned tensor: how its levels are stored (`chosen`), every way they could be (`codes`, fewest bytes first).

    `separate_index_bytes[k]` is the smallest index that a file with subnet k alone would need, 0 where it keeps all.
    """

    name: str
    chosen: LevelCode
    codes: tuple[LevelCode, ...]
    separate_index_bytes: tuple[int, ...]

    @property
    def num_weights(self) -> int:
        """Weights of the whole tensor."""
        return math.prod(self.chosen.shape)

    def sparsity(self, k: int) -> float:
        """The fraction that subnet `k` does not use."""
        return 1 - self.chosen.kept(k) / self.num_weights


@dataclass(frozen=True)
class SizeReport:
    """The pruned tensors of an artifact and their bytes; `str` and `print` show them as aligned tables."""

    subnets: tuple[str, ...]
    layers: tuple[LayerSize, ...]

    def dense_bytes(self, bits: int) -> int:
        """All weights of `bits` bits, once, without levels."""
        return sum(layer.num_weights for layer in self.layers) * bits // 8

    def shared_bytes(self, bits: int) -> int:
        """The weights that some subnet keeps, once, and their levels: all subnets in one file."""
        last = len(self.subnets) - 1
        return sum(e.chosen.kept(last) * bits // 8 + e.chosen.index_bytes for e in self.layers)

    def separate_bytes(self, bits: int) -> int:
        """One file a subnet, each tensor in the encoding that suits it best, or dense where that takes less."""
        return sum(
            min(layer.chosen.kept(k) * bits // 8 + index, layer.num_weights * bits // 8)
            for layer in self.layers
            for k, index in enumerate(layer.separate_index_bytes)
        )

    def __str__(self) -> str:
        titles = (
            "tensor",
            "weights",
            *self.subnets,
            "levels",
            "bytes",
            *(f"s* {bits} bit" for bits in _BITS),
        )
        rows: list[tuple[str, ...]] = [titles]
        for layer in self.layers:
            sparsities = (f"{layer.sparsity(k):.1%}" for k in range(len(self.subnets)))
            head = (layer.name, f"{layer.num_weights:,}", *sparsities)
            ways = {code.encoding: code for code in reversed((layer.chosen, *layer.codes))}
            for code in (ways[encoding] for encoding in ENCODINGS if encoding in ways):
                name = code.encoding + (f" of {code.group}" if code.group > 1 else "")
                thresholds = (f"{break_even(code, bits):.2%}" for bits in _BITS)
                mark = " *" if code == layer.chosen else "  "
                rows.append((*head, name + mark, f"{code.index_bytes:,}", *thresholds))
                head = ("",) * len(head)
        totals: list[tuple[str, ...]] = [
            ("", "one dense model", "this file", f"{len(self.subnets)} files", "saved")
        ]
        for bits in _BITS:
            shared, separate = self.shared_bytes(bits), self.separate_bytes(bits)
            sizes = (f"{n:,}" for n in (self.dense_bytes(bits), shared, separate))
            totals.append((f"{bits} bit", *sizes, f"{1 - shared / max(1, separate):.1%}"))
        return f"{aligned(rows)}\n\n{aligned(totals)}\n\n{_NOTE}"


def size_report(path: str | os.PathLike[str]) -> SizeReport:
    """What the levels of an artifact take in each encoding, and what sharing the weights saves.

    Reads the whole file. Raises ArtifactError where it cannot be trusted, ValueError where no tensor has levels.

    >>> report = size_report("lenet5.safetensors")  # doctest: +SKIP
    >>> report.shared_bytes(bits=8), report.separate_bytes(bits=8)  # doctest: +SKIP
    (29100, 53900)
    """
    program, tensors = artifact.read(path)
    if not program.levels:
        raise ValueError(f"size_report: {path}: no tensor has levels; save a supernet that has some")
    layers = []
    for name, chosen in program.levels.items():
        levels = tensors[name + LEVELS]
        alone = [
            codes((levels > k).astype(np.uint8), 1)[0].index_bytes if chosen.kept(k) < levels.size else 0
            for k in range(len(program.subnets))
        ]
        layers.append(LayerSize(name, chosen, codes(levels, len(program.subnets)), tuple(alone)))
    return SizeReport(tuple(info.name for info in program.subnets), tuple(layers))


def break_even(code: LevelCode, bits: int) -> float:
    """The sparsity above which the index of `code` and the kept weights take less than all weights of `bits` bits.

    (1 - s) n b + I = n b at s = I / (n b), for an index of I bits whatever the sparsity is. One of c bits for each kept
    weight ("delta") meets it at s = c / (b + c).

    >>> kernels = LevelCode((6, 16, 5, 5), "pattern", 25, (960, 480, 480), 2 * 96)  # 16 bits for each kernel of 25
    >>> break_even(kernels, 16)
    0.04
    """
    index_bits = 8 * code.index_bytes
    if code.encoding != "delta":
        return index_bits / (math.prod(code.shape) * bits)
    each = index_bits / max(1, sum(code.counts))
    return each / (bits + each)
