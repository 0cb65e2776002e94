"""Held-out figures of a model: the zoo's card says the same, from PyTorch."""

import json

import numpy as np
import pytest

from lockref.models import evaluation, qwen3
from lockref.models.checkpoint_io import load_checkpoint
from lockref.models.zoo import zoo_path


@pytest.fixture(scope="module")
def expert():
    return load_checkpoint(zoo_path("add"), np.float32)


def test_skills_agree_with_the_card(expert):
    """Greedy choices of two float32 implementations: at most one of 1000 problems may hang on a rounding."""
    card = json.loads((zoo_path("add").parent / "card.json").read_text())["models"]["add"]["held_out"]
    got = evaluation.evaluate(expert.tensors, expert.config, windows=1, length=8)
    assert all(abs(got[name] - card[name]) <= 1.5e-3 for name in ("add", "reverse"))


def test_text_loss_is_the_mean_over_windows(expert):
    rows = evaluation.held_out_windows(2 * evaluation.BATCH + 3, 24)
    assert rows.shape == (2 * evaluation.BATCH + 3, 25)
    each = [float(qwen3.loss(expert.tensors, row, expert.config)) for row in rows]
    got = evaluation.text_loss(expert.tensors, rows, expert.config)
    # float32 sums of at most 256 terms in each logit and 24 · 8 in a mean, losses below 8 nats
    assert abs(got - np.mean(each)) <= 500 * 2.0**-24 * 8


def test_another_block_is_used(expert):
    rows = evaluation.held_out_windows(2, 24)
    got = evaluation.evaluate(expert.tensors, expert.config, lambda w, x, c: x, problems=5, windows=2, length=24)
    assert got["add"] == 0 and got["text"] > evaluation.text_loss(expert.tensors, rows, expert.config) + 1
