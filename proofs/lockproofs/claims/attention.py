"""MergeBarrier's attention projection (arXiv 2511.10712): function, Theorem 2, relaxations, attacks."""

from lockproofs.claims import (
    attention_anchor,
    attention_attacks,
    attention_barrier,
    attention_eq2,
    attention_function,
    attention_optimum,
    attention_randomized,
    attention_relaxation,
    attention_rotary,
    attention_theorem2,
)

CLAIMS = (
    *attention_function.CLAIMS,
    *attention_eq2.CLAIMS,
    *attention_theorem2.CLAIMS,
    *attention_optimum.CLAIMS,
    *attention_relaxation.CLAIMS,
    *attention_randomized.CLAIMS,
    *attention_rotary.CLAIMS,
    *attention_attacks.CLAIMS,
    *attention_anchor.CLAIMS,
    *attention_barrier.CLAIMS,
)
