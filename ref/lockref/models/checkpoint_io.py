"""Checkpoint directories as on the hub: config.json beside one or more .safetensors files.

Reading executes nothing that comes with a model, and every tensor, file and setting is accounted
for, or a `CheckpointError` says in one line what is wrong, where, and what to do.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lockref.models.qwen3 import Qwen3Config, expected_tensors
from lockref.models.tensor_file import (
    DTYPES,
    MAX_JSON,
    CheckpointError,
    Entry,
    FileRecord,
    chunks,
    parse_object,
    read_header,
    read_tensors,
    short,
    write_tensors,
)

__all__ = ["Checkpoint", "CheckpointError", "FileRecord", "load_checkpoint", "save_checkpoint"]

CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Checkpoint:
    """A model as loaded: tensors under hub names in one dtype, and the dtype that the files hold of each."""

    path: Path
    config: Qwen3Config
    tensors: dict[str, npt.NDArray[Any]]
    dtypes: dict[str, str]
    files: tuple[FileRecord, ...]


def load_checkpoint(
    path: str | Path,
    dtype: npt.DTypeLike = np.float64,
    expected: Callable[[Qwen3Config], Shapes] = expected_tensors,
) -> Checkpoint:
    """Read a Qwen3 checkpoint directory into float32 or float64 arrays, with little memory besides.

    `expected` gives the tensors of a model of these sizes, where they are not the stock ones. A tied model's
    lm_head.weight may be stored or not; stored, it must equal the embedding. Raises CheckpointError for
    whatever is missing, unexpected, malformed, inconsistent or not finite.
    """
    path, dtype = Path(path), np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise CheckpointError(f"{path}: cannot load as {dtype}; choose float32 or float64")
    with _readable(path):
        return _load(path, dtype, expected)


def load_config(path: Path) -> Qwen3Config:
    """The sizes that a directory's config.json describes; CheckpointError as from load_checkpoint."""
    with _readable(path):
        return _read_config(path)[0]


def load_shapes(path: Path) -> Shapes:
    """Names and shapes of the tensors that a directory's files hold; CheckpointError as from load_checkpoint."""
    with _readable(path):
        return {name: entry.shape for name, entry in _entries(_tensor_files(path)).items()}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{error.filename or path}: {error.strerror}; check path and permissions") from None


def _read_config(path: Path) -> tuple[Qwen3Config, FileRecord]:
    raw, record = _read_json(path / CONFIG)
    try:
        return Qwen3Config.from_hub(raw), record
    except ValueError as error:
        raise CheckpointError(f"{path / CONFIG}: {error}") from None


def _load(path: Path, dtype: np.dtype[Any], expected: Callable[[Qwen3Config], Shapes]) -> Checkpoint:
    require_directory(path)
    config, *records = _read_config(path)
    files = _tensor_files(path)
    entries = _entries(files)
    if (path / INDEX).exists():
        index, record = _read_json(path / INDEX)
        _check_index(path / INDEX, index.get("weight_map"), entries, {file.name for file in files})
        records.append(record)

    tied = entries.get(HEAD) if config.tie_word_embeddings else None
    shapes = {name: entry.shape for name, entry in entries.items() if entry is not tied}
    wanted = _account(path, config, shapes, expected)
    tensors = {name: np.empty(shape, dtype) for name, shape in wanted.items()}
    for file in files:
        records.append(read_tensors(file, {n: e for n, e in entries.items() if e.file == file}, tensors))
    if tied:
        _check_tied(tied, tensors[EMBEDDING])
    dtypes = {name: entry.dtype.name for name, entry in entries.items()}
    return Checkpoint(path, config, tensors, dtypes, tuple(records))


def require_directory(path: Path) -> None:
    """Raises CheckpointError where there is none."""
    if not path.is_dir():
        what = "not a directory" if path.exists() else "does not exist"
        raise CheckpointError(f"{path}: {what}; give a directory with {CONFIG} and .safetensors files")


def _entries(files: list[Path]) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for file in files:
        for name, entry in read_header(file).items():
            if name in entries:
                raise CheckpointError(f"{file}: tensor {short(name)} is in {entries[name].file.name} too; keep one")
            entries[name] = entry
    return entries


def _read_json(file: Path) -> tuple[dict[str, Any], FileRecord]:
    if not file.is_file():
        raise CheckpointError(f"{file}: missing, or not a file; copy it from the original model")
    if file.stat().st_size > MAX_JSON:
        raise CheckpointError(f"{file}: more than {MAX_JSON} bytes; copy it from the original model")
    text = file.read_bytes()
    return parse_object(file, text), FileRecord(file.name, hashlib.sha256(text).hexdigest(), len(text))


