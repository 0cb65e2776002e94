"""Coordinates in which updates are merged: full, KnOTS (arXiv 2410.19735) and Core space (arXiv 2509.17786).

All of them lose nothing: each update comes back exactly from its coordinates, and what is linear in the updates is
the same in every space. Trimming and voting are not linear: they depend on the coordinates.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockref.merging.settings import Space
from lockref.merging.spectral import Matrix, numerical_rank, triples


@dataclass(frozen=True)
class Adapter:
    """A LoRA member: the update of each named matrix is scale · B A, b (out, r) and a (r, in)."""

    b: Mapping[str, NDArray[Any]]
    a: Mapping[str, NDArray[Any]]
    scale: float = 1.0

    def factors(self, name: str) -> tuple[Matrix, Matrix]:
        return self.scale * self.b[name], self.a[name]

    def update(self, name: str) -> Matrix:
        """scale · B A, (out, in)."""
        b, a = self.factors(name)
        return b @ a


@dataclass(frozen=True)
class Coordinates:
    """One array for each member, and the way back to an update."""

    members: list[NDArray[Any]]
    back: Callable[[NDArray[Any]], NDArray[Any]]


def full(updates: Sequence[NDArray[Any]]) -> Coordinates:
    """The updates as they are."""
    return Coordinates(list(updates), lambda merged: merged)


def knots(updates: Sequence[Matrix], *, basis: bool = False) -> Coordinates:
    """[Δ_1 … Δ_T] = U Σ [V_1ᵀ … V_Tᵀ]: coordinates Σ V_iᵀ, or with `basis` V_iᵀ; back by U, or U Σ."""
    u, s, v = triples(np.concatenate(updates, axis=1))
    rank = numerical_rank(s, (u.shape[0], v.shape[1]))
    u, s, v = u[:, :rank], s[:rank], v[:rank]
    columns, rows = (u * s, v) if basis else (u, s[:, None] * v)
    return Coordinates(np.split(rows, len(updates), axis=1), lambda merged: columns @ merged)


def core(factors: Sequence[tuple[Matrix, Matrix]]) -> Coordinates:
    """M_i = U_Bᵀ B_i A_i V_A, U_B from the SVD of [B_1 … B_T], V_A from that of the stacked A_i; back U_B M V_Aᵀ."""
    u = triples(np.concatenate([b for b, _ in factors], axis=1))[0]
    v = triples(np.concatenate([a for _, a in factors]))[2]
    return Coordinates([(u.T @ b) @ (a @ v.T) for b, a in factors], lambda merged: u @ merged @ v)


def coordinates(
    space: Space, updates: Sequence[NDArray[Any]], factors: Sequence[tuple[Matrix, Matrix]] | None
) -> Coordinates:
    """The members' coordinates in a space; tensors that are not matrices have only the full one."""
    if space == "full" or updates[0].ndim != 2:
        return full(updates)
    if space != "core":
        return knots(updates, basis=space == "knots-basis")
    if factors is None:
        raise ValueError("core space needs the factors B and A of every member; give Adapters")
    return core(factors)


def factor_sum(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """B = Σ √|w_i s_i| B_i and A = Σ ±√|w_i s_i| A_i, as peft's combination_type "linear": not Σ w_i s_i B_i A_i.

    The product has the cross terms B_i A_j: two copies of one adapter at weight 1/2 come out twice as large as it.
    Raises ValueError where names or ranks differ.
    """
    raised = [(abs(w * m.scale) ** 0.5, 1 if w * m.scale >= 0 else -1) for w, m in zip(weights, adapters, strict=True)]
    for name in adapters[0].b:
        if any(name not in m.b or m.b[name].shape != adapters[0].b[name].shape for m in adapters):
            raise ValueError(f"tensor {name!r}: factors are added entry by entry; give adapters of one rank and shape")
    b = {n: sum(r * m.b[n] for (r, _), m in zip(raised, adapters, strict=True)) for n in adapters[0].b}
    a = {n: sum(sign * r * m.a[n] for (r, sign), m in zip(raised, adapters, strict=True)) for n in adapters[0].a}
    return Adapter(b, a)
