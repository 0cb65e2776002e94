"""MB-KEYLESS and MB-ANCHOR on a directory: attacks on the very release, not on a lock planted in it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockproofs.attention_trials import head_errors
from lockproofs.auditing.measure import again, where
from lockproofs.claim import (
    Check,
    Context,
    Control,
    Controls,
    Counterexample,
    Evidence,
    Grade,
    MissingInput,
    OnSubject,
    Verdict,
)
from lockproofs.subject import Subject
from lockref.attacks.anchor_model import anchor_projection, anchor_signs
from lockref.attacks.keyless import farther, keyless
from lockref.attacks.result import Tensors
from lockref.locks.attention import TOPK, TOPK_PLANES, layer_heads, project
from lockref.locks.full import Composed

WHAT = "the weights that the lock hides, to compare the attacker's guesses with"
STREAM = 13  # of random numbers
ANCHOR = "the public model that the anchor attack compares the release with"
NEAR = 0.1  # of what the lock moved on its worst head: less is recovered, as much of a head's norm is hidden


@dataclass(frozen=True)
class Attack:
    """What it guesses from a release: guess i, and of each guess the worst head's relative error, to √eps."""

    knows: str
    guess: Callable[[Tensors, Subject, int], Tensors]
    errors: Callable[[Tensors, Composed, Subject], list[float]]


def keyless_guess(released: Tensors, subject: Subject, guess: int) -> Tensors:
    """One guess for every number of planes, then one for every number of eigen-directions, from the release alone."""
    config = subject.composed.config
    planes, directions = (keyless(released, config, family).guesses for family in (TOPK_PLANES, TOPK))
    return planes[guess] if guess < len(planes) else directions[guess - len(planes)]


def keyless_errors(released: Tensors, want: Composed, subject: Subject) -> list[float]:
    """Of all guesses, from their squared distances: a guess of a large model takes seconds to write out."""
    config, found = subject.composed.config, []
    pairs = zip(layer_heads(released, config), layer_heads(want.tensors, config), strict=True)
    squares = np.array([(_square(q - q0, k - k0), _square(q0, k0)) for (q, k), (q0, k0) in pairs])
    away, size = squares[:, 0, :, None], squares[:, 1, :, None]
    for family in (TOPK_PLANES, TOPK):
        basis = keyless(released, config, family).found["basis"]
        off = away + farther(released, want.tensors, config, family, basis)
        found += np.max(np.sqrt(np.maximum(off, 0) / size), axis=(0, 1)).tolist()
    return found


def _square(q: NDArray[Any], k: NDArray[Any]) -> NDArray[Any]:
    """Of each key head and its query heads: (G,)."""
    return np.asarray(np.sum(q * q, axis=(-3, -2, -1)) + np.sum(k * k, axis=(-2, -1)))


def anchor_guess(released: Tensors, subject: Subject, guess: int) -> Tensors:
    """Signs of planes, and Procrustes, by the base."""
    attack = (anchor_signs, anchor_projection)[guess]
    return attack(released, subject.need("base", ANCHOR).tensors, subject.composed.config).guesses[0]


def anchor_errors(released: Tensors, want: Composed, subject: Subject) -> list[float]:
    """Of both guesses."""
    return [worst(anchor_guess(released, subject, guess), want) for guess in (0, 1)]


def worst(guess: Tensors, want: Composed) -> float:
    """The worst head's relative error."""
    return float(np.max(head_errors(guess, want.tensors, want.config)))


KEYLESS = Attack("had the release alone", keyless_guess, keyless_errors)
ANCHORED = Attack("had the release and the base", anchor_guess, anchor_errors)


def under(reference: Composed, rng: np.random.Generator | None = None) -> dict[str, Any]:
    """The reference under P = −I, the weakest of locks; or under a random P, which does not commute with S."""
    c = reference.config
    shape = (c.num_hidden_layers, c.num_key_value_heads, c.head_dim, c.head_dim)
    turn = np.broadcast_to(-np.eye(c.head_dim), shape) if rng is None else np.linalg.qr(rng.standard_normal(shape))[0]
    return project(reference.tensors, c, turn)


