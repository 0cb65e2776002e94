"""The verdict table of README.md: `python -m lockproofs.readme README.md` writes it between its markers again.

The verdicts are the recorded ones, which every audit of the embedded models compares with what it finds.
"""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from lockproofs.claim import Claim
from lockproofs.claims import all_claims
from lockproofs.render import SYMBOLS

START, END = "<!-- verdicts -->", "<!-- /verdicts -->"


def verdict_table(claims: Iterable[Claim]) -> str:
    """Markdown: each claim as it is claimed, and its verdict."""
    rows = [f"| {c.id} | {c.statement} | {SYMBOLS[c.recorded]} {c.recorded.value} |" for c in claims]
    return "\n".join(["| claim | as it is claimed | verdict |", "| :-- | :-- | :-- |", *rows])


def refreshed(text: str, claims: Iterable[Claim]) -> str:
    """The text with the table between its markers written again. Raises ValueError without markers."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"README: the markers {START} and {END} are missing; put them where the table belongs")
    return f"{before}{START}\n{verdict_table(claims)}\n{END}{after}"


def main(path: Path) -> None:
    """Rewrites the file as a whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(refreshed(path.read_text(encoding="utf-8"), all_claims().values()), encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
