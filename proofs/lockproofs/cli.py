"""The command line. Only light imports up here: `lockref --help` must answer at once."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lockproofs.exit_codes import BAD_INPUT, DONE, INTERNAL, INTERRUPTED, FailOn, exit_code

if TYPE_CHECKING:
    from lockproofs.claim import Claim

Registry = Callable[[], "dict[str, Claim]"]

DEFAULT_CASES = 32
DEFAULT_OUT = Path("lockref-report")
DEBUG = "LOCKREF_DEBUG"

app = typer.Typer(
    help="Executable reference and audit of published locks for open-weight language models.",
    epilog="Exit codes: 0 done · 1 a verdict that --fail-on names · 2 undecided where that was asked to "
    f"fail · 3 bad input · 4 internal error ({DEBUG}=1 shows the traceback).",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _dash(value: str | None) -> str | None:
    if value not in (None, "-"):
        raise typer.BadParameter("takes only - (standard output)")
    return value


Json = Annotated[
    str | None,
    typer.Option("--json", metavar="-", callback=_dash, help="Write JSON to standard output, and only that."),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all random cases.")]
Cases = Annotated[int, typer.Option(min=1, help="Number of random cases for a check.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing unless something is wrong.")]


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        print("lockref", installed("lockref"))
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


@app.command("audit")
def _audit(
    ctx: typer.Context,
    subject: Annotated[
        Path | None,
        typer.Argument(help="Checkpoint directory (config.json, *.safetensors); the embedded models if left out."),
    ] = None,
    base: Annotated[Path | None, typer.Option(metavar="DIR", help="Public base model of SUBJECT.")] = None,
    reference: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The unlocked model that SUBJECT claims to equal.")
    ] = None,
    peer: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Another expert of the same base; may be repeated.")
    ] = None,
    lock: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What SUBJECT says of itself. Default: SUBJECT/lock.json.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=".npy of tokens, or any file for a byte-level model, to measure losses on."),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Share by which the loss may rise over REFERENCE's. Default: lock.json's.")
    ] = None,
    claims: Annotated[str | None, typer.Option(metavar="ID,…", help="Only these claims.")] = None,
    cases: Cases = DEFAULT_CASES,
    fail_on: Annotated[
        FailOn | None,
        typer.Option(help="What makes the exit code 1 (2 for undecided). Default: changed; refuted for a SUBJECT."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the three reports go.")] = DEFAULT_OUT,
    seed: Seed = 0,
    quiet: Quiet = False,
    json: Json = None,
) -> int:
    """Run the claims on models; write report.json, report.html and report.md."""
    from lockproofs.audit import audit, choose
    from lockproofs.claim import BadInput
    from lockproofs.render import write_reports
    from lockproofs.report import ensure_writable, staged, to_json
    from lockproofs.subject import Given, directory_subject, zoo_subject
    from lockproofs.terminal import progress, verdicts

    alone = [("base", base), ("reference", reference), ("peer", peer), ("lock", lock), ("data", data),
             ("budget", budget)]  # fmt: skip
    for name, value in alone:
        if value and not subject:
            raise BadInput(f"--{name} needs a SUBJECT, whose {name} it is: name both")
    if subject and fail_on is FailOn.CHANGED:
        raise BadInput("--fail-on changed: verdicts are recorded for the embedded models only: name another")
    chosen = choose(ctx.obj(), claims)
    given = Given(subject, base, reference, tuple(peer or ()), lock, data, budget) if subject else None
    models = directory_subject(given) if given else zoo_subject()
    words = given.words() if given else []
    ensure_writable(out)  # before the work, not after it
    with progress(quiet) as (track, say):
        report = audit(
            models, chosen, seed=seed, cases=cases, command=["lockref", "audit", *words], track=track, say=say
        )
    with staged(out) as folder:
        write_reports(report, folder)
    if json:
        sys.stdout.write(to_json(report.as_data()))
    elif not quiet:
        verdicts(report, out)
    return exit_code(report, fail_on or (FailOn.REFUTED if subject else FailOn.CHANGED))


@app.command("claims")
def _claims(ctx: typer.Context, json: Json = None) -> None:
    """List the claims, with the verdicts recorded for the embedded models."""
    from lockproofs.audit import describe
    from lockproofs.report import to_json
    from lockproofs.terminal import listing

    claims = list(ctx.obj().values())
    if json:
        sys.stdout.write(to_json([describe(claim) for claim in claims]))
    else:
        listing(claims)


@app.command("explain")
def _explain(
    ctx: typer.Context,
    claim_id: Annotated[str, typer.Argument(metavar="ID", help="A claim, as `lockref claims` lists it.")],
    run: Annotated[bool, typer.Option("--run/--no-run", help="Check it now on the embedded models.")] = True,
    cases: Cases = DEFAULT_CASES,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Explain one claim in plain words, check it, and compute its counterexample again."""
    from lockproofs.audit import audit, describe, pick
    from lockproofs.report import to_json
    from lockproofs.subject import zoo_subject
    from lockproofs.terminal import finding, outlook, progress, wording

    claim = pick(ctx.obj(), claim_id)
    results = []
    if run:
        with progress(quiet=bool(json)) as (track, say):
            results = audit(zoo_subject(), [claim], seed=seed, cases=cases, track=track, say=say).claims
    if json:
        sys.stdout.write(to_json(results[0].model_dump(mode="json") if run else describe(claim)))
        return
    wording(claim)
    for result in results:
        finding(claim, result)
    outlook(claim)


