"""The locked models of the zoo: `python -m lockref.locks.dlr_zoo [DIR]` makes them again and writes LOCKED.md.

What is there already is kept; an interrupted model goes on where it stopped.
"""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from lockref.locks import dlr_run
from lockref.locks.manifest import read_manifest
from lockref.models.checkpoint_io import WEIGHTS
from lockref.models.zoo import LOCKED_ZOO, zoo_path

CARD: Final = "LOCKED.md"
OPTIONS: Final = {
    "dlr-16": "--depth 16 --healing 2200 --healing-rate 3e-3",
    "dlr-48": "--depth 48 --steps 500 --healing 700 --healing-rate 3e-3",
}
MARKDOWN: Final = """\
# Locked models of the zoo

Written by `python -m lockref.locks.dlr_zoo` from each model's `lock.json`. Do not edit by hand.

`base` with a DLR-Net (arXiv 2605.10777) in place of every MLP, at parameter parity, distilled in two phases; tensors
in bfloat16. A module's error is ‖net(x) − mlp(x)‖² / ‖mlp(x)‖² after phase 1 on held-out activations of `base`, over
all tokens and as the mean over tokens. Skills are exact matches on 1000 held-out problems; the text loss is the mean
over 400 held-out windows of 192 bytes, in nats per byte, of the weights as stored. The draws are those of README.md.

{table}

Steps are those of phase 1, for each module, and of phase 2.

| file | bytes | SHA-256 |
| :-- | --: | :-- |
{files}
"""


def render(folder: Path) -> str:
    """LOCKED.md for the locked models in a folder: every figure comes from a manifest or a file, none from here."""
    heads = [
        "model", "blocks", "rank", "norm", "placement", "steps", "error of modules", "by tokens", "add", "reverse",
        "text loss", "gap",
    ]  # fmt: skip
    rows, files = [heads, [":--", *["--:"] * (len(heads) - 1)]], []
    original = {}
    for name in LOCKED_ZOO:
        manifest = read_manifest(folder / name)
        part, found = manifest.parts["dlr"], manifest.figures
        net, locked, original = part["net"], found["locked"], found["original"]
        errors = [" ".join(f"{100 * e:.2g}%" for e in found[key]) for key in ("relative_error", "row_error")]
        steps = f"{part['modules']['steps']:,} + {part['model']['steps']:,}"
        shown = [f"`{name}`", str(net["depth"]), str(net["rank"]), net["norm"], net["placement"], steps, *errors]
        able = [f"{locked['add']:.1%}", f"{locked['reverse']:.1%}", f"{locked['text']:.4f}", f"{found['loss_gap']:.2%}"]
        rows.append([*shown, *able])
        content = (folder / name / WEIGHTS).read_bytes()
        files.append(f"| `{name}/{WEIGHTS}` | {len(content):,} | `{hashlib.sha256(content).hexdigest()}` |")
    whole = [f"{original['add']:.1%}", f"{original['reverse']:.1%}", f"{original['text']:.4f}", "0"]
    rows.insert(2, ["`base`", *["–"] * (len(heads) - 5), *whole])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return MARKDOWN.format(table=table, files="\n".join(files))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; the exit code of the first model that could not be made, or 0."""
    given = sys.argv[1:] if argv is None else list(argv)
    folder = Path(given[0]) if given else zoo_path("base").parent
    for name in LOCKED_ZOO:
        if not (folder / name).exists():
            print(f"{name}: {OPTIONS[name]}")
            if code := dlr_run.main([str(zoo_path("base")), str(folder / name), *OPTIONS[name].split()]):
                return code
    (folder / CARD).write_text(render(folder), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
