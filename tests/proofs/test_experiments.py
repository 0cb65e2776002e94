"""Long experiments: resumed cell by cell, published whole, read strictly."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from threadpoolctl import threadpool_info

from lockproofs.claim import BadInput, MissingInput
from lockproofs.exit_codes import BAD_INPUT, DONE
from lockproofs.experiments.__main__ import load, main, names
from lockproofs.experiments.store import RESULTS, Cell, Experiment, run, stored


def squares(calls: list[int], fails_at: int | None = None) -> Experiment:
    def measure(cell: Cell) -> dict[str, Any]:
        if cell["n"] == fails_at:
            raise KeyboardInterrupt
        calls.append(cell["n"])
        return {"square": cell["n"] ** 2}

    return Experiment("squares", "Squares", 3, {"power": 2}, [{"n": n} for n in range(4)], measure)


def test_an_interrupted_run_goes_on_after_the_last_finished_cell(tmp_path: Path) -> None:
    calls: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        run(squares(calls, fails_at=2), tmp_path / "work", tmp_path / "out")
    assert not (tmp_path / "out").exists(), "an unfinished result was published"
    followed: list[tuple[int, int]] = []
    run(squares(calls), tmp_path / "work", tmp_path / "out", lambda *at: followed.append(at))
    assert calls == [0, 1, 2, 3]
    assert followed == [(2, 4), (3, 4), (4, 4)]
    found = stored("squares", tmp_path / "out")
    assert [row["square"] for row in found.rows] == [0, 1, 4, 9]
    assert found.where(n=3)[0]["square"] == 9
    assert (found.command, found.seed) == ("python -m lockproofs.experiments squares", 3)
    assert found.environment.packages["numpy"]
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda e: replace(e, seed=4),
        lambda e: replace(e, settings={"power": 3}),
        lambda e: replace(e, cells=[{"n": 7}, *e.cells[1:]]),
    ],
    ids=["seed", "settings", "cells"],
)
def test_rows_of_another_run_are_refused(tmp_path: Path, change: Callable[[Experiment], Experiment]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(squares([], fails_at=2), tmp_path, tmp_path / "out")
    with pytest.raises(BadInput, match="begun with other settings"):
        run(change(squares([])), tmp_path, tmp_path / "out")


def test_a_broken_work_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "squares.json").write_text("{")
    with pytest.raises(BadInput, match="not an unfinished result"):
        run(squares([]), tmp_path, tmp_path / "out")


def test_a_figure_may_not_hide_its_cell(tmp_path: Path) -> None:
    clash = replace(squares([]), measure=lambda cell: {"n": 1})
    with pytest.raises(ValueError, match=r"measured \['n'\]"):
        run(clash, tmp_path, tmp_path / "out")


def test_cells_are_measured_on_one_blas_thread(tmp_path: Path) -> None:
    def threads(cell: Cell) -> dict[str, Any]:
        return {"threads": max(p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas")}

    found = run(replace(squares([]), measure=threads), tmp_path, tmp_path / "out")
    assert {row["threads"] for row in found.rows} == {1}


def test_a_missing_or_broken_result_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"run python -m lockproofs\.experiments squares"):
        stored("squares", tmp_path)
    (tmp_path / "squares.json").write_text('{"experiment": 1}')
    with pytest.raises(MissingInput, match="squares again"):
        stored("squares", tmp_path)


def test_the_command_refuses_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nothing"]) == BAD_INPUT
    assert capsys.readouterr().err.startswith("experiments: unknown experiment 'nothing': choose from")
    assert main(["--help"]) == DONE


@pytest.mark.parametrize("name", names())
def test_every_experiment_has_its_result(name: str) -> None:
    experiment, found = load(name), stored(name)
    assert found.experiment == experiment.name == name
    assert (found.command, found.seed) == (experiment.command, experiment.seed)
    assert found.settings == json.loads(json.dumps(dict(experiment.settings))), f"{name} is stale: run it again"
    cells = [{key: row[key] for key in cell} for row, cell in zip(found.rows, experiment.cells, strict=True)]
    assert cells == list(experiment.cells), f"{name} is stale: run it again"


def test_every_result_has_its_experiment() -> None:
    found = {file.stem.removesuffix("_cuda") for file in RESULTS.glob("*.json")}  # full_parity: one for each device
    assert found == set(names())
