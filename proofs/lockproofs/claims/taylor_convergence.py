"""MergeBarrier's Taylor layers (arXiv 2511.10712): what raising the order does."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from flint import fmpq, fmpq_series

from lockproofs import balls
from lockproofs.claim import (
    Check,
    Claim,
    Context,
    Counterexample,
    Curve,
    Evidence,
    Grade,
    Plot,
    Source,
    Verdict,
)
from lockproofs.curves.taylor import certified, taylor_bound, taylor_error
from lockproofs.taylor_layers import ORDERS, PAPER, SWIGLU, Layer, observe, text_name
from lockref.autodiff import ops
from lockref.locks import taylor_series
from lockref.locks.taylor_model import ACTIVATION

Unit = tuple[float, float]  # its expansion point, and how far from it the pre-activation goes

LOW, HIGH = 16, 64  # orders between which one unit's error is followed by ball arithmetic
FROM, TO = ORDERS.index(8), ORDERS.index(32)  # between which they must fall or grow
INSIDE, OUTSIDE = 0.8, 1.25  # shares of the radius at which the two sides are shown
BAND, BEYOND = (0.5, 0.9), 1.1  # where a real unit's side of the radius shows at these orders
ROUND_OFF = ORDERS[TO] ** 2 * float(np.finfo(np.float64).eps)
FALLS, GROWS = 0.5, 2.0  # a higher order must at least halve, or double, the error
POINTS = 8.0  # expansion points are drawn from [−8, 8]


def end_errors(unit: Unit, orders: Sequence[int]) -> list[tuple[float, float]]:
    """Bounds (at least, at most) of the larger of the errors at t ± reach, for every order.

    Both ends, because at one of them the two nearest poles may cancel each other for some orders.
    """
    t, reach = unit
    ends = [[abs(e) for e in balls.errors(ACTIVATION, t, orders, z)] for z in (t - reach, t + reach)]
    return [(max(map(balls.lower, pair)), max(map(balls.upper, pair))) for pair in zip(*ends, strict=True)]


def growth(unit: Unit) -> float:
    """A factor by which the error at t ± reach provably grows from order LOW to order HIGH."""
    (_, before), (after, _) = end_errors(unit, (LOW, HIGH))
    return after / before


def remainder(unit: Unit) -> float:
    """A share of the greatest error on t ± reach at order LOW that is provably not exceeded at order HIGH."""
    ((before, _),) = end_errors(unit, (LOW,))
    return balls.sup_bounds(ACTIVATION, unit[0], (HIGH,), unit[1])[0] / before


def _falls(name: str, units: Sequence[Unit], seed: int | None = None) -> Check:
    return Check(
        name=name,
        statistic=f"certified bound of the error at order {HIGH} over a certified error at order {LOW}, worst unit",
        unit="×",
        value=max(map(remainder, units)),
        bound=FALLS,
        tolerance_from="ball arithmetic: none needed",
        cases=len(units),
        seed=seed,
    )


def _grows(name: str, units: Sequence[Unit], seed: int | None = None) -> Check:
    return Check(
        name=name,
        statistic=f"certified error at the ends of the range, order {HIGH} over order {LOW}, least unit",
        unit="×",
        value=min(map(growth, units)),
        bound=GROWS,
        sense=">=",
        tolerance_from="ball arithmetic: none needed",
        cases=len(units),
        seed=seed,
    )


def _anywhere(ctx: Context) -> list[Check]:
    """Both sides of the radius, about 0 and about random points."""
    points = np.append(0.0, ctx.rng(0).uniform(-POINTS, POINTS, ctx.cases - 1))
    radii = taylor_series.radius(ACTIVATION, points)
    inside, outside = (list(zip(points, share * radii, strict=True)) for share in (INSIDE, OUTSIDE))
    return [
        _falls(f"range reaching {INSIDE} of the radius: a higher order is more precise", inside, ctx.seed),
        _grows(f"range reaching {OUTSIDE} of the radius: a higher order is less precise", outside, ctx.seed),
    ]


def _units(layers: Sequence[Layer], low: float, high: float, count: int) -> list[Unit]:
    """At most `count` units of the model whose share lies in [low, high), those nearest to the edge first."""
    found = [
        (abs(1 - share), float(t), float(reach))
        for layer in layers
        for t, reach, share in zip(layer.center, layer.reach, layer.share, strict=True)
        if low <= share < high
    ]
    return [(t, reach) for _, t, reach in sorted(found)[:count]]


def _measured_against_certified(layers: Sequence[Layer], count: int) -> list[Check]:
    """The reference's own polynomials, on what the model computes, against the certified bound."""
    worst, cases = 0.0, 0
    for layer in layers:
        (units,) = np.nonzero((layer.share >= BAND[0]) & (layer.share < BAND[1]))
        units = units[: -(-count // len(layers))]
        z, center, reach = layer.z[:, units], layer.center[units], layer.reach[units]
        bounds = [balls.sup_bounds(ACTIVATION, t, (8, LOW), q) for t, q in zip(center, reach, strict=True)]
        for n, got in enumerate(taylor_series.partial_sums(ACTIVATION, z, center, (8, LOW))):
            error = np.abs(got - ops.silu(z)).max(axis=0, initial=0.0)
            worst = max([worst, *(e / b[n] for e, b in zip(error, bounds, strict=True))])
        cases += len(units)
    if not cases:
        return []
    least = BAND[0] ** LOW  # the bounds are larger than this, the values of order 1
    return [
        Check(
            name="units of the model well within the radius: measured error against certified bound",
            statistic=f"greatest error over the tokens at orders 8 and {LOW} / sup-norm bound on the range",
            unit="×",
            value=worst,
            bound=1.0,
            tolerance=(LOW + 2) ** 2 * float(np.finfo(np.float64).eps) / least,
            tolerance_from=f"{LOW + 2} terms of up to {LOW + 2} roundings each, over the least bound {least:.0e}",
            cases=cases,
        )
    ]


def _on_model(layers: Sequence[Layer], count: int) -> list[Check]:
    """The audited model's layers: as they are, and with their ranges stretched to either side."""
    near, far = (_units(layers, *band, count) for band in (BAND, (BEYOND, np.inf)))
    checks = []
    if far:
        leaving = [part for layer in layers if (part := layer.only(layer.share >= BEYOND)).z.size]
        pooled = [float(e) for e in np.linalg.norm([layer.errors for layer in leaving], axis=0)]
        checks += [
            _measured("units of the model that leave the radius: a higher order is less precise", [pooled], ">="),
            _grows("units of the model that leave the radius, at the ends of their ranges: the same", far),
        ]
    if near:
        checks.append(_falls("units of the model well within the radius: a higher order is more precise", near))
    inside, outside = ([layer.stretched(share).errors for layer in layers] for share in (INSIDE, OUTSIDE))
    name = "layers, ranges scaled to reach {} of the radius: a higher order is {} precise"
    checks.append(_measured(name.format(INSIDE, "more"), inside, "<="))
    checks.append(_measured(name.format(OUTSIDE, "less"), outside, ">="))
    return checks + _measured_against_certified(layers, count)


def _measured(name: str, errors: Sequence[Sequence[float]], sense: Literal["<=", ">="]) -> Check:
    ratios = [e[TO] / e[FROM] for e in errors]
    least = min(min(e[FROM], e[TO]) for e in errors)
    return Check(
        name=name,
        statistic=f"error of the output measured at order {ORDERS[TO]} over order {ORDERS[FROM]}, worst layer",
        unit="×",
        value=max(ratios) if sense == "<=" else min(ratios),
        bound=FALLS if sense == "<=" else GROWS,
        sense=sense,
        tolerance=ROUND_OFF / least,
        tolerance_from=f"{ORDERS[TO]} terms of that many roundings each, over the least error, {least:.0e}",
        cases=len(ratios),
    )


def rerun(given: dict[str, Any]) -> str:
    """Rational bounds of |silu(z) − S_N(z)| about 0 for z > 0, from e^z > 1 + z + z²/2."""
    if (given["activation"], given["expansion_point"]) != (ACTIVATION, 0) or given["z"] <= 0:
        raise ValueError(f"only silu about 0 and z > 0 have these rational bounds, not {given}")
    z, orders = fmpq(given["z"]), given["orders"]
    x = fmpq_series([0, 1], prec=max(orders) + 1)
    coefficients = list(x / (1 + (-x).exp()))
    low, high = z / (1 + 1 / (1 + z + z * z / 2)), z
    found = []
    for order in orders:
        value = sum((c * z**n for n, c in enumerate(coefficients[: order + 1])), fmpq(0))
        least, most = max(value - high, low - value, fmpq(0)), max(value - low, high - value)
        found.append(f"order {order} is wrong by at least {least} and at most {most}")
    return "; ".join(found)


def _counterexample() -> Counterexample:
    given = {"activation": ACTIVATION, "expansion_point": 0, "z": 4, "orders": [2, 4]}
    return Counterexample(
        given=given,
        got=rerun(given),
        want="order 4 is wrong by less than order 2",
        by_hand="silu(z) = z/2 + (z/2) tanh(z/2) and tanh y = y − y³/3 + …,\n"
        "so S₂ = z/2 + z²/4 and S₄ = S₂ − z⁴/48.\n"
        "At z = 4: S₂ = 2 + 4 = 6 and S₄ = 6 − 256/48 = 2/3.\n"
        "e⁴ > 1 + 4 + 8 = 13, so silu(4) = 4/(1 + e⁻⁴) lies between 4/(1 + 1/13) = 26/7 and 4.\n"
        "Order 2 is wrong by at most 6 − 26/7 = 16/7 < 2.3, order 4 by at least 26/7 − 2/3 = 64/21 > 3.",
    )


def _plots(layers: Sequence[Layer]) -> list[Plot]:
    orders = range(2, 34, 2)
    curves = []
    for reach in (2.0, 2.5, 4.0, 8.0):
        if reach < float(taylor_series.radius(ACTIVATION, 0.0)):
            y, what = balls.sup_bounds(ACTIVATION, 0, orders, reach), "at most"
        else:
            y, what = [least for least, _ in end_errors((0, reach), orders)], "at least"
        curves.append(Curve(name=f"|z| ≤ {reach:g}: {what}", x=[*orders], y=[*y]))
    numbers: list[float] = [*range(len(layers))]
    return [
        Plot(
            title="silu about 0: certified greatest error of the Taylor polynomial (radius π)",
            x_label="order N",
            y_label="error",
            y_log=True,
            curves=curves,
        ),
        Plot(
            title="The model's MLPs as Taylor layers about the midpoints of their observed ranges",
            x_label="order N",
            y_label="relative error of the output",
            y_log=True,
            curves=[Curve(name=f"layer {i}", x=[*ORDERS], y=[*layer.errors]) for i, layer in enumerate(layers)],
        ),
        Plot(
            title="Hidden units whose observed range leaves the radius of convergence",
            x_label="layer",
            y_label="share of units",
            curves=[Curve(name="leave it", x=numbers, y=[float(np.mean(layer.share >= 1)) for layer in layers])],
        ),
    ]


def check_radius(ctx: Context) -> Evidence:
    """Certified errors on both sides of the radius, about random points and for the model's own units.

    Proof. silu(z) = z/(1 + e⁻ᶻ) has simple poles at p = ±iπ(2k+1), residue p, and no others; so about
    a real t the radius of convergence is the distance to ±iπ, ρ = √(t² + π²). Let aₙ be the
    coefficients, S_N the partial sums, R_N = silu − S_N.

    Within: let |z − t| ≤ q < r < ρ and |silu| ≤ M on |z − t| = r. Cauchy's |aₙ| ≤ M r⁻ⁿ gives
    |R_N(z)| ≤ M (q/r)^(N+1) / (1 − q/r), which falls geometrically to 0, uniformly in z.

    Outside: let |z − t| = s > ρ. As limsup |aₙ|^(1/n) = 1/ρ, the numbers |aₙ| sⁿ are unbounded; they
    are |S_n(z) − S_{n−1}(z)| ≤ |R_n(z)| + |R_{n−1}(z)|, so the errors at z are unbounded as N grows.

    On the circle, |z − t| = ρ, the errors do not tend to 0 either: else aₙ ρⁿ → 0, and then along
    the radius to the pole, (1 − x) |silu(t + x(p − t))| ≤ (1 − x) Σ |aₙ| ρⁿ xⁿ → 0 as x → 1, whereas a
    simple pole makes the left side tend to |p|/ρ > 0.

    A SwiGLU layer errs by W_down (R_N(z) ∘ u), unit by unit: if every unit stays within, it tends to 0;
    where units leave, the one with the largest |z − t|/ρ, if it alone has it, u ≠ 0 and its column of
    W_down ≠ 0, outgrows the others. ∎
    """
    layers = observe(ctx)
    outside = sum(int(np.sum(layer.share >= 1)) for layer in layers)
    units = sum(layer.share.size for layer in layers)
    tokens = len(layers[0].z)
    where = text_name(ctx)
    worst = max((layer.errors for layer in layers), key=lambda e: e[TO])
    on_model = (
        f"On this model and {tokens} tokens of {where}, {outside:,} of {units:,} hidden units leave the radius of "
        f"their midpoint; the worst layer's relative error is {worst[0]:.2g} at order {ORDERS[0]} and {worst[TO]:.2g} "
        f"at order {ORDERS[TO]}."
    )
    return Evidence(
        verdict=Verdict.HOLDS_IF,
        grade=Grade.CERTIFIED,
        condition="every pre-activation stays strictly within the radius of convergence of its expansion point, "
        "|z − z0| < √(z0² + π²) for silu",
        explanation="silu has poles at ±iπ(2k+1), so its Taylor series about z0 converges only closer to z0 than "
        "√(z0² + π²). Within that distance the error falls geometrically with the order (not at every single step: "
        "about 0 the coefficients of order 3, 5, 7 … are zero). Outside, it grows without bound: "
        "about 0 and at z = 4, order 4 is already worse than order 2. " + on_model,
        checks=_on_model(layers, ctx.cases) + _anywhere(ctx),
        counterexample=_counterexample(),
        assumptions=[
            f"a unit's range is what {tokens} tokens of {where} show; other inputs may reach farther",
            "coefficients and pre-activations in float64",
        ],
        deviations=[SWIGLU],
        plots=[*_plots(layers), *certified("Taylor", taylor_error, taylor_bound)],
        severity="medium" if outside else None,
        fix="expand in a basis that converges on the whole observed range (Chebyshev), or refuse orders and ranges "
        "beyond the radius"
        if outside
        else None,
    )


CLAIMS = (
    Claim(
        id="TAYLOR-RADIUS",
        title="A higher Taylor order makes the layer more precise",
        statement="Raising the order N makes the re-parameterized layer more precise.",
        source=Source(paper=PAPER, where="the re-parameterization of feed-forward layers, order N"),
        kind="theorem",
        recorded=Verdict.HOLDS_IF,
        would_change="An activation without poles (gelu with erf is entire) or ranges that provably stay within the "
        "radius would make it hold; nothing makes the series converge outside.",
        check=check_radius,
        rerun=rerun,
    ),
)
