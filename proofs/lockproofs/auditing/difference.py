"""Which tensors of a release differ from its reference, and by which known transformation."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockproofs.auditing.measure import storage_unit, stored_type
from lockref.attacks.anchor import least_squares, plane_signs, procrustes
from lockref.attacks.anchor_model import mlp_rows
from lockref.locks.attention import layer_heads
from lockref.locks.full import Composed
from lockref.locks.taylor_model import DOWN, SERIES

Array = NDArray[np.float64]

EXACT = ("planes flipped", "units permuted")  # not a bit of the numbers that are computed changes, but for their order
RANK_GAP = 0.5  # an eigenvalue of P − I is 0 or −2 for a flip of directions


@dataclass(frozen=True)
class Change:
    """What happened to some tensors of a layer; `known` where it is a transformation that this module can undo."""

    kind: str
    tensors: tuple[str, ...]
    known: bool = True
    count: int | None = None  # of planes or directions flipped, or of DLR blocks


def changes(subject: Composed, reference: Composed) -> list[Change]:
    """All differences, layer by layer; a tensor that no entry names is the same in both, to the bit.

    The reference is compared as SUBJECT's files would hold it: rounding to a narrower type is one known change more.
    """
    found: list[Change] = []
    exact, reference = reference, as_stored(reference, subject)
    heads = zip(layer_heads(subject.tensors, subject.config), layer_heads(reference.tensors, subject.config),
                strict=True)  # fmt: skip
    units = _units(subject, reference)
    for i, (after, before) in enumerate(heads):
        prefix = f"model.layers.{i}."
        names = {key: f"{prefix}self_attn.{key}_proj.weight" for key in "qkvo"}
        found += _queries(after, before, (names["q"], names["k"]), 2 * storage_unit(subject, names["q"]))
        found += _values(subject, reference, names)
        found += next(units)
    named = {name for change in found for name in change.tensors}
    rest = [n for n in reference.tensors if n in subject.tensors and n not in named]
    odd = [n for n in rest if not np.array_equal(subject.tensors[n], reference.tensors[n])]
    found += [Change("another value", (name,), known=False) for name in odd]
    narrowed = [n for n, w in exact.tensors.items() if not np.array_equal(w, reference.tensors[n])]
    return found + ([Change(f"rounded to {subject.dtypes[narrowed[0]]}", tuple(narrowed))] if narrowed else [])


def as_stored(reference: Composed, subject: Composed) -> Composed:
    """The reference rounded to the types in which SUBJECT's files hold the same tensors."""
    kept = {
        n: w.astype(stored_type(subject, n)).astype(w.dtype) if n in subject.tensors else w
        for n, w in reference.tensors.items()
    }
    return replace(reference, tensors=kept)


def summary(found: list[Change]) -> str:
    """The differences in words, kind by kind."""
    if not found:
        return "Every tensor is the reference's, to the bit."
    told = []
    for kind in dict.fromkeys(c.kind for c in found):
        these = [c for c in found if c.kind == kind]
        counts = sorted({c.count for c in these if c.count is not None})
        shown = f" ({' or '.join(map(str, counts))})" if counts else ""
        told.append(f"{kind}{shown}: {sum(len(c.tensors) for c in these)} tensors, first {these[0].tensors[0]}")
    return "Against the reference: " + "; ".join(told) + "; all others are the same to the bit."


def _queries(after: Any, before: Any, names: tuple[str, str], eps: float) -> list[Change]:
    """W_q and W_k: the same, planes flipped, turned by one P for each key head, or something else."""
    if all(np.array_equal(a, b) for a, b in zip(after, before, strict=True)):
        return []
    wide, base = (_beside(*pair) for pair in (after, before))
    signs = plane_signs(wide, base)
    if np.array_equal(np.concatenate([signs, signs], axis=-1)[..., None] * base, wide):
        counts = np.unique(np.sum(signs < 0, axis=-1))
        return [Change("planes flipped", names, count=int(counts[0]) if len(counts) == 1 else None)]
    turn = procrustes(wide, base)
    moved = np.linalg.norm(turn - np.eye(turn.shape[-1]), axis=(-2, -1))
    left = np.linalg.norm(turn @ base - wide, axis=(-2, -1))
    if np.all(left <= eps * np.linalg.norm(wide, axis=(-2, -1))) and np.any(moved > RANK_GAP):
        symmetric = (turn + np.swapaxes(turn, -1, -2)) / 2
        ranks = np.unique(np.sum(np.linalg.eigvalsh(symmetric) < 1 - RANK_GAP, axis=-1))
        return [Change("queries and keys turned by P", names, count=int(ranks[0]) if len(ranks) == 1 else None)]
    return [Change("queries or keys of another value", names, known=False)]


