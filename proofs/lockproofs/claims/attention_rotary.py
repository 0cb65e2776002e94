"""MergeBarrier's attention projection on rotary, grouped-query, QK-normed attention (arXiv 2511.10712)."""

from collections.abc import Sequence
from math import isqrt
from typing import Any

import numpy as np
from flint import fmpq
from numpy.typing import NDArray

from lockproofs import exact
from lockproofs.attention_trials import none_found, probe, sweep
from lockproofs.claim import Check, Claim, Context, Counterexample, Curve, Evidence, Grade, Plot, Source, Verdict
from lockproofs.claims.attention_function import BFLOAT16, GOVERNING, PAPER, rotary_breaks
from lockref.autodiff import ops
from lockref.locks.attention import TOPK, TOPK_PLANES, Family, Governing, cross_sum, gram_sum, project, projections
from lockref.models import qwen3

Array = NDArray[np.float64]

KS = 4


# --- Exact arithmetic: one ingredient at a time -------------------------------------------------------------------


def grouped_breaks(rng: np.random.Generator, cases: int, shared: bool) -> list[bool]:
    """Two query heads on one key head, locked with one P, or each query head with its own: does a score change?

    The key can follow one of the two only: it follows the first.
    """
    found = []
    for _ in range(cases):
        d, c = (int(n) for n in rng.integers(2, 5, 2))
        x, w_k, *queries = (exact.random_matrix(rng, *shape) for shape in ((3, d), (d, c), (d, c), (d, c)))
        turns = [exact.random_orthogonal(rng, c)] * 2 if shared else [exact.identity(c), exact.diagonal([-1] * c)]
        keys = x * w_k
        found.append(
            any(x * w * p * (keys * turns[0]).transpose() != x * w * keys.transpose()
                for w, p in zip(queries, turns, strict=True))
        )  # fmt: skip
    return found


def rotation_survivors(rng: np.random.Generator, cases: int) -> list[bool]:
    """Unit gains: does a reflection, the flip of one direction, keep all scores of a rotary head?"""
    sizes = [int(2 * n) for n in rng.integers(1, 4, cases)]
    return [not rotary_breaks(exact.reflection([1, *rng.integers(-3, 4, c - 1).tolist()]), [1] * c, [1] * c)
            for c in sizes]  # fmt: skip


def gain_survivors(rng: np.random.Generator, cases: int) -> list[bool]:
    """No rotation, distinct gains: does the flip of a direction that is no axis commute with Γ_q Γ_k?"""
    found = []
    for _ in range(cases):
        c = int(rng.integers(2, 6))
        gains = exact.diagonal(list(range(2, c + 2)))
        p = exact.reflection([1, 1, *rng.integers(-3, 4, c - 2).tolist()])
        found.append(p * gains * p.transpose() == gains)
    return found


def normed(row: exact.Matrix) -> exact.Matrix:
    """A row over the root of its mean square, which must be a square."""
    mean = exact.squared_norm(row) / row.ncols()
    top, bottom = isqrt(int(mean.p)), isqrt(int(mean.q))
    if fmpq(top * top, bottom * bottom) != mean:
        raise ValueError(f"mean square {mean} is not the square of a rational number")
    return row * fmpq(bottom, top)


def published_recipe(given: dict[str, Any]) -> str:
    """The score of two tokens one rotation apart, with QK-norm, without and with the lock that the recipe makes."""
    w_q, w_k, x, y, turn = (exact.matrix(given[name]) for name in ("W_q", "W_k", "x", "y", "rotation"))
    lock = exact.flip(w_q.transpose() * w_q + w_k.transpose() * w_k, given["k"])
    scores = [(normed(x * w_q * p) * turn * normed(y * w_k * p).transpose())[0, 0] for p in (exact.identity(2), lock)]
    return f"score {scores[0]} without the lock, {scores[1]} with it"


def _counterexample() -> Counterexample:
    given: dict[str, Any] = {
        "W_q": [[2, 0], [0, 1]], "W_k": [[2, 0], [0, 1]], "k": 1, "x": [[1, 2]], "y": [[1, -2]],
        "rotation": [["3/5", "4/5"], ["-4/5", "3/5"]],
    }  # fmt: skip
    return Counterexample(
        given=given,
        got=published_recipe(given),
        want="the same score",
        by_hand=(
            "S = W_qᵀW_q + W_kᵀW_k = diag(8, 2): e_1 leads, P_1 = diag(−1, 1).\n"
            "x W_q = (2, 2), normed (1, 1); y W_k = (2, −2), normed (1, −1). (1, 1) R = (−1/5, 7/5), times (1, −1): "
            "−8/5.\nWith P_1: (−1, 1) and (−1, −1). (−1, 1) R = (−7/5, −1/5), times (−1, −1): +8/5."
        ),
    )


# --- On the model -----------------------------------------------------------------------------------------------


def utility(
    ctx: Context, family: Family, ks: Sequence[int], tokens: NDArray[np.intp], matrix: Governing
) -> list[tuple[float, float]]:
    """For each k the relative change of the logits, and the rise of the loss in nats per token."""
    model = ctx.subject.model
    before = qwen3.forward(model.tensors, tokens, model.config)

    def nats(logits: Any) -> float:
        return float(ops.cross_entropy(logits[..., :-1, :], targets=tokens[..., 1:]))

    found = []
    for k in ks:
        p = projections(model.tensors, model.config, family, k, matrix)
        after = qwen3.forward(project(model.tensors, model.config, p), tokens, model.config)
        change = np.linalg.norm(after - before) / np.linalg.norm(before)
        found.append((float(change), nats(after) - nats(before)))
    return found


