"""Figure 7: recovery error of every attack against the size of the task vector, and against storage precision."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from lockfigs import style
from lockfigs.figure import Figure
from lockfigs.sources import Row, Sources, series

NAMES = {
    "Procrustes: weights": "weights",
    "least squares: transform": "transforms",
    "Procrustes: P": "Procrustes",
    "z0 known": "coefficients, $z_0$ known",
    "z0 secret": "coefficients, $z_0$ secret",
}
ROTATION, WEIGHTS, EXACT, PRECISION = "rotation", "weights and transforms", "exact or not", "precision"


def read(sources: Sources) -> list[Row]:
    """Plots of MB-ANCHOR, MB-KEYLESS and TAYLOR-COEFF."""
    return [
        *sources.curves("MB-ANCHOR", "P recovered with the public base: worst key head", ROTATION),
        *sources.curves("MB-ANCHOR", "Recovered with the public base", WEIGHTS),
        *sources.curves("MB-ANCHOR", "What comes back exactly", EXACT),
        *sources.curves("MB-KEYLESS", "Undone from the release alone", PRECISION),
        *sources.curves("MB-ANCHOR", "P recovered with the very base", PRECISION),
        *sources.curves("TAYLOR-COEFF", "W recovered from coefficients alone", PRECISION),
    ]


def draw(rows: list[Row]) -> Canvas:
    """Errors are marks, their bounds thin lines of the same color."""
    canvas = style.canvas(4.6)
    (a, b), (c, d) = canvas.subplots(2, 2)
    _pairs(a, rows, ROTATION, " update: error", " update: bound")
    _pairs(b, rows, WEIGHTS, ", error", ", bound")
    for i, (name, line) in enumerate(series(rows, EXACT).items()):
        shown = [Row(r.panel, r.series, r.x, None if r.y is None else 100 * r.y, r.source) for r in line]
        style.draw(c, shown, label=name, **style.look(i, marker=True), markerfacecolor="white", clip_on=False)
    _pairs(d, rows, PRECISION, ", error", ", bound")
    a.set(ylabel=r"error of P, $\|\hat{P} - P\|_F$", ylim=(0, None))
    b.set(ylabel="relative error", ylim=(0, None))
    c.set(ylabel="wrong, %", ylim=(0, 1))
    for ax in (a, b, c):
        ax.set(xlabel="update, ‖τ‖ / ‖W₀‖", xlim=(0, 1))
        ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    d.set(xscale="log", yscale="log", xlabel="unit round-off u", ylabel="error", ylim=(1e-17, 1e8))
    d.set_xticks([2.0**-53, 2.0**-24, 2.0**-11, 2.0**-8], ["2⁻⁵³", "2⁻²⁴", "\n2⁻¹¹", "2⁻⁸"])
    d.set_yticks([1e-16, 1e-12, 1e-8, 1e-4, 1])
    d.minorticks_off()
    titles = ("(a) Procrustes: P", "(b) weights, transforms", "(c) signs, units", "(d) storage precision")
    places = {"a": "center right", "b": "upper left", "c": "upper left", "d": "upper left"}
    for ax, title in zip((a, b, c, d), titles, strict=True):
        style.panel_name(ax, title)
        ax.legend(loc=places[title[1]], handlelength=1.4, borderaxespad=0.1, fontsize=6)
    return canvas


def _pairs(ax: Axes, rows: list[Row], panel: str, error: str, bound: str) -> None:
    found = series(rows, panel)
    names = [name.removesuffix(error) for name in found if name.endswith(error)]
    for i, name in enumerate(names):
        how = style.look(i, marker=True)
        style.draw(ax, found[name + bound], color=how["color"], linestyle=how["linestyle"], linewidth=0.8)
        how |= {"linestyle": "none", "markerfacecolor": "white"}
        style.draw(ax, found[name + error], label=NAMES.get(name, name), clip_on=False, zorder=4, **how)


def caption(sources: Sources) -> str:
    """What is shown."""
    return (
        "Marks: what attacks get wrong; lines: the bounds derived for them. (a) to (c) with the public base, against "
        "the size of the fine-tuning update τ: the released rotation by Procrustes, worst key head, for a random and "
        "for trained updates rescaled, its bound no greater than two rotations can be apart; weights behind it, and "
        "invertible transforms by least squares, whose error and bound all but coincide; share of plane signs and of "
        "MLP units that come back wrong. (d) against the precision in which the release is saved (float64, float32, "
        "float16, bfloat16): the keyless attack, which needs no other model, and Procrustes with the very base, worst "
        "key head; W from Taylor coefficients, worst layer, or worst unit of one layer where z₀, the bias and order 0 "
        "are secret, with the round-off of storage times the conditioning of the ratio of orders."
    )


FIGURE = Figure(7, "recovery", "Recovery error of every attack, with derived bounds", read, draw, caption)
