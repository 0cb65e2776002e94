"""From measurements to tables: medians, quartiles, and ratios of repetitions of the same round."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines import ENGINES

SUBJECT = "lockref"  # ratios are its time over the other engine's
MODES = {"forward": "forward", "both": "forward + backward"}
_DLR64, _DLR32 = {"torch": 0.70, "autograd": 0.30, "mygrad": 0.25}, {"torch": 0.90}
TARGETS: dict[str, dict[str, float]] = {  # of the ratio for forward + backward, at most
    "dlr-rms-float64": _DLR64,
    "dlr-none-float64": _DLR64,
    "dlr-rms-float32": _DLR32,
    "dlr-none-float32": _DLR32,
    "qwen3-block": {"torch": 1.05, "products": 1.50},
    "scalar-chain": {"torch": 0.50},
}
TIMES, RATIOS = ([text.format(m) for m in MODES.values()] for text in ("{}, ms", f"{SUBJECT} ÷ engine, {{}}"))
HEAD = ["engine", *TIMES, *RATIOS, "target", "peak, MiB"]
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
PLACE = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)


def spread(samples: Any, digits: int = 2) -> str:
    """Median and quartiles, as "1.23 (1.20–1.30)"."""
    low, median, high = (f"{q:.{digits}f}" for q in np.quantile(samples, (0.25, 0.5, 0.75)))
    return f"{median} ({low}–{high})"


def row(engine: str, rows: dict[str, Any], targets: dict[str, float]) -> list[str]:
    """One engine's cells."""
    found, subject = rows[engine], rows.get(SUBJECT, {})
    if "note" in found:
        return [ENGINES[engine].about, found["note"], *[""] * (len(HEAD) - 2)]
    ratios, target = ["", ""], ""
    if engine != SUBJECT and "both" in subject:
        ratios = [spread(np.divide(subject[mode], found[mode])) for mode in MODES]
        if limit := targets.get(engine):
            met = np.median(np.divide(subject["both"], found["both"])) <= limit
            target = f"≤ {limit:.2f} {'met' if met else missed(rows, found, limit)}"
    memory = {name: f"{size / 2**20:.1f}" for name, size in found["memory"].items()}
    peak = memory.get("peak", "not measured") + (f" (stored {memory['stored']})" if "stored" in memory else "")
    return [ENGINES[engine].about, *(spread(np.multiply(found[mode], 1e3)) for mode in MODES), *ratios, target, peak]


def missed(rows: dict[str, Any], found: dict[str, Any], limit: float) -> str:
    """Why a target is missed: out of reach where the bare matrix products alone take longer than it allows."""
    floor = rows.get("products", {}).get("both")
    ratio = np.median(np.divide(floor, found["both"])) if floor else 0.0
    return f"out of reach: the bare products take {ratio:.2f}" if ratio > limit else "missed"


def table(result: dict[str, Any]) -> str:
    """All workloads as Markdown tables, with the machine and the command that made them."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"Made by `{result['command']}` on {result['cpu']}: {result['threads']} threads, {result['rounds']} rounds, "
        f"seed {result['seed']}; every engine's process with the C library's allocator set to {result['allocator']!r}; "
        f"{versions}. Medians and quartiles."
    ]
    for name, found in result["workloads"].items():
        rows = found["engines"]
        targets = {} if result["quick"] else TARGETS.get(name, {})  # they are for full sizes
        cells = [HEAD, ["---", *["---:"] * (len(HEAD) - 1)], *(row(engine, rows, targets) for engine in rows)]
        lines += ["", f"**{name}**: {found['title']}", "", *(f"| {' | '.join(c)} |" for c in cells)]
    return "\n".join(lines)


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)


def document(path: Path) -> str:
    """The text of a document with one place for the tables; ValueError where it has none."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if len(PLACE.findall(text)) != 1:
        raise ValueError(f"{path}: the tables go between lines {BEGIN} and {END}; add them, once")
    return text


def write_docs(path: Path, result: dict[str, Any]) -> None:
    """Put the tables between the two markers of a document."""
    replace_text(path, PLACE.sub(lambda _: f"{BEGIN}\n{table(result)}\n{END}", document(path)))
