"""The ledger: which array reverse mode keeps, for which operation, for whose gradient, at what cost.

Buffers are counted, not arrays: however many views look at a buffer, its bytes count once, and a view
of a small part keeps the whole. Buffers of the function's arguments are owned elsewhere.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lockref.autodiff.array import primal
from lockref.autodiff.reverse import vjp
from lockref.autodiff.tape import Tape
from lockref.autodiff.tree import flatten


@dataclass(frozen=True)
class Saved:
    """One array that the tape keeps. `bytes` are those of its whole buffer, 0 where a row above has it."""

    op: str
    name: str
    needed_for: tuple[str, ...]  # the arguments whose gradient reads it
    shape: tuple[int, ...]
    dtype: str
    owner: str  # "parameter", "input" or "activation"
    bytes: int
    alias_of: str | None  # the argument, or the row "#n", that owns the same buffer


@dataclass(frozen=True)
class Ledger:
    """All arrays that one reverse pass keeps, in the order in which they were kept."""

    rows: tuple[Saved, ...]

    def __iter__(self) -> Iterator[Saved]:
        return iter(self.rows)

    def bytes(self, owner: str = "activation") -> int:
        """Bytes of distinct buffers of one owner."""
        return sum(r.bytes for r in self.rows if r.owner == owner)

    def __str__(self) -> str:
        head = ("", "operation", "keeps", "for", "shape", "dtype", "owner", "bytes", "same buffer as")
        cells = [head] + [
            (f"#{i}", r.op, r.name, ", ".join(r.needed_for), "×".join(map(str, r.shape)) or "scalar",
             r.dtype, r.owner, f"{r.bytes:,}", r.alias_of or "")
            for i, r in enumerate(self.rows)
        ]  # fmt: skip
        widths = [max(len(row[c]) for row in cells) for c in range(len(head))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells]
        return "\n".join([*lines, f"activations: {self.bytes():,} bytes"])


def buffer(array: Any) -> Any:
    """The array that owns the memory which `array` looks at."""
    array = primal(array)
    while isinstance(getattr(array, "base", None), np.ndarray):
        array = array.base
    return array


def is_array(value: Any) -> bool:
    """Whether a kept value occupies a buffer: a constant such as the 2.0 in x * 2.0 does not."""
    return isinstance(primal(value), np.ndarray | np.generic)


def saved(
    f: Callable[..., Any],
    *args: Any,
    argnums: int | tuple[int, ...] = 0,
    parameters: int | tuple[int, ...] = 0,
) -> Ledger:
    """What reverse mode keeps for the gradient of f at args with respect to `argnums`.

    Arguments listed in `parameters` own their buffers as "parameter", the others as "input"; every
    other buffer is an "activation". Pass frozen weights as arguments, or they count as activations.
    """
    owned = (parameters,) if isinstance(parameters, int) else parameters
    owners: dict[int, tuple[str, str]] = {}
    leaves = []
    for n, arg in enumerate(args):
        values, paths, _ = flatten(arg)
        for value, path in zip(values, paths, strict=True):
            root = buffer(np.asarray(value))
            leaves.append(root)  # keeps id() valid
            owners[id(root)] = ("parameter" if n in owned else "input", f"args[{n}]{path}")
    _, pullback = vjp(f, *args, argnums=argnums)
    return ledger(pullback.tape, owners)


def ledger(tape: Tape, owners: dict[int, tuple[str, str]]) -> Ledger:
    """The rows of a tape; `owners` maps id(buffer) to (owner, argument)."""
    rows: list[Saved] = []
    seen: dict[int, str] = {}
    for plan, reads, _ in tape.records:
        names = [n for rule in plan.rules for n in rule.names]
        kept = dict(zip(names, reads, strict=True))
        for name in [n for n, value in kept.items() if n not in plan.data and is_array(value)]:
            root = buffer(kept[name])
            owner, argument = owners.get(id(root), ("activation", None))
            needed_for = tuple(a for rule in plan.rules if name in rule.names for a in rule.args)
            array = np.asarray(primal(kept[name]))
            rows.append(
                Saved(
                    plan.name,
                    name,
                    needed_for,
                    array.shape,
                    str(array.dtype),
                    owner,
                    0 if id(root) in seen else np.asarray(root).nbytes,
                    seen.get(id(root), argument),
                )
            )
            seen.setdefault(id(root), f"#{len(rows) - 1}")
    return Ledger(tuple(rows))
