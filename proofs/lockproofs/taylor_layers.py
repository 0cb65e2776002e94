"""The MLPs of a model as the Taylor lock meets them: what reaches each hidden unit on the model's own text."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lockproofs.claim import Context, Deviation, MissingInput
from lockref.autodiff import ops
from lockref.locks import taylor_series
from lockref.locks.bases import Observed, observed
from lockref.locks.taylor_model import ACTIVATION, DOWN, gate_and_factor
from lockref.models import qwen3
from lockref.models.skills import stdlib_bytes, text_rows

Array = NDArray[np.float64]

PAPER = "MergeBarrier (arXiv 2511.10712)"
ORDERS = (2, 4, 8, 16, 32)  # orders at which layers are measured
ROWS, LENGTH, TEXT = 4, 128, 2**18  # tokens that a model reads; bytes of text they are cut from
ROOM = 2**31  # bytes that a planted lock may take
SWIGLU = Deviation(
    paper_says="a layer y = W act(z + b) + c is expanded about the midpoint of the range of z",
    we_do="in a SwiGLU layer silu is expanded in z = W_gate x, and W_up x multiplies inside",
    why="Qwen3's MLP has a gate and no biases",
    effect="none on the radius; the factor u scales each unit's error",
)


def tokens(ctx: Context, stream: int, rows: int = ROWS) -> NDArray[np.int64]:
    """Held-out Python text (the zoo reads bytes), for any other model what its audit measures on, (rows, LENGTH)."""
    if ctx.subject.is_zoo:
        return text_rows(stdlib_bytes(held_out=True, limit=TEXT), ctx.rng(stream), rows, LENGTH).astype(np.int64)
    return ctx.tokens(rows, LENGTH, stream)


def check_room(ctx: Context, order: int) -> None:
    """Raises MissingInput where the coefficients of all layers, in float64, would fill more than ROOM."""
    config = ctx.subject.model.config
    size = 8 * (order + 1) * config.num_hidden_layers * config.hidden_size * config.intermediate_size
    if size > ROOM:
        raise MissingInput(f"coefficients of order {order} take {size / 2**30:.1f} GiB, more than {ROOM / 2**30:g}")


def text_name(ctx: Context) -> str:
    return "held-out Python text" if ctx.subject.is_zoo else ctx.subject.text


@dataclass(frozen=True)
class Layer:
    """One MLP as observed: gate pre-activations z and factors u (tokens, m), and W_down (d, m)."""

    z: Array
    u: Array
    down: Array

    @cached_property
    def seen(self) -> Observed:
        return observed(self.z)

    @cached_property
    def center(self) -> Array:
        return self.seen.center

    @cached_property
    def reach(self) -> Array:
        return np.asarray(np.abs(self.z - self.center).max(axis=0))

    @cached_property
    def share(self) -> Array:
        """Reach over radius of convergence, one per unit; below 1 the series converges on the range."""
        return np.asarray(self.reach / taylor_series.radius(ACTIVATION, self.center))

    def stretched(self, share: float) -> "Layer":
        """The layer with every unit's distances from its center scaled so that they reach this share."""
        scale = np.divide(share, self.share, out=np.zeros_like(self.share), where=self.share > 0)
        return Layer(self.center + scale * (self.z - self.center), self.u, self.down)

    def only(self, units: NDArray[np.bool_]) -> "Layer":
        """These units alone: what a layer gets wrong when only they are replaced."""
        return Layer(self.z[:, units], self.u[:, units], self.down[:, units])

    @cached_property
    def errors(self) -> list[float]:
        """‖Taylor layer − layer‖_F / ‖layer‖_F over the tokens, for every one of ORDERS."""
        want = ops.silu(self.z)
        size = np.linalg.norm((want * self.u) @ self.down.T)
        sums = taylor_series.partial_sums(ACTIVATION, self.z, self.center, ORDERS)
        return [float(np.linalg.norm(((s - want) * self.u) @ self.down.T) / size) for s in sums]


def observe(ctx: Context, stream: int = 1) -> list[Layer]:
    """The subject's MLPs on these tokens."""
    model, layers = ctx.subject.model, []
    for w, _, x in qwen3.walk(model.tensors, tokens(ctx, stream), model.config):
        h = qwen3.mlp_norm(w, x, model.config).reshape(-1, model.config.hidden_size)
        layers.append(Layer(*gate_and_factor(w, h), w[DOWN]))
    return layers
