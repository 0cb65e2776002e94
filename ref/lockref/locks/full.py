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
from lockref.locks.dlr import PREFIX, assembled, locked_block
from lockref.locks.manifest import LOCK, Manifest, read_manifest
from lockref.models import dlrnet, qwen3
from lockref.models.checkpoint_io import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    load_config,
    load_shapes,
    require_directory,
)
from lockref.models.dlrnet import DLRConfig
from lockref.models.qwen3_config import Qwen3Config

LAYER = "model.layers.0."
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
    def replaces(self) -> str:
        """What stands in place of the MLPs, in a word; empty where they are the host's own."""
        return "DLR-Nets" if self.net else "polynomials" if self.series else ""

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
class Composed(Checkpoint):
    """A checkpoint, and what its tensors are composed of."""

    composition: Composition

    @property
    def net(self) -> DLRConfig:
        """The shape of its DLR-Nets; CheckpointError where it has none."""
        if self.composition.net is None:
            raise CheckpointError(f"{self.path}: no DLR-Nets in it ({LOCK}); give a directory that has them")
        return self.composition.net


@dataclass(frozen=True)
class Locked(Composed):
    """A locked model as stored, with its manifest."""

    manifest: Manifest


def load(path: Path, dtype: Any = np.float64) -> Locked:
    """A locked directory, every tensor accounted for; CheckpointError where files, manifest and tensors disagree."""
    require_directory(path)
    manifest = read_manifest(path)
    try:
        composition = Composition.from_parts(manifest.parts)
    except ValueError as error:
        raise CheckpointError(f"{path / LOCK}: {error}") from None
    return Locked(**vars(load_as(path, composition, dtype)), manifest=manifest)


def load_as(path: Path, composition: Composition, dtype: Any = np.float64) -> Composed:
    """A directory whose tensors must be those of this composition, whatever it says of itself."""
    require_directory(path)
    config, depth = load_config(path), composition.net.depth if composition.net else 1
    if config.num_hidden_layers * depth > (count := len(load_shapes(path))):  # before listing an absurd number
        raise CheckpointError(f"{path}: {count} tensors are fewer than its description wants; write the lock again")
    return Composed(**vars(load_checkpoint(path, dtype, composition.expected_tensors)), composition=composition)


def carried(path: Path) -> Composition:
    """What stands in place of the MLPs, by the names and shapes of the first layer's tensors; planes leave no trace.

    The norm of a DLR-Net shows only where it has gains; its activation and placement, and the basis of a polynomial,
    not at all: they are the defaults. Raises CheckpointError for a directory that cannot be read.
    """
    require_directory(path)
    config, shapes = load_config(path), load_shapes(path)
    first = {n.removeprefix(LAYER): s for n, s in shapes.items() if n.startswith(LAYER)}
    match first.get(f"{PREFIX}blocks.0.a"), first.get(f"{taylor_model.SERIES}arrays"):
        case (int(rank), _), _ if rank > 0:
            depth = sum(n.startswith(f"{PREFIX}blocks.") and n.endswith(".a") for n in first)
            norm = "rms_gain" if f"{PREFIX}blocks.0.gain" in first else "rms"
            return Composition(net=DLRConfig(config.hidden_size, rank, depth, norm))
        case _, (int(terms), _, _) if terms > 0:
            return Composition(series=Series(terms - 1))
    return Composition()
