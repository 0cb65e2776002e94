"""What the commands of this folder share: how they answer, and where they may write."""

import sys
from collections.abc import Callable
from pathlib import Path

from lockref.models.tensor_file import CheckpointError


def answered(name: str, run: Callable[[], None]) -> int:
    """0 when done; 3 with one line on standard error where input is wrong or training diverges; 130 interrupted."""
    try:
        run()
    except (ValueError, FloatingPointError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


def require_new(target: Path) -> None:
    """Raises CheckpointError where something is there already."""
    if target.exists():
        raise CheckpointError(f"{target}: already exists; choose another directory or remove it")
