"""What all questions about merging share: losses of merged tensors, and what attackers make of a release first."""

from collections.abc import Callable
from dataclasses import replace
from itertools import count

import numpy as np
from numpy.typing import NDArray

from lockproofs.claim import Context, MissingInput
from lockproofs.curves.paths import values_undone, with_unit_signs_of
from lockref.attacks.anchor_model import anchor_permutation, anchor_projection, anchor_signs
from lockref.attacks.keyless import keyless
from lockref.attacks.result import Tensors
from lockref.attacks.taylor_coefficients import recover_model
from lockref.locks.attention import TOPK_PLANES
from lockref.locks.bases import BASES
from lockref.locks.full import Composed, Composition
from lockref.locks.taylor_model import SERIES
from lockref.models import qwen3

REFERENCE = "the unlocked reference"
RELEASED = "as released"
APART = "coefficients taken apart"
UNITS = 4096  # of an MLP, at most: matching them is cubic
PEER = "another expert of the same base, to merge SUBJECT with"
BASE = "the base that the experts share: merges add their updates to it"

Tokens = NDArray[np.int64]


def mean_loss(ctx: Context, tokens: Tokens, like: Composed | None = None) -> Callable[[Tensors], float]:
    """Mean loss over the rows of whatever tensors of SUBJECT's shape, or of another model's."""
    model, calls = like or ctx.subject.composed, count(1)

    def loss(tensors: Tensors) -> float:
        ctx.say(f"loss {next(calls)}")
        return float(qwen3.loss(tensors, tokens, model.config, model.composition.block))

    return loss


def require_same_tensors(subject: Composed, other: Composed) -> None:
    """MissingInput where two models have no straight path, because their MLPs are of different kinds."""
    shapes = ({n: w.shape for n, w in m.tensors.items()} for m in (subject, other))
    if next(shapes) != next(shapes):
        mine, theirs = (m.composition.replaces or "MLPs" for m in (subject, other))
        raise MissingInput(
            f"SUBJECT has {mine} where {other.path} has {theirs}: no straight path joins them; whoever merges turns "
            "the networks back into MLPs first (DLR-REDISTILL)"
        )


def undone(subject: Composed, other: Composed, base: Composed | None) -> dict[str, Tensors]:
    """What an attacker makes of the release who has the other expert, and perhaps the base."""
    t, config = subject.tensors, subject.config
    signs = anchor_signs(t, other.tensors, config).guesses[0]
    found: dict[str, Tensors] = {
        "keyless, k from the other": keyless(t, config, TOPK_PLANES, reference=other.tensors).guesses[0],
        "plane signs from the other": signs,
    }
    if not subject.composition.replaces and config.intermediate_size <= UNITS:
        ordered = anchor_permutation(signs, other.tensors, config).guesses[0]
        found["plane signs, units and values from the other"] = values_undone(ordered, other.tensors, config)
    if base is not None:
        found["plane signs from the base"] = anchor_signs(t, base.tensors, config).guesses[0]
        found["Procrustes with the base"] = anchor_projection(t, base.tensors, config).guesses[0]
    return found


def apart(subject: Composed, other: Composed) -> Composed:
    """The host's MLPs again, of a release whose MLPs are polynomials (TAYLOR-COEFF); signs of units by the other."""
    series = subject.composition.series
    assert series is not None
    dtype = subject.dtypes[f"model.layers.0.{SERIES}arrays"]
    found = recover_model(subject.tensors, subject.config, BASES[series.basis], dtype).guesses[0]
    tensors = with_unit_signs_of(found, other.tensors, subject.config)
    return replace(subject, tensors=tensors, composition=Composition(subject.composition.planes))


def starts(ctx: Context, other: Composed) -> dict[str, Tensors]:
    """Where a path to the other expert may begin: as released, after each attack, and the unlocked reference."""
    subject, found = ctx.subject.composed, ctx.subject
    base = found.need("base", BASE) if found.has("base") else None
    known: dict[str, Tensors] = {}
    if subject.composition.series and not other.composition.replaces:
        subject = apart(subject, other)
        known[APART] = subject.tensors
    else:
        require_same_tensors(subject, other)
        known[RELEASED] = subject.tensors
    known |= undone(subject, other, base)
    if found.has("reference") and not other.composition.replaces:
        known[REFERENCE] = found.need("reference", "").tensors
    return known
