"""The lock's networks as torch modules, and the official Qwen3 (transformers) with them in place of its MLPs.

Tensors carry the names of the locked checkpoint, model.layers.i.mlp.…, so a state dict is a checkpoint. Attention
stays the official one: MergeBarrier's projection changes its weights and nothing else.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen3Config as OfficialConfig
from transformers import Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RotaryEmbedding

from lockref.locks.manifest import LOCK, Manifest, read_manifest, write_locked
from lockref.models.checkpoint_io import WEIGHTS, load_config
from lockref.models.dlrnet import DLRConfig
from lockref.models.qwen3_config import Qwen3Config
from lockref.models.tensor_file import CheckpointError, read_header, read_tensors

Mlp: TypeAlias = DLRConfig | tuple[int, str] | None  # a DLR-Net; order and basis of a Taylor MLP; the official SwiGLU
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu_erf": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "tanh": torch.tanh,
}


class DLRBlock(nn.Module):
    """x + σ(N(x) aᵀ) bᵀ in small operations: a (r, d), b (d, r) and, with norm "rms_gain", gain (d,)."""

    def __init__(self, config: DLRConfig) -> None:
        super().__init__()
        self.config = config
        self.a = nn.Parameter(torch.empty(config.rank, config.width))
        self.b = nn.Parameter(torch.empty(config.width, config.rank))
        self.gain = nn.Parameter(torch.empty(config.width)) if config.norm == "rms_gain" else None

    def forward(self, x: Tensor) -> Tensor:
        normed = x
        if self.config.norm != "none":
            normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config.eps)
        if self.gain is not None:
            normed = self.gain * normed
        hidden = ACTIVATIONS[self.config.activation](functional.linear(normed, self.a))
        return x + functional.linear(hidden, self.b)


class DLRNet(nn.Module):
    """`lockref.models.dlrnet` in torch: y = x_L − x_0, or x_L, for x (…, tokens, d)."""

    def __init__(self, config: DLRConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(DLRBlock(config) for _ in range(config.depth))

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for block in self.blocks:
            out = block(out)
        return out - x if self.config.placement == "difference" else out


class Series(nn.Module):
    """Tensors of a Taylor MLP: arrays (N + 1, d, m), center and scale (m,)."""

    def __init__(self, width: int, mlp_width: int, order: int) -> None:
        super().__init__()
        self.arrays = nn.Parameter(torch.empty(order + 1, width, mlp_width))
        self.center = nn.Parameter(torch.empty(mlp_width))
        self.scale = nn.Parameter(torch.empty(mlp_width))


class SeriesMLP(nn.Module):
    """`lockref.locks.taylor_model` in torch: Σₙ Ŵⁿ (φₙ((z − z0)/h) ∘ u), z = W_gate x, u = W_up x."""

    def __init__(self, width: int, mlp_width: int, order: int, basis: str) -> None:
        super().__init__()
        if basis not in POLYNOMIALS:
            raise ValueError(f"SeriesMLP: basis {basis!r} is unknown; choose from {', '.join(POLYNOMIALS)}")
        self.basis = basis
        self.gate_proj = nn.Linear(width, mlp_width, bias=False)
        self.up_proj = nn.Linear(width, mlp_width, bias=False)
        self.series = Series(width, mlp_width, order)

    def forward(self, x: Tensor) -> Tensor:
        at = (self.gate_proj(x) - self.series.center) / self.series.scale
        factor = self.up_proj(x)
        phis = POLYNOMIALS[self.basis](at)
        terms = [functional.linear(phi * factor, array) for array, phi in zip(self.series.arrays, phis, strict=False)]
        return torch.stack(terms).sum(0)


def _powers(x: Tensor) -> Iterator[Tensor]:
    power = torch.ones_like(x)
    while True:
        yield power
        power = power * x


def _chebyshev(x: Tensor) -> Iterator[Tensor]:
    before, now = x, torch.ones_like(x)  # T₋₁ = T₁ = x
    while True:
        yield now
        before, now = now, 2 * x * now - before


def _hermite(x: Tensor) -> Iterator[Tensor]:
    """Heₙ/√n! from Heₙ₊₁ = x Heₙ − n Heₙ₋₁."""
    before, now, n = torch.zeros_like(x), torch.ones_like(x), 0
    while True:
        yield now / math.sqrt(math.factorial(n))
        before, now, n = now, x * now - n * before, n + 1


POLYNOMIALS = {"taylor": _powers, "chebyshev": _chebyshev, "hermite": _hermite}


class StreamLayer(Qwen3DecoderLayer):  # type: ignore[no-untyped-call]
    """A layer whose DLR-Net carries the residual stream on: x_L is the next one, and the MLP's norm is not read."""

    def forward(self, hidden_states: Tensor, *args: Any, **given: Any) -> Tensor:
        mixed, _ = self.self_attn(self.input_layernorm(hidden_states), *args, **given)
        out: Tensor = self.mlp(hidden_states + mixed)
        return out


def official_config(config: Qwen3Config) -> OfficialConfig:
    """The official class's config, eager attention: operations that can be counted one by one."""
    hub = config.to_hub("float32") | {"torch_dtype": None, "attn_implementation": "eager"}
    return OfficialConfig(**hub)


