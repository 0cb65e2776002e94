"""What a command's exit code says."""

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `lockref --help` must not pay for pydantic and numpy
    from lockproofs.report import Report

DONE, NAMED, UNDECIDED, BAD_INPUT, INTERNAL, INTERRUPTED = 0, 1, 2, 3, 4, 130


class FailOn(StrEnum):
    """What makes the exit code of an audit non-zero."""

    CHANGED = "changed"
    REFUTED = "refuted"
    UNDECIDED = "undecided"
    NEVER = "never"


def exit_code(report: "Report", fail_on: FailOn) -> int:
    """DONE, or NAMED for a verdict that `fail_on` names, or UNDECIDED where that was asked to fail."""
    verdicts = {claim.verdict for claim in report.claims}
    match fail_on:
        case FailOn.CHANGED:
            return NAMED if any(claim.changed for claim in report.claims) else DONE
        case FailOn.REFUTED:
            return NAMED if "refuted" in verdicts else DONE
        case FailOn.UNDECIDED:
            return UNDECIDED if "undecided" in verdicts else DONE
        case FailOn.NEVER:
            return DONE
