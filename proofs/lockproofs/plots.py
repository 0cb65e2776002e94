"""Where the ticks, lines and markers of a plot lie; templates/plot.svg.j2 writes them as SVG.

Drawn here and not by a plotting library: the bytes are stable, the text stays text, and the page's
own colors (light, dark, print) apply. Curves differ in color, dash and marker at once.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from lockproofs.claim import Curve, Plot

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 30, 52
MARKERS = (  # SVG paths about the origin
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
    "M-3.6,-3.6h7.2v7.2h-7.2z",
    "M0,-4.8L4.4,3.4h-8.8z",
    "M0,-5L5,0L0,5L-5,0z",
    "M0,4.8L4.4,-3.4h-8.8z",
    "M-5,-1.7h3.3v-3.3h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3z",
)
DASHES = ("none", "7 4", "2 3", "10 3 2 3", "14 4", "4 2 1 2")
STYLES = len(MARKERS)
MOST_MARKERS = 12
FLAT = 1e-6  # a relative range below this has no room for its labels
SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def number(value: float | None, digits: int = 4) -> str:
    """A number for people: 0.0312, 1,234, 3.2×10⁻¹⁵; "–" where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    power = int(exponent)
    if -4 < power < 6:
        decimals = max(0, digits - 1 - power)
        return _typeset(f"{value:,.{decimals}f}")
    return f"{_typeset(mantissa)}×{_ten_to(power)}"


def _typeset(text: str) -> str:
    """Without idle zeros, and with a minus sign instead of a hyphen."""
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")


def _ten_to(power: int) -> str:
    return f"10{str(power).translate(SUPERSCRIPT)}"


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis whose range is that of the data, with a small margin."""

    low: float
    high: float
    log: bool
    ticks: list[tuple[float, str]]  # position 0…1 along the axis, label

    def place(self, value: float) -> float:
        """Position 0…1 of a value along the axis."""
        return (_scale(value, self.log) - self.low) / (self.high - self.low)


def axis(values: Iterable[float], log: bool) -> Axis:
    """The axis for these values; a logarithmic one leaves out what is not positive."""
    scaled = [_scale(v, log) for v in values if v > 0 or not log]
    low, high = (min(scaled), max(scaled)) if scaled else (0.0, 1.0)
    flat = high - low <= FLAT * max(abs(low), abs(high))
    # A flat line gets room, too: half a decade or half its height on either side.
    pad = (0.5 if log else 0.5 * abs(low) or 0.5) if flat else 0.04 * (high - low)
    low, high = low - pad, high + pad
    ticks = _log_ticks(low, high) if log else _ticks(low, high)
    if len(ticks) < 2:  # less than a decade, without a 2 or 5 in it
        ticks = [(_scale(value, log), label) for value, label in _ticks(10**low, 10**high)]
    return Axis(low, high, log, [((at - low) / (high - low), label) for at, label in ticks])


def _scale(value: float, log: bool) -> float:
    return math.log10(value) if log else value


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """At most seven round numbers between low and high."""
    rough = (high - low) / 6
    unit: float = 10.0 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough)
    at = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    largest = max(abs(low), abs(high))
    if largest >= 1e5 or step < 1e-4:
        digits = math.floor(math.log10(largest)) - math.floor(math.log10(step)) + 1
        return [(v, number(v, digits)) for v in at]
    decimals = max(0, -math.floor(math.log10(step)))
    return [(v, f"{v:,.{decimals}f}".replace("-", "−")) for v in at]


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Powers of ten; 2 and 5 times them where there are few."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    every = math.ceil(len(decades) / 7)
    within = [float(d) for d in decades if low <= d <= high and d % every == 0]
    if len(within) > 2:
        return [(d, _ten_to(int(d))) for d in within]
    steps = [math.log10(m) + d for d in decades for m in (1, 2, 5)]
    return [(at, number(10**at, 1)) for at in steps if low <= at <= high]


@dataclass(frozen=True)
class Line:
    """One curve as it is drawn: SVG path, markers, and its number, from which its color, marker and dash follow.

    Colors come again after six curves, with other markers and dashes; no two of 36 curves look the same.
    """

    name: str
    number: int
    path: str
    points: list[tuple[float, float]]

    @property
    def style(self) -> int:
        return self.number % STYLES

    @property
    def marker(self) -> str:
        return MARKERS[self._shifted]

    @property
    def dash(self) -> str:
        return DASHES[self._shifted]

    @property
    def _shifted(self) -> int:
        return (self.number + self.number // STYLES) % STYLES


@dataclass(frozen=True)
class Drawing:
    """A plot in SVG coordinates."""

    plot: Plot
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[Line]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def draw(plot: Plot) -> Drawing:
    """Lays out a plot. Points that a logarithmic axis cannot show are gaps."""
    dots = [dot for curve in plot.curves for dot in _dots(plot, curve) if dot]
    x_axis = axis([x for x, _ in dots], plot.x_log)
    y_axis = axis([y for _, y in dots], plot.y_log)

    def across(at: float) -> float:
        return round(LEFT + at * (WIDTH - LEFT - RIGHT), 1)

    def down(at: float) -> float:
        return round(HEIGHT - BOTTOM - at * (HEIGHT - TOP - BOTTOM), 1)

    lines = []
    for index, curve in enumerate(plot.curves):
        placed = [
            (across(x_axis.place(dot[0])), down(y_axis.place(dot[1]))) if dot else None for dot in _dots(plot, curve)
        ]
        points = [p for p in placed if p]
        every = math.ceil(len(points) / MOST_MARKERS) or 1
        lines.append(Line(curve.name, index, _path(placed), points[::every]))
    return Drawing(
        plot,
        [(across(at), label) for at, label in x_axis.ticks],
        [(down(at), label) for at, label in y_axis.ticks],
        lines,
    )


def _dots(plot: Plot, curve: Curve) -> list[tuple[float, float] | None]:
    return [
        None if y is None or (plot.x_log and x <= 0) or (plot.y_log and y <= 0) else (x, y)
        for x, y in zip(curve.x, curve.y, strict=True)
    ]


def _path(placed: list[tuple[float, float] | None]) -> str:
    """M starts a piece, L goes on: a gap starts a new piece."""
    pieces, pen_down = list[str](), False
    for point in placed:
        if point:
            pieces.append(f"{'L' if pen_down else 'M'}{point[0]:g},{point[1]:g}")
        pen_down = point is not None
    return "".join(pieces)
