"""DLR-UTILITY: whether a model with DLR-Nets at parameter parity does what the original did."""

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import numpy as np

from lockproofs.claim import (
    Check,
    Claim,
    Context,
    Control,
    Controls,
    Curve,
    Deviation,
    Evidence,
    Grade,
    Plot,
    Source,
    Verdict,
)
from lockproofs.claims.dlr_common import FORMULA, PAPER
from lockproofs.experiments.store import Result, stored
from lockref.locks import full
from lockref.locks.dlr import PREFIX, locked_block
from lockref.locks.manifest import read_manifest
from lockref.models import dlrnet
from lockref.models.checkpoint_io import load_checkpoint
from lockref.models.evaluation import TEXT, held_out_windows, text_loss
from lockref.models.skills import SKILLS
from lockref.models.zoo import zoo_path

GAP: Final = 0.03  # of the original's text loss
POINTS: Final = 0.02  # of exact match
WINDOWS, LENGTH = 32, 128  # of the losses that the audit computes itself
MODEL, FEWER = "dlr-16", "dlr-48"
PRESERVED = Deviation(
    paper_says="capability is kept; its benchmarks and margins were not readable to us",
    we_do=f"held-out text loss at most {GAP:.0%} above the original's and each skill at most {POINTS:.0%} of exact "
    "match below it",
    why="a verdict needs a margin that is fixed beforehand, and a model of this size has no benchmarks",
    effect="with a margin of another size the verdict may be another; the figures are in the report",
)


@cache
def live_losses(name: str | None) -> tuple[float, ...]:
    """Text loss of each window for a locked zoo model, or for the base: float32, windows of their own seed."""
    base = load_checkpoint(zoo_path("base"), np.float32)
    rows = held_out_windows(WINDOWS, LENGTH, seed=11)
    if name is None:
        return tuple(text_loss(base.tensors, row[None], base.config) for row in rows)
    locked = full.load(zoo_path(name), np.float32)
    return tuple(text_loss(locked.tensors, row[None], locked.config, locked_block(locked.net)) for row in rows)


def broken_gap() -> float:
    """Relative loss gap of a planted bad lock: the same model with every DLR-Net's last factor set to zero."""
    locked = full.load(zoo_path(MODEL), np.float32)
    tensors = {n: w * 0 if f".{PREFIX}" in n and n.endswith(".b") else w for n, w in locked.tensors.items()}
    rows = held_out_windows(WINDOWS, LENGTH, seed=11)
    base = float(np.mean(live_losses(None)))
    return text_loss(tensors, rows, locked.config, locked_block(locked.net)) / base - 1


def paired_gap() -> tuple[float, float]:
    """Loss gap on the audit's own windows and five standard errors of its distance from the manifest's."""
    before, after = np.array(live_losses(None)), np.array(live_losses(MODEL))
    said = read_manifest(zoo_path(MODEL)).figures
    apart = after - before
    want = said["locked"][TEXT] - said["original"][TEXT]
    error = 5 * float(np.std(apart, ddof=1)) / len(apart) ** 0.5
    return abs(float(np.mean(apart)) - want), error


def lost_skills(figures: Mapping[str, Any]) -> float:
    """The largest fall in exact match of a skill."""
    return float(max(figures["original"][name] - figures["locked"][name] for name in SKILLS))


def gaps(result: Result) -> dict[int | None, list[float]]:
    """Relative text-loss gap after each phase by depth; None is the MLP as a student."""
    return {
        row["depth"]: [row[phase][TEXT] / row["original"][TEXT] - 1 for phase in ("modules", "model")]
        for row in result.rows
    }


