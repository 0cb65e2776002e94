"""The keyless attack: what it must find, what it must not find, and what nobody can find."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_dtypes import bfloat16
from numpy.typing import NDArray

from lockref.attacks.keyless import heaviest_tails, keyless
from lockref.attacks.result import AttackResult, relative_error
from lockref.locks.attention import (
    FAMILIES,
    TOPK,
    TOPK_PLANES,
    Family,
    cross_sum,
    flip,
    governing,
    gram_sum,
    grams,
    layer_heads,
    project,
    projections,
)
from lockref.models.qwen3 import Qwen3Config, expected_tensors

Array = NDArray[np.float64]
Tensors = dict[str, Array]

CONFIG = Qwen3Config(
    vocab_size=5, hidden_size=9, intermediate_size=3, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=6,
)  # fmt: skip
C, G, LAYERS = 6, 2, 2
U = 2.0**-53
SEEDS = st.integers(0, 2**32 - 1)


def model(seed: int = 0) -> Tensors:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in expected_tensors(CONFIG).items()}


def haar(rng: np.random.Generator, *shape: int) -> Array:
    return np.linalg.qr(rng.standard_normal((*shape, shape[-1])))[0]


def with_spectrum(singular: list[float], seed: int) -> Tensors:
    """A model in which every key head's queries and key together have these singular values: S has their squares."""
    rng, tensors = np.random.default_rng(seed), model(seed)
    for layer in range(LAYERS):
        heads = []
        for _ in range(G):
            basis, columns = haar(rng, C), haar(rng, 3 * CONFIG.hidden_size)[:C]
            heads.append(((basis * singular) @ columns).reshape(C, 3, CONFIG.hidden_size).swapaxes(0, 1))
        q = np.concatenate([h[:2] for h in heads]).reshape(-1, CONFIG.hidden_size)
        k = np.concatenate([h[2:] for h in heads]).reshape(-1, CONFIG.hidden_size)
        tensors |= {f"model.layers.{layer}.self_attn.{s}_proj.weight": w for s, w in (("q", q), ("k", k))}
    return tensors


def release(tensors: Tensors, family: Family, k: Any, matrix: Any = gram_sum) -> Tensors:
    return project(tensors, CONFIG, projections(tensors, CONFIG, family, k, matrix))


def error(got: Any, want: Tensors) -> float:
    return max(relative_error(got[name], w) for name, w in want.items())


def tolerance(squares: list[float], k: int) -> float:
    """Round-off of guess k: S from products of length 3d, its eigenvectors to c u, both over the gap (Davis & Kahan).

    ‖δS‖_F ≤ (3d + c²) √c u λ_1 for release, Gram matrix and eigh; the projector moves by 2√2 ‖δS‖_F/gap, the lock by
    twice that, once for the owner and once for the attacker, and all of a head's weights can lie where it moves.
    """
    ordered = sorted(squares, reverse=True)
    gap = ordered[k - 1] - ordered[k] if 0 < k < C else ordered[0]
    moved = (3 * CONFIG.hidden_size + C * C) * math.sqrt(C) * U * ordered[0]
    return 8 * math.sqrt(2) * moved / gap * math.sqrt(C * ordered[0] / sum(squares)) * 4


@given(st.permutations([1.0, 2.0, 3.0, 4.5, 5.0, 7.0]), SEEDS, st.integers(0, C))
def test_guess_k_is_the_original(singular: list[float], seed: int, k: int) -> None:
    tensors = with_spectrum(singular, seed)
    guesses = keyless(release(tensors, TOPK, k), CONFIG, TOPK).guesses
    allowed = tolerance([x * x for x in singular], k)
    assert error(guesses[k], tensors) <= allowed
    for other in set(range(C + 1)) - {k}:
        assert error(guesses[other], tensors) > 0.05  # the list does not hold it twice


