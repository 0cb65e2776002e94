"""`lockref audit` from the outside: files, streams, exit codes, and nothing left behind."""

import json
import shlex

import jsonschema
import pytest

from lockproofs.claim import Verdict
from lockproofs.cli import main
from lockproofs.report import SCHEMA_FILE
from lockref.models.zoo import zoo_path

REPORTS = ["report.html", "report.json", "report.md"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def lockref(capsys):
    """Runs a command line on given claims: exit code, standard output, standard error."""

    def run(line, claims):
        code = main(shlex.split(line), claims=lambda: claims)
        return code, *capsys.readouterr()

    return run


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_it_writes_three_reports_and_prints_the_table(lockref, registry, tmp_path):
    code, out, _ = lockref("audit --fail-on never", registry)
    assert code == 0
    assert left(tmp_path) == ["lockref-report"]
    assert left(tmp_path / "lockref-report") == REPORTS
    said = " ".join(out.split())
    for words in (*registry, "6 planned, 4 run, 1 skipped, 1 errored", "5 checks", "recorded: holds"):
        assert words in said
    assert "skipped: X-LACKS: needs --base" in said
    assert "errored: X-CRASH: ZeroDivisionError: a division by zero" in said


def test_json_goes_to_standard_output_alone(lockref, registry, tmp_path):
    code, out, _ = lockref("audit --json - --out r --fail-on never", registry)
    data = json.loads(out)
    jsonschema.validate(data, json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))
    assert code == 0
    assert json.loads((tmp_path / "r" / "report.json").read_text(encoding="utf-8")) == data
    assert [subject["name"] for subject in data["subjects"]] == ["base", "add", "reverse"]


def test_quiet_is_quiet(lockref, decided):
    assert lockref("audit --quiet", decided) == (0, "", "")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ("", 1),  # X-CRASH is recorded as holds
        ("--claims X-HOLDS,x-refuted", 0),
        ("--fail-on changed --claims X-CRASH", 1),
        ("--fail-on refuted", 1),
        ("--fail-on refuted --claims X-HOLDS", 0),
        ("--fail-on undecided", 2),
        ("--fail-on undecided --claims X-HOLDS,X-IF", 0),
        ("--fail-on never", 0),
        ("{zoo}", 1),  # a subject: refuted
        ("{zoo} --claims X-CRASH,X-HOLDS", 0),
        ("{zoo} --base {zoo} --fail-on undecided", 2),
    ],
)
def test_exit_codes(lockref, registry, options, code):
    line = options.format(zoo=shlex.quote(str(zoo_path("base"))))
    assert lockref(f"audit --quiet {line}", registry)[0] == code


def test_only_the_claims_that_were_named_run_in_the_order_of_the_registry(lockref, registry):
    _, out, _ = lockref("audit --json - --claims ' X-IF,X-HOLDS,X-IF'", registry)
    assert [claim["id"] for claim in json.loads(out)["claims"]] == ["X-HOLDS", "X-IF"]


@pytest.mark.parametrize("subject", ["", "{zoo} --base {zoo}"])
def test_the_reproduce_line_reproduces(lockref, decided, subject, tmp_path):
    where = subject.format(zoo=shlex.quote(str(zoo_path("base"))))
    _, out, _ = lockref(f"audit --json - --seed 3 --cases 9 {where}", decided)
    for claim in json.loads(out)["claims"]:
        program, line = claim["reproduce"].split(maxsplit=1)
        assert program == "lockref"
        _, again, _ = lockref(f"{line} --json - --out again", decided)
        assert json.loads(again)["claims"] == [claim]


def test_a_subject_has_no_recorded_verdicts(lockref, registry):
    _, out, _ = lockref(f"audit {zoo_path('base')} --json -", registry)
    assert {claim["changed"] for claim in json.loads(out)["claims"]} == {None}
    _, out, _ = lockref("audit --json -", registry)
    changed = {claim["id"] for claim in json.loads(out)["claims"] if claim["changed"]}
    assert changed == {"X-CRASH"}


def test_an_interrupt_leaves_the_old_report(lockref, decided, stops, tmp_path):
    lockref("audit --quiet", decided)
    before = (tmp_path / "lockref-report" / "report.json").read_bytes()
    code, out, err = lockref("audit --claims X-HOLDS,X-STOP", decided | stops)
    assert code == 130 and out == ""
    assert err.strip().splitlines()[-1] == "lockref: interrupted; nothing was written"
    assert left(tmp_path) == ["lockref-report"]
    assert left(tmp_path / "lockref-report") == REPORTS
    assert (tmp_path / "lockref-report" / "report.json").read_bytes() == before


@pytest.mark.parametrize("out", ["new", "old"])
def test_nothing_is_written_while_the_claims_run(lockref, decided, make_claim, tmp_path, out):
    (tmp_path / "old").mkdir()
    seen = []

    def looks(context):
        seen.extend(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
        return decided["X-HOLDS"].check(context)

    claim = make_claim("X-LOOKS", looks, Verdict.HOLDS)
    assert lockref(f"audit --quiet --out {out}", {claim.id: claim})[0] == 0
    assert seen == ["old"]
    assert left(tmp_path / out) == REPORTS


def test_other_files_of_the_output_directory_stay(lockref, decided, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("kept")
    assert lockref("audit --quiet --out mine", decided)[0] == 0
    assert left(tmp_path / "mine") == ["notes", *REPORTS]
