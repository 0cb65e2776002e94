"""Stored results: an experiment is a list of cells, measured one by one, resumed, and published whole."""

import json
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, ValidationError
from threadpoolctl import threadpool_limits

from lockproofs.claim import BadInput, MissingInput, Record
from lockproofs.doctor import environment, tool
from lockproofs.report import Environment, Tool, to_json

Cell = dict[str, Any]  # what one measurement is of, JSON-able: {"model": "dlr-16", "rate": 0.01, "seed": 0}
Follow = Callable[[int, int], None]  # (cells done, cells in all)

RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Experiment:
    """What is measured: `measure(cell)` returns figures by name, JSON-able, none of them a name in the cell."""

    name: str
    title: str
    seed: int
    settings: Mapping[str, Any]  # what all cells share, JSON-able
    cells: Sequence[Cell]
    measure: Callable[[Cell], dict[str, Any]]

    @property
    def command(self) -> str:
        """What a reader types to run it again."""
        return f"python -m lockproofs.experiments {self.name}"


class Result(Record):
    """A published file: each row is a cell with what was measured in it, and the seconds that took."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["lockref-result/1"] = "lockref-result/1"
    experiment: str
    title: str
    command: str
    seed: int
    settings: dict[str, Any]
    tool: Tool
    environment: Environment
    rows: list[dict[str, Any]]

    def where(self, **wanted: Any) -> list[dict[str, Any]]:
        """The rows in which these fields have these values."""
        return [row for row in self.rows if all(row[name] == value for name, value in wanted.items())]


def stored(name: str, folder: Path = RESULTS) -> Result:
    """The published result of an experiment. Raises MissingInput, with the command that makes it, if there is none."""
    try:
        return Result.model_validate_json((folder / f"{name}.json").read_bytes())
    except OSError as error:
        raise MissingInput(
            f"no stored result {name} ({error.strerror}); run python -m lockproofs.experiments {name}"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        raise MissingInput(
            f"stored result {name}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}; "
            f"run python -m lockproofs.experiments {name} again"
        ) from None


def run(experiment: Experiment, work: Path, out: Path, follow: Follow | None = None) -> Result:
    """Measures the cells that `work` does not hold yet, on one BLAS thread, and publishes the result in `out`.

    Every finished cell is in `work` before the next begins. Raises BadInput where `work` holds another run.
    """
    unfinished = work / f"{experiment.name}.json"
    result = _resumed(experiment, unfinished)
    rows = result.rows
    for done in range(len(rows), len(experiment.cells)):
        if follow:
            follow(done, len(experiment.cells))
        cell, started = experiment.cells[done], time.perf_counter()
        with threadpool_limits(1, user_api="blas"):
            found = experiment.measure(cell)
        if shared := cell.keys() & found.keys():
            raise ValueError(f"{experiment.name}: measured {sorted(shared)}, which the cell names too; rename one")
        rows.append({**cell, **found, "seconds": round(time.perf_counter() - started, 3)})
        _write(unfinished, result)
    if follow:
        follow(len(rows), len(experiment.cells))
    _write(out / unfinished.name, result)
    unfinished.unlink(missing_ok=True)
    return result


def _resumed(experiment: Experiment, file: Path) -> Result:
    """A new result without rows, or the one in `file` where it is the same experiment's."""
    fresh = Result(
        experiment=experiment.name, title=experiment.title, command=experiment.command, seed=experiment.seed,
        settings=json.loads(to_json(dict(experiment.settings))), tool=tool(), environment=environment(), rows=[],
    )  # fmt: skip
    if not file.exists():
        return fresh
    try:
        found = Result.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        raise BadInput(f"{file}: not an unfinished result; remove it or choose another --work") from None
    begun = [{name: row.get(name) for name in cell} for row, cell in zip(found.rows, experiment.cells, strict=False)]
    same = (found.seed, found.settings, found.environment.packages, begun) == (
        fresh.seed, fresh.settings, fresh.environment.packages, list(experiment.cells[: len(found.rows)]),
    )  # fmt: skip
    if not same:
        raise BadInput(f"{file}: begun with other settings, cells or versions; remove it or choose another --work")
    return found


def _write(file: Path, result: Result) -> None:
    """The whole file or nothing. Raises BadInput where it cannot be written."""
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(to_json(result.model_dump(mode="json")), encoding="utf-8")
        os.replace(temporary, file)
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror}; choose a directory that can be written") from None
    finally:
        temporary.unlink(missing_ok=True)
