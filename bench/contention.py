"""The budget under contention: a real engine, other processes that come and go, and who keeps the latency budget.

    python bench/contention.py rheostat-demo/digits.safetensors --images 64 --json results.json

Requests of `--images` images arrive at random (Poisson) at `--load` times the rate that the full network answers one
by one on the machine as it is found. The phases follow one another: quiet, `--busy` processes that take all the
processor they get, quiet. Each candidate gets the same requests and phases; with several rounds the candidates take
turns. A request is in time when its answer comes within the budget after its arrival, so waiting counts; one that was
shed is not in time.

Accuracy is that of the answers in time, in percent: recorded (the artifact's own, of the subnets that answered) and,
where the artifact's test images are at hand, measured on the very answers. Effective is the share of all requests
times accuracy: in time and right. Latencies (p50, p95) are of answered requests, from arrival to answer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from policy_simulator import Replay, arrivals, gamma_gaps, replay

import rheostat as rh
from rheostat.artifact import read_program
from rheostat.run.governor import Governor
from rheostat.run.policy import Policy

PHASES = ("quiet", "busy", "quiet again")
BATCHES = (1, 2, 4, 8)
TICKS = 0.8  # a governor looks once in so many budgets; in the simulator, too


@contextlib.contextmanager
def stopped_processes(num: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that would take a processor each, stopped; ended on leaving."""
    burn = [sys.executable, "-S", "-c", "while True: pass"]
    processes = [subprocess.Popen(burn) for _ in range(num)]
    try:
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


class Real:
    """An engine on a real clock, with other processes let loose in the middle phase."""

    def __init__(
        self,
        engine: rh.Engine,
        x: np.ndarray,
        images: int,
        others: Sequence[subprocess.Popen[bytes]] = (),
        phase_ms: float = math.inf,
    ) -> None:
        self.engine, self.x, self.images = engine, x, images
        self.others, self.phase_ms, self.loose = others, phase_ms, False
        self.answers: dict[int, np.ndarray] = {}
        self.start = time.perf_counter()

    def now_ms(self) -> float:
        now = 1e3 * (time.perf_counter() - self.start)
        loose = self.phase_ms <= now < 2 * self.phase_ms
        if loose != self.loose:
            self.let(loose)
        return now

    def let(self, loose: bool) -> None:
        for process in self.others:
            process.send_signal(signal.SIGCONT if loose else signal.SIGSTOP)
        self.loose = loose

    def wait_until(self, ms: float) -> None:
        while (left := ms - self.now_ms()) > 0:
            time.sleep(min(left, 10.0) / 1e3)

    def places(self, request: int) -> np.ndarray:
        """Which images a request asks about."""
        return np.arange(request * self.images, (request + 1) * self.images) % len(self.x)

    def run(self, subnet: int, requests: Sequence[int]) -> float:
        start = time.perf_counter()
        self.engine.select(subnet)
        answers = self.engine(self.x[np.concatenate([self.places(request) for request in requests])])
        took_ms = 1e3 * (time.perf_counter() - start)
        for index, request in enumerate(requests):
            self.answers[request] = answers[index * self.images : (index + 1) * self.images].argmax(1)
        return took_ms


@dataclass(frozen=True)
class Row:
    """One candidate in one phase of one round; shares and accuracies in percent, None where nothing is known."""

    candidate: str
    phase: str
    round: int
    requests: int
    in_time: float
    shed: float
    p50_ms: float | None
    p95_ms: float | None
    recorded: float | None
    measured: float | None
    effective: float | None
    subnets: list[int]


def rows(
    candidate: str,
    turn: int,
    done: Replay,
    machine: Real,
    moments: Sequence[float],
    budget_ms: float,
    accuracies: Sequence[float | None],
    labels: np.ndarray | None,
) -> Iterator[Row]:
    """What came of a replay, phase by phase; a request belongs to the phase in which it arrives."""
    for number, phase in enumerate(PHASES):
        mine = [k for k, at in enumerate(moments) if min(int(at / machine.phase_ms), 2) == number]
        answered = [k for k in mine if done.subnets[k] >= 0]
        in_time = [k for k in mine if done.response_ms[k] <= budget_ms]
        times = [done.response_ms[k] for k in answered]
        p50, p95 = np.percentile(times, (50, 95)).tolist() if times else (None, None)
        known = [accuracies[done.subnets[k]] for k in in_time]
        numbers = [100 * value for value in known if value is not None]
        recorded = statistics.fmean(numbers) if numbers and len(numbers) == len(known) else None
        measured = None
        if labels is not None and in_time:
            right = [float((machine.answers[k] == labels[machine.places(k)]).mean()) for k in in_time]
            measured = 100 * statistics.fmean(right)
        best = recorded if measured is None else measured
        share = len(in_time) / max(len(mine), 1)
        yield Row(
            candidate,
            phase,
            turn,
            len(mine),
            100 * share,
            100 * (len(mine) - len(answered)) / max(len(mine), 1),
            p50,
            p95,
            recorded,
            measured,
            None if best is None else share * best,
            [sum(done.subnets[k] == subnet for k in answered) for subnet in range(len(accuracies))],
        )


def profile_of(engine: rh.Engine, x: np.ndarray, images: int, repeats: int) -> rh.Profile:
    """A profile whose batches count requests, not images."""
    inputs = np.resize(x, (BATCHES[-1] * images, *x.shape[1:]))
    profile = rh.calibrate(engine, inputs, [batch * images for batch in BATCHES], repeats)
    return replace(profile, batches=BATCHES)


