"""FULL-PARITY at a published size: memory of NumPy's forward pass, predicted, traced and counted by Linux.

A model of Qwen3-0.6B's shape, random weights in float32, 128 tokens, in a process of its own; about 3 GB. What PyTorch
computes and keeps on the same shape is in `full_size`.
"""

from typing import Any

from lockproofs import resident
from lockproofs.experiments import full_size
from lockproofs.experiments.store import Experiment
from lockproofs.hub_sizes import HUB


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """Bytes: of weights and of a forward pass as predicted, and as measured."""
    config, tokens = HUB[cell["model"]], cell["tokens"]
    return {
        "predicted_weights": resident.predicted_weights(config),
        "predicted_forward": resident.predicted_forward(config, tokens),
        **resident.forward_memory(config, tokens),
    }


EXPERIMENT = Experiment(
    name="full_memory",
    title="Memory of a forward pass at Qwen3-0.6B's shape",
    seed=full_size.SEED,
    settings={"dtype": "float32", "threads": 1},
    cells=[{"model": full_size.MODEL, "tokens": full_size.TOKENS}],
    measure=measure,
)
