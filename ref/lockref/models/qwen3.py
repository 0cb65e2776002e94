"""Qwen3 (arXiv 2505.09388) on the operations of the engine: small functions that compose.

A pre-norm decoder. With the residual stream x of shape (…, T, d), every layer adds two terms:

    x ← x + attention(norm(x))        queries and keys are normed per head, then rotated
    x ← x + mlp(norm(x))              mlp(h) = W_down (silu(W_gate h) ∘ W_up h)

Weights come as a flat dict under the names of the hub, matrices as (out, in). Plain arrays are
just computed with; inside a transform of `lockref.autodiff` the same code is differentiated.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from lockref.autodiff import ops
from lockref.models.qwen3_config import Qwen3Config

Weights: TypeAlias = Mapping[str, Any]
Block: TypeAlias = Callable[[Weights, Any, Qwen3Config], Any]

__all__ = [
    "Block",
    "Qwen3Config",
    "Weights",
    "attend",
    "attention",
    "attention_norm",
    "block",
    "embed",
    "expected_tensors",
    "forward",
    "head",
    "layer_weights",
    "loss",
    "mlp",
    "mlp_norm",
    "queries_keys_values",
    "rotate",
    "walk",
]


def expected_tensors(config: Qwen3Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model; a tied model has no lm_head.weight of its own."""
    d, m, c = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_attention_heads * c, config.num_key_value_heads * c
    layer = {
        "input_layernorm.weight": (d,),
        "self_attn.q_proj.weight": (queries, d),
        "self_attn.k_proj.weight": (keys, d),
        "self_attn.v_proj.weight": (keys, d),
        "self_attn.o_proj.weight": (d, queries),
        "self_attn.q_norm.weight": (c,),
        "self_attn.k_norm.weight": (c,),
        "post_attention_layernorm.weight": (d,),
        "mlp.gate_proj.weight": (m, d),
        "mlp.up_proj.weight": (m, d),
        "mlp.down_proj.weight": (d, m),
    }
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, d)}
    for i in range(config.num_hidden_layers):
        tensors |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    tensors["model.norm.weight"] = (d,)
    return tensors if config.tie_word_embeddings else tensors | {"lm_head.weight": (config.vocab_size, d)}


def layer_weights(params: Weights, i: int) -> dict[str, Any]:
    """The tensors of layer i without their common prefix, such as "mlp.up_proj.weight"."""
    prefix = f"model.layers.{i}."
    return {name.removeprefix(prefix): w for name, w in params.items() if name.startswith(prefix)}


def embed(params: Weights, tokens: Any, config: Qwen3Config) -> Any:
    """The residual stream (…, T, d) that enters the first layer: one row of the embedding per token.

    Raises ValueError where tokens are not integers of shape (T,) or (B, T) below vocab_size.
    """
    tokens = np.asarray(tokens)
    if tokens.dtype.kind not in "iu" or tokens.ndim not in (1, 2) or not tokens.size:
        raise ValueError(f"tokens: {tokens.dtype} of shape {tokens.shape}; expected integers (T,) or (B, T)")
    if tokens.min() < 0 or tokens.max() >= config.vocab_size:
        raise ValueError(f"tokens: {tokens.min()} to {tokens.max()}; vocab_size is {config.vocab_size}")
    return ops.take(params["model.embed_tokens.weight"], indices=tokens)


def attention_norm(w: Weights, x: Any, config: Qwen3Config) -> Any:
    """What a layer's attention reads of the residual stream."""
    return ops.rms_norm(x, w["input_layernorm.weight"], eps=config.rms_norm_eps)


def mlp_norm(w: Weights, x: Any, config: Qwen3Config) -> Any:
    """What a layer's MLP reads of the residual stream."""
    return ops.rms_norm(x, w["post_attention_layernorm.weight"], eps=config.rms_norm_eps)


def queries_keys_values(w: Weights, h: Any, config: Qwen3Config) -> tuple[Any, Any, Any]:
    """q (…, H, T, c), k and v (…, G, T, c) of the normed stream h, with QK-norm, before RoPE."""
    q, k, v = (_heads(h @ w[f"self_attn.{s}_proj.weight"].T, config.head_dim) for s in "qkv")
    q = ops.rms_norm(q, w["self_attn.q_norm.weight"], eps=config.rms_norm_eps)
    k = ops.rms_norm(k, w["self_attn.k_norm.weight"], eps=config.rms_norm_eps)
    return q, k, v


