"""PyTorch's answers to what the locks and their attackers compute: keys, distillation, Trap², inversion.

Everything takes and returns NumPy arrays, as in `parity`. Nothing is shared with the reference but the shapes of
networks, the recipe, and the law by which rows are drawn.
"""

from collections.abc import Callable, Iterator, Set
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lockcross import attackers, float64, qwen3, storage
from lockcross.parity import Answer, Tensors, array, with_adapters
from lockref.locks.dlr_training import Recipe
from lockref.models.dlrnet import DLRConfig
from lockref.models.qwen3_config import Qwen3Config


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
    *grads, gx = (array(g) for g in pull())
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
            made[name] = array(torch.rand(shape, generator=rng, dtype=torch.float64) * 1.7 + 0.3)
        else:
            made[name] = array(torch.randn(shape, generator=rng, dtype=torch.float64) / shape[1] ** 0.5)
    return made


def projected(config: Qwen3Config, tensors: Tensors, k: int, *, planes: bool) -> Answer:
    """MergeBarrier's projection in torch: P (layers, G, c, c) by reflections, and q_proj, k_proj turned by it."""
    turns, found = [], {n: np.array(w) for n, w in tensors.items()}
    for names, heads in _heads(config, tensors):
        turn = [_reflections(_axes(w, planes), config.head_dim)[k * (2 if planes else 1)] for w in heads]
        found |= _turned(names, heads, turn)
        turns.append(torch.stack(turn))
    return {"p": array(torch.stack(turns)), "tensors": found}


def keyless(config: Qwen3Config, released: Tensors, reference: Tensors, *, planes: bool) -> Answer:
    """The keyless attack in torch: each key head tries every k and keeps the one that brings it nearest, (layers, G).

    By the distances themselves, ‖P_k W − W_ref‖², where NumPy sums up overlaps.
    """
    found, keys, width = {n: np.array(w) for n, w in released.items()}, [], 2 if planes else 1
    for (names, heads), (_, goals) in zip(_heads(config, released), _heads(config, reference), strict=True):
        turn, chosen = [], []
        for w, goal in zip(heads, goals, strict=True):
            tried = _reflections(_axes(w, planes), config.head_dim)[::width]
            far = [float(sum((p @ one - to).pow(2).sum() for one, to in zip(w, goal, strict=True))) for p in tried]
            chosen.append(far.index(min(far)))
            turn.append(tried[chosen[-1]])
        found |= _turned(names, heads, turn)
        keys.append(chosen)
    return {"k": np.array(keys), "tensors": found}


Heads = list[list[Tensor]]  # by key head: its query heads and itself, (c, d) each


def _heads(config: Qwen3Config, tensors: Tensors) -> Iterator[tuple[list[str], Heads]]:
    """For each layer, the names of its two projections, and its heads."""
    for i in range(config.num_hidden_layers):
        names = [f"model.layers.{i}.self_attn.{s}_proj.weight" for s in "qk"]
        q, key = (torch.from_numpy(np.array(tensors[n])).split(config.head_dim) for n in names)  # type: ignore[no-untyped-call]
        share = len(q) // len(key)
        yield names, [[*q[g * share : (g + 1) * share], w] for g, w in enumerate(key)]


def _axes(heads: list[Tensor], planes: bool) -> list[Tensor]:
    """Eigenvectors of S = Σ w wᵀ, greatest first; or the coordinate axes, the planes of greatest trace first."""
    s = sum((w @ w.T for w in heads[1:]), heads[0] @ heads[0].T)
    if not planes:
        return list(torch.linalg.eigh(s).eigenvectors.T.flip(0))
    half = len(s) // 2
    first = torch.sort(s.diagonal()[:half] + s.diagonal()[half:], descending=True, stable=True).indices
    return [torch.eye(len(s), dtype=s.dtype)[j] for plane in first.tolist() for j in (plane, plane + half)]


def _reflections(axes: list[Tensor], c: int) -> list[Tensor]:
    """P_0 = I, and one reflection I − 2 u uᵀ more for each axis."""
    found = [torch.eye(c, dtype=torch.float64)]
    for u in axes:
        found.append(found[-1] - 2 * torch.outer(u, u @ found[-1]))
    return found


def _turned(names: list[str], heads: Heads, turn: list[Tensor]) -> dict[str, NDArray[Any]]:
    """Both projections with the heads of each group turned, Pᵀ w."""
    q = [p.T @ w for p, group in zip(turn, heads, strict=True) for w in group[:-1]]
    key = [p.T @ group[-1] for p, group in zip(turn, heads, strict=True)]
    return {name: array(torch.cat(parts)) for name, parts in zip(names, (q, key), strict=True)}


