"""MergeBarrier's Taylor layers (arXiv 2511.10712): convergence, bounds, utility, and what they hide."""

from lockproofs.claims import (
    taylor_attacks,
    taylor_bases,
    taylor_bounds,
    taylor_convergence,
    taylor_lwe,
    taylor_noise,
)

CLAIMS = (
    *taylor_convergence.CLAIMS,
    *taylor_bounds.CLAIMS,
    *taylor_bases.CLAIMS,
    *taylor_attacks.CLAIMS,
    *taylor_lwe.CLAIMS,
    *taylor_noise.CLAIMS,
)
