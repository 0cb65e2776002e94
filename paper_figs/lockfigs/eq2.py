"""Figure 4: eq. (2) and its surrogate against k; Theorem 2's counterexample as an inset."""

from math import pi

from matplotlib.figure import Figure as Canvas

from lockfigs import style
from lockfigs.figure import Figure
from lockfigs.sources import Row, Sources, series

NAMES = {
    "f(P_k), eq. (2)": "$f(P_k)$, eq. (2)",
    "g(P_k), surrogate": "$g(P_k)$, surrogate",
    "best f found": "best $f$ found",
}
FLIPS, CIRCLE = "Eq. (2) and its surrogate on one key head", "The counterexample "


def read(sources: Sources) -> list[Row]:
    """Both plots of MB-T2A."""
    return sources.curves("MB-T2A", FLIPS, "flips") + sources.curves("MB-T2A", CIRCLE, "counterexample")


def draw(rows: list[Row]) -> Canvas:
    """The surrogate rises to the end, eq. (2) does not; in the inset the surrogate's maximizer has f = 0."""
    canvas = style.canvas(2.6)
    ax = canvas.add_subplot()
    looks = {"f(P_k), eq. (2)": style.look(0), "g(P_k), surrogate": style.look(1), "best f found": style.look(2)}
    for name, line in series(rows, "flips").items():
        style.draw(ax, line, label=NAMES[name], **looks[name])
    last = max(float(row.x) for row in rows if row.panel == "flips")
    ax.set(xlabel="k, flipped eigen-directions", ylabel="share of the bound (f), of the maximum (g)", xlim=(0, last))
    ax.set_ylim(0, 1.32)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
    ax.legend(loc="upper left", ncols=3, columnspacing=0.8, handlelength=1.8, borderaxespad=0.1, fontsize=6)
    inset = ax.inset_axes((0.47, 0.16, 0.5, 0.32))
    circle = series(rows, "counterexample")
    style.draw(inset, circle["reflection, axis at φ/2: f"], color=style.BLACK)
    style.draw(inset, circle["rotation by φ: f"], color=style.BLUE, linestyle=(0, (1, 1.2)))
    inset.plot([pi / 2], [0.25], "o", color=style.BLACK)
    inset.plot([pi], [0], "s", color=style.BLUE, clip_on=False, zorder=5)
    inset.annotate("swap: f = 1/4", (pi / 2, 0.25), (pi / 2, 0.29), fontsize=6, ha="center")
    inset.annotate("−I: f = 0", (pi, 0), (pi, 0.15), fontsize=6, color=style.ink(style.BLUE), ha="center")
    inset.set(xlim=(0, 2 * pi), ylim=(0, 0.36), xticks=[0, pi, 2 * pi], yticks=[0, 0.25])
    inset.set_xticklabels(["0", "π", "2π"], fontsize=6)
    inset.set_yticklabels(["0", "¼"], fontsize=6)
    inset.set_xlabel("φ", fontsize=6, labelpad=-1)
    inset.set_ylabel("f(P)", fontsize=6, labelpad=-2)
    return canvas


def caption(sources: Sources) -> str:
    """What is shown."""
    circle = sources.plot("MB-T2A", CIRCLE).title
    return (
        "Eq. (2), f, and the surrogate g of Theorem 2 (a) for the flips P_k on one key head of the audited model: f "
        "relative to its bound Σ λ↓(A) λ↓(B), g to its maximum, and the best f that an ascent over flips found. Inset: "
        f"{circle[0].lower()}{circle[1:]}: reflections (solid) and rotations by φ (dotted). The surrogate is largest "
        "at −I alone, where f is 0."
    )


FIGURE = Figure(4, "eq2", "Eq. (2) and its surrogate", read, draw, caption)
