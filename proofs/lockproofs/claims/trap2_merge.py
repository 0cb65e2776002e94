"""TRAP-MERGE and TRAP-NOMINAL: what protection costs whoever merges, by the stored merges of `trap_merge`."""

from collections.abc import Callable, Mapping, Sequence
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
from lockproofs.claims.trap2_collapse import SHORT, sensitivity
from lockproofs.claims.trap2_utility import COST, Drop, counts
from lockproofs.claims.trap2_weight import PAPER
from lockproofs.experiments.store import Result, stored
from lockproofs.experiments.trap_merge import (
    HALF,
    LAYERS,
    NOMINAL,
    NOMINAL_LAYERS,
    PROBLEMS,
    PROJECTED,
    SUBSET,
    operators,
)
from lockproofs.trap_models import CHOSEN_ON, PARTNER, RATES, SKILL, STRENGTHS, STRONGER
from lockproofs.trap_models import PROBLEMS as ALONE_PROBLEMS

SKILL_GAIN, PARTNER_GAIN = 0.2, 0.1  # less is no merge (in every seed; in the mean over seeds)
KEPT, LOST = 0.9, 0.5  # shares of the unprotected merge's gain
NOTHING = 0.05  # gain on the expert's skill that a merge without the expert may show

RULE = (
    "the rule was written before a merge was measured: a gain is exact match over what the other member "
    f"has alone, on {SKILL} over the partner, on {PARTNER} over the expert. A merge works where it gains "
    f"{SKILL_GAIN:.0%} of the problems or more on {SKILL} in every seed, and {PARTNER_GAIN:.0%} on {PARTNER} in the "
    f"mean; an operator is kept where the protected merge's gain on {SKILL} is at least {KEPT:g} of the unprotected "
    f"one's in every seed, and lost where it is at most {LOST:g} in every seed. Refuted: for full updates or LoRA the "
    "operator that an attacker would choose works with and without protection, and is kept. Holds: every operator "
    "that works unprotected is lost, and each kind has one. Anything else is undecided"
)
STRONGER_RULE = (
    "as long as this leaves the claim undecided, the same rule is asked at "
    + ", ".join(f"λ = {strength:g} ({kind})" for kind, strength in STRONGER.items())
    + f" too: where it says holds, and protection costs the expert at most {COST:.0%} of the problems (95 %), the "
    "claim holds if λ is that large, and at the smaller λ an operator keeps more. So decided when one seed at that λ "
    "had been merged by a sum, before the rows of three seeds and all operators"
)
# Said of rows that are measured now: two seeds, shorter trainings and coarser scales decided nothing before.
NOMINAL_RULE = (
    f"as TRAP-MERGE's, but shares of both gains count, on {PARTNER} too: an expert at s = 1 keeps {SKILL} where the "
    "partner's scale is small enough, and then gains nothing. Kept: both shares reach the threshold in every seed; "
    "lost: one of the two is at most the other threshold, in every seed. So decided after one protected adapter had "
    "been merged in a trial, before these rows were; the projected merge was added when some of them were known"
)
SINCE = (
    "operators, thresholds and rule are those of the first rows; finer scales, three seeds, longer trainings, a "
    "partner that sees fewer additions and, for TRAP-NOMINAL, one scale for each of its layers were set by looking at "
    "unprotected merges and one protected pair, before these rows were measured"
)


@dataclass(frozen=True)
class Merge:
    """One operator on one kind, seed by seed: gains without and with protection, attacker's scores."""

    kind: str
    operator: str
    plain: tuple[float, ...]
    protected: tuple[float, ...]
    partners: tuple[tuple[float, ...], tuple[float, ...]]  # on the partner's skill, without and with protection
    scores: tuple[float, float]  # mean of the attacker's own losses, without and with protection
    both: bool = False  # whether shares are those of the skill that loses more

    @property
    def works(self) -> tuple[bool, bool]:
        """Whether the merge is one at all, without and with protection."""
        plain, protected = (
            min(gains) >= SKILL_GAIN and fmean(partner) >= PARTNER_GAIN
            for gains, partner in zip((self.plain, self.protected), self.partners, strict=True)
        )
        return plain, protected

    @property
    def shares(self) -> list[float]:
        """Protected over unprotected gain, seed by seed; of a merge that works without protection.

        On the partner's skill over the mean of the seeds' gains, which alone is known to be one.
        """
        own = [p / u for p, u in zip(self.protected, self.plain, strict=True)]
        if not self.both:
            return own
        return [min(k, p / fmean(self.partners[0])) for k, p in zip(own, self.partners[1], strict=True)]


