"""MergeBarrier's attention lock: queries and keys turned by one orthogonal matrix (arXiv 2511.10712).

The paper's rows are tokens: W_q (d, c), released as W_q P and W_k P. Checkpoints store transposes, so
here a head is q = W_qᵀ (c, d) and the lock is q ↦ Pᵀ q. Query heads that share a key head share its P:
a layer's weights are q (G, H/G, c, d) and k (G, c, d), its lock is P (G, c, c), a model's (layers, G, c, c).

    f(P) = (1/16) ‖(W_q P + W_q)(W_k P + W_k)ᵀ − 4 W_q W_kᵀ‖_F²       (eq. 2)
    P_k  = I − 2 U_k U_kᵀ                                             (Theorem 2, relaxed to k directions)

Eq. (2) and its surrogate are quadratic in the weights, so they depend on A = W_q W_qᵀ and B = W_k W_kᵀ only.
Which planes of a rotary, QK-normed head may be turned at all is in `attention_commutant`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lockref.models.qwen3_config import Qwen3Config

Array = NDArray[np.float64]
Tensors = Mapping[str, NDArray[Any]]
Governing = Callable[[Array, Array], Array]


def grams(q: Array, k: Array) -> tuple[Array, Array]:
    """A = Σ_h W_qhᵀ W_qh over the query heads that share a key head, and B = W_kᵀ W_k, each (…, c, c)."""
    wide = np.moveaxis(q, -3, -2)
    wide = wide.reshape(*wide.shape[:-2], -1)
    return wide @ np.swapaxes(wide, -1, -2), k @ np.swapaxes(k, -1, -2)


def gram_sum(q: Array, k: Array) -> Array:
    """The governing matrix S = A + B, (…, c, c). Never negative, so Theorem 2's λ < 0 does not occur."""
    a, b = grams(q, k)
    return a + b


def cross_sum(q: Array, k: Array) -> Array:
    """Another governing matrix: Σ_h W_qhᵀ W_k + W_kᵀ W_qh, (…, c, c); its eigenvalues have both signs."""
    cross = np.sum(q, axis=-3) @ np.swapaxes(k, -1, -2)
    both: Array = cross + np.swapaxes(cross, -1, -2)
    return both


def eigenbasis(s: Array) -> Array:
    """Orthonormal eigenvectors of symmetric s (…, c, c) in columns, greatest eigenvalue first.

    Raises ValueError for a matrix that is not square or not symmetric to half its digits.
    """
    s = _square("eigenbasis", s)
    skew = np.max(np.abs(s - np.swapaxes(s, -1, -2)), initial=0.0)
    if not skew <= np.sqrt(np.finfo(s.dtype).eps) * np.max(np.abs(s), initial=0.0):
        raise ValueError(
            f"eigenbasis: a matrix of shape {s.shape} differs from its transpose by {skew:.3g}; symmetrize it"
        )
    basis: Array = np.linalg.eigh(s)[1][..., ::-1]
    return basis


