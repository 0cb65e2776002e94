"""MergeBarrier's top-k relaxation of Theorem 2 (arXiv 2511.10712)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from flint import fmpq
from numpy.typing import NDArray

from lockproofs import exact
from lockproofs.attention_trials import model_heads, none_found, sweep
from lockproofs.claim import Check, Claim, Context, Counterexample, Evidence, Grade, Source, Verdict
from lockproofs.claims.attention_function import GOVERNING, PAPER
from lockproofs.claims.attention_theorem2 import eq2, exact_surrogate, round_off
from lockref.locks.attention import eigenbasis, eq2_from_grams, flip, grams, strongest_flip

Array = NDArray[np.float64]

HEADS, KS, STARTS = 4, 5, 6


def better_flip(given: dict[str, Any]) -> str:
    """g and f of the leading eigen-direction's flip, and of the flip of another direction."""
    w_q, w_k = exact.matrix(given["W_q"]), exact.matrix(given["W_k"])
    leading = exact.flip(w_q.transpose() * w_q + w_k.transpose() * w_k, 1)
    other = exact.reflection(given["other"])
    (g, f), (g_other, f_other) = ((exact_surrogate(w_q, w_k, p), eq2(w_q, w_k, p)) for p in (leading, other))
    return f"leading direction: g = {g}, f = {f}; other direction: g = {g_other}, f = {f_other}"


FLIPS: dict[str, Any] = {"W_q": [[2, 0]], "W_k": [[0, 1]], "other": [1, 1]}


def advantage() -> float:
    """f(other flip) − f(flip of the leading direction) on the counterexample."""
    w_q, w_k = exact.matrix(FLIPS["W_q"]), exact.matrix(FLIPS["W_k"])
    leading = exact.flip(w_q.transpose() * w_q + w_k.transpose() * w_k, 1)
    return float(eq2(w_q, w_k, exact.reflection(FLIPS["other"])) - eq2(w_q, w_k, leading))


def ky_fan_breaks(rng: np.random.Generator, cases: int) -> list[bool]:
    """Does a rational P with rank(P − I) ≤ k exceed 4 Σ_{i≤k} λ_i, or does P_k miss it?

    The rows of W_q and W_k together are diag(a) Qᵀ: S = Q diag(a²) Qᵀ. Products of k reflections have that rank.
    """
    found = []
    for _ in range(cases):
        c = int(rng.integers(2, 5))
        roots = sorted(rng.choice(np.arange(0, 9), c, replace=False).tolist(), reverse=True)
        rows = (exact.diagonal(roots) * exact.random_orthogonal(rng, c).transpose()).tolist()
        w_q, w_k = exact.stack(rows[:1]), exact.stack(rows[1:])
        s = w_q.transpose() * w_q + w_k.transpose() * w_k
        p, top = exact.identity(c), fmpq(0)
        for k in range(c + 1):
            found.append(exact_surrogate(w_q, w_k, p) > top or exact_surrogate(w_q, w_k, exact.flip(s, k)) != top)
            if k < c:
                p = p * exact.reflection([1, *rng.integers(-3, 4, c - 1).tolist()])
                top += 4 * roots[k] ** 2
    return found


@dataclass(frozen=True)
class Restricted:
    """Eq. (2) over flips of k directions, as shares of Σ_{i≤k} λ_i(A) λ_i(B)."""

    leading: float
    best: float
    tolerance: float

    @property
    def beaten(self) -> bool:
        return self.best - self.leading > self.tolerance


def restricted(a: Array, b: Array, k: int, rng: np.random.Generator) -> Restricted:
    """Climbs from P_k and from flips of k random directions."""
    c = len(a)
    leading = flip(eigenbasis(a + b), k)
    random = flip(np.linalg.qr(rng.standard_normal((STARTS, c, c)))[0], k)
    best = strongest_flip(a, b, np.concatenate([[leading], random]), directions=k)
    products = np.linalg.eigvalsh(a)[::-1] * np.linalg.eigvalsh(b)[::-1]
    bound, total = (float(np.sum(products[:n])) or 1.0 for n in (k, c))
    value = float(np.max(eq2_from_grams(a, b, best)))
    return Restricted(float(eq2_from_grams(a, b, leading)) / bound, value / bound, round_off(c) * total / bound)


def random_restricted(rng: np.random.Generator) -> Restricted:
    c = int(rng.integers(2, 9))
    w_q, w_k = rng.standard_normal((2, int(rng.integers(1, 2 * c + 1)), c))
    return restricted(w_q.T @ w_q, w_k.T @ w_k, int(rng.integers(1, c)), rng)


