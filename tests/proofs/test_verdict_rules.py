"""Evidence becomes a verdict by rules that a failed check, a silent control or a crash cannot get around."""

import math
import pkgutil
from fractions import Fraction
from importlib import import_module

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import lockproofs.claims
from lockproofs.audit import audit, describe, rerun
from lockproofs.auditing import FORMS
from lockproofs.claim import (
    Check,
    Claim,
    Control,
    Controls,
    Counterexample,
    Curve,
    Evidence,
    Grade,
    Verdict,
    settle,
)
from lockproofs.claims import all_claims
from lockproofs.exit_codes import FailOn, exit_code

INTEGERS = st.integers(-(2**40), 2**40)  # sums of three are exact in float64, so the rule is too
SENSES = st.sampled_from(["<=", ">=", "=="])
PASSES, FAILS = 0.5, 1.5
COUNTEREXAMPLE = Counterexample(given={"x": 1}, got="1", want="2", by_hand="1 ≠ 2")


def check(value: float = PASSES, **more) -> Check:
    return Check(name="distance", statistic="|x|", unit="1", value=value, bound=1.0, **more)


def control(passed: bool = True) -> Control:
    return Control(what="planted lock", passed=passed, value=2.0, bound=1.0, unit="nats")


def evidence(verdict: Verdict, checks=(check(),), power=control(), null=control()) -> Evidence:  # noqa: B008
    return Evidence(
        verdict=verdict,
        grade=Grade.TESTED,
        condition="x > 0",
        explanation="why",
        checks=list(checks),
        controls=Controls(power=power, null=null),
        counterexample=COUNTEREXAMPLE,
    )


@given(value=INTEGERS, bound=INTEGERS, tolerance=st.integers(0, 2**40), sense=SENSES)
def test_a_check_passes_exactly_where_its_inequality_holds(value, bound, tolerance, sense):
    got = Check(name="n", statistic="s", unit="1", value=value, bound=bound, sense=sense, tolerance=tolerance)
    v, b, t = Fraction(value), Fraction(bound), Fraction(tolerance)
    want = {"<=": v <= b + t, ">=": v >= b - t, "==": abs(v - b) <= t}[sense]
    assert got.passed is want, f"{value} {sense} {bound} ± {tolerance}: got {got.passed}"
    assert (got.margin >= 0) is want


@given(
    sense=SENSES,
    broken=st.sampled_from(["value", "bound", "tolerance"]),
    number=st.sampled_from([math.nan, math.inf, -math.inf]),
)
def test_what_is_not_finite_never_passes_and_never_reaches_json(sense, broken, number):
    got = check(sense=sense).model_copy(update={broken: number})
    assert not got.passed
    assert got.model_dump(mode="json")[broken] is None
    assert got.model_dump(mode="json")["margin"] is None


STRONG = [Verdict.HOLDS, Verdict.HOLDS_IF, Verdict.REFUTED]


@pytest.mark.parametrize("kind", ["theorem", "cost", "utility", "security"])
@pytest.mark.parametrize("verdict", list(Verdict))
def test_sound_evidence_keeps_its_verdict(kind, verdict):
    given = evidence(verdict)
    assert settle(kind, given) == given


@pytest.mark.parametrize("kind", ["theorem", "security"])
@pytest.mark.parametrize("verdict", STRONG)
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"checks": (check(), check(FAILS))}, "check failed: distance"),
        ({"checks": (check(math.nan), check())}, "check failed: distance"),
        ({"power": control(passed=False)}, "control failed: planted lock"),
        ({"null": control(passed=False)}, "control failed: planted lock"),
    ],
    ids=["failed check", "NaN", "power control", "null control"],
)
def test_a_fault_leaves_any_claim_undecided_and_says_so(kind, verdict, fault, said):
    got = settle(kind, evidence(verdict, **fault))
    assert got.verdict is Verdict.UNDECIDED
    assert said in got.explanation and got.explanation.endswith("why")


@pytest.mark.parametrize("absent", [{"power": None}, {"null": None}, {"power": None, "null": None}])
def test_a_lock_holds_only_with_both_controls(absent):
    for verdict in (Verdict.HOLDS, Verdict.HOLDS_IF):
        assert settle("security", evidence(verdict, **absent)).verdict is Verdict.UNDECIDED
        assert settle("theorem", evidence(verdict, **absent)).verdict is verdict
    assert settle("security", evidence(Verdict.REFUTED, **absent)).verdict is Verdict.REFUTED


def test_evidence_is_complete_or_is_not_evidence():
    common = {"grade": "tested", "explanation": "why", "checks": [check()]}
    with pytest.raises(ValidationError, match="counterexample"):
        Evidence(verdict="refuted", **common)
    with pytest.raises(ValidationError, match="condition"):
        Evidence(verdict="holds-if", **common)
    with pytest.raises(ValidationError, match="at least 1"):
        Evidence(verdict="holds", **(common | {"checks": []}))
    with pytest.raises(ValidationError, match="2 x and 1 y"):
        Curve(name="c", x=[1.0, 2.0], y=[1.0])
    assert Curve(name="c", x=[1.0, 2.0, 3.0], y=[math.nan, math.inf, 1.0]).y == [None, None, 1.0]


