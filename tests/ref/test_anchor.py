"""The anchor attack: never above its bounds, exact where they say so, and blind without the right base."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lockref.attacks.anchor import (
    least_squares,
    least_squares_bound,
    match_rows,
    plane_signs,
    procrustes,
    procrustes_bound,
    rows_are_safe,
    signs_are_safe,
)
from lockref.attacks.anchor_model import (
    anchor_invertible,
    anchor_permutation,
    anchor_projection,
    anchor_signs,
    same_shapes,
)
from lockref.attacks.result import relative_error
from lockref.locks.attention import TOPK, TOPK_PLANES, project, projections
from lockref.locks.peers import merge_lock, params_lock
from lockref.models.qwen3 import Qwen3Config, expected_tensors

Array = NDArray[np.float64]

CONFIG = Qwen3Config(
    vocab_size=5, hidden_size=9, intermediate_size=7, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=6,
)  # fmt: skip
SHAPE = (2, 2, 6, 6)
EPS = 2.0**-52


def model(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in expected_tensors(CONFIG).items()}


def tuned(base: dict[str, Array], ratio: float, seed: int = 1) -> dict[str, Array]:
    """Every tensor moved by `ratio` of its norm."""
    rng = np.random.default_rng(seed)
    steps = {n: rng.standard_normal(w.shape) for n, w in base.items()}
    return {n: w + steps[n] * (ratio * np.linalg.norm(w) / np.linalg.norm(steps[n])) for n, w in base.items()}


def haar(rng: np.random.Generator, *shape: int) -> Array:
    return np.linalg.qr(rng.standard_normal((*shape, shape[-1])))[0]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Array, Array, np.random.Generator]:
    """A base (c, n) of full rank and τ with ‖τ‖ from 0 to the norm of the base: random, rank one, or along the base."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    c = draw(st.integers(1, 6))
    n = c + draw(st.integers(0, 9))
    left, right = haar(rng, c), haar(rng, n)[:c]
    base = (left * np.array([draw(st.sampled_from([0.1, 1.0, 1.0, 3.0])) for _ in range(c)])) @ right
    kind, ratio = draw(st.sampled_from(["random", "one", "against"])), draw(st.sampled_from([0.0, 1e-6, 0.1, 0.5, 1.0]))
    task = {
        "random": rng.standard_normal((c, n)),
        "one": np.outer(rng.standard_normal(c), rng.standard_normal(n)),
        "against": rng.standard_normal((c, c)) @ base,  # all of it in the base's row space
    }[kind]
    return base, task * (ratio * np.linalg.norm(base) / np.linalg.norm(task)), rng


def slack(base: Array) -> float:
    """Round-off of H, E and a decomposition, times the condition number of H."""
    c, n = base.shape
    return float(16 * (n + c * c) * c**0.5 * EPS * np.linalg.cond(base) ** 2)


@given(cases())
def test_procrustes_is_never_above_its_bound(case: tuple[Array, Array, np.random.Generator]) -> None:
    base, task, rng = case
    turn = haar(rng, len(base))
    error = np.linalg.norm(procrustes(turn @ (base + task), base) - turn)
    assert error <= procrustes_bound(base, task) + slack(base)
    # The simpler form that the docstring gives
    smallest = np.linalg.svd(base, compute_uv=False)[-1]
    assert procrustes_bound(base, task) <= 2 * np.linalg.norm(task @ base.T) / smallest**2 * (1 + 1e-9) + slack(base)


@given(cases(), st.sampled_from([0.0, 1e-8, 0.1]))
def test_least_squares_is_never_above_its_bound(case: tuple[Array, Array, np.random.Generator], ridge: float) -> None:
    base, task, rng = case
    transform = haar(rng, len(base)) * rng.uniform(0.5, 2, len(base))
    got = least_squares(transform @ (base + task), base, ridge)
    bound = least_squares_bound(base, task, ridge)
    assert np.linalg.norm(np.linalg.solve(transform, got) - np.eye(len(base))) <= bound + 16 * slack(base)
    smallest = np.linalg.svd(base, compute_uv=False)[-1]
    assert least_squares_bound(base, task) <= np.linalg.norm(task) / smallest * (1 + 1e-9) + slack(base)


def test_the_bounds_are_not_empty() -> None:
    """One number decides a turn of two rows: the error reaches a good part of the bound, and halving it is seen."""
    base, share, noise = np.eye(2), [], []
    for angle in np.linspace(0.05, 1.0, 20):
        task = 0.5 * np.array([[0, -angle], [angle, 0]])
        error = np.linalg.norm(procrustes(base + task, base) - np.eye(2))
        share.append(error / procrustes_bound(base, task))
        noise.append(np.linalg.norm(least_squares(base + task, base) - np.eye(2)) / least_squares_bound(base, task))
    assert 0.5 < max(share) <= 1 and max(noise) == pytest.approx(1)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_signs_are_right_where_they_are_safe(seed: int, half: int) -> None:
    rng = np.random.default_rng(seed)
    base, task = rng.standard_normal((2, 2 * half, 5))
    task *= rng.uniform(0, 2)
    signs = rng.choice([-1.0, 1.0], half)
    found = plane_signs(np.tile(signs, 2)[:, None] * (base + task), base)
    safe = signs_are_safe(base, task)
    assert np.array_equal(found[safe], signs[safe])
    worst = -1.0001 * base  # just past the edge, against the base: every sign is wrong
    assert not np.any(signs_are_safe(base, worst)) and np.all(plane_signs(base + worst, base) == -1)


