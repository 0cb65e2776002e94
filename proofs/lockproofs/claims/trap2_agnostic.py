"""TRAP-AGNOSTIC: the same questions to adapters and full updates, to the zoo and to a network without attention."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

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
from lockproofs.claims.trap2_collapse import RAISED
from lockproofs.claims.trap2_utility import COST, Drop
from lockproofs.claims.trap2_weight import PAPER
from lockproofs.experiments.store import stored
from lockproofs.trap_runs import KINDS, MODELS, Merge, Run, runs, strengths
from lockref.locks.trap2_training import PUBLISHED

Answer = Literal["yes", "no", "open"]
QUESTIONS = ("above", "below", "merge", "spared")
SCALES = {"above": (2.0, 2.0), "below": (0.25, 0.75)}  # where losses are compared
STATISTICS = {
    "above": "loss at s = 2, protected over unprotected, the seed that decides",
    "below": "largest such ratio for s from 0.25 to 0.75, the seed that decides",
    "merge": "share of the unprotected merge's gain, the seed that decides",
    "spared": "one-sided 95 % bound of the drop at s = 1",
}
GAIN, PARTNER_GAIN = 0.2, 0.1  # less is no merge (in every seed; in the mean over seeds)
NOTICED, KEPT = 0.75, 0.9  # shares of the unprotected merge's gain
ENOUGH = 3  # strengths that a no must have been given at

RULE = (
    "the rule was written before a protected network without attention was measured, and after the zoo was. Four "
    "cases, zoo and digits × full updates and LoRA, are asked the same at every λ tried, seed by seed. above: is the "
    f"loss at s = 2 at least {RAISED:g} times the unprotected expert's? below: the largest such ratio for s from "
    f"{SCALES['below'][0]:g} to {SCALES['below'][1]:g}? merge: does what an attacker would release, the operator and "
    f"scale of least loss on problems of its own, keep at most {NOTICED:g} of the gain over base and partner that it "
    f"has without protection (no: at least {KEPT:g})? Yes or no only where all seeds say so. spared: at a λ that "
    f"raises the loss above s = 1, is the pooled drop at s = 1 at most {COST:.0%} of the problems (95 %)? "
    f"A case says yes where some λ does, no where each of at least {ENOUGH} λ says no. Refuted: one case says yes "
    "where another says no. Holds: all say yes to all, with digits at the published λ too; holds-if: only at larger "
    "ones. Anything else is undecided"
)
SMALL = Deviation(
    paper_says="vision transformers and language models; λ = 0.001 (LoRA), 0.005 (full)",
    we_do="19,000 parameters, one convolution and a hidden layer, on 900 images of 8 × 8 pixels; five λ of each kind",
    why="the claim is about networks without attention; this one trains in a second, so that seeds and λ are many",
    effect="what is alike at this size need not be at a larger one, and the reverse",
)


@dataclass(frozen=True)
class Case:
    """A model, a kind of update and a λ: protected runs beside the unprotected ones of the same seeds."""

    model: str
    kind: str
    strength: float
    plain: Sequence[Run]
    protected: Sequence[Run]

    @property
    def name(self) -> str:
        return f"{self.model}, {self.kind}"

    def worst(self, low: float, high: float) -> list[tuple[float, float]]:
        """Of each seed protected and unprotected loss where their ratio is largest at low ≤ s ≤ high."""
        pairs = [(p.loss, u.loss) for p, u in zip(self.protected, self.plain, strict=True)]
        return [max(((p[s], u[s]) for s in p if low <= s <= high), key=lambda x: x[0] / x[1]) for p, u in pairs]

    @property
    def merges(self) -> list[tuple[Merge, Merge]] | None:
        """With and without protection; None where a seed has none, or unprotected experts do not merge."""
        pairs = [(p.merge, u.merge) for p, u in zip(self.protected, self.plain, strict=True) if p.merge and u.merge]
        gains, partners = [u.gain for _, u in pairs], [u.partner_gain for _, u in pairs]
        works = len(pairs) == len(self.plain) and min(gains) >= GAIN and fmean(partners) >= PARTNER_GAIN
        return pairs if works else None

    @property
    def drop(self) -> Drop:
        """Of right answers at s = 1, all seeds together."""
        plain, protected = (sum(r.right for r in side) for side in (self.plain, self.protected))
        return Drop(plain, protected, sum(r.problems for r in self.plain))

    def quotients(self, question: str) -> list[float]:
        """What `question` is answered by, seed by seed: of losses, or of gains; empty where there is no merge."""
        if question == "merge":
            return [p.gain / u.gain for p, u in self.merges or ()]
        return [p / u for p, u in self.worst(*SCALES[question])]

    def answer(self, question: str) -> Answer:
        """To one of QUESTIONS, at this λ."""
        if question == "spared":
            low, high = self.drop.bounds
            return settled(high <= COST, low > COST)
        found = self.quotients(question)
        if question == "merge":
            return settled(max(found) <= NOTICED, min(found) >= KEPT) if found else "open"
        return settled(min(found) >= RAISED, max(found) < RAISED)


def settled(yes: bool, no: bool) -> Answer:
    return "yes" if yes else "no" if no else "open"


def over_strengths(question: str, cases: Sequence[Case]) -> Answer:
    """One case's answer, of all λ that were tried on it."""
    if question == "spared":  # where protection does nothing it costs nothing
        cases = [case for case in cases if case.answer("above") == "yes"]
    answers = [case.answer(question) for case in cases]
    return settled("yes" in answers, len(answers) >= ENOUGH and set(answers) == {"no"})


def verdict_of(answers: Mapping[str, Sequence[Answer]], published: bool) -> Verdict:
    """By RULE, from each question's answers, case by case; `published`: digits say yes to all at the published λ."""
    if any({"yes", "no"} <= set(given) for given in answers.values()):
        return Verdict.REFUTED
    if any(set(given) != {"yes"} for given in answers.values()):
        return Verdict.UNDECIDED
    return Verdict.HOLDS if published else Verdict.HOLDS_IF


def tried() -> dict[str, list[Case]]:
    """The four cases by name, λ by λ."""
    found: dict[str, list[Case]] = {}
    for model in MODELS:
        for kind in KINDS:
            plain = {run.seed: run for run in runs(model, kind, 0.0)}
            for strength in strengths(model, kind):
                protected = runs(model, kind, strength)
                case = Case(model, kind, strength, [plain[run.seed] for run in protected], protected)
                found.setdefault(case.name, []).append(case)
    return found


def strictest(question: str, cases: Sequence[Case], answer: Answer) -> float:
    """What an answer rests on: over λ the best for protection, over seeds the worst (the best too, where it is no)."""
    best, worst = (max, min) if question in SCALES else (min, max)
    over_seeds = best if answer == "no" else worst
    if question == "spared":
        return min(over_seeds(case.drop.bounds) for case in cases)
    return best(over_seeds(found) for case in cases if (found := case.quotients(question)))


def check_of(question: str, cases: Sequence[Case], answer: Answer) -> Check:
    """The figure behind a yes or a no."""
    bound = {"merge": KEPT if answer == "no" else NOTICED, "spared": COST}.get(question, RAISED)
    rises = (question in SCALES) == (answer != "no")  # whether more is what the answer says
    return Check(
        name=f"{cases[0].name}: {question}", unit={"merge": "of the gain", "spared": "of the problems"}.get(question, "times"),
        statistic=f"{STATISTICS[question]}, for the λ that protects most", value=strictest(question, cases, answer),
        bound=bound, sense=">=" if rises else "<=", cases=sum(len(case.plain) for case in cases),
    )  # fmt: skip
