"""Sampled round-off against real round-off: never less, not absurdly more, and zero where nothing rounds."""

import numpy as np
import pytest

from lockproofs.rounding import UNIT32, UNIT64, rounding_error
from lockref.autodiff import grad, ops

RNG = np.random.default_rng(5)


def arrays(*shapes):
    """float64 arrays that float32 holds exactly, some elements repeated, none tiny."""
    return [np.float64(np.float32(RNG.choice([0.5, 1.0, 3.0], s) * RNG.standard_normal(s))) for s in shapes]


def attention(q, k, v):
    cos, sin = ops.rope_tables(np.arange(q.shape[-2]), q.shape[-1], 1e4, q.dtype)
    return ops.attention(ops.rope(q, cos=cos, sin=sin), ops.rope(k, cos=cos, sin=sin), v, scale=0.25)


CASES = {
    "matmul": (lambda x, y: x @ y, arrays((40, 300), (300, 30))),
    "a sum that cancels": (lambda x, y: np.sum(x, axis=0) - np.sum(y, axis=0), arrays((500, 9), (500, 9))),
    "rms_norm": (lambda x, g: ops.rms_norm(x, g, eps=1e-6), arrays((50, 64), (64,))),
    "attention": (attention, arrays((4, 40, 16), (2, 40, 16), (2, 40, 16))),
    "swiglu": (lambda x, y: ops.swiglu(x, y), arrays((40, 50), (40, 50))),
    "steep": (lambda x: np.exp(8 * np.tanh(x)), arrays((30, 30))),
    "embedding": (lambda x: ops.take(x, indices=np.array([3, 3, 1, 3])) * 3.0, arrays((5, 7))),
    "gradient": (
        grad(lambda w: ops.cross_entropy(ops.take(w, indices=np.arange(99) % 5) @ w.T, targets=np.arange(99) % 7)),
        arrays((8, 60)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_covers_float32(name):
    f, args = CASES[name]
    real = np.max(np.abs(f(*[a.astype(np.float32) for a in args]) - f(*args)))
    sampled = rounding_error(f, *args, unit=UNIT32, rng=np.random.default_rng(0))
    assert 0 < real <= sampled, f"{name}: float32 is off by {real:.2g}, sampled {sampled:.2g}"
    assert sampled <= 200 * real, f"{name}: sampled {sampled:.2g} for {real:.2g} would hide mistakes"


def test_scales_with_the_unit_and_keeps_structure():
    f, args = CASES["matmul"]
    single, double = (rounding_error(f, *args, unit=u, rng=np.random.default_rng(0)) for u in (UNIT32, UNIT64))
    assert double == pytest.approx(single * UNIT64 / UNIT32, rel=1e-2)  # the double itself rounds a little
    both = rounding_error(lambda p: {"moved": p["a"].T, "sum": p["a"] + p["b"]}, {"a": args[0], "b": args[0]},
                          unit=UNIT32, rng=np.random.default_rng(0))  # fmt: skip
    assert both["moved"] == 0 < both["sum"]


def test_inside_a_fused_operation_another_unit_holds():
    f, args = CASES["rms_norm"]
    g = lambda x, gain: f(x, gain) + x  # noqa: E731
    rng = np.random.default_rng
    low = rounding_error(g, *args, unit=UNIT32, rng=rng(0))
    mixed = rounding_error(g, *args, unit=UNIT64, inside={"rms_norm": UNIT32}, rng=rng(0))
    other = rounding_error(g, *args, unit=UNIT64, inside={"swiglu": UNIT32}, rng=rng(0))
    assert other < 1e-6 * mixed < mixed < 2 * low
