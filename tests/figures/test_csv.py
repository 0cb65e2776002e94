"""The numbers of a figure are those of the report or of the stored rows that its CSV names, and nothing is computed."""

import csv
import json
from functools import cache
from statistics import fmean

import pytest

from lockfigs import finetune, paths, trap2
from lockfigs.gallery import FIGURES, waiting
from lockfigs.sources import Sources
from lockproofs.claim import BadInput
from lockproofs.experiments import dlr_stored_bytes
from lockproofs.experiments.store import RESULTS, Result, stored
from lockproofs.readme import CHECKOUT

REPORT = CHECKOUT / "docs" / "report.json"
DRAWN = {name: figure for name, figure in FIGURES.items() if figure not in waiting(Sources(REPORT))}


def points(report):
    """Every point of every curve of a report, by the name that a CSV gives to its source."""
    return {
        f"{claim['id']} | {plot['title']} | {curve['name']}": list(zip(curve["x"], curve["y"], strict=True))
        for claim in report["claims"]
        for plot in claim["plots"]
        for curve in plot["curves"]
    }


def number(text):
    return float(text) if text else None


def lines_of(file):
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def strangers(file, report, results=RESULTS):
    """Sources of a CSV whose points are not exactly those of the report, or of the stored rows that they name."""
    found, wrong = {}, set()
    for row in lines_of(file):
        if row["source"].startswith("result "):
            if not from_stored(row, results):
                wrong.add(row["source"])
        else:
            found.setdefault(row["source"], []).append((number(row["x"]), number(row["y"])))
    known = points(report)
    return wrong | {source for source, got in found.items() if got != known.get(source)}


@cache
def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


def from_stored(row, results):
    """Whether y, low and high are mean, least and greatest of the field that the source names, over the rows it names.

    And whether x is where that was measured: the scale, share or step of the same index, or the rows' own field.
    """
    name, cells, field = row["source"].removeprefix("result ").split(" | ")
    wanted = dict(cell.split("=", 1) for cell in cells.split("; "))
    every = read(results / f"{name}.json")
    seeds = wanted.pop("seed", None)
    rows = [r for r in every["rows"] if all(str(r[k]) == v for k, v in wanted.items())]
    rows = [r for r in rows if seeds is None or str(r["seed"]) in seeds.split("|")]
    column, _, index = field.rstrip("]").partition("[")
    values = [r["merged"][field.split(".")[1]] if "." in field else r[column] for r in rows]
    values = [v for v in (v[int(index)] if index else v for v in values) if v is not None]
    spread = (min(values), max(values)) if len(rows) > 1 else (None, None)
    axis = next((rows[0][a] for a in ("scales", "alphas") if a in rows[0] and column in ("loss", "losses")), None)
    if axis is not None:
        at = float(row["x"]) == axis[int(index)]
    elif column == "held_out":
        at = float(row["x"]) == int(index) * every["settings"]["every"]
    else:
        at = row["x"] in {f"{r[k]:g}" for r in rows for k in ("depth", "strength") if k in r} or "λ = " in row["x"]
    got = tuple(number(row[side]) for side in ("y", "low", "high"))
    assert rows and (seeds is None or len(rows) == len(seeds.split("|"))), row["source"]
    return at and got == (fmean(values), *spread)


@pytest.mark.parametrize("name", DRAWN)
def test_a_csv_says_what_the_report_says(name, drawn, report):
    file = drawn / f"{FIGURES[name].stem}.csv"
    assert strangers(file, report) == set()
    assert len(file.read_text(encoding="utf-8").splitlines()) > 10


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("side", ["x", "y", "low", "high"])
def test_any_changed_number_of_any_figure_is_seen(name, side, drawn, report, tmp_path):
    """The last point of each source, changed by a thousandth; a point of a report has no spread."""
    rows = lines_of(drawn / f"{FIGURES[name].stem}.csv")
    last = {row["source"]: i for i, row in enumerate(rows) if row[side] and "λ" not in row[side]}
    for i in last.values():
        rows[i] |= {side: repr(float(rows[i][side]) * 1.001 + 1e-6)}
    write(tmp_path / "broken.csv", rows)
    assert strangers(tmp_path / "broken.csv", report) == set(last)


def write(file, rows):
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_a_changed_number_and_a_missing_point_are_seen(drawn, report, tmp_path):
    file = drawn / f"{FIGURES['eq2'].stem}.csv"
    lines = file.read_text(encoding="utf-8").splitlines()
    at = next(i for i, line in enumerate(lines) if "(P_k), eq. (2)" in line and ",1.0," in line)
    for broken in ([*lines[:at], lines[at].replace(",1.0,", ",1.5,"), *lines[at + 1 :]], lines[:at] + lines[at + 1 :]):
        (tmp_path / "broken.csv").write_text("\n".join(broken), encoding="utf-8")
        assert len(strangers(tmp_path / "broken.csv", report)) == 1


