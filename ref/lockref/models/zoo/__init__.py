"""Tiny trained Qwen3 models that ship with lockref, and locked ones; README.md and LOCKED.md are cards."""

from pathlib import Path

ZOO = ("base", "add", "reverse")
LOCKED_ZOO = ("dlr-16", "dlr-48")
TRAP_ZOO = ("trap2-full", "trap2-lora")  # experts on addition: whole models of the host's form


def zoo_path(name: str) -> Path:
    """Directory of one zoo model, locked or not. Raises KeyError for an unknown name."""
    if name not in ZOO + LOCKED_ZOO + TRAP_ZOO:
        raise KeyError(f"no zoo model {name!r}; choose from {', '.join(ZOO + LOCKED_ZOO + TRAP_ZOO)}")
    return Path(__file__).parent / name
