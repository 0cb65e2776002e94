"""A figure: what it reads, how it is drawn, what its caption says; and how its files are written."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from matplotlib.figure import Figure as Canvas

from lockfigs import style
from lockfigs.sources import Row, Sources
from lockproofs.claim import BadInput

FORMATS = ("pdf", "svg", "png")


@dataclass(frozen=True)
class Figure:
    """`read` gives the rows of the CSV, `draw` sees nothing else; `caption` says what they show."""

    number: int
    name: str
    title: str
    read: Callable[[Sources], list[Row]]
    draw: Callable[[list[Row]], Canvas]
    caption: Callable[[Sources], str]
    needs: tuple[str, ...] = ()  # stored results
    takes: tuple[str, ...] = ()  # stored results that it can do without

    @property
    def stem(self) -> str:
        """Of its files' names."""
        return f"figure{self.number}-{self.name}"

    def write(self, sources: Sources, folder: Path) -> str:
        """PDF, SVG, PNG and CSV in an existing folder; returns the caption in Markdown. Raises BadInput."""
        try:
            rows = self.read(sources)
        except (KeyError, IndexError, TypeError) as error:
            if not self.needs:
                raise
            used = (*self.needs, *filter(sources.has, self.takes))
            again = " and ".join(f"python -m lockproofs.experiments {name}" for name in used)
            raise BadInput(f"figure {self.name}: stored rows of another version ({error!r}); run {again}") from None
        write_csv(rows, folder / f"{self.stem}.csv")
        with style.styled():
            canvas = self.draw(rows)
            for kind in FORMATS:
                canvas.savefig(folder / f"{self.stem}.{kind}", metadata=dict(style.UNDATED[kind]))
        return f"**Figure {self.number}. {self.title}.** {self.caption(sources)} {credit(self, rows, sources)}"


def write_csv(rows: Sequence[Row], file: Path) -> None:
    """One line a row; numbers as Python writes them, so that they read back exactly; a gap is empty."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([field.name for field in fields(Row)])
        writer.writerows(["" if value is None else value for value in astuple(row)] for row in rows)


def credit(figure: Figure, rows: Sequence[Row], sources: Sources) -> str:
    """Model, cases, seed and commands, read off the sources of the rows."""
    origins = list(dict.fromkeys(row.source.split(" | ")[0] for row in rows))
    claims = [o for o in origins if not o.startswith("result ")]
    said, commands = [], []
    if claims:
        effort, subjects = sources.report["effort"], sources.report["subjects"]
        cases = [sum(check["cases"] for check in sources.claim(i)["checks"]) for i in claims]
        counted = ", ".join(f"{i} ({n:,} cases)" for i, n in zip(claims, cases, strict=True))
        models = ", ".join(f"{s['name']} ({s['role']}, {s['parameters']:,} parameters)" for s in subjects)
        said.append(f"From {counted}; audited models: {models}; seed {effort['seed']}.")
        commands.append(f"lockref audit --seed {effort['seed']}")
    for name in (o.removeprefix("result ") for o in origins if o.startswith("result ")):
        result = sources.stored(name)
        said.append(f"From the stored result {name} ({len(result.rows)} rows, seed {result.seed}).")
        commands.append(result.command)
    commands.append(f"lockref figures DIR --only {figure.name}")
    return " ".join(said) + " Again: " + ", ".join(f"`{c}`" for c in commands) + "."
