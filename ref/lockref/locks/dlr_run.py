"""One command that locks a small model: `python -m lockref.locks.dlr_run SRC DST --depth 16`.

Captures activations, distills every MLP (phase 1), then the assembled model (phase 2), and writes DST with config.json,
the locked tensors and lock.json, which says how it was made and what it reached on held-out data. Interrupted, the
same command goes on where it stopped: states lie in DST.work until all is done.
"""

import argparse
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockref.autodiff.pages import keep_pages
from lockref.locks.commands import answered, require_new
from lockref.locks.distillation import Phases, distill, dlr_student, swiglu_student
from lockref.locks.dlr import locked_block
from lockref.locks.dlr_training import Recipe
from lockref.locks.manifest import Manifest, write_locked
from lockref.models import dlrnet, skills
from lockref.models.checkpoint_io import load_checkpoint, tensor_code
from lockref.models.dlrnet import DLRConfig
from lockref.models.evaluation import TEXT, evaluate
from lockref.models.qwen3_config import Qwen3Config


def data(rows: int, length: int, rng: np.random.Generator, held_out: bool) -> NDArray[np.int64]:
    """Byte tokens (rows, length) in random order: an eighth each of the two skills, the rest text."""
    few = max(1, rows // 8)
    parts = [skills.pack_lines(name, rng, few, length, held_out) for name in skills.SKILLS]
    parts.append(skills.text_rows(skills.stdlib_bytes(held_out), rng, max(1, rows - 2 * few), length))
    return rng.permutation(np.concatenate(parts).astype(np.int64))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when done, 3 with one line on standard error where the input is wrong."""
    parser = argparse.ArgumentParser(prog="python -m lockref.locks.dlr_run", description="Lock a small model.")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--norm", choices=dlrnet.NORMS, default="rms")
    parser.add_argument("--placement", choices=dlrnet.PLACEMENTS, default="difference")
    parser.add_argument("--steps", type=int, default=900, help="of phase 1, for each layer")
    parser.add_argument("--healing", type=int, default=1000, help="steps of phase 2")
    parser.add_argument("--rate", type=float, default=2e-2, help="peak learning rate of phase 1")
    parser.add_argument("--healing-rate", type=float, default=2e-3, help="peak learning rate of phase 2")
    parser.add_argument("--rows", type=int, default=4096, help="of tokens, an eighth as many held out")
    parser.add_argument("--captured", type=int, default=1024, help="rows of them that phase 1 learns from")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16", help="of the tensors that are written")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    return answered("dlr_run", lambda: _run(given))


def _run(given: argparse.Namespace) -> None:
    keep_pages()
    require_new(given.target)
    tensor_code(given.target, given.dtype)
    source = load_checkpoint(given.source, np.float32)
    d, m = source.config.hidden_size, source.config.intermediate_size
    net = DLRConfig(
        d, dlrnet.parity(d, m, given.depth, given.norm).rank, given.depth, given.norm, placement=given.placement
    )
    phases = Phases(
        Recipe(given.steps, given.rate, given.seed),
        Recipe(given.healing, given.healing_rate, given.seed),
        given.captured,
    )
    rng = np.random.default_rng(given.seed)
    tokens, test = data(given.rows, given.length, rng, False), data(max(3, given.rows // 8), given.length, rng, True)
    work = given.target.with_name(given.target.name + ".work")
    found = distill(
        source.tensors, source.config, swiglu_student(source.config), dlr_student(net), phases, tokens, test,
        work=work, say=print,
    )  # fmt: skip
    tensors = {name: rounded(w, given.dtype) for name, w in found.model.items()}
    manifest = Manifest(
        parts={"dlr": {"net": asdict(net), **asdict(phases)}},
        source=source.files,
        command="python -m lockref.locks.dlr_run SRC DST " + _options(given),
        seed=given.seed,
        versions={"python": platform.python_version(), "numpy": np.__version__},
        figures=figures(source.tensors, tensors, source.config, net)
        | {"relative_error": found.errors, "row_error": found.row_errors},
    )
    write_locked(given.target, source.config, tensors, manifest, given.dtype)
    shutil.rmtree(work)


def figures(before: Mapping[str, Any], after: Mapping[str, Any], config: Qwen3Config, net: DLRConfig) -> dict[str, Any]:
    """What original and locked model do on held-out data, and the gap of their text losses over the original's."""
    original, locked = evaluate(before, config), evaluate(after, config, locked_block(net))
    return {"original": original, "locked": locked, "loss_gap": locked[TEXT] / original[TEXT] - 1}


def rounded(tensor: NDArray[Any], dtype: str) -> NDArray[Any]:
    """A tensor as it is read again once it was saved in `dtype`."""
    return tensor.astype(dtype).astype(tensor.dtype)


def _options(given: argparse.Namespace) -> str:
    told = {name.replace("_", "-"): value for name, value in vars(given).items() if name not in ("source", "target")}
    return " ".join(f"--{name} {value}" for name, value in told.items())


if __name__ == "__main__":
    sys.exit(main())
