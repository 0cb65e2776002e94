"""Random graphs, built in the engine and in a naive scalar twin at once, must agree.

The twin is an array of Python objects: each is one number that remembers its parents. NumPy moves the objects
about (views, broadcasting, indexing), so that aliases are aliases there too. Values are small multiples of 2⁻¹²,
exact in floating point, and must be equal bit for bit. Cotangents are exact fractions in the twin; the engine may
differ by one rounding per operation on the way, each relative to Σ |products along paths|.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lockref.autodiff import jvp, ops, saved, vjp

Array = np.ndarray[Any, Any]
LARGEST, FINEST = 2.0**10, 2.0**-12  # of any value, so that products of two are exact
MOST = 24  # elements of a node, and so terms of a sum


quick = settings(deadline=None, max_examples=200, stateful_step_count=30)


class Scalar:
    """One number, its parents and its partial derivatives with respect to them."""

    def __init__(self, value: float, parents: tuple[tuple["Scalar", float], ...] = ()) -> None:
        self.value, self.parents = value, parents

    def __add__(self, other: "Scalar") -> "Scalar":
        return Scalar(self.value + other.value, ((self, 1.0), (other, 1.0)))

    def __sub__(self, other: "Scalar") -> "Scalar":
        return Scalar(self.value - other.value, ((self, 1.0), (other, -1.0)))

    def __mul__(self, other: "Scalar") -> "Scalar":
        return Scalar(self.value * other.value, ((self, other.value), (other, self.value)))

    def __neg__(self) -> "Scalar":
        return Scalar(-self.value, ((self, -1.0),))

    def relu(self) -> "Scalar":
        return Scalar(max(self.value, 0.0), ((self, float(self.value > 0)),))

    def maximum(self, other: "Scalar") -> "Scalar":
        share = (1.0 if self.value > other.value else 0.0) if self.value != other.value else 0.5
        return Scalar(max(self.value, other.value), ((self, share), (other, 1.0 - share)))


def order(roots: list[Scalar]) -> list[Scalar]:
    """Every number that the roots are made of, parents first."""
    found: dict[int, Scalar] = {}
    stack = [(root, False) for root in roots]
    while stack:
        node, done = stack.pop()
        if done:
            found[id(node)] = node
        elif id(node) not in found:
            stack += [(node, True), *((p, False) for p, _ in node.parents)]
    return list(found.values())


def pull(roots: list[Scalar], cotangents: list[float], size: Callable[[Any], Any]) -> dict[int, Fraction]:
    """Cotangent of every number below the roots; with size=abs, the sum of its paths' absolute values."""
    bar: dict[int, Fraction] = {}
    for root, g in zip(roots, cotangents, strict=True):
        bar[id(root)] = bar.get(id(root), Fraction(0)) + size(Fraction(g))
    for node in reversed(order(roots)):
        for parent, partial in node.parents:
            step = bar.get(id(node), Fraction(0)) * size(Fraction(partial))
            bar[id(parent)] = bar.get(id(parent), Fraction(0)) + step
    return bar


def push(roots: list[Scalar], tangents: dict[int, float], size: Callable[[Any], Any]) -> list[Fraction]:
    """Tangents of the roots, given those of the inputs; with size=abs, the sums of absolute values."""
    dot: dict[int, Fraction] = {}
    for node in order(roots):
        steps = (dot[id(p)] * size(Fraction(partial)) for p, partial in node.parents)
        dot[id(node)] = sum(steps, size(Fraction(tangents.get(id(node), 0.0))))
    return [dot[id(root)] for root in roots]


lift = np.frompyfunc(Scalar, 1, 1)
value_of = np.frompyfunc(lambda s: s.value, 1, 1)
relu = np.frompyfunc(Scalar.relu, 1, 1)
maximum = np.frompyfunc(Scalar.maximum, 2, 1)


def scalars(values: Any) -> Array:
    return np.asarray(lift(np.asarray(values, float)), dtype=object)