def merges(
    result: Result,
    names: Callable[[str], Sequence[str]],
    both: bool = False,
    strengths: Mapping[str, float] = STRENGTHS,
) -> list[Merge]:
    """The rows of these operators, by kind and operator."""
    found = []
    for kind, strength in strengths.items():
        partner = result.where(kind=kind, operator="partner")[0]
        for name in names(kind):
            sides = [
                [result.where(kind=kind, strength=s, operator=o) for o in (name, "expert")] for s in (0.0, strength)
            ]
            plain, protected = (tuple(row[SKILL] - partner[SKILL] for row in rows) for rows, _ in sides)
            kept = [tuple(r[PARTNER] - a[PARTNER] for r, a in zip(*side, strict=True)) for side in sides]
            scores = [fmean(row["score"] for row in rows) for rows, _ in sides]
            found.append(Merge(kind, name, plain, protected, (kept[0], kept[1]), (scores[0], scores[1]), both))
    return found


def chosen(found: Sequence[Merge], protected: bool) -> list[Merge]:
    """For each kind the operator of least mean score on the attacker's own problems."""
    return [min((m for m in found if m.kind == kind), key=lambda m: m.scores[protected]) for kind in RATES]


def survives(merge: Merge) -> bool:
    """Whether this merge works with and without protection, and is kept in every seed."""
    return all(merge.works) and min(merge.shares) >= KEPT


def verdict_of(found: Sequence[Merge]) -> Verdict:
    """By RULE."""
    if any(survives(merge) for merge in chosen(found, True)):
        return Verdict.REFUTED
    working = [merge for merge in found if merge.works[0]]
    every = {merge.kind for merge in working} == set(RATES)
    return Verdict.HOLDS if every and all(max(m.shares) <= LOST for m in working) else Verdict.UNDECIDED


def spared(result: Result, kind: str, strength: float) -> Drop:
    """What protection costs the experts alone, by the rows of `trap_train`."""
    plain, protected = (counts(result, kind, s) for s in (0.0, strength))
    return Drop(sum(plain), sum(protected), ALONE_PROBLEMS * len(plain))


def at_stronger(weaker: Verdict, found: Sequence[Merge], drops: Sequence[Drop]) -> Verdict:
    """By STRONGER_RULE, from the merges at the larger λ and what it costs."""
    if weaker is not Verdict.UNDECIDED:
        return weaker
    holds = verdict_of(found) is Verdict.HOLDS and all(drop.bounds[1] <= COST for drop in drops)
    return Verdict.HOLDS_IF if holds else Verdict.UNDECIDED


def rerun_merge(given: dict[str, Any]) -> str:
    """The shares again, from counts of right answers."""
    alone = given["partner_alone"]
    shares = [(p - alone) / (u - alone) for p, u in zip(given["protected"], given["unprotected"], strict=True)]
    return "kept shares of the gain: " + ", ".join(f"{share:.3f}" for share in shares)


def counterexample(result: Result, merge: Merge) -> Counterexample:
    """Counts of right answers on the expert's skill, seed by seed."""

    def counts(strength: float, operator: str) -> list[int]:
        rows = result.where(kind=merge.kind, strength=strength, operator=operator)
        return [round(row[SKILL] * PROBLEMS) for row in rows]

    given = {
        "kind": merge.kind, "operator": merge.operator, "problems": PROBLEMS,
        "partner_alone": counts(0.0, "partner")[0], "unprotected": counts(0.0, merge.operator),
        "protected": counts(STRENGTHS[merge.kind], merge.operator),
    }  # fmt: skip
    return Counterexample(
        given=given,
        got=rerun_merge(given),
        want=f"at most {LOST:g} of the gain for whoever merges a protected expert",
        by_hand=f"Of {PROBLEMS} additions the partner gets {given['partner_alone']} right alone. Subtract that from "
        "the protected and from the unprotected merge's count, and divide: one share for each seed.",
    )


