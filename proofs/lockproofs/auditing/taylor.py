"""TAYLOR-COEFF on a directory: the coefficients of this very release, taken apart."""

from typing import Any

import numpy as np

from lockproofs.auditing.measure import again, storage_unit, where
from lockproofs.claim import Check, Context, Control, Controls, Counterexample, Evidence, Grade, OnSubject, Verdict
from lockproofs.taylor_layers import SWIGLU
from lockref.attacks.result import Tensors, relative_error
from lockref.attacks.taylor_coefficients import recover, recover_model
from lockref.locks.bases import BASES, TAYLOR
from lockref.locks.full import Composed, Series
from lockref.locks.taylor_model import ACTIVATION, DOWN, SERIES

STREAM = 17  # of random numbers
WHAT = "the weights that the coefficients were made from"
FOREIGN = 0.5  # relative error of a W that was not found
EXACTLY = 16 * 2.0**-52  # of one that was, in float64


def series_of(subject: Composed) -> Series:
    """The shape of the polynomials that `applies` has seen."""
    assert subject.composition.series is not None
    return subject.composition.series


def about_zero(weight: Any, order: int) -> float:
    """Relative error of a W that was locked about 0 and recovered, in float64."""
    points = np.zeros(weight.shape[1])
    arrays = weight * TAYLOR.coefficients(ACTIVATION, points, 1.0, max(2, order))[:, None, :]
    return relative_error(recover(arrays, ACTIVATION, points=points).weight, weight)


def worst(subject: Composed, tensors: Tensors, want: Tensors) -> float:
    """Relative error of W_down after the attack, worst layer."""
    dtype = subject.dtypes[f"model.layers.0.{SERIES}arrays"]
    guess = recover_model(tensors, subject.config, BASES[series_of(subject).basis], dtype).guesses[0]
    return max(relative_error(guess[n], w) for n, w in want.items() if n.endswith(DOWN))


def check_coeff(ctx: Context) -> Evidence:
    """Divide the released arrays by the known curve of their activation, and compare W_down with the reference's.

    Refuted where W comes back to 4 (N + 1) roundings of the stored type: an array's own, and n of the
    scale that its order n holds to the power n. Null control: arrays whose columns were drawn at
    random give back nothing. Power control: coefficients of the
    reference's W_down about 0 give it back.
    """
    subject, reference = ctx.subject.composed, ctx.subject.need("reference", WHAT)
    got = worst(subject, subject.tensors, reference.tensors)
    terms = series_of(subject).order + 1
    allowed = 4 * terms * storage_unit(subject, f"model.layers.0.{SERIES}arrays")
    broken = got <= allowed
    rng, noise = ctx.rng(STREAM), dict(subject.tensors)
    for name, w in subject.tensors.items():
        if name.endswith(f"{SERIES}arrays"):
            noise[name] = rng.standard_normal(w.shape)
    lost = worst(subject, noise, reference.tensors)
    planted = about_zero(reference.tensors[f"model.layers.0.{DOWN}"], series_of(subject).order)
    given = where(ctx.subject)
    return Evidence(
        verdict=Verdict.REFUTED if broken else Verdict.UNDECIDED,
        grade=Grade.MEASURED,
        explanation=f"From the released coefficients alone W_down comes back to {got:.1e} of its norm on the worst "
        f"layer; {4 * terms} roundings of the stored type are {allowed:.1e}.",
        checks=[
            Check(name="W_down from coefficients", statistic="relative error, worst layer", unit="relative", value=got,
                  bound=allowed, sense="<=" if broken else ">=", cases=subject.config.num_hidden_layers,
                  tolerance_from="the bound: 4 (N + 1) roundings of the stored type"),
        ],
        controls=Controls(
            null=Control(what="random coefficients give back nothing: relative error of W_down", passed=lost >= FOREIGN,
                         value=lost, bound=FOREIGN, unit="relative"),
            power=Control(what="coefficients of the reference's W_down about 0, the simplest lock: error of W",
                          passed=planted <= EXACTLY, value=planted, bound=EXACTLY, unit="relative"),
        ),
        counterexample=Counterexample(
            given=given, got=rerun(given), want="no W_down",
            by_hand="Order n of unit j is W_j cₙ(z0_j), with z0 = mlp.series.center and cₙ the Taylor coefficient of "
            "silu: divide.",
        ) if broken else None,
        deviations=[SWIGLU],
        severity="critical" if broken else None,
    )  # fmt: skip


def rerun(given: dict[str, Any]) -> str:
    """The error of the recovered W_down."""
    subject = again(given, 0, "reference").subject
    got = worst(subject.composed, subject.composed.tensors, subject.need("reference", WHAT).tensors)
    return f"W_down recovered to {got:.2g} of its norm, worst layer"


FORMS = {
    "TAYLOR-COEFF": OnSubject(
        applies=lambda subject: subject.composed.composition.series is not None, check=check_coeff, rerun=rerun
    )
}
