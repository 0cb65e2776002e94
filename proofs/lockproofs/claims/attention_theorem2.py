"""MergeBarrier's Theorem 2 (arXiv 2511.10712): which orthogonal matrices maximize eq. (2)."""

import math
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockproofs import exact
from lockproofs.attention_trials import model_heads, sweep
from lockproofs.claim import (
    Check,
    Claim,
    Context,
    Counterexample,
    Evidence,
    Grade,
    Source,
    Verdict,
)
from lockproofs.claims.attention_function import GOVERNING, PAPER
from lockproofs.curves.theorem2 import along_flips, over_the_circle
from lockref.locks.attention import eigenbasis, eq2_from_grams, flip, grams, strongest_flip

Array = NDArray[np.float64]

EPS = 2.0**-52
HEADS = 8  # of a model, evenly spread: all of the zoo's
STARTS = 16  # half of them the flips P_k


# --- Exact arithmetic, in the paper's layout: W (d, c), rows are tokens --------------------------------------------


def eq2(w_q: exact.Matrix, w_k: exact.Matrix, p: exact.Matrix) -> exact.Rational:
    """f(P) of eq. (2) as it is written."""
    moved = (w_q * p + w_q) * (w_k * p + w_k).transpose() - w_q * w_k.transpose() * 4
    return exact.squared_norm(moved) / 16


def exact_surrogate(w_q: exact.Matrix, w_k: exact.Matrix, p: exact.Matrix) -> exact.Rational:
    """g(P) = ‖W_q (P − I)‖_F² + ‖W_k (P − I)‖_F²."""
    return exact.squared_norm(w_q * p - w_q) + exact.squared_norm(w_k * p - w_k)


def opposed_pair(given: dict[str, Any]) -> str:
    """f and g of the matrix that maximizes g, and of another one."""
    w_q, w_k, best, other = (exact.matrix(given[name]) for name in ("W_q", "W_k", "maximizes_g", "other"))
    f, g = ([score(w_q, w_k, p) for p in (best, other)] for score in (eq2, exact_surrogate))
    return f"maximizer of g: g = {g[0]}, f = {f[0]}; other: g = {g[1]}, f = {f[1]}"


OPPOSED = {"W_q": [[1, 0]], "W_k": [[0, 1]], "maximizes_g": [[-1, 0], [0, -1]], "other": [[0, 1], [1, 0]]}


def advantage() -> float:
    """f(other) − f(maximizer of g) on the counterexample."""
    w_q, w_k, best, other = map(exact.matrix, OPPOSED.values())
    return float(eq2(w_q, w_k, other) - eq2(w_q, w_k, best))


def trace_bound_breaks(rng: np.random.Generator, cases: int) -> list[bool]:
    """Does a rational P exceed Σ λ↓(A) λ↓(B), or is the bound reached at −I where it should not be, or the reverse?

    W_q = diag(a) Qᵀ and W_k = diag(b) Rᵀ have the rational spectra a² and b². With R = Q every order of b is tried; the
    orders of a and b agree for one of them only.
    """
    found = []
    for _ in range(cases):
        c = int(rng.integers(2, 4))
        a, b = (rng.choice(np.arange(1, 8), c, replace=False).tolist() for _ in range(2))
        q, r, p = (exact.random_orthogonal(rng, c) for _ in range(3))
        bound = sum((x * y) ** 2 for x, y in zip(sorted(a), sorted(b), strict=True))
        w_q, minus = exact.diagonal(a) * q.transpose(), exact.diagonal([-1] * c)
        for order in permutations(b):
            w_k = exact.diagonal(order) * q.transpose()
            alike = np.array_equal(np.argsort(a), np.argsort(order))
            found.append((eq2(w_q, w_k, minus) == bound) != alike or eq2(w_q, w_k, p) > bound)
        w_k = exact.diagonal(b) * r.transpose()
        gram_q, gram_k = w_q.transpose() * w_q, w_k.transpose() * w_k
        commute = gram_q * gram_k == gram_k * gram_q
        found.append((eq2(w_q, w_k, minus) == bound and not commute) or eq2(w_q, w_k, p) > bound)
    return found


