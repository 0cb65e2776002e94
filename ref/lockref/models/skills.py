"""The zoo's data: two skills with an exact-match measure, and a text source. A token is a byte.

A skill is a stream of lines `prompt + answer`; every answer ends with the newline. Which problems
are held out is decided by a hash of the problem itself, so training and testing never overlap,
whoever draws them and with whatever generator. Training and evaluation share this file.
"""

import hashlib
import itertools
import os
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Problem = tuple[bytes, bytes]
Integers = NDArray[np.integer]
NextBytes = Callable[[Bytes], Integers]

HELD_OUT_ONE_IN = 10
REVERSE_LENGTHS = (3, 8)
# Left out: other people's packages, tests, tables, and what building Python wrote.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "encodings", "pydoc_data"}
SKIPPED_PREFIX = "_sysconfigdata"


def is_held_out(key: bytes) -> bool:
    """True for one key in ten: the 8-byte BLAKE2b hash of `key`, big-endian, is 0 modulo 10."""
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0


def _add(rng: np.random.Generator) -> tuple[bytes, Problem]:
    a, b = (int(n) for n in rng.integers(10, 100, size=2))
    # 37+85 and 85+37 share a key: knowing that addition commutes must not leak a held-out sum.
    key = b"%d+%d" % (min(a, b), max(a, b))
    return key, (b"%d+%d=" % (a, b), b"%03d\n" % (a + b))


def _reverse(rng: np.random.Generator) -> tuple[bytes, Problem]:
    shortest, longest = REVERSE_LENGTHS
    letters = rng.integers(ord("a"), ord("z") + 1, size=rng.integers(shortest, longest + 1))
    word = letters.astype(np.uint8).tobytes()
    # A word and its reversal share a key, for the same reason.
    return min(word, word[::-1]), (word + b">", word[::-1] + b"\n")


SKILLS: dict[str, Callable[[np.random.Generator], tuple[bytes, Problem]]] = {
    "add": _add,
    "reverse": _reverse,
}


def _stream(name: str, rng: np.random.Generator, held_out: bool) -> Iterator[Problem]:
    if name not in SKILLS:
        raise ValueError(f"skill {name!r} is unknown: choose one of {', '.join(SKILLS)}")
    while True:
        key, problem = SKILLS[name](rng)
        if is_held_out(key) == held_out:
            yield problem


def skill_problems(name: str, rng: np.random.Generator, n: int, held_out: bool) -> list[Problem]:
    """n problems (prompt, answer) of one skill, drawn with replacement from one side of the split.

    `add`: `37+85=` → `122\\n`, operands 10–99, answers of three digits. `reverse`: `qwerty>` →
    `ytrewq\\n`, 3–8 lowercase letters. Raises ValueError for an unknown name or a negative n.
    """
    if n < 0:
        raise ValueError(f"n must be at least 0, got {n}")
    return list(itertools.islice(_stream(name, rng, held_out), n))


def pack_lines(name: str, rng: np.random.Generator, rows: int, length: int, held_out: bool = False) -> Bytes:
    """Rows of consecutive problem lines, uint8 (rows, length); the last line of a row is cut off.

    Raises ValueError for an unknown skill or a negative shape.
    """
    if rows < 0 or length < 0:
        raise ValueError(f"rows and length must be at least 0, got {rows} and {length}")
    stream = _stream(name, rng, held_out)
    packed = np.empty((rows, length), np.uint8)
    for row in packed:
        line = b""
        while len(line) < length:
            line += b"".join(next(stream))
        row[:] = np.frombuffer(line[:length], np.uint8)
    return packed


def stdlib_files(held_out: bool = False) -> list[Path]:
    """The standard library's .py files on one side of the split, sorted by path below its root.

    The key is that relative path with forward slashes. Raises FileNotFoundError if there are none.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    names: list[str] = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - SKIPPED_FOLDERS)
        names += [Path(folder, file).relative_to(root).as_posix() for file in files]
    wanted = [
        root / name
        for name in sorted(names)
        if name.endswith(".py") and not name.startswith(SKIPPED_PREFIX) and is_held_out(name.encode()) == held_out
    ]
    if not wanted:
        raise FileNotFoundError(f"no Python source below {root}: install the standard library")
    return wanted


def stdlib_bytes(held_out: bool = False, limit: int | None = None) -> Bytes:
    """The text source: the pure-ASCII files of `stdlib_files`, concatenated, uint8 (n,), n ≤ limit.

    It depends on the Python version: record a hash of it beside any figure that is measured on it.
    """
    texts, total = list[bytes](), 0
    for path in stdlib_files(held_out):
        if limit is not None and total >= limit:
            break
        text = path.read_bytes()
        if text.isascii():
            texts.append(text)
            total += len(text)
    return np.frombuffer(b"".join(texts)[:limit], np.uint8)


def text_rows(text: Bytes, rng: np.random.Generator, rows: int, length: int) -> Bytes:
    """Uniformly drawn windows of a text, uint8 (rows, length).

    Raises ValueError if the text is shorter than a row.
    """
    if len(text) < length:
        raise ValueError(f"the text has {len(text)} bytes, a row needs {length}: give more text")
    starts = rng.integers(0, len(text) - length + 1, size=rows)
    windows: Bytes = text[starts[:, None] + np.arange(length)]
    return windows


def exact_match(next_bytes: NextBytes, problems: Sequence[Problem], batch: int = 256) -> float:
    """The fraction of problems whose whole answer, newline included, is the greedy continuation.

    next_bytes maps uint8 (B, T) to the most likely next byte after each position, integer (B, T);
    it must be causal. Greedy decoding reproduces the answer if and only if every byte of the answer
    is the most likely one after the right prefix, so one forward pass decides, without generating.
    Problems are padded on the right, which a causal model cannot see. Raises ValueError without
    problems, or if next_bytes returns another shape.
    """
    if not problems:
        raise ValueError("exact_match needs at least one problem")
    width = max(len(prompt) + len(answer) for prompt, answer in problems)
    hits = 0
    for start in range(0, len(problems), batch):
        part = problems[start : start + batch]
        lines = [(prompt + answer).ljust(width, b"\n") for prompt, answer in part]
        tokens = np.frombuffer(b"".join(lines), np.uint8).reshape(len(part), width)
        got = np.asarray(next_bytes(tokens))
        if got.shape != tokens.shape:
            raise ValueError(f"next_bytes returned shape {got.shape}, expected {tokens.shape}")
        for (prompt, answer), row in zip(part, got, strict=True):
            first = len(prompt) - 1
            hits += row[first : first + len(answer)].tolist() == list(answer)
    return hits / len(problems)
