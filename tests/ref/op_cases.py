"""One table: for every operation, how to draw arguments for it, and what it computes in other words.

Strategies are constructive: each draw is a valid, smooth point (no ties, positive where it must be), with
shapes that can see a mistake (non-square, broadcast, several heads per group, repeated indices).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st
from scipy import special

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """Arguments of one call."""

    args: tuple[Array, ...]
    params: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "args", tuple(map(np.asarray, self.args)))  # NumPy's scalars as arrays

    def cast(self, dtype: Any) -> "Case":
        """The same call in another precision, floating-point parameters included."""

        def convert(x: Any) -> Any:
            return x.astype(dtype) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x

        return Case(tuple(map(convert, self.args)), {k: convert(v) for k, v in self.params.items()})


@dataclass(frozen=True)
class Operation:
    """How to call an operation, and an independent way to compute its value."""

    cases: st.SearchStrategy[Case]
    reference: Callable[..., Any]


rngs = st.integers(0, 2**32 - 1).map(np.random.default_rng)
sides = st.integers(1, 4)
shapes = st.lists(sides, max_size=3).map(tuple)


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.normal(size=shape)


def positive(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.uniform(0.3, 3, shape)


def nonzero(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.uniform(0.1, 2, shape) * rng.choice([-1, 1], shape)


def distinct(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """No two entries closer than 0.05."""
    n = int(np.prod(shape))
    return (rng.permutation(n) - n / 2 + rng.uniform(-0.4, 0.4, n)).reshape(shape) / 4


Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]


@st.composite
def unary(draw: Any, values: Draw = normal, **params: st.SearchStrategy[Any]) -> Case:
    return Case((values(draw(rngs), draw(shapes)),), {k: draw(s) for k, s in params.items()})


@st.composite
def broadcasting(draw: Any, values: Draw = normal, second: Draw | None = None, condition: bool = False) -> Case:
    """Two arguments whose shapes broadcast: each side of either may be 1, either may lack leading axes."""
    rng, full = draw(rngs), draw(shapes)
    dims = [tuple(draw(st.sampled_from([n, 1])) for n in full)[draw(st.integers(0, len(full))) :] for _ in range(2)]
    x, y = values(rng, dims[0]), (second or values)(rng, dims[1])
    out = np.broadcast_shapes(*dims)
    return Case((x, y), {"condition": rng.random(out) < 0.5} if condition else {})


@st.composite
def alike(draw: Any) -> Case:
    """Two arguments of one shape."""
    rng, shape = draw(rngs), draw(shapes)
    return Case((normal(rng, shape), normal(rng, shape)))


@st.composite
def apart(draw: Any) -> Case:
    """Two broadcasting arguments that differ by at least 0.1 everywhere, of mixed order."""
    case = draw(broadcasting())
    x, y = case.args
    whole, gap = np.floor(x * 2), draw(rngs).uniform(0.2, 0.8, y.shape)
    return Case((whole, np.floor(y * 2) + gap))


@st.composite
def reduction(draw: Any, values: Draw = normal) -> Case:
    shape = draw(shapes)
    axes = draw(st.lists(st.integers(0, max(0, len(shape) - 1)), unique=True, max_size=len(shape)))
    signed = tuple(draw(st.sampled_from([a, a - len(shape)])) for a in axes)
    axis = draw(st.sampled_from([None, signed] + ([signed[0]] if len(signed) == 1 else []))) if signed else None
    return Case((values(draw(rngs), shape),), {"axis": axis, "keepdims": draw(st.booleans())})


@st.composite
def matrices(draw: Any) -> Case:
    rng, batch = draw(rngs), draw(st.lists(sides, max_size=2).map(tuple))
    n, k, m = draw(sides), draw(sides), draw(sides)
    left, right = (
        tuple(draw(st.sampled_from([b, 1])) for b in batch)[draw(st.integers(0, len(batch))) :] for _ in range(2)
    )
    return Case((normal(rng, (*left, n, k)), normal(rng, (*right, k, m))))


@st.composite
def reshaped(draw: Any) -> Case:
    x = normal(draw(rngs), draw(shapes))
    target = draw(st.permutations(x.shape).map(tuple))
    return Case((x,), {"shape": draw(st.sampled_from([target, (-1,), (1, *target), (*target, -1)]))})


@st.composite
def transposed(draw: Any) -> Case:
    x = normal(draw(rngs), draw(shapes))
    order = draw(st.permutations(range(x.ndim)).map(tuple))
    axes = tuple(draw(st.sampled_from([a, a - x.ndim])) for a in order)
    return Case((x,), {"axes": draw(st.sampled_from([None, axes]))})


@st.composite
def stretched(draw: Any) -> Case:
    shape = draw(shapes)
    kept = tuple(draw(st.sampled_from([n, 1])) for n in shape)
    x = normal(draw(rngs), kept)
    return Case((x,), {"shape": (*draw(st.lists(sides, max_size=1)), *shape)})


@st.composite
def keys(draw: Any, shape: tuple[int, ...]) -> Any:
    """An index of an array of at least one axis: slices, integers, repeated indices, a mask, a new axis."""
    n = shape[0]
    start = draw(st.integers(-n, n - 1))
    step = draw(st.sampled_from([1, 2, -1]))
    rows = np.array(draw(st.lists(st.integers(-n, n - 1), min_size=1, max_size=5)))
    mask = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    single = [slice(None, None, step), slice(start, None), start, rows, rows.reshape(-1, 1), mask, None, Ellipsis]
    first = draw(st.sampled_from(single))
    if len(shape) == 1 or first is None or first is Ellipsis:
        return first
    m = shape[1]
    second = draw(st.sampled_from([slice(None, m), slice(None, None, -1), m - 1]))
    return draw(st.sampled_from([first, (first, second)]))


nonempty = st.lists(sides, min_size=1, max_size=3).map(tuple)


@st.composite
def indexed(draw: Any) -> Case:
    shape = draw(nonempty)
    return Case((normal(draw(rngs), shape),), {"key": draw(keys(shape))})


@st.composite
def scattered(draw: Any) -> Case:
    shape = draw(nonempty)
    key = draw(keys(shape))
    return Case((normal(draw(rngs), np.zeros(shape)[key].shape),), {"key": key, "shape": shape})


@st.composite
def taken(draw: Any) -> Case:
    rng, vocab = draw(rngs), draw(st.integers(2, 5))
    x = normal(rng, (vocab, draw(sides)))
    return Case((x,), {"indices": rng.integers(0, vocab, draw(nonempty))})  # tokens come more than once


@st.composite
def joined(draw: Any) -> Case:
    rng, shape = draw(rngs), draw(nonempty)
    axis = draw(st.integers(0, len(shape) - 1))
    other = (*shape[:axis], draw(sides), *shape[axis + 1 :])
    return Case((normal(rng, shape), normal(rng, other)), {"axis": draw(st.sampled_from([axis, axis - len(shape)]))})


@st.composite
def normed(draw: Any, gain: bool) -> Case:
    rng, shape = draw(rngs), (*draw(shapes), draw(st.integers(2, 6)))
    x = normal(rng, shape)
    return Case((x, rng.uniform(-2, 2, shape[-1])) if gain else (x,), {"eps": draw(st.sampled_from([1e-6, 0.1]))})


@st.composite
def rotated(draw: Any) -> Case:
    rng, length, half = draw(rngs), draw(sides), draw(st.integers(1, 3))
    angles = rng.uniform(0, 7, (length, half))
    x = normal(rng, (*draw(st.lists(sides, max_size=2)), length, 2 * half))
    return Case((x,), {"cos": np.cos(angles), "sin": np.sin(angles)})


@st.composite
def attending(draw: Any) -> Case:
    rng, batch = draw(rngs), draw(st.lists(st.integers(1, 2), max_size=1).map(tuple))
    groups, per_group, length, width = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(sides), draw(sides)
    keys = (*batch, groups, length, width)
    q = normal(rng, (*batch, groups * per_group, length, width))
    return Case((q, normal(rng, keys), normal(rng, keys)), {"scale": draw(st.sampled_from([0.5, 1.0, 3.0]))})


@st.composite
def labeled(draw: Any) -> Case:
    rng, tokens, vocab = draw(rngs), draw(nonempty), draw(st.integers(2, 6))
    return Case((normal(rng, (*tokens, vocab)) * 3,), {"targets": rng.integers(0, vocab, tokens)})


@st.composite
def residual_blocks(draw: Any, eps: bool) -> Case:
    """x is made from its products with a, so that none of them lies near the kink of relu."""
    rng, tokens, d = draw(rngs), draw(nonempty), draw(st.integers(2, 6))
    r = draw(st.integers(1, min(3, d)))
    rows = np.linalg.qr(normal(rng, (d, r)))[0].T  # orthonormal
    lengths, hidden, other = rng.uniform(0.5, 2, (r, 1)), nonzero(rng, (*tokens, r)), normal(rng, (*tokens, d))
    x = (hidden - other @ rows.T) @ rows + other
    params: dict[str, Any] = {"activation": draw(st.sampled_from(sorted(ACTIVATIONS)))}
    args = (x, lengths * rows, normal(rng, (d, r)))
    return Case(args, {**params, "eps": draw(st.sampled_from([1e-6, 0.1]))} if eps else params)


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "tanh": lambda x: 1 - 2 / (np.exp(2 * x) + 1),
    "relu": lambda x: (x + abs(x)) / 2,
    "silu": lambda x: x * special.expit(x),
    "gelu_erf": lambda x: x * special.ndtr(x),
    "gelu_tanh": lambda x: x * special.expit(2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)),
}


def unit(x: Array, eps: float) -> Array:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Each plane (i, i + c/2) as a complex number times e^{iθ}."""
    half = x.shape[-1] // 2
    z = (x[..., :half] + 1j * x[..., half:]) * (cos + 1j * sin)
    return np.concatenate([z.real, z.imag], axis=-1)


