"""Which subnet to run: pure functions of what was observed, without a clock and without I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence


def choose(latencies_ms: Sequence[float], budget_ms: float) -> int:
    """Return the largest subnet whose expected latency fits the budget, or the smallest (0) when none does.

    latencies_ms: expected latency of each subnet in milliseconds, smallest subnet first; use the 95th percentile
        where a deadline matters, the median where throughput does. A larger subnet never loses to a smaller one
        that is slower. Raises ValueError when there is no subnet or a number is not a number.

    >>> choose((0.1, 0.2, 0.4), budget_ms=0.25), choose((0.1, 0.2, 0.4), budget_ms=0.05)
    (1, 0)
    """
    if not latencies_ms:
        raise ValueError("choose: got no latencies; want one per subnet, smallest first")
    if math.isnan(budget_ms) or any(math.isnan(latency) for latency in latencies_ms):
        raise ValueError(
            f"choose: got latencies_ms={list(latencies_ms)}, budget_ms={budget_ms}; want numbers"
        )
    fitting = [index for index, latency in enumerate(latencies_ms) if latency <= budget_ms]
    return max(fitting, default=0)
