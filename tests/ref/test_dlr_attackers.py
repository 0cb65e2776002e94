"""Attackers on a DLR-Net: the same gradients, to derived round-off, from exactly the storage that is claimed."""

import gc
import tracemalloc
from dataclasses import replace
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockproofs.claims.dlr_inversion import default_gradients, replayed_gradients
from lockproofs.rounding import UNIT64, rounding_error
from lockref.attacks import checkpointing, fixed_point, gradient_free, inversion
from lockref.attacks.fixed_point import NotAContraction, invert_block, lipschitz_bound
from lockref.attacks.inversion import Cell, blocks, error_growth, inverted
from lockref.autodiff import ops, saved, schedules, vjp
from lockref.models import dlrnet, storage
from lockref.models.dlrnet import DLRConfig

configs = st.builds(
    DLRConfig,
    width=st.integers(1, 7),
    rank=st.integers(1, 4),
    depth=st.integers(1, 6),
    norm=st.sampled_from(dlrnet.NORMS),
    activation=st.sampled_from(dlrnet.ACTIVATIONS),
    placement=st.sampled_from(dlrnet.PLACEMENTS),
)
seeds = st.integers(0, 2**32 - 1)
smooth = configs.map(lambda c: c if c.activation in ("silu", "tanh") else replace(c, activation="gelu_tanh"))


def example(config, seed=0, dtype=np.float64, tokens=(2, 3)):
    """Weights with gains that are not 1, an input and a cotangent."""
    rng = np.random.default_rng(seed)
    params = dlrnet.initialize(config, rng, b_scale=0.7, dtype=dtype)
    params = {n: w * rng.uniform(0.5, 2, w.shape).astype(dtype) if n.endswith("gain") else w for n, w in params.items()}
    x, g = (rng.standard_normal((*tokens, config.width)).astype(dtype) for _ in range(2))
    return params, x, g


def gradients(network, params, x, g):
    value, pullback = vjp(network, params, x)
    return value, pullback(g)


def default(config):
    return lambda params, x: dlrnet.forward(params, x, config)


def apart(got, want):
    """Largest |difference| of each array."""
    return [float(np.max(np.abs(got[0][n] - want[0][n]))) for n in want[0]] + [float(np.max(np.abs(got[1] - want[1])))]


def allowed(config, params, x, g, seed=0):
    """Sum of the round-off that each way of computing the gradients accumulates: unit 2⁻⁵³, their own lengths."""
    rng, total = np.random.default_rng(seed), None
    for way in (default_gradients, replayed_gradients):
        error = rounding_error(lambda p, x, way=way: way(config, p, x, g), params, x, unit=UNIT64, rng=rng)
        flat = [*error[0].values(), error[1]]
        total = flat if total is None else [a + b for a, b in zip(total, flat, strict=True)]
    return total


@settings(max_examples=60, deadline=None)
@given(configs, seeds, st.integers(1, 6), st.sampled_from([np.float32, np.float64]))
def test_inversion_keeps_its_closed_form_to_the_byte(config, seed, segments, dtype):
    segments = min(segments, config.depth)
    params, x, _ = example(config, seed, dtype)
    ledger = saved(inverted(config, segments=segments), params, x, argnums=(0, 1))
    assert not ledger.bytes("parameter") - sum(r.bytes for r in ledger if r.owner == "parameter")
    if segments == 1:
        want = storage.dlr_inverted(config)
        assert want == storage.Storage(config.depth * config.rank + config.width)
    else:  # between the passes only the starts of segments are held; the rest comes and goes in the sweep
        want = storage.Storage((segments - 1) * config.width)
    assert ledger.bytes() == want.bytes(6, np.dtype(dtype).itemsize)


@settings(max_examples=15, deadline=None)
@given(smooth, seeds, st.integers(1, 6))
def test_inversion_gives_the_gradients_of_default_reverse(config, seed, segments):
    params, x, g = example(config, seed)
    attack = inverted(config, segments=min(segments, config.depth))
    y0, want = gradients(default(config), params, x, g)
    y, got = gradients(attack, params, x, g)
    assert np.array_equal(y, y0)
    limit = allowed(config, params, x, g, seed)
    assert all(a <= b for a, b in zip(apart(got, want), limit, strict=True)), (apart(got, want), limit)


def test_without_norms_only_the_gradient_of_a_can_differ_at_all():
    """Cotangents read h alone there, and h is stored: x and B get the bits of default reverse mode."""
    for activation in dlrnet.ACTIVATIONS:
        config = DLRConfig(6, 2, 5, "none", activation)
        params, x, g = example(config)
        _, want = gradients(default(config), params, x, g)
        _, got = gradients(inverted(config), params, x, g)
        assert np.array_equal(got[1], want[1])
        assert all(np.array_equal(got[0][n], want[0][n]) for n in want[0] if n.endswith(".b"))


