"""What each MLP of a model sees: the original runs layer by layer, its residual stream in a file."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from lockcross.qwen3 import DLRNet, skeleton
from lockref.models.dlrnet import DLRConfig
from lockref.models.qwen3 import layer_weights
from lockref.models.qwen3_config import Qwen3Config

Tensors = Mapping[str, NDArray[Any]]

BATCH = 8  # rows of tokens at once
STRIDE = 2048  # rows of activations at once, where nothing is trained


@dataclass(frozen=True)
class Seen:
    """A layer's MLP on the original's activations: inputs (rows, d) on disk, the first `train` to learn from.

    `target` computes what a network in the MLP's place should deliver.
    """

    inputs: NDArray[np.float32]
    train: int
    target: Callable[[Tensor], Tensor]
    device: torch.device

    def pair(self, chosen: Any) -> tuple[Tensor, Tensor]:
        """Input and target of the chosen rows."""
        x = torch.from_numpy(np.array(self.inputs[chosen])).to(self.device)
        return x, self.target(x)

    @torch.no_grad()
    def errors(self, params: Tensors, net: DLRConfig) -> tuple[float, float]:
        """Held out: ‖net(x) − y‖² / ‖what the MLP adds‖², and the mean over rows of the same quotient."""
        module = DLRNet(net).to(self.device)
        module.load_state_dict({n: torch.from_numpy(w) for n, w in params.items()})
        gap, size = [], []
        for at in range(self.train, len(self.inputs), STRIDE):
            x, y = self.pair(slice(at, at + STRIDE))
            gap.append((module(x) - y).double().pow(2).sum(-1))
            size.append(added(x, y, net).double().pow(2).sum(-1))
        gaps, sizes = torch.cat(gap), torch.cat(size)
        return float(gaps.sum() / sizes.sum()), float((gaps / sizes).mean())


def added(x: Tensor, y: Tensor, net: DLRConfig) -> Tensor:
    """What the MLP adds: on the stream, y − x."""
    return y - x if net.placement == "stream" else y


def captured(
    tensors: Tensors, config: Qwen3Config, on_stream: bool, tokens: NDArray[Any], test: NDArray[Any], folder: Path,
    device: torch.device, wanted: Sequence[int],
) -> Iterator[tuple[int, Seen]]:  # fmt: skip
    """The wanted layers in order, each with what its MLP sees on `tokens` (rows, T), to learn from, and on `test`.

    In memory stand one layer and a batch; in `folder`, which is gone in the end, the residual stream and one layer's
    inputs. Raises ValueError, naming the layer, where activations are not finite.
    """
    if not wanted:
        return
    rows = np.concatenate([tokens, test])
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "stream.npy", folder / "inputs.npy"]
    shape = (*rows.shape, config.hidden_size)
    stream, inputs = (np.lib.format.open_memmap(file, "w+", np.float32, shape) for file in files)
    model = skeleton(config)
    model.config._attn_implementation = "sdpa"  # causal without a mask, and without a T × T matrix in memory
    rotary = Qwen3RotaryEmbedding(model.config).to(device)
    positions = torch.arange(rows.shape[1], device=device)[None]
    for at in range(0, len(rows), BATCH):
        stream[at : at + BATCH] = tensors["model.embed_tokens.weight"][rows[at : at + BATCH]]
    for i in range(max(wanted) + 1):
        layer = model.model.layers[i]
        own = {n: torch.from_numpy(np.asarray(w)).to(device) for n, w in layer_weights(tensors, i).items()}
        layer.load_state_dict(own, assign=True)
        watch = Watch(layer, on_stream)
        for at in range(0, len(rows), BATCH):
            x = torch.from_numpy(stream[at : at + BATCH]).to(device)
            out, seen = watch(x, position_embeddings=rotary(x, positions))
            if not torch.isfinite(out).all():
                raise ValueError(f"layer {i}: its activations are not finite; look at the model that made them")
            stream[at : at + BATCH], inputs[at : at + BATCH] = out.cpu().numpy(), seen.cpu().numpy()
        if i in wanted:
            yield i, Seen(inputs.reshape(-1, config.hidden_size), tokens.size, watch.target, device)
        layer.to("meta")
    shutil.rmtree(folder)


class Watch:
    """A layer that also says what its MLP reads; on the stream, the MLP is taken with its norm and its addition."""

    def __init__(self, layer: Any, on_stream: bool) -> None:
        self.layer, self.on_stream = layer, on_stream
        self.read: list[Tensor] = []
        entry = layer.post_attention_layernorm if on_stream else layer.mlp
        entry.register_forward_pre_hook(lambda _, given: self.read.append(given[0]))

    @torch.no_grad()
    def __call__(self, x: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
        """The next stream, and what the MLP read."""
        self.read.clear()
        out = self.layer(x, **given)
        return out, self.read[0]

    @torch.no_grad()
    def target(self, x: Tensor) -> Tensor:
        """What a network in the MLP's place should deliver."""
        norm = self.layer.post_attention_layernorm
        y: Tensor = x + self.layer.mlp(norm(x)) if self.on_stream else self.layer.mlp(x)
        return y
