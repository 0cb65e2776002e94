"""The ascent over flips of at most k directions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockref.locks.attention import eigenbasis, eq2_from_grams, flip, strongest_flip

EPS = 2.0**-52


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.data())
def test_it_never_falls_and_never_flips_more(seed: int, c: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    w_q, w_k = rng.standard_normal((2, data.draw(st.integers(1, 8)), c))
    a, b, k = w_q.T @ w_q, w_k.T @ w_k, data.draw(st.integers(0, c))
    starts = flip(np.linalg.qr(rng.standard_normal((4, c, c)))[0], k)
    ends = strongest_flip(a, b, starts, directions=k)
    assert np.all(eq2_from_grams(a, b, ends) >= eq2_from_grams(a, b, starts))
    flipped = np.trace(np.eye(c) - ends, axis1=-2, axis2=-1) / 2  # the rank of a projector is its trace
    assert np.all(flipped <= k + 8 * c**2.5 * EPS)
    # Ky Fan: tr(A Π B Π) ≤ the sum of the k largest products of eigenvalues
    most = np.sort(np.linalg.eigvalsh(a))[::-1][:k] @ np.sort(np.linalg.eigvalsh(b))[::-1][:k]
    assert np.all(eq2_from_grams(a, b, ends) <= most + 16 * c**2 * (c**2 + 2 * c) * EPS * np.trace(a) * np.trace(b))


def test_it_finds_the_counterexample_of_the_top_k_relaxation() -> None:
    a, b = np.diag([4.0, 0.0]), np.diag([0.0, 1.0])
    assert eq2_from_grams(a, b, flip(eigenbasis(a + b), 1)) == 0
    start = flip(np.linalg.qr(np.array([[1.0, 0.3], [0.4, 1.0]]))[0], 1)
    assert eq2_from_grams(a, b, strongest_flip(a, b, start, directions=1)) == pytest.approx(1.0)


@pytest.mark.parametrize("directions", [-1, 4])
def test_a_number_of_directions_out_of_range_is_named(directions: int) -> None:
    with pytest.raises(ValueError, match="an integer from 0 to 3"):
        strongest_flip(np.eye(3), np.eye(3), np.eye(3), directions=directions)
