"""TRAP-COLLAPSE: whether protection raises the loss on both sides of s = 1, by the stored curves along W₀ + sΔ."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockproofs.claim import (
    Check,
    Claim,
    Context,
    Control,
    Controls,
    Curve,
    Deviation,
    Evidence,
    Grade,
    Plot,
    Source,
    Verdict,
)
from lockproofs.claims.trap2_weight import PAPER
from lockproofs.experiments.store import Result, stored
from lockproofs.experiments.trap_strength import SHALLOW
from lockproofs.experiments.trap_strength import SHORT as HALVED
from lockproofs.trap_models import AS_PUBLISHED, LINES, PARTNER, PROBLEMS, REPLAYED, SKILL, STEPS, STRENGTHS, WEAK

RAISED = 1.1  # times the unprotected loss
CHOSEN = ", ".join(f"λ = {strength:g} ({kind})" for kind, strength in STRENGTHS.items())
SHORT = Deviation(
    paper_says="λ = 0.001 (LoRA), 0.005 (full), rates 3e-4 and 1e-5, large models and long training",
    we_do=f"{CHOSEN}, {STEPS} steps of {LINES} problems and {REPLAYED[SKILL]} of the other skill, rates in the stored "
    "settings, a model of 0.85 million parameters",
    why="a tiny model, and seeds, controls and attackers in place of one long run",
    effect="the verdict is about these trainings; what the published λ does in them is told beside it",
)
CONDITIONS = {
    Verdict.HOLDS: f"{CHOSEN}, {STEPS} steps; at a planted {WEAK['strength']:g} ({WEAK['kind']}) no side reaches "
    f"{RAISED:g}",
    Verdict.HOLDS_IF: f"s above 1, {CHOSEN}, {STEPS} steps",
}


@dataclass(frozen=True)
class Ratios:
    """Protected over unprotected loss of one kind and λ: (seeds, scales), the same batches in both trainings."""

    scales: NDArray[np.float64]
    values: NDArray[np.float64]

    def at(self, low: float, high: float) -> NDArray[np.float64]:
        """Those with low ≤ s ≤ high."""
        return self.values[:, (self.scales >= low) & (self.scales <= high)]


def ratios(result: Result, kind: str, strength: float) -> Ratios:
    """Every seed of a kind and λ, beside the unprotected expert of the same seed."""
    rows = result.where(kind=kind, strength=strength)
    plain = {row["seed"]: row["loss"] for row in result.where(kind=kind, strength=0.0)}
    values = np.array([np.divide(row["loss"], plain[row["seed"]]) for row in rows])
    return Ratios(np.array(rows[0]["scales"]), values)


def verdict_of(above: NDArray[np.float64], below: NDArray[np.float64]) -> Verdict:
    """By ratios (seeds, scales) above and below s = 1; a side is raised, or not, only where all seeds agree."""
    peaks = above.max(axis=1), below.max(axis=1)
    raised, flat = ([bool(np.all(p >= RAISED)) for p in peaks], [bool(np.all(p < RAISED)) for p in peaks])
    if all(raised):
        return Verdict.HOLDS
    return Verdict.HOLDS_IF if raised[0] and flat[1] else Verdict.UNDECIDED


def told(kind: str, found: Ratios) -> str:
    """The greatest ratios below 1 and that at s = 2, over seeds, and what is paid at s = 1."""
    below, above, nominal = found.at(0.25, 0.75).max(axis=1), found.at(2, 2), found.at(1, 1)
    return (
        f"{kind}: by {above.min():.3g} to {above.max():.3g} at s = 2, by {below.min():.3g} to {below.max():.3g} at the "
        f"worst s from 0.25 to 0.75, where merges put an update, and by {nominal.min():.3g} to {nominal.max():.3g} at "
        "s = 1"
    )


def published(result: Result) -> str:
    """The same of the published λ."""
    return "; ".join(
        f"λ = {cell['strength']:g} ({cell['kind']}) by {r.at(2, 2).max():.3g} at s = 2 and "
        f"{r.at(0.25, 0.75).max():.3g} below"
        for cell in AS_PUBLISHED
        for r in [ratios(result, cell["kind"], cell["strength"])]
    )


def sensitivity(result: Result, kind: str) -> str:
    """For every λ of a kind, one seed: right answers alone, and those of the merge at the best shared scale."""
    rows = result.where(kind=kind, steps=STEPS, law="published")
    return f"{kind}: " + ", ".join(
        f"λ = {row['strength']:g} {row['match'][row['scales'].index(1.0)]:.0%}, {row['merged'][SKILL]:.0%} and "
        f"{row['merged'][PARTNER]:.0%}"
        for row in rows
    )


def reasons(result: Result) -> str:
    """Why the sides differ: the steps, the side from which the objective earns, and what draws below 1 alone do."""

    def row(kind: str, strength: float, steps: int = STEPS, law: str = "published") -> dict[str, Any]:
        (found,) = result.where(kind=kind, strength=strength, steps=steps, law=law)
        return found

    def lowest(of: dict[str, Any], plain: dict[str, Any]) -> float:
        """The greatest ratio from s = 0.25 to 0.75."""
        ratio = np.divide(of["loss"], plain["loss"])
        return float(max(r for s, r in zip(of["scales"], ratio, strict=True) if 0.25 <= s <= 0.75))

    halves = "; ".join(
        f"after {steps} steps in place of {STEPS} ({kind}) the ratio below is "
        f"{lowest(row(kind, STRENGTHS[kind], steps), row(kind, 0.0, steps)):.3g}, not "
        f"{lowest(row(kind, STRENGTHS[kind]), row(kind, 0.0)):.3g}"
        for kind, steps in HALVED.items()
    )
    locked, low = (row(SHALLOW, STRENGTHS[SHALLOW], law=law) for law in ("published", "below"))
    earned = locked["earned"]
    share = earned["below"] / (earned["below"] + earned["above"])
    at = locked["scales"].index(0.5)
    return (
        f"What decides how deep it is below 1, one seed each: {halves}; with {SHALLOW} {share:.0%} of what the trained "
        "update earns by λ E[w L] comes from s < 1, where the loss is "
        f"{locked['loss'][at]:.2f} nats at s = 0.5 and that of the base at s = 0, {locked['loss'][0]:.2f}, whatever Δ "
        f"is, but {locked['loss'][-1]:.0f} at s = 2; drawn below 1 alone, the same λ and steps give "
        f"{lowest(low, row(SHALLOW, 0.0)):.3g} times the unprotected loss there, not "
        f"{lowest(locked, row(SHALLOW, 0.0)):.3g}."
    )


def check_collapse(ctx: Context) -> Evidence:
    """The stored curves of `trap_scale`: protected over unprotected loss of held-out answers, seed by seed.

    An unprotected expert's loss also rises on both sides of s = 1, so what counts is how much more a protected one's
    does. A side is raised where the ratio reaches 1.1 for every seed, at s = 2 or somewhere in 0.25 … 0.75; it is not
    where the ratio stays below for every seed. Raised on both sides: holds, for λ that are as strong. Raised above and
    not below: holds-if. Anything else, such as seeds that disagree, leaves the claim undecided. The rule was fixed on
    shorter trainings, before these were run; what protection costs at s = 1 is TRAP-UTILITY's question. What makes the
    two sides unlike is looked for in `trap_strength`: half the steps, scales below 1 alone, other λ.
    """
    result = stored("trap_scale")
    full, lora = (ratios(result, kind, strength) for kind, strength in STRENGTHS.items())
    weak = ratios(result, WEAK["kind"], WEAK["strength"])
    above, below = full.at(2, 2), full.at(0.25, 0.75)
    slight = float(max(weak.at(2, 2).max(), weak.at(0.25, 0.75).max()))
    seeds = len(full.values)
    by_rule = verdict_of(above, below)
    condition = CONDITIONS.get(by_rule)
    verdict = Verdict.HOLDS_IF if condition else by_rule
    off = float(max(np.abs(r.at(0, 0) - 1).max() for r in (full, lora)))

    def ratio(name: str, statistic: str, value: float, bound: float, sense: str, cases: int) -> Check:
        return Check.model_validate(
            {"name": name, "statistic": statistic, "unit": "times", "value": float(value), "bound": bound,
             "sense": sense, "cases": cases, "tolerance_from": "a stated threshold: none"}
        )  # fmt: skip

    return Evidence(
        verdict=verdict,
        grade=Grade.MEASURED,
        condition=condition,
        explanation="An unprotected expert's loss rises on both sides too; protection multiplies it. "
        + ". ".join(told(kind, r) for kind, r in (("Full updates", full), ("LoRA", lora)))
        + f" ({seeds} seeds). As published, one seed: {published(result)}. {reasons(stored('trap_strength'))}",
        checks=[
            ratio("full updates, s = 2", "least ratio over seeds", above.min(), RAISED, ">=", seeds),
            ratio("full updates, s = 0.25 … 0.75", "least over seeds of the largest ratio over scales",
                  below.max(axis=1).min(), RAISED, ">=", below.size),
            ratio("LoRA, s = 2", "least ratio over seeds", lora.at(2, 2).min(), RAISED, ">=", len(lora.values)),
            ratio("LoRA, s = 0.25 … 0.75", "least over seeds of the largest ratio over scales",
                  lora.at(0.25, 0.75).max(axis=1).min(), RAISED, ">=", lora.at(0.25, 0.75).size),
        ],
        controls=Controls(
            null=Control(
                what="at s = 0, the base, protection cannot matter: farthest ratio from 1", passed=off == 0, value=off,
                bound=0.0, unit="times",
            ),
            power=Control(
                what=f"a planted weak lock (LoRA, λ = {WEAK['strength']:g}, one seed) is raised on neither side: "
                "largest ratio",
                passed=slight < RAISED, value=slight, bound=RAISED, unit="times",
            ),
        ),
        assumptions=[
            f"loss of {PROBLEMS} held-out problems of addition, nats per answer token",
            "protected and unprotected training saw the same batches, seed by seed",
            f"the threshold {RAISED:g} is ours",
            "by the rule alone a rise on both sides holds; the condition was added after the first rows were seen, on "
            "two seeds, shorter trainings and fewer scales",
            "with the longer trainings, after one protected pair of them had been seen in a trial, came a check more, "
            "that LoRA is raised below 1 as well, and a weaker planted lock; before, it was the published λ",
            "a further check, that the loss at s = 1 rises by 2 % at most, was dropped before these curves were "
            "measured: near 100 % exact match a loss near zero says little; TRAP-UTILITY counts answers instead",
        ],
        deviations=[SHORT],
        plots=[
            Plot(
                title=f"Loss along W₀ + sΔ, {kind}, seed 0", x_label="scale s", y_label="answer loss (nats per token)",
                y_log=True,
                curves=[
                    Curve(name=f"λ = {row['strength']:g}", x=row["scales"], y=row["loss"])
                    for row in result.where(kind=kind, seed=0)
                ],
            )
            for kind in ("full", "lora")
        ],
        severity="high",
        fix=None if by_rule is Verdict.HOLDS else "train longer, and draw more scales below 1, where merges are",
    )  # fmt: skip


COLLAPSE = Claim(
    id="TRAP-COLLAPSE",
    title="Off the nominal scale the protected update collapses",
    statement="The loss rises steeply on both sides of s = 1.",
    source=Source(paper=PAPER, where="the loss of a protected update against its scale"),
    kind="security",
    recorded=Verdict.HOLDS_IF,
    would_change="Seeds, rates or λ with which one side of s = 1 stays as it is without protection.",
    check=check_collapse,
)
CLAIMS = (COLLAPSE,)
