"""TRAP-COLLAPSE: whether protection raises the loss on both sides of s = 1, by the stored curves along W₀ + sΔ."""

from dataclasses import dataclass

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
from lockproofs.trap_models import LINES, PROBLEMS, REPLAYED, SKILL, STEPS, STRENGTHS, WEAK

RAISED = 1.1  # times the unprotected loss
CHOSEN = ", ".join(f"λ = {strength:g} ({kind})" for kind, strength in STRENGTHS.items())
SHORT = Deviation(
    paper_says="λ = 0.001 (LoRA), 0.005 (full), rates 3e-4 and 1e-5, large models and long training",
    we_do=f"{CHOSEN}, {STEPS} steps of {LINES} problems and {REPLAYED[SKILL]} of the other skill, rates in the stored "
    "settings, a model of 0.85 million parameters",
    why="in trials with one seed and so short a training, the published λ moved little",
    effect="the verdict is about these trainings; more steps, or other λ and rates, may change it",
)
# The weak lock of the control, at the published λ, shows no collapse: what the rule finds to hold needs its λ said.
CONDITIONS = {
    Verdict.HOLDS: f"{CHOSEN}; at the published {WEAK['strength']:g} ({WEAK['kind']}) no side reaches {RAISED:g}",
    Verdict.HOLDS_IF: f"s above 1, {CHOSEN}",
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


def check_collapse(ctx: Context) -> Evidence:
    """The stored curves of `trap_scale`: protected over unprotected loss of held-out answers, seed by seed.

    An unprotected expert's loss also rises on both sides of s = 1, so what counts is how much more a protected one's
    does. A side is raised where the ratio reaches 1.1 for every seed, at s = 2 or somewhere in 0.25 … 0.75; it is not
    where the ratio stays below for every seed. Raised on both sides: holds, for λ that are as strong. Raised above and
    not below: holds-if. Anything else, such as seeds that disagree, leaves the claim undecided. The rule was fixed on
    shorter trainings, before these were run; what protection costs at s = 1 is TRAP-UTILITY's question.
    """
    result = stored("trap_scale")
    full, lora = (ratios(result, kind, strength) for kind, strength in STRENGTHS.items())
    weak = ratios(result, WEAK["kind"], WEAK["strength"])
    above, below, nominal = full.at(2, 2), full.at(0.25, 0.75), full.at(1, 1)
    slight = float(max(weak.at(2, 2).max(), weak.at(0.25, 0.75).max()))
    seeds, bent = len(full.values), int(np.sum(below.max(axis=1) >= RAISED))
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
        explanation=f"An unprotected expert's loss rises on both sides too. With full updates ({seeds} seeds) "
        f"protection multiplies it by {above.min():.2f} to {above.max():.2f} at s = 2, and by {nominal.min():.2f} to "
        f"{nominal.max():.2f} at s = 1. Below, where averaging puts an update, the seeds' largest "
        f"ratios from s = 0.25 to 0.75 are "
        f"{', '.join(f'{x:.2f}' for x in below.max(axis=1))}, raised in {bent} of "
        f"{seeds}. With LoRA the ratio is {lora.values.min():.2f} to {lora.values.max():.2f} over all "
        "scales.",
        checks=[
            ratio("full updates, s = 2", "least ratio over seeds", above.min(), RAISED, ">=", seeds),
            ratio("full updates, s = 0.25 … 0.75", "least over seeds of the largest ratio over scales",
                  below.max(axis=1).min(), RAISED, ">=", below.size),
            ratio("LoRA, s = 2", "least ratio over seeds", lora.at(2, 2).min(), RAISED, ">=", len(lora.values)),
        ],
        controls=Controls(
            null=Control(
                what="at s = 0, the base, protection cannot matter: farthest ratio from 1", passed=off == 0, value=off,
                bound=0.0, unit="times",
            ),
            power=Control(
                what="a weak lock (LoRA, published λ, one seed) is raised on neither side: largest ratio",
                passed=slight < RAISED, value=slight, bound=RAISED, unit="times",
            ),
        ),
        assumptions=[
            f"loss of {PROBLEMS} held-out problems of addition, nats per answer token",
            "protected and unprotected training saw the same batches, seed by seed",
            f"the threshold {RAISED:g} is ours",
            "by the rule alone a rise on both sides holds; the condition was added after the rows were seen",
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
