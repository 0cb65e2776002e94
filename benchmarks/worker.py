"""One engine and one workload in a process of their own, asked for one repetition at a time."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.engines import ENGINES
from benchmarks.workloads import WORKLOADS
from lockref.autodiff.pages import keep_pages

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Worker:
    """The parent's handle on a worker process: options seed, threads (and as many cores), tiny, keep_pages."""

    def __init__(self, engine: str, workload: str, **options: Any) -> None:
        task = {"engine": engine, "workload": workload, **options}
        self.complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 (a pipe that nobody reads could fill and block)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.complaints,
            text=True,
            cwd=Path(__file__).parents[1],
            env=os.environ | dict.fromkeys(_THREAD_VARIABLES, str(options["threads"])),
        )

    def ask(self, what: str) -> dict[str, Any]:
        """The worker's answer to "forward", "both" (seconds) or "memory" (bytes)."""
        assert self.process.stdin and self.process.stdout
        try:
            print(what, file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        status = self.process.wait()
        self.complaints.seek(0)
        lines = self.complaints.read().strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"exit status {status}")

    def close(self) -> None:
        self.process.communicate()  # closes its input, which ends it
        self.complaints.close()


def main(task: dict[str, Any]) -> None:
    """Answer each line of standard input with one line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries may print; only answers go to the parent
    if hasattr(os, "sched_setaffinity"):  # a cap for thread pools that read no variable
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-task["threads"] :])
    if task["keep_pages"]:  # the same allocator for every engine
        keep_pages()
    problem = WORKLOADS[task["workload"]].problem(task["seed"], tiny=task["tiny"])
    engine = ENGINES[task["engine"]](problem)
    for line in sys.stdin:
        if line == "memory\n":
            answer: dict[str, float] = dict(engine.memory())
        else:
            run = getattr(engine, line.strip())
            run()  # the others have had the caches since this engine's last turn
            start = time.perf_counter()
            run()
            answer = {"seconds": time.perf_counter() - start}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