@pytest.mark.parametrize("k", range(C // 2 + 1))
@pytest.mark.parametrize("dtype", [np.float64, np.float32, bfloat16])
def test_plane_wise_locks_come_back_bit_for_bit_in_any_type(k: int, dtype: Any) -> None:
    tensors = {name: w.astype(dtype).astype(np.float64) for name, w in model().items()}
    saved = {name: w.astype(dtype).astype(np.float64) for name, w in release(tensors, TOPK_PLANES, k).items()}
    assert error(keyless(saved, CONFIG, TOPK_PLANES).guesses[k], tensors) == 0


def test_plane_wise_locks_come_back_bit_for_bit_from_ties() -> None:
    tensors = {name: np.sign(w) for name, w in model().items()}  # all plane traces are equal
    for k in range(C // 2 + 1):
        assert error(keyless(release(tensors, TOPK_PLANES, k), CONFIG, TOPK_PLANES).guesses[k], tensors) == 0


@pytest.mark.parametrize("family", FAMILIES.values())
@pytest.mark.parametrize("matrix", [gram_sum, cross_sum])
def test_the_governing_matrix_may_be_any_that_turns_with_the_weights(family: Family, matrix: Any) -> None:
    tensors = model(3)
    values = np.linalg.eigvalsh(governing(tensors, CONFIG, matrix))[..., ::-1]
    for k in range(family.most(C) + 1):
        result = keyless(release(tensors, family, k, matrix), CONFIG, family, matrix=matrix)
        gap = np.min(values[..., k - 1] - values[..., k]) if 0 < k < C and family is TOPK else 1.0
        scale = max(float(np.max(np.trace(governing(tensors, CONFIG, gram_sum), axis1=-2, axis2=-1))), 1.0)
        allowed = (3 * CONFIG.hidden_size + C * C) * C * U * scale / gap * 32
        assert error(result.guesses[k], tensors) <= allowed
    wrong = keyless(release(tensors, TOPK, 3, cross_sum), CONFIG, TOPK, matrix=gram_sum)
    assert min(error(guess, tensors) for guess in wrong.guesses) > 0.05  # the wrong matrix gets nowhere


@given(SEEDS, st.lists(st.integers(0, C), min_size=4, max_size=4))
def test_a_relative_names_k_for_each_head(seed: int, drawn: list[int]) -> None:
    """Sufficient: in every eigen-direction the relative moved by less than the weights' own length there."""
    singular = [1.0, 2.0, 3.0, 4.5, 5.0, 7.0]
    tensors, k = with_spectrum(singular, seed), np.array(drawn).reshape(2, 2)
    rng = np.random.default_rng([seed, 1])
    relative = {}
    for name, w in tensors.items():
        step = rng.standard_normal(w.shape)
        # three blocks of a head at most move together; each by a quarter of the least singular value
        relative[name] = w + step * 0.25 / np.linalg.norm(step) if "_proj" in name else w
    result = keyless(release(tensors, TOPK, k), CONFIG, TOPK, relative)
    assert np.array_equal(result.found["k"], k)
    assert result.residual_bits == 0 and len(result.guesses) == 1
    assert error(result.guesses[0], tensors) <= max(tolerance([x * x for x in singular], j) for j in drawn)


@pytest.mark.parametrize("family", FAMILIES.values())
def test_an_unlocked_model_is_left_alone(family: Family) -> None:
    tensors = model()
    result = keyless(tensors, CONFIG, family, {name: 1.01 * w for name, w in tensors.items()})
    assert not np.any(result.found["k"])
    assert all(np.array_equal(result.guesses[0][name], w) for name, w in tensors.items())


@given(SEEDS)
def test_a_random_projection_stays_hidden(seed: int) -> None:
    """The null control, with flat spectra: ‖W(P − Q)‖² = 2 tr S − 2 tr(S PᵀQ) is small only if Q is near to P."""
    tensors = with_spectrum([1.0, 1.1, 1.2, 1.3, 1.4, 1.5], seed)
    p = haar(np.random.default_rng([seed, 1]), LAYERS, G, C)
    result = keyless(project(tensors, CONFIG, p), CONFIG, TOPK, reference=tensors)  # even told which guess is nearest
    assert error(result.guesses[0], tensors) > 0.1


def test_minus_identity_is_found() -> None:
    tensors = model()
    released = {n: -w if "q_proj" in n or "k_proj" in n else w for n, w in tensors.items()}
    result = keyless(released, CONFIG, TOPK, reference=tensors)
    assert np.all(result.found["k"] == C)
    assert error(result.guesses[0], tensors) <= 4 * C**2.5 * 2 * U


@given(SEEDS, st.integers(1, 2))
def test_a_tie_at_the_cut_hides_which_directions_were_flipped_but_not_the_function(seed: int, k: int) -> None:
    """λ_1 = λ_2 = λ_3: the owner flips k < 3 of them by a basis of their own, and guess k takes another basis."""
    tensors = with_spectrum([3.0, 3.0, 3.0, 2.0, 1.5, 1.0], seed)
    owner = np.linalg.eigh(governing(tensors, CONFIG))[1][..., ::-1].copy()
    owner[..., :3] = owner[..., :3] @ haar(np.random.default_rng([seed, 1]), LAYERS, G, 3)
    released = project(tensors, CONFIG, flip(owner, k))
    guess = keyless(released, CONFIG, TOPK).guesses[k]
    for (q, key), (q0, key0) in zip(layer_heads(guess, CONFIG), layer_heads(tensors, CONFIG), strict=True):
        scores, want = (np.swapaxes(a, -1, -2) @ b[:, None] for a, b in ((q, key), (q0, key0)))
        assert np.max(np.abs(scores - want)) <= 16 * C**2.5 * U * np.max(np.linalg.norm(q0, axis=(-2, -1))) * 3
    # Past the tie the guess is the original again.
    past = project(tensors, CONFIG, flip(owner, 3))
    assert error(keyless(past, CONFIG, TOPK).guesses[3], tensors) <= tolerance([9.0, 9.0, 9.0, 4.0, 2.25, 1.0], 3)


@given(SEEDS, st.integers(4, C))
def test_zero_eigenvalues_at_the_cut_do_not_matter(seed: int, k: int) -> None:
    """Where S vanishes, W_q and W_k do: whichever of those directions were flipped, the weights are the same."""
    tensors = with_spectrum([3.0, 2.5, 2.0, 1.0, 0.0, 0.0], seed)
    guess = keyless(release(tensors, TOPK, k), CONFIG, TOPK).guesses[k]
    squares = [9.0, 6.25, 4.0, 1.0, 0.0, 0.0]
    assert error(guess, tensors) <= tolerance(squares, 4)


def test_guesses_are_a_sequence_of_models_made_on_demand() -> None:
    result = keyless(model(), CONFIG, TOPK_PLANES)
    assert isinstance(result, AttackResult) and result.knows == ("released weights",)
    assert len(result.guesses) == C // 2 + 1 and result.residual_bits == 2
    assert len(result.guesses[1:]) == C // 2
    assert error(result.guesses[-1], dict(result.guesses[C // 2])) == 0
    with pytest.raises(IndexError, match="guess 4 of 4"):
        result.guesses[4]


def test_tails_name_the_original_of_axis_aligned_weights_and_cannot_tell_planes_apart() -> None:
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_t(3, w.shape) for name, w in model().items()}
    for k in range(1, C):
        scores = heaviest_tails(keyless(release(tensors, TOPK, k), CONFIG, TOPK).guesses, CONFIG)
        assert np.argmax(scores) == k
    alike = heaviest_tails(keyless(release(tensors, TOPK_PLANES, 1), CONFIG, TOPK_PLANES).guesses, CONFIG)
    assert len(set(alike.tolist())) == 1


def test_an_attacker_with_half_of_the_governing_matrix_fails() -> None:
    """The mutant: S without the keys does not commute with P, so nothing comes back."""
    tensors = model()
    released = release(tensors, TOPK, 3)
    guesses = keyless(released, CONFIG, TOPK, matrix=lambda q, k: grams(q, k)[0]).guesses
    assert min(error(guess, tensors) for guess in guesses) > 0.05


def test_relative_error_of_zeros_and_of_wrong_shapes() -> None:
    zero, one = np.zeros(2), np.ones(2)
    assert relative_error(zero, zero) == 0
    assert relative_error(one, zero) == math.inf
    assert relative_error(zero, one) == 1
    with pytest.raises(ValueError, match=r"got shape \(2,\), want shape \(3,\)"):
        relative_error(one, np.ones(3))
