"""What this installation is: versions, BLAS, threads, extras, devices. The report says it too."""

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from lockproofs.report import Environment, Tool

NAME = "lockref"
ROOT = Path(__file__).parents[2]


def tool() -> Tool:
    """Version of the distribution, and the commit where it runs from a checkout."""
    commit = _git("rev-parse", "HEAD")
    dirty = bool(_git("status", "--porcelain")) if commit else None
    return Tool(name=NAME, version=metadata.version(NAME), commit=commit, dirty=dirty)


def _git(*words: str) -> str | None:
    if not (ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *words],
            capture_output=True,
            text=True,
            timeout=10,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def environment() -> Environment:
    """Python, machine, BLAS with its threads, and the base packages."""
    blas, threads = _blas()
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=_cpu(),
        blas=blas,
        threads=threads,
        packages={name: found for name, found in _versions(_requirements()[""]).items() if found},
    )


def _blas() -> tuple[str, int]:
    import numpy as np  # threadpoolctl sees only what is loaded
    from threadpoolctl import threadpool_info

    assert np.__version__
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    names = {f"{pool['internal_api']} {pool['version']}" for pool in pools}
    return ", ".join(sorted(names)) or "none found", max((p["num_threads"] for p in pools), default=1)


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.M) if cpuinfo.exists() else None
    return f"{names[1] if names else platform.processor() or platform.machine()} × {os.cpu_count()}"


def _requirements() -> dict[str, list[str]]:
    """Distribution names that lockref asks for, by extra; "" is the base."""
    wanted: dict[str, list[str]] = {"": []}
    for line in metadata.requires(NAME) or []:
        requirement, _, marker = line.partition(";")
        name = re.split(r"[^A-Za-z0-9_.-]", requirement.strip(), maxsplit=1)[0]
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", marker)
        names = wanted.setdefault(extra[1] if extra else "", [])
        if name != NAME:
            names.append(name)
    return wanted


def _versions(names: list[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in sorted(names, key=str.lower):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _devices() -> list[str]:
    """Devices that PyTorch sees, or why it sees none."""
    try:
        import torch
    except ImportError:
        return ["cpu (PyTorch is not installed)"]
    except Exception as error:  # a broken installation is what a doctor is for
        return [f"cpu (PyTorch does not load: {error})"]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ["cpu", *(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(count))]


def _zoo() -> list[dict[str, Any]]:
    from lockproofs.subject import zoo_subject

    return [
        {"name": c.path.name, "bytes": sum(f.bytes for f in c.files), "files": len(c.files)}
        for c in zoo_subject().checkpoints.values()
    ]


def examine() -> dict[str, Any]:
    """Everything `lockref doctor` says. Raises CheckpointError if an embedded model does not load."""
    extras = {extra: _versions(names) for extra, names in _requirements().items() if extra}
    return {
        "tool": tool().model_dump(),
        "environment": environment().model_dump(),
        "executable": sys.executable,
        "extras": extras,
        "devices": _devices(),
        "zoo": _zoo(),
    }
