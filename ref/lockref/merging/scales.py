"""The effective scale of each member: what a merge multiplies its update by, known beforehand, observed, or fitted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lockref.merging.inputs import Member, Tensors, check_weights
from lockref.merging.operator import Merged, entry_factors, named
from lockref.merging.settings import Entries, Setting
from lockref.merging.spaces import Adapter


@dataclass(frozen=True)
class Scale:
    """Mean and variance of a member's factor over entries; 0 variance: the merge rescales this update."""

    mean: float
    variance: float
    dropped: float  # share of entries with factor 0


@dataclass(frozen=True)
class Fit:
    """The s_i that minimize ‖merged − θ_0 − Σ s_i δ_i‖, and that distance relative to ‖merged − θ_0‖."""

    scales: tuple[float, ...]
    residual: float


def expected_scales(
    setting: Setting | str, members: int, weights: Sequence[float] | None = None
) -> tuple[Scale, ...] | None:
    """The scale of each member before any tensor is seen; None where it depends on the tensors.

    Linear: λ w_i / divisor, exactly. Dropping with probability p = 1 − density, rescaled by 1/density: mean λ w_i,
    variance (λ w_i)² p/(1 − p); not rescaled: mean λ w_i (1 − p), variance (λ w_i)² p (1 − p).
    """
    setting = named(setting)
    rule, w = setting.rule, check_weights(weights, members, setting)
    if not isinstance(rule, Entries) or rule.elect or rule.divide.endswith("left"):
        return None
    scaled = rule.scale * w / (w.sum() if rule.divide == "weights" else 1.0)
    if rule.trim is None or rule.trim.density == 1:
        return tuple(Scale(float(s), 0.0, 0.0) for s in scaled)
    p = 1 - rule.trim.density
    if rule.trim.rule != "random" or rule.trim.rescale == "l1":
        return None
    mean, variance = (1.0, p / (1 - p)) if rule.trim.rescale == "density" else (1 - p, p * (1 - p))
    return tuple(Scale(float(s * mean), float(s * s * variance), p) for s in scaled)


def observed_scales(
    base: Tensors,
    members: Sequence[Member],
    setting: Setting | str,
    *,
    weights: Sequence[float] | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[Scale, ...]:
    """The factors of one elementwise merge over all entries in which a member has an update; errors as `merge`.

    TIES that divides by the members left: the factors of an entry add up to λ, so where a members agree each is λ/a,
    and the means of all members over the entries that were kept add up to λ.
    """
    setting = named(setting)
    factors = entry_factors(base, members, setting, weights=weights, rng=rng)
    found = []
    for i, member in enumerate(members):
        updates = _updates(base, member)
        own = np.concatenate(
            [f[i][updates[n] != 0] if f[i].shape == updates[n].shape else f[i].ravel() for n, f in factors.items()]
        ).astype(np.float64)
        found.append(
            Scale(float(own.mean()), float(own.var()), float(np.mean(own == 0))) if own.size else Scale(0, 0, 1)
        )
    return tuple(found)


def fitted_scales(base: Tensors, members: Sequence[Member], merged: Merged) -> Fit:
    """Least squares over all tensors together: a merge is a rescaling of its members only where the residual is 0.

    Collinear updates share their scale (minimum norm).
    """
    updates = [_updates(base, member) for member in members]
    rows = [_flat(update) for update in updates]
    total = _flat({n: t - base[n] for n, t in merged.tensors.items() if n in updates[0]})
    x = np.stack(rows, axis=1)
    scales = np.linalg.pinv(x.T @ x, hermitian=True) @ (x.T @ total)
    size = float(np.linalg.norm(total))
    return Fit(tuple(float(s) for s in scales), float(np.linalg.norm(total - x @ scales)) / size if size else 0.0)


def _updates(base: Tensors, member: Member) -> dict[str, Any]:
    if isinstance(member, Adapter):
        return {name: member.update(name) for name in member.b}
    return {name: tensor - base[name] for name, tensor in member.items()}


def _flat(tensors: dict[str, Any]) -> Any:
    return np.concatenate([t.ravel() for _, t in sorted(tensors.items())]).astype(np.float64)
