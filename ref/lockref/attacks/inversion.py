"""h-only inversion: the gradients of a DLR-Net from r numbers per block and token, and one state for all of it.

A residual block x_{l+1} = x_l + B_l σ(h_l) with h_l = A_l N_l(x_l) hands its input back to whoever knows h_l:

    x_l = x_{l+1} − B_l σ(h_l)

and x_l is all that the block's derivative rules read besides: the norm's 1/rms is a function of it. So a reverse
pass keeps r L + d elements per token, for every norm and activation, instead of L (d + …).

Nothing is inverted that could be ill-conditioned: B_l σ(h_l) comes out in the same bits both times, and the sum of
the rounding errors of one addition and one subtraction per block is the whole error of a state,

    |x̂_l − x_l| ≤ u Σ_{k ≥ l} (|x_{k+1}| + |x̂_k|)   elementwise, u the unit round-off,

linear in the depth whatever the Lipschitz constants are. (Gomez et al., arXiv 1707.04585, invert networks that were
built for it; here it is the lock's own residual form that permits it.)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np

from lockref.autodiff import Traced, checkpoint, custom_vjp, ops
from lockref.autodiff.ops.activations import WITH_SLOPE
from lockref.autodiff.ops.fused import row_dot
from lockref.autodiff.ops.residual_block import pull, pull_normed, pull_normed_x, pull_x
from lockref.models import dlrnet
from lockref.models.dlrnet import DLRConfig

Network = Callable[[Mapping[str, Any], Any], Any]
Block = dict[str, Any]
Step = tuple[Any, Any, Any]  # a block's input x_l, and σ(h_l) and σ'(h_l), each computed once for all that reads it
HELD = {"float32": np.dtype(np.float32), "float64": np.dtype(np.float64), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def inverted(config: DLRConfig, *, segments: int = 1, held: str | None = None, frozen: bool = False) -> Network:
    """The DLR-Net of `config` as (params, x) -> y, whose reverse pass keeps h_l and one state: r L + d per token.

    x (…, tokens, d), float32 or float64. `segments` > 1 recomputes: S d + r ⌈L/S⌉ at most, for one more forward
    pass. `held` rounds states and hidden columns to a storage type ("bfloat16" emulates a model that runs in it).
    `frozen` computes the cotangent of x alone. Raises ValueError for tensors that do not fit, impossible segments,
    an unknown type, and weights under differentiation where they are said to be frozen.
    """
    bounds, run = segment_bounds(config, segments), reversible(config, held, frozen)

    def network(params: Mapping[str, Any], x: Any) -> Any:
        dlrnet.require_shapes(params, np.shape(x), config)
        if frozen and any(isinstance(w, Traced) for w in params.values()):
            raise ValueError("inverted: the weights are under differentiation; leave frozen=True out")
        weights, out = blocks(params, config), x
        for start, stop in bounds:
            segment = checkpoint(run) if segments > 1 else run
            out = segment(weights[start:stop], out)
        return ops.subtract(out, x) if config.placement == "difference" else out

    return network


def segment_bounds(config: DLRConfig, segments: int) -> list[tuple[int, int]]:
    """First block of each segment and the one after its last: as equal as can be. Raises ValueError."""
    if not 1 <= segments <= config.depth:
        raise ValueError(f"DLR-Net: {segments} segments of {config.depth} blocks; choose 1 … {config.depth}")
    return list(pairwise(config.depth * i // segments for i in range(segments + 1)))


def reversible(
    config: DLRConfig, held: str | None = None, frozen: bool = False
) -> Callable[[Sequence[Block], Any], Any]:
    """(blocks, x_0) -> x_L for any number of blocks, with the backward rule of this module."""
    cell = Cell(config, held)
    if frozen:
        return _frozen(cell)

    def forward(weights: Sequence[Block], x: Any) -> tuple[Any, Any]:
        out, kept = cell.run(weights, x)
        return out, {"weights": weights, **kept}

    def backward(kept: Any, g: Any) -> Any:
        hidden = [cell.load(h, g) for h in kept["hidden"]]
        steps = cell.undone(kept["weights"], hidden, cell.load(kept["out"], g))
        return cell.backward(kept["weights"], hidden, steps, g)

    return custom_vjp(forward, backward, "inverted")


def _frozen(cell: "Cell") -> Callable[[Sequence[Block], Any], Any]:
    """The same for weights that are constants: their cotangents are not computed."""

    def run(weights: Sequence[Block], x: Any) -> Any:
        def forward(x: Any) -> tuple[Any, Any]:
            return cell.run(weights, x)

        def backward(kept: Any, g: Any) -> Any:
            hidden = [cell.load(h, g) for h in kept["hidden"]]
            steps = cell.undone(weights, hidden, cell.load(kept["out"], g))
            for w, h, (x, _, slope) in zip(reversed(weights), reversed(hidden), steps, strict=True):
                g = cell.pull_input(w, h, x, slope, g)
            return (g,)

        return custom_vjp(forward, backward, "inverted")(x)

    return run


def blocks(params: Mapping[str, Any], config: DLRConfig) -> list[Block]:
    """The weights of each block: a (r, d), b (d, r) and, with norm "rms_gain", gain (d,)."""
    names = ("a", "b", "gain") if config.norm == "rms_gain" else ("a", "b")
    return [{name: params[f"blocks.{i}.{name}"] for name in names} for i in range(config.depth)]


@dataclass(frozen=True)
class Cell:
    """One kind of block, forward, backward and undone, on plain arrays."""

    config: DLRConfig
    held: str | None = None

    def __post_init__(self) -> None:
        if self.held is not None and self.held not in HELD:
            raise ValueError(f"inverted: held {self.held!r} is unknown; choose from {', '.join(HELD)}")

    def store(self, x: Any) -> Any:
        return x if self.held is None else x.astype(HELD[self.held])

    def load(self, x: Any, like: Any) -> Any:
        return x if self.held is None else x.astype(like.dtype)

    def rounded(self, x: Any) -> Any:
        return self.load(self.store(x), x)

    def hidden(self, w: Block, x: Any) -> Any:
        """h = A N(x)."""
        h = np.matmul(x, self._folded(w).T)
        return self.rounded(h if self.config.norm == "none" else h * self._rstd(x))

    def added(self, w: Block, h: Any) -> Any:
        """B σ(h): what the block adds, in the same bits whenever it is computed from the same h."""
        return np.matmul(ops.ACTIVATIONS[self.config.activation](h), w["b"].T)

    def activated(self, h: Any) -> tuple[Any, Any]:
        """σ(h) and σ'(h)."""
        return WITH_SLOPE[self.config.activation](h)

    def forward(self, weights: Sequence[Block], x: Any) -> Iterator[tuple[Any, Any]]:
        """x_{l+1} and h_l, block after block."""
        x = self.rounded(x)
        for w in weights:
            h = self.hidden(w, x)
            x = self.rounded(_reusing(np.add, x, self.added(w, h)))
            yield x, h

    def run(self, weights: Sequence[Block], x: Any) -> tuple[Any, dict[str, Any]]:
        """x_L, the last state that forward yields, and what inversion keeps; one state at a time is alive."""
        hidden: list[Any] = []
        out = x
        for out, h in self.forward(weights, x):  # noqa: B007
            hidden.append(self.store(h))
        return out, {"out": self.store(out), "hidden": hidden}

    def undone(self, weights: Sequence[Block], hidden: Sequence[Any], out: Any) -> Iterator[Step]:
        """The steps of the blocks, last one first, their inputs reconstructed from x_L one after the other."""
        for w, h in zip(reversed(weights), reversed(hidden), strict=True):
            value, slope = self.activated(h)
            added = np.matmul(value, w["b"].T)  # in the bits of added(w, h)
            out = self.rounded(_reusing(np.subtract, out, added))
            yield out, value, slope

    def states(self, weights: Sequence[Block], hidden: Sequence[Any], out: Any) -> Iterator[Any]:
        """x_{L−1}, …, x_0, reconstructed from x_L."""
        return (x for x, _, _ in self.undone(weights, hidden, out))

    def known(self, hidden: Sequence[Any], states: Iterable[Any]) -> Iterator[Step]:
        """The steps of the blocks, last one first, for inputs that are known."""
        return ((x, *self.activated(h)) for h, x in zip(reversed(hidden), states, strict=True))

    def backward(
        self, weights: Sequence[Block], hidden: Sequence[Any], steps: Iterable[Step], g: Any
    ) -> tuple[list[Block], Any]:
        """Cotangents of the blocks and of x_0: the engine's own rules along the steps given, last one first."""
        found: list[Block] = []
        for w, h, (x, value, slope) in zip(reversed(weights), reversed(hidden), steps, strict=True):
            a = self._folded(w)
            if self.config.norm == "none":
                g, ga, gb = pull(g, x, a, w["b"], value, slope)
            else:
                g, ga, gb = pull_normed(g, x, a, w["b"], h, self._rstd(x), value, slope)
            gain = {"gain": np.sum(ga * w["a"], axis=0)} if "gain" in w else {}
            found.append({"a": ga * w["gain"] if gain else ga, "b": gb, **gain})
        return found[::-1], g

    def pull_input(self, w: Block, h: Any, x: Any, slope: Any, g: Any) -> Any:
        """Cotangent of the block's input alone."""
        a = self._folded(w)
        if self.config.norm == "none":
            return pull_x(g, a, w["b"], slope)
        return pull_normed_x(g, x, a, w["b"], h, self._rstd(x), slope)

    def _folded(self, w: Block) -> Any:
        return w["a"] * w["gain"] if "gain" in w else w["a"]

    def _rstd(self, x: Any) -> Any:
        square = row_dot(x, x) if isinstance(x, Traced) else np.vecdot(x, x)[..., None]  # type: ignore[no-untyped-call]
        return 1 / np.sqrt(square / x.shape[-1] + self.config.eps)


