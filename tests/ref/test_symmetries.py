"""The other function-preserving families, and the two peers built from them, on a small model with random gains."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lockref.locks.peers import SPREAD, merge_lock, params_lock
from lockref.locks.symmetries import fold_norms, mix_values, pair_queries, permute_mlp, rotate_stream
from lockref.models import qwen3
from lockref.models.checkpoint_io import load_checkpoint
from lockref.models.qwen3 import Qwen3Config, expected_tensors
from lockref.models.zoo import zoo_path

Array = NDArray[np.float64]

CONFIG = Qwen3Config(
    vocab_size=11, hidden_size=10, intermediate_size=7, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=2, head_dim=4, rope_theta=100.0,
)  # fmt: skip
BLOCKS = (2, 2, 4, 4)
TOKENS = np.random.default_rng(1).integers(0, CONFIG.vocab_size, (2, 9))


def model(dtype: Any = np.float64, config: Qwen3Config = CONFIG) -> dict[str, NDArray[Any]]:
    """Random weights; norm gains from 0.5 to 1.5."""
    rng = np.random.default_rng(0)
    return {
        name: (rng.uniform(0.5, 1.5, shape) if "norm" in name else rng.standard_normal(shape)).astype(dtype)
        for name, shape in expected_tensors(config).items()
    }


def haar(*shape: int) -> Array:
    return np.linalg.qr(np.random.default_rng(2).standard_normal(shape))[0]


def change(before: Any, after: Any, config: Qwen3Config = CONFIG, was: Qwen3Config | None = None) -> float:
    """Relative change of the logits; both computed in the type of the weights."""
    want, got = qwen3.forward(before, TOKENS, was or CONFIG), qwen3.forward(after, TOKENS, config)
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def round_off(before: dict[str, NDArray[Any]], config: Qwen3Config = CONFIG) -> float:
    """What rounding alone does to these logits: every weight moved by eps times the length of its longest product.

    A lawful change rewrites a weight as a sum of at most hidden_size products, with condition number SPREAD at most,
    twice where there is an inverse; random signs understate the worst case of the forward pass, hence 8 draws and 2.
    """
    rng = np.random.default_rng(3)
    step = float(np.finfo(before["model.norm.weight"].dtype).eps) * config.hidden_size**0.5
    moved = [
        change(before, {n: (w * (1 + step * rng.choice([-1, 1], w.shape))).astype(w.dtype) for n, w in before.items()},
               config, config) for _ in range(8)
    ]  # fmt: skip
    return max(moved) * 2 * 2 * SPREAD


Lawful = Callable[[dict[str, NDArray[Any]]], tuple[dict[str, NDArray[Any]], Qwen3Config]]
LAWFUL: dict[str, Lawful] = {
    "values": lambda t: (mix_values(t, CONFIG, haar(*BLOCKS) @ (np.eye(4) * [1.0, 2.0, 0.5, 1.5])), CONFIG),
    "norms": lambda t: fold_norms(t, CONFIG),
    "stream": lambda t: rotate_stream(t, CONFIG, haar(10, 10)),
    "units": lambda t: (permute_mlp(t, CONFIG, np.array([np.roll(np.arange(7), 2), np.arange(7)[::-1]])), CONFIG),
    "signs": lambda t: (pair_queries(t, CONFIG, np.tile(np.diag([1.0, -1, 1, -1]), (2, 2, 1, 1))), CONFIG),
    "params": lambda t: (params_lock(t, CONFIG, np.random.default_rng(4)).tensors, CONFIG),
    "mergelock": lambda t: (merge_lock(t, CONFIG, np.random.default_rng(4)).tensors, CONFIG),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("family", LAWFUL.values(), ids=LAWFUL)
def test_lawful_changes_keep_the_function_and_change_the_weights(family: Lawful, dtype: Any) -> None:
    before = model(dtype)
    kept = {n: w.copy() for n, w in before.items()}
    after, config = family(before)
    assert all(np.array_equal(kept[n], w) for n, w in before.items())  # the original is left alone
    assert {w.dtype for w in after.values()} == {np.dtype(dtype)}
    assert any(not np.array_equal(after[n], w) for n, w in before.items())
    assert change(before, after, config) <= (allowed := round_off(before)), allowed
    assert allowed < 1e-3


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_family_keeps_the_zoo_models_function(dtype: Any) -> None:
    zoo = load_checkpoint(zoo_path("base"), dtype)
    config, before = zoo.config, zoo.tensors
    rng = np.random.default_rng(5)
    turn = np.linalg.qr(rng.standard_normal((config.hidden_size, config.hidden_size)))[0]
    allowed = round_off(before, config)
    for after, became in (
        fold_norms(before, config),
        rotate_stream(before, config, turn),
        (params_lock(before, config, rng).tensors, config),
        (merge_lock(before, config, rng).tensors, config),
    ):
        assert change(before, after, became, config) <= allowed, allowed
    broken = merge_lock(before, config, rng, rotary=False).tensors
    assert change(before, broken, config, config) > 100 * allowed
    assert allowed < 0.01


@pytest.mark.parametrize("lock", [params_lock, merge_lock])
def test_the_query_half_of_the_peers_breaks_a_rotary_model(lock: Any) -> None:
    before = model()
    locked = lock(before, CONFIG, np.random.default_rng(4), rotary=False)
    assert change(before, locked.tensors) > 0.01
    q, k = (f"model.layers.1.self_attn.{s}_proj.weight" for s in "qk")
    for h in range(6):  # plain scores are kept: (Mᵀq)ᵀ(M⁻¹k) = qᵀk
        rows, keys = slice(4 * h, 4 * h + 4), slice(4 * (h // 3), 4 * (h // 3) + 4)
        got, want = (t[q][rows].T @ t[k][keys] for t in (locked.tensors, before))
        assert np.max(np.abs(got - want)) <= 64 * SPREAD * 2.0**-52 * np.max(np.abs(want)) * 4


def test_mutants_are_seen() -> None:
    before = model()
    m = haar(*BLOCKS) @ (np.eye(4) * [1.0, 2.0, 0.5, 1.5])
    after = mix_values(before, CONFIG, m)
    for i in range(2):  # o_proj times M in place of its inverse
        name = f"model.layers.{i}.self_attn.o_proj.weight"
        after[name] = mix_values(before, CONFIG, np.linalg.inv(m))[name]
    assert change(before, after) > 0.01
    unfolded = {n: w @ haar(10, 10) if w.ndim == 2 and w.shape[1] == 10 else w for n, w in before.items()}
    assert change(before, unfolded) > 0.01


def test_a_tied_model_comes_out_untied() -> None:
    config = replace(CONFIG, tie_word_embeddings=True)
    before = model(config=config)
    after, untied = rotate_stream(before, config, haar(10, 10))
    assert not untied.tie_word_embeddings and after.keys() == expected_tensors(untied).keys()
    want, got = qwen3.forward(before, TOKENS, config), qwen3.forward(after, TOKENS, untied)
    assert np.linalg.norm(got - want) <= 1e-10 * np.linalg.norm(want)


def test_the_peers_say_their_keys() -> None:
    before = model()
    for lock in (params_lock, merge_lock):
        locked = lock(before, CONFIG, np.random.default_rng(4), rotary=False)
        again = mix_values(before if locked.order is None else permute_mlp(before, CONFIG, locked.order), CONFIG,
                           locked.values)  # fmt: skip
        assert locked.queries is not None
        again = pair_queries(again, CONFIG, locked.queries)
        assert all(np.array_equal(again[n], w) for n, w in locked.tensors.items())
        assert np.max(np.linalg.cond(locked.values)) <= SPREAD * (1 + 1e-12)
    assert params_lock(before, CONFIG, np.random.default_rng(4)).queries is None


@pytest.mark.parametrize("change_of", [mix_values, pair_queries])
def test_blocks_of_wrong_size_or_without_inverse_are_refused(change_of: Any) -> None:
    with pytest.raises(ValueError, match=r"one block per layer and key head, \(2, 2, 4, 4\)"):
        change_of(model(), CONFIG, np.ones((2, 3, 4, 4)))
    for spoil in (0.0, 1e-9, np.nan):
        m = np.tile(np.eye(4), (2, 2, 1, 1))
        m[1, 0, 3, 3] = spoil
        with pytest.raises(ValueError, match="condition number"):
            change_of(model(), CONFIG, m)


def test_other_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="not orthogonal"):
        rotate_stream(model(), CONFIG, 1.5 * np.eye(10))
    with pytest.raises(ValueError, match=r"residual stream of this model needs \(10, 10\)"):
        rotate_stream(model(), CONFIG, np.eye(9))
    for order in ([[0, 1]], np.zeros((2, 7), int), np.ones((2, 7)), np.tile(np.arange(7), (3, 1))):
        with pytest.raises(ValueError, match="permutation of 7 units"):
            permute_mlp(model(), CONFIG, order)
