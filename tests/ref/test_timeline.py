"""Memory over time: the timeline against hand-counted small cases, and its peak against traced allocations."""

import gc
import tracemalloc
import weakref
from typing import Any

import numpy as np
import pytest

from lockref.autodiff import ops, saved, vjp
from lockref.autodiff.timeline import timeline
from lockref.models import dlrnet, qwen3

KIB = 1024


def test_a_chain_by_hand() -> None:
    x = np.ones(128)  # 1 KiB
    moments = timeline(lambda x: ops.exp(ops.tanh(ops.exp(x))), x)
    # exp and tanh keep their results; the sweep holds the value, the cotangent that came in and the one going out
    assert [(m.phase, m.operation, m.kept, m.cotangents) for m in moments] == [
        ("forward", "exp", 1 * KIB, 0),
        ("forward", "tanh", 2 * KIB, 0),
        ("forward", "exp", 3 * KIB, 0),
        ("backward", "exp", 3 * KIB, 3 * KIB),
        ("backward", "tanh", 2 * KIB, 3 * KIB),
        ("backward", "exp", 1 * KIB, 3 * KIB),
    ]


def test_what_the_arguments_own_costs_nothing() -> None:
    x = np.ones((4, 8))
    assert max(m.kept for m in timeline(lambda x, w: (x @ w) @ w.T, x, np.ones((8, 2)), argnums=0)) == 0


def test_a_plain_number_is_not_an_array_that_is_kept() -> None:
    assert saved(lambda x: ops.sum(x * 2.0), np.ones(3), parameters=()).rows == ()
    (row,) = saved(lambda x, s: ops.sum(x * ops.sum(s)), np.ones(3), np.ones(2), parameters=())
    assert (row.name, row.bytes) == ("y", 8)  # a sum that reverse mode has to hold


def test_a_released_sweep_lets_everything_go_at_once() -> None:
    """Without waiting for the garbage collector: no cycle holds an input, an intermediate or the tape."""
    gc.disable()
    try:
        x = np.ones((3, 3))
        seen: list[weakref.ref[Any]] = []

        def f(tree: Any) -> Any:
            h = ops.exp(tree["x"])
            seen.append(weakref.ref(h.value))
            return ops.sum(ops.tanh(h) * h)

        _, pullback = vjp(f, {"x": x})
        seen += [weakref.ref(x), weakref.ref(pullback.tape)]
        gradient = pullback(np.ones(()), release=True)
        del x, pullback, gradient
        assert [ref() for ref in seen] == [None, None, None]
    finally:
        gc.enable()


def dlr_net(rng):
    config = dlrnet.DLRConfig(width=256, rank=16, depth=48, placement="stream")
    params = dlrnet.initialize(config, rng, b_scale=0.5)
    return (lambda p, x: dlrnet.forward(p, x, config)), params, rng.normal(size=(512, config.width))


def qwen3_block(rng):
    config = qwen3.Qwen3Config(
        vocab_size=8, hidden_size=256, intermediate_size=768, num_hidden_layers=1, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32,
    )  # fmt: skip
    shapes = qwen3.expected_tensors(config)
    w = qwen3.layer_weights({n: rng.uniform(0.5, 1, s).astype(np.float32) / s[-1] for n, s in shapes.items()}, 0)
    return (lambda w, x: qwen3.block(w, x, config)), w, rng.normal(size=(512, 256)).astype(np.float32)


def traced_peak(f, *args) -> int:
    """Bytes allocated at most during one forward and backward pass."""
    out, pullback = vjp(f, *args)
    u = np.ones_like(out)
    del out, pullback
    tracemalloc.start()
    try:
        _, pullback = vjp(f, *args)
        pullback(u, release=True)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("network", [dlr_net, qwen3_block])
def test_the_predicted_peak_is_the_traced_one(network) -> None:
    f, params, x = network(np.random.default_rng(0))
    want = max(m.total for m in timeline(f, params, x, argnums=(0, 1)))
    got = traced_peak(f, params, x)
    assert abs(got - want) <= 0.05 * want, f"traced {got:,} bytes, predicted {want:,}; allowed 5 %"


def test_a_deep_net_needs_little_more_than_what_it_stores() -> None:
    f, params, x = dlr_net(np.random.default_rng(0))
    got, stored = traced_peak(f, params, x), saved(f, params, x, argnums=(0, 1)).bytes()
    assert got <= 1.05 * stored, f"traced {got:,} bytes, stored {stored:,}; allowed 1.05 times as much"
