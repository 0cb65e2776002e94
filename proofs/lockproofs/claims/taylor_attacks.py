"""MergeBarrier's Taylor layers (arXiv 2511.10712): what the released coefficients reveal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flint import fmpq

from lockproofs.attention_trials import relatives
from lockproofs.claim import (
    Check,
    Claim,
    Context,
    Control,
    Controls,
    Counterexample,
    Curve,
    Evidence,
    Grade,
    Plot,
    Source,
    Verdict,
)
from lockproofs.curves.paths import recovered
from lockproofs.taylor_layers import PAPER, SWIGLU, check_room, tokens
from lockproofs.taylor_planted import DTYPES, ORDER, Locked, Stolen, eps, saved
from lockref.attacks.result import relative_error
from lockref.attacks.taylor_coefficients import recover
from lockref.locks.bases import BASES, TAYLOR
from lockref.locks.taylor_model import ACTIVATION, DOWN, GATE, UP, series_layer

UNITS = 128  # hidden units of a layer whose points are sought
MISFIT = 10.0  # standard errors, above which coefficients are nobody's


@dataclass(frozen=True)
class Searched:
    """z0, b and some orders secret: W's worst relative error over units, its bound there and at most, units right."""

    error: float
    bound: float
    used: float  # the greatest share of its bound that any unit's error takes
    right: float


def unknown_points(locked: Locked, orders: Sequence[int], dtype: str) -> Searched:
    """What the attack makes of one layer's units from these orders alone."""
    middle = locked.model.config.num_hidden_layers // 2
    weights, original = (
        locked.layers(saved(locked.released, dtype))[middle],
        locked.layers(locked.model.tensors)[middle],
    )
    layer = series_layer(weights, locked.basis)
    found = recover(layer.arrays[orders][:, :, :UNITS], ACTIVATION, orders, None, locked.basis, 1.0, dtype)
    sign = np.sign(np.sum(weights[UP] * original[UP], axis=1))[:UNITS]
    gate = np.sign(np.sum(weights[GATE] * original[GATE], axis=1))[:UNITS]
    want = original[DOWN][:, :UNITS]
    errors = np.linalg.norm(found.weight * sign - want, axis=0) / np.linalg.norm(want, axis=0)
    right = (found.signs == gate) & (np.abs(found.points - gate * layer.center[:UNITS]) <= 100 * eps(dtype))
    return Searched(
        float(np.max(errors)), float(np.max(found.bound)), float(np.max(errors / found.bound)), float(np.mean(right))
    )


def by_precision(found: Mapping[str, Sequence[Stolen | Searched]]) -> Plot:
    """Errors and their derived bounds against the unit round-off of the coefficients."""
    return Plot(
        title="W recovered from coefficients alone, by the precision they are saved in",
        x_label="unit round-off of the coefficients",
        y_label="relative error of W",
        x_log=True,
        y_log=True,
        curves=[
            Curve(name=f"{name}, {what}", x=[eps(d) / 2 for d in DTYPES], y=[getattr(one, what) for one in many])
            for name, many in found.items()
            for what in ("error", "bound")
        ],
    )


def _controls(locked: Locked) -> Controls:
    """Coefficients about 0, the simplest lock, must give W back; random coefficients must fit no curve."""
    rng, want = np.random.default_rng(0), locked.layers(locked.model.tensors)[0][DOWN]
    units = want.shape[1]
    c = TAYLOR.coefficients(ACTIVATION, np.zeros(units), 1.0, ORDER)
    power = relative_error(recover(want * c[:, None, :], ACTIVATION, points=np.zeros(units)).weight, want)
    noise = rng.standard_normal((ORDER + 1, *want[:, :UNITS].shape))
    null = float(np.min(recover(noise, ACTIVATION, dtype="bfloat16").misfit))
    return Controls(
        power=Control(what="a planted lock about 0: relative error of W", passed=power <= 16 * eps("float64"),
                      value=power,
                      bound=16 * eps("float64"), unit="1"),
        null=Control(what="random coefficients, no weights behind them: least misfit of any unit",
                     passed=null >= MISFIT,
                     value=null, bound=MISFIT, unit="standard errors"),
    )  # fmt: skip


def from_ratio(given: dict[str, Any]) -> str:
    """W and tanh t from the orders 1 and 2 of W tanh(t + h), nothing else known.

    tanh' = 1 − T² and tanh''/2 = −T (1 − T²) at T = tanh t, so their ratio is −T.
    """
    if given["activation"] != "tanh" or not given["order_1"]:
        raise ValueError(f"only tanh with an order 1 other than 0 has this rational ratio, not {given}")
    first, second = (fmpq(*map(int, given[name].split("/"))) for name in ("order_1", "order_2"))
    t = -second / first
    return f"tanh t = {t} and W = {first / (1 - t * t)}"


def _counterexample() -> Counterexample:
    given = {"activation": "tanh", "order_1": "9/4", "order_2": "-9/8"}
    return Counterexample(
        given=given,
        got=from_ratio(given),
        want="W cannot be told from the released coefficients",
        by_hand="The owner has W = 3 and a point t, a secret, with tanh t = 1/2. Released are\n"
        "order 1: 3 (1 − 1/4) = 9/4, and order 2: −3 · 1/2 · (1 − 1/4) = −9/8.\n"
        "A stranger divides: (−9/8) / (9/4) = −1/2 = −tanh t.\n"
        "Then W = (9/4) / (1 − 1/4) = 3.",
    )


