"""Trials of the anchor attack: lock a fine-tuned model, compare with its base, and see how far off the estimate is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lockproofs.attention_trials import origins, sweep
from lockproofs.claim import Context
from lockref.attacks.anchor import (
    least_squares,
    least_squares_bound,
    match_rows,
    plane_signs,
    procrustes,
    procrustes_bound,
    rows_are_safe,
    signs_are_safe,
)
from lockref.attacks.anchor_model import head_blocks, mlp_rows
from lockref.models.checkpoint_io import Checkpoint

Array = NDArray[np.float64]

EPS = 2.0**-52
HEADS, LAYERS = 8, 2
RATIOS = tuple(n / 10 for n in range(11))
PLANTED = 0.1  # ‖τ‖/‖W_0‖ of a fine-tuned model that is made up where none is given
UNITS = 512  # of an MLP, at most: the Hungarian method is cubic


@dataclass(frozen=True)
class Origin:
    """A fine-tuned model's weights beside its base's: what one transform acts on, and the MLPs' units."""

    name: str
    heads: list[tuple[Array, Array]]  # W_0 and τ, both (c, n)
    units: list[tuple[Array, Array]]  # both (m, n)


def scaled(base: Array, task: Array, ratio: float) -> Array:
    """τ with ‖τ‖_F = ratio · ‖W_0‖_F; 0 stays 0."""
    size = float(np.linalg.norm(task))
    return task * (ratio * float(np.linalg.norm(base)) / size) if size else task


def known_origins(ctx: Context) -> list[Origin]:
    """The fine-tuned models under audit with their base; one with random updates if there is none."""
    given = [(name, owner, base) for name, owner, base in origins(ctx) if name == "the base"]
    found = [
        Origin(
            f"trained {i + 1}", _pairs(_chosen_heads(owner), _chosen_heads(base)), _pairs(_units(owner), _units(base))
        )
        for i, (_, owner, base) in enumerate(given)
    ]
    base = given[0][2] if given else ctx.subject.model
    rng = ctx.rng(7)
    random = Origin("random", *([(w, scaled(w, rng.standard_normal(w.shape), PLANTED)) for w in part]
                                for part in (_chosen_heads(base), _units(base))))  # fmt: skip
    return [random, *found]


def _pairs(owner: Sequence[Array], base: Sequence[Array]) -> list[tuple[Array, Array]]:
    return [(w0, w - w0) for w, w0 in zip(owner, base, strict=True)]


def _chosen_heads(model: Checkpoint) -> list[Array]:
    """At most HEADS key heads with their query heads, evenly spread."""
    blocks = [head for layer in head_blocks(model.tensors, model.config) for head in layer]
    return [blocks[i] for i in sweep(len(blocks) - 1, HEADS)]


def _units(model: Checkpoint) -> list[Array]:
    """The first hidden units of at most LAYERS layers."""
    layers = sweep(model.config.num_hidden_layers - 1, LAYERS)
    return [rows[:UNITS] for i, rows in enumerate(mlp_rows(model.tensors, model.config)) if i in layers]


@dataclass(frozen=True)
class Estimate:
    """An estimate's error beside its bound: of the transform, and for Procrustes of the weights it gives back."""

    ratio: float
    error: float
    bound: float
    round_off: float
    weights_error: float = 0.0
    weights_bound: float = 1.0
    weights_round_off: float = 0.0

    @property
    def share(self) -> float:
        return self.error / (self.bound + self.round_off)

    @property
    def weights_share(self) -> float:
        return self.weights_error / (self.weights_bound + self.weights_round_off)


def round_off(base: Array) -> float:
    """Gram matrix, decomposition and product in float64, magnified by the condition number of H = W_0 W_0ᵀ."""
    c, n = base.shape
    spread = np.linalg.svd(base, compute_uv=False)
    condition = (spread[0] / spread[-1]) ** 2 if spread[-1] else np.inf
    return float(min(16 * (n + c * c) * c**0.5 * EPS * condition, 2 * c**0.5))


def estimate_turn(base: Array, task: Array, ratio: float, rng: np.random.Generator) -> Estimate:
    """Procrustes on W = W_0 + τ behind a random turn."""
    task = scaled(base, task, ratio)
    owner = base + task
    turn = np.linalg.qr(rng.standard_normal((len(base), len(base))))[0]
    got = procrustes(turn @ owner, base)
    size = float(np.linalg.norm(owner)) or 1.0
    return Estimate(
        ratio,
        float(np.linalg.norm(got - turn)),
        float(procrustes_bound(base, task)),
        round_off(base),
        float(np.linalg.norm(got.T @ turn @ owner - owner)) / size,
        2 * float(np.linalg.norm(task)) / size,
        16 * (base.shape[1] + len(base) ** 2) * len(base) ** 0.5 * EPS,
    )


def estimate_transform(base: Array, task: Array, ratio: float, ridge: float, rng: np.random.Generator) -> Estimate:
    """Ridge least squares on W behind a random invertible transform, error relative to it."""
    task, c = scaled(base, task, ratio), len(base)
    transform = np.linalg.qr(rng.standard_normal((c, c)))[0] * rng.uniform(0.5, 2, c)
    got = np.linalg.solve(transform, least_squares(transform @ (base + task), base, ridge)) - np.eye(c)
    bound = float(least_squares_bound(base, task, ridge))
    return Estimate(ratio, float(np.linalg.norm(got)), bound, 16 * round_off(base) * (1 + bound))


def estimates(found: Sequence[Origin], rng: np.random.Generator) -> tuple[dict[str, list[Estimate]], list[Estimate]]:
    """Procrustes by origin and least squares, for every head and ratio."""
    turns: dict[str, list[Estimate]] = {}
    transforms = []
    for origin in found:
        for base, task in origin.heads:
            for ratio in RATIOS:
                turns.setdefault(origin.name, []).append(estimate_turn(base, task, ratio, rng))
                transforms.append(estimate_transform(base, task, ratio, 1e-8, rng))
    return turns, transforms


@dataclass(frozen=True)
class Exact:
    """An estimate that is right or wrong: was it right, and did the bound say that it would be?"""

    ratio: float | None  # None: as trained
    right: bool
    safe: bool


def signs(found: Sequence[Origin], rng: np.random.Generator) -> Iterator[Exact]:
    """The sign of every plane, as trained and for every ratio."""
    for origin in found:
        for base, task in origin.heads:
            for ratio in (None, *RATIOS):
                moved = task if ratio is None else scaled(base, task, ratio)
                drawn = rng.choice([-1.0, 1.0], len(base) // 2)
                got = plane_signs(np.tile(drawn, 2)[:, None] * (base + moved), base)
                for right, safe in zip(got == drawn, signs_are_safe(base, moved), strict=True):
                    yield Exact(ratio, bool(right), bool(safe))


def units(found: Sequence[Origin], rng: np.random.Generator) -> Iterator[Exact]:
    """The order of the units of an MLP, as trained and for some ratios."""
    for origin in found:
        for base, task in origin.units:
            for ratio in (None, 0.0, 0.5, 1.0):
                moved = task if ratio is None else scaled(base, task, ratio)
                order = rng.permutation(len(base))
                right = match_rows((base + moved)[order], base) == order
                safe = rows_are_safe(base, moved)
                yield from (Exact(ratio, bool(r), safe) for r in right)
