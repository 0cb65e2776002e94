"""Merging operators once more in torch, from the papers and not from `lockref.merging`, on flattened float64 vectors.

Two models and equal weights are all they know. What DARE drops at random is given: masks are the generator's, and
there is nothing to derive a second time in them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Tensors = Mapping[str, NDArray[Any]]
DENSITY, DARE_DENSITY, CART_RANK = 0.2, 0.1, 0.08  # the settings' own defaults


def merged(
    base: Tensors, members: Sequence[Tensors], name: str, masks: Sequence[Tensors] | None = None
) -> dict[str, NDArray[Any]]:
    """The operator of that name on all tensors; for those in `DROPPING`, `masks` say which entries stay.

    Raises KeyError for a name that is not in `OPERATORS`, ValueError for masks that are missing or not asked for.
    """
    if (name in DROPPING) != (masks is not None):
        raise ValueError(f"merged: {name} {'needs' if name in DROPPING else 'takes no'} masks")
    theta = {n: torch.from_numpy(np.array(w, np.float64)) for n, w in base.items()}
    updates = [{n: torch.from_numpy(np.array(m[n], np.float64)) - theta[n] for n in theta} for m in members]
    if masks is not None:
        left = [{n: torch.from_numpy(np.array(m[n])) for n in theta} for m in masks]
        found = {n: DROPPING[name]([u[n] for u in updates], [m[n] for m in left]) for n in theta}
    else:
        found = OPERATORS[name](theta, updates)
    return {n: (theta[n] + found[n]).numpy() for n in theta}


Updates = Mapping[str, Tensor]
Operator = Callable[[Updates, Sequence[Updates]], dict[str, Tensor]]


def _each(rule: Callable[[Sequence[Tensor]], Tensor]) -> Operator:
    return lambda theta, updates: {n: rule([u[n] for u in updates]) for n in theta}


def _ties(theta: Updates, updates: Sequence[Updates]) -> dict[str, Tensor]:
    """The authors' code: one trim for the model, by the (n − ⌊density n⌋)-th smallest magnitude, ties kept."""
    flat = [torch.cat([u[n].flatten() for n in theta]) for u in updates]
    trimmed = []
    for v in flat:
        least = v.abs().sort().values[max(0, len(v) - int(DENSITY * len(v)) - 1)]
        trimmed.append(torch.where(v.abs() >= least, v, torch.zeros_like(v)))
    total = sum(trimmed[1:], trimmed[0])
    majority = 1.0 if total.sign().sum() > 0 else -1.0
    sign = torch.where(total == 0, torch.full_like(total, majority), total.sign())
    whole = _mean_of_agreeing(trimmed, sign)
    parts = torch.split(whole, [t.numel() for t in theta.values()])
    return {n: part.reshape(theta[n].shape) for n, part in zip(theta, parts, strict=True)}


def _ties_mergekit(updates: Sequence[Tensor]) -> Tensor:
    """Trim tensor by tensor to exactly ⌊density n⌋ entries, at least one, first come first kept."""
    trimmed = []
    for u in updates:
        v = u.flatten()
        order = v.abs().sort(descending=True, stable=True).indices[: max(1, int(DENSITY * len(v)))]
        kept = torch.zeros_like(v)
        kept[order] = v[order]
        trimmed.append(kept)
    total = sum(trimmed[1:], trimmed[0])
    sign = torch.where(total >= 0, torch.ones_like(total), -torch.ones_like(total))
    return _mean_of_agreeing(trimmed, sign).reshape(updates[0].shape)


def _mean_of_agreeing(trimmed: Sequence[Tensor], sign: Tensor) -> Tensor:
    agreeing = torch.stack([torch.where(v.sign() == sign, v, torch.zeros_like(v)) for v in trimmed])
    return agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)


def _slerp_updates(updates: Sequence[Tensor]) -> Tensor:
    x, y = updates
    if not x.any() or not y.any():
        return (x + y) / 2**0.5  # a right angle, halfway
    cosine = (x * y).sum() / (x.norm() * y.norm())
    angle = torch.acos(cosine.clamp(-1, 1))
    return torch.sin(angle / 2) / torch.sin(angle) * (x + y)


