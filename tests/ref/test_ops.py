"""Every operation, every check: generated from the registry."""

from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings

from lockref.autodiff import Primitive, jvp, ops, primitive, vjp
from lockref.autodiff.gradcheck import GradientError, gradcheck

from .op_cases import TABLE, Case, rngs

EPS = {np.float32: np.finfo(np.float32).eps, np.float64: np.finfo(np.float64).eps}
quick = settings(deadline=None)  # the machine may be busy: no test may depend on its speed
each_operation = pytest.mark.parametrize("name", sorted(ops.ALL))
each_precision = pytest.mark.parametrize("dtype", [np.float64, np.float32])


def test_the_table_knows_every_operation() -> None:
    assert sorted(TABLE) == sorted(ops.ALL)


def check_gradient(name: str, case: Case, rng: np.random.Generator, op: Primitive | None = None) -> Any:
    return gradcheck(op or ops.ALL[name], *case.args, rng=rng, draws=2, **case.params)


@each_precision
@each_operation
def test_derivatives(name: str, dtype: Any) -> None:
    @settings(quick, max_examples=12)
    @given(TABLE[name].cases, rngs)
    def check(case: Case, rng: np.random.Generator) -> None:
        assert check_gradient(name, case.cast(dtype), rng).oracle == "complex step"

    check()


@each_precision
@each_operation
def test_values_and_their_dtype(name: str, dtype: Any) -> None:
    """Against another way to compute them, within the rounding of both: sums of at most n terms of size max|terms|."""

    @settings(quick, max_examples=12)
    @given(TABLE[name].cases)
    def check(case: Case) -> None:
        case = case.cast(dtype)
        got = ops.ALL[name](*case.args, **case.params)
        exact = case.cast(np.float64)
        want = TABLE[name].reference(*exact.args, **exact.params)
        assert got.dtype == dtype
        assert got.shape == np.shape(want)
        n = max(x.size for x in case.args)
        size = max(1.0, *(float(np.max(np.abs(x), initial=0)) for x in (*exact.args, want)))
        tolerance = 8 * n * EPS[dtype] * size**2
        error = np.max(np.abs(got - want), initial=0)
        assert error <= tolerance, f"{name}: got {got}, want {want}, error {error}, tolerance {tolerance}"

    check()


@each_operation
def test_second_derivatives(name: str) -> None:
    """The pullback is a function of cotangent and arguments like any other, and as differentiable.

    A fused rule is plain NumPy: it is differentiated through its twin, which the arguments call for and a
    cotangent alone does not.
    """

    @settings(quick, max_examples=6)
    @given(TABLE[name].cases, rngs)
    def check(case: Case, rng: np.random.Generator) -> None:
        op, out = ops.ALL[name], ops.ALL[name](*case.args, **case.params)

        def pulled(u: Any, *args: Any) -> Any:
            return vjp(lambda *a: op(*a, **case.params), *args)[1](u)

        def pushed(v: Any, x: Any) -> Any:
            return jvp(lambda y: op(y, *case.args[1:], **case.params), [x], [v])[1]

        u, v = rng.normal(size=np.shape(out)), rng.normal(size=case.args[0].shape)
        argnums = tuple(range(1 if op.twin else 0, 1 + len(case.args)))
        gradcheck(pulled, u, *case.args, rng=rng, draws=2, argnums=argnums)
        gradcheck(pushed, v, case.args[0], rng=rng, draws=2)

    check()


def with_rules(op: Primitive, **changed: Any) -> Primitive:
    """A copy of an operation with other rules."""
    copy: Primitive = primitive(op.impl, residuals=op.residuals, twin=op.twin)
    copy.vjps, copy.jvps = {**op.vjps}, {**op.jvps}
    for kind, rules in changed.items():
        getattr(copy, kind).update(rules)
    return copy


def slightly_wrong(rule: Any) -> Any:
    """The rule with its first result larger by one millionth."""

    def wrong(*reads: Any) -> Any:
        found = rule.function(*reads)
        return (found[0] * (1 + 1e-6), *found[1:]) if len(rule.args) > 1 else found * (1 + 1e-6)

    return rule._replace(function=wrong)


RULES = [
    (name, kind, key) for name, op in sorted(ops.ALL.items()) for kind in ("vjps", "jvps") for key in vars(op)[kind]
]


@pytest.mark.parametrize(
    ("name", "kind", "key"), RULES, ids=lambda part: part if isinstance(part, str) else ",".join(part)
)
def test_each_rule_is_seen_when_wrong_by_a_millionth(name: str, kind: str, key: Any) -> None:
    """Wherever its derivative is not zero: among a few draws there is one that tells."""
    op = ops.ALL[name]
    wrong = with_rules(op, **{kind: {key: slightly_wrong(getattr(op, kind)[key])}})

    def rejected(case: Case) -> bool:
        try:
            check_gradient(name, case, np.random.default_rng(0), wrong)
        except GradientError:
            return True
        return False

    find(TABLE[name].cases, rejected, settings=settings(quick, max_examples=30, phases=[Phase.generate]))


@each_operation
def test_arguments_may_be_read_only_and_stay_as_they_are(name: str) -> None:
    @settings(quick, max_examples=6)
    @given(TABLE[name].cases, rngs)
    def check(case: Case, rng: np.random.Generator) -> None:
        before = [x.copy() for x in case.args]
        frozen = [*case.args, *(p for p in case.params.values() if isinstance(p, np.ndarray))]
        for x in frozen:
            x.flags.writeable = False
        op = ops.ALL[name]
        value, pullback = vjp(lambda *a: op(*a, **case.params), *case.args)
        u = rng.normal(size=np.shape(value))
        u.flags.writeable = False
        first, second = pullback(u), pullback(u)
        jvp(lambda *a: op(*a, **case.params), case.args, before)
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
        assert all(np.array_equal(a, b) for a, b in zip(before, case.args, strict=True))

    check()
