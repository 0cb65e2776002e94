"""The full lock: MergeBarrier's plane flips on attention, then a DLR-Net or a polynomial form for every MLP.

Trap² (arXiv 2601.21898) acts while an expert is fine-tuned: it is in the weights already, and the manifest carries it
on. MergeBarrier (arXiv 2511.10712) and DLR-Lock (arXiv 2605.10777) follow in this order. The loss telescopes,

    L(locked) − L(original) = Σ_parts (L(after the part) − L(before it)),

so the budget of the whole is the sum of the parts' gaps: 0 for flips of rotary planes, which leave every logit as it is
to the last bit, and the measured gap of distillation or of the polynomial for the MLPs.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockref.locks import taylor_model
from lockref.locks.attention import TOPK_PLANES, project, projections
from lockref.locks.bases import BASES
from lockref.locks.dlr import assembled, locked_block
from lockref.locks.manifest import LOCK, Manifest, read_manifest
from lockref.models import dlrnet, qwen3
from lockref.models.checkpoint_io import CONFIG, WEIGHTS, load_config
from lockref.models.dlrnet import DLRConfig
from lockref.models.qwen3_config import Qwen3Config
from lockref.models.tensor_file import CheckpointError, read_header, read_tensors

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Series:
    """Shape of the polynomial form of every MLP; ValueError for an order below 0 or an unknown basis."""

    order: int
    basis: str = "taylor"

    def __post_init__(self) -> None:
        if type(self.order) is not int or self.order < 0:
            raise ValueError(f"order is {self.order!r}; it must be an integer of at least 0")
        if self.basis not in BASES:
            raise ValueError(f"basis {self.basis!r} is unknown; choose from {', '.join(BASES)}")


@dataclass(frozen=True)
class Composition:
    """Which parts a lock has: planes flipped on each key head (0: none), and what stands in for the MLPs, if anything.

    Raises ValueError where both a DLR-Net and a polynomial should replace the MLPs.
    """

    planes: int = 0
    net: DLRConfig | None = None
    series: Series | None = None

    def __post_init__(self) -> None:
        if type(self.planes) is not int or self.planes < 0:
            raise ValueError(f"planes is {self.planes!r}; it must be an integer of at least 0")
        if self.net and self.series:
            raise ValueError("an MLP is replaced by a DLR-Net or by a polynomial, not by both; choose one")

    @classmethod
    def from_parts(cls, parts: Mapping[str, Mapping[str, Any]]) -> "Composition":
        """What the parts of a manifest describe. Raises ValueError for settings that describe no lock."""
        flips, dlr, series = (parts.get(name) for name in ("attention", "dlr", "taylor"))
        if flips is not None and flips.get("family") != TOPK_PLANES.name:
            raise ValueError(f"attention: family {flips.get('family')!r} is unknown; only {TOPK_PLANES.name} is")
        try:
            return cls(
                planes=flips["planes"] if flips is not None else 0,
                net=DLRConfig(**dlr["net"]) if dlr is not None else None,
                series=Series(**series) if series is not None else None,
            )
        except KeyError as error:
            raise ValueError(f"the setting {error} is missing") from None
        except TypeError:
            raise ValueError("dlr or taylor: settings are missing or unknown") from None

    def parts(self) -> dict[str, dict[str, Any]]:
        """The parts of a manifest, from which `from_parts` makes this composition again."""
        found: dict[str, dict[str, Any]] = {}
        if self.planes:
            found["attention"] = {"family": TOPK_PLANES.name, "planes": self.planes}
        if self.net:
            found["dlr"] = {"net": asdict(self.net)}
        if self.series:
            found["taylor"] = asdict(self.series)
        return found

    @property
    def block(self) -> qwen3.Block:
        """One layer of the locked model, for `qwen3.forward` and `qwen3.loss`."""
        if self.net:
            return locked_block(self.net)
        return taylor_model.block(BASES[self.series.basis]) if self.series else qwen3.block

    def expected_tensors(self, config: Qwen3Config) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the locked model's tensors."""
        shapes = qwen3.expected_tensors(config)
        if self.net:
            nets = dlrnet.expected_tensors(self.net)
            return assembled(shapes, dict.fromkeys(range(config.num_hidden_layers), nets))
        if self.series:
            d, m = config.hidden_size, config.intermediate_size
            shapes = {n: s for n, s in shapes.items() if not n.endswith(taylor_model.DOWN)}
            own = zip(taylor_model.FIELDS, ((self.series.order + 1, d, m), (m,), (m,)), strict=True)
            named = [(f"{taylor_model.SERIES}{field}", shape) for field, shape in own]
            shapes |= {f"model.layers.{i}.{n}": s for i in range(config.num_hidden_layers) for n, s in named}
        return shapes


def flip_planes(tensors: Tensors, config: Qwen3Config, planes: int) -> dict[str, NDArray[Any]]:
    """The model with the `planes` heaviest rotary planes of every key head flipped; its logits keep every bit.

    Raises ValueError where a head has fewer planes.
    """
    return project(tensors, config, projections(tensors, config, TOPK_PLANES, planes))


def expand(tensors: Tensors, config: Qwen3Config, series: Series, tokens: Any) -> dict[str, NDArray[Any]]:
    """The model with polynomials for its MLPs, expanded over what their pre-activations do on `tokens`, (T,) or (B, T).

    Raises ValueError for an order that float64 cannot hold, naming the layer.
    """
    seen = taylor_model.observe_model(tensors, tokens, config)
    return taylor_model.lock_model(tensors, config, seen, series.order, BASES[series.basis])


@dataclass(frozen=True)
class Locked:
    """A locked model as stored: the host's sizes, the lock's parts, tensors by name, and the manifest."""

    config: Qwen3Config
    composition: Composition
    tensors: dict[str, NDArray[Any]]
    manifest: Manifest


def load(path: Path, dtype: Any = np.float64) -> Locked:
    """A locked directory, every tensor accounted for; CheckpointError where files, manifest and tensors disagree."""
    config, manifest = load_config(path), read_manifest(path)
    try:
        composition = Composition.from_parts(manifest.parts)
        entries = read_header(path / WEIGHTS)
    except OSError as error:
        raise CheckpointError(f"{path / WEIGHTS}: {error.strerror}; write the lock again") from None
    except ValueError as error:
        said = error if isinstance(error, CheckpointError) else f"{path / LOCK}: {error}"
        raise CheckpointError(str(said)) from None
    if config.num_hidden_layers * (composition.net.depth if composition.net else 1) > len(
        entries
    ):  # before listing them
        raise CheckpointError(f"{path}: {len(entries)} tensors are fewer than {CONFIG} and {LOCK} want; write it again")
    want, got = composition.expected_tensors(config), {name: entry.shape for name, entry in entries.items()}
    for name in {**want, **got}:
        if want.get(name) != got.get(name):
            raise CheckpointError(
                f"{path}: tensor {name}: got {got.get(name, 'nothing')}, {CONFIG} and {LOCK} want "
                f"{want.get(name, 'nothing')}; write the lock again"
            )
    tensors = {name: np.empty(shape, dtype) for name, shape in want.items()}
    read_tensors(path / WEIGHTS, entries, tensors)
    return Locked(config, composition, tensors, manifest)
