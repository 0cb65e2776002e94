"""The attackers in torch: gradients of default reverse mode, and the bytes that lockref.models.storage predicts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lockcross import attackers
from lockcross.attackers import binomial, default, fixed_point, fused, grouped, inverted, segmented
from lockcross.qwen3 import DLRNet
from lockcross.storage import kept, most_kept, total
from lockproofs.claims.dlr_checkpoint import root_groups
from lockproofs.claims.dlr_inversion import default_gradients, replayed_gradients
from lockproofs.experiments import dlr_stored_bytes
from lockproofs.experiments.store import stored
from lockproofs.rounding import UNIT64, rounding_error
from lockref.autodiff import schedules
from lockref.models import dlrnet, storage
from lockref.models.dlrnet import DLRConfig

TOKENS = 6
configs = st.builds(
    DLRConfig,
    width=st.integers(1, 7),
    rank=st.integers(1, 4),
    depth=st.integers(1, 6),
    norm=st.sampled_from(dlrnet.NORMS),
    activation=st.sampled_from(dlrnet.ACTIVATIONS),
    placement=st.sampled_from(dlrnet.PLACEMENTS),
)
dtypes = st.sampled_from([torch.float32, torch.float64])
seeds = st.integers(0, 2**32 - 1)


def example(config, seed=0, dtype=torch.float64):
    """A net whose gains are not 1, its arrays, an input that needs a gradient, a cotangent."""
    rng = np.random.default_rng(seed)
    params = dlrnet.initialize(config, rng, b_scale=0.7)
    params = {n: w * rng.uniform(0.5, 2, w.shape) if n.endswith("gain") else w for n, w in params.items()}
    x, g = (rng.standard_normal((2, 3, config.width)) for _ in range(2))
    net = DLRNet(config)
    net.load_state_dict({n: torch.from_numpy(w) for n, w in params.items()}, assign=True)
    return net.to(dtype), params, torch.from_numpy(x).to(dtype).requires_grad_(), torch.from_numpy(g).to(dtype)


def gradients(net, x, g, **way):
    y = segmented(net, x, **way)
    found = torch.autograd.grad(y, [*net.parameters(), x], g)
    return y, [t.numpy() for t in found]


@settings(max_examples=40, deadline=None)
@given(configs, seeds, st.integers(1, 6), st.sampled_from([default, inverted]))
def test_gradients_are_those_of_numpy_to_derived_round_off(config, seed, segments, run):
    net, params, x, g = example(config, seed)
    names = [n for n, _ in net.named_parameters()]
    want = default_gradients(config, params, x.detach().numpy(), g.numpy())
    _, got = gradients(net, x, g, segments=min(segments, config.depth), run=run)
    limit = [0.0] * len(got)
    for way in (default_gradients, replayed_gradients):
        rng = np.random.default_rng(seed)
        error = rounding_error(
            lambda p, x, way=way: way(config, p, x, g.numpy()), params, x.detach().numpy(), unit=UNIT64, rng=rng
        )
        limit = [a + b for a, b in zip(limit, [*(error[0][n] for n in names), error[1]], strict=True)]
    for name, a, b, most in zip((*names, "x"), got, [*(want[0][n] for n in names), want[1]], limit, strict=True):
        off = np.max(np.abs(a - b))
        assert off <= most, f"{config}, {name}: torch and NumPy differ by {off:.2g}, round-off allows {most:.2g}"


def workspace(config):
    """What differentiating one block's activation and norm keeps for a moment; h itself is held anyway."""
    _, block = storage.dlr_blocks(config, fused=False, trains={"gain"})
    held = 0 if config.activation in storage.KEEPS_OUTPUT else config.rank
    return storage.Storage(block.per_token - held)


