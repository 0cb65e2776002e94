"""Figure 3: the cost frontier at the sizes of three published models."""

from typing import Any

from matplotlib.figure import Figure as Canvas

from lockfigs import style
from lockfigs.figure import Figure
from lockfigs.sources import Row, Sources, series

MODELS = {"qwen3-0.6b": "0.6B", "qwen3-8b": "8B", "qwen3-32b": "32B"}
GOALS = {"all": "all weights train", "attention": "attention trains"}
PLOT = "Cost frontier, "
DEFAULT = ": default"
MARKS = ("o", "s", "^")
LOOKS: dict[str, dict[str, Any]] = {
    "unlocked": dict(style.BEFORE),
    "locked, no norm": {"color": style.BLUE, "linestyle": "-", "linewidth": 0.9},
    "locked, norms": {"color": style.RED, "linestyle": (0, (3, 1.2))},
}


def read(sources: Sources) -> list[Row]:
    """Frontiers and default attackers, a panel for each model and goal."""
    rows = []
    for model, size in MODELS.items():
        for row in sources.curves("DLR-FRONTIER", PLOT + model, ""):
            label, _, goal = row.series.partition(", training ")
            goal, default = goal.removesuffix(DEFAULT), DEFAULT if goal.endswith(DEFAULT) else ""
            rows.append(Row(f"{size}, {GOALS[goal]}", label + default, row.x, row.y, row.source))
    return rows


def draw(rows: list[Row]) -> Canvas:
    """A row of panels for each goal; steps, because a budget between two attackers buys the cheaper one's memory."""
    canvas = style.canvas(3.1)
    axes = canvas.subplots(len(GOALS), len(MODELS), sharex=True, sharey=True)
    for line_of_axes, goal in zip(axes, GOALS.values(), strict=True):
        for ax, size in zip(line_of_axes, MODELS.values(), strict=True):
            for name, line in series(rows, f"{size}, {goal}").items():
                label = name.removesuffix(DEFAULT)
                if name.endswith(DEFAULT):
                    marker = MARKS[list(LOOKS).index(label)]
                    mark = {"marker": marker, "linestyle": "none", "markersize": 3.8, "markerfacecolor": "white"}
                    style.draw(ax, line, color=LOOKS[label]["color"], zorder=4, **mark)
                else:
                    style.draw(ax, line, drawstyle="steps-post", **LOOKS[label])
            ax.set(yscale="log", xlim=(0.8, 4.1), xticks=[1, 2, 3, 4])
            ax.set_yticks([0.01, 0.1, 1], ["0.01", "0.1", "1"])
            ax.axhline(1, color=style.FAINT, linewidth=0.6, zorder=0)
            style.panel_name(ax, f"Qwen3-{size}" if goal == GOALS["all"] else "")
        line_of_axes[0].set_ylabel(goal)
    for (name, how), marker in zip(LOOKS.items(), MARKS, strict=True):
        axes[0, 0].plot([], [], label=name, marker=marker, markerfacecolor="white", **how)
    canvas.supxlabel("operations of a training step, unlocked default = 1", fontsize=7)
    canvas.supylabel("least memory, unlocked default = 1", fontsize=7)
    canvas.legend(loc="outside upper center", ncols=3, columnspacing=1.0)
    return canvas


def caption(sources: Sources) -> str:
    """What is shown."""
    depth = sources.plot("DLR-FRONTIER", PLOT).title.rpartition(" ")[2]
    return (
        "Least activation memory that any attacker of the list needs within a budget of operations, both relative to "
        f"one default training step of the unlocked model; DLR-Nets of depth {depth} at parameter parity, 1,024 tokens "
        "of context. Marks: default reverse mode. Above: all weights train; below: attention alone. Closed forms at "
        "published sizes, verified on running stacks; no model of these sizes was trained."
    )


FIGURE = Figure(3, "frontier", "Cost frontier: least memory against operations", read, draw, caption)
