"""The models under audit: the embedded zoo, or checkpoint directories that the user names."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from lockproofs import calibration
from lockproofs.calibration import Stream, Tokens
from lockproofs.errors import BadInput, MissingInput
from lockref.locks.full import Composed, Composition, carried, load_as
from lockref.locks.manifest import LOCK, Manifest, hashed, read_manifest_file
from lockref.models.checkpoint_io import Checkpoint, CheckpointError, FileRecord, load_checkpoint, require_directory
from lockref.models.zoo import ZOO, zoo_path

ROLES = ("base", "reference")  # at most one of each; peers are peer:1, peer:2 …


@dataclass(frozen=True)
class Given:
    """A SUBJECT and the options that go with it, as they were typed."""

    subject: Path
    base: Path | None = None
    reference: Path | None = None
    peers: tuple[Path, ...] = ()
    lock: Path | None = None
    data: Path | None = None
    budget: float | None = None

    def words(self) -> list[str]:
        """The arguments that say this."""
        named = [(f.name, getattr(self, f.name)) for f in fields(self) if f.name not in ("subject", "peers")]
        pairs = [*named, *(("peer", peer) for peer in self.peers)]
        return [str(self.subject), *(word for n, v in pairs if v is not None for word in (f"--{n}", str(v)))]


@dataclass(frozen=True)
class Lock:
    """A lock.json: what it says, and the file."""

    path: Path
    manifest: Manifest
    file: FileRecord


@dataclass(frozen=True)
class Subject:
    """Loaded checkpoints by role; what SUBJECT's lock.json says, and the tokens to measure on, where there are any."""

    checkpoints: Mapping[str, Checkpoint]
    is_zoo: bool
    lock: Lock | None = None
    data: Stream | None = None
    budget: float | None = None
    given: Given = field(default_factory=lambda: Given(Path()))

    @property
    def model(self) -> Checkpoint:
        """The one that the claims are about, with a host's own MLPs; MissingInput where others stand in their place."""
        model = self.checkpoints["subject"]
        if isinstance(model, Composed) and model.composition.replaces:
            raise MissingInput(
                f"SUBJECT has {model.composition.replaces} for its MLPs, and this check is about a host's own: "
                "audit the model that it was made from"
            )
        return model

    @property
    def composed(self) -> Composed:
        """SUBJECT, whatever its MLPs are."""
        return _composed(self.checkpoints["subject"])

    @property
    def peers(self) -> list[Composed]:
        """Other experts of the same base."""
        return [_composed(c) for role, c in self.checkpoints.items() if role.startswith("peer")]

    @property
    def parts(self) -> Mapping[str, Mapping[str, object]]:
        """What lock.json says was done."""
        return self.lock.manifest.parts if self.lock else {}

    @property
    def assumed(self) -> list[str]:
        """What had to be guessed of SUBJECT's networks, for want of a lock.json that fits them."""
        own = self.composed.composition
        said = Composition.from_parts(self.parts)
        if own.net and not said.net:
            return ["nobody says norm, activation and placement of the DLR-Nets: the defaults are assumed"]
        return ["nobody says the basis of the polynomials: Taylor is assumed"] if own.series and not said.series else []

    def has(self, role: str) -> bool:
        """Whether there is a model in this role."""
        return role in self.checkpoints

    def need(self, role: str, what: str) -> Composed:
        """The model in a role, MissingInput where there is none: `what` says what it is for."""
        if role not in self.checkpoints:
            raise MissingInput(f"needs --{role}: {what}")
        return _composed(self.checkpoints[role])

    def tokens(self, rows: int, length: int, rng: np.random.Generator) -> Tokens:
        """Rows to measure on: of --data, of held-out bytes, or random ones; see `text`."""
        return calibration.draw(self.data, self.checkpoints["subject"].config.vocab_size, rows, length, rng)

    @property
    def text(self) -> str:
        """What `tokens` are, in words."""
        return calibration.described(self.data, self.checkpoints["subject"].config.vocab_size)

    @property
    def has_text(self) -> bool:
        """Whether `tokens` are more than random ones, so that a loss on them means something."""
        return self.data is not None or self.checkpoints["subject"].config.vocab_size == calibration.BYTES


