"""Tiny trained Qwen3 models that ship with lockref, and locked forms of the base; README.md and LOCKED.md are cards."""

from pathlib import Path

ZOO = ("base", "add", "reverse")
LOCKED_ZOO = ("dlr-16", "dlr-48")


def zoo_path(name: str) -> Path:
    """Directory of one zoo model, locked or not. Raises KeyError for an unknown name."""
    if name not in ZOO + LOCKED_ZOO:
        raise KeyError(f"no zoo model {name!r}; choose from {', '.join(ZOO + LOCKED_ZOO)}")
    return Path(__file__).parent / name
