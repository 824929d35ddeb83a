"""Policies on recorded and synthetic request streams, in simulated time: what they answer in time, and how well.

    python bench/policy_simulator.py --data DIR --json results.json

One worker serves a queue in the order of arrival; every request has the same latency budget. The simulated machine
takes the profile's time for a batch and 5 % of noise, from a seed. Every stream is compressed in time so that its mean
rate is `load` times what the full network can answer with full batches; that keeps its bursts. DIR holds
`azure_llm_2023/` and `azure_functions_2021_sample/`; without --data only the synthetic streams run.

CapSlack was designed on the recorded streams and on gamma-1 and gamma-8. The held-out streams, gamma-32, on-off and
those that --held-out names, were not looked at before. Shares are means over the cells (stream ×
load): answered in time, accuracy of the answers in time, their product for every request (effective), shed, the
worst cell. "At half" is a governor that aims at half of the budget. With --decide the time of a decision is
measured as well.

With --away-ms a second table follows: Poisson requests, and in the middle third of them other processes take the
processor away for that long after every 3 ms of work. It holds the middle third only, with the online correction of
the profile and without it.

`replay` is the loop itself; bench/contention.py runs it against a real engine and a real clock.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from rheostat.run.governor import Cap, Governor, LatencyGovernor
from rheostat.run.policy import CapSlack, Fixed, Observation, Policy, Profile, SlackFit, arrival_rate

LOADS = (0.4, 0.8, 1.0, 1.5, 2.0)
MAX_BATCH = 16
TICK_MS = 20.0
SLICE_MS = 3.0  # about what Linux gives a process before others that wait


@dataclass(frozen=True)
class Scenario:
    """A machine to simulate: its profile, the subnets' accuracies in percent, the budget."""

    profile: Profile
    accuracies: tuple[float, ...]
    budget_ms: float


def linear(*lines: tuple[float, float]) -> Profile:
    """A profile of latency = fixed + per-request · batch, one (fixed, per-request) a subnet."""
    rows = tuple((fixed + slope, fixed + slope * MAX_BATCH) for fixed, slope in lines)
    return Profile((1, MAX_BATCH), rows, rows)


# Assumed, for the design of the policies; the accuracies are of a first training of four widths. "flat": a large fixed
# cost, as on a GPU.
SCENARIOS = {
    "cpu": Scenario(linear((0.4, 0.10), (0.6, 0.25), (0.9, 0.5), (1.2, 0.8)), (81.0, 87.5, 90.2, 91.1), 25.0),
    "flat": Scenario(linear((4.0, 0.04), (4.5, 0.1), (5.0, 0.2), (5.5, 0.3)), (81.0, 87.5, 90.2, 91.1), 36.0),
}


class Machine(Protocol):
    """Where requests run, and its clock."""

    def now_ms(self) -> float: ...

    def wait_until(self, ms: float) -> None: ...

    def run(self, subnet: int, requests: Sequence[int]) -> float:
        """Run a batch and return how many milliseconds it took."""
        ...


class Simulated:
    """A machine that takes the profile's time and some noise, on a clock of its own."""

    def __init__(self, profile: Profile, seed: int = 0, noise: float = 0.05, switch_ms: float = 0.0) -> None:
        self.profile, self.noise, self.switch_ms = profile, noise, switch_ms
        self.random = random.Random(seed)
        self.clock_ms, self.active = 0.0, -1
        self.away_ms, self.shared, self.slice_ms = 0.0, (math.inf, math.inf), SLICE_MS

    def share(self, away_ms: float, start_ms: float, end_ms: float) -> None:
        """Let others take the processor for `away_ms` after every slice of work, between two times."""
        self.away_ms, self.shared = away_ms, (start_ms, end_ms)

    def now_ms(self) -> float:
        return self.clock_ms

    def wait_until(self, ms: float) -> None:
        # Who sleeps gathers a right to the processor, up to one slice: short calls hardly notice that it is shared.
        idle_ms = max(ms - self.clock_ms, 0.0)
        self.slice_ms = min(self.slice_ms + idle_ms * SLICE_MS / (SLICE_MS + self.away_ms), SLICE_MS)
        self.clock_ms += idle_ms

    def run(self, subnet: int, requests: Sequence[int]) -> float:
        ms = self.profile.latency_ms(subnet, len(requests)) * (1 + abs(self.random.gauss(0, self.noise)))
        ms += self.switch_ms * (self.active not in (-1, subnet))
        self.active = subnet
        if self.shared[0] <= self.clock_ms < self.shared[1]:
            self.slice_ms -= ms
            while self.slice_ms <= 0:
                self.slice_ms += SLICE_MS
                ms += self.away_ms
        self.clock_ms += ms
        return ms