def _composed(checkpoint: Checkpoint) -> Composed:
    return checkpoint if isinstance(checkpoint, Composed) else Composed(**vars(checkpoint), composition=Composition())


def zoo_subject() -> Subject:
    """The trained models that ship with lockref: a base and experts fine-tuned from it."""
    loaded = {name: load_checkpoint(zoo_path(name)) for name in ZOO}
    return Subject({"subject": loaded["base"], **{f"expert:{n}": c for n, c in loaded.items() if n != "base"}}, True)


def directory_subject(given: Given) -> Subject:
    """SUBJECT and the models it is compared with.

    Raises CheckpointError or BadInput, one line, for directories and files that cannot be read, and for models whose
    sizes are not SUBJECT's.
    """
    lock = _read_lock(given)
    subject = _loaded(given.subject, lock.manifest if lock else None)
    found: dict[str, Checkpoint] = {"subject": subject}
    peers = [(f"peer:{i + 1}", path) for i, path in enumerate(given.peers)]
    for role, path in [*((role, getattr(given, role)) for role in ROLES), *peers]:
        if path is not None:
            found[role] = _companion(role.partition(":")[0], path, subject)
    data = calibration.read(given.data, subject.config.vocab_size) if given.data else None
    if given.budget is not None and not given.budget >= 0:
        raise BadInput(f"--budget {given.budget}: must be at least 0")
    return Subject(found, False, lock, data, given.budget, given)


def _read_lock(given: Given) -> Lock | None:
    require_directory(given.subject)
    file = given.lock or given.subject / LOCK
    if given.lock is None and not file.exists():
        return None
    if file.is_dir():
        raise BadInput(f"{file}: is a directory: name a {LOCK}")
    manifest = read_manifest_file(file)
    try:
        Composition.from_parts(manifest.parts)
        return Lock(file, manifest, hashed(file))
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from None


def _loaded(path: Path, manifest: Manifest | None) -> Composed:
    """The tensors, whatever a manifest says of them: as it says where they fit it, as they look where they do not."""
    require_directory(path)
    said, seen = Composition.from_parts(manifest.parts) if manifest else Composition(), carried(path)
    if said.net and seen.net:  # what tensors do not show is as declared
        gains = seen.net.norm == "rms_gain"
        norm = said.net.norm if gains == (said.net.norm == "rms_gain") else seen.net.norm
        seen = replace(seen, net=replace(said.net, width=seen.net.width, rank=seen.net.rank, depth=seen.net.depth,
                                         norm=norm))  # fmt: skip
    if said.series and seen.series:
        seen = replace(seen, series=replace(seen.series, basis=said.series.basis))
    return load_as(path, seen)


def _companion(role: str, path: Path, subject: Composed) -> Composed:
    require_directory(path)
    if role == "peer" and path.resolve() == subject.path.resolve():
        raise BadInput(f"--{role} {path}: is SUBJECT itself: name another expert")
    file = path / LOCK
    model = _loaded(path, read_manifest_file(file) if file.exists() else None)
    for size in fields(model.config):
        if size.name == "max_position_embeddings":  # changes nothing that is computed here
            continue
        got, want = getattr(model.config, size.name), getattr(subject.config, size.name)
        if got != want:
            raise BadInput(f"--{role} {path}: {size.name} is {got}, SUBJECT's is {want}: give a model of its sizes")
    if role != "peer" and model.composition.replaces:
        raise BadInput(f"--{role} {path}: has {model.composition.replaces} for its MLPs: give the unlocked model")
    return replace(model, config=subject.config)
