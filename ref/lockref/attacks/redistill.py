"""Re-distillation: the defender's own recipe backwards. SwiGLUs learn from the DLR-Nets that once learned from SwiGLUs.

The attacker knows the lock (arXiv 2605.10777), has the released weights and unlabeled tokens, and neither the original
model nor the data that it was trained on. Costs are counted scalar operations; the optimizer's few operations per
weight and step, equal on both sides, are left out.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockref.attacks.result import AttackResult
from lockref.autodiff.count import Counter, wrap
from lockref.autodiff.tape import Tape
from lockref.locks.distillation import (
    Phases,
    Say,
    Student,
    captured,
    distill,
    divergence,
    dlr_student,
    row_error,
    swiglu_student,
)
from lockref.locks.dlr import PREFIX, assembled
from lockref.models import qwen3
from lockref.models.dlrnet import DLRConfig
from lockref.models.qwen3_config import Qwen3Config


def redistill(
    tensors: Mapping[str, Any],
    config: Qwen3Config,
    net: DLRConfig,
    phases: Phases,
    tokens: NDArray[Any],
    test: NDArray[Any],
    *,
    work: Path | None = None,
    say: Say = lambda line: None,
) -> AttackResult:
    """SwiGLUs of the host's size in place of the DLR-Nets `net`, module by module, then on the locked model's logits.

    Learns from `tokens` (rows, T), `test` is held out. The guess is a plain Qwen3 model. Found: "errors" and
    "row_errors" of the modules against the DLR-Nets, and "modules", the model after phase 1. Raises what `distill`
    raises; with the directory `work` it resumes.
    """
    found = distill(
        tensors, config, dlr_student(net), swiglu_student(config), phases, tokens, test, work=work, say=say
    )  # fmt: skip
    return AttackResult(
        "redistill", ("released weights", "the lock's structure", "unlabeled tokens"), (found.model,),
        {"errors": found.errors, "row_errors": found.row_errors, "modules": found.modules},
    )  # fmt: skip


def cost(
    tensors: Mapping[str, Any], config: Qwen3Config, teacher: Student, student: Student, phases: Phases, length: int
) -> int:
    """Scalar operations of `distill` with these arguments on rows of `length` tokens: one step of each kind is counted.

    Capturing is a forward pass of the teacher's model; a step of phase 1 is loss and gradient of one module, a step of
    phase 2 a forward pass of the teacher, and loss and gradient of the whole student.
    """
    rng = np.random.default_rng(0)
    row = rng.integers(0, config.vocab_size, (1, length))
    x, y = next(iter(captured(tensors, row, config, teacher=teacher, on_stream=student.on_stream)))
    chosen = rng.integers(0, len(x), phases.activations)
    start = student.start(rng, x.dtype)
    module = _step(lambda params, _: row_error(params, x[chosen], y[chosen], student), start, {})

    counter = Counter()
    wrapped = {name: wrap(w, counter) for name, w in tensors.items()}
    logits = np.asarray(qwen3.forward(wrapped, row, config, teacher.block))
    taught = counter.operations  # one row

    whole = assembled(tensors, dict.fromkeys(range(config.num_hidden_layers), start))
    trained = {n: w for n, w in whole.items() if f".{PREFIX}" in n}
    frozen = {n: w for n, w in whole.items() if n not in trained}
    healed = _step(lambda p, f: divergence({**f, **p}, logits, row, config, student.block), trained, frozen)

    phase1 = phases.captured * taught + config.num_hidden_layers * phases.modules.steps * module
    return phase1 + phases.model.steps * phases.tokens * (taught + healed)


def _step(loss: Callable[[Any, Any], Any], params: Mapping[str, Any], frozen: Mapping[str, Any]) -> int:
    """Operations of loss(params, frozen) and of its gradient for params."""
    counter = Counter()
    values = [wrap(w, counter) for w in params.values()]
    tape = Tape(values)
    held = {name: wrap(w, counter) for name, w in frozen.items()}
    out = loss(dict(zip(params, tape.variables(values), strict=True)), held)
    tape.sweep({out.node: wrap(np.ones((), out.value.dtype), counter)}, release=True)
    return counter.operations
