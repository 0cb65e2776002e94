"""The PyTorch engine of `lockref lock`."""

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from lockcross.distill import distill, mean_loss
from lockcross.storage import model_bytes
from lockcross.team import Team, team
from lockref.locks.distillation import Distilled, Phases, Say
from lockref.locks.full import Composition
from lockref.locks.lock_memory import FLOAT, LOGITS, weights
from lockref.models import storage
from lockref.models.dlrnet import DLRConfig
from lockref.models.qwen3_config import Qwen3Config

Tensors = Mapping[str, NDArray[Any]]


class TorchEngine:
    """Distills on the team's devices; `parts` splits a step of phase 2, to bound its memory or to share it out."""

    def __init__(self, on: Team, parts: int | None) -> None:
        self.team, self.parts = on, parts if parts is not None else on.size

    @property
    def leads(self) -> bool:
        """Whether this process writes."""
        return self.team.leads

    def distill(
        self, tensors: Tensors, config: Qwen3Config, net: DLRConfig, phases: Phases, tokens: Any, test: Any, work: Path,
        say: Say,
    ) -> Distilled:  # fmt: skip
        """Both phases."""
        done = distill(tensors, config, net, phases, tokens, test, work, self.team, parts=self.parts, say=say)
        if self.team.device.type == "cuda":
            say(f"peak memory on the GPU {torch.cuda.max_memory_allocated(self.team.device) / 2**20:,.0f} MiB")
        return done

    def loss(self, tensors: Tensors, config: Qwen3Config, composition: Composition, rows: Any) -> float:
        """Mean loss in nats over rows of tokens."""
        return mean_loss(tensors, config, composition.net, rows, self.team.device)

    def memory(
        self, config: Qwen3Config, composition: Composition, phases: Phases, rows: tuple[int, int], length: int
    ) -> int:
        """Bytes at most on top of the loaded model, in this process: phase 2's eager step, of which it does one part.

        Activations of phase 1 lie on disk, and what of them the system keeps in memory is its own affair.
        """
        net = composition.net
        assert net is not None, "this engine distills DLR-Nets"
        step = min(phases.tokens, rows[0]) // self.parts or 1
        kept = model_bytes(config, step, length + 1, FLOAT, storage.dlr(net, fused=False))
        logits = FLOAT * LOGITS * step * length * config.vocab_size
        copies = 2 * FLOAT * weights(config, composition)  # NumPy's and torch's, teacher and student
        return kept + logits + copies

    def versions(self) -> dict[str, str]:
        """Of what decides the bits."""
        names = {"python": platform.python_version(), "numpy": np.__version__, "torch": str(torch.__version__)}
        return names | {"transformers": transformers.__version__}


@contextmanager
def torch_engine(device: str, parts: int | None) -> Iterator[TorchEngine]:
    """An engine on "cpu" or "cuda", alone or in the team that torchrun started. Raises ValueError as `team` does."""
    with team(device) as on:
        yield TorchEngine(on, parts)
