"""Straight paths between two models, and the barrier on them (linear mode connectivity)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensors = Mapping[str, NDArray[Any]]


def point(first: Tensors, second: Tensors, alpha: float) -> dict[str, NDArray[Any]]:
    """(1 − α) θ_1 + α θ_2 tensor by tensor; ValueError where names or shapes differ."""
    if odd := sorted(first.keys() ^ second.keys()):
        raise ValueError(f"tensor {odd[0]!r}: only one end of the path has it; give two models of one architecture")
    for name, x in first.items():
        if np.shape(x) != np.shape(second[name]):
            raise ValueError(
                f"tensor {name!r}: shapes {np.shape(x)} and {np.shape(second[name])} at the ends of a path"
            )
    return {name: (1 - alpha) * x + alpha * second[name] for name, x in first.items()}


def path_losses(
    first: Tensors, second: Tensors, loss: Callable[[dict[str, NDArray[Any]]], float], alphas: Sequence[float]
) -> list[float]:
    """L((1 − α) θ_1 + α θ_2) for every α."""
    return [float(loss(point(first, second, alpha))) for alpha in alphas]


def barrier(losses: Sequence[float], alphas: Sequence[float] | None = None) -> float:
    """max_α [L((1−α)θ_1 + αθ_2) − (1−α) L(θ_1) − α L(θ_2)], the ends first and last; α in equal steps by default.

    Never negative, since it is 0 at the ends. Raises ValueError for fewer than two losses.
    """
    if len(losses) < 2:
        raise ValueError(f"{len(losses)} loss on the path; a barrier needs both ends")
    at = np.linspace(0, 1, len(losses)) if alphas is None else np.asarray(alphas, float)
    chord = (1 - at) * losses[0] + at * losses[-1]
    return float(max(0.0, np.max(np.asarray(losses) - chord)))