@pytest.mark.parametrize("fault", ["wrong sign", "one block late", "hidden rounded"])
def test_a_wrong_inversion_is_seen(fault, monkeypatch):
    config = DLRConfig(6, 2, 5, "rms_gain")
    params, x, g = example(config)
    limit = allowed(config, params, x, g)
    honest = Cell.undone

    def undone(self, weights, hidden, out):
        if fault == "wrong sign":
            for w, h in zip(reversed(weights), reversed(hidden), strict=True):
                out = out + self.added(w, h)
                yield out, *self.activated(h)
        elif fault == "one block late":
            states = [x for x, _, _ in honest(self, weights, hidden, out)]
            yield from self.known(hidden, [out, *states[:-1]])
        else:
            yield from honest(self, weights, [h.astype(np.float32).astype(float) for h in hidden], out)

    monkeypatch.setattr(Cell, "undone", undone)
    _, want = gradients(default(config), params, x, g)
    _, got = gradients(inverted(config), params, x, g)
    assert not all(a <= b for a, b in zip(apart(got, want), limit, strict=True))


def test_inversion_in_bfloat16_keeps_two_bytes_and_stays_in_its_bound():
    config = DLRConfig(16, 3, 12, "rms")
    params, x, _ = example(config, dtype=np.float32)
    ledger = saved(inverted(config, held="bfloat16"), params, x, argnums=(0, 1))
    assert ledger.bytes() == storage.dlr_inverted(config).bytes(6, 2)
    rows = [r for r in ledger if r.owner == "activation"]
    assert {r.dtype for r in rows} == {np.dtype(ml_dtypes.bfloat16).name}
    coarse = error_growth(config, np.random.default_rng(0), depths=[12], dtype=np.float32, held="bfloat16")[0]
    fine = error_growth(config, np.random.default_rng(0), depths=[12], dtype=np.float32)[0]
    assert not coarse.exceeded and not fine.exceeded and coarse.gradient > 100 * fine.gradient > 0


@settings(max_examples=20, deadline=None)
@given(configs, seeds, st.sampled_from([0.1, 1.0, 3.0]), st.sampled_from([None, "float32", "bfloat16"]))
def test_every_reconstructed_state_lies_within_the_proved_bound(config, seed, scale, held):
    (point,) = error_growth(
        config, np.random.default_rng(seed), depths=[config.depth], scales=[scale], tokens=5, held=held
    )
    assert not point.exceeded and point.state <= point.bound


def test_a_bound_of_one_rounding_too_few_would_be_left(monkeypatch):
    monkeypatch.setattr(inversion, "unit_roundoff", lambda dtype, held: 2.0**-53 / 8)
    points = error_growth(DLRConfig(16, 3, 8), np.random.default_rng(0), depths=[8], tokens=64)
    assert points[0].exceeded


def test_error_grows_with_depth_and_scale():
    rng = np.random.default_rng(1)
    grid = error_growth(DLRConfig(32, 4, 1), rng, depths=[8, 64], scales=[0.1, 2.0], dtype=np.float32, held="bfloat16")
    by = {(p.depth, p.scale): p.gradient for p in grid}
    assert by[8, 0.1] < by[64, 0.1] < by[64, 2.0] and by[8, 0.1] < by[8, 2.0]


@pytest.mark.parametrize("norm", dlrnet.NORMS)
def test_fixed_point_inverts_contractions_and_keeps_one_state(norm):
    config = DLRConfig(12, 3, 6, norm)
    rng = np.random.default_rng(3)
    params = dlrnet.initialize(config, rng, b_scale=0.02)
    x, g = rng.standard_normal((2, 5, 12))
    attack = fixed_point.fixed_point(config)
    assert saved(attack, params, x, argnums=(0, 1)).bytes() == storage.Storage(12).bytes(5, 8)
    y0, want = gradients(default(config), params, x, g)
    y, got = gradients(attack, params, x, g)
    assert np.array_equal(y, y0)
    # the iteration stops within q/(1 − q) of a step of 2u‖x‖, then errors pass through one more block each
    size = max(float(np.max(np.abs(v))) for v in [*want[0].values(), want[1]])
    q = max(lipschitz_bound(w, x, config) for w in blocks(params, config))
    assert q < 0.5 and max(apart(got, want)) <= 2 * config.depth * 12 * 2.0**-53 * (4 / (1 - q) + 2) * size


