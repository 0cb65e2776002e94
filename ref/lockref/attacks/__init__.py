"""The attacks: what each adversary does to a locked checkpoint.

Those on DLR-Nets, as networks (params, x) -> y that replace `dlrnet.forward`, or as estimates of a gradient; attacks on
one released checkpoint are listed in `lockref.attacks.registry`.
"""

from lockref.attacks.checkpointing import checkpointed, nested, scheduled
from lockref.attacks.fixed_point import NotAContraction, invert_block
from lockref.attacks.gradient_free import forward_gradient, relative_variance, zeroth_order
from lockref.attacks.inversion import error_growth, inverted

__all__ = [
    "NotAContraction", "checkpointed", "error_growth", "forward_gradient", "invert_block", "inverted", "nested",
    "relative_variance", "scheduled", "zeroth_order",
]  # fmt: skip
