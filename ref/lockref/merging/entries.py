"""Elementwise operators: trim × elect × combine × rescale as one factor for every entry of every member."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockref.merging.settings import Elect, Entries, Trim

Stack = NDArray[Any]  # (members, entries)


@dataclass(frozen=True)
class Combined:
    """Σ_i factor_i · x_i, and the factors: 0 where a member was trimmed, or voted down."""

    total: NDArray[Any]
    factors: Stack

    @property
    def used(self) -> tuple[int, ...]:
        """How many entries of each member reached the result."""
        return tuple(int(n) for n in np.count_nonzero(self.factors, axis=1))


def combine(x: Stack, rule: Entries, weights: NDArray[Any], rng: np.random.Generator | None) -> Combined:
    """The operator on x (members, entries), one row for each member; float, weights (members,)."""
    w = weights.astype(x.dtype)[:, None]
    left, raised = _trimmed(x, rule.trim, rng) if rule.trim else (np.ones(x.shape, bool), x.dtype.type(1))
    if rule.elect:
        votes = raised * x  # members vote with what they would contribute
        left = left & _agreeing(np.where(left, w * votes if rule.elect.weighted else votes, 0), rule.elect)
    factors = np.where(left, x.dtype.type(rule.scale) * w * raised, 0)
    if rule.divide != "nothing":
        factors = factors / _divisor(left, w, rule.divide)
    return Combined(np.einsum("ij,ij->j", factors, x), factors)


def _trimmed(x: Stack, trim: Trim, rng: np.random.Generator | None) -> tuple[NDArray[np.bool_], Any]:
    """Which entries stay, and what the kept ones of each member are multiplied by."""
    if trim.density == 1:
        return np.ones(x.shape, bool), x.dtype.type(1)
    size = np.abs(x)
    if trim.rule == "random":
        if rng is None:
            raise ValueError("dropping entries at random needs a generator; pass rng=np.random.default_rng(seed)")
        left = rng.random(x.shape) < trim.density
    else:
        count = int(trim.density * x.shape[1])
        count = max(1, count) if trim.rule == "at-least-one" else count
        left = np.stack([_greatest(row, count, every_tie=trim.rule == "threshold") for row in size])
    if trim.rescale == "density":
        return left, x.dtype.type(1 / trim.density)
    if trim.rescale == "l1":
        before, after = size.sum(axis=1), np.where(left, size, 0).sum(axis=1)
        tiny = np.minimum(before, after) < 1e-7  # as published; a norm of zero has nothing to match
        return left, np.where(tiny, 1, before / np.where(tiny, 1, after))[:, None]
    return left, x.dtype.type(1)


def _greatest(size: NDArray[Any], count: int, *, every_tie: bool) -> NDArray[np.bool_]:
    """The `count` greatest entries, the first ones of those that tie; or one more, and whatever ties with it."""
    if every_tie:
        at = max(0, size.size - count - 1)  # the (n − count)-th smallest, counted from 1 in the published code
        return np.asarray(size >= np.partition(size, at)[at])
    if not count:
        return np.zeros(size.shape, bool)
    least = np.partition(size, size.size - count)[size.size - count]
    left: NDArray[np.bool_] = size > least
    left[np.flatnonzero(size == least)[: count - np.count_nonzero(left)]] = True
    return left


def _agreeing(votes: Stack, elect: Elect) -> NDArray[np.bool_]:
    """Members whose vote has the elected sign."""
    own = np.sign(votes)
    sign = np.sign((votes if elect.by == "mass" else own).sum(axis=0))
    otherwise = 1 if elect.ties == "positive" or sign.sum() > 0 else -1
    return np.asarray(own == np.where(sign == 0, otherwise, sign))


def _divisor(left: NDArray[np.bool_], w: NDArray[Any], by: str) -> Any:
    if by == "weights":
        return w.sum()
    found = (w * left).sum(axis=0) if by == "weights left" else left.sum(axis=0).astype(w.dtype)
    return np.where(found == 0, 1, found)
