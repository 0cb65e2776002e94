"""Two related merging locks, as planted subjects for the attacks: an attack must show its power on them.

PaRaMS (arXiv 2503.07661) renumbers MLP units and scales attention's coordinates; MergeLock (arXiv 2509.01548) puts
pairs of invertible matrices between W_q and W_k and between W_v and W_o. Both take the Q/K half from plain dot-product
attention: QK-norm and RoPE do not let it through, so on a Qwen3 it changes the function (`rotary=True` leaves it out).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockref.locks.attention import Tensors
from lockref.locks.symmetries import mix_values, pair_queries, permute_mlp
from lockref.models.qwen3_config import Qwen3Config

Array = NDArray[np.float64]

SPREAD = 4.0  # condition number of a planted invertible block, at most; greatest ratio of two planted scales


@dataclass(frozen=True)
class PeerLock:
    """A locked model and its key: `order` (layers, m), `values` and `queries` (layers, G, c, c); None where unused."""

    tensors: dict[str, NDArray[Any]]
    values: Array
    queries: Array | None
    order: NDArray[np.intp] | None = None


def params_lock(tensors: Tensors, config: Qwen3Config, rng: np.random.Generator, *, rotary: bool = True) -> PeerLock:
    """PaRaMS: a random permutation of every MLP, random positive diagonal scales on V/O, and on Q/K unless `rotary`."""
    order = rng.permuted(np.tile(np.arange(config.intermediate_size), (config.num_hidden_layers, 1)), axis=1)
    values, queries = (_scales(rng, config) for _ in range(2))
    return _applied(permute_mlp(tensors, config, order), config, values, None if rotary else queries, order)


def merge_lock(tensors: Tensors, config: Qwen3Config, rng: np.random.Generator, *, rotary: bool = True) -> PeerLock:
    """MergeLock: random invertible pairs on V/O, and on Q/K unless `rotary`."""
    values, queries = (_invertible(rng, config) for _ in range(2))
    return _applied(dict(tensors), config, values, None if rotary else queries, None)


def _applied(
    tensors: dict[str, NDArray[Any]],
    config: Qwen3Config,
    values: Array,
    queries: Array | None,
    order: NDArray[np.intp] | None,
) -> PeerLock:
    mixed = mix_values(tensors, config, values)
    return PeerLock(mixed if queries is None else pair_queries(mixed, config, queries), values, queries, order)


def _scales(rng: np.random.Generator, config: Qwen3Config) -> Array:
    c = config.head_dim
    scales = SPREAD ** rng.uniform(-0.5, 0.5, (config.num_hidden_layers, config.num_key_value_heads, c))
    diagonal: Array = scales[..., None] * np.eye(c)
    return diagonal


def _invertible(rng: np.random.Generator, config: Qwen3Config) -> Array:
    """U diag(s) V with random orthogonal U and V."""
    scales = _scales(rng, config)
    left, right = np.linalg.qr(rng.standard_normal((2, *scales.shape)))[0]
    mixed: Array = left @ scales @ right
    return mixed
