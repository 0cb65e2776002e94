"""What a lock.json says, statement by statement, against the files and tensors that it speaks of."""

import platform
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from lockproofs import calibration
from lockproofs.auditing.difference import as_stored, changes
from lockproofs.rounding import UNIT32, rounding_error
from lockproofs.subject import Lock, Subject
from lockref.locks.attention import TOPK_PLANES, project, projections
from lockref.locks.full import Composed, Composition
from lockref.models import qwen3
from lockref.models.evaluation import TEXT, held_out_windows, text_loss

WINDOWS, LENGTH = 400, 192  # of `evaluate`, as `dlr_run` records it
PYTHON = platform.python_version()  # whose standard library is the text
OTHER = {  # figures that are not measured again
    "relative_error": "errors of single modules need the activations of training",
    "row_error": "so do errors by rows",
    "original": "exact matches of skills are not counted again",
}
ARITHMETIC = 1e-12  # of a quotient that was written down in full


@dataclass(frozen=True)
class Statement:
    """One thing that lock.json says and what is found; `why` says why it was not looked at, where it was not."""

    name: str
    said: str
    found: str = ""
    true: bool = True
    why: str = ""
    error: float = 0.0  # of a figure measured again
    allowed: float = 0.0

    @property
    def checked(self) -> bool:
        return not self.why


def statements(subject: Subject, lock: Lock, measure: bool = True) -> Iterator[Statement]:
    """Everything that can be looked at; `measure` includes figures, which takes a pass over the held-out data."""
    yield from released(subject, lock)
    yield from sources(subject, lock)
    yield from networks(subject, lock)
    yield attention(subject, lock)
    if "trap2" in lock.manifest.parts:
        yield Statement("trap2", "trained with Trap²", why="weights do not show it: TRAP-COLLAPSE, with --base")
    yield from arithmetic(lock)
    if measure:
        yield from figures(subject, lock)


def released(subject: Subject, lock: Lock) -> Iterator[Statement]:
    """The files beside lock.json."""
    have = {file.name: file.sha256 for file in subject.composed.files}
    if not lock.manifest.released:
        yield Statement("released files", "nothing", why="lock.json names no released files, as the first ones did not")
    for file in lock.manifest.released:
        got = have.get(file.name, "no such file")
        yield Statement(f"SHA-256 of {file.name}", file.sha256, got, got == file.sha256)
    for name in have.keys() - {file.name for file in lock.manifest.released} if lock.manifest.released else ():
        yield Statement(f"SHA-256 of {name}", "no such file", have[name], False)


def sources(subject: Subject, lock: Lock) -> Iterator[Statement]:
    """The files that it was made from, where the reference is there."""
    if not subject.has("reference"):
        yield Statement("source files", f"{len(lock.manifest.source)} files", why="needs --reference")
        return
    have = {file.name: file.sha256 for file in subject.need("reference", "").files}
    for file in lock.manifest.source:
        got = have.get(file.name, "no such file")
        yield Statement(f"SHA-256 of the source's {file.name}", file.sha256, got, got == file.sha256)


def networks(subject: Subject, lock: Lock) -> Iterator[Statement]:
    """DLR-Nets and polynomials: shapes as declared."""
    said, seen = Composition.from_parts(lock.manifest.parts), subject.composed.composition
    for name, pair in (
        ("dlr", [_net(c) for c in (said, seen)]),
        ("taylor", [f"order {c.series.order}" if c.series else "none" for c in (said, seen)]),
    ):
        if pair != ["none", "none"]:
            yield Statement(f"part {name}", pair[0], pair[1], pair[0] == pair[1])


def _net(composition: Composition) -> str:
    net = composition.net
    if net is None:
        return "none"
    return f"{net.depth} blocks of rank {net.rank}, width {net.width}" + ", gains" * (net.norm == "rms_gain")


def attention(subject: Subject, lock: Lock) -> Statement:
    """Flips of planes: as many as declared on each key head, and the heaviest ones."""
    part = lock.manifest.parts.get("attention")
    said = f"{part['planes']} planes flipped on each key head" if part else "none"
    if not subject.has("reference"):
        return Statement("part attention", said, why="" if part is None else "needs --reference")
    model = subject.composed
    reference = as_stored(subject.need("reference", ""), model)
    kinds = {c.kind: c for c in changes(model, reference) if "q_proj" in c.tensors[0]}
    if not kinds:
        found = "none"
    elif kinds.keys() == {"planes flipped"}:
        found = flipped(model, reference)
    else:
        found = " and ".join(kinds)
    return Statement("part attention", said, found, said == found)


def flipped(model: Composed, reference: Composed) -> str:
    """What is said of it where the heaviest planes of each key head are flipped, otherwise what else is."""
    layers, groups = model.config.num_hidden_layers, model.config.num_key_value_heads
    counts = np.array(list(_flips(model, reference))).reshape(layers, groups)
    whole = project(reference.tensors, model.config, projections(reference.tensors, model.config, TOPK_PLANES, counts))
    names = [n for n in whole if "q_proj" in n or "k_proj" in n]
    heaviest = all(np.array_equal(whole[n], model.tensors[n]) for n in names)
    few, most = int(counts.min()), int(counts.max())
    number = f"{few}" if few == most else f"{few} to {most}"
    return f"{number} planes flipped on each key head" + ", not the heaviest" * (not heaviest)


