"""A small random model for tests of the attention lock: norm gains that differ, G < H, nothing square."""

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from lockref.models.qwen3 import Qwen3Config, expected_tensors

Array = NDArray[np.float64]

CONFIG = Qwen3Config(
    vocab_size=11, hidden_size=10, intermediate_size=7, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=2, head_dim=6, rope_theta=100.0,
)  # fmt: skip
C = CONFIG.head_dim
EPS = 2.0**-52
SEEDS = st.integers(0, 2**32 - 1)


def model(seed: int = 0) -> dict[str, Array]:
    """Random weights; norm gains from 0.5 to 1.5."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.uniform(0.5, 1.5, shape) if "norm" in name else rng.standard_normal(shape)
        for name, shape in expected_tensors(CONFIG).items()
    }


def haar(rng: np.random.Generator, *shape: int) -> Array:
    return np.linalg.qr(rng.standard_normal((*shape, shape[-1])))[0]


TOKENS = np.random.default_rng(1).integers(0, CONFIG.vocab_size, (2, 9))
