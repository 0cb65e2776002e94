"""All figures, and the command that draws them."""

from collections.abc import Callable
from pathlib import Path

from lockfigs import eq2, finetune, frontier, memory, paths, recovery, storage, taylor, trap2
from lockfigs.figure import Figure
from lockfigs.sources import Sources
from lockproofs.claim import BadInput
from lockproofs.report import staged

MODULES = (storage, memory, frontier, eq2, paths, taylor, recovery, trap2, finetune)
FIGURES = {module.FIGURE.name: module.FIGURE for module in MODULES}
CAPTIONS = "captions.md"
Follow = Callable[[int, int], None]  # (figures done, figures in all)


def waiting(sources: Sources) -> list[Figure]:
    """Figures whose experiments have no stored result yet."""
    return [figure for figure in FIGURES.values() if not all(map(sources.has, figure.needs))]


def missing(report: Path) -> list[str]:
    """One line for each figure that cannot be drawn yet, with the command that makes it possible."""
    return [
        f"not drawn: {figure.name}; run python -m lockproofs.experiments {' and '.join(figure.needs)}"
        for figure in waiting(Sources(report))
    ]


def chosen(wanted: str | None, sources: Sources) -> list[Figure]:
    """The figures of these comma-separated names; all that are not waiting without any. Raises BadInput."""
    if wanted is None:
        return [figure for figure in FIGURES.values() if figure not in waiting(sources)]
    names = {word.strip() for word in wanted.split(",")}
    if unknown := sorted(names - FIGURES.keys()):
        raise BadInput(f"--only {unknown[0]!r}: no such figure; choose from {', '.join(FIGURES)}")
    return [figure for name, figure in FIGURES.items() if name in names]


def draw(out: Path, report: Path, only: str | None = None, follow: Follow = lambda done, of: None) -> list[str]:
    """Draws the figures into a directory, all of them or none, and returns the names of the files written.

    Captions of the figures drawn are in captions.md. Raises BadInput where a source is missing or another version's,
    for an unknown name, and where the directory cannot be written.
    """
    sources = Sources(report)
    figures = chosen(only, sources)
    with staged(out, "DIR") as folder:
        captions = list[str]()
        for figure in figures:
            follow(len(captions), len(figures))
            captions.append(figure.write(sources, folder))
        follow(len(captions), len(figures))
        (folder / CAPTIONS).write_text("\n\n".join(captions) + "\n", encoding="utf-8")
        return sorted(file.name for file in folder.iterdir())
