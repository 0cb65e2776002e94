"""Checkpointing attackers: a DLR-Net differentiated by a schedule, each step a group of blocks.

A recorded step keeps what default reverse mode keeps of its blocks, or with `inverted` what h-only inversion keeps.
What a schedule holds at most is `lockref.models.storage.dlr_scheduled`; what it computes, `schedules.cost`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lockref.attacks.inversion import Block, blocks, reversible
from lockref.autodiff import run_chain
from lockref.autodiff.schedules import Action
from lockref.models import dlrnet
from lockref.models.dlrnet import DLRConfig


def steps(config: DLRConfig, group: int) -> int:
    """Steps of a schedule over groups of `group` blocks: ⌈L / group⌉. Raises ValueError for an impossible group."""
    if not 1 <= group <= config.depth:
        raise ValueError(
            f"checkpointing: groups of {group} blocks in a net of {config.depth}; choose 1 … {config.depth}"
        )
    return -(-config.depth // group)


def scheduled(
    params: Mapping[str, Any],
    x: Any,
    cotangent: Any,
    config: DLRConfig,
    actions: Sequence[Action],
    *,
    group: int = 1,
    inverted: bool = False,
) -> tuple[dict[str, Any], Any]:
    """Cotangents of all weights and of x for a cotangent (…, tokens, d) of the output, following a schedule.

    `actions` is a schedule of `steps(config, group)` steps. Raises ValueError for shapes that do not fit, and
    where the schedule asks for a state that it does not hold.
    """
    dlrnet.require_shapes(params, np.shape(x), config)
    weights = blocks(params, config)
    parts = [weights[i * group : (i + 1) * group] for i in range(steps(config, group))]
    run = reversible(config) if inverted else _default(config)
    found, gx = run_chain(actions, run, parts, x, lambda _: cotangent)
    flat = [w for part in found for w in part]
    grads = {f"blocks.{i}.{name}": w[name] for i, w in enumerate(flat) for name in w}
    return grads, gx - cotangent if config.placement == "difference" else gx


def _default(config: DLRConfig) -> Any:
    def run(weights: Sequence[Block], x: Any) -> Any:
        part = DLRConfig(
            config.width, config.rank, len(weights), config.norm, config.activation, placement="output", eps=config.eps
        )
        params = {f"blocks.{i}.{name}": w[name] for i, w in enumerate(weights) for name in w}
        return dlrnet.forward(params, x, part)

    return run
