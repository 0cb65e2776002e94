"""MergeBarrier's Taylor layers (arXiv 2511.10712): the remainder's bound, and where to expand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from flint import fmpq
from numpy.typing import NDArray

from lockproofs.claim import (
    Check,
    Claim,
    Context,
    Counterexample,
    Curve,
    Deviation,
    Evidence,
    Grade,
    Plot,
    Source,
    Verdict,
)
from lockproofs.enclosures import greatest_error, lagrange_at_least, layer_error_bounds, taylor_polynomial
from lockproofs.taylor_layers import PAPER, SWIGLU, Layer, observe, text_name
from lockref.autodiff import ops
from lockref.locks.taylor_model import ACTIVATION
from lockref.locks.taylor_series import partial_sums, remainder_bound

ORDERS = (1, 2, 4, 8, 16)
MODEL_ORDER = 8  # at which the model's own units are compared
SHIFTS = (-0.3, -0.1, 0.1, 0.3)  # tried expansion points, in half-ranges from the midpoint
Array = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)
OURS = Deviation(
    paper_says="a remainder bound is stated (its formula is not readable to us)",
    we_do="Lagrange's bound, and for silu the sum over its poles, 2 Σ_k (reach/√(z0² + π²(2k+1)²))^(N+1)",
    why="the first is the textbook's; the second is explicit, and contains the error outside the radius too",
    effect="a bound of another form would need its own check",
)


def _ranges(ctx: Context, stream: int, count: int) -> list[tuple[float, float]]:
    """Random ranges [low, high] of lengths 0.5 to 10 around centers in [−5, 5]."""
    centers, halves = ctx.rng(stream).uniform((-5, 0.25), (5, 5), (count, 2)).T
    return list(zip((centers - halves).tolist(), (centers + halves).tolist(), strict=True))


def certified_shares(ctx: Context) -> tuple[list[float], list[float]]:
    """Certified error over the closed bound, and over Lagrange's, for random ranges, points and orders."""
    closed, lagrange = [], []
    shares = ctx.rng(1).random(ctx.cases)
    for i, ((low, high), share) in enumerate(zip(_ranges(ctx, 0, ctx.cases), shares, strict=True)):
        order, t = ORDERS[i % len(ORDERS)], low + float(share) * (high - low)
        _, most = greatest_error(ACTIVATION, taylor_polynomial(ACTIVATION, t, order), low, high)
        closed.append(most / float(remainder_bound(ACTIVATION, t, max(t - low, high - t), order)))
        lagrange.append(most / lagrange_at_least(ACTIVATION, t, low, high, order))
    return closed, lagrange


def measured_share(layer: Layer) -> float:
    """Greatest error of the reference's own polynomials on the layer's tokens over the closed bound, worst unit."""
    (got,) = partial_sums(ACTIVATION, layer.z, layer.center, [MODEL_ORDER])
    error = np.abs(got - ops.silu(layer.z)).max(axis=0)
    return float(np.max(error / remainder_bound(ACTIVATION, layer.center, layer.reach, MODEL_ORDER)))


def layer_share(layer: Layer) -> float:
    """Greatest error of the layer's outputs on its tokens over the certified bound of the whole layer."""
    factor = np.abs(layer.u).max(axis=0)
    bounds = layer_error_bounds(
        ACTIVATION, layer.seen.low.tolist(), layer.seen.high.tolist(), MODEL_ORDER, factor, layer.down
    )
    (got,) = partial_sums(ACTIVATION, layer.z, layer.center, [MODEL_ORDER])
    return float(np.max(np.abs(((got - ops.silu(layer.z)) * layer.u) @ layer.down.T) / bounds))


def _leaving(layers: Sequence[Layer], others: Sequence[Layer]) -> tuple[float, float]:
    """Share of other tokens' pre-activations outside the observed ranges; worst error over the bound there."""
    outside, worst = [], 0.0
    for layer, other in zip(layers, others, strict=True):
        out = np.abs(other.z - layer.center) > layer.reach
        outside.append(np.mean(out))
        (got,) = partial_sums(ACTIVATION, other.z, layer.center, [MODEL_ORDER])
        bound = remainder_bound(ACTIVATION, layer.center, layer.reach, MODEL_ORDER)
        worst = max(worst, float(np.max(np.abs(got - ops.silu(other.z)) * out / bound)))
    return float(np.mean(outside)), worst


