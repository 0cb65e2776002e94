"""MergeBarrier's promise (arXiv 2511.10712): straight paths to other experts cross high loss."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import sub
from typing import Any

import numpy as np
from flint import fmpq
from numpy.typing import NDArray

from lockproofs import exact
from lockproofs.attention_trials import origins, probe, release
from lockproofs.claim import (
    Check,
    Claim,
    Context,
    Control,
    Controls,
    Counterexample,
    Evidence,
    Grade,
    MissingInput,
    Source,
    Verdict,
)
from lockproofs.claims.attention_attacks import undo_exactly
from lockproofs.claims.attention_function import GOVERNING, PAPER
from lockproofs.curves.paths import ALPHAS, drawn, path, peers
from lockref.attacks.anchor_model import anchor_projection, anchor_signs
from lockref.attacks.keyless import keyless
from lockref.attacks.result import Tensors
from lockref.locks.attention import TOPK_PLANES, project
from lockref.merging import barrier
from lockref.models.checkpoint_io import Checkpoint

Array = NDArray[np.float64]

PAIRS = 2  # paths from a protected model to another one


# --- Exact arithmetic -------------------------------------------------------------------------------------------


def barrier_of_scores(given: dict[str, Any]) -> str:
    """Loss (W_q·W_k − target)² half way from the release to the sibling, before and after the keyless attack."""
    sibling, released = ([exact.matrix(given[who][name]) for name in ("W_q", "W_k")] for who in ("sibling", "released"))
    guesses = [undo_exactly(released[0], released[1], k) for k in range(released[0].ncols() + 1)]
    distances = [sum(map(exact.squared_norm, map(sub, guess, sibling)), fmpq(0)) for guess in guesses]
    nearest = guesses[distances.index(min(distances))]

    def half_way(pair: Sequence[exact.Matrix]) -> exact.Rational:
        w_q, w_k = ((w + other) / 2 for w, other in zip(pair, sibling, strict=True))
        return ((w_q * w_k.transpose())[0, 0] - given["target"]) ** 2

    return f"loss half way: {half_way(released)} as released, {half_way(nearest)} after the attack"


def _counterexample() -> Counterexample:
    given: dict[str, Any] = {
        "sibling": {"W_q": [[1, 2]], "W_k": [[2, 1]]},
        "released": {"W_q": [[-2, -1]], "W_k": [[-1, -2]]},
        "target": 4,
    }
    return Counterexample(
        given=given,
        got=barrier_of_scores(given),
        want="a loss above 0 after the attack, as both ends have loss 0",
        by_hand=(
            "Released and sibling both score W_q·W_k = 4. Half way: (−1/2, 1/2)·(1/2, −1/2) = −1/2, loss 81/4.\n"
            "S of the release is [[5, 4], [4, 5]], P_1 = [[0, −1], [−1, 0]] (MB-KEYLESS): W_q P_1 = (1 2), W_k P_1 =\n"
            "(2 1), of the three guesses the one nearest to the sibling. Half way the score is 4 again, the loss 0."
        ),
    )


# --- On models ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crossing:
    """Losses along the path from a protected model to another one, before the lock, after it, after each attack."""

    losses: dict[str, list[float]]
    attacks: tuple[str, ...]

    def changed(self, attack: str) -> float:
        """Greatest difference between the path after an attack and the path before the lock, in nats."""
        return float(np.max(np.abs(np.array(self.losses[attack]) - self.losses["before the lock"])))


Attack = Callable[[Tensors, Checkpoint, Checkpoint], Tensors]
ATTACKS: Mapping[str, Attack] = {
    "keyless, k from the other": lambda released, model, other: keyless(
        released, model.config, TOPK_PLANES, reference=other.tensors
    ).guesses[0],
    "plane signs from the other": lambda released, model, other: anchor_signs(
        released, other.tensors, model.config
    ).guesses[0],
}
NEAR = "Procrustes with the other"


def cross(model: Checkpoint, other: Checkpoint, tokens: NDArray[np.intp]) -> Crossing:
    """Locks half of the planes. The attacker has the release and the other expert, as for merging."""
    released = release(model, TOPK_PLANES, max(1, TOPK_PLANES.most(model.config.head_dim) // 2))
    models: dict[str, Tensors] = {"before the lock": model.tensors, "after the lock": released}
    models |= {name: attack(released, model, other) for name, attack in ATTACKS.items()}
    models[NEAR] = anchor_projection(released, other.tensors, model.config).guesses[0]
    return Crossing({name: path((t, other.tensors), model, tokens) for name, t in models.items()}, tuple(ATTACKS))


def pairs(ctx: Context) -> list[tuple[str, Checkpoint, Checkpoint]]:
    """Protected model and other expert: siblings where there are any, else a model and its base."""
    known = list(origins(ctx))
    chosen = [pair for pair in known if pair[0] == "a sibling"] or known
    if not chosen:
        raise MissingInput("needs --peer, another expert of the same base, or --base: a path has two ends")
    return chosen[:PAIRS]


def _controls(model: Checkpoint, other: Checkpoint) -> Controls:
    """−I on every head must come back bit for bit; an unlocked model must be left as it is."""
    config = model.config
    shape = (config.num_hidden_layers, config.num_key_value_heads, config.head_dim, config.head_dim)
    planted = project(model.tensors, config, np.broadcast_to(-np.eye(config.head_dim), shape))

    def wrong(released: Tensors) -> int:
        """Tensors that differ from the owner's after the worst of the exact attacks."""
        undone = [attack(released, model, other) for attack in ATTACKS.values()]
        return max(sum(not np.array_equal(w, guess[name]) for name, w in model.tensors.items()) for guess in undone)

    power, null = wrong(planted), wrong(model.tensors)
    return Controls(
        power=Control(what="a planted P = −I is undone bit for bit: tensors that stay wrong", passed=power == 0,
                      value=power, bound=0, unit="tensors"),
        null=Control(what="an unlocked model is left alone: tensors that an attack changes", passed=null == 0,
                     value=null, bound=0, unit="tensors"),
    )  # fmt: skip


