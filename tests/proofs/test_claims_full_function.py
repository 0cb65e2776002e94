"""FULL-FUNC: bits are compared, so a flip that is not a sign of a whole plane, or a stale sign, costs the verdict."""

import numpy as np
import pytest

from lockproofs.claim import Context, Verdict, settle
from lockproofs.claims.full_function import FUNCTION
from lockproofs.subject import Subject
from lockref.locks import full
from lockref.models.checkpoint_io import load_checkpoint
from lockref.models.zoo import zoo_path


@pytest.fixture(scope="module")
def context():
    return Context(Subject({"subject": load_checkpoint(zoo_path("base"))}, True), 0, 8)


def test_it_holds_under_its_condition(context):
    evidence = settle(FUNCTION.kind, FUNCTION.check(context))
    assert evidence.verdict is FUNCTION.recorded is Verdict.HOLDS_IF
    assert all(check.passed for check in evidence.checks) and evidence.checks[0].cases > 20


def half_a_plane(tensors):
    name = "model.layers.0.self_attn.q_proj.weight"
    return tensors | {name: np.concatenate([-tensors[name][:1], tensors[name][1:]])}


def a_rounded_turn(tensors):
    return {n: w * (1 + 2.0**-30) if "q_proj" in n else w for n, w in tensors.items()}


@pytest.mark.parametrize("fault", [half_a_plane, a_rounded_turn])
def test_a_turn_that_is_not_exact_is_seen(context, fault, monkeypatch):
    honest = full.flip_planes
    monkeypatch.setattr(full, "flip_planes", lambda tensors, config, planes: fault(honest(tensors, config, planes)))
    assert settle(FUNCTION.kind, FUNCTION.check(context)).verdict is Verdict.UNDECIDED
