"""MergeBarrier's Theorem 2 (b) and (c): the maximizers of the surrogate (arXiv 2511.10712)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from flint import fmpq

from lockproofs import exact
from lockproofs.attention_trials import model_heads, none_found
from lockproofs.claim import Check, Claim, Context, Counterexample, Evidence, Grade, Source, Verdict
from lockproofs.claims.attention_function import GOVERNING, PAPER
from lockref.locks.attention import cross_sum, gram_sum

EPS = 2.0**-52
HEADS = 8
PROJECTIONS = 16  # random ones for each key head


# --- MB-T2B and MB-T2C: maximizers of −tr(SP) ---------------------------------------------------------------------


@dataclass(frozen=True)
class Spectral:
    """S = U diag(λ) Uᵀ with a rational orthogonal U; zero eigenvalues come last."""

    basis: exact.Matrix
    values: list[int]

    def conjugate(self, diagonal: exact.Matrix) -> exact.Matrix:
        return self.basis * diagonal * self.basis.transpose()

    @property
    def zeros(self) -> int:
        return self.values.count(0)

    def gain(self, p: exact.Matrix) -> exact.Rational:
        """−tr(SP): what maximizing the surrogate maximizes."""
        return exact.trace(self.conjugate(exact.diagonal(self.values)) * p) * -1

    def diagonal(self, p: exact.Matrix) -> list[exact.Rational]:
        """(UᵀPU)_ii."""
        turned = self.basis.transpose() * p * self.basis
        return [turned[i, i] for i in range(len(self.values))]

    def certificate(self, p: exact.Matrix) -> exact.Rational:
        """½ tr(|S| (JP + I)(JP + I)ᵀ), never negative; J = U diag(sign λ) Uᵀ, with +1 for the sign of 0."""
        c = len(self.values)
        signs = self.conjugate(exact.diagonal([-1 if x < 0 else 1 for x in self.values]))
        factor = signs * p + exact.identity(c)
        size = self.conjugate(exact.diagonal([abs(x) for x in self.values]))
        return exact.trace(size * factor * factor.transpose()) / 2

    def maximizer(self, rng: np.random.Generator) -> exact.Matrix:
        """−sign λ on the eigenvectors, and any orthogonal matrix on the null space."""
        c, n = len(self.values), self.zeros
        inner = exact.diagonal([-1 if x > 0 else 1 for x in self.values])
        if n:
            block = exact.random_orthogonal(rng, n)
            for i, j in product(range(n), repeat=2):
                inner[c - n + i, c - n + j] = block[i, j]
        return self.conjugate(inner)


def random_spectral(rng: np.random.Generator, zeros: int) -> Spectral:
    """Two to three eigenvalues of either sign, sometimes repeated, and `zeros` zeros."""
    values = rng.choice([-5, -2, -2, 1, 3, 3, 7], int(rng.integers(1, 4))).tolist() + [0] * zeros
    return Spectral(exact.random_orthogonal(rng, len(values)), values)


def certificate_breaks(rng: np.random.Generator, cases: int) -> list[bool]:
    """Is Σ|λ| + tr(SP) anything but the certificate, which is a sum of squares, for a rational orthogonal P?"""
    found = []
    for case in range(cases):
        s = random_spectral(rng, case % 3)
        p = exact.random_orthogonal(rng, len(s.values))
        found.append(sum(map(abs, s.values)) - s.gain(p) != s.certificate(p) or s.certificate(p) < 0)
    return found


def attainment_breaks(rng: np.random.Generator, cases: int) -> list[bool]:
    """Is the maximum reached without the signs of (b), or missed with them?"""
    found = []
    for case in range(cases):
        s = random_spectral(rng, case % 3)
        across = exact.reflection([1, *rng.integers(-3, 4, len(s.values) - 1).tolist()])
        for p in (exact.random_orthogonal(rng, len(s.values)), s.conjugate(across)):
            found.append(reached(s, p) != signed(s, p))
        best = s.maximizer(rng)
        found.append(not (reached(s, best) and signed(s, best)))
    return found


def reached(s: Spectral, p: exact.Matrix) -> bool:
    return bool(s.gain(p) == sum(map(abs, s.values)))


def signed(s: Spectral, p: exact.Matrix) -> bool:
    return all(x == -int(np.sign(v)) for x, v in zip(s.diagonal(p), s.values, strict=True) if v)


def float_excess(ctx: Context) -> tuple[float, float, int]:
    """On key heads, for both governing matrices: greatest −tr(SP)/Σ|λ| of random P, and of the stated one."""
    rng, drawn, stated = ctx.rng(1), [], []
    for q, k in model_heads(ctx.subject.model, HEADS):
        for matrix in (gram_sum, cross_sum):
            s = matrix(q, k)
            values, basis = np.linalg.eigh(s)
            top = float(np.sum(np.abs(values))) or 1.0
            best = (basis * -np.sign(values)) @ basis.T
            random = np.linalg.qr(rng.standard_normal((PROJECTIONS, *s.shape)))[0]
            drawn.append(float(np.max(-np.einsum("ij,nji->n", s, random))) / top)
            stated.append(abs(1 + float(np.sum(s * best)) / top))
    return max(drawn), max(stated), len(drawn)


def check_t2b(ctx: Context) -> Evidence:
    """A dual certificate in exact arithmetic, and key heads of the model with two governing matrices.

    Maximizing the surrogate g(P) = 2 tr S − 2 tr(SP) is maximizing −tr(SP). Let S = U diag(λ) Uᵀ be any symmetric
    matrix, |S| = U diag|λ| Uᵀ, and J = U diag(±1) Uᵀ with the signs of λ (any sign for 0), so that J S = |S|, J² = I.

    *Certificate.* For every orthogonal P

        Σ|λ_i| − (−tr(SP)) = ½ tr(|S| (JP + I)(JP + I)ᵀ) ≥ 0.

    Proof. (JP + I)(JP + I)ᵀ = J PPᵀ J + JP + PᵀJ + I = 2I + JP + (JP)ᵀ, and tr(|S| JP) = tr(SP) as |S| J = S. ∎

    *Maximizers.* Equality iff |S|^½ (JP + I) = 0, that is, row i of UᵀPU is −sign(λ_i) e_iᵀ wherever λ_i ≠ 0. Then
    (UᵀPU)_ii = −sign λ_i. Conversely, with these diagonal entries −tr(SP) = −Σ λ_i (UᵀPU)_ii = Σ|λ_i|. So P
    maximizes −tr(SP) if and only if (b) holds, for any eigenbasis U, also of repeated eigenvalues. ∎
    """
    tolerance = ctx.subject.model.config.head_dim**2.5 * 8 * EPS
    drawn, stated, heads = float_excess(ctx)
    derived = "eigenvectors and P orthonormal to c^2.5 eps, a trace over c², relative to Σ|λ|"
    return Evidence(
        verdict=Verdict.HOLDS,
        grade=Grade.PROVED,
        condition="of the maximizers of the surrogate; eq. (2) itself has others (MB-T2A)",
        explanation=(
            "−tr(SP) falls short of Σ|λ| by a sum of squares that vanishes exactly if P sends each eigenvector with λ "
            "> 0 to its opposite and leaves those with λ < 0 alone. This is true for every symmetric S, so it does not "
            "matter which one the paper means. With S = W_qᵀW_q + W_kᵀW_k no λ is negative and the maximizer is −I on "
            f"everything that the weights see. Random P on the model's heads reach at most {drawn:.0%} of Σ|λ|."
        ),
        checks=[
            none_found("the gap to Σ|λ| is a sum of squares, exactly", "rational S and P for which it is not",
                       certificate_breaks(ctx.rng(0), ctx.cases), ctx.seed),
            none_found("reached if and only if the signs are those of (b), exactly", "cases that contradict it",
                       attainment_breaks(ctx.rng(2), ctx.cases), ctx.seed),
            Check(name="the stated P reaches Σ|λ| on the model's heads", statistic="|−tr(SP)/Σ|λ| − 1|", unit="1",
                  value=stated, bound=0, tolerance=tolerance, tolerance_from=derived, cases=heads),
            Check(name="no random P exceeds Σ|λ| on the model's heads", statistic="max −tr(SP)/Σ|λ|", unit="1",
                  value=drawn, bound=1, tolerance=tolerance, tolerance_from=derived, cases=heads * PROJECTIONS,
                  seed=ctx.seed),
        ],
        deviations=[GOVERNING.model_copy(update={"effect": "none: the proof is for every symmetric matrix"})],
    )  # fmt: skip


def horn_breaks(diagonal: list[exact.Rational], proper: bool) -> bool:
    """Does a diagonal of an orthogonal n × n matrix break Horn's inequalities?

    Σ s_i d_i ≤ n − 2 for all signs s whose product is −1 (det = 1) or +1 (det = −1).
    """
    n = len(diagonal)
    return any(
        sum(s * d for s, d in zip(signs, diagonal, strict=True)) > n - 2
        for signs in product((1, -1), repeat=n)
        if int(np.prod(signs)) == (-1 if proper else 1)
    )


def null_diagonals(
    rng: np.random.Generator, cases: int, zeros: Sequence[int], judge: Callable[[list[Any], bool], bool]
) -> list[bool]:
    """What `judge` says of a maximizer's diagonal on the null space and of its det there, for each number of zeros."""
    found = []
    for _, n in product(range(cases), zeros):
        s = random_spectral(rng, n)
        p = s.maximizer(rng)
        signs = int(np.prod([-np.sign(x) for x in s.values if x]))
        found.append(judge(s.diagonal(p)[-n:], p.det() * signs == 1))
    return found


