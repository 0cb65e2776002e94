"""TRAP-AGNOSTIC: the same questions to adapters and full updates, to the zoo and to a network without attention."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from math import prod
from statistics import fmean
from typing import Any

from lockproofs.claim import (
    Check,
    Claim,
    Context,
    Control,
    Controls,
    Counterexample,
    Curve,
    Deviation,
    Evidence,
    Grade,
    Plot,
    Source,
    Verdict,
)
from lockproofs.claims.trap2_cases import (
    ENOUGH,
    GAIN,
    KEPT,
    QUESTIONS,
    SCALES,
    STATISTICS,
    Answer,
    Case,
    over_strengths,
    released,
    strictest,
    tried,
)
from lockproofs.claims.trap2_collapse import RAISED
from lockproofs.claims.trap2_utility import COST, Drop
from lockproofs.claims.trap2_weight import PAPER
from lockproofs.digits import NET, PARTS
from lockproofs.experiments.store import stored
from lockproofs.experiments.trap_digits import PROJECTED, SHARED
from lockproofs.experiments.trap_merge import NOMINAL
from lockproofs.trap_digits import PARTNER, RECOVERY, SEEDS, SKILL
from lockproofs.trap_runs import KINDS, runs
from lockref.locks.trap2_training import PUBLISHED

RULE = (
    "four cases, zoo and digits × full updates and LoRA, are asked the same, seed by seed, at every λ tried that "
    f"spares the expert: a pooled drop at s = 1 of at most {COST:.0%} of the problems (95 %). above: is the loss at "
    f"s = 2 at least {RAISED:g} times the unprotected expert's? below: the largest such ratio at s = 0.25, 0.5, 0.75? "
    "merge: does what an attacker would release, the operator and scale of least loss on problems of its own, keep "
    f"{KEPT:g} or less of the gain over base and partner that it has without protection? Yes or no only where all "
    f"seeds say so; a case says yes where some λ does, no where each of at least {ENOUGH} λ does. Refuted: one case "
    "says yes where another says no. Holds: in each case one λ says yes to all, on digits the published one; holds-if: "
    "larger ones. Anything else is undecided"
)
SINCE = (
    "the cases, the first two questions and the thresholds are those of a rule written before a protected network "
    "without attention was measured. With those rows known, and before the zoo's trainings with three seeds were, λ "
    "above 0.1 were added, since 0.1 cost nothing; λ that do not spare were left out; and a no to merge, which had "
    "asked for 0.9 of the gain, was made the contrary of a yes. So the network without attention was trained again, "
    "from five fresh seeds, decided on with the rule as it stands; the verdict reads these alone. By the first rule "
    "no case says no to merge, in either five, and the verdict is undecided"
)
PARAMETERS = sum(prod(shape) for shape in NET.shapes.values())
SMALL = Deviation(
    paper_says="vision transformers and language models; λ = 0.001 (LoRA), 0.005 (full)",
    we_do=f"{PARAMETERS} parameters, a convolution and a hidden layer, on {PARTS['training']} images of {NET.side} × "
    f"{NET.side} pixels; λ up to the first that diverges",
    why="the claim is about networks without attention; this one trains in a second, so that seeds and λ are many",
    effect="what is alike at this size need not be at a larger one, and the reverse",
)


def verdict_of(answers: Mapping[str, Sequence[Answer]], together: bool, published: bool) -> Verdict:
    """By RULE, from each question's answers, case by case.

    together: each case has one λ that spares and says yes to all; published: digits have the published one.
    """
    if any({"yes", "no"} <= set(given) for given in answers.values()):
        return Verdict.REFUTED
    if not together or any(set(given) != {"yes"} for given in answers.values()):
        return Verdict.UNDECIDED
    return Verdict.HOLDS if published else Verdict.HOLDS_IF


def check_of(question: str, cases: Sequence[Case], answer: Answer) -> Check:
    """The figure behind a yes or a no."""
    merge, no = question == "merge", answer == "no"
    return Check(
        name=f"{cases[0].name}: {question}", unit="of the gain" if merge else "times", bound=KEPT if merge else RAISED,
        statistic=f"{STATISTICS[question]}, by the λ that protects most of those that spare, and the seed that decides",
        value=strictest(question, cases, answer), sense="<=" if merge != no else ">=",
        cases=sum(len(case.plain) for case in cases if case.spares) or 1,
    )  # fmt: skip


def rerun_unlike(given: dict[str, Any]) -> str:
    """The quotients and the drop again, first where the answer is yes, then λ by λ where it is no."""

    def told(side: dict[str, Any]) -> str:
        found = [p / u for p, u in zip(side["protected"], side["unprotected"], strict=True)]
        drop = Drop(side["right_unprotected"], side["right_protected"], side["problems"])
        quotients = ", ".join(f"{x:.3f}" for x in found)
        return f"{side['case']}, λ = {side['strength']:g}: {quotients}; drop at most {drop.bounds[1]:.4f} (95 %)"

    return " | ".join(told(side) for side in (given["yes"], *given["no"]))


def counterexample(question: str, given: Mapping[str, Answer], cases: Mapping[str, Sequence[Case]]) -> Counterexample:
    """The first yes at some λ, and the first case that says no at every λ that spares: numbers that can be divided."""

    def side(case: Case) -> dict[str, Any]:
        pairs: list[tuple[float, float]] = [] if question == "merge" else case.worst(SCALES[question])
        pairs += [(p.right - p.without, u.right - u.without) for p, u in case.merges or () if question == "merge"]
        protected, unprotected = zip(*pairs, strict=True)
        return {
            "case": case.name, "strength": case.strength, "protected": list(protected),
            "unprotected": list(unprotected), "right_protected": case.drop.protected,
            "right_unprotected": case.drop.plain, "problems": case.drop.problems,
        }  # fmt: skip

    yes, no = (next(cases[name] for name, answer in given.items() if answer == wanted) for wanted in ("yes", "no"))
    best = next(case for case in yes if case.spares and case.answer(question) == "yes")
    shown = {"question": question, "yes": side(best), "no": [side(case) for case in no if case.spares]}
    what = "right answers beyond those of the better of base and partner" if question == "merge" else "losses"
    bound = f"at most {KEPT:g}" if question == "merge" else f"at least {RAISED:g}"
    return Counterexample(
        given=shown,
        got=rerun_unlike(shown),
        want="one answer for every case",
        by_hand=f"The numbers are {what}, seed by seed: divide protected by unprotected. Yes is {bound} for every "
        "seed, no for none; the λ are those that leave the expert its skill.",
    )


def all_yes(case: Case) -> bool:
    return all(case.answer(question) == "yes" for question in QUESTIONS)


def told(cases: Sequence[Case]) -> str:
    """What one model and kind says at λ that spare, smallest first."""

    def at(question: str) -> str:
        (first, _), *later = [(answer, next(some)) for answer, some in groupby(sparing, lambda c: c.answer(question))]
        return ", ".join([f"{question} {first}", *(f"{answer} from {case.strength:g}" for answer, case in later)])

    sparing, costly = ([case for case in cases if case.spares is spares] for spares in (True, False))
    listed, lost = (", ".join(f"{case.strength:g}" for case in some) for some in (sparing, costly))
    said = f"λ = {listed}: {'; '.join(map(at, QUESTIONS))}" if sparing else "no λ is shown to spare the expert"
    return f"{cases[0].name}: {said}{f'; not spared at {lost}' if costly else ''}."


def span(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}" if values else "nothing"


def path(case: Case) -> str:
    plain, protected = map(span, case.left(0.75))
    return f"{case.name} {plain}, with λ = {case.strength:g} {protected}"


def beyond(case: Case) -> str:
    """Of digits: merges that keep the expert at s = 1, and what recovers the others."""
    plain, protected = (stored("trap_digits").where(kind=case.kind, strength=s, order=0) for s in (0.0, case.strength))

    def right(part: str, model: str, rows: Sequence[dict[str, Any]] = protected) -> str:
        """In percent over all seeds, on both halves."""
        return " and ".join(f"{fmean(r[part][model][half] for r in rows) * 100:.0f}" for half in (SKILL, PARTNER))

    kept, overlaps = case.quotients("merge"), [row["overlap"] for row in protected]
    beside = {name: f"{right('merges', name)} % ({right('merges', name, plain)} %)" for name in (NOMINAL, PROJECTED)}
    return (
        f"{case.kind}, λ = {case.strength:g}: the chosen merge keeps {span(kept)} of its gain. Right of {SKILL} and "
        f"{PARTNER}, and without protection: the expert at s = 1 and the partner scaled, {beside[NOMINAL]}; less the "
        f"partner's part along the expert's update, {span(overlaps)} of that, {beside[PROJECTED]}; both at a shared "
        f"scale, before and after {RECOVERY['steps']} steps of recovery, {right('merges', SHARED)} and then "
        f"{right('recovered', SHARED)} % ({right('recovered', SHARED, plain)} %; the base alone "
        f"{right('recovered', 'base')} %)."
    )


def check_agnostic(ctx: Context) -> Evidence:
    """Stored runs of the zoo, and of a small convolutional network on real digits, asked the same three questions.

    Alike means that no question has a yes in one case and a no in another: zoo or digits, full updates or LoRA. What
    protects one case may need another λ in the next, so a yes needs one λ, and a no all of at least three; only those
    count that leave the expert its skill, which no owner would give up. The null control asks unprotected experts that
    saw their batches in another order; the power control is the planted lock with λ = 0, which every case's merge must
    survive.
    """
    cases = tried()
    given = {q: {name: over_strengths(q, some) for name, some in cases.items()} for q in QUESTIONS}
    sparing = {name: [case for case in some if case.spares] for name, some in cases.items()}
    full = {name: [case for case in some if all_yes(case)] for name, some in sparing.items()}
    digits = {kind: cases[f"digits, {kind}"] for kind in KINDS}
    published = all(PUBLISHED[k].strength in {c.strength for c in full[some[0].name]} for k, some in digits.items())
    verdict = verdict_of({q: [*found.values()] for q, found in given.items()}, all(full.values()), published)
    unlike = [q for q, found in given.items() if {"yes", "no"} <= set(found.values())]
    twins = [Case("digits", kind, 0.0, runs("digits", kind, 0.0), runs("digits", kind, 0.0, 1)) for kind in KINDS]
    false = sum(twin.answer(q) == "yes" for twin in twins for q in QUESTIONS)
    off = max(abs(p / u - 1) for some in cases.values() for case in some for p, u in case.worst((0.0,)))
    weakest = min(run.merge.gain if run.merge else 0.0 for some in cases.values() for run in some[0].plain)
    shown = {q: [n for n, a in given[q].items() if a != "open" or not unlike] for q in unlike or QUESTIONS}
    return Evidence(
        verdict=verdict,
        grade=Grade.MEASURED,
        condition="λ as large as " + "; ".join(f"{some[0].strength:g} ({name})" for name, some in full.items())
        if verdict is Verdict.HOLDS_IF
        else None,
        explanation=" ".join(
            [
                "Does protection raise losses above and below s = 1, and do merges notice, where λ spares the expert?",
                *map(told, cases.values()),
                "At s = 0.75 an expert has this share of the fall in loss from the base:",
                "; ".join(path(released(some)) for some in cases.values()) + ".",
                "On digits, by the largest λ that spares:",
                *(beyond(released(some)) for some in digits.values()),
            ]
        ),
        checks=[
            *(check_of(q, cases[n], given[q][n]) for q, names in shown.items() for n in names if sparing[n]),
            *(
                Check(
                    name=f"{name}: spared", statistic="upper 95 % bound of the drop at s = 1, least over λ",
                    unit="of the problems", value=min(case.drop.bounds[1] for case in some), bound=COST,
                    cases=sum(case.drop.problems for case in some),
                )
                for name, some in cases.items() if sparing[name] or not unlike
            ),
            Check(
                name="at s = 0", statistic="farthest ratio of losses from 1", unit="times", value=off, bound=0.0,
                cases=sum(len(case.plain) for some in cases.values() for case in some),
            ),
        ],
        controls=Controls(
            null=Control(
                what="of two unprotected experts, batches in another order, nothing is found: questions answered yes",
                passed=false == 0, value=false, bound=0, unit=f"of {len(QUESTIONS) * len(twins)}",
            ),
            power=Control(
                what="a planted lock with λ = 0 is merged in every case: least gain over base and partner",
                passed=weakest >= GAIN, value=weakest, bound=GAIN, unit="of the problems",
            ),
        ),
        counterexample=counterexample(unlike[0], given[unlike[0]], cases) if unlike else None,
        assumptions=[
            RULE,
            SINCE,
            "the zoo was trained with fewer λ than digits, so that it can hardly say no",
            "the two differ in more than attention: in task, size and data; what makes them unlike is not isolated",
        ],
        deviations=[SMALL],
        plots=[
            Plot(
                title=f"Loss along W₀ + sΔ without attention, {kind}, seed {SEEDS[0]}",
                x_label="scale s", y_label="loss (nats)", y_log=True,
                curves=[
                    Curve(name=f"λ = {row['strength']:g}", x=row["scales"], y=row["loss"])
                    for row in stored("trap_digits").where(kind=kind, seed=SEEDS[0], order=0)[::2]
                    if "stopped" not in row
                ],
            )
            for kind in KINDS
        ],
        severity="medium",
        fix="choose λ by what merges lose, for each kind of update and network" if unlike else None,
    )  # fmt: skip


CLAIMS = (
    Claim(
        id="TRAP-AGNOSTIC",
        title="Protection does not care about architecture or release format",
        statement="Protection works alike for adapters and full updates, and for networks without attention.",
        source=Source(paper=PAPER, where="the method's scope: architectures and release formats"),
        kind="utility",
        recorded=Verdict.REFUTED,
        would_change="A network without attention whose merges notice a λ that leaves the expert its skill.",
        check=check_agnostic,
        rerun=rerun_unlike,
    ),
)
