"""Nested subnets on harvested energy, in simulated time: what switching costs, and whether the dial is worth turning.

    python bench/harvest_simulator.py --data DIR --json results.json
    python bench/harvest_simulator.py --data DIR --artifact net.safetensors

A capacitor is charged by a recorded trace (DIR holds `energy/mementos_rf/*.txt` and `energy/nrel_solar/*.txt`; without
--data a sine stands for the day). A request comes every period; the device runs one subnet if the capacitor holds its
energy, otherwise the request is lost. The candidates are every subnet alone and, with one rule (`spill`), a device that
switches by swapping whole models, by writing differences, or by level order.

Everything here is an estimate from published constants (`rheostat.energy`): energy of an inference = MACs · energy of
a MAC + bytes of its weights · energy of reading a byte. Sleeping and leakage cost nothing. Where the memory's constants
matter, the result is a range over `rheostat.energy.MEMORIES`. A trace gives the shape: it is played in a loop, and its
power multiplied so that a period brings, in the mean, `load` times the energy of the largest subnet; the factor is
shown. For the sun it is the area in square centimetres of a flat cell, a fifth of whose light becomes electricity and
four fifths of that reach the capacitor (assumptions); for the radio it multiplies the power into a 30 kohm load.

The nets are those of the pruning paper's Table 2 with the paper's accuracies; HAR-Net and OKG-Net, which it does not
draw, have the MACs and weights of our own. With --artifact its subnets are simulated instead, with their recorded
accuracies.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import rheostat as rh
from rheostat.energy import CPU, FRAM, LAYOUTS, MEMORIES, Compute, Memory, lea, switch_cost

LOADS = (0.3, 0.6, 1.0, 1.5)
NUM_REQUESTS = 20_000  # four weeks of sun
NUM_STORED = 10  # largest inferences that the capacitor holds when it is full
SAME = 0.001  # answers right for each request that make no difference: a tenth of a point


@dataclass(frozen=True)
class Net:
    """Nested subnets, smallest first: bytes of their weights, MACs, accuracies (fractions)."""

    name: str
    subnets: tuple[str, ...]
    sizes_bytes: tuple[int, ...]
    macs: tuple[int, ...]
    accuracies: tuple[float, ...]


def table2(
    name: str, num_weights: int, macs: int, sparsities: Sequence[float], accuracies: Sequence[float]
) -> Net:
    """A row of the pruning paper's Table 2, weights of 16 bits; MACs shrink with the weights."""
    kept = [1 - sparsity for sparsity in sparsities]
    sizes, counts = ([round(number * k) for k in kept] for number in (2 * num_weights, macs))
    return Net(name, ("M1", "M2", "M3"), tuple(sizes), tuple(counts), tuple(accuracies))


NETS = (
    table2("LeNet-5", 44_190, 281_640, (0.6024, 0.405, 0.207), (0.9894, 0.9896, 0.9902)),
    table2("HAR-Net", 23_922, 732_672, (0.2413, 0.0531, 0.0269), (0.9019, 0.8978, 0.8721)),
    table2("OKG-Net", 34_572, 1_787_568, (0.8376, 0.5632, 0.3078), (0.8201, 0.8343, 0.8350)),
)


@dataclass(frozen=True)
class Trace:
    """Power in milliwatts, a number every `step_s` seconds; how often requests come, and what computes."""

    name: str
    step_s: float
    power_mw: np.ndarray
    period_s: float
    compute: Compute

    def harvest_mj(self, num: int) -> np.ndarray:
        """Energy of each of `num` periods, power being constant within a step."""
        total = np.concatenate([[0.0], np.cumsum(self.power_mw)]) * self.step_s
        loops, within = np.divmod(np.arange(num + 1) * self.period_s / self.step_s, len(self.power_mw))
        return np.diff(loops * total[-1] + np.interp(within, np.arange(len(total)), total))


def spill(stored_mj: float, harvest_mj: float, capacity_mj: float, costs_mj: Sequence[float]) -> int:
    """The rule of every device that switches: a larger subnet only from energy that would be lost.

    That is what the capacitor could not hold if the next period brought as much as the last. costs_mj: of an inference
    of each subnet, its switch included.
    """
    lost = stored_mj + harvest_mj - capacity_mj
    return max((k for k, cost in enumerate(costs_mj) if cost <= lost), default=0)


