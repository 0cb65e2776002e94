"""The training loop of `lockref.locks.dlr_training` for torch: the same recipe, update and state files."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lockref.locks.dlr_training import Follow, Recipe, State, load_state, mark_of, save_state

Tensors = Mapping[str, NDArray[Any]]
Parameters = dict[str, Tensor]
Gradient = Callable[[Parameters, int], tuple[float, Parameters]]


@dataclass
class Live:
    """A training's `State` on its device."""

    step: int
    params: Parameters
    first: Parameters
    second: Parameters


def train(
    gradient: Gradient,
    params: Tensors,
    recipe: Recipe,
    device: torch.device,
    *,
    about: str,
    file: Path,
    follow: Follow,
    writes: bool = True,
    save_every: int = 100,
) -> State:
    """Trains from `params`, or from the state in `file`, where gradient(params, step) is the loss and its gradients.

    A process that does not write reads the file all the same. Raises CheckpointError for a file of another training,
    FloatingPointError, naming the step, where loss or gradient stop being finite.
    """
    state = State(0, dict(params), *({n: np.zeros_like(w) for n, w in params.items()} for _ in range(2)))
    mark = mark_of(recipe, about, params)
    if file.exists():
        state = load_state(file, state, mark)
    live = Live(state.step, *(_on(device, group) for group in (state.params, state.first, state.second)))
    for p in live.params.values():
        p.requires_grad_(True)
    while live.step < recipe.steps:
        value, grads = gradient(live.params, live.step)
        norm = math.sqrt(float(torch.stack([g.double().pow(2).sum() for g in grads.values()]).sum()))
        if not math.isfinite(value) or not math.isfinite(norm):
            raise FloatingPointError(
                f"training: loss {value:g}, gradient norm {norm:g} at step {live.step}; lower the learning rate "
                f"({recipe.learning_rate:g}) or look at the data"
            )
        update(live, grads, min(1.0, recipe.clip / max(norm, recipe.eps)), recipe)
        if writes and (live.step % save_every == 0 or live.step == recipe.steps):
            save_state(file, _off(live), mark)
        follow(live.step, value)
    return _off(live)


def gradients(value: Tensor, params: Parameters) -> Parameters:
    """Those of a loss, by name."""
    return dict(zip(params, torch.autograd.grad(value, list(params.values())), strict=True))


@torch.no_grad()
def update(state: Live, grads: Parameters, scale: float, recipe: Recipe) -> None:
    """One step of AdamW (Loshchilov & Hutter, arXiv 1711.05101, Algorithm 2) with scaled gradients, in place."""
    rate, state.step = recipe.rate(state.step), state.step + 1
    b1, b2 = recipe.betas
    for name, w in state.params.items():
        g = grads[name] * scale
        m, v = state.first[name], state.second[name]
        m += (1 - b1) * (g - m)
        v += (1 - b2) * (g * g - v)
        ahead = m / (1 - b1**state.step) / ((v / (1 - b2**state.step)).sqrt() + recipe.eps)
        w -= rate * (ahead + recipe.weight_decay * w)


def _on(device: torch.device, arrays: Tensors) -> Parameters:
    return {n: torch.from_numpy(np.array(w)).to(device) for n, w in arrays.items()}


def _off(state: Live) -> State:
    groups = (state.params, state.first, state.second)
    return State(state.step, *({n: w.detach().cpu().numpy().copy() for n, w in group.items()} for group in groups))
