"""What torch keeps for a backward pass, counted as the ledger counts: distinct buffers, those owned elsewhere apart.

Every tensor that autograd saves goes through `torch.autograd.graph.saved_tensors_hooks`. It is filed under the
operation that saved it and the module that ran it, and it counts for as long as the graph holds it. A storage counts
once however many tensors look at it; parameters and inputs are owned elsewhere. On the meta device nothing is
allocated and the count is the same.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lockref.models import storage
from lockref.models.qwen3_config import Qwen3Config


@dataclass(frozen=True)
class Kept:
    """One buffer that the graph holds: who saved it first, its bytes."""

    module: str
    operation: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


class _Handle:
    """What the graph holds instead of a saved tensor: it dies when the graph lets go."""

    def __init__(self, tensor: Tensor, module: str = "", operation: str = "") -> None:
        self.tensor = tensor.detach()  # with its history, a saved result would keep itself alive
        self.module, self.operation = module, operation


class _Naming(TorchFunctionMode):
    """Knows the function of torch's interface that is running."""

    running = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before, self.running = self.running, getattr(func, "__name__", str(func))
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.running = before


def kept(f: Callable[[], Any], owned: Iterable[Tensor], model: nn.Module | None = None) -> tuple[Kept, ...]:
    """The buffers that the graph of f() holds once it has run, in the order in which they were saved.

    `owned` are parameters and inputs, whose storages are not counted; `model` gives modules their names.
    """
    naming, path, handles = _Naming(), [""], weakref.WeakSet[_Handle]()
    order: list[weakref.ref[_Handle]] = []

    def pack(tensor: Tensor) -> _Handle:
        handle = _Handle(tensor, path[-1], naming.running)
        handles.add(handle)
        order.append(weakref.ref(handle))
        return handle

    with ExitStack() as stack:
        stack.enter_context(_named_modules(model, path))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda handle: handle.tensor))
        stack.enter_context(naming)
        out = f()
    seen = {_identity(t) for t in owned}
    rows = []
    for handle in (ref() for ref in order):
        if handle is not None and _identity(handle.tensor) not in seen:
            seen.add(_identity(handle.tensor))
            t = handle.tensor
            size = t.untyped_storage().nbytes()
            rows.append(Kept(handle.module, handle.operation, tuple(t.shape), str(t.dtype).split(".")[1], size))
    del out
    return tuple(rows)


def most_kept(f: Callable[[], Any], owned: Iterable[Tensor]) -> int:
    """The most bytes of distinct buffers that graphs hold at one time while f() runs, its backward pass included."""
    ours, users = {_identity(t) for t in owned}, Counter[int]()
    now = most = 0

    def pack(tensor: Tensor) -> _Handle:
        nonlocal now, most
        handle, key, size = _Handle(tensor), _identity(tensor), tensor.untyped_storage().nbytes()
        if key not in ours:
            now += size * (users[key] == 0)
            users[key] += 1
            most = max(most, now)
            weakref.finalize(handle, release, key, size)
        return handle

    def release(key: int, size: int) -> None:
        nonlocal now
        users[key] -= 1
        now -= size * (users[key] == 0)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda handle: handle.tensor):
        f()
    return most


def total(rows: Iterable[Kept]) -> int:
    """Bytes of all rows."""
    return sum(row.bytes for row in rows)


def _identity(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def _named_modules(model: nn.Module | None, path: list[str]) -> Iterator[None]:
    def leave(*_: Any) -> None:
        path.pop()

    hooks = []
    for name, module in model.named_modules() if model is not None else ():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: path.append(name)))
        hooks.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def model_bytes(config: Qwen3Config, batch: int, tokens: int, itemsize: int, mlp: storage.Storage) -> int:
    """Closed form of what the official model keeps for its loss, eager, everything training, `tokens` − 1 predictions.

    `mlp` is what a layer's MLP keeps besides its input. Per token of a layer: the stream, 1/rms, the unit and the
    normed stream, for two norms; q before its norm, its unit, rotated; k likewise, but copied for every query head when
    rotated; v copied; the heads' result; and H rows of the attention matrix. Besides: the last norm, ln p of every
    token, two rotary tables. What no array of the engine stands for is `unnamed`.
    """
    d, c, length = config.hidden_size, config.head_dim, tokens - 1
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    attention = 3 * d + 1 + (2 * c + 1) * (heads + groups) + c * heads * 4 + heads * length
    layer = attention + 3 * d + 1 + mlp.per_token
    every = batch * length * (config.num_hidden_layers * layer + 3 * d + 1 + config.vocab_size)
    return (every + config.num_hidden_layers * mlp.fixed + 2 * length * c) * itemsize


def unnamed(batch: int, tokens: int, itemsize: int) -> dict[str, int]:
    """Bytes that torch's cross entropy keeps and the engine does not: plain data costs nothing there."""
    copied = 8 * batch * (tokens - 1) if batch > 1 else 0  # one row of tokens is a view of the input
    return {"int64 targets, copied by flatten": copied, "total weight of cross entropy, a scalar": itemsize}


def casts(
    config: Qwen3Config, batch: int, tokens: int, *, first: str = "embedding", stream: bool = False
) -> dict[str, int]:
    """Bytes that the official modules keep in bfloat16 beyond two for each number: what they compute in float32.

    `first` is the earliest part that trains, "embedding", "attention" or "MLP"; nothing before it is kept. With
    `stream` a layer has one norm, not two. Raises KeyError for another `first`.
    """
    length, layers = tokens - 1, config.num_hidden_layers
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    skipped_norms, skipped_attentions = {"embedding": (0, 0), "attention": (1, 0), "MLP": (2 - stream, 1)}[first]
    norms = layers * (2 - stream) + 1 - skipped_norms
    attentions = layers - skipped_attentions
    of_heads = (heads + groups) * (config.head_dim + 1)
    return {
        "norms' inputs and 1/rms in float32": 2 * batch * length * (norms * (config.hidden_size + 1)
                                                                    + attentions * of_heads),
        "softmax in float32, beside its copy": 4 * batch * attentions * heads * length**2,
    }  # fmt: skip


def trainable(model: nn.Module, trains: Set[str] | None) -> None:
    """Lets parameters whose name contains one of `trains` train and freezes the others; None trains all."""
    for name, p in model.named_parameters():
        p.requires_grad_(trains is None or any(part in name for part in trains))


def peak(f: Callable[[], Any], device: torch.device) -> int | None:
    """`torch.cuda.max_memory_allocated` over f(), above what was allocated before; None on any other device."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    f()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device)) - before