@settings(max_examples=60, deadline=None)
@given(configs, seeds, st.integers(1, 6), st.sampled_from([default, inverted]), dtypes)
def test_the_value_has_the_same_bits_and_the_bytes_are_as_predicted(config, seed, segments, run, dtype):
    segments = min(segments, config.depth)
    net, _, x, g = example(config, seed, dtype)
    assert torch.equal(segmented(net, x, segments, run), net(x))
    owned, size = [*net.parameters(), x], torch.finfo(dtype).bits // 8
    got = most_kept(lambda: gradients(net, x, g, segments=segments, run=run), owned)
    longest = replace(config, depth=-(-config.depth // segments))
    if run is inverted:
        want = storage.dlr_inverted(config, segments) + workspace(config)
    else:
        want = storage.dlr(longest, fused=False) + storage.Storage((segments - 1) * config.width)
    assert got == want.bytes(TOKENS, size), f"{config}, {segments} segments of {run.__name__}"
    between = total(kept(lambda: segmented(net, x, segments, run), owned))
    if segments > 1:
        assert between == storage.Storage((segments - 1) * config.width).bytes(TOKENS, size)
    else:
        first = storage.dlr_inverted(config) if run is inverted else want
        assert between == first.bytes(TOKENS, size)


def test_an_attacker_who_keeps_a_state_too_many_is_seen(monkeypatch):
    config = DLRConfig(5, 2, 4)
    net, _, x, _ = example(config)
    honest = attackers._Inverted.forward

    def greedy(ctx, x, blocks, *weights):
        out = honest(ctx, x, blocks, *weights)
        ctx.save_for_backward(*ctx.to_save, out + 0)
        return out

    monkeypatch.setattr(attackers._Inverted, "forward", greedy)
    got = total(kept(lambda: segmented(net, x, run=inverted), [*net.parameters(), x]))
    assert got == storage.dlr_inverted(config).bytes(TOKENS, 8) + 5 * TOKENS * 8


def test_an_inversion_that_forgets_the_norm_is_seen(monkeypatch):
    net, _, x, g = example(DLRConfig(5, 2, 4, "rms"))
    _, want = gradients(net, x, g)
    monkeypatch.setattr(attackers, "_normed", lambda block, x, gain=None: x.view_as(x))
    got = gradients(net, x, g, run=inverted)[1]
    assert np.max(np.abs(got[-1] - want[-1])) > 1e-3 * np.max(np.abs(want[-1]))


@pytest.mark.parametrize("segments", [0, 5])
def test_impossible_segments_are_refused(segments):
    net, _, x, _ = example(DLRConfig(5, 2, 4))
    with pytest.raises(ValueError, match=f"{segments} segments of 4 blocks; choose 1 … 4"):
        segmented(net, x, segments)


def held(config, actions, group=1):
    """What the schedule holds at most, without what `fused` computes again: 1/rms and the gain folded into A."""
    again = group * (config.norm != "none")
    return storage.Storage(storage.dlr_scheduled(config, actions, group=group).per_token - again)


@settings(max_examples=50, deadline=None)
@given(configs, seeds, st.integers(1, 9), st.integers(1, 4), dtypes)
def test_binomial_follows_the_schedule(config, seed, depth, slots, dtype):
    config = replace(config, depth=depth)
    net, _, x, g = example(config, seed, dtype)
    actions, runs = schedules.binomial(depth, slots), []

    def counting(blocks, x):
        runs.append(len(blocks))
        return fused(blocks, x)

    owned, size = [*net.parameters(), x], torch.finfo(dtype).bits // 8
    most = most_kept(lambda: gradients(net, x, g, run=binomial(slots, counting)), owned)
    assert sum(runs) == schedules.cost(actions).steps, f"depth {depth}, {slots} slots: {len(runs)} runs of a block"
    want = held(config, actions).bytes(TOKENS, size)
    assert want <= most <= want + workspace(config).bytes(TOKENS, size)
    assert total(kept(lambda: segmented(net, x, 1, binomial(slots)), owned)) == want
    assert torch.equal(segmented(net, x, 1, binomial(slots)), net(x))
    same(gradients(net, x, g, run=binomial(slots))[1], gradients(net, x, g)[1], dtype)


def same(got, want, dtype):
    """Equal gradients where the same block is differentiated by other operations: 256 roundings of the largest."""
    for a, b in zip(got, want, strict=True):
        assert np.max(np.abs(a - b)) <= 256 * torch.finfo(dtype).eps * (1 + np.max(np.abs(b)))


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 12), st.sampled_from(["none", "rms", "rms_gain"]))
def test_groups_hold_their_starts_and_one_record(seed, depth, norm):
    config = DLRConfig(6, 3, depth, norm, "relu")
    net, _, x, g = example(config, seed)
    group, actions = root_groups(config)
    most = most_kept(lambda: gradients(net, x, g, run=grouped(group)), [*net.parameters(), x])
    want = storage.dlr_scheduled(replace(config, norm="none"), actions, group=group).bytes(TOKENS, 8)
    assert want <= most <= want + workspace(config).bytes(TOKENS, 8)
    same(gradients(net, x, g, run=grouped(group))[1], gradients(net, x, g)[1], torch.float64)


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(1, 5), st.sampled_from(["none", "rms_gain"]))
def test_a_fixed_point_needs_its_last_state_alone(seed, depth, norm):
    config = DLRConfig(6, 3, depth, norm)
    net, _, x, g = example(config, seed)
    with torch.no_grad():
        for block in net.blocks:
            block.b *= 0.02  # a contraction
    owned = [*net.parameters(), x]
    assert total(kept(lambda: segmented(net, x, 1, fixed_point), owned)) == config.width * TOKENS * 8
    got, want = (gradients(net, x, g, run=run)[1] for run in (fixed_point, fused))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)  # depth × steps to round-off, 64-bit


def test_a_block_that_expands_is_refused():
    net, _, x, g = example(DLRConfig(6, 3, 2, "none"))
    with torch.no_grad():
        net.blocks[1].b *= 1e3
    with pytest.raises(ValueError, match=r"Lipschitz bound .* not below 1; use inverted"):
        gradients(net, x, g, run=fixed_point)


def test_impossible_slots_are_refused():
    with pytest.raises(ValueError, match="0 slots; a schedule needs at least 1"):
        binomial(0)


def test_a_state_too_many_is_seen(monkeypatch):
    honest = attackers._Recomputed.forward

    def greedy(ctx, x, *rest):
        out = honest(ctx, x, *rest)
        ctx.save_for_backward(*ctx.to_save, out + 0)
        return out

    monkeypatch.setattr(attackers._Recomputed, "forward", greedy)
    config = DLRConfig(5, 2, 4, "none")
    net, _, x, _ = example(config)
    got = total(kept(lambda: segmented(net, x, 1, binomial(3)), [*net.parameters(), x]))
    assert got > held(config, schedules.binomial(4, 3)).bytes(TOKENS, 8)


def test_every_remaining_byte_of_the_stored_rows_has_a_name():
    """Between the passes, or at most under a schedule, nothing remains; in a fixed point's sweep it is one h."""
    for row in stored("dlr_stored_bytes").rows:
        besides = 4 * row["rank"] if row["way"] == "fixed-point inversion" else 0
        assert row["most_per_token"] - row["bytes_per_token"] == besides, row


@pytest.mark.parametrize("way", dlr_stored_bytes.WAYS)
def test_stored_rows_repeat(way):
    (row,) = stored("dlr_stored_bytes").where(way=way, depth=8)
    again = dlr_stored_bytes.measure({"way": way, "depth": 8})
    assert {name: again[name] for name in again if name != "torch"} == {n: row[n] for n in again if n != "torch"}
