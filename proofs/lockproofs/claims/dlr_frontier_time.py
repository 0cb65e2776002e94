"""The cost frontier in time: what DLR-FRONTIER reads from the stored experiment `dlr_frontier_time`.

Times are the thread's processor time, which on an idle machine is the time on the wall; both are stored.
"""

from typing import Any

from lockproofs.claim import Check, Curve, Plot
from lockproofs.experiments.dlr_frontier_time import EXPERIMENT
from lockproofs.experiments.store import Result, stored

BUDGETS = (1.0, 4 / 3, 2.0, 3.0)
WORKSPACE = 12  # multiples of d, see `checks`
Row = dict[str, Any]


def least_in_time(row: Row, budget: float, *, locked: bool, unit: str = "over_unlocked_default") -> Row | None:
    """The attacker of least memory whose median processor time is within the budget; None where nobody's is."""
    within = [a for a in row["attackers"] if a["locked"] is locked and a[unit]["cpu"] <= budget]
    return min(within, key=lambda a: (a["elements"], a[unit]["cpu"]), default=None)


def amplification_in_time(row: Row, budget: float) -> float | None:
    """Least memory with the lock over least memory without it, the budget counted in default steps without the lock.

    None where no attacker of the locked model is done in that time.
    """
    mine, its = (least_in_time(row, budget, locked=locked) for locked in (True, False))
    return None if mine is None or its is None else float(mine["elements"] / its["elements"])


def title(row: Row) -> str:
    """The cell in a few words."""
    return f"{row['kind']}, L = {row['depth']}, norm {row['norm']}, {row['goal']}"


def finding(result: Result) -> str:
    """What the stored times say, in plain words."""
    stacks = result.where(kind="stack", goal="all")
    alone = [over(row, "h-only inversion") for row in stacks]
    default = [over(row, "default reverse mode", "over_unlocked_default") for row in stacks]
    table = {b: [amplification_in_time(row, b) for row in stacks] for b in BUDGETS}
    words = []
    for budget, values in table.items():
        done = [v for v in values if v is not None]
        spread = f"{min(done):.2f} to {max(done):.2f} times the memory" if done else "nobody is done"
        late = f" (nobody is done on {len(values) - len(done)} of {len(values)})" * (0 < len(done) < len(values))
        words.append(f"{budget:.2f}: {spread}{late}")
    return (
        f"In time, measured on {len(stacks)} small stacks ({result.environment.cpu}, one thread, `{result.command}`): "
        f"h-only inversion takes {min(alone):.2f} to {max(alone):.2f} times as long as default reverse mode on the "
        f"same model, and that {min(default):.2f} to {max(default):.2f} times as long as on the unlocked one. Who "
        f"trains everything needs, within budgets of default steps of the unlocked model, {'; '.join(words)}. So in "
        "time the lock costs what its many thin products cost (DLR-LATENCY); who pays for them gets the memory back."
    )


def over(row: Row, name: str, unit: str = "over_default") -> float:
    """Median ratio of a locked attacker's processor time."""
    found: float = next(a for a in row["attackers"] if a["locked"] and a["name"] == name)[unit]["cpu"]
    return found


def checks(result: Result) -> list[Check]:
    """One attacker who needs less in three default steps of time refutes; and closed forms against measured peaks.

    A measured peak holds, besides what is kept, the arrays of the operation at hand: what it reads, returns and works
    with, three of m = 3 d columns in a SwiGLU, fewer than a dozen of d elsewhere, at any depth. The state that enters
    is outside of it.
    """
    stacks = result.where(kind="stack")
    bought = min(amplification_in_time(row, BUDGETS[-1]) or float("inf") for row in stacks)
    gaps = [_gap(result, row, a) for row in result.rows for a in row["attackers"] if a["elements"] is not None]
    measured = "measured peak − closed form, per token, every attacker and model"
    return [
        Check(
            name="three times the time", unit="times", value=bought, bound=1.0, cases=len(stacks), seed=result.seed,
            statistic="least amplification over the stacks timed, budget in default steps of the unlocked model",
            tolerance_from="the bound is the claim's; medians of ratios of the same round",
        ),
        Check(
            name="no peak below its closed form", unit="multiples of d", value=min(gaps), bound=0.0, sense=">=",
            statistic=f"least {measured}", tolerance=1.0, cases=len(gaps), seed=result.seed,
            tolerance_from="the state that enters, d columns, is held outside",
        ),
        Check(
            name="no peak far above it", unit="multiples of d", value=max(gaps), bound=WORKSPACE,
            statistic=f"largest {measured}", cases=len(gaps), seed=result.seed,
            tolerance_from="the bound is the workspace of one operation",
        ),
    ]  # fmt: skip


def _gap(result: Result, row: Row, attacker: Row) -> float:
    width = result.settings["d"] if row["kind"] == "stack" else result.settings["small_mlp"][0]
    memory = attacker["memory"]
    return float((memory["measured"] - memory["closed_form"]) / width)


def plots(result: Result) -> list[Plot]:
    """Memory against time, every attacker of the deepest stacks; and the amplification at each budget."""
    deepest = max(row["depth"] for row in result.where(kind="stack"))
    chosen = result.where(kind="stack", depth=deepest, goal="all")
    curves = []
    for row in chosen:
        for locked in (False, True):
            points = _staircase(row, locked)
            name = f"locked, norm {row['norm']}" if locked else f"unlocked (beside norm {row['norm']})"
            curves.append(Curve(name=name, x=[p[0] for p in points], y=[p[1] for p in points]))
    by_budget = [
        Curve(name=title(row), x=list(BUDGETS), y=[amplification_in_time(row, b) for b in BUDGETS])
        for row in result.where(kind="stack")
    ]
    return [
        Plot(
            title=f"Least memory against time, small stacks, depth {deepest}, everything trains",
            x_label="time, default step of the unlocked model = 1", y_label="elements per token", y_log=True,
            curves=curves,
        ),
        Plot(
            title="Memory amplification within a budget of time, small stacks",
            x_label="time, default step of the unlocked model = 1",
            y_label="least memory with the lock / without", curves=by_budget,
        ),
    ]  # fmt: skip


def _staircase(row: Row, locked: bool) -> list[tuple[float, float]]:
    """The attackers that no other beats in both time and memory, fastest first."""
    points = sorted(
        (a["over_unlocked_default"]["cpu"], a["elements"]) for a in row["attackers"] if a["locked"] is locked
    )
    best: list[tuple[float, float]] = []
    for time, elements in points:
        if not best or elements < best[-1][1]:
            best.append((time, elements))
    return best


def read() -> Result:
    """The stored result; MissingInput where there is none."""
    return stored(EXPERIMENT.name)