def check_rope(ctx: Context) -> Evidence:
    """The recipe as published on the model, for two governing matrices; each new ingredient alone in exact arithmetic.

    *Grouped queries* alone do no harm: with one P for a key head and its query heads, (X W_q P)(X W_k P)ᵀ = X W_q
    W_kᵀ Xᵀ for each of them. With a P for every query head, as for plain multi-head attention, the shared key can
    follow one of them only: the others' scores become X W_q P' Pᵀ W_kᵀ Xᵀ.

    *QK-norm* without gains commutes with P, as it divides by a length. Gains put Γ_q Γ_k between the two factors, and
    only a P that commutes with it survives: for distinct products, signs of single coordinates.

    *RoPE* puts a rotation of every plane between them. A P that commutes with all of them maps each plane to itself
    and turns it (MB-FUNC, with all gains 1); the flip of one direction has determinant −1 and cannot.

    *Together* only signs of whole planes are left, and rotations of planes of equal gains (theorem and proof:
    MB-FUNC). Flips of k eigen-directions are among them only by accident.
    """
    rng, tokens = ctx.rng(0), probe(ctx, 1)
    c = ctx.subject.model.config.head_dim
    ks = sweep(c, KS + 2)[1:-1] or [1]
    generic = {m.__name__: utility(ctx, TOPK, ks, tokens, m) for m in (gram_sum, cross_sum)}
    planes = utility(ctx, TOPK_PLANES, plane_ks := sweep(c // 2, KS), tokens, gram_sum)
    change = min(max(x for x, _ in found) for found in generic.values())
    rises = [rise for _, rise in generic["gram_sum"]]
    return Evidence(
        verdict=Verdict.REFUTED,
        grade=Grade.MEASURED,
        condition="carries over if P flips whole rotary planes and is shared by the query heads of a key head",
        explanation=(
            "Sharing key heads is harmless if their query heads share P. Norm gains and rotations are not: they stand "
            "between the two factors P and Pᵀ. With the recipe as published this model's loss rises by "
            f"{min(rises):.2f} to {max(rises):.2f} nats per token (k = {ks[0]} … {ks[-1]} of {c}), with another choice "
            f"of governing matrix by up to {max(rise for _, rise in generic['cross_sum']):.2f}. Flips of whole planes "
            "leave it where it was, to the last bit."
        ),
        checks=[
            Check(name="the published recipe changes the model, for each governing matrix", sense=">=", unit="1",
                  statistic="max over k of ‖Δ logits‖_F/‖logits‖_F, the least over matrices, against bfloat16's "
                  "precision", value=change, bound=BFLOAT16, cases=2 * len(ks), seed=ctx.seed),
            Check(name="plane-wise flips leave the loss alone", statistic="max |Δ loss|", unit="nats", bound=0,
                  value=max(abs(rise) for _, rise in planes), sense="==", cases=len(plane_ks), seed=ctx.seed,
                  tolerance_from="none: sign flips commute with rounding to nearest"),
            none_found("grouped queries with one shared P, exactly", "cases in which a score changed",
                       grouped_breaks(rng, ctx.cases, shared=True), ctx.seed),
            none_found("grouped queries with a P each, exactly", "cases in which no score changed",
                       [not broken for broken in grouped_breaks(rng, ctx.cases, shared=False)], ctx.seed),
            none_found("RoPE alone, exactly", "flips of a direction that survive", rotation_survivors(rng, ctx.cases),
                       ctx.seed),
            none_found("gains alone, exactly", "flips of a direction that survive", gain_survivors(rng, ctx.cases),
                       ctx.seed),
        ],
        counterexample=_counterexample(),
        assumptions=["loss on a few lines of the zoo's skills, or on what --data names for any other model"],
        deviations=[GOVERNING],
        plots=[
            Plot(
                title="Loss of a RoPE + QK-norm model under the projection",
                x_label="k, flipped directions (planes count twice)", y_label="rise of the loss, nats per token",
                curves=[
                    Curve(name="S = W_qᵀW_q + W_kᵀW_k", x=ks, y=rises),
                    Curve(name="W_qᵀW_k + W_kᵀW_q", x=ks, y=[rise for _, rise in generic["cross_sum"]]),
                    Curve(name="whole rotary planes", x=[2 * k for k in plane_ks], y=[rise for _, rise in planes]),
                ],
            )
        ],
        severity="high",
        fix="On RoPE + QK-norm models flip whole rotary planes (--attention topk-planes).",
    )  # fmt: skip


CLAIMS = (
    Claim(
        id="MB-ROPE",
        title="The projection suits rotary, grouped-query, QK-normed attention",
        statement="The projection carries over to rotary, grouped-query, QK-normed attention as it stands.",
        source=Source(paper=PAPER, where="attention projection for multi-head and grouped-query attention"),
        kind="utility",
        recorded=Verdict.REFUTED,
        would_change="A reading of the recipe whose P flips whole rotary planes by itself.",
        check=check_rope,
        rerun=published_recipe,
    ),
)
