"""One command that locks a small model: `python -m lockref.locks.dlr_run SRC DST --depth 16`.

Captures activations, distills every MLP (phase 1), then the assembled model (phase 2), and writes DST with the locked
tensors and card.json, which says how it was made and what it reached on held-out data. Interrupted, the same command
goes on where it stopped: states lie in DST.work until all is done.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockref.locks.dlr import assembled, captured, distill_model, distill_module, locked_block, relative_error
from lockref.locks.dlr_training import Recipe
from lockref.models import dlrnet, qwen3, skills
from lockref.models.checkpoint_io import load_checkpoint
from lockref.models.dlrnet import DLRConfig
from lockref.models.qwen3_config import Qwen3Config
from lockref.models.tensor_file import CheckpointError, parse_object, read_header, read_tensors, write_tensors

WEIGHTS, CARD = "model.safetensors", "card.json"


@dataclass(frozen=True)
class Plan:
    """What to make of a model, all of it on the card."""

    net: DLRConfig
    modules: Recipe
    model: Recipe
    rows: int  # of tokens, for training; an eighth as many are held out
    length: int
    seed: int = 0


@dataclass(frozen=True)
class Locked:
    """A locked model as stored: the host's sizes, the networks' shape, tensors by name."""

    config: Qwen3Config
    net: DLRConfig
    tensors: dict[str, NDArray[Any]]


def data(rows: int, length: int, rng: np.random.Generator, held_out: bool) -> NDArray[np.int64]:
    """Byte tokens (rows, length): a third each of text and of the two skills."""
    third = max(1, rows // 3)
    parts = [skills.pack_lines(name, rng, third, length, held_out) for name in skills.SKILLS]
    text = skills.stdlib_bytes(held_out, limit=1_000_000)
    parts.append(skills.text_rows(text, rng, max(1, rows - 2 * third), length))
    return np.concatenate(parts).astype(np.int64)


def lock(
    tensors: Mapping[str, Any], config: Qwen3Config, plan: Plan, tokens: Any, test: Any, work: Path, say: Any = print
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Both phases, with states in the directory `work`: the locked model's tensors and its measured figures."""
    work.mkdir(parents=True, exist_ok=True)
    nets: dict[int, Any] = {}
    errors = []
    pairs = zip(
        captured(tensors, tokens, config, plan.net.placement), _held_out(tensors, test, config, plan), strict=True
    )
    for i, ((x, y), (tx, ty)) in enumerate(pairs):
        state = distill_module(x, y, plan.net, plan.modules, file=work / f"layer{i}", follow=_every(f"layer {i}", say))
        nets[i] = state.params
        errors.append(float(relative_error(state.params, tx, ty, plan.net)))
        say(f"layer {i}: relative error {errors[-1]:.4f} held out")
    whole = distill_model(
        tensors, nets, tokens, config, plan.net, plan.model, file=work / "model", follow=_every("model", say)
    )
    locked = {**assembled(tensors, nets), **whole.params}
    block = locked_block(plan.net)
    before = float(qwen3.loss(tensors, test, config))
    after = {
        name: float(qwen3.loss(some, test, config, block))
        for name, some in (("modules", assembled(tensors, nets)), ("model", locked))
    }
    return locked, {"relative_error": errors, "loss_original": before, "loss_locked": after}


def _held_out(tensors: Mapping[str, Any], test: Any, config: Qwen3Config, plan: Plan) -> Any:
    return captured(tensors, test, config, plan.net.placement)


def _every(what: str, say: Any) -> Any:
    def follow(step: int, value: float) -> None:
        if step % 50 == 0:
            say(f"{what}: step {step}, loss {value:.4f}")

    return follow


def save(path: Path, locked: Locked, card: Mapping[str, Any]) -> None:
    """Writes a directory that `load` reads, complete or not at all. Raises CheckpointError if it is there already."""
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        if path.exists():
            raise CheckpointError(f"{path}: already exists; choose another directory or remove it")
        temporary.mkdir()
        said = {"config": locked.config.to_hub("float32"), "net": asdict(locked.net), **card}
        (temporary / CARD).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        write_tensors(temporary / WEIGHTS, locked.tensors, "F32")
        os.replace(temporary, path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; check that its parent exists and has room") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load(path: Path, dtype: Any = np.float64) -> Locked:
    """A locked model that `save` wrote. Raises CheckpointError where files or tensors do not fit the card."""
    try:
        card = parse_object(path / CARD, (path / CARD).read_bytes())
        config, net = Qwen3Config.from_hub(card.get("config", {})), DLRConfig(**card.get("net", {}))
        entries = read_header(path / WEIGHTS)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or path}: {error.strerror}; give a directory of a locked model"
        ) from None
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    nets = {i: dlrnet.expected_tensors(net) for i in range(config.num_hidden_layers)}
    want = assembled(qwen3.expected_tensors(config), nets)
    if {name: entry.shape for name, entry in entries.items()} != want:
        raise CheckpointError(f"{path}: the tensors are not those that {CARD} describes; write the model again")
    tensors = {name: np.empty(shape, dtype) for name, shape in want.items()}
    read_tensors(path / WEIGHTS, entries, tensors)
    return Locked(config, net, tensors)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when done, 3 with one line on standard error where the input is wrong."""
    parser = argparse.ArgumentParser(prog="python -m lockref.locks.dlr_run", description="Lock a small model.")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--norm", choices=dlrnet.NORMS, default="rms")
    parser.add_argument("--placement", choices=dlrnet.PLACEMENTS, default="difference")
    parser.add_argument("--steps", type=int, default=600, help="of phase 1, for each layer")
    parser.add_argument("--healing", type=int, default=500, help="steps of phase 2")
    parser.add_argument("--rate", type=float, default=5e-3, help="learning rate of phase 1; a tenth of it in phase 2")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    try:
        _run(given)
    except (ValueError, FloatingPointError) as error:
        print(f"dlr_run: {error}", file=sys.stderr)
        return 3
    return 0


def _run(given: argparse.Namespace) -> None:
    if given.target.exists():
        raise CheckpointError(f"{given.target}: already exists; choose another directory or remove it")
    source = load_checkpoint(given.source, np.float32)
    d, m = source.config.hidden_size, source.config.intermediate_size
    net = DLRConfig(
        d, dlrnet.parity(d, m, given.depth, given.norm).rank, given.depth, given.norm, placement=given.placement
    )
    plan = Plan(
        net,
        Recipe(given.steps, given.rate, given.seed),
        Recipe(given.healing, given.rate / 10, given.seed),
        given.rows,
        given.length,
        given.seed,
    )
    rng = np.random.default_rng(plan.seed)
    tokens, test = data(plan.rows, plan.length, rng, False), data(max(3, plan.rows // 8), plan.length, rng, True)
    work = given.target.with_name(given.target.name + ".work")
    tensors, figures = lock(source.tensors, source.config, plan, tokens, test, work)
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    made = {name: value for name, value in vars(given).items() if name not in ("source", "target")}
    card = {"figures": figures, "plan": made, "files": [asdict(f) for f in source.files], "versions": versions}
    save(given.target, Locked(source.config, net, tensors), card)
    shutil.rmtree(work)


if __name__ == "__main__":
    sys.exit(main())