def test_fixed_point_refuses_what_is_no_contraction():
    config = DLRConfig(12, 3, 4, "none")
    params = dlrnet.initialize(config, np.random.default_rng(0), b_scale=3.0)
    x = np.ones((2, 12))
    with pytest.raises(NotAContraction, match=r"block 0 has Lipschitz bound .* use h-only inversion"):
        vjp(fixed_point.fixed_point(config), params, x)
    with pytest.raises(NotAContraction, match="not below 1"):
        invert_block(blocks(params, config)[0], x, config)


@settings(max_examples=60, deadline=None)
@given(configs, seeds, st.floats(0.01, 3.0))
def test_the_lipschitz_bound_bounds(config, seed, scale):
    """No pair of points near the block's output is pulled apart faster; a bound half as large would be exceeded."""
    rng = np.random.default_rng(seed)
    cell = Cell(config)
    params = dlrnet.initialize(config, rng, b_scale=scale)
    w = blocks(params, config)[0]
    after = rng.standard_normal((4, config.width)) * 3
    q = lipschitz_bound(w, after, config)
    radius = q if config.norm == "none" else min(1.0, q)
    x = after + radius * 0.1 * rng.standard_normal(after.shape) * (q < 1)
    y = x + 1e-6 * rng.standard_normal(after.shape)
    moved = np.linalg.norm(cell.added(w, cell.hidden(w, x)) - cell.added(w, cell.hidden(w, y)), axis=-1)
    assert np.all(moved <= q * np.linalg.norm(x - y, axis=-1) * (1 + 1e-6) + 1e-14)


@pytest.mark.parametrize("activation", dlrnet.ACTIVATIONS)
def test_slopes_lie_below_the_stated_maximum_and_near_it(activation):
    """|σ'| on a grid of step 1e-3: the maximum is attained inside, |σ''| ≤ 2, so the grid misses at most 2e-6."""
    x = np.linspace(-8, 8, 16001)
    _, pullback = vjp(ops.ACTIVATIONS[activation], x)
    steepest = float(np.max(np.abs(pullback(np.ones_like(x)))))
    assert steepest + 2e-6 <= fixed_point.STEEPEST[activation] + (steepest == 1) * 2e-6
    assert steepest >= 0.99 * fixed_point.STEEPEST[activation]


SCHEDULES = {
    "one": schedules.per_block, "root": schedules.square_root, "binomial": lambda n: schedules.binomial(n, 2),
}  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(configs, seeds, st.integers(1, 6), st.sampled_from(list(SCHEDULES)))
def test_every_schedule_gives_the_bits_of_default_reverse(config, seed, group, kind):
    params, x, g = example(config, seed)
    group = min(group, config.depth)
    actions = SCHEDULES[kind](checkpointing.steps(config, group))
    grads, gx = checkpointing.scheduled(params, x, g, config, actions, group=group)
    _, want = gradients(default(config), params, x, g)
    assert all(np.array_equal(grads[name], want[0][name]) for name in want[0]) and np.array_equal(gx, want[1])


@settings(max_examples=10, deadline=None)
@given(smooth, seeds, st.integers(1, 6), st.sampled_from(list(SCHEDULES)))
def test_schedules_of_inverted_groups_agree_to_round_off(config, seed, group, kind):
    params, x, g = example(config, seed)
    group = min(group, config.depth)
    actions = SCHEDULES[kind](checkpointing.steps(config, group))
    got = checkpointing.scheduled(params, x, g, config, actions, group=group, inverted=True)
    _, want = gradients(default(config), params, x, g)
    limit = allowed(config, params, x, g, seed)
    assert all(a <= b for a, b in zip(apart(got, want), limit, strict=True)), (apart(got, want), limit)


def collected(actions):
    """The actions; before each, tapes that are done go (they and their variables refer to each other)."""
    for action in actions:
        gc.collect()
        yield action


@settings(max_examples=10, deadline=None)
@given(smooth, seeds, st.integers(1, 6))
def test_frozen_inversion_gives_the_cotangent_of_the_input_alone(config, seed, segments):
    params, x, g = example(config, seed)
    attack = inverted(config, segments=min(segments, config.depth), frozen=True)
    _, pullback = vjp(lambda x: attack(params, x), x)
    limit = allowed(config, params, x, g, seed)[-1]
    assert np.max(np.abs(pullback(g) - default_gradients(config, params, x, g)[1])) <= limit
    with pytest.raises(ValueError, match="the weights are under differentiation"):
        vjp(attack, params, x)


