"""Undoing MergeBarrier's attention projection from the released weights alone (arXiv 2511.10712).

P_k commutes with the governing matrix it was made from, and the released weights have the governing matrix
P_kᵀ S P_k = S: the same one. So its eigenvectors (or its plane traces) are still there to be computed, and since
P_k P_k = I the whole attack is to lock the released model once more. Only k is not in the weights: there are
c + 1 values to try (c/2 + 1 for planes), and any model of the same origin tells which one it was.
"""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from lockref.attacks.result import AttackResult, Tensors
from lockref.locks.attention import Family, Governing, flip, governing, gram_sum, layer_heads, project
from lockref.models.qwen3_config import Qwen3Config

Array = NDArray[np.float64]


def keyless(
    released: Tensors,
    config: Qwen3Config,
    family: Family,
    reference: Tensors | None = None,
    matrix: Governing = gram_sum,
) -> AttackResult:
    """Guesses at the model before the lock: one for every k, or with a reference a single one.

    `reference` is any model of the same origin (its base, or another expert): each key head takes the k that brings
    it nearest. Where neighboring eigenvalues at the cut agree to round-off, the owner's choice of directions among
    them is not in the weights and that guess is one of many; among zero eigenvalues it makes no difference.
    `found` holds "basis" (layers, G, c, c) and with a reference "k" (layers, G).
    Raises ValueError for tensors that do not fit the config.
    """
    basis = family.basis(governing(released, config, matrix))
    guesses = Guesses(released, config, family, basis)
    if reference is None:
        return AttackResult("keyless", ("released weights",), guesses, {"basis": basis})
    k = nearest_k(released, reference, config, family, basis)
    undone = project(released, config, flip(basis, k * family.width))
    return AttackResult("keyless", ("released weights", "reference"), (undone,), {"basis": basis, "k": k})


class Guesses(Sequence[Tensors]):
    """The released model locked once more with k = 0, 1, …; each is made when it is asked for."""

    def __init__(self, released: Tensors, config: Qwen3Config, family: Family, basis: Array) -> None:
        self.released, self.config, self.family, self.basis = released, config, family, basis

    def __len__(self) -> int:
        return self.family.most(self.config.head_dim) + 1

    @overload
    def __getitem__(self, k: int) -> dict[str, NDArray[Any]]: ...
    @overload
    def __getitem__(self, k: slice) -> Sequence[Tensors]: ...
    def __getitem__(self, k: int | slice) -> dict[str, NDArray[Any]] | Sequence[Tensors]:
        if isinstance(k, slice):
            return [self[i] for i in range(*k.indices(len(self)))]
        if not -len(self) <= k < len(self):
            raise IndexError(f"guess {k} of {len(self)}")
        return project(self.released, self.config, flip(self.basis, k % len(self) * self.family.width))


def nearest_k(
    released: Tensors, reference: Tensors, config: Qwen3Config, family: Family, basis: Array
) -> NDArray[np.intp]:
    """For each key head the k, (layers, G), for which W P_k is nearest the reference; the smallest if several are."""
    nearest: NDArray[np.intp] = np.argmin(farther(released, reference, config, family, basis), axis=-1)
    return nearest


def farther(released: Tensors, reference: Tensors, config: Qwen3Config, family: Family, basis: Array) -> Array:
    """How much farther each guess is than the release: ‖W P_k − W_ref‖² − ‖W − W_ref‖² = 4 Σ_{i≤k} u_iᵀ C u_i.

    (layers, G, guesses), C = WᵀW_ref summed over queries and key of the group: P_k = I − 2 Σ_{i≤k} u_i u_iᵀ turns
    −2 tr(P_k C) into −2 tr(C) + 4 Σ u_iᵀ C u_i, and the norms stay.
    """
    pairs = zip(layer_heads(released, config), layer_heads(reference, config), strict=True)
    overlap = np.stack([_overlap(q, q_ref) + k @ np.swapaxes(k_ref, -1, -2) for (q, k), (q_ref, k_ref) in pairs])
    along = np.einsum("...ji,...jk,...ki->...i", basis, overlap, basis, optimize=True)
    blocks = along.reshape(*along.shape[:-1], -1, family.width).sum(axis=-1)
    start = np.zeros_like(blocks[..., :1])
    return np.asarray(4 * np.concatenate([start, np.cumsum(blocks, axis=-1)], axis=-1))


def _overlap(q: Array, q_ref: Array) -> Array:
    overlap: Array = np.sum(q @ np.swapaxes(q_ref, -1, -2), axis=-3)
    return overlap


def heaviest_tails(guesses: Sequence[Tensors], config: Qwen3Config) -> Array:
    """For each guess, Σ over key heads of log Σ w⁴ over the head's weights: the greatest is likeliest the original.

    Training singles out coordinate axes (rotary planes, norm gains, per-coordinate optimizers), and mixing them evens
    the weights out. A flip of whole planes doesn't mix: there all guesses score the same.
    """
    return np.array([_tails(guess, config) for guess in guesses])


def _tails(tensors: Tensors, config: Qwen3Config) -> float:
    fourth = [_fourth(q).sum(axis=-1) + _fourth(k) for q, k in layer_heads(tensors, config)]
    return float(np.sum(np.log(np.stack(fourth))))


def _fourth(w: Array) -> Array:
    squares = w * w
    total: Array = np.einsum("...ij,...ij->...", squares, squares)
    return total
