"""The models under audit: the embedded zoo, or a checkpoint directory that the user names."""

from dataclasses import dataclass
from pathlib import Path

from lockref.locks.manifest import LOCK, read_manifest
from lockref.models.checkpoint_io import Checkpoint, CheckpointError, load_checkpoint
from lockref.models.zoo import ZOO, zoo_path


@dataclass(frozen=True)
class Subject:
    """Loaded checkpoints by role; `model` is the one that the claims are about."""

    checkpoints: dict[str, Checkpoint]
    is_zoo: bool

    @property
    def model(self) -> Checkpoint:
        return self.checkpoints["subject"]


def zoo_subject() -> Subject:
    """The trained models that ship with lockref: a base and experts fine-tuned from it."""
    loaded = {name: load_checkpoint(zoo_path(name)) for name in ZOO}
    return Subject({"subject": loaded["base"], **{f"expert:{n}": c for n, c in loaded.items() if n != "base"}}, True)


def directory_subject(path: Path, base: Path | None = None) -> Subject:
    """A checkpoint directory, with the public base it was made from where that is known."""
    named = {"subject": path} | ({"base": base} if base else {})
    for directory in named.values():
        _require_host_mlps(directory)
    return Subject({role: load_checkpoint(p) for role, p in named.items()}, False)


def _require_host_mlps(path: Path) -> None:
    """Raises CheckpointError for a locked directory in which something else stands in place of the MLPs."""
    parts = read_manifest(path).parts if (path / LOCK).exists() else {}
    if parts.keys() & {"dlr", "taylor"}:
        raise CheckpointError(
            f"{path}: a locked model ({LOCK}: {', '.join(parts)}), and the claims are about checkpoints with "
            "the host's own MLPs; audit the model that it was made from"
        )
