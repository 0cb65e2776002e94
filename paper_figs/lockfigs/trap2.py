"""Figure 8: Trap² along the scale of the update, and merged by every operator."""

from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas

from lockfigs import style
from lockfigs.figure import Figure
from lockfigs.sources import Row, Sources, series

SCALE, MERGE, SKILL = "trap_scale", "trap_merge", "add"
CURVES, MAP = "scale", "merged"
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
    """Mean, least and greatest over seeds: losses at every scale, exact match for every operator."""
    rows = []
    for (kind, strength), runs in groups(sources.stored(SCALE).rows, "kind", "strength").items():
        label = name(kind, strength)
        for i, s in enumerate(runs[0]["scales"]):
            y = [run["loss"][i] for run in runs]
            source = f"result {SCALE} | {label}, {len(runs)} seeds | loss[{i}]"
            rows.append(Row(CURVES, label, s, fmean(y), source, min(y), max(y)))
    for (kind, strength, operator), runs in groups(sources.stored(MERGE).rows, "kind", "strength", "operator").items():
        label, y = name(kind, strength), [run[SKILL] for run in runs]
        source = f"result {MERGE} | {label}, {operator}, {len(runs)} seeds | {SKILL}"
        rows.append(Row(MAP, operator, label, fmean(y), source, min(y), max(y)))
    return rows


def draw(rows: list[Row]) -> Canvas:
    """Curves above, the map below with its numbers written in."""
    operators = series(rows, MAP)
    canvas = style.canvas(2.2 + 0.17 * len(operators))
    top, bottom = canvas.subplots(2, 1, height_ratios=(1.7, 0.3 + 0.17 * len(operators)))
    for i, (label, line) in enumerate(series(rows, CURVES).items()):
        how = style.look(i, marker=True) | {"markerfacecolor": "white"}
        style.draw(top, line, label=label, **how)
        x, low, high = ([float(getattr(row, side)) for row in line] for side in ("x", "low", "high"))
        top.fill_between(x, low, high, color=how["color"], alpha=0.2, linewidth=0)
    top.axvline(1, color=style.FAINT, linewidth=0.6, zorder=0)
    top.set(yscale="log", xlabel="s, scale of the update", ylabel="loss, nats per token")
    top.legend(fontsize=6, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.22))
    columns = list(dict.fromkeys(str(row.x) for row in rows if row.panel == MAP))
    _map(bottom, operators, columns)
    style.panel_name(top, "(a)")
    style.panel_name(bottom, "(b) exact match of the merge, %")
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
    scale, merge = sources.stored(SCALE), sources.stored(MERGE)
    counted = " and ".join(str(len({row["seed"] for row in result.rows})) for result in (scale, merge))
    return (
        "(a) held-out answer loss on addition of the zoo's base with s times an update that was trained with Trap² of "
        "strength λ, or without (λ = 0): mean over seeds, band from least to greatest. (b) held-out exact match "
        "on addition, mean over seeds, after merging the expert with an unprotected one on reversal, by each operator, "
        f"at the scale that an attacker chose on problems of its own; {counted} seeds, {merge.settings['problems']} "
        "problems; empty where an operator is for LoRA alone."
    )


FIGURE = Figure(
    8, "trap2", "Trap²: loss against s, and merges by operator and protection", read, draw, caption,
    needs=(SCALE, MERGE),
)  # fmt: skip
