"""Merging operators, the attacker's tools: one generalized operator, and a page of named settings.

    merged = merge(base, [expert, other], "ties", weights=[1.0, 0.5])
    merge(base, experts, SETTINGS["task-arithmetic"].tuned(scale=0.4)).tensors

Published codes that carry one name do not compute the same; `settings` says how each differs.
"""

from lockref.merging.operator import Account, Merged, entry_factors, merge
from lockref.merging.paths import barrier, path_losses, point
from lockref.merging.scales import Fit, Scale, expected_scales, fitted_scales, observed_scales
from lockref.merging.settings import SETTINGS, Cart, Elect, Entries, Setting, Slerp, Trim, Tsv
from lockref.merging.spaces import Adapter

__all__ = [
    "SETTINGS",
    "Account",
    "Adapter",
    "Cart",
    "Elect",
    "Entries",
    "Fit",
    "Merged",
    "Scale",
    "Setting",
    "Slerp",
    "Trim",
    "Tsv",
    "barrier",
    "entry_factors",
    "expected_scales",
    "fitted_scales",
    "merge",
    "observed_scales",
    "path_losses",
    "point",
]