def plane_basis(s: Array) -> Array:
    """Coordinate axes in pairs (i, i + c/2), the rotary plane with the greatest trace of s (…, c, c) first.

    Equal traces keep the order of their planes. Raises ValueError unless c is even.
    """
    s = _square("plane_basis", s)
    c = s.shape[-1]
    if c % 2:
        raise ValueError(f"plane_basis: head dimension {c} is odd; rotary planes pair its coordinates")
    first = np.argsort(-plane_traces(s), axis=-1, kind="stable")
    axes = np.stack([first, first + c // 2], axis=-1).reshape(*s.shape[:-2], c)
    return np.swapaxes(np.eye(c)[axes], -1, -2)


def plane_traces(s: Array) -> Array:
    """s_ii + s_jj with j = i + c/2, (…, c/2): the trace of s restricted to each rotary plane."""
    diagonal = np.diagonal(s, axis1=-2, axis2=-1)
    half = s.shape[-1] // 2
    traces: Array = diagonal[..., :half] + diagonal[..., half:]
    return traces


@dataclass(frozen=True)
class Family:
    """A lock that flips the leading k blocks of `width` columns of a basis; k is its only parameter."""

    name: str
    basis: Callable[[Array], Array]
    width: int

    def most(self, c: int) -> int:
        """The greatest k: every block flipped, P = −I."""
        return c // self.width


TOPK = Family("topk", eigenbasis, 1)
TOPK_PLANES = Family("topk-planes", plane_basis, 2)
FAMILIES = {family.name: family for family in (TOPK, TOPK_PLANES)}


def flip(basis: Array, leading: ArrayLike) -> Array:
    """I − 2 U_k U_kᵀ, (…, c, c), for the `leading` = k first columns of an orthonormal basis (…, c, c).

    k may be one integer for each basis. Raises ValueError where k is not an integer from 0 to c.
    """
    c, k = basis.shape[-1], np.asarray(leading)
    if k.dtype.kind not in "iu" or np.any(k < 0) or np.any(k > c):
        raise ValueError(f"k is {k.tolist()}; it counts flipped directions and must be an integer from 0 to {c}")
    chosen = basis * (np.arange(c) < k[..., None])[..., None, :]
    return np.eye(c) - 2 * chosen @ np.swapaxes(chosen, -1, -2)


def layer_heads(tensors: Tensors, config: Qwen3Config) -> Iterator[tuple[Array, Array]]:
    """For each layer q (G, H/G, c, d) and k (G, c, d), views where the tensors are float64.

    Raises ValueError for a projection that is missing or whose shape is not that of the config.
    """
    for names in _names(config):
        q, k = (
            np.asarray(_weight(tensors, config, n, h), np.float64) for n, h in zip(names, _heads(config), strict=True)
        )
        yield _grouped(q, config), k.reshape(config.num_key_value_heads, config.head_dim, -1)


def governing(tensors: Tensors, config: Qwen3Config, matrix: Governing = gram_sum) -> Array:
    """The governing matrix of every key head, (layers, G, c, c)."""
    return np.stack([matrix(q, k) for q, k in layer_heads(tensors, config)])


def projections(
    tensors: Tensors, config: Qwen3Config, family: Family, k: ArrayLike, matrix: Governing = gram_sum
) -> Array:
    """The lock of a model: P (layers, G, c, c) that flips the k leading blocks of every key head.

    k is one integer, as published, or one for each key head, broadcast to (layers, G). Raises ValueError
    where it is out of range.
    """
    count, most = np.asarray(k), family.most(config.head_dim)
    if count.dtype.kind not in "iu" or np.any(count < 0) or np.any(count > most):
        raise ValueError(f"{family.name}: k is {count.tolist()}; it must be an integer from 0 to {most}")
    return flip(family.basis(governing(tensors, config, matrix)), count * family.width)


def project(tensors: Tensors, config: Qwen3Config, p: Array) -> dict[str, NDArray[Any]]:
    """A new dict of tensors in which q_proj and k_proj are turned by p (layers, G, c, c); dtypes stay.

    Diagonal signs act without rounding: every sum then has one term that is not zero. Raises ValueError
    for wrong block sizes and for a p that is not orthogonal.
    """
    want = (config.num_hidden_layers, config.num_key_value_heads, config.head_dim, config.head_dim)
    if np.shape(p) != want:
        raise ValueError(f"P has shape {np.shape(p)}; this model needs one block per layer and key head, {want}")
    require_orthogonal(p)
    out = dict(tensors)
    for names, turn in zip(_names(config), np.swapaxes(p, -1, -2), strict=True):
        for name, heads in zip(names, _heads(config), strict=True):
            w = _weight(tensors, config, name, heads)
            turned = turn[:, None] @ _grouped(w, config)
            out[name] = turned.reshape(w.shape).astype(w.dtype)
    return out


def require_orthogonal(p: Array) -> None:
    """Raises ValueError unless |PᵀP − I| ≤ 4 c^2.5 eps in every entry.

    A basis of c Householder reflections is orthonormal to c^2.5 eps (Higham, §19.3), a flip of it to four times that.
    """
    p = _square("P", p)
    c = p.shape[-1]
    finite = np.all(np.isfinite(p))
    defect = np.max(np.abs(np.swapaxes(p, -1, -2) @ p - np.eye(c)), initial=0.0) if finite else np.inf
    if not defect <= (allowed := 4 * c**2.5 * np.finfo(p.dtype).eps):
        raise ValueError(
            f"P of shape {p.shape} is not orthogonal: PᵀP differs from I by {defect:.3g}, more than {allowed:.3g}"
        )


def eq2(q: Array, k: Array, p: Array) -> Array:
    """f(P) of eq. (2) as it is written, summed over query heads: q (…, n, c, d), k and p with the same leading axes."""
    turn = np.swapaxes(p, -1, -2)
    queries, keys = turn[..., None, :, :] @ q + q, turn @ k + k
    moved = np.swapaxes(queries, -1, -2) @ keys[..., None, :, :] - 4 * np.swapaxes(q, -1, -2) @ k[..., None, :, :]
    value: Array = np.sum(moved * moved, axis=(-3, -2, -1)) / 16
    return value


def eq2_from_grams(a: Array, b: Array, p: Array) -> Array:
    """The same f(P) = tr(A D B D)/16, D = (P − I)(P − I)ᵀ = 2I − P − Pᵀ, from A and B (…, c, c) alone."""
    d = 2 * np.eye(p.shape[-1]) - p - np.swapaxes(p, -1, -2)
    value: Array = np.einsum("...ij,...ji->...", a @ d, b @ d) / 16
    return value


def surrogate(a: Array, b: Array, p: Array) -> Array:
    """g(P) = ‖W_q (P − I)‖_F² + ‖W_k (P − I)‖_F² = 2 tr S − 2 tr(S P), S = A + B (Theorem 2's stand-in for f)."""
    s = a + b
    value: Array = 2 * np.trace(s, axis1=-2, axis2=-1) - 2 * np.einsum("...ij,...ji->...", s, p)
    return value


def strongest_flip(a: Array, b: Array, start: Array, directions: int | None = None, steps: int = 30) -> Array:
    """A P whose f is at least that of the involution `start` (…, c, c), by a monotone ascent over involutions.

    With `directions` they flip at most that many, and `start` must. Raises ValueError for another number than 0 … c.

    f is convex in Π = (I − P)/2, a projector, so f(Π') ≥ f(Π) + ⟨∇f(Π), Π' − Π⟩, and the right side is largest
    for the projector on the (leading) positive eigenvectors of ∇f = A Π B + B Π A. Some maximizer of f over all
    orthogonal matrices is an involution (proof: MB-T2A), so nothing is lost by this restriction.
    """
    c = start.shape[-1]
    most = c if directions is None else directions
    if not 0 <= most <= c:
        raise ValueError(f"directions is {directions}; it must be an integer from 0 to {c}")
    eye, leading = np.eye(c), np.arange(c) >= c - most
    p, value = start, eq2_from_grams(a, b, start)
    for _ in range(steps):
        half = a @ (eye - p) @ b
        slope, basis = np.linalg.eigh(half + np.swapaxes(half, -1, -2))
        positive = basis * ((slope > 0) & leading)[..., None, :]
        trial = eye - 2 * positive @ np.swapaxes(positive, -1, -2)
        reached = eq2_from_grams(a, b, trial)
        better = reached > value
        if not np.any(better):
            break
        p, value = np.where(better[..., None, None], trial, p), np.where(better, reached, value)
    return p


def _names(config: Qwen3Config) -> Iterator[tuple[str, str]]:
    for i in range(config.num_hidden_layers):
        prefix = f"model.layers.{i}.self_attn."
        yield prefix + "q_proj.weight", prefix + "k_proj.weight"


def _heads(config: Qwen3Config) -> tuple[int, int]:
    return config.num_attention_heads, config.num_key_value_heads


def _weight(tensors: Tensors, config: Qwen3Config, name: str, heads: int) -> NDArray[Any]:
    want = (heads * config.head_dim, config.hidden_size)
    got = np.shape(tensors[name]) if name in tensors else "no such tensor"
    if got != want:
        raise ValueError(f"{name}: {got}; expected shape {want}, {heads} heads of {config.head_dim} rows")
    return tensors[name]


def _grouped(w: NDArray[Any], config: Qwen3Config) -> NDArray[Any]:
    """(heads · c, d) as (G, heads/G, c, d): query heads that share a key head lie together."""
    return w.reshape(config.num_key_value_heads, -1, config.head_dim, w.shape[-1])


def _square(what: str, s: ArrayLike) -> Array:
    s = np.asarray(s, np.float64) if np.asarray(s).dtype.kind != "f" else np.asarray(s)
    if s.ndim < 2 or s.shape[-1] != s.shape[-2]:
        raise ValueError(f"{what}: shape {s.shape}; expected square blocks (…, c, c)")
    return s
