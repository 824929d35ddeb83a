"""The harvest simulator: energy is conserved, small cases by hand and by trying everything, recorded traces."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rheostat.energy import CPU, FRAM

ROOT = Path(__file__).parents[1]
COSTS = [1.0, 2.0, 4.0]
ACCURACIES = [0.8, 0.9, 0.95]
FREE = [[(0.0, 0)] * 3] * 3
DEAR = [[(0.0, 0) if a == b else (1.5, 100 + b) for b in range(3)] for a in range(3)]

sys.path.insert(0, str(ROOT / "bench"))
harvest: Any = importlib.import_module("harvest_simulator")
sys.path.pop(0)

energies = st.lists(st.floats(0, 10), min_size=1, max_size=60)


def test_by_hand() -> None:
    """A capacitor of 5 mJ: empty, then the smallest, then what would be lost goes into larger ones."""
    done = harvest.play([0.5, 1.0, 4.0, 4.0, 4.0, 0.0], COSTS, ACCURACIES, FREE, 5.0)
    # 0.5: nothing. 1.5: one of 1 mJ. 4.5: the next 4 mJ would lose 3.5, so 2 mJ. 6.5: 1.5 are lost, 5 stay; 4 more
    # would be lost, so 4 mJ. 5 again: 4 mJ. 1 and nothing more comes: 1 mJ.
    assert done.chosen == (2, 1, 2)
    assert (done.requests, done.completed, done.switches) == (6, 5, 3)
    assert (done.wasted_mj, done.inference_mj, done.stored_mj) == pytest.approx((1.5, 12.0, 0.0))
    assert done.accuracy == pytest.approx((2 * 0.8 + 0.9 + 2 * 0.95) / 5)
    assert done.right == pytest.approx(done.accuracy * 5 / 6)


def test_a_switch_that_cannot_be_paid_is_not_made() -> None:
    done = harvest.play([9.0, 2.0, 1.0], COSTS, ACCURACIES, DEAR, 3.6)
    # 4 + 1.5 mJ are never there, 2 + 1.5 are. Then 2.1 mJ are not enough for the way back, 1 + 1.5, but for 2 again.
    assert done.chosen == (0, 2, 0)
    assert (done.switches, done.written_bytes, done.switch_mj) == (1, 101, 1.5)
    assert done.stored_mj == pytest.approx(1.1)


@given(energies, st.sampled_from([FREE, DEAR]), st.floats(0.5, 20))
def test_energy_is_conserved(harvests: list[float], switches: list, capacity: float) -> None:
    done = harvest.play(harvests, COSTS, ACCURACIES, switches, capacity)
    spent = done.inference_mj + done.switch_mj + done.wasted_mj + done.stored_mj
    assert spent == pytest.approx(done.harvested_mj, abs=1e-9)
    assert 0 <= done.stored_mj <= capacity
    assert done.inference_mj == pytest.approx(sum(n * c for n, c in zip(done.chosen, COSTS, strict=True)))


@given(st.lists(st.sampled_from([0.0, 1.0, 2.5, 5.0]), min_size=1, max_size=6))
def test_no_choice_of_subnets_does_better_than_the_best(harvests: list[float]) -> None:
    """Every sequence of subnets, and of requests left alone, tried."""
    best = 0.0
    for plan in itertools.product((None, 0, 1, 2), repeat=len(harvests)):
        stored, right = 0.0, 0.0
        for gained, k in zip(harvests, plan, strict=True):
            stored = min(stored + gained, 6.0)
            if k is not None and COSTS[k] <= stored:
                stored, right = stored - COSTS[k], right + ACCURACIES[k]
        best = max(best, right)
    done = harvest.play(harvests, COSTS, ACCURACIES, FREE, 6.0)
    assert done.right * len(harvests) <= best + 1e-9


@given(st.floats(0, 6), st.integers(20, 80))
def test_in_steady_light_the_dial_costs_no_answer(steady: float, num: int) -> None:
    smallest = harvest.play([steady] * num, COSTS[:1], ACCURACIES[:1], [[(0.0, 0)]], 8.0)
    dial = harvest.play([steady] * num, COSTS, ACCURACIES, FREE, 8.0)
    assert dial.completed == smallest.completed
    assert dial.right >= smallest.right - 1e-12
    if steady >= COSTS[-1]:
        assert dial.chosen[-1] >= num - 10  # once the capacitor is full
        assert dial.wasted_mj <= smallest.wasted_mj + 1e-9


@given(energies, st.floats(0, 3), st.sampled_from([0, 1, 2]))
def test_more_light_and_smaller_subnets_never_answer_less(harvests: list[float], more: float, k: int) -> None:
    def completed(gains: list[float], cost: float) -> int:
        return harvest.play(gains, [cost], [1.0], [[(0.0, 0)]], 12.0).completed

    assert completed([gained + more for gained in harvests], COSTS[k]) >= completed(harvests, COSTS[k])
    assert completed(harvests, COSTS[0]) >= completed(harvests, COSTS[k])


def test_a_trace_is_played_in_a_loop() -> None:
    trace = harvest.Trace("test", 2.0, np.array([1.0, 0.0, 3.0]), 3.0, CPU)
    # mW by seconds: 1 1 0 0 3 3 | 1 1 0 0 3 3
    assert trace.harvest_mj(4).tolist() == pytest.approx([2.0, 6.0, 2.0, 6.0])
    odd = harvest.Trace("test", 1.0, np.array([1.0, 0.0, 3.0, 2.0]), 0.7, CPU)
    assert odd.harvest_mj(40).sum() == pytest.approx(6.0 * 7)
    assert odd.harvest_mj(3).tolist() == pytest.approx([0.7, 0.3, 0.3])


def test_recordings_are_read(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("1000\t3.0\n1001\t0.0\n3000\t6.0\n")
    assert harvest.radio(tmp_path / "1.txt").power_mw.tolist() == pytest.approx([0.3, 0.0, 1.2])
    (tmp_path / "2023may.txt").write_text("DATE,MST,Global\n5/1/2023,00:00,-1.5\n5/1/2023,00:01,500\n")
    sun = harvest.sun(tmp_path / "2023may.txt")
    assert sun.power_mw.tolist() == pytest.approx([0.0, 500 * 1e-4 * 0.16 * 1e3])


def test_verdicts() -> None:
    def rows(dial: float) -> list[Any]:
        shares = {"M1 alone": 0.8, "M2 alone": 0.7, "swap": 0.1, "differences": 0.2, "level order": dial}
        return [
            harvest.Row("Net", "sun", 1.0, 1.0, name, 1.0, 1.0, (right,), 0, (0.0,), (0.0,), 0)
            for name, right in shares.items()
        ]

    assert "M1 alone is just as good: the dial is not worth turning" in harvest.verdict(rows(0.8009))
    assert "M1 alone is better: leave the dial alone" in harvest.verdict(rows(0.79))
    assert "level order +2.00" in harvest.verdict(rows(0.82))
    assert harvest.verdict(rows(0.82)).endswith("So the dial is worth turning.")


def test_from_the_first_line_to_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    monkeypatch.setattr(sys, "argv", ["harvest_simulator.py", "--requests", "720", "--json", str(report)])
    harvest.main()
    found = json.loads(report.read_text(encoding="utf-8"))
    assert len(found["rows"]) == 3 * len(harvest.LOADS) * 6
    for switch in found["switches"]:
        assert switch["written_bytes"] <= 8 or switch["layout"] != "level order"
    assert all(memory["source"] for memory in found["memories"])
    completed = {(r["net"], r["load"], r["candidate"]): r["completed"] for r in found["rows"]}
    for (net, load, _), share in completed.items():
        assert completed[net, load, "M1 alone"] >= share
    printed = capsys.readouterr().out
    assert all(verdict in printed for verdict in found["verdicts"])


def test_subnets_of_an_artifact() -> None:
    kept = ROOT / "recipes" / "rheostat_recipes" / "results" / "lenet5_mnist.safetensors"
    net = harvest.from_artifact(kept)
    assert net.subnets == ("0.25", "0.5", "0.75", "1.0")
    assert net.macs[-1] == 281_640
    assert min(net.accuracies) > 0.97
    energies = harvest.inference_mj(net, CPU, FRAM)
    assert energies == sorted(energies)
    assert energies[-1] == pytest.approx(281_640 * 23.19e-6 + net.sizes_bytes[-1] * 13.5e-6, rel=1e-3)


def test_real_traces(data: Path) -> None:
    traces = {trace.name: trace for trace in harvest.traces(data)}
    assert len(traces) == 5
    for name, trace in traces.items():
        if name.startswith("radio"):
            assert 0.09 <= trace.power_mw.mean() <= 0.19  # 90 to 190 uW, peaks of about 5.3 V
            assert trace.power_mw.max() <= 5.3**2 / 30e3 * 1e3
    january, june = (traces[f"sun 2023{month}"].power_mw for month in ("jan", "jun"))
    assert len(january) == 31 * 1440
    assert june.mean() > 2 * january.mean()
    assert np.median(january.reshape(31, 1440)[:, :300]) == 0  # the night
    rows = harvest.simulate(harvest.NETS[2], traces["sun 2023jun"], 1.0, 2000)
    by_name = {row.candidate: row for row in rows}
    assert by_name["level order"].right[1] >= by_name["M1 alone"].right[1]
    assert max(by_name["level order"].switch_share) < 1e-4 < max(by_name["swap"].switch_share)
