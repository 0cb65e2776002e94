"""DLR-FINETUNE: the best of a grid of learning rates, on the original, on a locked form and on a planted lock."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lockproofs.claim import (
    Check,
    Claim,
    Context,
    Control,
    Controls,
    Counterexample,
    Deviation,
    Evidence,
    Grade,
    MissingInput,
    Source,
    Verdict,
)
from lockproofs.claims.dlr_common import FORMULA, PAPER
from lockproofs.claims.dlr_redistill import outcome
from lockproofs.claims.dlr_utility import GAP, POINTS
from lockproofs.experiments.dlr_finetune import FRESH_SEEDS, SEEDS
from lockproofs.experiments.store import Result, stored
from lockproofs.finetune_runs import ATTACKERS, Runs, curves_plot, grid_plot, runs
from lockref.attacks.finetune import Difference, paired

LOCKED = "dlr-16"
EVERY_SEED = (*SEEDS, *FRESH_SEEDS)
LEVEL = 0.975  # of the intervals: the seeds were looked at twice
SMALL = Deviation(
    paper_says="a lock for a model of 0.6 billion parameters, adapted on benchmark data",
    we_do="a model of 0.85 million parameters, adapted to addition for a few hundred steps",
    why="every run can be repeated on one core",
    effect="figures say nothing about the size of the effect at other scales",
)


def need(found: Result, model: str, attacker: str, seeds: Sequence[int]) -> Runs:
    """The runs of these seeds, at the rates that all of them have. Raises MissingInput where there are none."""
    some = runs(found, model, attacker, seeds)
    if some is None or len(some.curves) < 3:
        raise MissingInput(f"stored result dlr_finetune has no grid for {model}, {attacker}; run {found.command}")
    return some


def compared(found: Result, attacker: str = "all") -> tuple[Runs, Runs, Difference]:
    """Locked and original runs of all seeds, and the paired differences of their best final losses."""
    locked, original = (need(found, model, attacker, EVERY_SEED) for model in (LOCKED, "original"))
    return locked, original, paired(locked.best.losses, original.best.losses, LEVEL)


def controls(found: Result) -> Controls:
    """The planted lock against the original with the same seeds; the original against itself with fresh ones."""
    original = need(found, "original", "all", SEEDS)
    planted = paired(need(found, "planted", "all", SEEDS).best.losses, original.best.losses)
    fresh = paired(need(found, "original", "all", FRESH_SEEDS).best.losses, original.best.losses)
    half = fresh.high - fresh.mean
    return Controls(
        power=Control(
            what="a planted lock that computes the same bits with weights out of scale (16, 1/16) is seen to hinder: "
            "low end of the interval",
            passed=planted.low > 0, value=planted.low, bound=0.0, unit="nats per byte",
        ),
        null=Control(
            what="the original against itself with other seeds: the difference is within its own interval",
            passed=abs(fresh.mean) <= half, value=abs(fresh.mean), bound=half, unit="nats per byte",
        ),
    )  # fmt: skip


def at_edges(found: Result, compared: Sequence[Runs]) -> Check:
    """Best rates at the edge of the whole grid: such a figure is unreliable until the grid is extended."""
    ends = [need(found, one.model, one.attacker, SEEDS).curves for one in compared]
    edge = sum(one.best.rate in (min(grid), max(grid)) for one, grid in zip(compared, ends, strict=True))
    return Check(
        name="best rates inside the grid", statistic="models whose best rate is the first or last of its grid",
        unit="models", value=edge, bound=0, sense="==", tolerance_from="integers: no tolerance", cases=len(compared),
    )  # fmt: skip


def equal_operations(locked: Runs, original: Runs) -> Difference:
    """The same difference when the original stops after as many operations as the locked model's run takes."""
    steps = min(original.steps, locked.steps * locked.operations / original.operations)
    rate = original.best.rate
    return paired(locked.best.losses, original.at(steps)[rate])


