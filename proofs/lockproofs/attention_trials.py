"""Trials of MergeBarrier's attention lock (arXiv 2511.10712) on a model under audit: lock, look, undo, compare."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lockproofs.claim import Check, Context
from lockref.attacks.keyless import heaviest_tails, keyless
from lockref.attacks.result import Tensors
from lockref.locks.attention import TOPK, TOPK_PLANES, Family, governing, layer_heads, project, projections
from lockref.models import qwen3
from lockref.models.checkpoint_io import Checkpoint
from lockref.models.qwen3_config import Qwen3Config
from lockref.models.skills import SKILLS, pack_lines

Array = NDArray[np.float64]

U = 2.0**-53
RECOVERED = 1e-10  # a head is recovered where its relative error is at most this
ROWS, LENGTH = 2, 64  # tokens of each kind that logits are compared on
FORWARD_BUDGET = 2**32  # weights × tokens over all forward passes of one sweep over k
WEIGHT_BUDGET = 2**28  # attention weights × locks over one sweep over k


def sweep(most: int, wanted: int) -> list[int]:
    """At most `wanted` (two or more) values of k from 0 to `most`, evenly spread, both ends included."""
    return sorted({round(x) for x in np.linspace(0, most, min(most + 1, max(2, wanted)))})


def none_found(name: str, statistic: str, found: Sequence[bool], seed: int | None) -> Check:
    """A check that no case is what `statistic` counts."""
    return Check(
        name=name, statistic=statistic, unit="cases", value=sum(found), bound=0, sense="==", cases=len(found), seed=seed
    )


def model_heads(model: Checkpoint, wanted: int) -> list[tuple[Array, Array]]:
    """At most `wanted` key heads of a model, evenly spread over its layers: q (H/G, c, d) and k (c, d)."""
    groups = model.config.num_key_value_heads
    chosen = set(sweep(model.config.num_hidden_layers * groups - 1, wanted))
    return [
        (q[g], k[g])
        for layer, (q, k) in enumerate(layer_heads(model.tensors, model.config))
        for g in range(groups)
        if layer * groups + g in chosen
    ]


def probe(ctx: Context, stream: int) -> NDArray[np.intp]:
    """Token rows for comparing logits: lines of the zoo's skills, for any other model what its audit measures on."""
    if not ctx.subject.is_zoo:
        return ctx.tokens(ROWS, LENGTH, stream)
    rng = ctx.rng(stream)
    return np.concatenate([pack_lines(name, rng, ROWS, LENGTH) for name in SKILLS]).astype(np.intp)


