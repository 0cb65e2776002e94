"""Running Qwen3 stacks, locked or not, differentiated in any way that `lockref.attacks.frontier` prices."""

import gc
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lockref.attacks.checkpointing import checkpointed
from lockref.attacks.frontier import MLPWay, Stack
from lockref.attacks.inversion import Network, inverted
from lockref.autodiff import Ledger, checkpoint, saved, vjp
from lockref.locks.dlr import locked_block
from lockref.models import dlrnet, qwen3
from lockref.models.dlrnet import DLRConfig
from lockref.models.qwen3_config import Qwen3Config

Arrays = dict[str, Any]


def network(config: DLRConfig, way: MLPWay, frozen: bool = False) -> Network:
    """The DLR-Net as an attacker runs it who goes that way; `frozen` says that its weights are constants."""
    if way.inverted:
        found = inverted(config, segments=way.segments, frozen=frozen)
    elif way.segments > 1:
        found = checkpointed(config, way.segments)
    else:
        found = lambda params, x: dlrnet.forward(params, x, config)  # noqa: E731
    return checkpoint(found) if way.recomputed else found


def _recomputed_block(w: qwen3.Weights, x: Any, config: Qwen3Config) -> Any:
    """A Qwen3 layer whose MLP is computed again in the sweep."""
    x = x + qwen3.attention(w, qwen3.attention_norm(w, x, config), config)
    mlp = {n: v for n, v in w.items() if n.startswith("mlp.")}
    return x + checkpoint(qwen3.mlp)(mlp, qwen3.mlp_norm(w, x, config))


@dataclass(frozen=True)
class Running:
    """A stack with weights, and the pass through it: run(trained, frozen, x), x (…, T, d)."""

    run: Callable[[Arrays, Arrays, Any], Any]
    trained: Arrays
    frozen: Arrays

    def gradients(self, x: Any) -> Any:
        """Of all that trains, and of x, for the cotangent x: one step's forward pass and sweep."""
        return vjp(self.run, self.trained, self.frozen, x, argnums=(0, 2))[1](x, release=True)

    def ledger(self, x: Any) -> Ledger:
        """What is kept between the two."""
        return saved(self.run, self.trained, self.frozen, x, argnums=(0, 2), parameters=(0, 1))


def running(
    stack: Stack, goal: str, way: MLPWay, rng: np.random.Generator, *, by_layer: bool = False, dtype: Any = np.float64
) -> Running:
    """The stack with random weights, differentiated that way; `by_layer` checkpoints every layer."""
    host = stack.config
    names = {n: s for n, s in qwen3.expected_tensors(host).items() if ".layers." in n}
    if stack.dlr is not None:
        names = {n: s for n, s in names.items() if ".mlp." not in n}
        for i in range(host.num_hidden_layers):
            nets = dlrnet.expected_tensors(stack.dlr)
            names |= {f"model.layers.{i}.mlp.{n}": s for n, s in nets.items()}
    weights = {n: (rng.standard_normal(s) * (0.2 / s[-1] ** 0.5)).astype(dtype) for n, s in names.items()}
    frozen = {n: w for n, w in weights.items() if goal == "attention" and (".mlp" in n or "norm" in n)}
    trained = {n: w for n, w in weights.items() if n not in frozen}
    if stack.dlr is not None:
        block = locked_block(stack.dlr, network(stack.dlr, way, goal == "attention"))
    else:
        block = _recomputed_block if way.recomputed else qwen3.block

    def layer(w: Mapping[str, Any], x: Any) -> Any:
        return block(w, x, host)

    step = checkpoint(layer) if by_layer else layer

    def run(trained: Arrays, frozen: Arrays, x: Any) -> Any:
        for i in range(host.num_hidden_layers):
            x = step(qwen3.layer_weights({**trained, **frozen}, i), x)
        return x

    return Running(run, trained, frozen)


def peak_bytes(run: Callable[[], object]) -> int:
    """Most memory that Python and NumPy held at once while run() computed, its result among it."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        run()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