def check_coeff(ctx: Context) -> Evidence:
    """Lock the model, save the coefficients in four precisions, and run the attack on the release alone.

    *Proof that the release determines W.* The arrays of unit j are W_j cₙ(t_j), n = 0..N. If t_j = z0_j + b_j is known
    (a Qwen3 has no b, and users need z0), any order with cₙ(t_j) ≠ 0 gives W_j, by one division. If it is not, all
    ratios Ŵⁿ/Ŵᵏ = cₙ(t)/cₖ(t) are known functions of the one number t, analytic and not constant; so in a bounded
    interval only finitely many points share t's ratios (zeros of an analytic function other than 0), and further orders
    tell these apart. That the search finds the right one is measured, not proved. ∎

    *How exactly.* Every error is compared with a bound derived from the release alone: the round-off of storage times
    the conditioning of the ratio, which is 1 where t is known (`lockref.attacks.taylor_coefficients`, `_Curve.bound`).

    A unit's sign: flipping W_gate's row makes the coefficients (−1)ⁿ cₙ, a second curve. Flipping W_up's row with the
    column of W_down changes no output of the model, locked or not; that sign is left.
    """
    check_room(ctx, ORDER)
    text = tokens(ctx, 1)
    model = ctx.subject.model
    locks = {name: Locked(model, text, ctx.rng(2), basis) for name, basis in BASES.items()}
    locked = locks["taylor"]
    original = locked.loss(model.tensors)
    results = {dtype: locked.stolen(dtype) for dtype in DTYPES}
    others = {name: lock.stolen("bfloat16") for name, lock in locks.items() if name != "taylor"}
    missing = list(range(1, ORDER + 1))
    unknown = {dtype: unknown_points(locked, missing, dtype) for dtype in DTYPES}
    units = min(UNITS, model.config.intermediate_size)
    entries = sum(w.size for k, w in model.tensors.items() if k.endswith(DOWN))

    def known(name: str, found: Stolen) -> Check:
        return Check(name=f"{name}: W comes back", unit="1", value=found.error, bound=0.0, tolerance=found.bound,
                     statistic="relative error of W_down (and of W_gate, signs included), worst layer",
                     tolerance_from="the attack's derived bound: round-off of storage, condition 1",
                     cases=entries, seed=ctx.seed)  # fmt: skip

    checks = [known(f"coefficients in {d}", results[d]) for d in DTYPES]
    for dtype, found in results.items():
        room = 2 * locked.slope * found.error + 64 * eps("float64") * original
        checks.append(
            Check(
                name=f"coefficients in {dtype}: the recovered model's loss is the original's",
                unit="nats per token",
                statistic=f"|loss − {original:.4f}|",
                value=abs(locked.loss(found.tensors) - original),
                bound=0.0,
                tolerance=room,
                tolerance_from="twice ‖∂L/∂W‖ ‖W‖ × the relative error of W, to first order; and the loss's own "
                "round-off",
                cases=text.size,
                seed=ctx.seed,
            )
        )
    checks += [known(f"{name}, coefficients in bfloat16", found) for name, found in others.items()]
    for dtype, secret in unknown.items():
        checks.append(
            Check(
                name=f"z0, b and order 0 kept secret, {dtype}: W comes back",
                unit="of the bound",
                statistic="relative error of a unit's column of W over its derived bound, worst unit",
                value=secret.used,
                bound=1.0,
                tolerance_from="the attack's derived bound: round-off of storage × condition of the ratio, up to "
                f"{secret.bound:.1e}",
                cases=units,
                seed=ctx.seed,
            )
        )
        checks.append(
            Check(
                name=f"z0, b and order 0 kept secret, {dtype}: every t and sign is found",
                statistic="share of units",
                unit="1",
                value=secret.right,
                bound=1.0,
                sense="==",
                cases=units,
                seed=ctx.seed,
            )
        )
    listed = ", ".join(f"{found.error:.1e} ({d})" for d, found in results.items())
    return Evidence(
        verdict=Verdict.REFUTED,
        grade=Grade.MEASURED,
        explanation=(
            "The released array of a unit is its column of W times a point on a known curve. A user needs z0, so one "
            f"division gives W; averaged over {ORDER + 1} orders its relative error is {listed}. From bfloat16 "
            f"coefficients {results['bfloat16'].right:.3%} of the entries are right to the bit once rounded to "
            "bfloat16. Signs of units are found too. Were z0, b and order 0 secret, ratios of orders would tell every "
            f"t: W to {unknown['float64'].error:.1e} (float64) and {unknown['bfloat16'].error:.1e} (bfloat16), worst "
            f"of {units} units. Chebyshev and Hermite coefficients fall the same way."
        ),
        checks=checks,
        controls=_controls(locked),
        counterexample=_counterexample(),
        assumptions=["the attacker knows the activation, the basis and in which precision coefficients were saved"],
        deviations=[SWIGLU],
        plots=[
            by_precision({"z0 known": list(results.values()), "z0 secret": list(unknown.values())}),
            *(recovered(model, results["bfloat16"].tensors, other, text) for other in relatives(ctx)[:1]),
        ],
        severity="critical",
        fix="None within this design: any array that lets a user evaluate W cₙ(t) lets everyone divide by cₙ(t).",
    )  # fmt: skip


CLAIMS = (
    Claim(
        id="TAYLOR-COEFF",
        title="The coefficients hide the weights",
        statement="The released coefficients do not reveal W.",
        source=Source(
            paper=PAPER, where="the re-parameterization of feed-forward layers: what is released instead of W"
        ),
        kind="security",
        recorded=Verdict.REFUTED,
        would_change="A release that does not contain W cₙ(t) for known cₙ.",
        check=check_coeff,
        rerun=from_ratio,
    ),
)
