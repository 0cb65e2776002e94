"""The models, locks and seeds on which NumPy and PyTorch are compared, and NumPy's answers: no torch here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lockref.autodiff import value_and_grad
from lockref.locks import attention, taylor_model
from lockref.locks.bases import CHEBYSHEV
from lockref.locks.dlr import assembled, locked_block
from lockref.models import dlrnet, qwen3
from lockref.models.checkpoint_io import load_checkpoint
from lockref.models.dlrnet import DLRConfig
from lockref.models.qwen3_config import Qwen3Config
from lockref.models.zoo import ZOO, zoo_path

Tensors = Mapping[str, NDArray[Any]]
Answer = dict[str, Any]

MODELS = ("tiny", "tiny tied", *ZOO)
LOCKS = ("none", "projection", "dlr", "dlr on the stream", "taylor", "projection and dlr")
PLANES = 3  # flipped in every key head
ORDER = 8  # of the Chebyshev form


@dataclass(frozen=True)
class Case:
    """A locked model and tokens (B, T); `mlp` says what stands for the MLPs: a net, (order, basis), or nothing."""

    config: Qwen3Config
    tensors: dict[str, NDArray[Any]]
    tokens: NDArray[np.int64]
    mlp: DLRConfig | tuple[int, str] | None
    block: qwen3.Block

    @property
    def net(self) -> DLRConfig | None:
        return self.mlp if isinstance(self.mlp, DLRConfig) else None

    def logits(self, tensors: Tensors) -> Any:
        """Of these tokens."""
        return qwen3.forward(tensors, self.tokens, self.config, self.block)

    def loss(self, tensors: Tensors) -> Any:
        """In nats."""
        return qwen3.loss(tensors, self.tokens, self.config, self.block)

    def loss_and_gradients(self, tensors: Tensors) -> Any:
        """(loss, gradient of every tensor)."""
        return value_and_grad(self.loss)(tensors)

    def answer(self, dtype: Any = np.float64) -> Answer:
        """logits, loss and gradients, all computed in `dtype`."""
        tensors = {n: w.astype(dtype) for n, w in self.tensors.items()}
        loss, grads = self.loss_and_gradients(tensors)
        return {"logits": self.logits(tensors), "loss": float(loss), "gradients": grads}


@lru_cache(maxsize=2)
def case(model: str, lock: str) -> Case:
    """The same for the same names. Raises KeyError for unknown ones."""
    config, tensors, tokens = _model(model)
    if lock not in LOCKS:
        raise KeyError(f"no lock {lock!r}; choose from {', '.join(LOCKS)}")
    mlp: DLRConfig | tuple[int, str] | None = None
    block: qwen3.Block = qwen3.block
    if lock.startswith("projection"):
        turn = attention.projections(tensors, config, attention.TOPK_PLANES, PLANES)
        tensors = attention.project(tensors, config, turn)
    if "dlr" in lock:
        mlp = small_net(config, on_stream="stream" in lock)
        tensors, block = with_nets(config, tensors, mlp), locked_block(mlp)
    if lock == "taylor":
        mlp, block = (ORDER, CHEBYSHEV.name), taylor_model.block(CHEBYSHEV)
        seen = taylor_model.observe_model(tensors, tokens, config)
        tensors = taylor_model.lock_model(tensors, config, seen, ORDER, CHEBYSHEV, np.random.default_rng(2))
    return Case(config, {n: exact(w) for n, w in tensors.items()}, tokens, mlp, block)


def exact(w: Any) -> Any:
    """Rounded to bfloat16, so that every precision starts from the same numbers."""
    return np.asarray(w).astype(ml_dtypes.bfloat16).astype(np.float64)


def small_net(config: Qwen3Config, *, on_stream: bool = False) -> DLRConfig:
    """A shallow DLR-Net at parameter parity: with gains, gelu and on the stream, or parameter-free norms and silu."""
    norm = "rms_gain" if on_stream else "rms"
    rank = dlrnet.parity(config.hidden_size, config.intermediate_size, 4, norm).rank
    return DLRConfig(
        config.hidden_size, rank, 4, norm, "gelu_tanh" if on_stream else "silu",
        "stream" if on_stream else "difference",
    )  # fmt: skip


def with_nets(config: Qwen3Config, tensors: Tensors, net: DLRConfig) -> dict[str, NDArray[Any]]:
    """Random DLR-Nets, gains U(0.5, 2), in place of the MLPs."""
    rng, nets = np.random.default_rng(1), {}
    for i in range(config.num_hidden_layers):
        params = dlrnet.initialize(net, rng, b_scale=0.7)
        nets[i] = {n: w * rng.uniform(0.5, 2, w.shape) if n.endswith("gain") else w for n, w in params.items()}
    return assembled(tensors, nets)


def random_tensors(config: Qwen3Config, rng: np.random.Generator, dtype: Any = np.float64) -> dict[str, NDArray[Any]]:
    """Matrices N(0, 1/columns), gains U(0.3, 2)."""
    found = {}
    for name, shape in qwen3.expected_tensors(config).items():
        if len(shape) == 1:
            found[name] = rng.uniform(0.3, 2, shape).astype(dtype)
        else:
            found[name] = rng.standard_normal(shape, np.dtype(dtype)) * np.dtype(dtype).type(shape[1] ** -0.5)
    return found


TINY = Qwen3Config(61, 24, 40, 2, 6, 2, 10, rope_theta=1e4)  # three query heads for each of two key heads


def _model(name: str) -> tuple[Qwen3Config, dict[str, NDArray[Any]], NDArray[np.int64]]:
    if name in ZOO:
        loaded = load_checkpoint(zoo_path(name))
        text = b"def add(a, b):\n    return a + b  # 17+25=42\n" * 2
        return loaded.config, loaded.tensors, np.frombuffer(text, np.uint8).astype(np.int64).reshape(2, -1)
    if name not in MODELS:
        raise KeyError(f"no model {name!r}; choose from {', '.join(MODELS)}")
    config = Qwen3Config(**{**vars(TINY), "tie_word_embeddings": name == "tiny tied"})
    rng = np.random.default_rng(0)
    tensors = {n: exact(w) for n, w in random_tensors(config, rng).items()}
    return config, tensors, rng.integers(0, config.vocab_size, (2, 31))


def distance(got: Any, want: Any) -> float:
    """max |got − want| / max |want|; 0 where both are zero."""
    off, size = float(np.max(np.abs(np.subtract(got, want)))), float(np.max(np.abs(want)))
    return off / size if size else (0.0 if off == 0 else np.inf)


def worst(got: Tensors, want: Tensors, measure: Callable[[Any, Any], float] = distance) -> tuple[float, str]:
    """The largest distance between arrays of one name, and that name. Raises ValueError where the names differ."""
    if got.keys() != want.keys():
        raise ValueError(f"arrays differ in {', '.join(sorted(got.keys() ^ want.keys()))}")
    return max((measure(got[n], want[n]), n) for n in want)
