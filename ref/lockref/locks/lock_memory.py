"""What distilling a lock holds at most, by closed forms, before it begins.

With n captured and t held-out tokens, and phase 2 on b tokens a step, on top of what is loaded:

    weights     flipped, distilled and rounded copies; networks with gradients and two moments
    capture     6 d (n + t) for streams and pairs of a layer, with the pairs before it, and one layer's arrays on n
    phase 2     4 d (n + t) still, and what reverse mode keeps for b tokens, six arrays of logits among it
    evaluation  a forward pass of a few rows
"""

import math

from lockref.locks.distillation import Phases
from lockref.locks.full import Composition
from lockref.models import dlrnet, qwen3, storage
from lockref.models.evaluation import BATCH
from lockref.models.qwen3_config import Qwen3Config

FLOAT = 4  # bytes
LOGITS = 6  # arrays (b, V) of phase 2: teacher, student, and the divergence between them


def numpy_peak(
    config: Qwen3Config, composition: Composition, phases: Phases, rows: tuple[int, int], length: int
) -> int:
    """Bytes at most on top of the loaded model for `rows` (to learn from, held out) of `length` tokens."""
    captured, held = min(phases.captured, rows[0]) * length, rows[1] * length
    d, layer = config.hidden_size, storage.qwen3_layer(config).per_token
    logits = storage.qwen3_forward(config).per_token + 2 * config.vocab_size
    working = min(BATCH, rows[1]) * length * logits
    if composition.net:
        kept = min(phases.tokens, rows[0]) * length * _kept(config, composition.net)
        pairs = d * (captured + held)
        working = max(working, 6 * pairs + layer * max(captured, held), 4 * pairs + kept)
    elif composition.series:  # ranges and deviations are taken in float64
        working = max(working, captured * max(layer, 5 * config.intermediate_size + 2 * d))
    return FLOAT * (working + weights(config, composition))


def weights(config: Qwen3Config, composition: Composition) -> int:
    """Numbers in the copies of the model, and in the networks that train."""
    model = sum(math.prod(shape) for shape in qwen3.expected_tensors(config).values())
    made = sum(math.prod(shape) for shape in composition.expected_tensors(config).values())
    nets = 4 * config.num_hidden_layers * composition.net.parameters if composition.net else 0
    return model + 2 * made + nets


def _kept(config: Qwen3Config, net: dlrnet.DLRConfig) -> int:
    """Elements per token of phase 2's reverse mode: the host frozen, the networks training; and one layer's arrays."""
    kept = (
        storage.qwen3_attention(config, trains=False)
        + storage.qwen3_mlp_norm(config, keeps_output=True)
        + storage.dlr(net, fused=True)
    )
    logits = LOGITS * config.vocab_size
    return kept.per_token * config.num_hidden_layers + logits + storage.qwen3_layer(config).per_token
