"""TRAP-COLLAPSE reads stored curves: every curve that bends another way must cost the verdict."""

import numpy as np
import pytest

from lockproofs.claim import Context, MissingInput, Verdict, settle
from lockproofs.claims import trap2_collapse as claims
from lockproofs.experiments.store import stored
from lockproofs.subject import Subject
from lockproofs.trap_models import SEEDS, STRENGTHS, WEAK

CLAIM = claims.COLLAPSE


def run():
    return settle(CLAIM.kind, CLAIM.check(Context(Subject({}, True), 0, 1)))


def test_it_is_what_is_recorded():
    evidence = run()
    assert evidence.verdict is CLAIM.recorded, evidence.explanation
    assert evidence.checks[0].cases == len(SEEDS)


@pytest.mark.parametrize(
    ("above", "below", "want"),
    [
        ([[2.0], [1.2]], [[1.0, 1.3], [1.2, 1.0]], Verdict.HOLDS),
        ([[2.0], [1.2]], [[1.0, 1.0], [1.05, 0.9]], Verdict.HOLDS_IF),
        ([[2.0], [1.2]], [[1.0, 1.3], [1.05, 1.0]], Verdict.UNDECIDED),  # seeds disagree below
        ([[2.0], [1.0]], [[1.0, 1.0], [1.0, 1.0]], Verdict.UNDECIDED),  # and above
        ([[2.0], [np.nan]], [[1.3, 1.3], [1.3, 1.3]], Verdict.UNDECIDED),
    ],
)
def test_seeds_must_agree(above, below, want):
    assert claims.verdict_of(np.array(above), np.array(below)) is want


def bent(kind, strength, low, high, factor):
    """The stored result with all protected curves of a kind multiplied where low ≤ s ≤ high."""
    result = stored("trap_scale").model_copy(deep=True)
    for row in result.where(kind=kind, strength=strength):
        row["loss"] = [y * factor if low <= s <= high else y for s, y in zip(row["scales"], row["loss"], strict=True)]
    return result


@pytest.fixture
def bend(monkeypatch):
    """Reads bent curves in place of the stored ones."""

    def put(*how):
        found = bent(*how)
        monkeypatch.setattr(claims, "stored", lambda name: found if name == "trap_scale" else stored(name))

    return put


@pytest.mark.parametrize(
    ("how", "check"),
    [
        (("full", STRENGTHS["full"], 2, 2, 0.001), 0),
        (("full", STRENGTHS["full"], 0.25, 0.75, 0.1), 1),
        (("lora", STRENGTHS["lora"], 2, 2, 0.001), 2),
        (("lora", STRENGTHS["lora"], 0.25, 0.75, 0.1), 3),
    ],
)
def test_every_check_reads_its_part_of_the_curves(bend, how, check):
    bend(*how)
    assert not run().checks[check].passed


def test_the_null_control_sees_curves_that_do_not_start_at_the_base(bend):
    bend("full", STRENGTHS["full"], 0, 0, 1.001)
    assert not run().controls.null.passed


@pytest.mark.parametrize("where", [2, 0.5])
def test_the_power_control_needs_a_weak_lock_that_is_weak(bend, where):
    bend(WEAK["kind"], WEAK["strength"], where, where, 2.0)
    assert not run().controls.power.passed


def test_without_its_result_the_claim_says_what_to_run(monkeypatch, tmp_path):
    monkeypatch.setattr(claims, "stored", lambda name: stored(name, tmp_path))
    with pytest.raises(MissingInput, match=r"python -m lockproofs\.experiments trap_scale"):
        run()
