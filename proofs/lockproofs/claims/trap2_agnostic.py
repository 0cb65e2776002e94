"""TRAP-AGNOSTIC: the same questions to adapters and full updates, to the zoo and to a network without attention."""

from collections.abc import Mapping, Sequence
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
    NOTICED,
    QUESTIONS,
    SCALES,
    STATISTICS,
    UNITS,
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
from lockproofs.trap_digits import PARTNER, RECOVERY, SKILL
from lockproofs.trap_runs import KINDS, runs
from lockref.locks.trap2_training import PUBLISHED

RULE = (
    "the rule was written before a protected network without attention was measured, and after the zoo was. Four "
    "cases, zoo and digits × full updates and LoRA, are asked the same at every λ tried, seed by seed. above: is the "
    f"loss at s = 2 at least {RAISED:g} times the unprotected expert's? below: the largest such ratio from s = 0.25 to "
    "0.75? merge: does what an attacker would release, the operator and scale of least loss on problems of its own, "
    f"keep at most {NOTICED:g} of the gain over base and partner that it has without protection (no: at least "
    f"{KEPT:g})? Yes or no only where all seeds say so. spared: at a λ that raises the loss above s = 1, is the pooled "
    f"drop at s = 1 at most {COST:.0%} of the problems (95 %)? A case says yes where some λ does, no where each of at "
    f"least {ENOUGH} λ says no. Refuted: one case says yes where another says no. Holds: all say yes to all, with "
    "digits at the published λ too; holds-if: only at larger ones. Anything else is undecided"
)
SINCE = (
    "changed after the first rows of digits, for λ up to 0.1, were seen: larger λ were added, since 0.1 cost nothing; "
    "holds needs one λ for all four questions; losses are compared at the zoo's scales only; the projected merge, which "
    "no answer rests on, was tried"
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

    together: each case has one λ that says yes to all; published: digits have the published one.
    """
    if any({"yes", "no"} <= set(given) for given in answers.values()):
        return Verdict.REFUTED
    if not together or any(set(given) != {"yes"} for given in answers.values()):
        return Verdict.UNDECIDED
    return Verdict.HOLDS if published else Verdict.HOLDS_IF


def check_of(question: str, cases: Sequence[Case], answer: Answer) -> Check:
    """The figure behind a yes or a no."""
    bound = {"merge": KEPT if answer == "no" else NOTICED, "spared": COST}.get(question, RAISED)
    return Check(
        name=f"{cases[0].name}: {question}", unit=UNITS.get(question, "times"), bound=bound,
        statistic=f"{STATISTICS[question]}, by the λ that protects most and the seed that decides",
        value=strictest(question, cases, answer), sense=">=" if (question in SCALES) != (answer == "no") else "<=",
        cases=sum(len(case.plain) for case in cases),
    )  # fmt: skip


def rerun_unlike(given: dict[str, Any]) -> str:
    """The quotients again, or of spared the drop; first where the answer is yes, then λ by λ where it is no."""

    def told(side: dict[str, Any]) -> str:
        if "problems" in side:
            found = [Drop(sum(side["unprotected"]), sum(side["protected"]), side["problems"]).value]
        else:
            found = [p / u for p, u in zip(side["protected"], side["unprotected"], strict=True)]
        return f"{side['case']}, λ = {side['strength']:g}: {', '.join(f'{x:.3f}' for x in found)}"

    return "; ".join(told(side) for side in (given["yes"], *given["no"]))


def counterexample(question: str, yes: Case, no: Sequence[Case]) -> Counterexample:
    """A case that says yes at some λ, and one that says no at every λ, in numbers that a stranger can divide."""

    def side(case: Case) -> dict[str, Any]:
        found: dict[str, Any] = {"case": case.name, "strength": case.strength}
        if question == "spared":
            pairs: list[Any] = [(p.right, u.right) for p, u in zip(case.protected, case.plain, strict=True)]
            found["problems"] = case.drop.problems
        elif question == "merge":
            pairs = [(p.right - p.without, u.right - u.without) for p, u in case.merges or ()]
        else:
            pairs = case.worst(SCALES[question])
        protected, unprotected = zip(*pairs, strict=True)
        return {**found, "protected": list(protected), "unprotected": list(unprotected)}

    given = {"question": question, "yes": side(yes), "no": [side(case) for case in no]}
    subtract = "add up each side, subtract, and divide by the number of problems"
    what = {"merge": "right answers beyond those of the better of base and partner", "spared": "right answers"}
    return Counterexample(
        given=given,
        got=rerun_unlike(given),
        want="one answer for every case",
        by_hand=f"The numbers are {what.get(question, 'losses')}, seed by seed. For {STATISTICS[question]} "
        f"{subtract if question == 'spared' else 'divide protected by unprotected'}.",
    )


def told(cases: Sequence[Case]) -> str:
    """At which λ a case says yes or no to what."""

    def at(question: str) -> str:
        said = {answer: [f"{c.strength:g}" for c in cases if c.answer(question) == answer] for answer in ("yes", "no")}
        words = [f"{answer} at {', '.join(found)}" for answer, found in said.items() if found]
        return f"{question} {' and '.join(words) or 'open'}"

    whole = [f"{case.strength:g}" for case in cases if {case.answer(q) for q in QUESTIONS} == {"yes"}]
    listed = ", ".join(f"{case.strength:g}" for case in cases)
    return f"{cases[0].name} (λ = {listed}): {'; '.join(map(at, QUESTIONS))}; all four at {', '.join(whole) or 'none'}."


def span(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}" if values else "nothing"


def path(case: Case) -> str:
    plain, protected = map(span, case.left(0.75))
    return f"{case.name} {plain}, with λ = {case.strength:g} {protected}"


def beyond(case: Case) -> str:
    """Of digits: how far merges are off the nominal scale, and what recovers them."""
    plain, protected = (stored("trap_digits").where(kind=case.kind, strength=s, order=0) for s in (0.0, case.strength))

    def right(part: str, model: str, rows: Sequence[dict[str, Any]] = protected) -> str:
        """In percent over all seeds, on both halves."""
        return " and ".join(f"{fmean(r[part][model][half] for r in rows) * 100:.0f}" for half in (SKILL, PARTNER))

    overlaps, scales = zip(*((r["overlap"], r["merges"][SHARED]["scale"]) for r in protected), strict=True)
    effective = [(1 + overlap) * scale for overlap, scale in zip(overlaps, scales, strict=True)]
    kept = {name: f"{right('merges', name)} % ({right('merges', name, plain)} %)" for name in (NOMINAL, PROJECTED)}
    return (
        f"{case.kind}, λ = {case.strength:g}: the chosen merge keeps {span(case.quotients('merge'))} of its gain. The "
        f"partner's update has {span(overlaps)} of the expert's in it: a shared scale of {span(scales)} puts the "
        f"expert's direction at {span(effective)}. Right of {SKILL} and {PARTNER}, and without protection: with the "
        f"expert at s = 1 {kept[NOMINAL]}, less the part of the partner's update along it {kept[PROJECTED]}. "
        f"{RECOVERY['steps']} steps of recovery lead the merge at a shared scale from {right('merges', SHARED)} to "
        f"{right('recovered', SHARED)} % (without protection {right('recovered', SHARED, plain)} %, the base alone "
        f"{right('recovered', 'base')} %)."
    )


def check_agnostic(ctx: Context) -> Evidence:
    """Stored runs of the zoo, and of a small convolutional network on real digits, asked the same four questions.

    Alike means that no question has a yes in one case and a no in another: zoo or digits, full updates or LoRA. What
    protects a case at one λ may need another in the next, so a yes needs one λ, a no all of at least three. The null
    control asks unprotected experts that saw their batches in another order; the power control is the planted lock
    with λ = 0, which every case's merge must survive.
    """
    cases = tried()
    given = {q: {name: over_strengths(q, some) for name, some in cases.items()} for q in QUESTIONS}
    full = {name: [c for c in some if {c.answer(q) for q in QUESTIONS} == {"yes"}] for name, some in cases.items()}
    digits = {kind: cases[f"digits, {kind}"] for kind in KINDS}
    published = all(PUBLISHED[k].strength in {c.strength for c in full[some[0].name]} for k, some in digits.items())
    verdict = verdict_of({q: [*found.values()] for q, found in given.items()}, all(full.values()), published)
    unlike = [q for q, found in given.items() if {"yes", "no"} <= set(found.values())]
    first = (
        {answer: next(n for n, a in given[unlike[0]].items() if a == answer) for answer in ("yes", "no")}
        if unlike
        else {}
    )
    twins = [Case("digits", kind, 0.0, runs("digits", kind, 0.0), runs("digits", kind, 0.0, 1)) for kind in KINDS]
    false = sum(twin.answer(q) == "yes" for twin in twins for q in QUESTIONS[:3])
    off = max(abs(p / u - 1) for some in cases.values() for case in some for p, u in case.worst((0.0,)))
    weakest = min(run.merge.gain if run.merge else 0.0 for some in cases.values() for run in some[0].plain)
    asked = {q: first.values() for q in unlike[:1]} if unlike else {q: cases for q in QUESTIONS}
    return Evidence(
        verdict=verdict,
        grade=Grade.MEASURED,
        condition="λ as large as " + "; ".join(f"{some[0].strength:g} ({name})" for name, some in full.items())
        if verdict is Verdict.HOLDS_IF else None,
        explanation=" ".join(
            [
                *map(told, cases.values()),
                "At s = 0.75 an expert has this share of the fall in loss from the base:",
                "; ".join(path(released(some)) for some in cases.values()) + ".",
                "At the largest λ that spares, digits,",
                *(beyond(released(some)) for some in digits.values()),
            ]
        ),
        checks=[
            *(check_of(q, cases[name], given[q][name]) for q, names in asked.items() for name in names),
            Check(
                name="at s = 0", statistic="farthest ratio of losses from 1", unit="times", value=off, bound=0.0,
                cases=sum(len(case.plain) for some in cases.values() for case in some),
            ),
        ],
        controls=Controls(
            null=Control(
                what="of two unprotected experts, batches in another order, nothing is found: questions answered yes",
                passed=false == 0, value=false, bound=0, unit=f"of {3 * len(twins)}",
            ),
            power=Control(
                what="a planted lock with λ = 0 is merged in every case: least gain over base and partner",
                passed=weakest >= GAIN, value=weakest, bound=GAIN, unit="of the problems",
            ),
        ),
        counterexample=counterexample(
            unlike[0], next(c for c in cases[first["yes"]] if c.answer(unlike[0]) == "yes"), cases[first["no"]]
        ) if unlike else None,
        assumptions=[RULE, SINCE, "the zoo was trained with fewer λ than digits, so that it can hardly say no"],
        deviations=[SMALL],
        plots=[
            Plot(
                title=f"Loss along W₀ + sΔ without attention, {kind}, seed 0", x_label="scale s", y_label="loss (nats)",
                y_log=True,
                curves=[
                    Curve(name=f"λ = {row['strength']:g}", x=row["scales"], y=row["loss"])
                    for row in stored("trap_digits").where(kind=kind, seed=0, order=0) if "stopped" not in row
                ],
            )
            for kind in KINDS
        ],
        severity="medium",
        fix="choose λ by what merges lose, not by the kind of update" if unlike else None,
    )  # fmt: skip


CLAIMS = (
    Claim(
        id="TRAP-AGNOSTIC",
        title="Protection does not care about architecture or release format",
        statement="Protection works alike for adapters and full updates, and for networks without attention.",
        source=Source(paper=PAPER, where="the method's scope: architectures and release formats"),
        kind="utility",
        recorded=Verdict.UNDECIDED,
        would_change="More λ on the zoo, or a larger network without attention, that answer what is open.",
        check=check_agnostic,
        rerun=rerun_unlike,
    ),
)