@dataclass(frozen=True)
class Replay:
    """What became of each request: the subnet that answered it (-1: shed) and its response time (inf: shed)."""

    subnets: list[int]
    response_ms: list[float]
    switches: int
    slowdown: float


def replay(
    machine: Machine,
    policy: Policy,
    arrivals_ms: Sequence[float],
    budget_ms: float,
    governor: Governor | None = None,
    profile: Profile | None = None,
    tick_ms: float = TICK_MS,
) -> Replay:
    """Serve requests that arrive at known times; with a profile, correct it while running."""
    num = len(arrivals_ms)
    result = Replay([-1] * num, [math.inf] * num, 0, 1.0)
    deadlines: deque[float] = deque()
    window: list[float] = []
    rate, rate_at, slowdown, switches = 0.0, arrivals_ms[0], 1.0, 0
    cap: Cap | None = None
    active: int | None = None
    first = admitted = 0  # requests first … admitted - 1 are waiting
    tick_at = arrivals_ms[0] + tick_ms
    while first < num:
        if first == admitted:
            machine.wait_until(arrivals_ms[first])
        now = machine.now_ms()
        while admitted < num and arrivals_ms[admitted] <= now:
            rate = arrival_rate(rate, arrivals_ms[admitted] - rate_at, 2 * budget_ms)
            rate_at = arrivals_ms[admitted]
            deadlines.append(rate_at + budget_ms)
            admitted += 1
        rate, rate_at = arrival_rate(rate, now - rate_at, 2 * budget_ms, num=0), now
        while governor is not None and tick_at <= now:
            p95 = sorted(window)[math.ceil(0.95 * len(window)) - 1] if window else None
            before = cap
            cap = governor.cap(cap, Observation(now_ms=tick_at, subnet=active, p95_ms=p95))
            window.clear()
            # A long pause is many empty windows; once nothing changes any more, the rest of them change nothing.
            settled = before is not None and (before.subnet, before.clean) == (cap.subnet, cap.clean)
            tick_at += tick_ms * (1 + int(settled) * max(0, int((now - tick_at) / tick_ms)))
        observation = Observation(
            now_ms=now, deadlines_ms=deadlines, arrivals_per_s=rate, slowdown=slowdown, subnet=active
        )
        decision = policy.decide(observation, None if cap is None else cap.subnet)
        for _ in range(decision.shed + decision.batch):
            deadlines.popleft()
        window.extend([math.inf] * decision.shed)
        first += decision.shed
        if decision.batch == 0:
            continue
        subnet, requests = decision.subnet, range(first, first + decision.batch)
        took_ms = machine.run(subnet, requests)
        done = machine.now_ms()
        for request in requests:
            result.subnets[request] = subnet
            result.response_ms[request] = done - arrivals_ms[request]
            window.append(result.response_ms[request])
        switches += active not in (None, subnet)
        active = subnet
        first += decision.batch
        if profile is not None:
            slowdown = profile.slowdown(slowdown, subnet, decision.batch, took_ms)
    return Replay(result.subnets, result.response_ms, switches, slowdown)


# ---- streams of requests: gaps in any unit, scaled later ----


def gamma_gaps(cv2: float, num: int, seed: int) -> list[float]:
    """Gaps of mean 1 whose variance is `cv2`; 1 is a Poisson process."""
    draw = random.Random(seed)
    return [draw.gammavariate(1 / cv2, cv2) for _ in range(num)]


def on_off_gaps(num: int, seed: int) -> list[float]:
    """A Poisson process that changes its rate, ten to one, about every 100 requests of the busy state."""
    draw = random.Random(seed)
    gaps, busy = [], False
    while len(gaps) < num:
        busy = not busy
        length = draw.expovariate(1.0)
        at = draw.expovariate(100.0 if busy else 10.0)
        while at < length and len(gaps) < num:
            gap = draw.expovariate(100.0 if busy else 10.0)
            gaps.append(gap)
            at += gap
    return gaps