def best_way(found: Result) -> tuple[Runs, list[str]]:
    """The locked model's runs by its best attacker (least mean loss at its best rate), and attackers not run on it.

    By the seeds that every attacker has; the winner's further seeds are added where it has some.
    """
    grids = {way: runs(found, LOCKED, way, SEEDS) for way in ATTACKERS}
    whole = [one for one in grids.values() if one is not None and len(one.curves) >= 3]
    winner = min(whole, key=lambda one: one.best.mean, default=None)
    if winner is None:
        raise MissingInput(f"stored result dlr_finetune has no grid for {LOCKED}; run {found.command}")
    missing = [ATTACKERS[way] for way, one in grids.items() if one is None or len(one.curves) < 3]
    further = runs(found, LOCKED, winner.attacker, EVERY_SEED)
    return (further if further is not None and further.curves else winner), missing


def verdict_of(gap: Difference, missing: list[str]) -> Verdict:
    """holds-if: the interval lies above 0 with every attacker run; refuted: on average the lock does not hinder."""
    if gap.mean <= 0:
        return Verdict.REFUTED
    return Verdict.HOLDS_IF if gap.low > 0 and not missing else Verdict.UNDECIDED


def distilled_back() -> list[Check]:
    """The other side of the condition: what is left to fine-tune for an attacker who distills the nets back first."""
    found = stored("dlr_redistill")
    nearest = min((outcome(row) for row in found.where(model=LOCKED)), key=lambda one: one["gap"])
    cost = f"at {nearest['cost']:.2f} of the defender's operations"
    measured = found.settings["measured"]
    return [
        Check(
            name="other side: distilled back first, text", unit="of the locked model's loss", value=nearest["gap"],
            bound=GAP, statistic=f"(plain model − locked)/locked, {cost}", cases=measured["windows"], seed=found.seed,
        ),
        Check(
            name="other side: distilled back first, skills", unit="share", value=nearest["skills"], bound=POINTS,
            statistic=f"largest fall in exact match, {cost}", cases=2 * measured["problems"], seed=found.seed,
        ),
    ]  # fmt: skip


def rerun_finetune(given: dict[str, Any]) -> str:
    """The mean of the paired differences of stored final losses."""
    gap = paired(given["locked"], given["original"], LEVEL)
    return f"locked − original: {gap.mean:+.4f} nats per byte on average over {len(given['locked'])} seeds"