@given(st.integers(0, 2**32 - 1), st.integers(2, 8), st.floats(0, 1))
def test_rows_are_matched_where_they_are_safe(seed: int, m: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    base, task = rng.standard_normal((2, m, 6))
    apart = min(np.linalg.norm(base[i] - base[j]) for i in range(m) for j in range(i))
    task *= size * 0.5 * apart / np.max(np.linalg.norm(task, axis=1))
    order = rng.permutation(m)
    assert rows_are_safe(base, 0.999 * task)
    assert np.array_equal(match_rows((base + 0.999 * task)[order], base), order)
    swap = np.zeros_like(base)  # past the edge: two rows change places
    swap[0], swap[1] = base[1] - base[0], base[0] - base[1]
    assert not rows_are_safe(base, swap) and match_rows(base + swap, base)[:2].tolist() == [1, 0]


# --- On a checkpoint --------------------------------------------------------------------------------------------


def worst(got: Any, want: dict[str, Array]) -> float:
    return max(relative_error(got[name], w) for name, w in want.items())


@pytest.mark.parametrize("ratio", [0.0, 0.01])
def test_a_top_k_lock_comes_back(ratio: float) -> None:
    base = model()
    owner = tuned(base, ratio)
    p = projections(owner, CONFIG, TOPK, 3)
    result = anchor_projection(project(owner, CONFIG, p), base, CONFIG)
    assert relative_error(result.found["P"], p) <= (1e-12 if not ratio else 4 * ratio)
    assert worst(result.guesses[0], owner) <= (1e-12 if not ratio else 4 * ratio)


def test_plane_signs_come_back_bit_for_bit() -> None:
    base = model()
    owner = tuned(base, 0.3)
    k = np.array([[0, 1], [2, 3]])
    p = projections(owner, CONFIG, TOPK_PLANES, k)
    result = anchor_signs(project(owner, CONFIG, p), base, CONFIG)
    assert np.array_equal(np.sum(result.found["signs"] < 0, axis=-1), k)
    assert worst(result.guesses[0], owner) == 0
    assert result.residual_bits == 0 and result.knows == ("released weights", "base")


@pytest.mark.parametrize("lock", [merge_lock, params_lock])
def test_the_peers_come_back(lock: Any) -> None:
    base = model()
    locked = lock(base, CONFIG, np.random.default_rng(2), rotary=False)
    undone = anchor_invertible(locked.tensors, base, CONFIG, ridge=0.0)
    assert relative_error(undone.found["values"], locked.values) <= 1e-10
    assert relative_error(undone.found["queries"], locked.queries) <= 1e-10
    tensors = undone.guesses[0]
    if locked.order is not None:
        units = anchor_permutation(tensors, base, CONFIG)
        assert np.array_equal(units.found["order"], locked.order)
        tensors = units.guesses[0]
    assert worst(tensors, base) <= 1e-10


def test_ridge_costs_what_its_bound_says_and_no_more() -> None:
    base = model()
    locked = merge_lock(tuned(base, 0.02), CONFIG, np.random.default_rng(2))
    plain, ridged = (anchor_invertible(locked.tensors, base, CONFIG, r) for r in (0.0, 1e-8))
    assert relative_error(ridged.found["values"], plain.found["values"]) <= 1e-4


def test_units_come_back_bit_for_bit_after_fine_tuning() -> None:
    base = model()
    owner = tuned(base, 0.1)
    locked = params_lock(owner, CONFIG, np.random.default_rng(2))
    result = anchor_permutation(locked.tensors, base, CONFIG)
    assert all(np.array_equal(result.guesses[0][n], w) for n, w in owner.items() if "mlp" in n)


def test_the_wrong_base_finds_nothing() -> None:
    """The null control."""
    base, stranger = model(), model(9)
    p = haar(np.random.default_rng(3), *SHAPE[:-1])
    released = project(base, CONFIG, p)
    assert relative_error(anchor_projection(released, stranger, CONFIG).found["P"], p) > 0.3
    order = params_lock(base, CONFIG, np.random.default_rng(2))
    found = anchor_permutation(order.tensors, stranger, CONFIG).found["order"]
    assert np.mean(found == order.order) < 0.7


# --- Bad input --------------------------------------------------------------------------------------------------


def test_shapes_ranks_and_ridges_are_refused() -> None:
    with pytest.raises(ValueError, match="matrices of one shape"):
        procrustes(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ValueError, match="rows are dependent"):
        least_squares(np.ones((2, 3)), np.ones((2, 3)))
    with pytest.raises(ValueError, match="must not be negative"):
        least_squares(np.ones((2, 3)), np.ones((2, 3)), -1.0)
    assert np.all(np.isfinite(least_squares(np.ones((2, 3)), np.ones((2, 3)), 1e-6)))


def test_a_base_of_another_model_is_named() -> None:
    one = model()
    same_shapes(one, model(1))
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(ValueError, match=rf"base: {name} is \(9, 7\), in the release \(7, 9\)"):
        same_shapes(one, one | {name: one[name].T})
    with pytest.raises(ValueError, match=f"base: {name} is missing"):
        same_shapes(one, {n: w for n, w in one.items() if n != name})
