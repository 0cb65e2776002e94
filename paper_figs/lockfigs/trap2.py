"""Figure 8: Trap² along the scale of the update, and merged by every operator."""

from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas

from lockfigs import style
from lockfigs.figure import Figure
from lockfigs.sources import Row, Sources, series

SCALE, MERGE, SKILL = "trap_scale", "trap_merge", "add"
MAP = "merged"
KINDS = {"full": "full", "lora": "LoRA"}


def name(kind: str, strength: float) -> str:
    """Of a kind of update, protected or not."""
    return f"{KINDS[kind]}, λ = {strength:g}"


def groups(rows: list[dict[str, Any]], *fields: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Rows that agree in these fields, one a seed, in the order of the rows."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[field] for field in fields), []).append(row)
    return found


def read(sources: Sources) -> list[Row]:
    """Mean, least and greatest over seeds: losses at every scale; exact match for every operator, where stored."""
    rows = []
    for (kind, strength), runs in sorted(groups(sources.stored(SCALE).rows, "kind", "strength").items()):
        label, count = name(kind, strength), f"{len(runs)} seed{'s' * (len(runs) > 1)}"
        for i, s in enumerate(runs[0]["scales"]):
            y = [run["loss"][i] for run in runs]
            source = f"result {SCALE} | {label}, {count} | loss[{i}]"
            rows.append(Row(KINDS[kind], f"λ = {strength:g}, {count}", s, fmean(y), source, min(y), max(y)))
    merged = sources.stored(MERGE).rows if sources.has(MERGE) else []
    for (kind, strength, operator), runs in groups(merged, "kind", "strength", "operator").items():
        label, y = name(kind, strength), [run[SKILL] for run in runs]
        source = f"result {MERGE} | {label}, {operator}, {len(runs)} seeds | {SKILL}"
        rows.append(Row(MAP, operator, label, fmean(y), source, min(y), max(y)))
    return rows


def draw(rows: list[Row]) -> Canvas:
    """Curves above, a panel for each kind of update; below the map with its numbers written in, where there is one."""
    operators = series(rows, MAP)
    below = 0.5 + 0.17 * len(operators) if operators else 0.0
    canvas = style.canvas(2.3 + below)
    grid = canvas.add_gridspec(2 if operators else 1, 2, height_ratios=[2.3, below] if operators else [1])
    first = None
    for j, (panel, letter) in enumerate(zip(KINDS.values(), "ab", strict=True)):
        ax = canvas.add_subplot(grid[0, j], sharey=first)
        first = first or ax
        for i, (label, line) in enumerate(series(rows, panel).items()):
            how = style.look(i, marker=True) | {"markerfacecolor": "white"}
            style.draw(ax, line, label=label, **how)
            x, low, high = ([float(getattr(row, side)) for row in line] for side in ("x", "low", "high"))
            ax.fill_between(x, low, high, color=how["color"], alpha=0.2, linewidth=0)
        ax.axvline(1, color=style.FAINT, linewidth=0.6, zorder=0)
        ax.set(yscale="log", xlabel="s, scale of the update", xticks=[0, 0.5, 1, 1.5, 2])
        ax.legend(fontsize=5.8, loc="lower center", bbox_to_anchor=(0.5, 1.1), borderaxespad=0)
        style.panel_name(ax, f"({letter}) {panel}")
    if first is not None:
        first.set_ylabel("loss, nats per token")
    if operators:
        bottom = canvas.add_subplot(grid[1, :])
        _map(bottom, operators, list(dict.fromkeys(str(row.x) for row in rows if row.panel == MAP)))
        style.panel_name(bottom, "(c) exact match of the merge, %")
    return canvas


def _map(ax: Any, operators: dict[str, list[Row]], columns: list[str]) -> None:
    cells = np.full((len(operators), len(columns)), np.nan)
    for i, line in enumerate(operators.values()):
        for row in line:
            cells[i, columns.index(str(row.x))] = 100 * (row.y or 0)
    ax.imshow(cells, cmap="Greys", vmin=0, vmax=140, aspect="auto")
    for i, j in np.argwhere(~np.isnan(cells)):
        ax.text(j, i, f"{cells[i, j]:.0f}", ha="center", va="center", fontsize=6,
                color="white" if cells[i, j] > 75 else "black")  # fmt: skip
    ax.set_xticks(range(len(columns)), [column.replace(", ", "\n") for column in columns])
    ax.set_yticks(range(len(operators)), list(operators))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def caption(sources: Sources) -> str:
    """What is shown."""
    said = (
        "(a), (b) held-out answer loss on addition of the zoo's base with s times an update that was trained with "
        "Trap² of strength λ, or without (λ = 0): mean over the seeds that the legend counts, band from the least to "
        f"the greatest, {sources.stored(SCALE).settings['problems']} problems."
    )
    if not sources.has(MERGE):
        return f"{said} Merges by operator are not shown: {MERGE} is not stored yet."
    seeds = len({row["seed"] for row in sources.stored(MERGE).rows})
    return (
        f"{said} (c) held-out exact match on addition after merging the expert with an unprotected one on reversal, "
        f"mean of {seeds} seeds, by each operator at the scale that an attacker chose on problems of its own; empty "
        "where an operator is for LoRA alone."
    )


FIGURE = Figure(8, "trap2", "Trap²: loss against s, and merges", read, draw, caption, needs=(SCALE,))