def check_bound(ctx: Context) -> Evidence:
    """Certified greatest errors against both bounds on random ranges; measured ones on the model.

    *Lagrange.* Let f be real-analytic on [low, high], t inside. Then R_N(z) = f⁽ᴺ⁺¹⁾(ξ)/(N+1)! (z − t)^(N+1) for a ξ
    between t and z, so |R_N(z)| ≤ max over the range of |f⁽ᴺ⁺¹⁾|/(N+1)! times reach^(N+1). (Taylor's theorem.)

    *Poles.* σ(z) = 1/(1 + e⁻ᶻ) has simple poles p = iπ(2k+1), k any integer, of residue 1, and σ(z) = ½ + Σ_p [1/(z −
    p) + 1/p], poles ±p paired (that is tanh's partial fractions). So silu(z) = z/2 + Σ_p [z/p + 1 + p/(z − p)],
    absolutely and locally uniformly convergent off the poles, since each bracket is z²/(p(z − p)); it may be expanded
    about t term by term. For N ≥ 1 the linear parts leave no remainder, and p/(z − p) leaves
    p/(z − p) · ((z − t)/(p − t))^(N+1) (a geometric sum). Hence for every real z, within the radius or not,
        R_N(z) = Σ_p p/(z − p) · ((z − t)/(p − t))^(N+1),
    and |z − p| ≥ |p| for real z gives |R_N(z)| ≤ 2 Σ_{k ≥ 0} (|z − t| / √(t² + π²(2k+1)²))^(N+1). ∎

    Both hold for every z in the range. Neither says anything beyond it.
    """
    closed, lagrange = certified_shares(ctx)
    layers, others = observe(ctx), observe(ctx, 5)
    on_model = max(map(measured_share, layers))
    outside, worst = _leaving(layers, others)
    roundings = (MODEL_ORDER + 2) ** 2 * EPS
    least = min(
        float(np.min(remainder_bound(ACTIVATION, layer.center, layer.reach, MODEL_ORDER), initial=1.0))
        for layer in layers
    )

    def certified(name: str, shares: Sequence[float], what: str) -> Check:
        return Check(name=name, statistic=f"certified greatest error on the range / {what}, worst case", unit="×",
                     value=max(shares), bound=1.0, cases=len(shares), seed=ctx.seed, tolerance=64 * EPS,
                     tolerance_from="64 roundings of the bound itself in float64; errors are from ball "
                                    "arithmetic")  # fmt: skip

    return Evidence(
        verdict=Verdict.HOLDS,
        grade=Grade.CERTIFIED,
        explanation=(
            "Lagrange's bound is a theorem, and silu's partial fractions give an explicit one that holds for any "
            f"range, inside the radius of convergence and outside: in {len(closed)} random cases the certified error "
            f"reaches at most {max(closed):.2f} of it. A bound that holds is not a small one: outside the radius both "
            "grow with the order. And the range is that of the tokens it was taken from: of other tokens' "
            f"pre-activations {outside:.2%} lie outside it, where the error at order {MODEL_ORDER} reaches "
            f"{worst:.1f} times the bound."
        ),
        checks=[
            certified("random ranges, points and orders: the error is below the bound from the poles", closed,
                      "2 Σ (reach/√(t² + π²(2k+1)²))^(N+1)"),
            certified("random ranges, points and orders: the error is below Lagrange's bound", lagrange,
                      "a number at most Lagrange's bound"),
            Check(name=f"every hidden unit of the model, order {MODEL_ORDER}: measured error below its bound",
                  statistic="greatest error over the tokens / bound, worst unit", unit="×", value=on_model, bound=1.0,
                  tolerance=roundings / least, cases=sum(layer.z.shape[1] for layer in layers),
                  tolerance_from=f"{MODEL_ORDER + 2} terms of as many roundings over the least bound {least:.0e}"),
            Check(name=f"a whole layer of the model, order {MODEL_ORDER}: measured error of its outputs below the "
                       "certified "
                  "bound", statistic="greatest error over the tokens / Σ |W_ij| |u_j| E_j, worst output of the "
                                     "first layer",
                  unit="×", value=layer_share(layers[0]), bound=1.0, tolerance=roundings / least,
                  tolerance_from="as above", cases=layers[0].z.size),
        ],
        assumptions=[f"a unit's range is what {len(layers[0].z)} tokens of {text_name(ctx)} show",
                     "N ≥ 1 for the explicit bound"],
        deviations=[OURS, SWIGLU],
    )  # fmt: skip


