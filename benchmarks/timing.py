"""Timing side by side: ratios of programs that run in turn, in one process."""

import statistics
import time
from collections.abc import Callable


def medians(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Returns the median seconds of each run; all run twice in every round.

    The second time counts, as in a loop: the first call after another program finds
    its memory and the caches as that one left them (a solver that frees gigabytes made
    the next one up to three times slower).

    Args:
      runs: functions that return when their work is done, already warmed up.
      rounds: measurements of each.
    """
    times: dict[str, list[float]] = {label: [] for label in runs}
    for _ in range(rounds):
        for label, run in runs.items():
            run()
            start = time.perf_counter()
            run()
            times[label].append(time.perf_counter() - start)
    return {label: statistics.median(values) for label, values in times.items()}


def row(case: str, seconds: dict[str, float], ours: str = "ot_dd") -> dict:
    """Returns what a report says of a case: milliseconds and ratios to ours."""
    return {
        "case": case,
        "milliseconds": {k: round(1e3 * v, 2) for k, v in seconds.items()},
        "ratio_to_ours": {k: round(v / seconds[ours], 2) for k, v in seconds.items()},
    }
