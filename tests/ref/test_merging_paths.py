"""Straight paths and the barrier on them: hand-computed ones, and refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockref.merging import barrier, path_losses, point


def test_two_wells_have_a_barrier_between_them():
    """L(x) = (x² − 1)²: 0 at ±1, 1 half way."""
    ends = ({"x": np.array(-1.0)}, {"x": np.array(1.0)})
    losses = path_losses(*ends, lambda t: float((t["x"] ** 2 - 1) ** 2), [0, 0.25, 0.5, 0.75, 1])
    assert losses == [0, 0.5625, 1, 0.5625, 0] and barrier(losses) == 1


def test_the_chord_between_unequal_ends_is_taken_off():
    assert barrier([0.0, 3.0, 2.0]) == 2.0
    assert barrier([0.0, 3.0, 2.0], alphas=[0, 0.25, 1]) == 2.5


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6), st.floats(-2, 2))
def test_barriers_are_never_negative_and_blind_to_a_constant(losses, constant):
    assert barrier(losses) >= 0
    assert abs(barrier([x + constant for x in losses]) - barrier(losses)) <= 1e-14 * 8


def test_convex_losses_have_none():
    rng = np.random.default_rng(0)
    ends = [{"x": rng.standard_normal(3)} for _ in range(2)]
    assert barrier(path_losses(*ends, lambda t: float(np.sum(t["x"] ** 2)), np.linspace(0, 1, 9))) <= 1e-14
    assert np.array_equal(point(*ends, 0.0)["x"], ends[0]["x"]) and np.array_equal(point(*ends, 1.0)["x"], ends[1]["x"])


def test_bad_paths_are_refused():
    with pytest.raises(ValueError, match="tensor 'y': only one end"):
        point({"x": np.zeros(1)}, {"x": np.zeros(1), "y": np.zeros(1)}, 0.5)
    with pytest.raises(ValueError, match=r"tensor 'x': shapes \(1,\) and \(2,\)"):
        point({"x": np.zeros(1)}, {"x": np.zeros(2)}, 0.5)
    with pytest.raises(ValueError, match="1 loss on the path"):
        barrier([1.0])