def better_points(ctx: Context, count: int) -> list[float]:
    """For random ranges, certified error about the midpoint over that about the best of a few other points."""
    found = []
    for i, (low, high) in enumerate(_ranges(ctx, 2, count)):
        order, middle, half = ORDERS[1 + i % 3], low + (high - low) / 2, (high - low) / 2

        def error(t: float, order: int = order, low: float = low, high: float = high) -> tuple[float, float]:
            return greatest_error(ACTIVATION, taylor_polynomial(ACTIVATION, t, order), low, high)

        found.append(error(middle)[0] / min(error(middle + s * half)[1] for s in SHIFTS))
    return found


def longest_reaches(ctx: Context) -> int:
    """Rational ranges and points for which max(t − low, high − t) is below half the range, or equals it elsewhere."""
    rng, wrong = ctx.rng(3), 0
    for _ in range(ctx.cases):
        low, width, share = (
            fmpq(int(rng.integers(*ends)), int(rng.integers(1, 9))) for ends in ((-50, 50), (1, 50), (0, 9))
        )
        share = share if share <= 1 else 1 / share
        t, high = low + share * width, low + width
        reach = max(t - low, high - t)
        wrong += not (reach > width / 2 if share != fmpq(1, 2) else reach == width / 2)
    return wrong


def _best_on_model(layer: Layer) -> Array:
    """For each unit, error on the tokens about the midpoint over that about the best of a few points."""
    want = ops.silu(layer.z)

    def error(center: Array) -> Array:
        (got,) = partial_sums(ACTIVATION, layer.z, center, [MODEL_ORDER])
        return np.asarray(np.abs(got - want).max(axis=0))

    best: Array = np.min([error(layer.center + s * layer.reach) for s in (0.0, *SHIFTS)], axis=0)
    return error(layer.center) / best


def other_point(given: dict[str, Any]) -> str:
    """Greatest errors of the order-0 Taylor polynomials of tanh about two points, in rational arithmetic.

    tanh 2m = 2T/(1 + T²), tanh is increasing, and order 0 is the constant tanh t: so on [0, 2m] its error is the larger
    of tanh t and tanh 2m − tanh t. Points are given by their tanh.
    """
    if (given["activation"], given["order"], given["low"]) != ("tanh", 0, 0):
        raise ValueError(f"only tanh at order 0 on ranges from 0 has these rational errors, not {given}")
    middle, other = (fmpq(*map(int, given[name].split("/"))) for name in ("tanh_of_midpoint", "tanh_of_other_point"))
    top = 2 * middle / (1 + middle * middle)
    if not (0 < middle < 1 and 0 <= other <= top):
        raise ValueError(f"0 < tanh of the midpoint < 1 and the other point in the range are needed, not {given}")
    about = [max(value, top - value) for value in (middle, other)]
    return f"about the midpoint the error is {about[0]}, about the other point {about[1]}"


def _counterexample() -> Counterexample:
    given = {"activation": "tanh", "order": 0, "low": 0, "tanh_of_midpoint": "1/2", "tanh_of_other_point": "2/5"}
    return Counterexample(
        given=given,
        got=other_point(given),
        want="no point has a smaller error than the midpoint",
        by_hand="Let m be the number with tanh m = 1/2, and the range [0, 2m]; its midpoint is m.\n"
        "tanh 2m = 2 · ½ / (1 + ¼) = 4/5, so tanh runs from 0 to 4/5.\n"
        "Order 0 about m is the constant 1/2: it is wrong by 1/2 at 0.\n"
        "Order 0 about the point where tanh is 2/5 is wrong by 2/5 at 0 and by 2/5 at 2m: less.",
    )


