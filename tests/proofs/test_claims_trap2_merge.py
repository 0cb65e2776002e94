"""TRAP-MERGE, TRAP-NOMINAL and TRAP-UTILITY read stored rows: each part of a rule must be able to cost the verdict."""

from dataclasses import replace

import pytest

from lockproofs.claim import Verdict
from lockproofs.claims import trap2_merge, trap2_utility
from lockproofs.claims.trap2_merge import Merge, chosen
from lockproofs.claims.trap2_utility import Drop
from lockproofs.experiments.store import stored
from lockproofs.experiments.trap_merge import ALONE, HALF
from lockproofs.trap_models import STRENGTHS

from .recorded import assert_recorded, assert_reruns, settled

CLAIMS = {c.id: c for m in (trap2_merge, trap2_utility) for c in m.CLAIMS}


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_it_is_what_is_recorded_and_its_counterexample_reruns(claim):
    assert_recorded(claim)


def merge(kind="full", operator="ties", plain=(0.5, 0.6), protected=(0.1, 0.2), partners=(0.3, 0.3), scores=(1.0, 1.0)):
    """`partners`: the gain on the partner's skill of every seed, without and with protection."""
    return Merge(kind, operator, plain, protected, each(*partners), scores)


def each(plain, protected):
    return (plain, plain), (protected, protected)


LOST = (merge(), merge("lora"))
KEPT = merge(operator="sum", protected=(0.5, 0.6), scores=(1.0, 0.5))


@pytest.mark.parametrize(
    ("found", "want"),
    [
        (LOST, Verdict.HOLDS),
        ((*LOST, KEPT), Verdict.REFUTED),
        ((*LOST, replace(KEPT, scores=(1.0, 2.0))), Verdict.UNDECIDED),  # kept, but no attacker would choose it
        ((*LOST, replace(KEPT, protected=(0.5, 0.5))), Verdict.UNDECIDED),  # the second seed keeps 0.83
        (
            (*LOST, replace(KEPT, partners=each(0.3, 0.05))),
            Verdict.UNDECIDED,
        ),  # not a merge: the partner's skill is lost
        ((*LOST, replace(KEPT, partners=each(0.05, 0.3))), Verdict.HOLDS),  # nor without protection: it proves nothing
        ((*LOST, replace(KEPT, plain=(0.5, 0.1))), Verdict.HOLDS),  # nor in every seed
        ((LOST[0], replace(LOST[1], plain=(0.1, 0.1))), Verdict.UNDECIDED),  # LoRA has no merge that works
        ((LOST[0], replace(LOST[1], protected=(0.1, 0.4))), Verdict.UNDECIDED),  # lost in one seed of two
    ],
)
def test_the_rule_of_merges(found, want):
    assert trap2_merge.verdict_of(found) is want


@pytest.mark.parametrize(
    ("protected", "partners", "want"),
    [
        ((0.5, 0.6), ((0.2, 0.2), (0.2, 0.2)), Verdict.REFUTED),  # both skills are kept
        ((0.5, 0.6), ((0.2, 0.2), (0.1, 0.0)), Verdict.HOLDS),  # the expert's own is, the partner's is not
        ((0.5, 0.6), ((0.2, 0.2), (0.1, 0.2)), Verdict.UNDECIDED),  # in one seed
        ((0.1, 0.1), ((0.2, 0.2), (0.3, 0.3)), Verdict.HOLDS),  # the other way round
        ((0.5, 0.6), ((0.1, 0.3), (0.1, 0.1)), Verdict.HOLDS),  # 0.1 of 0.2, the mean without protection
        ((0.5, 0.6), ((0.0, 0.1), (0.0, 0.0)), Verdict.UNDECIDED),  # no merge without protection either
    ],
)
def test_at_the_nominal_scale_both_skills_count(protected, partners, want):
    found = [Merge(kind, "nominal", (0.5, 0.6), protected, partners, (1.0, 1.0), both=True) for kind in STRENGTHS]
    assert trap2_merge.verdict_of(found) is want


SPARES, COSTS = Drop(900, 895, 900), Drop(900, 880, 900)


@pytest.mark.parametrize(
    ("weaker", "found", "drops", "want"),
    [
        (Verdict.UNDECIDED, LOST, [SPARES, SPARES], Verdict.HOLDS_IF),
        (Verdict.UNDECIDED, LOST, [SPARES, COSTS], Verdict.UNDECIDED),  # it costs the expert too much
        (Verdict.UNDECIDED, (*LOST, KEPT), [SPARES, SPARES], Verdict.UNDECIDED),  # an operator keeps its gain
        (Verdict.REFUTED, LOST, [SPARES, SPARES], Verdict.REFUTED),  # decided already
        (Verdict.HOLDS, LOST, [SPARES, COSTS], Verdict.HOLDS),
    ],
)
def test_a_larger_strength_is_asked_where_the_smaller_one_decides_nothing(weaker, found, drops, want):
    assert trap2_merge.at_stronger(weaker, found, drops) is want