def affordable_passes(ctx: Context, tokens: NDArray[np.intp]) -> int:
    """How many forward passes fit the budget of one sweep: all of a small model's, few of a large one's."""
    parameters = sum(tensor.size for tensor in ctx.subject.model.tensors.values())
    return max(3, FORWARD_BUDGET // (parameters * tokens.size))


def affordable_locks(model: Checkpoint) -> int:
    """How many locks of a model fit the budget of one sweep: all of a small model's, few of a large one's."""
    c = model.config
    heads = c.num_attention_heads + c.num_key_value_heads
    return max(3, WEIGHT_BUDGET // (c.num_hidden_layers * heads * c.head_dim * c.hidden_size))


def release(model: Checkpoint, family: Family, k: int) -> dict[str, NDArray[Any]]:
    """The model as its owner publishes it."""
    return project(model.tensors, model.config, projections(model.tensors, model.config, family, k))


def logit_changes(ctx: Context, family: Family, ks: Sequence[int], tokens: NDArray[np.intp]) -> list[float]:
    """‖logits with the lock − logits‖_F / ‖logits‖_F on the model, for every k."""
    model = ctx.subject.model
    before = qwen3.forward(model.tensors, tokens, model.config)
    changes = []
    for k in ks:
        after = qwen3.forward(release(model, family, k), tokens, model.config)
        changes.append(float(np.linalg.norm(after - before) / np.linalg.norm(before)))
    return changes


# --- Undoing it with nothing but the release -----------------------------------------------------------------


def head_errors(got: Tensors, want: Tensors, config: Qwen3Config) -> Array:
    """Relative error of each key head's weights and its query heads', taken together: (layers, G)."""
    pairs = zip(layer_heads(got, config), layer_heads(want, config), strict=True)
    return np.array([_norm(q - q0, k - k0) / _norm(q0, k0) for (q, k), (q0, k0) in pairs])


def _norm(q: Array, k: Array) -> Array:
    norm: Array = np.sqrt(np.sum(q * q, axis=(-3, -2, -1)) + np.sum(k * k, axis=(-2, -1)))
    return norm


def saved_in(dtype: str, released: Tensors, model: Checkpoint) -> dict[str, NDArray[Any]]:
    """The same release, with the tensors that the lock changed saved in a precision."""
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    return {name: w if w is model.tensors[name] else w.astype(kind).astype(w.dtype) for name, w in released.items()}


@dataclass(frozen=True)
class Undone:
    """A release that was undone by guess k, head by head (layers, G)."""

    error: Array
    saved_error: Array  # of the release in bfloat16
    saved_bound: Array
    clear: NDArray[np.bool_]  # whether λ_k and λ_{k+1} are far enough apart for RECOVERED

    @property
    def saved_share(self) -> float:
        """The bfloat16 error as a share of its bound, on the worst head."""
        return float(np.max(self.saved_error / self.saved_bound))


def undo(model: Checkpoint, k: int) -> Undone:
    """Lock with k, guess k, compare.

    Computed eigenvectors are those of a matrix about c u λ_1 away from S, so a guess is right to about c u λ_1/gap.
    """
    config, released = model.config, release(model, TOPK, k)
    largest, _, gap = _spectrum(model, k)
    error, bound = undo_saved(model, released, k, "bfloat16")
    return Undone(
        error=head_errors(keyless(released, config, TOPK).guesses[k], model.tensors, config),
        saved_error=error,
        saved_bound=bound,
        clear=gap * RECOVERED >= config.head_dim * U * largest,
    )


def _spectrum(model: Checkpoint, k: int) -> tuple[Array, Array, Array]:
    """λ_1, tr S and λ_k − λ_{k+1} of every key head, (layers, G)."""
    values = np.asarray(np.linalg.eigvalsh(governing(model.tensors, model.config))[..., ::-1], np.float64)
    inside = 0 < k < model.config.head_dim
    gap: Array = values[..., k - 1] - values[..., k] if inside else np.full(values.shape[:-1], np.inf)
    return values[..., 0], np.asarray(np.sum(values, axis=-1)), gap


def undo_saved(model: Checkpoint, released: Tensors, k: int, dtype: str) -> tuple[Array, Array]:
    """Guess k at a top-k release that was saved in `dtype`: relative error of each key head, and its bound.

    Rounding the release by ε relative to its norm moves S by at most F = 2ε (λ_1 tr S)^½ + ε² tr S, its spectral
    projector by 2√2 F/gap (Yu, Wang & Samworth 2015, Theorem 2), and a guess by ε + 4√2 F (λ_1/tr S)^½/gap, relative.
    F includes the c u λ_1 by which computed eigenvectors are those of another matrix.
    """
    config = model.config
    largest, total, gap = _spectrum(model, k)
    saved = saved_in(dtype, released, model)
    rounding = head_errors(saved, released, config)
    moved = 2 * rounding * np.sqrt(largest * total) + rounding**2 * total + config.head_dim * U * largest
    with np.errstate(divide="ignore"):  # a tie at the cut: no bound
        turned = 4 * math.sqrt(2) * moved * np.sqrt(largest / total) / gap
    return head_errors(keyless(saved, config, TOPK).guesses[k], model.tensors, config), rounding + turned


def plane_errors(model: Checkpoint, ks: Sequence[int]) -> list[float]:
    """Greatest error of guess k for plane-wise locks."""
    config = model.config
    guesses = (keyless(release(model, TOPK_PLANES, k), config, TOPK_PLANES).guesses[k] for k in ks)
    return [float(np.max(head_errors(guess, model.tensors, config))) for guess in guesses]


def tails_name_k(model: Checkpoint, ks: Sequence[int]) -> list[bool]:
    """Does the guess with the heaviest tails, for one k shared by all heads, name the k of a top-k lock?"""
    guesses = (keyless(release(model, TOPK, k), model.config, TOPK).guesses for k in ks)
    return [int(np.argmax(heaviest_tails(guess, model.config))) == k for guess, k in zip(guesses, ks, strict=True)]


# --- With a model of the same origin ----------------------------------------------------------------------------


def origins(ctx: Context) -> Iterator[tuple[str, Checkpoint, Checkpoint]]:
    """What is known to the attacker, a model to lock, and its relative: base or sibling."""
    checkpoints, model = ctx.subject.checkpoints, ctx.subject.model
    experts = [c for role, c in checkpoints.items() if role.startswith("expert:") and c.config == model.config]
    yield from (("the base", expert, model) for expert in experts)
    yield from (("a sibling", one, other) for one in experts for other in experts if one is not other)
    if "base" in checkpoints and checkpoints["base"].config == model.config:
        yield "the base", model, checkpoints["base"]


def named(model: Checkpoint, relative: Checkpoint, family: Family, k: int) -> NDArray[np.bool_]:
    """For each key head: does the guess that is nearest to the relative have the k of the lock? k = 0 locks nothing."""
    found = keyless(release(model, family, k), model.config, family, reference=relative.tensors).found["k"]
    return np.asarray(found == k)


def relatives(ctx: Context) -> list[Checkpoint]:
    """Other models of the subject's sizes that it may be merged with."""
    model = ctx.subject.model
    return [c for c in ctx.subject.checkpoints.values() if c is not model and c.config == model.config]


@dataclass(frozen=True)
class Named:
    """How often a relative named k, by kind of relative, and on how many unlocked heads it named another k than 0."""

    right: dict[str, list[bool]]
    misled: int
    unlocked: int


def name_k(ctx: Context) -> Named:
    right: dict[str, list[bool]] = {}
    misled = unlocked = 0
    for known, model, relative in origins(ctx):
        for family in (TOPK, TOPK_PLANES):
            for k in sweep(family.most(model.config.head_dim), affordable_locks(model)):
                hits = named(model, relative, family, k).ravel()
                right.setdefault(known, []).extend(hits.tolist())
                if k == 0:
                    misled, unlocked = misled + int(np.sum(~hits)), unlocked + hits.size
    return Named(right, misled, unlocked)


def distances(model: Checkpoint, relative: Checkpoint, k: int) -> list[float]:
    """Mean relative distance of each guess from a relative, for a top-k lock with the given k."""
    guesses = keyless(release(model, TOPK, k), model.config, TOPK).guesses
    return [float(np.mean(head_errors(guess, relative.tensors, model.config))) for guess in guesses]


def told(released: Tensors, model: Checkpoint) -> Array:
    """Errors (layers, G) of an attacker who is even told which guess is nearest to the original."""
    return head_errors(keyless(released, model.config, TOPK, model.tensors).guesses[0], model.tensors, model.config)