def _reusing(f: np.ufunc, x: Any, fresh: Any) -> Any:
    """f(x, fresh), written over `fresh`: a block makes one new array of d columns, not two."""
    return f(x, fresh) if isinstance(x, Traced) or isinstance(fresh, Traced) else f(x, fresh, out=fresh)


@dataclass(frozen=True)
class Growth:
    """How far inversion has drifted at one depth and block scale, relative Frobenius norms."""

    depth: int
    scale: float
    state: float  # of x_0
    gradient: float  # of all weights and of x_0, together
    bound: float  # of x_0, from the module's inequality
    exceeded: bool  # whether any element of any state left its bound


def error_growth(
    config: DLRConfig,
    rng: np.random.Generator,
    *,
    depths: Iterable[int],
    scales: Iterable[float] = (1.0,),
    tokens: int = 64,
    dtype: Any = np.float64,
    held: str | None = None,
) -> list[Growth]:
    """Errors of inversion against depth and block scale: A ~ N(0, 1/d), B ~ N(0, scale²/r), inputs N(0, 1).

    Compared with the same pass in the same precision that holds every state, so that only the inversion differs.
    """
    return [
        _growth(replace(config, depth=depth), scale, rng, tokens, dtype, held) for depth in depths for scale in scales
    ]


def _growth(
    config: DLRConfig, scale: float, rng: np.random.Generator, tokens: int, dtype: Any, held: str | None
) -> Growth:
    cell = Cell(config, held)
    weights = blocks(dlrnet.initialize(config, rng, b_scale=scale, dtype=dtype), config)
    x = rng.standard_normal((tokens, config.width)).astype(dtype)
    g = rng.standard_normal((tokens, config.width)).astype(dtype)
    later, hidden = zip(*cell.forward(weights, x), strict=True)
    states = [cell.rounded(x), *later]
    found = list(cell.states(weights, hidden, states[-1]))
    limits = state_bounds(states, found, unit_roundoff(dtype, held))
    exceeded = any(np.any(np.abs(a - b) > e) for a, b, e in zip(found, states[-2::-1], limits, strict=True))
    size = float(np.linalg.norm(states[0]))
    want, got = (cell.backward(weights, hidden, cell.known(hidden, at), g) for at in (states[-2::-1], found))
    return Growth(
        config.depth,
        scale,
        float(np.linalg.norm(found[-1] - states[0])) / size,
        _distance(got, want),
        float(np.linalg.norm(limits[-1])) / size,
        exceeded,
    )


def unit_roundoff(dtype: Any, held: str | None) -> float:
    """Of one rounded addition: in the working type, and then to the storage type where there is one."""
    working = float(np.finfo(dtype).eps) / 2
    return working if held is None else working + float(ml_dtypes.finfo(HELD[held]).eps) / 2 * (1 + working)  # type: ignore[no-untyped-call]


def state_bounds(states: Sequence[Any], found: Sequence[Any], unit: float) -> list[Any]:
    """E_l = u Σ_{k ≥ l} (|x_{k+1}| + |x̂_k|) for l = L−1 … 0; `states` are x_0 … x_L, `found` x̂_{L−1} … x̂_0."""
    limits, total = [], np.zeros_like(states[-1])
    for later, back in zip(reversed(states), found, strict=False):
        total = total + unit * (np.abs(later) + np.abs(back))
        limits.append(total)
    return limits


def _distance(got: tuple[list[Block], Any], want: tuple[list[Block], Any]) -> float:
    def flat(found: tuple[list[Block], Any]) -> Any:
        return np.concatenate([np.ravel(v) for w in found[0] for v in w.values()] + [np.ravel(found[1])])

    return float(np.linalg.norm(flat(got) - flat(want)) / np.linalg.norm(flat(want)))
