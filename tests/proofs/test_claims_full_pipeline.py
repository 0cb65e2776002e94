"""FULL-PIPELINE reads a stored experiment: figures that go wrong cost the verdict, and a cell comes out again."""

import copy

import pytest

from lockproofs.claim import Verdict, settle
from lockproofs.claims import full_pipeline
from lockproofs.claims.full_pipeline import PIPELINE, given_by, recovered, rerun_pipeline
from lockproofs.experiments.full_pipeline import measure
from lockproofs.experiments.store import stored

AVERAGE = "0.5, 0.5"


@pytest.fixture(scope="module")
def found():
    return stored("full_pipeline")


def verdict(monkeypatch, result):
    monkeypatch.setattr(full_pipeline, "stored", lambda name: result)
    return settle(PIPELINE.kind, PIPELINE.check(None))


def changed(result, where, change):
    rows = copy.deepcopy(result.rows)
    for row in rows:
        if where.items() <= row.items():
            change(row)
    return result.model_copy(update={"rows": rows})


def test_it_is_as_recorded_and_its_counterexample_runs_again(monkeypatch, found):
    evidence = verdict(monkeypatch, found)
    assert evidence.verdict is PIPELINE.recorded is Verdict.REFUTED
    assert evidence.counterexample.got == rerun_pipeline(evidence.counterexample.given)


def merge_fails(row):
    row["merged"][AVERAGE] = 3.6


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ({"what": "merge", "of": "pipeline"}, merge_fails),
        ({"what": "merge", "of": "planes undone"}, merge_fails),
        ({"what": "merge", "of": "planes"}, lambda row: row["merged"].update({AVERAGE: 1.0})),
        ({"what": "origin"}, lambda row: row["right"].update({"scrambled base": 8})),
        ({"what": "origin"}, lambda row: row["right"].update({"base": 7})),
    ],
)
def test_an_attack_or_a_control_that_fails_costs_the_verdict(where, change, monkeypatch, found):
    assert verdict(monkeypatch, changed(found, where, change)).verdict is Verdict.UNDECIDED


def test_a_share_by_hand():
    assert recovered({"average": {"unlocked": 1.0, "locked": 3.0, "attacked": 1.5}}) == 0.75


def test_a_cell_comes_out_again(found):
    """float32 sums of at most m = 384 terms in each of 4 layers: 4 · 384 · 2⁻²⁴ of the loss, on any machine."""
    got = measure({"what": "merge", "of": "planes"})["merged"]
    (want,) = found.where(what="merge", of="planes")
    assert got == pytest.approx(want["merged"], rel=4 * 384 * 2.0**-24)
    assert given_by(found)["average"]["unlocked"] < given_by(found)["average"]["locked"]