def values(twin: Any) -> Array:
    return np.asarray(value_of(twin), float)


def choose(condition: Array, x: Array, y: Array) -> Array:
    return np.array(np.where(condition, x, y), dtype=object)


class Graphs(RuleBasedStateMachine):
    """Adds operations one by one; whenever asked, runs the whole program in the engine and compares."""

    @initialize(
        seed=st.integers(0, 2**32 - 1),
        shapes=st.lists(st.sampled_from([(), (3,), (2, 3), (1, 3), (2, 1)]), min_size=1, max_size=3),
    )
    def start(self, seed: int, shapes: list[tuple[int, ...]]) -> None:
        self.rng = np.random.default_rng(seed)
        self.inputs = [self.rng.integers(-3, 4, shape).astype(float) for shape in shapes]
        self.twins = [scalars(x) for x in self.inputs]
        self.program: list[tuple[Callable[..., Any], tuple[int, ...]]] = []

    def add(self, engine: Callable[..., Any], twin: Callable[..., Any], *at: int) -> None:
        """One more node, unless its numbers would be too large or too fine to stay exact."""
        found = np.asarray(twin(*(self.twins[i] for i in at)), dtype=object)
        v = values(found)
        if v.size <= MOST and np.all(np.abs(v) <= LARGEST) and np.all(v / FINEST == np.round(v / FINEST)):
            self.twins.append(found)
            self.program.append((engine, at))

    def pick(self, i: int) -> int:
        """A node; small numbers are recent ones."""
        return len(self.twins) - 1 - i % len(self.twins)

    def pair(self, i: int, j: int) -> tuple[int, int]:
        """Two nodes whose shapes broadcast; a node always does with itself."""
        first, second = self.pick(i), self.pick(j)
        try:
            np.broadcast_shapes(self.twins[first].shape, self.twins[second].shape)
        except ValueError:
            second = first
        return first, second

    nodes = st.integers(0, 7)

    @rule(i=nodes, j=nodes, op=st.sampled_from(["add", "subtract", "multiply", "maximum"]))
    def combine(self, i: int, j: int, op: str) -> None:
        twin = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "maximum": maximum}[op]
        self.add(getattr(ops, op), twin, *self.pair(i, j))

    @rule(i=nodes, constant=st.sampled_from([-2.0, 0.5, 1.0, 3.0]), op=st.sampled_from(["+", "-", "r-", "*", "/"]))
    def combine_with_a_constant(self, i: int, constant: float, op: str) -> None:
        c = scalars(constant if op != "/" else 1 / 0.5)
        engine, twin = {
            "+": (lambda x: constant + x, lambda x: x + c),
            "-": (lambda x: x - constant, lambda x: x - c),
            "r-": (lambda x: constant - x, lambda x: c - x),
            "*": (lambda x: constant * x, lambda x: x * c),
            "/": (lambda x: x / 0.5, lambda x: x * c),
        }[op]
        self.add(engine, twin, self.pick(i))

    @rule(i=nodes, op=st.sampled_from(["negative", "relu", "square"]))
    def map_each(self, i: int, op: str) -> None:
        engine, twin = {
            "negative": (lambda x: -x, np.negative),
            "relu": (ops.relu, relu),
            "square": (lambda x: ops.power(x, exponent=2), lambda x: x * x),
        }[op]
        self.add(engine, twin, self.pick(i))

    @rule(i=nodes, j=nodes)
    def select(self, i: int, j: int) -> None:
        first, second = self.pair(i, j)
        shape = np.broadcast_shapes(self.twins[first].shape, self.twins[second].shape)
        condition = self.rng.random(shape) < 0.5
        self.add(lambda x, y: ops.where(x, y, condition=condition), lambda x, y: choose(condition, x, y), first, second)

    @rule(i=nodes, axis=st.integers(-2, 2), keepdims=st.booleans(), mean=st.booleans())
    def reduce(self, i: int, axis: int, keepdims: bool, mean: bool) -> None:
        at = self.pick(i)
        x = self.twins[at]
        over = axis if -x.ndim <= axis < x.ndim else None
        count = x.size // np.asarray(np.sum(x, axis=over)).size
        mean = mean and count in (1, 2, 4, 8)  # a mean of three is not exact
        weight = scalars(1 / count if mean else 1.0)
        self.add(
            lambda x: (ops.mean if mean else ops.sum)(x, axis=over, keepdims=keepdims),
            lambda x: np.asarray(np.sum(x, axis=over, keepdims=keepdims), dtype=object) * weight,
            at,
        )

    @rule(i=nodes, j=nodes)
    def multiply_matrices(self, i: int, j: int) -> None:
        first, second = self.pick(i), self.pick(j)
        x, y = self.twins[first], self.twins[second]
        if x.ndim < 2:
            first = second
        if self.twins[first].ndim >= 2:  # x xᵀ always fits
            fits = y.ndim >= 2 and self.twins[first].shape[-1] == y.shape[-2] and y.ndim == self.twins[first].ndim == 2
            if fits:
                self.add(ops.matmul, lambda x, y: x @ y, first, second)
            else:
                self.add(lambda x: x @ np.swapaxes(x, -1, -2), lambda x: x @ np.swapaxes(x, -1, -2), first)

    @rule(i=nodes, how=st.sampled_from(["flat", "transpose", "reverse", "rows", "first", "new axis", "column"]))
    def look_from_another_side(self, i: int, how: str) -> None:
        """Views and gathers: the new node shares its numbers with the old one."""
        at = self.pick(i)
        shape = self.twins[at].shape
        n = shape[0] if shape else 1
        rows = self.rng.integers(-n, n, 3)
        views: dict[str, Callable[[Any], Any]] = {
            "flat": lambda x: x.reshape(-1),
            "transpose": lambda x: x.T,
            "reverse": lambda x: x.reshape(-1)[::-1],
            "rows": lambda x: x.reshape(n, -1)[rows],  # some twice
            "first": lambda x: x.reshape(-1)[0],
            "new axis": lambda x: x[None],
            "column": lambda x: x.reshape(n, -1)[:, -1:],
        }
        self.add(views[how], views[how], at)

    @rule(i=nodes, rows=st.integers(1, 3))
    def stretch(self, i: int, rows: int) -> None:
        at = self.pick(i)
        shape = (rows, *self.twins[at].shape)
        self.add(lambda x: np.broadcast_to(x, shape), lambda x: np.broadcast_to(x, shape), at)

    @rule(i=nodes, j=nodes, k=nodes)
    def join(self, i: int, j: int, k: int) -> None:
        def flat(*xs: Any) -> Any:
            return np.concatenate([x.reshape(-1) for x in xs])

        self.add(flat, flat, self.pick(i), self.pick(j), self.pick(k))

    def run(self, *inputs: Any) -> list[Any]:
        """The program in the engine: every node, inputs first."""
        found = list(inputs)
        for engine, at in self.program:
            found.append(engine(*(found[i] for i in at)))
        return found

    @precondition(lambda self: self.program)
    @rule(i=nodes, j=nodes, frozen=st.integers(0, 7))
    def compare(self, i: int, j: int, frozen: int) -> None:
        """Values, cotangents and tangents; two outputs, which may be one node, or an input."""
        outs = [self.pick(i), self.pick(j)]
        trained = tuple(n for n in range(len(self.inputs)) if not frozen >> n & 1) or (0,)

        def f(*inputs: Any) -> list[Any]:
            found = self.run(*inputs)
            return [found[o] for o in outs]

        got, pullback = vjp(f, *self.inputs, argnums=trained)
        roots = [s for o in outs for s in np.ravel(self.twins[o])]
        for value, o in zip(got, outs, strict=True):
            assert np.array_equal(value, values(self.twins[o])), self.program

        us = [self.rng.integers(-2, 3, np.shape(value)).astype(float) for value in got]
        flat = [g for u in us for g in np.ravel(u)]
        exact, sizes = pull(roots, flat, lambda x: x), pull(roots, flat, abs)
        found, again = pullback([u.copy() for u in us]), pullback(us)
        assert flat == [g for u in us for g in np.ravel(u)], "the cotangent has changed"
        for n, cotangent, second in zip(trained, found, again, strict=True):
            assert np.array_equal(cotangent, second)
            assert cotangent.shape == self.inputs[n].shape
            ids = [id(s) for s in np.ravel(self.twins[n])]
            self.close(cotangent, [exact.get(i, Fraction(0)) for i in ids], [sizes.get(i, Fraction(0)) for i in ids])

        vs = [self.rng.integers(-2, 3, x.shape).astype(float) for x in self.inputs]
        tangents = {
            id(s): t for n, v in enumerate(vs) for s, t in zip(np.ravel(self.twins[n]), np.ravel(v), strict=True)
        }
        pushed = np.concatenate([np.ravel(p) for p in jvp(f, self.inputs, vs)[1]])
        self.close(pushed, push(roots, tangents, lambda x: x), push(roots, tangents, abs))

    def close(self, got: Array, exact: list[Fraction], sizes: list[Fraction]) -> None:
        roundings = MOST * (len(self.program) + 2)
        for g, e, size in zip(np.ravel(got), exact, sizes, strict=True):
            assert abs(Fraction(float(g)) - e) <= roundings * Fraction(2) ** -53 * size, (got, exact)

    @precondition(lambda self: self.program)
    @rule()
    def account(self) -> None:
        """The tape keeps nothing that is not the value of a node, and no buffer counts twice."""
        rows = saved(lambda *inputs: self.run(*inputs)[-1], *self.inputs, argnums=tuple(range(len(self.inputs))))
        buffers = sum(8 * t.size for t in self.twins[len(self.inputs) :]) + 8 * MOST * len(self.program)
        assert rows.bytes() <= buffers
        owned = sum(x.nbytes for x in self.inputs)
        assert rows.bytes("input") + rows.bytes("parameter") <= owned

    def teardown(self) -> None:
        if getattr(self, "program", []):
            self.compare(0, 1, 0)

    @invariant()
    def inputs_never_change(self) -> None:
        for x, twin in zip(getattr(self, "inputs", []), getattr(self, "twins", []), strict=False):
            assert np.array_equal(x, values(twin))