def _evidence(
    names: Callable[[str], Sequence[str]], every: str, beyond: Sequence[str] = (), both: bool = False
) -> Evidence:
    """By RULE over these operators; those `beyond` the claim are told of, and judged by no rule."""
    result = stored("trap_merge")
    found = merges(result, names, both)
    verdict, best, plain = verdict_of(found), chosen(found, True), chosen(found, False)
    seeds = len(found[0].plain)
    working = [merge for merge in found if merge.works[0]]
    survivors = [merge for merge in best if survives(merge)]
    without = max(
        half[SKILL] - whole[SKILL]
        for half, whole in zip(
            *(result.where(operator=name, strength=0.0, seed=0) for name in (HALF, "partner")), strict=True
        )
    )
    weakest = min(min(merge.plain) if merge.works[0] else 0.0 for merge in plain)

    def told(merge: Merge) -> str:
        def percent(gains: Sequence[float]) -> str:
            return ", ".join(f"{gain * 100:.0f}" for gain in gains)

        return (
            f"{merge.kind}, λ = {STRENGTHS[merge.kind]:g}: {merge.operator} gains {percent(merge.protected)} points on "
            f"{SKILL} over the partner ({percent(merge.plain)} without protection; on {PARTNER}, over the expert, "
            f"{percent(merge.partners[1])} and {percent(merge.partners[0])})"
        )

    def check(merge: Merge) -> Check:
        """The share that is kept; of a merge that fails without protection too, what it lacks most."""
        name = f"{merge.kind}, {merge.operator}: "
        if merge.works[0]:
            return lost_of(merge) if verdict is Verdict.HOLDS else Check(
                name=name + "kept", statistic="least share over seeds of the unprotected merge's gain",
                unit="of the gain", value=min(merge.shares), bound=KEPT, sense=">=", cases=seeds,
            )  # fmt: skip
        lacks = [(min(merge.plain), SKILL_GAIN, SKILL), (fmean(merge.partners[0]), PARTNER_GAIN, PARTNER)]
        value, bound, skill = min(lacks, key=lambda lack: lack[0] - lack[1])
        return Check(
            name=name + "a merge without protection", statistic=f"gain on {skill}, unprotected", unit="of the problems",
            value=value, bound=bound, sense=">=", cases=seeds,
        )  # fmt: skip

    lost = sum(max(m.shares) <= LOST for m in working)
    return Evidence(
        verdict=verdict,
        grade=Grade.MEASURED,
        explanation=f"{every}, {seeds} seeds, {len(found)} pairs of kind and operator, of which {len(working)} merge "
        f"at all without protection, and {lost} of these lose half of the gain or more with it in every seed. What an "
        "attacker would choose: " + "; ".join(told(merge) for merge in best) + "."
        + "".join(f" Not judged here, {told(merge)}." for merge in merges(result, lambda _: beyond)),
        checks=[check(merge) for merge in survivors or (working if verdict is Verdict.HOLDS else best)],
        controls=Controls(
            null=Control(
                what=f"without the expert there is nothing to find: the partner merged with the base gains no {SKILL}",
                passed=bool(without <= NOTHING), value=without, bound=NOTHING, unit="of the problems",
            ),
            power=Control(
                what=f"a planted weak lock, λ = 0, falls to the same attackers: least gain on {SKILL}",
                passed=weakest >= SKILL_GAIN, value=weakest, bound=SKILL_GAIN, unit="of the problems",
            ),
        ),
        counterexample=counterexample(result, survivors[0]) if survivors else None,
        assumptions=[
            RULE,
            *([NOMINAL_RULE] if both else []),
            SINCE,
            f"{PROBLEMS} held-out problems of each skill; scales and operator are chosen by the mean loss on "
            f"{CHOSEN_ON} other problems of each",
            "one partner for each kind, unprotected; experts are trained with some problems of the other skill",
        ],
        deviations=[SHORT],
        severity="high",
        fix="draw more scales below 1, where merges are, and weigh them more" if survivors else None,
    )  # fmt: skip


def lost_of(merge: Merge) -> Check:
    """That a merge loses what counts as lost, in the seed in which it loses least."""
    return Check(
        name=f"{merge.kind}, {merge.operator}: lost", unit="of the gain", value=max(merge.shares), bound=LOST,
        statistic="greatest share over seeds of the unprotected merge's gain", cases=len(merge.plain),
    )  # fmt: skip


