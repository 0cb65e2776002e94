"""FULL-PARITY at a published size: a model of Qwen3-0.6B's shape, random weights and gains, in float32 on both sides.

Needs the crosscheck extra, about 8 GB of memory and some minutes. The tolerance is sampled in float64.
"""

import resource
from typing import Any

import numpy as np

from lockproofs.experiments.store import Experiment
from lockproofs.hub_sizes import HUB
from lockproofs.parity_cases import distance, random_tensors
from lockproofs.rounding import UNIT32, rounding_error
from lockref.models import qwen3, storage

MODEL, TOKENS, SEED, DRAWS = "qwen3-0.6b", 128, 0, 2


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """Logits of both and what round-off allows between them; or the bytes that torch keeps, allocated and not."""
    found = {"forward": _forward, "stored bytes": _stored_bytes}[cell["what"]]()
    return {**found, "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def tokens() -> Any:
    """One row, its tokens from all of the vocabulary."""
    return np.random.default_rng([SEED, 1]).integers(0, HUB[MODEL].vocab_size, (1, TOKENS))


def _forward() -> dict[str, Any]:
    from lockcross import parity

    config, given = HUB[MODEL], tokens()
    tensors = random_tensors(config, np.random.default_rng(SEED), np.float32)
    got = qwen3.forward(tensors, given, config)
    want = parity.forward(config, tensors, given)
    for name in tensors:  # one after the other: there is no room for both sets of weights and a model
        tensors[name] = tensors[name].astype(np.float64)
    allowed = rounding_error(
        lambda w: qwen3.forward(w, given, config), tensors, unit=UNIT32, rng=np.random.default_rng(SEED), draws=DRAWS
    )
    size = float(np.max(np.abs(want)))
    return {
        "parameters": sum(w.size for w in tensors.values()),
        "tensors": len(tensors),
        "logits": distance(got, want),
        "allowed_logits": 2 * allowed / size,
        "largest_logit": size,
    }


def _stored_bytes() -> dict[str, Any]:
    from lockcross import parity
    from lockcross import storage as torch_storage

    config = HUB[MODEL]
    tensors = random_tensors(config, np.random.default_rng(SEED), np.float32)
    rows = parity.stored_bytes(config, tensors, None, tokens(), None, "float32")
    return {
        "torch_bytes": torch_storage.total(rows),
        "meta_bytes": parity.published_bytes(config, TOKENS),
        "ledger_bytes": torch_storage.model_bytes(
            config, 1, TOKENS, 4, storage.swiglu(config.intermediate_size, fused=False)
        ),
        "unnamed_bytes": sum(torch_storage.unnamed(1, TOKENS, 4).values()),
    }


EXPERIMENT = Experiment(
    name="full_size",
    title="NumPy and PyTorch on a model of Qwen3-0.6B's shape",
    seed=SEED,
    settings={"model": MODEL, "tokens": TOKENS, "draws": DRAWS, "dtype": "float32"},
    cells=[{"what": "forward"}, {"what": "stored bytes"}],
    measure=measure,
)