def _beside(q: Array, k: Array) -> Array:
    """What one P turns, side by side: (G, c, (H/G + 1) d)."""
    wide = np.moveaxis(q, -3, -2).reshape(*k.shape[:-1], -1)
    return np.concatenate([wide, k], axis=-1)


def _values(subject: Composed, reference: Composed, names: dict[str, str]) -> list[Change]:
    """W_v and W_o: the same, mixed by one invertible M for each key head, or something else."""
    v, o, v0, o0 = (m.tensors[names[key]] for m in (subject, reference) for key in "vo")
    if np.array_equal(v, v0) and np.array_equal(o, o0):
        return []
    c, groups = subject.config.head_dim, subject.config.num_key_value_heads
    v, v0 = (w.reshape(groups, c, -1) for w in (v, v0))
    o, o0 = (w.reshape(len(w), groups, -1, c) for w in (o, o0))
    both = names["v"], names["o"]
    try:
        mix = least_squares(v, v0)
    except (ValueError, np.linalg.LinAlgError):
        return [Change("values or outputs of another value", both, known=False)]
    back = np.einsum("dgnc,gce->dgne", o, mix)  # o M = o_0
    apart = np.linalg.norm(mix @ v0 - v), np.linalg.norm(back - o0)
    # M = v' v_0⁺ is off by ΔM ≤ u ‖v'‖/σ_min(v_0), and o M by u ‖o‖ ‖M‖ + ‖o‖ ΔM; twice that
    unit, size = 2 * storage_unit(subject, names["v"]), np.linalg.norm(v)
    least = np.min(np.linalg.svd(v0, compute_uv=False)[..., -1])
    slack = unit * size, unit * np.linalg.norm(o) * (np.max(np.linalg.norm(mix, axis=(-2, -1))) + size / least)
    moved = float(np.max(np.linalg.norm(mix - np.eye(c), axis=(-2, -1))))
    if apart[0] <= slack[0] and apart[1] <= slack[1] and moved > RANK_GAP:
        return [Change("values and outputs mixed by M", both)]
    return [Change("values or outputs of another value", both, known=False)]


def _units(subject: Composed, reference: Composed) -> Iterator[list[Change]]:
    """For each layer what became of the MLP."""
    if subject.composition.replaces:
        for i in range(subject.config.num_hidden_layers):
            yield _replaced(subject, reference, f"model.layers.{i}.")
        return
    pairs = zip(mlp_rows(subject.tensors, subject.config), mlp_rows(reference.tensors, subject.config), strict=True)
    for i, (after, before) in enumerate(pairs):
        names = tuple(f"model.layers.{i}.mlp.{part}_proj.weight" for part in ("gate", "up", "down"))
        if np.array_equal(after, before):
            yield []
        elif sorted(map(bytes, after)) == sorted(map(bytes, before)):
            yield [Change("units permuted", names)]
        else:
            odd = (n for n in names if not np.array_equal(subject.tensors[n], reference.tensors[n]))
            yield [Change("another value", tuple(odd), known=False)]


def _replaced(subject: Composed, reference: Composed, prefix: str) -> list[Change]:
    """DLR-Nets; or polynomials, whose arrays must be W_down, column by column a multiple."""
    own = tuple(n for n in subject.tensors if n.startswith(f"{prefix}mlp.") and n not in reference.tensors)
    if subject.composition.net:
        return [Change("DLR-Nets for MLPs", own, count=subject.composition.net.depth)]
    arrays, down = subject.tensors[f"{prefix}{SERIES}arrays"], reference.tensors[prefix + DOWN]
    along = np.einsum("ndm,dm->nm", arrays, down) / np.sum(down * down, axis=0)
    left = np.linalg.norm(arrays - along[:, None] * down) / np.linalg.norm(arrays)
    known = bool(left <= 4 * storage_unit(subject, f"{prefix}{SERIES}arrays"))
    return [Change("polynomials for MLPs" if known else "polynomials of other MLPs", own, known, len(arrays) - 1)]
