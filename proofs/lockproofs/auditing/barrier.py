"""MB-BARRIER on a directory: the straight paths from SUBJECT to the experts that the auditor has."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lockproofs.auditing.attackers import (
    PEER,
    REFERENCE,
    RELEASED,
    Tokens,
    mean_loss,
    starts,
    undone,
)
from lockproofs.auditing.measure import again, rows, where
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
from lockproofs.curves.paths import ALPHAS, drawn
from lockproofs.subject import Subject
from lockref.attacks.result import Tensors
from lockref.locks.attention import project
from lockref.locks.full import Composed
from lockref.merging import barrier, path_losses

STREAM = 14  # of random numbers
ROWS = 8
PASSES = 6 * len(ALPHAS)
RAISED = 1.1  # times the loss on the chord: what counts as a barrier; ours


def excess(losses: list[float]) -> float:
    """max over α of the loss over the loss on the chord: 1 where there is no barrier."""
    at = np.linspace(0, 1, len(losses))
    return float(np.max(np.asarray(losses) / ((1 - at) * losses[0] + at * losses[-1])))


def other_ends(subject: Subject) -> list[Composed]:
    """The peers; the base where there are none."""
    ends = subject.peers or ([subject.need("base", "")] if subject.has("base") else [])
    if not ends:
        raise MissingInput(f"needs --peer: {PEER}")
    return ends


def crossed(ctx: Context, start: Tensors, other: Composed, tokens: Tokens) -> list[float]:
    """Losses from a start to the other expert."""
    loss = mean_loss(ctx, tokens, other)
    return path_losses(start, other.tensors, loss, ALPHAS)


def check_barrier(ctx: Context) -> Evidence:
    """Loss along the straight path from SUBJECT to each peer, as released and after the attacks on its attention.

    The attacker has what is merged: the release, the other expert, the base where it is given; polynomials are taken
    apart into MLPs first. A path has a barrier where the loss comes to more than 1.1 times that on the chord between
    its ends. Refuted where for some peer there is none as released, or none after an attack. Otherwise the claim holds
    only if the path of the unlocked reference has none (null control), and the attacks undo a planted P = −I on the
    reference (power control).
    """
    ends = other_ends(ctx.subject)
    tokens = rows(ctx, STREAM, ROWS, passes=PASSES)
    found = {
        str(other.path): {name: crossed(ctx, start, other, tokens) for name, start in starts(ctx, other).items()}
        for other in ends
    }
    attacked = {
        (end, start): excess(losses)
        for end, by_start in found.items()
        for start, losses in by_start.items()
        if start != REFERENCE
    }
    tried = sorted({start for _, start in attacked} - {RELEASED})
    (end, start), least = min(attacked.items(), key=lambda item: item[1])
    broken = least < RAISED
    raised = [excess(by_start[RELEASED]) for by_start in found.values() if RELEASED in by_start]
    before = f"{min(raised):.2f} as released" if raised else "as released there is no path"
    unnamed = "" if "attention" in ctx.subject.parts else " No lock.json says that its attention is locked."
    given = where(ctx.subject) | {"seed": ctx.seed, "end": end, "start": start}
    told = "; ".join(
        f"to {other.path.name} " + ", ".join(f"{barrier(v):.3f} ({k})" for k, v in found[str(other.path)].items())
        for other in ends
    )
    return Evidence(
        verdict=Verdict.REFUTED if broken else Verdict.HOLDS,
        grade=Grade.MEASURED,
        explanation=f"Barriers in nats per token, on {len(tokens)} rows ({ctx.subject.text}): {told}. The loss comes "
        f"to {least:.2f} times the chord at most after the best attack; {before}.{unnamed}",
        checks=[
            Check(name="the path after the best attack", statistic="largest loss over that on the chord", unit="times",
                  value=least, bound=RAISED, sense="<=" if broken else ">=", cases=len(attacked) * len(ALPHAS),
                  seed=ctx.seed, tolerance_from="a stated threshold: none"),
        ],
        controls=Controls() if broken else _controls(ctx, found),
        counterexample=Counterexample(
            given=given, got=_crossed(ctx, end, start), want=f"a loss of at least {RAISED} times that on the chord",
            by_hand="Mean loss at (1 − α) θ_1 + α θ_2 for α = 0, 1/8 … 1, where θ_1 is the release (after `lockref "
            "attack`, where one is named) and θ_2 the other expert, over the rows that `seed` draws.",
        ) if broken else None,
        assumptions=[
            f"losses on {ctx.subject.text}",
            f"the attacks tried: {', '.join(tried)}",
            f"the threshold {RAISED:g} is ours",
            *(["no --peer: the other end is the base"] if not ctx.subject.peers else []),
        ],
        plots=[drawn(f"Loss on the straight path to {o.path.name}", found[str(o.path)]) for o in ends],
        severity="high" if broken else None,
    )  # fmt: skip


def _controls(ctx: Context, found: Mapping[str, Mapping[str, list[float]]]) -> Controls:
    """Both need the unlocked reference."""
    known = [by_start[REFERENCE] for by_start in found.values() if REFERENCE in by_start]
    if not known:
        return Controls()
    reference, null = ctx.subject.need("reference", ""), max(map(excess, known))
    c = reference.config
    shape = (c.num_hidden_layers, c.num_key_value_heads, c.head_dim, c.head_dim)
    planted = Composed(
        **vars(reference) | {"tensors": project(reference.tensors, c, -np.eye(c.head_dim) * np.ones(shape))}
    )
    guesses = [g for other in other_ends(ctx.subject) for g in undone(planted, other, None).values()]
    wrong = min(sum(not np.array_equal(w, g[n]) for n, w in reference.tensors.items()) for g in guesses)
    return Controls(
        null=Control(what="the unlocked reference's path has no barrier: largest loss over the chord",
                     passed=null < RAISED, value=null, bound=RAISED, unit="times"),
        power=Control(what="a planted P = −I on the reference is undone bit for bit: tensors that stay wrong",
                      passed=wrong == 0, value=wrong, bound=0, unit="tensors"),
    )  # fmt: skip


def _crossed(ctx: Context, end: str, start: str) -> str:
    other = next(m for m in other_ends(ctx.subject) if str(m.path) == end)
    losses = crossed(ctx, starts(ctx, other)[start], other, rows(ctx, STREAM, ROWS, passes=PASSES))
    return f"losses {', '.join(f'{x:.4f}' for x in losses)}: at most {excess(losses):.3f} times the chord"


def rerun(given: dict[str, Any]) -> str:
    """The losses on one path."""
    ctx = again(given, given["seed"], "reference", "base", "peer")
    return _crossed(ctx, given["end"], given["start"])


FORMS = {
    "MB-BARRIER": OnSubject(
        applies=lambda subject: bool(subject.peers) or subject.lock is not None, check=check_barrier, rerun=rerun
    ),
}
