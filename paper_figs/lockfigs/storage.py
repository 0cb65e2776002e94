"""Figure 1: what each attacker of a DLR-Net stores, against its depth."""

from typing import Any

from matplotlib.figure import Figure as Canvas

from lockfigs import style
from lockfigs.figure import Figure
from lockfigs.sources import Row, Sources, measured, series

PLOT = "Bytes that each attacker stores for one MLP"
FORM, LEDGER, TORCH = ": closed form", ": ledger", ": PyTorch"
RESULT, PANEL = "dlr_stored_bytes", "stored bytes"
NAMES = {
    "default reverse mode": "default reverse",
    "each block checkpointed": "each block saved",
    "groups of √L checkpointed": "√L groups saved",
    "fixed-point inversion": "fixed point",
}
CIRCLES: dict[str, Any] = {"linestyle": "none", "marker": "o", "markerfacecolor": "white", "markersize": 4.6}
CROSSES: dict[str, Any] = {"linestyle": "none", "marker": "x", "markersize": 2.4, "markeredgewidth": 0.9}
SHOWN = (500, 1_000, 2_000, 5_000, 10_000, 20_000)  # bytes per token, named on the axis


def read(sources: Sources) -> list[Row]:
    """Closed form and ledger of every attacker, and what PyTorch keeps."""
    torch = [
        measured(PANEL, row["way"] + TORCH, row["depth"], RESULT, [row], ("way", "depth"), "bytes_per_token")
        for row in sources.stored(RESULT).rows
    ]
    return sources.curves("DLR-FRONTIER", PLOT, PANEL) + torch


def draw(rows: list[Row]) -> Canvas:
    """Lines are closed forms, circles the ledger, crosses PyTorch; names stand at the lines' ends."""
    canvas = style.canvas(2.9)
    ax = canvas.add_subplot()
    found, ends = series(rows, PANEL), []
    names = [name.removesuffix(FORM) for name in found if name.endswith(FORM)]
    style.draw(ax, found["unlocked MLP"], **style.BEFORE)
    ends.append((found["unlocked MLP"][-1].y or 0.0, "unlocked MLP", style.GREY))
    for i, name in enumerate(names):
        how = style.look(i)
        style.draw(ax, found[name + FORM], **how)
        ends.append((found[name + FORM][-1].y or 0.0, NAMES.get(name, name), how["color"]))
        style.draw(ax, found[name + LEDGER], color=how["color"], clip_on=False, **CIRCLES)
        style.draw(ax, found[name + TORCH], color=style.BLACK, clip_on=False, zorder=4, **CROSSES)
    for label, marks in {"closed form": {}, "ledger": CIRCLES, "PyTorch": CROSSES}.items():
        ax.plot([], [], color=style.BLACK, label=label, **marks)
    ax.legend(loc="upper left", borderaxespad=0.1)
    ax.set(xscale="log", yscale="log", xlim=(0.93, 52), ylim=(420, 36_000))
    ax.set(xlabel="depth L at parameter parity", ylabel="stored, bytes per token")
    depths = sorted({float(row.x) for row in rows if row.series.endswith(TORCH)})
    ax.set_xticks(depths, [f"{depth:g}" for depth in depths])
    ax.set_yticks(SHOWN, [f"{size:,}" for size in SHOWN])
    ax.minorticks_off()
    style.label_ends(ax, ends, at=1.03)
    return canvas


def caption(sources: Sources) -> str:
    """What is shown."""
    title = sources.plot("DLR-FRONTIER", PLOT).title
    return (
        f"{title}, against depth at equal parameters. Lines: closed forms. Circles: the ledger of the running network. "
        "Crosses: distinct tensors that PyTorch's saved_tensors_hooks see at the same attacker's work. All three are "
        "equal to the byte: what is kept between the passes, and under a checkpoint schedule the most at any time. Of "
        "fixed-point inversion the sweep holds one block's h besides, r elements, which no byte count between the "
        "passes sees. Default reverse mode runs operation by operation, the others in fused blocks. Forward mode and "
        "gradient-free attackers store nothing."
    )


FIGURE = Figure(1, "storage", "Stored bytes against depth, by attacker", read, draw, caption, needs=(RESULT,))
