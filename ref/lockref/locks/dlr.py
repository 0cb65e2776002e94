"""DLR-Lock (arXiv 2605.10777): DLR-Nets in place of a model's MLPs. `distillation` trains them."""

from collections.abc import Callable, Mapping
from typing import Any

from lockref.models import dlrnet, qwen3
from lockref.models.dlrnet import DLRConfig
from lockref.models.qwen3_config import Qwen3Config

Network = Callable[[Mapping[str, Any], Any], Any]
PREFIX = "mlp."  # of a DLR-Net's tensors among those of its layer


def locked_block(net: DLRConfig, network: Network | None = None) -> qwen3.Block:
    """A Qwen3 layer whose MLP is a DLR-Net, its tensors called model.layers.i.mlp.blocks.l.a, .b and .gain.

    `network` computes it, (params, x) -> y; `dlrnet.forward` where left out.
    """
    run: Network = network or (lambda params, x: dlrnet.forward(params, x, net))

    def block(w: qwen3.Weights, x: Any, config: Qwen3Config) -> Any:
        x = x + qwen3.attention(w, qwen3.attention_norm(w, x, config), config)
        params = {n.removeprefix(PREFIX): v for n, v in w.items() if n.startswith(f"{PREFIX}blocks.")}
        if net.placement == "stream":
            return run(params, x)
        return x + run(params, qwen3.mlp_norm(w, x, config))

    return block


def assembled(tensors: Mapping[str, Any], nets: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """The model's tensors with the MLPs of the layers in `nets` replaced by those networks' tensors."""
    kept = {n: w for n, w in tensors.items() if not any(n.startswith(f"model.layers.{i}.{PREFIX}") for i in nets)}
    named = {f"model.layers.{i}.{PREFIX}{n}": w for i, params in nets.items() for n, w in params.items()}
    return {**kept, **named}
