"""The command `python -m lockproofs.experiments NAME`: runs an experiment, or goes on with it."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated

import typer

import lockproofs.experiments as package
from lockproofs.claim import BadInput
from lockproofs.exit_codes import BAD_INPUT, DONE, INTERRUPTED
from lockproofs.experiments.store import RESULTS, Experiment, run
from lockproofs.terminal import counted

WORK = Path.home() / ".cache" / "lockref" / "experiments"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def names() -> list[str]:
    """Experiments that can be run, in alphabetical order."""
    return sorted(module.name for module in iter_modules(package.__path__) if module.name not in ("__main__", "store"))


def load(name: str) -> Experiment:
    """The experiment of that name. Raises BadInput for an unknown one."""
    if name not in names():
        raise BadInput(f"unknown experiment {name!r}: choose from {', '.join(names()) or 'none'}")
    found: Experiment = import_module(f"{package.__name__}.{name}").EXPERIMENT
    return found


@app.command()
def _run(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of: {', '.join(names())}.")],
    work: Annotated[Path, typer.Option(metavar="DIR", help="Where an unfinished run lies.")] = WORK,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the result is published.")] = RESULTS,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing unless something is wrong.")] = False,
) -> None:
    """Run one experiment; interrupted, the same command goes on after the last finished cell."""
    experiment = load(name)
    with counted(name, quiet) as follow:
        run(experiment, work, out, follow)
    if not quiet:
        print(f"{experiment.title}: {len(experiment.cells)} cells; wrote {out / name}.json")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    try:
        app(argv, prog_name="python -m lockproofs.experiments", standalone_mode=False)
        return DONE
    except (KeyboardInterrupt, typer.Abort):
        print("experiments: interrupted; the same command goes on after the last finished cell", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if not (isinstance(error, BadInput) or hasattr(error, "format_message")):
            raise
        line = error.format_message() if hasattr(error, "format_message") else str(error)
        print(f"experiments: {' '.join(line.split())}", file=sys.stderr)
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
