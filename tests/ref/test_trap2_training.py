"""Trap² in training: the loss of a step, its streams, resuming, the guard, and what it gets on a quadratic."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockref.autodiff import grad
from lockref.locks.dlr_training import Recipe
from lockref.locks.trap2 import WEIGHTINGS
from lockref.locks.trap2_training import PUBLISHED, Full, LoRA, Protection, protect, trap_loss
from lockref.models.tensor_file import CheckpointError

EPS = float(np.finfo(np.float64).eps)
BASE = {"w": np.arange(12.0).reshape(3, 4) / 7, "gain": np.array([0.5, 2.0])}


def half_square(weights, target):
    return sum(0.5 * np.sum((weights[n] - target[n]) * (weights[n] - target[n])) for n in target)


def target_of(rng):
    return {n: w + rng.standard_normal(w.shape) for n, w in BASE.items()}


def fixed(_):
    return target_of(np.random.default_rng(3))


def test_the_published_settings():
    assert (PUBLISHED["lora"].strength, PUBLISHED["full"].strength) == (0.001, 0.005)
    assert (PUBLISHED["lora"].learning_rate, PUBLISHED["full"].learning_rate) == (3e-4, 1e-5)
    for published in PUBLISHED.values():
        assert (published.betas, published.eps, published.clip) == ((0.9, 0.98), 1e-6, 1.0)
    usual = Protection(0.1)
    assert (usual.low, usual.high, usual.gap, usual.weighting) == (0.05, 2.0, 0.05, WEIGHTINGS["1/s"])


@given(seed=st.integers(0, 99), strength=st.floats(0.01, 0.5))
def test_one_step_descends_the_one_draw_objective(seed, strength):
    protection, kind = Protection(strength), Full(BASE)
    rng = np.random.default_rng(seed)
    delta = {n: rng.standard_normal(w.shape) for n, w in BASE.items()}
    loss = trap_loss(half_square, fixed, kind, protection)
    got = grad(lambda d: loss(d, np.random.default_rng([seed, 4])))(delta)
    s = protection.draw(np.random.default_rng([seed, 4]).spawn(2)[1])
    for n, target in fixed(None).items():
        star = target - BASE[n]
        want = (delta[n] - star) - strength / s * s * (s * delta[n] - star)
        size = np.abs(delta[n]) + np.abs(star) + np.abs(BASE[n]) + np.abs(target)
        assert np.all(np.abs(got[n] - want) <= 24 * EPS * (1 + strength) * size)  # a dozen roundings on either side


def test_data_and_scales_have_streams_of_their_own():
    seen = []

    def draw(rng):
        seen.append(rng.random(len(seen) + 1)[0])  # takes more and more numbers
        return fixed(rng)

    values = []
    for strength in (0.0, 0.2, 0.2):
        loss = trap_loss(half_square, draw, Full(BASE), Protection(strength))
        values.append(loss(Full(BASE).start(np.random.default_rng(0)), np.random.default_rng([1, 5])))
    assert seen[0] == seen[1] == seen[2]  # protected or not, the same batch
    assert values[1] == values[2] != values[0]  # and the same scale, however many numbers the batch took


def test_lora_scales_b_alone_and_starts_at_the_base():
    kind = LoRA(BASE, ("w",), rank=2, alpha=6.0)
    params = kind.start(np.random.default_rng(1))
    assert np.array_equal(kind.applied(params, 1.0)["w"], BASE["w"])
    params["B.w"] = np.random.default_rng(2).standard_normal((3, 2))
    got = kind.applied(params, 0.5)
    want = BASE["w"] + 3 * 0.5 * params["B.w"] @ params["A.w"]
    assert np.allclose(got["w"], want, rtol=0, atol=16 * EPS * np.abs(want).max()) and got["gain"] is BASE["gain"]
    for wrong in ((), ("gain",), ("nothing",)):
        with pytest.raises(ValueError, match="LoRA: "):
            LoRA(BASE, wrong)


def test_training_finds_the_quadratic_optimum():
    """Minimizer Δ* (1 − λE[ws]) / (1 − λE[ws²]); for w = 1/s and s uniform on [0.9, 3], E[ws] = 1, E[ws²] = 1.95."""
    protection = Protection(0.3, low=0.9, high=3.0, gap=0.0)
    stretch = (1 - 0.3) / (1 - 0.3 * 1.95)
    state = protect(half_square, fixed, Full(BASE), protection, Recipe(1200, 0.05, betas=(0.9, 0.98), eps=1e-6))
    for n, target in fixed(None).items():
        star = target - BASE[n]
        # AdamW's moments average the last draws: 3 % of 0.69 is the draws' noise, and nothing like the 69 % of stretch
        assert np.allclose(state.params[n], stretch * star, rtol=0.05, atol=0.02)
        assert not np.allclose(state.params[n], star, rtol=0.3, atol=0.02)


def test_training_resumes_bit_for_bit_and_refuses_another_protection(tmp_path):
    recipe = Recipe(7, 0.1)
    whole = protect(half_square, fixed, Full(BASE), Protection(0.1), recipe)
    again = protect(half_square, fixed, Full(BASE), Protection(0.1), recipe, file=tmp_path / "state")
    assert all(np.array_equal(whole.params[n], again.params[n]) for n in BASE)
    with pytest.raises(CheckpointError, match="another recipe"):
        protect(half_square, fixed, Full(BASE), Protection(0.2), recipe, file=tmp_path / "state")


def test_divergence_stops_with_one_clear_line():
    with pytest.raises(FloatingPointError, match=r"the loss at s = 1 is .* lower λ \(5\)") as caught:
        protect(half_square, fixed, Full(BASE), Protection(5.0), Recipe(400, 0.5), ceiling=50.0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"strength": -0.1}, {"strength": float("nan")}, {"strength": 0.1, "low": 0.0}])
def test_an_impossible_protection_is_refused(wrong):
    with pytest.raises(ValueError):
        Protection(**wrong)
