"""Fixed-point inversion: x_l from x_{l+1} alone, where a block is a contraction (Behrmann et al., arXiv 1811.00995).

x_l solves x = x_{l+1} − F_l(x) with F_l(x) = B_l σ(A_l N_l(x)). If F_l is Lipschitz with q < 1 the iteration
converges to the one solution, q times nearer each step, and a reverse pass keeps d elements per token, at any depth.

The test that q < 1 is a bound, not an estimate: with c = ‖B‖₂ ‖σ'‖_∞ ‖A‖₂ (gain folded into A),
  no norm   q = c.
  rms       ‖N(x)‖ ≤ √d, so ‖F(x)‖ ≤ c √d =: R (σ(0) = 0) and the iteration stays within R of x_{l+1}; there
            ‖x‖ ≥ ‖x_{l+1}‖ − R and ‖∂N/∂x‖₂ ≤ 1/rms(x), so q = R / √(max(0, ‖x_{l+1}‖ − R)² + d ε), token by token.
"""

from collections.abc import Mapping, Sequence
from math import ceil, log
from typing import Any, Final

import numpy as np

from lockref.attacks.inversion import Block, Cell, Network, blocks
from lockref.autodiff import custom_vjp, ops
from lockref.models import dlrnet
from lockref.models.dlrnet import DLRConfig

# Upper bounds of |σ'|, rounded up; relu and tanh are 1-Lipschitz exactly.
STEEPEST: Final = {"silu": 1.1, "gelu_erf": 1.13, "gelu_tanh": 1.13, "relu": 1.0, "tanh": 1.0}


class NotAContraction(ValueError):
    """A block whose Lipschitz bound does not permit fixed-point inversion."""


def lipschitz_bound(w: Block, after: Any, config: DLRConfig) -> float:
    """q of one block given its output `after` (…, d), the largest over tokens; see the module's two lines."""
    a = w["a"] * w["gain"] if "gain" in w else w["a"]
    c = STEEPEST[config.activation] * _spectral_norm(a) * _spectral_norm(w["b"].T)
    if config.norm == "none":
        return c
    radius = c * config.width**0.5
    lengths = np.maximum(np.linalg.norm(after, axis=-1) - radius, 0.0)
    return float(np.max(radius / np.sqrt(lengths * lengths + config.width * config.eps)))


def _spectral_norm(w: Any) -> float:
    """‖w‖₂ of (r, d), rounded up: the root of the largest eigenvalue of w wᵀ, whose entries sum d rounded products."""
    largest = float(np.linalg.eigvalsh(w @ w.T)[-1])
    return float(np.sqrt(largest * (1 + (w.size + 8 * len(w)) * float(np.finfo(w.dtype).eps))))


def fixed_point(config: DLRConfig) -> Network:
    """The DLR-Net of `config` as (params, x) -> y, whose reverse pass keeps its last state only: d per token.

    Raises NotAContraction in the forward pass, at the first block whose bound q is not below 1.
    """
    cell = Cell(config)

    def forward(weights: Sequence[Block], x: Any) -> tuple[Any, Any]:
        for i, w in enumerate(weights):
            x = cell.added(w, cell.hidden(w, x)) + x
            if not (q := lipschitz_bound(w, x, config)) < 1:
                raise NotAContraction(
                    f"fixed_point: block {i} has Lipschitz bound {q:.3g}, not below 1; use h-only inversion (inverted)"
                )
        return x, {"weights": weights, "out": x}

    def backward(kept: Any, g: Any) -> Any:
        weights, out = kept["weights"], kept["out"]
        found: list[Block] = []
        for w in reversed(weights):
            out, _ = invert_block(w, out, config)
            h = [cell.hidden(w, out)]
            (grads,), g = cell.backward([w], h, cell.known(h, [out]), g)
            found.append(grads)
        return found[::-1], g

    run = custom_vjp(forward, backward, "fixed_point")

    def network(params: Mapping[str, Any], x: Any) -> Any:
        dlrnet.require_shapes(params, np.shape(x), config)
        out = run(blocks(params, config), x)
        return ops.subtract(out, x) if config.placement == "difference" else out

    return network


def invert_block(w: Block, after: Any, config: DLRConfig) -> tuple[Any, int]:
    """The x with x + F(x) = after, to round-off, and the number of evaluations of F that it took.

    Stops where a step is within the round-off of x, at the latest where q^n ≤ u. Raises NotAContraction.
    """
    q = lipschitz_bound(w, after, config)
    if not q < 1:
        raise NotAContraction(f"invert_block: Lipschitz bound {q:.3g} is not below 1")
    cell, unit = Cell(config), float(np.finfo(after.dtype).eps) / 2
    most = 2 if q == 0 else 2 + ceil(log(unit) / log(q))
    x = after
    for done in range(1, most):
        before, x = x, after - cell.added(w, cell.hidden(w, x))
        if np.max(np.linalg.norm(x - before, axis=-1) - 2 * unit * np.linalg.norm(x, axis=-1)) <= 0:
            return x, done
    return after - cell.added(w, cell.hidden(w, x)), most