def deficit_breaks(rng: np.random.Generator, cases: int) -> list[bool]:
    """Does f(−I) − f(−(I − 2Θ)) differ from tr((AB + BA)Θ) − tr(AΘBΘ) for a rational projector Θ of rank 1?"""
    found = []
    for _ in range(cases):
        d, c = (int(n) for n in rng.integers(1, 5, 2))
        w_q, w_k = (exact.random_matrix(rng, d, c) for _ in range(2))
        a, b = w_q.transpose() * w_q, w_k.transpose() * w_k
        across = exact.reflection([1, *rng.integers(-3, 4, c - 1).tolist()])
        theta = (exact.identity(c) - across) / 2
        lost = eq2(w_q, w_k, exact.diagonal([-1] * c)) - eq2(w_q, w_k, exact.diagonal([-1] * c) * across)
        found.append(lost != exact.trace((a * b + b * a) * theta) - exact.trace(a * theta * b * theta))
    return found


# --- Float64 ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Eq. (2) for one pair of Gram matrices: at −I, at the best flip found, and its bound."""

    a: Array
    b: Array
    at_minus_identity: float
    best: float
    bound: float

    @property
    def gain(self) -> float:
        """How many times larger f can be than at −I, at least."""
        return self.best / self.at_minus_identity if self.at_minus_identity else math.inf

    @property
    def over_bound(self) -> float:
        """The best f found as a share of its bound; 0 for weights that are zero."""
        return self.best / self.bound if self.bound else 0.0

    @property
    def beaten(self) -> bool:
        """Whether another flip is better than −I, by more than round-off."""
        return self.best - self.at_minus_identity > self.tolerance * self.bound

    @property
    def tolerance(self) -> float:
        """Round-off of f relative to the bound."""
        return round_off(len(self.a))


def round_off(c: int) -> float:
    """Round-off of f relative to Σ λ↓(A) λ↓(B): two products and a trace over c², a P orthogonal up to c^2.5 eps.

    |fl(tr(A D B D)) − tr(A D B D)| ≤ 16 c (c² + 2c) eps ‖A‖_F ‖B‖_F, and by Chebyshev's inequality
    ‖A‖_F ‖B‖_F ≤ tr A tr B ≤ c Σ λ↓(A) λ↓(B).
    """
    return float((c * c * (c * c + 2 * c) + 4 * c**2.5) * EPS)