def skeleton(config: Qwen3Config, mlp: Mlp = None) -> Qwen3ForCausalLM:
    """The official model on the meta device, nothing allocated, its MLPs replaced."""
    with torch.device("meta"):
        model: Qwen3ForCausalLM = Qwen3ForCausalLM(official_config(config))
        for i, layer in enumerate(model.model.layers):
            if isinstance(mlp, DLRConfig):
                if mlp.placement == "stream":
                    layer = model.model.layers[i] = StreamLayer(model.config, i)
                layer.mlp = DLRNet(mlp)
            elif mlp is not None:
                layer.mlp = SeriesMLP(config.hidden_size, config.intermediate_size, *mlp)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def build(
    config: Qwen3Config,
    tensors: Mapping[str, NDArray[Any] | Tensor],
    mlp: Mlp = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Qwen3ForCausalLM:
    """The official model with these tensors, each parameter taken from them and no tensor left over.

    Raises ValueError, naming the first, where a tensor is missing, unexpected or of the wrong shape.
    """
    model = skeleton(config, mlp)
    want = {n: tuple(p.shape) for n, p in model.named_parameters()}  # a tied lm_head is not listed twice
    for name in {**want, **tensors}:
        got = tuple(tensors[name].shape) if name in tensors else "missing"
        if got != want.get(name, "unexpected"):
            raise ValueError(f"locked model: tensor {name}: got {got}, want {want.get(name, 'no such tensor')}")
    state = {n: _tensor(w).to(device=device, dtype=dtype, copy=True) for n, w in tensors.items()}
    model.load_state_dict(state, strict=not config.tie_word_embeddings, assign=True)
    model.tie_weights()
    model.model.rotary_emb = Qwen3RotaryEmbedding(model.config).to(device)
    left = [n for n, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    if left:
        raise ValueError(f"locked model: {left[0]} was given no value; {len(left)} such tensors")
    for p in model.parameters():
        p.requires_grad_(True)
    return model


def _tensor(w: NDArray[Any] | Tensor) -> Tensor:
    return w if isinstance(w, Tensor) else torch.from_numpy(np.ascontiguousarray(w))


def load_locked(
    path: Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[Qwen3ForCausalLM, Qwen3Config, Manifest]:
    """A locked directory as the official model, with its sizes and lock.json; nothing in it is executed.

    Raises CheckpointError where files disagree: no parameter is ever left at a value that the files do not give.
    """
    config, manifest = load_config(path), read_manifest(path)
    try:
        mlp = replaced(manifest)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path / LOCK}: {error}") from None
    try:
        entries = read_header(path / WEIGHTS)
        tensors = {
            n: np.empty(e.shape, np.float64 if e.dtype.itemsize == 8 else np.float32) for n, e in entries.items()
        }
        read_tensors(path / WEIGHTS, entries, tensors)
    except OSError as error:
        raise CheckpointError(f"{path / WEIGHTS}: {error.strerror}; write the lock again") from None
    try:
        return build(config, tensors, mlp, dtype=dtype, device=device), config, manifest
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; write the lock again") from None


def replaced(manifest: Manifest) -> Mlp:
    """What stands in place of the MLPs. Raises ValueError or TypeError for settings that make no network."""
    dlr, taylor = (manifest.parts.get(part) for part in ("dlr", "taylor"))
    if dlr is not None and taylor is not None:
        raise ValueError("parts dlr and taylor both replace the MLPs; keep one")
    if dlr is not None:
        return DLRConfig(**dlr.get("net", {}))
    if taylor is None:
        return None
    order, basis = taylor.get("order"), taylor.get("basis")
    if type(order) is not int or order < 0 or basis not in POLYNOMIALS:
        raise ValueError(f"taylor has order {order!r}, basis {basis!r}; want an integer and one of {[*POLYNOMIALS]}")
    return order, basis


def save_locked(path: Path, model: Qwen3ForCausalLM, config: Qwen3Config, manifest: Manifest) -> None:
    """Writes a directory that `load_locked` reads back to the same bits, in the model's dtype, complete or not at all.

    Raises CheckpointError where `path` holds something.
    """
    dtype = str(model.dtype).removeprefix("torch.")
    wide = torch.float64 if model.dtype is torch.float64 else torch.float32
    tensors = {n: p.detach().to("cpu", wide).numpy() for n, p in model.named_parameters()}
    write_locked(path, config, tensors, manifest, dtype)


def logits(model: Qwen3ForCausalLM, tokens: Tensor) -> Tensor:
    """Next-token logits (B, T, V) for tokens (B, T), on the meta device too."""
    mask = None
    if tokens.is_meta:  # the official way to a causal mask looks at values, which are not there
        later = torch.ones(2 * tokens.shape[1:], dtype=torch.bool, device=tokens.device).triu(1)
        mask = {"full_attention": torch.zeros(later.shape, device=tokens.device).masked_fill(later, -torch.inf)}
    found: Tensor = model(tokens, attention_mask=mask, use_cache=False).logits
    return found


def loss(model: Qwen3ForCausalLM, tokens: Tensor) -> Tensor:
    """Mean −ln p(next token) in nats, in the model's own precision (the official loss is always float32)."""
    return functional.cross_entropy(logits(model, tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
