"""Runs claims on a subject and writes down what was found."""

import inspect
import json
import logging
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from threadpoolctl import threadpool_limits

from lockproofs.claim import (
    BadInput,
    Claim,
    Context,
    Controls,
    Counterexample,
    Evidence,
    MissingInput,
    Verdict,
    settle,
)
from lockproofs.doctor import environment, tool
from lockproofs.report import (
    THREAT_MODEL,
    ClaimDeviation,
    ClaimResult,
    Coverage,
    Effort,
    File,
    NotRun,
    Report,
    Seconds,
    SubjectRecord,
    ThreatModel,
    to_json,
)
from lockproofs.subject import Subject
from lockref.models.checkpoint_io import Checkpoint

log = logging.getLogger(__name__)
Track = Callable[[Sequence[Claim]], Iterable[Claim]]


def pick(claims: dict[str, Claim], claim_id: str) -> Claim:
    """The claim with that id, in any case. Raises BadInput for an unknown one."""
    claim = claims.get(claim_id.strip().upper())
    if claim is None:
        raise BadInput(f"unknown claim id {claim_id.strip()!r}: choose from {', '.join(claims)}")
    return claim


def choose(claims: dict[str, Claim], wanted: str | None) -> list[Claim]:
    """The claims with these comma-separated ids, in the order of the registry; all without any.

    Raises BadInput for an unknown id.
    """
    if wanted is None:
        return list(claims.values())
    picked = {pick(claims, word).id for word in wanted.split(",")}
    return [claim for claim in claims.values() if claim.id in picked]