@dataclass(frozen=True)
class Outcome:
    """What became of the requests and of the harvested energy; the capacitor starts empty and ends with `stored_mj`."""

    requests: int
    completed: int
    accuracy: float  # expected, of the completed
    switches: int
    written_bytes: int
    harvested_mj: float
    inference_mj: float
    switch_mj: float
    wasted_mj: float
    stored_mj: float
    chosen: tuple[int, ...]  # inferences of each subnet

    @property
    def right(self) -> float:
        """Share of all requests that are answered correctly."""
        return self.accuracy * self.completed / self.requests


def play(
    harvest_mj: Sequence[float],
    inference_mj: Sequence[float],
    accuracies: Sequence[float],
    switches: Sequence[Sequence[tuple[float, int]]],
    capacity_mj: float,
) -> Outcome:
    """Play a device that starts with an empty capacitor and the smallest subnet.

    harvest_mj: energy of each period, at whose end a request comes. switches: (energy in mJ, bytes written) from each
    subnet to each. When what `spill` wants cannot be paid it is the largest smaller subnet that can, or the active one.
    """
    num = len(inference_mj)
    stored = wasted = spent = switching = 0.0
    active = written = num_switches = 0
    chosen = [0] * num
    costs = [[inference_mj[k] + row[k][0] for k in range(num)] for row in switches]
    for harvest in harvest_mj:
        stored += harvest
        if stored > capacity_mj:
            wasted += stored - capacity_mj
            stored = capacity_mj
        wanted = spill(stored, harvest, capacity_mj, costs[active])
        for k in (*range(wanted, -1, -1), active):
            if costs[active][k] <= stored:
                stored -= costs[active][k]
                spent += inference_mj[k]
                switching += switches[active][k][0]
                written += switches[active][k][1]
                num_switches += k != active
                active = k
                chosen[k] += 1
                break
    completed = sum(chosen)
    return Outcome(
        requests=len(harvest_mj),
        completed=completed,
        accuracy=sum(a * n for a, n in zip(accuracies, chosen, strict=True)) / max(completed, 1),
        switches=num_switches,
        written_bytes=written,
        harvested_mj=float(sum(harvest_mj)),
        inference_mj=spent,
        switch_mj=switching,
        wasted_mj=wasted,
        stored_mj=stored,
        chosen=tuple(chosen),
    )


def candidates(net: Net, compute: Compute, memory: Memory, harvest_mj: np.ndarray) -> dict[str, Outcome]:
    """Every subnet alone and every layout on one stretch of harvested energy."""
    inference = inference_mj(net, compute, memory)
    capacity, harvest, indices = NUM_STORED * inference[-1], harvest_mj.tolist(), range(len(net.subnets))
    outcomes = {
        f"{name} alone": play(harvest, [inference[k]], [net.accuracies[k]], [[(0.0, 0)]], capacity)
        for k, name in enumerate(net.subnets)
    }
    for layout in LAYOUTS:
        costs = [[switch_cost(net.sizes_bytes, a, b, layout, memory) for b in indices] for a in indices]
        table = [[(cost.energy_mj, cost.written_bytes) for cost in row] for row in costs]
        outcomes[layout] = play(harvest, inference, net.accuracies, table, capacity)
    return outcomes


def inference_mj(net: Net, compute: Compute, memory: Memory) -> list[float]:
    """Estimated energy of an inference of each subnet."""
    return [
        (macs * compute.mac_nj + size * memory.read_nj) * 1e-6
        for macs, size in zip(net.macs, net.sizes_bytes, strict=True)
    ]


def inference_s(net: Net, compute: Compute, memory: Memory) -> float:
    """Estimated time of an inference of the largest subnet."""
    return (net.macs[-1] * compute.mac_ns + net.sizes_bytes[-1] * memory.read_ns) * 1e-9


# ---- traces ----


def sine_day() -> Trace:
    """A made-up day: half a sine with 1 mW at noon, and nothing at night."""
    power = np.maximum(np.sin(np.arange(1440) * 2 * np.pi / 1440), 0)
    return Trace("sine day", 60.0, power, 120.0, CPU)


