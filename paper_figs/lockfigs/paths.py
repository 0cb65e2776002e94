"""Figure 5: loss along straight merge paths, before a lock, with it, and after each attack on it."""

from typing import Any

from matplotlib.figure import Figure as Canvas

from lockfigs import style
from lockfigs.figure import Figure
from lockfigs.sources import Row, Sources, groups, measured, series

PLOTS = {
    "attention planes": ("MB-BARRIER", "Loss on the straight path from the protected model"),
    "Taylor layers": ("TAYLOR-COEFF", "Loss on the straight path from a model recovered"),
    "PaRaMS": ("MB-BARRIER", "Loss on the straight path from a model under PaRaMS"),
    "MergeLock": ("MB-BARRIER", "Loss on the straight path from a model under MergeLock"),
}
DLR, TRAP = "dlr_paths", "trap_paths"
KINDS = {"full": "Trap², full updates", "lora": "Trap², LoRA"}
PANELS = ("attention planes", "Taylor layers", "DLR-Lock", *KINDS.values(), "PaRaMS", "MergeLock")
BEFORE, WITH = "before the lock", "with the lock"
TRAPPED = {"straight": WITH, "nominal": "expert kept at s = 1", "recovered": "expert fine-tuned"}  # by path
SAME = {  # names of a source, as the legend has them
    "after the lock": WITH,
    "with the lock, all but MLPs": WITH,
    "keyless, k from the other": "keyless",
    "plane signs from the other": "plane signs",
    "Procrustes with the other": "Procrustes",
    "anchored on the other": "anchored",
    "coefficients, signs from the other": "unit signs told",
    "coefficients, signs of units as they come": "unit signs unknown",
    "distilled back from the base": "distilled, from the base",
    "distilled back, fresh MLPs": "distilled, untrained start",
}
HOLLOW: dict[str, Any] = {"linestyle": "none", "markerfacecolor": "none"}
LOOKS: dict[str, dict[str, Any]] = {
    BEFORE: dict(style.BEFORE),
    WITH: {"color": style.RED, "linestyle": (0, (5, 1.5))},
    "keyless": {"color": style.BLACK, "marker": "o", **HOLLOW},
    "plane signs": {"color": style.BLACK, "marker": "x", "linestyle": "none"},
    "Procrustes": {"color": style.BLUE, "linestyle": (0, (1, 1.2))},
    "unit signs told": {"color": style.BLACK, "marker": "s", **HOLLOW},
    "unit signs unknown": {"color": style.ORANGE, "linestyle": (0, (6, 1.5, 1, 1.5))},
    "distilled, from the base": {"color": style.BLACK, "marker": "^", **HOLLOW},
    "distilled, untrained start": {"color": style.GREEN, "linestyle": (0, (4, 1, 1, 1, 1, 1))},
    TRAPPED["nominal"]: {"color": style.BLUE, "linestyle": (0, (3, 1)), "marker": "D", "markersize": 2.4},
    TRAPPED["recovered"]: {"color": style.BLACK, "linewidth": 0.8, "marker": "p", "markerfacecolor": "white"},
    "anchored": {"color": style.BLACK, "marker": "v", **HOLLOW},
}


def read(sources: Sources) -> list[Row]:
    """A panel for each lock, in the order of PANELS."""
    rows = [row for panel, (claim, title) in PLOTS.items() for row in sources.curves(claim, title, panel)]
    for row in sources.stored(DLR).rows:
        rows += [
            measured("DLR-Lock", row["path"], x, DLR, [row], ("path",), f"losses[{i}]")
            for i, x in enumerate(row["alphas"])
        ]
    trap = sources.stored(TRAP).rows if sources.has(TRAP) else []
    for (kind, strength, path), runs in groups(trap, "kind", "strength", "path").items():
        name = TRAPPED[path] if strength else BEFORE
        rows += [
            measured(KINDS[kind], name, x, TRAP, runs, ("kind", "strength", "path"), f"losses[{i}]")
            for i, x in enumerate(runs[0]["alphas"])
        ]
    return [row for panel in PANELS for row in rows if row.panel == panel]


def draw(rows: list[Row]) -> Canvas:
    """Two panels a line; the legend stands where one is left over, or below."""
    panels = [panel for panel in PANELS if series(rows, panel)]
    lines = (len(panels) + 2) // 2
    canvas = style.canvas(1.5 * lines)
    axes = canvas.subplots(lines, 2).ravel()
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    handles: dict[str, Any] = {}
    for i, (ax, panel) in enumerate(zip(axes, panels, strict=False)):
        for name, line in series(rows, panel).items():
            label = SAME.get(name, name)
            handles[label] = style.draw(ax, line, **LOOKS[label])
            style.band(ax, line, LOOKS[label]["color"])
        ax.set(xlim=(-0.03, 1.03), xticks=[0, 0.5, 1])
        if panel in KINDS.values():
            ax.set_yscale("log")
            ax.set_yticks([0.1, 1, 10], ["0.1", "1", "10"])
        ax.set_xlabel("α, share of the other" if i >= len(panels) - 2 else "")
        style.panel_name(ax, f"({'abcdefg'[i]}) {panel}")
    canvas.supylabel("loss, nats per token", fontsize=7)
    shown = {label: handles[label] for label in LOOKS if label in handles}
    axes[-1].legend(shown.values(), shown.keys(), loc="center", borderaxespad=0, fontsize=6, handlelength=2.2)
    return canvas


def caption(sources: Sources) -> str:
    """What is shown."""
    trap = ""
    if sources.has(TRAP):
        result = sources.stored(TRAP)
        seeds = len({row["seed"] for row in result.rows})
        strengths = sorted({row["strength"] for row in result.rows} - {0})
        steps = result.settings["recovery"]["steps"]
        trap = (
            f"Trap²: the zoo's base and an expert on addition, λ = {' or '.join(f'{s:g}' for s in strengths)}, towards "
            f"an unprotected one on reversal, mean and range of {seeds} seeds, answer loss over both skills, on a "
            "logarithmic scale; kept at s = 1, the expert stays whole and α scales the other's update; fine-tuned, it "
            f"had {steps} steps without the lock before. "
        )
    return (
        "Loss at (1 − α) θ₁ + α θ₂ from a protected model θ₁ to another of the same origin, which the attacker has, as "
        "for merging. Attention planes: half of each key head's rotary planes flipped. Taylor layers have no weights "
        "to merge, so there is no path with the lock; the coefficient attack on a bfloat16 release gives weights. "
        "DLR-Lock: with it only what both models have is merged, the DLR-Nets staying; the attacker distills them "
        f"back, from the base's MLPs or from untrained ones. {trap}PaRaMS and MergeLock are peers, their query/key "
        "half left out because a Qwen3 does not let it through. Loss is on lines of the zoo's skills, for Taylor "
        "layers on text; each panel has a scale of its own."
    )


FIGURE = Figure(5, "paths", "Loss along straight merge paths", read, draw, caption, needs=(DLR,), takes=(TRAP,))
