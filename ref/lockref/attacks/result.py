"""What an attack hands back, whatever the attack."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class AttackResult:
    """The weights that an attacker is left with, and what it took.

    `guesses` are models that the attacker cannot tell apart; the attack succeeds where the original is among them.
    """

    attack: str
    knows: tuple[str, ...]  # what the attacker had, such as "released weights"
    guesses: Sequence[Tensors]
    found: Mapping[str, Any] = field(default_factory=dict)  # keys and figures, by name

    @property
    def residual_bits(self) -> float:
        """log2 of the number of guesses left: what the lock still hides."""
        return math.log2(len(self.guesses))


def relative_error(got: ArrayLike, want: ArrayLike) -> float:
    """‖got − want‖_F / ‖want‖_F; 0 where both are zero, infinite where only `want` is."""
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        raise ValueError(f"relative_error: got shape {got.shape}, want shape {want.shape}; they must agree")
    difference, size = float(np.linalg.norm(got - want)), float(np.linalg.norm(want))
    return difference / size if size else math.inf if difference else 0.0
