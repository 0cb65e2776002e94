"""What is measured: each workload is one function, written once, that every engine runs with its own steps."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]
EPS = 1e-6  # of every norm, as in Qwen3


@dataclass(frozen=True)
class Problem:
    """f(steps, leaves, constants) at given arrays, and the cotangent that its backward pass starts from."""

    function: Callable[[Any, list[Any], list[Any]], Any]
    leaves: list[Array]  # the input and all parameters: each gets a gradient
    constants: list[Array]
    cotangent: Array


@dataclass(frozen=True)
class Workload:
    """A problem as a function of its sizes, at full size and at a size for tests."""

    name: str
    build: Callable[..., Problem]
    dtype: str
    full: dict[str, int]
    tiny: dict[str, int]
    about: str

    def problem(self, seed: int, *, tiny: bool = False, dtype: str | None = None) -> Problem:
        """The arrays that `seed` stands for: all engines get the same."""
        return self.build(np.random.default_rng(seed), dtype or self.dtype, **(self.tiny if tiny else self.full))

    def title(self, tiny: bool) -> str:
        sizes = ", ".join(f"{key} {value:,}" for key, value in (self.tiny if tiny else self.full).items())
        return f"{self.about}; {sizes}; {self.dtype}"


def _matrices(rng: np.random.Generator, dtype: str, *shapes: tuple[int, ...]) -> list[Array]:
    """Random arrays whose product with a unit-variance input has unit variance."""
    return [(rng.standard_normal(s) / np.sqrt(s[-1])).astype(dtype) for s in shapes]


def _gain(rng: np.random.Generator, dtype: str, size: int) -> Array:
    return rng.uniform(0.5, 1.5, size).astype(dtype)


def dlr_net(
    rng: np.random.Generator, dtype: str, *, tokens: int, width: int, rank: int, depth: int, norm: bool
) -> Problem:
    """x ← x + B silu(A N(x)), `depth` times; N is RMSNorm without a gain, or the identity."""
    down = _matrices(rng, dtype, *[(rank, width)] * depth)
    up = [b / depth**0.5 for b in _matrices(rng, dtype, *[(width, rank)] * depth)]  # or x explodes without norm
    x, g = rng.standard_normal((2, tokens, width)).astype(dtype)

    def function(steps: Any, leaves: list[Any], _: list[Any]) -> Any:
        x, *weights = leaves
        for a, b in zip(weights[:depth], weights[depth:], strict=True):
            x = steps.low_rank(x, a, b, norm)
        return x

    return Problem(function, [x, *down, *up], [], g)


def qwen3_block(
    rng: np.random.Generator, dtype: str, *, tokens: int, width: int, heads: int, kv_heads: int, head_dim: int, mlp: int
) -> Problem:
    """One decoder block: x + attention(norm x), then x + mlp(norm x); weights are (out, in)."""
    q_rows, kv_rows = heads * head_dim, kv_heads * head_dim
    attention = (q_rows, width), (kv_rows, width), (kv_rows, width), (width, q_rows)
    weights = _matrices(rng, dtype, *attention, (mlp, width), (mlp, width), (width, mlp))
    gains = [_gain(rng, dtype, n) for n in (width, width, head_dim, head_dim)]
    x, g = rng.standard_normal((2, tokens, width)).astype(dtype)
    angles = np.outer(np.arange(tokens), 1e6 ** (-np.arange(0, head_dim, 2) / head_dim))
    mask = np.triu(np.full((tokens, tokens), -np.inf), 1)

    def function(steps: Any, leaves: list[Any], constants: list[Any]) -> Any:
        x, wq, wk, wv, wo, w_gate, w_up, w_down, g_attn, g_mlp, g_q, g_k = leaves
        cos, sin, mask = constants

        def heads_first(y: Any, count: int) -> Any:
            return steps.xp.swapaxes(y.reshape((tokens, count, head_dim)), 0, 1)

        n = steps.rms_norm(x, g_attn)
        q = steps.rms_norm(heads_first(steps.linear(n, wq), heads), g_q)
        k = steps.rms_norm(heads_first(steps.linear(n, wk), kv_heads), g_k)
        v = heads_first(steps.linear(n, wv), kv_heads)
        y = steps.attention(steps.rope(q, cos, sin), steps.rope(k, cos, sin), v, mask)
        x = x + steps.linear(steps.xp.swapaxes(y, 0, 1).reshape((tokens, q_rows)), wo)
        n = steps.rms_norm(x, g_mlp)
        return x + steps.linear(steps.swiglu(steps.linear(n, w_gate), steps.linear(n, w_up)), w_down)

    constants = [np.cos(angles).astype(dtype), np.sin(angles).astype(dtype), mask.astype(dtype)]
    return Problem(function, [x, *weights, *gains], constants, g)


def scalar_chain(rng: np.random.Generator, dtype: str, *, operations: int) -> Problem:
    """x ← 1.001 x, x ← x + 0.0001, x ← tanh x, in turn (slopes near 1: the gradient neither dies nor explodes)."""

    def function(steps: Any, leaves: list[Any], _: list[Any]) -> Any:
        (x,) = leaves
        for i in range(operations):
            x = x * 1.001 if i % 3 == 0 else x + 0.0001 if i % 3 == 1 else steps.xp.tanh(x)
        return x

    return Problem(function, [np.array(rng.uniform(0.5, 1), dtype)], [], np.array(1.0, dtype))


def perceptron(rng: np.random.Generator, dtype: str, *, batch: int, width: int, hidden: int, layers: int) -> Problem:
    """Affine maps with tanh between them."""
    widths = [width, *[hidden] * (layers - 1), width]
    weights = _matrices(rng, dtype, *zip(widths[1:], widths[:-1], strict=True))
    biases = _matrices(rng, dtype, *[(n,) for n in widths[1:]])
    x, g = rng.standard_normal((2, batch, width)).astype(dtype)

    def function(steps: Any, leaves: list[Any], _: list[Any]) -> Any:
        x, *rest = leaves
        for i in range(layers):
            x = steps.linear(x if i == 0 else steps.xp.tanh(x), rest[i]) + rest[layers + i]
        return x

    return Problem(function, [x, *weights, *biases], [], g)


def _dlr(norm: str, about: str, dtype: str) -> Workload:
    full = {"tokens": 512, "width": 256, "rank": 16, "depth": 48}
    tiny = {"tokens": 5, "width": 8, "rank": 3, "depth": 3}
    return Workload(f"dlr-{norm}-{dtype}", partial(dlr_net, norm=norm == "rms"), dtype, full, tiny, about)


_ALL = (
    _dlr("rms", "DLR-Net with RMSNorm (no gain), silu", "float64"),
    _dlr("rms", "DLR-Net with RMSNorm (no gain), silu", "float32"),
    _dlr("none", "DLR-Net without norm, silu", "float64"),
    _dlr("none", "DLR-Net without norm, silu", "float32"),
    Workload(
        "qwen3-block",
        qwen3_block,
        "float32",
        {"tokens": 512, "width": 256, "heads": 8, "kv_heads": 4, "head_dim": 64, "mlp": 768},
        {"tokens": 5, "width": 8, "heads": 4, "kv_heads": 2, "head_dim": 4, "mlp": 12},
        "Qwen3 decoder block",
    ),
    Workload("scalar-chain", scalar_chain, "float64", {"operations": 10_000}, {"operations": 10}, "Scalar chain"),
    Workload(
        "mlp",
        perceptron,
        "float32",
        {"batch": 512, "width": 256, "hidden": 1024, "layers": 3},
        {"batch": 5, "width": 4, "hidden": 7, "layers": 3},
        "Multilayer perceptron with tanh",
    ),
)
WORKLOADS: dict[str, Workload] = {w.name: w for w in _ALL}
