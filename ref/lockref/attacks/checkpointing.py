"""Checkpointing attackers: a DLR-Net differentiated by a schedule, each step a group of blocks.

A recorded step keeps what default reverse mode keeps of its blocks, or with `inverted` what h-only inversion keeps.
What a schedule holds at most is `lockref.models.storage.dlr_scheduled`; what it computes, `schedules.cost`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lockref.attacks.inversion import Block, Network, blocks, reversible, segment_bounds
from lockref.autodiff import checkpoint, ops, run_chain
from lockref.autodiff.schedules import Action, binomial_split
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


def checkpointed(config: DLRConfig, segments: int) -> Network:
    """The DLR-Net of `config` as (params, x) -> y, of which the tape keeps the state before each segment of blocks.

    The sweep computes the rest again, one segment at a time: (S − 1) d between the passes besides x_0, one more
    forward pass. Raises ValueError for tensors that do not fit and for impossible segments.
    """
    bounds, run = segment_bounds(config, segments), checkpoint(_default(config))

    def network(params: Mapping[str, Any], x: Any) -> Any:
        dlrnet.require_shapes(params, np.shape(x), config)
        weights, out = blocks(params, config), x
        for start, stop in bounds:
            out = run(weights[start:stop], out)
        return ops.subtract(out, x) if config.placement == "difference" else out

    return network


def nested(config: DLRConfig, slots: int) -> Network:
    """The DLR-Net of `config` as (params, x) -> y, differentiated by `schedules.binomial` as nested recomputation.

    The first part of the blocks is computed again by the same schedule, the second runs with one slot less; a single
    block is recorded. The tape keeps the most at the end of the forward pass. Raises ValueError for tensors that do not
    fit and for less than one slot.
    """
    if slots < 1:
        raise ValueError(f"checkpointing: {slots} slots; a schedule needs at least 1")
    record = _default(config)

    def through(slots: int) -> Any:
        def run(weights: Sequence[Block], x: Any) -> Any:
            if len(weights) == 1:
                return record(weights, x)
            middle = binomial_split(len(weights), slots)
            x = checkpoint(run)(weights[:middle], x)
            return through(max(1, slots - 1))(weights[middle:], x)

        return run

    def network(params: Mapping[str, Any], x: Any) -> Any:
        dlrnet.require_shapes(params, np.shape(x), config)
        out = through(slots)(blocks(params, config), x)
        return ops.subtract(out, x) if config.placement == "difference" else out

    return network


def _default(config: DLRConfig) -> Any:
    def run(weights: Sequence[Block], x: Any) -> Any:
        part = DLRConfig(
            config.width, config.rank, len(weights), config.norm, config.activation, placement="output", eps=config.eps
        )
        params = {f"blocks.{i}.{name}": w[name] for i, w in enumerate(weights) for name in w}
        return dlrnet.forward(params, x, part)

    return run
