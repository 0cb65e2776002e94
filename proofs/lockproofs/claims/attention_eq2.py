"""MergeBarrier's eq. (2) in closed form (arXiv 2511.10712)."""

from collections.abc import Iterator
from itertools import product

import numpy as np
from flint import fmpq

from lockproofs import exact
from lockproofs.attention_trials import model_heads, none_found
from lockproofs.claim import Check, Claim, Context, Evidence, Grade, Source, Verdict
from lockproofs.claims.attention_function import PAPER
from lockproofs.claims.attention_theorem2 import eq2
from lockref.locks.attention import eq2 as eq2_as_written
from lockref.locks.attention import eq2_from_grams, grams

EPS = 2.0**-52
HEADS = 8


def closed_form(w_q: exact.Matrix, w_k: exact.Matrix, p: exact.Matrix) -> exact.Rational:
    """(1/16) ‖W_q (P − I)(P − I)ᵀ W_kᵀ‖_F²."""
    moved = p - exact.identity(p.nrows())
    return exact.squared_norm(w_q * moved * moved.transpose() * w_k.transpose()) / 16


def expansion_breaks(p: exact.Matrix) -> bool:
    """Is (P + I)(P + I)ᵀ − 4I + (P − I)(P − I)ᵀ anything but 2 (PPᵀ − I), for any square P?"""
    one = exact.identity(p.nrows())
    plus, minus = p + one, p - one
    left = plus * plus.transpose() - one * 4 + minus * minus.transpose()
    return bool(left != (p * p.transpose() - one) * 2)


def all_expansions(rng: np.random.Generator) -> Iterator[bool]:
    """Every P with entries −1, 0, 1 for c ≤ 2, which decides a polynomial of degree 2 in each entry; random above."""
    for c in (1, 2):
        for entries in product((-1, 0, 1), repeat=c * c):
            yield expansion_breaks(exact.matrix([list(entries[i * c : i * c + c]) for i in range(c)]))
    for c in (3, 4, 5):
        yield expansion_breaks(exact.random_matrix(rng, c, c))


def closed_form_breaks(rng: np.random.Generator) -> list[bool]:
    """For all small sizes and a rational orthogonal P: do the two forms differ?"""
    found = []
    for d, c in product(range(1, 4), range(1, 5)):
        w_q, w_k, p = exact.random_matrix(rng, d, c), exact.random_matrix(rng, d, c), exact.random_orthogonal(rng, c)
        found.append(eq2(w_q, w_k, p) != closed_form(w_q, w_k, p))
    return found


def agreements_without_orthogonality(rng: np.random.Generator) -> list[bool]:
    """Unit weights and P = 1.1 Q: are (P + I)(P + I)ᵀ − 4I and −(P − I)(P − I)ᵀ equal?"""
    found = []
    for c in range(1, 5):
        one, p = exact.identity(c), exact.random_orthogonal(rng, c) * fmpq(11, 10)
        moved = p - one
        found.append((p + one) * (p + one).transpose() - one * 4 == moved * moved.transpose() * -1)
    return found


def float_shares(ctx: Context) -> list[float]:
    """On key heads of the model, |eq. (2) as written − closed form| over its round-off bound.

    Each entry of the d × d matrix sums c products twice and the norm d² squares, all below 16 ‖W_q‖²‖W_k‖²/16.
    """
    rng, found = ctx.rng(1), []
    for q, k in model_heads(ctx.subject.model, HEADS):
        a, b = grams(q, k)
        c, d = k.shape
        p = np.linalg.qr(rng.standard_normal((c, c)))[0]
        allowed = (8 * c + d * d) * 4 * c * EPS * np.trace(a) * np.trace(b)
        difference = abs(float(eq2_as_written(q, k, p)) - float(eq2_from_grams(a, b, p)))
        found.append(difference / allowed if allowed else difference)
    return found


def check_eq2(ctx: Context) -> Evidence:
    """Exact arithmetic for all small sizes, and key heads of the model in float64.

    Proof. For every square P, (P + I)(P + I)ᵀ + (P − I)(P − I)ᵀ = 2PPᵀ + 2I: the terms P and Pᵀ cancel. So

        (W_q P + W_q)(W_k P + W_k)ᵀ − 4 W_q W_kᵀ = −W_q (P − I)(P − I)ᵀ W_kᵀ + 2 W_q (PPᵀ − I) W_kᵀ,

    and for an orthogonal P the last term is zero. Norms of opposite matrices agree. ∎

    With grouped queries both sides are sums over the query heads. Where PPᵀ ≠ I the last term is there, so the two
    forms differ for weights of full rank.
    """
    rng = ctx.rng(0)
    shares = float_shares(ctx)
    return Evidence(
        verdict=Verdict.HOLDS,
        grade=Grade.PROVED,
        explanation=(
            "Expanding the products, P and Pᵀ cancel, and PPᵀ = I does the rest. It needs no more than an orthogonal "
            "P, and no less: for P = 1.1 Q the two sides differ. So eq. (2) sees the weights through W_qᵀW_q and "
            "W_kᵀW_k only, and P through (P − I)(P − I)ᵀ."
        ),
        checks=[
            none_found("the two forms agree, exactly", "orthogonal P and weights for which they differ",
                       closed_form_breaks(rng), ctx.seed),
            none_found("the expansion for any square P, exactly", "P for which it fails: all of −1, 0, 1 up to c = 2",
                       list(all_expansions(rng)), ctx.seed),
            none_found("P must be orthogonal, exactly", "P = 1.1 Q for which the two matrices agree",
                       agreements_without_orthogonality(rng), ctx.seed),
            Check(name="the model's key heads in float64", statistic="max |difference| over its round-off bound",
                  unit="1", value=max(shares), bound=1, cases=len(shares), seed=ctx.seed,
                  tolerance_from="the bound: sums of c products and of d² squares, relative to ‖W_q‖²‖W_k‖²"),
        ],
    )  # fmt: skip


CLAIMS = (
    Claim(
        id="MB-EQ2",
        title="Eq. (2) in closed form",
        statement="Eq. (2) equals (1/16)‖W_q(P−I)(P−I)ᵀW_kᵀ‖_F².",
        source=Source(paper=PAPER, where="eq. (2)"),
        kind="theorem",
        recorded=Verdict.HOLDS,
        would_change="Nothing: it is an identity, proved by expanding both sides.",
        check=check_eq2,
    ),
)
