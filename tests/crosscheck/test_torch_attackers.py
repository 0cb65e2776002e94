"""The attackers in torch: gradients of default reverse mode, and the bytes that lockref.models.storage predicts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lockcross import attackers
from lockcross.attackers import default, inverted, segmented
from lockcross.qwen3 import DLRNet
from lockcross.storage import kept, most_kept, total
from lockproofs.claims.dlr_inversion import default_gradients, replayed_gradients
from lockproofs.rounding import UNIT64, rounding_error
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
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(gradients(net, x, g, run=inverted)[1][-1], want[-1], rtol=1e-3)


@pytest.mark.parametrize("segments", [0, 5])
def test_impossible_segments_are_refused(segments):
    net, _, x, _ = example(DLRConfig(5, 2, 4))
    with pytest.raises(ValueError, match=f"{segments} segments of 4 blocks; choose 1 … 4"):
        segmented(net, x, segments)
