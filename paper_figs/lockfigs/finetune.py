"""Figure 9: fine-tuning at each model's best rate of the grid, original against locked, with the spread over seeds."""

import math
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure as Canvas

from lockfigs import style
from lockfigs.figure import Figure
from lockfigs.sources import Row, Sources, measured, series
from lockproofs.experiments.store import Result

RESULT = "dlr_finetune"
TRAINED = {"all": "all weights", "attention": "attention", "mlp": "MLPs", "lora": "LoRA"}
NAMES = {"planted": "planted lock"}
Runs = list[dict[str, Any]]


def seeds(result: Result) -> list[int]:
    """Seeds that every locked model has run with: more runs of the original are another claim's control."""
    return sorted(set.intersection(*({r["seed"] for r in result.where(model=m)} for m in models(result))))


def models(result: Result) -> list[str]:
    """In the order of the rows."""
    return list(dict.fromkeys(row["model"] for row in result.rows))


def best(result: Result, model: str, trained: str) -> Runs:
    """The runs, one a seed, at the rate of least mean final loss; a rate at which a run diverged is never the best."""
    rates: dict[float, Runs] = {}
    for row in result.where(model=model, trained=trained):
        if row["seed"] in seeds(result):
            rates.setdefault(row["rate"], []).append(row)

    def final(runs: Runs) -> float:
        last = [run["held_out"][-1] for run in runs]
        return math.inf if None in last else fmean(last)

    return min(rates.values(), key=final) if rates else []


def read(sources: Sources) -> list[Row]:
    """Mean, least and greatest held-out loss over the seeds, at every step at which it was measured."""
    result, rows = sources.stored(RESULT), []
    every = result.settings["every"]
    for trained, panel in TRAINED.items():
        for model in models(result):
            runs = best(result, model, trained)
            for i in range(min((len(run["held_out"]) for run in runs), default=0)):
                fields = ("model", "trained", "rate")
                rows.append(measured(panel, model, i * every, RESULT, runs, fields, f"held_out[{i}]"))
    return rows


def draw(rows: list[Row]) -> Canvas:
    """A panel for what trains, one scale for all."""
    panels = [panel for panel in TRAINED.values() if series(rows, panel)]
    lines = -(-len(panels) // 2)
    canvas = style.canvas(0.5 + 1.55 * lines)
    axes = canvas.subplots(lines, 2, sharex=True, sharey=True).ravel()
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    names = list(dict.fromkeys(row.series for row in rows))
    for i, (ax, panel) in enumerate(zip(axes, panels, strict=False)):
        for name, line in series(rows, panel).items():
            how = style.look(names.index(name), marker=True) | {"markerfacecolor": "white", "markevery": 2}
            style.draw(ax, line, label=NAMES.get(name, name), **how)
            style.band(ax, line, how["color"])
        style.panel_name(ax, f"({'abcd'[i]}) {panel}")
        ax.set_xlabel("step" if i >= len(panels) - 2 else "")
    handles = {label: h for ax in axes for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    canvas.supylabel("held-out loss, nats per token", fontsize=7)
    canvas.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, columnspacing=1.0)
    return canvas


def caption(sources: Sources) -> str:
    """What is shown."""
    result = sources.stored(RESULT)
    rates = len({row["rate"] for row in result.rows})
    return (
        f"Held-out loss on the skill {result.settings['skill']} while the zoo's base, its locked forms and a planted "
        f"lock are fine-tuned for {result.settings['steps']} steps, each at its own best rate of the "
        f"grid ({rates} rates in all); mean of {len(seeds(result))} seeds, band from the least to the greatest. What "
        "trains is named above each panel."
    )


FIGURE = Figure(
    9, "finetune", "Fine-tuning at the best rate, original against locked", read, draw, caption, needs=(RESULT,)
)
