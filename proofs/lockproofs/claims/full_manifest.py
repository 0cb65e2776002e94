"""FULL-MANIFEST: lock.json says truthfully what a directory carries."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from lockproofs.auditing.manifest import Statement, statements
from lockproofs.auditing.measure import again, where
from lockproofs.claim import (
    Check,
    Claim,
    Context,
    Control,
    Controls,
    Counterexample,
    Evidence,
    Grade,
    MissingInput,
    OnSubject,
    Source,
    Verdict,
)
from lockproofs.claims.full_function import PAPERS
from lockproofs.subject import Given, Lock, Subject, directory_subject
from lockref.locks.manifest import Manifest
from lockref.models.zoo import LOCKED_ZOO, zoo_path

NO_LOCK = "SUBJECT has no lock.json: needs --lock"


def truths(subject: Subject, manifest: Manifest | None = None, measure: bool = False) -> list[Statement]:
    """What is found of the subject's lock.json, or of another manifest in its place."""
    lock = subject.lock
    if lock is None:
        raise MissingInput(NO_LOCK)
    chosen = lock if manifest is None else Lock(lock.path, manifest, lock.file)
    return list(statements(subject, chosen, measure))


def lies(manifest: Manifest) -> Iterator[Manifest]:
    """A true manifest of a DLR lock, made false in one place at a time."""
    files = [replace(file, sha256="0" * 64) for file in manifest.released]
    yield replace(manifest, released=tuple(files))
    yield replace(manifest, source=tuple(replace(file, sha256="0" * 64) for file in manifest.source))
    for key in ("depth", "rank"):
        parts = json.loads(json.dumps(manifest.parts))
        parts["dlr"]["net"][key] += 1
        yield replace(manifest, parts=parts)
    yield replace(manifest, parts={"attention": {"family": "topk-planes", "planes": 3}})
    yield replace(manifest, parts={**manifest.parts, "attention": {"family": "topk-planes", "planes": 3}})
    yield replace(manifest, parts={"taylor": {"order": 4, "basis": "taylor"}})
    yield replace(manifest, figures={**manifest.figures, "loss_gap": 0.0})


def _check(found: list[Statement]) -> Check:
    looked = [s for s in found if s.checked]
    false = sum(not s.true for s in looked)
    return Check(
        name="false statements", statistic="statements of lock.json that files or tensors contradict",
        unit="statements", value=false, bound=max(1, false) if false else 0, sense=">=" if false else "==",
        cases=max(1, len(looked)), tolerance_from="hashes, shapes and bits: none; a loss, to the round-off of float32",
    )  # fmt: skip


def check_zoo(ctx: Context) -> Evidence:
    """Read both locked models of the zoo and compare lock.json with files, tensors and the base that they came from.

    Every hash, every shape, the planes of every key head, and the gap as a quotient. The losses are measured again by
    DLR-UTILITY. Power control: a true manifest made false in one place at a time is found out each time. Null control:
    the true ones are not.
    """
    base = zoo_path("base")
    subjects = [directory_subject(Given(zoo_path(name), reference=base)) for name in LOCKED_ZOO]
    found = [statement for subject in subjects for statement in truths(subject)]
    false = [s for s in found if s.checked and not s.true]
    told = [
        any(s.checked and not s.true for s in truths(subject, lie))
        for subject in subjects
        if subject.lock
        for lie in lies(subject.lock.manifest)
    ]
    return Evidence(
        verdict=Verdict.UNDECIDED if false else Verdict.HOLDS,
        grade=Grade.MEASURED,
        explanation=f"{' and '.join(LOCKED_ZOO)}: {sum(s.checked for s in found)} statements about files, tensors and "
        f"figures looked at, {len(false)} false. Of {len(told)} planted lies {sum(told)} were found out. Whether an "
        "update was trained with Trap² no weight shows.",
        checks=[_check(found)],
        controls=Controls(
            power=Control(what="planted lies that were believed", passed=all(told), value=told.count(False), bound=0,
                          unit="manifests"),
            null=Control(what="true statements that were called lies", passed=not false, value=len(false), bound=0,
                         unit="statements"),
        ),
        assumptions=["lock.json itself is not signed: whoever writes both files can make them agree"],
    )  # fmt: skip


def check_subject(ctx: Context) -> Evidence:
    """Compare what lock.json says with SUBJECT's files and tensors, and with --reference those it was made from.

    Hashes; shapes of DLR-Nets, order of polynomials; with the reference the planes of every key head, bit for bit; the
    stated losses, measured again on the same rows where they can be drawn again.
    """
    found = truths(ctx.subject, measure=True)
    false = [s for s in found if s.checked and not s.true]
    open_parts = [s for s in found if not s.checked and (s.name.startswith("part ") or s.name == "released files")]
    unseen = [f"{s.name}: {s.why}" for s in found if not s.checked]
    told = [f"{s.name}: says {s.said}, found {s.found}" for s in false]
    return Evidence(
        verdict=Verdict.REFUTED if false else Verdict.UNDECIDED if open_parts else Verdict.HOLDS,
        grade=Grade.MEASURED,
        explanation=f"{sum(s.checked for s in found)} statements looked at, {len(false)} false"
        + (f": {'; '.join(told)}" if told else "")
        + f". Not looked at: {'; '.join(unseen) or 'nothing'}.",
        checks=[_check(found)],
        counterexample=_example(ctx.subject, false[0]) if false else None,
        assumptions=["lock.json itself is not signed: whoever writes both files can make them agree"],
        severity="high" if false else None,
        fix="write the lock again, or correct lock.json" if false else None,
    )


def _example(subject: Subject, lie: Statement) -> Counterexample:
    given = where(subject) | {"statement": lie.name}
    return Counterexample(
        given=given,
        got=rerun(given),
        want=f"{lie.name}: {lie.said}",
        by_hand="`sha256sum` of the file."
        if lie.name.startswith("SHA-256")
        else "Read lock.json, and the header of "
        "model.safetensors: names and shapes. Planes: compare the rows of k_proj with the reference's, sign by sign. "
        "Losses: mean of −ln p(next token) on the rows of lock.json's command.",
    )


def rerun(given: dict[str, Any]) -> str:
    """What is found of one statement."""
    subject = again(given, 0, "reference").subject
    measure = str(given["statement"]).startswith("loss, ")
    (found,) = [s for s in truths(subject, measure=measure) if s.name == given["statement"]]
    return f"{found.name}: {found.found}"


MANIFEST = Claim(
    id="FULL-MANIFEST",
    title="lock.json tells the truth",
    statement="A locked directory carries the locks that its lock.json describes, made from the files that it names.",
    source=Source(paper=PAPERS, where="what a reader of lock.json takes for granted; worded by us"),
    kind="utility",
    recorded=Verdict.HOLDS,
    would_change="A directory whose files, tensors or losses are not those that its lock.json describes.",
    check=check_zoo,
    on_subject=OnSubject(applies=lambda subject: True, check=check_subject, rerun=rerun),
)
