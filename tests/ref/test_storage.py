"""Closed form = ledger, to the byte; and both are wrong together for no planted fault."""

import inspect
import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockref.autodiff import ops, primitive, saved
from lockref.models import dlrnet, storage
from lockref.models.dlrnet import DLRConfig
from lockref.models.storage import Storage

configs = st.builds(
    DLRConfig,
    width=st.integers(1, 6),
    rank=st.integers(1, 6),
    depth=st.integers(1, 6),
    norm=st.sampled_from(dlrnet.NORMS),
    activation=st.sampled_from(dlrnet.ACTIVATIONS),
    placement=st.sampled_from(dlrnet.PLACEMENTS),
)
dtypes = st.sampled_from([np.float32, np.float64])
batches = st.sampled_from([(1,), (5,), (2, 3), (2, 1, 2)])
seeds = st.integers(0, 2**32 - 1)


def run(config, *, fused, trains, input_gradient, batch=(3,), dtype=np.float64, seed=0):
    """The ledger of a DLR-Net of which some kinds of weights train."""
    rng = np.random.default_rng(seed)
    params = dlrnet.initialize(config, rng, b_scale=0.5, dtype=dtype)
    moving = {n: w for n, w in params.items() if n.rsplit(".")[-1] in trains}
    still = {n: w for n, w in params.items() if n not in moving}

    def network(moving, still, x):
        return dlrnet.forward({**moving, **still}, x, config, fused=fused)

    x = rng.standard_normal((*batch, config.width)).astype(dtype)
    return saved(network, moving, still, x, argnums=(0, 2) if input_gradient else (0,), parameters=(0, 1))


def predicted(config, *, fused, trains, input_gradient, batch=(3,), dtype=np.float64):
    kept = storage.dlr(config, fused=fused, trains=trains, input_gradient=input_gradient)
    return kept.bytes(int(np.prod(batch)), np.dtype(dtype).itemsize)


@given(
    config=configs,
    fused=st.booleans(),
    trains=st.sets(st.sampled_from(sorted(storage.DLR_WEIGHTS))),
    input_gradient=st.booleans(),
    batch=batches,
    dtype=dtypes,
    seed=seeds,
)
@settings(max_examples=300, deadline=None)
def test_dlr_closed_form_is_the_ledger(config, fused, trains, input_gradient, batch, dtype, seed):
    choices = {"fused": fused, "trains": trains, "input_gradient": input_gradient, "batch": batch, "dtype": dtype}
    ledger = run(config, **choices, seed=seed)
    want = predicted(config, **choices)
    assert ledger.bytes() == want, f"{config}, {choices}: formula {want}, ledger {ledger.bytes()}\n{ledger}"


def grid():
    """Every combination of norm, activation, form and what needs a gradient."""
    subsets = [frozenset(c) for n in range(4) for c in itertools.combinations(sorted(storage.DLR_WEIGHTS), n)]
    for norm, activation, fused, trains, input_gradient in itertools.product(
        dlrnet.NORMS, dlrnet.ACTIVATIONS, (True, False), subsets, (True, False)
    ):
        yield DLRConfig(5, 3, 3, norm, activation), {"fused": fused, "trains": trains, "input_gradient": input_gradient}


def disagreements(measure=lambda ledger: ledger.bytes()):
    """Combinations in which the ledger, as `measure` reads it, is not what the formula says."""
    return [
        (config, choices)
        for config, choices in grid()
        if measure(run(config, **choices)) != predicted(config, **choices)
    ]


def test_every_combination():
    assert disagreements() == []


def test_an_alias_counted_twice_is_seen():
    def naive(ledger):
        return sum(np.prod(r.shape) * np.dtype(r.dtype).itemsize for r in ledger if r.owner == "activation")

    seen = disagreements(naive)
    assert {c.activation for c, o in seen if c.norm == "none"} == {"relu", "tanh"}  # σ(h) for σ and for B
    assert {c.norm for c, o in seen if c.activation == "silu"} == {"rms", "rms_gain"}  # x and 1/rms, for two products


def test_a_view_counted_as_a_buffer_is_seen(monkeypatch):
    monkeypatch.setattr("lockref.autodiff.ledger.buffer", lambda array: array)
    assert disagreements()


def greedy(op, extra):
    """The operation, but the reverse rule of its first argument also keeps `extra`."""
    honest = op.vjps[op.args[:1]]

    def rule(g, *reads):
        return honest.function(g, *reads[:-1])

    names = ("g", *honest.names, extra)
    rule.__signature__ = inspect.Signature([inspect.Parameter(n, inspect.Parameter.POSITIONAL_ONLY) for n in names])
    mutant = primitive(op.impl, residuals=op.residuals, twin=op.twin)
    mutant.vjps.update({args: r for args, r in op.vjps.items() if len(args) == 1})  # no joint rule past the mutant
    mutant.vjp(op.args[0])(rule)
    return mutant


def test_a_fused_rule_that_keeps_its_output_is_seen(monkeypatch):
    """`out` of one block is the next block's x: only the last block's shows, or all of them where x is not kept."""
    monkeypatch.setattr(ops, "low_rank", greedy(ops.low_rank, "out"))
    seen = disagreements()
    assert seen and all(c.norm == "none" and o["fused"] for c, o in seen)


