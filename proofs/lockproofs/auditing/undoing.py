"""MB-KEYLESS and MB-ANCHOR on a directory: attacks on the very release, not on a lock planted in it."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

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
from lockref.attacks.keyless import keyless
from lockref.attacks.result import Tensors
from lockref.locks.attention import TOPK, TOPK_PLANES, project
from lockref.locks.full import Composed

WHAT = "the weights that the lock hides, to compare the attacker's guesses with"
STREAM = 13  # of random numbers
ANCHOR = "the public model that the anchor attack compares the release with"
NEAR = 0.1  # of what the lock moved on its worst head: less is recovered, as much of a head's norm is hidden

Guesses = Callable[[Tensors, Subject], Iterator[Tensors]]


def by_keyless(released: Tensors, subject: Subject) -> Iterator[Tensors]:
    """One guess for every number of planes, then one for every number of eigen-directions, from the release alone."""
    for family in (TOPK_PLANES, TOPK):
        yield from keyless(released, subject.composed.config, family).guesses


def by_anchor(released: Tensors, subject: Subject) -> Iterator[Tensors]:
    """Signs of planes, and Procrustes, by the base."""
    config, base = subject.composed.config, subject.need("base", ANCHOR).tensors
    for attack in (anchor_signs, anchor_projection):
        yield attack(released, base, config).guesses[0]


def least_wrong(guesses: Iterable[Tensors], want: Tensors, model: Composed) -> list[float]:
    """For each guess the worst head's relative error."""
    return [float(np.max(head_errors(guess, want, model.config))) for guess in guesses]


def under(reference: Composed, rng: np.random.Generator | None = None) -> dict[str, Any]:
    """The reference under P = −I, the weakest of locks; or under a random P, which does not commute with S."""
    c = reference.config
    shape = (c.num_hidden_layers, c.num_key_value_heads, c.head_dim, c.head_dim)
    turn = np.broadcast_to(-np.eye(c.head_dim), shape) if rng is None else np.linalg.qr(rng.standard_normal(shape))[0]
    return project(reference.tensors, c, turn)


def evidence(ctx: Context, attack: Guesses, knows: str, null: Control) -> Evidence:
    """Refuted where some guess is off the reference by less than NEAR of what the lock moved; else by the controls."""
    subject, reference = ctx.subject.composed, ctx.subject.need("reference", WHAT)
    released = float(np.max(head_errors(subject.tensors, reference.tensors, subject.config)))
    if released == 0:
        raise MissingInput("SUBJECT's queries and keys are those of the reference, to the bit: no P to reveal")
    errors = least_wrong(attack(subject.tensors, ctx.subject), reference.tensors, subject)
    got, best = min(errors), int(np.argmin(errors))
    power = min(least_wrong(attack(under(reference), ctx.subject), reference.tensors, subject))
    broken = got <= NEAR * released
    given = where(ctx.subject) | {"guess": best}
    return Evidence(
        verdict=Verdict.REFUTED if broken else Verdict.HOLDS,
        grade=Grade.MEASURED,
        explanation=f"The release is wrong by {released:.2g} of the norm on its worst head, the best of {len(errors)} "
        f"guesses by {got:.2g} ({'bit for bit the reference' if got == 0 else f'guess {best}'}). The attacker {knows}.",
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


def _found(ctx: Context, attack: Guesses, guess: int) -> str:
    model, reference = ctx.subject.composed, ctx.subject.need("reference", WHAT)
    chosen = islice(attack(model.tensors, ctx.subject), guess, guess + 1)
    error = least_wrong(chosen, reference.tensors, model)[0]
    return f"guess {guess}: relative error {error:.2g} on the worst head"


def check_keyless(ctx: Context) -> Evidence:
    """Lock the release once more with every number of planes, or of eigen-directions, and compare each guess."""
    reference = ctx.subject.need("reference", WHAT)
    hidden = least_wrong(by_keyless(under(reference, ctx.rng(STREAM)), ctx.subject), reference.tensors, reference)
    null = Control(
        what="a random P on the reference, which does not commute with S, stays hidden: error of the worst head",
        passed=min(hidden) >= NEAR, value=min(hidden), bound=NEAR, unit="relative",
    )  # fmt: skip
    return evidence(ctx, by_keyless, "had the release alone", null)


def check_anchor(ctx: Context) -> Evidence:
    """Compare the release with the public base: signs of planes, and Procrustes for any orthogonal P."""
    ctx.subject.need("base", ANCHOR)
    reference = ctx.subject.need("reference", WHAT)
    left = min(least_wrong(by_anchor(reference.tensors, ctx.subject), reference.tensors, reference))
    null = Control(
        what="the unlocked reference is left alone: error of the worst head", passed=left <= NEAR, value=left,
        bound=NEAR, unit="relative",
    )  # fmt: skip
    return evidence(ctx, by_anchor, "had the release and the base", null)


def _carries(subject: Subject) -> bool:
    """A turn of queries and keys is declared, or there is a reference to tell."""
    return "attention" in subject.parts or subject.has("reference")


FORMS = {
    "MB-KEYLESS": OnSubject(
        applies=_carries,
        check=check_keyless,
        rerun=lambda given: _found(again(given, 0, "reference"), by_keyless, given["guess"]),
    ),
    "MB-ANCHOR": OnSubject(
        applies=_carries,
        check=check_anchor,
        rerun=lambda given: _found(again(given, 0, "reference", "base"), by_anchor, given["guess"]),
    ),
}