def audit(
    subject: Subject,
    claims: Sequence[Claim],
    *,
    seed: int,
    cases: int,
    command: Sequence[str] = ("lockref", "audit"),
    track: Track = iter,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Checks every claim on the subject; the same seed gives the same report apart from its effort.

    `command` is what a reader types to run this audit again; `track` may show the progress, `say` where a claim is.
    Raises BadInput where a claim finds the user's input wrong; any other crash leaves its claim undecided.
    """
    started, begin = datetime.now(UTC), _now()
    context = Context(subject, seed, cases, say)
    results: list[ClaimResult] = []
    by_status: dict[str, list[NotRun]] = {"run": [], "skipped": [], "errored": []}
    spent: dict[str, Seconds] = {}
    for claim in track([claim.about(subject) for claim in claims]):
        before = _now()
        with threadpool_limits(1, user_api="blas"):  # sums in one order: the same report on every machine's threads
            outcome = _investigate(claim, context)
        spent[claim.id] = _since(before)
        by_status[outcome.status].append(NotRun(id=claim.id, reason=outcome.reason))
        options = ["--claims", claim.id, "--seed", str(seed), "--cases", str(cases)]
        results.append(_result(claim, outcome, subject.is_zoo, shlex.join([*command, *options])))
    checks = [check for result in results for check in result.checks]
    return Report(
        tool=tool(),
        environment=environment(),
        effort=Effort(
            **_since(begin).model_dump(),
            peak_rss_bytes=_peak_rss(),
            seed=seed,
            started=started.isoformat(timespec="seconds"),
            claims=spent,
        ),
        subjects=[_record(role, checkpoint, subject) for role, checkpoint in subject.checkpoints.items()],
        threat_model=threat_model(subject),
        coverage=Coverage(
            planned=len(claims),
            run=len(by_status["run"]),
            skipped=by_status["skipped"],
            errored=by_status["errored"],
            checks=len(checks),
            cases=sum(check.cases for check in checks),
        ),
        claims=results,
        deviations=[
            ClaimDeviation(claim=result.id, **deviation.model_dump())
            for result in results
            for deviation in result.deviations
        ],
        artifacts=[],
    )


def describe(claim: Claim) -> dict[str, Any]:
    """What is known of a claim before it is checked, JSON-able."""
    stated = claim.model_dump(mode="json", exclude={"check", "rerun", "on_subject"})
    return {**stated, "method": method(claim)}


def method(claim: Claim) -> str:
    """How a claim is checked: the docstring of its check, one line a paragraph; indented text is left alone."""
    paragraphs = (inspect.getdoc(claim.check) or "").split("\n\n")
    return "\n\n".join(p if "\n " in f"\n{p}" else " ".join(p.split()) for p in paragraphs)


def rerun(claim: Claim, counterexample: Counterexample) -> str | None:
    """The counterexample's `got`, computed again from its `given` as it is stored."""
    stored = json.loads(json.dumps(counterexample.given, allow_nan=False))
    return claim.rerun(stored) if claim.rerun else None


@dataclass(frozen=True)
class _Outcome:
    status: Literal["run", "skipped", "errored"]
    evidence: Evidence | None = None
    reason: str = ""


def _investigate(claim: Claim, context: Context) -> _Outcome:
    """A crash leaves the claim undecided: whatever breaks here never strengthens a lock."""
    try:
        evidence = _confirmed(claim, settle(claim.kind, claim.check(context)))
        to_json(evidence.model_dump(mode="json"))
        return _Outcome("run", evidence)
    except BadInput:
        raise
    except MissingInput as error:
        return _Outcome("skipped", reason=one_line(error))
    except Exception as error:
        log.debug("%s crashed", claim.id, exc_info=True)
        return _Outcome("errored", reason=f"{type(error).__name__}: {one_line(error)}")


def _confirmed(claim: Claim, evidence: Evidence) -> Evidence:
    """Nothing is refuted by a counterexample that does not come out again."""
    if evidence.verdict is not Verdict.REFUTED or evidence.counterexample is None:
        return evidence
    again = rerun(claim, evidence.counterexample)
    if again == evidence.counterexample.got:
        return evidence
    reason = f"the counterexample does not re-run: got {again!r}, stored {evidence.counterexample.got!r}. "
    update = {"verdict": Verdict.UNDECIDED, "explanation": reason + evidence.explanation}
    return evidence.model_copy(update=update)


def _result(claim: Claim, outcome: _Outcome, is_zoo: bool, reproduce: str) -> ClaimResult:
    found: dict[str, Any] = dict(outcome.evidence) if outcome.evidence else _nothing(outcome.reason)
    same = ("id", "title", "statement", "source", "kind", "recorded", "would_change")
    return ClaimResult(
        **{name: getattr(claim, name) for name in same},
        **found,
        method=method(claim),
        changed=found["verdict"] is not claim.recorded if is_zoo else None,
        reproduce=reproduce,
    )


def _nothing(reason: str) -> dict[str, Any]:
    return {
        **{name: [] for name in ("checks", "assumptions", "deviations", "plots")},
        **dict.fromkeys(("grade", "condition", "counterexample", "severity", "fix")),
        "verdict": Verdict.UNDECIDED,
        "explanation": f"Not decided: {reason}",
        "controls": Controls(),
    }


def threat_model(subject: Subject) -> ThreatModel:
    """What the attackers of this audit know: with a directory, what came with it."""
    if subject.is_zoo:
        return THREAT_MODEL
    given = {
        "base": "the public base model (--base)",
        "peer:1": "other experts of the same base (--peer)",
    }
    known = [what for role, what in given.items() if subject.has(role)]
    told = ["(the auditor, not the attacker, has the unlocked reference)"] * subject.has("reference")
    return THREAT_MODEL.model_copy(update={"knows": [*THREAT_MODEL.knows[:2], *known, *told]})


def _record(role: str, checkpoint: Checkpoint, subject: Subject) -> SubjectRecord:
    sizes: Counter[str] = Counter()
    for name, tensor in checkpoint.tensors.items():
        sizes[checkpoint.dtypes[name]] += tensor.size
    files = [*checkpoint.files, *([subject.lock.file] if role == "subject" and subject.lock else [])]
    return SubjectRecord(
        role="peer" if role.startswith("peer:") else role,
        name=checkpoint.path.resolve().name,
        files=[File(name=f.name, sha256=f.sha256, bytes=f.bytes) for f in files],
        parameters=sizes.total(),
        dtypes=dict(sorted(sizes.items())),
    )


def one_line(error: BaseException) -> str:
    """The message of an exception without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(before: tuple[float, float]) -> Seconds:
    wall, cpu = (now - then for now, then in zip(_now(), before, strict=True))
    return Seconds(wall_s=round(wall, 3), cpu_s=round(cpu, 3))


def _peak_rss() -> int | None:
    """Bytes of memory this process held at most; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
