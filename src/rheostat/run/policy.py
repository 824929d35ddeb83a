"""Which subnet to run: pure functions of what was observed, without a clock and without I/O."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol


def choose(latencies_ms: Sequence[float], budget_ms: float) -> int:
    """Return the largest subnet whose expected latency fits the budget, or the smallest (0) when none does.

    latencies_ms: expected latency of each subnet in milliseconds, smallest subnet first; use the 95th percentile
        where a deadline matters, the median where throughput does. A larger subnet never loses to a smaller one
        that is slower. Raises ValueError when there is no subnet or a number is not a number.

    >>> choose((0.1, 0.2, 0.4), budget_ms=0.25), choose((0.1, 0.2, 0.4), budget_ms=0.05)
    (1, 0)
    """
    if not len(latencies_ms):
        raise ValueError("choose: got no latencies; want one per subnet, smallest first")
    if math.isnan(budget_ms) or any(math.isnan(latency) for latency in latencies_ms):
        raise ValueError(
            f"choose: got latencies_ms={list(latencies_ms)}, budget_ms={budget_ms}; want numbers"
        )
    fitting = [index for index, latency in enumerate(latencies_ms) if latency <= budget_ms]
    return max(fitting, default=0)


def arrival_rate(previous: float, gap_ms: float, tau_ms: float, num: int = 1) -> float:
    """Return the requests a second after `num` more arrived, `gap_ms` after the last update.

    An exponential kernel: what is older than a few `tau_ms` is forgotten. Twice the latency budget is a good
    `tau_ms`. With num=0 the rate is only brought up to date. Raises ValueError for a tau that is not above 0, and for
    anything else below 0.

    >>> rate = 0.0
    >>> for _ in range(1000):
    ...     rate = arrival_rate(rate, gap_ms=5, tau_ms=100)
    >>> round(rate)
    205
    """
    if not (previous >= 0 and gap_ms >= 0 and tau_ms > 0 and num >= 0):
        raise ValueError(
            f"arrival_rate: got gap_ms={gap_ms}, tau_ms={tau_ms}, previous={previous}, num={num}; want tau_ms above 0, "
            "the others at least 0"
        )
    return previous * math.exp(-gap_ms / tau_ms) + num * 1e3 / tau_ms


@dataclass(frozen=True)
class Profile:
    """How long each subnet takes on this machine, for several batch sizes: what `calibrate` measures.

    batches: the measured batch sizes, rising. latency_ms_p50, latency_ms_p95: a row per subnet, smallest first, a
    column per batch size, not falling as the batch grows. Between the columns the latency is interpolated; beyond
    them the last slope goes on. Raises ValueError for anything else.

    >>> profile = Profile((1, 16), ((0.5, 2.0), (2.0, 14.0)), ((0.6, 2.1), (2.2, 15.4)))
    >>> profile.num_subnets, profile.latency_ms(0, 6), round(profile.max_rate(1, 16))
    (2, 1.1, 1143)
    """

    batches: tuple[int, ...]
    latency_ms_p50: tuple[tuple[float, ...], ...]
    latency_ms_p95: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if not self.batches or self.batches[0] < 1 or not _rising(self.batches, strictly=True):
            raise ValueError(f"Profile: got batches={self.batches}; want sizes of at least 1, rising")
        if not self.latency_ms_p50 or len(self.latency_ms_p50) != len(self.latency_ms_p95):
            got = f"{len(self.latency_ms_p50)} and {len(self.latency_ms_p95)} rows"
            raise ValueError(f"Profile: got {got} of latencies; want one per subnet in both, at least one")
        for row in (*self.latency_ms_p50, *self.latency_ms_p95):
            # `not … > 0` also holds for NaN.
            if len(row) != len(self.batches) or not row[0] > 0 or not row[-1] < math.inf or not _rising(row):
                raise ValueError(
                    f"Profile: got latencies {row} for batches {self.batches}; want one above 0 per batch size, "
                    "not falling"
                )

    @property
    def num_subnets(self) -> int:
        """How many subnets were measured."""
        return len(self.latency_ms_p50)

    def latency_ms(self, subnet: int, batch: int) -> float:
        """Return the 95th percentile of the latency of a batch, in milliseconds."""
        return _interpolated(self.batches, self.latency_ms_p95[subnet], batch)

    def max_rate(self, subnet: int, max_batch: int) -> float:
        """Return the most requests a second that one worker answers with batches of up to `max_batch`."""
        sizes = [size for size in self.batches if size < max_batch] + [max_batch]
        row = self.latency_ms_p50[subnet]
        # Between two measured sizes the latency is linear, so the rate is highest at one of them.
        return max(1e3 * size / _interpolated(self.batches, row, size) for size in sizes)

    def slowdown(
        self,
        previous: float,
        subnet: int,
        batch: int,
        measured_ms: float,
        rise: float = 0.3,
        fall: float = 0.05,
    ) -> float:
        """Return how many times slower than this profile the machine is, after one more measured batch.

        An exponential moving mean of measured to predicted (median) latency, with hysteresis: a ratio above the mean
        counts with weight `rise`, one below it with weight `fall`. Short calls hardly notice that a processor is
        shared, and would lead back to a large subnet that does. Start with 1.0.
        Raises ValueError for a measurement, a previous value or a weight that makes no sense.

        >>> profile = Profile((1,), ((2.0,),), ((2.2,),))
        >>> slowdown = 1.0
        >>> for _ in range(10):
        ...     slowdown = profile.slowdown(slowdown, subnet=0, batch=1, measured_ms=6.0)
        >>> round(slowdown, 2)
        2.94
        """
        if not (0 < measured_ms < math.inf and 0 < previous < math.inf):
            raise ValueError(f"slowdown: got measured_ms={measured_ms}, previous={previous}; want above 0")
        if not (0 < rise <= 1 and 0 < fall <= 1):
            raise ValueError(f"slowdown: got rise={rise}, fall={fall}; want above 0 and up to 1")
        ratio = measured_ms / _interpolated(self.batches, self.latency_ms_p50[subnet], batch)
        return previous + (rise if ratio > previous else fall) * (ratio - previous)


@dataclass(frozen=True)
class Signals:
    """What the machine says about itself; None where it says nothing. `read_signals` fills it in on Linux.

    battery: charge, 0 to 1. on_ac: plugged in. harvest_w: power expected to be harvested until the plan's end, in
    watts (a forecast of yours; what is harvested now is the simplest). temp_c: hottest sensor. cpu_quota: processors
    that the control group may use. pressure: share of the last 10 s in which something waited for a processor.

    Raises ValueError for numbers that make no sense, a battery in percent among them.

    >>> Signals(battery=0.8).temp_c is None
    True
    """

    battery: float | None = None
    on_ac: bool | None = None
    harvest_w: float | None = None
    temp_c: float | None = None
    cpu_quota: float | None = None
    pressure: float | None = None

    def __post_init__(self) -> None:
        # Written so that NaN fails as well.
        if not (
            (self.battery is None or 0 <= self.battery <= 1)
            and (self.harvest_w is None or abs(self.harvest_w) < math.inf)
            and (self.temp_c is None or abs(self.temp_c) < math.inf)
            and (self.cpu_quota is None or self.cpu_quota >= 0)
            and (self.pressure is None or 0 <= self.pressure <= 1)
        ):
            raise ValueError(
                f"{self}: want a battery and a pressure from 0 to 1, a quota of 0 or more, no NaN"
            )


@dataclass(frozen=True)
class Observation:
    """What a policy or a governor looks at. Give what you know; what is not given is taken to be fine.

    now_ms: your clock. deadlines_ms: on that clock, one per waiting request, oldest first. arrivals_per_s: smoothed,
    see `arrival_rate`. workers: how many engines share the queue. slowdown: see `Profile.slowdown`. subnet: the one
    that ran last. p95_ms: 95th percentile of the latencies since the governor last looked, None when nothing ran.
    Raises ValueError for numbers that make no sense, NaN among them.

    >>> Observation(now_ms=10.0, deadlines_ms=(35.0, 35.5)).arrivals_per_s
    0.0
    """

    now_ms: float = 0.0
    deadlines_ms: Sequence[float] = ()
    arrivals_per_s: float = 0.0
    workers: int = 1
    slowdown: float = 1.0
    subnet: int | None = None
    p95_ms: float | None = None
    signals: Signals = field(default_factory=Signals)

    def __post_init__(self) -> None:
        # Written so that NaN fails as well.
        if not (
            abs(self.now_ms) < math.inf
            and self.arrivals_per_s >= 0
            and self.workers >= 1
            and 0 < self.slowdown < math.inf
            and (self.subnet is None or self.subnet >= 0)
            and (self.p95_ms is None or self.p95_ms >= 0)
        ):
            raise ValueError(
                f"Observation: got now_ms={self.now_ms}, arrivals_per_s={self.arrivals_per_s}, workers={self.workers}, "
                f"slowdown={self.slowdown}, subnet={self.subnet}, p95_ms={self.p95_ms}; want a time, 0 or more, "
                "1 or more, above 0, 0 or more, 0 or more"
            )


@dataclass(frozen=True)
class Decision:
    """What to do next: drop the `shed` oldest requests, then run `subnet` on the `batch` oldest that remain.

    batch is 0 when nothing is left to run. reason: one word for logs.

    >>> Decision(subnet=2, batch=4).shed
    0
    """

    subnet: int
    batch: int
    shed: int = 0
    reason: str = ""


class Policy(Protocol):
    """Anything that decides: same observation, same decision; `cap` is the largest subnet allowed, None for no cap."""

    def decide(self, observation: Observation, cap: int | None = None) -> Decision:
        """Return what to do next."""
        ...


@dataclass(frozen=True)
class Fixed:
    """Always the same subnet: the baseline, and the policy to put a governor's cap on.

    subnet: an index, -1 for the largest. Requests that this subnet cannot answer in time any more are shed.
    Raises ValueError for a subnet that does not exist or max_batch below 1.

    >>> profile = Profile((1, 16), ((0.5, 2.0), (2.0, 14.0)), ((0.5, 2.0), (2.0, 14.0)))
    >>> Fixed(profile).decide(Observation(now_ms=10.0, deadlines_ms=(11.0, 35.0, 35.5)))
    Decision(subnet=1, batch=2, shed=1, reason='fixed')
    """

    profile: Profile
    subnet: int = -1
    max_batch: int = 16

    def __post_init__(self) -> None:
        _check_max_batch("Fixed", self.max_batch)
        if not -1 <= self.subnet < self.profile.num_subnets:
            raise ValueError(f"Fixed: got subnet={self.subnet}; want -1 to {self.profile.num_subnets - 1}")

    def decide(self, observation: Observation, cap: int | None = None) -> Decision:
        """Return the fixed subnet, or the cap where that is smaller."""
        top = _top(self.profile, cap)
        subnet = top if self.subnet < 0 else min(self.subnet, top)
        shed = _hopeless(observation, self.profile.latency_ms_p50[subnet][0])
        batch = min(len(observation.deadlines_ms) - shed, self.max_batch)
        return Decision(subnet, batch, shed, "fixed" if batch else "idle")


@dataclass(frozen=True)
class CapSlack:
    """The policy for a queue: the largest subnet that keeps up with the load and lets the oldest request be in time.

    Keeping up: max_rate(subnet) ≥ max(headroom · arrivals, waiting / (horizon · budget)) / workers, so that the
    queue is gone within a part of the budget. In time: latency(subnet, batch) ≤ margin · slack of the oldest request.
    Both use the profile corrected by the observed slowdown. When no subnet does both, the smallest runs on a full
    batch. Requests that even the smallest could not answer in time on an undisturbed machine are shed.

    budget_ms: from a request's arrival to its deadline. max_batch: most requests in one call. How little depends on
    horizon and margin is in docs/policies.md. Raises ValueError for what is not above 0.

    >>> profile = Profile((1, 16), ((0.5, 2.0), (2.0, 14.0)), ((0.5, 2.0), (2.0, 14.0)))
    >>> policy = CapSlack(profile, budget_ms=25.0)
    >>> policy.decide(Observation(deadlines_ms=(20.0, 21.0), arrivals_per_s=300.0))
    Decision(subnet=1, batch=2, shed=0, reason='fits')
    >>> policy.decide(Observation(deadlines_ms=[20.0] * 40, arrivals_per_s=300.0))
    Decision(subnet=0, batch=16, shed=0, reason='fits')
    """

    profile: Profile
    budget_ms: float
    max_batch: int = 16
    horizon: float = 0.5
    margin: float = 0.85
    headroom: float = 1.1

    def __post_init__(self) -> None:
        _check_max_batch("CapSlack", self.max_batch)
        for name in ("budget_ms", "horizon", "margin", "headroom"):
            if not getattr(self, name) > 0:
                raise ValueError(f"CapSlack: got {name}={getattr(self, name)}; want above 0")

    @cached_property
    def _max_rates(self) -> tuple[float, ...]:
        return tuple(self.profile.max_rate(k, self.max_batch) for k in range(self.profile.num_subnets))

    def decide(self, observation: Observation, cap: int | None = None) -> Decision:
        """Return the largest subnet, up to the cap, that keeps up and is in time, and the batch to run it on."""
        profile, deadlines = self.profile, observation.deadlines_ms
        top = _top(profile, cap)
        # Not corrected by the slowdown: while everything is shed, nothing runs that could show it is over.
        shed = _hopeless(observation, profile.latency_ms_p50[0][0])
        waiting = len(deadlines) - shed
        if waiting == 0:
            return Decision(top, 0, shed, "idle")
        batch = min(waiting, self.max_batch)
        slowdown, slack_ms = observation.slowdown, deadlines[shed] - observation.now_ms
        needed = max(
            self.headroom * observation.arrivals_per_s, 1e3 * waiting / (self.horizon * self.budget_ms)
        )
        needed *= slowdown / observation.workers
        limit_ms = self.margin * slack_ms / slowdown
        for subnet in range(top, -1, -1):
            if self._max_rates[subnet] >= needed and profile.latency_ms(subnet, batch) <= limit_ms:
                return Decision(subnet, batch, shed, "fits")
        return Decision(0, batch, shed, "overload")


@dataclass(frozen=True)
class SlackFit:
    """The policy of SuperServe (Khare et al., arXiv 2312.16733) as we read it, without its code: for comparison.

    The latencies of all pairs (subnet, batch) are divided into evenly spaced buckets; each bucket stands for its pair
    with the largest batch, the larger subnet where batches are equal. The slack of the oldest request, times
    `margin`, picks the slowest pair that fits. It looks at no load, and less slack can mean a larger subnet on a
    smaller batch. margin=1 is the paper's; at 1 it rides the deadline. Raises ValueError for what is not above 0.

    >>> profile = Profile((1, 16), ((0.5, 2.0), (2.0, 14.0)), ((0.5, 2.0), (2.0, 14.0)))
    >>> SlackFit(profile).decide(Observation(deadlines_ms=(20.0, 21.0)))
    Decision(subnet=1, batch=2, shed=0, reason='fits')
    """

    profile: Profile
    max_batch: int = 16
    buckets: int = 8
    margin: float = 1.0

    def __post_init__(self) -> None:
        _check_max_batch("SlackFit", self.max_batch)
        if self.buckets < 1 or not self.margin > 0:
            raise ValueError(
                f"SlackFit: got buckets={self.buckets}, margin={self.margin}; want at least 1, above 0"
            )

    @cached_property
    def _choices(self) -> tuple[tuple[float, int, int], ...]:
        """(latency, batch, subnet) of each bucket that is not empty, slowest first."""
        pairs = [
            (self.profile.latency_ms(subnet, batch), batch, subnet)
            for subnet in range(self.profile.num_subnets)
            for batch in range(1, self.max_batch + 1)
        ]
        low, high = min(pairs)[0], max(pairs)[0]
        best: dict[int, tuple[float, int, int]] = {}
        for pair in pairs:
            place = (pair[0] - low) / (high - low) if high > low else 0.0
            bucket = min(int(self.buckets * place), self.buckets - 1)
            best[bucket] = max(best.get(bucket, pair), pair, key=lambda choice: choice[1:])
        return tuple(sorted(best.values(), reverse=True))

    def decide(self, observation: Observation, cap: int | None = None) -> Decision:
        """Return the pair of the slowest bucket that the slack allows."""
        top = _top(self.profile, cap)
        shed = _hopeless(observation, self.profile.latency_ms_p50[0][0])
        waiting = len(observation.deadlines_ms) - shed
        if waiting == 0:
            return Decision(top, 0, shed, "idle")
        slack_ms = observation.deadlines_ms[shed] - observation.now_ms
        limit_ms = self.margin * slack_ms / observation.slowdown
        for latency_ms, batch, subnet in self._choices:
            if latency_ms <= limit_ms:
                return Decision(min(subnet, top), min(batch, waiting), shed, "fits")
        return Decision(0, min(self.max_batch, waiting), shed, "overload")


def _rising(numbers: Sequence[float], strictly: bool = False) -> bool:
    return all(a < b if strictly else a <= b for a, b in zip(numbers, numbers[1:], strict=False))


def _interpolated(xs: tuple[int, ...], ys: tuple[float, ...], x: int) -> float:
    if len(xs) == 1:
        return ys[0] * max(x / xs[0], 1.0)
    right = min(max(bisect_right(xs, x), 1), len(xs) - 1)
    x0, x1, y0, y1 = xs[right - 1], xs[right], ys[right - 1], ys[right]
    return y0 + (y1 - y0) * max(x - x0, 0) / (x1 - x0)


def _top(profile: Profile, cap: int | None) -> int:
    if cap is not None and cap < 0:
        raise ValueError(f"decide: got cap={cap}; want a subnet's index, or None for no cap")
    return profile.num_subnets - 1 if cap is None else min(cap, profile.num_subnets - 1)


def _hopeless(observation: Observation, latency_ms: float) -> int:
    """How many requests at the head of the queue are too late for a latency."""
    latest = observation.now_ms + latency_ms
    num = 0
    for deadline in observation.deadlines_ms:
        if not deadline < latest:
            break
        num += 1
    return num


def _check_max_batch(where: str, max_batch: int) -> None:
    if max_batch < 1:
        raise ValueError(f"{where}: got max_batch={max_batch}; want at least 1")
