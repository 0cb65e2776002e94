"""A small network without attention: a convolution, a hidden layer, a head.

    h = relu(P Kᵀ + k),   z = relu(vec(h) Wᵀ + w),   logits = z Hᵀ + b

P holds an image's patches in rows, which makes a convolution a product of matrices.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from lockref.autodiff import ops

Weights = Mapping[str, Any]  # arrays by name, plain or traced


@dataclass(frozen=True)
class ConvNet:
    """The sizes: square images, one input channel, stride 1, no padding. Raises ValueError where they make no net."""

    side: int = 8
    kernel: int = 3
    channels: int = 8
    hidden: int = 64
    classes: int = 10

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 1 or self.kernel > self.side:
            raise ValueError(f"{self}: every size must be at least 1, and the kernel no larger than the image")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Weights (out, in) and biases (out,) by name; a kernel is a row of conv.weight."""
        features = self.channels * (self.side - self.kernel + 1) ** 2
        layers = {
            "conv": (self.channels, self.kernel**2), "hidden": (self.hidden, features),
            "head": (self.classes, self.hidden),
        }  # fmt: skip
        return {
            f"{name}.{part}": shape if part == "weight" else shape[:1]
            for name, shape in layers.items()
            for part in ("weight", "bias")
        }

    @property
    def matrices(self) -> tuple[str, ...]:
        """The weights that an adapter can change."""
        return tuple(name for name, shape in self.shapes.items() if len(shape) == 2)


def initialize(net: ConvNet, rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
    """Weights ~ N(0, 2/in) (He et al., arXiv 1502.01852), biases 0."""
    return {
        name: rng.standard_normal(shape) * (2 / shape[1]) ** 0.5 if len(shape) == 2 else np.zeros(shape)
        for name, shape in net.shapes.items()
    }


def patches(images: ArrayLike, net: ConvNet) -> NDArray[Any]:
    """(B, side, side) → (B, (side − kernel + 1)², kernel²); raises ValueError for images of another size."""
    pixels = np.asarray(images)
    if pixels.ndim != 3 or pixels.shape[1:] != (net.side, net.side):
        raise ValueError(f"images are {pixels.shape}; want (B, {net.side}, {net.side})")
    windows = sliding_window_view(pixels, (net.kernel, net.kernel), axis=(1, 2))
    return windows.reshape(len(pixels), -1, net.kernel**2)


def logits(params: Weights, rows: NDArray[Any]) -> Any:
    """(B, classes) of patches (B, P, kernel²)."""
    h = ops.relu(rows @ params["conv.weight"].T + params["conv.bias"])
    z = ops.relu(np.reshape(h, (len(rows), -1)) @ params["hidden.weight"].T + params["hidden.bias"])
    return z @ params["head.weight"].T + params["head.bias"]


def loss(params: Weights, rows: NDArray[Any], labels: NDArray[np.integer[Any]]) -> Any:
    """Mean −ln p(label) in nats."""
    return ops.cross_entropy(logits(params, rows), targets=labels)
