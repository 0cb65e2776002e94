"""Trap² (arXiv 2601.21898): its objective, its weighting, and what its updates survive."""

from lockproofs.claims import (
    trap2_agnostic,
    trap2_bounded,
    trap2_collapse,
    trap2_gradient,
    trap2_merge,
    trap2_recover,
    trap2_utility,
    trap2_weight,
)

CLAIMS = (
    *trap2_gradient.CLAIMS,
    *trap2_weight.CLAIMS,
    *trap2_bounded.CLAIMS,
    *trap2_utility.CLAIMS,
    *trap2_collapse.CLAIMS,
    *trap2_merge.CLAIMS,
    *trap2_recover.CLAIMS,
    *trap2_agnostic.CLAIMS,
)
