"""MergeBarrier's feed-forward lock: an activation replaced by a polynomial (arXiv 2511.10712).

Instead of W and the activation, y = W act(z + b), the owner releases the arrays
Ŵⁿ = W diag(act⁽ⁿ⁾(z0 + b) / n!), n = 0..N, and a user evaluates Σₙ Ŵⁿ (z − z0)ⁿ; z0 is the midpoint
of the observed range of z, one per hidden unit. Other bases of polynomials: `lockref.locks.bases`. In a SwiGLU layer
z = W_gate x, and W_up x multiplies inside. An activation goes by the name of its operation in `lockref.autodiff.ops`.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lockref.locks.bases import TAYLOR, Basis, Observed
from lockref.locks.taylor_series import finite

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SeriesLayer:
    """What the owner releases: arrays Ŵⁿ (N + 1, d, m), and the z0 and h of each unit, (m,)."""

    arrays: Any
    center: Any
    scale: Any
    basis: Basis = TAYLOR

    @property
    def order(self) -> int:
        return len(self.arrays) - 1

    def __call__(self, z: Any, factor: Any = 1.0) -> Any:
        """Σₙ Ŵⁿ (φₙ((z − z0)/h) ∘ factor): z (…, m) → (…, d); factor is W_up x in a SwiGLU layer."""
        terms = zip(self.arrays, self.basis.polynomials((z - self.center) / self.scale, factor), strict=False)
        return sum(phi @ array.T for array, phi in terms)

    def truncated(self, order: int) -> "SeriesLayer":
        """The layer without the terms after `order`. Raises ValueError for an order that was not released."""
        if not 0 <= order <= self.order:
            raise ValueError(f"order {order} is past the derivatives that are there: choose 0 to {self.order}")
        return replace(self, arrays=self.arrays[: order + 1])

    def signed(self, gate: Array, factor: Array) -> "SeriesLayer":
        """The same function of (gate ∘ z, factor ∘ u) that this layer is of (z, u); both are ±1 for each unit."""
        powers = gate ** np.arange(len(self.arrays))[:, None, None]
        return replace(self, arrays=self.arrays * powers * factor, center=gate * self.center)


def reparameterize(
    weight: ArrayLike,
    activation: str,
    seen: Observed,
    order: int,
    basis: Basis = TAYLOR,
    center: ArrayLike | None = None,
    bias: ArrayLike = 0.0,
) -> SeriesLayer:
    """Ŵⁿ = W diag(cₙ), n = 0..order: for Taylor cₙ = act⁽ⁿ⁾(z0 + b) / n! about the midpoint or a given center.

    weight (d, m) multiplies the activation; bias is (m,) or one number. Raises ValueError for a negative
    order or one past float64, an unknown activation, shapes that disagree, values that are not finite, a
    column of zeros, or a center outside the observed range.
    """
    w, b = finite("weight", weight), finite("bias", bias)
    if w.ndim != 2 or seen.low.shape != w.shape[1:]:
        raise ValueError(f"weight {w.shape}, observed units {seen.low.shape}: expected (d, m) and (m,)")
    dead = ~np.any(w, axis=0)
    if np.any(dead):
        raise ValueError(f"unit {int(np.argmax(dead))}: its column of the weight is zero; remove the unit")
    placed, scale = basis.place(seen)
    z0 = placed if center is None else finite("center", center)
    if z0.shape != placed.shape:
        raise ValueError(f"center has shape {z0.shape}, the units {placed.shape}; they must agree")
    outside = (z0 < seen.low) | (z0 > seen.high)
    if np.any(outside) and center is not None:
        j = int(np.argmax(outside))
        where = f"[{seen.low[j]:g}, {seen.high[j]:g}]"
        raise ValueError(f"unit {j}: center {z0[j]:g} is outside the range {where}; move it inside")
    if b.shape not in ((), z0.shape):
        raise ValueError(f"bias has shape {b.shape}, the units {z0.shape}; give one number for each, or one for all")
    return SeriesLayer(w * basis.coefficients(activation, z0 + b, scale, order)[:, None, :], z0, scale, basis)