def candidates(profile: rh.Profile, budget_ms: float) -> dict[str, tuple[Policy, Governor | None]]:
    full = rh.Fixed(profile, max_batch=BATCHES[-1])
    return {
        "full network": (full, None),
        "smallest network": (rh.Fixed(profile, 0, BATCHES[-1]), None),
        "CapSlack": (rh.CapSlack(profile, budget_ms, BATCHES[-1]), None),
        # Half of the budget: what waits in the queue is seen only once it has been answered.
        "LatencyGovernor": (full, rh.LatencyGovernor(profile, budget_ms / 2)),
    }


def inputs(artifact: Path, data: Path | None, num: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The artifact's own test images and labels, or random ones without labels."""
    from rheostat.cli import _images

    program = read_program(artifact)
    try:
        images = _images(artifact, program, data)
        return images.normalized(images.test_images[:]), images.test_labels
    except ValueError as reason:
        print(f"random inputs, no measured accuracy: {reason}")
    return np.random.default_rng(0).standard_normal((num, *program.input.shape), dtype=np.float32), None


def show(table: Sequence[Row]) -> None:
    def text(value: float | None, digits: int = 1) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    head = f"{'phase':<12}{'candidate':<18}{'requests':>9}{'in time %':>10}{'shed %':>8}{'p50 ms':>8}{'p95 ms':>8}"
    print(f"{head}{'recorded':>10}{'measured':>10}{'effective':>10}  subnets, smallest first")
    for phase in PHASES:
        for name in dict.fromkeys(row.candidate for row in table):
            mine = [row for row in table if (row.candidate, row.phase) == (name, phase)]
            mean: dict[str, float | None] = {}
            for key in ("in_time", "shed", "p50_ms", "p95_ms", "recorded", "measured", "effective"):
                known = [value for row in mine if (value := getattr(row, key)) is not None]
                mean[key] = statistics.fmean(known) if known else None
            answered = np.sum([row.subnets for row in mine], axis=0)
            shares = " ".join(f"{100 * count / max(answered.sum(), 1):.0f}%" for count in answered)
            print(
                f"{phase:<12}{name:<18}{sum(row.requests for row in mine):>9}{text(mean['in_time'], 2):>10}"
                f"{text(mean['shed']):>8}{text(mean['p50_ms'], 2):>8}{text(mean['p95_ms'], 2):>8}"
                f"{text(mean['recorded'], 2):>10}{text(mean['measured'], 2):>10}{text(mean['effective'], 2):>10}"
                f"  {shares}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--data", type=Path, help="folder of packed data sets, for measured accuracy")
    parser.add_argument("--images", type=int, default=1, help="images of one request")
    parser.add_argument("--load", type=float, default=0.6, help="of what the full network answers one by one")
    parser.add_argument(
        "--budget-ms", type=float, help="default: 8 times the full network's p95, at least 20"
    )
    parser.add_argument("--busy", type=int, default=2 * (os.cpu_count() or 1), help="processes let loose")
    parser.add_argument("--phase-s", type=float, default=10.0, help="length of a phase")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=200, help="timed inferences of the calibration")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every row and the machine here too")
    arguments = parser.parse_args()
    images, phase_ms = arguments.images, 1e3 * arguments.phase_s
    x, labels = inputs(arguments.artifact, arguments.data, images)
    table: list[Row] = []
    with rh.Engine(arguments.artifact, threads=arguments.threads) as engine:
        profile = profile_of(engine, x, images, arguments.repeats)
        last = profile.num_subnets - 1
        budget_ms = arguments.budget_ms or max(8 * profile.latency_ms(last, 1), 20.0)
        rate_per_s = arguments.load * profile.max_rate(last, 1)
        accuracies = [info.accuracy for info in engine.info]
        times = " ".join(f"{row[0]:.3f}" for row in profile.latency_ms_p50)
        print(f"one request of {images} images, p50 of each subnet: {times} ms")
        print(f"budget {budget_ms:.1f} ms, {rate_per_s:.0f} requests/s, {arguments.busy} busy processes")
        with stopped_processes(arguments.busy) as others:
            for turn in range(arguments.rounds):
                num = max(int(3 * arguments.phase_s * rate_per_s), 1)
                moments = arrivals(gamma_gaps(1.0, num, arguments.seed + turn), rate_per_s)
                everyone = list(candidates(profile, budget_ms).items())
                # Another one begins each round: whatever else the machine does falls on all of them.
                start = turn % len(everyone)
                for name, (policy, governor) in everyone[start:] + everyone[:start]:
                    machine = Real(engine, x, images, others, phase_ms)
                    try:
                        done = replay(
                            machine, policy, moments, budget_ms, governor, profile, TICKS * budget_ms
                        )
                    finally:
                        machine.let(loose=False)
                    table += rows(name, turn, done, machine, moments, budget_ms, accuracies, labels)
    show(table)
    if arguments.json:
        settings = {
            key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()
        }
        about = {"machine": platform.platform(), "cpus": os.cpu_count(), "isa": engine.isa}
        result = {"settings": settings, **about, "budget_ms": budget_ms, "profile": asdict(profile)}
        result["rows"] = [asdict(row) for row in table]
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
