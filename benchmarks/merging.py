"""Merging the zoo: lockref from directory to directory beside mergekit's own merge call, in one process, taking turns.

Both read the same bfloat16 checkpoints, merge in float32 and write bfloat16; imports are not timed.
    python -m benchmarks.merging --write-docs
"""

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.__main__ import environment
from benchmarks.engines import version
from benchmarks.report import BEGIN, END, PLACE, document, replace_text, spread
from lockref.merging import SETTINGS, merge
from lockref.merging.settings import Entries
from lockref.models.checkpoint_io import load_checkpoint, save_checkpoint
from lockref.models.zoo import zoo_path

DOCS = Path(__file__).parents[1] / "docs" / "merging.md"
NAMES = ("linear-average", "task-arithmetic", "ties-mergekit", "dare-mergekit", "dare-ties-mergekit", "slerp",
         "slerp-updates")  # fmt: skip
WEIGHTS, DENSITY, TARGET = (1.0, 0.5), 0.2, 1.0
MEMBERS = [zoo_path("add"), zoo_path("reverse")]


def ours(name: str, out: Path) -> None:
    """Read, merge, write."""
    setting, rule = SETTINGS[name], SETTINGS[name].rule
    setting = setting.tuned(density=DENSITY) if isinstance(rule, Entries) and rule.trim else setting
    base, *members = (load_checkpoint(path, np.float32) for path in (zoo_path("base"), *MEMBERS))
    merged = merge(base.tensors, [m.tensors for m in members], setting, weights=WEIGHTS, rng=np.random.default_rng(0))
    save_checkpoint(out, base.config, merged.tensors)


def mergekits() -> Callable[[str, Path], None]:
    """The same by mergekit, imported and on one thread."""
    import torch

    from lockcross.merging import merge_directories

    torch.set_num_threads(1)
    return lambda name, out: merge_directories(name, zoo_path("base"), MEMBERS, out, WEIGHTS, DENSITY, "bfloat16")


def measure(rounds: int, seed: int, names: tuple[str, ...] = NAMES) -> dict[str, dict[str, list[float]]]:
    """Seconds by setting and side; one run of each warms up, then in each round both run, in random order."""
    sides = {"lockref": ours, "mergekit": mergekits()}
    order, found = np.random.default_rng(seed), {name: {side: [] for side in sides} for name in names}
    for turn in range(rounds + 1):
        for name in names:
            for side in order.permutation(list(sides)):
                with tempfile.TemporaryDirectory() as folder:
                    begin = time.perf_counter()
                    sides[side](name, Path(folder) / "merged")
                    seconds = time.perf_counter() - begin
                if turn:
                    found[name][side].append(seconds)
        print(f"round {turn} of {rounds}", file=sys.stderr, flush=True)
    return found


def table(result: dict[str, Any]) -> str:
    """Markdown: medians and quartiles, and the ratio of the two times of a round."""
    versions = ", ".join(f"{name} {v}" for name, v in result["versions"].items())
    lines = [
        f"Made by `{result['command']}` on {result['cpu']}: one thread, {result['rounds']} rounds, seed "
        f"{result['seed']}; {versions}. From directories to a directory, in one process. Medians and quartiles.",
        "",
        "| setting | lockref, ms | mergekit, ms | lockref ÷ mergekit | target |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, sides in result["settings"].items():
        mine, theirs = np.array(sides["lockref"]), np.array(sides["mergekit"])
        met = "met" if np.median(mine / theirs) <= TARGET else "missed"
        lines.append(
            f"| {name} | {spread(mine * 1e3)} | {spread(theirs * 1e3)} | {spread(mine / theirs)} "
            f"| ≤ {TARGET:.2f} {met} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merging", description=__doc__)
    parser.add_argument("--rounds", type=int, default=11, help="timed repetitions of each (default 11)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of turns")
    parser.add_argument("--setting", action="append", choices=NAMES, help="only this one (may be repeated)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements to FILE")
    parser.add_argument("--write-docs", action="store_true", help=f"write the table into {DOCS.name}")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: give at least 1")
    if version("mergekit") is None:
        parser.error("mergekit is not installed; pip install 'lockref[merge]'")
    try:
        if args.write_docs:
            document(DOCS)
    except ValueError as problem:
        parser.error(str(problem))
    command = shlex.join(["python", "-m", "benchmarks.merging", *(sys.argv[1:] if argv is None else argv)])
    facts = environment([])
    facts["versions"] |= {p: v for p in ("lockref", "mergekit", "torch") if (v := version(p))}
    with threadpool_limits(1):
        found = measure(args.rounds, args.seed, tuple(args.setting or NAMES))
    result = {"command": command, "rounds": args.rounds, "seed": args.seed, **facts, "settings": found}
    print(table(result))
    if args.json:
        replace_text(args.json, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if args.write_docs:
        text = PLACE.sub(lambda _: f"{BEGIN}\n{table(result)}\n{END}", document(DOCS))
        replace_text(DOCS, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
