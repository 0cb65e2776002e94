"""docs/merging.md lists every setting as the code has it; the benchmark runs and refuses what makes no sense."""

from pathlib import Path

import pytest
from benchmarks import merging as benchmark

from lockref.merging import SETTINGS

PAGE = Path(__file__).parents[1] / "docs" / "merging.md"


def settings_table() -> str:
    """What the page must contain."""
    rows = [f"| `{s.name}` | {s.of} | {s.space} | {s.source} | {s.differs} |" for s in SETTINGS.values()]
    head = ["| setting | merges | space | source | how it differs |", "| :-- | :-- | :-- | :-- | :-- |"]
    return "\n".join([*head, *rows])


def test_the_page_lists_the_settings_as_they_are():
    text = PAGE.read_text(encoding="utf-8")
    missing = [line for line in settings_table().splitlines() if line not in text.splitlines()]
    assert not missing, f"docs/merging.md lacks or misquotes: {missing[0]}"


def test_every_setting_of_the_benchmark_is_one_of_mergekits():
    from lockcross.merging import METHODS

    assert set(benchmark.NAMES) <= set(METHODS)


def test_the_benchmark_runs_both_sides_and_makes_its_table(capsys, tmp_path):
    found = tmp_path / "times.json"
    assert benchmark.main(["--rounds", "1", "--setting", "linear-average", "--json", str(found)]) == 0
    assert "| linear-average |" in capsys.readouterr().out and found.read_text().endswith("}\n")


def test_no_rounds_are_refused(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--rounds", "0"])
    assert "give at least 1" in capsys.readouterr().err
