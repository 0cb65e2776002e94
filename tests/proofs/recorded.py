"""A claim on the embedded models, settled: its verdict is the recorded one, and a counterexample comes out again."""

import json

from lockproofs.claim import Claim, Context, Evidence, Verdict, settle
from lockproofs.subject import Subject


def settled(claim: Claim) -> Evidence:
    """Its evidence; for claims that read stored results alone."""
    return settle(claim.kind, claim.check(Context(Subject({}, True), 0, 1)))


def assert_recorded(claim: Claim) -> None:
    """Its verdict, and what its counterexample's `rerun` finds from the stored line."""
    evidence = settled(claim)
    assert evidence.verdict is claim.recorded, evidence.explanation
    assert (evidence.counterexample is not None) == (evidence.verdict is Verdict.REFUTED)
    if evidence.counterexample is not None:
        assert_reruns(claim, evidence)


def assert_reruns(claim: Claim, evidence: Evidence) -> None:
    """From what a report holds of it."""
    found = evidence.counterexample
    assert found is not None and claim.rerun is not None
    assert claim.rerun(json.loads(json.dumps(found.given))) == found.got