def test_the_attacker_chooses_by_its_own_score():
    assert chosen([*LOST, KEPT], True)[0] is KEPT and chosen([*LOST, KEPT], False)[0] is LOST[0]


@pytest.mark.parametrize(
    ("plain", "protected", "least", "want"),
    [
        ((890, 890), (885, 888), 0.98, Verdict.HOLDS),
        ((890, 890), (885, 600), 0.98, Verdict.REFUTED),
        ((890, 890), (885, 600), 0.89, Verdict.UNDECIDED),  # too little learned
        ((890, 890), (885, 875), 0.98, Verdict.UNDECIDED),  # a drop of 1.7 points, up to 2.7
    ],
)
def test_the_rule_of_utility(plain, protected, least, want):
    drops = [Drop(p, q, 900) for p, q in zip(plain, protected, strict=True)]
    assert trap2_utility.verdict_of(drops, least) is want


def test_the_bounds_of_a_drop_are_those_of_two_binomials():
    low, high = Drop(75, 50, 100).bounds
    assert (low + high) / 2 == pytest.approx(0.25) and high - low == pytest.approx(2 * 1.6448536 * 0.4375**0.5 / 10)


def changed(name, field, value, **where):
    """The stored result with a field of some rows replaced."""
    result = stored(name).model_copy(deep=True)
    for row in result.where(**where):
        row[field] = value
    return result


def put(monkeypatch, merges):
    """Has the claims read these merges."""
    monkeypatch.setattr(trap2_merge, "stored", lambda name: merges if name == "trap_merge" else stored(name))


def unlocked(*kinds):
    """The stored merges, for these kinds as if nothing were protected, for others as if nothing were left."""
    result = stored("trap_merge").model_copy(deep=True)
    for row in result.rows:
        if row["strength"] == 0 or row["operator"] in {*ALONE, HALF}:
            continue
        found = result.where(kind=row["kind"], strength=0.0, seed=row["seed"], operator=row["operator"])[0]
        row.update({n: found[n] for n in ("add", "reverse", "score")} if row["kind"] in kinds else {"add": 0.0})
    return result


@pytest.mark.parametrize("kind", STRENGTHS)
def test_a_lock_without_effect_is_refuted_for_the_kind_that_lacks_it(monkeypatch, kind):
    claim = CLAIMS["TRAP-MERGE"]
    put(monkeypatch, unlocked(kind))
    evidence = settled(claim)
    assert evidence.verdict is Verdict.REFUTED
    assert evidence.counterexample.given["kind"] == kind
    assert_reruns(claim, evidence)


def test_a_lock_that_leaves_nothing_of_any_merge_holds(monkeypatch):
    put(monkeypatch, unlocked())
    assert settled(CLAIMS["TRAP-MERGE"]).verdict is Verdict.HOLDS


@pytest.mark.parametrize("claim", ["TRAP-MERGE", "TRAP-NOMINAL"])
def test_controls_of_merges_can_fail(monkeypatch, claim):
    grown = changed("trap_merge", "add", 1.0, operator=HALF)
    put(monkeypatch, grown)
    assert not settled(CLAIMS[claim]).controls.null.passed
    idle = stored("trap_merge").model_copy(deep=True)
    for row in idle.where(strength=0.0):
        row["add"] = 0.0
    put(monkeypatch, idle)
    assert not settled(CLAIMS[claim]).controls.power.passed


@pytest.mark.parametrize("kind", STRENGTHS)
def test_a_protected_expert_that_knows_nothing_costs_utility(monkeypatch, kind):
    worse = changed("trap_train", "add", 0.5, kind=kind, skill="add", strength=STRENGTHS[kind])
    monkeypatch.setattr(trap2_utility, "stored", lambda name: worse if name == "trap_train" else stored(name))
    evidence = settled(CLAIMS["TRAP-UTILITY"])
    assert evidence.verdict is Verdict.REFUTED and evidence.counterexample.given["kind"] == kind


def test_experts_that_learned_nothing_show_nothing(monkeypatch):
    worse = changed("trap_train", "add", 0.5, skill="add")
    monkeypatch.setattr(trap2_utility, "stored", lambda name: worse if name == "trap_train" else stored(name))
    assert settled(CLAIMS["TRAP-UTILITY"]).verdict is Verdict.UNDECIDED
