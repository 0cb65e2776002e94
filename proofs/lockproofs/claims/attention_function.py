"""MergeBarrier's attention projection (arXiv 2511.10712): when it leaves the function alone."""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from flint import fmpq
from numpy.typing import NDArray

from lockproofs import exact
from lockproofs.attention_trials import affordable_passes, logit_changes, probe, sweep
from lockproofs.claim import (
    Check,
    Claim,
    Context,
    Counterexample,
    Curve,
    Deviation,
    Evidence,
    Grade,
    Plot,
    Source,
    Verdict,
)
from lockref.autodiff import ops
from lockref.locks.attention import TOPK, TOPK_PLANES

Array = NDArray[np.float64]

PAPER = "MergeBarrier (arXiv 2511.10712)"
GOVERNING = Deviation(
    paper_says="which symmetric matrix Theorem 2's eigenvalues belong to was not readable to us",
    we_do="S = W_qᵀW_q + W_kᵀW_k, summed over the query heads that share a key head",
    why="its top-k flip is the one that maximizes the surrogate which Theorem 2 names",
    effect="no eigenvalue of S is negative; that P leaves plain attention alone does not depend on this choice",
)
U = 2.0**-53
BFLOAT16 = 2.0**-8  # unit round-off of the type in which weights are released
GENERIC_KS = 8


# --- Exact arithmetic -------------------------------------------------------------------------------------------


def plain_breaks(rng: np.random.Generator) -> list[bool]:
    """For all small sizes: does (X W_q P)(X W_k P)ᵀ differ from (X W_q)(X W_k)ᵀ?"""
    found = []
    for tokens, d, c in product(range(1, 4), range(1, 4), range(1, 5)):
        x, w_q, w_k = (exact.random_matrix(rng, *shape) for shape in ((tokens, d), (d, c), (d, c)))
        p = exact.random_orthogonal(rng, c)
        found.append(x * w_q * p * (x * w_k * p).transpose() != x * w_q * (x * w_k).transpose())
    return found