def investigate(a: Array, b: Array, rng: np.random.Generator) -> Pair:
    """Climbs from −I, from flips P_k and from flips of random directions."""
    c = len(a)
    ks = sweep(c, STARTS // 2)
    random = np.linalg.qr(rng.standard_normal((STARTS // 2, c, c)))[0]
    flips = flip(eigenbasis(a + b), ks), flip(random, rng.integers(1, c + 1, len(random)))
    starts = np.concatenate([*flips, [-np.eye(c)]])
    reached = eq2_from_grams(a, b, strongest_flip(a, b, starts))
    largest_a, largest_b = (np.linalg.eigvalsh(m) for m in (a, b))
    return Pair(a, b, float(eq2_from_grams(a, b, -np.eye(c))), float(np.max(reached)), float(largest_a @ largest_b))


def random_pair(rng: np.random.Generator) -> Pair:
    """Gaussian weights of random sizes, more or fewer rows than columns."""
    c = int(rng.integers(2, 9))
    w_q, w_k = rng.standard_normal((2, int(rng.integers(1, 2 * c + 1)), c))
    return investigate(w_q.T @ w_q, w_k.T @ w_k, rng)


def model_pairs(ctx: Context, rng: np.random.Generator) -> list[Pair]:
    """Key heads of the model, evenly spread over its layers, each with the sum over its query heads."""
    return [investigate(*grams(q, k), rng) for q, k in model_heads(ctx.subject.model, HEADS)]


# --- The claim --------------------------------------------------------------------------------------------------


def _counterexample() -> Counterexample:
    return Counterexample(
        given=dict(OPPOSED),
        got=opposed_pair(OPPOSED),
        want="f of the maximizer of g at least as large as any other f",
        by_hand=(
            "S = W_qᵀW_q + W_kᵀW_k = I, so g(P) = 2 tr S − 2 tr(SP) = 4 − 2 tr P ≤ 8, reached at P = −I only.\n"
            "At P = −I: W_q P + W_q = 0, so f = ‖−4 W_q W_kᵀ‖²/16 = (W_q W_kᵀ)² = 0.\n"
            "At the swap: W_q P + W_q = (1, 1) = W_k P + W_k, so f = (1·1 + 1·1 − 4·0)²/16 = 4/16 = 1/4.\n"
            "No smaller pair will do: with c = 1 there are only P = ±1, and f(1) = 0."
        ),
    )


def check_t2a(ctx: Context) -> Evidence:
    """An exact counterexample, the exact condition with its proof, and figures on random and trained heads.

    Notation: A = W_qᵀW_q, B = W_kᵀW_k, S = A + B; D = (P − I)(P − I)ᵀ = 2I − P − Pᵀ. As P is orthogonal, (W_q P +
    W_q)(W_k P + W_k)ᵀ − 4 W_q W_kᵀ = W_q (2I + P + Pᵀ − 4I) W_kᵀ = −W_q D W_kᵀ, so f(P) = tr(A D B D)/16; and g(P)
    = 2 tr S − 2 tr(S P). With grouped queries A is a sum over query heads and nothing else changes.

    *Maximizers of g.* tr(S P) = Σ λ_i u_iᵀP u_i ≥ −Σ λ_i, with equality iff P u_i = −u_i wherever λ_i > 0. Then P =
    −I on the range of S, and on its null space, P's own invariant complement, A and B vanish: f(P) = f(−I) =
    tr(AB). So (a) holds for a pair if and only if −I maximizes f.

    *Flips suffice.* An orthogonal P is a sum of ±1 and of rotations by φ in planes; D is 0 or 4 there, and 2(1 −
    cos φ) on a plane. f = ‖A^½ D B^½‖_F²/16 is convex in D, and D is affine in each cos φ ∈ [−1, 1], so replacing
    every rotation by +I or −I, whichever is better, loses nothing. Hence max f = max over orthogonal projectors Π
    of tr(A Π B Π), at P = I − 2Π.

    *Exact condition.* With Π = I − Θ, f(−I) − f(I − 2Π) = tr((AB + BA)Θ) − tr(A Θ B Θ). So (a) holds if and only if

        tr((AB + BA)Θ) ≥ tr(A Θ B Θ)   for every orthogonal projector Θ;   for lines, 2 xᵀABx ≥ (xᵀAx)(xᵀBx), |x| = 1.

    *Bound.* f(P) ≤ Σ α_i β_i, with α and β the eigenvalues of A and B in falling order. Proof. M = D B D/16 has the
    eigenvalues of B^½ D² B^½/16, and D² ≤ 16 I, so λ_i(M) ≤ β_i (Weyl). With a_1, … the eigenvectors of A and
    α_{c+1} = 0, Abel summation gives tr(A M) = Σ_k (α_k − α_{k+1}) Σ_{i≤k} a_iᵀ M a_i, and the inner sum is at most
    the sum of the k largest λ_i(M) (Ky Fan). ∎

    *When −I reaches the bound.* There M = B, and there is equality iff for every k < c with α_k > α_{k+1} the inner
    sum is β_1 + … + β_k, that is, span(a_1 … a_k) is spanned by leading eigenvectors of B. Then B maps each
    eigenspace of A to itself, so A and B commute and are similarly ordered; the converse is clear. So it suffices
    for (a) that A and B commute and are similarly ordered. It isn't necessary: for A = diag(4, 1), B = diag(1, 4)
    the bound is 17, f(−I) = 8, and every line has (xᵀAx)(xᵀBx) ≤ (xᵀ(A + B)x/2)² = 25/4, so −I is best all the
    same. ∎
    """
    bounds, deficits = trace_bound_breaks(ctx.rng(0), ctx.cases), deficit_breaks(ctx.rng(1), ctx.cases)
    rng = ctx.rng(2)
    drawn, heads = [random_pair(rng) for _ in range(ctx.cases)], model_pairs(ctx, ctx.rng(3))

    def bounded(name: str, pairs: list[Pair]) -> Check:
        worst = max(pairs, key=lambda pair: pair.over_bound - pair.tolerance)
        return Check(name=name, statistic="best f found over Σ λ↓(A) λ↓(B)", unit="1", value=worst.over_bound, bound=1,
                     tolerance=worst.tolerance, cases=len(pairs), seed=ctx.seed,
                     tolerance_from="round-off of two products and a trace over c², relative to the bound")  # fmt: skip

    head = heads[len(heads) // 2]
    reached = [p.at_minus_identity / p.bound if p.bound else 0.0 for p in heads]
    return Evidence(
        verdict=Verdict.REFUTED,
        grade=Grade.PROVED,
        condition="true for a pair exactly if tr((AB + BA)Θ) ≥ tr(AΘBΘ) for every orthogonal projector Θ, for instance "
        "where A = W_qᵀW_q and B = W_kᵀW_k commute and are similarly ordered",
        explanation=(
            "The surrogate is maximal at P = −I and, up to directions that no weight sees, nowhere else. But −I need "
            "not maximize eq. (2): for W_q = (1 0), W_k = (0 1) it gives 0 where a swap of coordinates gives 1/4. "
            f"It is beaten in {sum(p.beaten for p in drawn)} of {len(drawn)} random cases, by a factor of up to "
            f"{max(p.gain for p in drawn):.3g}, and on {sum(p.beaten for p in heads)} of {len(heads)} key heads of "
            f"this model, by up to {max(p.gain for p in heads) - 1:.1%}. The bound Σ λ↓(A) λ↓(B) is never exceeded; "
            "−I reaches it only where the two Gram matrices commute and are similarly ordered (on this model it "
            f"reaches {min(reached):.0%} to {max(reached):.0%} of it)."
        ),
        checks=[
            Check(name="another P beats the maximizer of g, exactly", statistic="f(swap) − f(−I)", unit="1",
                  value=advantage(), bound=0.25, sense="=="),
            Check(name="f ≤ Σ λ↓(A) λ↓(B), with equality at −I as stated, exactly", unit="cases",
                  statistic="cases that contradict it", value=sum(bounds), bound=0, sense="==", cases=len(bounds),
                  seed=ctx.seed),
            Check(name="the exact condition's identity, exactly", statistic="cases that contradict it", unit="cases",
                  value=sum(deficits), bound=0, sense="==", cases=len(deficits), seed=ctx.seed),
            bounded("random pairs stay below the bound", drawn),
            bounded("the model's key heads stay below the bound", heads),
        ],
        counterexample=_counterexample(),
        assumptions=["the best f found is a lower bound of the maximum: the ascent may stop at a local one"],
        deviations=[GOVERNING],
        plots=[along_flips(head.a, head.b, head.best, head.bound), over_the_circle(OPPOSED)],
        severity="low",
        fix="Maximize eq. (2) itself over flips (lockref.locks.attention.strongest_flip).",
    )  # fmt: skip


CLAIMS = (
    Claim(
        id="MB-T2A",
        title="Maximizing the surrogate maximizes eq. (2)",
        statement="To maximize eq. (2) it suffices to maximize ‖W_q(P−I)‖_F² + ‖W_k(P−I)‖_F².",
        source=Source(paper=PAPER, where="Theorem 2 (a)"),
        kind="theorem",
        recorded=Verdict.REFUTED,
        would_change="Nothing: the counterexample is exact. An assumption on W_q and W_k could make the theorem true.",
        check=check_t2a,
        rerun=opposed_pair,
    ),
)
