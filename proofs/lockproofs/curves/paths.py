"""Loss along the straight path between two models of one origin."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockproofs.claim import Curve, Plot
from lockref.attacks.anchor_model import anchor_invertible, anchor_permutation
from lockref.attacks.result import Tensors
from lockref.locks.peers import merge_lock, params_lock
from lockref.locks.symmetries import mix_values
from lockref.locks.taylor_model import DOWN, UP
from lockref.merging import path_losses
from lockref.models import qwen3
from lockref.models.checkpoint_io import Checkpoint
from lockref.models.qwen3_config import Qwen3Config

Tokens = NDArray[np.intp]

ALPHAS = tuple(n / 8 for n in range(9))


def path(ends: tuple[Tensors, Tensors], model: Checkpoint, tokens: Tokens) -> list[float]:
    """Loss in nats per token at (1 − α) θ_1 + α θ_2 for every α."""
    return path_losses(*ends, lambda theta: float(qwen3.loss(theta, tokens, model.config)), ALPHAS)


def drawn(title: str, losses: Mapping[str, list[float]]) -> Plot:
    """The plot of some paths, by name."""
    return Plot(
        title=title,
        x_label="α, share of the other model",
        y_label="loss, nats per token",
        curves=[Curve(name=name, x=list(ALPHAS), y=y) for name, y in losses.items()],
    )


def values_undone(released: Tensors, other: Tensors, config: Qwen3Config) -> dict[str, NDArray[Any]]:
    """V/O mixed back by least squares with another expert as anchor, nothing else touched."""
    found = anchor_invertible(released, other, config).found["values"]
    return mix_values(released, config, np.linalg.inv(found))


def peers(
    model: Checkpoint, other: Checkpoint, before: list[float], tokens: Tokens, rng: np.random.Generator
) -> list[Plot]:
    """PaRaMS and MergeLock, as far as they keep a Qwen3's function, and what the other expert undoes of them."""
    config, plots = model.config, []
    for name, lock in (("PaRaMS", params_lock), ("MergeLock", merge_lock)):
        released: Tensors = lock(model.tensors, config, rng).tensors
        ordered = anchor_permutation(released, other.tensors, config).guesses[0] if name == "PaRaMS" else released
        ends: dict[str, Tensors] = {
            "after the lock": released,
            "anchored on the other": values_undone(ordered, other.tensors, config),
        }
        losses = {label: path((end, other.tensors), model, tokens) for label, end in ends.items()}
        losses = {"before the lock": before, **losses}
        plots.append(drawn(f"Loss on the straight path from a model under {name} to another", losses))
    return plots


def with_unit_signs_of(recovered: Tensors, other: Tensors, config: Qwen3Config) -> dict[str, Any]:
    """Each hidden unit's rows of W_up and columns of W_down turned together to the other's side: the same function."""
    turned = dict(recovered)
    for i in range(config.num_hidden_layers):
        up, down = (f"model.layers.{i}.{name}" for name in (UP, DOWN))
        sign = np.where(np.sum(recovered[up] * other[up], axis=1) < 0, -1.0, 1.0)
        turned |= {up: recovered[up] * sign[:, None], down: recovered[down] * sign}
    return turned


def recovered(model: Checkpoint, found: Tensors, other: Checkpoint, tokens: Tokens) -> Plot:
    """A model under a Taylor lock has no weights to merge; what the coefficient attack makes of it has."""
    ends: dict[str, Tensors] = {
        "before the lock": model.tensors,
        "coefficients, signs of units as they come": found,
        "coefficients, signs from the other": with_unit_signs_of(found, other.tensors, model.config),
    }
    losses = {label: path((end, other.tensors), model, tokens) for label, end in ends.items()}
    return drawn("Loss on the straight path from a model recovered from Taylor coefficients to another", losses)