def run(subject, *claims):
    return audit(subject, claims, seed=0, cases=4)


def test_crashes_and_missing_inputs_are_counted_and_decide_nothing(subject, registry):
    report = run(subject, *registry.values())
    found = {claim.id: claim for claim in report.claims}
    assert {name: claim.verdict for name, claim in found.items()} == {
        "X-HOLDS": "holds",
        "X-IF": "holds-if",
        "X-REFUTED": "refuted",
        "X-UNDECIDED": "undecided",
        "X-CRASH": "undecided",
        "X-LACKS": "undecided",
    }
    coverage = report.coverage
    assert [m.model_dump() for m in coverage.errored] == [
        {"id": "X-CRASH", "reason": "ZeroDivisionError: a division by zero"}
    ]
    assert [m.model_dump() for m in coverage.skipped] == [{"id": "X-LACKS", "reason": "needs --base"}]
    assert coverage.planned == 6 == coverage.run + len(coverage.skipped) + len(coverage.errored)
    assert coverage.checks == sum(len(claim.checks) for claim in found.values()) == 5
    assert found["X-CRASH"].grade is None and not found["X-CRASH"].checks


@pytest.mark.parametrize("broken", ["another", None, "crash"])
def test_nothing_is_refuted_by_a_counterexample_that_does_not_come_out_again(subject, decided, broken):
    again = {
        "another": lambda given: "31.0",
        None: None,
        "crash": lambda given: str(given["no such key"]),
    }[broken]
    claim = decided["X-REFUTED"].model_copy(update={"rerun": again})
    assert run(subject, decided["X-REFUTED"]).claims[0].verdict is Verdict.REFUTED
    assert run(subject, claim).claims[0].verdict is Verdict.UNDECIDED


@pytest.mark.parametrize("value", [object(), math.nan, {1j}])
def test_a_counterexample_must_be_json(subject, decided, make_claim, value):
    def check_(context):
        found = decided["X-REFUTED"].check(context)
        example = found.counterexample.model_copy(update={"given": {"x": value}})
        return found.model_copy(update={"counterexample": example})

    claim = make_claim("X-OPAQUE", check_, Verdict.REFUTED, lambda given: "30.0")
    report = run(subject, claim)
    assert report.claims[0].verdict is Verdict.UNDECIDED
    assert report.coverage.errored[0].id == "X-OPAQUE"


def test_a_counterexample_is_computed_again_from_what_json_keeps(decided):
    seen = []
    claim = decided["X-REFUTED"].model_copy(update={"rerun": lambda given: seen.append(given) or ""})
    example = COUNTEREXAMPLE.model_copy(update={"given": {"x": (1, 2)}})
    rerun(claim, example)
    assert seen == [{"x": [1, 2]}]


def test_the_docstring_of_a_check_is_told_as_its_method(decided, make_claim):
    def proves(context):
        """Two lines
        of one paragraph.

          indented = kept

        The end.
        """

    claim = make_claim("X-PROOF", proves, Verdict.HOLDS)
    told = "Two lines of one paragraph.\n\n  indented = kept\n\nThe end."
    assert describe(claim)["method"] == told


def changed(report, **verdicts):
    """The report as if these claims had come out otherwise."""
    claims = [c.model_copy(update={"verdict": verdicts.get(c.id[2:], c.verdict)}) for c in report.claims]
    return report.model_copy(update={"claims": claims})


def test_exit_codes(subject, decided, registry):
    as_recorded = run(subject, *decided.values())
    table = {FailOn.CHANGED: 0, FailOn.REFUTED: 1, FailOn.UNDECIDED: 2, FailOn.NEVER: 0}
    assert {fail_on: exit_code(as_recorded, fail_on) for fail_on in FailOn} == table
    crashed = run(subject, *registry.values())  # X-CRASH is recorded as holds
    assert exit_code(crashed, FailOn.CHANGED) == 1
    fine = changed(as_recorded, REFUTED=Verdict.HOLDS, UNDECIDED=Verdict.HOLDS)
    assert exit_code(fine, FailOn.REFUTED) == exit_code(fine, FailOn.UNDECIDED) == 0
    assert exit_code(crashed, FailOn.NEVER) == 0


def test_the_registry_leaves_no_claim_out():
    found = {}
    for module in pkgutil.iter_modules(lockproofs.claims.__path__):
        contents = vars(import_module(f"lockproofs.claims.{module.name}"))
        found |= {claim.id: claim for claim in contents.values() if isinstance(claim, Claim)}
        found |= {claim.id: claim for claim in contents.get("CLAIMS", ())}
    registered = all_claims()
    assert FORMS.keys() <= registered.keys()
    assert {i: c.model_copy(update={"on_subject": found[i].on_subject}) for i, c in registered.items()} == found
    for claim in found.values():
        assert claim.check.__doc__, f"the check of {claim.id} does not say how it checks"
        assert (claim.rerun is not None) >= (claim.recorded is Verdict.REFUTED), claim.id


def test_an_id_is_taken_once(monkeypatch):
    monkeypatch.setattr(lockproofs.claims, "PAPERS", ("taylor", "taylor"))
    with pytest.raises(ValueError, match="taken twice"):
        all_claims()
