"""DLR-Lock (arXiv 2605.10777): putting DLR-Nets in place of a model's MLPs, by distillation in two phases.

The paper names a two-phase pipeline; its losses and settings were not readable to us, so these are ours:
  1. module by module: minimize ‖net(x) − mlp(x)‖² / ‖mlp(x)‖² on inputs captured from the running model;
  2. the assembled model: minimize the mean KL(original ‖ locked) of next-token distributions, DLR-Nets alone training.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockref.autodiff import ops
from lockref.locks.dlr_training import Arrays, Follow, Recipe, State, train
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


def captured(
    tensors: Mapping[str, Any], tokens: Any, config: Qwen3Config, placement: str = "difference"
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """For each layer what its network reads and should deliver, (tokens, d) each, on `tokens` (T,) or (B, T)."""
    for w, _, middle in qwen3.walk(tensors, tokens, config):
        h = qwen3.mlp_norm(w, middle, config)
        out = qwen3.mlp(w, h)
        x, y = (middle, middle + out) if placement == "stream" else (h, out)
        yield x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])


def relative_error(params: Mapping[str, Any], x: Any, y: Any, config: DLRConfig, scale: float | None = None) -> Any:
    """‖net(x) − y‖² / ‖y‖², or over `scale` · rows: the loss of phase 1. On the stream, y is compared as y − x."""
    gap = ops.subtract(dlrnet.forward(params, x, config), y)
    size = scale * len(y) if scale is not None else _target_size(x, y, config) * len(y)
    return ops.divide(ops.sum(ops.multiply(gap, gap)), size)


def _target_size(x: Any, y: Any, config: DLRConfig) -> float:
    """Mean squared length of a row of what the MLP adds: on the stream, what is added to it."""
    added = y - x if config.placement == "stream" else y
    return float(np.mean(np.sum(added * added, axis=-1)))


def warm_start(
    x: NDArray[Any], y: NDArray[Any], config: DLRConfig, rng: np.random.Generator, ridge: float = 1e-3
) -> Arrays:
    """Weights from least squares, block after block: random A_l, and the B_l that best adds what is still missing.

    Block l solves min_B ‖(y − x_l) − σ(h_l) Bᵀ‖² + ridge · tr(σ(h)ᵀσ(h))/r · ‖B‖², where "difference" counts y from
    x_0. Every block shares the work: it takes 1/(L − l) of what is missing.
    """
    params = dlrnet.initialize(config, rng, dtype=x.dtype)
    goal = x + y if config.placement == "difference" else y
    one = DLRConfig(config.width, config.rank, 1, config.norm, config.activation, "output", config.eps)
    state = x
    for i in range(config.depth):
        names = [n for n in params if n.startswith(f"blocks.{i}.")]
        eye = {f"blocks.0.{n.rsplit('.')[-1]}": params[n] for n in names}
        features = _features(eye, state, one)
        gram = features.T @ features
        gram[np.diag_indices_from(gram)] += ridge * np.trace(gram) / len(gram) + np.finfo(x.dtype).tiny
        missing = (goal - state) / (config.depth - i) ** 0.5
        params[f"blocks.{i}.b"] = np.linalg.solve(gram, features.T @ missing).T.astype(x.dtype)
        eye["blocks.0.b"] = params[f"blocks.{i}.b"]
        state = dlrnet.forward(eye, state, one)
    return params


def _features(params: Mapping[str, Any], x: Any, one: DLRConfig) -> Any:
    """σ(A N(x)) of a block, read off with B = identity on its first r outputs."""
    wide = dict(params)
    r, d = one.rank, one.width
    columns = []
    for start in range(0, r, d):  # d outputs at a time
        b = np.zeros((d, r), x.dtype)
        take = min(d, r - start)
        b[np.arange(take), start + np.arange(take)] = 1
        wide["blocks.0.b"] = b
        columns.append((dlrnet.forward(wide, x, one) - x)[:, :take])
    return np.concatenate(columns, axis=1)


def distill_module(
    x: NDArray[Any],
    y: NDArray[Any],
    config: DLRConfig,
    recipe: Recipe,
    *,
    rows: int = 2048,
    file: Path | None = None,
    stop_after: int | None = None,
    follow: Follow | None = None,
) -> State:
    """Phase 1 for one MLP: x and y (rows, d) of one float dtype, `rows` of them drawn for a step.

    Resumes from `file` bit for bit. Raises ValueError where shapes do not fit the network, or values are not finite.
    """
    _require_pairs(x, y, config)
    scale = _target_size(x, y, config)
    start = warm_start(x[: 4 * rows], y[: 4 * rows], config, np.random.default_rng(recipe.seed))

    def loss(params: Mapping[str, Any], rng: np.random.Generator) -> Any:
        chosen = rng.integers(0, len(x), min(rows, len(x)))
        return relative_error(params, x[chosen], y[chosen], config, scale)

    return train(
        loss, start, recipe, about=f"phase 1, {config}, {rows} of {_digest(x, y)}", file=file, stop_after=stop_after,
        follow=follow,
    )  # fmt: skip


def distill_model(
    tensors: Mapping[str, Any],
    nets: Mapping[int, Mapping[str, Any]],
    tokens: NDArray[Any],
    config: Qwen3Config,
    net: DLRConfig,
    recipe: Recipe,
    *,
    rows: int = 8,
    file: Path | None = None,
    stop_after: int | None = None,
    follow: Follow | None = None,
) -> State:
    """Phase 2: the networks of all layers together, `rows` rows of tokens (B, T) a step, everything else frozen.

    `tensors` are the original's, `nets` the DLR-Nets of phase 1 by layer. The result's tensors are named as in the
    assembled model. Raises ValueError where a layer has no network.
    """
    if missing := set(range(config.num_hidden_layers)) - set(nets):
        raise ValueError(f"distill_model: layers {sorted(missing)} have no DLR-Net; run phase 1 for each layer")
    whole = assembled(tensors, nets)
    trained = {n: w for n, w in whole.items() if f".{PREFIX}blocks." in n}
    frozen = {n: w for n, w in whole.items() if n not in trained}
    block = locked_block(net)

    def loss(params: Mapping[str, Any], rng: np.random.Generator) -> Any:
        batch = tokens[rng.integers(0, len(tokens), min(rows, len(tokens)))]
        return divergence({**frozen, **params}, qwen3.forward(tensors, batch, config), batch, config, block)

    about = f"phase 2, {net}, {rows} of {_digest(tokens)}"
    return train(loss, trained, recipe, about=about, file=file, stop_after=stop_after, follow=follow)


def divergence(params: Mapping[str, Any], want: Any, tokens: Any, config: Qwen3Config, block: qwen3.Block) -> Any:
    """Mean over positions of KL(softmax(want) ‖ softmax(logits)) in nats, for the original's logits `want`."""
    logits = qwen3.forward(params, tokens, config, block)
    p = _log_softmax(want)
    shifted = ops.subtract(logits, ops.max(logits, axis=-1, keepdims=True))
    log_q = ops.subtract(shifted, ops.log(ops.sum(ops.exp(shifted), axis=-1, keepdims=True)))
    each = ops.sum(ops.multiply(np.exp(p), ops.subtract(p, log_q)), axis=-1)
    return ops.mean(each)


def _log_softmax(x: Any) -> Any:
    shifted = x - np.max(x, axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


def _require_pairs(x: NDArray[Any], y: NDArray[Any], config: DLRConfig) -> None:
    if x.ndim != 2 or x.shape != y.shape or x.shape[1] != config.width or not len(x):
        raise ValueError(f"distill_module: x {x.shape}, y {y.shape}; want two arrays (rows, {config.width})")
    for name, values in (("x", x), ("y", y)):
        if not np.all(np.isfinite(values)):
            row = int(np.argmin(np.isfinite(values).all(axis=1)))
            raise ValueError(f"distill_module: {name} is not finite in row {row}; look at the model that made it")
    if not np.any(y):
        raise ValueError("distill_module: y is zero everywhere; a relative error means nothing then")


def _digest(*arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