def zero_eigenvalues(ctx: Context) -> int:
    """How many eigenvalues of S on the model's heads are zero to round-off."""
    found = 0
    for q, k in model_heads(ctx.subject.model, HEADS):
        values = np.linalg.eigvalsh(gram_sum(q, k))
        found += int(np.sum(values <= len(values) ** 2 * EPS * values[-1]))
    return found


def missing_column(given: dict[str, Any]) -> str:
    """What the second column of P would have to be, for S = diag(λ, 0) and the wanted (2, 2) entry."""
    first, wanted = fmpq(-int(np.sign(given["S"][0][0]))), exact.matrix([[given["P_22"]]])[0, 0]
    across = 1 - first * first  # the square of P_12: rows have length 1
    return f"P_12² = {across}, so the second column has squared length {across + wanted * wanted}, not 1"


def _counterexample() -> Counterexample:
    given = {"S": [[1, 0], [0, 0]], "P_22": "1/2"}
    return Counterexample(
        given=given,
        got=missing_column(given),
        want="a maximizer of −tr(SP) = −P_11 with P_22 = 1/2",
        by_hand=(
            "−tr(SP) = −P_11 is largest at P_11 = −1. The first row has length 1, so P_12 = 0.\n"
            "The second column (P_12, P_22) = (0, P_22) has length 1, so P_22 is 1 or −1, and not 1/2."
        ),
    )


