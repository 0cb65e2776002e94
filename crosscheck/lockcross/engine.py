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
from lockcross.team import Team, team
from lockref.locks.distillation import Distilled, Phases, Say
from lockref.locks.full import Composition
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

    def versions(self) -> dict[str, str]:
        """Of what decides the bits."""
        names = {"python": platform.python_version(), "numpy": np.__version__, "torch": str(torch.__version__)}
        return names | {"transformers": transformers.__version__}


@contextmanager
def torch_engine(device: str, parts: int | None) -> Iterator[TorchEngine]:
    """An engine on "cpu" or "cuda", alone or in the team that torchrun started. Raises ValueError as `team` does."""
    with team(device) as on:
        yield TorchEngine(on, parts)
