"""Loss along the straight path from a DLR-locked expert to another: before the lock, with it, distilled back.

A DLR-Net cannot be averaged with a SwiGLU. With the lock only what both models have can be merged, the MLPs staying
those of the locked one; an attacker distills the nets back first, from the public base's MLPs or from untrained ones.
"""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockproofs.experiments.full_pipeline import (
    DEPTH,
    LENGTH,
    LOCK,
    SEED,
    UNDO,
    WINDOWS,
    Tensors,
    from_base,
    public,
    tokens,
)
from lockproofs.experiments.store import Cell, Experiment
from lockref.locks.distillation import Student, distill, dlr_student, swiglu_student
from lockref.merging.paths import point
from lockref.models import dlrnet, qwen3, skills
from lockref.models.evaluation import text_loss
from lockref.models.qwen3_config import Qwen3Config

OWN, OTHER = "add", "reverse"  # the expert that is locked, and the one it is merged with
ALPHAS = tuple(n / 10 for n in range(11))
PATHS = {
    "before the lock": "the expert as it was",
    "with the lock, all but MLPs": "tensors that both have on the path, the DLR-Nets throughout",
    "distilled back from the base": "SwiGLUs that start from the base's own",
    "distilled back, fresh MLPs": "SwiGLUs that start untrained",
}


def net(config: Qwen3Config) -> Student:
    """DLR-Nets at parameter parity."""
    d, m = config.hidden_size, config.intermediate_size
    return dlr_student(dlrnet.DLRConfig(d, dlrnet.parity(d, m, DEPTH, "rms").rank, DEPTH))


@cache
def locked() -> Tensors:
    """The expert with DLR-Nets in place of its MLPs."""
    tensors, config = public(OWN)
    return distill(tensors, config, swiglu_student(config), net(config), LOCK, *tokens(SEED)).model


@cache
def distilled_back(start: str) -> Tensors:
    """SwiGLUs again, by an attacker with half of the owner's steps or fewer."""
    config = public(OWN)[1]
    kind = from_base(config) if start == "base" else swiglu_student(config)
    return distill(locked(), config, net(config), kind, UNDO, *tokens(SEED + 1)).model


def loss(tensors: Tensors, config: Qwen3Config, block: qwen3.Block) -> float:
    """Nats per byte on held-out lines of both skills, half of each."""
    rng = np.random.default_rng([SEED, 43])
    rows = [skills.pack_lines(name, rng, WINDOWS // 2, LENGTH, held_out=True) for name in (OWN, OTHER)]
    return text_loss(tensors, np.concatenate(rows), config, block)


def measure(cell: Cell) -> dict[str, Any]:
    """Losses at every α."""
    (other, config), path = public(OTHER), cell["path"]
    kept: dict[str, NDArray[Any]] = {}
    block: qwen3.Block = qwen3.block
    match path:
        case "before the lock":
            own = public(OWN)[0]
        case "with the lock, all but MLPs":
            own, block = locked(), net(config).block
            kept = {n: w for n, w in own.items() if n not in other}
        case "distilled back from the base":
            own = distilled_back("base")
        case _:
            own = distilled_back("fresh")
    shared = [n for n in own if n not in kept]
    ends = {n: own[n] for n in shared}, {n: other[n] for n in shared}
    losses = [loss({**point(*ends, alpha), **kept}, config, block) for alpha in ALPHAS]
    return {"alphas": list(ALPHAS), "losses": losses}


EXPERIMENT = Experiment(
    name="dlr_paths",
    title="Loss on the straight path from a DLR-locked expert to another",
    seed=SEED,
    settings={
        "paths": PATHS, "experts": [OWN, OTHER], "depth": DEPTH, "windows": WINDOWS, "length": LENGTH,
        "lock_steps": [LOCK.modules.steps, LOCK.model.steps], "undo_steps": [UNDO.modules.steps, UNDO.model.steps],
    },
    cells=[{"path": name} for name in PATHS],
    measure=measure,
)  # fmt: skip
