"""Figure 8: Trap² along the scale of the update, against its strength, and merged by every operator."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas

from lockfigs import style
from lockfigs.figure import Figure
from lockfigs.sources import Row, Sources, groups, measured, series

SCALE, STRENGTH, MERGE = "trap_scale", "trap_strength", "trap_merge"
SKILL, PARTNER = "add", "reverse"
SWEEP, MAP = "strength", {SKILL: "merged, addition", PARTNER: "merged, reversal"}
KINDS = {"full": "full updates", "lora": "LoRA"}
SHORT = {"full": "full", "lora": "LoRA"}
ALONE = ("base", "expert", "partner", "half partner")
UNSHARED = ("nominal", "nominal-layers", "projected", "layer-scales", "tensor-subset")  # no scale for both members
ROW = 0.135  # inches of a line of the map


def read(sources: Sources) -> list[Row]:
    """Losses at every scale; exact match against λ and for every operator, where stored; mean and range of seeds."""
    rows = []
    for (kind, strength), runs in sorted(groups(sources.stored(SCALE).rows, "kind", "strength").items()):
        for i, s in enumerate(runs[0]["scales"]):
            name = f"λ = {strength:g}"
            rows.append(measured(KINDS[kind], name, s, SCALE, runs, ("kind", "strength"), f"loss[{i}]"))
    return rows + _sweep(sources) + _merges(sources)


def _sweep(sources: Sources) -> list[Row]:
    """Alone and merged, at the usual law and number of steps."""
    stored = sources.stored(STRENGTH).rows if sources.has(STRENGTH) else []
    steps, rows = max((row["steps"] for row in stored), default=0), []
    usual = [row for row in stored if (row["law"], row["steps"]) == ("published", steps)]
    for row in sorted(usual, key=lambda row: row["strength"]):
        alone = f"match[{row['scales'].index(1.0)}]"
        for what, field in (("alone", alone), ("merged", f"merged.{SKILL}")):
            fields = ("kind", "strength", "steps", "law")
            name = f"{SHORT[row['kind']]}, {what}"
            rows.append(measured(SWEEP, name, f"{row['strength']:g}", STRENGTH, [row], fields, field))
    return rows


def _merges(sources: Sources) -> list[Row]:
    merged = sources.stored(MERGE).rows if sources.has(MERGE) else []
    found = sorted(groups(merged, "operator", "kind", "strength").items(), key=lambda item: part(item[0][0]))
    fields = ("operator", "kind", "strength")
    return [
        measured(panel, name, f"{SHORT[kind]}, λ = {strength:g}", MERGE, runs, fields, skill)
        for (name, kind, strength), runs in found
        for skill, panel in MAP.items()
    ]


def part(operator: str) -> int:
    """Of the map: what is no merge, operators on whole models, in the spaces of adapters, with scales of their own."""
    if operator in ALONE or operator in UNSHARED:
        return 0 if operator in ALONE else 3
    return 2 if "knots" in operator or "core" in operator else 1


def draw(rows: list[Row]) -> Canvas:
    """Curves above, a panel for each kind of update; against λ in the middle; below the map with its numbers."""
    sweep, operators = series(rows, SWEEP), len(series(rows, MAP[SKILL]))
    heights = [2.1, *[1.6] * bool(sweep), *[0.4 + ROW * operators] * bool(operators)]
    canvas = style.canvas(sum(heights) + 0.3)
    grid = iter(canvas.add_gridspec(len(heights), 1, height_ratios=heights))
    _curves(canvas, next(grid), rows)
    if sweep:
        _against(canvas.add_subplot(next(grid)), sweep)
    if operators:
        bottom = canvas.add_subplot(next(grid))
        _map(bottom, *(series(rows, panel) for panel in MAP.values()))
        style.panel_name(bottom, f"({'cd'[bool(sweep)]}) exact match on addition / reversal, %")
    return canvas


def _curves(canvas: Canvas, place: Any, rows: list[Row]) -> None:
    strengths = sorted({row.series for row in rows if row.panel in KINDS.values()}, key=lambda n: float(n.split()[-1]))
    axes = place.subgridspec(1, 2).subplots(sharey=True)
    handles = {}
    for ax, panel, letter in zip(axes, KINDS.values(), "ab", strict=True):
        for label, line in series(rows, panel).items():
            how = style.look(strengths.index(label), marker=True) | {"markerfacecolor": "white", "markersize": 2.6}
            handles[label] = style.draw(ax, line, **how)
            style.band(ax, line, how["color"])
        ax.axvline(1, color=style.FAINT, linewidth=0.6, zorder=0)
        ax.set(yscale="log", xlabel="s, scale of the update", xticks=[0, 0.5, 1, 1.5, 2])
        style.panel_name(ax, f"({letter}) {panel}")
    axes[0].set_ylabel("loss, nats per token")
    shown = {label: handles[label] for label in strengths}
    canvas.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=3, columnspacing=1.0, fontsize=6)


def _against(ax: Any, sweep: dict[str, list[Row]]) -> None:
    places = sorted({str(row.x) for line in sweep.values() for row in line}, key=float)
    hollow = {"linestyle": (0, (3, 1.2)), "markerfacecolor": "white"}
    for i, kind in enumerate(SHORT.values()):
        for what, more in (("alone", {"linestyle": "-"}), ("merged", hollow)):
            line = sweep[f"{kind}, {what}"]
            x, y = [places.index(str(row.x)) for row in line], [100 * (row.y or 0) for row in line]
            ax.plot(x, y, label=f"{kind}, {what}", clip_on=False, **style.look(i, marker=True) | more)
    ax.set_xticks(range(len(places)), places)
    ax.set(xlabel="λ", ylabel="exact match, %", ylim=(0, 104))
    ax.legend(loc="best", ncols=2, columnspacing=1.0, fontsize=6)
    style.panel_name(ax, "(c) expert on addition, alone and merged")


def _map(ax: Any, own: dict[str, list[Row]], other: dict[str, list[Row]]) -> None:
    """Both skills are written, their mean is the shade."""
    columns = list(dict.fromkeys(str(row.x) for line in own.values() for row in line))
    cells = np.full((len(own), len(columns), 2), np.nan)
    for i, name in enumerate(own):
        for k, line in enumerate((own[name], other[name])):
            for row in line:
                cells[i, columns.index(str(row.x)), k] = 100 * (row.y or 0)
    shades = cells.mean(axis=-1)
    ax.imshow(shades, cmap="Greys", vmin=0, vmax=140, aspect="auto")
    for i, j in np.argwhere(~np.isnan(shades)):
        text = f"{cells[i, j, 0]:.0f} / {cells[i, j, 1]:.0f}"
        ax.text(j, i, text, ha="center", va="center_baseline", fontsize=5.8,
                color="white" if shades[i, j] > 75 else "black")  # fmt: skip
    parts = [part(name) for name in own]
    for i in range(1, len(parts)):
        if parts[i] != parts[i - 1]:
            ax.axhline(i - 0.5, color=style.BLACK, linewidth=0.6)
    ax.set_xticks(range(len(columns)), [column.replace(", ", "\n") for column in columns])
    ax.set_yticks(range(len(own)), list(own), fontsize=5.8)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def caption(sources: Sources) -> str:
    """What is shown."""
    scale = sources.stored(SCALE)
    said = (
        "(a), (b) held-out answer loss on addition of the zoo's base with s times an update that was trained with "
        f"Trap² of strength λ, or without (λ = 0): mean and range of the seeds ({_seeds(scale.rows)}), "
        f"{scale.settings['problems']} problems."
    )
    letters = iter("cd")
    if sources.has(STRENGTH):
        said += (
            f" ({next(letters)}) exact match on addition of the expert alone and after a merge with an unprotected one "
            f"on reversal, against λ, one seed, {sources.stored(STRENGTH).settings['problems']} problems."
        )
    if not sources.has(MERGE):
        return f"{said} Merges by operator are not shown: {MERGE} is not stored yet."
    merge = sources.stored(MERGE)
    seeds = len({row["seed"] for row in merge.rows})
    return (
        f"{said} ({next(letters)}) exact match on addition and on reversal, the shade their mean, averaged over "
        f"{seeds} seeds, {merge.settings['problems']} problems, of the base, the expert, its partner on reversal, and "
        "their merge by each operator at the scale that an attacker chose on problems of its own: on whole models, in "
        "the spaces of adapters, and with scales that the members do not share; empty where an operator is for LoRA "
        "alone."
    )


def _seeds(rows: list[dict[str, Any]]) -> str:
    counts = {f"λ = {strength:g}": len(runs) for (_, strength), runs in groups(rows, "kind", "strength").items()}
    return ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()))


FIGURE = Figure(
    8, "trap2", "Trap²: loss against s, and merges", read, draw, caption, needs=(SCALE,), takes=(STRENGTH, MERGE)
)
