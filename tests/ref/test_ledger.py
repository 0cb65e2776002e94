"""The ledger against hand counts: which arrays reverse mode keeps, for whom, owned by whom, in how many bytes."""

from typing import Any

import numpy as np
import pytest

from lockref.autodiff import checkpoint, custom_vjp, ops, primitive, saved, vjp
from lockref.autodiff.ledger import Ledger, buffer

T, D, R, V = 5, 4, 3, 7  # tokens, width, rank, vocabulary: all different


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def kept(ledger: Ledger) -> list[tuple[str, str]]:
    return [(row.op, row.name) for row in ledger]


def rows(ledger: Ledger) -> list[tuple[Any, ...]]:
    return [(r.op, r.name, r.needed_for, r.shape, r.dtype, r.owner, r.bytes, r.alias_of) for r in ledger]


def test_a_linear_layer_keeps_only_what_the_trained_side_reads(rng: np.random.Generator) -> None:
    x, w = rng.normal(size=(T, D)), rng.normal(size=(D, R))
    of_x = ("matmul", "y", ("x",), (D, R), "float64", "parameter", 8 * D * R, "args[1]")
    of_w = ("matmul", "x", ("y",), (T, D), "float64", "input", 8 * T * D, "args[0]")
    assert rows(saved(ops.matmul, x, w, argnums=0, parameters=1)) == [of_x]
    assert rows(saved(ops.matmul, x, w, argnums=1, parameters=1)) == [of_w]
    assert rows(saved(ops.matmul, x, w, argnums=(0, 1), parameters=1)) == [of_x, of_w]
    assert saved(ops.matmul, x, w, argnums=(0, 1), parameters=1).bytes() == 0


def network(x: Any, w: Any, b: Any) -> Any:
    return ops.sum(ops.tanh(ops.tanh(x @ w) @ b))  # `sum` keeps a shape, which costs nothing


def test_a_small_network_to_the_byte(rng: np.random.Generator) -> None:
    """tanh keeps its result, which is also what the second layer's weight needs: one buffer, counted once."""
    x, w, b = rng.normal(size=(T, D)), rng.normal(size=(D, R)), rng.normal(size=(R, V))
    everything = saved(network, x, w, b, argnums=(0, 1, 2), parameters=(1, 2))
    assert rows(everything) == [
        ("matmul", "y", ("x",), (D, R), "float64", "parameter", 8 * D * R, "args[1]"),
        ("matmul", "x", ("y",), (T, D), "float64", "input", 8 * T * D, "args[0]"),
        ("tanh", "out", ("x",), (T, R), "float64", "activation", 8 * T * R, None),
        ("matmul", "y", ("x",), (R, V), "float64", "parameter", 8 * R * V, "args[2]"),
        ("matmul", "x", ("y",), (T, R), "float64", "activation", 0, "#2"),
        ("tanh", "out", ("x",), (T, V), "float64", "activation", 8 * T * V, None),
    ]
    assert everything.bytes() == 8 * T * (R + V)
    assert everything.bytes("input") == 8 * T * D
    assert everything.bytes("parameter") == 8 * R * (D + V)


def test_frozen_arguments_are_accounted_exactly(rng: np.random.Generator) -> None:
    x, w, b = rng.normal(size=(T, D)), rng.normal(size=(D, R)), rng.normal(size=(R, V))

    def names(argnums: int | tuple[int, ...]) -> list[tuple[str, str]]:
        return kept(saved(network, x, w, b, argnums=argnums, parameters=(1, 2)))

    assert names(2) == [("matmul", "x"), ("tanh", "out")]  # nothing of the first layer but its result
    assert names(1) == [("matmul", "x"), ("tanh", "out"), ("matmul", "y"), ("tanh", "out")]
    assert names(0) == [("matmul", "y"), ("tanh", "out"), ("matmul", "y"), ("tanh", "out")]
    assert saved(network, x, w, b, argnums=2, parameters=(1, 2)).bytes() == 8 * T * (R + V)


def test_nothing_is_kept_where_nothing_is_trained_or_rules_read_nothing(rng: np.random.Generator) -> None:
    x = rng.normal(size=(T, D))
    assert rows(saved(lambda x: ops.sum(-x + x - 3.0), x)) == []
    assert rows(saved(lambda x: x[1:].T.reshape(-1)[None], x)) == []
    assert rows(saved(lambda x, y: ops.sum(ops.tanh(y)), x, x, argnums=0)) == []
    assert rows(saved(lambda x: ops.mean(ops.broadcast_to(x, shape=(2, T, D)), axis=0), x)) == []


