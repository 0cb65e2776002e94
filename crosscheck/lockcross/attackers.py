"""Attackers on a DLR-Net as torch autograd functions: inversions, and recomputation from saved states.

They take a `DLRNet` as it is and return the same value and the same gradients from less storage. What they keep is
predicted by `lockref.models.storage`; `lockcross.storage` counts it. A `Run` goes through blocks in one of these ways.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import ceil, log
from typing import Any

import torch
from torch import Tensor

from lockcross.qwen3 import ACTIVATIONS, DLRBlock, DLRNet
from lockref.attacks.fixed_point import NotAContraction, lipschitz_bound
from lockref.autodiff.schedules import binomial_split

Run = Callable[[Sequence[DLRBlock], Tensor], Tensor]


def default(blocks: Sequence[DLRBlock], x: Tensor) -> Tensor:
    """x_L by default reverse mode."""
    for block in blocks:
        x = block(x)
    return x


def fused(blocks: Sequence[DLRBlock], x: Tensor) -> Tensor:
    """x_L, keeping x_l and h_l of every block: (d + r) L elements per token; σ(h_l) and 1/rms are computed again."""
    for block in blocks:
        x = _Fused.apply(x, block, *_weights([block]))  # type: ignore[no-untyped-call]
    return x


def inverted(blocks: Sequence[DLRBlock], x: Tensor) -> Tensor:
    """x_L, keeping h_l of every block and x_L itself: r L + d elements per token, whatever norm and activation."""
    out: Tensor = _Inverted.apply(x, blocks, *_weights(blocks))  # type: ignore[no-untyped-call]
    return out


def fixed_point(blocks: Sequence[DLRBlock], x: Tensor) -> Tensor:
    """x_L, keeping x_L alone: d elements per token. Raises NotAContraction for a block that has another solution."""
    out: Tensor = _FixedPoint.apply(x, blocks, *_weights(blocks))  # type: ignore[no-untyped-call]
    return out


def grouped(size: int, run: Run = fused) -> Run:
    """Keeps the state before every `size` blocks; each group is run again by `run` when it is needed."""

    def through(blocks: Sequence[DLRBlock], x: Tensor) -> Tensor:
        for start in range(0, len(blocks), size):
            x = recomputed(blocks[start : start + size], x, run)
        return x

    return through


def binomial(slots: int, run: Run = fused) -> Run:
    """`lockref.autodiff.schedules.binomial` as nested recomputation: `slots` states and one block's record.

    The first part is recomputed by the same schedule, while the second is under way with one slot less. Raises
    ValueError for less than one slot.
    """
    if slots < 1:
        raise ValueError(f"binomial: {slots} slots; a schedule needs at least 1")

    def through(blocks: Sequence[DLRBlock], x: Tensor) -> Tensor:
        if len(blocks) == 1:
            return run(blocks, x)
        middle = binomial_split(len(blocks), slots)
        x = recomputed(blocks[:middle], x, through)
        return binomial(max(1, slots - 1), run)(blocks[middle:], x)

    return through


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


class _Fused(torch.autograd.Function):
    """One block that keeps its input and h."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: DLRBlock, *weights: Tensor | None) -> Tensor:
        h = _hidden(block, x)
        ctx.block = block
        ctx.save_for_backward(x, h, *weights)
        return x + _added(block, h)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        (g,), (x, h, *weights) = cotangents, ctx.saved_tensors
        g, found = _pulled(ctx.block, x, h, weights, g)
        return g, None, *found


