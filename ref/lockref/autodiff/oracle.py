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
        h, moves = STEPS[self.method][middle], []
        for v in draws:
            still = self._slope(v, h, _Shaken(0.0, 0))
            for seed in rng.integers(2**32, size=_SHAKES):
                shaken = self._slope(v, h, _Shaken(self.eps, int(seed)))
                moves.append([a - b for a, b in zip(shaken, still, strict=True)])
        rate = self.eps * sqrt(sum(x.size for x in self.x))
        sizes = _root_mean_square([seen[middle] for seen in evidence])
        parts = zip(values, sizes, _root_mean_square(moves), strict=True)
        return [ROUNDINGS * (rate * (jv + np.max(np.abs(f), initial=0.0)) + shaking) for f, jv, shaking in parts]

    def _slope(self, v: Arrays, h: float, shaken: "_Shaken | None" = None) -> Arrays:
        if self.method == "complex step":
            return [o.imag / h for o in self._at(v, h * 1j, shaken)]
        pairs = zip(self._at(v, h, shaken), self._at(v, -h, shaken), strict=True)
        return [(up - down) / (2 * h) for up, down in pairs]

    def _at(self, v: Arrays, h: complex, shaken: "_Shaken | None") -> Arrays:
        """f(x + hv) in double precision."""
        moved: list[Any] = [x.astype(np.float64) + h * t for x, t in zip(self.x, v, strict=True)]
        with np.errstate(all="ignore"):
            outs = self.f(*(shaken.start(moved) if shaken else moved))
        return [np.asarray(primal(o)) for o in outs]

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
        self.eps, self.seed = eps, seed

    def start(self, xs: Arrays) -> list[Traced]:
        """Every start shakes in the same way, or differences would measure the shaking."""
        self.serial, self.rng = next_serial(), np.random.default_rng(self.seed)
        return [self.move(x) for x in xs]

    def move(self, x: Any, moves: Any = True) -> Traced:
        """Real and imaginary part, that is value and tangent, are rounded independently."""
        real, imaginary = (1 + self.eps * self.rng.choice([-1, 1], np.shape(x)) * moves for _ in range(2))
        moved = Traced()
        moved.trace = self
        moved.value = x.real * real + 1j * (x.imag * imaginary) if np.iscomplexobj(x) else x * real
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
