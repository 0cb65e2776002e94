"""Double precision twice over: the official modules without their casts to float32, and a twin written on its own.

The official Qwen3 computes norms, softmax and rotary tables in float32 whatever the model's type, which hides
differences below 1e-7. `uncast` takes the casts out for as long as it lasts. The twin shares no code with the official
modules nor with the NumPy reference: heads one by one, rotations as complex numbers, softmax by its logarithm.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.polynomial import chebyshev, hermite_e
from torch import Tensor
from transformers.models.qwen3 import modeling_qwen3 as official

from lockref.models.dlrnet import DLRConfig
from lockref.models.qwen3_config import Qwen3Config


def _norm(self: Any, x: Tensor) -> Tensor:
    out: Tensor = self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))
    return out


def _tables(self: Any, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    c = self.config.head_dim
    exponents = torch.arange(0, c, 2, dtype=torch.float64, device=x.device) / c
    half = position_ids[..., None] * self.config.rope_parameters["rope_theta"] ** -exponents
    angles = torch.cat((half, half), dim=-1)
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    keys, values = (official.repeat_kv(x, module.num_key_value_groups) for x in (key, value))
    scores = torch.matmul(query, keys.transpose(2, 3)) * scaling + attention_mask
    weights = torch.softmax(scores, dim=-1)
    return torch.matmul(weights, values).transpose(1, 2).contiguous(), weights


@contextmanager
def uncast() -> Iterator[None]:
    """Inside, the official Qwen3 modules (eager attention) keep their own precision; afterwards they are as before."""
    with (
        patch.object(official.Qwen3RMSNorm, "forward", _norm),
        patch.object(official.Qwen3RotaryEmbedding, "forward", _tables),
        patch.object(official, "eager_attention_forward", _attention),
    ):
        yield


def twin_logits(
    tensors: Mapping[str, Tensor], tokens: Tensor, config: Qwen3Config, mlp: DLRConfig | tuple[int, str] | None = None
) -> Tensor:
    """Logits (B, T, V) for tokens (B, T), with a DLR-Net or a Taylor MLP (order, basis) where `mlp` describes one."""
    eps = config.rms_norm_eps
    x = tensors["model.embed_tokens.weight"][tokens]
    for i in range(config.num_hidden_layers):
        w = {n.split(".", 3)[3]: t for n, t in tensors.items() if n.startswith(f"model.layers.{i}.")}
        x = x + _mixed(w, _unit(x, eps) * w["input_layernorm.weight"], config)
        if isinstance(mlp, DLRConfig) and mlp.placement == "stream":
            x = _residual_net(w, x, mlp)
            continue
        h = _unit(x, eps) * w["post_attention_layernorm.weight"]
        if isinstance(mlp, DLRConfig):
            x = x + _residual_net(w, h, mlp)
        else:
            x = x + (_gated(w, h) if mlp is None else _polynomial(w, h, mlp[1]))
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    return torch.einsum("btd,vd->btv", _unit(x, eps) * tensors["model.norm.weight"], tensors[head])


def _unit(x: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt(torch.linalg.vector_norm(x, dim=-1, keepdim=True) ** 2 / x.shape[-1] + eps)


def _gated(w: Mapping[str, Tensor], h: Tensor) -> Tensor:
    z = torch.einsum("btd,md->btm", h, w["mlp.gate_proj.weight"])
    u = torch.einsum("btd,md->btm", h, w["mlp.up_proj.weight"])
    return torch.einsum("btm,dm->btd", z / (1 + torch.exp(-z)) * u, w["mlp.down_proj.weight"])


def _polynomial(w: Mapping[str, Tensor], h: Tensor, basis: str) -> Tensor:
    """Σₙ Ŵⁿ (φₙ(x) ∘ u) from φ's coefficients in powers of x, which are numpy.polynomial's, highest power first."""
    z = torch.einsum("btd,md->btm", h, w["mlp.gate_proj.weight"])
    u = torch.einsum("btd,md->btm", h, w["mlp.up_proj.weight"])
    x = (z - w["mlp.series.center"]) / w["mlp.series.scale"]
    total = torch.zeros_like(h)
    for n, array in enumerate(w["mlp.series.arrays"]):
        phi = torch.zeros_like(x)
        for coefficient in _POWERS[basis](n)[::-1]:
            phi = phi * x + float(coefficient)
        total = total + torch.einsum("btm,dm->btd", phi * u, array)
    return total


_POWERS: dict[str, Callable[[int], Any]] = {
    "taylor": lambda n: np.eye(n + 1)[n],
    "chebyshev": lambda n: chebyshev.cheb2poly(np.eye(n + 1)[n]),
    "hermite": lambda n: hermite_e.herme2poly(np.eye(n + 1)[n]) / math.factorial(n) ** 0.5,
}


def _mixed(w: Mapping[str, Tensor], h: Tensor, config: Qwen3Config) -> Tensor:
    """Attention head by head: query head j reads key head j // (H/G)."""
    c, share = config.head_dim, config.num_attention_heads // config.num_key_value_heads

    def part(kind: str, head: int) -> Tensor:
        rows = w[f"self_attn.{kind}_proj.weight"][head * c : (head + 1) * c]
        y = torch.einsum("btd,cd->btc", h, rows)
        if kind == "v":
            return y
        return _turned(_unit(y, config.rms_norm_eps) * w[f"self_attn.{kind}_norm.weight"], config.rope_theta)

    total = torch.zeros_like(h)
    for j in range(config.num_attention_heads):
        scores = torch.einsum("btc,bsc->bts", part("q", j), part("k", j // share)) / c**0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=h.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
        weights = torch.exp(scores - torch.logsumexp(scores, -1, keepdim=True))
        mixed = torch.einsum("bts,bsc->btc", weights, part("v", j // share))
        total = total + torch.einsum("btc,dc->btd", mixed, w["self_attn.o_proj.weight"][:, j * c : (j + 1) * c])
    return total


def _turned(y: Tensor, theta: float) -> Tensor:
    """Plane (i, i + c/2) as a complex number, multiplied by e^{i · position · θ^(−2i/c)}."""
    half = y.shape[-1] // 2
    rates = torch.exp(
        -torch.arange(half, dtype=y.dtype, device=y.device) / half * torch.log(torch.tensor(theta, dtype=y.dtype))
    )
    angles = torch.arange(y.shape[-2], dtype=y.dtype, device=y.device)[:, None] * rates
    z = torch.complex(y[..., :half], y[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((z.real, z.imag), dim=-1)


def _residual_net(w: Mapping[str, Tensor], x: Tensor, net: DLRConfig) -> Tensor:
    state = x
    for i in range(net.depth):
        normed = state if net.norm == "none" else _unit(state, net.eps)
        if net.norm == "rms_gain":
            normed = normed * w[f"mlp.blocks.{i}.gain"]
        h = torch.einsum("btd,rd->btr", normed, w[f"mlp.blocks.{i}.a"])
        state = state + torch.einsum("btr,dr->btd", _ACTIVATIONS[net.activation](h), w[f"mlp.blocks.{i}.b"])
    return state - x if net.placement == "difference" else state


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda h: h / (1 + torch.exp(-h)),
    "gelu_erf": lambda h: h * torch.special.ndtr(h),
    "gelu_tanh": lambda h: h * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (h + 0.044715 * h**3)),
    "relu": lambda h: h.clamp(min=0),
    "tanh": lambda h: 1 - 2 / (torch.exp(2 * h) + 1),
}
