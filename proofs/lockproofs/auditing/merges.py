"""TRAP-MERGE on a directory: SUBJECT's update merged with those of the experts that the auditor has."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lockproofs.auditing.attackers import (
    BASE,
    PEER,
    REFERENCE,
    RELEASED,
    Tokens,
    mean_loss,
    require_same_tensors,
)
from lockproofs.auditing.measure import again, losses, rows, where
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
from lockref.attacks.anchor_model import anchor_signs
from lockref.attacks.merging_grid import Members
from lockref.attacks.nominal_merge import nominal_merge
from lockref.attacks.result import Tensors
from lockref.attacks.shared_scale import shared_scale

STREAM = 14  # of random numbers
ROWS = 8
SIGNS = "plane signs from the base"
NOMINAL = "SUBJECT at 1, the others scaled"
HALF = 0.5  # of what the members gained over the base: who gives up as much is degraded; ours
GAIN = 0.01  # of the base's loss: members that gain less have nothing to lose
PASSES = 66  # forward passes of all merges together


def merges(members: Members, score: Callable[[Tensors], float]) -> dict[str, tuple[float, float]]:
    """The loss of each merge, and the scale it took: the average, the best shared scale, SUBJECT at 1."""
    count = 1 + len(members.others)
    shared, nominal = shared_scale(members, score), nominal_merge(members, score)
    return {
        "average": (score(members.merged(1 / count, 1 / count)), 1 / count),
        "best shared scale": (float(shared.found["score"]), float(shared.found["scale"])),
        NOMINAL: (float(nominal.found["score"]), float(nominal.found["scale"])),
    }


def merged(ctx: Context, start: str, tokens: Tokens) -> dict[str, tuple[float, float]]:
    """All merges of the peers with SUBJECT as released, undone, or with the reference, on the base."""
    subject, base = ctx.subject.composed, ctx.subject.need("base", BASE)
    tensors: Tensors = subject.tensors
    if start == REFERENCE:
        tensors = ctx.subject.need("reference", "").tensors
    elif start == SIGNS:
        tensors = anchor_signs(tensors, base.tensors, subject.config).guesses[0]
    members = Members.of_models(base.tensors, tensors, [peer.tensors for peer in ctx.subject.peers])
    return merges(members, mean_loss(ctx, tokens))


@dataclass(frozen=True)
class Stakes:
    """What a merge can lose: the mean loss of the member that is best on each row, and of the base."""

    own: float
    base: float

    def lost(self, loss: float) -> float:
        """The share of the members' gain over the base that a merge of this loss gives up; negative if it gains."""
        return (loss - self.own) / (self.base - self.own)


def stakes(ctx: Context, tokens: Tokens) -> Stakes:
    """MissingInput where the members do no better than the base on these tokens: then any merge seems to do well."""
    members, loss = (ctx.subject.composed, *ctx.subject.peers), mean_loss(ctx, tokens)
    own = float(np.mean(np.min([losses(ctx, m, tokens) for m in members], axis=0)))
    base = loss(ctx.subject.need("base", BASE).tensors)
    if own >= (1 - GAIN) * base:
        raise MissingInput(
            f"on {ctx.subject.text} the better expert's loss is {own:.3f}, the base's {base:.3f}: needs --data of what "
            "they were fine-tuned for, a skill to a row"
        )
    return Stakes(own, base)


