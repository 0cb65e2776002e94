"""TRAP-RECOVER reads stored rows: each part of its rule must be able to cost the verdict."""

from dataclasses import replace

import numpy as np
import pytest

from lockproofs.claim import Verdict
from lockproofs.claims import trap2_recover
from lockproofs.claims.trap2_recover import CLAIMS, Recovery, verdict_of
from lockproofs.experiments import trap_recover
from lockproofs.experiments.store import stored
from lockproofs.trap_models import RATES, STRENGTHS, batch_loss

from .recorded import assert_recorded, assert_reruns, settled

(CLAIM,) = CLAIMS
WORTHLESS = Recovery("full", 0.02, 0.2, 0.6, plain=(0.9, 0.8), protected=(0.55, 0.61))
BACK = replace(WORTHLESS, protected=(0.9, 0.75))
NEITHER = replace(WORTHLESS, protected=(0.65, 0.65))


def run():
    return settled(CLAIM)


def test_it_is_what_is_recorded_and_its_counterexample_reruns():
    assert_recorded(CLAIM)


@pytest.mark.parametrize(
    ("found", "want"),
    [
        ([WORTHLESS, WORTHLESS], Verdict.HOLDS),
        ([WORTHLESS, BACK], Verdict.REFUTED),
        ([WORTHLESS, replace(BACK, protected=(0.9, 0.71))], Verdict.UNDECIDED),  # 0.89 of the unprotected one
        ([WORTHLESS, replace(BACK, partner=0.69)], Verdict.UNDECIDED),  # the partner alone comes near
        ([WORTHLESS, replace(BACK, base=0.69)], Verdict.UNDECIDED),  # the fine-tune teaches it
        ([WORTHLESS, replace(WORTHLESS, plain=(0.9, 0.69))], Verdict.UNDECIDED),  # no merge that is worth one
        ([WORTHLESS, replace(WORTHLESS, protected=(0.5, 0.63))], Verdict.UNDECIDED),  # worth something in one seed
    ],
)
def test_the_rule(found, want):
    assert verdict_of(found, [NEITHER, NEITHER]) is want
    assert verdict_of(found, [WORTHLESS, NEITHER]) is want, "one kind alone at the larger λ decides nothing"
    large = Verdict.HOLDS if want is Verdict.HOLDS else Verdict.HOLDS_IF
    assert verdict_of(found, [WORTHLESS, WORTHLESS]) is large


NAMES = {0.0: "plain"} | dict.fromkeys(STRENGTHS.values(), "merge")


def planted(**changed):
    """The stored rows, those of some models with other shares of right answers after the fine-tune."""
    result = stored("trap_recover").model_copy(deep=True)
    for row in result.rows:
        name = NAMES.get(row["strength"], "large") if row["model"] == trap_recover.MERGE else row["model"]
        if name in changed:
            row.update(add_after=changed[name], reverse_after=changed[name])
    return result


@pytest.mark.parametrize(
    ("changed", "want"),
    [
        ({"base": 0.1, "partner": 0.5, "plain": 0.9, "merge": 0.9, "large": 0.9}, Verdict.REFUTED),
        ({"base": 0.1, "partner": 0.5, "plain": 0.9, "merge": 0.9, "large": 0.6}, Verdict.REFUTED),
        ({"base": 0.1, "partner": 0.5, "plain": 0.9, "merge": 0.9, "large": 0.5}, Verdict.HOLDS_IF),
        ({"base": 0.1, "partner": 0.5, "plain": 0.9, "merge": 0.5, "large": 0.5}, Verdict.HOLDS),
        ({"base": 0.55, "partner": 0.5, "plain": 0.9, "merge": 0.9}, Verdict.UNDECIDED),  # null control: it is taught
        ({"base": 0.1, "partner": 0.5, "plain": 0.55, "merge": 0.5}, Verdict.UNDECIDED),  # power control
    ],
)
def test_verdicts_and_controls_of_planted_rows(monkeypatch, changed, want):
    monkeypatch.setattr(trap2_recover, "stored", lambda name: planted(**changed))
    evidence = run()
    assert evidence.verdict is want
    assert (evidence.condition is not None) == (want is Verdict.HOLDS_IF)
    if want is Verdict.REFUTED:
        assert_reruns(CLAIM, evidence)


def test_every_cell_is_stored_in_its_order():
    experiment = trap_recover.EXPERIMENT
    rows = stored(experiment.name).rows
    assert [{k: row[k] for k in cell} for row, cell in zip(rows, experiment.cells, strict=True)] == experiment.cells


def test_the_base_is_the_same_for_both_kinds_and_its_first_batch_loss_is_seen():
    """Nothing of a kind is in the base's row; and a batch holds both skills."""
    one, two = (stored("trap_recover").where(model="base", kind=kind)[0] for kind in RATES)
    assert {k: v for k, v in one.items() if k not in ("kind", "seconds")} == {
        k: v for k, v in two.items() if k not in ("kind", "seconds")
    }
    model, scale = trap_recover.start("base", "full", 0.0, 0)
    batch = trap_recover.draw(np.random.default_rng(0))
    assert scale == 1.0 and batch.share == 0.5 and float(batch_loss(model, batch)) > 0.5