def check_utility(ctx: Context) -> Evidence:
    """Read what distillation reached from the manifests of the locked zoo models, and compute one loss again.

    Preserved means, fixed beforehand: held-out text loss at most 3 % above the original's, and exact match of each
    skill at most two points below it, for some depth at parameter parity with the stated budget of steps. The audit
    computes the losses of original and locked model on windows of its own, and compares the gap, window by window,
    with the manifest's. The other side of the condition, small budgets, is a stored experiment with an MLP as the
    null control: it has no lock, the same size and the same budget.
    """
    manifest = read_manifest(zoo_path(MODEL))
    said, part = manifest.figures, manifest.parts["dlr"]
    config = load_checkpoint(zoo_path("base"), np.float32).config
    net = dlrnet.DLRConfig(**part["net"])
    budget = 3 * config.hidden_size * config.intermediate_size
    distance, allowed = paired_gap()
    small = stored("dlr_distill")
    by_depth = gaps(small)
    locked = {depth: gap[1] for depth, gap in by_depth.items() if depth is not None}
    bad = broken_gap()
    other = read_manifest(zoo_path(FEWER))
    fewer = " + ".join(str(other.parts["dlr"][key]["steps"]) for key in ("modules", "model"))
    steps = f"{small.settings['modules_steps']} + {small.settings['model_steps']}"
    told = ", ".join(f"{gap:.1%} at depth {depth}" for depth, gap in sorted(locked.items()))
    return Evidence(
        verdict=Verdict.HOLDS_IF,
        grade=Grade.MEASURED,
        condition=f"enough steps of distillation: {part['modules']['steps']} of each module and "
        f"{part['model']['steps']} of the whole were enough for {MODEL}; {steps} are not, at any depth tried",
        explanation=(
            f"{MODEL} ({net.depth} blocks of rank {net.rank}, {net.parameters:,} of {budget:,} parameters for each "
            f"MLP) loses {said['loss_gap']:.2%} of text loss ({said['original'][TEXT]:.4f} → "
            f"{said['locked'][TEXT]:.4f} nats per byte) and {lost_skills(said):.1%} of exact match at most; its "
            f"modules err by {max(said['relative_error']):.1%} at most over all tokens, by "
            f"{max(said['row_error']):.0%} in the mean over tokens, which large outputs do not dominate. {FEWER}, made "
            f"with {fewer} steps, loses {other.figures['loss_gap']:.2%} and {lost_skills(other.figures):.1%}. With a "
            f"small budget, the same for all ({steps} steps), the gap is {told}, and {by_depth[None][1]:.1%} for a "
            "plain MLP of equal size: part of the gap is what distillation itself costs, not the lock."
        ),
        checks=[
            Check(
                name="loss gap", statistic="(locked − original)/original, held-out text, 400 windows, as stored",
                unit="of the original's loss", value=said["loss_gap"], bound=GAP, cases=400, seed=0,
            ),
            Check(
                name="skills", statistic="largest fall in exact match, 1000 held-out problems each", unit="share",
                value=lost_skills(said), bound=POINTS, cases=2000, seed=0,
            ),
            Check(
                name="computed again", statistic="|gap on windows of the audit − the manifest's|", unit="nats per byte",
                value=distance, bound=allowed, cases=WINDOWS, seed=11,
                tolerance_from="the bound: five standard errors of the paired differences",
            ),
            Check(
                name="error of modules", statistic="largest ‖net(x) − mlp(x)‖²/‖mlp(x)‖² on held-out activations",
                unit="1", value=max(said["relative_error"]), bound=0.05, cases=len(said["relative_error"]),
            ),
            Check(
                name="parity", statistic="parameters of a DLR-Net", unit="parameters", value=net.parameters,
                bound=budget,
            ),
            *(
                Check(
                    name=f"other side: a small budget at depth {depth}", statistic=f"gap after {steps} steps",
                    unit="of the original's loss", value=gap, bound=GAP, sense=">=", seed=small.seed,
                    cases=small.settings["measured"]["windows"],
                )
                for depth, gap in sorted(locked.items())
            ),
        ],
        controls=Controls(
            power=Control(
                what="a planted bad lock (its networks add nothing) exceeds the margin", passed=bad > GAP, value=bad,
                bound=GAP, unit="of the original's loss",
            ),
            null=Control(
                what="an MLP as the student, no lock: it closes the gap no worse than the best DLR-Net",
                passed=by_depth[None][1] <= min(locked.values()), value=by_depth[None][1], bound=min(locked.values()),
                unit="of the original's loss",
            ),
        ),
        assumptions=[
            "one small trained model (0.85 million parameters) and one seed; what a skill of 10 or 17 % exact match "
            "can lose is limited",
            "the budget is steps of AdamW on text and skills like those that the original was trained on",
        ],
        deviations=[FORMULA, PRESERVED],
        plots=[
            Plot(
                title=f"Loss gap after distillation, the same {steps} steps for each", x_label="depth L (0: MLP)",
                y_label="gap, of the original's loss",
                curves=[
                    Curve(name=f"after phase {i + 1}", x=[d or 0 for d in _ordered(by_depth)],
                          y=[by_depth[d][i] for d in _ordered(by_depth)])
                    for i in range(2)
                ],
            )
        ],
    )  # fmt: skip


def _ordered(by_depth: dict[int | None, list[float]]) -> list[int | None]:
    return sorted(by_depth, key=lambda depth: depth or 0)


UTILITY = Claim(
    id="DLR-UTILITY",
    title="Distillation keeps the model's capability",
    statement="Distillation at parameter parity preserves the model's capability.",
    source=Source(paper=PAPER, where="that capability is kept; margins are ours"),
    kind="utility",
    recorded=Verdict.HOLDS_IF,
    would_change="A margin below the measured gap, or a depth at parity that keeps capability with few steps.",
    check=check_utility,
)
