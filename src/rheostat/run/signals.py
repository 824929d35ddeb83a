"""What Linux says about battery, heat and processors: the I/O that governors themselves never do."""

from __future__ import annotations

import os
from pathlib import Path

from rheostat.run.policy import Signals


def read_signals(root: str | os.PathLike[str] = "/") -> Signals:
    """Read the machine's signals; None for each that is absent, unreadable or makes no sense.

    root: where /sys and /proc are, for tests. Reads /sys/class/power_supply (charge, and whether a mains supply is
    online), /sys/class/thermal (the hottest zone), cpu.max of the process's control group (version 2) and of those
    above it, and /proc/pressure/cpu. `harvest_w` is never filled in: a forecast is yours. Raises nothing.

    >>> read_signals("/nowhere")
    Signals(battery=None, on_ac=None, harvest_w=None, temp_c=None, cpu_quota=None, pressure=None)
    """
    base = Path(root)
    battery, on_ac = _power_supply(base / "sys/class/power_supply")
    return Signals(
        battery=battery,
        on_ac=on_ac,
        temp_c=_hottest_c(base / "sys/class/thermal"),
        cpu_quota=_cpu_quota(base),
        pressure=_pressure(base / "proc/pressure/cpu"),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):  # sensors that are off answer with an error
        return ""


def _number(text: str) -> float | None:
    try:
        return float(int(text))
    except (ValueError, OverflowError):
        return None


def _folders(path: Path, pattern: str = "*") -> list[Path]:
    try:
        return sorted(path.glob(pattern))
    except OSError:
        return []


def _power_supply(path: Path) -> tuple[float | None, bool | None]:
    """Charge of the emptiest battery of the system, and whether it is plugged in."""
    charges: list[float] = []
    online: list[bool] = []
    for supply in _folders(path):
        kind = _text(supply / "type")
        # A battery of scope "Device" belongs to a mouse or a headset.
        if kind == "Battery" and _text(supply / "scope") != "Device":
            percent = _number(_text(supply / "capacity"))
            if percent is not None and 0 <= percent <= 100:
                charges.append(percent / 100)
        elif kind in ("Mains", "USB"):
            value = _number(_text(supply / "online"))
            if value is not None:
                online.append(value > 0)
    return min(charges, default=None), any(online) if online else None


def _hottest_c(path: Path) -> float | None:
    thousandths = [_number(_text(zone / "temp")) for zone in _folders(path, "thermal_zone*")]
    # Some zones answer 0 or -273 °C while their device sleeps.
    return max((value / 1e3 for value in thousandths if value is not None and value > 0), default=None)


def _cpu_quota(base: Path) -> float | None:
    top = base / "sys/fs/cgroup"
    names = [line[3:] for line in _text(base / "proc/self/cgroup").splitlines() if line.startswith("0::")]
    parts = [part for part in (names[0] if names else "/").split("/") if part not in ("", "..")]
    quotas = []
    for depth in range(len(parts) + 1):
        words = _text(top.joinpath(*parts[:depth]) / "cpu.max").split()
        if len(words) == 2:  # "max 100000" has no quota: it is no number
            quota_us, period_us = map(_number, words)
            if quota_us is not None and period_us:
                quotas.append(quota_us / period_us)
    return min(quotas, default=None)


def _pressure(path: Path) -> float | None:
    for line in _text(path).splitlines():
        words = line.split()
        if words and words[0] == "some":
            for word in words[1:]:
                name, _, value = word.partition("=")
                if name == "avg10":
                    try:
                        share = float(value) / 100
                    except ValueError:
                        return None
                    return share if 0 <= share <= 1 else None
    return None
