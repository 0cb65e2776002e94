"""The arrows run one way: numpy ← lockref ← {lockproofs, lockcross} ← tests, and four floors inside lockref."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {
    "lockref": ROOT / "ref",
    "lockproofs": ROOT / "proofs",
    "lockcross": ROOT / "crosscheck",
    "lockfigs": ROOT / "paper_figs",
}
FLOORS = ("lockref.autodiff", "lockref.models", "lockref.locks", "lockref.attacks")
HEAVY = {"torch", "transformers", "peft", "mergekit", "sklearn"}

FORBIDDEN = {
    "lockref": {"lockproofs", "lockcross", "lockfigs", *HEAVY},
    "lockproofs": {"lockcross", "lockfigs", *HEAVY},
    "lockcross": {"lockproofs", "lockfigs"},
    "lockfigs": {"lockref", "lockcross", *HEAVY},  # it recomputes nothing
    **{floor: set(FLOORS[i + 1 :]) for i, floor in enumerate(FLOORS)},
    "lockref.merging": set(FLOORS),  # on the ground, beside autodiff
}


def imports(code: str, everywhere: bool) -> set[str]:
    """Modules that a file imports: when it is imported itself, or anywhere."""
    tree = ast.parse(code)
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def broken(code: str, forbidden: set[str], everywhere: bool) -> set[str]:
    """Forbidden packages among a file's imports."""
    return {f for f in forbidden for name in imports(code, everywhere) if name == f or name.startswith(f + ".")}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_arrows_run_one_way(package: str) -> None:
    top, *rest = package.split(".")
    files = sorted((SOURCES[top] / top).joinpath(*rest).rglob("*.py"))
    assert files, f"{package} has no files"
    lazy_is_fine = package == "lockproofs"  # its commands may use the crosscheck once they run
    for file in files:
        wrong = broken(file.read_text(), FORBIDDEN[package], everywhere=not lazy_is_fine)
        assert not wrong, f"{file.relative_to(ROOT)} imports {sorted(wrong)}: the arrows run the other way"


def test_a_wrong_arrow_is_seen() -> None:
    planted = "def f():\n    from lockref.attacks import keyless\n"
    assert broken(planted, FORBIDDEN["lockref.locks"], everywhere=True) == {"lockref.attacks"}
    assert broken("import torch.nn\n", FORBIDDEN["lockref"], everywhere=False) == {"torch"}


def test_the_audit_needs_no_torch() -> None:
    code = (
        "import sys; import lockproofs.audit, lockproofs.claims; lockproofs.claims.all_claims();"
        f"sys.exit(', '.join({sorted(HEAVY)!r} & sys.modules.keys()) or 0)".replace("[", "{").replace("]", "}")
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"importing the audit also imported {done.stderr.strip()}"


def test_the_engine_reads_in_one_sitting() -> None:
    engine = [f for f in (ROOT / "ref/lockref/autodiff").glob("*.py")]
    lines = {f.name: len(f.read_text().splitlines()) for f in engine}
    assert max(lines.values()) <= 250, f"no file over 250 lines: {lines}"
