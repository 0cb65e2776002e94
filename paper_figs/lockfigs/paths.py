"""Figure 5: loss along straight merge paths, before a lock, with it, and after each attack on it."""

from typing import Any

from matplotlib.figure import Figure as Canvas

from lockfigs import style
from lockfigs.figure import Figure
from lockfigs.sources import Row, Sources, series

PLOTS = {
    "MergeBarrier, attention": ("MB-BARRIER", "Loss on the straight path from the protected model"),
    "PaRaMS": ("MB-BARRIER", "Loss on the straight path from a model under PaRaMS"),
    "MergeLock": ("MB-BARRIER", "Loss on the straight path from a model under MergeLock"),
    "MergeBarrier, Taylor": ("TAYLOR-COEFF", "Loss on the straight path from a model recovered"),
}
BEFORE, AFTER = "before the lock", "after the lock"
LOOKS: dict[str, dict[str, Any]] = {
    BEFORE: {"color": style.GREY, "linewidth": 3.0, "alpha": 0.45},
    AFTER: {"color": style.RED, "linestyle": (0, (5, 1.5))},
    "keyless, k from the other": {"color": style.BLACK, "marker": "o", "linestyle": "none", "markerfacecolor": "none"},
    "plane signs from the other": {"color": style.BLACK, "marker": "x", "linestyle": "none"},
    "Procrustes with the other": {"color": style.BLUE, "linestyle": (0, (1, 1.2))},
    "anchored on the other": {"color": style.BLUE, "marker": "^", "linestyle": "none", "markerfacecolor": "none"},
    "coefficients, signs of units as they come": {"color": style.ORANGE, "linestyle": (0, (6, 1.5, 1, 1.5))},
    "coefficients, signs from the other": {"color": style.GREEN, "marker": "s", "linestyle": "none",
                                           "markerfacecolor": "none"},
}  # fmt: skip


def read(sources: Sources) -> list[Row]:
    """A panel for each lock."""
    return [row for panel, (claim, title) in PLOTS.items() for row in sources.curves(claim, title, panel)]


def draw(rows: list[Row]) -> Canvas:
    """Panels side by side with one legend."""
    canvas = style.canvas(4.3)
    axes = canvas.subplots(2, 2, sharex=True).ravel()
    handles = {}
    for i, (ax, panel) in enumerate(zip(axes, PLOTS, strict=True)):
        for name, line in series(rows, panel).items():
            handles[name] = style.draw(ax, line, **LOOKS[name])
        ax.set(xlim=(-0.03, 1.03), xticks=[0, 0.5, 1], xlabel="α, share of the other" if i > 1 else "")
        style.panel_name(ax, f"({'abcd'[i]}) {panel}")
    canvas.supylabel("loss, nats per token", fontsize=7)
    labels = [name.replace("coefficients, ", "").capitalize() for name in handles]
    canvas.legend(
        handles.values(), labels, loc="outside lower center", ncols=2, columnspacing=0.8, fontsize=5.8, handlelength=2.2
    )
    return canvas


def caption(sources: Sources) -> str:
    """What is shown."""
    return (
        "Loss at (1 − α) θ₁ + α θ₂ from a protected model θ₁ to another of the same origin, which the attacker has, as "
        "for merging. (a) half of each key head's rotary planes flipped; (b), (c) two peers, their query/key half left "
        "out because a Qwen3 does not let it through; (d) a Taylor lock has no weights to merge, so there is no path "
        "with it, but the coefficient attack on a bfloat16 release gives weights. Panels (a) to (c) are on lines of "
        "the zoo's skills, (d) on text; each has a scale of its own."
    )


FIGURE = Figure(5, "paths", "Loss along straight merge paths", read, draw, caption)
