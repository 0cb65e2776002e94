"""Figure 1: what each attacker of a DLR-Net stores, against its depth."""

from matplotlib.figure import Figure as Canvas

from lockfigs import style
from lockfigs.figure import Figure
from lockfigs.sources import Row, Sources, series

PLOT = "Bytes that each attacker stores for one MLP"
FORM, LEDGER, TORCH = ": closed form", ": ledger", ": PyTorch"
RESULT = "dlr_stored_bytes"


def read(sources: Sources) -> list[Row]:
    """Closed form and ledger of every attacker, and what PyTorch keeps."""
    torch = [
        Row("stored bytes", row["way"] + TORCH, row["depth"], row["bytes_per_token"],
            f"result {RESULT} | {row['way']}, depth {row['depth']} | bytes_per_token")
        for row in sources.stored(RESULT).rows
    ]  # fmt: skip
    return sources.curves("DLR-FRONTIER", PLOT, "stored bytes") + torch


def draw(rows: list[Row]) -> Canvas:
    """Lines are closed forms, circles the ledger, crosses PyTorch; names stand at the lines' ends."""
    canvas = style.canvas(2.7)
    ax = canvas.add_subplot()
    ends = []
    lines = [(n, r) for n, r in series(rows, "stored bytes").items() if not n.endswith((LEDGER, TORCH))]
    for i, (name, line) in enumerate(lines):
        how = {"color": style.GREY, "linestyle": "-", "linewidth": 2.2, "alpha": 0.5} if i == 0 else style.look(i - 1)
        style.draw(ax, line, **how)
        ends.append((line[-1].y or 0.0, name.removesuffix(FORM), how["color"]))
    for name, points in series(rows, "stored bytes").items():
        if name.endswith(LEDGER):
            i = [n for n, _ in lines].index(name.removesuffix(LEDGER) + FORM)
            style.draw(ax, points, color=style.COLORS[i - 1], linestyle="none", marker="o", markerfacecolor="white",
                       markersize=4.5)  # fmt: skip
        if name.endswith(TORCH):
            style.draw(ax, points, color=style.BLACK, linestyle="none", marker="x", markersize=2.4, zorder=4)
    ax.set(yscale="log", xlabel="depth L at parameter parity", ylabel="stored bytes per token", xlim=(0, 49))
    ax.set_xticks([1, 8, 16, 24, 32, 40, 48])
    style.label_ends(ax, ends)
    return canvas


def caption(sources: Sources) -> str:
    """What is shown."""
    title = sources.plot("DLR-FRONTIER", PLOT).title
    return (
        f"{title}, against depth at equal parameters. Lines: closed forms. Circles: the ledger of the running network, "
        "equal to the byte (the binomial schedule is counted action by action and has none). Crosses: tensors that "
        "PyTorch keeps, where it runs the same attacker. Default reverse mode runs operation by operation, the others "
        "in fused blocks. Forward mode and gradient-free attackers store nothing."
    )


FIGURE = Figure(1, "storage", "Stored bytes against depth, by attacker", read, draw, caption)
