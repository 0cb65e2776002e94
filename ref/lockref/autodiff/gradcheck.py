"""Is a derivative right? Four questions to an operation, or to any function, at one point.

* adjoint: ⟨u, J v⟩ = ⟨Jᵀu, v⟩, the left side by forward rules, the right side by reverse rules;
* oracle: both against a derivative that uses no rule at all: the complex step or, where f takes no complex numbers,
  the order at which central differences converge to what the rule says: 2 if it is right, 0 if it is not;
* variants: the rules that serve when the other arguments are frozen, and the unfused twin;
* purity: a second pull gives the same bits, and nothing that was passed in has changed.

Cotangents and tangents are random in sign and size. Tangents have the size of their argument, entry by entry, so
that J v has the unit of f and tolerances (see oracle.py) need no other rule for badly scaled inputs.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import log
from typing import Any

import numpy as np

from lockref.autodiff.forward import jvp
from lockref.autodiff.oracle import ROUNDINGS, SHAKES, STEPS, Arrays, Method, Oracle, root_mean_square, rounded
from lockref.autodiff.primitive import Primitive
from lockref.autodiff.reverse import vjp
from lockref.autodiff.tree import flatten, leaf_error

_TINY = float(np.finfo(np.float64).eps)


class GradientError(AssertionError):
    """A derivative rule disagrees with an independent computation of the same number."""


@dataclass
class GradientReport:
    """What a check compared: how often, and how close to its tolerance it came."""

    name: str
    oracle: Method
    comparisons: Counter[str] = field(default_factory=Counter)
    worst: float = 0.0  # largest error, in units of its tolerance

    def __str__(self) -> str:
        counts = ", ".join(f"{n} {check}" for check, n in self.comparisons.items())
        return f"{self.name}: compared {counts}; largest error {self.worst:.2g} of its tolerance"


def gradcheck(
    f: Callable[..., Any],
    *args: Any,
    rng: np.random.Generator,
    argnums: int | tuple[int, ...] | None = None,
    draws: int = 4,
    oracle: Method = "complex step",
    forward: bool = True,
    **params: Any,
) -> GradientReport:
    """Check the derivatives of f(*args, **params) at args: adjoint, oracle, variants, purity.

    args: float32 or float64 arrays in nested dicts, lists and tuples, where f must be smooth; `argnums`
    chooses some. `forward=False` is for functions with reverse rules only. Finite differences replace
    the complex step where f does not take complex numbers or it is not finite; ask for them where f takes
    complex numbers but is not analytic (absolute values).
    Raises GradientError with one line: check, function, argument, shapes, got, want, tolerance.
    """
    case = _Case(f, args, argnums, params, rng, oracle)
    everything = tuple(range(len(case.leaves)))
    selections = list(dict.fromkeys([*((i,) for i in everything), everything]))
    named = {s: " and ".join(case.labels[i] for i in s) for s in selections}
    cotangents = [[_random(rng, np.ones_like(v)) for v in case.values] for _ in range(draws)]

    # ⟨Jᵀu, v⟩ can be had in several ways, which must agree: fused or not, other arguments frozen or not
    ways = {f"gradient of {named[s]} alone": (s, case.pull(case.call, s, cotangents)) for s in selections}
    *_, pulled = ways.popitem()[1]
    shaken = case.shaken_pulls(cotangents)
    twin = case.function(f.twin) if isinstance(f, Primitive) and f.twin else None
    if twin is not None:
        unfused = _copies(twin(*case.leaves))
        case.alike("the twin's value", unfused)
        ways["unfused twin"] = (everything, case.pull(twin, everything, cotangents))

    for selection in selections:
        tangents = [case.tangents(selection) for _ in range(draws)]
        evidence = [case.oracle.evidence(v) for v in tangents]
        tolerance = case.oracle.tolerance(case.values, tangents, evidence, rng)
        if twin is not None and selection == everything:
            case.close("unfused twin", "value", case.values, unfused, tolerance)
        moves = [[_inner(s[k], v) - _inner(pulled[k], v)] for s in shaken for k, v in enumerate(tangents)]
        shaking = ROUNDINGS * root_mean_square(moves)[0]
        for k, (u, v, seen) in enumerate(zip(cotangents, tangents, evidence, strict=True)):
            where = f"for {named[selection]}, draw {k}"
            weighted = [_inner([np.abs(g) for g in u], tolerance) + shaking]
            reverse = [_inner(pulled[k], v)]
            for way, (covered, found) in ways.items():
                if set(selection) <= set(covered):
                    other = [_inner(found[k], [v[i] for i in covered])]
                    case.close(way, f"⟨Jᵀu, v⟩ {where}", reverse, other, weighted)
            if forward:
                pushed = case.push(v)
                case.close("adjoint", f"⟨u, J v⟩ = ⟨Jᵀu, v⟩ {where}", [_inner(u, pushed)], reverse, weighted)
                case.believe(f"J v {where}", pushed, seen, tolerance)
            case.believe(f"⟨Jᵀu, v⟩ {where}", reverse, [[_inner(u, d)] for d in seen], weighted)
    return case.report


class _Case:
    """A function at its point, as a function of a flat list of arrays; compares and keeps count."""

    def __init__(self, f: Any, args: Any, argnums: Any, params: Any, rng: Any, method: Method) -> None:
        self.args, self.params, self.rng = args, params, rng
        self.numbers = [int(n) for n in (range(len(args)) if argnums is None else np.atleast_1d(argnums))]
        leaves, paths, self.rebuild = flatten([args[n] for n in self.numbers])
        names = f.args if isinstance(f, Primitive) else [f"args[{n}]" for n in range(len(args))]
        spots = [p[1:].split("]", 1) for p in paths]  # "[1]['w']" is leaf ['w'] of the second chosen argument
        self.labels = [names[self.numbers[int(n)]] + rest for n, rest in spots]
        self.leaves = _copies(leaves)
        self.call = self.function(f)
        self.values = _copies(self.call(*self.leaves))
        for label, x in zip([*self.labels, *["the value"] * len(self.values)], self.leaves + self.values, strict=True):
            if problem := leaf_error(x):
                raise TypeError(f"gradcheck: {label}: {problem}")
        shapes = [f"{n} {x.dtype}{list(x.shape)}" for n, x in zip(self.labels, self.leaves, strict=True)]
        name = f"{getattr(f, '__name__', f)}({', '.join(shapes)})"
        if not all(np.all(np.isfinite(v)) for v in self.values):
            raise ValueError(f"gradcheck: {name} is not finite at these arguments; choose others")
        self.eps = max(float(np.finfo(x.dtype).eps) for x in self.leaves + self.values)
        self.oracle = Oracle(self.call, self.leaves, method, self.eps)
        self.report = GradientReport(name, self.oracle.method)

    def function(self, f: Callable[..., Any]) -> Callable[..., list[Any]]:
        def call(*leaves: Any) -> list[Any]:
            full = list(self.args)
            for n, tree in zip(self.numbers, self.rebuild(leaves), strict=True):
                full[n] = tree
            return flatten(f(*full, **self.params))[0]

        return call

    def tangents(self, selection: Iterable[int]) -> Arrays:
        """Random tangents of the selected arguments, zero for the others."""
        chosen = set(selection)
        return [_random(self.rng, x) if i in chosen else np.zeros_like(x) for i, x in enumerate(self.leaves)]

    def pull(self, call: Callable[..., Any], chosen: Sequence[int], cotangents: list[Arrays]) -> list[Arrays]:
        """Jᵀu for the chosen arguments by reverse rules, for every draw of u; each pull is made twice."""
        before = _copies(self.leaves)
        outs, pullback = vjp(call, *self.leaves, argnums=tuple(chosen))
        values, found = _copies(outs), []
        for u in cotangents:
            given = _copies(u)
            found.append(_copies(pullback(given)))
            self.same("a second pull", found[-1], pullback(given))
            self.same("the cotangent after a pull", u, given)
        self.same("value and arguments after a pull", values + before, [*outs, *self.leaves])
        return found

    def shaken_pulls(self, cotangents: list[Arrays]) -> list[list[Arrays]]:
        """Jᵀu with everything that the reverse rules read moved by ±eps, several times."""
        found = []
        for seed in self.rng.integers(2**32, size=SHAKES):
            _, pullback = vjp(self.call, *self.leaves)
            for _, reads, _ in pullback.tape.records:
                reads[:] = [rounded(x, self.eps, int(seed)) for x in reads]
            found.append([_copies(pullback(u)) for u in cotangents])
        return found

    def push(self, v: Arrays) -> Arrays:
        """J v by forward rules."""
        before, given = _copies(self.leaves), _copies(v)
        pushed = _copies(jvp(self.call, self.leaves, given)[1])
        self.same("tangents and arguments after a push", v + before, given + self.leaves)
        self.alike("J v", pushed)
        return pushed

    def close(self, check: str, what: str, got: Arrays, want: Arrays, tolerance: Arrays) -> None:
        self.report.comparisons[check] += 1
        for g, w, t in zip(got, want, tolerance, strict=True):
            with np.errstate(all="ignore"):
                ratio = np.where(g == w, 0.0, np.nan_to_num(np.abs(g - w) / t, nan=np.inf))
            self.report.worst = max(self.report.worst, float(np.max(ratio, initial=0.0)))
            if np.any(ratio > 1):
                at = np.unravel_index(np.argmax(ratio), ratio.shape)
                entry = f" at {[int(i) for i in at]}" if at else ""
                numbers = f"got {g[at]:.17g}, want {w[at]:.17g}, error {abs(g[at] - w[at]):.2g}"
                source = f"{ROUNDINGS} roundings × (eps √n (rms J v + max|f|) + shaking), eps {self.eps:.2g}"
                self.fail(check, f"{what}{entry}: {numbers}, tolerance {t[at]:.2g} = {source}")

    def believe(self, what: str, got: Arrays, seen: list[Arrays], tolerance: Arrays) -> None:
        """Compare with the oracle: one exact answer, or differences that must close in on `got`."""
        if len(seen) == 1:
            return self.close("complex step", what, got, seen[0], tolerance)
        self.report.comparisons["finite differences"] += 1
        errors = [sum(float(np.sum(np.abs(d - g))) for d, g in zip(ds, got, strict=True)) for ds in seen]
        rounding = sum(float(np.sum(t)) for t in tolerance)
        floors = [8 * rounding * (1 + _TINY / self.eps / h) for h in STEPS["finite differences"]]
        # At the smallest step at which truncation, not rounding, dominates, the error must still be falling:
        # fourfold smaller steps make it 16 times smaller, or at least 8 times.
        last = max((k for k in range(1, len(errors)) if not errors[k] <= floors[k]), default=0)
        if last:
            order = max(log(a / b, 4) for a, b in pairwise(max(e, _TINY) for e in errors[last - 1 : last + 2]))
            self.report.worst = max(self.report.worst, 8 / 4**order)
            if not order >= 1.5:
                numbers = f"got {got[0].flat[0]:.9g}, want {seen[last][0].flat[0]:.9g} (first entries)"
                because = f"error {errors[last]:.2g} falls at order {order:.1f}, want 2 down to {floors[last]:.2g}"
                self.fail("finite differences", f"{what}: {numbers}, {because}; wrong rule, or f is not smooth")

    def alike(self, what: str, arrays: Arrays) -> None:
        """Compare shapes and dtypes with those of the value."""
        self.report.comparisons["form"] += 1
        got, want = ([f"{x.dtype}{list(x.shape)}" for x in xs] for xs in (arrays, self.values))
        if got != want:
            self.fail("form", f"{what} is {', '.join(got)}, want {', '.join(want)} as the value")

    def same(self, what: str, before: Arrays, after: Sequence[Any]) -> None:
        self.report.comparisons["purity"] += 1
        for a, b in zip(before, after, strict=True):
            if a.dtype != b.dtype or not np.array_equal(a, b, equal_nan=True):
                self.fail("purity", f"{what}: got {b}, want {a}; a rule writes into an array that is not its own")

    def fail(self, check: str, what: str) -> None:
        raise GradientError(f"gradcheck of {self.report.name}: {check}: {' '.join(what.split())}")


def _copies(arrays: Iterable[Any]) -> Arrays:
    return [np.array(a) for a in arrays]


def _random(rng: np.random.Generator, like: Any) -> Any:
    """Random signs and sizes around that of each entry; a zero counts as of average size."""
    size = np.abs(like)
    size = np.where(size > 0, size, np.sum(size) / max(1, size.size) or 1.0)
    return np.asarray(size * rng.uniform(0.5, 1.5, like.shape) * rng.choice([-1, 1], like.shape), like.dtype)


def _inner(u: Arrays, v: Arrays) -> Any:
    """Σ u∘v over all arrays, in double precision."""
    return np.asarray(sum(float(np.sum(np.multiply(a, b, dtype=np.float64))) for a, b in zip(u, v, strict=True)))