def test_pytorch_keeps_what_ledger_and_closed_form_say(report):
    """Every attacker that is drawn has all three, equal to the byte; the stored rows are repeated elsewhere."""
    known, rows = points(report), stored("dlr_stored_bytes").rows
    ledgers = {name.split(" | ")[2].removesuffix(": ledger") for name in known if name.endswith(": ledger")}
    assert ledgers == set(dlr_stored_bytes.WAYS)
    for way in ledgers:
        got = [(row["depth"], row["bytes_per_token"]) for row in rows if row["way"] == way]
        (want,) = [curve for name, curve in known.items() if name.endswith(f"| {way}: ledger")]
        (form,) = [dict(curve) for name, curve in known.items() if name.endswith(f"| {way}: closed form")]
        assert got == want == [(depth, form[depth]) for depth, _ in got], way


def fine_tuned(rates):
    """A made-up result: two seeds a rate, held-out losses as given."""
    rows = [
        {"model": model, "trained": "all", "rate": rate, "seed": seed, "held_out": losses}
        for model, found in rates.items()
        for rate, both in found.items()
        for seed, losses in enumerate(both)
    ]
    known = stored("dlr_stored_bytes")
    settings = {"every": 5, "steps": 10, "skill": "add"}
    return known.model_copy(update={"experiment": "dlr_finetune", "rows": rows, "settings": settings})


def test_the_best_rate_is_each_models_own_and_never_one_that_diverged(tmp_path):
    result = fine_tuned(
        {
            "original": {0.1: [[3.0, 2.0, 1.0], [3.0, 2.5, 2.0]], 0.2: [[3.0, 1.0, 0.5], [3.0, 9.0, None]]},
            "locked": {0.1: [[4.0, 3.0, 3.0], [4.0, 3.0, 3.0]], 0.2: [[4.0, 3.0, 2.0], [4.0, 3.0, 2.5]]},
        }
    )
    assert isinstance(result, Result)
    (tmp_path / "dlr_finetune.json").write_text(result.model_dump_json(), encoding="utf-8")
    sources = Sources(REPORT, tmp_path)
    found = {(row.series, row.x): (row.low, row.y, row.high) for row in finetune.read(sources)}
    assert found == {
        ("original", 0): (3.0, 3.0, 3.0), ("original", 5): (2.0, 2.25, 2.5), ("original", 10): (1.0, 1.5, 2.0),
        ("locked", 0): (4.0, 4.0, 4.0), ("locked", 5): (3.0, 3.0, 3.0), ("locked", 10): (2.0, 2.25, 2.5),
    }  # fmt: skip
    said = finetune.FIGURE.write(sources, tmp_path)
    assert "mean of 2 seeds" in said and (tmp_path / "figure9-finetune.pdf").stat().st_size > 1000


PAIRS = [(kind, strength, seed) for kind in ("full", "lora") for strength in (0.0, 0.02) for seed in (0, 1, 2)]


def plant(folder, **results):
    """Made-up stored results."""
    known = stored("dlr_stored_bytes")
    for name, rows in results.items():
        settings = {"problems": 7, "recovery": {"steps": 9}}
        result = known.model_copy(update={"experiment": name, "rows": rows, "settings": settings})
        (folder / f"{name}.json").write_text(result.model_dump_json(), encoding="utf-8")


def trap_rows():
    scale = [
        {"kind": k, "strength": s, "seed": n, "scales": [0.0, 1.0], "loss": [2.0 + n, 1.0 + s]} for k, s, n in PAIRS
    ]
    scale.append({"kind": "lora", "strength": 0.001, "seed": 0, "scales": [0.0, 1.0], "loss": [2.0, 1.0]})
    operators = {"full": ("expert", "ties", "nominal"), "lora": ("expert", "ties", "core-ties", "nominal")}
    merge = [
        {"kind": k, "strength": s, "seed": n, "operator": o, "add": 0.5 + 0.25 * n - s, "reverse": 0.1}
        for k, s, n in PAIRS
        for o in operators[k]
    ]
    strength = [
        {"kind": k, "strength": s, "steps": steps, "law": law, "scales": [0.5, 1.0], "match": [0.1, 0.9 - s],
         "merged": {"add": 0.5 - s}}
        for k in ("full", "lora")
        for s in (0.0, 0.02, 0.05)
        for steps, law in ((600, "published"), (300, "published"), (600, "below"))
    ]  # fmt: skip
    return {"trap_scale": scale, "trap_merge": merge, "trap_strength": strength}


