"""Memory over one forward and backward pass, record by record: what the ledger's bytes mean in time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lockref.autodiff.ledger import buffer, is_array
from lockref.autodiff.reverse import vjp
from lockref.autodiff.tape import Tape
from lockref.autodiff.tree import flatten


@dataclass(frozen=True)
class Moment:
    """Bytes held when one operation has been recorded, or pulled."""

    phase: Literal["forward", "backward"]
    operation: str
    kept: int  # on the tape, with the operation at hand: activations, each buffer once
    cotangents: int  # of the sweep, finished gradients and the function's value included

    @property
    def total(self) -> int:
        """Kept activations and cotangents together."""
        return self.kept + self.cotangents


def timeline(f: Callable[..., Any], *args: Any, argnums: int | tuple[int, ...] = 0) -> list[Moment]:
    """Resident bytes through one pass of vjp(f, *args) and its sweep, for a function that returns one array.

    Buffers of the arguments are owned elsewhere and count nothing. The largest `total` is the predicted
    peak; only scratch that lives inside a single operation is left out.
    """
    owned = [buffer(np.asarray(leaf)) for leaf in flatten(args)[0]]  # held, so that an id stays one array's
    elsewhere = {id(root) for root in owned}
    value, pullback = vjp(f, *args, argnums=argnums)
    tape = pullback.tape
    kept_until = _kept_after(tape, elsewhere)
    moments = [
        Moment("forward", record[0].name, kept, 0) for record, kept in zip(tape.records, kept_until, strict=True)
    ]
    cotangents: list[Any] = [None] * len(tape.shapes)
    cotangents[-1] = np.ones(np.shape(value), np.asarray(value).dtype)
    for operation, g in tape.steps(cotangents, release=True):
        at_hand = [buffer(c) for c in (*cotangents, g, value) if c is not None]
        held = sum({id(root): root.nbytes for root in at_hand}.values())
        moments.append(Moment("backward", operation, kept_until[len(tape.records)], held))
    return moments


def _kept_after(tape: Tape, elsewhere: set[int]) -> list[int]:
    """Bytes of distinct kept buffers after each record: a buffer lives until its first record is pulled."""
    seen = set(elsewhere)
    total, totals = 0, []
    for plan, reads, _ in tape.records:
        names = (n for rule in plan.rules for n in rule.names)
        for root in (buffer(r) for n, r in zip(names, reads, strict=True) if n not in plan.data and is_array(r)):
            if id(root) not in seen:
                seen.add(id(root))
                total += root.nbytes
        totals.append(total)
    return totals
