"""MergeBarrier's Taylor layers (arXiv 2511.10712): other bases, and what any of them costs in loss."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from flint import arb

from lockproofs.balls import errors, formula, lower, upper, working
from lockproofs.claim import Check, Claim, Context, Curve, Evidence, Grade, Plot, Source, Verdict
from lockproofs.curves.taylor import certified as certified_plots
from lockproofs.curves.taylor import chebyshev_bound, chebyshev_error
from lockproofs.enclosures import bernstein_radius, chebyshev_bounds, chebyshev_interpolant, greatest_error
from lockproofs.taylor_layers import LENGTH, ORDERS, PAPER, SWIGLU, Layer, check_room, observe, text_name, tokens
from lockref.autodiff import ops
from lockref.locks.bases import BASES, CHEBYSHEV, HERMITE, TAYLOR, Basis
from lockref.locks.taylor_model import (
    ACTIVATION,
    DOWN,
    block,
    gate_and_factor,
    lock_model,
    observe_model,
    series_layer,
)
from lockref.locks.taylor_series import radius
from lockref.models import qwen3

LOW, HIGH = 8, 24  # orders between which a certified error is followed
FALLS, GROWS = 0.5, 2.0  # it must at least halve, or double
RANGES = 6  # random ranges for ball arithmetic
CALIBRATION = 16  # rows of text from which an owner takes the ranges
LOSS_ORDERS = (4, 8, 16)
NEGLIGIBLE = 0.01  # nats per token
WITHIN = 0.7  # share of the radius up to which a unit counts as within


def _random_ranges(ctx: Context) -> list[tuple[float, float]]:
    """[−4, 4] and [−8, 8], and random ranges with centers in [−4, 4] and half-ranges from 1 to 10."""
    pairs = ctx.rng(0).uniform((-4, 1), (4, 10), (min(ctx.cases, RANGES), 2))
    return [(-4.0, 4.0), (-8.0, 8.0), *((float(c - h), float(c + h)) for c, h in pairs)]


def certified_fall(low: float, high: float) -> tuple[float, float]:
    """Of the Chebyshev interpolants: certified error at order HIGH over LOW, and error over bound, the worse of two."""
    found = [
        greatest_error(ACTIVATION, chebyshev_interpolant(ACTIVATION, low, high, n), low, high) for n in (LOW, HIGH)
    ]
    bounds = chebyshev_bounds(ACTIVATION, low, high, (LOW, HIGH))
    return found[1][1] / found[0][0], max(most / b for (_, most), b in zip(found, bounds, strict=True))


def certified_growth_outside(low: float, high: float) -> float:
    """Certified error at a real point outside the ellipse of convergence, order HIGH over LOW."""
    rho = 1.5 * float(bernstein_radius(ACTIVATION, low, high))
    z = (low + high) / 2 + (high - low) / 2 * (rho + 1 / rho) / 2
    with working():
        want = formula(ACTIVATION)(arb(z))
        left = [abs(want - chebyshev_interpolant(ACTIVATION, low, high, n)(arb(z))) for n in (LOW, HIGH)]
    return lower(left[1]) / upper(left[0])


def certified_taylor_growth(low: float, high: float) -> float:
    """The same about the midpoint in the Taylor basis, at the ends of the range."""
    t = (low + high) / 2
    ends = [[abs(e) for e in errors(ACTIVATION, t, (LOW, HIGH), z)] for z in (low, high)]
    return max(lower(e[1]) for e in ends) / max(upper(e[0]) for e in ends)


def relative_errors(layer: Layer, basis: Basis, orders: Sequence[int] = ORDERS) -> list[float]:
    """‖layer in this basis − layer‖_F / ‖layer‖_F over the tokens, for each order."""
    want = ops.silu(layer.z)
    size = np.linalg.norm((want * layer.u) @ layer.down.T)
    center, scale = basis.place(layer.seen)
    x, found = (layer.z - center) / scale, []
    for order in orders:
        c = basis.coefficients(ACTIVATION, center, scale, order)
        got = sum(cn * phi for cn, phi in zip(c, basis.polynomials(x), strict=False))
        found.append(float(np.linalg.norm(((got - want) * layer.u) @ layer.down.T) / size))
    return found


def check_basis(ctx: Context) -> Evidence:
    """Certified errors of Chebyshev interpolants inside their range and outside; all bases on the model.

    *Chebyshev.* Let f be analytic on the closed ellipse E_ρ with foci low, high and sum of half-axes ρ (in
    half-ranges), |f| ≤ M there. Its Chebyshev coefficients satisfy |aₖ| ≤ 2Mρ⁻ᵏ (Bernstein: shift the contour of their
    integral). At the N + 1 zeros of T_{N+1} each Tₖ, k > N, agrees with ±Tⱼ for a j ≤ N or with 0, so the interpolant
    errs by at most 2 Σ_{k > N} |aₖ| ≤ 4Mρ⁻ᴺ/(ρ − 1) anywhere on the range (Trefethen 2013, theorems 8.1, 8.2). silu is
    analytic off ±iπ(2k+1), so each bounded range has a ρ > 1: the largest is |x + √(x² − 1)| at x = (iπ −
    center)/half-range.

    *Exactly,* for N ≥ 1: 1/(x − p) minus its interpolant is T_{N+1}(x) / (T_{N+1}(p) (x − p)), so the partial fractions
    of TAYLOR-BOUND give the error Σ_p p/(z − p) · T_{N+1}(x) / T_{N+1}(x_p), x and x_p in units of the half-range about
    the center. On the range |T_{N+1}(x)| ≤ 1, and |T_{N+1}(x_p)| grows like ρ_p^(N+1)/2: the first pair of poles sets
    the rate. *Outside* the largest ellipse, at a real x with r = |x| + √(x² − 1) > ρ, T_{N+1}(x) grows like r^(N+1)/2,
    and the first pair's share like (r/ρ)^(N+1) times the real part of a number that turns by arg w ≠ 0, π (mod 2π), |w|
    = ρ, with each N; so of any two consecutive N one keeps a fixed part of it, the other pairs are of lower order, and
    the errors are unbounded. ∎

    *Hermite.* A function analytic in the strip |Im z| < π has Hermite coefficients about a real mean, in units of a
    standard deviation s, that fall like exp(−(π/s)√N) (Hille 1940): on every range, but slower than any geometric rate.
    """
    ranges = _random_ranges(ctx)
    falls, shares = zip(*(certified_fall(*r) for r in ranges), strict=True)
    outside = [certified_growth_outside(*r) for r in ranges]
    wide = [r for r in ranges if (r[1] - r[0]) / 2 > 1.2 * float(radius(ACTIVATION, (r[0] + r[1]) / 2))]
    diverging = [certified_taylor_growth(*r) for r in wide]
    layers = observe(ctx)
    by_basis = {name: [relative_errors(layer, basis) for layer in layers] for name, basis in BASES.items()}
    eight, last = ORDERS.index(8), len(ORDERS) - 1
    rates = {f"±{half}": float(bernstein_radius(ACTIVATION, -half, half)) for half in (2, 4, 8, 16)}
    floor = ORDERS[last] ** 2 * float(np.finfo(np.float64).eps)

    def on_layers(name: str, basis: Basis) -> Check:
        ratios = [e[last] / e[eight] for e in by_basis[basis.name]]
        return Check(name=name, statistic=f"output's error at order {ORDERS[last]} over order {ORDERS[eight]}, worst "
        "layer",
                     unit="×", value=max(ratios), bound=FALLS, cases=len(ratios),
                     tolerance=floor / min(e[eight] for e in by_basis[basis.name]),
                     tolerance_from="as many terms of as many roundings, over the least error")  # fmt: skip

    certified = "ball arithmetic: none needed"
    step = f"order {HIGH} over order {LOW}"
    return Evidence(
        verdict=Verdict.HOLDS_IF,
        grade=Grade.CERTIFIED,
        condition="every pre-activation stays in the range that the basis was made for, Chebyshev's or Hermite's; "
        "in the Taylor basis, within √(z0² + π²) of z0",
        explanation=(
            "They serve better than Taylor, not in the same way. Chebyshev interpolation converges on every range, "
            "geometrically, at the rate ρ of the largest ellipse around the range without a pole: silu on "
            + ", ".join(f"{r}: {rho:.2f}" for r, rho in rates.items())
            + f" per order. On the ranges tried its error falls to at most {max(falls):.2g} of itself from order {LOW} "
            f"to {HIGH}, while Taylor's grows where the range leaves the radius. Hermite interpolation converges "
            "without a range to leave, but only as exp(−(π/s)√N) for a standard deviation s. On this model's worst "
            "layer the error of the output "
            "at order " + f"{ORDERS[eight]} is "
            + ", ".join(f"{max(e[eight] for e in rows):.1g} ({name})" for name, rows in by_basis.items())
            + f". Beyond the range Chebyshev polynomials grow: outside the ellipse the error at order {HIGH} is at "
            f"least {min(outside):.2g} times that at {LOW}."
        ),
        checks=[
            Check(name="Chebyshev on random ranges: a higher order is more precise", statistic="certified error, "
            f"{step}, worst",
                  unit="×", value=max(falls), bound=FALLS, tolerance_from=certified, cases=len(falls), seed=ctx.seed),
            Check(name="Chebyshev: the error is below 4Mρ⁻ᴺ/(ρ − 1)", statistic="certified error over certified bound, "
            "worst",
                  unit="×", value=max(shares), bound=1.0, tolerance_from=certified, cases=2 * len(shares),
                  seed=ctx.seed),
            Check(name="Chebyshev at a point outside the ellipse: a higher order is less precise", sense=">=", unit="×",
                  statistic=f"certified error, {step}, least", value=min(outside), bound=GROWS,
                  tolerance_from=certified,
                  cases=len(outside), seed=ctx.seed),
            Check(name="Taylor on those ranges that leave its radius: a higher order is less precise", sense=">=",
                  unit="×",
                  statistic=f"certified error at the ends, {step}, least", value=min(diverging), bound=GROWS,
                  tolerance_from=certified, cases=len(diverging), seed=ctx.seed),
            on_layers("Chebyshev on the model's layers: a higher order is more precise", CHEBYSHEV),
            on_layers("Hermite on the model's layers: a higher order is more precise", HERMITE),
        ],
        assumptions=[f"layers as observed on {len(layers[0].z)} tokens of {text_name(ctx)}, ranges taken from the same "
                     "tokens"],
        deviations=[SWIGLU],
        plots=[
            Plot(title=f"One layer's output in three bases: relative error ({where})", x_label="order N",
                 y_label="relative error", y_log=True,
                 curves=[Curve(name=name, x=[*ORDERS], y=rows[i]) for name, rows in by_basis.items()])
            for i, where in ((0, "first layer"), (len(layers) - 1, "last layer"))
        ] + certified_plots("Chebyshev", chebyshev_error, chebyshev_bound),
        fix="Hermite or Chebyshev instead of Taylor, and clip pre-activations to the range",
    )  # fmt: skip


def partly(released: dict[str, Any], tensors: dict[str, Any], within: Sequence[Any]) -> dict[str, Any]:
    """Both halves of a model in which only the units named are locked; `partly_block` adds them up."""
    mixed = dict(released)
    for i, units in enumerate(within):
        prefix = f"model.layers.{i}."
        mixed[prefix + "mlp.series.arrays"] = released[prefix + "mlp.series.arrays"] * units
        mixed[prefix + DOWN] = tensors[prefix + DOWN] * ~units
    return mixed


def partly_block(w: qwen3.Weights, x: Any, config: qwen3.Qwen3Config) -> Any:
    x = x + qwen3.attention(w, qwen3.attention_norm(w, x, config), config)
    z, u = gate_and_factor(w, qwen3.mlp_norm(w, x, config))
    return x + series_layer(w, TAYLOR)(z, u) + ops.swiglu(z, u) @ w[DOWN].T


def clipped_block(w: qwen3.Weights, x: Any, config: qwen3.Qwen3Config) -> Any:
    """A Chebyshev-locked layer that is asked about the ends of the range in place of what lies beyond."""
    x = x + qwen3.attention(w, qwen3.attention_norm(w, x, config), config)
    z, u = gate_and_factor(w, qwen3.mlp_norm(w, x, config))
    layer = series_layer(w, CHEBYSHEV)
    return x + layer(np.clip(z, layer.center - layer.scale, layer.center + layer.scale), u)


def check_utility(ctx: Context) -> Evidence:
    """Loss of the locked model minus the original's, on text that the ranges were not taken from."""
    check_room(ctx, LOSS_ORDERS[-1])
    model, text = ctx.subject.model, tokens(ctx, 1)
    seen = observe_model(model.tensors, tokens(ctx, 4, CALIBRATION), model.config)
    original = float(qwen3.loss(model.tensors, text, model.config))

    def increase(order: int, basis: Basis) -> float:
        released = lock_model(model.tensors, model.config, seen, order, basis)
        with np.errstate(over="ignore", invalid="ignore"):
            return float(qwen3.loss(released, text, model.config, block(basis))) - original

    found = {name: [increase(n, basis) for n in LOSS_ORDERS] for name, basis in BASES.items()}
    share = [np.maximum(s.high - s.center, s.center - s.low) / radius(ACTIVATION, s.center) for s in seen]
    leaving = float(np.mean(np.concatenate(share) >= 1))
    last = LOSS_ORDERS[-1]
    released = lock_model(model.tensors, model.config, seen, last)
    mixed = partly(released, model.tensors, [s < WITHIN for s in share])
    inside = float(qwen3.loss(mixed, text, model.config, partly_block)) - original
    units = int(sum(np.sum(s < WITHIN) for s in share))
    released = lock_model(model.tensors, model.config, seen, last, CHEBYSHEV)
    clipped = float(qwen3.loss(released, text, model.config, clipped_block)) - original
    best = {name: min(rows) for name, rows in found.items()}

    def loses(name: str, value: float, what: str, sense: Any = "<=") -> Check:
        return Check(name=name, statistic=f"loss of the locked model − {original:.4f}, {what}", unit="nats per token",
                     value=value,
                     bound=NEGLIGIBLE, sense=sense, cases=text.size, seed=ctx.seed,
                     tolerance_from=f"none: {NEGLIGIBLE} nats is what counts as negligible here")  # fmt: skip

    checks = []
    if leaving:
        changed = abs(found["taylor"][-1])
        checks.append(
            loses("Taylor in every unit: the change is not negligible", changed, f"order {last}, absolute", ">=")
        )
    else:
        checks.append(
            loses("Taylor in every unit: the loss is negligible", best["taylor"], f"best of orders {LOSS_ORDERS}")
        )
    if units:
        checks.append(
            loses(
                f"Taylor in the {units:,} units within {WITHIN} of their radius alone: negligible",
                inside,
                f"order {last}",
            )
        )
    checks += [
        loses("Chebyshev in every unit, pre-activations clipped to the range: negligible", clipped, f"order {last}"),
        loses("Chebyshev in every unit: negligible", best["chebyshev"], f"best of orders {LOSS_ORDERS}"),
        loses("Hermite in every unit: negligible", best["hermite"], f"best of orders {LOSS_ORDERS}"),
    ]

    def listed(name: str) -> str:
        return ", ".join(f"{x:+.4g}" for x in found[name])

    return Evidence(
        verdict=Verdict.HOLDS_IF,
        grade=Grade.MEASURED,
        condition="the polynomials converge on the pre-activations that occur: Chebyshev or Hermite bases of order 8 "
                  "or so; "
        "Taylor only if every unit stays well within its radius",
        explanation=(
            f"With ranges from {CALIBRATION * LENGTH:,} tokens and the loss on {text.size:,} others "
            f"({text_name(ctx)}), loss changes by {listed('taylor')} nats at orders "
            f"{', '.join(map(str, LOSS_ORDERS))} in the Taylor basis, {listed('chebyshev')} in Chebyshev's, "
            f"{listed('hermite')} in Hermite's; {leaving:.0%} of all units leave their radius. Locking only the "
            f"{units:,} units within {WITHIN} of it, Taylor of order {last} changes the loss by {inside:+.2g}. A "
            "higher order is not always better in Chebyshev's basis either: pre-activations outside the observed "
            f"range make it grow again, unless they are clipped to it ({clipped:+.2g} at order {last})."
        ),
        checks=checks,
        assumptions=[f"negligible means at most {NEGLIGIBLE} nats per token", "coefficients in float64"],
        deviations=[SWIGLU],
        plots=[
            Plot(title="Loss of the locked model above the original's, on other text than the ranges are from",
                 x_label="order N", y_label="nats per token", y_log=True,
                 curves=[Curve(name=name, x=[*LOSS_ORDERS], y=[x if x > 0 else None for x in rows]) for name,
                         rows in found.items()])
        ],
        severity="medium" if leaving else None,
        fix="Chebyshev or Hermite bases, order 8, pre-activations clipped to the range" if leaving else None,
    )  # fmt: skip


CLAIMS = (
    Claim(
        id="TAYLOR-BASIS",
        title="Other bases serve as well as Taylor",
        statement="Hermite or Chebyshev bases serve in the same way.",
        source=Source(paper=PAPER, where="the re-parameterization of feed-forward layers, other bases"),
        kind="theorem",
        recorded=Verdict.HOLDS_IF,
        would_change="An entire activation, for which all three converge everywhere, would make it hold.",
        check=check_basis,
    ),
    Claim(
        id="TAYLOR-UTILITY",
        title="Accuracy loss is negligible",
        statement="Accuracy loss is negligible.",
        source=Source(paper=PAPER, where="the evaluation of re-parameterized feed-forward layers"),
        kind="utility",
        recorded=Verdict.HOLDS_IF,
        would_change="A model whose pre-activations stay within the radius (then Taylor would do), or another "
        "threshold.",
        check=check_utility,
    ),
)