class _Inverted(torch.autograd.Function):
    """x_l = x_{l+1} − B_l σ(h_l), block by block on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Sequence[DLRBlock], *weights: Tensor | None) -> Tensor:
        hidden = []
        for block in blocks:
            hidden.append(_hidden(block, x))
            x = x + _added(block, hidden[-1])
        ctx.blocks = blocks
        ctx.save_for_backward(x, *hidden, *weights)
        return x

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        (g,), (x, *kept) = cotangents, ctx.saved_tensors
        hidden, weights = kept[: len(ctx.blocks)], kept[len(ctx.blocks) :]
        found: list[Tensor | None] = []
        for i, block in reversed(list(enumerate(ctx.blocks))):
            x = x - _added(block, hidden[i])
            g, some = _pulled(block, x, hidden[i], weights[3 * i : 3 * i + 3], g)
            found[:0] = some
        return g, None, *found


class _FixedPoint(torch.autograd.Function):
    """x_l is the limit of x ← x_{l+1} − B_l σ(h_l(x)), block by block on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Sequence[DLRBlock], *weights: Tensor | None) -> Tensor:
        for block in blocks:
            x = block(x)
            if not (q := _contraction(block, x)) < 1:
                raise NotAContraction(f"fixed_point: a block has Lipschitz bound {q:.3g}, not below 1; use inverted")
        ctx.blocks = blocks
        ctx.save_for_backward(x, *weights)
        return x

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        (g,), (x, *weights) = cotangents, ctx.saved_tensors
        found: list[Tensor | None] = []
        for i, block in reversed(list(enumerate(ctx.blocks))):
            x = _solved(block, x)
            g, some = _pulled(block, x, _hidden(block, x), weights[3 * i : 3 * i + 3], g)
            found[:0] = some
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


def _pulled(
    block: DLRBlock, x: Tensor, h: Tensor, weights: Sequence[Tensor | None], g: Tensor
) -> tuple[Tensor, list[Tensor | None]]:
    """Cotangents of a block's input, and of its a, b and gain, from its input, h and its output's cotangent."""
    a, b, gain = weights
    assert a is not None and b is not None, "every block has them; only the gain may be missing"
    with torch.enable_grad():
        h = h.detach().requires_grad_()
        active = ACTIVATIONS[block.config.activation](h)
        leaves = [t.detach().requires_grad_() for t in (x, gain) if t is not None]
        normed = _normed(block, *leaves)
    (gh,) = torch.autograd.grad(active, h, g @ b)
    ga, gb = _rows(gh).T @ _rows(normed.detach()), _rows(g).T @ _rows(active.detach())
    gx, *g_gain = torch.autograd.grad(normed, leaves, gh @ a)
    return g + gx, [ga, gb, g_gain[0] if g_gain else None]


def _solved(block: DLRBlock, after: Tensor) -> Tensor:
    """The x with x + B σ(h(x)) = x_{l+1}, to round-off: steps shrink by q < 1, so that they become that small."""
    x, unit = after, torch.finfo(after.dtype).eps / 2
    for _ in range(2 + ceil(log(unit) / log(max(_contraction(block, after), unit)))):
        before, x = x, after - _added(block, _hidden(block, x))
        if torch.all((x - before).norm(dim=-1) <= 2 * unit * x.norm(dim=-1)):
            break
    return x


def _contraction(block: DLRBlock, after: Tensor) -> float:
    """A Lipschitz bound of what the block adds, given its output."""
    weights = {"a": block.a, "b": block.b, **({} if block.gain is None else {"gain": block.gain})}
    return lipschitz_bound(
        {name: w.detach().cpu().numpy() for name, w in weights.items()}, after.detach().cpu().numpy(), block.config
    )


def _hidden(block: DLRBlock, x: Tensor) -> Tensor:
    return _normed(block, x, block.gain) @ block.a.T


def _normed(block: DLRBlock, x: Tensor, gain: Tensor | None = None) -> Tensor:
    if block.config.norm == "none":
        return x.view_as(x)  # not x itself: its gradient is asked for
    normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + block.config.eps)
    return normed if gain is None else gain * normed


def _added(block: DLRBlock, h: Tensor) -> Tensor:
    return ACTIVATIONS[block.config.activation](h) @ block.b.T


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
