"""Trap² in training: which arrays are an update's parameters, and the loss that a step of AdamW descends.

The engine's trainer hands every step a generator of its own; its two children are the data's stream and the
scales', so that neither moves the other: protected and unprotected training see the same batches.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockref.autodiff import primal
from lockref.locks.dlr_training import Follow, Recipe, State, train
from lockref.locks.trap2 import WEIGHTINGS, Weighting, low_rank_update, sample_scale, scaled

Arrays = dict[str, NDArray[Any]]
Draw = Callable[[np.random.Generator], Any]  # a batch
BatchLoss = Callable[[dict[str, Any], Any], Any]  # (weights, batch) -> mean loss


@dataclass(frozen=True)
class Published:
    """The settings with which the paper trains one kind of update (arXiv 2601.21898)."""

    strength: float
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    clip: float = 1.0


PUBLISHED = {"lora": Published(0.001, 3e-4), "full": Published(0.005, 1e-5)}


@dataclass(frozen=True)
class Protection:
    """λ, w and the law of s; the published law and weighting by default. λ = 0 trains without protection."""

    strength: float
    weighting: Weighting = WEIGHTINGS["1/s"]
    low: float = 0.05
    high: float = 2.0
    gap: float = 0.05

    def __post_init__(self) -> None:
        if not (np.isfinite(self.strength) and self.strength >= 0):
            raise ValueError(f"Protection: strength λ is {self.strength}; it must be 0 or more")
        sample_scale(np.random.default_rng(0), 1, self.low, self.high, self.gap)  # raises for an impossible law

    def draw(self, rng: np.random.Generator) -> float:
        """One scale."""
        return float(sample_scale(rng, 1, self.low, self.high, self.gap)[0])


@dataclass(frozen=True)
class Full:
    """Every tensor of the base has an update of its own."""

    base: Mapping[str, NDArray[Any]]

    def start(self, rng: np.random.Generator) -> Arrays:
        """Δ = 0; the generator is not used."""
        return {name: np.zeros_like(w) for name, w in self.base.items()}

    def applied(self, params: Mapping[str, Any], s: float) -> dict[str, Any]:
        """W₀ + sΔ."""
        return scaled(self.base, params, s)


@dataclass(frozen=True)
class LoRA:
    """Δ = α/r · B A for the named matrices; parameters are A.name (r, in) and B.name (out, r)."""

    base: Mapping[str, NDArray[Any]]
    names: tuple[str, ...]
    rank: int = 8
    alpha: float = 16.0

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in self.base or np.ndim(self.base[name]) != 2:
                raise ValueError(f"LoRA: {name} is no matrix of the base; name matrices")
        if not self.names or self.rank < 1:
            raise ValueError(f"LoRA: {len(self.names)} matrices, rank {self.rank}; give at least one, and rank 1")

    def start(self, rng: np.random.Generator) -> Arrays:
        """A ~ N(0, 1/in), B = 0, so Δ = 0 (arXiv 2106.09685)."""
        found: Arrays = {}
        for name in self.names:
            w = self.base[name]
            found[f"A.{name}"] = np.asarray(rng.standard_normal((self.rank, w.shape[1])) / w.shape[1] ** 0.5, w.dtype)
            found[f"B.{name}"] = np.zeros((w.shape[0], self.rank), w.dtype)
        return found

    def factors(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(A, B) by the name of the matrix."""
        a, b = ({name: params[f"{factor}.{name}"] for name in self.names} for factor in "AB")
        return a, b

    def applied(self, params: Mapping[str, Any], s: float) -> dict[str, Any]:
        """W₀ + α/r (sB) A."""
        return scaled(self.base, low_rank_update(*self.factors(params), s * self.alpha / self.rank), 1.0)


Parametrization = Full | LoRA


def trap_loss(
    loss: BatchLoss, draw: Draw, kind: Parametrization, protection: Protection, ceiling: float = np.inf
) -> Callable[[Mapping[str, Any], np.random.Generator], Any]:
    """One draw of J, L(W₀ + Δ) − λ w(s) L(W₀ + sΔ), as the trainer wants it: of (parameters, the step's generator).

    Batch and scale come from the generator's first and second child. Raises FloatingPointError where the nominal
    loss exceeds `ceiling`: J has no lower bound, and an update that pays for it with L(W₀ + Δ) protects nothing.
    """

    def objective(params: Mapping[str, Any], rng: np.random.Generator) -> Any:
        data, scales = rng.spawn(2)
        batch = draw(data)
        nominal = loss(kind.applied(params, 1.0), batch)
        if not float(primal(nominal)) <= ceiling:
            raise FloatingPointError(
                f"Trap²: the loss at s = 1 is {float(primal(nominal)):.4g}, above {ceiling:.4g}: training diverges; "
                f"lower λ ({protection.strength:g}) or the learning rate"
            )
        if protection.strength == 0:
            return nominal
        s = protection.draw(scales)
        return nominal - protection.strength * protection.weighting(s) * loss(kind.applied(params, s), batch)

    return objective


def protect(
    loss: BatchLoss,
    draw: Draw,
    kind: Parametrization,
    protection: Protection,
    recipe: Recipe,
    *,
    ceiling: float = np.inf,
    about: str = "",
    file: Path | None = None,
    save_every: int = 100,
    follow: Follow | None = None,
) -> State:
    """Trains an update from `kind.start` by `recipe`; λ = 0 trains it unprotected on the same batches.

    `file` makes it resumable bit for bit (see `train`); `about` should say what data `draw` draws. Raises
    FloatingPointError where training diverges.
    """
    start = kind.start(np.random.default_rng(recipe.seed))  # a step's stream is [seed, step]
    what = f"{about}; {protection}; {type(kind).__name__}"
    objective = trap_loss(loss, draw, kind, protection, ceiling)
    return train(objective, start, recipe, about=what, file=file, save_every=save_every, follow=follow)
