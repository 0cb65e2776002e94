"""MergeBarrier's projection at scale: randomized in place of full decomposition (arXiv 2511.10712)."""

from dataclasses import dataclass
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
    Curve,
    Deviation,
    Evidence,
    Grade,
    Plot,
    Source,
    Verdict,
)
from lockproofs.claims.attention_function import GOVERNING, PAPER
from lockref.locks.attention import eigenbasis, flip, gram_sum
from lockref.locks.randomized import leading_eigenvectors

Array = NDArray[np.float64]

EPS = 2.0**-52
HEADS, KS = 4, 5
POWERS = (0, 1, 2, 4, 8, 16, 32)


def two_answers(given: dict[str, Any]) -> str:
    """The locks from two exact decompositions of one S: (P − P')² in the Frobenius norm, and their residuals."""
    w_q, w_k = exact.matrix(given["W_q"]), exact.matrix(given["W_k"])
    s = w_q.transpose() * w_q + w_k.transpose() * w_k
    vectors = [exact.matrix([[x] for x in given[name]]) for name in ("u", "v")]
    residuals = [exact.squared_norm(s * x - x * exact.trace(x.transpose() * s * x)) for x in vectors]
    p, other = (exact.identity(2) - x * x.transpose() * 2 for x in vectors)
    return f"squared residuals {residuals[0]} and {residuals[1]}, ‖P − P'‖² = {exact.squared_norm(p - other)}"


TIED: dict[str, Any] = {"W_q": [[1, 0]], "W_k": [[0, 1]], "u": ["1", "0"], "v": ["3/5", "4/5"]}


@dataclass(frozen=True)
class Approximation:
    """‖P̂ − P_k‖_F of one randomized decomposition beside its stated bound."""

    error: float
    stated: float
    round_off: float

    @property
    def share(self) -> float:
        return self.error / (self.stated + self.round_off)


def approximate(s: Array, k: int, power: int, rng: np.random.Generator) -> Approximation:
    """Eigenvectors in float64 are those of a matrix c² eps λ_1 away, the reference's too."""
    c = len(s)
    values = np.linalg.eigvalsh(s)[::-1]
    found = leading_eigenvectors(s, k, rng, power_iterations=power)
    gap = values[k - 1] - values[k]
    widest = 2 * np.sqrt(2 * min(k, c - k))
    floor = min(widest, 8 * np.sqrt(2) * c * c * EPS * values[0] / gap) if gap > 0 else widest
    error = np.linalg.norm(found.projection - flip(eigenbasis(s), k))
    return Approximation(float(error), float(found.error_bound(values[k])), float(floor))


def random_approximation(rng: np.random.Generator) -> Approximation:
    """Eigenvalues that fall fast or slowly, with ties; k from 1 to c − 1."""
    c = int(rng.integers(2, 25))
    values = np.sort(rng.choice([rng.uniform(0, 1, c), 2.0 ** -np.arange(c), np.round(rng.uniform(0, 3, c))]))[::-1]
    basis = np.linalg.qr(rng.standard_normal((c, c)))[0]
    s = (basis * values) @ basis.T
    return approximate((s + s.T) / 2, int(rng.integers(1, c)), int(rng.integers(0, 4)), rng)


def disagreements(rng: np.random.Generator, cases: int) -> list[float]:
    """‖P − P'‖_F of two runs on S = I, where every direction is an eigenvector."""
    eye = np.eye(8)
    pairs = [[leading_eigenvectors(eye, 4, rng, oversampling=0).projection for _ in range(2)] for _ in range(cases)]
    return [float(np.linalg.norm(p - other)) for p, other in pairs]


