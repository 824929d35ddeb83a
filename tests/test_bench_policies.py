"""The two policy benchmarks: one loop, driven by a simulated machine and by a real engine."""

from __future__ import annotations

import importlib
import json
import math
import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rheostat as rh

ROOT = Path(__file__).parents[1]
PROFILE = rh.Profile((1, 16), ((0.5, 2.0), (2.0, 14.0)), ((0.5, 2.0), (2.0, 14.0)))


@pytest.fixture
def simulator(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "bench")
    return importlib.import_module("policy_simulator")


@pytest.fixture
def contention(simulator: Any) -> Any:
    return importlib.import_module("contention")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policies") / "net.safetensors"
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
    graph = rh.trace(model, torch.randn(1, 4))
    rh.save(rh.Supernet(graph, rh.uniform(graph, (0.25, 0.5, 1.0))), path)
    return path


def test_replay_by_hand(simulator: Any) -> None:
    machine = simulator.Simulated(PROFILE, noise=0.0)
    done = simulator.replay(machine, rh.Fixed(PROFILE), [0.0, 1.0, 1.5, 30.0], budget_ms=3.0)
    # The second and third would take 2.8 ms together from 2.0 on; the third alone is not asked.
    assert done.subnets == [1, 1, 1, 1]
    assert done.response_ms == pytest.approx([2.0, 3.8, 3.3, 2.0])
    assert done.switches == 0


def test_replay_sheds_and_switches(simulator: Any) -> None:
    policy = rh.CapSlack(PROFILE, budget_ms=3.0)
    machine = simulator.Simulated(PROFILE, noise=0.0)
    burst = [0.0] * 100
    done = simulator.replay(machine, policy, [*burst, 500.0], budget_ms=3.0)
    # 16 at a time on the smallest, 2 ms each: 32 are started in time, and 0.5 ms are too late for the rest.
    assert done.subnets == [0] * 32 + [-1] * 68 + [1]
    assert done.response_ms[31:33] == [4.0, math.inf]
    assert done.switches == 1


def test_correction_finds_a_slower_machine(simulator: Any) -> None:
    slower = rh.Profile((1, 16), ((1.5, 6.0), (6.0, 42.0)), ((1.5, 6.0), (6.0, 42.0)))
    moments = [40.0 * k for k in range(200)]
    policy = rh.CapSlack(PROFILE, budget_ms=25.0)
    done = simulator.replay(simulator.Simulated(slower, noise=0.0), policy, moments, 25.0, profile=PROFILE)
    assert done.slowdown == pytest.approx(3.0, rel=1e-6)


def test_governor_comes_down_and_back(simulator: Any) -> None:
    governor = rh.LatencyGovernor(PROFILE, budget_ms=5.0, clean=2)
    slow = [5.0 + 1.0 * k for k in range(200)]
    calm = [1000.0 + 50.0 * k for k in range(20)]
    machine = simulator.Simulated(PROFILE, noise=0.0)
    done = simulator.replay(machine, rh.Fixed(PROFILE), [*slow, *calm], 8.0, governor)
    assert 0 in done.subnets[:200]
    assert set(done.subnets[-10:]) == {1}


def test_streams(simulator: Any, tmp_path: Path) -> None:
    for cv2 in (1.0, 8.0):
        gaps = simulator.gamma_gaps(cv2, 40_000, seed=1)
        assert statistics.fmean(gaps) == pytest.approx(1.0, rel=0.1)
        assert statistics.variance(gaps) == pytest.approx(cv2, rel=0.2)
    bursts = simulator.on_off_gaps(5000, seed=1)
    assert len(bursts) == 5000
    assert statistics.variance(bursts) > 1.5 * statistics.fmean(bursts) ** 2
    moments = simulator.arrivals(bursts, rate_per_s=250.0)
    assert len(moments) == 5001
    assert moments[-1] == pytest.approx(5000 * 4.0)
    stamped, spans = tmp_path / "stamped.csv", tmp_path / "spans.csv"
    stamped.write_text(
        "TIMESTAMP,ContextTokens\n2023-11-16 18:17:03.5000000,1\n2023-11-16 18:17:05.7500000,2\n"
    )
    spans.write_text("app,func,end_timestamp,duration\na,b,10.5,0.5\na,b,9.0,2.0\n")
    assert simulator.recorded_gaps(stamped) == pytest.approx([2.25])
    assert simulator.recorded_gaps(spans) == [3.0]