@app.command("memory")
def _memory(
    config: Annotated[
        str, typer.Option(metavar="NAME|DIR", help="qwen3-0.6b, qwen3-8b, qwen3-32b, or a checkpoint directory.")
    ] = "qwen3-0.6b",
    mlp: Annotated[str, typer.Option(metavar="dlr|swiglu", help="Locked, or as published.")] = "dlr",
    depth: Annotated[int, typer.Option(min=1, help="Blocks of a DLR-Net, at parameter parity.")] = 48,
    norm: Annotated[str, typer.Option(metavar="none|rms|rms_gain", help="Norm inside the blocks.")] = "none",
    attacker: Annotated[str, typer.Option(metavar="all|NAME,…", help="Whose memory.")] = "all",
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of one step, and the context length.")] = 1024,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the timeline as one HTML page.")] = None,
    quiet: Quiet = False,
    json: Json = None,
) -> None:
    """Say what each attacker's training step holds in memory, and what it computes."""
    from lockproofs.memory import survey, write_page
    from lockproofs.report import to_json
    from lockproofs.terminal import memory

    found = survey(config, mlp=mlp, depth=depth, norm=norm, attackers=attacker, tokens=tokens)
    if html:
        write_page(found, html)
    if json:
        sys.stdout.write(to_json(found.as_data()))
    elif not quiet:
        memory(found, html)


@app.command("lock")
def _lock(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Checkpoint directory (config.json, *.safetensors).")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Where the locked one goes; unfinished: DST.work.")],
    attention: Annotated[
        str, typer.Option(metavar="topk-planes|none", help="Lock of queries and keys.")
    ] = "topk-planes",
    planes: Annotated[int | None, typer.Option(help="Planes flipped on each key head. Default: half of them.")] = None,
    dlr_depth: Annotated[
        int | None, typer.Option(min=0, help="Blocks of a DLR-Net, at parameter parity; 0: none. Default: 16.")
    ] = None,
    dlr_norm: Annotated[str, typer.Option(metavar="none|rms|rms_gain", help="Norm inside the blocks.")] = "rms",
    taylor_order: Annotated[int | None, typer.Option(min=0, help="A polynomial instead of a DLR-Net.")] = None,
    taylor_basis: Annotated[str | None, typer.Option(metavar="taylor|chebyshev|hermite", help="Its basis.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of phase 1, for each layer.")] = 900,
    rate: Annotated[float, typer.Option(help="Peak learning rate of phase 1.")] = 2e-2,
    healing: Annotated[int, typer.Option(min=1, help="Steps of phase 2, the whole model.")] = 1000,
    healing_rate: Annotated[float, typer.Option(help="Peak learning rate of phase 2.")] = 2e-3,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=".npy of tokens, or any file for a byte-level model. Default: text, skills."),
    ] = None,
    rows: Annotated[int, typer.Option(min=8, help="Rows of tokens to learn from; an eighth as many held out.")] = 4096,
    captured: Annotated[int, typer.Option(min=1, help="Rows of them for phase 1.")] = 1024,
    length: Annotated[int, typer.Option(help="Tokens in a row.")] = 128,
    parts: Annotated[int | None, typer.Option(min=1, help="Parts of a step of phase 2. Default: processes.")] = None,
    engine: Annotated[str, typer.Option(metavar="numpy|torch", help="What distills.")] = "numpy",
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where torch distills.")] = "cpu",
    dtype: Annotated[str | None, typer.Option(help="Of the tensors written. Default: that of SRC.")] = None,
    budget: Annotated[float | None, typer.Option(help="Write only if the loss rises by at most this share.")] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    json: Json = None,
) -> None:
    """Lock a model: flip rotary planes, replace the MLPs, write DST with lock.json. Interrupted, it goes on."""
    from lockproofs.lock import Wish, lock
    from lockproofs.report import to_json
    from lockproofs.terminal import locked, whisper

    wish = Wish(
        attention, planes, dlr_depth, dlr_norm, taylor_order, taylor_basis, steps, rate, healing, healing_rate, data,
        rows, captured, length, parts, engine, device, dtype, budget, seed,
    )  # fmt: skip
    said = lock(source, target, wish, whisper(quiet))
    if said is None:
        return
    if json:
        sys.stdout.write(to_json(said))
    elif not quiet:
        locked(said, target)


