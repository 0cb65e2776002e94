"""The turns that rotary, QK-normed heads survive: the theorem's list, the projection onto it, a model's logits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockref.locks.attention import TOPK, project, projections
from lockref.locks.attention_commutant import commutant_defect, nearest_in_commutant
from lockref.models import qwen3

from .attention_model import CONFIG, EPS, SEEDS, TOKENS, Array, C, haar, model


@st.composite
def gains(draw: st.DrawFn) -> tuple[Array, Array, list[bool]]:
    """Gains of both norms, and which planes they leave free: equal or opposite pairs are drawn on purpose."""
    half = draw(st.integers(1, 4))
    values = st.sampled_from([0.5, 0.75, 1.0, 1.25, -1.5])
    q, k, free = np.empty(2 * half), np.empty(2 * half), []
    for i in range(half):
        kind = draw(st.sampled_from(["equal", "opposite", "only q", "only k", "mixed", "generic"]))
        a, b = draw(values), draw(values)
        sign = {"opposite": (-1, -1), "mixed": (-1, 1)}.get(kind, (1, 1))
        q[[i, i + half]] = a, sign[0] * a * (1.7 if kind in ("only k", "generic") else 1)
        k[[i, i + half]] = b, sign[1] * b * (1.3 if kind in ("only q", "generic") else 1)
        free.append(kind in ("equal", "opposite"))
    return q, k, free


def member(rng: np.random.Generator, free: list[bool]) -> Array:
    half = len(free)
    angle, sign, i = rng.uniform(0, 2 * np.pi, half), rng.choice([-1.0, 1.0], half), np.arange(half)
    cos, sin = np.where(free, np.cos(angle), sign), np.where(free, np.sin(angle), 0.0)
    p = np.zeros((2 * half, 2 * half))
    p[i, i] = p[i + half, i + half] = cos
    p[i + half, i], p[i, i + half] = sin, -sin
    return p


def spread(q: Array, k: Array) -> float:
    """Round-off of the relative defect of a member: two products of length c, and the gains' condition number."""
    ratio = np.max(np.abs(q)) * np.max(np.abs(k)) / (np.min(np.abs(q)) * np.min(np.abs(k)))
    return float(4 * len(q) * (len(q) + 2) * EPS * ratio)


@given(gains(), SEEDS)
def test_the_commutant_is_what_the_theorem_says(case: tuple[Array, Array, list[bool]], seed: int) -> None:
    q, k, free = case
    rng = np.random.default_rng(seed)
    assert commutant_defect(member(rng, free), q, k, 50.0) <= spread(q, k)
    for i in range(len(free)):
        one = [j == i for j in range(len(free))]
        rotated = member(rng, one)
        angle = np.arctan2(rotated[i + len(free), i], rotated[i, i])
        if not free[i] and abs(np.sin(angle)) > 0.1:
            assert commutant_defect(rotated, q, k, 50.0) > 1e-3
    mirror = np.eye(2 * len(free))
    mirror[0, 0] = -1
    assert commutant_defect(mirror, q, k, 50.0) > 1e-3


@given(gains(), SEEDS)
def test_the_projection_is_in_the_commutant_and_nearest(case: tuple[Array, Array, list[bool]], seed: int) -> None:
    q, k, free = case
    rng = np.random.default_rng(seed)
    p = haar(rng, len(q))
    near = nearest_in_commutant(p, q, k)
    assert commutant_defect(near, q, k, 50.0) <= spread(q, k)
    for _ in range(8):
        assert np.linalg.norm(p - near) <= np.linalg.norm(p - member(rng, free)) + 1e-13
    again = nearest_in_commutant(near, q, k)
    assert np.max(np.abs(again - near)) <= 4 * EPS


def test_a_generic_projection_moved_into_the_commutant_is_lawful() -> None:
    tensors = model()
    want = qwen3.forward(tensors, TOKENS, CONFIG)
    p = projections(tensors, CONFIG, TOPK, C // 2)
    near = p.copy()
    for layer, g in np.ndindex(p.shape[:2]):
        q_gain, k_gain = (tensors[f"model.layers.{layer}.self_attn.{s}_norm.weight"] for s in "qk")
        assert commutant_defect(p[layer, g], q_gain, k_gain, CONFIG.rope_theta) > 0.1
        near[layer, g] = nearest_in_commutant(p[layer, g], q_gain, k_gain)
    assert np.array_equal(qwen3.forward(project(tensors, CONFIG, near), TOKENS, CONFIG), want)


def test_a_plane_of_equal_gains_may_be_rotated_but_not_mirrored() -> None:
    tensors = model()
    for layer in range(2):
        for s in "qk":
            gain = tensors[f"model.layers.{layer}.self_attn.{s}_norm.weight"]
            gain[1 + C // 2] = gain[1]
    want = qwen3.forward(tensors, TOKENS, CONFIG)

    def change(block: list[list[float]]) -> float:
        p = np.eye(C)
        p[np.ix_([1, 1 + C // 2], [1, 1 + C // 2])] = block
        out = project(tensors, CONFIG, np.broadcast_to(p, (2, 2, C, C)).copy())
        return float(np.max(np.abs(qwen3.forward(out, TOKENS, CONFIG) - want)))

    rotated, mirrored = change([[0.6, -0.8], [0.8, 0.6]]), change([[0.6, 0.8], [0.8, -0.6]])
    # Round-off of a lawful turn against the effect of an unlawful one: 12 orders lie between them, not 16.
    assert rotated <= mirrored * 2.0**-40, f"rotation changed logits by {rotated}, reflection by {mirrored}"


def test_the_commutant_refuses_zero_gains_and_other_shapes() -> None:
    one = np.ones(4)
    with pytest.raises(ValueError, match="gain of q_norm or k_norm is zero"):
        nearest_in_commutant(np.eye(4), one, one * [1, 0, 1, 1])
    with pytest.raises(ValueError, match="c even"):
        nearest_in_commutant(np.eye(4), np.ones(3), one)
    with pytest.raises(ValueError, match="not orthogonal"):
        commutant_defect(2 * np.eye(4), one, one, 100.0)
