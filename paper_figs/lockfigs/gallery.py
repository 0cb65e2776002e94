"""All figures, and the command that draws them."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lockfigs import eq2, frontier, memory, paths, recovery, storage, taylor
from lockfigs.figure import Figure
from lockfigs.sources import Sources
from lockproofs.claim import BadInput
from lockproofs.report import staged

FIGURES = {module.FIGURE.name: module.FIGURE for module in (storage, memory, frontier, eq2, paths, taylor, recovery)}
CAPTIONS = "captions.md"
Track = Callable[[Sequence[Figure]], Iterable[Figure]]


def chosen(wanted: str | None) -> list[Figure]:
    """The figures of these comma-separated names; all without any. Raises BadInput for an unknown one."""
    if wanted is None:
        return list(FIGURES.values())
    names = {word.strip() for word in wanted.split(",")}
    if unknown := sorted(names - FIGURES.keys()):
        raise BadInput(f"--only {unknown[0]!r}: no such figure; choose from {', '.join(FIGURES)}")
    return [figure for name, figure in FIGURES.items() if name in names]


def draw(out: Path, report: Path, only: str | None = None, track: Track = iter) -> list[str]:
    """Draws the figures into a directory, all of them or none, and returns the names of the files written.

    Captions of the figures drawn are in captions.md. Raises BadInput where a source is missing or another version's,
    for an unknown name, and where the directory cannot be written.
    """
    figures, sources = chosen(only), Sources(report)
    with staged(out, "DIR") as folder:
        captions = [figure.write(sources, folder) for figure in track(figures)]
        (folder / CAPTIONS).write_text("\n\n".join(captions) + "\n", encoding="utf-8")
        return sorted(file.name for file in folder.iterdir())
