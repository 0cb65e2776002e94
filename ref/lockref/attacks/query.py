"""Recovering W_down of a locked MLP from input/output pairs alone, by least squares.

For an input x of a SwiGLU layer the attacker knows a = silu(W_gate x) ∘ W_up x and sees y = W a + e, where e is
the lock's remainder. This is learning with errors over the reals or the integers, without a modulus; Bootle,
Delaplace, Espitau, Fouque and Tibouchi (ASIACRYPT 2018, ePrint 2018/822) solve it by least squares.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lockref.attacks.result import AttackResult
from lockref.autodiff import ops
from lockref.locks.bases import TAYLOR, Basis
from lockref.locks.taylor_model import DOWN, SERIES, gate_and_factor, series_layer
from lockref.locks.taylor_series import finite
from lockref.models import qwen3

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """W (d, n), the noise σ_e of each output (d,), and the variance factor diag((AᵀA)⁻¹) of each unknown (n,).

    For noise that is independent of the inputs, with mean 0, entry (i, j) has standard error σ_e[i] √factor[j].
    """

    weight: Array
    noise: Array
    factor: Array

    @property
    def standard_error(self) -> Array:
        """(d, n)."""
        out: Array = self.noise[:, None] * np.sqrt(self.factor)
        return out


def least_squares(a: ArrayLike, y: ArrayLike) -> Estimate:
    """argmin over W of ‖y − a Wᵀ‖_F: a (samples, n), y (samples, d).

    Raises ValueError for shapes that disagree, values that are not finite, as many unknowns as samples or
    more, a column of zeros, or columns that are dependent to round-off.
    """
    inputs, outputs = finite("inputs", a), finite("outputs", y)
    if inputs.ndim != 2 or outputs.ndim != 2 or len(inputs) != len(outputs):
        raise ValueError(f"inputs {inputs.shape}, outputs {outputs.shape}: expected (samples, n) and (samples, d)")
    samples, n = inputs.shape
    if samples <= n:
        raise ValueError(f"{samples} samples for {n} unknowns: give more samples than unknowns")
    zero = ~np.any(inputs, axis=0)
    if np.any(zero):
        raise ValueError(
            f"unknown {int(np.argmax(zero))}: its inputs are all zero; leave it out or choose other inputs"
        )
    lengths = np.linalg.norm(inputs, axis=0)
    q, r = np.linalg.qr(inputs / lengths)
    u, s, vt = np.linalg.svd(r)
    if s[-1] <= samples * np.finfo(np.float64).eps * s[0]:
        raise ValueError(f"the inputs have rank below {n}: choose inputs that vary in every direction")
    weight = ((u.T @ (q.T @ outputs)).T / s) @ vt / lengths
    left = outputs - inputs @ weight.T
    noise = np.sqrt(np.sum(left * left, axis=0) / (samples - n))
    return Estimate(weight, noise, np.sum((vt / s[:, None]) ** 2, axis=0) / lengths**2)


def query_model(
    released: Mapping[str, NDArray[Any]], tokens: ArrayLike, config: qwen3.Qwen3Config, basis: Basis = TAYLOR
) -> AttackResult:
    """W_down of every layer of a checkpoint locked by `locks.taylor_model`, from what its layers answer to a text.

    The coefficients serve as an oracle only: one guess, with "noise" (d,) for each layer in `found`. Raises ValueError
    for a text with too few different tokens, or tensors that are not of such a checkpoint.
    """
    tensors = {name: np.asarray(w) for name, w in released.items() if SERIES not in name}
    x, noises = qwen3.embed(released, tokens, config), []
    for i in range(config.num_hidden_layers):
        w = qwen3.layer_weights(released, i)
        x = x + qwen3.attention(w, qwen3.attention_norm(w, x, config), config)
        z, u = gate_and_factor(w, qwen3.mlp_norm(w, x, config))
        try:
            y = series_layer(w, basis)(z, u)
            found = least_squares(*(rows.reshape(-1, rows.shape[-1]) for rows in (ops.silu(z) * u, y)))
        except KeyError as error:
            raise ValueError(
                f"layer {i} has no tensor {error.args[0]!r}: this is no Taylor-locked checkpoint"
            ) from None
        except ValueError as error:
            raise ValueError(f"layer {i}: {error}") from None
        tensors[f"model.layers.{i}.{DOWN}"] = found.weight
        noises.append(found.noise)
        x = x + y
    return AttackResult("query", ("input/output pairs", "gate and up weights"), (tensors,), {"noise": noises})


def samples_needed(noise: float, spread: float, unknowns: int, failure: float = 1.0) -> int:
    """m = ⌈8 (σ_e/σ_a)² ln(2n/δ)⌉ samples, after which rounding returns n integers, but for a probability δ.

    The estimate errs by N(0, σ_e²/(m σ_a²)) in each of n unknowns if the inputs are independent with mean 0 and
    variance σ_a², m is large beside n, and the noise is independent of them, with mean 0 and variance σ_e²
    (Gaussian, or near enough in the sum); P(|error| > ½) ≤ 2 exp(−m σ_a²/(8 σ_e²)), and a union bound over n.
    δ = 1 is the threshold of Bootle et al. Raises ValueError unless spread > 0, noise ≥ 0, unknowns ≥ 1, 0 < δ ≤ 1.
    """
    if not (noise >= 0 and spread > 0 and unknowns >= 1 and 0 < failure <= 1):
        raise ValueError(f"noise {noise:g}, spread {spread:g}, {unknowns} unknowns, failure {failure:g}: out of range")
    if not math.isfinite(noise / spread):
        raise ValueError(f"noise {noise:g} and spread {spread:g}: both must be finite")
    return math.ceil(8 * (noise / spread) ** 2 * math.log(2 * unknowns / failure))
