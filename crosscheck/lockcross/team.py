"""The processes that share one distillation: one, or those that torchrun started.

Work is shared out so that the result has the same bits whatever the number of processes: a layer is trained by one
process from beginning to end, and gradients of several batches are added in the order of the batches.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(days=30)  # one process may train a layer for long while the others wait for it


@dataclass(frozen=True)
class Team:
    """This process's place among `size`, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def owns(self, index: int) -> bool:
        """Whether the work of that index is this process's own."""
        return index % self.size == self.rank

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.size > 1:
            dist.barrier()

    def ordered_sum(self, part: Callable[[int], Tensor], count: int) -> Tensor:
        """part(0) + part(1) + … + part(count − 1), added in this order on every process; each part is made once.

        All parts have one shape. Holds one part of each process at a time.
        """
        total: Tensor | None = None
        for first in range(0, count, self.size):
            mine = first + self.rank
            own = part(mine) if mine < count else None
            for one in self._gathered(own, total)[: count - first]:
                total = one.clone() if total is None else total.add_(one)
        assert total is not None, "count is at least 1"
        return total

    def _gathered(self, own: Tensor | None, like: Tensor | None) -> list[Tensor]:
        """Every process's tensor in the order of ranks; a process that has none left sends zeros."""
        if self.size == 1:
            assert own is not None
            return [own]
        if own is None:  # in a first round everybody has a part, unless there are fewer parts than processes
            assert like is not None, "there are at least as many parts as processes"
            own = torch.zeros_like(like)
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own)
        return found


@contextmanager
def team(device: str) -> Iterator[Team]:
    """The team that the environment (torchrun's variables) describes; a process alone without them.

    `device` is "cpu" or "cuda"; on GPUs each process of a machine takes its own. Raises ValueError for a device
    that is not there.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} is unknown; choose cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: torch finds no GPU; choose cpu or install a torch build for your GPU")
    size = int(os.environ.get("WORLD_SIZE", "1"))
    place = torch.device(device, int(os.environ.get("LOCAL_RANK", "0"))) if device == "cuda" else torch.device(device)
    if device == "cuda":
        torch.cuda.set_device(place)
    if size == 1:
        yield Team(0, 1, place)
        return
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Team(dist.get_rank(), size, place)
    finally:
        dist.destroy_process_group()
