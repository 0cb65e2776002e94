"""MergeBarrier's attention projection (arXiv 2511.10712): what attackers get back."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lockproofs import exact
from lockproofs.attention_trials import (
    RECOVERED,
    Named,
    Undone,
    affordable_locks,
    affordable_passes,
    distances,
    name_k,
    origins,
    plane_errors,
    probe,
    release,
    sweep,
    tails_name_k,
    told,
    undo,
)
from lockproofs.claim import (
    Check,
    Claim,
    Context,
    Control,
    Controls,
    Counterexample,
    Curve,
    Evidence,
    Grade,
    Plot,
    Source,
    Verdict,
)
from lockproofs.claims.attention_function import GOVERNING, PAPER
from lockproofs.curves.recovery import by_precision
from lockref.attacks.keyless import keyless
from lockref.locks.attention import TOPK_PLANES, project
from lockref.models import qwen3
from lockref.models.checkpoint_io import Checkpoint

EFFECT = "none on the verdict: the lemma covers every governing matrix that turns with the weights"
FOREIGN = 0.1  # a head is nowhere near recovered where a tenth of its norm is wrong
TAIL_KS = 9


# --- Exact arithmetic -------------------------------------------------------------------------------------------


def undo_exactly(w_q: exact.Matrix, w_k: exact.Matrix, k: int) -> tuple[exact.Matrix, exact.Matrix]:
    """The attacker's guess k at W_q and W_k, from the released pair alone: rows are tokens, W (d, c)."""
    p = exact.flip(w_q.transpose() * w_q + w_k.transpose() * w_k, k)
    return w_q * p, w_k * p


def exact_failures(rng: np.random.Generator, cases: int) -> list[bool]:
    """For every k: is guess k of a pair that was locked with k anything but the original?

    The rows of W_q and W_k together are O diag(s) Qᵀ with rational orthogonal O and Q: S = Q diag(s²) Qᵀ.
    """
    found = []
    for _ in range(cases):
        c = int(rng.integers(2, 5))
        spread = exact.diagonal(rng.choice(np.arange(1, 10), c, replace=False).tolist())
        rows = (exact.random_orthogonal(rng, c) * spread * exact.random_orthogonal(rng, c).transpose()).tolist()
        w_q, w_k = exact.stack(rows[:1]), exact.stack(rows[1:])
        found += [undo_exactly(*undo_exactly(w_q, w_k, k), k) != (w_q, w_k) for k in range(c + 1)]
    return found


def strangers_guesses(given: dict[str, Any]) -> str:
    """Everything that a stranger computes from a released pair: one guess for each k."""
    w_q, w_k = exact.matrix(given["released_W_q"]), exact.matrix(given["released_W_k"])
    guesses = [[exact.written(w) for w in undo_exactly(w_q, w_k, k)] for k in range(w_q.ncols() + 1)]
    return "; ".join(f"k = {k}: W_q = ({' '.join(q[0])}), W_k = ({' '.join(w[0])})" for k, (q, w) in enumerate(guesses))


def _counterexample() -> Counterexample:
    given = {"released_W_q": [[-2, -1]], "released_W_k": [[-1, -2]]}
    return Counterexample(
        given=given,
        got=strangers_guesses(given),
        want="no guess that equals the owner's W_q = (1 2), W_k = (2 1)",
        by_hand=(
            "Released: W_q = (−2 −1), W_k = (−1 −2). S = W_qᵀW_q + W_kᵀW_k = [[4, 2], [2, 1]] + [[1, 2], [2, 4]]\n"
            "= [[5, 4], [4, 5]], with S (1, 1)ᵀ = 9 (1, 1)ᵀ and S (1, −1)ᵀ = (1, −1)ᵀ, so u = (1, 1)/√2 leads.\n"
            "P_1 = I − 2uuᵀ = [[0, −1], [−1, 0]]: swap the coordinates and change signs.\n"
            "W_q P_1 = (1 2), W_k P_1 = (2 1): the owner's weights; k = 0 and k = 2 give the only other guesses."
        ),
    )


# --- The claim --------------------------------------------------------------------------------------------------


