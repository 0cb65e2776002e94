"""Where figures take their numbers from: an audit's report.json, and the stored results of experiments."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from lockproofs.claim import BadInput, MissingInput, Plot
from lockproofs.experiments import store
from lockproofs.report import FORMAT

Stored = dict[str, Any]  # a row of a stored result
AGAIN = "run lockref audit with this version and name its report.json with --report"


@dataclass(frozen=True)
class Row:
    """One point of a figure: a line of its CSV. `low` and `high` are a spread about y."""

    panel: str
    series: str
    x: float | str
    y: float | None  # None is a gap
    source: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Sources:
    """A report, and the folder of stored results."""

    file: Path
    results: Path = store.RESULTS

    @cached_property
    def report(self) -> dict[str, Any]:
        """The report as data. Raises BadInput, naming the command to run, for none or one of another version."""
        try:
            found = json.loads(self.file.read_bytes())
        except FileNotFoundError:
            raise BadInput(f"{self.file}: no such file; run lockref audit, or name its report with --report") from None
        except OSError as error:
            raise BadInput(f"{self.file}: {error.strerror}; {AGAIN}") from None
        except (ValueError, RecursionError):
            raise BadInput(f"{self.file}: not JSON, or only a part of it; {AGAIN}") from None
        version = found.get("schema") if isinstance(found, dict) else None
        if version != FORMAT:
            raise BadInput(f"{self.file}: schema {version!r}, but figures are drawn from {FORMAT!r}; {AGAIN}")
        return found  # type: ignore[no-any-return]

    def claim(self, claim_id: str) -> dict[str, Any]:
        """A claim of the report. Raises BadInput where the report lacks it."""
        try:
            return next(c for c in self.report["claims"] if c["id"] == claim_id)
        except (StopIteration, KeyError, TypeError):
            raise BadInput(f"{self.file}: claim {claim_id} is not in it; {AGAIN}, without --claims") from None

    def plot(self, claim_id: str, beginning: str) -> Plot:
        """The plot of a claim whose title begins so. Raises BadInput where the report is older and has none."""
        try:
            found = [p for p in self.claim(claim_id)["plots"] if p["title"].startswith(beginning)]
            if found:
                return Plot.model_validate(found[0])
        except (KeyError, TypeError, ValueError):
            raise BadInput(f"{self.file}: {claim_id} has plots that are not those of {FORMAT!r}; {AGAIN}") from None
        raise BadInput(f"{self.file}: {claim_id} has no plot {beginning!r}, so it is another version's; {AGAIN}")

    def curves(self, claim_id: str, beginning: str, panel: str, *, only: str = "", rename: str = "") -> list[Row]:
        """Every point of a plot's curves, or of those whose name ends with `only`, which `rename` then replaces."""
        plot = self.plot(claim_id, beginning)
        return [
            Row(panel, c.name.removesuffix(only) + rename, x, y, f"{claim_id} | {plot.title} | {c.name}")
            for c in plot.curves
            if c.name.endswith(only)
            for x, y in zip(c.x, c.y, strict=True)
        ]

    def stored(self, name: str) -> store.Result:
        """A stored result. Raises BadInput, naming the command to run, where it is missing or another version's."""
        try:
            return store.stored(name, self.results)
        except MissingInput as error:
            raise BadInput(str(error)) from None

    def has(self, name: str) -> bool:
        """Whether a result is stored, for series that a figure can do without."""
        return (self.results / f"{name}.json").is_file()


def groups(rows: Iterable[Stored], *fields: str) -> dict[tuple[Any, ...], list[Stored]]:
    """Stored rows that agree in these fields, one a seed, in the order of the rows."""
    found: dict[tuple[Any, ...], list[Stored]] = {}
    for row in rows:
        found.setdefault(tuple(row[field] for field in fields), []).append(row)
    return found


def measured(
    panel: str, name: str, x: float | str, result: str, runs: list[Stored], fields: Iterable[str], what: str
) -> Row:
    """Mean, least and greatest over the runs of `what`, a field like loss[3] or merged.add; a gap where none has it.

    The runs agree in `fields`; with their seeds, these are what the row says of its source.
    """
    values = [value for value in (_within(run, what) for run in runs) if value is not None]
    known = [f"{field}={runs[0][field]}" for field in fields]
    if all("seed" in run for run in runs):
        known.append(f"seed={'|'.join(str(run['seed']) for run in runs)}")
    spread = (fmean(values), min(values), max(values)) if values else (None, None, None)
    ends = spread[1:] if len(runs) > 1 else (None, None)
    return Row(panel, name, x, spread[0], f"result {result} | {'; '.join(known)} | {what}", *ends)


def _within(row: Any, what: str) -> float | None:
    for part in re.findall(r"\w+", what):
        row = row[int(part)] if isinstance(row, list) else row[part]
    return None if row is None else float(row)


def series(rows: Iterable[Row], panel: str) -> dict[str, list[Row]]:
    """The rows of a panel by series, both in the order of the rows."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.panel == panel:
            found.setdefault(row.series, []).append(row)
    return found