def held_at_most(run):
    """Peak bytes while run() computes, beyond what it leaves behind."""
    gc.collect()
    gc.freeze()  # so that collecting looks at new objects only
    tracemalloc.start()
    run()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    kept = run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    gc.unfreeze()
    del kept
    return peak - before


@pytest.mark.parametrize("norm", ["none", "rms"])
@pytest.mark.parametrize("invert", [False, True])
def test_schedules_hold_what_the_closed_form_says(norm, invert):
    """Measured peaks differ from the closed form by a workspace that doesn't depend on the schedule."""
    tokens, base = 4096, DLRConfig(8, 2, 24, norm, placement="output")
    over = []
    for group, actions in [
        (1, schedules.per_block(24)), (4, schedules.per_block(6)), (1, schedules.binomial(24, 3)),
        (2, schedules.binomial(12, 2)), (24, schedules.keep_all(1)),
    ]:  # fmt: skip
        params, x, g = example(base, tokens=(tokens,))
        measured = held_at_most(
            lambda p=params, x=x, g=g, a=actions, k=group: checkpointing.scheduled(
                p, x, g, base, collected(a), group=k, inverted=invert
            )
        )
        formula = storage.dlr_scheduled(base, actions, group=group, inverted=invert)
        over.append((measured - formula.bytes(tokens, 8)) / (tokens * 8))
    # the state at hand, the state found, what the block adds, cotangents in and out and a temporary: 6 times d;
    # h, σ(h), their cotangents and a temporary: 5 times r; 1/rms and a sum over rows. The cheapest runs need half.
    assert min(over) >= 0 and max(over) <= 6 * base.width + 5 * base.rank + 2, over
    assert storage.dlr(base, fused=True).per_token > 2 * (6 * base.width + 5 * base.rank + 2)


def test_closed_forms_of_schedules_by_hand():
    c = DLRConfig(10, 3, 16, "none")
    assert storage.dlr_scheduled(c, schedules.per_block(16)).per_token == 15 * 10 + 3
    assert storage.dlr_scheduled(c, schedules.per_block(4), group=4).per_token == 3 * 10 + 3 * 10 + 12
    assert storage.dlr_scheduled(c, schedules.per_block(4), group=4, inverted=True).per_token == 4 * 10 + 12
    assert storage.dlr_inverted(c, 4).per_token == 4 * 10 + 12
    assert storage.dlr_scheduled(c, schedules.binomial(16, 1)).per_token == 10 + 3
    assert storage.dlr_scheduled(c, schedules.keep_all(1), group=16).per_token == storage.dlr(c, fused=True).per_token


@pytest.mark.parametrize("estimate", [gradient_free.forward_gradient, gradient_free.zeroth_order])
def test_gradient_free_estimates_are_unbiased_with_the_stated_variance(estimate):
    """A quadratic with known gradient; means of 4,000 single draws within 5 standard errors, by their own formula."""
    n, draws = 6, 4000
    rng = np.random.default_rng(0)
    target = rng.standard_normal(n)

    def loss(p):
        return ops.sum(ops.multiply(p["w"] - target, p["w"] - target), axis=-1)

    w = {"w": rng.standard_normal(n)}
    truth = 2 * (w["w"] - target)
    size = float(truth @ truth)
    each = np.array([estimate(loss, w, rng)["w"] for _ in range(draws)])
    variance = gradient_free.relative_variance(n, 1) * size
    mean_error = float(np.sum((each.mean(axis=0) - truth) ** 2))
    assert mean_error <= 5**2 * variance / draws
    # ‖ĝ‖² = (g·v)²‖v‖² has fourth moments of a normal: its relative spread is at most √(3 · 5 · 7 · …) < 15 here
    spread = float(np.mean(np.sum((each - truth) ** 2, axis=1)))
    assert abs(spread / variance - 1) <= 5 * 15 / draws**0.5
    wrong = 0.5 * each  # a biased estimator is rejected by the same comparison
    assert float(np.sum((wrong.mean(axis=0) - truth) ** 2)) > 5**2 * variance / draws