def test_an_activation_that_keeps_its_input_too_is_seen(monkeypatch):
    monkeypatch.setitem(ops.ACTIVATIONS, "tanh", greedy(ops.tanh, "x"))
    seen = disagreements()
    assert seen and all(c.activation == "tanh" and not o["fused"] for c, o in seen)


def test_a_formula_without_the_owned_input_is_seen():
    config, choices = DLRConfig(5, 3, 3, "none"), {"fused": False, "trains": {"a"}, "input_gradient": True}
    _, later = storage.dlr_blocks(config, **choices)
    assert run(config, **choices).bytes() != (later * 3).bytes(3, 8)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("norm", dlrnet.NORMS)
@pytest.mark.parametrize("activation", ["silu", "tanh"])
def test_every_depth_run_on_its_own(norm, activation, fused):
    config = DLRConfig(3, 2, 1, norm, activation)
    choices = {"fused": fused, "trains": storage.DLR_WEIGHTS, "input_gradient": True}
    for depth in range(1, 49):
        deep = replace(config, depth=depth)
        assert run(deep, **choices).bytes() == predicted(deep, **choices), depth


# What the table of theory says, written out: d = 7, r = 3, elements per token.
SLOPES = {
    ("none", False): (7 + 2 * 3, 3),
    ("rms", False): (2 * 7 + 2 * 3 + 1, 7 + 3 + 1),
    ("rms_gain", False): (3 * 7 + 2 * 3 + 1, 7 + 3 + 1),
    ("none", True): (7 + 3, 3),
    ("rms", True): (7 + 3 + 1, 7 + 3 + 1),
    ("rms_gain", True): (7 + 3 + 1, 7 + 3 + 1),
}


@pytest.mark.parametrize(("norm", "fused"), SLOPES)
def test_slopes_and_constants(norm, fused):
    trained, frozen = SLOPES[norm, fused]
    for depth in (1, 2, 9):
        config = DLRConfig(7, 3, depth, norm, "silu")
        owned = 7  # x_0
        assert storage.dlr(config, fused=fused).per_token == depth * trained - owned
        owned = 0 if norm == "none" else 7
        assert storage.dlr(config, fused=fused, trains=frozenset()).per_token == depth * frozen - owned
        folded = depth * 7 * 3 if fused and norm == "rms_gain" else 0
        assert storage.dlr(config, fused=fused).fixed == folded


def test_frozen_without_a_norm_does_not_grow_at_parity():
    for depth in (1, 4, 48, 576):
        config = DLRConfig(128, dlrnet.parity(128, 384, depth).rank, depth, "none")
        assert storage.dlr(config, fused=False, trains=frozenset()) == Storage(576)  # 1.5 m


def test_nothing_is_kept_where_nothing_needs_a_gradient():
    for config, choices in grid():
        if not choices["trains"] and not choices["input_gradient"]:
            assert storage.dlr(config, **choices) == Storage(0, 0)


def swiglu_run(d, m, fused, trains, input_gradient, batch, dtype, seed):
    rng = np.random.default_rng(seed)
    shapes = {"gate": (m, d), "up": (m, d), "down": (d, m)}
    weights = {n: rng.standard_normal(s).astype(dtype) for n, s in shapes.items()}
    moving = {n: w for n, w in weights.items() if n in trains}
    still = {n: w for n, w in weights.items() if n not in trains}
    gated = ops.swiglu if fused else ops.swiglu.twin

    def mlp(moving, still, x):
        w = {**moving, **still}
        return gated(x @ w["gate"].T, x @ w["up"].T) @ w["down"].T

    x = rng.standard_normal((*batch, d)).astype(dtype)
    return saved(mlp, moving, still, x, argnums=(0, 2) if input_gradient else (0,), parameters=(0, 1))


@given(
    d=st.integers(1, 5),
    m=st.integers(1, 7),
    fused=st.booleans(),
    trains=st.sets(st.sampled_from(sorted(storage.SWIGLU_WEIGHTS))),
    input_gradient=st.booleans(),
    batch=batches,
    dtype=dtypes,
    seed=seeds,
)
@settings(max_examples=150, deadline=None)
def test_swiglu_closed_form_is_the_ledger(d, m, fused, trains, input_gradient, batch, dtype, seed):
    ledger = swiglu_run(d, m, fused, trains, input_gradient, batch, dtype, seed)
    kept = storage.swiglu(m, fused=fused, trains=trains, input_gradient=input_gradient)
    assert ledger.bytes() == kept.bytes(int(np.prod(batch)), np.dtype(dtype).itemsize), f"\n{ledger}"


def test_swiglu_figures():
    kept = {
        (fused, trains): storage.swiglu(384, fused=fused, trains=trains).per_token
        for fused in (False, True)
        for trains in (storage.SWIGLU_WEIGHTS, frozenset())
    }
    assert list(kept.values()) == [4 * 384, 3 * 384, 3 * 384, 2 * 384]


def test_storage_adds_and_scales():
    total = Storage(3, 5) + Storage(1, 2) * 4
    assert total == Storage(7, 13)
    assert total.bytes(tokens=10, itemsize=4) == (70 + 13) * 4


@pytest.mark.parametrize("call", [
    lambda: storage.dlr(DLRConfig(3, 2, 1), fused=True, trains={"a", "c"}),
    lambda: storage.swiglu(3, fused=True, trains={"c"}),
])  # fmt: skip
def test_an_unknown_weight_is_refused(call):
    with pytest.raises(ValueError, match="no weight called c; choose from "):
        call()
