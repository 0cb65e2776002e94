"""`lockref lock`: the full lock on a checkpoint directory, written whole beside its manifest."""

import math
import platform
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lockproofs import resident
from lockproofs.calibration import rows_of
from lockproofs.claim import BadInput
from lockref.autodiff.pages import keep_pages
from lockref.locks import full, lock_memory
from lockref.locks.attention import TOPK_PLANES
from lockref.locks.distillation import Distilled, Phases, distill, dlr_student, swiglu_student
from lockref.locks.dlr_run import rounded
from lockref.locks.dlr_training import Recipe
from lockref.locks.full import Composition, Series
from lockref.locks.manifest import LOCK, Manifest, read_manifest, to_json, write_locked
from lockref.models import dlrnet
from lockref.models.checkpoint_io import Checkpoint, load_checkpoint, tensor_code
from lockref.models.dlrnet import DLRConfig
from lockref.models.evaluation import text_loss
from lockref.models.qwen3_config import Qwen3Config

Tensors = Mapping[str, NDArray[Any]]
Say = Callable[[str], None]

ENGINES = ("numpy", "torch")
NUMPY_LIMIT = 50_000_000  # parameters: beyond, a step of the NumPy engine takes minutes
GAPS = 9 / 8  # an allocator that keeps its pages leaves gaps between arrays: an eighth, by experience


