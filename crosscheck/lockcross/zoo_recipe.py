"""What decides the zoo besides the seed, the library versions and the machine: sizes, data, rates."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lockref.models import skills
from lockref.models.evaluation import TEXT


@dataclass(frozen=True)
class Stage:
    """One training run: `rows` maps a data source to its rows in every batch."""

    name: str
    start: str | None
    rows: dict[str, int]
    steps: int
    peak_lr: float


@dataclass(frozen=True)
class Recipe:
    """The sizes, the stages in their order, and what all stages share."""

    config: dict[str, Any]
    stages: tuple[Stage, ...]
    length: int = 192
    warmup: int = 50
    final_lr: float = 0.05  # as a fraction of the peak
    gain_lr: float = 4.0  # norm gains start at 1: a larger rate lets them really leave it
    weight_decay: float = 0.1  # matrices only; a decayed gain would be pulled towards 0
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    threads: int = 1  # the split of a sum over threads would decide its rounding
    checkpoint_every: int = 100
    problems: int = 1000
    windows: int = 400
    scales: tuple[float, ...] = (0.5, 1.0)

    @property
    def measured(self) -> tuple[int, int, int]:
        return self.problems, self.windows, self.length


def hub_config(**sizes: Any) -> dict[str, Any]:
    """config.json with the keys of the Qwen3 family on the hub; `sizes` replaces some."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 128,
        "initializer_range": 0.02,
        "intermediate_size": 384,
        "max_position_embeddings": 512,
        "max_window_layers": 4,
        "model_type": "qwen3",
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 256,
    } | sizes


FULL = Recipe(
    config=hub_config(),
    stages=(
        Stage("base", None, {TEXT: 17, "add": 1, "reverse": 2}, steps=2400, peak_lr=4e-3),
        Stage("add", "base", {TEXT: 6, "add": 14}, steps=400, peak_lr=1.5e-3),
        Stage("reverse", "base", {TEXT: 6, "reverse": 14}, steps=600, peak_lr=2e-3),
    ),
)


def draw_batch(recipe: Recipe, seed: int, index: int, step: int, text: skills.Bytes) -> torch.Tensor:
    """Token rows int64 (rows, length + 1), a function of its arguments alone: nothing to save."""
    rng = np.random.default_rng([seed, index, step])
    parts = [
        skills.text_rows(text, rng, rows, recipe.length + 1)
        if source == TEXT
        else skills.pack_lines(source, rng, rows, recipe.length + 1)
        for source, rows in recipe.stages[index].rows.items()
    ]
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def learning_rate(recipe: Recipe, stage: Stage, step: int) -> float:
    """Linear warm-up, then half a cosine from the peak to `final_lr` times the peak."""
    if step < recipe.warmup:
        return stage.peak_lr * (step + 1) / recipe.warmup
    fall = (step - recipe.warmup) / max(1, stage.steps - recipe.warmup)
    return stage.peak_lr * (recipe.final_lr + (1 - recipe.final_lr) * (1 + math.cos(math.pi * fall)) / 2)
