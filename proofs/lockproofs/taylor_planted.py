"""A Taylor lock planted on the model under audit, what is saved of it, and what the coefficient attack makes of
that."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lockref.attacks.result import relative_error
from lockref.attacks.taylor_coefficients import recover_model
from lockref.autodiff import grad
from lockref.locks.bases import TAYLOR, Basis
from lockref.locks.taylor_model import DOWN, GATE, UP, lock_model, observe_model
from lockref.models import qwen3
from lockref.models.checkpoint_io import Checkpoint

Array = NDArray[np.float64]
Tensors = dict[str, NDArray[Any]]

ORDER = 8  # of the planted locks
DTYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in ("float64", "float32", "float16", "bfloat16")}


def eps(dtype: str) -> float:
    return float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]


def saved(released: Tensors, dtype: str) -> Tensors:
    """The release with its coefficients rounded to `dtype`; whatever is not a coefficient stays."""
    kind = DTYPES[dtype]
    return {k: v.astype(kind).astype(np.float64) if k.endswith("arrays") else v for k, v in released.items()}


@dataclass(frozen=True)
class Stolen:
    """What the attack returns, W_down's worst relative error of a layer and its derived bound, and the share of its
    entries that are right in bfloat16."""

    tensors: Tensors
    error: float
    bound: float
    right: float


@dataclass(frozen=True)
class Locked:
    """The model under audit, Taylor-locked by us, with random unit signs given a generator."""

    model: Checkpoint
    text: NDArray[np.int64]
    signs: np.random.Generator | None = None
    basis: Basis = TAYLOR

    @cached_property
    def released(self) -> Tensors:
        seen = observe_model(self.model.tensors, self.text, self.model.config)
        return lock_model(self.model.tensors, self.model.config, seen, ORDER, self.basis, self.signs)

    def layers(self, tensors: Tensors) -> list[dict[str, Any]]:
        return [qwen3.layer_weights(tensors, i) for i in range(self.model.config.num_hidden_layers)]

    def stolen(self, dtype: str) -> "Stolen":
        """The attack on a release whose coefficients are saved in that precision."""
        attack = recover_model(saved(self.released, dtype), self.model.config, self.basis, dtype)
        (guess,), error, bound, same = attack.guesses, 0.0, 0.0, []
        pairs = zip(self.layers(dict(guess)), self.layers(self.model.tensors), strict=True)
        for (got, want), limit in zip(pairs, attack.found["bound"], strict=True):
            down = got[DOWN] * np.sign(np.sum(got[UP] * want[UP], axis=1))  # a sign shared with W_up changes nothing
            error = max(error, relative_error(down, want[DOWN]), relative_error(got[GATE], want[GATE]))
            lengths = np.linalg.norm(want[DOWN], axis=0)  # no unit of a lock is dead: its owner refuses those
            bound = max(bound, float(np.linalg.norm(limit * lengths) / np.linalg.norm(lengths)))
            same.append(np.mean(down.astype(DTYPES["bfloat16"]) == want[DOWN].astype(DTYPES["bfloat16"])))
        return Stolen(dict(guess), error, bound, float(np.mean(same)))

    def loss(self, tensors: Tensors) -> float:
        return float(qwen3.loss(tensors, self.text, self.model.config))

    @cached_property
    def slope(self) -> float:
        """Σ over layers of ‖∂L/∂W_down‖ ‖W_down‖: loss per relative change of every W_down, to first order."""
        names = [k for k in self.model.tensors if k.endswith(DOWN)]
        moving = {k: self.model.tensors[k] for k in names}
        found = grad(lambda w: qwen3.loss(self.model.tensors | w, self.text, self.model.config))(moving)
        return float(sum(np.linalg.norm(found[k]) * np.linalg.norm(moving[k]) for k in names))