@dataclass(frozen=True)
class Wish:
    """The command's options; None where the command is to choose. `from_options` says which exclude each other."""

    attention: str = TOPK_PLANES.name
    planes: int | None = None
    dlr_depth: int | None = None
    dlr_norm: str = "rms"
    taylor_order: int | None = None
    taylor_basis: str | None = None
    steps: int = 900
    rate: float = 2e-2
    healing: int = 1000
    healing_rate: float = 2e-3
    data: Path | None = None
    rows: int = 4096
    captured: int = 1024
    length: int = 128
    parts: int | None = None
    engine: str = "numpy"
    device: str = "cpu"
    dtype: str | None = None
    budget: float | None = None
    seed: int = 0

    def check(self) -> None:
        """Raises BadInput for options that are unknown, out of range, or exclude each other."""
        on_torch = self.engine == "torch"
        series, flips = self.taylor_order is not None, self.attention != "none"
        for wrong, line in (
            (self.attention == "topk", "--attention topk: changes what rotary, QK-normed attention computes (lockref "
             "explain MB-ROPE): choose topk-planes or none"),
            (self.attention not in ("topk", TOPK_PLANES.name, "none"), f"--attention {self.attention!r}: choose "
             "topk-planes or none"),
            (self.planes is not None and not flips, "--planes: needs --attention topk-planes"),
            (series and self.dlr_depth is not None, "--taylor-order and --dlr-depth: both replace MLPs: choose one"),
            (self.taylor_basis is not None and not series, "--taylor-basis: needs --taylor-order"),
            (not flips and self.dlr_depth == 0, "--attention none and --dlr-depth 0: leave nothing to lock"),
            (self.engine not in ENGINES, f"--engine {self.engine!r}: choose numpy or torch"),
            (on_torch and (series or self.dlr_depth == 0), "--engine torch: distills DLR-Nets, and none is asked for: "
             "leave it out"),
            (not on_torch and self.device != "cpu", f"--device {self.device}: needs --engine torch"),
            (not on_torch and self.parts is not None, "--parts: needs --engine torch"),
            (self.length < 2, f"--length {self.length}: takes at least 2 tokens, one to predict the other"),
            (self.budget is not None and not self.budget >= 0, f"--budget {self.budget}: must be at least 0"),
        ):  # fmt: skip
            if wrong:
                raise BadInput(line)

    def composition(self, config: Qwen3Config) -> Composition:
        """The parts of the lock on a model of these sizes. Raises BadInput where they do not fit it."""
        most = config.head_dim // 2
        planes = 0 if self.attention == "none" else (max(1, most // 2) if self.planes is None else self.planes)
        if planes > most or (self.planes is not None and planes < 1):
            raise BadInput(f"--planes {planes}: a head has {most} rotary planes: choose 1 to {most}")
        if self.taylor_order is not None:
            return Composition(planes, series=Series(self.taylor_order, self.taylor_basis or "taylor"))
        depth = 16 if self.dlr_depth is None else self.dlr_depth
        if depth == 0:
            return Composition(planes)
        d, m = config.hidden_size, config.intermediate_size
        return Composition(planes, DLRConfig(d, dlrnet.parity(d, m, depth, self.dlr_norm).rank, depth, self.dlr_norm))

    @property
    def phases(self) -> Phases:
        """How DLR-Nets are distilled."""
        modules = Recipe(self.steps, self.rate, self.seed)
        return Phases(modules, Recipe(self.healing, self.healing_rate, self.seed), self.captured)

    def words(self) -> str:
        """The command line that asks for this."""
        given = {n: v for n, v in asdict(self).items() if v is not None and v != getattr(Wish(), n)}
        return shlex.join(word for n, v in given.items() for word in (f"--{n.replace('_', '-')}", str(v)))


class Engine(Protocol):
    """What distills and measures."""

    @property
    def leads(self) -> bool: ...  # False in the processes that only help

    def distill(
        self, tensors: Tensors, config: Qwen3Config, net: DLRConfig, phases: Phases, tokens: Any, test: Any, work: Path,
        say: Say,
    ) -> Distilled: ...  # fmt: skip

    def loss(self, tensors: Tensors, config: Qwen3Config, composition: Composition, rows: Any) -> float: ...

    def memory(
        self, config: Qwen3Config, composition: Composition, phases: Phases, rows: tuple[int, int], length: int
    ) -> int: ...

    def versions(self) -> dict[str, str]: ...


class NumpyEngine:
    """The reference, in one process."""

    leads = True

    def distill(
        self, tensors: Tensors, config: Qwen3Config, net: DLRConfig, phases: Phases, tokens: Any, test: Any, work: Path,
        say: Say,
    ) -> Distilled:  # fmt: skip
        """Both phases."""
        kinds = swiglu_student(config), dlr_student(net)
        return distill(tensors, config, *kinds, phases, tokens, test, work=work, say=say)

    def loss(self, tensors: Tensors, config: Qwen3Config, composition: Composition, rows: Any) -> float:
        """Mean loss in nats over rows of tokens."""
        return text_loss(tensors, rows, config, composition.block)

    def memory(
        self, config: Qwen3Config, composition: Composition, phases: Phases, rows: tuple[int, int], length: int
    ) -> int:
        """Bytes at most on top of the loaded model: `lock_memory`."""
        return lock_memory.numpy_peak(config, composition, phases, rows, length)

    def versions(self) -> dict[str, str]:
        """Of what decides the bits."""
        return {"python": platform.python_version(), "numpy": np.__version__, "lockref": version("lockref")}


@contextmanager
def engine(wish: Wish) -> Iterator[Engine]:
    """The engine that is asked for. Raises BadInput where it is not installed or its device is not there."""
    if wish.engine == "numpy":
        yield NumpyEngine()
        return
    try:
        from lockcross.engine import torch_engine
    except ImportError as error:
        raise BadInput(
            f"--engine torch: {error.name} is not installed: python -m pip install 'lockref[crosscheck]'"
        ) from None
    with torch_engine(wish.device, wish.parts) as found:
        yield found


def lock(source: Path, target: Path, wish: Wish, say: Say) -> dict[str, Any] | None:
    """Locks `source` and writes the directory `target`, complete or not at all; returns what its lock.json says.

    Unfinished work lies in TARGET.work, and the same command goes on from it. None in a process that only helps
    another one. Raises BadInput or CheckpointError, in one line, for whatever is wrong with options or files.
    """
    wish.check()
    if target.exists():
        raise BadInput(f"{target}: already exists: choose another directory or remove it")
    try:
        with engine(wish) as chosen:
            return _lock(source, target, wish, chosen, say)
    except KeyboardInterrupt:
        say(f"unfinished work is in {target}.work: the same command goes on from it")
        raise
    except OSError as error:
        where = error.filename or target
        raise BadInput(f"{where}: {error.strerror}: check that the parent of DST exists and has room") from None
    except (ValueError, FloatingPointError) as error:  # a setting that does not fit this model, or diverges on it
        raise BadInput(str(error)) from None


def _lock(source: Path, target: Path, wish: Wish, chosen: Engine, say: Say) -> dict[str, Any] | None:
    before, trained = read_source(source)
    composition = wish.composition(before.config)
    dtype = wish.dtype or ("float32" if composition.series else Counter(before.dtypes.values()).most_common(1)[0][0])
    tensor_code(target, dtype)
    size = sum(w.size for w in before.tensors.values())
    if composition.net and wish.engine == "numpy" and size > NUMPY_LIMIT:
        raise BadInput(f"{source}: {size:,} parameters are too many for --engine numpy: take --engine torch")
    tokens, test = rows_of(wish.data, before.config.vocab_size, wish.rows, wish.length, wish.seed)
    work = target.with_name(target.name + ".work")
    work.mkdir(exist_ok=True)
    keep_pages()
    say(f"{size:,} parameters, {4 * size / 2**20:,.0f} MiB in float32")
    say(f"{len(tokens):,} rows of {wish.length} tokens to learn from, {len(test):,} held out")
    rows = len(tokens), len(test)
    more = round(GAPS * chosen.memory(before.config, composition, wish.phases, rows, wish.length))
    expected = resident.now() + more
    say(f"peak memory expected: {expected / 2**20:,.0f} MiB, {more / 2**20:,.0f} MiB more than now")
    config, steps = before.config, [("original", before.tensors, Composition())]
    now: Tensors = before.tensors
    if composition.planes:
        now = full.flip_planes(now, config, composition.planes)
        steps.append(("attention", now, Composition(composition.planes)))
    errors: dict[str, list[float]] = {}
    parts = composition.parts()
    if composition.net:
        found = chosen.distill(now, config, composition.net, wish.phases, tokens, test, work, say)
        now, errors = found.model, {"relative_error": found.errors, "row_error": found.row_errors}
        parts["dlr"] |= asdict(wish.phases)
    elif composition.series:
        now = full.expand(now, config, composition.series, tokens[: wish.captured])
    if not chosen.leads:
        return None
    now = {name: rounded(w, dtype) for name, w in now.items()}
    steps.append(("locked", now, composition))
    losses = {name: chosen.loss(tensors, config, made, test) for name, tensors, made in steps}
    gap = losses["locked"] / losses["original"] - 1
    figures = {"loss": losses, "loss_gap": gap, "budget": wish.budget, **errors}
    manifest = Manifest(
        parts={**trained, **parts}, source=before.files, command=f"lockref lock SRC DST {wish.words()}".strip(),
        seed=wish.seed, versions=chosen.versions(), figures=figures,
    )  # fmt: skip
    _require_within(wish.budget, gap, work)
    said = write_locked(target, config, now, manifest, dtype)
    shutil.rmtree(work)
    say(f"peak memory {resident.peak() / 2**20:,.0f} MiB, {expected / 2**20:,.0f} MiB expected")
    return to_json(said)


def read_source(source: Path) -> tuple[Checkpoint, dict[str, Mapping[str, Any]]]:
    """The model to lock, float32, and the parts that its own manifest says are in its weights already.

    Raises CheckpointError for a directory that is no model, BadInput for one that is locked with anything but Trap².
    """
    trained = dict(read_manifest(source).parts) if (source / LOCK).exists() else {}
    if done := trained.keys() - {"trap2"}:
        raise BadInput(f"{source}: is locked already ({', '.join(sorted(done))}): lock the model that it was made from")
    return load_checkpoint(source, np.float32), trained


def _require_within(budget: float | None, gap: float, work: Path) -> None:
    if not math.isfinite(gap):
        raise BadInput(f"the locked model's held-out loss is not finite: lower the order or the rates, remove {work}")
    if budget is not None and gap > budget:
        raise BadInput(
            f"--budget {budget:g}: the held-out loss rose by {gap:.2%}: nothing was written; raise the budget, or "
            f"remove {work} and train longer"
        )
