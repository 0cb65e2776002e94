"""The questions that TRAP-AGNOSTIC asks of every case, a model and a kind of update, and how its runs answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from statistics import fmean
from typing import Literal

from lockproofs.claims.trap2_collapse import RAISED
from lockproofs.claims.trap2_utility import COST, Drop
from lockproofs.trap_runs import KINDS, MODELS, Merge, Run, runs, strengths

Answer = Literal["yes", "no", "open"]
SCALES = {"above": (2.0,), "below": (0.25, 0.5, 0.75)}  # where losses are compared
QUESTIONS = (*SCALES, "merge")
STATISTICS = {
    "above": "loss at s = 2, protected over unprotected",
    "below": "the largest such ratio at s = 0.25, 0.5 and 0.75",
    "merge": "share that the chosen merge keeps of the gain without protection",
}
GAIN, PARTNER_GAIN = 0.2, 0.1  # less is no merge (in every seed; in the mean over seeds)
KEPT = 0.75  # of the unprotected merge's gain: whoever merges notices what leaves less
ENOUGH = 3  # λ that a no must have been given at


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

    def worst(self, scales: Sequence[float]) -> list[tuple[float, float]]:
        """Of each seed protected and unprotected loss at the scale where their ratio is largest."""
        pairs = [(p.loss, u.loss) for p, u in zip(self.protected, self.plain, strict=True)]
        return [max(((p[s], u[s]) for s in scales), key=lambda x: x[0] / x[1]) for p, u in pairs]

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

    def left(self, s: float) -> tuple[list[float], list[float]]:
        """Without and with protection: the share of the fall in loss from the base that an expert has at s < 1."""
        plain, protected = (
            [(r.loss[0.0] - r.loss[s]) / (r.loss[0.0] - r.loss[1.0]) for r in side]
            for side in (self.plain, self.protected)
        )
        return plain, protected

    def quotients(self, question: str) -> list[float]:
        """What `question` is answered by, seed by seed: of losses, or of gains; empty where there is no merge."""
        if question == "merge":
            return [p.gain / u.gain for p, u in self.merges or ()]
        return [p / u for p, u in self.worst(SCALES[question])]

    @property
    def spares(self) -> bool:
        """Whether protection is shown to cost the expert itself next to nothing."""
        return self.drop.bounds[1] <= COST

    def answer(self, question: str) -> Answer:
        """To one of QUESTIONS, at this λ: yes or no only where all seeds say so."""
        found = self.quotients(question)
        if question == "merge":
            return settled(max(found) <= KEPT, min(found) > KEPT) if found else "open"
        return settled(min(found) >= RAISED, max(found) < RAISED)


def settled(yes: bool, no: bool) -> Answer:
    return "yes" if yes else "no" if no else "open"


def over_strengths(question: str, cases: Sequence[Case]) -> Answer:
    """Of one model and kind, by all λ that spare."""
    answers = [case.answer(question) for case in cases if case.spares]
    return settled("yes" in answers, len(answers) >= ENOUGH and set(answers) == {"no"})


def tried() -> dict[str, list[Case]]:
    """The four cases by name, λ by λ."""
    found: dict[str, list[Case]] = {}
    for model in MODELS:
        for kind in KINDS:
            for strength in strengths(model, kind):
                case = Case(model, kind, strength, runs(model, kind, 0.0), runs(model, kind, strength))
                found.setdefault(case.name, []).append(case)
    return found


def released(cases: Sequence[Case]) -> Case:
    """Of one model and kind the largest λ that spares, or the smallest, where none does."""
    return [case for case in cases if case.spares or case is cases[0]][-1]


def strictest(question: str, cases: Sequence[Case], answer: Answer) -> float:
    """What an answer rests on: over λ that spare the best for protection, over seeds the worst (for a no the best)."""
    best, worst = (max, min) if question in SCALES else (min, max)
    of_case = best if answer == "no" else worst
    found = [case.quotients(question) for case in cases if case.spares]
    return best(map(of_case, filter(None, found)), default=nan)