def check_barrier(ctx: Context) -> Evidence:
    """Loss along straight paths between models of one origin: before the lock, after it, and after each attack.

    The barrier is max over α of L((1−α)θ_1 + αθ_2) − (1−α)L(θ_1) − αL(θ_2). The lock is the lawful one: it flips the
    half of each key head's rotary planes with the greatest traces. Whoever merges has the release and the other
    expert. That is enough for three attacks: the keyless one, with k named by the other expert; the sign of each
    plane's inner product with the other expert; and Procrustes with the other expert as anchor. The first two
    give signs, so they return the owner's weights bit for bit or not at all, and the path after them is the path
    before the lock. Procrustes returns them to within twice the distance of the two experts (MB-ANCHOR).
    """
    tokens, chosen = probe(ctx, 1), pairs(ctx)
    crossings = [cross(model, other, tokens) for _, model, other in chosen]
    before, after, near = (
        [barrier(c.losses[name]) for c in crossings] for name in ("before the lock", "after the lock", NEAR)
    )
    return Evidence(
        verdict=Verdict.REFUTED,
        grade=Grade.MEASURED,
        explanation=(
            f"On the straight path to {'another expert' if chosen[0][0] == 'a sibling' else 'its base'} the released "
            f"model meets a barrier of {_nats(after)} nats per token, where there were {_nats(before)} before it. "
            "But who merges has the other model, and it tells which planes were flipped: after one pass over the "
            "weights, without data or training, the path is bit for bit the one before the lock. Procrustes with the "
            f"other model, which does not even know that planes were flipped, leaves {_nats(near)}."
        ),
        checks=[
            Check(name=f"the path after the attack: {attack}", statistic="max over α of |loss − loss before the lock|",
                  unit="nats", value=max(c.changed(attack) for c in crossings), bound=0, sense="==",
                  cases=len(crossings) * len(ALPHAS), seed=ctx.seed, tolerance_from="none: flips of sign are exact")
            for attack in ATTACKS
        ],
        controls=_controls(chosen[0][1], chosen[0][2]),
        counterexample=_counterexample(),
        assumptions=[
            "the other model has the same origin and sizes: without that there is no straight path to speak of",
            "loss on a few lines of the zoo's skills, or on what --data names for any other model",
        ],
        deviations=[GOVERNING],
        plots=[
            drawn("Loss on the straight path from the protected model to another", crossings[0].losses),
            *peers(chosen[0][1], chosen[0][2], crossings[0].losses["before the lock"], tokens, ctx.rng(2)),
        ],
        severity="high",
        fix="None in this family: a flip that the function does not see is a flip that a relative's weights betray.",
    )  # fmt: skip


def _nats(values: Sequence[float]) -> str:
    return " and ".join(f"{value:.3f}" for value in values)


CLAIMS = (
    Claim(
        id="MB-BARRIER",
        title="Merging crosses a loss barrier",
        statement="Straight paths from the protected model to other experts cross a loss barrier.",
        source=Source(paper=PAPER, where="the promise of the lock: no linear mode connectivity"),
        kind="security",
        recorded=Verdict.REFUTED,
        would_change="A lock that a model of the same origin does not betray.",
        check=check_barrier,
        rerun=barrier_of_scores,
    ),
)