def recorded_gaps(path: Path) -> list[float]:
    """The gaps between the requests of a recorded stream; see SOURCES.md beside the data."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if "TIMESTAMP" in rows[0]:
        # Seven decimals; datetime reads six.
        moments = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows]
    else:
        moments = [float(row["end_timestamp"]) - float(row["duration"]) for row in rows]
    moments.sort()
    return [after - before for before, after in zip(moments, moments[1:], strict=False)]


def arrivals(gaps: Sequence[float], rate_per_s: float) -> list[float]:
    """Arrival times in milliseconds at a mean rate."""
    scale = 1e3 / (rate_per_s * statistics.fmean(gaps))
    moments, now = [0.0], 0.0
    for gap in gaps:
        now += gap * scale
        moments.append(now)
    return moments


def streams(
    data: Path | None, num: int, seed: int, held_out: Sequence[Path] = ()
) -> Iterator[tuple[str, bool, list[float]]]:
    """Name, whether held out, gaps."""
    if data is not None:
        for name, file in (
            ("azure-code", "azure_llm_2023/AzureLLMInferenceTrace_code.csv"),
            ("azure-conversation", "azure_llm_2023/AzureLLMInferenceTrace_conv.csv"),
            ("azure-functions", "azure_functions_2021_sample/Azure2021_200.csv"),
        ):
            yield name, False, recorded_gaps(data / file)[:num]
    yield "gamma-1", False, gamma_gaps(1.0, num, seed)
    yield "gamma-8", False, gamma_gaps(8.0, num, seed + 1)
    yield "gamma-32", True, gamma_gaps(32.0, num, seed + 2)
    yield "on-off", True, on_off_gaps(num, seed + 3)
    for path in held_out:
        yield path.stem, True, recorded_gaps(path)[:num]


# ---- the table ----


def policies(
    scenario: Scenario, horizon: float = 0.5, margin: float = 0.85
) -> dict[str, tuple[Policy, Governor | None]]:
    profile, budget_ms = scenario.profile, scenario.budget_ms
    full = Fixed(profile, max_batch=MAX_BATCH)
    return {
        "full network": (full, None),
        "smallest network": (Fixed(profile, 0, MAX_BATCH), None),
        "LatencyGovernor": (full, LatencyGovernor(profile, budget_ms)),
        "LatencyGovernor at half": (full, LatencyGovernor(profile, budget_ms / 2)),
        "CapSlack, load only": (CapSlack(profile, budget_ms, MAX_BATCH, horizon, math.inf), None),
        "SlackFit": (SlackFit(profile, MAX_BATCH), None),
        "SlackFit, margin 0.4": (SlackFit(profile, MAX_BATCH, margin=0.4), None),
        "CapSlack": (CapSlack(profile, budget_ms, MAX_BATCH, horizon, margin), None),
    }


@dataclass(frozen=True)
class Cell:
    """One policy on one stream at one load; shares and accuracies in percent."""

    policy: str
    stream: str
    held_out: bool
    load: float
    requests: int
    in_time: float
    accuracy: float
    effective: float
    shed: float
    switches: int


def cells(
    scenario: Scenario,
    candidates: dict[str, tuple[Policy, Governor | None]],
    requests: Iterable[tuple[str, bool, list[float]]],
    seed: int,
    loads: Sequence[float],
    switch_ms: float,
) -> Iterator[Cell]:
    capacity = scenario.profile.max_rate(scenario.profile.num_subnets - 1, MAX_BATCH)
    for stream, held_out, gaps in requests:
        for load in loads:
            moments = arrivals(gaps, load * capacity)
            for name, (policy, governor) in candidates.items():
                machine = Simulated(scenario.profile, seed, switch_ms=switch_ms)
                done = replay(machine, policy, moments, scenario.budget_ms, governor)
                yield cell(scenario, name, stream, held_out, load, done, range(len(moments)))


def shared_cells(
    scenario: Scenario, num: int, seed: int, loads: Sequence[float], away_ms: float
) -> Iterator[Cell]:
    """The middle third of Poisson streams, in which the machine is shared with others."""
    capacity = scenario.profile.max_rate(scenario.profile.num_subnets - 1, MAX_BATCH)
    for load in loads:
        moments = arrivals(gamma_gaps(1.0, num, seed), load * capacity)
        third = range(len(moments) // 3, 2 * len(moments) // 3)
        for name, (policy, governor) in policies(scenario).items():
            for profile in (None, scenario.profile):
                machine = Simulated(scenario.profile, seed)
                machine.share(away_ms, moments[third.start], moments[third.stop])
                done = replay(machine, policy, moments, scenario.budget_ms, governor, profile)
                label = f"{name}{', corrected' * (profile is not None)}"
                yield cell(scenario, label, "gamma-1", False, load, done, third)


def cell(
    scenario: Scenario, name: str, stream: str, held_out: bool, load: float, done: Replay, part: range
) -> Cell:
    subnets, times = (values[part.start : part.stop] for values in (done.subnets, done.response_ms))
    in_time = [
        scenario.accuracies[subnet]
        for subnet, ms in zip(subnets, times, strict=True)
        if ms <= scenario.budget_ms
    ]
    return Cell(
        name,
        stream,
        held_out,
        load,
        len(part),
        100 * len(in_time) / len(part),
        statistics.fmean(in_time or [0.0]),
        sum(in_time) / len(part),
        100 * subnets.count(-1) / len(part),
        done.switches,
    )


def show(title: str, rows: Sequence[Cell]) -> None:
    if not rows:
        return
    print(f"{title}: {len({(row.stream, row.load) for row in rows})} cells")
    print(f"  {'policy':<34}{'in time %':>10}{'accuracy':>10}{'effective':>10}{'shed %':>8}{'worst %':>9}")
    for name in dict.fromkeys(row.policy for row in rows):
        mine = [row for row in rows if row.policy == name]
        mean = {
            key: statistics.fmean(getattr(row, key) for row in mine)
            for key in ("in_time", "effective", "shed")
        }
        answered = [row.accuracy for row in mine if row.in_time > 0]
        worst = min(row.in_time for row in mine)
        print(
            f"  {name:<34}{mean['in_time']:>10.2f}{statistics.fmean(answered or [0.0]):>10.2f}"
            f"{mean['effective']:>10.2f}{mean['shed']:>8.1f}{worst:>9.1f}"
        )


def decide_us(
    decide: Callable[[Observation], object], waiting: int, num: int = 20_000
) -> tuple[float, float]:
    """p50 and p99 of one decision in microseconds, on queues with slacks of all sizes."""
    draw = random.Random(0)
    seen = [Observation(0.0, [draw.uniform(0.6, 25.0)] * waiting, draw.uniform(0, 4000)) for _ in range(1000)]
    times = []
    for index in range(num):
        observation = seen[index % len(seen)]
        start = time.perf_counter_ns()
        decide(observation)
        times.append((time.perf_counter_ns() - start) / 1e3)
    times.sort()
    return times[num // 2], times[num * 99 // 100]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of recorded request streams")
    parser.add_argument(
        "--held-out", type=Path, nargs="+", default=[], help="more recorded streams, not used in the design"
    )
    parser.add_argument("--horizon", type=float, default=0.5, help="of CapSlack")
    parser.add_argument("--margin", type=float, default=0.85, help="of CapSlack")
    parser.add_argument("--only", nargs="+", metavar="POLICY", help="rows of the first table")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), default="cpu")
    parser.add_argument("--requests", type=int, default=20_000, help="most requests of one stream")
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--switch-ms", type=float, default=0.0, help="what changing the subnet costs")
    parser.add_argument("--away-ms", type=float, help="also simulate a shared processor")
    parser.add_argument("--decide", action="store_true", help="also time the decisions")
    parser.add_argument("--json", type=Path, help="write every cell here too")
    arguments = parser.parse_args()
    scenario = SCENARIOS[arguments.scenario]
    candidates = policies(scenario, arguments.horizon, arguments.margin)
    if arguments.only:
        candidates = {name: candidates[name] for name in arguments.only}
    requests = streams(arguments.data, arguments.requests, arguments.seed, arguments.held_out)
    rows = list(cells(scenario, candidates, requests, arguments.seed, arguments.loads, arguments.switch_ms))
    show("Streams the policy was designed on", [row for row in rows if not row.held_out])
    show("Held-out streams", [row for row in rows if row.held_out])
    result: dict[str, object] = {
        "scenario": arguments.scenario,
        "seed": arguments.seed,
        "switch_ms": arguments.switch_ms,
        "cells": [asdict(row) for row in rows],
    }
    if arguments.away_ms is not None:
        shared = list(
            shared_cells(scenario, arguments.requests, arguments.seed, (0.3, 0.5, 0.8), arguments.away_ms)
        )
        show(f"Processor lost for {arguments.away_ms:g} ms after every {SLICE_MS:g} ms", shared)
        result["shared"] = {"away_ms": arguments.away_ms, "cells": [asdict(row) for row in shared]}
    if arguments.decide:
        times = {}
        for name, (policy, _) in policies(scenario).items():
            times[name] = decide_us(policy.decide, waiting=16)
            print(f"decide, {name:<24} p50 {times[name][0]:6.1f} µs  p99 {times[name][1]:6.1f} µs")
        result["decide_us"] = times
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
