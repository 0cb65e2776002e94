"""The stored fine-tuning runs, as their claims compare them: the best rate of a grid, its seeds, its curve."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lockproofs.claim import Curve, Plot
from lockproofs.experiments.store import Result
from lockref.attacks.finetune import Best, best_of_grid

ATTACKERS = {
    "all": "all weights",
    "attention": "attention alone",
    "lora": "LoRA on attention",
    "mlp": "MLPs or DLR-Nets alone",
}


@dataclass(frozen=True)
class Runs:
    """One model's runs by one attacker: for each rate the held-out curves, one for each seed."""

    model: str
    attacker: str
    curves: dict[float, list[list[float]]]
    every: int
    operations: int
    stored: int

    def at(self, step: float) -> dict[float, list[float]]:
        """{rate: losses} at the last measured step that is not after `step`."""
        index = int(step // self.every)
        return {rate: [curve[index] for curve in curves] for rate, curves in self.curves.items()}

    @property
    def steps(self) -> int:
        return self.every * (len(next(iter(self.curves.values()))[0]) - 1)

    @property
    def best(self) -> Best:
        """The best rate by the mean final loss."""
        return best_of_grid(self.at(self.steps))

    @property
    def best_curves(self) -> list[list[float]]:
        return self.curves[self.best.rate]


def runs(found: Result, model: str, attacker: str, seeds: Sequence[int]) -> Runs | None:
    """The runs of these seeds, at the rates that have all of them; None where the experiment has none.

    A loss that diverged counts as infinite.
    """
    rows = [row for row in found.where(model=model, trained=attacker) if row["seed"] in seeds]
    if not rows:
        return None
    curves: dict[float, list[list[float]]] = {}
    for row in sorted(rows, key=lambda row: (row["rate"], row["seed"])):
        curve = [math.inf if loss is None else float(loss) for loss in row["held_out"]]
        curves.setdefault(row["rate"], []).append(curve)
    curves = {rate: values for rate, values in curves.items() if len(values) == len(seeds)}
    return Runs(model, attacker, curves, found.settings["every"], rows[0]["operations"], rows[0]["bytes"])


def curves_plot(title: str, shown: Sequence[Runs]) -> Plot:
    """Held-out loss against the step at each model's best rate: the mean over seeds, the least, the greatest."""
    lines = []
    for one in shown:
        values = np.array(one.best_curves)
        x = [float(one.every * i) for i in range(values.shape[1])]
        for name, y in (("mean", values.mean(0)), ("least", values.min(0)), ("greatest", values.max(0))):
            lines.append(Curve(name=f"{one.model}, {name} of seeds", x=x, y=y.tolist()))
    return Plot(title=title, x_label="step", y_label="held-out loss, nats per byte", curves=lines)


def grid_plot(title: str, shown: Sequence[Runs]) -> Plot:
    """Mean final loss against the learning rate."""
    lines = []
    for one in shown:
        means = {rate: float(np.mean(losses)) for rate, losses in one.at(one.steps).items()}
        lines.append(Curve(name=f"{one.model}, {ATTACKERS[one.attacker]}", x=list(means), y=list(means.values())))
    return Plot(title=title, x_label="learning rate", y_label="final held-out loss", x_log=True, curves=lines)