def attend(q: Array, k: Array, v: Array, scale: float) -> Array:
    """Head by head and query by query; head h reads key head h // (H/G)."""
    out = np.empty_like(q)
    for index in np.ndindex(q.shape[:-1]):
        *batch, head, t = index
        spot = (*batch, head // (q.shape[-3] // k.shape[-3]), slice(t + 1))
        out[index] = special.softmax(scale * k[spot] @ q[index]) @ v[spot]
    return out


def scatter(x: Array, key: Any, shape: tuple[int, ...]) -> Array:
    """Entry by entry, through the positions that the key selects."""
    out = np.zeros(int(np.prod(shape)), x.dtype)
    positions = np.arange(out.size).reshape(shape)[key]
    for position, value in zip(np.ravel(positions), np.ravel(x), strict=True):
        out[position] += value
    return out.reshape(shape)


def nats(logits: Array, targets: Array) -> Any:
    rows = zip(logits.reshape(-1, logits.shape[-1]), targets.ravel(), strict=True)
    return np.mean([special.logsumexp(row) - row[t] for row, t in rows])


TABLE: dict[str, Operation] = {
    "add": Operation(broadcasting(), np.add),
    "attention": Operation(attending(), attend),
    "broadcast_to": Operation(stretched(), lambda x, shape: x + np.zeros(shape)),
    "cross_entropy": Operation(labeled(), nats),
    "divide": Operation(broadcasting(normal, nonzero), lambda x, y: x * (1 / y)),
    "erf": Operation(unary(), lambda x: 2 * special.ndtr(x * np.sqrt(2)) - 1),
    "exp": Operation(unary(), lambda x: np.expm1(x) + 1),
    "gelu_erf": Operation(unary(), ACTIVATIONS["gelu_erf"]),
    "gelu_tanh": Operation(unary(), ACTIVATIONS["gelu_tanh"]),
    "getitem": Operation(indexed(), lambda x, key: x.ravel()[np.arange(x.size).reshape(x.shape)[key]]),
    "join": Operation(joined(), lambda x, y, axis: np.concatenate([x, y], axis)),
    "log": Operation(unary(positive), lambda x: np.log2(x) * np.log(2)),
    "low_rank": Operation(
        residual_blocks(eps=False), lambda x, a, b, activation: x + ACTIVATIONS[activation](x @ a.T) @ b.T
    ),
    "matmul": Operation(matrices(), lambda x, y: np.einsum("...ij,...jk->...ik", x, y)),
    "max": Operation(reduction(distinct), lambda x, axis, keepdims: -np.min(-x, axis=axis, keepdims=keepdims)),
    "maximum": Operation(apart(), lambda x, y: (x + y + abs(x - y)) / 2),
    "mean": Operation(reduction(), lambda x, axis, keepdims: np.average(x, axis=axis, keepdims=keepdims)),
    "multiply": Operation(broadcasting(), np.multiply),
    "negative": Operation(unary(), lambda x: 0 - x),
    "normalize": Operation(normed(gain=False), unit),
    "normed_low_rank": Operation(
        residual_blocks(eps=True),
        lambda x, a, b, activation, eps: x + ACTIVATIONS[activation](unit(x, eps) @ a.T) @ b.T,
    ),
    "power": Operation(
        st.one_of(
            unary(positive, exponent=st.sampled_from([-1.5, -1, 0.5, 1, 2, 3.7])),
            unary(nonzero, exponent=st.sampled_from([-2, 1, 2, 3])),
        ),
        lambda x, exponent: np.sign(x) ** (exponent % 2 == 1) * np.exp(exponent * np.log(abs(x))),
    ),
    "relu": Operation(unary(nonzero), ACTIVATIONS["relu"]),
    "reshape": Operation(reshaped(), lambda x, shape: np.array(x.ravel().tolist()).reshape(shape)),
    "rms_norm": Operation(normed(gain=True), lambda x, gain, eps: unit(x, eps) * gain),
    "rope": Operation(rotated(), rotate),
    "rsqrt": Operation(unary(positive), lambda x: x**-0.5),
    "scatter": Operation(scattered(), scatter),
    "sigmoid": Operation(unary(), special.expit),
    "silu": Operation(unary(), ACTIVATIONS["silu"]),
    "sqrt": Operation(unary(positive), lambda x: x**0.5),
    "subtract": Operation(broadcasting(), np.subtract),
    "sum": Operation(reduction(), lambda x, axis, keepdims: np.add.reduce(x, axis=axis, keepdims=keepdims)),
    "swiglu": Operation(alike(), lambda z, u: ACTIVATIONS["silu"](z) * u),
    "take": Operation(taken(), lambda x, indices: np.take(x, indices, axis=0)),
    "tanh": Operation(unary(), ACTIVATIONS["tanh"]),
    "transpose": Operation(transposed(), lambda x, axes: np.moveaxis(x, axes or range(x.ndim)[::-1], range(x.ndim))),
    "where": Operation(broadcasting(condition=True), lambda x, y, condition: condition * x + (1 - condition) * y),
}