def check_topk(ctx: Context) -> Evidence:
    """Exact arithmetic for the surrogate and the counterexample; a search over flips of k directions.

    "Changes k directions" is rank(P − I) ≤ k. S = W_qᵀW_q + W_kᵀW_k has eigenvalues λ_1 ≥ … ≥ λ_c ≥ 0.

    *The surrogate.* g(P) ≤ 4 Σ_{i≤k} λ_i, with equality at P_k. Proof. g(P) = 2 tr S − 2 tr(SP) = tr(S D) with D =
    (I − P)(I − P)ᵀ = 2I − P − Pᵀ. D is positive semidefinite, has rank at most k, and D ≤ 4I as ‖I − P‖ ≤ 2, so D ≤
    4Π for the projector Π on its range, and tr(SD) ≤ 4 tr(SΠ) ≤ 4 Σ_{i≤k} λ_i (Ky Fan). At P_k, D = 4 U_k U_kᵀ. ∎

    *Eq. (2).* f(P) = tr(A D B D)/16 is another matter: at P = I − 2uuᵀ it is (uᵀAu)(uᵀBu), a product where g has the
    sum. A direction that is long for W_q and unseen by W_k is worth nothing to it. As in MB-T2A some flip is best
    among all P with rank(P − I) ≤ k (turning a rotated plane into ±I raises no rank), and f ≤ Σ_{i≤k} λ_i(A) λ_i(B):
    Π B Π has at most k eigenvalues other than 0, each at most that of B.

    *Smallest.* c = 1 leaves only P = ±1, so c = 2 and k = 1 are least, with one row for each of W_q and W_k.
    """
    rng = ctx.rng(1)
    drawn = [random_restricted(rng) for _ in range(ctx.cases)]
    grammed = [grams(q, k) for q, k in model_heads(ctx.subject.model, HEADS)]
    c = ctx.subject.model.config.head_dim
    ks = sorted({max(1, min(c - 1, k)) for k in sweep(c, KS)})
    heads = [restricted(a, b, k, rng) for a, b in grammed for k in ks]

    def below(name: str, found: list[Restricted]) -> Check:
        worst = max(found, key=lambda r: r.best - r.tolerance)
        return Check(name=name, statistic="best f of k flips over Σ_{i≤k} λ_i(A) λ_i(B)", unit="1", value=worst.best,
                     bound=1, tolerance=worst.tolerance, cases=len(found), seed=ctx.seed,
                     tolerance_from="round-off of two products and a trace over c²")  # fmt: skip

    least = min(r.leading / r.best if r.best else 1.0 for r in heads)
    return Evidence(
        verdict=Verdict.REFUTED,
        grade=Grade.PROVED,
        condition="true of the surrogate (Ky Fan), and of eq. (2) where A = W_qᵀW_q and B = W_kᵀW_k commute and "
        "order their eigenvectors alike",
        explanation=(
            "Of all P that change k directions, P_k is best for the surrogate. For eq. (2), which it stands in for, it "
            "is not: with W_q = (2 0) and W_k = (0 1) the leading direction is one that W_k does not see, and flipping "
            "it gives f = 0, where flipping the diagonal gives 1. Another flip of k directions is better in "
            f"{sum(r.beaten for r in drawn)} of {len(drawn)} random cases and in {sum(r.beaten for r in heads)} of "
            f"{len(heads)} on this model's key heads, where P_k reaches as little as {least:.0%} of the best found."
        ),
        checks=[
            Check(name="another direction is better, exactly", statistic="f(other flip) − f(P_1)", unit="1",
                  value=advantage(), bound=1, sense="=="),
            none_found("P_k maximizes the surrogate, exactly", "P of rank(P − I) ≤ k above 4 Σ λ_i, or P_k below",
                       ky_fan_breaks(ctx.rng(0), ctx.cases), ctx.seed),
            below("random pairs stay below the bound", drawn),
            below("the model's key heads stay below the bound", heads),
        ],
        counterexample=Counterexample(
            given=dict(FLIPS),
            got=better_flip(FLIPS),
            want="f of the leading direction's flip at least as large as any other's",
            by_hand=(
                "S = W_qᵀW_q + W_kᵀW_k = diag(4, 1): e_1 leads, P_1 = diag(−1, 1).\n"
                "f(I − 2uuᵀ) = (W_q u)² (W_k u)² for a unit vector u.\n"
                "u = e_1: (2)² (0)² = 0. u = (1, 1)/√2: (√2)² (1/√2)² = 2 · 1/2 = 1.\n"
                "The surrogate sees it the other way round: g = 4 uᵀSu = 16 against 10."
            ),
        ),
        assumptions=["the best flip found is a lower bound of the maximum: the ascent may stop at a local one"],
        deviations=[GOVERNING],
        severity="low",
        fix="Maximize eq. (2) over flips of k directions (strongest_flip(…, directions=k)).",
    )  # fmt: skip


CLAIMS = (
    Claim(
        id="MB-TOPK",
        title="The top-k relaxation is the best of its size",
        statement="Flipping the k leading eigen-directions is the best relaxation that changes k directions.",
        source=Source(paper=PAPER, where="relaxation of Theorem 2"),
        kind="theorem",
        recorded=Verdict.REFUTED,
        would_change="Nothing: the counterexample is exact. Stated of the surrogate it is true.",
        check=check_topk,
        rerun=better_flip,
    ),
)
