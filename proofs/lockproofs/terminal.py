"""What the commands print. Text of claims is never read as markup."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from lockproofs.audit import Track, method, rerun
from lockproofs.claim import Claim, Verdict
from lockproofs.memory import Survey, budget_cells, budget_headings, cells, headings
from lockproofs.render import SYMBOLS, denominators, given, key_figure, quantity, requirement, seconds, size
from lockproofs.report import ClaimResult, Report

STYLES = {
    Verdict.HOLDS: "bold green",
    Verdict.HOLDS_IF: "bold yellow",
    Verdict.REFUTED: "bold red",
    Verdict.UNDECIDED: "bold magenta",
}


@contextmanager
def progress(quiet: bool) -> Iterator[tuple[Track, Callable[[str], None]]]:
    """Follows claims with a bar on standard error that names the claim, where it is, and the time left."""
    with _bar(quiet) as bar:
        task, now = bar.add_task(""), ""

        def track(claims: Sequence[Claim]) -> Iterable[Claim]:
            nonlocal now
            bar.update(task, total=len(claims))
            for claim in claims:
                now = claim.id
                bar.update(task, description=now)
                yield claim
                bar.advance(task)

        yield track, lambda where: bar.update(task, description=f"{now}: {where}")


@contextmanager
def counted(what: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Follows a number of steps, (done, in all), with the same bar."""
    with _bar(quiet) as bar:
        task = bar.add_task(what)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _bar(quiet: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet)


def _console() -> Console:
    return Console(highlight=False)


def _verdict(verdict: Verdict) -> Text:
    return Text(f"{SYMBOLS[verdict]} {verdict}", STYLES[verdict])


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right" if heading == "cases" else "left", overflow="fold")
    table.columns[0].no_wrap = True
    return table


def verdicts(report: Report, out: Path) -> None:
    """The table of verdicts, its denominators, the time taken, and where the reports are."""
    console = _console()
    table = _table("claim", "verdict", "evidence", "what was found")
    for claim in report.claims:
        verdict = _verdict(claim.verdict)
        if claim.changed:
            verdict.append(f"\nrecorded: {claim.recorded}", "bold")
        cases = sum(check.cases for check in claim.checks)
        evidence = Text(claim.grade or "none").append(f"\n{cases:,} cases", "dim")
        found = Text(claim.title).append(f"\n{key_figure(claim.checks)}", "dim")
        table.add_row(claim.id, verdict, evidence, found)
    console.print(table)
    for missed, what in ((report.coverage.skipped, "skipped"), (report.coverage.errored, "errored")):
        for absent in missed:
            console.print(Text(f"{what}: {absent.id}: {absent.reason}", "bold"))
    console.print()
    console.print(Text(f"{denominators(report)} · {seconds(report.effort.wall_s)}"))
    console.print(Text(f"reports: {out / 'report.html'}, report.md, report.json"))


def listing(claims: Sequence[Claim]) -> None:
    """One line a claim."""
    table = _table("claim", "kind", "recorded", "title", "source")
    for claim in claims:
        source = Text(claim.source.paper, "dim")
        table.add_row(claim.id, claim.kind, _verdict(claim.recorded), Text(claim.title), source)
    _console().print(table)


def wording(claim: Claim) -> None:
    """A claim in words, before anything is run."""
    console = _console()
    console.print(Text.assemble((claim.id, "bold"), f"  {claim.title}  ", (f"({claim.kind})", "dim")))
    console.print()
    console.print(Padding(Text(f"“{claim.statement}”", "italic"), (0, 0, 0, 2)))
    console.print(Padding(Text(f"as claimed in {claim.source.paper}, {claim.source.where}", "dim"), (0, 0, 0, 2)))
    _part(console, "How it is checked", method(claim))
    _part(console, "Recorded verdict", _verdict(claim.recorded))


