"""DLR-UTILITY: what distillation keeps of a model, against depth, and with a plain MLP as the student (no lock)."""

from functools import cache
from typing import Any, Final

import numpy as np

from lockproofs.experiments.store import Cell, Experiment
from lockref.attacks.redistill import cost
from lockref.autodiff.pages import keep_pages
from lockref.locks.distillation import Phases, Student, captured, distill, distill_module, dlr_student, swiglu_student
from lockref.locks.dlr_run import data
from lockref.locks.dlr_training import Recipe
from lockref.models import dlrnet
from lockref.models.checkpoint_io import Checkpoint, load_checkpoint
from lockref.models.dlrnet import DLRConfig
from lockref.models.evaluation import evaluate
from lockref.models.zoo import zoo_path

SEED: Final = 0
ROWS, HELD_OUT, LENGTH = 2048, 64, 128
PHASES: Final = Phases(Recipe(120, 2e-2, SEED), Recipe(120, 3e-3, SEED), captured=256)
MEASURED: Final[dict[str, Any]] = {"problems": 300, "windows": 64, "length": 192}
DEPTHS: Final = (4, 16, 48)


@cache
def base() -> Checkpoint:
    """The model that is locked, in the precision in which everything trains here."""
    keep_pages()
    return load_checkpoint(zoo_path("base"), np.float32)


@cache
def rows() -> tuple[Any, Any]:
    """Tokens to learn from, and held-out ones."""
    rng = np.random.default_rng(SEED)
    return data(ROWS, LENGTH, rng, False), data(HELD_OUT, LENGTH, rng, True)


def student(cell: Cell) -> Student:
    """What learns in a cell: a DLR-Net at parameter parity, or the MLP's own kind where depth is None."""
    config = base().config
    if cell["depth"] is None:
        return swiglu_student(config)
    d, m = config.hidden_size, config.intermediate_size
    rank = dlrnet.parity(d, m, cell["depth"], cell["norm"]).rank
    return dlr_student(DLRConfig(d, rank, cell["depth"], cell["norm"], placement=cell["placement"]))


def measure(cell: Cell) -> dict[str, Any]:
    """Both phases, and what the model can do after each."""
    model, pupil = base(), student(cell)
    teacher = swiglu_student(model.config)
    found = distill(model.tensors, model.config, teacher, pupil, PHASES, *rows())
    return {
        "first_losses": first_losses(cell),
        "relative_error": found.errors,
        "row_error": found.row_errors,
        "original": evaluate(model.tensors, model.config, **MEASURED),
        "modules": evaluate(found.modules, model.config, pupil.block, **MEASURED),
        "model": evaluate(found.model, model.config, pupil.block, **MEASURED),
        "operations": cost(model.tensors, model.config, teacher, pupil, PHASES, LENGTH),
    }


def first_losses(cell: Cell, steps: int = 4) -> list[float]:
    """Losses of the first steps of phase 1, first module: the cheapest part of a cell to run again."""
    model, pupil = base(), student(cell)
    seen = captured(
        model.tensors, rows()[0][: PHASES.captured], model.config, teacher=swiglu_student(model.config),
        on_stream=pupil.on_stream,
    )  # fmt: skip
    losses: list[float] = []
    distill_module(
        *next(seen), pupil, PHASES.modules, rows=PHASES.activations, stop_after=steps,
        follow=lambda step, loss: losses.append(loss),
    )  # fmt: skip
    return losses


def _cell(depth: int | None, norm: str = "rms", placement: str = "difference") -> Cell:
    return {"depth": depth, "norm": norm, "placement": placement}


EXPERIMENT: Final = Experiment(
    name="dlr_distill",
    title="Distillation into DLR-Nets and into an MLP, the same budget for each",
    seed=SEED,
    settings={
        "model": "base", "rows": ROWS, "held_out": HELD_OUT, "length": LENGTH, "modules_steps": PHASES.modules.steps,
        "model_steps": PHASES.model.steps, "rates": [PHASES.modules.learning_rate, PHASES.model.learning_rate],
        "captured": PHASES.captured, "activations": PHASES.activations, "tokens": PHASES.tokens, "measured": MEASURED,
    },
    cells=[
        _cell(None), *map(_cell, DEPTHS)
    ],
    measure=measure,
)  # fmt: skip