def _heads(x: Any, head_dim: int) -> Any:
    """(…, T, heads · c) as (…, heads, T, c)."""
    return np.swapaxes(x.reshape((*x.shape[:-1], -1, head_dim)), -3, -2)


def rotate(x: Any, config: Qwen3Config) -> Any:
    """RoPE of x (…, T, c) at positions 0 … T−1."""
    cos, sin = _tables(x.shape[-2], config.head_dim, config.rope_theta, np.finfo(x.dtype).dtype)
    return ops.rope(x, cos=cos, sin=sin)


@lru_cache(maxsize=8)  # every layer and step asks for the same ones
def _tables(length: int, head_dim: int, theta: float, dtype: np.dtype[Any]) -> tuple[Any, Any]:
    tables = ops.rope_tables(np.arange(length), head_dim, theta, dtype)
    for table in tables:
        table.flags.writeable = False
    return tables


def attend(q: Any, k: Any, v: Any) -> Any:
    """Causal softmax(q kᵀ / √c) v, heads side by side again: (…, T, H·c)."""
    mixed = np.swapaxes(ops.attention(q, k, v, scale=q.shape[-1] ** -0.5), -3, -2)
    return mixed.reshape((*mixed.shape[:-2], -1))


def attention(w: Weights, h: Any, config: Qwen3Config) -> Any:
    """Grouped-query self-attention of the normed stream h (…, T, d)."""
    q, k, v = queries_keys_values(w, h, config)
    return attend(rotate(q, config), rotate(k, config), v) @ w["self_attn.o_proj.weight"].T


def mlp(w: Weights, h: Any) -> Any:
    """SwiGLU of the normed stream h (…, T, d)."""
    z, u = h @ w["mlp.gate_proj.weight"].T, h @ w["mlp.up_proj.weight"].T
    return ops.swiglu(z, u) @ w["mlp.down_proj.weight"].T


def block(w: Weights, x: Any, config: Qwen3Config) -> Any:
    """One layer: the residual stream (…, T, d) after it."""
    x = x + attention(w, attention_norm(w, x, config), config)
    return x + mlp(w, mlp_norm(w, x, config))


def head(params: Weights, x: Any, config: Qwen3Config) -> Any:
    """Logits (…, T, V) of the residual stream that leaves the last layer."""
    name = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    return ops.rms_norm(x, params["model.norm.weight"], eps=config.rms_norm_eps) @ params[name].T


def forward(params: Weights, tokens: Any, config: Qwen3Config, block: Block = block) -> Any:
    """Logits (…, T, V) for tokens (T,) or (B, T); position t sees tokens 0 … t only.

    `block` may be another function of (layer weights, stream, config): a lock's, for instance.
    """
    x = embed(params, tokens, config)
    for i in range(config.num_hidden_layers):
        x = block(layer_weights(params, i), x, config)
    return head(params, x, config)


def loss(params: Weights, tokens: Any, config: Qwen3Config, block: Block = block) -> Any:
    """Mean −ln p(next token) in nats, over the T − 1 predictions in each row of tokens (T,) or (B, T)."""
    tokens = np.asarray(tokens)
    logits = forward(params, tokens[..., :-1], config, block)
    return ops.cross_entropy(logits, targets=tokens[..., 1:])


def walk(params: Weights, tokens: Any, config: Qwen3Config) -> Iterator[tuple[dict[str, Any], Any, Any]]:
    """For each layer its weights and the residual stream before its attention and before its MLP.

    The input of an MLP is `mlp_norm(w, x, config)`, its output `mlp(w, …)` of that.
    """
    x = embed(params, tokens, config)
    for i in range(config.num_hidden_layers):
        w = layer_weights(params, i)
        middle = x + attention(w, attention_norm(w, x, config), config)
        yield w, x, middle
        x = middle + mlp(w, mlp_norm(w, middle, config))
