"""PyTorch's answers to what the NumPy reference computes on whole models: outputs, gradients, stored bytes.

Everything takes and returns NumPy arrays; what is compared, and within which tolerance, is up to the caller
(`lockproofs.experiments.full_parity`). Nothing is shared with the reference but the shapes of networks. What the locks
do is in `parity_locks`.
"""

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

from lockcross import float64, qwen3, storage
from lockref.models.qwen3_config import Qwen3Config

Tensors = Mapping[str, NDArray[Any]]
Answer = dict[str, Any]  # arrays and numbers by name


def environment(device: str) -> dict[str, str]:
    """What a row was measured on."""
    on = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return {"device": device, "device_name": on, "torch": torch.__version__, "transformers": transformers.__version__}


def available(device: str) -> bool:
    """Whether PyTorch finds such a device here."""
    return device == "cpu" or torch.cuda.is_available()


def forward(config: Qwen3Config, tensors: Tensors, tokens: NDArray[Any]) -> NDArray[Any]:
    """Logits of the stock official model, float32, without a graph."""
    model = qwen3.build(config, tensors)
    with torch.no_grad():
        found = qwen3.logits(model, torch.from_numpy(tokens))
    return np.asarray(found.numpy())


def official(
    config: Qwen3Config, tensors: Tensors, mlp: qwen3.Mlp, tokens: NDArray[Any], dtype: str, device: str = "cpu"
) -> Answer:
    """logits, loss and gradients of the official model in a dtype: "float64" without its casts to float32."""
    model = qwen3.build(config, tensors, mlp, dtype=getattr(torch, dtype), device=device)
    given = torch.from_numpy(tokens).to(device)
    with float64.uncast() if dtype == "float64" else contextlib.nullcontext():
        logits = qwen3.logits(model, given).detach()
        loss = qwen3.loss(model, given)
        loss.backward()  # type: ignore[no-untyped-call]
    grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    return {"logits": array(logits), "loss": loss.item(), "gradients": {n: array(g) for n, g in grads.items()}}


def twin(config: Qwen3Config, tensors: Tensors, mlp: qwen3.Mlp, tokens: NDArray[Any]) -> Answer:
    """The same by the double-precision twin."""
    leaves = {n: torch.from_numpy(np.array(w, np.float64)).requires_grad_() for n, w in tensors.items()}
    given = torch.from_numpy(tokens)
    logits = float64.twin_logits(leaves, given, config, mlp)
    ahead, target = logits[:, :-1], given[:, 1:, None]  # causal: the last token changes nothing before it
    loss = (torch.logsumexp(ahead, -1, keepdim=True) - ahead.gather(-1, target)).mean()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    grads = {n: torch.zeros_like(w) if g is None else g for (n, w), g in zip(leaves.items(), found, strict=True)}
    return {"logits": array(logits), "loss": loss.item(), "gradients": {n: array(g) for n, g in grads.items()}}


def stored_bytes(
    config: Qwen3Config,
    tensors: Tensors,
    mlp: qwen3.Mlp,
    tokens: NDArray[Any],
    trains: Sequence[str] | None,
    dtype: str,
    device: str = "cpu",
    adapters: tuple[Sequence[str], int, int] | None = None,
) -> tuple[storage.Kept, ...]:
    """The buffers that the official model keeps for its loss; parameters named by a part in `trains` train, or all.

    With `adapters` (names of projections, rank, alpha) these train by peft's LoRA and everything else is frozen.
    """
    model: Any = qwen3.build(config, tensors, mlp, dtype=getattr(torch, dtype), device=device)
    if adapters is None:
        storage.trainable(model, None if trains is None else set(trains))
    else:
        model = with_adapters(model, *adapters)
    given = torch.from_numpy(tokens).to(device)
    with float64.uncast() if dtype == "float64" else contextlib.nullcontext():
        return storage.kept(lambda: qwen3.loss(model, given), [*model.parameters(), given], model)


def with_adapters(model: nn.Module, projections: Sequence[str], rank: int, alpha: int) -> nn.Module:
    """The model with peft's LoRA on these projections, in the model's own dtype; nothing else trains."""
    import peft

    setup = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(projections), lora_dropout=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a property under its old name
        found: nn.Module = peft.get_peft_model(model, setup, autocast_adapter_dtype=False)
    return found.to(next(model.parameters()).dtype)


def peak_bytes(
    config: Qwen3Config, tensors: Tensors, mlp: qwen3.Mlp, tokens: NDArray[Any], dtype: str, device: str
) -> int | None:
    """What the device's allocator held at most during a forward pass and the loss, above weights; None on a CPU."""
    model = qwen3.build(config, tensors, mlp, dtype=getattr(torch, dtype), device=device)
    given, held = torch.from_numpy(tokens).to(device), []
    return storage.peak(lambda: held.append(qwen3.loss(model, given)), torch.device(device))


def published_bytes(config: Qwen3Config, tokens: int) -> int:
    """Bytes that a model of these sizes keeps in float32 for `tokens` tokens, counted on the meta device."""
    model = qwen3.skeleton(config)
    given = torch.zeros((1, tokens), dtype=torch.int64, device="meta")
    return storage.total(storage.kept(lambda: qwen3.loss(model, given), [*model.parameters(), given]))


def array(x: Tensor) -> NDArray[Any]:
    """A tensor's values; bfloat16 as float32."""
    wide = x.detach().cpu()
    return np.array((wide.float() if wide.dtype is torch.bfloat16 else wide).numpy())
