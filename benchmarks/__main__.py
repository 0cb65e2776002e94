"""Time lockref and its peers side by side: one process each, taking turns."""

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines import ENGINES, Products, version
from benchmarks.report import MODES, document, replace_text, table, write_docs
from benchmarks.worker import Worker
from benchmarks.workloads import WORKLOADS

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def measure(workload: str, engines: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Times and peaks of some engines on one workload; an engine that cannot run gets a note instead."""

    rows: dict[str, Any] = {}
    workers: dict[str, Worker] = {}

    def start(engine: str) -> None:
        keep = args.allocator == "keep"
        workers[engine] = Worker(
            engine, workload, seed=args.seed, threads=args.threads, tiny=args.quick, keep_pages=keep
        )

    def ask(engine: str, what: str) -> dict[str, Any]:
        try:
            return workers[engine].ask(what)
        except RuntimeError as failure:
            rows[engine] = {"note": f"failed: {failure}"}
            workers.pop(engine).close()
            return {}

    for engine in engines:
        rows[engine] = {mode: [] for mode in MODES}
        if version(ENGINES[engine].package) is None:
            rows[engine] = {"note": f"not measured: {ENGINES[engine].package} is not installed"}
        elif engine == "products" and not Products(WORKLOADS[workload].problem(args.seed, tiny=True)).ahead:
            rows[engine] = {"note": "not measured: no matrix products here"}
        else:
            start(engine)
    order = np.random.default_rng(args.seed)
    for turn in range(args.rounds):
        for mode in MODES:  # all engines in each round, in random order: drift of the machine hits all alike
            for engine in order.permutation(list(workers)):
                if answer := ask(engine, mode):
                    rows[engine][mode].append(answer["seconds"])
        print(f"{workload}: round {turn + 1} of {args.rounds}", file=sys.stderr, flush=True)
    for engine in list(workers):
        workers[engine].close()
        start(engine)  # memory in a process of its own, not warmed up
        rows[engine]["memory"] = ask(engine, "memory")
    for worker in workers.values():
        worker.close()
    return {"title": WORKLOADS[workload].title(args.quick), "engines": rows}


def environment(engines: list[str]) -> dict[str, Any]:
    """Processor, platform and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    packages = dict.fromkeys(["numpy", *(ENGINES[e].package for e in engines)])
    return {
        "cpu": models[0] if models else platform.machine(),
        "platform": platform.platform(),
        "versions": {"Python": platform.python_version()} | {p: v for p in packages if (v := version(p))},
    }


def _at_least(least: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return whole_number


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--workload", action="append", choices=WORKLOADS, help="only this one (may be repeated)")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="only this one (may be repeated)")
    parser.add_argument("--rounds", type=_at_least(1), help="timed repetitions of each (default 15)")
    parser.add_argument("--threads", type=_at_least(1), default=2, help="threads of each engine (default 2)")
    parser.add_argument("--seed", type=_at_least(0), default=0, help="of the arrays and of the order of turns")
    parser.add_argument(
        "--allocator", choices=("keep", "default"), default="keep",
        help="let the C library keep freed pages in every engine's process (the default), or leave it as it is",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="tiny sizes, 3 rounds: all runs, but times mean nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements to FILE")
    parser.add_argument("--write-docs", action="store_true", help=f"write the tables into {DOCS.name}")
    args = parser.parse_args(argv)
    try:  # before the long run, not after it
        if args.write_docs:
            document(DOCS)
        if args.json and not args.json.resolve().parent.is_dir():
            raise ValueError(f"{args.json}: there is no such folder to write to; make it first")
    except ValueError as problem:
        parser.error(str(problem))
    args.rounds = args.rounds or (3 if args.quick else 15)
    engines, workloads = args.engine or list(ENGINES), args.workload or list(WORKLOADS)
    command = shlex.join(["python", "-m", "benchmarks", *(sys.argv[1:] if argv is None else argv)])
    result = {
        "command": command,
        **{k: vars(args)[k] for k in ("rounds", "threads", "seed", "quick", "allocator")},
        **environment(engines),
    }
    result["workloads"] = {name: measure(name, engines, args) for name in workloads}
    print(table(result))
    if args.json:
        replace_text(args.json, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if args.write_docs:
        write_docs(DOCS, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
