"""Derivatives by no rule at all, and how far rounding may have moved them.

Either the complex step, J v = Im f(x + ihv)/h with h = 1e-20 (Squire & Trapp, SIAM Review 40(1), 1998), exact to
rounding for analytic f; or central differences of falling step, whose error falls with its square.

The tolerance is derived: roundings × (eps √n (rms J v + max|f|) + shaking). (J v)_i sums at most n terms J_ij v_j, n
the elements of the arguments. With random signs in v its partial sums are no larger than its root mean square over
draws, and rounding n of them leaves an error of about eps √n times that (Higham & Mary, SIAM J. Sci. Comput. 41(5),
2019). A rule may read the output, which is rounded: eps √n max|f|. What cancels inside f shows when f is shaken:
each input and each operation's result moves by ±eps (Monte Carlo arithmetic; Parker 1997), and J v with them. In
the same way what cancels inside reverse rules, such as the p − 1 of a cross entropy, shows when all they read moves.
"""

import warnings
from collections.abc import Callable
from math import sqrt
from typing import Any, Literal, TypeAlias

import numpy as np

from lockref.autodiff.array import Traced, next_serial, primal

Arrays: TypeAlias = list[np.ndarray[Any, Any]]
Method: TypeAlias = Literal["complex step", "finite differences"]

STEPS: dict[Method, list[float]] = {
    "complex step": [1e-20],  # nothing is subtracted, so it may be as small as we like
    "finite differences": [4.0**-k for k in range(2, 8)],  # relative to the argument
}
ROUNDINGS = 8  # that one operation may commit one after the other
SHAKES = 3  # for each draw; pooled over draws, so that no chance cancellation hides all of them


class Oracle:
    """J v of f, a function of arrays that returns a list of arrays, at a point; fused operations are unfused."""

    def __init__(self, f: Callable[..., list[Any]], x: Arrays, method: Method, eps: float) -> None:
        self.f, self.x, self.eps = f, x, eps
        self.method, self.unfused = method, True
        try:
            self._at(x, 0.0)
        except TypeError:  # a rule of its own around functions that no traced array may enter
            self.unfused = False
        if not self._takes_complex():
            self.method = "finite differences"

    def evidence(self, v: Arrays) -> list[Arrays]:
        """J v for each step size."""
        return [self._slope(v, h) for h in STEPS[self.method]]

    def tolerance(self, values: Arrays, draws: list[Arrays], evidence: list[list[Arrays]], rng: Any) -> Arrays:
        """Error of each entry of J v that rounding explains; `evidence` was found for the tangents `draws`."""
        middle = len(STEPS[self.method]) // 2
        sizes, moves = [seen[middle] for seen in evidence], []
        for v, size in zip(draws, sizes, strict=True):
            for seed in rng.integers(2**32, size=SHAKES):
                shaken = self._slope(v, STEPS[self.method][middle], self.eps, int(seed))
                moves.append([a - b for a, b in zip(shaken, size, strict=True)])
        rate = self.eps * sqrt(sum(x.size for x in self.x))
        parts = zip(values, root_mean_square(sizes), root_mean_square(moves), strict=True)
        return [ROUNDINGS * (rate * (jv + np.max(np.abs(f), initial=0.0)) + shaking) for f, jv, shaking in parts]

    def _slope(self, v: Arrays, h: float, eps: float = 0.0, seed: int = 0) -> Arrays:
        if self.method == "complex step":
            return [o.imag / h for o in self._at(v, h * 1j, eps, seed)]
        pairs = zip(self._at(v, h, eps, seed), self._at(v, -h, eps, seed), strict=True)
        return [(up - down) / (2 * h) for up, down in pairs]

    def _at(self, v: Arrays, h: complex, eps: float = 0.0, seed: int = 0) -> Arrays:
        """f(x + hv) in double precision, shaken by eps; a seed shakes in the same way every time."""
        shaken = _Shaken(eps, seed)
        moved = [shaken.move(x.astype(np.float64) + h * t) for x, t in zip(self.x, v, strict=True)]
        with np.errstate(all="ignore"):
            outs = self.f(*(moved if self.unfused else map(primal, moved)))
        return [np.asarray(primal(o)) for o in outs]

    def _takes_complex(self) -> bool:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", np.exceptions.ComplexWarning)
                outs = self._at(self.x, STEPS["complex step"][0] * 1j)
        except (TypeError, AttributeError, np.exceptions.ComplexWarning):
            return False
        return all(np.iscomplexobj(o) and np.all(np.isfinite(o)) for o in outs)


class _Shaken:
    """A transform in which the result of each operation, fused ones unfused, moves by ±eps."""

    def __init__(self, eps: float, seed: int) -> None:
        self.serial, self.eps, self.rng = next_serial(), eps, np.random.default_rng(seed)

    def move(self, x: Any, moves: Any = True) -> Traced:
        """Real and imaginary part, that is value and tangent, are rounded independently."""
        moved = Traced()
        moved.trace, moved.value = self, x
        if self.eps:
            real, imaginary = (1 + self.eps * self.rng.choice([-1, 1], np.shape(x)) * moves for _ in range(2))
            moved.value = x.real * real + 1j * (x.imag * imaginary) if np.iscomplexobj(x) else x * real
        return moved

    def linear(self, f: Callable[[Any], Any], x: Any) -> Any:
        out = f(x.value)
        return [self.move(o) for o in out] if isinstance(out, tuple | list) else self.move(out)

    def apply(self, op: Any, args: tuple[Any, ...], params: dict[str, Any]) -> Any:
        if op.twin is not None:
            return op.twin(*args, **params)
        values = [a.value if isinstance(a, Traced) and a.trace is self else a for a in args]
        out = op(*values, **params)
        passed_on = np.isin(out, np.concatenate([np.ravel(v) for v in values])) if self.eps else True
        return self.move(out, ~np.asarray(passed_on))  # a number passed on is not rounded


def rounded(x: Any, eps: float, seed: int) -> Any:
    """A floating-point array moved by ±eps; equal numbers move alike, so that comparisons still hold."""
    if not isinstance(x, np.ndarray | np.floating) or x.dtype.kind != "f":
        return x
    bits = np.array(x, np.float64).view(np.uint64) ^ np.uint64(seed)
    with np.errstate(over="ignore"):
        signs = 2 * (bits * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(63)).astype(np.int64) - 1
    return (x * (1 + eps * signs)).astype(x.dtype)


def root_mean_square(draws: list[Arrays]) -> Arrays:
    return [np.sqrt(np.mean([np.square(a) for a in same], axis=0)) for same in zip(*draws, strict=True)]
