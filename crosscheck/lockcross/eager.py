"""The official Qwen3 once more on the engine, operation by operation as eager PyTorch runs it.

`lockref.models.qwen3` is fused and keeps little. Here every operation is one that torch records, so that the ledger of
this model and torch's saved tensors must be the same buffers. Three operations of torch have no counterpart in the
engine's set and are declared here: their rules name what torch keeps.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from lockref.autodiff import ops, primitive
from lockref.models import dlrnet, qwen3
from lockref.models.dlrnet import DLRConfig
from lockref.models.qwen3_config import Qwen3Config


@primitive
def softmax(x: Any) -> Any:
    """e^x / Σ e^x along the last axis; keeps its result."""
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


@softmax.vjp("x")  # type: ignore[untyped-decorator]
def _(g: Any, out: Any) -> Any:
    return out * (g - np.sum(g * out, axis=-1, keepdims=True))


@primitive
def repeat(x: Any, *, times: int) -> Any:
    """Key heads (B, G, T, c) once for each query head, copied."""
    return np.repeat(x, times, axis=-3)


@repeat.vjp("x")  # type: ignore[untyped-decorator]
def _(g: Any, times: int, x_shape: Any) -> Any:
    return g.reshape(*x_shape[:-2], times, *x_shape[-2:]).sum(axis=-3)


@primitive
def log_softmax(x: Any) -> Any:
    """x − ln Σ e^x along the last axis; keeps its result."""
    shifted = x - np.max(x, axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


@log_softmax.vjp("x")  # type: ignore[untyped-decorator]
def _(g: Any, out: Any) -> Any:
    return g - np.exp(out) * np.sum(g, axis=-1, keepdims=True)


Weights = qwen3.Weights
Mlp = DLRConfig | tuple[int, str] | None  # a DLR-Net; order and basis of a Taylor MLP; SwiGLU


def norm(x: Any, gain: Any, eps: float) -> Any:
    """gain ∘ (x / rms(x)), six operations."""
    return ops.multiply(gain, x * ops.rsqrt(ops.mean(x * x, axis=-1, keepdims=True) + eps))


def linear(w: Weights, name: str, h: Any) -> Any:
    """h Wᵀ, and where the layer has an adapter + (h Aᵀ) Bᵀ · scale as peft computes it."""
    out = h @ w[f"{name}.weight"].T
    if f"{name}.lora_A" in w:
        out = out + (h @ w[f"{name}.lora_A"].T) @ w[f"{name}.lora_B"].T * w[f"{name}.lora_scale"]
    return out


def rotate(x: Any, cos: Any, sin: Any) -> Any:
    """x ∘ cos + half-turned x ∘ sin; the tables are arrays like any other here, as in torch."""
    half = x.shape[-1] // 2
    return x * cos + ops.join(-x[..., half:], x[..., :half], axis=-1) * sin


def attention(w: Weights, h: Any, config: Qwen3Config, tables: tuple[Any, Any]) -> Any:
    """Attention of the normed stream h (B, T, d) with the whole T × T matrix of every head."""
    heads, length, c = config.num_attention_heads, h.shape[-2], config.head_dim
    q, k, v = (linear(w, f"self_attn.{s}_proj", h).reshape((*h.shape[:-1], -1, c)) for s in "qkv")
    q, k = (norm(x, w[f"self_attn.{s}_norm.weight"], config.rms_norm_eps) for s, x in (("q", q), ("k", k)))
    q, k, v = (np.swapaxes(x, -2, -3) for x in (q, k, v))
    q, k = rotate(q, *tables), rotate(k, *tables)
    if (times := heads // config.num_key_value_heads) > 1:
        k, v = repeat(k, times=times), repeat(v, times=times)
    scores = q @ np.swapaxes(k, -1, -2) * float(c**-0.5)
    later = np.triu(np.full((length, length), np.finfo(h.dtype).min, h.dtype), 1)
    mixed = np.swapaxes(softmax(scores + later) @ v, -2, -3)
    return linear(w, "self_attn.o_proj", mixed.reshape((*mixed.shape[:-2], -1)))


def swiglu(w: Weights, h: Any) -> Any:
    """W_down (silu(W_gate h) ∘ W_up h)."""
    return linear(w, "mlp.down_proj", ops.silu(linear(w, "mlp.gate_proj", h)) * linear(w, "mlp.up_proj", h))


def series(w: Weights, h: Any, basis: str) -> Any:
    """A Taylor MLP: the recurrence of its basis, and a product with u and with Ŵⁿ for each term."""
    at = (linear(w, "mlp.gate_proj", h) - w["mlp.series.center"]) / w["mlp.series.scale"]
    factor, arrays = linear(w, "mlp.up_proj", h), w["mlp.series.arrays"]
    phis = POLYNOMIALS[basis](at)
    return sum((next(phis) * factor) @ arrays[n].T for n in range(len(arrays)))


def _ones(x: Any) -> Any:
    return np.ones(x.shape, x.dtype)


def _powers(x: Any) -> Iterator[Any]:
    power = _ones(x)
    while True:
        yield power
        power = power * x


def _chebyshev(x: Any) -> Iterator[Any]:
    before, now = x, _ones(x)
    while True:
        yield now
        before, now = now, 2.0 * x * now - before


def _hermite(x: Any) -> Iterator[Any]:
    before, now, n = 0 * _ones(x), _ones(x), 0
    while True:
        yield now / math.sqrt(math.factorial(n))
        before, now, n = now, x * now - n * before, n + 1


POLYNOMIALS = {"taylor": _powers, "chebyshev": _chebyshev, "hermite": _hermite}


def block(w: Weights, x: Any, config: Qwen3Config, tables: tuple[Any, Any], mlp: Mlp) -> Any:
    """One layer, with a DLR-Net or a Taylor MLP (order, basis) where `mlp` describes one."""
    x = x + attention(w, norm(x, w["input_layernorm.weight"], config.rms_norm_eps), config, tables)
    params = {n.removeprefix("mlp."): t for n, t in w.items() if n.startswith("mlp.")}
    if isinstance(mlp, DLRConfig) and mlp.placement == "stream":
        return dlrnet.forward(params, x, mlp, fused=False)
    h = norm(x, w["post_attention_layernorm.weight"], config.rms_norm_eps)
    if isinstance(mlp, DLRConfig):
        return x + dlrnet.forward(params, h, mlp, fused=False)
    return x + (swiglu(w, h) if mlp is None else series(w, h, mlp[1]))


def loss(params: Weights, tokens: Any, config: Qwen3Config, mlp: Mlp = None) -> Any:
    """Mean −ln p(next token) of tokens (B, T), the value of `lockref.models.qwen3.loss`."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:].reshape(-1)
    x = qwen3.embed(params, inputs, config)
    half = ops.rope_tables(np.arange(inputs.shape[1]), config.head_dim, config.rope_theta, x.dtype)
    tables = (np.concatenate((half[0], half[0]), -1), np.concatenate((half[1], half[1]), -1))
    for i in range(config.num_hidden_layers):
        x = block(qwen3.layer_weights(params, i), x, config, tables, mlp)
    name = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    logits = norm(x, params["model.norm.weight"], config.rms_norm_eps) @ params[name].T
    log_p = log_softmax(logits.reshape((-1, config.vocab_size)))
    return -ops.mean(log_p[np.arange(len(targets)), targets])