def test_the_table(
    simulator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cells.json"
    arguments = ["--requests", "300", "--loads", "0.4", "2", "--away-ms", "6", "--json", str(out)]
    for _ in range(2):
        monkeypatch.setattr("sys.argv", ["policy_simulator.py", *arguments])
        simulator.main()
    printed = capsys.readouterr().out
    assert printed[: len(printed) // 2] == printed[len(printed) // 2 :]  # seeds, nothing else
    cells = json.loads(out.read_text())["cells"]
    assert {cell["held_out"] for cell in cells} == {False, True}
    by_policy = {name: [c["in_time"] for c in cells if c["policy"] == name and c["load"] == 2] for name in
                 ("full network", "smallest network", "CapSlack")}  # fmt: skip
    assert max(by_policy["full network"]) < min(by_policy["CapSlack"])
    for cell in cells:
        assert 0 <= cell["in_time"] + cell["shed"] <= 100 + 1e-9
        assert cell["effective"] == pytest.approx(cell["in_time"] * cell["accuracy"] / 100)


def test_engine_and_simulation_agree_where_time_does_not_matter(
    simulator: Any, contention: Any, artifact: Path
) -> None:
    x = np.random.default_rng(0).standard_normal((5, 4), dtype=np.float32)
    moments = [0.2 * k for k in range(60)]
    with rh.Engine(artifact, threads=1) as engine:
        profile = contention.profile_of(engine, x, images=2, repeats=3)
        assert profile.batches == contention.BATCHES
        # A budget that no machine misses: both answer everything, and with the full network once it is their turn.
        policy = rh.CapSlack(profile, budget_ms=1e7, max_batch=8)
        real = contention.Real(engine, x, images=2)
        by_engine = simulator.replay(real, policy, moments, 1e7)
        by_simulation = simulator.replay(simulator.Simulated(profile), policy, moments, 1e7)
        assert by_engine.subnets == by_simulation.subnets == [2] * 60
        for request in range(60):
            places = np.array([2 * request, 2 * request + 1]) % 5
            assert real.answers[request].tolist() == engine(x[places]).argmax(1).tolist()
        # And one that no machine keeps: everything is shed, but for what runs at once.
        late = rh.CapSlack(profile, budget_ms=1e-9)
        assert (
            simulator.replay(contention.Real(engine, x, images=2), late, moments, 1e-9).subnets == [-1] * 60
        )
        assert simulator.replay(simulator.Simulated(profile), late, moments, 1e-9).subnets == [-1] * 60


@pytest.mark.skipif(os.name != "posix", reason="stops and continues processes")
def test_contention_runs(
    contention: Any, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "rows.json"
    arguments = ["--phase-s", "0.03", "--rounds", "1", "--busy", "1", "--repeats", "3", "--load", "0.01"]
    monkeypatch.setattr("sys.argv", ["contention.py", str(artifact), *arguments, "--json", str(out)])
    contention.main()
    assert "CapSlack" in capsys.readouterr().out
    result = json.loads(out.read_text())
    assert [(row["phase"], row["candidate"]) for row in result["rows"]].count(("busy", "CapSlack")) == 1
    for row in result["rows"]:
        answered = sum(row["subnets"])
        assert answered == round(row["requests"] * (1 - row["shed"] / 100))
        assert (row["p50_ms"] is None) == (answered == 0)
        assert row["measured"] is None  # the artifact names no data


def test_busy_processes_end(contention: Any) -> None:
    with contention.stopped_processes(1) as (process,):
        assert process.poll() is None
    assert process.poll() is not None
