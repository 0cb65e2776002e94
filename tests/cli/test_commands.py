"""`lockref claims`, `explain`, `doctor`, `--version`, and a `--help` that answers at once."""

import json
import subprocess
import sys
from importlib.metadata import version

import pytest

from lockproofs.cli import main
from lockproofs.report import ClaimResult

# Not pydantic: typer may read options with it.
HEAVY = ("numpy", "scipy", "matplotlib", "jinja2", "flint", "torch", "lockref")


@pytest.fixture
def lockref(capsys):
    """Runs a command on given claims: exit code, standard output with its spaces squeezed."""

    def run(*argv, claims):
        code = main(argv, claims=lambda: claims)
        out, _ = capsys.readouterr()
        return code, " ".join(out.split())

    return run


@pytest.mark.parametrize("argv", [["--help"], ["audit", "--help"], ["--version"], []])
def test_help_imports_nothing_heavy(argv):
    program = (
        f"import sys; from lockproofs.cli import main; code = main({argv!r}); "
        f"print(code, sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert done.stderr == ""


def test_the_installed_command_tells_its_version():
    line = [sys.executable, "-c", "from lockproofs.cli import main; raise SystemExit(main())", "--version"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["lockref", version("lockref")]


def test_claims_lists_them_all(lockref, registry, capsys):
    code, said = lockref("claims", claims=registry)
    assert code == 0
    for claim in registry.values():
        assert claim.id in said and claim.recorded.value in said
    assert main(["claims", "--json", "-"], claims=lambda: registry) == 0
    data = json.loads(capsys.readouterr().out)
    assert [claim["id"] for claim in data] == list(registry)
    assert {"statement", "source", "kind", "recorded", "would_change", "method"} <= data[0].keys()


def test_explain_says_everything(lockref, decided):
    code, said = lockref("explain", "x-refuted", claims=decided)
    assert code == 0
    for words in (
        "X-REFUTED",
        "“for all [x], <i>x</i> = x”",
        "as claimed in arXiv 0000.00000, eq. (1)",
        "Squares the numbers.",
        "Recorded verdict ✗ refuted",
        "Found now ✗ refuted (proved)",
        "x = [[1.0, 2.0], [3.0, 4.0]]",
        "computed again from what is given: the same",
        "1 + 4 + 9 + 16 = 30 30 ≠ 10",
        "What would change the verdict a different world",
        "lockref audit --claims X-REFUTED --seed 0",
    ):
        assert words in said, said


def test_explain_prints_brackets_as_they_are(lockref, decided):
    assert "[red]not red[/red]" in lockref("explain", "X-HOLDS", claims=decided)[1]


def test_explain_sees_a_counterexample_that_does_not_come_out_again(lockref, decided):
    claim = decided["X-REFUTED"].model_copy(update={"rerun": lambda given: "10.0"})
    _, said = lockref("explain", "X-REFUTED", claims={claim.id: claim})
    assert "Found now ? undecided" in said
    assert "NOT the same: 10.0" in said


def test_explain_without_running(lockref, registry, capsys):
    code, said = lockref("explain", "X-CRASH", "--no-run", claims=registry)
    assert code == 0 and "Found now" not in said and "Recorded verdict ✓ holds" in said
    assert main(["explain", "X-CRASH", "--no-run", "--json", "-"], claims=lambda: registry) == 0
    assert json.loads(capsys.readouterr().out)["id"] == "X-CRASH"


def test_explain_as_json_is_a_claim_of_the_report(registry, capsys):
    assert main(["explain", "X-IF", "--json", "-"], claims=lambda: registry) == 0
    data = json.loads(capsys.readouterr().out)
    assert data.keys() == ClaimResult.model_fields.keys()
    assert data["verdict"] == "holds-if"


def test_doctor_names_versions_and_what_is_missing(lockref, capsys):
    code, said = lockref("doctor", claims={})
    assert code == 0
    for words in ("numpy", "BLAS", "extra crosscheck", "devices cpu", "base (", version("lockref")):
        assert words in said
    assert main(["doctor", "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["environment"]["packages"]["numpy"] == version("numpy")
    assert data["environment"]["threads"] >= 1
    assert {"crosscheck", "merge", "attack", "test"} <= data["extras"].keys()
    assert data["extras"]["test"]["pytest"] == version("pytest")
    assert {model["name"] for model in data["zoo"]} == {"base", "add", "reverse"}
