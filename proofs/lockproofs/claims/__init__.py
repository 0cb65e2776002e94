"""A module for each paper: a claim, its check and its counterexample stand together.

Each of them exposes `CLAIMS`, a tuple of claims.
"""

from importlib import import_module

from lockproofs.claim import Claim

PAPERS = ("autodiff", "dlr", "attention", "taylor", "trap2", "merging", "full")


def all_claims() -> dict[str, Claim]:
    """Every claim by id, paper after paper. Raises ValueError if an id is taken twice."""
    from lockproofs.auditing import FORMS  # which stands on the claims' modules

    claims: dict[str, Claim] = {}
    for paper in PAPERS:
        for claim in import_module(f"{__name__}.{paper}").CLAIMS:
            if claim.id in claims:
                raise ValueError(f"claim id {claim.id} is taken twice: rename one")
            own = claim.on_subject or FORMS.get(claim.id)
            claims[claim.id] = claim.model_copy(update={"on_subject": own})
    return claims
