"""`lockref attack`: one attack alone on a checkpoint; writes the model that the attacker is left with."""

import os
import shutil
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lockproofs.claim import BadInput
from lockproofs.report import to_json
from lockref.attacks.keyless import heaviest_tails
from lockref.attacks.registry import ATTACKS
from lockref.attacks.result import AttackResult, Tensors
from lockref.models.checkpoint_io import Checkpoint, load_checkpoint, save_checkpoint

SCHEMA = "lockref-attack/1"
REPORT, KEY = "attack.json", "key.npz"


def attack(name: str, subject: Path, base: Path | None, out: Path, guess: int | None) -> dict[str, Any]:
    """Runs an attack and writes `out`: a checkpoint, what was found (attack.json) and the key (key.npz).

    The directory appears complete or not at all. Returns what attack.json says. Raises BadInput for an unknown name,
    a base that is missing or of another model, a guess out of range, and an `out` that holds something.
    """
    if name not in ATTACKS:
        raise BadInput(f"unknown attack {name!r}: choose from {', '.join(ATTACKS)}")
    if ATTACKS[name].needs_base and base is None:
        raise BadInput(f"attack {name} compares the release with its base: name one with --base")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise BadInput(f"--out {out}: already exists: choose another directory or remove it")
    released = load_checkpoint(subject)
    anchor = load_checkpoint(base) if base else None
    if anchor and anchor.config != released.config:
        raise BadInput(f"{base}: its config differs from that of {subject}: give the base of this very model")
    try:
        result = ATTACKS[name](released.tensors, released.config, anchor.tensors if anchor else None)
    except (ValueError, np.linalg.LinAlgError) as error:
        raise BadInput(f"{subject}: {error}") from error
    chosen, how = _choose(result, released, guess)
    said = {
        "schema": SCHEMA,
        "attack": name,
        "undoes": ATTACKS[name].undoes,
        "subject": _files(released),
        "base": _files(anchor) if anchor else None,
        "knows": list(result.knows),
        "guesses": len(result.guesses),
        "residual_bits": result.residual_bits,
        "guess": chosen,
        "chosen_by": how,
        "changed_tensors": _changed(released.tensors, result.guesses[chosen]),
        "found": {key: _described(np.asarray(value)) for key, value in result.found.items()},
    }
    _write(out, said, result, result.guesses[chosen], released)
    return said


def _choose(result: AttackResult, released: Checkpoint, guess: int | None) -> tuple[int, str]:
    """Which guess to write, and why."""
    count = len(result.guesses)
    if guess is not None:
        if not 0 <= guess < count:
            raise BadInput(f"--guess {guess}: there are {count} guesses, from 0 to {count - 1}")
        return guess, "--guess"
    if count == 1:
        return 0, "the only guess"
    return int(np.argmax(heaviest_tails(result.guesses, released.config))), "the heaviest tails of all guesses"


def _files(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    return [{"name": file.name, "sha256": file.sha256, "bytes": file.bytes} for file in checkpoint.files]


def _changed(before: Tensors, after: Tensors) -> list[str]:
    return [name for name, w in before.items() if not np.array_equal(w, after[name])]


def _described(value: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Shape of an array, and its values where they are few whole numbers."""
    shape: Sequence[int] = value.shape
    whole = value.dtype.kind in "iu" and value.size <= 1024
    return {"shape": list(shape), "dtype": str(value.dtype)} | ({"values": value.tolist()} if whole else {})


def _write(out: Path, said: dict[str, Any], result: AttackResult, tensors: Tensors, released: Checkpoint) -> None:
    """The weights in the type that most of the release's tensors have."""
    dtype = Counter(released.dtypes.values()).most_common(1)[0][0]
    temporary = out.parent / f".{out.name}.{uuid.uuid4().hex}.tmp"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(temporary, released.config, tensors, dtype)
        (temporary / REPORT).write_text(to_json(said), encoding="utf-8")
        key: dict[str, Any] = {name: np.asarray(value) for name, value in result.found.items()}
        np.savez(temporary / KEY, **key)
        os.replace(temporary, out)
    except OSError as error:
        raise BadInput(f"--out {out}: {error.strerror}: choose another directory") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
