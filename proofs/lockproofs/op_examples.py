"""One example call for each operation of the engine, with shapes at which mistakes show."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lockref.autodiff import ops

Rng = np.random.Generator


class Example(NamedTuple):
    args: tuple[Any, ...]
    params: dict[str, Any]


def example(name: str, rng: Rng) -> Example:
    """Random arguments of an operation, smooth points only. Raises KeyError for an operation without one."""
    args, params = _EXAMPLES[name](rng)
    return Example(args, params)


def names() -> tuple[str, ...]:
    """Every operation of `ops.ALL`, in alphabetical order."""
    return tuple(sorted(ops.ALL))


def _two(rng: Rng) -> Any:
    return (rng.normal(size=(3, 4)), rng.normal(size=4)), {}


def _one(rng: Rng) -> Any:
    return (rng.normal(size=(3, 4)),), {}


def _positive(rng: Rng) -> Any:
    return (rng.uniform(0.5, 2, (3, 4)),), {}


def _apart(rng: Rng) -> Any:
    """No two entries of one place equal, and none zero."""
    x = rng.normal(size=(3, 4)) * 2
    return (x, x + rng.choice([-1, 1], x.shape) * rng.uniform(0.5, 1, x.shape)), {}


def _block(rng: Rng) -> Any:
    return (rng.normal(size=(5, 6)), rng.normal(size=(2, 6)), rng.normal(size=(6, 2))), {"activation": "silu"}


def _with(base: Callable[[Rng], Any], **params: Any) -> Callable[[Rng], Any]:
    def draw(rng: Rng) -> Any:
        args, own = base(rng)
        return args, own | params

    return draw


def _rope(rng: Rng) -> Any:
    cos, sin = ops.rope_tables(np.arange(1, 6), 4, 100.0)
    return (rng.normal(size=(2, 5, 4)),), {"cos": cos, "sin": sin}


def _attention(rng: Rng) -> Any:
    shapes = ((4, 5, 3), (2, 5, 3), (2, 5, 3))
    return tuple(rng.normal(size=s) for s in shapes), {"scale": 0.6}


_ROWS = np.array([2, 0, 2])
_EXAMPLES: dict[str, Callable[[Rng], Any]] = {
    **dict.fromkeys(("add", "subtract", "multiply", "divide", "swiglu"), _two),
    **dict.fromkeys(("negative", "exp", "tanh", "sigmoid", "silu", "erf", "gelu_erf", "gelu_tanh", "relu"), _one),
    **dict.fromkeys(("log", "sqrt", "rsqrt"), _positive),
    "power": _with(_positive, exponent=2.5),
    "maximum": _apart,
    "where": _with(_two, condition=np.arange(12).reshape(3, 4) % 3 == 0),
    "reshape": _with(_one, shape=(2, 6)),
    "transpose": _one,
    "broadcast_to": _with(_one, shape=(2, 3, 4)),
    "getitem": _with(_one, key=(slice(None), slice(0, 3))),
    "scatter": _with(_one, key=_ROWS, shape=(4, 4)),
    "take": _with(_one, indices=_ROWS),
    "join": lambda rng: ((rng.normal(size=(3, 4)), rng.normal(size=(3, 2))), {"axis": 1}),
    "sum": _with(_one, axis=0),
    "mean": _with(_one, axis=0),
    "max": _with(_one, axis=0),
    "matmul": lambda rng: ((rng.normal(size=(5, 4)), rng.normal(size=(4, 3))), {}),
    "normalize": _with(_one, eps=1e-6),
    "rms_norm": _with(_two, eps=1e-6),
    "rope": _rope,
    "attention": _attention,
    "cross_entropy": _with(_one, targets=np.array([1, 3, 0])),
    "low_rank": _block,
    "normed_low_rank": _with(_block, eps=1e-6),
}
