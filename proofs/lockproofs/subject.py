"""The models under audit: the embedded zoo, or a checkpoint directory that the user names."""

from dataclasses import dataclass
from pathlib import Path

from lockref.models.checkpoint_io import Checkpoint, load_checkpoint
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
    return Subject({role: load_checkpoint(p) for role, p in named.items()}, False)