def _tsv(updates: Sequence[Tensor]) -> Tensor:
    """Leading triples of all updates, their vectors made orthogonal."""
    if updates[0].dim() != 2:
        return torch.stack(list(updates)).mean(0)
    share = min(updates[0].shape) // len(updates)
    parts = [torch.linalg.svd(u, full_matrices=False) for u in updates]
    left = torch.cat([u[:, :share] for u, _, _ in parts], dim=1)
    right = torch.cat([v[:share] for _, _, v in parts]).T
    sigma = torch.cat([s[:share] for _, s, _ in parts])
    return (_polar(left) * sigma) @ _polar(right).T


def _polar(m: Tensor) -> Tensor:
    """Newton's iteration X ← (X + X⁻ᵀ)/2 on the triangle of m = QR (Higham, Functions of Matrices, ch. 8)."""
    q, x = torch.linalg.qr(m)
    for _ in range(60):  # σ becomes about 1/(2σ), and that halves with each step down to 1
        x = (x + torch.linalg.inv(x).T) / 2
    out: Tensor = q @ x
    return out


def _cart(updates: Sequence[Tensor]) -> Tensor:
    mean = torch.stack(list(updates)).mean(0)
    if mean.dim() != 2:
        return mean
    rank, total = max(1, int(CART_RANK * min(mean.shape))), mean
    for update in updates:
        u, s, v = torch.linalg.svd(update - mean, full_matrices=False)
        total = total + u[:, :rank] @ torch.diag(s[:rank]) @ v[:rank]
    return total


OPERATORS: dict[str, Operator] = {
    "linear-average": _each(lambda u: torch.stack(list(u)).mean(0)),
    "task-arithmetic": _each(lambda u: torch.stack(list(u)).sum(0)),
    "ties": _ties,
    "ties-mergekit": _each(_ties_mergekit),
    "slerp-updates": _each(_slerp_updates),
    "tsv": _each(_tsv),
    "cart": _each(_cart),
}


def _dare(updates: Sequence[Tensor], left: Sequence[Tensor]) -> Tensor:
    """Kept entries over the density, added up (arXiv 2311.03099)."""
    return torch.stack([u / DARE_DENSITY * m for u, m in zip(updates, left, strict=True)]).sum(0)


def _dare_mergekit(updates: Sequence[Tensor], left: Sequence[Tensor]) -> Tensor:
    return torch.stack(_same_norm(updates, left)).sum(0)


def _dare_ties(updates: Sequence[Tensor], left: Sequence[Tensor]) -> Tensor:
    """The sign of the sum, a sum of zero counting as +, and the mean of what has it."""
    kept = [u / DARE_DENSITY * m for u, m in zip(updates, left, strict=True)]
    return _mean_of_agreeing(kept, _sign(kept))


def _dare_ties_mergekit(updates: Sequence[Tensor], left: Sequence[Tensor]) -> Tensor:
    kept = _same_norm(updates, left)
    sign = _sign(kept)
    return torch.stack([torch.where(v.sign() == sign, v, torch.zeros_like(v)) for v in kept]).sum(0)


def _sign(kept: Sequence[Tensor]) -> Tensor:
    total = torch.stack(list(kept)).sum(0)
    return torch.where(total >= 0, torch.ones_like(total), -torch.ones_like(total))


def _same_norm(updates: Sequence[Tensor], left: Sequence[Tensor]) -> list[Tensor]:
    """Kept entries rescaled to the l1 norm of the whole update; as they are where either norm is nothing."""
    found = []
    for u, m in zip(updates, left, strict=True):
        before, after = u.abs().sum(), (u * m).abs().sum()
        found.append(u * m * (before / after if min(before, after) >= 1e-7 else 1))
    return found


DROPPING: dict[str, Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]] = {
    "dare": _dare,
    "dare-mergekit": _dare_mergekit,
    "dare-ties": _dare_ties,
    "dare-ties-mergekit": _dare_ties_mergekit,
}
