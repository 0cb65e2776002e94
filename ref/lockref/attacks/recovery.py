"""Recovery: a short fine-tune of a merged model on a little data of every skill."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lockref.attacks.merging_grid import KNOWS
from lockref.attacks.result import AttackResult, Tensors
from lockref.locks.dlr_training import Recipe, train

Draw = Callable[[np.random.Generator], Any]
BatchLoss = Callable[[Any, Any], Any]


def recover(merged: Tensors, loss: BatchLoss, draw: Draw, recipe: Recipe) -> AttackResult:
    """Every tensor trains by `recipe` on batches that `draw` makes; `found` holds losses, one for each step.

    Raises FloatingPointError where training diverges.
    """
    losses: list[float] = []

    def objective(params: Any, rng: np.random.Generator) -> Any:
        return loss(params, draw(rng))

    state = train(objective, merged, recipe, follow=lambda _, value: losses.append(value))
    return AttackResult("recovery", KNOWS, (state.params,), {"losses": losses})
