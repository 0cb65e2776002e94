"""Times of rivals that take turns, as ratios of one round: whatever slows the machine down slows both sides.

Wall time is what is asked about; the processor time of this thread beside it tells whether something else ran.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

Run = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """Seconds of one call, round by round: by the clock on the wall, and of the processor for this thread."""

    wall: NDArray[np.float64]
    cpu: NDArray[np.float64]

    def over(self, other: "Times") -> dict[str, Any]:
        """JSON-able: quartiles of the ratio of wall times of the same rounds, and the median ratio of CPU times."""
        return {"wall": quartiles(self.wall / other.wall), "cpu": quartiles(self.cpu / other.cpu)[1]}


def quartiles(values: NDArray[np.float64]) -> list[float]:
    """Lower quartile, median, upper quartile, to four digits."""
    return [float(f"{q:.4g}") for q in np.quantile(values, (0.25, 0.5, 0.75))]


def take_turns(
    runs: Mapping[str, Run], rounds: int, rng: np.random.Generator, *, turn: float = 0.0
) -> dict[str, Times]:
    """Times of every run, one turn each in every round, in random order.

    A run repeats within its turn until about `turn` seconds have passed: short ones need that to be measurable.
    """
    repeats = {name: _repeats(run, turn) for name, run in runs.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name in rng.permutation(list(runs)):
            wall, cpu = time.perf_counter(), time.thread_time()
            for _ in range(repeats[name]):
                runs[name]()
            spent = time.perf_counter() - wall, time.thread_time() - cpu
            seconds[name].append((spent[0] / repeats[name], spent[1] / repeats[name]))
    return {name: Times(*np.array(pairs).T) for name, pairs in seconds.items()}


def _repeats(run: Run, turn: float) -> int:
    """How often a run fits into a turn; it is warm afterwards."""
    run()
    begin = time.perf_counter()
    run()
    return max(1, ceil(turn / max(time.perf_counter() - begin, 1e-7)))
