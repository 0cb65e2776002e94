"""What README and docs show is what the code says."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lockproofs.claims import all_claims
from lockproofs.readme import proof_pages, refreshed, stale

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
REFRESH = "run python -m lockproofs.readme"


def test_no_page_is_stale() -> None:
    assert not (old := [str(page.relative_to(ROOT)) for page in stale()]), f"{old} are stale: {REFRESH}"


def fresh(text: str) -> str:
    page, claims = ROOT / "docs" / "page.md", all_claims()
    return refreshed(page, text, claims, proof_pages({page: text}, claims))


def test_a_stale_table_is_seen() -> None:
    old = README.replace("refuted |", "holds |", 1)
    assert refreshed(ROOT / "README.md", old, all_claims(), {}) != old


def test_a_block_holds_the_claims_that_it_names() -> None:
    page = fresh(
        "<!-- verdicts AD MB-T2A -->\nstale words\n<!-- /verdicts -->\n\n<!-- proofs MB-T2A -->\n<!-- /proofs -->\n"
    )
    assert re.findall(r"^\| \[?([A-Z0-9-]+)", page, re.MULTILINE) == [
        "AD-ADJOINT", "AD-FORWARD-STORAGE", "AD-REVERSE-COST", "AD-REVOLVE", "MB-T2A",
    ]  # fmt: skip
    assert "stale words" not in page and page == fresh(page)
    assert "| [MB-T2A](#mb-t2a) |" in page and "### MB-T2A\n" in page
    assert "[`check_t2a`](../proofs/lockproofs/claims/attention_theorem2.py)" in page
    assert "*Flips suffice.*" in page, "the proof is not there"


def test_the_index_lists_every_page_by_its_title() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (page for page in PAGES if page.parent.name == "docs" and page.name != "README.md"):
        title = page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        assert f"* [{title}]({page.name})" in index


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<!-- verdicts -->\n", "no partner"),
        ("<!-- verdicts -->\n<!-- /proofs -->\n", "no partner"),
        ("<!-- proofs M -->\n<!-- /proofs -->\n", "no claim's id begins with M"),
    ],
)
def test_a_wrong_marker_is_said(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fresh(text)


def test_there_are_two_commands() -> None:
    commands = re.findall(r"^python -m pip .*$", README, re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("&& lockref audit") and commands[1].endswith("&& python -m pytest")


def test_the_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "tanh" in done.stdout and "activations:" in done.stdout


def lost(page: Path, text: str) -> list[str]:
    """Links that lead nowhere: a missing file, or code that does not define the symbol that its link names."""
    found = []
    for words, target in re.findall(r"\[([^\]]*)\]\((?!http|#)([^)#]+)", text):
        file = page.parent / target
        symbol = re.fullmatch(r"`([\w.]+)`", words) if file.suffix == ".py" else None
        if not file.exists() or (symbol and symbol[1] != file.name and symbol[1] not in symbols(file)):
            found.append(f"[{words}]({target})")
    return found


def symbols(file: Path) -> set[str]:
    """What a module defines at its top, and the members of its classes as Class.member."""
    return set(_defined(ast.parse(file.read_text(encoding="utf-8")).body))


def _defined(body: list[ast.stmt], inside: str = "") -> list[str]:
    names: list[str] = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(inside + node.name)
        if isinstance(node, ast.ClassDef):
            names += _defined(node.body, f"{inside}{node.name}.")
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names += [inside + target.id for target in targets if isinstance(target, ast.Name)]
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    """A link to code reads [`symbol`](../path/file.py) where it means one function, class or constant."""
    assert not lost(page, page.read_text(encoding="utf-8"))


def test_a_dead_link_is_seen() -> None:
    page, code = ROOT / "docs" / "page.md", "../proofs/lockproofs/claim.py"
    alive = f"[`Check.margin`]({code}) [`settle`]({code}) [`Number`]({code}) [`claim.py`]({code}) [words]({code})"
    dead = [f"[`unsettle`]({code})", f"[`Check.gap`]({code})", "[words](../nowhere.py)"]
    assert lost(page, f"{alive} {' '.join(dead)}") == dead
