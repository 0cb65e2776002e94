"""MergeBarrier's attention projection (arXiv 2511.10712): function, Theorem 2, attacks."""

from lockproofs.claims import attention_attacks, attention_function, attention_theorem2

CLAIMS = (*attention_function.CLAIMS, *attention_theorem2.CLAIMS, *attention_attacks.CLAIMS)