def check_finetune(ctx: Context) -> Evidence:
    """Compare stored runs: held-out loss of the best rate of a fixed grid, same data, steps and optimizer, by seed.

    Each attacker has a grid of five rates with a factor of two between them and three seeds; training all weights has
    three more seeds at the best rate found and its neighbors. The best rate is the one of least mean final loss over
    seeds, a diverged run counts as infinite, and the locked model's best attacker is the one of least loss at its best
    rate. Differences are paired by seed, since both models see the same problems in the same order. The three further
    seeds were added after the interval of the first three had covered zero; the interval is Student's at 97.5 %, which
    allows for the two looks. The original's attacker is the best of its own grids, chosen in the same way.
    """
    found = stored("dlr_finetune")
    locked, missing = best_way(found)
    seeds = EVERY_SEED if len(locked.best.losses) == len(EVERY_SEED) else SEEDS
    fastest = min((need(found, "original", way, SEEDS) for way in ATTACKERS), key=lambda one: one.best.mean)
    original = need(found, "original", fastest.attacker, seeds)
    gap = paired(locked.best.losses, original.best.losses, LEVEL)
    same = equal_operations(locked, original)
    verdict = verdict_of(gap, missing)
    refuted = verdict is Verdict.REFUTED
    ways = "; ".join(
        f"{ATTACKERS[way]}: {one.best.mean:.3f} at rate {one.best.rate:g}"
        for way in ATTACKERS
        if (one := runs(found, LOCKED, way, SEEDS)) is not None and one.curves
    )
    exact = {
        one.model: np.mean([row["exact_match"] for row in found.where(model=one.model, trained=one.attacker,
                                                                      rate=one.best.rate)])
        for one in (locked, original)
    }  # fmt: skip
    given = {"locked": locked.best.losses, "original": original.best.losses}
    return Evidence(
        verdict=verdict,
        grade=Grade.MEASURED,
        condition="the attacker keeps the DLR-Nets and has as few steps as the original's fine-tuning needs; whoever "
        "distills the nets back first fine-tunes a plain model",
        explanation=(
            f"After {locked.steps} steps at its best attacker ({ATTACKERS[locked.attacker]}) and best rate "
            f"({locked.best.rate:g}), {LOCKED} has a held-out loss of {locked.best.mean:.3f} nats per byte, the "
            f"original at its own ({original.best.rate:g}) {original.best.mean:.3f}: {gap.mean:+.3f}, 97.5 % interval "
            f"{gap.low:+.3f} to {gap.high:+.3f} over {len(seeds)} pairs of seeds. Both learn the skill: "
            f"{exact[LOCKED]:.0%} and {exact['original']:.0%} of the answers are exact. On the locked model, three "
            f"seeds each: {ways}. "
            + (f"Not run on it: {', '.join(missing)}. " if missing else "")
            + "The interval is wide and its end near zero; a few more seeds could still close it."
        ),
        checks=[
            Check(
                name="locked − original, best attackers", unit="nats per byte", value=gap.mean if refuted else gap.low,
                bound=0.0, sense="<=" if refuted else ">=",
                statistic=f"{'mean' if refuted else 'low end of the 97.5 % interval'} of the paired difference after "
                f"{locked.steps} steps",
                tolerance_from="Student's interval over seeds", cases=len(found.rows), seed=found.seed,
            ),
            Check(
                name="at equal operations", unit="nats per byte", value=same.mean, bound=0.0,
                sense="<=" if refuted else ">=",
                statistic="the mean difference where the original stops at the locked run's operations",
                tolerance_from="the mean; its interval is that of the check above", cases=len(seeds),
            ),
            at_edges(found, (locked, original)),
            *distilled_back(),
        ],
        controls=controls(found),
        counterexample=Counterexample(
            given=given, got=rerun_finetune(given), want="a positive difference",
            by_hand="the mean of the differences of the two lists, seed by seed",
        )
        if refuted
        else None,
        assumptions=[
            f"one skill ({found.settings['skill']}), {found.settings['problems']} problems a step, {locked.steps} "
            f"steps, {found.settings['schedule']}",
            "equal steps; the bytes that a step stores are those of default reverse mode: "
            f"{locked.stored / original.stored:.2f} × the original's",
        ],
        deviations=[FORMULA, SMALL],
        plots=[
            curves_plot("Fine-tuning at the best rate", (original, locked)),
            grid_plot("Final loss by learning rate, all weights",
                      [need(found, model, "all", SEEDS) for model in ("original", LOCKED, "planted")]),
            grid_plot(f"Final loss of {LOCKED} by attacker and learning rate",
                      [one for way in ATTACKERS
                       if (one := runs(found, LOCKED, way, SEEDS)) is not None and one.curves]),
        ],
    )  # fmt: skip


FINETUNE = Claim(
    id="DLR-FINETUNE",
    title="Fine-tuning the locked model ends at a worse loss",
    statement="At the attacker's best learning rate and equal steps, fine-tuning the locked model reaches a worse loss "
    "than fine-tuning the original.",
    source=Source(paper=PAPER, where="that the lock hinders fine-tuning; worded by us"),
    kind="security",
    recorded=Verdict.HOLDS_IF,
    would_change="A longer budget, another optimizer or more seeds that move the interval across zero.",
    check=check_finetune,
    rerun=rerun_finetune,
)