def radio(path: Path) -> Trace:
    """A line a millisecond, with the volts across 30 kohm (Ransford et al., Mementos, ASPLOS 2011).

    The counter in front of the volts jumps twice in one file, back and by 40 s: the lines are taken as they follow.
    """
    return Trace(f"radio {path.stem}", 1e-3, np.loadtxt(path, usecols=1) ** 2 / 30e3 * 1e3, 1.0, lea(150))


def sun(path: Path) -> Trace:
    """Minutes of global horizontal irradiance in W/m² (NREL SRRL, DOI 10.5439/1052221) on 1 cm², 16 % of it used."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    watts_per_m2 = np.maximum([float(line.rpartition(",")[2]) for line in lines], 0)  # an offset at night
    return Trace(f"sun {path.stem}", 60.0, watts_per_m2 * 1e-4 * 0.2 * 0.8 * 1e3, 120.0, CPU)


def traces(data: Path | None) -> Iterator[Trace]:
    if data is None:
        yield sine_day()
        return
    yield from map(sun, sorted((data / "energy" / "nrel_solar").glob("[0-9]*.txt")))
    yield from map(radio, sorted((data / "energy" / "mementos_rf").glob("[0-9]*.txt")))


# ---- tables ----


def switch_rows(net: Net) -> list[dict[str, object]]:
    """Every switch in every layout: bytes, and the range of time and energy over the memories."""
    rows = []
    for active in range(len(net.subnets)):
        for target in range(len(net.subnets)):
            for layout in LAYOUTS if active != target else ():
                costs = [switch_cost(net.sizes_bytes, active, target, layout, memory) for memory in MEMORIES]
                energies, times = [c.energy_mj for c in costs], [c.time_ms for c in costs]
                rows.append(
                    {
                        "net": net.name,
                        "switch": f"{net.subnets[active]} -> {net.subnets[target]}",
                        "layout": layout,
                        "read_bytes": costs[0].read_bytes,
                        "written_bytes": costs[0].written_bytes,
                        "energy_mj": {m.name: e for m, e in zip(MEMORIES, energies, strict=True)},
                        "time_ms": {m.name: t for m, t in zip(MEMORIES, times, strict=True)},
                    }
                )
    return rows


@dataclass(frozen=True)
class Row:
    """A candidate on a trace at a load; numbers of external FRAM, and where they differ one for each of `MEMORIES`."""

    net: str
    trace: str
    load: float
    factor: float
    candidate: str
    completed: float  # of all requests, as `right`
    accuracy: float
    right: tuple[float, ...]
    switches: int
    switch_mj: tuple[float, ...]
    switch_share: tuple[float, ...]  # of the energy spent
    written_bytes: int


def simulate(net: Net, trace: Trace, load: float, num: int) -> list[Row]:
    """All candidates on `num` requests of one trace."""
    if trace.period_s < inference_s(net, trace.compute, FRAM):
        raise ValueError(
            f"{net.name}: an inference takes longer than the {trace.period_s:g} s of {trace.name}"
        )
    harvest = trace.harvest_mj(num)
    factor = load * inference_mj(net, trace.compute, FRAM)[-1] / float(harvest.mean())
    outcomes = [candidates(net, trace.compute, memory, harvest * factor) for memory in MEMORIES]
    rows = []
    for name, shown in outcomes[MEMORIES.index(FRAM)].items():
        each = [outcome[name] for outcome in outcomes]
        row = Row(
            net=net.name,
            trace=trace.name,
            load=load,
            factor=factor,
            candidate=name,
            completed=shown.completed / num,
            accuracy=shown.accuracy,
            right=tuple(o.right for o in each),
            switches=shown.switches,
            switch_mj=tuple(o.switch_mj for o in each),
            switch_share=tuple(o.switch_mj / max(o.switch_mj + o.inference_mj, 1e-12) for o in each),
            written_bytes=shown.written_bytes,
        )
        rows.append(row)
    return rows


def verdict(rows: Sequence[Row]) -> str:
    """Say plainly whether the dial beats the best subnet alone: mean over traces, loads and memories.

    The best subnet alone for each trace and load is what somebody would have flashed who knew them beforehand.
    """
    names = dict.fromkeys(row.candidate for row in rows)
    means = {n: statistics.mean(x for row in rows if row.candidate == n for x in row.right) for n in names}
    best = max((name for name in names if name.endswith(" alone")), key=lambda name: means[name])
    gains = ", ".join(f"{layout} {100 * (means[layout] - means[best]):+.2f}" for layout in LAYOUTS)
    gain = max(means[layout] for layout in LAYOUTS) - means[best]
    plain = f"{best} is just as good: the dial is not worth turning"
    if gain > SAME:
        plain = "the dial is worth turning"
    elif gain < -SAME:
        plain = f"{best} is better: leave the dial alone"
    conditions = {(row.trace, row.load) for row in rows}
    hindsight = statistics.mean(
        max(
            statistics.mean(row.right)
            for row in rows
            if (row.trace, row.load) == condition and row.candidate.endswith(" alone")
        )
        for condition in conditions
    )
    return (
        f"{rows[0].net}: {best} answers {means[best]:.2%} of all requests right; points more: {gains}, the best subnet "
        f"alone for each trace and load {100 * (hindsight - means[best]):+.2f}. So {plain}."
    )


def from_artifact(path: Path) -> Net:
    """The subnets of an artifact, with their recorded accuracies."""
    infos = rh.cost(path)
    accuracies = tuple(info.accuracy for info in infos if info.accuracy is not None)
    if len(accuracies) < len(infos):
        raise ValueError(f"{path}: has no recorded accuracies; want one that was trained with validation=")
    sizes, macs = tuple(info.size_bytes for info in infos), tuple(info.macs for info in infos)
    return Net(path.stem, tuple(info.name for info in infos), sizes, macs, accuracies)


def show_switches(rows: Sequence[dict[str, object]]) -> None:
    head = f"{'net':<10}{'switch':<12}{'layout':<14}{'read B':>9}{'written B':>11}"
    print(f"{head}   mJ ({', '.join(memory.name for memory in MEMORIES)})")
    for row in rows:
        energies = row["energy_mj"]
        assert isinstance(energies, dict)
        texts = "  ".join(f"{energy:.3g}" for energy in energies.values())
        print(
            f"{row['net']:<10}{row['switch']:<12}{row['layout']:<14}{row['read_bytes']:>9,}"
            f"{row['written_bytes']:>11,}   {texts}"
        )


def show(rows: Sequence[Row]) -> None:
    print(
        f"\n{'net':<10}{'trace':<13}{'load':>5}{'factor':>8}  {'candidate':<13}{'completed':>10}{'accuracy':>10}"
        f"{'right of all':>20}{'switches':>9}{'energy in switching':>21}"
    )
    for row in rows:
        right, share = (f"{min(x):.2%} to {max(x):.2%}" for x in (row.right, row.switch_share))
        where = f"{row.net:<10}{row.trace:<13}{row.load:>5}{row.factor:>8.3g}  {row.candidate:<13}"
        print(f"{where}{row.completed:>10.2%}{row.accuracy:>10.2%}{right:>20}{row.switches:>9,}{share:>21}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with energy/")
    parser.add_argument("--artifact", type=Path, help="simulate its subnets instead of the paper's nets")
    parser.add_argument("--requests", type=int, default=NUM_REQUESTS)
    parser.add_argument("--json", type=Path, help="also write everything there")
    arguments = parser.parse_args()
    nets = NETS if arguments.artifact is None else (from_artifact(arguments.artifact),)
    played = list(traces(arguments.data))
    switches = [row for net in nets for row in switch_rows(net)]
    show_switches(switches)
    runs = [(net, trace, load) for net in nets for trace in played for load in LOADS]
    rows = [row for run in runs for row in simulate(*run, arguments.requests)]
    show(rows)
    verdicts = [verdict([row for row in rows if row.net == net.name]) for net in nets]
    print("\nEstimates, mean over traces, loads and memories:", *verdicts, sep="\n")
    if arguments.json:
        report = {
            "memories": [asdict(memory) for memory in MEMORIES],
            "compute": [asdict(compute) for compute in {trace.compute for trace in played}],
            "switches": switches,
            "rows": [asdict(row) for row in rows],
            "verdicts": verdicts,
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
