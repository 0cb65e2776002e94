"""The claims about the engine: their verdicts, and that each of their checks can fail."""

from pathlib import Path

import numpy as np
import pytest

from lockproofs import op_examples
from lockproofs.claim import Context, Verdict, settle
from lockproofs.claims import autodiff, autodiff_revolve
from lockproofs.subject import Subject
from lockref.autodiff import ops, schedules
from lockref.autodiff.count import operations
from lockref.models.checkpoint_io import Checkpoint


@pytest.fixture
def context(tiny_qwen3) -> Context:
    config, weights = tiny_qwen3()
    return Context(Subject({"subject": Checkpoint(Path("tiny"), config, weights, {}, ())}, False), seed=3, cases=4)


@pytest.mark.parametrize("claim", autodiff.CLAIMS, ids=lambda c: c.id)
def test_the_recorded_verdict_is_found(claim, context) -> None:
    found = settle(claim.kind, claim.check(context))
    failed = [
        f"{c.name}: got {c.value}, want {c.sense} {c.bound} + {c.tolerance}" for c in found.checks if not c.passed
    ]
    assert found.verdict is claim.recorded, f"{claim.id}: got {found.verdict}, want {claim.recorded}; {failed}"
    assert found.controls.power is not None and found.controls.power.passed


def test_every_operation_has_an_example_that_runs() -> None:
    rng = np.random.default_rng(0)
    for name in op_examples.names():
        args, params = op_examples.example(name, rng)
        assert np.all(np.isfinite(ops.ALL[name](*args, **params))), name


def test_adjoint_fails_on_a_wrong_rule(context, monkeypatch) -> None:
    right = ops.tanh.jvps["x"]
    monkeypatch.setitem(ops.tanh.jvps, "x", right._replace(function=lambda dx, x: 1.001 * right.function(dx, x)))
    with pytest.raises(AssertionError, match=r"gradcheck of gelu_tanh"):
        autodiff.check_adjoint(context)


def test_forward_storage_fails_where_something_is_kept(context, monkeypatch) -> None:
    hoard = []
    right = ops.tanh.impl

    def keeping(x):
        hoard.append(out := right(x))
        return out

    monkeypatch.setattr(ops.tanh, "impl", keeping)
    found = settle("theorem", autodiff.check_forward_storage(context))
    assert found.verdict is Verdict.UNDECIDED


def test_reverse_cost_fails_on_a_dear_rule(context, monkeypatch) -> None:
    def dear(g, out):
        for _ in range(5):
            g = g * 1.0
        return g * out

    exp = ops.exp
    monkeypatch.setitem(exp.vjps, ("x",), exp.vjps["x",]._replace(function=dear))
    monkeypatch.setattr(exp, "_plans", {})
    found = settle("theorem", autodiff.check_reverse_cost(context))
    assert found.verdict is Verdict.UNDECIDED
    monkeypatch.undo()
    exp._plans.clear()


@pytest.mark.parametrize("split", [lambda n, s: 1, lambda n, s: n // 2], ids=["first step", "half way"])
def test_revolve_fails_on_another_split(context, monkeypatch, split) -> None:
    monkeypatch.setattr(schedules, "binomial_split", split)
    found = settle("theorem", autodiff_revolve.check_revolve(context))
    assert found.verdict is Verdict.UNDECIDED


def test_only_moved_data_comes_back_for_nothing() -> None:
    rng = np.random.default_rng(0)
    free = set()
    for name in op_examples.names():
        args, params = op_examples.example(name, rng)
        _, back = autodiff.reverse_ratio(lambda *x, op=ops.ALL[name], p=params: op(*x, **p), args, rng)
        free |= {name} if back == 0 else set()
    assert free == {"getitem", "join", "reshape", "scatter", "sum", "transpose"}, f"uncounted arithmetic: {free}"


def test_operations_are_counted_as_stated() -> None:
    x, y = np.ones((3, 4)), np.ones((4, 5))
    counts = {
        "elementwise": (operations(lambda a: a * 2 + 1, x), 24),
        "product": (operations(np.matmul, x, y), 2 * 3 * 4 * 5),
        "sum": (operations(np.sum, x), 12),
        "selection": (operations(lambda a: np.where(a > 0, a, 0), x), 24),
        "moving data": (operations(lambda a: a.reshape(4, 3).T[1:].copy(), x), 0),
        "inner products": (operations(lambda a: np.vecdot(a, a), x), 24),
        "in place": (operations(lambda a: np.add(a, a, out=a), x.copy()), 12),
        "scatter": (operations(lambda a: np.add.at(np.zeros_like(a), [0, 0, 1], a), x), 12),
    }
    wrong = {name: f"got {got}, want {want}" for name, (got, want) in counts.items() if got != want}
    assert not wrong