def on_plane(c: int, plane: int, block: exact.Rows) -> exact.Matrix:
    """The identity of size c with a 2×2 block on rotary plane (plane, plane + c/2)."""
    out, at, b = exact.identity(c), (plane, plane + c // 2), exact.matrix(block)
    for i, j in product(range(2), repeat=2):
        out[at[i], at[j]] = b[i, j]
    return out


def rotation(plane: int, c: int, t: int) -> exact.Matrix:
    """A rotation of one plane by the angle 2 arctan(1/t), whose cosine and sine are rational."""
    cos, sin = fmpq(t * t - 1, t * t + 1), fmpq(2 * t, t * t + 1)
    return on_plane(c, plane, [[str(cos), str(sin)], [str(-sin), str(cos)]])


def rotary_breaks(p: exact.Matrix, q_gain: Sequence[int], k_gain: Sequence[int]) -> bool:
    """Does P change a score matrix M_Δ = Γ_q R_Δ Γ_k for one of the offsets Δ = 0 … c − 1?"""
    c = p.nrows()
    step, turn = exact.identity(c), exact.identity(c)
    for plane in range(c // 2):
        step = step * rotation(plane, c, plane + 2)
    for _ in range(c):
        m = exact.diagonal(q_gain) * turn * exact.diagonal(k_gain)
        if p * m * p.transpose() != m:
            return True
        turn = turn * step
    return False


def inside() -> Iterator[bool]:
    """Breaks among turns that the condition allows: every sign pattern, and rotations of planes of equal gains."""
    for c in (2, 4, 6):
        q_gain, k_gain = list(range(2, c + 2)), list(range(5, 5 + 3 * c, 3))
        for signs in product((1, -1), repeat=c // 2):
            yield rotary_breaks(exact.diagonal(signs * 2), q_gain, k_gain)
        for opposite in (1, -1):
            paired_q, paired_k = ([*g[: c // 2], *(opposite * x for x in g[: c // 2])] for g in (q_gain, k_gain))
            yield rotary_breaks(rotation(0, c, 3), paired_q, paired_k)


def outside(rng: np.random.Generator) -> Iterator[bool]:
    """Breaks among orthogonal turns that the condition excludes.

    Allowed turns form a group in which P − I has even rank, so a reflection times an allowed turn is never allowed.
    """
    for c in (2, 4, 6):
        equal, distinct = [1] * c, list(range(2, c + 2))
        yield rotary_breaks(rotation(0, c, 3), equal, distinct)  # a rotation, but the gains of one norm differ
        yield rotary_breaks(rotation(0, c, 3), distinct, equal)
        for signs in product((1, -1), repeat=c // 2):
            across = exact.reflection([1, *rng.integers(-3, 4, c - 1).tolist()])
            yield rotary_breaks(across * exact.diagonal(signs * 2), equal, equal)
            yield rotary_breaks(across * exact.diagonal(signs * 2), distinct, equal)
    whole_planes = exact.matrix([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
    yield rotary_breaks(whole_planes, [1] * 4, [1] * 4)  # two planes change places


# --- Float64 ----------------------------------------------------------------------------------------------------


def plain_attention(x: Array, w_q: Array, w_k: Array, v: Array) -> Array:
    """One head of causal dot-product attention, no norm and no rotation: x (T, d), weights (d, c), v (T, c)."""
    out: Array = ops.attention((x @ w_q)[None], (x @ w_k)[None], v[None], scale=w_q.shape[1] ** -0.5)
    return out


def round_off(x: Array, w_q: Array, w_k: Array, v: Array, p: Array) -> float:
    """A bound on how far two exact-arithmetic twins of `plain_attention`, with and without P, differ in float64.

    With γ_n = n u/(1 − n u): each factor X W costs γ_d and X (W P) at most √c (γ_d + γ_c) relative to ‖x‖‖W‖_F, each
    dot product and its scaling γ_{c+1}, and PPᵀ − I counts in full. A score error δ moves the output by at most
    (e^{2δ} − 1) max|v|; a softmax over T scores of size s and the mean of v cost (2T + 6 + 2s) u max|v|, twice.
    """
    tokens, d, c = len(x), len(w_q), len(p)

    def gamma(n: int) -> float:
        return n * U / (1 - n * U)

    skew = float(np.linalg.norm(p @ p.T - np.eye(c))) + c * gamma(c)
    largest = float(np.max(np.sum(x * x, axis=1)) * np.linalg.norm(w_q) * np.linalg.norm(w_k) / math.sqrt(c))
    factors = 2 * (gamma(d) + math.sqrt(c) * (gamma(d) + gamma(c)))
    delta = largest * (factors + 2 * gamma(c + 1) + skew)
    return float(np.max(np.abs(v))) * (float(np.expm1(2 * delta)) + 2 * (2 * tokens + 6 + 2 * largest) * U)


def plain_share(rng: np.random.Generator) -> float:
    """What share of the round-off bound a random projection uses up, for one head of random sizes."""
    tokens, d, c = (int(n) for n in rng.integers(2, 24, 3))
    x, v = rng.standard_normal((tokens, d)), rng.standard_normal((tokens, c))
    w_q, w_k = rng.standard_normal((2, d, c)) / d**0.5
    p = np.linalg.qr(rng.standard_normal((c, c)))[0]
    moved = plain_attention(x, w_q @ p, w_k @ p, v) - plain_attention(x, w_q, w_k, v)
    return float(np.max(np.abs(moved))) / round_off(x, w_q, w_k, v, p)


# --- The claim --------------------------------------------------------------------------------------------------


def swapped_plane(given: dict[str, Any]) -> str:
    """The score of one query and key whose positions are one rotation apart, without P and with it."""
    q, k, turn, p = (exact.matrix(given[name]) for name in ("query", "key", "rotation", "P"))
    without, turned = (a * turn * b.transpose() for a, b in ((q, k), (q * p, k * p)))
    return f"score {without[0, 0]} without P, {turned[0, 0]} with P"


def _counterexample() -> Counterexample:
    given = {
        "query": [[1, 1]],
        "key": [[1, -1]],
        "rotation": [["3/5", "4/5"], ["-4/5", "3/5"]],
        "P": [[0, 1], [1, 0]],
    }
    return Counterexample(
        given=given,
        got=swapped_plane(given),
        want="the same score, since P is orthogonal",
        by_hand=(
            "One plane, unit gains; query (1, 1) and key (1, −1) have mean square 1, so QK-norm leaves them.\n"
            "(1, 1) R = (3/5 − 4/5, 4/5 + 3/5) = (−1/5, 7/5); times (1, −1): −8/5.\n"
            "P swaps the coordinates: the query stays (1, 1), the key becomes (−1, 1), the score +8/5.\n"
            "For a rotation by any angle φ: −2 sin φ becomes +2 sin φ."
        ),
    )


def check_func(ctx: Context) -> Evidence:
    """Exact identities, and model logits on both sides of the condition.

    *Plain attention.* Scores are X W_q W_kᵀ Xᵀ/√c, and W_q P (W_k P)ᵀ = W_q P Pᵀ W_kᵀ = W_q W_kᵀ for every
    orthogonal P. Softmax and values see nothing else of P. With grouped queries, one P per key head does the same.
    ∎

    *Rotary, QK-normed attention.* Let n(x) = x/√(mean(x²) + ε). The query of a token at t is n(x W_q) Γ_q R_t, the
    key of one at s is n(x W_k) Γ_k R_s. As n(zP) = n(z) P, the lock turns a score n_q M_Δ n_kᵀ, M_Δ = Γ_q R_Δ Γ_k,
    Δ = t − s, into n_q P M_Δ Pᵀ n_kᵀ. For W_q, W_k of rank c and all inputs of c or more tokens, attention is
    unchanged if and only if P M_Δ Pᵀ = M_Δ for all Δ. "If" is clear. Only if: softmax forgives a change of score
    that all keys of a query share; but the change n_q N n_kᵀ, N = P M_Δ Pᵀ − M_Δ, is odd in n_k, so where it is
    shared it is 0, for all n_q and n_k: N = 0.

    *Theorem.* Let all gains be nonzero and the c/2 frequencies θ_j distinct in (0, π). An orthogonal P has P M_Δ Pᵀ
    = M_Δ for Δ = 0 … c − 1 if and only if it maps each plane to itself, as ±I or, where the plane's two gains are
    equal in γ_q and in γ_k, or opposite in both, as any rotation. Such a P fixes M_Δ for every Δ.

    Proof. M_Δ = Σ_j cos(Δθ_j) C_j + sin(Δθ_j) K_j with C_j = Γ_q E_j Γ_k and K_j = Γ_q J_j Γ_k; E_j projects on
    plane j, J_j turns it by a right angle. The c sequences cos(Δθ_j), sin(Δθ_j) are independent on c consecutive Δ:
    they span what the e^{±iΔθ_j} span, whose c × c matrix is Vandermonde with distinct nodes. So P fixes these M_Δ
    if and only if it fixes all C_j and K_j, and then it fixes M_Δ for all Δ. C_j has range plane j, so P maps plane
    j to itself, by a 2×2 orthogonal B. With gains (a, b) in γ_q and (a', b') in γ_k, B must fix diag(aa', bb') and
    [[0, ab'], [−ba', 0]]. The latter is ½(ab' + ba') J + ½(ab' − ba') X with X = [[0, 1], [1, 0]]; B J Bᵀ = det(B)
    J and B X Bᵀ is symmetric, so B must fix each of the two terms.
    (1) aa' ≠ bb': B is diagonal with entries ±1. diag(1, −1) turns J into −J and X into −X, hence the second
        matrix, which is not 0, into its negative. So B = ±I.
    (2) aa' = bb' and ab' ≠ ba': B fixes X, so B is ±I or ±X. As (ab')(ba') = (aa')(bb') > 0, ab' + ba' ≠ 0, so det
        B = 1: ±I.
    (3) aa' = bb' and ab' = ba': dividing, a'/b' = b'/a', so b' = ±a', and b = ±a with the same sign. As before det
        B = 1, and every rotation fixes J and diag(aa', aa'). ∎

    In floating point a flip of sign commutes with every rounding to nearest, and both factors of each product flip:
    the logits of a plane-wise lock are the same bits.
    """
    rng, tokens = ctx.rng(0), probe(ctx, 1)
    c = ctx.subject.model.config.head_dim
    plain, within, beyond = plain_breaks(rng), list(inside()), list(outside(rng))
    shares = [plain_share(rng) for _ in range(ctx.cases)]
    ks = sweep(c, min(GENERIC_KS, affordable_passes(ctx, tokens)) + 1)[1:-1] or [1]
    generic = logit_changes(ctx, TOPK, ks, tokens)
    plane_ks = sweep(c // 2, affordable_passes(ctx, tokens))
    planes = logit_changes(ctx, TOPK_PLANES, plane_ks, tokens)
    return Evidence(
        verdict=Verdict.HOLDS_IF,
        grade=Grade.PROVED,
        condition="attention is plain dot-product attention; with RoPE and QK-norm, P must flip or keep whole rotary "
        "planes (±1 on each pair of coordinates i, i + c/2; planes with equal gains may also be rotated)",
        explanation=(
            "Without rotary embedding and norm gains, W_q P (W_k P)ᵀ = W_q W_kᵀ exactly, for every orthogonal P. "
            "RoPE and QK-norm put gains and a rotation between the two factors, and only turns that commute with "
            "both survive. On this model the top-k projection as published changes the logits by "
            f"{min(generic):.1%} to {max(generic):.1%} of their norm (k = {ks[0]} … {ks[-1]} of {c}); flipping whole "
            "planes changes no bit of any logit."
        ),
        checks=[
            Check(name="generic projection changes a RoPE + QK-norm model", sense=">=",
                  statistic="max over k of ‖Δ logits‖_F/‖logits‖_F, against the precision of bfloat16 weights",
                  unit="1", value=max(generic), bound=BFLOAT16, cases=len(ks), seed=ctx.seed),
            Check(name="plane-wise signs change nothing", statistic="max over k of ‖Δ logits‖_F/‖logits‖_F", unit="1",
                  value=max(planes), bound=0, sense="==", cases=len(plane_ks), seed=ctx.seed,
                  tolerance_from="none: sign flips commute with rounding to nearest"),
            Check(name="plain scores, exactly", statistic="cases in which a rational P changed a score", unit="cases",
                  value=sum(plain), bound=0, sense="==", cases=len(plain), seed=ctx.seed),
            Check(name="rotary scores inside the condition, exactly", statistic="cases in which P changed a score",
                  unit="cases", value=sum(within), bound=0, sense="==", cases=len(within)),
            Check(name="rotary scores outside the condition, exactly", statistic="cases in which P changed no score",
                  unit="cases", value=len(beyond) - sum(beyond), bound=0, sense="==", cases=len(beyond), seed=ctx.seed),
            Check(name="plain attention in float64", statistic="max |Δ output| over its round-off bound", unit="1",
                  value=max(shares), bound=1, cases=len(shares), seed=ctx.seed,
                  tolerance_from="a priori: two matrix products, a dot product of length c, a softmax over T scores"),
        ],
        counterexample=_counterexample(),
        assumptions=[
            "gains are not zero and rotary frequencies are distinct",
            "one P for each key head and the query heads that share it",
        ],
        deviations=[GOVERNING],
        plots=[
            Plot(
                title="What the projection does to a model with RoPE and QK-norm",
                x_label="k, flipped directions (planes count twice)", y_label="relative change of the logits",
                curves=[
                    Curve(name="eigen-directions, as published", x=ks, y=generic),
                    Curve(name="whole rotary planes", x=[2 * k for k in plane_ks], y=planes),
                ],
            )
        ],
        severity="high",
        fix="On RoPE + QK-norm models flip whole rotary planes (--attention topk-planes).",
    )  # fmt: skip


CLAIMS = (
    Claim(
        id="MB-FUNC",
        title="The projection leaves attention's output alone",
        statement="Projecting W_q and W_k by an orthogonal P leaves attention's output unchanged.",
        source=Source(paper=PAPER, where="attention projection, the premise of eq. (2)"),
        kind="theorem",
        recorded=Verdict.HOLDS_IF,
        would_change="An orthogonal P outside the condition that changes no score of a RoPE + QK-norm model.",
        check=check_func,
        rerun=swapped_plane,
    ),
)