def check_merge(ctx: Context) -> Evidence:
    """Task vectors of SUBJECT and all peers on the base: the average, and the best shared scale of 0.1 … 1.

    As released, and after the plane signs were taken back by the base. A merge is degraded where it gives up at least
    half of what the members gained over the base, in mean loss on the tokens. Refuted where the best one is not;
    otherwise the claim holds only if the unlocked reference's best merge is not either (null control), and a random
    update as large as SUBJECT's, added whole, is seen to degrade (power control).
    """
    if not ctx.subject.peers:
        raise MissingInput(f"needs --peer: {PEER}")
    subject, base = ctx.subject.composed, ctx.subject.need("base", BASE)
    if not ctx.subject.has_text:
        raise MissingInput("needs --data: on random tokens no expert is better than its base")
    for other in (base, *ctx.subject.peers):
        require_same_tensors(subject, other)
    tokens = rows(ctx, STREAM, ROWS, passes=PASSES)
    stake = stakes(ctx, tokens)
    found = {start: merged(ctx, start, tokens) for start in (RELEASED, SIGNS)}
    cells = {(s, how): stake.lost(v) for s, by in found.items() for how, (v, _) in by.items() if how != NOMINAL}
    (start, how), least = min(cells.items(), key=lambda item: item[1])
    broken = least < HALF
    given = where(ctx.subject) | {"seed": ctx.seed, "start": start, "merge": how}
    told = "; ".join(
        f"{s}: " + ", ".join(f"{how} {value:.3f} (scale {scale:.2g})" for how, (value, scale) in by.items())
        for s, by in found.items()
    )
    return Evidence(
        verdict=Verdict.REFUTED if broken else Verdict.HOLDS,
        grade=Grade.MEASURED,
        explanation=f"Nats per token on {len(tokens)} rows ({ctx.subject.text}): the base {stake.base:.3f}, "
        f"the better member {stake.own:.3f}; merges {told}. The best gives up {least:.0%} of the members' gain."
        + ("" if "trap2" in ctx.subject.parts else " No lock.json says that SUBJECT was trained with Trap²."),
        checks=[
            Check(name="the best merge", statistic="share of the members' gain over the base that it gives up",
                  unit="of the gain", value=least, bound=HALF, sense="<=" if broken else ">=", cases=len(cells),
                  seed=ctx.seed, tolerance_from="a stated threshold: none"),
        ],
        controls=Controls() if broken else _merge_controls(ctx, tokens, stake),
        counterexample=Counterexample(
            given=given, got=_merged(ctx, start, how), want=f"at least {HALF:.0%} of the gain given up",
            by_hand="Add the scaled differences of the experts from the base to it; mean loss over the rows that "
            "`seed` draws.",
        ) if broken else None,
        assumptions=[f"losses on {ctx.subject.text}", f"the threshold {HALF:.0%} is ours",
                     "two linear operators alone, all tensors"],
        severity="high" if broken else None,
    )  # fmt: skip


def _merge_controls(ctx: Context, tokens: Tokens, stake: Stakes) -> Controls:
    if not ctx.subject.has("reference"):
        return Controls()
    subject, base, rng = ctx.subject.composed, ctx.subject.need("base", BASE), ctx.rng(STREAM + 1)
    known = merged(ctx, REFERENCE, tokens)
    null = stake.lost(min(value for how, (value, _) in known.items() if how != NOMINAL))
    random = {}
    for name, w in base.tensors.items():
        noise = rng.standard_normal(w.shape)
        random[name] = w + noise * (np.linalg.norm(subject.tensors[name] - w) / np.linalg.norm(noise))
    members = Members.of_models(base.tensors, random, [peer.tensors for peer in ctx.subject.peers])
    power = stake.lost(mean_loss(ctx, tokens)(members.merged(1.0, 1.0)))
    return Controls(
        null=Control(what="the unlocked reference merges: share of the gain that its best merge gives up",
                     passed=null < HALF, value=null, bound=HALF, unit="of the gain"),
        power=Control(what="a random update as large as SUBJECT's, added whole, is seen: share given up",
                      passed=power >= HALF, value=power, bound=HALF, unit="of the gain"),
    )  # fmt: skip


def _merged(ctx: Context, start: str, how: str) -> str:
    tokens = rows(ctx, STREAM, ROWS, passes=PASSES)
    value, scale = merged(ctx, start, tokens)[how]
    lost = stakes(ctx, tokens).lost(value)
    return f"{how} (scale {scale:.2g}), {start}: loss {value:.4f}, {lost:.1%} of the members' gain given up"


def rerun(given: dict[str, Any]) -> str:
    """One merge again."""
    return _merged(again(given, given["seed"], "reference", "base", "peer"), given["start"], given["merge"])


FORMS = {"TRAP-MERGE": OnSubject(applies=lambda _: True, check=check_merge, rerun=rerun)}
