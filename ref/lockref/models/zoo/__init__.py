"""Tiny trained Qwen3 models that ship with lockref; README.md beside this file is their card."""

from pathlib import Path

ZOO = ("base", "add", "reverse")


def zoo_path(name: str) -> Path:
    """Directory of one zoo model. Raises KeyError for an unknown name."""
    if name not in ZOO:
        raise KeyError(f"no zoo model {name!r}; choose from {', '.join(ZOO)}")
    return Path(__file__).parent / name