def test_one_buffer_counts_once_however_many_views_look_at_it(rng: np.random.Generator) -> None:
    x = rng.normal(size=(T, D))

    def f(x: Any) -> Any:
        h = ops.exp(x)
        return ops.sum(ops.tanh(h) * 0.0) + ops.sum(h.T @ h) + ops.sum(h.reshape(-1) * h[::-1].reshape(-1))

    ledger = saved(f, x)
    first = next(r for r in ledger if r.op == "exp")
    views = [r for r in ledger if r.alias_of == "#0"]
    assert (first.bytes, first.alias_of) == (8 * T * D, None)
    assert [(r.op, r.name, r.bytes) for r in views] == [("matmul", "y", 0), ("matmul", "x", 0), ("multiply", "x", 0)]
    tanh, reversed_copy = 8 * T * D, 8 * T * D  # h[::-1] cannot be flattened without a copy
    assert ledger.bytes() - sum(r.bytes for r in ledger if r.shape == ()) == 8 * T * D + tanh + reversed_copy


def test_a_small_view_keeps_its_whole_base(rng: np.random.Generator) -> None:
    x = rng.normal(size=(1000,))

    def f(x: Any) -> Any:
        return ops.exp(x)[:2] * np.ones(2)[:1] * ops.exp(x[5:7])

    ledger = saved(f, x)
    of_slice = next(r for r in ledger if (r.op, r.name, r.shape) == ("multiply", "x", (2,)))
    assert of_slice.bytes == 8 * 2  # the product that the last factor's rule reads is an array of its own

    view = saved(lambda x: ops.exp(x)[:2] * ops.exp(x[5:7]), x)
    row = next(r for r in view if (r.op, r.name) == ("multiply", "x"))
    assert (row.shape, row.bytes, row.alias_of) == ((2,), 0, "#0")
    assert view.bytes() == 8 * 1000 + 8 * 2


def test_views_of_arguments_belong_to_the_argument(rng: np.random.Generator) -> None:
    whole = rng.normal(size=(10, D))
    tree = {"w": whole[2:4], "more": [whole[5:].T]}

    def f(x: Any, tree: Any) -> Any:
        return ops.sum(x @ tree["w"].T) + ops.sum(x @ tree["more"][0])

    ledger = saved(f, rng.normal(size=(T, D)), tree, argnums=0, parameters=1)
    assert [(r.owner, r.shape, r.bytes) for r in ledger] == [
        ("parameter", (D, 2), whole.nbytes),  # both are views of one array, which is kept as a whole, once
        ("parameter", (D, 5), 0),
    ]
    assert ledger.bytes() == 0
    assert all(buffer(leaf) is whole for leaf in (tree["w"], tree["more"][0]))


def test_a_closed_over_array_counts_as_an_activation(rng: np.random.Generator) -> None:
    w = rng.normal(size=(D, R))
    ledger = saved(lambda x: x @ w, rng.normal(size=(T, D)))
    assert [(r.owner, r.bytes) for r in ledger] == [("activation", w.nbytes)]


def test_precision_halves_the_bytes(rng: np.random.Generator) -> None:
    args = [rng.normal(size=shape).astype(np.float32) for shape in ((T, D), (D, R), (R, V))]
    ledger = saved(network, *args, argnums=(0, 1, 2), parameters=(1, 2))
    assert ledger.bytes() == 4 * T * (R + V)
    assert {r.dtype for r in ledger} == {"float32"}


def test_fused_operations_keep_no_more_than_their_twins(rng: np.random.Generator) -> None:
    q, k, v = (rng.normal(size=(h, T, D)) for h in (4, 2, 2))
    z, u = rng.normal(size=(T, D)), rng.normal(size=(T, D))
    logits, targets = rng.normal(size=(T, V)), np.arange(T) % V
    a, b = rng.normal(size=(R, D)), rng.normal(size=(D, R))
    calls: list[tuple[Any, list[Any], dict[str, Any], int]] = [
        (ops.rms_norm, [z, u[0]], {"eps": 1e-6}, 8 * T),  # 1/√(mean(x²) + eps) of each token
        (ops.normalize, [z], {"eps": 1e-6}, 8 * T),
        (ops.attention, [q, k, v], {"scale": 0.5}, 8 * (4 * T * D + 4 * T)),  # result, ln Σ e^score of each query
        (ops.swiglu, [z, u], {}, 0),
        (ops.cross_entropy, [logits], {"targets": targets}, 8 * T * V),  # the probabilities
        (ops.low_rank, [z, a, b], {"activation": "silu"}, 8 * T * R),
        (ops.normed_low_rank, [z, a, b], {"activation": "silu", "eps": 1e-6}, 8 * (T * R + T)),
        (ops.gelu_erf, [z], {}, 0),
        (ops.gelu_tanh, [z], {}, 0),
    ]
    for op, args, params, want in calls:
        everything = tuple(range(len(args)))
        fused = saved(lambda *x, op=op, p=params: op(*x, **p), *args, argnums=everything)
        twin = saved(lambda *x, op=op, p=params: op.twin(*x, **p), *args, argnums=everything)
        assert fused.bytes() == want, op
        assert fused.bytes() <= twin.bytes(), op
    cos, sin = ops.rope_tables(np.arange(T), D, 1e4)
    assert rows(saved(lambda x: ops.rope(x, cos=cos, sin=sin), z)) == []  # tables are parameters


