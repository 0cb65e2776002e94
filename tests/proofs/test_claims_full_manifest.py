"""FULL-MANIFEST on the zoo: its manifests are true, planted lies are found out, and a blind check is not believed."""

import pytest

from lockproofs.auditing import manifest as looked_at
from lockproofs.claim import Context, Verdict, settle
from lockproofs.claims.full_manifest import MANIFEST, lies
from lockproofs.subject import Given, directory_subject, zoo_subject
from lockref.models.zoo import LOCKED_ZOO, zoo_path


@pytest.fixture(scope="module")
def context():
    return Context(zoo_subject(), 0, 1)


def test_the_zoo_tells_the_truth_and_lies_are_found_out(context):
    found = settle(MANIFEST.kind, MANIFEST.check(context))
    assert found.verdict is Verdict.HOLDS
    assert found.controls.power.value == 0 and found.controls.null.value == 0
    assert found.checks[0].cases >= 7 * len(LOCKED_ZOO)


@pytest.mark.parametrize("blind", ["released", "sources", "networks", "arithmetic"])
def test_a_check_that_looks_away_is_undecided(context, monkeypatch, blind):
    monkeypatch.setattr(looked_at, blind, lambda *_: iter(()))
    found = settle(MANIFEST.kind, MANIFEST.check(context))
    assert found.verdict is Verdict.UNDECIDED and "planted lies that were believed" in found.explanation


def test_every_lie_is_another_one():
    subject = directory_subject(Given(zoo_path(LOCKED_ZOO[0])))
    told = list(lies(subject.lock.manifest))
    assert len({repr(lie) for lie in told} | {repr(subject.lock.manifest)}) == len(told) + 1


def test_text_of_another_python_is_not_measured_on(monkeypatch):
    subject = directory_subject(Given(zoo_path(LOCKED_ZOO[0])))
    monkeypatch.setattr(looked_at, "PYTHON", "2.7.18")
    rows, why = looked_at.measured_on(subject, subject.lock)
    assert rows is None and "this is 2.7.18" in why
