"""What a byte-level model can do on held-out data: exact match per skill, and loss on text.

The draws are those of the zoo's card: the same seed means the same problems and windows.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lockref.models import qwen3, skills
from lockref.models.qwen3_config import Qwen3Config

TEXT = "text"  # the data source beside the skills
EVALUATION = 99  # stands where a training draw has its stage number: measuring never reuses a draw
BATCH = 8  # windows at once


def evaluate(
    tensors: Mapping[str, Any],
    config: Qwen3Config,
    block: qwen3.Block = qwen3.block,
    *,
    seed: int = 0,
    problems: int = 1000,
    windows: int = 400,
    length: int = 192,
) -> dict[str, float]:
    """{"add": …, "reverse": …, "text": …}: fractions of exact answers, and nats per byte of held-out text."""

    def next_bytes(tokens: skills.Bytes) -> skills.Integers:
        got: skills.Integers = np.argmax(qwen3.forward(tensors, tokens, config, block), axis=-1)
        return got

    figures: dict[str, float] = {}
    for place, name in enumerate(skills.SKILLS):
        drawn = skills.skill_problems(name, np.random.default_rng([seed, EVALUATION, place]), problems, held_out=True)
        figures[name] = skills.exact_match(next_bytes, drawn)
    rows = held_out_windows(windows, length, seed)
    return figures | {TEXT: text_loss(tensors, rows, config, block)}


def held_out_windows(windows: int, length: int, seed: int = 0) -> skills.Bytes:
    """Windows of held-out text, uint8 (windows, length + 1): `length` predictions in each."""
    rng = np.random.default_rng([seed, EVALUATION, len(skills.SKILLS)])
    return skills.text_rows(skills.stdlib_bytes(held_out=True), rng, windows, length + 1)


def text_loss(
    tensors: Mapping[str, Any], rows: skills.Bytes, config: Qwen3Config, block: qwen3.Block = qwen3.block
) -> float:
    """Mean loss in nats per byte over rows of tokens (B, T + 1), a few rows at a time."""
    parts = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    return sum(float(qwen3.loss(tensors, part, config, block)) * len(part) for part in parts) / len(rows)
