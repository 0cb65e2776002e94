"""A model's loss and exact match on the answers of skill problems: the prompt is given, only the answer counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockref.autodiff import ops
from lockref.models import qwen3, skills
from lockref.models.qwen3 import Qwen3Config, Weights

__all__ = ["Answers", "answer_loss", "answers", "exact_match"]


@dataclass(frozen=True)
class Answers:
    """Problems as rows of tokens (B, T), and where the positions lie whose next token is part of an answer."""

    tokens: NDArray[np.int64]
    at: tuple[NDArray[np.int64], NDArray[np.int64]]  # (rows, columns), columns below T − 1

    @property
    def targets(self) -> NDArray[np.int64]:
        rows, columns = self.at
        return self.tokens[rows, columns + 1]


def answers(problems: Sequence[skills.Problem]) -> Answers:
    """One row for each problem, padded on the right, which a causal model cannot see from the answer.

    Raises ValueError without problems.
    """
    if not problems:
        raise ValueError("answers needs at least one problem")
    width = max(len(prompt) + len(answer) for prompt, answer in problems)
    lines = b"".join((prompt + answer).ljust(width, b"\n") for prompt, answer in problems)
    tokens = np.frombuffer(lines, np.uint8).reshape(len(problems), width).astype(np.int64)
    counted = np.zeros((len(problems), width - 1), bool)
    for row, (prompt, answer) in zip(counted, problems, strict=True):
        row[len(prompt) - 1 : len(prompt) + len(answer) - 1] = True
    rows, columns = np.nonzero(counted)
    return Answers(tokens, (rows, columns))


def answer_loss(params: Weights, given: Answers, config: Qwen3Config) -> Any:
    """Mean −ln p(answer token | all before it) in nats per token of the answers, newline included."""
    x = qwen3.embed(params, given.tokens[:, :-1], config)
    for i in range(config.num_hidden_layers):
        x = qwen3.block(qwen3.layer_weights(params, i), x, config)
    return ops.cross_entropy(qwen3.head(params, x[given.at], config), targets=given.targets)


def exact_match(
    params: Weights, problems: Sequence[skills.Problem], config: Qwen3Config, block: qwen3.Block = qwen3.block
) -> float:
    """The share of problems whose whole answer is the greedy continuation of the prompt; `block` computes a layer."""
    return skills.exact_match(lambda tokens: np.argmax(qwen3.forward(params, tokens, config, block), axis=-1), problems)
