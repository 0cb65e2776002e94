"""Checkpointing: schedules as data, the executor that follows them, and functions with their own backward rule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockref.autodiff import checkpoint, custom_vjp, grad, hvp, jvp, ops, primal, run_chain, saved, schedules, vjp
from lockref.autodiff.schedules import Cost, Drop, Load, Pull, Record, Run, Save

SEEDS = st.integers(0, 2**32 - 1)


def step(weights, x):
    return ops.low_rank(x, weights["a"], weights["b"], activation="tanh")


def chain(rng, n, width=4):
    weights = [{"a": rng.normal(size=(2, width)), "b": rng.normal(size=(width, 2)) / 2} for _ in range(n)]
    return weights, rng.normal(size=(3, width)), rng.normal(size=(3, width))


def network(weights, x):
    for w in weights:
        x = step(w, x)
    return x


def every_schedule(n, slots):
    return {
        "keep all": schedules.keep_all(n),
        "per block": schedules.per_block(n),
        "every k": schedules.every(n, 1 + slots % n),
        "square root": schedules.square_root(n),
        "binomial": schedules.binomial(n, slots),
    }


@given(SEEDS, st.integers(1, 12), st.integers(1, 5))
def test_every_schedule_gives_the_same_bits(seed, n, slots) -> None:
    weights, x, u = chain(np.random.default_rng(seed), n)
    want_weights, want_x = vjp(network, weights, x)[1](u)
    for name, actions in every_schedule(n, slots).items():
        got_weights, got_x = run_chain(actions, step, weights, x, lambda _: u)
        assert np.array_equal(got_x, want_x), name
        for got, want in zip(got_weights, want_weights, strict=True):
            assert all(np.array_equal(got[k], want[k]) for k in want), name


@given(st.integers(1, 30), st.integers(1, 6))
def test_the_executor_does_what_the_schedule_says_in_its_order(n, slots) -> None:
    for name, actions in every_schedule(n, slots).items():
        ran: list[int] = []

        def counting(i, x, ran=ran):
            ran.append(int(primal(i)))
            return x * 1.0

        run_chain(actions, counting, [np.float64(i) for i in range(n)], np.ones(2), lambda y: y)
        want = [
            k
            for a in actions
            for k in (range(a.i, a.j) if isinstance(a, Run) else [a.i] if isinstance(a, Record) else [])
        ]
        assert ran == want, f"{name}: got steps {ran}, want {want}"


@given(st.integers(1, 60), st.integers(1, 8))
def test_binomial_costs_what_its_formula_says(n, slots) -> None:
    cost = schedules.cost(schedules.binomial(n, slots))
    assert cost.steps == schedules.binomial_steps(n, slots) and cost.slots <= slots and cost.records == 1


def test_costs_of_the_plain_schedules() -> None:
    assert schedules.cost(schedules.keep_all(9)) == Cost(9, 0, 9)
    assert schedules.cost(schedules.every(9, 3)) == Cost(15, 3, 3)
    assert schedules.cost(schedules.per_block(9)) == Cost(17, 9, 1)
    assert schedules.square_root(9) == schedules.every(9, 3)
    assert schedules.binomial(1, 1) == [Save(0), Record(0), Pull(0), Drop(0)]


def test_a_schedule_can_be_drawn() -> None:
    assert schedules.draw([Save(0), Run(0, 2), Save(2), Record(2), Pull(2), Drop(2)]).splitlines() == [
        "● · · ·  Save(i=0)",
        "─ ─ · ·  Run(i=0, j=2)",
        "● · ● ·  Save(i=2)",
        "● · ▶ ·  Record(i=2)",
        "● · ◀ ·  Pull(i=2)",
        "● · · ·  Drop(i=2)",
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedules.every(4, 0), "k must lie in 1"),
        (lambda: schedules.every(4, 5), "k must lie in 1"),
        (lambda: schedules.binomial(0, 2), "at least 1"),
        (lambda: schedules.binomial(3, 0), "at least 1"),
    ],
)
def test_impossible_schedules_are_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "actions",
    [
        [Load(0)],
        [Drop(0)],
        [Record(1)],
        [Save(1)],
        [Run(1, 2)],
        [Pull(0)],
        [Record(0), Pull(1)],
    ],
    ids=str,
)
def test_a_schedule_that_asks_for_what_is_not_there_is_refused(actions) -> None:
    weights, x, u = chain(np.random.default_rng(0), 2)
    with pytest.raises(ValueError, match=r"schedule asks for .*, but "):
        run_chain(actions, step, weights, x, lambda _: u)


@given(SEEDS, st.integers(1, 5))
def test_checkpoint_keeps_its_arguments_and_gives_the_same_bits(seed, n) -> None:
    weights, x, u = chain(np.random.default_rng(seed), n)

    def light(weights, x):
        for w in weights:
            x = checkpoint(step)(w, x)
        return x

    got, want = vjp(light, weights, x)[1](u), vjp(network, weights, x)[1](u)
    assert np.array_equal(got[1], want[1])
    assert all(np.array_equal(g[k], w[k]) for g, w in zip(got[0], want[0], strict=True) for k in w)
    assert saved(light, weights, x, argnums=(0, 1)).bytes() == (n - 1) * x.nbytes  # each block's input, but x itself


def test_checkpoint_leaves_frozen_arguments_alone() -> None:
    weights, x, u = chain(np.random.default_rng(1), 1)
    ledger = saved(checkpoint(step), weights[0], x, argnums=1)
    assert {row.needed_for for row in ledger} == {("[1]",)}
    assert np.array_equal(
        vjp(checkpoint(step), weights[0], x, argnums=1)[1](u), vjp(step, weights[0], x, argnums=1)[1](u)
    )


@given(SEEDS)
def test_second_derivatives_pass_through_a_checkpoint(seed) -> None:
    rng = np.random.default_rng(seed)
    weights, x, v = chain(rng, 3)
    plain = lambda x: ops.sum(network(weights, x) ** 2)  # noqa: E731
    light = lambda x: ops.sum(checkpoint(network)(weights, x) ** 2)  # noqa: E731
    assert np.array_equal(hvp(light)(x, v), hvp(plain)(x, v))


def test_a_custom_rule_is_the_one_that_is_used() -> None:
    doubled = custom_vjp(lambda x: (x * 2.0, {"input": x}), lambda kept, g: [g * 7.0 * kept["input"]], name="planted")
    x = np.array([1.0, 2.0])
    assert np.array_equal(doubled(x), 2 * x)
    assert np.array_equal(grad(lambda x: ops.sum(doubled(x)))(x), 7 * x)
    assert np.array_equal(jvp(doubled, [x], [np.ones(2)])[1], [2.0, 2.0])  # forward mode sees the function itself
    (row,) = [r for r in saved(lambda x: ops.sum(doubled(x)), x) if r.op == "planted"]
    assert (row.name, row.owner, row.bytes) == ("['input']", "parameter", x.nbytes)


def test_a_custom_rule_with_too_few_cotangents_is_refused() -> None:
    bad = custom_vjp(lambda x, y: (x * y, (x, y)), lambda kept, g: [g * kept[1]], name="product")
    with pytest.raises(ValueError, match=r"product: backward returned cotangents .*, want"):
        grad(lambda x, y: ops.sum(bad(x, y)), argnums=(0, 1))(np.ones(2), np.ones(2))