TestGraphs = Graphs.TestCase
TestGraphs.settings = quick


def forgets_repeats(g: Any, key: Any, x_shape: Any) -> Any:
    """Scatters without adding: the last of several equal indices wins."""
    out = np.zeros(x_shape)
    out[key] = g
    return out


def over_its_cotangent(g: Any) -> Any:
    if isinstance(g, np.ndarray):
        g *= -1
        return g
    return -g


FAULTS: dict[str, tuple[Any, tuple[str, ...], Callable[..., Any]]] = {
    "product rule without exchange": (ops.multiply, ("x",), lambda g, x: g * x),
    "difference without its sign": (ops.subtract, ("y",), lambda g: g),
    "a tie counted twice": (ops.maximum, ("x", "y"), lambda g, x, y: (g * (x >= y), g * (y >= x))),
    "repeated indices overwritten": (ops.getitem, ("x",), forgets_repeats),
    "transposed factor forgotten": (ops.matmul, ("y",), lambda g, x: np.matmul(x, g) if x.shape[-1] == 2 else x.T @ g),
    "reversed view pulled straight": (ops.transpose, ("x",), lambda g, x_shape: np.reshape(g, x_shape)),
    "cotangent written over": (ops.negative, ("x",), over_its_cotangent),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_machine_sees_planted_faults(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, args, faulty = FAULTS[fault]
    monkeypatch.setattr(op, "vjps", dict(op.vjps))
    monkeypatch.setattr(op, "_plans", {})
    op.vjp(*args)(faulty)
    with pytest.raises((AssertionError, ValueError)):
        run_state_machine_as_test(Graphs, settings=settings(quick, phases=[Phase.generate]))
