"""The attention lock against its definitions, on small models whose shapes and gains can see a wrong one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import schur

from lockref.locks.attention import (
    FAMILIES,
    TOPK,
    TOPK_PLANES,
    cross_sum,
    eigenbasis,
    eq2,
    eq2_from_grams,
    flip,
    governing,
    gram_sum,
    grams,
    layer_heads,
    plane_basis,
    plane_traces,
    project,
    projections,
    strongest_flip,
    surrogate,
)
from lockref.models import qwen3

from .attention_model import CONFIG, EPS, SEEDS, TOKENS, Array, C, haar, model


@st.composite
def heads(draw: st.DrawFn) -> tuple[Array, Array, Array]:
    """q (n, c, d), k (c, d) and an orthogonal P, with d on both sides of c and sometimes of lower rank."""
    rng = np.random.default_rng(draw(SEEDS))
    n, c, d = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 9))
    q, k = rng.standard_normal((n, c, d)), rng.standard_normal((c, d))
    for zero in draw(st.sets(st.integers(0, c - 1), max_size=c - 1)):  # directions that no weight sees
        q[:, zero], k[zero] = 0, 0
    return q, k, haar(rng, c)


@given(heads())
def test_eq2_is_the_papers_formula_and_depends_on_the_gram_matrices_only(case: tuple[Array, Array, Array]) -> None:
    q, k, p = case
    w_k = k.T
    want = sum(
        np.linalg.norm((w_q @ p + w_q) @ (w_k @ p + w_k).T - 4 * w_q @ w_k.T) ** 2 / 16 for w_q in q.swapaxes(-1, -2)
    )
    a, b = grams(q, k)
    # Each entry contracts c twice, each norm d·d terms, all below ‖W_q‖²‖W_k‖² (‖P + I‖ ≤ 2).
    tolerance = (8 * len(p) + q.shape[-1] ** 2) * 4 * len(p) * EPS * np.trace(a) * np.trace(b)
    assert abs(eq2(q, k, p) - want) <= tolerance
    assert abs(eq2_from_grams(a, b, p) - want) <= tolerance


def test_the_comparison_with_eq2_would_see_a_forgotten_transpose() -> None:
    rng = np.random.default_rng(0)
    q, k, p = rng.standard_normal((2, 4, 5)), rng.standard_normal((4, 5)), haar(rng, 4)
    a, b = grams(q, k)
    d = 2 * np.eye(4) - 2 * p  # instead of 2I − P − Pᵀ
    assert abs(np.trace(a @ d @ b @ d) / 16 - eq2(q, k, p)) > 0.1 * eq2(q, k, p)


@given(heads())
def test_surrogate_is_the_papers_formula(case: tuple[Array, Array, Array]) -> None:
    q, k, p = case
    want = sum(np.linalg.norm(w.T @ p - w.T) ** 2 for w in (*q, k))
    a, b = grams(q, k)
    tolerance = (4 * len(p) + q.shape[-1] * len(q)) * 8 * EPS * len(p) * np.trace(a + b)
    assert abs(surrogate(a, b, p) - want) <= tolerance


@given(heads())
def test_a_top_k_flip_reaches_the_sums_it_should(case: tuple[Array, Array, Array]) -> None:
    q, k, _ = case
    a, b = grams(q, k)
    s, c = a + b, len(a)
    values, basis = np.linalg.eigvalsh(s)[::-1], eigenbasis(s)
    tolerance = 64 * c**2 * EPS * np.trace(s)
    for leading in range(c + 1):
        p = flip(basis, leading)
        assert abs(surrogate(a, b, p) - 4 * np.sum(values[:leading])) <= tolerance
        kept = basis[:, :leading] @ basis[:, :leading].T
        want = sum(np.linalg.norm(w.T @ kept @ k) ** 2 for w in q)
        assert abs(eq2_from_grams(a, b, p) - want) <= tolerance * np.trace(s)


@given(SEEDS, st.lists(st.integers(0, 3), min_size=2, max_size=8))
def test_plane_basis_orders_planes_by_trace_and_ties_by_index(seed: int, traces: list[int]) -> None:
    half = len(traces)
    rng = np.random.default_rng(seed)
    noise = rng.integers(-3, 4, (2 * half, 2 * half)).astype(float)
    s = noise + noise.T
    first = rng.integers(-2, 3, half)
    np.fill_diagonal(s, [*first, *(np.array(traces) - first)])
    basis = plane_basis(s)
    order = [int(np.argmax(column)) for column in basis.T]
    assert np.array_equal(plane_traces(s), traces)
    assert order[1::2] == [i + half for i in order[::2]]
    assert order[::2] == sorted(range(half), key=lambda i: (-traces[i], i))
    assert np.array_equal(basis.sum(0), np.ones(2 * half)) and np.array_equal(basis.sum(1), np.ones(2 * half))


def test_every_head_is_turned_by_the_block_of_its_key_head() -> None:
    tensors = model()
    p = haar(np.random.default_rng(3), 2, 2, C)
    out = project(tensors, CONFIG, p)
    heads_per_key = CONFIG.num_attention_heads // CONFIG.num_key_value_heads

    def wrong(block_of: Callable[[int], int]) -> float:
        worst = 0.0
        for layer in range(2):
            w = tensors[f"model.layers.{layer}.self_attn.q_proj.weight"].T
            got = out[f"model.layers.{layer}.self_attn.q_proj.weight"].T
            for h in range(6):
                columns = slice(h * C, (h + 1) * C)
                worst = max(worst, np.max(np.abs(w[:, columns] @ p[layer, block_of(h)] - got[:, columns])))
        return worst

    assert wrong(lambda h: h // heads_per_key) <= C * EPS * 10
    assert wrong(lambda h: h % 2) > 0.1  # interleaved groups would be seen
    for layer in range(2):
        w, got = (t[f"model.layers.{layer}.self_attn.k_proj.weight"].T for t in (tensors, out))
        for g in range(2):
            columns = slice(g * C, (g + 1) * C)
            assert np.max(np.abs(w[:, columns] @ p[layer, g] - got[:, columns])) <= C * EPS * 10


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_project_returns_new_tensors_of_the_same_types_and_touches_no_other(dtype: Any) -> None:
    tensors = {name: w.astype(dtype) for name, w in model().items()}
    before = {name: w.copy() for name, w in tensors.items()}
    out = project(tensors, CONFIG, projections(tensors, CONFIG, TOPK, 2))
    assert out is not tensors and all(np.array_equal(before[n], w) for n, w in tensors.items())
    changed = {n for n, w in out.items() if not np.array_equal(w, before[n])}
    assert changed == {n for n in tensors if "q_proj" in n or "k_proj" in n}
    assert {w.dtype for w in out.values()} == {np.dtype(dtype)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_plane_wise_flips_keep_every_bit_of_the_logits_and_eigen_flips_do_not(dtype: Any) -> None:
    tensors = {name: w.astype(dtype) for name, w in model().items()}
    want = qwen3.forward(tensors, TOKENS, CONFIG)
    for k in range(C // 2 + 1):
        out = project(tensors, CONFIG, projections(tensors, CONFIG, TOPK_PLANES, k))
        assert np.array_equal(qwen3.forward(out, TOKENS, CONFIG), want)
    for k in range(1, C):
        out = project(tensors, CONFIG, projections(tensors, CONFIG, TOPK, k))
        assert np.max(np.abs(qwen3.forward(out, TOKENS, CONFIG) - want)) > 0.01 * np.max(np.abs(want))


def test_k_may_differ_from_head_to_head() -> None:
    tensors, k = model(), np.array([[0, 3], [1, 2]])
    p = projections(tensors, CONFIG, TOPK_PLANES, k)
    assert np.array_equal(np.round((C - np.trace(p, axis1=-2, axis2=-1)) / 4), k)


@pytest.mark.parametrize("matrix", [gram_sum, cross_sum])
def test_governing_matrices_turn_with_the_weights(matrix: Any) -> None:
    tensors = model()
    p = haar(np.random.default_rng(5), 2, 2, C)
    s = governing(tensors, CONFIG, matrix)
    turned = governing(project(tensors, CONFIG, p), CONFIG, matrix)
    assert np.max(np.abs(turned - p.swapaxes(-1, -2) @ s @ p)) <= (40 + 4 * C) * C * EPS * np.max(np.abs(s)) * 8
    assert np.max(np.abs(turned - s)) > 0.1


@given(heads())
def test_the_ascent_never_falls_and_stays_among_flips(case: tuple[Array, Array, Array]) -> None:
    q, k, p = case
    a, b = grams(q, k)
    c = len(a)
    start = flip(p, np.arange(c + 1))
    end = strongest_flip(a, b, start)
    assert np.all(eq2_from_grams(a, b, end) >= eq2_from_grams(a, b, start))
    assert np.max(np.abs(end - end.swapaxes(-1, -2))) <= 8 * c * EPS
    assert np.max(np.abs(end @ end - np.eye(c))) <= 8 * c**2.5 * EPS


@given(heads())
def test_for_every_p_some_flip_is_as_good(case: tuple[Array, Array, Array]) -> None:
    """The step of MB-T2A's proof: in the planes that P rotates, put +I or −I, whichever is better.

    What the Schur form shows of a plane only below 1e-8 is taken for signs, which changes P by that much.
    """
    q, k, p = case
    a, b = grams(q, k)
    t, z = schur(p, output="real")
    c, i, planes, signs = len(a), 0, list[list[int]](), np.sign(np.diag(t))
    while i < c:
        width = 2 if i + 1 < c and abs(t[i + 1, i]) > 1e-8 else 1
        planes += [list(range(i, i + width))] if width == 2 else []
        i += width
    best = -np.inf
    for choice in np.ndindex(*[2] * len(planes)):
        for side, plane in zip(choice, planes, strict=True):
            signs[plane] = 2 * side - 1
        best = max(best, float(eq2_from_grams(a, b, (z * signs) @ z.T)))
    assert best >= eq2_from_grams(a, b, p) - 64 * c**2.5 * 1e-8 * np.trace(a) * np.trace(b)


# --- Bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [-1, C + 1, 1.5, [[1, 2], [3, C + 1]]])
def test_k_out_of_range_is_named(k: Any) -> None:
    with pytest.raises(ValueError, match=f"an integer from 0 to {C}"):
        projections(model(), CONFIG, TOPK, k)
    with pytest.raises(ValueError, match=f"an integer from 0 to {C}"):
        flip(np.eye(C), k)


@pytest.mark.parametrize("family", FAMILIES.values())
def test_the_greatest_k_is_allowed_and_flips_everything(family: Any) -> None:
    p = projections(model(), CONFIG, family, family.most(C))
    assert np.max(np.abs(p + np.eye(C))) <= 4 * C**2.5 * EPS


def test_wrong_blocks_and_non_orthogonal_blocks_are_refused() -> None:
    eye = np.broadcast_to(np.eye(C), (2, 2, C, C)).copy()
    for shape in [(2, 3, C, C), (2, 2, C - 1, C - 1), (C, C)]:
        with pytest.raises(ValueError, match=r"one block per layer and key head, \(2, 2, 6, 6\)"):
            project(model(), CONFIG, np.ones(shape))
    for spoil in (1 + 1e-9, np.nan, np.inf):
        p = eye.copy()
        p[1, 0, 2, 2] = spoil
        with pytest.raises(ValueError, match="not orthogonal"):
            project(model(), CONFIG, p)


def test_tensors_that_do_not_fit_are_named() -> None:
    tensors = model()
    name = "model.layers.1.self_attn.k_proj.weight"
    with pytest.raises(ValueError, match=rf"{name}: \(10, 12\); expected shape \(12, 10\)"):
        list(layer_heads(tensors | {name: tensors[name].T}, CONFIG))
    del tensors[name]
    with pytest.raises(ValueError, match=f"{name}: no such tensor"):
        governing(tensors, CONFIG)


def test_bases_refuse_what_is_not_a_symmetric_matrix() -> None:
    with pytest.raises(ValueError, match="differs from its transpose"):
        eigenbasis(np.triu(np.ones((3, 3))))
    with pytest.raises(ValueError, match="square"):
        eigenbasis(np.ones((2, 3)))
    with pytest.raises(ValueError, match="odd"):
        plane_basis(np.eye(3))