def _stronger(evidence: Evidence, names: Callable[[str], Sequence[str]], both: bool = False) -> Evidence:
    """The same evidence with what STRONGER_RULE adds to it."""
    result = stored("trap_merge")
    found, weaker = (merges(result, names, both, strengths) for strengths in (STRONGER, STRENGTHS))
    drops = {kind: spared(stored("trap_train"), kind, strength) for kind, strength in STRONGER.items()}
    verdict = at_stronger(evidence.verdict, found, list(drops.values()))
    working = [merge for merge in found if merge.works[0]]
    kept = [merge for merge in working if max(merge.shares) > LOST]
    at = ", ".join(f"λ = {strength:g} ({kind})" for kind, strength in STRONGER.items())
    costs = " and ".join(f"{drop.value * 100:.1f} ({kind})" for kind, drop in drops.items())
    said = (
        f" At {at} {len(working) - len(kept)} of the {len(working)} lose half of the gain or more in every seed, and "
        f"protection costs the expert {costs} points."
    ) + "".join(f" {m.kind}, {m.operator} keeps {', '.join(f'{k:.2f}' for k in m.shares)} of the gain." for m in kept)
    update: dict[str, Any] = {
        "explanation": evidence.explanation + said, "assumptions": [*evidence.assumptions, STRONGER_RULE],
    }  # fmt: skip
    if verdict is Verdict.HOLDS_IF:
        least = max(max(merge.shares) for merge in weaker if merge.works[0])
        other = Check(
            name="the smaller λ: an operator keeps more", unit="of the gain", value=least, bound=LOST, sense=">=",
            statistic="greatest share over operators and seeds", cases=len(weaker),
        )  # fmt: skip
        costing = [
            Check(
                name=f"{kind}: the larger λ spares the expert", unit="of the problems", value=drop.bounds[1],
                bound=COST, statistic="upper one-sided 95 % bound of the drop", cases=drop.problems,
            )
            for kind, drop in drops.items()
        ]  # fmt: skip
        update |= {
            "verdict": verdict, "condition": at, "checks": [*(lost_of(merge) for merge in working), other, *costing],
        }  # fmt: skip
    return evidence.model_copy(update=update)


def check_merge(ctx: Context) -> Evidence:
    """Every operator of `lockref.merging` that applies, on protected and unprotected experts of the same seeds.

    Each is tried at several scales and stands at the one of least loss on the attacker's own problems. What counts
    is the share of the unprotected merge's gain on the expert's skill, so that a merge that fails anyway proves
    nothing for the lock. The operator that refutes is the one an attacker would choose, not the luckiest of many.
    Scales for each layer, and whole tensors of one expert or both, are no shared scale: they stand beside the claim.
    """
    every = "Every operator that applies, KnOTS and Core for LoRA too"
    evidence = _stronger(_evidence(operators, every, (LAYERS, SUBSET)), operators)
    tried = "; ".join(sensitivity(stored("trap_strength"), kind) for kind in RATES)
    by_strength = f" By λ, one seed: right on {SKILL} alone, and on {SKILL} and {PARTNER} when summed. {tried}."
    return evidence.model_copy(update={"explanation": evidence.explanation + by_strength})


def check_nominal(ctx: Context) -> Evidence:
    """The merge W₀ + Δ + s Δ_partner: the protected update stays at s = 1, where it was trained to work.

    Measured as TRAP-MERGE is, with three operators: one scale for the partner, one for each layer of it, and one for
    what its update adds beside the direction of the expert's, so that the sum stays at s = 1 along it. Judged by what
    is left of the gains on both skills, since the expert's own is kept wherever the partner hardly counts.
    """

    def names(kind: str) -> tuple[str, ...]:
        return NOMINAL, NOMINAL_LAYERS, PROJECTED

    every = "The protected update at s = 1, the partner scaled whole, by layers, or less its part along the update"
    return _stronger(_evidence(names, every, both=True), names, both=True)


CLAIMS = (
    Claim(
        id="TRAP-MERGE",
        title="Merging a protected expert fails",
        statement="Every common merging operator, at the attacker's best shared scale, degrades.",
        source=Source(paper=PAPER, where="merges of protected and unprotected experts"),
        kind="security",
        recorded=Verdict.HOLDS_IF,
        would_change="A seed, or an operator at the larger λ, that keeps more than half of the gain.",
        check=check_merge,
        rerun=rerun_merge,
    ),
    Claim(
        id="TRAP-NOMINAL",
        title="Keeping the protected update at its scale does not help",
        statement="Merges that keep the protected update at s = 1 degrade as well.",
        source=Source(paper=PAPER, where="the threat model: scales of the members; worded by us"),
        kind="security",
        recorded=Verdict.HOLDS_IF,
        would_change="An attacker who finds better scales for the partner, or a lock that binds direction, not scale.",
        check=check_nominal,
        rerun=rerun_merge,
    ),
)
