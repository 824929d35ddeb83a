"""Energy of small devices: what a switch reads and writes, and what that and a multiply-accumulate cost.

Every constant names its source. They differ tenfold, so that an estimate is a range over `MEMORIES`, not a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

LAYOUTS = ("swap", "differences", "level order")
RECORD_BYTES = 8
"""A switch record: sequence number, active subnet, target and checksum, padded to two 32-bit words."""


@dataclass(frozen=True)
class Memory:
    """Non-volatile memory: nanoseconds and nanojoules for a byte read and a byte written, and where they stand."""

    name: str
    read_ns: float
    read_nj: float
    write_ns: float
    write_nj: float
    source: str


PAPER = Memory(
    "paper",
    read_ns=1e3 / 1.2,
    read_nj=1.47 / 1.2,
    write_ns=1e3 / 1.3,
    write_nj=1.51 / 1.3,
    source="Pruning paper, section 3.1: 1.2 MB read in 1 s with 1.47 mJ, 1.3 MB written in 1 s with 1.51 mJ. It "
    "does not name the memory; that writing costs less than reading is odd for a non-volatile one.",
)
FRAM = Memory(
    "external FRAM",
    read_ns=64 / 16e-3 / 2,
    read_nj=27 / 2,
    write_ns=64 / 16e-3 / 2,
    write_nj=26.815 / 2,
    source="iNAS, MSP430FR5994 with FRAM on SPI (EMCLab-Sinica/Intermittent-aware-NAS, microbench_measurements.py): 27 "
    "nJ read, 26.8 nJ written and 64 cycles of 16 MHz an element, taken for 16 bits; 0.2 µJ a transfer left out.",
)
FLASH = Memory(
    "flash",
    read_ns=2 / 16e-3 / 2,
    read_nj=5.2 / 2,
    write_ns=30 / 476e-6 / 2,
    write_nj=461 / 2,
    source="MSP430 flash: 5.2 nJ to read, 461 nJ to write a word (Ransford et al., HotPower 2008, quoted in eh-sim), "
    "2 cycles of 16 MHz to read one and 30 of 476 kHz to write it (TI SLAS504B). Erasing first is left out: about "
    "another 44 nJ a byte.",
)
MEMORIES = (PAPER, FRAM, FLASH)


@dataclass(frozen=True)
class Compute:
    """Arithmetic: nanoseconds and nanojoules for one multiply-accumulate, operands in RAM, and where they stand."""

    name: str
    mac_ns: float
    mac_nj: float
    source: str


INAS = "iNAS, MSP430FR5994 at 16 MHz (EMCLab-Sinica/Intermittent-aware-NAS, microbench_measurements.py)"
CPU = Compute("CPU", (12 + 44) / 16e-3, 3.9355 + 19.2533, f"{INAS}: one addition and one multiplication in C")


def lea(length: int) -> Compute:
    """Return what the vector unit of an MSP430FR5994 costs for products of vectors of `length` elements.

    Starting it costs as much as nine multiply-accumulates of the CPU. Raises ValueError below one element.

    >>> [round(lea(length).mac_nj, 1) for length in (5, 25, 150)]
    [41.4, 8.7, 1.9]
    """
    if length < 1:
        raise ValueError(f"lea: got length={length}; want 1 or more elements")
    cycles, nanojoules = 1.5 + 616 / length, 0.5273 + 204.41 / length
    return Compute(
        f"LEA, {length}", cycles / 16e-3, nanojoules, f"{INAS}: 616 + 1.5 n cycles, 204 + 0.53 n nJ"
    )


@dataclass(frozen=True)
class SwitchCost:
    """Bytes that a switch reads and writes, and their time and energy."""

    read_bytes: int
    written_bytes: int
    time_ms: float
    energy_mj: float


def switch_cost(
    sizes_bytes: Sequence[int], active: int, target: int, layout: str, memory: Memory = PAPER
) -> SwitchCost:
    """Return what it costs to replace the weights of subnet `active` by those of `target`.

    sizes_bytes: of the weights that each subnet keeps, smallest first; every subnet holds all smaller ones.
    layout: how the weights lie in `memory`.
        "swap": each subnet whole, and a copy of the active one that runs: all of the target is read and written.
        "differences": each level once, and a dense array that runs: what the target has more is read and written, what
        it has less is overwritten with zeros.
        "level order": each level once, one behind the other, and run from there: a subnet is where to stop.

    A switch writes one record of `RECORD_BYTES` that commits it, and where weights are overwritten one before that,
    so that it can be replayed after a power failure. No switch costs nothing. Raises ValueError for wrong arguments.

    LeNet-5 of 61,706 weights at 16 bits, 60.24, 40.50 and 20.70 % sparse:

    >>> sizes = [49069, 73430, 97866]
    >>> [switch_cost(sizes, 0, 2, layout).written_bytes for layout in LAYOUTS]
    [97882, 48813, 8]
    >>> [round(switch_cost(sizes, 0, 2, layout).energy_mj, 3) for layout in LAYOUTS]
    [0.234, 0.116, 0.0]
    """
    if layout not in LAYOUTS:
        raise ValueError(f"switch_cost: got layout={layout!r}; want one of: {', '.join(LAYOUTS)}")
    sizes = list(sizes_bytes)
    if (
        not sizes
        or not all(isinstance(size, Integral) and size >= 0 for size in sizes)
        or sizes != sorted(sizes)
    ):
        raise ValueError(
            f"switch_cost: got sizes_bytes={sizes}; want bytes, smallest subnet first, in whole numbers"
        )
    if not all(isinstance(index, Integral) and 0 <= index < len(sizes) for index in (active, target)):
        raise ValueError(f"switch_cost: got active={active}, target={target}; want 0 to {len(sizes) - 1}")
    if active == target:
        return SwitchCost(0, 0, 0.0, 0.0)
    more = sizes_bytes[target] - sizes_bytes[active]
    read, written = {
        "swap": (sizes_bytes[target], sizes_bytes[target] + 2 * RECORD_BYTES),
        "differences": (max(more, 0), abs(more) + 2 * RECORD_BYTES),
        "level order": (0, RECORD_BYTES),
    }[layout]
    return SwitchCost(
        read,
        written,
        time_ms=(read * memory.read_ns + written * memory.write_ns) * 1e-6,
        energy_mj=(read * memory.read_nj + written * memory.write_nj) * 1e-6,
    )
