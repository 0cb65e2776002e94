"""Strict reading and writing of one .safetensors file, streamed, with errors that say what and where.

A file is the length of its header (8 bytes, little-endian), the header (JSON: dtype, shape and
data_offsets of every tensor, counted from the end of the header) and the tensors, without gaps.
"""

import hashlib
import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import numpy.typing as npt

DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
MAX_JSON = 100_000_000  # bytes: the header limit of the format's own library, kept for every JSON file
CHUNK = 1 << 22  # bytes read at once


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written, in one line."""


@dataclass(frozen=True)
class FileRecord:
    """A file that was read; sha256 in hexadecimal."""

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: bytes begin … end of a file."""

    file: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int


def short(value: object) -> str:
    """Something out of a file, fit for one line."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:60]}…{text[-50:]}"


def parse_object(file: Path, text: bytes) -> dict[str, Any]:
    """A JSON object in which no key occurs twice; CheckpointError where `text` is something else."""
    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_constant)
    except UnicodeDecodeError:
        raise CheckpointError(f"{file}: its JSON is not UTF-8 text; download it again") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: its JSON does not parse ({error}); download it again") from None
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{file}: its JSON is not an object; download it again")
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {short(key)} occurs twice")
        found[key] = value
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of a file in the order of their bytes, which they must fill without hole or overlap."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_JSON):
            raise CheckpointError(
                f"{file}: not a .safetensors file, or cut short: it has {size} bytes and announces a header "
                f"of {length} (at most {MAX_JSON}); download it again (is it a Git LFS pointer?)"
            )
        header = parse_object(file, stream.read(length))
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        raise CheckpointError(f"{file}: __metadata__ is {short(metadata)}; it must map strings to strings")
    entries = [(name, _entry(file, name, info, 8 + length)) for name, info in header.items()]
    entries.sort(key=lambda item: (item[1].begin, item[1].end))
    end = 8 + length
    for name, entry in entries:
        if entry.begin != end:
            what = f"leaves a hole of {entry.begin - end} bytes after" if entry.begin > end else "overlaps"
            raise CheckpointError(f"{file}: tensor {short(name)} {what} what stands before it; download the file again")
        end = entry.end
    if end != size:
        what = "cut short" if end > size else "too long"
        raise CheckpointError(f"{file}: {what}: tensors end at byte {end}, the file at {size}; download it again")
    return dict(entries)


def _entry(file: Path, name: str, info: Any, start: int) -> Entry:
    match info:
        case {"dtype": str(code), "shape": [*shape], "data_offsets": [begin, end], **rest} if not rest and all(
            type(n) is int and 0 <= n <= sys.maxsize for n in (*shape, begin, end)
        ):
            pass
        case _:
            raise CheckpointError(
                f"{file}: the header says {short(info)} of tensor {short(name)}; "
                "it must give dtype, shape and two data_offsets, and nothing else: download the file again"
            )
    if code not in DTYPES:
        raise CheckpointError(
            f"{file}: tensor {short(name)} has dtype {short(code)}; convert it to one of {', '.join(DTYPES)}"
        )
    if end - begin != math.prod(shape) * DTYPES[code].itemsize:
        raise CheckpointError(
            f"{file}: tensor {short(name)}: its offsets span {end - begin} bytes, "
            f"which is not what {code} {short(shape)} needs; download the file again"
        )
    return Entry(file, DTYPES[code], tuple(shape), start + begin, start + end)


def read_tensors(file: Path, entries: Mapping[str, Entry], tensors: Mapping[str, npt.NDArray[Any]]) -> FileRecord:
    """Fill those of `tensors` that a file holds, in a single pass that also hashes it.

    `entries` are all tensors of the file, as read_header gives them; one that `tensors` lacks is
    hashed only. Raises CheckpointError at the first element that is not finite in its array's dtype.
    """
    digest = hashlib.sha256()
    start = min((entry.begin for entry in entries.values()), default=-1)  # a file may be all header
    with open(file, "rb") as stream:
        digest.update(stream.read(start))
        for name, entry in entries.items():
            flat = tensors[name].reshape(-1) if name in tensors else None
            for at, values in chunks(stream, entry, digest):
                if flat is not None:
                    part = flat[at : at + values.size]
                    with np.errstate(over="ignore"):
                        part[:] = values
                    check_finite(f"{file}: tensor {short(name)}", part, entry.shape, at)
        return FileRecord(file.name, digest.hexdigest(), stream.tell())


def chunks(stream: BinaryIO, entry: Entry, digest: Any = None) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """A tensor piece by piece from where the stream stands: index of the first element, elements."""
    for begin in range(entry.begin, entry.end, CHUNK):
        size = min(CHUNK, entry.end - begin)
        data = stream.read(size)
        if len(data) < size:
            raise CheckpointError(f"{entry.file}: ended while it was read; wait until nothing writes it")
        if digest is not None:
            digest.update(data)
        yield (begin - entry.begin) // entry.dtype.itemsize, np.frombuffer(data, entry.dtype)


def check_finite(what: str, flat: npt.NDArray[Any], shape: tuple[int, ...], at: int = 0) -> None:
    """CheckpointError where some element of flat, the elements from `at` on of a tensor, is not finite."""
    finite = np.isfinite(flat)
    if not finite.all():
        index = tuple(int(i) for i in np.unravel_index(at + int(np.argmin(finite)), shape))
        raise CheckpointError(
            f"{what} is NaN, infinite or too large for {flat.dtype.name} at {index} of {shape}; repair the model"
        )


def write_tensors(file: Path, tensors: Mapping[str, npt.NDArray[Any]], code: str) -> None:
    """Write a new file, converting tensor by tensor to DTYPES[code]; CheckpointError where one is not finite then."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # without it the official loader refuses
    dtype, end = DTYPES[code], 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.size * dtype.itemsize
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "xb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            with np.errstate(over="ignore"):
                values = tensor.astype(dtype, order="C")
            check_finite(f"{file.name}: tensor {name!r}", values.reshape(-1), values.shape)
            stream.write(values.tobytes())
