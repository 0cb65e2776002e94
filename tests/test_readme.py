"""What the README shows is what the code says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lockproofs.claims import all_claims
from lockproofs.readme import refreshed

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_verdict_table_is_the_registry() -> None:
    again = refreshed(README, all_claims().values())
    assert again == README, "README.md is stale: run python -m lockproofs.readme README.md"


def test_a_stale_table_is_seen() -> None:
    assert refreshed(README.replace("refuted |", "holds |"), all_claims().values()) != README.replace(
        "refuted |", "holds |"
    )
    with pytest.raises(ValueError, match="markers"):
        refreshed("no table", ())


def test_there_are_two_commands() -> None:
    commands = re.findall(r"^python -m pip .*$", README, re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("&& lockref audit") and commands[1].endswith("&& python -m pytest")


def test_the_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "tanh" in done.stdout and "activations:" in done.stdout


@pytest.mark.parametrize("page", [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"], ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"
