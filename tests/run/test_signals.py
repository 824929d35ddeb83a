"""Signals from a made-up machine, from a machine that says nothing, and from this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from rheostat import Signals, read_signals


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    return root


def test_everything(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "sys/class/power_supply/BAT0/type": "Battery\n",
            "sys/class/power_supply/BAT0/capacity": "73\n",
            "sys/class/power_supply/AC/type": "Mains\n",
            "sys/class/power_supply/AC/online": "0\n",
            "sys/class/power_supply/mouse/type": "Battery\n",
            "sys/class/power_supply/mouse/scope": "Device\n",
            "sys/class/power_supply/mouse/capacity": "5\n",
            "sys/class/thermal/thermal_zone0/temp": "41000\n",
            "sys/class/thermal/thermal_zone1/temp": "56500\n",
            "sys/class/thermal/thermal_zone2/temp": "-273000\n",
            "sys/class/thermal/cooling_device0/temp": "99000\n",
            "proc/self/cgroup": "0::/box/app\n",
            "sys/fs/cgroup/box/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/box/app/cpu.max": "max 100000\n",
            "proc/pressure/cpu": "some avg10=12.50 avg60=3.00 avg300=1.00 total=12\nfull avg10=1.00\n",
        },
    )
    assert read_signals(root) == Signals(0.73, False, None, 56.5, 1.5, 0.125)


def test_the_tightest_quota_of_all_groups_counts(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "12:cpu:/old\n0::/a/b\n",
            "sys/fs/cgroup/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
            "sys/fs/cgroup/a/b/cpu.max": "200000 100000\n",
        },
    )
    assert read_signals(root).cpu_quota == 0.5


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"sys/class/power_supply": "not a folder"},
        {"sys/class/power_supply/BAT0/type": "Battery\n", "sys/class/power_supply/BAT0/capacity": "many\n"},
        {"sys/class/power_supply/BAT0/type": "Battery\n", "sys/class/power_supply/BAT0/capacity": "255\n"},
        {"sys/class/thermal/thermal_zone0/temp": "\n"},
        {"proc/self/cgroup": "0::/../../up\n", "sys/fs/cgroup/cpu.max": "max 100000\n"},
        {"proc/self/cgroup": "garbage", "sys/fs/cgroup/cpu.max": "1 0\n"},
        {"proc/pressure/cpu": "some avg10=\n"},
        {"proc/pressure/cpu": "some total=3\n"},
        *({"proc/pressure/cpu": f"some avg10={word}\n"} for word in ("nan", "1e400", "-5")),
        {"sys/class/thermal/thermal_zone0/temp": "9" * 400},
    ],
)
def test_what_is_absent_or_makes_no_sense_is_none(tmp_path: Path, files: dict[str, str]) -> None:
    assert read_signals(machine(tmp_path, files)) == Signals()


def test_this_machine() -> None:
    signals = read_signals()
    assert signals.harvest_w is None
    assert signals.pressure is None or 0 <= signals.pressure <= 1
    assert signals.cpu_quota is None or signals.cpu_quota > 0
