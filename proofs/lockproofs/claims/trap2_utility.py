"""TRAP-UTILITY: what protection costs the update alone, by the stored trainings of `trap_train`."""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

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
from lockproofs.claims.trap2_collapse import SHORT
from lockproofs.claims.trap2_weight import PAPER
from lockproofs.experiments.store import Result, stored
from lockproofs.trap_models import AS_PUBLISHED, PROBLEMS, SKILL, STRENGTHS

COST = 0.02  # of the problems: what protection may cost
LEARNED = 0.9  # exact match below which an unprotected expert has learned too little to be compared with
Z = NormalDist().inv_cdf(0.95)

RULE = (
    "the rule was written before a protected expert's row was looked at: the drop in exact match on "
    f"{SKILL}, pooled over seeds, lies between one-sided 95 % bounds that treat answers as independent draws. Holds "
    f"where the upper bound is at most {COST:.0%} of the problems for full updates and LoRA; refuted where the lower "
    "bound exceeds it for one; undecided otherwise, or where an unprotected expert gets less than "
    f"{LEARNED:.0%}"
)


@dataclass(frozen=True)
class Drop:
    """Right answers of `problems` in all, without and with protection."""

    plain: int
    protected: int
    problems: int

    @property
    def value(self) -> float:
        return (self.plain - self.protected) / self.problems

    @property
    def bounds(self) -> tuple[float, float]:
        """value ± z √((p(1 − p) + q(1 − q)) / n), one-sided 95 % each, p and q the two shares of right answers."""
        shares = self.plain / self.problems, self.protected / self.problems
        half = Z * (sum(p * (1 - p) for p in shares) / self.problems) ** 0.5
        return self.value - half, self.value + half


def counts(result: Result, kind: str, strength: float) -> list[int]:
    """Right answers, seed by seed."""
    return [round(r[SKILL] * PROBLEMS) for r in result.where(kind=kind, skill=SKILL, strength=strength)]


def verdict_of(drops: list[Drop], least: float) -> Verdict:
    """By RULE; `least` is the worst unprotected expert's exact match."""
    if least < LEARNED:
        return Verdict.UNDECIDED
    if any(drop.bounds[0] > COST for drop in drops):
        return Verdict.REFUTED
    return Verdict.HOLDS if all(drop.bounds[1] <= COST for drop in drops) else Verdict.UNDECIDED


def rerun_drop(given: dict[str, Any]) -> str:
    """The drop again, from counts of right answers."""
    drop = Drop(sum(given["unprotected"]), sum(given["protected"]), given["problems"])
    return f"drop {drop.value:.4f} of the problems, at least {drop.bounds[0]:.4f} (95 %)"


def check_utility(ctx: Context) -> Evidence:
    """The stored rows of `trap_train`: exact match of protected and unprotected experts on the same problems.

    Both saw the same batches, seed by seed. The control judges an expert that is only the base by the same rule: its
    drop must be found.
    """
    result = stored("trap_train")
    plain, protected = (
        {kind: counts(result, kind, strength if lock else 0.0) for kind, strength in STRENGTHS.items()}
        for lock in (False, True)
    )
    drops = {k: Drop(sum(plain[k]), sum(protected[k]), PROBLEMS * len(plain[k])) for k in STRENGTHS}
    least = min(min(side) for side in plain.values()) / PROBLEMS
    verdict = verdict_of(list(drops.values()), least)
    worst = max(drops, key=lambda kind: drops[kind].bounds[0])
    (base,) = {row["match"][row["scales"].index(0.0)] for row in stored("trap_scale").rows}
    planted = Drop(sum(plain[worst]), round(base * drops[worst].problems), drops[worst].problems)
    given = {
        "kind": worst, "unprotected": plain[worst], "protected": protected[worst], "problems": drops[worst].problems,
    }  # fmt: skip
    refuted = verdict is Verdict.REFUTED
    side = 0 if refuted else 1  # the bound that the verdict rests on
    told = "; ".join(
        f"{kind}, λ = {STRENGTHS[kind]:g}: {', '.join(map(str, protected[kind]))} of {PROBLEMS} right with protection, "
        f"{', '.join(map(str, plain[kind]))} without, a drop of {drop.value * 100:.1f} points "
        f"({drop.bounds[0] * 100:.1f} to {drop.bounds[1] * 100:.1f})"
        for kind, drop in drops.items()
    )
    published = " and ".join(
        f"{counts(result, cell['kind'], cell['strength'])[0]} of {PROBLEMS} ({cell['kind']}, {cell['strength']:g})"
        for cell in AS_PUBLISHED
    )
    return Evidence(
        verdict=verdict,
        grade=Grade.MEASURED,
        explanation=f"Held-out additions, seed by seed. {told}. With the published λ, one seed, {published} are right.",
        checks=[
            Check(
                name=f"{kind}: drop in exact match", unit="of the problems", value=drops[kind].bounds[side], bound=COST,
                statistic=f"{('lower', 'upper')[side]} one-sided 95 % bound of the drop", sense=("<=", ">=")[refuted],
                cases=drops[kind].problems,
            )
            for kind in ([worst] if refuted else drops)
        ],
        controls=Controls(
            null=Control(
                what="unprotected experts have learned the skill: least exact match over kinds and seeds",
                passed=least >= LEARNED, value=least, bound=LEARNED, unit="of the problems",
            ),
            power=Control(
                what="an expert that is only the base has a drop that the rule finds",
                passed=planted.bounds[0] > COST, value=planted.bounds[0], bound=COST, unit="of the problems",
            ),
        ),
        counterexample=Counterexample(
            given=given, got=rerun_drop(given), want=f"a drop of at most {COST:g} of the problems",
            by_hand="Add up the right answers of each side, subtract, and divide by the number of problems.",
        ) if refuted else None,
        assumptions=[RULE, "protected and unprotected training saw the same batches, seed by seed"],
        deviations=[SHORT],
        severity="low",
        fix="a smaller λ, and a check of the skill before release" if refuted else None,
    )  # fmt: skip


CLAIMS = (
    Claim(
        id="TRAP-UTILITY",
        title="Protection costs the update itself nothing",
        statement="The protected update alone performs like the unprotected one.",
        source=Source(paper=PAPER, where="the accuracy of protected experts at s = 1"),
        kind="utility",
        recorded=Verdict.HOLDS,
        would_change="A skill, seeds or shorter trainings with which the λ that merges notice costs more.",
        check=check_utility,
        rerun=rerun_drop,
    ),
)
