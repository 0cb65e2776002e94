"""DLR-FINETUNE: the best of a grid of learning rates, on the original, on a locked form and on a planted lock."""

from collections.abc import Sequence

import numpy as np

from lockproofs.claim import (
    Check,
    Claim,
    Context,
    Control,
    Controls,
    Deviation,
    Evidence,
    Grade,
    MissingInput,
    Source,
    Verdict,
)
from lockproofs.claims.dlr_common import FORMULA, PAPER
from lockproofs.experiments.dlr_finetune import FRESH_SEEDS, SEEDS
from lockproofs.experiments.store import Result, stored
from lockproofs.finetune_runs import ATTACKERS, Runs, curves_plot, grid_plot, runs
from lockref.attacks.finetune import Difference, paired

LOCKED = "dlr-16"
EVERY_SEED = (*SEEDS, *FRESH_SEEDS)
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
    return locked, original, paired(locked.best.losses, original.best.losses)


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


def check_finetune(ctx: Context) -> Evidence:
    """Compare stored runs: held-out loss of the best rate of a fixed grid, same data, steps and optimizer, by seed.

    The grid has five rates with a factor of two between them and three seeds; three more seeds run at the best rate
    found and its neighbors. The best rate is the one of least mean final loss over seeds; a diverged run counts as
    infinite. The three further seeds were added after the interval of the first three had covered zero; on their own
    they leave it covering zero, too, so the interval of all six is somewhat too narrow. Differences are paired by
    seed, since both models see the same problems in the same order; the interval is Student's, 95 %.
    """
    found = stored("dlr_finetune")
    locked, original, gap = compared(found)
    same = equal_operations(locked, original)
    done = sorted({ATTACKERS[row["trained"]] for row in found.where(model=LOCKED)})
    not_done = sorted(set(ATTACKERS.values()) - set(done))
    steps, seeds = locked.steps, len(locked.best.losses)
    exact = {
        one.model: np.mean([row["exact_match"] for row in found.where(model=one.model, trained="all",
                                                                      rate=one.best.rate)])
        for one in (locked, original)
    }  # fmt: skip
    return Evidence(
        verdict=Verdict.UNDECIDED,
        grade=Grade.MEASURED,
        explanation=(
            f"After {steps} steps of AdamW on all weights at its best rate ({locked.best.rate:g}), {LOCKED} has a "
            f"held-out loss of {locked.best.mean:.3f} nats per byte, the original at its own ({original.best.rate:g}) "
            f"{original.best.mean:.3f}: {gap.mean:+.3f}, 95 % interval {gap.low:+.3f} to {gap.high:+.3f} over {seeds} "
            f"pairs of seeds. Both learn the skill: {exact[LOCKED]:.0%} and {exact['original']:.0%} of the answers are "
            f"exact. The claim is about the attacker's best way, and on the locked model only "
            f"{', '.join(done)} was measured; {', '.join(not_done)} are attacks of this package that were not run on "
            "it, and a longer budget was not, either. One attacker decides nothing for the lock."
        ),
        checks=[
            Check(
                name="locked − original, all weights", unit="nats per byte", value=gap.low, bound=0.0, sense=">=",
                statistic=f"low end of the 95 % interval of the paired difference after {steps} steps",
                tolerance_from="Student's interval over seeds", cases=len(found.rows), seed=found.seed,
            ),
            Check(
                name="at equal operations", unit="nats per byte", value=same.mean, bound=0.0, sense=">=",
                statistic="the mean difference where the original stops at the locked run's operations",
                tolerance_from="the mean; its interval is that of the check above", cases=seeds,
            ),
            Check(
                name="bytes stored for a step", unit="times the original's", value=locked.stored / original.stored,
                bound=1.0, sense=">=", statistic="ledger of default reverse mode, all weights training, same batch",
                tolerance_from="integers: no tolerance",
            ),
            at_edges(found, (locked, original)),
        ],
        controls=controls(found),
        assumptions=[
            f"one skill ({found.settings['skill']}), {found.settings['problems']} problems a step, {steps} steps, "
            f"{found.settings['schedule']}",
            "equal steps; memory and operations of a step are those of default reverse mode",
        ],
        deviations=[FORMULA, SMALL],
        plots=[
            curves_plot("Fine-tuning at the best rate, all weights", (original, locked)),
            grid_plot("Final loss by learning rate, all weights",
                      [need(found, model, "all", SEEDS) for model in ("original", LOCKED, "planted")]),
        ],
    )  # fmt: skip


FINETUNE = Claim(
    id="DLR-FINETUNE",
    title="Fine-tuning the locked model ends at a worse loss",
    statement="At the attacker's best learning rate and equal steps, fine-tuning the locked model reaches a worse loss "
    "than fine-tuning the original.",
    source=Source(paper=PAPER, where="that the lock hinders fine-tuning; worded by us"),
    kind="security",
    recorded=Verdict.UNDECIDED,
    would_change="The same grid on the locked model for attention alone, LoRA and the DLR-Nets alone: if none of them "
    "comes closer to the original, the claim holds here; if one does as well, it is refuted.",
    check=check_finetune,
)
