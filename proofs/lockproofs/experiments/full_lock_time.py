"""FULL-FUNC's cost: `lockref lock` with its default options on an expert of the zoo, one process, one thread.

The expert carries Trap² already, as in `full_pipeline`. On a machine that others use too, wall time says little:
the processor seconds of one thread are what an idle core would take, and half of them what two could do at best.
"""

import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from lockproofs.claim import BadInput
from lockproofs.experiments import full_pipeline
from lockproofs.experiments.store import Cell, Experiment
from lockref.locks import full
from lockref.locks.manifest import Manifest, write_locked
from lockref.models.checkpoint_io import load_checkpoint
from lockref.models.evaluation import evaluate

SEED: Final = 0
EXPERT: Final = "add"
THREADS: Final = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
PEAK: Final = re.compile(r"peak memory ([\d,]+) MiB, ([\d,]+) MiB expected")


def measure(cell: Cell) -> dict[str, Any]:
    """Seconds, memory and held-out utility of one lock; BadInput where the command fails."""
    _, config = full_pipeline.public(cell["source"])
    trap2 = {"strength": full_pipeline.STRENGTH, "steps": full_pipeline.TRAP.steps}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source", Path(folder) / "locked"
        said = Manifest({"trap2": trap2}, (), full_pipeline.__name__, full_pipeline.SEED, {})
        write_locked(source, config, full_pipeline.trapped(), said)
        spent = timed(source, target)
        before, after = load_checkpoint(source, np.float32), full.load(target, np.float32)
    return {
        **spent,
        "original": evaluate(before.tensors, before.config, seed=SEED),
        "locked": evaluate(after.tensors, after.config, after.composition.block, seed=SEED),
        "parts": sorted(after.manifest.parts),
        "loss": after.manifest.figures["loss"],
    }


def timed(source: Path, target: Path, *options: str) -> dict[str, Any]:
    """Wall and processor seconds of the command, the machine's load meanwhile, and memory as it printed it."""
    command = [sys.executable, "-c", "import sys; from lockproofs.cli import main; sys.exit(main())", "lock"]
    before, load, start = _spent(), os.getloadavg()[0], time.perf_counter()
    done = subprocess.run(
        [*command, str(source), str(target), *options], env={**os.environ, **THREADS}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    wall, loads = time.perf_counter() - start, [load, os.getloadavg()[0]]
    found = PEAK.search(done.stderr)
    if done.returncode or not found:
        raise BadInput(f"lockref lock: exit code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    took, expected = (int(figure.replace(",", "")) for figure in found.groups())
    return {
        "wall_seconds": round(wall, 1), "cpu_seconds": round(_spent() - before, 1),
        "load": [round(x, 2) for x in loads], "peak_mib": took, "expected_mib": expected,
    }  # fmt: skip


def _spent() -> float:
    """Processor seconds of finished child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


EXPERIMENT: Final = Experiment(
    name="full_lock_time",
    title="`lockref lock` with its default options on an expert of the zoo",
    seed=SEED,
    settings={"command": "lockref lock SRC DST", "threads": 1, "cores": 2, "trap_steps": full_pipeline.TRAP.steps},
    cells=[{"source": EXPERT}],
    measure=measure,
)
