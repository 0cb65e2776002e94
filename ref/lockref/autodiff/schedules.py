"""Checkpoint schedules as data: lists of actions for reversing a chain x_{i+1} = f_i(x_i), i = 0 … n−1.

A schedule can be printed, drawn, counted and executed (`checkpoint.run_chain` follows it to the letter).
Its memory is the states it saves plus the steps it has recorded; its price the steps it runs again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import comb, isqrt
from typing import TypeAlias


@dataclass(frozen=True)
class Save:
    """Keep the state at hand, x_i, in a slot."""

    i: int


@dataclass(frozen=True)
class Load:
    """Take x_i from its slot as the state at hand."""

    i: int


@dataclass(frozen=True)
class Drop:
    """Free the slot of x_i."""

    i: int


@dataclass(frozen=True)
class Run:
    """Advance from x_i to x_j, recording nothing."""

    i: int
    j: int


@dataclass(frozen=True)
class Record:
    """Advance from x_i to x_{i+1} and keep what the reverse of step i needs."""

    i: int


@dataclass(frozen=True)
class Pull:
    """Pull the cotangent back through recorded step i, and free the record."""

    i: int


Action: TypeAlias = Save | Load | Drop | Run | Record | Pull


@dataclass(frozen=True)
class Cost:
    """What a schedule costs: forward steps in all, the most slots and records held at once."""

    steps: int
    slots: int
    records: int


def cost(actions: list[Action]) -> Cost:
    """Count a schedule's forward steps (recorded ones included) and its peak of slots and records."""
    steps = slots = records = most_slots = most_records = 0
    for action in actions:
        match action:
            case Run(i, j):
                steps += j - i
            case Record():
                steps += 1
                records += 1
            case Pull():
                records -= 1
            case Save():
                slots += 1
            case Drop():
                slots -= 1
        most_slots, most_records = max(most_slots, slots), max(most_records, records)
    return Cost(steps, most_slots, most_records)


def draw(actions: list[Action]) -> str:
    """A picture: a line for each action, a column for each state; ● saved, ─ run, ▶ recorded, ◀ pulled."""
    width = 1 + max(a.j if isinstance(a, Run) else a.i + isinstance(a, Record) for a in actions)
    saved: set[int] = set()
    lines = []
    for action in actions:
        cells = ["●" if i in saved else "·" for i in range(width)]
        match action:
            case Save(i):
                saved.add(i)
                cells[i] = "●"
            case Drop(i):
                saved.discard(i)
                cells[i] = "·"
            case Run(i, j):
                cells[i:j] = ["─"] * (j - i)
            case Record(i):
                cells[i] = "▶"
            case Pull(i):
                cells[i] = "◀"
        lines.append(f"{' '.join(cells)}  {action}")
    return "\n".join(lines)


def keep_all(n: int) -> list[Action]:
    """No checkpoints: every step recorded once."""
    return [*(Record(i) for i in range(n)), *(Pull(i) for i in reversed(range(n)))]


def every(n: int, k: int) -> list[Action]:
    """Save each k-th state, record one segment of k steps at a time: n/k slots, k records, < 2n steps."""
    if not 1 <= k <= n:
        raise ValueError(f"checkpoint every k={k} of n={n} steps: k must lie in 1 … n")
    starts = list(range(0, n, k))
    actions: list[Action] = []
    for start in starts[:-1]:
        actions += [Save(start), Run(start, start + k)]
    actions.append(Save(starts[-1]))
    for start in reversed(starts):
        segment = range(start, min(start + k, n))
        actions += [
            Load(start),
            Drop(start),
            *(Record(i) for i in segment),
            *(Pull(i) for i in reversed(segment)),
        ]
    return actions


def per_block(n: int) -> list[Action]:
    """Save the input of every step and record one step at a time."""
    return every(n, 1)


def square_root(n: int) -> list[Action]:
    """Segments of about √n steps (Chen et al., arXiv 1604.06174)."""
    return every(n, max(1, isqrt(n)))


def binomial(n: int, slots: int) -> list[Action]:
    """The schedule with the fewest forward steps for n steps, `slots` saved states and one record.

    Griewank & Walther, "Algorithm 799: revolve", ACM TOMS 26 (2000).
    """
    if n < 1 or slots < 1:
        raise ValueError(f"binomial schedule of n={n} steps with {slots} slots: both must be at least 1")
    return [Save(0), *_reverse(0, n, slots), Drop(0)]


def binomial_steps(n: int, slots: int) -> int:
    """Forward steps of the binomial schedule: n + rn − C(s+r, r−1), r the least with C(s+r, r) ≥ n, s = slots."""
    r = next(r for r in range(n + 1) if comb(slots + r, r) >= n)
    return n + (r * n - comb(slots + r, r - 1) if r else 0)


def _reverse(start: int, stop: int, slots: int) -> Iterator[Action]:
    """Reverse steps start … stop−1, with x_start at hand and in one of `slots` slots."""
    if stop - start == 1:
        yield from (Record(start), Pull(start))
    elif slots == 1:  # nowhere to save: run from the start for each step
        for i in range(stop - 1, start, -1):
            yield from (Run(start, i), Record(i), Pull(i), Load(start))
        yield from (Record(start), Pull(start))
    else:
        middle = start + binomial_split(stop - start, slots)
        yield from (Run(start, middle), Save(middle))
        yield from _reverse(middle, stop, slots - 1)
        yield from (Drop(middle), Load(start))
        yield from _reverse(start, middle, slots)


def binomial_split(n: int, slots: int) -> int:
    """How far to run through n > 1 steps before saving, with `slots` states left, the one at hand among them.

    With one there is nowhere to save: all but the last step, which is recorded. Otherwise a first part that keeps both
    parts optimal.
    """
    if slots == 1:
        return n - 1
    return min(
        range(1, n),
        key=lambda m: m + binomial_steps(n - m, slots - 1) - (n - m) + binomial_steps(m, slots) - m,
    )