def test_forward_mode_and_differences_keep_nothing():
    config = DLRConfig(6, 2, 9, "rms")
    params, x, g = example(config)

    def loss(p):
        return ops.sum(ops.multiply(dlrnet.forward(p, x, config), g))

    assert saved(loss, params, argnums=()).bytes() == 0
    one = gradient_free.forward_gradient(loss, params, np.random.default_rng(5))
    two = gradient_free.zeroth_order(loss, params, np.random.default_rng(5), step=1e-5)
    # same direction v; the central difference errs by O(ε²) and by 2u|f|/ε
    size = max(float(np.max(np.abs(v))) for v in one.values())
    assert max(float(np.max(np.abs(one[n] - two[n]))) for n in one) <= 1e-6 * size


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c, p, x: inverted(c, segments=0), "0 segments of 4 blocks; choose 1 … 4"),
        (lambda c, p, x: inverted(c, segments=5), "5 segments of 4 blocks"),
        (lambda c, p, x: inverted(c, held="int8"), "held 'int8' is unknown; choose from"),
        (lambda c, p, x: inverted(c)(p, x[:, :-1]), "the input has shape"),
        (lambda c, p, x: inverted(c)({**p, "extra": x}, x), "tensor extra is unexpected"),
        (lambda c, p, x: fixed_point.fixed_point(c)({}, x), "blocks.0.a is missing"),
        (lambda c, p, x: checkpointing.checkpointed(c, 5), "5 segments of 4 blocks; choose 1 … 4"),
        (lambda c, p, x: checkpointing.nested(c, 0), "0 slots; a schedule needs at least 1"),
        (lambda c, p, x: checkpointing.scheduled(p, x, x, c, schedules.per_block(4), group=9), "groups of 9 blocks"),
        (lambda c, p, x: storage.dlr_inverted(c, 9), "9 segments of 4 blocks"),
        (lambda c, p, x: gradient_free.zeroth_order(lambda p: 0.0, p, None, step=0.0), "step is 0.0"),
        (lambda c, p, x: gradient_free.forward_gradient(lambda p: 0.0, p, None, draws=0), "0 draws"),
        (lambda c, p, x: gradient_free.relative_variance(0, 1), "n=0"),
    ],
)
def test_bad_input_is_named(call, words):
    config = DLRConfig(5, 2, 4)
    params, x, _ = example(config, tokens=(3,))
    with pytest.raises(ValueError, match=words):
        call(config, params, x)


def test_schedules_hold_less_the_more_they_compute():
    c = DLRConfig(64, 4, 64, "none")
    kept = [storage.dlr_scheduled(c, a).per_token for a in (
        schedules.keep_all(64), schedules.per_block(64), schedules.binomial(64, 8), schedules.binomial(64, 1)
    )]  # fmt: skip
    assert all(a > b for a, b in pairwise(kept))


@settings(max_examples=30, deadline=None)
@given(configs, seeds, st.integers(1, 6))
def test_checkpointed_segments_keep_their_starts_and_give_the_bits_of_default_reverse(config, seed, segments):
    segments = min(segments, config.depth)
    params, x, g = example(config, seed)
    attack = checkpointing.checkpointed(config, segments)
    assert saved(attack, params, x, argnums=(0, 1)).bytes() == storage.Storage((segments - 1) * config.width).bytes(
        6, 8
    )
    y0, want = gradients(default(config), params, x, g)
    y, got = gradients(attack, params, x, g)
    assert np.array_equal(y, y0) and max(apart(got, want)) == 0


@settings(max_examples=30, deadline=None)
@given(configs, seeds, st.integers(1, 9), st.integers(1, 4))
def test_nested_recomputation_is_the_binomial_schedule(config, seed, depth, slots):
    config = replace(config, depth=depth)
    params, x, g = example(config, seed)
    actions, runs = schedules.binomial(depth, slots), []
    honest = checkpointing._default(config)

    def counting(config):
        return lambda weights, x: (runs.append(len(weights)), honest(weights, x))[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpointing, "_default", counting)
        y, got = gradients(checkpointing.nested(config, slots), params, x, g)
    y0, want = gradients(default(config), params, x, g)
    assert np.array_equal(y, y0) and max(apart(got, want)) == 0
    assert sum(runs) == schedules.cost(actions).steps and set(runs) == {1}
    kept = saved(checkpointing.nested(config, slots), params, x, argnums=(0, 1)).bytes()
    assert kept == storage.dlr_scheduled(config, actions).bytes(6, 8)


def test_the_spectral_norm_is_rounded_up():
    for shape in ((1, 5), (3, 3), (4, 40)):
        w = np.random.default_rng(0).standard_normal(shape)
        exact = float(np.linalg.norm(w, 2))
        for dtype in (np.float32, np.float64):
            found = fixed_point._spectral_norm(w.astype(dtype))
            assert exact * (1 - 1e-7 * (dtype is np.float32)) <= found <= exact * (1 + 400 * np.finfo(dtype).eps)


def test_attacks_are_public():
    import lockref.attacks as public

    assert all(callable(getattr(public, name)) for name in public.__all__)
