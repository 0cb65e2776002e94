"""Forward and reverse mode on NumPy arrays, with an exact account of what reverse mode stores."""

from lockref.autodiff import ops, schedules
from lockref.autodiff.array import Traced, primal
from lockref.autodiff.checkpoint import checkpoint, custom_vjp, run_chain
from lockref.autodiff.forward import hvp, jacfwd, jvp
from lockref.autodiff.gradcheck import GradientError, GradientReport, gradcheck
from lockref.autodiff.ledger import Ledger, Saved, saved
from lockref.autodiff.pages import keep_pages
from lockref.autodiff.primitive import Primitive, primitive
from lockref.autodiff.reverse import Pullback, grad, jacrev, value_and_grad, vjp
from lockref.autodiff.timeline import Moment, timeline

__all__ = [
    "GradientError",
    "GradientReport",
    "Ledger",
    "Moment",
    "Primitive",
    "Pullback",
    "Saved",
    "Traced",
    "checkpoint",
    "custom_vjp",
    "grad",
    "gradcheck",
    "hvp",
    "jacfwd",
    "jacrev",
    "jvp",
    "keep_pages",
    "ops",
    "primal",
    "primitive",
    "run_chain",
    "saved",
    "schedules",
    "timeline",
    "value_and_grad",
    "vjp",
]