def check_t2c(ctx: Context) -> Evidence:
    """Exact arithmetic on the maximizers with one to three zero eigenvalues.

    A maximizer sends every eigenvector with λ ≠ 0 to ± itself (MB-T2B), so it maps the null space of S, of dimension
    n, to itself by an orthogonal n × n matrix R, and any R will do. The entries (UᵀPU)_ii with λ_i = 0 are the
    diagonal of R.

    *n = 1.* R = ±1: no value between is possible.

    *n ≥ 2.* One entry alone may be any value of [−1, 1]: rotate two null directions. All of them together may not be
    arbitrary: let s be signs with Π s_i = −det R. Then Σ s_i R_ii ≤ n − 2.

    Proof. diag(s) R is orthogonal with determinant −1, so −1 is among its eigenvalues; the others have modulus 1, and
    the trace is at most n − 1 − 1. ∎  Horn (1954) shows that nothing else is excluded. For n = 2 it says: the two
    entries are equal, or opposite.
    """
    cases = max(8, ctx.cases)
    singles = null_diagonals(ctx.rng(0), cases, [1], lambda d, _: d[0] ** 2 != 1)
    horn = null_diagonals(ctx.rng(1), cases, [1, 2, 3], horn_breaks)
    inside = null_diagonals(ctx.rng(2), cases, [2], lambda d, _: d[0] ** 2 < 1)
    return Evidence(
        verdict=Verdict.REFUTED,
        grade=Grade.PROVED,
        condition="true for one entry at a time where two or more eigenvalues are zero",
        explanation=(
            "With a single zero eigenvalue the entry is +1 or −1: the other rows and columns are already full. With "
            "more of them each entry may be anything from −1 to 1, but not all at once: the diagonal of an orthogonal "
            f"matrix obeys Horn's inequalities. It hardly matters in practice: of the model's heads looked at, "
            f"{zero_eigenvalues(ctx)} eigenvalues are zero to round-off."
        ),
        checks=[
            none_found("one zero eigenvalue leaves ±1 only, exactly", "maximizers with another entry", singles,
                       ctx.seed),
            none_found("Horn's inequalities, exactly", "maximizers that break them", horn, ctx.seed),
            Check(name="two zeros allow entries between, exactly", statistic="maximizers with such an entry",
                  unit="cases", value=sum(inside), bound=1, sense=">=", cases=len(inside), seed=ctx.seed),
        ],
        counterexample=_counterexample(),
        assumptions=["\"arbitrary\" is read as any value of [−1, 1]"],
        deviations=[GOVERNING.model_copy(update={"effect": "none: the proof is for every symmetric matrix"})],
        severity="low",
        fix="Say that P restricted to the null space of S is an arbitrary orthogonal matrix.",
    )  # fmt: skip


CLAIMS = (
    Claim(
        id="MB-T2B",
        title="Signs of the maximizer on the eigenvectors",
        statement="The maximizer has (UᵀPU)_ii = −1 where λ_i > 0 and +1 where λ_i < 0.",
        source=Source(paper=PAPER, where="Theorem 2 (b)"),
        kind="theorem",
        recorded=Verdict.HOLDS,
        would_change="Nothing for the surrogate: it is proved. Of eq. (2) itself it is false (MB-T2A).",
        check=check_t2b,
    ),
    Claim(
        id="MB-T2C",
        title="Zero eigenvalues leave the diagonal free",
        statement="Where λ_i = 0, (UᵀPU)_ii may take any value.",
        source=Source(paper=PAPER, where="Theorem 2 (c)"),
        kind="theorem",
        recorded=Verdict.REFUTED,
        would_change="Nothing: the counterexample is exact. Two zero eigenvalues and one entry at a time make it true.",
        check=check_t2c,
        rerun=missing_column,
    ),
)
