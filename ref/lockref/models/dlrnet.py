"""DLR-Net: the deep low-rank residual network that DLR-Lock puts in place of an MLP (arXiv 2605.10777).

    x_0 = input;   x_{l+1} = x_l + σ(N_l(x_l) A_lᵀ) B_lᵀ,   l = 0 … L−1

The paper's block formula was not readable to us: norm, activation and placement are choices of ours
and therefore named fields.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lockref.autodiff import ops

NORMS: Final = ("none", "rms", "rms_gain")
ACTIVATIONS: Final = tuple(ops.ACTIVATIONS)
PLACEMENTS: Final = ("difference", "output", "stream")


@dataclass(frozen=True)
class DLRConfig:
    """Shape and choices of one DLR-Net; raises ValueError where they make no network.

    `placement`: on the MLP's normalized input with y = x_L − x_0 ("difference") or y = x_L ("output");
    or on the residual stream with x_L as the next stream, instead of norm, MLP and addition ("stream").
    """

    width: int  # d
    rank: int  # r
    depth: int  # L
    norm: str = "rms"
    activation: str = "silu"
    placement: str = "difference"
    eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("width", "rank", "depth"):
            _require_count("DLRConfig", name, getattr(self, name))
        choices = {"norm": NORMS, "activation": ACTIVATIONS, "placement": PLACEMENTS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"DLRConfig: {name} {getattr(self, name)!r} is unknown; choose from {', '.join(known)}"
                )
        if not isinstance(self.eps, float) or not 0 < self.eps < 1:
            raise ValueError(f"DLRConfig: eps is {self.eps!r}; it must be a float between 0 and 1")

    @property
    def parameters(self) -> int:
        """Number of weights: L · (2 d r), and L d gains more with norm "rms_gain"."""
        return self.depth * self.width * (2 * self.rank + (self.norm == "rms_gain"))


@dataclass(frozen=True)
class Parity:
    """The largest rank at which a DLR-Net has no more parameters than the SwiGLU it replaces."""

    rank: int
    parameters: int
    target: int  # 3 d m, the SwiGLU's

    @property
    def remainder(self) -> int:
        """Parameters that stay unused, exactly: target − parameters, at least 0 and less than 2 L d."""
        return self.target - self.parameters


def parity(width: int, mlp_width: int, depth: int, norm: str = "none") -> Parity:
    """Rank for parameter parity with a SwiGLU of width m: 2 d r L ≤ 3 d m, so r L = 1.5 m where 2L divides 3m.

    With norm "rms_gain" the L d gains are paid out of the same budget. The gain that a host's own norm
    loses in the placement "stream" is not counted. Raises ValueError where not even rank 1 fits.
    """
    for name, value in (("width", width), ("mlp_width", mlp_width), ("depth", depth)):
        _require_count("parity", name, value)
    if norm not in NORMS:
        raise ValueError(f"parity: norm {norm!r} is unknown; choose from {', '.join(NORMS)}")
    gains = int(norm == "rms_gain")
    rank = (3 * mlp_width - gains * depth) // (2 * depth)
    if rank < 1:
        raise ValueError(
            f"parity: depth {depth} leaves less than rank 1 for an MLP of width {mlp_width} (norm {norm}); "
            f"choose a depth of at most {3 * mlp_width // (2 + gains)}"
        )
    return Parity(rank, DLRConfig(width, rank, depth, norm).parameters, 3 * width * mlp_width)


def expected_tensors(config: DLRConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights, (out, in): blocks.l.a (r, d), blocks.l.b (d, r), blocks.l.gain (d,)."""
    shapes: dict[str, tuple[int, ...]] = {"a": (config.rank, config.width), "b": (config.width, config.rank)}
    if config.norm == "rms_gain":
        shapes["gain"] = (config.width,)
    return {f"blocks.{i}.{name}": shape for i in range(config.depth) for name, shape in shapes.items()}


def initialize(
    config: DLRConfig, rng: np.random.Generator, *, b_scale: float = 0.0, dtype: Any = np.float64
) -> dict[str, np.ndarray[Any, Any]]:
    """Weights to start from: A ~ N(0, 1/d), B ~ N(0, b_scale²/r), gains 1.

    With b_scale 0 every block starts as the identity: y = 0 ("difference") or y = x_0.
    """

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        if name.endswith("gain"):
            return np.ones(shape, dtype)
        scale = 1.0 if name.endswith(".a") else b_scale
        return np.asarray(rng.standard_normal(shape) * (scale / shape[-1] ** 0.5), dtype)

    return {name: draw(name, shape) for name, shape in expected_tensors(config).items()}


def forward(params: Mapping[str, Any], x: Any, config: DLRConfig, *, fused: bool = True) -> Any:
    """y = x_L − x_0 or x_L (see `DLRConfig`) for x (…, tokens, d), any traced arguments, float32 or float64.

    `fused` runs a block as one operation that keeps little; otherwise in the small operations, with the
    storage, of an eager framework. Raises ValueError where a tensor is missing, unexpected or of a wrong shape.
    """
    require_shapes(params, np.shape(x), config)
    block = _fused_block if fused else _eager_block
    out = x
    for i in range(config.depth):
        gain = params.get(f"blocks.{i}.gain")
        out = block(out, params[f"blocks.{i}.a"], params[f"blocks.{i}.b"], gain, config)
    return ops.subtract(out, x) if config.placement == "difference" else out


def _fused_block(x: Any, a: Any, b: Any, gain: Any, config: DLRConfig) -> Any:
    if config.norm == "none":
        return ops.low_rank(x, a, b, activation=config.activation)
    if gain is not None:  # (gain ∘ N(x)) Aᵀ = N(x) (A diag(gain))ᵀ: one product of the size of a weight
        a = ops.multiply(a, gain)
    return ops.normed_low_rank(x, a, b, activation=config.activation, eps=config.eps)


def _eager_block(x: Any, a: Any, b: Any, gain: Any, config: DLRConfig) -> Any:
    normed = x
    if config.norm != "none":
        square = ops.mean(ops.multiply(x, x), axis=-1, keepdims=True)
        normed = ops.multiply(x, ops.rsqrt(ops.add(square, config.eps)))
    if gain is not None:
        normed = ops.multiply(gain, normed)
    hidden = ops.ACTIVATIONS[config.activation](ops.matmul(normed, ops.transpose(a)))
    return ops.add(x, ops.matmul(hidden, ops.transpose(b)))


def _require_count(where: str, name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{where}: {name} is {value!r}; it must be an integer of at least 1")


def require_shapes(params: Mapping[str, Any], shape: tuple[int, ...], config: DLRConfig) -> None:
    """Raises ValueError unless the tensors are those of `config` and the input's shape is (…, tokens, d)."""
    if len(shape) < 2 or shape[-1] != config.width:
        raise ValueError(f"DLR-Net: the input has shape {shape}; it needs (…, tokens, {config.width})")
    expected = expected_tensors(config)
    for name in {**expected, **params}:
        if name not in params:
            raise ValueError(f"DLR-Net: tensor {name} is missing; depth {config.depth}, norm {config.norm} need it")
        if name not in expected:
            raise ValueError(f"DLR-Net: tensor {name} is unexpected for depth {config.depth}, norm {config.norm}")
        if np.shape(params[name]) != expected[name]:
            raise ValueError(f"DLR-Net: {name} has shape {np.shape(params[name])}, expected {expected[name]}")
