"""Merging operators, the attacker's tools against a training-time lock: scales, variants of one name, spaces."""

from lockproofs.claims import merging_scale, merging_spaces, merging_variants

CLAIMS = (*merging_scale.CLAIMS, *merging_variants.CLAIMS, *merging_spaces.CLAIMS)