def _flips(model: Composed, reference: Composed) -> Iterator[int]:
    """The number of flipped planes of each key head; a plane of zeros is not counted."""
    c, half = model.config, model.config.head_dim // 2
    for i in range(c.num_hidden_layers):
        name = f"model.layers.{i}.self_attn.k_proj.weight"
        k, k0 = (m.tensors[name].reshape(c.num_key_value_heads, c.head_dim, -1) for m in (model, reference))
        inner = np.sum(k * k0, axis=-1)
        yield from np.sum(inner[:, :half] + inner[:, half:] < 0, axis=-1).tolist()


def arithmetic(lock: Lock) -> Iterator[Statement]:
    """The gap is the quotient of the losses beside it."""
    losses, gap = recorded(lock), lock.manifest.figures.get("loss_gap")
    if losses is None or not isinstance(gap, int | float):
        return
    got = losses[1] / losses[0] - 1 if losses[0] else np.inf
    yield Statement("loss_gap is locked / original − 1", f"{gap:.6g}", f"{got:.6g}", abs(got - gap) <= ARITHMETIC)


def recorded(lock: Lock) -> tuple[float, float] | None:
    """Original and locked loss as they are written down, by either command that writes locks."""
    found = lock.manifest.figures
    losses = found.get("loss")
    if not isinstance(losses, dict):  # as dlr_run writes it: all that a model does, for each of the two
        losses = {k: v.get(TEXT) if isinstance(v, dict) else None for k, v in found.items()}
    match losses.get("original"), losses.get("locked"):
        case (int() | float()) as original, (int() | float()) as locked:
            return float(original), float(locked)
    return None


def figures(subject: Subject, lock: Lock) -> Iterator[Statement]:
    """Losses measured again on the rows that they were measured on, to the round-off of float32."""
    if rest := sorted(lock.manifest.figures.keys() & OTHER.keys()):
        yield Statement("other figures", ", ".join(rest), why="; ".join(OTHER[name] for name in rest))
    losses = recorded(lock)
    if losses is None:
        return
    rows, why = measured_on(subject, lock)
    models = [("locked", subject.composed, losses[1])]
    if subject.has("reference"):
        models.append(("original", subject.need("reference", ""), losses[0]))
    for name, model, said in models:
        if rows is None:
            yield Statement(f"loss, {name}", f"{said:.6f}", why=why)
            continue
        single = {n: w.astype(np.float32) for n, w in model.tensors.items()}
        got = text_loss(single, rows, model.config, model.composition.block)
        allowed = 2 * round_off(model, rows)
        yield Statement(f"loss, {name}", f"{said:.6f}", f"{got:.6f}", abs(got - said) <= allowed, "", abs(got - said),
                        allowed)  # fmt: skip


def round_off(model: Composed, rows: Any) -> float:
    """What float32 may do to a mean loss: sampled on one row, where less averages out."""
    return float(
        rounding_error(
            lambda tensors: qwen3.loss(tensors, rows[:1], model.config, model.composition.block),
            model.tensors, unit=UNIT32, rng=np.random.default_rng(0), draws=4,
        )
    )  # fmt: skip


def measured_on(subject: Subject, lock: Lock) -> tuple[Any, str]:
    """The held-out rows of the command that lock.json names, or None and why not."""
    said, vocabulary = lock.manifest, subject.composed.config.vocab_size
    words = _options(said.command)
    if said.command.startswith("lockref lock "):
        sizes = words.get("rows", "4096"), words.get("length", "128")
        if not all(size.isdecimal() and int(size) <= 2**20 for size in sizes):
            return None, f"its command has --rows {sizes[0]} --length {sizes[1]}"
        rows, length = map(int, sizes)
        if "data" in words:
            name = words["data"].rpartition("/")[2]
            if subject.given.data is None or subject.given.data.name != name:
                return None, f"measured on {name}: needs --data {name}"
            return calibration.rows_of(subject.given.data, vocabulary, rows, length, said.seed)[1], ""
    elif not said.command.startswith("python -m lockref.locks.dlr_run "):
        return None, "its command is not one of lockref's"
    if vocabulary != calibration.BYTES:
        return None, f"measured on bytes, and the vocabulary has {vocabulary} tokens"
    if said.versions.get("python") != PYTHON:
        return None, f"measured on the text of Python {said.versions.get('python')}, this is {PYTHON}"
    if said.command.startswith("lockref lock "):
        return calibration.rows_of(None, vocabulary, rows, length, said.seed)[1], ""
    return held_out_windows(WINDOWS, LENGTH), ""


def _options(command: str) -> dict[str, str]:
    """The options of a command line, by name."""
    try:
        words = shlex.split(command)
    except ValueError:
        return {}
    return {a[2:]: b for a, b in pairwise(words) if a.startswith("--")}