def check_rsvd(ctx: Context) -> Evidence:
    """The true error against the stated one, on random matrices and key heads; and what a tie at the cut does.

    *Stated error.* Let V (c × k) have orthonormal columns, VᵀSV = diag(θ), θ_1 ≥ … ≥ θ_k, R = SV − V diag(θ), and
    P̂ = I − 2VVᵀ. If θ_k > λ_{k+1}, then ‖P̂ − P_k‖_F ≤ 2√2 ‖R‖_F/(θ_k − λ_{k+1}).

    Proof (Davis & Kahan 1970). Let U' be the eigenvectors of λ_{k+1}, …, λ_c and X = U'ᵀV. Multiplying R by U'ᵀ
    gives diag(λ') X − X diag(θ) = U'ᵀR. Entry (i, j) of the left side is (λ'_i − θ_j) X_ij, and θ_j − λ'_i ≥ θ_k −
    λ_{k+1}, so ‖X‖_F ≤ ‖R‖_F/(θ_k − λ_{k+1}). With U_k the k leading eigenvectors, ‖U_kU_kᵀ − VVᵀ‖_F² = 2k −
    2‖U_kᵀV‖_F² = 2‖X‖_F², as ‖U_kᵀV‖_F² + ‖X‖_F² = ‖V‖_F² = k; and P̂ − P_k is twice that difference. ∎

    λ_{k+1} can be replaced by μ, the greatest eigenvalue of S compressed to the complement V': with Y = V'ᵀU_k,
    multiplying SU_k = U_k diag(λ) by V'ᵀ gives (V'ᵀSV') Y − Y diag(λ) = −V'ᵀSV VᵀU_k, of norm at most ‖R‖_F, and λ_k
    ≥ θ_k (Cauchy). So nothing of the bound asks for a full decomposition.

    *Without a gap* nothing can be stated: for S = I every direction is an eigenvector, with residual zero.
    """
    rng = ctx.rng(0)
    drawn = [random_approximation(rng) for _ in range(2 * ctx.cases)]
    matrices = [gram_sum(q, k) for q, k in model_heads(ctx.subject.model, HEADS)]
    c = ctx.subject.model.config.head_dim
    ks = sorted({max(1, min(c - 1, k)) for k in sweep(c, KS)})
    by_power = {n: [approximate(s, k, n, rng) for s in matrices for k in ks] for n in POWERS}
    heads = [a for found in by_power.values() for a in found]
    apart = disagreements(rng, max(8, ctx.cases))

    def contained(name: str, found: list[Approximation]) -> Check:
        return Check(name=name, statistic="max ‖P̂ − P_k‖_F over stated error plus round-off", unit="1", bound=1,
                     value=max(a.share for a in found), cases=len(found), seed=ctx.seed,
                     tolerance_from="inside the bound: c² eps λ_1 over the gap, for two decompositions")  # fmt: skip

    worst = {n: (max(a.error for a in found), max(a.stated for a in found)) for n, found in by_power.items()}
    return Evidence(
        verdict=Verdict.HOLDS_IF,
        grade=Grade.TESTED,
        condition="the k-th and (k+1)-th eigenvalue differ by much more than the residual of the decomposition",
        explanation=(
            "How far the randomized P is from the exact one can be stated from its residual, whatever the random "
            "numbers were: 2√2 ‖R‖_F over the gap at the cut. No case exceeded it. On this model's key heads two power "
            f"iterations leave an error of up to {worst[2][0]:.1g} (stated {worst[2][1]:.1g}), {POWERS[-1]} leave "
            f"{worst[POWERS[-1]][0]:.1g} (stated {worst[POWERS[-1]][1]:.1g}): trained spectra have small gaps. Where "
            f"two eigenvalues at the cut are equal, two runs give locks {np.median(apart):.1f} apart, both right."
        ),
        checks=[
            contained("the model's key heads", heads),
            contained("random matrices, with ties and small gaps", drawn),
            Check(name="with a tie at the cut two runs disagree", statistic="median ‖P − P'‖_F on S = I", unit="1",
                  value=float(np.median(apart)), bound=1, sense=">=", cases=len(apart), seed=ctx.seed),
        ],
        counterexample=Counterexample(
            given=dict(TIED),
            got=two_answers(TIED),
            want="‖P − P'‖ bounded by a multiple of the residuals",
            by_hand=(
                "S = W_qᵀW_q + W_kᵀW_k = I, so u = (1, 0) and v = (3/5, 4/5) are both leading eigenvectors, exactly.\n"
                "P = diag(−1, 1); P' = I − 2vvᵀ = [[7/25, −24/25], [−24/25, −7/25]].\n"
                "‖P − P'‖² = (32/25)² + 2 (24/25)² + (32/25)² = 3200/625 = 128/25."
            ),
        ),
        deviations=[
            GOVERNING,
            Deviation(
                paper_says="the settings of its randomized SVD were not readable to us",
                we_do=f"8 extra directions, 0 to {POWERS[-1]} power iterations, Rayleigh–Ritz",
                why="Halko, Martinsson & Tropp (2011), Algorithms 4.4 and 5.3",
                effect="none on the bound, which holds for any orthonormal V; the figures depend on it",
            ),
        ],
        plots=[
            Plot(
                title="Randomized against full decomposition on the model's key heads: worst case",
                x_label="power iterations", y_label="‖P̂ − P_k‖_F", y_log=True,
                curves=[
                    Curve(name="stated", x=list(POWERS), y=[worst[n][1] for n in POWERS]),
                    Curve(name="true", x=list(POWERS), y=[worst[n][0] for n in POWERS]),
                ],
            )
        ],
        severity="low",
        fix="Choose k at a wide gap, iterate until the stated error is small, and record the seed.",
    )  # fmt: skip


CLAIMS = (
    Claim(
        id="MB-RSVD",
        title="Randomized SVD gives the same projection",
        statement="Randomized SVD yields the same projection within a stated error.",
        source=Source(paper=PAPER, where="attention projection at scale"),
        kind="theorem",
        recorded=Verdict.HOLDS_IF,
        would_change="A case whose error exceeds the stated one.",
        check=check_rsvd,
        rerun=two_answers,
    ),
)
