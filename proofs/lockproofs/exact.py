"""Matrices of rational numbers: identities that are checked here hold, not to round-off but exactly.

A matrix is a `flint.fmpq_mat`; in reports it is written as rows of integers and strings such as "3/5".
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from flint import fmpq, fmpq_mat

Rational: TypeAlias = Any  # flint has no type stubs: fmpq
Matrix: TypeAlias = Any  # fmpq_mat
Rows: TypeAlias = Sequence[Sequence[int | str]]


def matrix(rows: Rows) -> Matrix:
    """A matrix from rows of integers and strings "p/q"; ValueError where the rows differ in length."""
    if len({len(row) for row in rows}) != 1:
        raise ValueError(f"rows of lengths {[len(row) for row in rows]}; a matrix needs rows of one length")
    return fmpq_mat([[fmpq(*map(int, str(entry).split("/"))) for entry in row] for row in rows])


def stack(rows: Sequence[Sequence[Rational]]) -> Matrix:
    """A matrix from rows of exact entries, such as some rows of `m.tolist()`."""
    return fmpq_mat([list(row) for row in rows])


def written(m: Matrix) -> list[list[str]]:
    """The rows of a matrix as strings, ready for JSON; `matrix` reads them again."""
    return [[str(entry) for entry in row] for row in m.tolist()]


def identity(n: int) -> Matrix:
    return diagonal([1] * n)


def diagonal(entries: Sequence[Any]) -> Matrix:
    n = len(entries)
    return fmpq_mat([[entries[i] if i == j else 0 for j in range(n)] for i in range(n)])


def trace(m: Matrix) -> Rational:
    return sum((m[i, i] for i in range(m.nrows())), fmpq(0))


def squared_norm(m: Matrix) -> Rational:
    """‖m‖_F², the sum of squared entries."""
    return sum((entry * entry for entry in m.entries()), fmpq(0))


def random_matrix(rng: np.random.Generator, rows: int, columns: int) -> Matrix:
    """Entries p/q with |p| ≤ 9 and 1 ≤ q ≤ 4."""
    p, q = rng.integers(-9, 10, (rows, columns)), rng.integers(1, 5, (rows, columns))
    return fmpq_mat([[fmpq(int(a), int(b)) for a, b in zip(*pair, strict=True)] for pair in zip(p, q, strict=True)])


def random_orthogonal(rng: np.random.Generator, n: int) -> Matrix:
    """(I − K)(I + K)⁻¹ with a random skew K (Cayley), times a random reflection half of the time."""
    k = np.tril(rng.integers(-3, 4, (n, n)), -1)
    skew = fmpq_mat((k - k.T).tolist())
    turn = (identity(n) - skew) * (identity(n) + skew).inv()
    return turn * reflection([1, *rng.integers(-3, 4, n - 1).tolist()]) if rng.random() < 0.5 else turn


def reflection(direction: Sequence[int]) -> Matrix:
    """I − 2 v vᵀ / vᵀv (Householder); ValueError for the zero vector."""
    if not any(direction):
        raise ValueError("a reflection needs a direction other than zero")
    v = fmpq_mat([[x] for x in direction])
    return identity(len(direction)) - v * v.transpose() * (fmpq(2) / squared_norm(v))


def eigenspaces(s: Matrix) -> list[tuple[Rational, Matrix]]:
    """Eigenvalues of a symmetric matrix, greatest first, each with the projector on its eigenspace.

    The projector of λ is Π (s − μ)/(λ − μ) over the other eigenvalues μ (Sylvester). Raises ValueError where
    the matrix is not symmetric or an eigenvalue is irrational.
    """
    if s != s.transpose():
        raise ValueError("eigenspaces: the matrix is not symmetric")
    factors = [factor for factor, _ in s.charpoly().factor()[1]]
    if any(factor.degree() > 1 for factor in factors):
        raise ValueError("eigenspaces: an eigenvalue is irrational, exact arithmetic stops here")
    values = sorted((-factor[0] / factor[1] for factor in factors), reverse=True)
    one, spaces = identity(s.nrows()), []
    for value in values:
        projector = one
        for other in values:
            if other != value:
                projector = projector * (s - one * other) * (1 / (value - other))
        spaces.append((value, projector))
    return spaces


def flip(s: Matrix, k: int) -> Matrix:
    """I − 2 U_k U_kᵀ for the k leading eigenvectors of a symmetric matrix with rational eigenvalues.

    Raises ValueError where k cuts through an eigenspace: which part of it is meant is then not determined.
    """
    out, left = identity(s.nrows()), fmpq(k)
    for _, projector in eigenspaces(s):
        if left > 0:
            out, left = out - projector * 2, left - trace(projector)
    if left:
        raise ValueError(f"flip: no {k} leading eigenvectors of this matrix are determined; choose another k")
    return out
