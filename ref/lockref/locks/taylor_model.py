"""A Qwen3 checkpoint with every MLP re-parameterized: W_down and silu give way to arrays of coefficients.

A locked checkpoint has the tensors of the original except mlp.down_proj.weight; in its place are
mlp.series.arrays (N + 1, d, m), mlp.series.center (m,) and mlp.series.scale (m,).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lockref.locks.bases import TAYLOR, Basis, Observed, observed
from lockref.locks.taylor import SeriesLayer, reparameterize
from lockref.models import qwen3

Tensors = Mapping[str, NDArray[Any]]
ACTIVATION = "silu"  # of Qwen3
DOWN, GATE, UP = (f"mlp.{name}_proj.weight" for name in ("down", "gate", "up"))
SERIES = "mlp.series."
FIELDS = ("arrays", "center", "scale")


def gate_and_factor(w: qwen3.Weights, h: Any) -> tuple[Any, Any]:
    """Pre-activations z = W_gate h and factors u = W_up h of the normed stream: (…, d) → two arrays (…, m)."""
    return h @ w[GATE].T, h @ w[UP].T


def observe_model(tensors: Tensors, tokens: ArrayLike, config: qwen3.Qwen3Config) -> list[Observed]:
    """What each layer's pre-activations do on these tokens."""
    return [
        observed(gate_and_factor(w, qwen3.mlp_norm(w, stream, config))[0])
        for w, _, stream in qwen3.walk(tensors, tokens, config)
    ]


def lock_model(
    tensors: Tensors,
    config: qwen3.Qwen3Config,
    seen: Sequence[Observed],
    order: int,
    basis: Basis = TAYLOR,
    signs: np.random.Generator | None = None,
) -> dict[str, NDArray[Any]]:
    """The released tensors, coefficients up to `order` for what `observe_model` has seen.

    With a generator, the signs of each unit's rows of W_gate and W_up are drawn anew, and the coefficients
    follow: the function stays. Raises ValueError as `reparameterize` does, naming the layer, or where `seen`
    does not have one entry per layer.
    """
    if len(seen) != config.num_hidden_layers:
        raise ValueError(f"observations of {len(seen)} layers, the model has {config.num_hidden_layers}")
    released = {name: w for name, w in tensors.items() if not name.endswith(DOWN)}
    for i, ranges in enumerate(seen):
        prefix = f"model.layers.{i}."
        try:
            layer = reparameterize(tensors[prefix + DOWN], ACTIVATION, ranges, order, basis)
        except ValueError as error:
            raise ValueError(f"layer {i}: {error}") from None
        if signs is not None:
            gate, factor = signs.choice([-1.0, 1.0], (2, len(ranges.low)))
            layer = layer.signed(gate, factor)
            for name, sign in ((GATE, gate), (UP, factor)):
                released[prefix + name] = released[prefix + name] * sign[:, None]
        released |= {f"{prefix}{SERIES}{field}": getattr(layer, field) for field in FIELDS}
    return released


def series_layer(w: qwen3.Weights, basis: Basis = TAYLOR) -> SeriesLayer:
    """The released layer among one layer's weights."""
    arrays, center, scale = (w[SERIES + field] for field in FIELDS)
    return SeriesLayer(arrays, center, scale, basis)


def block(basis: Basis = TAYLOR) -> qwen3.Block:
    """The decoder layer of a locked checkpoint, for `qwen3.forward(…, block=block(basis))` and `qwen3.loss`."""

    def locked(w: qwen3.Weights, x: Any, config: qwen3.Qwen3Config) -> Any:
        x = x + qwen3.attention(w, qwen3.attention_norm(w, x, config), config)
        return x + series_layer(w, basis)(*gate_and_factor(w, qwen3.mlp_norm(w, x, config)))

    return locked
