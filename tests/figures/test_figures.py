"""`lockref figures` draws what the published report holds: the same numbers and bytes, and nothing on bad input."""

import csv
import json
import re
import shlex

import numpy as np
import pytest

from lockfigs import finetune, trap2
from lockfigs.gallery import CAPTIONS, FIGURES, draw, waiting
from lockfigs.sources import Sources
from lockproofs.audit import audit
from lockproofs.claim import BadInput
from lockproofs.claims import all_claims
from lockproofs.cli import main
from lockproofs.experiments import dlr_stored_bytes
from lockproofs.experiments.store import Result, stored
from lockproofs.readme import CHECKOUT, pages
from lockproofs.subject import zoo_subject

REPORT = CHECKOUT / "docs" / "report.json"
KINDS = ("csv", "pdf", "png", "svg")
DRAWN = {name: figure for name, figure in FIGURES.items() if figure not in waiting(Sources(REPORT))}


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """Every figure, drawn once."""
    folder = tmp_path_factory.mktemp("figures")
    assert main(["figures", str(folder), "--report", str(REPORT), "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def report():
    return json.loads(REPORT.read_bytes())


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


def strangers(file, report):
    """Sources of a CSV whose points are not exactly those of the report."""
    found = {}
    with file.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if not row["source"].startswith("result "):
                found.setdefault(row["source"], []).append((number(row["x"]), number(row["y"])))
    known = points(report)
    return {source for source, got in found.items() if got != known.get(source)}


def test_every_figure_has_its_files(drawn):
    names = {f"{figure.stem}.{kind}" for figure in DRAWN.values() for kind in KINDS} | {CAPTIONS}
    assert {path.name for path in drawn.iterdir()} == names
    assert [figure.number for figure in FIGURES.values()] == sorted({figure.number for figure in FIGURES.values()})


@pytest.mark.parametrize("name", DRAWN)
def test_a_csv_says_what_the_report_says(name, drawn, report):
    file = drawn / f"{FIGURES[name].stem}.csv"
    assert strangers(file, report) == set()
    assert len(file.read_text(encoding="utf-8").splitlines()) > 10


def test_a_changed_number_and_a_missing_point_are_seen(drawn, report, tmp_path):
    file = drawn / f"{FIGURES['eq2'].stem}.csv"
    lines = file.read_text(encoding="utf-8").splitlines()
    at = next(i for i, line in enumerate(lines) if "(P_k), eq. (2)" in line and ",1.0," in line)
    for broken in ([*lines[:at], lines[at].replace(",1.0,", ",1.5,"), *lines[at + 1 :]], lines[:at] + lines[at + 1 :]):
        (tmp_path / "broken.csv").write_text("\n".join(broken), encoding="utf-8")
        assert len(strangers(tmp_path / "broken.csv", report)) == 1


def test_captions_say_model_cases_and_commands(drawn, report):
    captions = (drawn / CAPTIONS).read_text(encoding="utf-8").strip().split("\n\n")
    assert len(captions) == len(DRAWN)
    for caption, figure in zip(captions, DRAWN.values(), strict=True):
        assert caption.startswith(f"**Figure {figure.number}. {figure.title}.**")
        assert f"`lockref figures DIR --only {figure.name}`" in caption and re.search(r"seed \d", caption)
        for said in re.findall(r"([A-Z]+(?:-[A-Z0-9]+)+) \(([\d,]+) cases\)", caption):
            checks = next(claim["checks"] for claim in report["claims"] if claim["id"] == said[0])
            assert int(said[1].replace(",", "")) == sum(check["cases"] for check in checks)


def test_fonts_are_embedded_and_nothing_is_dated(drawn):
    for figure in DRAWN.values():
        pdf = (drawn / f"{figure.stem}.pdf").read_bytes()
        assert b"/FontFile2" in pdf and b"/Type3" not in pdf and b"CreationDate" not in pdf
        svg = (drawn / f"{figure.stem}.svg").read_text(encoding="utf-8")
        assert "<text" not in svg and "<dc:date>" not in svg


def test_the_same_report_gives_the_same_bytes(drawn, tmp_path):
    assert main(["figures", str(tmp_path), "--report", str(REPORT), "--only", "eq2,memory", "--quiet"]) == 0
    again = [path for path in tmp_path.iterdir() if path.name != CAPTIONS]
    assert len(again) == 2 * len(KINDS)
    for path in again:
        assert path.read_bytes() == (drawn / path.name).read_bytes(), f"{path.name} differs"


def test_the_figures_of_the_pages_are_these(drawn):
    """The versions of constraints.txt draw the same bytes everywhere."""
    kept = CHECKOUT / "docs" / "figures"
    command = "run lockref figures docs/figures --report docs/report.json"
    shown = {match for page in pages().values() for match in re.findall(r"figures/([\w-]+\.svg)", page)}
    assert len(shown) >= 5
    for name in shown:
        assert (kept / name).read_bytes() == (drawn / name).read_bytes(), f"docs/figures/{name} is stale: {command}"
    now = (drawn / CAPTIONS).read_text(encoding="utf-8")
    old = [text for text in (kept / CAPTIONS).read_text(encoding="utf-8").strip().split("\n\n") if text not in now]
    assert not old, f"docs/figures/{CAPTIONS} is stale: {command}"


def test_the_published_report_is_what_an_audit_finds(report):
    """One claim again; the verdicts of all."""
    claims = all_claims()
    stored = {claim["id"]: claim for claim in report["claims"]}
    assert all(claim["verdict"] == claims[i].recorded for i, claim in stored.items())
    cases = int(re.search(r"--cases (\d+)", stored["MB-T2A"]["reproduce"])[1])
    seed = report["effort"]["seed"]
    (again,) = audit(zoo_subject(), [claims["MB-T2A"]], seed=seed, cases=cases).as_data()["claims"]
    assert again["counterexample"] == stored["MB-T2A"]["counterexample"]
    for now, then in zip(again["plots"], stored["MB-T2A"]["plots"], strict=True):
        for got, want in zip(now["curves"], then["curves"], strict=True):
            np.testing.assert_allclose(got["y"], want["y"], rtol=1e-9, atol=1e-12, err_msg=got["name"])


def test_column_width(drawn):
    for figure in DRAWN.values():
        width = int.from_bytes((drawn / f"{figure.stem}.png").read_bytes()[16:20], "big")
        assert width == 990, f"{figure.name}: {width} pixels at 300 per inch, want 3.3 inches"


def edited(change):
    """The published report with a change, as text."""
    data = json.loads(REPORT.read_bytes())
    change(data)
    return json.dumps(data)


def no_plots(data):
    for claim in data["claims"]:
        claim["plots"] = []


def odd_plots(data):
    for claim in data["claims"]:
        claim["plots"] = [{"title": plot["title"], "lines": []} for plot in claim["plots"]]


REPORTS = {
    "truncated": lambda: REPORT.read_text(encoding="utf-8")[:10_000],
    "another schema": lambda: edited(lambda data: data.update(schema="lockref-report/9")),
    "a list": lambda: "[]",
    "no claims": lambda: edited(lambda data: data.update(claims=[])),
    "claims of another kind": lambda: edited(lambda data: data.update(claims=[None])),
    "an older version": lambda: edited(no_plots),
    "plots of another kind": lambda: edited(odd_plots),
}
SAID = {"another schema": "'lockref-report/9'", "truncated": "not JSON", "an older version": "has no plot"}


def says_one_line(capsys, code, *words):
    out, err = capsys.readouterr()
    assert (code, out) == (3, "")
    assert err.startswith("lockref: ") and err.count("\n") == 1 and "Traceback" not in err
    for word in words:
        assert word in err, err


@pytest.mark.parametrize("fault", REPORTS)
def test_a_wrong_report_is_one_line_that_names_the_command(fault, tmp_path, capsys):
    (tmp_path / "report.json").write_text(REPORTS[fault](), encoding="utf-8")
    code = main(
        ["figures", str(tmp_path / "out"), "--report", str(tmp_path / "report.json"), "--only", "eq2", "--quiet"]
    )
    says_one_line(capsys, code, "report.json", "run lockref audit", SAID.get(fault, ""))
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("figures out", ["lockref-report/report.json", "no such file", "run lockref audit"]),
        ("figures out --report a-folder", ["a-folder", "run lockref audit"]),
        ("figures out --report {report} --only eq3", ["'eq3'", "choose from storage, memory"]),
        ("figures out --report {report} --only ''", ["''", "choose from"]),
        ("figures a-file --report {report} --only eq2", ["DIR a-file", "is a file", "choose a directory"]),
        ("figures /proc/lockref --report {report} --only eq2", ["/proc/lockref", "cannot write", "choose another"]),
        ("figures", ["DIR"]),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(line, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("not a directory")
    (tmp_path / "a-folder").mkdir()
    says_one_line(capsys, main([*shlex.split(line.format(report=shlex.quote(str(REPORT)))), "--quiet"]), *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-file", "a-folder"]


def test_pytorch_keeps_what_the_ledger_says(report):
    """Stored rows against the report, and the first depth of each once more."""
    ledgers = points(report)
    rows = stored("dlr_stored_bytes").rows
    for way in dlr_stored_bytes.WAYS:
        got = [(row["depth"], row["bytes_per_token"]) for row in rows if row["way"] == way]
        (want,) = [curve for name, curve in ledgers.items() if name.endswith(f"| {way}: ledger")]
        assert got == want
        again = dlr_stored_bytes.measure({"way": way, "depth": got[2][0]})
        assert again["bytes_per_token"] == got[2][1]


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


def test_trap2_takes_mean_and_spread_over_seeds(tmp_path):
    known = stored("dlr_stored_bytes")
    pairs = [(kind, strength, seed) for kind in ("full", "lora") for strength in (0.0, 0.02) for seed in (0, 1)]
    scale = [
        {"kind": k, "strength": s, "seed": n, "scales": [0.0, 1.0], "loss": [2.0 + n, 1.0 + s]} for k, s, n in pairs
    ]
    merge = [
        {"kind": k, "strength": s, "seed": n, "operator": o, "add": 0.5 + 0.25 * n - s}
        for k, s, n in pairs
        for o in ("ties", *["core-ties"] * (k == "lora"))
    ]
    for name, rows in (("trap_scale", scale), ("trap_merge", merge)):
        result = known.model_copy(update={"experiment": name, "rows": rows, "settings": {"problems": 7}})
        (tmp_path / f"{name}.json").write_text(result.model_dump_json(), encoding="utf-8")
    sources = Sources(REPORT, tmp_path)
    found = {(row.panel, row.series, row.x): (row.low, row.y, row.high) for row in trap2.read(sources)}
    assert found["full", "λ = 0.02, 2 seeds", 0.0] == (2.0, 2.5, 3.0)
    assert found["LoRA", "λ = 0, 2 seeds", 1.0] == (1.0, 1.0, 1.0)
    assert found["merged", "ties", "full, λ = 0"] == (0.5, 0.625, 0.75)
    assert ("merged", "core-ties", "full, λ = 0") not in found and len(found) == 8 + 6
    said = trap2.FIGURE.write(sources, tmp_path)
    assert "mean of 2 seeds" in said and "7 problems" in said and (tmp_path / "figure8-trap2.pdf").stat().st_size > 1000


def test_rows_of_another_version_name_the_command(tmp_path):
    old = stored("dlr_stored_bytes").model_copy(update={"rows": [{"kind": "full"}]})
    for name in ("trap_scale", "trap_merge"):
        (tmp_path / f"{name}.json").write_text(old.model_dump_json(), encoding="utf-8")
    with pytest.raises(BadInput, match=r"another version .* run python -m lockproofs\.experiments trap_scale$"):
        trap2.FIGURE.write(Sources(REPORT, tmp_path), tmp_path)


def test_progress_reaches_the_end_and_an_interruption_leaves_nothing(tmp_path):
    seen = []
    draw(tmp_path / "out", REPORT, "eq2", lambda done, of: seen.append((done, of)))
    assert seen == [(0, 1), (1, 1)]

    def stop(done, of):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path / "other", REPORT, "eq2", stop)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_missing_result_names_its_command(tmp_path):
    with pytest.raises(BadInput, match=r"run python -m lockproofs\.experiments dlr_finetune$"):
        Sources(REPORT, tmp_path).stored("dlr_finetune")