def different_functions(ctx: Context) -> list[bool]:
    """For each guess at a plane-wise lock of the model: do its logits differ from the model's in any bit?"""
    model, tokens = ctx.subject.model, probe(ctx, 1)
    most = TOPK_PLANES.most(model.config.head_dim)
    guesses = keyless(release(model, TOPK_PLANES, most // 2), model.config, TOPK_PLANES).guesses
    before = qwen3.forward(model.tensors, tokens, model.config)
    ks = sweep(most, affordable_passes(ctx, tokens))
    return [not np.array_equal(qwen3.forward(guesses[k], tokens, model.config), before) for k in ks]


def _relative_checks(found: Named, by_chance: float, seed: int) -> list[Check]:
    """One check for each kind of relative, and one that an unlocked model is left alone; none without relatives."""
    checks = [
        Check(name=f"{known} names k", statistic="share of key heads and k for which the nearest guess is right",
              unit="1", value=float(np.mean(hits)), bound=by_chance, sense=">=", cases=len(hits), seed=seed)
        for known, hits in found.right.items()
    ]  # fmt: skip
    if checks:
        checks.append(
            Check(name="unlocked heads are left alone", statistic="unlocked heads for which k > 0 was named",
                  unit="heads", value=found.misled, bound=0, sense="==", cases=found.unlocked, seed=seed)
        )  # fmt: skip
    return checks


def _controls(model: Checkpoint, rng: np.random.Generator) -> Controls:
    """−I must come back; a Haar-random P, which does not commute with S, must not."""
    config = model.config
    shape = (config.num_hidden_layers, config.num_key_value_heads, config.head_dim, config.head_dim)
    minus = np.broadcast_to(-np.eye(config.head_dim), shape)
    haar = np.linalg.qr(rng.standard_normal(shape))[0]
    power, null = (told(project(model.tensors, config, p), model) for p in (minus, haar))
    return Controls(
        power=Control(what="a planted P = −I is undone on every key head: greatest relative error",
                      passed=bool(np.max(power) <= RECOVERED), value=float(np.max(power)), bound=RECOVERED, unit="1"),
        null=Control(what="a random P, which does not commute with S, stays hidden: least error of the best guess",
                     passed=bool(np.min(null) >= FOREIGN), value=float(np.min(null)), bound=FOREIGN, unit="1"),
    )  # fmt: skip


def _error_plot(undone: Sequence[Undone]) -> Plot:
    heads = list(range(undone[0].error.size))
    error = np.max([np.where(u.clear, u.error, 0) for u in undone], axis=0).ravel()
    saved = np.max([u.saved_error for u in undone], axis=0).ravel()
    return Plot(
        title="Weights that come back without any second model: worst k on each key head",
        x_label="key head, layer by layer", y_label="relative error", y_log=True,
        curves=[
            Curve(name="released in bfloat16", x=heads, y=saved.tolist()),
            Curve(name="what counts as recovered", x=[0, heads[-1]], y=[RECOVERED] * 2),
            Curve(name="released in float64", x=heads, y=error.tolist()),
        ],
    )  # fmt: skip


def _distance_plot(ctx: Context, k: int) -> list[Plot]:
    known = {name: (model, relative) for name, model, relative in origins(ctx)}
    curves = [
        Curve(name=f"distance from {name}", x=list(range(model.config.head_dim + 1)), y=distances(model, relative, k))
        for name, (model, relative) in known.items()
        if affordable_locks(model) > model.config.head_dim
    ]
    title = f"Any relative names k: guesses at a top-{k} lock"
    return [Plot(title=title, x_label="guess", y_label="mean relative distance", curves=curves)] if curves else []


def check_keyless(ctx: Context) -> Evidence:
    """Lock the model's weights, undo the lock from what is released alone, compare; exactly, and in floating point.

    *Lemma.* Let M(W_q, W_k) be a symmetric matrix with M(W_q P, W_k P) = Pᵀ M(W_q, W_k) P for every orthogonal P,
    such as S = W_qᵀW_q + W_kᵀW_k or W_qᵀW_k + W_kᵀW_q. Let P = I − 2 U_k U_kᵀ with U_k the k leading eigenvectors
    of M = M(W_q, W_k). Then the released pair has the same matrix, and if λ_k > λ_{k+1}, locking it once more with
    k returns the original.

    Proof. U_k U_kᵀ commutes with M, hence P too, so M(W_q P, W_k P) = PᵀMP = M. If λ_k > λ_{k+1}, U_k U_kᵀ is the
    spectral projector of M for the k largest eigenvalues, a function of M alone, so the second lock has the same P;
    and P P = I. ∎

    *Planes.* For a P that flips whole rotary planes, PᵀSP has the diagonal of S, so the plane traces and their
    order stay, ties included; squares of floating-point numbers do not see signs, so this is true to the last bit.

    *Ties* of S. If λ_k = λ_{k+1} > 0, which part of that eigenspace the owner flipped is not a function of S: guess
    k is right up to a turn within the eigenspace. If λ_k = λ_{k+1} = 0, then W_q and W_k vanish there (uᵀSu = |W_q
    u|² + |W_k u|²), and guess k is right whatever was flipped.

    *What stays hidden* is k: log2(c + 1) bits, or log2(c/2 + 1) for planes, for the whole model if k is shared, for
    each key head if not. Every guess computes the original's function wherever the lock is lawful (MB-FUNC); on a
    RoPE + QK-norm model top-k guesses differ in function, so any text tells them apart. For planes nothing in the
    weights can tell guesses apart: let the initial weights have a law that is symmetric under flips of single signs
    and the optimizer treat coordinates alike (SGD, Adam). Flipping a plane preserves the loss, so it carries
    training runs to equally likely training runs; the law of the trained weights is invariant, and given the
    release every k is as likely as it was before. For eigen-directions this fails: axes are special to norm gains,
    RoPE and Adam, and the original has heavier tails than its mixtures. ∎
    """
    model = ctx.subject.model
    c = model.config.head_dim
    budget = min(ctx.cases + 1, affordable_locks(model))
    ks, plane_ks = sweep(c, budget), sweep(c // 2, budget)
    tail_ks = sweep(c, TAIL_KS)[1:-1] if budget > TAIL_KS else []
    failures = exact_failures(ctx.rng(0), ctx.cases)
    undone = [undo(model, k) for k in ks]
    clear = [float(e) for u in undone for e in u.error[u.clear]]
    cuts = [u for k, u in zip(ks, undone, strict=True) if 0 < k < c]
    planes, different, relatives = plane_errors(model, plane_ks), different_functions(ctx), name_k(ctx)
    heads = undone[0].error.size
    checks = [
        Check(name="top-k projection undone from the release alone", unit="1", value=max(clear), bound=RECOVERED,
              statistic="max relative error of guess k", cases=len(clear), seed=ctx.seed),
        Check(name="plane-wise flip undone from the release alone", unit="1", value=max(planes), bound=0, sense="==",
              statistic="max relative error of guess k", cases=heads * len(planes), seed=ctx.seed,
              tolerance_from="none: plane traces and flips of sign are exact in floating point"),
        Check(name="top-k projection undone from a bfloat16 release", unit="1", bound=1,
              value=max(u.saved_share for u in cuts), cases=heads * len(cuts), seed=ctx.seed,
              statistic="max relative error of guess k over its perturbation bound",
              tolerance_from="the bound: the rounding of the release, magnified by λ_1 over the gap at the cut"),
        Check(name="locking again undoes the lock, exactly", statistic="rational cases that it does not return",
              unit="cases", value=sum(failures), bound=0, sense="==", cases=len(failures), seed=ctx.seed),
        Check(name="all guesses at a plane-wise lock are one function", unit="guesses", value=sum(different), bound=0,
              statistic="guesses whose logits differ in a bit", sense="==", cases=len(different), seed=ctx.seed),
        *_relative_checks(relatives, 1 / (c // 2 + 1), ctx.seed),
    ]  # fmt: skip
    close = heads * len(undone) - len(clear)
    saved = max(float(np.max(u.saved_error)) for u in cuts)
    known = "".join(f" {who.capitalize()} names k in {sum(h)} of {len(h)} cases." for who, h in relatives.right.items())
    return Evidence(
        verdict=Verdict.REFUTED,
        grade=Grade.MEASURED,
        explanation=(
            "P is a function of a matrix that it leaves alone, so the lock carries its own key: lock the release once "
            f"more with the same k, and the original is back. With neither base nor data, on each of {heads} key heads "
            f"and for each k tried, the {c + 1} guesses contain the original to {max(clear):.1e} ({saved:.1e} from a "
            f"release in bfloat16); for plane-wise flips the {c // 2 + 1} guesses contain it bit for bit. All that "
            f"stays hidden is k: {math.log2(c + 1):.1f} or {math.log2(c // 2 + 1):.1f} bits."
            f"{known}{_tails_summary(model, tail_ks)}"
        ),
        checks=checks,
        controls=_controls(model, ctx.rng(2)),
        counterexample=_counterexample(),
        assumptions=[
            "the attacker knows the recipe, governing matrix included (or tries the few candidates), but not k",
            f"top-k: eigenvalues at the cut differ by more than c u λ_1/{RECOVERED:.0e}; {close} of "
            f"{heads * len(undone)} cuts do not and are left out of the first check",
        ],
        deviations=[GOVERNING.model_copy(update={"effect": EFFECT})],
        plots=[_error_plot(cuts), *_distance_plot(ctx, c // 3), by_precision(model, c // 3)],
        severity="high",
        fix="Draw the flipped planes at random instead of from the weights: that hides c/2 bits for each key head from "
        "the release alone, though not from anyone who has a relative of the model.",
    )


def _tails_summary(model: Checkpoint, ks: Sequence[int]) -> str:
    if not ks:
        return ""
    hits = tails_name_k(model, ks)
    return (
        f" Even without a relative, the guess with the heaviest tails has the right k for {sum(hits)} of {len(hits)} "
        "top-k locks with one k for all heads; for planes all guesses look alike."
    )


CLAIMS = (
    Claim(
        id="MB-KEYLESS",
        title="The released weights keep the secret",
        statement="The released weights do not reveal P, nor the weights behind it.",
        source=Source(paper=PAPER, where="attention projection: why P = −I is replaced by a top-k relaxation"),
        kind="security",
        recorded=Verdict.REFUTED,
        would_change="A P that does not commute with any matrix that a stranger can compute from the release.",
        check=check_keyless,
        rerun=strangers_guesses,
    ),
)