def distilled(
    params: Tensors, x: NDArray[Any], y: NDArray[Any], net: DLRConfig, recipe: Recipe, rows: int
) -> list[float]:
    """Losses of phase 1 step by step."""
    model = qwen3.DLRNet(net)
    model.load_state_dict({n: torch.from_numpy(np.array(w)) for n, w in params.items()}, assign=True)
    inputs, goals = torch.from_numpy(x), torch.from_numpy(y)

    def loss(rng: np.random.Generator) -> Tensor:
        chosen = rng.integers(0, len(x), min(rows, len(x)))
        gap: Tensor = (model(inputs[chosen]) - goals[chosen]).pow(2).sum(-1)
        return (gap / goals[chosen].pow(2).sum(-1)).mean()

    return _descended(loss, list(model.requires_grad_(True).parameters()), recipe)


def healed(
    config: Qwen3Config, tensors: Tensors, locked: Tensors, net: DLRConfig, tokens: NDArray[Any], recipe: Recipe,
    rows: int,
) -> list[float]:  # fmt: skip
    """Losses of phase 2 step by step: the official model with networks learns what the one without says, float64."""
    teacher = qwen3.build(config, tensors, dtype=torch.float64).requires_grad_(False)
    model = qwen3.build(config, locked, net, dtype=torch.float64)
    storage.trainable(model, {".mlp."})
    given = torch.from_numpy(tokens)

    def loss(rng: np.random.Generator) -> Tensor:
        batch = given[rng.integers(0, len(tokens), min(rows, len(tokens)))]
        want, got = (torch.log_softmax(qwen3.logits(m, batch), -1) for m in (teacher, model))
        return (want.exp() * (want - got)).sum(-1).mean()

    with float64.uncast():
        return _descended(loss, [p for p in model.parameters() if p.requires_grad], recipe)


def tuned(
    config: Qwen3Config, locked: Tensors, net: DLRConfig, trains: Set[str] | None, tokens: NDArray[Any], recipe: Recipe,
    rows: int,
) -> list[float]:  # fmt: skip
    """Losses of a fine-tune of the locked official model step by step, float64; None trains all of it."""
    model = qwen3.build(config, locked, net, dtype=torch.float64)
    storage.trainable(model, trains)
    given = torch.from_numpy(tokens)

    def loss(rng: np.random.Generator) -> Tensor:
        return qwen3.loss(model, given[rng.integers(0, len(tokens), min(rows, len(tokens)))])

    with float64.uncast():
        return _descended(loss, [p for p in model.parameters() if p.requires_grad], recipe)


def _descended(
    loss: Callable[[np.random.Generator], Tensor], params: list[nn.Parameter], recipe: Recipe
) -> list[float]:
    """Losses step by step, with torch's own AdamW and autograd: the recipe's rates, clipping and generators."""
    optimizer = torch.optim.AdamW(params, lr=1.0, betas=recipe.betas, eps=recipe.eps, weight_decay=recipe.weight_decay)
    losses = []
    for step in range(recipe.steps):
        value = loss(np.random.default_rng([recipe.seed, step]))
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in params if p.grad is not None]))
        for p in params:
            p.grad = p.grad * min(1.0, recipe.clip / max(norm.item(), recipe.eps)) if p.grad is not None else None
        optimizer.param_groups[0]["lr"] = recipe.rate(step)
        optimizer.step()
        losses.append(value.item())
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
    return {"objective": value.item(), "gradient": {n: array(g) for n, g in zip(moving, found, strict=True)}}


def trap2_adapters(
    config: Qwen3Config, base: Tensors, factors: Tensors, alpha: int, tokens: NDArray[Any], s: float, power: float,
    strength: float,
) -> Answer:  # fmt: skip
    """The same draw for LoRA: W₀ + α/r (sB) A by peft, whose scaling carries s; gradients of A.name and B.name."""
    names = [n.removeprefix("A.") for n in factors if n.startswith("A.")]
    rank = len(factors[f"A.{names[0]}"])
    model = with_adapters(
        qwen3.build(config, base, dtype=torch.float64), sorted({n.split(".")[-2] for n in names}), rank, alpha
    )
    layers: dict[str, Any] = {n: model.get_submodule(f"base_model.model.{n.removesuffix('.weight')}") for n in names}
    moving: dict[str, Any] = {}
    for name, layer in layers.items():
        for factor, held in (("A", layer.lora_A), ("B", layer.lora_B)):
            moving[f"{factor}.{name}"] = held.default.weight
            held.default.weight.data = torch.from_numpy(np.array(factors[f"{factor}.{name}"]))
    given = torch.from_numpy(tokens)

    def loss(at: float) -> Tensor:
        for layer in layers.values():
            layer.scaling["default"] = alpha / rank * at
        return qwen3.loss(model, given)  # type: ignore[arg-type]

    with float64.uncast():
        value = loss(1.0) - strength / s**power * loss(s)
        found = torch.autograd.grad(value, list(moving.values()))
    return {"objective": value.item(), "gradient": {n: array(g) for n, g in zip(moving, found, strict=True)}}
