"""lock.json: what was done to a locked checkpoint, beside its config.json and model.safetensors."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from lockref.models.checkpoint_io import CONFIG, WEIGHTS, new_directory, tensor_code
from lockref.models.qwen3_config import LOCKED, STOCK, Qwen3Config
from lockref.models.tensor_file import MAX_JSON, CheckpointError, FileRecord, parse_object, short, write_tensors

LOCK: Final = "lock.json"
FORMAT: Final = "lockref-lock"
VERSION: Final = 1
PARTS: Final = ("dlr", "attention", "taylor", "trap2")
REPLACING: Final = frozenset({"dlr", "taylor"})  # parts that stand in place of the MLPs


@dataclass(frozen=True)
class Manifest:
    """What lock.json says; ValueError names the first thing that it cannot say.

    `parts` holds, for each lock that was applied, its settings; `source` the files it started from; `figures` what
    was measured; `command` and `seed` make the same again with `versions`; `released` are the files beside lock.json.
    """

    parts: Mapping[str, Mapping[str, Any]]
    source: tuple[FileRecord, ...]
    command: str
    seed: int
    versions: Mapping[str, str]
    figures: Mapping[str, Any] = field(default_factory=dict)
    released: tuple[FileRecord, ...] = ()

    def __post_init__(self) -> None:
        for key, good, want in (
            ("parts", _is_parts(self.parts), f"an object for one or more of {', '.join(PARTS)}"),
            ("source", all(_is_record(file) for file in self.source), "files, each with name, sha256 and bytes"),
            ("released", all(_is_record(file) for file in self.released), "files, each with name, sha256 and bytes"),
            ("command", type(self.command) is str and self.command.isprintable(), "a command of one line"),
            ("seed", type(self.seed) is int and self.seed >= 0, "an integer of at least 0"),
            ("versions", _is_texts(self.versions), "an object of texts"),
            ("figures", isinstance(self.figures, Mapping), "an object"),
        ):
            if not good:
                raise ValueError(f"{key} is {short(getattr(self, key))}; it must be {want}")
        if not (_is_json(self.parts) and _is_json(self.figures)):
            raise ValueError("parts or figures hold something else than finite numbers, texts, lists and objects")


def write_locked(
    path: Path, config: Qwen3Config, tensors: Mapping[str, NDArray[Any]], manifest: Manifest, dtype: str = "bfloat16"
) -> Manifest:
    """Writes config.json, model.safetensors (in `dtype`) and lock.json as one new directory, complete or not at all.

    Returns what lock.json says: the manifest, and the files released with it. Where MLPs were replaced, config.json
    is of a kind that stock classes refuse. Raises CheckpointError where `path` holds something, `dtype` is unknown,
    or a tensor is not finite in it.
    """
    code, kind = tensor_code(path, dtype), LOCKED if REPLACING & manifest.parts.keys() else STOCK
    with new_directory(path) as temporary:
        write_json(temporary / CONFIG, config.to_hub(dtype, kind))
        write_tensors(temporary / WEIGHTS, tensors, code)
        said = replace(manifest, released=tuple(hashed(temporary / name) for name in (CONFIG, WEIGHTS)))
        write_json(temporary / LOCK, to_json(said))
    return said


def write_json(file: Path, said: Mapping[str, Any]) -> None:
    """Writes an object as the JSON files of a locked directory hold it."""
    file.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def hashed(file: Path) -> FileRecord:
    """Name, SHA-256 and size of a file; OSError where it cannot be read."""
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
        return FileRecord(file.name, digest.hexdigest(), stream.tell())


def to_json(manifest: Manifest) -> dict[str, Any]:
    """The object that lock.json holds."""
    return {"format": FORMAT, "version": VERSION, **asdict(manifest)}


def read_manifest(path: Path) -> Manifest:
    """The manifest of a locked directory. Raises CheckpointError, in one line, for whatever it may not say."""
    return read_manifest_file(path / LOCK)


def read_manifest_file(file: Path) -> Manifest:
    """The same from a lock.json that lies elsewhere or is called otherwise."""
    try:
        if file.stat().st_size > MAX_JSON:
            raise CheckpointError(f"{file}: more than {MAX_JSON} bytes; write the lock again")
        said = parse_object(file, file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}; give the directory of a locked model") from None
    try:
        return _from_json(said)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from None


def _from_json(said: dict[str, Any]) -> Manifest:
    if (said.get("format"), said.get("version")) != (FORMAT, VERSION):
        raise ValueError(
            f"format {short(said.get('format'))}, version {short(said.get('version'))}; "
            f"only {FORMAT!r}, version {VERSION}, can be read"
        )
    wanted = {f.name for f in fields(Manifest)}
    needed = wanted - {"released"}  # the first locks did not say it
    if odd := sorted((needed - said.keys()) | (said.keys() - wanted - {"format", "version"})):
        raise ValueError(
            f"the key {short(odd[0])} is {'missing' if odd[0] in wanted else 'unknown'}; write the lock again"
        )
    given = {name: said[name] for name in wanted & said.keys()}
    return Manifest(**given | {name: _records(name, given.get(name, [])) for name in ("source", "released")})


def _records(name: str, listed: Any) -> tuple[FileRecord, ...]:
    if not isinstance(listed, list) or not all(isinstance(f, dict) and f.keys() == _RECORD for f in listed):
        raise ValueError(f"{name} is {short(listed)}; it must be files, each with name, sha256 and bytes")
    return tuple(FileRecord(**file) for file in listed)


_RECORD = {f.name for f in fields(FileRecord)}


def _is_parts(parts: Any) -> bool:
    if not isinstance(parts, Mapping) or not parts:
        return False
    return all(name in PARTS and isinstance(settings, Mapping) for name, settings in parts.items())


def _is_record(file: FileRecord) -> bool:
    texts = type(file.name) is str and type(file.sha256) is str and re.fullmatch("[0-9a-f]{64}", file.sha256)
    return bool(texts) and type(file.bytes) is int and file.bytes >= 0


def _is_texts(versions: Any) -> bool:
    return isinstance(versions, Mapping) and all(type(v) is str for pair in versions.items() for v in pair)


def _is_json(value: Any) -> bool:
    match value:
        case Mapping():
            return all(type(key) is str and _is_json(v) for key, v in value.items())
        case list() | tuple():
            return all(map(_is_json, value))
        case float():
            return math.isfinite(value)
        case _:
            return value is None or type(value) in (bool, int, str)
