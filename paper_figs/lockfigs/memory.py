"""Figure 2: memory over one training step, in six modes."""

from matplotlib.figure import Figure as Canvas

from lockfigs import style
from lockfigs.figure import Figure
from lockfigs.sources import Row, Sources, series

PLOT = "Memory over one training step"
NAMES = {
    "unlocked, reverse": "unlocked, reverse",
    "no-grad": "no gradient",
    "reverse": "reverse",
    "frozen": "MLPs frozen",
    "checkpoint": "checkpointed",
    "inversion": "inverted",
    "forward": "forward mode",
}


def read(sources: Sources) -> list[Row]:
    """The timelines."""
    return sources.curves("DLR-FRONTIER", PLOT, "timeline")


def draw(rows: list[Row]) -> Canvas:
    """Memory on a logarithmic scale; the legend says the peaks."""
    canvas = style.canvas(3.0)
    ax = canvas.add_subplot()
    for i, (name, line) in enumerate(series(rows, "timeline").items()):
        peak = max(row.y or 0 for row in line)
        how = style.BEFORE if i == 0 else style.look(i - 1)
        style.draw(ax, line, label=f"{NAMES.get(name, name)}: {peak:,.0f} MB", **how)
    ax.set(yscale="log", xlabel="operations, default training step = 1", ylabel="activations held, MB")
    ax.set(xlim=(0, None), ylim=(1.5, None))
    canvas.legend(loc="outside lower center", ncols=2, columnspacing=1.0, fontsize=6)
    return canvas


def caption(sources: Sources) -> str:
    """What is shown."""
    title = sources.plot("DLR-FRONTIER", PLOT).title.removeprefix(f"{PLOT}: ")
    return (
        f"{title}, bfloat16: activations held while one forward and one backward pass proceed, weights, optimizer, "
        "embedding and output head left out; the legend states each peak. Closed forms, which DLR-FRONTIER verifies on "
        "the ledger of running stacks. Forward mode gives an estimate of the gradient, not the gradient."
    )


FIGURE = Figure(2, "memory", "Memory over one forward and backward pass in six modes", read, draw, caption)
