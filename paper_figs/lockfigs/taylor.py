"""Figure 6: certified errors of Taylor polynomials against range and order, beside Chebyshev's."""

from math import pi

from matplotlib.figure import Figure as Canvas

from lockfigs import style
from lockfigs.figure import Figure
from lockfigs.sources import Row, Sources, series

PLOT = "silu on ±h, {}: certified greatest error against the {}"
CLAIMS = {"Taylor": "TAYLOR-RADIUS", "Chebyshev": "TAYLOR-BASIS"}
AGAINST = ("range", "order")
ERROR, BOUND = ", error", ", bound"


def read(sources: Sources) -> list[Row]:
    """Errors and bounds of both bases against range and order."""
    return [
        row
        for against in AGAINST
        for basis, claim in CLAIMS.items()
        for row in sources.curves(claim, PLOT.format(basis, against), f"{basis}, {against}")
    ]


def draw(rows: list[Row]) -> Canvas:
    """Left Taylor, right Chebyshev, on the same scales."""
    canvas = style.canvas(3.6)
    axes = canvas.subplots(2, 2, sharey=True, sharex="row")
    for i, (line_of_axes, against) in enumerate(zip(axes, AGAINST, strict=True)):
        for j, (ax, basis) in enumerate(zip(line_of_axes, CLAIMS, strict=True)):
            found = series(rows, f"{basis}, {against}")
            names = [name.removesuffix(ERROR) for name in found if name.endswith(ERROR)]
            for k, name in enumerate(names):
                how = style.look(k, marker=True) | {"markevery": 2, "markerfacecolor": "white"}
                style.draw(ax, found[name + ERROR], label=name, **how)
                style.draw(ax, found[name + BOUND], color=how["color"], linewidth=0.8, alpha=0.7)
            ax.set(yscale="log", ylim=(1e-15, 1e8))
            ax.set_yticks([1e-12, 1e-8, 1e-4, 1, 1e4, 1e8])
            ax.minorticks_off()
            if against == "range":
                ax.set_xscale("log", base=2)
                ax.set_xticks([0.5, 1, 2, 4, 8], ["½", "1", "2", "4", "8"])
                ax.set_xlabel("half-range h")
                if basis == "Taylor":
                    ax.axvline(pi, color=style.GREY, linewidth=0.7)
                    ax.text(pi * 1.06, 1e-14, "radius π", fontsize=6, color=style.GREY)
            else:
                ax.set_xlabel("order N")
                ax.set_xticks([4, 8, 12, 16, 20])
            style.panel_name(ax, f"({'abcd'[2 * i + j]}) {basis}")
            if basis == "Taylor":
                ax.legend(loc="upper left" if against == "range" else "lower left", borderaxespad=0.1)
    canvas.supylabel("greatest error on ±h", fontsize=7)
    return canvas


def caption(sources: Sources) -> str:
    """What is shown."""
    return (
        "silu approximated about 0 on [−h, h]. Marks: greatest error, certified by ball arithmetic and at most 2 % too "
        "large. Thin lines: the stated bounds, which do not look at the polynomial; Taylor's exists within the radius "
        "of convergence π only, outside of which a higher order is worse. Chebyshev's error falls on every range. "
        "Values above 10⁸ are cut off; the CSV has them."
    )


FIGURE = Figure(6, "taylor", "Taylor error against range and order, beside Chebyshev", read, draw, caption)