def evidence(ctx: Context, attack: Attack, null: Control) -> Evidence:
    """Refuted where some guess is off the reference by less than NEAR of what the lock moved; else by the controls."""
    subject, reference = ctx.subject.composed, ctx.subject.need("reference", WHAT)
    released = worst(subject.tensors, reference)
    if released == 0:
        raise MissingInput("SUBJECT's queries and keys are those of the reference, to the bit: no P to reveal")
    errors = attack.errors(subject.tensors, reference, ctx.subject)
    best = int(np.argmin(errors))
    got = worst(attack.guess(subject.tensors, ctx.subject, best), reference)
    power = min(attack.errors(under(reference), reference, ctx.subject))
    broken = got <= NEAR * released
    given = where(ctx.subject) | {"guess": best}
    return Evidence(
        verdict=Verdict.REFUTED if broken else Verdict.HOLDS,
        grade=Grade.MEASURED,
        explanation=f"The release is wrong by {released:.2g} of the norm on its worst head, the best of {len(errors)} "
        f"guesses by {got:.2g} ({'bit for bit the reference' if got == 0 else f'guess {best}'}). "
        f"The attacker {attack.knows}.",
        checks=[
            Check(name="the release undone", unit="relative", value=got, bound=NEAR * released,
                  statistic="relative error of the worst head, best guess", cases=len(errors),
                  sense="<=" if broken else ">=", tolerance_from="a tenth of what the lock moved"),
        ],
        controls=Controls(
            power=Control(what="a planted P = −I on the reference is undone: error of the worst head",
                          passed=power <= 2 * NEAR, value=power, bound=2 * NEAR, unit="relative"),
            null=null,
        ),
        counterexample=Counterexample(
            given=given, got=_found(ctx, attack, best), want="no guess at the weights of the reference",
            by_hand="Apply the attack's P to the release (`lockref attack`), subtract the reference's W_q and W_k.",
        ) if broken else None,
        assumptions=["the reference is the model before the lock"],
        severity="high" if broken else None,
    )  # fmt: skip


def _found(ctx: Context, attack: Attack, guess: int) -> str:
    made = attack.guess(ctx.subject.composed.tensors, ctx.subject, guess)
    return f"guess {guess}: relative error {worst(made, ctx.subject.need('reference', WHAT)):.2g} on the worst head"


def check_keyless(ctx: Context) -> Evidence:
    """Lock the release once more with every number of planes, or of eigen-directions, and compare each guess."""
    reference = ctx.subject.need("reference", WHAT)
    hidden = min(keyless_errors(under(reference, ctx.rng(STREAM)), reference, ctx.subject))
    null = Control(
        what="a random P on the reference, which does not commute with S, stays hidden: error of the worst head",
        passed=hidden >= NEAR, value=hidden, bound=NEAR, unit="relative",
    )  # fmt: skip
    return evidence(ctx, KEYLESS, null)


def check_anchor(ctx: Context) -> Evidence:
    """Compare the release with the public base: signs of planes, and Procrustes for any orthogonal P."""
    ctx.subject.need("base", ANCHOR)
    reference = ctx.subject.need("reference", WHAT)
    left = min(anchor_errors(reference.tensors, reference, ctx.subject))
    null = Control(
        what="the unlocked reference is left alone: error of the worst head", passed=left <= NEAR, value=left,
        bound=NEAR, unit="relative",
    )  # fmt: skip
    return evidence(ctx, ANCHORED, null)


def _carries(subject: Subject) -> bool:
    """A turn of queries and keys is declared, or there is a reference to tell."""
    return "attention" in subject.parts or subject.has("reference")


FORMS = {
    "MB-KEYLESS": OnSubject(
        applies=_carries,
        check=check_keyless,
        rerun=lambda given: _found(again(given, 0, "reference"), KEYLESS, given["guess"]),
    ),
    "MB-ANCHOR": OnSubject(
        applies=_carries,
        check=check_anchor,
        rerun=lambda given: _found(again(given, 0, "reference", "base"), ANCHORED, given["guess"]),
    ),
}