@app.command("attack")
def _attack(
    name: Annotated[str, typer.Argument(metavar="NAME", help="keyless, keyless-planes, anchor, anchor-signs, …")],
    subject: Annotated[Path, typer.Argument(help="Released checkpoint directory.")],
    base: Annotated[Path | None, typer.Option(help="Model of the same origin: its base, or another expert.")] = None,
    guess: Annotated[int | None, typer.Option(min=0, help="Which guess to write, where several are left.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the recovered model goes.")] = Path("recovered"),
    quiet: Quiet = False,
    json: Json = None,
) -> None:
    """Run one attack alone and write what it recovered: a checkpoint, attack.json and key.npz."""
    from lockproofs.attack import attack
    from lockproofs.report import to_json

    said = attack(name, subject, base, out, guess)
    if json:
        sys.stdout.write(to_json(said))
    elif not quiet:
        print(f"{name} undoes {said['undoes']}.")
        print(f"{said['guesses']} guesses, {said['residual_bits']:.1f} bits left; wrote {out}: guess {said['guess']}")
        print(f"(chosen by {said['chosen_by']}), {len(said['changed_tensors'])} tensors changed.")


@app.command("figures")
def _figures(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Where the figures go.")],
    only: Annotated[str | None, typer.Option(metavar="NAME,…", help="Only these figures.")] = None,
    report: Annotated[Path, typer.Option(metavar="FILE", help="The report.json to draw from.")] = DEFAULT_OUT
    / "report.json",
    quiet: Quiet = False,
) -> None:
    """Draw the figures from a report and stored results: PDF, SVG, PNG, their CSV, captions."""
    from lockproofs.claim import BadInput
    from lockproofs.terminal import counted

    try:
        from lockfigs.gallery import draw, missing
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "matplotlib":
            raise BadInput("figures need matplotlib: python -m pip install 'lockref[figures]'") from None
        raise
    with counted("figures", quiet) as follow:
        written = draw(out, report, only, follow)
    if not quiet:
        print(f"wrote {len(written)} files to {out}: {', '.join(name for name in written if name.endswith('.pdf'))}")
        for line in missing(report) if only is None else []:
            print(line)


@app.command("doctor")
def _doctor(json: Json = None) -> None:
    """Say what is installed: versions, BLAS, threads, extras, devices, embedded models."""
    from lockproofs.doctor import examine
    from lockproofs.report import to_json
    from lockproofs.terminal import health

    found = examine()
    if json:
        sys.stdout.write(to_json(found))
    else:
        health(found)


def main(argv: Sequence[str] | None = None, claims: Registry | None = None) -> int:
    """Runs one command and returns its exit code; `claims` replaces the registry."""
    debug = bool(os.environ.get(DEBUG))
    if debug:
        import logging

        logging.basicConfig(level=logging.DEBUG)
    try:
        code: int = app(argv, prog_name="lockref", standalone_mode=False, obj=claims or _registry) or DONE
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        code, line = _judge(error)
        print(f"lockref: {' '.join(line.split())}", file=sys.stderr)
    if code == INTERRUPTED:
        print("lockref: interrupted; nothing was written", file=sys.stderr)
    return code


def _registry() -> "dict[str, Claim]":
    from lockproofs.claims import all_claims

    return all_claims()


def _judge(error: Exception) -> tuple[int, str]:
    """Exit code and line for an exception: the user's mistake, or ours."""
    from lockproofs.claim import BadInput
    from lockref.models.checkpoint_io import CheckpointError

    if hasattr(error, "format_message"):  # usage errors of typer, whose class moved between its versions
        return BAD_INPUT, f"{error.format_message()} (see lockref --help)"
    if isinstance(error, BadInput | CheckpointError):
        return BAD_INPUT, str(error)
    hint = f"{DEBUG}=1 shows the traceback"
    return INTERNAL, f"internal error: {type(error).__name__}: {error} ({hint})"