def check_midpoint(ctx: Context) -> Evidence:
    """The midpoint minimizes the bound, exactly; not the error: a rational counterexample and certified cases.

    *The bound.* Let |R_N(z)| ≤ B(|z − t|) with B increasing and the same for every t (a symmetric majorant: for silu
    and N ≥ 1, B(r) = 2 Σ_k (r/(π(2k+1)))^(N+1) is one, as √(t² + π²(2k+1)²) ≥ π(2k+1)). On [low, high] it gives
    B(max(t − low, high − t)). The two distances add up to high − low, so the larger is at least half of it, and equals
    it only for t = (low + high)/2. As B increases, the midpoint, and it alone if B does strictly, has the least bound.
    ∎

    *The error* is another function of t: the counterexample is exact; on random ranges and orders 2, 4, 8
    ball arithmetic encloses the error of silu's polynomials about the midpoint and about a few other points.

    *Convergence.* Moving t by δ adds |δ| to the reach and at most |δ| to √(t² + π²), the distance to a fixed point. So
    if the range leaves the radius about the midpoint, it leaves it about every other point.
    """
    better = better_points(ctx, ctx.cases)
    layers = observe(ctx)
    gains = np.concatenate([_best_on_model(layer) for layer in layers])
    wrong = longest_reaches(ctx)
    share = float(np.mean(np.array(better) > 1))
    return Evidence(
        verdict=Verdict.REFUTED,
        grade=Grade.PROVED,
        explanation=(
            "The midpoint has the least bound whenever the bound depends on the distance alone; that is not the "
            "least error, since activations are not symmetric. The smallest case is exact: tanh at order 0. For silu "
            f"at orders 2 to 8, in {share:.0%} of {len(better)} random ranges one of {len(SHIFTS)} other points is "
            f"provably better, by up to {max(better):.1f} times; for {np.mean(gains > 1):.0%} of the model's "
            f"{gains.size:,} units another point is better on the tokens at order {MODEL_ORDER}, by up to "
            f"{gains.max():.1f} times. Where the series about the midpoint diverges at the ends, though, it does so "
            "about every other point."
        ),
        checks=[
            Check(name="silu, random ranges: another point is provably better than the midpoint", unit="×", bound=1.0,
                  statistic="certified error about the midpoint / about another point, best case", value=max(better),
                  sense=">=", tolerance_from="ball arithmetic: none needed", cases=len(better), seed=ctx.seed),
            Check(name="the midpoint minimizes the longest reach, exactly",
                  statistic="rational cases in which it does not",
                  unit="cases", value=wrong, bound=0, sense="==", tolerance_from="rational arithmetic: none",
                  cases=ctx.cases, seed=ctx.seed),
            Check(name="units of the model for which another point is better", unit="×", bound=1.0, sense=">=",
                  statistic=f"error on the tokens at order {MODEL_ORDER} about the midpoint / about another point, "
                            "best unit",
                  value=float(gains.max()), cases=gains.size,
                  tolerance_from="none: a factor of 1 is where the midpoint is as good as any"),
        ],
        counterexample=_counterexample(),
        assumptions=["error means the greatest over the range; the other points tried are few, so gains are lower "
                     "bounds"],
        deviations=[SWIGLU],
        plots=[_point_plot()],
    )  # fmt: skip


def _point_plot() -> Plot:
    shifts = np.linspace(-0.5, 0.5, 21)
    low, high = -1.0, 4.0
    curves = []
    for order in (2, 4, 8):
        points = (low + high) / 2 + shifts * (high - low) / 2
        errors = [
            greatest_error(ACTIVATION, taylor_polynomial(ACTIVATION, float(t), order), low, high)[1] for t in points
        ]
        curves.append(Curve(name=f"order {order}", x=points.tolist(), y=errors))
    return Plot(title=f"silu on [{low:g}, {high:g}]: certified greatest error by expansion point; the midpoint is 1.5",
                x_label="expansion point", y_label="error", y_log=True, curves=curves)  # fmt: skip


CLAIMS = (
    Claim(
        id="TAYLOR-BOUND",
        title="The remainder bound contains the error",
        statement="The stated remainder bound contains the error everywhere in the range.",
        source=Source(paper=PAPER, where="the re-parameterization of feed-forward layers, remainder"),
        kind="theorem",
        recorded=Verdict.HOLDS,
        would_change="A bound with a smaller constant or one power less; pre-activations outside the range.",
        check=check_bound,
    ),
    Claim(
        id="TAYLOR-MIDPOINT",
        title="The midpoint of the range is the best expansion point",
        statement="The midpoint of the range is the expansion point of least error.",
        source=Source(paper=PAPER, where="the re-parameterization of feed-forward layers, choice of z0"),
        kind="theorem",
        recorded=Verdict.REFUTED,
        would_change="Saying least bound in place of least error would make it hold.",
        check=check_midpoint,
        rerun=other_point,
    ),
)
