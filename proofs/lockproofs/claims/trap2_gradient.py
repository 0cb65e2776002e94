"""TRAP-GRAD: whether the gradient of one draw of s estimates that of the objective of Trap² without bias."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import erf, prod, sqrt
from typing import Any

import numpy as np
from flint import fmpq, fmpq_mpoly_ctx
from numpy.typing import NDArray

from lockproofs.claim import Check, Claim, Context, Control, Controls, Evidence, Grade, Source, Verdict
from lockproofs.claims.trap2_weight import PAPER, Measured, measured
from lockref.autodiff import grad, ops
from lockref.locks.trap2 import WEIGHTINGS, Weighting, low_rank_update, objective, quadrature, sample_scale

METHOD = WEIGHTINGS["1/s"]
UNWEIGHTED = Weighting(0.0, "planted: the weight is forgotten")
LAW = ((0.5, Fraction(1, 4)), (2.0, Fraction(3, 4)))  # two scales with their probabilities: 1/s rounds nothing
STRENGTH = 0.25  # of the exact cases; rounds nothing either
SHAPES = ((1, 2, 1), (2, 3, 1), (3, 2, 2))  # (rows, columns, LoRA rank)
TERMS, DEGREE, LARGEST = 5, 3, 3  # of the random polynomial losses, and the largest integer drawn
DRAWS = 32  # of s on the model
DEVIATIONS = 5.0  # of the mean of the draws
NODES = 8


@dataclass(frozen=True)
class Polynomial:
    """A loss Σ c Π x_i of the entries of the weights, with integer coefficients."""

    terms: Sequence[tuple[int, Sequence[int]]]

    def __call__(self, x: Sequence[Any], zero: Any) -> Any:
        return sum((prod((x[i] for i in chosen), start=zero + c) for c, chosen in self.terms), start=zero)


def random_polynomial(rng: np.random.Generator, variables: int) -> Polynomial:
    """Each variable alone, and some products of up to three, repeated variables among them."""
    some = [rng.integers(0, variables, rng.integers(2, DEGREE + 1)).tolist() for _ in range(TERMS)]
    return Polynomial([(int(rng.integers(1, LARGEST + 1)), one) for one in [[i] for i in range(variables)] + some])


def exact_gradients(
    rng: np.random.Generator, shape: tuple[int, int, int], *, lora: bool, weighting: Weighting = METHOD
) -> tuple[list[Fraction], list[Fraction]]:
    """The expected gradient of the engine's one draw with `weighting`, and ∇J with w = 1/s; exact rational numbers.

    Everything is a small integer or a power of two, so that the engine rounds nothing. ∇J comes from polynomials over
    the rationals, differentiated by another library.
    """
    rows, columns, rank = shape
    loss = random_polynomial(rng, rows * columns)
    base = rng.integers(-LARGEST, LARGEST + 1, (rows, columns)).astype(float)
    sizes = {"b": (rows, rank), "a": (rank, columns)} if lora else {"update": (rows, columns)}
    params = {n: rng.integers(-LARGEST, LARGEST + 1, size).astype(float) for n, size in sizes.items()}

    def change(p: Mapping[str, Any]) -> dict[str, Any]:
        return low_rank_update({"w": p["a"]}, {"w": p["b"]}, 1.0) if lora else {"w": p["update"]}

    def value(w: Mapping[str, Any]) -> Any:
        flat = ops.reshape(w["w"], shape=(rows * columns,))
        return loss([flat[i] for i in range(rows * columns)], 0.0)

    expected: list[Fraction] = []
    for s, chance in LAW:
        drawn = grad(lambda p, s=s: objective(value, {"w": base}, change(p), s, weighting, STRENGTH))(params)
        flat = [chance * Fraction(float(g)) for name in sizes for g in drawn[name].ravel()]
        expected = [a + b for a, b in zip(expected, flat, strict=True)] if expected else flat
    return expected, _derived(loss, base, params, lora)


def _derived(loss: Polynomial, base: Any, params: Mapping[str, Any], lora: bool) -> list[Fraction]:
    """∇J at the parameters, in their order."""
    point = [int(v) for array in params.values() for v in array.ravel()]
    ring = fmpq_mpoly_ctx.get([f"p{i}" for i in range(len(point))])
    free, zero = list(ring.gens()), ring.constant(0)
    rows, columns = base.shape
    if lora:
        rank = params["a"].shape[0]
        b, a = free[: rows * rank], free[rows * rank :]
        update = [
            sum((b[i * rank + k] * a[k * columns + j] for k in range(rank)), zero)
            for i, j in product(range(rows), range(columns))
        ]
    else:
        update = free

    def at(s: fmpq) -> Any:
        return loss([int(w) + s * m for w, m in zip(base.ravel(), update, strict=True)], zero)

    whole = at(fmpq(1))
    for s, chance in LAW:
        scale = fmpq(*s.as_integer_ratio())
        whole -= fmpq(*STRENGTH.as_integer_ratio()) * fmpq(*chance.as_integer_ratio()) / scale * at(scale)
    slopes = [whole.derivative(i)(*point) for i in range(len(point))]
    return [Fraction(int(v.p), int(v.q)) for v in slopes]


def differing_entries(ctx: Context, weighting: Weighting = METHOD) -> tuple[int, int, int]:
    """Entries of the expected gradient that are not those of ∇J, all entries, and all random losses."""
    rng, kinds = ctx.rng(0), list(product(SHAPES, (False, True)))
    rounds = -(-ctx.cases // len(kinds))
    pairs = [exact_gradients(rng, shape, lora=lora, weighting=weighting) for shape, lora in kinds * rounds]
    wrong = sum(a != b for got, want in pairs for a, b in zip(got, want, strict=True))
    return wrong, sum(len(want) for _, want in pairs), len(pairs)


def below_one(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    """A planted sampler that knows the lower interval only."""
    return rng.uniform(0.05, 0.95, size)


def model_slope(model: Measured, s: float) -> float:
    """Derivative of the off-nominal term w(s) L(W₀ + sΔ) along the update itself, from its gradient."""
    g = model.weighted(s, METHOD)
    return float(sum(np.vdot(g[n], d) for n, d in model.update.items()))


def deviations(
    slope: Callable[[float], float],
    rng: np.random.Generator,
    sampler: Callable[[np.random.Generator, int], NDArray[np.float64]] = sample_scale,
) -> float:
    """|mean over draws − expectation under the published law| of a slope, in standard errors of that mean.

    The nominal term and λ are the same in every draw: they cancel.
    """
    scales, chances = quadrature(NODES)
    want = float(np.dot(chances, [slope(s) for s in scales]))
    got = np.array([slope(s) for s in sampler(rng, DRAWS)])
    return abs(float(got.mean()) - want) / (float(got.std(ddof=1)) / sqrt(DRAWS))


def clipped_means() -> tuple[Fraction, Fraction]:
    """Two draws with the gradients 3 and −1, norms clipped at 1: the mean of the clipped, and the mean clipped."""
    draws = [Fraction(3), Fraction(-1)]

    def clip(g: Fraction) -> Fraction:
        return g / max(abs(g), Fraction(1))

    return sum(map(clip, draws), Fraction(0)) / 2, clip(sum(draws, Fraction(0)) / 2)


def check_gradient(ctx: Context) -> Evidence:
    """Expected gradients in rational numbers on two-point laws, and the mean of real draws on the model.

    Proof. One draw is J_s(Δ) = L(W₀ + Δ) − λ w(s) L(W₀ + sΔ), and J = E_s[J_s]. Where L is continuously differentiable
    and s lies in a bounded set that keeps away from 0, ∇J_s is bounded near every Δ, uniformly in s, so derivative and
    expectation may change places (dominated convergence): E_s[∇J_s] = ∇J. Nothing is used of how Δ depends on the
    parameters, so it holds for LoRA factors too; and a batch that is drawn independently of s changes nothing, nor
    does using one batch for both terms, by linearity. ∎

    For a law on two scales the expectation is a sum of two gradients, which the engine computes without rounding on
    integer polynomials; ∇J is derived by a polynomial library. On the model the draws come from the published law.
    """
    wrong, entries, losses = differing_entries(ctx)
    planted, _, _ = differing_entries(ctx, UNWEIGHTED)
    model, origin = measured(ctx)
    away = deviations(lambda s: model_slope(model, s), ctx.rng(3))
    biased = deviations(lambda s: s, ctx.rng(4), below_one)
    clipped, clip = clipped_means()
    chance = 1 - erf(DEVIATIONS / sqrt(2))
    return Evidence(
        verdict=Verdict.HOLDS,
        grade=Grade.PROVED,
        explanation=(
            "The objective is an expectation over s of smooth functions with s in a bounded set, so the gradient of "
            "one draw has the objective's gradient as its mean, for full updates and LoRA factors alike. It is the "
            "raw gradient that is unbiased: clipping its norm, as the published training does, is not linear, and "
            f"the mean of the clipped draws is not the clipped mean ({clipped} against {clip} for the draws 3 and −1 "
            "clipped at 1)."
        ),
        checks=[
            Check(
                name="two scales, exactly", unit="entries", value=wrong, bound=0, sense="==", cases=losses,
                seed=ctx.seed, statistic=f"entries of Σ p_k ∇J_(s_k) by the engine that differ from ∇J, of {entries:,}",
                tolerance_from="integers and powers of two: none",
            ),
            Check(
                name="the published law on the model", unit="standard errors", value=away, bound=DEVIATIONS,
                cases=DRAWS, statistic="|mean over draws − E| of the slope of w(s) L(W₀ + sΔ) along Δ; E by quadrature",
                tolerance_from=f"the mean is normal in the limit: {DEVIATIONS:g} standard errors have probability "
                f"{chance:.0e}", seed=ctx.seed,
            ),
            Check(
                name="clipped draws are biased", unit="1", value=float(abs(clip - clipped)), bound=0.5, sense=">=",
                statistic="|mean of clipped draws − clipped mean| for the draws 3 and −1 at clip 1",
                tolerance_from="rational arithmetic: none", cases=2,
            ),
        ],
        controls=Controls(
            power=Control(
                what="a draw without its weight, and a sampler that never exceeds 1, are both seen",
                passed=planted > 0 and biased > DEVIATIONS, value=biased, bound=DEVIATIONS, unit="standard errors",
            ),
        ),
        assumptions=[
            "L is continuously differentiable on the segments W₀ + sΔ",
            "the gradient before clipping and before the optimizer rescales it; data and s drawn independently",
            f"on the model the update is that of {origin}",
        ],
    )  # fmt: skip


CLAIMS = (
    Claim(
        id="TRAP-GRAD",
        title="One draw of s gives an unbiased gradient",
        statement="The one-draw gradient is an unbiased estimate of ∇J.",
        source=Source(paper=PAPER, where="training with one draw of s per step"),
        kind="theorem",
        recorded=Verdict.HOLDS,
        would_change="A sampler that does not follow the law of the objective, or a loss with jumps in its gradient.",
        check=check_gradient,
    ),
)
