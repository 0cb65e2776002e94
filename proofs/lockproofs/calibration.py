"""Tokens to distill on and to measure with: bytes of text and skills, or a file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockproofs.errors import BadInput
from lockref.locks.dlr_run import data

Tokens = NDArray[np.int64]

BYTES = 256  # the vocabulary of a byte-level model
ADVICE = "give a .npy array of integers, (rows, length) or one stream"


@dataclass(frozen=True)
class Stream:
    """The tokens of a file, one stream or rows, left on disk until they are asked for."""

    file: Path
    tokens: NDArray[np.integer]
    vocabulary: int

    def rows(self, length: int) -> NDArray[np.integer]:
        """All rows of that length, a stream cut one after the other. Raises BadInput where there are not two."""
        tokens = self.tokens
        if tokens.ndim == 1:
            tokens = tokens[: len(tokens) // length * length].reshape(-1, length)
        if tokens.shape[1] < length or len(tokens) < 2:
            raise BadInput(
                f"{self.file}: {tokens.shape} tokens are not two rows of {length}: lower --length or add tokens"
            )
        return tokens[:, :length]

    def checked(self, rows: NDArray[np.integer]) -> Tokens:
        """Rows in memory. Raises BadInput for tokens that the vocabulary lacks."""
        if rows.min() < 0 or rows.max() >= self.vocabulary:
            raise BadInput(
                f"{self.file}: tokens {rows.min()} to {rows.max()}, the vocabulary has {self.vocabulary}: {ADVICE}"
            )
        return rows.astype(np.int64)


def read(file: Path, vocabulary: int) -> Stream:
    """A .npy array of integers, or for a byte-level vocabulary anything else, byte by byte.

    Raises BadInput for a file that is missing, empty or malformed.
    """
    try:
        if file.suffix == ".npy":
            found: Any = np.load(file, mmap_mode="r", allow_pickle=False)
        else:
            found = np.memmap(file, np.uint8, "r")
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror or error}: name a file of tokens") from None
    except (ValueError, EOFError) as error:
        raise BadInput(f"{file}: {error}: {ADVICE}") from None
    if file.suffix != ".npy" and vocabulary != BYTES:
        raise BadInput(f"{file}: bytes are tokens of a vocabulary of {BYTES}, this one has {vocabulary}: {ADVICE}")
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "iu" or found.ndim not in (1, 2):
        what = f"{found.dtype} of shape {found.shape}" if isinstance(found, np.ndarray) else "an archive of arrays"
        raise BadInput(f"{file}: {what}: {ADVICE}")
    return Stream(file, found, vocabulary)


def rows_of(file: Path | None, vocabulary: int, rows: int, length: int, seed: int) -> tuple[Tokens, Tokens]:
    """Rows of tokens (n, length) to learn from, at most `rows`, and an eighth as many held out, the last of a file.

    Without a file, byte text and skills. Raises BadInput as `read` does, for a file that is too short, and for tokens
    that the vocabulary lacks.
    """
    if file is None:
        if vocabulary != BYTES:
            raise BadInput(f"a vocabulary of {vocabulary} tokens is not bytes: name tokens with --data FILE.npy")
        rng = np.random.default_rng(seed)
        return data(rows, length, rng, False), data(max(3, rows // 8), length, rng, True)
    stream = read(file, vocabulary)
    found = stream.rows(length)
    held = max(1, len(found) // 9)
    first, last = found[: min(rows, len(found) - held)], found[-held:][: max(1, rows // 8)]
    return stream.checked(first), stream.checked(last)


def draw(stream: Stream | None, vocabulary: int, rows: int, length: int, rng: np.random.Generator) -> Tokens:
    """At most `rows` rows to measure on, of that length or of the data's own: no row twice.

    Without data: for bytes held-out text and skills, otherwise tokens uniformly at random.
    """
    if stream is None:
        if vocabulary == BYTES:
            return data(max(rows, 3), length, rng, True)[:rows]
        return rng.integers(0, vocabulary, (rows, length))
    length = min(length, stream.tokens.shape[-1] // (2 if stream.tokens.ndim == 1 else 1))
    if length < 2:
        raise BadInput(f"{stream.file}: {stream.tokens.shape} tokens are too few to predict one from another: {ADVICE}")
    found = stream.rows(length)
    chosen = np.sort(rng.choice(len(found), min(rows, len(found)), replace=False))
    return stream.checked(np.asarray(found[chosen]))


def described(stream: Stream | None, vocabulary: int) -> str:
    """What `draw` draws, in words."""
    if stream is not None:
        return f"tokens of {stream.file.name}"
    return "held-out bytes of text and skills" if vocabulary == BYTES else "uniformly random tokens"
