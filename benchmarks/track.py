"""The same workloads under pytest-benchmark, to follow lockref over time:

python -m pytest benchmarks/track.py --benchmark-autosave --benchmark-compare
"""

from typing import Any

import pytest

from benchmarks.engines import ENGINES
from benchmarks.workloads import WORKLOADS


@pytest.mark.parametrize("workload", WORKLOADS)
def test_forward_and_backward(workload: str, benchmark: Any) -> None:
    benchmark(ENGINES["lockref"](WORKLOADS[workload].problem(seed=0)).both)
