"""Derivatives by no rule at all, and how far rounding may have moved them.

Either the complex step, J v = Im f(x + ihv)/h with h = 1e-20 (Squire & Trapp, SIAM Review 40(1), 1998), exact to
rounding for analytic f; or central differences of falling step, whose error falls with its square.

The tolerance is derived: roundings × (eps √n (rms J v + max|f|) + shaking). (J v)_i sums at most n terms J_ij v_j, n
the elements of the arguments. With random signs in v its partial sums are no larger than its root mean square over
draws, and rounding n of them leaves an error of about eps √n times that (Higham & Mary, SIAM J. Sci. Comput. 41(5),
2019). A rule may read the output, which is rounded: eps √n max|f|. What cancels inside f shows when f is shaken:
each input and each operation's result moves by ±eps (Monte Carlo arithmetic; Parker 1997), and J v with them.
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
    "finite differences": [4.0**-k for k in range(1, 9)],  # relative to the argument
}
ROUNDINGS = 8  # that one operation may commit one after the other
_SHAKES = 3  # for each draw; pooled over draws, so that no chance cancellation hides all of them


class Oracle:
    """J v of f, a function of arrays that returns a list of arrays, at a point."""

    def __init__(self, f: Callable[..., list[Any]], x: Arrays, method: Method, eps: float) -> None:
        self.f, self.x, self.eps = f, x, eps
        self.method: Method = "complex step"
        if method != self.method or not self._takes_complex():
            self.method = "finite differences"

    def evidence(self, v: Arrays) -> list[Arrays]:
        """J v for each step size."""
        return [self._slope(v, h) for h in STEPS[self.method]]

    def tolerance(self, values: Arrays, draws: list[Arrays], evidence: list[list[Arrays]], rng: Any) -> Arrays:
        """Error of each entry of J v that rounding explains; `evidence` was found for the tangents `draws`."""
        middle = len(STEPS[self.method]) // 2
        sizes, moves = [seen[middle] for seen in evidence], []
        for v, size in zip(draws, sizes, strict=True):
            for seed in rng.integers(2**32, size=_SHAKES):
                shaken = self._slope(v, STEPS[self.method][middle], int(seed))
                moves.append([a - b for a, b in zip(shaken, size, strict=True)])
        rate = self.eps * sqrt(sum(x.size for x in self.x))
        parts = zip(values, _root_mean_square(sizes), _root_mean_square(moves), strict=True)
        return [ROUNDINGS * (rate * (jv + np.max(np.abs(f), initial=0.0)) + shaking) for f, jv, shaking in parts]

    def _slope(self, v: Arrays, h: float, seed: int | None = None) -> Arrays:
        if self.method == "complex step":
            return [o.imag / h for o in self._at(v, h * 1j, seed)]
        pairs = zip(self._at(v, h, seed), self._at(v, -h, seed), strict=True)
        return [(up - down) / (2 * h) for up, down in pairs]

    def _at(self, v: Arrays, h: complex, seed: int | None) -> Arrays:
        """f(x + hv) in double precision; shaken, the same way for the same seed, where there is one."""
        moved: list[Any] = [x.astype(np.float64) + h * t for x, t in zip(self.x, v, strict=True)]
        with np.errstate(all="ignore"):
            if seed is not None:
                shaken = _Shaken(self.eps, seed)
                moved = [shaken.move(x) for x in moved]
            return [np.asarray(primal(o)) for o in self.f(*moved)]

    def _takes_complex(self) -> bool:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", np.exceptions.ComplexWarning)
                outs = self._at(self.x, STEPS["complex step"][0] * 1j, None)
        except (TypeError, np.exceptions.ComplexWarning):
            return False
        return all(np.iscomplexobj(o) and np.all(np.isfinite(o)) for o in outs)


class _Shaken:
    """A transform in which the result of each operation, fused ones unfused, moves by ±eps."""

    def __init__(self, eps: float, seed: int) -> None:
        self.serial, self.eps, self.rng = next_serial(), eps, np.random.default_rng(seed)

    def move(self, x: Any, moves: Any = True) -> Traced:
        factor = 1 + self.eps * self.rng.choice([-1, 1], np.shape(x)) * moves
        moved = Traced()
        moved.trace = self
        moved.value = x.real * factor + 1j * (x.imag * factor) if np.iscomplexobj(x) else x * factor
        return moved

    def apply(self, op: Any, args: tuple[Any, ...], params: dict[str, Any]) -> Any:
        if op.twin is not None:
            return op.twin(*args, **params)
        values = [a.value if isinstance(a, Traced) and a.trace is self else a for a in args]
        out = op(*values, **params)
        rounded = ~np.isin(out, np.concatenate([np.ravel(v) for v in values]))  # a number passed on is exact
        return self.move(out, rounded)


def _root_mean_square(draws: list[Arrays]) -> Arrays:
    return [np.sqrt(np.mean([np.square(a) for a in same], axis=0)) for same in zip(*draws, strict=True)]
