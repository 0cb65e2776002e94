"""What README and docs show is what the code says."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lockproofs import readme
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
    assert re.search(r"\[`check_t2a`\]\(\.\./proofs/lockproofs/claims/attention_theorem2\.py#L\d+\)", page)
    assert "*Flips suffice.*" in page, "the proof is not there"


@pytest.mark.parametrize(("index", "folder"), [("README.md", "docs/"), ("docs/README.md", "")])
def test_the_index_lists_every_page_with_what_it_is_about(index: str, folder: str) -> None:
    listed = (ROOT / index).read_text(encoding="utf-8")
    for page in (page for page in PAGES if page.parent.name == "docs" and page.name != "README.md"):
        title, about = page.read_text(encoding="utf-8").splitlines()[:2]
        said = about.removeprefix("<!-- about: ").removesuffix(" -->")
        assert f"* [{title.removeprefix('# ')}]({folder}{page.name}): {said}\n" in listed


def test_a_page_that_does_not_say_what_it_is_about_is_named() -> None:
    with pytest.raises(ValueError, match=r"new\.md: it is in the index; say in a line below its title"):
        readme.about(Path("new.md"), "# A new page\n\nwords\n")


CODE = "../proofs/lockproofs/claim.py"


def test_a_link_to_a_symbol_ends_in_the_line_that_defines_it() -> None:
    page = fresh(f"[`settle`]({CODE}) [`Check.margin`]({CODE}#L1) [`Number`]({CODE}#L9999) [`claim.py`]({CODE})\n")
    lines = (ROOT / "proofs" / "lockproofs" / "claim.py").read_text(encoding="utf-8").splitlines()
    found = re.findall(r"\[`([\w.]+)`\]\([^)#]+#L(\d+)\)", page)
    defined = {name: lines[int(line) - 1].strip() for name, line in found}
    assert list(defined) == ["settle", "Check.margin", "Number"] and f"[`claim.py`]({CODE})\n" in page
    assert defined["settle"].startswith("def settle(") and defined["Check.margin"].startswith("def margin(")
    assert defined["Number"].startswith("Number") and page == fresh(page)


def test_lines_of_every_page_hold_what_their_links_name() -> None:
    """Without the tool: the last part of the symbol stands in the line that the link leads to."""
    links = 0
    for page in PAGES:
        for symbol, target, line in re.findall(r"\[`([\w.]+)`\]\(([^)#]+)#L(\d+)\)", page.read_text(encoding="utf-8")):
            text = (page.parent / target).read_text(encoding="utf-8").splitlines()[int(line) - 1]
            assert re.search(rf"\b{symbol.rsplit('.')[-1]}\b", text), f"{page.name}: {symbol} is not in line {line}"
            links += 1
    assert links > 100


def test_a_moved_definition_makes_a_page_stale(tmp_path: Path) -> None:
    """The line of an older version is not the line of today."""
    code, page = tmp_path / "code.py", tmp_path / "page.md"
    code.write_text("def f():\n    return 1\n", encoding="utf-8")
    before = readme.anchored(page, "[`f`](code.py)")
    code.write_text('"""Grown."""\n\ndef f():\n    return 1\n', encoding="utf-8")
    readme.definitions.cache_clear()
    assert (before, readme.anchored(page, before)) == ("[`f`](code.py#L1)", "[`f`](code.py#L3)")


def test_the_command_takes_no_arguments() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lockproofs.readme", "README.md"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "takes no arguments" in done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<!-- verdicts -->\n", "no partner"),
        ("<!-- verdicts -->\n<!-- /proofs -->\n", "no partner"),
        ("<!-- proofs M -->\n<!-- /proofs -->\n", "no claim's id begins with M"),
        ("[`unsettle`](../proofs/lockproofs/claim.py)\n", "claim.py does not define it; mend the link"),
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