def test_trap2_takes_mean_and_spread_over_any_number_of_seeds(tmp_path, report):
    plant(tmp_path, **trap_rows())
    sources = Sources(REPORT, tmp_path)
    found = {(row.panel, row.series, row.x): (row.low, row.y, row.high) for row in trap2.read(sources)}
    assert found["full updates", "λ = 0.02", 0.0] == (2.0, 3.0, 4.0)
    assert found["LoRA", "λ = 0", 1.0] == (1.0, 1.0, 1.0)
    assert found["LoRA", "λ = 0.001", 1.0] == (None, 1.0, None), "one seed has no spread"
    assert found["merged, addition", "ties", "full, λ = 0"] == (0.5, 0.75, 1.0)
    assert found["merged, reversal", "ties", "full, λ = 0"] == (0.1, fmean([0.1] * 3), 0.1)
    assert ("merged, addition", "core-ties", "full, λ = 0") not in found
    assert found["strength", "full, merged", "0.05"] == (None, 0.45, None)
    assert found["strength", "LoRA, alone", "0.02"] == (None, 0.88, None)
    assert len(found) == 10 + 2 * 14 + 12
    said = trap2.FIGURE.write(sources, tmp_path)
    assert "averaged over 3 seeds, 7 problems" in said and "λ = 0.02: 3" in said
    assert (tmp_path / "figure8-trap2.pdf").stat().st_size > 1000
    assert strangers(tmp_path / "figure8-trap2.csv", report, tmp_path) == set()


def test_trap2_can_do_without_what_is_not_stored(tmp_path):
    plant(tmp_path, trap_scale=trap_rows()["trap_scale"])
    said = trap2.FIGURE.write(Sources(REPORT, tmp_path), tmp_path)
    assert "Merges by operator are not shown: trap_merge is not stored yet." in said and "(c)" not in said


def test_paths_of_trap2_have_panels_where_they_are_stored(tmp_path, report):
    plant(tmp_path, dlr_paths=stored("dlr_paths").rows, trap_paths=[
        {"kind": k, "strength": s, "path": path, "seed": n, "alphas": [0, 0.5, 1], "losses": [1.0, 2.0 + s + n, 3.0]}
        for k, s, n in PAIRS
        for path in ("straight", *["nominal", "recovered"] * (s > 0))
    ])  # fmt: skip
    sources = Sources(REPORT, tmp_path)
    found = {(row.panel, row.series, row.x): (row.low, row.y, row.high) for row in paths.read(sources)}
    assert found["Trap², LoRA", "before the lock", 0.5] == (2.0, 3.0, 4.0)
    assert found["Trap², full updates", "with the lock", 0.5] == (2.02, fmean([2.02, 3.02, 4.02]), 4.02)
    assert found["Trap², full updates", "expert kept at s = 1", 1.0] == (3.0, 3.0, 3.0)
    said = paths.FIGURE.write(sources, tmp_path)
    assert found["Trap², LoRA", "expert fine-tuned", 0.5] == (2.02, fmean([2.02, 3.02, 4.02]), 4.02)
    assert "λ = 0.02" in said and "mean and range of 3 seeds" in said and "had 9 steps" in said
    assert strangers(tmp_path / "figure5-paths.csv", report, tmp_path) == set()


def test_rows_of_another_version_name_the_command(tmp_path):
    old = stored("dlr_stored_bytes").model_copy(update={"rows": [{"kind": "full"}]})
    for name in ("trap_scale", "trap_merge"):
        (tmp_path / f"{name}.json").write_text(old.model_dump_json(), encoding="utf-8")
    with pytest.raises(BadInput, match=r"another version .*experiments trap_scale and .*experiments trap_merge$"):
        trap2.FIGURE.write(Sources(REPORT, tmp_path), tmp_path)


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("report", ["missing", "older"])
def test_every_figure_names_the_command_that_it_lacks(name, report, tmp_path):
    """Without a report, or with one of a version without plots; and without stored results."""
    file = tmp_path / "report.json"
    if report == "older":
        older = read(REPORT) | {"claims": [claim | {"plots": []} for claim in read(REPORT)["claims"]]}
        file.write_text(json.dumps(older), encoding="utf-8")
    with pytest.raises(BadInput, match=r"run (lockref audit|python -m lockproofs\.experiments \w+)") as said:
        FIGURES[name].write(Sources(file, tmp_path), tmp_path)
    assert "\n" not in str(said.value)
