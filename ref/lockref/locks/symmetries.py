"""What else a Qwen3 checkpoint can be changed by without changing its function, and what peers change it by.

Layout as in `locks.attention`: a layer's key heads are blocks of `head_dim` rows, and query heads that share a key
head lie together. With one invertible matrix M per layer and key head (layers, G, c, c):

    values:   v ↦ M v,  o ↦ o M⁻¹ on every query head of the group     attention is linear in v: always lawful
    queries:  q ↦ Mᵀ q, k ↦ M⁻¹ k                                      lawful only without norm or rotation between
    stream:   x ↦ x R, R orthogonal, after norm gains were folded      RMSNorm without gains commutes with R
    mlp:      hidden units renumbered                                   any permutation
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lockref.locks.attention import Tensors, require_orthogonal
from lockref.models.qwen3_config import Qwen3Config

Array = NDArray[np.float64]
Changed = dict[str, NDArray[Any]]

READS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")
NORMS = "input_layernorm", "post_attention_layernorm"
WRITES = "self_attn.o_proj", "mlp.down_proj"
EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


def mix_values(tensors: Tensors, config: Qwen3Config, m: ArrayLike) -> Changed:
    """A new dict in which every value head is mixed by its block of m (layers, G, c, c) and o_proj takes it back.

    Raises ValueError for wrong block sizes and for a block that cannot be inverted.
    """
    blocks, back = _blocks(config, m), _inverse(_blocks(config, m))
    out = dict(tensors)
    for i in range(config.num_hidden_layers):
        _turn_rows(out, f"model.layers.{i}.self_attn.v_proj.weight", blocks[i])
        _turn_columns(out, f"model.layers.{i}.self_attn.o_proj.weight", back[i])
    return out


def pair_queries(tensors: Tensors, config: Qwen3Config, m: ArrayLike) -> Changed:
    """A new dict with q ↦ Mᵀ q and k ↦ M⁻¹ k for each block of m (layers, G, c, c).

    It preserves plain scores qᵀk. QK-norm and RoPE stand between the two factors, so on a Qwen3 it changes the
    function unless M is a sign on each rotary plane. Raises ValueError as `mix_values` does.
    """
    blocks, back = _blocks(config, m), _inverse(_blocks(config, m))
    out = dict(tensors)
    for i in range(config.num_hidden_layers):
        _turn_rows(out, f"model.layers.{i}.self_attn.q_proj.weight", np.swapaxes(blocks[i], -1, -2))
        _turn_rows(out, f"model.layers.{i}.self_attn.k_proj.weight", back[i])
    return out


def permute_mlp(tensors: Tensors, config: Qwen3Config, order: ArrayLike) -> Changed:
    """A new dict in which hidden unit j of layer i is what was unit order[i, j], order (layers, m).

    Raises ValueError where a row of `order` is not a permutation.
    """
    order = np.asarray(order)
    want = np.broadcast_to(np.arange(config.intermediate_size), (config.num_hidden_layers, config.intermediate_size))
    if order.shape != want.shape or order.dtype.kind not in "iu" or not np.array_equal(np.sort(order, axis=-1), want):
        raise ValueError(f"order {order.shape}: expected a permutation of {want.shape[1]} units for each of "
                         f"{want.shape[0]} layers")  # fmt: skip
    out = dict(tensors)
    for i, units in enumerate(order):
        prefix = f"model.layers.{i}.mlp."
        for name in ("gate_proj", "up_proj"):
            out[f"{prefix}{name}.weight"] = out[f"{prefix}{name}.weight"][units]
        out[f"{prefix}down_proj.weight"] = out[f"{prefix}down_proj.weight"][:, units]
    return out


def fold_norms(tensors: Tensors, config: Qwen3Config) -> tuple[Changed, Qwen3Config]:
    """The same function with unit gains on the residual stream: each gain moves into the matrices that read it.

    The final gain moves into lm_head, so the result is not tied: the config that comes back says so.
    """
    out = dict(tensors)
    for i in range(config.num_hidden_layers):
        for norm, readers in zip(NORMS, READS, strict=True):
            name = f"model.layers.{i}.{norm}.weight"
            gain = out[name]
            for reader in readers:
                weight = f"model.layers.{i}.{reader}.weight"
                out[weight] = out[weight] * gain
            out[name] = np.ones_like(gain)
    head = out[EMBEDDING] if config.tie_word_embeddings else out[HEAD]
    out[HEAD] = head * out[FINAL_NORM]
    out[FINAL_NORM] = np.ones_like(out[FINAL_NORM])
    return out, replace(config, tie_word_embeddings=False)


def rotate_stream(tensors: Tensors, config: Qwen3Config, r: Array) -> tuple[Changed, Qwen3Config]:
    """The same function with the residual stream turned by one orthogonal r (d, d), after folding the norm gains.

    Raises ValueError for an r that is not orthogonal or of another size.
    """
    require_orthogonal(r)
    if np.shape(r) != (want := (config.hidden_size, config.hidden_size)):
        raise ValueError(f"R has shape {np.shape(r)}; the residual stream of this model needs {want}")
    out, config = fold_norms(tensors, config)
    readers = [f"model.layers.{i}.{name}.weight" for i in range(config.num_hidden_layers) for part in READS
               for name in part]  # fmt: skip
    for name in (EMBEDDING, HEAD, *readers):
        out[name] = (out[name] @ r).astype(out[name].dtype)
    for i in range(config.num_hidden_layers):
        for writer in WRITES:
            name = f"model.layers.{i}.{writer}.weight"
            out[name] = (r.T @ out[name]).astype(out[name].dtype)
    return out, config


def _blocks(config: Qwen3Config, m: ArrayLike) -> Array:
    blocks: Array = np.asarray(m, np.float64)
    want = (config.num_hidden_layers, config.num_key_value_heads, config.head_dim, config.head_dim)
    if blocks.shape != want:
        raise ValueError(f"M has shape {blocks.shape}; this model needs one block per layer and key head, {want}")
    return blocks


def _inverse(blocks: Array) -> Array:
    """Inverses of blocks that have one to half of their digits."""
    worst = float(np.max(np.linalg.cond(blocks))) if np.all(np.isfinite(blocks)) else np.inf
    if not worst <= (most := np.finfo(blocks.dtype).eps ** -0.5):
        raise ValueError(f"M {blocks.shape}: a block has condition number {worst:.3g}, more than {most:.3g}: "
                         "undoing it would lose the weights; choose others")  # fmt: skip
    inverse: Array = np.asarray(np.linalg.inv(blocks), np.float64)
    return inverse


def _turn_rows(out: Changed, name: str, blocks: Array) -> None:
    """Each group of head_dim rows times the block (G, c, c) of its key head."""
    w = out[name]
    grouped = w.reshape(len(blocks), -1, blocks.shape[-1], w.shape[-1])
    out[name] = (blocks[:, None] @ grouped).reshape(w.shape).astype(w.dtype)


def _turn_columns(out: Changed, name: str, blocks: Array) -> None:
    """Each group of head_dim columns times the block (G, c, c) of its key head."""
    w = out[name]
    grouped = w.reshape(len(w), len(blocks), -1, blocks.shape[-1])
    out[name] = np.einsum("dgnc,gce->dgne", grouped, blocks, optimize=True).reshape(w.shape).astype(w.dtype)
