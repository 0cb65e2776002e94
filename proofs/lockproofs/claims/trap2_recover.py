"""TRAP-RECOVER: whether a short fine-tune gives back what protection takes from a merge, by `trap_recover`."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
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
from lockproofs.experiments.trap_recover import ALONE, BASE, LEARNING_RATES, LINES, MERGE, PROBLEMS
from lockproofs.experiments.trap_recover import STEPS as SHORT_STEPS
from lockproofs.trap_models import CHOSEN_ON, PARTNER, SKILL, STEPS, STRENGTHS, STRONGER

KEPT = 0.9  # of the recovered unprotected merge: no less is a restored merge
WORTH = 0.1  # of the problems that a merge must have over what the attacker has without the expert
NOTHING = 0.02  # so little more, and the protected expert gave the attacker nothing
TAUGHT = 0.5  # right answers that the base may reach by the fine-tune alone

RULE = (
    "the rule was written before a row was measured: what counts is the share of right answers, the mean of both "
    f"skills, after {SHORT_STEPS} steps. Without the expert an attacker has base and partner, fine-tuned alike; the "
    f"better one is the floor. A kind can be judged where the unprotected merge ends {WORTH:g} or more above the "
    f"floor in every seed. There the merge is restored if the protected one ends {WORTH:g} above the floor as well and "
    f"at {KEPT:g} of the unprotected one or more, in every seed; it is lost if it ends at most {NOTHING:g} above the "
    "floor in every seed. Refuted: restored for a kind. Holds: lost for both. Anything else is undecided"
)
STRONGER_RULE = (
    "before its rows were measured, and with those of the smaller λ known, the same was asked at "
    + ", ".join(f"λ = {strength:g} ({kind})" for kind, strength in STRONGER.items())
    + ": where both kinds are lost there, the claim holds if λ is that large"
)


@dataclass(frozen=True)
class Recovery:
    """One kind and λ: mean right answers of both skills after the fine-tune, seed by seed, and before it."""

    kind: str
    strength: float
    base: float
    partner: float
    plain: tuple[float, ...]
    protected: tuple[float, ...]
    before: tuple[float, ...] = ()  # the protected merge

    @property
    def floor(self) -> float:
        """What an attacker has without the expert."""
        return max(self.base, self.partner)

    @property
    def judged(self) -> bool:
        """Whether the merge is worth something where there is no lock."""
        return min(self.plain) >= self.floor + WORTH

    @property
    def shares(self) -> list[float]:
        """Protected over unprotected, seed by seed."""
        return [p / u for p, u in zip(self.protected, self.plain, strict=True)]

    @property
    def restored(self) -> bool:
        return self.judged and min(self.protected) >= self.floor + WORTH and min(self.shares) >= KEPT

    @property
    def lost(self) -> bool:
        return self.judged and max(self.protected) <= self.floor + NOTHING


def right(row: dict[str, Any], when: str = "after") -> float:
    """Share of right answers, the mean of both skills."""
    return fmean(row[f"{name}_{when}"] for name in (SKILL, PARTNER))


def recoveries(result: Result, strengths: Mapping[str, float]) -> list[Recovery]:
    """Kind by kind."""

    def merges(kind: str, strength: float, when: str = "after") -> tuple[float, ...]:
        return tuple(right(row, when) for row in result.where(model=MERGE, kind=kind, strength=strength))

    def without(model: str, kind: str) -> float:
        return right(result.where(model=model, kind=kind)[0])

    return [
        Recovery(
            kind, strength, without(BASE, kind), without(ALONE, kind),
            plain=merges(kind, 0.0), protected=merges(kind, strength), before=merges(kind, strength, "before"),
        )
        for kind, strength in strengths.items()
    ]  # fmt: skip


def verdict_of(found: list[Recovery], stronger: list[Recovery]) -> Verdict:
    """By RULE, and by STRONGER_RULE from what is left at the larger λ."""
    if all(recovery.lost for recovery in stronger) and not all(recovery.lost for recovery in found):
        return Verdict.HOLDS_IF
    if any(recovery.restored for recovery in found):
        return Verdict.REFUTED
    return Verdict.HOLDS if all(recovery.lost for recovery in found) else Verdict.UNDECIDED


def rerun_recovery(given: dict[str, Any]) -> str:
    """The shares again, from counts of right answers of both skills."""
    shares = [p / u for p, u in zip(given["protected"], given["unprotected"], strict=True)]
    floor = max(given["base"], given["partner"])
    above = [(p - floor) / given["problems"] for p in given["protected"]]
    return (
        f"shares of the unprotected merge: {', '.join(f'{share:.3f}' for share in shares)}; "
        f"above the floor: {', '.join(f'{gain:.3f}' for gain in above)}"
    )


def counterexample(found: Recovery) -> Counterexample:
    """Counts of right answers after the fine-tune."""
    both = 2 * PROBLEMS

    def counts(values: tuple[float, ...]) -> list[int]:
        return [round(value * both) for value in values]

    given = {
        "kind": found.kind, "strength": found.strength, "problems": both,
        "base": round(found.base * both), "partner": round(found.partner * both),
        "unprotected": counts(found.plain), "protected": counts(found.protected),
    }  # fmt: skip
    return Counterexample(
        given=given,
        got=rerun_recovery(given),
        want=f"less than {KEPT:g} of the unprotected merge, or less than {WORTH:g} above what needs no expert",
        by_hand=f"Right answers of {both} after {SHORT_STEPS} steps. Divide protected by unprotected, seed by seed; "
        "subtract the greater one of base and partner from protected, and divide by the number of problems.",
    )


def above(found: Recovery) -> list[float]:
    """What each protected merge has over the floor."""
    return [p - found.floor for p in found.protected]


def nothing_left(found: Recovery) -> Check:
    """That a kind is lost."""
    return Check(
        name=f"{found.kind}, λ = {found.strength:g}: lost", statistic="greatest right answers above the floor",
        unit="of the problems", value=max(above(found)), bound=NOTHING, sense="<=", cases=len(found.plain),
    )  # fmt: skip


def how_much_is_left(found: Recovery) -> list[Check]:
    """Whether a kind is restored."""
    name, seeds = f"{found.kind}, λ = {found.strength:g}: ", len(found.plain)
    return [
        Check(
            name=name + "share of the unprotected merge", statistic="least protected ÷ unprotected over seeds",
            unit="of right answers", value=min(found.shares), bound=KEPT, sense=">=", cases=seeds,
        ),
        Check(
            name=name + "worth of the protected expert", statistic="least right answers above the floor",
            unit="of the problems", value=min(above(found)), bound=WORTH, sense=">=", cases=seeds,
        ),
    ]  # fmt: skip


def told(found: Recovery) -> str:
    """One kind and λ, in words."""

    def percent(*values: float) -> str:
        return ", ".join(f"{value * 100:.0f}" for value in values)

    return (
        f"{found.kind}, λ = {found.strength:g}: the protected merge goes from {percent(*found.before)} to "
        f"{percent(*found.protected)} (unprotected to {percent(*found.plain)}; without the expert the base gets to "
        f"{percent(found.base)} and the partner to {percent(found.partner)})"
    )


def check_recover(ctx: Context) -> Evidence:
    """The stored rows of `trap_recover`: merges at the attacker's best scale, then fine-tuned on both skills.

    A fine-tune teaches, too. So base and partner, which know nothing of the expert, get the same steps on the same
    problems: only what a merge has beyond them is recovered. Learning rates are chosen by the loss on the attacker's
    own problems.
    """
    found, stronger = (recoveries(stored("trap_recover"), strengths) for strengths in (STRENGTHS, STRONGER))
    verdict = verdict_of(found, stronger)
    judged = [recovery for recovery in found if recovery.judged]
    restored = [recovery for recovery in found if recovery.restored]
    taught = max(recovery.base for recovery in found)
    margin = min(min(recovery.plain) - recovery.floor for recovery in restored or found)
    large = ", ".join(f"λ = {recovery.strength:g} ({recovery.kind})" for recovery in stronger)
    decided = {
        Verdict.HOLDS: [nothing_left(recovery) for recovery in found],
        Verdict.HOLDS_IF: [nothing_left(r) for r in stronger] + [c for r in found for c in how_much_is_left(r)],
    }
    return Evidence(
        verdict=verdict,
        grade=Grade.MEASURED,
        condition=large if verdict is Verdict.HOLDS_IF else None,
        explanation=f"{SHORT_STEPS} steps of {2 * LINES} problems, {SHORT_STEPS / STEPS:.0%} of an expert's training, "
        f"on merges at the attacker's best shared scale, {len(found[0].plain)} seeds; right answers, the mean of both "
        f"skills, in percent. {'; '.join(map(told, (*found, *stronger)))}. {len(judged)} of {len(found)} kinds can be "
        f"judged. At {large} {sum(r.restored for r in stronger)} of {len(stronger)} are restored, and "
        f"{sum(r.lost for r in stronger)} lost.",
        checks=decided.get(verdict) or [check for r in restored or found for check in how_much_is_left(r)],
        controls=Controls(
            null=Control(
                what="the fine-tune alone does not teach both skills: the base after it", passed=taught <= TAUGHT,
                value=taught, bound=TAUGHT, unit="right answers",
            ),
            power=Control(
                what="a planted weak lock, λ = 0, falls to the same attack: least right answers above the floor",
                passed=margin >= WORTH, value=margin, bound=WORTH, unit="right answers",
            ),
        ),
        counterexample=counterexample(restored[0]) if verdict is Verdict.REFUTED else None,
        assumptions=[
            RULE,
            STRONGER_RULE,
            f"{PROBLEMS} held-out problems of each skill; the scale and one of the learning rates "
            f"{', '.join(f'{rate:g}' for rate in LEARNING_RATES)} are chosen by the mean loss on {CHOSEN_ON} others",
            "every tensor trains; longer fine-tunes only help the attacker, and teach more by themselves",
        ],
        deviations=[SHORT],
        severity="high",
        fix="none by scale: a lock that binds the direction of an update, or accept that merges can be repaired"
        if verdict is Verdict.REFUTED else None,
    )  # fmt: skip


CLAIMS = (
    Claim(
        id="TRAP-RECOVER",
        title="A short fine-tune does not repair the merge",
        statement="A short recovery fine-tune does not restore the merge.",
        source=Source(paper=PAPER, where="the threat model: an attacker who trains after merging; worded by us"),
        kind="security",
        recorded=Verdict.REFUTED,
        would_change="A lock that moves an expert too far from the others for so short a fine-tune.",
        check=check_recover,
        rerun=rerun_recovery,
    ),
)
