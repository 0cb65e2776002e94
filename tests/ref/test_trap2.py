"""Trap²'s pieces: scaled parameters, weightings, the draw of s, and one draw of the objective."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockref.autodiff import grad
from lockref.locks import trap2

EPS = float(np.finfo(np.float64).eps)
DRAWS = 200_000
# Dvoretzky-Kiefer-Wolfowitz: the empirical law of DRAWS numbers is farther off with probability 1e-9
ALLOWED = np.sqrt(np.log(2 / 1e-9) / (2 * DRAWS))
powers_of_two = st.sampled_from([2.0**k for k in range(-5, 3)])


def distance_to_law(draws, low, high, gap):
    """Kolmogorov-Smirnov distance to the uniform law on [low, 1 − gap] ∪ [1 + gap, high]."""
    x = np.sort(draws)
    total = (1 - gap - low) + (high - 1 - gap)
    law = (np.clip(x, low, 1 - gap) - low + np.clip(x, 1 + gap, high) - 1 - gap) / total
    ranks = np.arange(len(x) + 1) / len(x)
    return max(np.max(np.abs(law - ranks[1:])), np.max(np.abs(law - ranks[:-1])))


@pytest.mark.parametrize("interval", [(0.05, 2.0, 0.05), (0.3, 1.2, 0.0), (0.5, 4.0, 0.25)])
def test_scales_are_uniform_on_both_intervals_together(interval):
    low, high, gap = interval
    draws = trap2.sample_scale(np.random.default_rng(1), DRAWS, low, high, gap)
    assert np.all(((low <= draws) & (draws <= 1 - gap)) | ((1 + gap <= draws) & (draws <= high)))
    assert distance_to_law(draws, *interval) <= ALLOWED
    # planted: a coin for the side, and one uniform draw over everything with the gap moved aside
    rng = np.random.default_rng(2)
    coin = np.where(rng.random(DRAWS) < 0.5, rng.uniform(low, 1 - gap, DRAWS), rng.uniform(1 + gap, high, DRAWS))
    assert distance_to_law(coin, *interval) > ALLOWED


def test_the_published_interval_is_the_default_and_the_generator_decides_alone():
    first, second = (trap2.sample_scale(np.random.default_rng(5), 9) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(first, trap2.sample_scale(np.random.default_rng(5), 9, 0.05, 2.0, 0.05))
    assert not np.array_equal(first, trap2.sample_scale(np.random.default_rng(6), 9))


@pytest.mark.parametrize("interval", [(0.0, 2.0, 0.05), (0.96, 2.0, 0.05), (0.05, 1.05, 0.05), (0.05, 2.0, -0.1)])
def test_an_impossible_interval_gets_one_clear_line(interval):
    with pytest.raises(ValueError, match="both need a positive length") as caught:
        trap2.sample_scale(np.random.default_rng(0), 3, *interval)
    assert "\n" not in str(caught.value)


def test_the_published_weightings():
    for s in (0.05, 0.3, 1.0, 1.7):
        assert trap2.WEIGHTINGS["1/s"](s) == 1 / s
        assert trap2.WEIGHTINGS["1/sqrt(s)"](s) == pytest.approx(1 / np.sqrt(s), rel=4 * EPS)
    assert all("2601.21898" in w.source for w in trap2.WEIGHTINGS.values())


def weights(seed):
    rng = np.random.default_rng(seed)
    base = {"w": rng.standard_normal((3, 4)), "v": rng.standard_normal(5), "gain": rng.uniform(0.5, 2, 2)}
    update = {"w": rng.standard_normal((3, 4)), "v": rng.standard_normal(5)}
    return base, update


def test_scaled_adds_s_times_the_update_and_leaves_the_rest():
    base, update = weights(0)
    got = trap2.scaled(base, update, 0.3)
    assert list(got) == list(base) and got["gain"] is base["gain"]
    assert np.array_equal(got["w"], base["w"] + 0.3 * update["w"])
    assert np.array_equal(trap2.scaled(base, update, 0.0)["v"], base["v"])


@pytest.mark.parametrize("wrong", [{"w": np.zeros((4, 3))}, {"u": np.zeros(5)}])
def test_an_update_that_does_not_fit_gets_one_clear_line(wrong):
    base, _ = weights(0)
    with pytest.raises(ValueError, match=f"update {next(iter(wrong))}: shape .*must agree"):
        trap2.scaled(base, wrong, 1.0)


def quartic(params):
    """A loss that is not quadratic, so that its gradient depends on where it is taken."""
    w, v = params["w"], params["v"]
    squares = np.sum(w * w) + np.sum(v * v * v)
    return squares * squares + np.sum(np.matmul(w, w.T)) * np.sum(v)


@given(s=powers_of_two, seed=st.integers(0, 50))
def test_1_over_s_leaves_the_bits_of_the_gradient_at_powers_of_two(s, seed):
    base, update = weights(seed)
    weighted = grad(lambda d: trap2.WEIGHTINGS["1/s"](s) * quartic(trap2.scaled(base, d, s)))(update)
    plain = grad(quartic)(trap2.scaled(base, update, s))
    for name, got in weighted.items():
        assert np.array_equal(got, plain[name])


def low_rank_case(seed):
    rng = np.random.default_rng(seed)
    base = {"w": rng.standard_normal((3, 4)), "v": rng.standard_normal(5)}
    return base, {"w": rng.standard_normal((2, 4))}, {"w": rng.standard_normal((3, 2))}


@given(s=powers_of_two, seed=st.integers(0, 50))
def test_lora_scales_b_only_so_both_factors_get_one_s(s, seed):
    base, a, b = low_rank_case(seed)

    def loss(factors):
        return quartic(trap2.scaled(base, trap2.low_rank_update(*factors, s), 1.0)) / s

    got_a, got_b = grad(loss)((a, b))
    point = trap2.scaled(base, {"w": (s * b["w"]) @ a["w"]}, 1.0)
    g = grad(quartic)(point)["w"]
    size_a, size_b = np.abs(b["w"]).T @ np.abs(g), np.abs(g) @ np.abs(a["w"]).T
    # products over at most 4 terms, in another order of operations than the engine's
    assert np.all(np.abs(got_a["w"] - b["w"].T @ g) <= 8 * EPS * size_a)
    assert np.all(np.abs(got_b["w"] - g @ a["w"].T) <= 8 * EPS * size_b)


def test_lora_factors_must_come_in_pairs():
    with pytest.raises(ValueError, match="A and B differ in v"):
        trap2.low_rank_update({"w": np.ones((2, 4)), "v": np.ones((1, 1))}, {"w": np.ones((3, 2))}, 1.0)


@given(s=st.floats(0.05, 2.0), strength=st.floats(0.0, 0.5), name=st.sampled_from(sorted(trap2.WEIGHTINGS)))
def test_one_draw_of_the_objective_and_its_gradient_on_a_quadratic(s, strength, name):
    base, update = weights(3)
    target = {k: v + 1.5 for k, v in base.items()}

    def half_square(params):
        return sum(0.5 * np.sum((params[k] - target[k]) * (params[k] - target[k])) for k in update)

    weighting = trap2.WEIGHTINGS[name]
    w = weighting(s)
    value = trap2.objective(half_square, base, update, s, weighting, strength)
    at_one, at_s = (half_square(trap2.scaled(base, update, x)) for x in (1.0, s))
    assert value == pytest.approx(at_one - strength * w * at_s, rel=8 * EPS, abs=8 * EPS * at_one)
    got = grad(lambda d: trap2.objective(half_square, base, d, s, weighting, strength))(update)
    for k, delta in update.items():
        star = target[k] - base[k]
        want = (delta - star) - strength * w * s * (s * delta - star)
        # a dozen roundings on terms of this size; a sign, a factor s or w astray is a million times more
        size = np.abs(delta) + np.abs(star) + np.abs(base[k]) + np.abs(target[k])
        assert np.all(np.abs(got[k] - want) <= 12 * EPS * (1 + strength * w * s) * (1 + s) * size)
