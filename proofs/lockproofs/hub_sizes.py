"""Sizes of published Qwen3 models (arXiv 2505.09388), for figures that need no weights."""

from typing import Final

from lockref.models.qwen3_config import Qwen3Config

HUB: Final = {
    "qwen3-0.6b": Qwen3Config(151936, 1024, 3072, 28, 16, 8, 128, tie_word_embeddings=True),
    "qwen3-8b": Qwen3Config(151936, 4096, 12288, 36, 32, 8, 128),
    "qwen3-32b": Qwen3Config(151936, 5120, 25600, 64, 64, 8, 128),
}
