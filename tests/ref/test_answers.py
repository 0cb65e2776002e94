"""The loss on answers: which positions count, and that a causal model sees no padding."""

import numpy as np
import pytest

from lockref.models import qwen3
from lockref.models.answers import answer_loss, answers

PROBLEMS = [(b"12+30=", b"042\n"), (b"9>", b"9\n")]


def test_positions_are_those_before_each_answer_token():
    given = answers(PROBLEMS)
    assert given.tokens.shape == (2, 10)
    assert bytes(given.targets.astype(np.uint8)) == b"042\n9\n"
    with pytest.raises(ValueError, match="at least one"):
        answers([])


def test_the_loss_is_that_of_each_problem_alone(tiny_qwen3):
    config, weights = tiny_qwen3()
    problems = [(bytes([1, 2, 3]), bytes([4, 5])), (bytes([6]), bytes([7, 8, 9, 3]))]
    total = 0.0
    for prompt, answer in problems:
        line = np.frombuffer(prompt + answer, np.uint8).astype(np.int64)
        logits = qwen3.forward(weights, line[:-1], config)[len(prompt) - 1 :]
        shifted = logits - logits.max(-1, keepdims=True)
        logp = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        total -= logp[np.arange(len(answer)), list(answer)].sum()
    got = float(answer_loss(weights, answers(problems), config))
    # float64 round-off of a two-layer model, amplified by at most 1e4
    assert abs(got - total / 6) <= 1e4 * np.finfo(float).eps * max(1.0, total / 6)