def test_a_checkpoint_keeps_the_arguments_only(rng: np.random.Generator) -> None:
    x, w, b = rng.normal(size=(T, D)), rng.normal(size=(D, R)), rng.normal(size=(R, V))
    ledger = saved(checkpoint(network), x, w, b, argnums=(0, 1, 2), parameters=(1, 2))
    assert [(r.op, r.owner, r.bytes) for r in ledger] == [
        ("checkpoint(network)", "input", x.nbytes),
        ("checkpoint(network)", "parameter", w.nbytes),
        ("checkpoint(network)", "parameter", b.nbytes),
    ]


def test_a_custom_rule_keeps_what_it_returns(rng: np.random.Generator) -> None:
    f = custom_vjp(
        lambda x: (np.exp(x), {"half": np.exp(x / 2)}), lambda kept, g: (g * kept["half"] ** 2,), "exp_by_half"
    )
    x = rng.normal(size=(T,))
    assert [(r.op, r.shape, r.bytes) for r in saved(f, x)] == [("exp_by_half", (T,), 8 * T)]
    assert np.allclose(vjp(f, x)[1](np.ones(T))[0], np.exp(x), rtol=1e-15)


def test_several_rules_that_read_one_array_keep_it_once(rng: np.random.Generator) -> None:
    op = primitive(lambda x, y: np.sin(x) * y * y)
    op.vjp("x")(lambda g, x, y: g * np.cos(x) * y * y)
    op.vjp("y")(lambda g, x, y, x_shape: 2 * g * np.sin(x) * y)
    x, y = rng.normal(size=(T, 1)), rng.normal(size=D)
    ledger = saved(op, x, y, argnums=(0, 1))
    assert [(r.name, r.needed_for, r.bytes) for r in ledger] == [("x", ("x", "y"), 8 * T), ("y", ("x", "y"), 8 * D)]


def test_the_table_can_be_read(rng: np.random.Generator) -> None:
    ledger = saved(network, *(rng.normal(size=s) for s in ((T, D), (D, R), (R, V))), argnums=(1, 2), parameters=(1, 2))
    lines = str(ledger).splitlines()
    assert lines[0].split() == ["operation", "keeps", "for", "shape", "dtype", "owner", "bytes", "same", "buffer", "as"]
    assert lines[1].split() == ["#0", "matmul", "x", "y", "5×4", "float64", "input", "160", "args[0]"]
    assert lines[-1] == f"activations: {8 * T * (R + V)} bytes"
    assert len(lines) == 2 + len(list(ledger))


def test_released_buffers_are_let_go_at_their_last_use(rng: np.random.Generator) -> None:
    """While the first operation is pulled, what later operations kept is gone already."""
    alive: list[int] = []
    spy = primitive(lambda x: x * 1.0)

    @spy.vjp("x")
    def _(g: Any) -> Any:
        alive.append(len(pullback.tape.records))
        return g

    def f(x: Any) -> Any:
        for _ in range(4):
            x = spy(ops.tanh(x))
        return x

    for release, want in ((False, [8, 8, 8, 8]), (True, [7, 5, 3, 1])):
        _, pullback = vjp(f, rng.normal(size=T))
        pullback(np.ones(T), release=release)
        assert alive == want
        alive.clear()
    assert pullback.tape.records == []


def test_a_rule_that_reads_more_costs_more(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hand count above would not survive a tanh that reads its input instead of its result."""
    args = [rng.normal(size=shape) for shape in ((T, D), (D, R), (R, V))]
    monkeypatch.setattr(ops.tanh, "vjps", {})
    monkeypatch.setattr(ops.tanh, "_plans", {})
    ops.tanh.vjp("x")(lambda g, x: g / np.cosh(x) ** 2)
    assert saved(network, *args, argnums=(0, 1, 2), parameters=(1, 2)).bytes() == 8 * T * (R + V) + 8 * T * R
