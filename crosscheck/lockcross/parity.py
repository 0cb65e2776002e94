"""PyTorch's answers to what the NumPy reference computes: outputs, gradients, keys, merges, distillation, Trap².

Everything takes and returns NumPy arrays; what is compared, and within which tolerance, is up to the caller
(`lockproofs.experiments.full_parity`). Nothing is shared with the reference but the shapes of networks and the recipe.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lockcross import attackers, float64, qwen3, storage
from lockref.locks.dlr_training import Recipe
from lockref.models.dlrnet import DLRConfig
from lockref.models.qwen3_config import Qwen3Config

Tensors = Mapping[str, NDArray[Any]]
Answer = dict[str, Any]  # arrays and numbers by name


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
    return {"logits": _array(logits), "loss": loss.item(), "gradients": {n: _array(g) for n, g in grads.items()}}


def twin(config: Qwen3Config, tensors: Tensors, net: DLRConfig | None, tokens: NDArray[Any]) -> Answer:
    """The same by the double-precision twin."""
    leaves = {n: torch.from_numpy(np.array(w, np.float64)).requires_grad_() for n, w in tensors.items()}
    given = torch.from_numpy(tokens)
    logits = float64.twin_logits(leaves, given, config, net)
    ahead, target = logits[:, :-1], given[:, 1:, None]  # causal: the last token changes nothing before it
    loss = (torch.logsumexp(ahead, -1, keepdim=True) - ahead.gather(-1, target)).mean()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    grads = {n: torch.zeros_like(w) if g is None else g for (n, w), g in zip(leaves.items(), found, strict=True)}
    return {"logits": _array(logits), "loss": loss.item(), "gradients": {n: _array(g) for n, g in grads.items()}}


def stored_bytes(
    config: Qwen3Config,
    tensors: Tensors,
    mlp: qwen3.Mlp,
    tokens: NDArray[Any],
    trains: Sequence[str] | None,
    dtype: str,
    device: str = "cpu",
) -> tuple[storage.Kept, ...]:
    """The buffers that the official model keeps for its loss; parameters named by a part in `trains` train, or all."""
    model = qwen3.build(config, tensors, mlp, dtype=getattr(torch, dtype), device=device)
    storage.trainable(model, None if trains is None else set(trains))
    given = torch.from_numpy(tokens).to(device)
    with float64.uncast() if dtype == "float64" else contextlib.nullcontext():
        return storage.kept(lambda: qwen3.loss(model, given), [*model.parameters(), given], model)


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


def attacked(
    config: DLRConfig, params: Tensors, x: NDArray[Any], cotangent: NDArray[Any], way: str, segments: int
) -> Answer:
    """Gradients of a DLR-Net by "default" or "inverted" reverse mode, bytes between the passes, and bytes at most."""
    run = {"default": attackers.default, "inverted": attackers.inverted}[way]
    net = qwen3.DLRNet(config)
    net.load_state_dict({n: torch.from_numpy(np.array(w)) for n, w in params.items()}, assign=True)
    given, owned = torch.from_numpy(np.array(x)).requires_grad_(), list(net.parameters())

    def pull() -> list[Tensor]:
        y = attackers.segmented(net, given, segments, run)
        return list(torch.autograd.grad(y, [*owned, given], torch.from_numpy(cotangent)))

    between = storage.total(storage.kept(lambda: attackers.segmented(net, given, segments, run), [*owned, given]))
    *grads, gx = (_array(g) for g in pull())
    names = [n for n, _ in net.named_parameters()]
    return {
        "gradients": dict(zip(names, grads, strict=True)) | {"x": gx},
        "bytes between": between,
        "bytes at most": storage.most_kept(pull, [*owned, given]),
    }


def drawn(config: Qwen3Config, seed: int) -> dict[str, NDArray[Any]]:
    """Random weights made by torch: matrices N(0, 1/columns), gains U(0.3, 2), float64."""
    rng = torch.Generator().manual_seed(seed)
    made = {}
    for name, p in qwen3.skeleton(config).named_parameters():
        shape = tuple(p.shape)
        if len(shape) == 1:
            made[name] = _array(torch.rand(shape, generator=rng, dtype=torch.float64) * 1.7 + 0.3)
        else:
            made[name] = _array(torch.randn(shape, generator=rng, dtype=torch.float64) / shape[1] ** 0.5)
    return made


def projected(config: Qwen3Config, tensors: Tensors, k: int, *, planes: bool) -> Answer:
    """MergeBarrier's projection in torch: P (layers, G, c, c) by reflections, and q_proj, k_proj turned by it.

    One reflection after the other, I − 2 u uᵀ, on the k leading eigenvectors of S, or on the axes of its k planes of
    greatest trace.
    """
    c, groups = config.head_dim, config.num_key_value_heads
    eye = torch.eye(c, dtype=torch.float64)
    turns, found = [], {n: np.array(w) for n, w in tensors.items()}
    for i in range(config.num_hidden_layers):
        names = [f"model.layers.{i}.self_attn.{s}_proj.weight" for s in "qk"]
        q, key = (torch.from_numpy(np.array(tensors[n])).reshape(groups, -1, c, config.hidden_size) for n in names)
        layer = []
        for g in range(groups):
            s = torch.einsum("hcd,hed->ce", q[g], q[g]) + torch.einsum("hcd,hed->ce", key[g], key[g])
            if planes:
                weight = s.diagonal()[: c // 2] + s.diagonal()[c // 2 :]
                first = torch.sort(weight, descending=True, stable=True).indices.tolist()[:k]
                axes = [eye[:, j] for plane in first for j in (plane, plane + c // 2)]
            else:
                axes = list(torch.linalg.eigh(s).eigenvectors.T.flip(0)[:k])
            p = eye
            for u in axes:
                p = p - 2 * torch.outer(u, u @ p)
            layer.append(p)
        turn = torch.stack(layer)
        for name, w in zip(names, (q, key), strict=True):
            found[name] = _array(torch.einsum("gce,ghcd->ghed", turn, w).reshape(-1, w.shape[-1]))
        turns.append(turn)
    return {"p": _array(torch.stack(turns)), "tensors": found}


def distilled(
    params: Tensors, x: NDArray[Any], y: NDArray[Any], net: DLRConfig, recipe: Recipe, rows: int
) -> list[float]:
    """Losses of phase 1 step by step, with torch's own AdamW and autograd: the recipe's rates, clipping and batches."""
    model = qwen3.DLRNet(net)
    model.load_state_dict({n: torch.from_numpy(np.array(w)) for n, w in params.items()}, assign=True)
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1.0, betas=recipe.betas, eps=recipe.eps, weight_decay=recipe.weight_decay
    )
    inputs, goals, losses = torch.from_numpy(x), torch.from_numpy(y), []
    for step in range(recipe.steps):
        chosen = np.random.default_rng([recipe.seed, step]).integers(0, len(x), min(rows, len(x)))
        loss = ((model(inputs[chosen]) - goals[chosen]).pow(2).sum(-1) / goals[chosen].pow(2).sum(-1)).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        for p in model.parameters():
            p.grad = p.grad * min(1.0, recipe.clip / max(norm.item(), recipe.eps)) if p.grad is not None else None
        optimizer.param_groups[0]["lr"] = recipe.rate(step)
        optimizer.step()
        losses.append(loss.item())
    return losses


def trap2(
    config: Qwen3Config, base: Tensors, update: Tensors, tokens: NDArray[Any], s: float, power: float, strength: float
) -> Answer:
    """One draw of Trap²'s objective, L(W₀ + Δ) − λ s^(−power) L(W₀ + sΔ), and its gradient with respect to Δ."""
    model = qwen3.build(config, base, dtype=torch.float64)
    given = torch.from_numpy(tokens)
    fixed = {n: p.detach() for n, p in model.named_parameters()}
    moving = {n: torch.from_numpy(np.array(w)).requires_grad_() for n, w in update.items()}

    def loss(at: float) -> Tensor:
        weights = fixed | {n: fixed[n] + at * w for n, w in moving.items()}
        out = torch.func.functional_call(model, weights, (given[:, :-1],), {"use_cache": False}).logits
        return torch.nn.functional.cross_entropy(out.flatten(0, 1), given[:, 1:].flatten())

    with float64.uncast():
        value = loss(1.0) - strength / s**power * loss(s)
        found = torch.autograd.grad(value, list(moving.values()))
    return {"objective": value.item(), "gradient": {n: _array(g) for n, g in zip(moving, found, strict=True)}}


def _array(x: Tensor) -> NDArray[Any]:
    wide = x.detach().cpu()
    return np.array((wide.float() if wide.dtype is torch.bfloat16 else wide).numpy())
