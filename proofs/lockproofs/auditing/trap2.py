"""TRAP-COLLAPSE on a directory whose lock.json names trap2: loss along W₀ + s(W − W₀)."""

from typing import Any

import numpy as np

from lockproofs.auditing.attackers import BASE, mean_loss, require_same_tensors
from lockproofs.auditing.measure import again, rows, where
from lockproofs.auditing.merges import GAIN
from lockproofs.claim import (
    Check,
    Context,
    Control,
    Controls,
    Counterexample,
    Curve,
    Evidence,
    Grade,
    MissingInput,
    OnSubject,
    Plot,
    Verdict,
)
from lockproofs.claims.trap2_collapse import RAISED, verdict_of
from lockref.attacks.result import Tensors
from lockref.merging import point

STREAM = 16  # of random numbers
ROWS = 8
SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
NUDGE = 1e-3  # of an update's norm: a lock so weak that it protects nothing
LACKING = "the same expert trained without Trap², to compare its curve with"


def curve(ctx: Context, tensors: Tensors) -> list[float]:
    """Mean loss at W₀ + s(W − W₀) for every s."""
    base = ctx.subject.need("base", BASE)
    loss = mean_loss(ctx, rows(ctx, STREAM, ROWS, passes=3 * len(SCALES)))
    return [loss(point(base.tensors, tensors, s)) for s in SCALES]


def sides(got: list[float], want: list[float]) -> tuple[float, float]:
    """Largest ratio of two curves below and above s = 1."""
    ratios = np.divide(got, want)
    at = np.asarray(SCALES)
    return float(ratios[(at >= 0.25) & (at < 1)].max()), float(ratios[at > 1].max())


def check_collapse(ctx: Context) -> Evidence:
    """Loss along W₀ + s(W − W₀), over that of the reference, an unprotected expert of the same base.

    Any expert's loss rises away from s = 1. What counts is how much more SUBJECT's does: a side is raised where the
    ratio reaches 1.1 somewhere at s = 0.25 … 0.75, or at 1.25 … 2. Without a reference the curve is shown and the claim
    is undecided. Null control: at s = 0, the base, both are the same. Power control: the reference's update, nudged by
    a thousandth of its norm, is raised on neither side.
    """
    if "trap2" not in ctx.subject.parts:
        raise MissingInput("SUBJECT's lock.json names no trap2: needs --lock that does, and --base")
    subject, base = ctx.subject.composed, ctx.subject.need("base", BASE)
    require_same_tensors(subject, base)
    got = curve(ctx, subject.tensors)
    if (own := got[SCALES.index(1.0)]) >= (1 - GAIN) * got[0]:
        raise MissingInput(
            f"on {ctx.subject.text} SUBJECT's loss is {own:.3f}, the base's {got[0]:.3f}: needs --data of what it was "
            "fine-tuned for"
        )
    shown = "s = " + ", ".join(f"{s:g}: {x:.4f}" for s, x in zip(SCALES, got, strict=True))
    curves = [Curve(name="SUBJECT", x=[*SCALES], y=got)]
    if not ctx.subject.has("reference"):
        return _evidence(ctx, Verdict.UNDECIDED, f"Losses of SUBJECT at {shown}. A verdict needs --reference: "
                         f"{LACKING}.", 0.0, curves)  # fmt: skip
    reference = ctx.subject.need("reference", LACKING)
    want = curve(ctx, reference.tensors)
    below, above = sides(got, want)
    verdict = verdict_of(np.array([[above]]), np.array([[below]]))
    refuted = below < RAISED and above < RAISED
    given = where(ctx.subject) | {"seed": ctx.seed}
    return _evidence(
        ctx, Verdict.REFUTED if refuted else verdict,
        f"Losses of SUBJECT at {shown}. Over the reference's they come to {below:.2f} times at most below s = 1, "
        f"{above:.2f} times above.",
        max(below, above) if refuted else min(below, above) if verdict is Verdict.HOLDS else above,
        [*curves, Curve(name="the reference", x=[*SCALES], y=want)],
        controls=_controls(ctx, reference.tensors, got[0], want),
        condition="s above 1" if verdict is Verdict.HOLDS_IF else None,
        example=Counterexample(
            given=given, got=_ratios(ctx), want=f"a ratio of at least {RAISED} on both sides of s = 1",
            by_hand="Mean loss of W₀ + s(W − W₀) for SUBJECT and for the reference, over the rows that `seed` draws.",
        ) if refuted else None,
    )  # fmt: skip


def _evidence(
    ctx: Context,
    verdict: Verdict,
    told: str,
    value: float,
    curves: list[Curve],
    *,
    controls: Controls | None = None,
    condition: str | None = None,
    example: Counterexample | None = None,
) -> Evidence:
    return Evidence(
        verdict=verdict,
        grade=Grade.MEASURED,
        condition=condition,
        explanation=told,
        checks=[
            Check(name="SUBJECT over the reference", statistic="ratio of losses off s = 1", unit="times", value=value,
                  bound=RAISED, sense="<=" if verdict in (Verdict.REFUTED, Verdict.UNDECIDED) else ">=",
                  cases=len(SCALES), seed=ctx.seed, tolerance_from="a stated threshold: none"),
        ],
        controls=controls or Controls(),
        counterexample=example,
        assumptions=[f"losses on {ctx.subject.text}: give --data of the expert's own skill for a sharper answer",
                     f"the threshold {RAISED:g} is ours", "the reference was trained as SUBJECT was, but for Trap²"],
        plots=[Plot(title="Loss along W₀ + s(W − W₀)", x_label="scale s", y_label="loss, nats per token",
                    curves=curves)],
    )  # fmt: skip


def _controls(ctx: Context, reference: Tensors, start: float, want: list[float]) -> Controls:
    base, rng = ctx.subject.need("base", BASE).tensors, ctx.rng(STREAM + 1)
    nudged = {
        n: w + NUDGE * np.linalg.norm(w - base[n]) / np.sqrt(w.size) * rng.standard_normal(w.shape)
        for n, w in reference.items()
    }
    weak = max(sides(curve(ctx, nudged), want))
    return Controls(
        null=Control(what="at s = 0, the base, both curves meet: difference", passed=start == want[0],
                     value=abs(start - want[0]), bound=0.0, unit="nats"),
        power=Control(what="the reference's update, nudged, is raised on neither side: largest ratio",
                      passed=weak < RAISED, value=weak, bound=RAISED, unit="times"),
    )  # fmt: skip


def _ratios(ctx: Context) -> str:
    pair = (ctx.subject.composed, ctx.subject.need("reference", LACKING))
    below, above = sides(*(curve(ctx, model.tensors) for model in pair))
    return f"ratios of at most {below:.4f} below s = 1 and {above:.4f} above"


def _rerun(given: dict[str, Any]) -> str:
    return _ratios(again(given, given["seed"], "reference", "base"))


FORMS = {"TRAP-COLLAPSE": OnSubject(applies=lambda _: True, check=check_collapse, rerun=_rerun)}
