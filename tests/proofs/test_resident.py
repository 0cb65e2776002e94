"""Memory of a forward pass: the closed form against traced arrays and Linux's pages, and a pass that keeps more."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from lockproofs import resident
from lockproofs.claim import BadInput
from lockproofs.parity_cases import random_tensors
from lockref.models import qwen3
from lockref.models.qwen3_config import Qwen3Config

CONFIGS = {  # what decides the peak: vocabulary, MLP, heads
    "head": Qwen3Config(20_000, 256, 512, 2, 4, 2, 64),
    "mlp": Qwen3Config(50, 64, 4096, 2, 4, 2, 16),
    "attention": Qwen3Config(50, 64, 64, 3, 16, 8, 64),
    "attention, as many keys": Qwen3Config(50, 64, 64, 1, 4, 4, 128),
}
TOKENS = 256


def traced(config, forward=qwen3.forward):
    """Bytes at most in a forward pass whose RoPE tables are there already."""
    tensors = random_tensors(config, np.random.default_rng(0), np.float32)
    given = np.random.default_rng(1).integers(0, config.vocab_size, (1, TOKENS))
    qwen3.forward(tensors, given, config)
    tracemalloc.start()
    try:
        forward(tensors, given, config)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def predicted(config):
    return resident.predicted_forward(config, TOKENS) - 4 * TOKENS * config.head_dim


@pytest.mark.parametrize("name", CONFIGS)
def test_the_closed_form_is_what_arrays_take(name):
    gap = traced(CONFIGS[name]) - predicted(CONFIGS[name])
    assert 0 <= gap <= resident.OBJECTS, (
        f"traced − predicted: {gap} bytes, allowed for Python's objects {resident.OBJECTS}"
    )


def test_a_pass_that_keeps_every_layer_s_stream_is_seen():
    def hoarding(tensors, given, config):
        kept = []

        def block(w, x, config):
            kept.append(x)
            return qwen3.block(w, x, config)

        return qwen3.forward(tensors, given, config, block)

    assert traced(CONFIGS["head"], hoarding) - predicted(CONFIGS["head"]) > resident.OBJECTS


def test_pages_of_a_process_of_its_own():
    config = CONFIGS["head"]
    if not Path("/proc/self/clear_refs").exists():  # pages are counted on Linux only
        with pytest.raises(BadInput, match="measure on Linux"):
            resident.forward_memory(config, TOKENS)
        return
    found = resident.forward_memory(config, TOKENS)
    assert abs(found["traced"] - resident.predicted_forward(config, TOKENS)) <= resident.OBJECTS
    want = found["bare"] + resident.predicted_weights(config) + resident.predicted_forward(config, TOKENS)
    gap, allowed = found["peak"] - want, resident.pages_of(config) + resident.TOUCHED
    assert abs(gap) <= allowed, f"resident − predicted: {gap} bytes, allowed {allowed}"


def test_a_child_that_fails_is_one_line():
    with pytest.raises(BadInput, match="child process failed"):
        resident.forward_memory(CONFIGS["head"], 0)
