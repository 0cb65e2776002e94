"""The report for people: one self-contained HTML page, and the same in Markdown."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from lockproofs.claim import Check, Verdict
from lockproofs.plots import draw, number
from lockproofs.report import Report, to_json

SYMBOLS = {Verdict.HOLDS: "✓", Verdict.HOLDS_IF: "◐", Verdict.REFUTED: "✗", Verdict.UNDECIDED: "?"}
MEANINGS = {
    Verdict.HOLDS: "true as claimed",
    Verdict.HOLDS_IF: "true under a stated condition, with evidence on both sides of it",
    Verdict.REFUTED: "false as claimed: a stored counterexample re-runs",
    Verdict.UNDECIDED: "no verdict: a check or control failed, crashed, or lacked an input",
}
GRADES = {
    "proved": "exact arithmetic, symbolic or exhaustive",
    "certified": "interval or ball arithmetic",
    "tested": "a stated number of random cases",
    "measured": "figures on named models",
}
SENSES = {"<=": "≤", ">=": "≥", "==": "="}


def write_reports(report: Report, folder: Path) -> None:
    """report.json, report.html and report.md in an existing folder."""
    (folder / "report.json").write_text(to_json(report.as_data()), encoding="utf-8")
    for kind in ("html", "md"):
        (folder / f"report.{kind}").write_text(render(report, f"report.{kind}.j2"), encoding="utf-8")


def environment() -> Environment:
    """Where the templates live, with the filters that they use; HTML is escaped."""
    env = Environment(
        loader=PackageLoader("lockproofs"),
        autoescape=select_autoescape(enabled_extensions=("html", "html.j2", "svg.j2")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters |= {
        "number": number,
        "quantity": quantity,
        "requirement": requirement,
        "given": given,
        "moment": moment,
        "seconds": seconds,
        "size": size,
        "plain": plain,
        "draw": draw,
    }
    return env


def render(report: Report, template: str) -> str:
    """One of the templates of a report, filled in."""
    tally = Counter(claim.verdict for claim in report.claims)
    return (
        environment()
        .get_template(template)
        .render(
            report=report,
            tally=[(verdict, tally[verdict]) for verdict in Verdict],
            symbols=SYMBOLS,
            meanings=MEANINGS,
            grades=GRADES,
            key_figure=key_figure,
            denominators=denominators,
        )
    )


def quantity(value: float | None, unit: str) -> str:
    """A number with its unit; "1" and "" are no units."""
    return number(value) if unit in ("", "1") else f"{number(value)} {unit}"


def requirement(check: Check) -> str:
    """What the value of a check must be: `≤ 0 + 2.2×10⁻¹⁴`."""
    if not check.tolerance:
        return f"{SENSES[check.sense]} {number(check.bound)}"
    sign = {"<=": "+", ">=": "−", "==": "±"}[check.sense]
    return f"{SENSES[check.sense]} {number(check.bound)} {sign} {number(check.tolerance)}"


def key_figure(checks: Iterable[Check]) -> str:
    """The first check, as a claim's authors order them: what was computed, and what came out."""
    first = next(iter(checks), None)
    return f"{first.name}: {quantity(first.value, first.unit)}" if first else "–"


def denominators(report: Report) -> str:
    """How many claims and checks there were: a verdict means little without it."""
    c = report.coverage
    return (
        f"claims: {c.planned} planned, {c.run} run, {len(c.skipped)} skipped, {len(c.errored)} errored"
        f" · {c.checks:,} checks on {c.cases:,} cases"
    )


def given(data: dict[str, Any]) -> str:
    """The data of a counterexample, a matrix one row a line."""
    return "\n".join(f"{name} = {_rows(value)}" for name, value in data.items())


def _rows(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    nested = isinstance(value, list) and len(value) > 1 and all(isinstance(v, list) for v in value)
    return text.replace("], [", "],\n    [") if nested else text


def seconds(time: float) -> str:
    """A duration for people."""
    return f"{time:.1f} s"


def moment(started: str) -> str:
    """A time stamp of the report to the minute."""
    return f"{datetime.fromisoformat(started):%Y-%m-%d %H:%M} UTC"


def size(count: int | None) -> str:
    """Bytes for people."""
    if count is None:
        return "–"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"


def plain(text: str) -> str:
    """Text on one line that Markdown leaves alone, in a table cell too."""
    return re.sub(r"([\\`*<|])", r"\\\1", " ".join(text.split()))
