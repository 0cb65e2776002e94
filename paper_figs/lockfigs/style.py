"""One look for all figures: column width, colors that the color-blind and grey printers can tell apart, no junk."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from lockfigs.sources import Row

WIDTH = 3.3  # inches, one column
BLACK, BLUE, RED, ORANGE, GREEN, SKY, PINK = (  # Okabe & Ito
    "#000000", "#0072B2", "#D55E00", "#E69F00", "#009E73", "#56B4E9", "#CC79A7",
)  # fmt: skip
GREY, FAINT = "#666666", "#BBBBBB"
COLORS = (BLACK, RED, BLUE, ORANGE, GREEN, PINK, SKY, GREY)
DASHES: tuple[Any, ...] = (
    "-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1)), (0, (4, 1, 1, 1, 1, 1)), (0, (8, 2)), "-",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
BEFORE: Mapping[str, Any] = {"color": GREY, "linestyle": "-", "linewidth": 2.8, "alpha": 0.45}  # without the lock

SETTINGS: Mapping[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same on every machine
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.2,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "pdf.fonttype": 42,  # whole TrueType fonts are embedded
    "svg.fonttype": "path",  # letters are drawn, so no reader needs the font
    "svg.hashsalt": "lockref",  # the same ids every time
    "savefig.dpi": 300,
    "figure.constrained_layout.use": True,
}
UNDATED: Mapping[str, Mapping[str, None]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}


def styled() -> Any:
    """A context in which the settings hold; no display is needed."""
    settings: dict[Any, Any] = {**mpl.rcParamsDefault, **SETTINGS, "backend": "agg"}
    return mpl.rc_context(settings)


def canvas(height: float) -> Canvas:
    """An empty figure of column width."""
    return Canvas(figsize=(WIDTH, height), layout="constrained")


def look(index: int, *, marker: bool = False) -> dict[str, Any]:
    """Color, dash and, if wanted, marker of the index-th series: any one of them tells it apart."""
    i = index % len(COLORS)
    return {"color": COLORS[i], "linestyle": DASHES[i], **({"marker": MARKERS[i]} if marker else {})}


def draw(ax: Axes, rows: Sequence[Row], **how: Any) -> Any:
    """One line through the rows; a gap where y is None."""
    y = [float("nan") if row.y is None else row.y for row in rows]
    return ax.plot([row.x for row in rows], y, **how)[0]


def band(ax: Axes, rows: Sequence[Row], color: str) -> None:
    """From low to high of the rows that have both."""
    if any(row.low is not None and row.high is not None for row in rows):
        low, high = ([float("nan") if v is None else v for v in side] for side in zip(*map(spread, rows), strict=True))
        ax.fill_between([float(row.x) for row in rows], low, high, color=color, alpha=0.2, linewidth=0)


def spread(row: Row) -> tuple[float | None, float | None]:
    return row.low, row.high


def label_ends(ax: Axes, ends: Iterable[tuple[float, str, Any]], *, gap: float = 0.052, at: float = 1.02) -> None:
    """Names lines at the right, each beside its last height, moved apart (shares of the axis) if they would touch."""
    ax.figure.canvas.draw()
    to_share = ax.transData + ax.transAxes.inverted()
    x = ax.get_xlim()[1]
    placed = sorted((float(to_share.transform((x, y))[1]), name, color) for y, name, color in ends)
    heights = [height for height, *_ in placed]
    for _ in range(200):  # a few would do: each pass pushes neighbors apart by what they lack
        moved = False
        for i, (low, high) in enumerate(pairwise(heights)):
            lack = gap - (high - low)
            if lack > 1e-6:
                heights[i], heights[i + 1], moved = low - lack / 2, high + lack / 2, True
        if not moved:
            break
    for height, (_, name, color) in zip(heights, placed, strict=True):
        ax.text(at, height, name, color=ink(color), transform=ax.transAxes, va="center", fontsize=6.5, clip_on=False)


def ink(color: str) -> tuple[float, ...]:
    """A color for letters: as dark as the darkest of ours, so that a light line's name can be read."""
    return tuple(0.62 * channel for channel in mpl.colors.to_rgb(color))


def panel_name(ax: Axes, text: str) -> None:
    """(a) … above the upper left corner."""
    ax.set_title(text, fontsize=7, pad=3)
