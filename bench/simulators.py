"""Exported C on simulated devices: QEMU for Cortex-M and RISC-V, mspdebug for the MSP430.

Debian's packages: gcc-arm-none-eabi picolibc-arm-none-eabi qemu-system-arm, gcc-riscv64-unknown-elf
picolibc-riscv64-unknown-elf qemu-system-misc, clang-14 lld-14 mspdebug. QEMU counts instructions and knows no cycles;
mspdebug counts the cycles of a classic MSP430 without wait states, an estimate. `missing` says what a device lacks.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FIRMWARE = Path(__file__).with_name("firmware")
QEMU = ("-nographic", "-monitor", "none", "-serial", "none", "-icount", "shift=0")
SEMIHOSTING = ("-semihosting-config", "enable=on,target=native")
PICOLIBC = ("--specs=picolibc.specs", "--oslib=semihost", "--crt0=semihost")


@dataclass(frozen=True)
class Device:
    """A simulated device: how to compile for it and what runs it."""

    name: str
    compiler: str
    flags: tuple[str, ...]
    link: tuple[str, ...]
    emulator: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """What a device did: outputs that differ from the golden ones, and what an inference took in each level.

    cycles is an estimate, and None where the simulator has none. written_bytes: non-volatile memory, by one switch.
    code_bytes: all of net.o but its constants, the structures that describe the layers included.
    """

    wrong: int
    written_bytes: int
    instructions: tuple[int, ...]
    cycles: tuple[int, ...] | None
    code_bytes: int
    ram_bytes: int


def _arm(name: str, machine: str, flash: str, ram: str) -> Device:
    symbols = {"__flash": "0", "__flash_size": flash, "__ram": "0x20000000", "__ram_size": ram}
    return Device(
        name,
        "arm-none-eabi-gcc",
        (f"-mcpu={name}", "-mthumb"),
        (*PICOLIBC, *(f"-Wl,--defsym={key}={value}" for key, value in symbols.items())),
        ("qemu-system-arm", "-M", machine, *QEMU, *SEMIHOSTING, "-kernel"),
    )


# The microbit is a Cortex-M0: the instructions of the M0+, its memory is what limits the nets.
CORTEX_M0PLUS = _arm("cortex-m0plus", "microbit", "256K", "16K")
CORTEX_M3 = _arm("cortex-m3", "mps2-an385", "4M", "4M")
CORTEX_M4 = _arm("cortex-m4", "mps2-an386", "4M", "4M")
RISCV32 = Device(
    "riscv32",
    "riscv64-unknown-elf-gcc",
    ("-march=rv32imac_zicsr", "-mabi=ilp32"),
    (
        *("-march=rv32imac", *PICOLIBC, "-Wl,--defsym=__flash=0x80000000", "-Wl,--defsym=__flash_size=4M"),
        *("-Wl,--defsym=__ram=0x80400000", "-Wl,--defsym=__ram_size=4M"),
    ),
    ("qemu-system-riscv32", "-M", "virt", "-bios", "none", *QEMU, *SEMIHOSTING, "-kernel"),
)
MSP430 = Device(
    "msp430",
    "clang-14",
    ("--target=msp430", "-mhwmult=16bit", "-ffreestanding", "-ffunction-sections"),
    ("--gc-sections", "-T", str(FIRMWARE / "msp430.ld")),
    ("mspdebug", "sim"),
)
DEVICES = (CORTEX_M4, CORTEX_M3, CORTEX_M0PLUS, RISCV32, MSP430)


def missing(device: Device) -> list[str]:
    """The tools of `device` that are not installed."""
    tools = [device.compiler, device.emulator[0], *(["ld.lld-14"] if device is MSP430 else [])]
    return [tool for tool in tools if shutil.which(tool) is None]


def measure(device: Device, source: Path, optimize: str = "-O2") -> Measured:
    """Compile the net that `export_c` wrote to `source`, run it on `device` and read what it says."""
    with tempfile.TemporaryDirectory() as folder:
        program = build(device, source, Path(folder), "main.c", (optimize,))
        text, data, ram_bytes = map(
            int, _run(["size", str(Path(folder) / "net.o")]).split("\n")[1].split()[:3]
        )
        if device is MSP430:
            wrong, written, counts, cycles = _mspdebug(program, _macro(source, "NET_LEVELS"))
        else:
            said = _run([*device.emulator, str(program)])
            pairs = [line.split() for line in said.splitlines()]
            (wrong,), (written,), (loop,) = (
                [int(n) for key, n in pairs if key == name] for name in ("wrong", "written", "loop")
            )
            # Two million instructions took `loop` steps of the counter.
            counts = [round(int(n) * 2_000_000 / loop) for key, n in pairs if key == "level"]
            cycles = None
    code_bytes = text + data - _macro(source, "NET_CONSTANT_BYTES")
    return Measured(wrong, written, tuple(counts), cycles and tuple(cycles), code_bytes, ram_bytes)


def build(device: Device, source: Path, folder: Path, main: str, flags: Sequence[str] = ("-O2",)) -> Path:
    """Compile `firmware/main` with the net in `source` and link them; returns the program."""
    units = [FIRMWARE / main, source / "net.c", *([FIRMWARE / "msp430.c"] if device is MSP430 else [])]
    objects = [folder / f"{unit.stem}.o" for unit in units]
    specs = [] if device is MSP430 else [PICOLIBC[0]]
    for unit, target in zip(units, objects, strict=True):
        options = [*device.flags, *specs, "-std=gnu99", *flags, "-I", str(source)]
        _run([device.compiler, *options, "-c", str(unit), "-o", str(target)])
    program = folder / "firmware.elf"
    linker = ["ld.lld-14"] if device is MSP430 else [device.compiler, *device.flags]
    _run([*linker, *device.link, *map(str, objects), "-o", str(program)])
    return program


def mspdebug(program: Path, commands: Sequence[str]) -> str:
    """What mspdebug prints, with a hardware multiplier, a tracer called t, and `commands` after loading `program`."""
    return _run([*MSP430.emulator, f"prog {program}", "simio add hwmult h", "simio add tracer t", *commands])


def _mspdebug(program: Path, num_levels: int) -> tuple[int, int, list[int], list[int]]:
    """Marks come in pairs; nothing lies between those of the first pair."""
    pair = ["run", "simio config t clear", "run", "simio info t"]
    ends = ["delbreak", "setbreak finish", "run", "md wrong 4", "md written 4"]
    said = mspdebug(program, ["setbreak mark", *(pair * (1 + num_levels)), *ends])
    counts = [int(n) for n in re.findall(r"Instruction count: (\d+)", said)][1:]
    cycles = [int(n) for n in re.findall(r"MCLK: +(\d+)", said)][1:]
    return memory(said)[0], memory(said)[1], counts, cycles


def memory(said: str) -> list[int]:
    """The 4-byte numbers that `md` printed."""
    lines = re.findall(r"^ +[0-9a-f]{5}: ((?:[0-9a-f]{2} ){4}) *\|", said, re.MULTILINE)
    return [int.from_bytes(bytes.fromhex(line), "little", signed=True) for line in lines]


def _macro(source: Path, name: str) -> int:
    found = re.search(
        rf"^#define {name} (\d+)$", (source / "net.h").read_text(encoding="ascii"), re.MULTILINE
    )
    assert found is not None, name
    return int(found.group(1))


def _run(command: list[str]) -> str:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}: {done.stdout[-2000:]}")
    return done.stdout
