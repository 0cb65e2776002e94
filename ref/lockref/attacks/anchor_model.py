"""The anchor attack on a whole checkpoint: what each estimate of `attacks.anchor` undoes in it."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lockref.attacks.anchor import least_squares, match_rows, plane_signs, procrustes
from lockref.attacks.result import AttackResult, Tensors
from lockref.locks.attention import layer_heads, project
from lockref.locks.symmetries import mix_values, pair_queries, permute_mlp
from lockref.models.qwen3_config import Qwen3Config

Array = NDArray[np.float64]

KNOWS = ("released weights", "base")


def head_blocks(tensors: Tensors, config: Qwen3Config) -> Iterator[Array]:
    """For each layer the weights that one P turns, side by side: (G, c, (H/G + 1) d), queries before keys."""
    for q, k in layer_heads(tensors, config):
        wide = np.moveaxis(q, -3, -2).reshape(*k.shape[:-1], -1)
        yield np.concatenate([wide, k], axis=-1)


def anchor_projection(released: Tensors, base: Tensors, config: Qwen3Config) -> AttackResult:
    """Procrustes on every key head. `found` holds P (layers, G, c, c)."""
    pairs = zip(head_blocks(released, config), head_blocks(base, config), strict=True)
    turns = np.stack([procrustes(*pair) for pair in pairs])  # Pᵀ: rows are turned by the transpose
    return AttackResult("anchor", KNOWS, (project(released, config, turns),), {"P": np.swapaxes(turns, -1, -2)})


def anchor_signs(released: Tensors, base: Tensors, config: Qwen3Config) -> AttackResult:
    """The sign of every rotary plane of every key head. `found` holds signs (layers, G, c/2)."""
    pairs = zip(head_blocks(released, config), head_blocks(base, config), strict=True)
    signs = np.stack([plane_signs(*pair) for pair in pairs])
    turns = np.concatenate([signs, signs], axis=-1)[..., None] * np.eye(config.head_dim)
    return AttackResult("anchor-signs", KNOWS, (project(released, config, turns),), {"signs": signs})


def anchor_invertible(released: Tensors, base: Tensors, config: Qwen3Config, ridge: float = 1e-8) -> AttackResult:
    """Ridge least squares on V/O and on Q/K. `found` holds values and queries (layers, G, c, c), as `PeerLock` does.

    V/O is mixed back lawfully, whatever the estimate. Q/K are taken to be a pair, T on the queries and T⁻ᵀ on the keys.
    """
    heads = config.num_key_value_heads, config.head_dim
    values, queries = [], []
    for i, ((q, _), (q0, _)) in enumerate(zip(layer_heads(released, config), layer_heads(base, config), strict=True)):
        v, v0 = (t[f"model.layers.{i}.self_attn.v_proj.weight"].reshape(*heads, -1) for t in (released, base))
        values.append(least_squares(v, v0, ridge))
        wide, wide0 = (np.moveaxis(x, -3, -2).reshape(*heads, -1) for x in (q, q0))
        queries.append(np.swapaxes(least_squares(wide, wide0, ridge), -1, -2))
    found = {"values": np.stack(values), "queries": np.stack(queries)}
    undone = mix_values(released, config, np.linalg.inv(found["values"]))
    undone = pair_queries(undone, config, np.linalg.inv(found["queries"]))
    return AttackResult("anchor-invertible", KNOWS, (undone,), found)


def anchor_permutation(released: Tensors, base: Tensors, config: Qwen3Config) -> AttackResult:
    """The order of the hidden units of every MLP, by all three of their weights. `found` holds order (layers, m)."""
    pairs = zip(mlp_rows(released, config), mlp_rows(base, config), strict=True)
    order = np.stack([match_rows(*pair) for pair in pairs])
    undone = permute_mlp(released, config, np.argsort(order, axis=-1))
    return AttackResult("anchor-permutation", KNOWS, (undone,), {"order": order})


def mlp_rows(tensors: Tensors, config: Qwen3Config) -> Iterator[Array]:
    """For each layer one row for each hidden unit: its weights in gate, up and down, (m, 3 d)."""
    for i in range(config.num_hidden_layers):
        gate, up, down = (
            np.asarray(tensors[f"model.layers.{i}.mlp.{s}_proj.weight"], np.float64) for s in ("gate", "up", "down")
        )
        yield np.concatenate([gate, up, down.T], axis=-1)


def same_shapes(released: Tensors, base: Tensors) -> None:
    """Raises ValueError, naming the first difference, where the two models do not have the same tensors."""
    for name in sorted(released.keys() | base.keys()):
        got, want = (np.shape(t[name]) if name in t else "missing" for t in (base, released))
        if got != want:
            raise ValueError(f"base: {name} is {got}, in the release {want}; give the base of this very model")
