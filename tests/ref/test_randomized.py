"""The randomized eigendecomposition against the full one: its stated error contains the true one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lockref.locks.attention import TOPK, eigenbasis, flip, projections
from lockref.locks.randomized import leading_eigenvectors, randomized_projections
from lockref.models.qwen3 import Qwen3Config, expected_tensors

Array = NDArray[np.float64]
EPS = 2.0**-52


def with_eigenvalues(values: list[float], rng: np.random.Generator) -> Array:
    basis = np.linalg.qr(rng.standard_normal((len(values), len(values))))[0]
    s = (basis * values) @ basis.T
    return (s + s.T) / 2


SPECTRA = st.lists(st.sampled_from([0.0, 0.1, 1.0, 1.0, 1.05, 2.0, 3.0, 9.0]), min_size=2, max_size=12)


@given(SPECTRA, st.integers(0, 2**32 - 1), st.data())
def test_the_stated_error_contains_the_true_one(spectrum: list[float], seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    s, c = with_eigenvalues(spectrum, rng), len(spectrum)
    k, over = data.draw(st.integers(1, c)), data.draw(st.integers(0, 3))
    found = leading_eigenvectors(s, k, rng, oversampling=over, power_iterations=data.draw(st.integers(0, 2)))
    ordered = np.sort(spectrum)[::-1]
    after = ordered[k] if k < c else -np.inf
    gap = ordered[k - 1] - after
    # eigh and the Ritz values are those of a matrix c² eps λ_1 away, divided by the gap: two decompositions.
    scale = 16 * c**2.5 * EPS * max(ordered[0], 1e-300)
    allowed = found.error_bound(np.float64(after)) + (scale / gap if gap > 0 else 2 * np.sqrt(2 * c))
    assert np.linalg.norm(found.projection - flip(eigenbasis(s), k)) <= allowed + 1e-12
    assert np.all(found.values <= ordered[:k] + scale)  # Ritz values come from below
    assert np.max(np.abs(found.vectors.T @ found.vectors - np.eye(k))) <= 16 * c**1.5 * EPS


def test_the_comparison_would_see_a_bound_without_its_constant_and_a_wrong_gap() -> None:
    """Two directions at 45° to the eigenvectors: the true error is 2√2·√½, residual/gap alone is less."""
    s, rng = np.diag([2.0, 1.0]), np.random.default_rng(0)
    found = [leading_eigenvectors(s, 1, rng, oversampling=0, power_iterations=0) for _ in range(200)]
    errors = np.array([np.linalg.norm(f.projection - np.diag([-1.0, 1.0])) for f in found])
    bounds = np.array([f.error_bound(np.float64(1.0)) for f in found])
    assert np.all(errors <= bounds + 1e-12)
    assert np.any(errors > bounds / (2 * np.sqrt(2)))
    assert np.any(errors > np.array([f.error_bound(np.float64(0.0)) for f in found]))


def test_power_iterations_and_oversampling_shrink_the_stated_error() -> None:
    s = with_eigenvalues([4.0, 3.0, *np.linspace(1.5, 0, 38)], np.random.default_rng(1))
    bounds = [
        float(leading_eigenvectors(s, 2, np.random.default_rng(2), oversampling=p, power_iterations=n).error_bound(
            np.float64(1.5)))
        for p, n in [(0, 0), (8, 0), (8, 2), (8, 24)]
    ]  # fmt: skip
    assert bounds == sorted(bounds, reverse=True) and bounds[-1] < 1e-6


def test_a_tie_at_the_cut_has_no_stated_error() -> None:
    found = leading_eigenvectors(np.eye(4), 2, np.random.default_rng(0))
    assert found.error_bound(np.float64(1.0)) == 4.0  # the greatest distance of two flips of 2 of 4 directions
    assert np.linalg.norm(found.projection - np.diag([-1.0, -1, 1, 1])) > 0.1


def test_on_a_model_it_agrees_with_the_full_decomposition() -> None:
    config = Qwen3Config(
        vocab_size=5, hidden_size=9, intermediate_size=3, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape) for name, shape in expected_tensors(config).items()}
    p, found = randomized_projections(tensors, config, 3, rng, power_iterations=40)
    want = projections(tensors, config, TOPK, 3)
    assert p.shape == want.shape == (2, 2, 6, 6) and found.residual.shape == (2, 2)
    assert np.max(np.abs(p - want)) <= 1e-9


@pytest.mark.parametrize("k", [0, 5, -1, 1.5, True])
def test_k_out_of_range_is_named(k: int) -> None:
    with pytest.raises(ValueError, match="an integer from 1 to 4"):
        leading_eigenvectors(np.eye(4), k, np.random.default_rng(0))
    with pytest.raises(ValueError, match="must not be negative"):
        leading_eigenvectors(np.eye(4), 1, np.random.default_rng(0), oversampling=-1)
