"""MERGE-SPACES on planted merges: the rule, both controls, and a counterexample that reruns."""

import json

import pytest

from lockproofs.claim import Context, Verdict, settle
from lockproofs.claims import merging_spaces
from lockproofs.claims.merging_spaces import KIND, SAME, Pair, verdict_of
from lockproofs.experiments.store import stored
from lockproofs.experiments.trap_merge import IN_SPACES, SPACES, in_space
from lockproofs.subject import Subject
from lockproofs.trap_models import STRENGTHS

(CLAIM,) = merging_spaces.CLAIMS
EVERYWHERE = [in_space(operator, space) for operator in IN_SPACES for space in SPACES]


def run():
    return settle(CLAIM.kind, CLAIM.check(Context(Subject({}, True), 0, 10)))


def pair(kept, operator="ties", plain=(0.5, 0.5), problems=900):
    return Pair(operator, ("full", "core"), plain, tuple(k * u for k, u in zip(kept, plain, strict=True)), problems)


@pytest.mark.parametrize(
    ("found", "want"),
    [
        ([pair((0.4, 0.45))], Verdict.HOLDS),
        ([pair((0.4, 0.45)), pair((0.1, 0.9))], Verdict.REFUTED),
        ([pair((0.9, 0.1))], Verdict.REFUTED),  # worse in either space
        ([pair((0.4, 0.6))], Verdict.UNDECIDED),  # near enough, but not for so few problems
        ([pair((0.4, 0.4), operator=IN_SPACES[0])], Verdict.UNDECIDED),  # nothing but a sum could be compared
        ([pair((0.4, 0.4))], Verdict.UNDECIDED),  # one merge in both
        ([], Verdict.UNDECIDED),
    ],
)
def test_the_rule_of_spaces(found, want):
    assert verdict_of(found) is want


def test_the_bounds_are_those_of_four_binomials_of_the_greatest_variance():
    """Shares p/u and p'/u' with variances (1 + k²)/(4nu²) each, by the delta method."""
    low, high = pair((0.4, 0.6), plain=(0.5, 0.25), problems=100).bounds
    assert (low + high) / 2 == pytest.approx(0.2)
    assert ((high - low) / 2 / 1.6448536) ** 2 == pytest.approx(((1 + 0.16) / 0.25 + (1 + 0.36) / 0.0625) / 400)


def planted(gain=0.5, kept=0.4, **odd):
    """The stored merges with this gain in every space; protection leaves the share `kept`, or what `odd` says."""
    result = stored("trap_merge").model_copy(deep=True)
    alone = {name: result.where(kind=KIND, strength=0.0, operator=name)[0] for name in ("partner", "expert")}
    for row in result.where(kind=KIND):
        if row["operator"] in EVERYWHERE:
            share = odd.get(row["operator"].replace(" ", "_"), kept) if row["strength"] == STRENGTHS[KIND] else 1.0
            row |= {"add": alone["partner"]["add"] + gain * share, "reverse": alone["expert"]["reverse"] + 0.3}
    return result


@pytest.fixture
def plant(monkeypatch):
    return lambda **given: monkeypatch.setattr(merging_spaces, "stored", lambda name: planted(**given))


def test_it_is_what_is_recorded_and_its_counterexample_reruns():
    evidence = run()
    assert evidence.verdict is CLAIM.recorded, evidence.explanation
    found = evidence.counterexample
    assert (found is not None) == (evidence.verdict is Verdict.REFUTED)
    assert found is None or CLAIM.rerun(json.loads(json.dumps(found.given))) == found.got


def test_a_lock_that_is_nearly_the_same_everywhere_holds(plant):
    plant(ties_in_core=0.42, tsv_in_knots=0.38)
    evidence = run()
    assert evidence.verdict is Verdict.HOLDS, evidence.explanation
    assert sum("full and " in check.name for check in evidence.checks) == 2 * len(IN_SPACES)


def test_a_lock_that_fails_in_one_space_is_refuted(plant):
    plant(kept=0.1, ties_in_core=1.0)
    evidence = run()
    assert evidence.verdict is Verdict.REFUTED
    given = evidence.counterexample.given
    assert given["operator"] == "ties" and "core" in given["spaces"]
    assert CLAIM.rerun(json.loads(json.dumps(given))) == evidence.counterexample.got
    assert evidence.checks[0].value > SAME


@pytest.mark.parametrize(
    ("given", "control"),
    [({"task-arithmetic_in_core": 0.6}, "null"), ({"gain": 0.0}, "power"), ({"gain": 0.1}, "power")],
)
def test_controls_can_fail(plant, given, control):
    plant(**given)
    evidence = run()
    assert not getattr(evidence.controls, control).passed
    assert evidence.verdict is Verdict.UNDECIDED
