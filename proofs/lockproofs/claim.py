"""A claim, the evidence for or against it, and the rules that turn evidence into a verdict.

Everything here is plain data validated by pydantic: the report is these objects written as JSON.
"""

import math
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    PlainSerializer,
    computed_field,
    model_validator,
)

from lockproofs.calibration import Tokens
from lockproofs.errors import BadInput, MissingInput
from lockproofs.subject import Subject

__all__ = ["BadInput", "MissingInput"]  # of errors.py, at hand for every claim

Kind = Literal["theorem", "cost", "utility", "security"]
Severity = Literal["low", "medium", "high", "critical"]


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


# JSON has no NaN and no infinity: both become null.
Number = Annotated[float, PlainSerializer(_finite, return_type=float | None, when_used="json")]
Ordinate = Annotated[FiniteFloat | None, BeforeValidator(_finite)]


class Verdict(StrEnum):
    """What the evidence says about a claim as it is claimed."""

    HOLDS = "holds"
    HOLDS_IF = "holds-if"
    REFUTED = "refuted"
    UNDECIDED = "undecided"


class Grade(StrEnum):
    """How strong the evidence is."""

    PROVED = "proved"  # exact arithmetic, symbolic or exhaustive, with a written proof
    CERTIFIED = "certified"  # interval or ball arithmetic
    TESTED = "tested"  # a stated number of random cases
    MEASURED = "measured"  # figures on named models


class Record(BaseModel):
    """Immutable, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_serialization_defaults_required=True)


class Check(Record):
    """One statistic against one bound. It passes where value ≤ bound + tolerance (or ≥, by `sense`)."""

    name: str
    statistic: str = Field(description="what was computed, in words or a formula")
    unit: str
    value: Number
    bound: Number
    sense: Literal["<=", ">=", "=="] = "<="
    tolerance: Number = Field(0.0, description="derived allowance for round-off, never tuned")
    tolerance_from: str = Field("", description="how the tolerance was derived")
    cases: int = Field(1, ge=1)
    seed: int | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def margin(self) -> Number:
        """Distance to failure, in the unit of the value; negative where the check fails."""
        if self.sense == "==":
            return self.tolerance - abs(self.value - self.bound)
        slack = self.bound - self.value if self.sense == "<=" else self.value - self.bound
        return slack + self.tolerance

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether the value lies on the right side of the bound (NaN and infinities never do)."""
        return math.isfinite(self.margin) and self.margin >= 0


class Control(Record):
    """An attack's power on a planted weak lock, or its silence where there is nothing to find."""

    what: str
    passed: bool
    value: Number
    bound: Number
    unit: str


class Controls(Record):
    null: Control | None = None
    power: Control | None = None


class Counterexample(Record):
    """Data that refutes a claim; `lockref explain ID` computes `got` from `given` again."""

    given: dict[str, Any]
    got: str
    want: str
    by_hand: str = Field(description="the few lines a stranger needs to check it with pencil and paper")


class Source(Record):
    paper: str
    where: str


class Deviation(Record):
    """Where the software does not follow a paper's text, or could not read it."""

    paper_says: str
    we_do: str
    why: str
    effect: str


class Curve(Record):
    """One line of a plot; None (NaN and infinities too) is a gap."""

    name: str
    x: list[FiniteFloat]
    y: list[Ordinate]

    @model_validator(mode="after")
    def _as_many_x_as_y(self) -> Self:
        if len(self.x) != len(self.y):
            raise ValueError(f"curve {self.name!r} has {len(self.x)} x and {len(self.y)} y values")
        return self


class Plot(Record):
    """Data of one figure; the report draws it and paper_figs draw it again."""

    title: str
    x_label: str
    y_label: str
    x_log: bool = False
    y_log: bool = False
    curves: list[Curve]


class Evidence(Record):
    """What a claim's check found."""

    verdict: Verdict
    grade: Grade
    condition: str | None = Field(None, description="when the claim is true, where that needs saying")
    explanation: str = Field(description="the finding in plain words, one paragraph")
    checks: list[Check] = Field(min_length=1, description="the first one is the key figure")
    controls: Controls = Controls()
    counterexample: Counterexample | None = None
    assumptions: list[str] = []
    deviations: list[Deviation] = []
    plots: list[Plot] = []
    severity: Severity | None = None
    fix: str | None = None

    @model_validator(mode="after")
    def _verdict_has_its_evidence(self) -> Self:
        if self.verdict is Verdict.REFUTED and self.counterexample is None:
            raise ValueError("a refuted claim needs a counterexample that re-runs")
        if self.verdict is Verdict.HOLDS_IF and not self.condition:
            raise ValueError("holds-if needs its condition")
        return self


class Context:
    """What a check may use: random cases, their number, and the models under audit."""

    def __init__(self, subject: Subject, seed: int, cases: int, say: Callable[[str], None] = lambda _: None) -> None:
        self.subject = subject
        self.seed = seed
        self.cases = cases
        self.say = say  # where a long check is

    def rng(self, stream: int = 0) -> np.random.Generator:
        """A generator of its own for every stream, so that adding a check moves no other's numbers."""
        return np.random.default_rng([self.seed, stream])

    def tokens(self, rows: int, length: int, stream: int) -> Tokens:
        """Rows to measure the subject on, (rows, length) where the data have so many; `Subject.text` names them."""
        return self.subject.tokens(rows, length, self.rng(stream))


class OnSubject(Record):
    """How a claim is checked on a directory that a user names, where that says more than a sample of its weights."""

    applies: Callable[[Subject], bool]
    check: Callable[[Context], Evidence]
    rerun: Callable[[dict[str, Any]], str]


class Claim(Record):
    """A statement of a paper, as it is claimed, and the check that finds its verdict."""

    id: str
    title: str
    statement: str
    source: Source
    kind: Kind
    recorded: Verdict = Field(description="the verdict this version is known to find on its own models")
    would_change: str = Field(description="what would change the verdict")
    check: Callable[[Context], Evidence] = Field(description="its docstring says how it checks, or proves")
    rerun: Callable[[dict[str, Any]], str] | None = Field(
        None, description="computes the counterexample's `got` again from its `given`"
    )
    on_subject: OnSubject | None = None

    def about(self, subject: Subject) -> "Claim":
        """The claim as it is checked on this subject."""
        own = self.on_subject
        if subject.is_zoo or own is None or not own.applies(subject):
            return self
        return self.model_copy(update={"check": own.check, "rerun": own.rerun})


def settle(kind: Kind, evidence: Evidence) -> Evidence:
    """Apply the rules: a failed check or control leaves a claim undecided, whatever its check hoped for."""
    failed = [c.name for c in evidence.checks if not c.passed]
    controls = [c for c in (evidence.controls.null, evidence.controls.power) if c is not None]
    silent = [c.what for c in controls if not c.passed]
    missing = kind == "security" and evidence.verdict is not Verdict.REFUTED and len(controls) < 2
    if evidence.verdict is Verdict.UNDECIDED or not (failed or silent or missing):
        return evidence
    reasons = [f"check failed: {n}" for n in failed] + [f"control failed: {n}" for n in silent]
    reasons += ["a null and a power control are needed"] if missing else []
    return evidence.model_copy(
        update={"verdict": Verdict.UNDECIDED, "explanation": "; ".join(reasons) + ". " + evidence.explanation}
    )
