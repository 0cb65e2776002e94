"""AD-REVOLVE: is the binomial checkpoint schedule optimal? Counted, derived again, searched and executed."""

from functools import cache
from heapq import heappop, heappush
from typing import Any

import numpy as np

from lockproofs.claim import Check, Claim, Context, Control, Controls, Curve, Evidence, Grade, Plot, Source, Verdict
from lockref.autodiff import ops, run_chain, schedules

STEPS, SLOTS = 40, 8


@cache
def fewest_steps(n: int, slots: int) -> int:
    """Forward steps (recording included) to reverse n of them with `slots` states: by dynamic programming."""
    if n == 1:
        return 1
    if slots == 1:
        return n * (n + 1) // 2
    return min(m + fewest_steps(n - m, slots - 1) + fewest_steps(m, slots) for m in range(1, n))


def fewest_by_search(n: int, slots: int) -> int:
    """The same by Dijkstra's search over all schedules: states held, state at hand, steps left to reverse."""
    start = (frozenset([0]), 0, n)
    queue: list[tuple[int, int, tuple[frozenset[int], int, int]]] = [(0, 0, start)]
    best = {start: 0}
    tie = 0
    while queue:
        cost, _, (saved, at, left) = heappop(queue)
        if left == 0:
            return cost
        if best[saved, at, left] < cost:
            continue
        moves = [(0, (saved, s, left)) for s in saved] + [(0, (saved - {s}, at, left)) for s in saved]
        if at < left - 1:
            moves.append((1, (saved, at + 1, left)))
            if len(saved | {at}) <= slots:
                moves.append((0, (saved | {at}, at, left)))
        elif at == left - 1:
            moves.append((1, (saved, n, left - 1)))  # record and pull; the state at hand is used up
        for price, state in moves:
            if cost + price < best.get(state, cost + price + 1):
                best[state] = cost + price
                tie += 1
                heappush(queue, (cost + price, tie, state))
    raise RuntimeError("no schedule reverses the chain")


def check_revolve(ctx: Context) -> Evidence:
    """The schedule's forward steps against the least possible, for every n ≤ 40 and s ≤ 8.

    The least is found twice: by dynamic programming over where the first state is saved, and for
    small n by a search over every possible schedule, which assumes nothing about its form. The
    schedule is also executed, and the calls of the step function are counted. Beyond the range the
    formula n + rn − C(s+r, r−1) is the theorem of Griewank & Walther (ACM TOMS 26, 2000).
    """
    slots = range(1, SLOTS + 1)
    grid = [(n, s) for n in range(1, STEPS + 1) for s in slots]
    costs = {key: schedules.cost(schedules.binomial(*key)) for key in grid}
    off_optimum = max(abs(costs[key].steps - fewest_steps(*key)) for key in grid)
    off_formula = max(abs(costs[key].steps - schedules.binomial_steps(*key)) for key in grid)
    over = max(costs[n, s].slots - s for n, s in grid)
    small = [(n, s) for n in range(1, 8) for s in range(1, 4)]
    off_search = max(abs(fewest_steps(*key) - fewest_by_search(*key)) for key in small)
    executed = [(n, s) for n in (1, 5, 12) for s in (1, 2, 3)]
    off_calls = max(abs(_calls(n, s, ctx.rng()) - costs[n, s].steps) for n, s in executed)
    return Evidence(
        verdict=Verdict.HOLDS,
        grade=Grade.PROVED,
        explanation=f"For every chain of up to {STEPS} steps and up to {SLOTS} saved states the binomial schedule runs "
        "exactly as many forward steps as the optimum, never holds more states than allowed, and the executor runs the "
        "steps that the schedule lists and no others.",
        checks=[
            _whole("schedule = optimum", "max |steps − dynamic programming|", off_optimum, len(grid)),
            _whole("schedule = formula", "max |steps − (n + rn − C(s+r, r−1))|", off_formula, len(grid)),
            _whole("slots", "max (states held − s), 0 where s are used", over, len(grid)),
            _whole("optimum over all schedules", "max |dynamic programming − search|", off_search, len(small)),
            _whole("executed as listed", "max |calls of the step − steps of the schedule|", off_calls, len(executed)),
        ],
        controls=Controls(power=_wasted_slots_are_seen()),
        assumptions=["steps of equal cost and states of equal size; one recorded step at a time"],
        plots=[
            Plot(
                title=f"Forward steps to reverse a chain of {STEPS}", x_label="saved states", y_label="forward steps",
                curves=[Curve(name="binomial", x=list(slots), y=[costs[STEPS, s].steps for s in slots])],
            )
        ],
    )  # fmt: skip


def _whole(name: str, statistic: str, value: int, cases: int) -> Check:
    return Check(
        name=name, statistic=statistic, unit="steps", value=value, bound=0, sense="==",
        tolerance_from="integers: no tolerance", cases=cases,
    )  # fmt: skip


def _calls(n: int, slots: int, rng: np.random.Generator) -> int:
    """Calls of the step function while the schedule is executed, checked to give the right gradient."""
    calls = 0

    def step(p: Any, x: Any) -> Any:
        nonlocal calls
        calls += 1
        return ops.tanh(p * x)

    params, x, u = rng.normal(size=(n, 1, 3)), rng.normal(size=(2, 3)), rng.normal(size=(2, 3))
    _, got = run_chain(schedules.binomial(n, slots), step, list(params), x, lambda _: u)
    counted = calls
    _, want = run_chain(schedules.keep_all(n), step, list(params), x, lambda _: u)
    if not np.array_equal(got, want):
        raise ArithmeticError(f"binomial schedule of {n} steps, {slots} slots: its gradient differs from keep_all's")
    return counted


def _wasted_slots_are_seen() -> Control:
    excess = schedules.cost(schedules.binomial(STEPS, 1)).steps - fewest_steps(STEPS, 3)
    what = "a planted schedule that leaves two of its three slots empty is seen to be worse"
    return Control(what=what, passed=excess > 0, value=excess, bound=0, unit="steps")


REVOLVE = Claim(
    id="AD-REVOLVE",
    title="The binomial schedule is optimal",
    statement="The binomial checkpoint schedule needs the fewest recomputations for n steps and s slots.",
    source=Source(paper="Griewank & Walther, Algorithm 799: revolve, ACM TOMS 26 (2000)", where="main theorem"),
    kind="theorem",
    recorded=Verdict.HOLDS,
    would_change="A schedule with fewer forward steps for the same slots.",
    check=check_revolve,
)
