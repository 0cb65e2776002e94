"""`lockref figures` draws what the published report holds: the same numbers and bytes, and nothing on bad input."""

import json
import re
import shlex

import numpy as np
import pytest

from lockfigs.gallery import CAPTIONS, FIGURES, draw, waiting
from lockfigs.sources import Sources
from lockproofs.audit import audit
from lockproofs.claim import BadInput
from lockproofs.claims import all_claims
from lockproofs.cli import main
from lockproofs.experiments.store import stored
from lockproofs.readme import CHECKOUT, pages
from lockproofs.subject import zoo_subject

REPORT = CHECKOUT / "docs" / "report.json"
KINDS = ("csv", "pdf", "png", "svg")
DRAWN = {name: figure for name, figure in FIGURES.items() if figure not in waiting(Sources(REPORT))}


def test_every_figure_has_its_files(drawn):
    names = {f"{figure.stem}.{kind}" for figure in DRAWN.values() for kind in KINDS} | {CAPTIONS}
    assert {path.name for path in drawn.iterdir()} == names
    assert [figure.number for figure in FIGURES.values()] == sorted({figure.number for figure in FIGURES.values()})


def test_captions_say_model_cases_and_commands(drawn, report):
    captions = (drawn / CAPTIONS).read_text(encoding="utf-8").strip().split("\n\n")
    assert len(captions) == len(DRAWN)
    for caption, figure in zip(captions, DRAWN.values(), strict=True):
        assert caption.startswith(f"**Figure {figure.number}. {figure.title}.**")
        assert f"`lockref figures DIR --only {figure.name}`" in caption and re.search(r"seed \d", caption)
        for said in re.findall(r"([A-Z]+(?:-[A-Z0-9]+)+) \(([\d,]+) cases\)", caption):
            checks = next(claim["checks"] for claim in report["claims"] if claim["id"] == said[0])
            assert int(said[1].replace(",", "")) == sum(check["cases"] for check in checks)
        results = re.findall(r"the stored result (\w+) \((\d+) rows, seed (\d+)\)", caption)
        assert {name for name, _, _ in results} == {*figure.needs, *(n for n in figure.takes if Sources(REPORT).has(n))}
        for name, rows, seed in results:
            assert (int(rows), int(seed)) == (len(stored(name).rows), stored(name).seed)
            assert f"`{stored(name).command}`" in caption


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