def _tensor_files(path: Path) -> list[Path]:
    files = sorted(file for file in path.iterdir() if file.suffix == ".safetensors")
    if not files:
        pickled = sorted(file.name for file in path.iterdir() if file.suffix in PICKLED)
        why = f" ({short(pickled[0])} is left alone: unpickling can run code)" if pickled else ""
        raise CheckpointError(f"{path}: no .safetensors file{why}; download or convert the model as .safetensors")
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file}: not a file; put a .safetensors file in its place")
    return files


def _check_index(file: Path, listed: Any, entries: Mapping[str, Entry], shards: set[str]) -> None:
    """The index must list exactly the tensors that the files hold, each in its file."""
    if not isinstance(listed, dict):
        raise CheckpointError(f"{file}: weight_map is {short(listed)}; it must map tensors to files")
    for name, shard in listed.items():
        if not isinstance(shard, str) or shard not in shards:
            raise CheckpointError(f"{file}: lists {short(shard)}, which the directory lacks; download that file")
        if name not in entries or entries[name].file.name != shard:
            where = f"is in {entries[name].file.name}" if name in entries else "is in no file"
            raise CheckpointError(f"{file}: tensor {short(name)} should be in {shard}, but {where}; download both")
    for name, entry in entries.items():
        if name not in listed:
            raise CheckpointError(
                f"{file}: omits tensor {short(name)} of {entry.file.name}; remove that file or list it"
            )


def _account(
    path: Path,
    config: Qwen3Config,
    shapes: Mapping[str, tuple[int, ...]],
    expects: Callable[[Qwen3Config], Shapes] = expected_tensors,
) -> Shapes:
    """The tensors that the config expects, once it is sure that these are what `shapes` has."""
    if config.num_hidden_layers > len(shapes):  # before listing tensors for an absurd number of layers
        raise CheckpointError(
            f"{path}: {len(shapes)} tensors, but num_hidden_layers is {config.num_hidden_layers}; is a file missing?"
        )
    expected = expects(config)
    problems = []
    if missing := [name for name in expected if name not in shapes]:
        problems.append(f"{len(missing)} missing, first {missing[0]!r} {expected[missing[0]]}")
    if unexpected := [name for name in shapes if name not in expected]:
        problems.append(f"{len(unexpected)} unexpected, first {short(unexpected[0])} {short(shapes[unexpected[0]])}")
    if wrong := [name for name in expected if name in shapes and shapes[name] != expected[name]]:
        got, want = short(shapes[wrong[0]]), expected[wrong[0]]
        problems.append(f"{len(wrong)} of wrong shape, first {wrong[0]!r} got {got} want {want}")
    if problems:
        raise CheckpointError(
            f"{path}: tensors {'; '.join(problems)}; make the tensors and the files that describe them agree"
        )
    return expected


def _check_tied(entry: Entry, embedding: npt.NDArray[Any]) -> None:
    advice = "set tie_word_embeddings to false or remove the tensor"
    if entry.shape != embedding.shape:
        raise CheckpointError(f"{entry.file}: {HEAD!r} got {short(entry.shape)} want {embedding.shape}, tied; {advice}")
    flat = embedding.reshape(-1)
    with open(entry.file, "rb") as stream:
        stream.seek(entry.begin)
        for at, values in chunks(stream, entry):
            if not np.array_equal(values.astype(flat.dtype), flat[at : at + values.size]):
                raise CheckpointError(f"{entry.file}: {HEAD!r} differs from the embedding it is tied to; {advice}")


def save_checkpoint(
    path: str | Path, config: Qwen3Config, tensors: Mapping[str, npt.NDArray[Any]], dtype: str = "bfloat16"
) -> None:
    """Write a directory that load_checkpoint and the official Qwen3ForCausalLM both read.

    `dtype` is bfloat16, float16, float32 or float64. The directory appears complete or not at all.
    Raises CheckpointError where the path already holds something, and for tensors that the config does
    not expect, misses, or that are not finite in `dtype`.
    """
    path, code = Path(path), tensor_code(path, dtype)
    _account(path, config, {name: np.shape(tensor) for name, tensor in tensors.items()})
    with new_directory(path) as temporary:
        (temporary / CONFIG).write_text(json.dumps(config.to_hub(dtype), indent=2) + "\n", encoding="utf-8")
        write_tensors(temporary / WEIGHTS, tensors, code)


def tensor_code(path: str | Path, dtype: str) -> str:
    """The files' name of a dtype: "BF16" for "bfloat16". Raises CheckpointError where `path` cannot hold it."""
    codes = {kind.name: code for code, kind in DTYPES.items()}
    if dtype not in codes:
        raise CheckpointError(f"{path}: cannot save as {short(dtype)}; choose one of {', '.join(codes)}")
    return codes[dtype]


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary directory to fill, which takes the name `path` when the block ends well: complete or not at all.

    Raises CheckpointError where `path` already holds something, or cannot be written.
    """
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise CheckpointError(f"{path}: already exists; choose another directory or remove it")
        temporary.mkdir()
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; check that its parent exists and has room") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
