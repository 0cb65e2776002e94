"""DLR-LANDSCAPE: curvature and gradients around the models that dlr_finetune trains."""

from typing import Any, Final

import numpy as np

from lockproofs.experiments.dlr_finetune import SKILL, digest, model
from lockproofs.experiments.store import Cell, Experiment
from lockref.attacks.landscape import METRICS, gradient_flow, model_curvature
from lockref.autodiff import keep_pages
from lockref.models import skills
from lockref.models.answers import answers

SEED: Final = 0
MODELS: Final = ("original", "planted", "dlr-16")
SEEDS: Final = (0, 1, 2)
PROBLEMS, STEPS, SHOWN = 16, 16, 8


def given(seed: int) -> Any:
    """The held-out problems that one loss is made of."""
    return answers(skills.skill_problems(SKILL, np.random.default_rng([SEED, 2, seed]), PROBLEMS, held_out=True))


def measure(cell: Cell, steps: int = STEPS) -> dict[str, Any]:
    """The leading Ritz values of both metrics with their residuals, the lowest one, and the gradient's norms."""
    keep_pages()
    subject, problems = model(cell["model"]), given(cell["seed"])
    found: dict[str, Any] = {"sha256": digest(cell["model"])}
    for metric in METRICS:
        rng = np.random.default_rng([SEED, 3, cell["seed"]])
        spectrum = model_curvature(subject, problems, metric, steps, rng)
        found[metric] = spectrum.values[:SHOWN].tolist()
        found[f"{metric}_residuals"] = spectrum.residuals[:SHOWN].tolist()
        found[f"{metric}_lowest"] = float(spectrum.values[-1])
    flow = gradient_flow(subject, problems)
    return found | {"stream": list(flow.stream), "attention_gradient": flow.attention, "mlp_gradient": flow.mlp}


EXPERIMENT: Final = Experiment(
    name="dlr_landscape",
    title="Curvature and gradient norms of original and locked models",
    seed=SEED,
    settings={"skill": SKILL, "held_out_problems": PROBLEMS, "lanczos_steps": STEPS, "dtype": "float32 weights, "
              "float64 Lanczos"},
    cells=[{"model": name, "seed": seed} for name in MODELS for seed in SEEDS],
    measure=measure,
)  # fmt: skip
