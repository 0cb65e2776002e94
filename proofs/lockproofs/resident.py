"""What a process holds, and while a Qwen3 model runs forward: arrays as NumPy asks for them, pages as Linux counts.

`forward_memory` measures in a process of its own, in which nothing else has run. glibc maps every array of 64 KiB or
more by itself there, so a freed array is gone, and the growth of the process is that of its arrays.
"""

import gc
import json
import math
import os
import subprocess
import sys
import tracemalloc
from dataclasses import asdict
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from lockproofs.claim import BadInput
from lockproofs.parity_cases import random_tensors
from lockref.models import qwen3, storage
from lockref.models.qwen3_config import Qwen3Config

MAPPED = 64 * 1024  # bytes from which on an array has pages of its own
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
SMALL = Qwen3Config(1024, 512, 1024, 1, 4, 2, 128)
OBJECTS = 64 * 1024  # at most, of Python's in a forward pass: names and views of one layer's tensors
TOUCHED = 2**20  # at most, pages of code and of BLAS's buffers that a forward pass is the first to touch


def predicted_forward(config: Qwen3Config, tokens: int) -> int:
    """Bytes of arrays at most in a forward pass of one row in float32: closed form, and RoPE's tables."""
    return storage.qwen3_forward(config).bytes(tokens, 4) + 4 * tokens * config.head_dim


def predicted_weights(config: Qwen3Config) -> int:
    """Bytes of all tensors in float32."""
    return 4 * sum(math.prod(shape) for shape in qwen3.expected_tensors(config).values())


def pages_of(config: Qwen3Config) -> int:
    """Bytes by which tensors may exceed their arrays: a header and a broken page for each."""
    return 2 * PAGE * len(qwen3.expected_tensors(config))


def forward_memory(config: Qwen3Config, tokens: int) -> dict[str, int]:
    """Bytes: "bare", resident with libraries and warm BLAS; "loaded", with weights too; "peak", in a forward pass;
    "traced", the most that arrays and Python's objects took in it.

    For random float32 weights of these sizes and one row of tokens. Raises BadInput where the system has no
    /proc/self/clear_refs (Linux has), or the child process fails.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise BadInput("resident memory: this system has no /proc/self/clear_refs; measure on Linux")
    done = subprocess.run(
        [sys.executable, "-m", "lockproofs.resident", json.dumps(asdict(config)), str(tokens)],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MAPPED)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BadInput(f"resident memory: the child process failed: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, int] = json.loads(done.stdout)
    return found


def now() -> int:
    """Bytes of resident memory that this process holds now; 0 where the system does not say (Linux does)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * PAGE


def peak() -> int:
    """Bytes of resident memory that this process held at most; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024)


def _measured(config: Qwen3Config, tokens: int) -> dict[str, int]:
    rng = np.random.default_rng(0)
    qwen3.forward(random_tensors(SMALL, rng, np.float32), np.zeros((1, 512), np.int64), SMALL)  # code and BLAS are warm
    tracemalloc.start()
    tracemalloc.stop()
    given = rng.integers(0, config.vocab_size, (1, tokens))
    gc.collect()
    bare = _status("VmRSS")
    tensors = random_tensors(config, rng, np.float32)
    gc.collect()
    loaded = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    tracemalloc.start()
    qwen3.forward(tensors, given, config)
    traced = tracemalloc.get_traced_memory()[1]
    return {"bare": bare, "loaded": loaded, "peak": _status("VmHWM"), "traced": traced}


def _status(name: str) -> int:
    """A figure of /proc/self/status in bytes."""
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    with threadpool_limits(1, user_api="blas"):
        print(json.dumps(_measured(Qwen3Config(**json.loads(sys.argv[1])), int(sys.argv[2]))))
