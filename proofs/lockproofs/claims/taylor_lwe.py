"""MergeBarrier's Taylor layers (arXiv 2511.10712): is recovering W a Learning-With-Errors problem?"""

from typing import Any

import numpy as np
from flint import fmpq

from lockproofs.claim import (
    Check,
    Claim,
    Context,
    Control,
    Controls,
    Counterexample,
    Evidence,
    Grade,
    Source,
    Verdict,
)
from lockproofs.taylor_layers import PAPER, SWIGLU, check_room, tokens
from lockproofs.taylor_planted import ORDER, Locked, eps
from lockref.attacks.query import least_squares
from lockref.attacks.result import relative_error
from lockref.locks.bases import TAYLOR
from lockref.locks.taylor_model import ACTIVATION, DOWN, series_layer

QUERIES = 2  # pairs per unknown


def check_lwe(ctx: Context) -> Evidence:
    """First the attacks that no LWE problem would let through, then the assumptions of LWE, one after the other.

    Learning with errors (Regev 2005): secret s ∈ Z_q^n, samples (a, ⟨a, s⟩ + e mod q) with a uniform in Z_q^n and e
    drawn independently of a, afresh for each sample. Recovering W from a Taylor-locked layer lacks each of these.

    *No error at all in what is released.* Ŵⁿ = W cₙ(t) holds without a remainder; the remainder is a property of
    outputs. *No independent error in outputs.* e = −W (R_N(z) ∘ u) is a function of the input and W: asking twice gives
    it twice. Moreover y = W (S_N(z) ∘ u) exactly, S_N known: seen so, pairs (S_N(z) ∘ u, y) have no error.
    *No modulus.* Outputs are linear in u over the reals: y(z, 2u) = 2 y(z, u), which no reduction mod q would leave.
    *No uniform a.* The attacker chooses inputs. ∎
    """
    check_room(ctx, ORDER)
    locked = Locked(ctx.subject.model, tokens(ctx, 1))
    want, layer = locked.layers(locked.model.tensors)[0][DOWN], series_layer(locked.layers(locked.released)[0])
    shape = (QUERIES * want.shape[1], want.shape[1])
    z, u = layer.center + ctx.rng(3).uniform(-1, 1, shape), ctx.rng(4).standard_normal(shape)
    y, c = layer(z, u), TAYLOR.coefficients(ACTIVATION, layer.center, 1.0, ORDER)
    largest = np.argmax(np.abs(c[1:]), axis=0) + 1
    divided = np.stack([layer.arrays[n, :, j] / c[n, j] for j, n in enumerate(largest)], axis=1)
    features = sum(cn * (z - layer.center) ** n for n, cn in enumerate(c)) * u
    fitted = least_squares(features, y)
    condition = float(np.linalg.cond(features / np.linalg.norm(features, axis=0)))
    again, doubled = int(np.sum(layer(z, u) != y)), int(np.sum(layer(z, 2 * u) != 2 * y))
    room = ORDER * want.shape[1] * eps("float64") * condition
    planted = least_squares(u, u @ want.T)
    noise = ctx.rng(5).standard_normal(y.shape)
    foreign = relative_error(least_squares(features, noise).weight, want)
    power = relative_error(planted.weight, want)
    return Evidence(
        verdict=Verdict.REFUTED,
        grade=Grade.PROVED,
        explanation=(
            "Nothing of a Learning-With-Errors problem is there. The remainder never touches what is released: one "
            f"division gives W to {relative_error(divided, want):.1e}. It does not protect outputs either: they are W "
            f"times features that anyone can compute, and least squares on {len(z)} pairs gives W to "
            f"{relative_error(fitted.weight, want):.1e}. The missing assumptions: an error drawn independently of the "
            "sample (here the same question gets the same error), a modulus (here outputs double with u), samples "
            "that the attacker cannot choose. So no hardness of LWE carries over, and a number of bits of security "
            "would have no meaning."
        ),
        checks=[
            Check(name="trivial attack 1, one division per weight: W comes back",
                  statistic="relative error of W, first layer",
                  unit="1", value=relative_error(divided, want), bound=0.0, tolerance=4 * eps("float64"),
                  tolerance_from="one product and one division", cases=want.size, seed=ctx.seed),
            Check(name="trivial attack 2, least squares on the polynomials' values: W comes back",
                  statistic="relative error of W, first layer", unit="1", value=relative_error(fitted.weight, want),
                  bound=0.0,
                  tolerance=room, tolerance_from=f"terms × unknowns × eps × condition number {condition:.0f}",
                  cases=len(z), seed=ctx.seed),
            Check(name="missing: independent errors; the same question gets the same error",
                  statistic="outputs that differ when "
                  "asked again", unit="outputs", value=again, bound=0, sense="==", cases=y.size, seed=ctx.seed),
            Check(name="missing: a modulus; outputs double with u", statistic="outputs with y(z, 2u) ≠ 2 y(z, u)",
                  unit="outputs",
                  value=doubled, bound=0, sense="==", cases=y.size, seed=ctx.seed,
                  tolerance_from="none: doubling rounds nothing"),
        ],
        controls=Controls(
            power=Control(what="a layer without a lock, same number of pairs: relative error of W",
                          passed=power <= room, value=power,
                          bound=room, unit="1"),
            null=Control(what="outputs that have nothing to do with W: relative error of what least squares returns",
                         passed=foreign >= 0.5, value=foreign, bound=0.5, unit="1"),
        ),
        counterexample=_half(),
        deviations=[SWIGLU],
        severity="critical",
        fix="Drop the claim; if noise is wanted, add fresh noise of a stated distribution to what is released, and pay "
            "in accuracy.",
    )  # fmt: skip


def double(given: dict[str, Any]) -> str:
    """W from the first coefficient of silu about 0, whose derivative there is 1/2."""
    if (given["activation"], given["expansion_point"]) != (ACTIVATION, 0):
        raise ValueError(f"only silu about 0 has this coefficient, not {given}")
    return f"W = {2 * fmpq(*map(int, given['order_1'].split('/')))}"


def _half() -> Counterexample:
    given = {"activation": ACTIVATION, "expansion_point": 0, "order_1": "3/2"}
    return Counterexample(
        given=given,
        got=double(given),
        want="recovering W means solving a Learning-With-Errors problem",
        by_hand="silu(z) = z/(1 + e⁻ᶻ), so silu'(0) = 1/2, and the released array of order 1 is W/2, without any "
        "error.\n"
        "From 3/2, W = 2 · 3/2 = 3. No sample, no noise, no modulus took part.",
    )


CLAIMS = (
    Claim(
        id="TAYLOR-LWE",
        title="The remainder makes it a Learning-With-Errors problem",
        statement="Because of the remainder, recovering W is a Learning-With-Errors problem.",
        source=Source(paper=PAPER, where="the security argument for re-parameterized feed-forward layers"),
        kind="security",
        recorded=Verdict.REFUTED,
        would_change="Released values that are noisy, by fresh independent noise, and reduced modulo some q.",
        check=check_lwe,
        rerun=double,
    ),
)
