"""Forward and reverse mode on NumPy arrays, with an exact account of what reverse mode stores."""

from lockref.autodiff import ops, schedules
from lockref.autodiff.array import Traced, primal
from lockref.autodiff.checkpoint import checkpoint, custom_vjp, run_chain
from lockref.autodiff.forward import hvp, jacfwd, jvp
from lockref.autodiff.ledger import Ledger, Saved, saved
from lockref.autodiff.primitive import Primitive, primitive
from lockref.autodiff.reverse import Pullback, grad, jacrev, value_and_grad, vjp

__all__ = [
    "Ledger",
    "Primitive",
    "Pullback",
    "Saved",
    "Traced",
    "checkpoint",
    "custom_vjp",
    "grad",
    "hvp",
    "jacfwd",
    "jacrev",
    "jvp",
    "ops",
    "primal",
    "primitive",
    "run_chain",
    "saved",
    "schedules",
    "value_and_grad",
    "vjp",
]
