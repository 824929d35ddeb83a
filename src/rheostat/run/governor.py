"""How large a subnet may be: slow limits from latency, energy and the machine's state.

A governor looks once a period, and returns the cap for the next one. What it must remember lies in that cap, so that
a governor is a frozen value and `cap` a pure function. Several caps compose by min(); a policy decides below them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

from rheostat.run.policy import Observation, Profile, choose


@dataclass(frozen=True)
class Cap:
    """The largest subnet allowed, one word why, and what the governor that made it remembers.

    clean: windows in a row that would have allowed more. held: down until a signal has recovered. at_ms, since_ms:
    when it was last looked at and last changed. integral_w: the integral part of an energy plan. temp_c: last seen.

    >>> min(Cap(2, "latency"), Cap(1, "heat"), key=lambda cap: cap.subnet).reason
    'heat'
    """

    subnet: int
    reason: str = ""
    clean: int = 0
    held: bool = False
    at_ms: float = 0.0
    since_ms: float = -math.inf
    integral_w: float = 0.0
    temp_c: float | None = None


class Governor(Protocol):
    """Anything that caps: `previous` is what it returned for the period before, None at the start."""

    def cap(self, previous: Cap | None, observation: Observation) -> Cap:
        """Return the cap for the next period."""
        ...


@dataclass(frozen=True)
class LatencyGovernor:
    """Keeps the 95th percentile of the latency within a budget: for loops without a queue to look at.

    Down at once, as far as the profile says is needed: latencies are taken to scale with those of the profile, so that
    a machine slower than the profile is no trouble. Up by one subnet (past any that a larger one beats in time) after
    `clean` windows in a row in which that one would have stayed within `restore` of the budget; a window in which
    nothing ran is clean. Call it every few
    budgets: at a budget of 25 ms a window of 20 ms was far better than one of 250 ms.

    Raises ValueError for a budget not above 0, clean below 1 or restore outside 0 to 1.

    >>> profile = Profile((1,), ((1.0,), (2.0,), (4.0,)), ((1.0,), (2.0,), (4.0,)))
    >>> governor = LatencyGovernor(profile, budget_ms=5.0, clean=2)
    >>> cap = governor.cap(None, Observation(subnet=2, p95_ms=9.0))
    >>> cap.subnet, cap.reason
    (1, 'latency')
    >>> for p95_ms in (2.0, 2.0):
    ...     cap = governor.cap(cap, Observation(subnet=1, p95_ms=p95_ms))
    >>> cap.subnet
    2
    """

    profile: Profile
    budget_ms: float
    clean: int = 5
    restore: float = 0.85

    def __post_init__(self) -> None:
        if not self.budget_ms > 0 or self.clean < 1 or not 0 < self.restore <= 1:
            raise ValueError(
                f"LatencyGovernor: got budget_ms={self.budget_ms}, clean={self.clean}, restore={self.restore}; "
                "want above 0, at least 1, above 0 and up to 1"
            )

    def cap(self, previous: Cap | None, observation: Observation) -> Cap:
        """Return the cap after one more window."""
        last = self.profile.num_subnets - 1
        state = previous or Cap(last)
        now_ms, p95_ms = observation.now_ms, observation.p95_ms
        ran = min(state.subnet if observation.subnet is None else observation.subnet, last)
        times = [row[0] for row in self.profile.latency_ms_p95]
        scale = 0.0 if p95_ms is None else p95_ms / times[ran]
        if p95_ms is not None and p95_ms > self.budget_ms:
            fitting = choose([scale * time for time in times[: max(ran, 1)]], self.budget_ms)
            subnet = min(state.subnet, fitting)
            since_ms = state.since_ms if subnet == state.subnet else now_ms
            return Cap(subnet, "latency", at_ms=now_ms, since_ms=since_ms)
        if state.subnet == last:
            return Cap(last, at_ms=now_ms, since_ms=state.since_ms)
        # Past those that the profile has as slower than a larger one: `choose` would never take them.
        up = next(
            k for k in range(state.subnet + 1, last + 1) if times[k] < min(times[k + 1 :], default=math.inf)
        )
        if scale * times[up] > self.restore * self.budget_ms:
            return replace(state, clean=0, at_ms=now_ms)
        if state.clean + 1 < self.clean:
            return replace(state, clean=state.clean + 1, at_ms=now_ms)
        return Cap(up, "" if up == last else state.reason, at_ms=now_ms, since_ms=now_ms)


@dataclass(frozen=True)
class EnergyGovernor:
    """Makes a battery last until a set time: caps the energy of a request by what the plan allows.

    The plan is a straight line from `start` at `start_ms` to `reserve` after `horizon_s` seconds. Power allowed:
    P = (battery − reserve) · capacity / time left + expected harvest + a slow integral of the distance to the plan.
    Energy allowed for a request: (P − idle_w) / arrivals; the cap is the largest subnet that takes no more. At or below
    `low` the smallest subnet is held until the battery is back at `restored`; otherwise a cap stays for `dwell_ms`. The
    smallest subnet is always allowed. On AC, or while there is no battery to read, there is no cap; what was held or
    integrated is kept until it can be read again. After the horizon only what is harvested is spent.

    energy_mj: of one request, each subnet, smallest first. Raises ValueError for numbers that make no plan.

    >>> governor = EnergyGovernor((2.0, 8.0), capacity_j=3600.0, horizon_s=3600.0)
    >>> [governor.cap(None, Observation(arrivals_per_s=rate, signals=Signals(battery=1.0))).subnet
    ...     for rate in (50.0, 200.0)]
    [1, 0]
    """

    energy_mj: tuple[float, ...]
    capacity_j: float
    horizon_s: float
    start_ms: float = 0.0
    start: float = 1.0
    reserve: float = 0.1
    idle_w: float = 0.0
    gain: float = 1.0
    low: float = 0.2
    restored: float = 0.25
    dwell_ms: float = 5000.0

    def __post_init__(self) -> None:
        if len(self.energy_mj) == 0 or not all(0 < energy < math.inf for energy in self.energy_mj):
            raise ValueError(f"EnergyGovernor: got energy_mj={self.energy_mj}; want one above 0 per subnet")
        if not (0 < self.capacity_j < math.inf and 0 < self.horizon_s < math.inf):
            raise ValueError(
                f"EnergyGovernor: got capacity_j={self.capacity_j}, horizon_s={self.horizon_s}; want above 0"
            )
        others = {name: getattr(self, name) for name in ("start_ms", "idle_w", "gain", "dwell_ms")}
        if not all(math.isfinite(value) for value in others.values()):
            raise ValueError(f"EnergyGovernor: got {others}; want finite numbers")
        if not (0 <= self.reserve <= self.start <= 1 and 0 <= self.low <= self.restored <= 1):
            raise ValueError(
                f"EnergyGovernor: got reserve={self.reserve}, start={self.start}, low={self.low}, "
                f"restored={self.restored}; want fractions, reserve up to start and low up to restored"
            )

    def cap(self, previous: Cap | None, observation: Observation) -> Cap:
        """Return the cap that keeps to the plan."""
        now_ms, battery = observation.now_ms, observation.signals.battery
        last = len(self.energy_mj) - 1
        state = previous or Cap(last, at_ms=now_ms)
        if observation.signals.on_ac or battery is None:
            since_ms = state.since_ms if state.subnet == last else now_ms
            kept = Cap(last) if observation.signals.on_ac else replace(state, subnet=last, reason="")
            return replace(kept, at_ms=now_ms, since_ms=since_ms)
        power_w, integral_w = self._power_w(state, observation, battery)
        held = battery <= self.low or (state.held and battery < self.restored)
        subnet, reason = 0, "battery"
        if not held:
            subnet = self._affordable(power_w, observation.arrivals_per_s)
            reason = "" if subnet == last else "energy"
            if subnet != state.subnet and now_ms - state.since_ms < self.dwell_ms:
                subnet, reason = state.subnet, state.reason
        since_ms = state.since_ms if subnet == state.subnet else now_ms
        return Cap(subnet, reason, held=held, at_ms=now_ms, since_ms=since_ms, integral_w=integral_w)

    def _power_w(self, state: Cap, observation: Observation, battery: float) -> tuple[float, float]:
        """Watts that may be spent, and the integral part of them."""
        elapsed_s = (observation.now_ms - self.start_ms) / 1e3
        left_s = self.horizon_s - elapsed_s
        if left_s <= 0:
            return max(observation.signals.harvest_w or 0.0, 0.0), 0.0
        planned = self.start - (self.start - self.reserve) * max(elapsed_s / self.horizon_s, 0.0)
        error_j = (battery - planned) * self.capacity_j
        # An error that stays for the whole horizon is paid back over the horizon at gain 1.
        step_s = max(observation.now_ms - state.at_ms, 0.0) / 1e3
        integral_w = state.integral_w + self.gain * error_j * step_s / self.horizon_s**2
        stored_w = (battery - self.reserve) * self.capacity_j / left_s
        power_w = max(stored_w + (observation.signals.harvest_w or 0.0), 0.0)
        # It may double the power or take all of it, and never winds up further.
        integral_w = min(max(integral_w, -power_w), power_w)
        return power_w + integral_w, integral_w

    def _affordable(self, power_w: float, arrivals_per_s: float) -> int:
        if arrivals_per_s <= 0:
            return len(self.energy_mj) - 1
        return choose(self.energy_mj, 1e3 * (power_w - self.idle_w) / arrivals_per_s)


@dataclass(frozen=True)
class SystemGovernor:
    """Steps aside for heat, for a control group's processor quota and for others who wait for a processor.

    Heat, as in the kernel's step-wise governor: one subnet down a period while `temp_c` is above `hot_c` and rising.
    Pressure: one down a period while it is above `pressed`. One up a period when the temperature is below `cool_c` and
    the pressure below `relaxed`. Quota: below `threads` processors the latencies are stretched by threads / quota, and
    the cap is the largest subnet that then fits `budget_ms`. A signal that is None limits nothing.
    Call it every second or so: the kernel averages pressure over 10 s. Take `hot_c` from the board's trip points.
    Raises ValueError where a pair of limits is the wrong way round, or budget_ms or threads is not above 0.

    >>> profile = Profile((1,), ((1.0,), (2.0,), (4.0,)), ((1.0,), (2.0,), (4.0,)))
    >>> governor = SystemGovernor(profile, budget_ms=5.0)
    >>> cap = governor.cap(None, Observation(signals=Signals(temp_c=91.0)))
    >>> cap.subnet, cap.reason
    (1, 'heat')
    >>> governor.cap(None, Observation(signals=Signals(cpu_quota=0.25))).subnet
    0
    """

    profile: Profile
    budget_ms: float = math.inf
    threads: int = 1
    hot_c: float = 85.0
    cool_c: float = 75.0
    pressed: float = 0.4
    relaxed: float = 0.2

    def __post_init__(self) -> None:
        if not self.budget_ms > 0 or self.threads < 1:
            raise ValueError(
                f"SystemGovernor: got budget_ms={self.budget_ms}, threads={self.threads}; want above 0"
            )
        if not (self.cool_c <= self.hot_c and self.relaxed <= self.pressed):
            raise ValueError(
                f"SystemGovernor: got cool_c={self.cool_c}, hot_c={self.hot_c}, relaxed={self.relaxed}, "
                f"pressed={self.pressed}; want cool_c up to hot_c, relaxed up to pressed"
            )

    def cap(self, previous: Cap | None, observation: Observation) -> Cap:
        """Return the cap for the next period."""
        signals, last = observation.signals, self.profile.num_subnets - 1
        state = previous or Cap(last)
        temp_c, pressure, quota = signals.temp_c, signals.pressure, signals.cpu_quota
        rising = temp_c is not None and (state.temp_c is None or temp_c > state.temp_c)
        hot = temp_c is not None and temp_c > self.hot_c
        pressed = pressure is not None and pressure > self.pressed
        cool = (temp_c is None or temp_c < self.cool_c) and (pressure is None or pressure < self.relaxed)
        subnet, reason = state.subnet, state.reason
        if (hot and rising) or pressed:
            subnet, reason = max(subnet - 1, 0), "heat" if hot and rising else "pressure"
        elif cool:
            subnet = min(subnet + 1, last)
        if quota is not None and quota < self.threads:
            stretched = [row[0] * self.threads / max(quota, 1e-9) for row in self.profile.latency_ms_p95]
            fitting = choose(stretched, self.budget_ms)
            if fitting < subnet:
                subnet, reason = fitting, "quota"
        reason = "" if subnet == last else reason
        since_ms = state.since_ms if subnet == state.subnet else observation.now_ms
        return Cap(subnet, reason, at_ms=observation.now_ms, since_ms=since_ms, temp_c=temp_c)
