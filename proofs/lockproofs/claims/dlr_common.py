"""What the claims about DLR-Lock share: its source, exact checks, and tiny integer networks to follow by hand."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lockproofs.claim import Check, Deviation
from lockref.models import dlrnet
from lockref.models.dlrnet import DLRConfig

PAPER = "DLR-Lock (arXiv 2605.10777)"
FORMULA = Deviation(
    paper_says="the block formula, norm, rank and depth were not readable to us",
    we_do="x_{l+1} = x_l + B_l σ(A_l N_l(x_l)) with norm, activation and placement as named choices; "
    "all 3 norms × 5 activations are checked",
    why="a deep low-rank residual network at parameter parity is what the paper names",
    effect="the constants depend on norm and activation, the exact linearity does not",
)
Arrays = dict[str, np.ndarray[Any, Any]]


def exact(name: str, statistic: str, value: int, bound: int, *, cases: int, unit: str = "bytes") -> Check:
    """A check in integers: the value is the bound or the check fails."""
    tolerance_from = "integers: no tolerance"
    return Check(
        name=name, statistic=statistic, unit=unit, value=value, bound=bound, sense="==",
        tolerance_from=tolerance_from, cases=cases,
    )  # fmt: skip


def integer_net(given: Mapping[str, Any]) -> tuple[DLRConfig, Arrays, Any]:
    """A relu network without norms from {"x0": row, "A": [block rows], "B": [block columns]}, rank 1 a block.

    All of it is integers, so that float64 computes it and its gradients exactly.
    """
    config = DLRConfig(len(given["x0"]), 1, len(given["A"]), "none", "relu", "output")
    params = {f"blocks.{i}.a": np.array([a], float) for i, a in enumerate(given["A"])}
    params |= {f"blocks.{i}.b": np.array([b], float).T for i, b in enumerate(given["B"])}
    return config, params, np.array([given["x0"]], float)


def random_integer_net(config: DLRConfig, rng: np.random.Generator, tokens: int = 3) -> tuple[Arrays, Any, Any]:
    """Weights, input and cotangent with entries −1, 0, 1, at most two of a row of B: nothing grows beyond 2⁵³."""
    params: Arrays = {}
    for name, shape in dlrnet.expected_tensors(config).items():
        w = rng.integers(-1, 2, shape).astype(float)
        params[name] = w * (rng.random(shape) < 2 / shape[-1]) if name.endswith(".b") else w
    x, g = (rng.integers(-2, 3, (tokens, config.width)).astype(float) for _ in range(2))
    return params, x, g


def differing(got: tuple[Mapping[str, Any], Any], want: tuple[Mapping[str, Any], Any]) -> int:
    """Entries in which two sets of gradients differ."""
    pairs = [(got[0][n], want[0][n]) for n in want[0]] + [(got[1], want[1])]
    return sum(int(np.sum(np.asarray(a) != np.asarray(b))) for a, b in pairs)


def largest(got: tuple[Mapping[str, Any], Any]) -> float:
    """The largest magnitude among gradients; below 2⁵³ integers are exact."""
    return max(float(np.max(np.abs(v))) for v in [*got[0].values(), got[1]])
