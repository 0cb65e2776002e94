"""Losses of a checkpoint under audit, its rows and their scatter."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lockproofs.claim import Context
from lockproofs.subject import Given, Subject, directory_subject
from lockref.locks.full import Composed
from lockref.models import qwen3

Array = NDArray[np.float64]

ROWS, LENGTH = 64, 128  # tokens to measure on, of a small model
WORK = 2**34  # weights × tokens of one pass over them: fewer rows of a large model
DEVIATIONS = 3  # standard errors that a mean may be off


def rows(ctx: Context, stream: int, most: int = ROWS, passes: int = 1) -> NDArray[np.int64]:
    """Rows for so many forward passes: `most` of a small model, at least four of any."""
    size = sum(w.size for w in ctx.subject.composed.tensors.values())
    return ctx.tokens(max(4, min(most, WORK // (passes * size * LENGTH))), LENGTH, stream)


def losses(ctx: Context, model: Composed, tokens: NDArray[np.int64]) -> Array:
    """Mean loss of each row, in nats per token."""
    found = []
    for i, row in enumerate(tokens):
        ctx.say(f"{model.path.name}, row {i + 1} of {len(tokens)}")
        found.append(float(qwen3.loss(model.tensors, row[None], model.config, model.composition.block)))
    return np.array(found)


@dataclass(frozen=True)
class Gap:
    """Relative rise of a mean loss over another's on the same rows, and its standard error."""

    value: float
    error: float

    @classmethod
    def between(cls, got: Array, want: Array) -> "Gap":
        """The ratio of two means; its error by the delta method, from rows paired."""
        ratio = float(np.mean(got) / np.mean(want))
        scatter = np.std(got - ratio * want, ddof=1) / np.mean(want)
        return cls(ratio - 1, float(scatter / np.sqrt(len(got))))

    @property
    def slack(self) -> float:
        """What the mean may be off."""
        return DEVIATIONS * self.error


def stored_type(model: Composed, name: str) -> np.dtype[Any]:
    """The type that a file holds a tensor in."""
    return np.dtype(getattr(ml_dtypes, model.dtypes[name], model.dtypes[name]))


def storage_unit(model: Composed, name: str) -> float:
    """Unit round-off of that type."""
    return float(ml_dtypes.finfo(stored_type(model, name)).eps) / 2  # type: ignore[no-untyped-call]


def where(subject: Subject) -> dict[str, Any]:
    """What a counterexample needs to load the same models again."""
    given = subject.given
    said = {role: str(path) for role in ("base", "reference", "lock", "data") if (path := getattr(given, role))}
    peers = {"peers": [str(path) for path in given.peers]} if given.peers else {}
    return {"subject": str(given.subject), **said, **peers}


def again(given: dict[str, Any], seed: int, *roles: str) -> Context:
    """The models of a counterexample, in these roles, loaded again."""
    base, reference, lock, data = (
        Path(given[role]) if role in given and role in ("lock", "data", *roles) else None
        for role in ("base", "reference", "lock", "data")
    )
    peers = tuple(Path(p) for p in given.get("peers", ())) if "peer" in roles else ()
    return Context(directory_subject(Given(Path(given["subject"]), base, reference, peers, lock, data)), seed, 1)