def finding(claim: Claim, result: ClaimResult) -> None:
    """What a check has found, and its counterexample, computed again."""
    console = _console()
    grade = result.grade or "no evidence"
    _part(console, "Found now", Text.assemble(_verdict(result.verdict), f"  ({grade})"))
    if result.condition:
        _part(console, "Condition", result.condition)
    _part(console, "Why", result.explanation)
    if result.checks:
        table = _table("check", "value", "must be", "cases", "")
        for check in result.checks:
            outcome = Text("✓", "green") if check.passed else Text("✗ failed", "bold red")
            value = quantity(check.value, check.unit)
            table.add_row(Text(check.name), value, requirement(check), f"{check.cases:,}", outcome)
        _part(console, "Checks", table)
    if example := result.counterexample:
        again = rerun(claim, example)
        same = "the same" if again == example.got else f"NOT the same: {again}"
        _part(console, "Counterexample: given", given(example.given))
        _part(console, "The claim wants", example.want)
        _part(console, "What comes out", f"{example.got}\n(computed again from what is given: {same})")
        _part(console, "By hand", example.by_hand)
    _part(console, "Run it again", result.reproduce)


def outlook(claim: Claim) -> None:
    """What would change a verdict."""
    _part(_console(), "What would change the verdict", claim.would_change)


def memory(found: Survey, page: Path | None) -> None:
    """The table of `lockref memory`."""
    console = _console()
    table = _table(*headings())
    for column in table.columns[1:]:
        column.justify = "right"
    for row in found.rows:
        table.add_row(*cells(row))
    console.print(Text(found.title, "bold"))
    console.print(table)
    note = "logical activations of the layers in bfloat16; operations: default step with all weights training = 1"
    console.print(Text(note, "dim"))
    frontier = _table(*budget_headings())
    for column in frontier.columns[1:-1]:
        column.justify = "right"
    for budget in found.frontier:
        frontier.add_row(*budget_cells(budget))
    console.print(Text("The least memory of any attacker within a budget", "bold"))
    console.print(frontier)
    console.print(Text("budget: operations; a default step of the unlocked model with the same goal = 1", "dim"))
    if page:
        console.print(f"timeline: {page}", markup=False)


def whisper(quiet: bool) -> Callable[[str], None]:
    """Says lines of progress on standard error."""
    console = Console(stderr=True, highlight=False)
    return lambda line: None if quiet else console.print(line, markup=False)


def locked(said: dict[str, Any], target: Path) -> None:
    """What `lockref lock` did and what it cost, from the manifest."""
    losses, gap = said["figures"]["loss"], said["figures"]["loss_gap"]
    table = _table("held-out loss", "nats per token")
    for name, loss in losses.items():
        table.add_row(name, f"{loss:.4f}")
    console = _console()
    console.print(table)
    console.print(f"{' and '.join(said['parts'])}: the loss rose by {gap:.2%}; wrote {target}", markup=False)


def health(found: dict[str, Any]) -> None:
    """What `lockref doctor` found."""
    console = _console()
    tool, environment = found["tool"], found["environment"]
    commit = f", commit {tool['commit']}" + " (changed)" * bool(tool["dirty"]) if tool["commit"] else ""
    rows = {
        "lockref": f"{tool['version']}{commit}",
        "python": f"{environment['python']} ({found['executable']})",
        "platform": environment["platform"],
        "cpu": environment["cpu"],
        "BLAS": f"{environment['blas']}, {environment['threads']} threads",
        "packages": _installed(environment["packages"]),
        **{f"extra {name}": _installed(wanted) for name, wanted in found["extras"].items()},
        "devices": ", ".join(found["devices"]),
        "models": ", ".join(f"{m['name']} ({size(m['bytes'])})" for m in found["zoo"]),
    }
    table = _table("", "")
    for name, value in rows.items():
        table.add_row(Text(name, "bold"), Text(value))
    console.print(table)


def _installed(versions: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())


def _part(console: Console, title: str, body: str | Text | Table) -> None:
    console.print()
    console.print(Text(title, "bold"))
    console.print(Padding(Text(body) if isinstance(body, str) else body, (0, 0, 0, 2)))
