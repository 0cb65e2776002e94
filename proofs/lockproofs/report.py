"""The report: what an audit found, as data. report.json is these objects, written down.

`python -m lockproofs.report` writes the published JSON Schema (2020-12) beside this file again.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.json_schema import GenerateJsonSchema

from lockproofs.claim import (
    BadInput,
    Check,
    Controls,
    Counterexample,
    Deviation,
    Grade,
    Kind,
    Plot,
    Record,
    Severity,
    Source,
    Verdict,
)

FORMAT = "lockref-report/1"
SCHEMA_FILE = Path(__file__).with_name("report.schema.json")


class Tool(Record):
    name: str
    version: str
    commit: str | None = Field(description="of the checkout that the tool ran from, if it did")
    dirty: bool | None


class Environment(Record):
    python: str
    platform: str
    cpu: str
    blas: str
    threads: int
    packages: dict[str, str]


class Seconds(Record):
    wall_s: float
    cpu_s: float


class Effort(Seconds):
    peak_rss_bytes: int | None
    seed: int
    started: str = Field(description="UTC, ISO 8601")
    claims: dict[str, Seconds]


class File(Record):
    name: str
    sha256: str
    bytes: int


class SubjectRecord(Record):
    role: str
    name: str
    files: list[File]
    parameters: int
    dtypes: dict[str, int] = Field(description="parameters stored in each dtype")


class ThreatModel(Record):
    knows: list[str]
    can: list[str]
    cannot: list[str]
    break_definition: str


THREAT_MODEL = ThreatModel(
    knows=[
        "every released weight and the configuration",
        "the lock's method, paper and code, but none of its random draws",
        "the public base model, where a claim says so",
    ],
    can=[
        "compute anything from the weights, in double precision",
        "run the model and its gradients on inputs of their choice",
        "change the weights and the program that runs them",
    ],
    cannot=[
        "see the defender's random draws, or the weights before locking",
        "see the defender's training data",
    ],
    break_definition=(
        "A lock is broken if, from what the attacker knows, weights are found that compute the same "
        "function to derived round-off and for which the locked use works as if there were no lock. "
        "The worst case over attackers counts, never the mean."
    ),
)


class NotRun(Record):
    id: str
    reason: str


class Coverage(Record):
    """planned = run + skipped + errored; `checks` and `cases` count what ran."""

    planned: int
    run: int
    skipped: list[NotRun]
    errored: list[NotRun]
    checks: int
    cases: int


class ClaimResult(Record):
    id: str
    title: str
    statement: str
    source: Source
    kind: Kind
    verdict: Verdict
    grade: Grade | None = Field(description="null where there is no evidence to grade")
    condition: str | None
    recorded: Verdict
    changed: bool | None = Field(
        description="verdict differs from the recorded one; null where the records are of other models"
    )
    explanation: str
    method: str = Field(description="how the claim is checked, or its proof")
    checks: list[Check]
    controls: Controls
    counterexample: Counterexample | None
    assumptions: list[str]
    deviations: list[Deviation]
    severity: Severity | None
    fix: str | None
    would_change: str
    plots: list[Plot]
    reproduce: str


class ClaimDeviation(Deviation):
    claim: str


class Artifact(Record):
    name: str
    sha256: str


class Report(Record):
    schema_: str = Field(default=FORMAT, alias="schema")
    tool: Tool
    environment: Environment
    effort: Effort
    subjects: list[SubjectRecord]
    threat_model: ThreatModel
    coverage: Coverage
    claims: list[ClaimResult]
    deviations: list[ClaimDeviation]
    artifacts: list[Artifact]

    def as_data(self) -> dict[str, Any]:
        """Plain JSON-able data under the published names."""
        return self.model_dump(mode="json", by_alias=True)


def to_json(data: object) -> str:
    """JSON text as lockref writes it everywhere. Raises ValueError for NaN and infinities."""
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


class _Additive(GenerateJsonSchema):
    """Readers that know this version accept a later one, which may say more."""

    def model_schema(self, schema: Any) -> dict[str, Any]:
        described: dict[str, Any] = super().model_schema(schema)
        described.pop("additionalProperties", None)
        return described


def report_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of report.json."""
    schema = Report.model_json_schema(mode="serialization", schema_generator=_Additive)
    return {"$schema": _Additive.schema_dialect, **schema, "title": "lockref report"}


def ensure_writable(out: Path) -> None:
    """Raises BadInput if `out` is a file or cannot be written; leaves nothing behind."""
    _shelter(out).rmdir()


@contextmanager
def staged(out: Path, named: str = "--out") -> Iterator[Path]:
    """A directory to write into, whose files replace those of `out` at the end, or vanish on an error.

    Raises BadInput, which calls the directory `named`, if `out` is a file or cannot be written.
    """
    shelter = _shelter(out, named)
    try:
        staging = shelter / "report"  # not the shelter itself: its mode is private
        staging.mkdir()
        yield staging
        try:
            _publish(staging, out)
        except OSError as error:
            raise BadInput(f"{named} {out}: {error.strerror}: choose another directory") from error
    finally:
        shutil.rmtree(shelter, ignore_errors=True)


def _shelter(out: Path, named: str = "--out") -> Path:
    """A new directory on the file system of `out`, so that its files get there by a rename."""
    nearest = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise BadInput(f"{named} {out}: {nearest} is a file: choose a directory")
    try:
        return Path(tempfile.mkdtemp(prefix=".lockref-", dir=nearest))
    except OSError as error:
        raise BadInput(f"{named} {out}: cannot write there ({error.strerror}): choose another") from error


def _publish(staging: Path, out: Path) -> None:
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        staging.rename(out)
        return
    for file in staging.iterdir():
        os.replace(file, out / file.name)


if __name__ == "__main__":
    SCHEMA_FILE.write_text(to_json(report_schema()), encoding="utf-8")
