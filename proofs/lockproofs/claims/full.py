"""Claims about the whole: the locks together, and the two implementations of them."""

from lockproofs.claims.full_function import FUNCTION
from lockproofs.claims.full_manifest import MANIFEST
from lockproofs.claims.full_parity import PARITY
from lockproofs.claims.full_pipeline import PIPELINE

CLAIMS = (FUNCTION, MANIFEST, PIPELINE, PARITY)
