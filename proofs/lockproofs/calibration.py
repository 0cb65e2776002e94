"""Tokens to distill on and to measure with: bytes of text and skills, or a file."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lockproofs.claim import BadInput
from lockref.locks.dlr_run import data

Tokens = NDArray[np.int64]

BYTES = 256  # the vocabulary of a byte-level model
ADVICE = "give a .npy array of integers, (rows, length) or one stream"


def rows_of(file: Path | None, vocabulary: int, rows: int, length: int, seed: int) -> tuple[Tokens, Tokens]:
    """Rows of tokens (n, length) to learn from, at most `rows`, and an eighth as many held out, the last of a file.

    Without a file, byte text and skills. A file is a .npy array of integers, or for a byte-level vocabulary anything
    else, byte by byte. Raises BadInput for a file that is missing, malformed, too short, or holds other tokens.
    """
    if file is None:
        if vocabulary != BYTES:
            raise BadInput(f"a vocabulary of {vocabulary} tokens is not bytes: name tokens with --data FILE.npy")
        rng = np.random.default_rng(seed)
        return data(rows, length, rng, False), data(max(3, rows // 8), length, rng, True)
    tokens = _cut(file, _read(file, vocabulary), length)
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise BadInput(f"{file}: tokens {tokens.min()} to {tokens.max()}, the vocabulary has {vocabulary}: {ADVICE}")
    held = max(1, len(tokens) // 9)
    return tokens[: min(rows, len(tokens) - held)], tokens[-held:][: max(1, rows // 8)]


def _read(file: Path, vocabulary: int) -> NDArray[np.integer]:
    try:
        if file.suffix == ".npy":
            found: NDArray[np.integer] = np.load(file, allow_pickle=False)
        else:
            found = np.frombuffer(file.read_bytes(), np.uint8)
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror or error}: name a file of tokens") from None
    except (ValueError, EOFError) as error:
        raise BadInput(f"{file}: {error}: {ADVICE}") from None
    if file.suffix != ".npy" and vocabulary != BYTES:
        raise BadInput(f"{file}: bytes are tokens of a vocabulary of {BYTES}, this one has {vocabulary}: {ADVICE}")
    if found.dtype.kind not in "iu" or found.ndim not in (1, 2):
        raise BadInput(f"{file}: {found.dtype} of shape {found.shape}: {ADVICE}")
    return found


def _cut(file: Path, tokens: NDArray[np.integer], length: int) -> Tokens:
    """A stream in rows, or rows as they are cut to the length."""
    if tokens.ndim == 1:
        tokens = tokens[: len(tokens) // length * length].reshape(-1, length)
    if tokens.shape[1] < length or len(tokens) < 2:
        raise BadInput(f"{file}: {tokens.shape} tokens are not two rows of {length}: lower --length or add tokens")
    return tokens[:, :length].astype(np.int64)
