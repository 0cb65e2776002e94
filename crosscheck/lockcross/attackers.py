"""Attackers on a DLR-Net as torch autograd functions: h-only inversion, and recomputation from segment starts.

They take a `DLRNet` as it is and return the same value and the same gradients from less storage. What they keep is
predicted by `lockref.models.storage`; `lockcross.storage` counts it.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lockcross.qwen3 import ACTIVATIONS, DLRBlock, DLRNet

Run = Callable[[Sequence[DLRBlock], Tensor], Tensor]


def default(blocks: Sequence[DLRBlock], x: Tensor) -> Tensor:
    """x_L by default reverse mode."""
    for block in blocks:
        x = block(x)
    return x


def inverted(blocks: Sequence[DLRBlock], x: Tensor) -> Tensor:
    """x_L, keeping h_l of every block and x_L itself: r L + d elements per token, whatever norm and activation."""
    out: Tensor = _Inverted.apply(x, blocks, *_weights(blocks))  # type: ignore[no-untyped-call]
    return out


def recomputed(blocks: Sequence[DLRBlock], x: Tensor, run: Run = default) -> Tensor:
    """x_L, keeping x alone; `run` computes the rest again when it is needed."""
    out: Tensor = _Recomputed.apply(x, blocks, run, *_weights(blocks))  # type: ignore[no-untyped-call]
    return out


def segmented(net: DLRNet, x: Tensor, segments: int = 1, run: Run = default) -> Tensor:
    """The net's y; with more than one segment only their starts are kept, and each is run again by `run` when needed.

    Raises ValueError for an impossible number of segments.
    """
    depth, blocks = net.config.depth, [b for b in net.blocks if isinstance(b, DLRBlock)]
    if not 1 <= segments <= depth:
        raise ValueError(f"segmented: {segments} segments of {depth} blocks; choose 1 … {depth}")
    out = x
    for start, stop in pairwise(depth * i // segments for i in range(segments + 1)):
        part = blocks[start:stop]
        out = run(part, out) if segments == 1 else recomputed(part, out, run)
    return out - x if net.config.placement == "difference" else out


def _weights(blocks: Sequence[DLRBlock]) -> list[Tensor | None]:
    """a, b and gain (None where there is none) of every block, one after the other."""
    return [w for block in blocks for w in (block.a, block.b, block.gain)]


class _Inverted(torch.autograd.Function):
    """x_l = x_{l+1} − B_l σ(h_l), block by block on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Sequence[DLRBlock], *weights: Tensor | None) -> Tensor:
        hidden = []
        for block in blocks:
            hidden.append(_normed(block, x, block.gain) @ block.a.T)
            x = x + _added(block, hidden[-1])
        ctx.blocks = blocks
        ctx.save_for_backward(x, *hidden, *weights)
        return x

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        (g,), (x, *kept) = cotangents, ctx.saved_tensors
        hidden, flat = kept[: len(ctx.blocks)], kept[len(ctx.blocks) :]
        weights = [flat[i : i + 3] for i in range(0, len(flat), 3)]
        found: list[Tensor | None] = []
        for block, h, (a, b, gain) in zip(ctx.blocks[::-1], hidden[::-1], weights[::-1], strict=True):
            x = x - _added(block, h)
            with torch.enable_grad():
                h = h.detach().requires_grad_()
                active = ACTIVATIONS[block.config.activation](h)
                leaves = [t.detach().requires_grad_() for t in (x, gain) if t is not None]
                normed = _normed(block, *leaves)
            (gh,) = torch.autograd.grad(active, h, g @ b)
            ga, gb = _rows(gh).T @ _rows(normed.detach()), _rows(g).T @ _rows(active.detach())
            gx, *g_gain = torch.autograd.grad(normed, leaves, gh @ a)
            g = g + gx
            found[:0] = [ga, gb, g_gain[0] if g_gain else None]
        return g, None, *found


class _Recomputed(torch.autograd.Function):
    """A segment of which only the input is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Sequence[DLRBlock], run: Run, *weights: Tensor | None) -> Tensor:
        ctx.blocks, ctx.run = blocks, run
        ctx.save_for_backward(x, *weights)
        return run(blocks, x)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        (g,), (x, *weights) = cotangents, ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            out = ctx.run(ctx.blocks, x)
        live = [w for w in weights if w is not None and w.requires_grad]
        gx, *grads = torch.autograd.grad(out, [x, *live], g)
        each = iter(grads)
        return gx, None, None, *(next(each) if w is not None and w.requires_grad else None for w in weights)


def _normed(block: DLRBlock, x: Tensor, gain: Tensor | None = None) -> Tensor:
    if block.config.norm == "none":
        return x.view_as(x)  # not x itself: its gradient is asked for
    normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + block.config.eps)
    return normed if gain is None else gain * normed


def _added(block: DLRBlock, h: Tensor) -> Tensor:
    return ACTIVATIONS[block.config.activation](h) @ block.b.T


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
