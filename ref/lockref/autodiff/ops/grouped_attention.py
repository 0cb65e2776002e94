"""Causal grouped-query attention, fused: works tile by tile and keeps q, k, v, the result and a number per query."""

import numpy as np

from lockref.autodiff.array import Traced
from lockref.autodiff.ops import reduce
from lockref.autodiff.ops.activations import exp
from lockref.autodiff.ops.linalg import matmul
from lockref.autodiff.ops.shape import reshape, transpose
from lockref.autodiff.primitive import primitive
from lockref.autodiff.reverse import vjp


def _causal(length, dtype):
    """0 where a query may look at a key; where the key comes later, as low as the dtype goes without infinity."""
    return np.triu(np.full((length, length), np.finfo(dtype).min / 4, dtype), 1)  # −∞ · complex would be NaN


def softmax(x, axis=-1):
    """eˣ / Σ eˣ along one axis, shifted by the maximum so that nothing overflows."""
    e = exp(x - reduce.max(x, axis=axis, keepdims=True))
    return e / reduce.sum(e, axis=axis, keepdims=True)


def _grouped(q, groups):
    """(…, H, T, c) as (…, G, H/G, T, c): query heads that share a key head lie together."""
    *batch, heads, length, width = q.shape
    return reshape(q, shape=(*batch, groups, heads // groups, length, width))


def _swap(x):
    axes = list(range(len(x.shape)))
    axes[-1], axes[-2] = axes[-2], axes[-1]
    return transpose(x, axes=tuple(axes))


def _attention_twin(q, k, v, *, scale):
    *batch, groups, length, width = k.shape
    one = (*batch, groups, 1, length, width)
    scores = matmul(_grouped(q, groups), _swap(reshape(k, shape=one))) * scale
    p = softmax(scores + _causal(length, np.float32))
    return reshape(matmul(p, reshape(v, shape=one)), shape=q.shape)


@primitive(residuals=("lse",), twin=_attention_twin)
def attention(q, k, v, *, scale):
    """Causal softmax(scale · q kᵀ) v with grouped keys: q (…, H, T, c), k and v (…, G, T, c), G | H.

    Works on a tile of queries and the keys that it may see. Keeps ln Σ e^score of each query instead of the
    T × T weights, which the reverse rules compute again (as FlashAttention does, arXiv 2205.14135).
    """
    if q.shape[-3] % k.shape[-3] or k.shape != v.shape or q.shape[-2:] != k.shape[-2:]:
        raise ValueError(
            f"attention: q {q.shape}, k {k.shape}, v {v.shape}; want (…, H, T, c) and twice (…, G, T, c), G dividing H"
        )
    grouped = _grouped(q, k.shape[-3])
    out = np.empty(grouped.shape, np.result_type(q, k, v))
    lse = np.empty((*grouped.shape[:-1], 1), np.result_type(q, k))
    for rows, seen in _tiles(k.shape[-2]):
        p = _scores(grouped, k, rows, seen, scale)
        top = np.max(np.real(p), axis=-1, keepdims=True)
        p -= top
        np.exp(p, out=p)
        total = np.sum(p, axis=-1, keepdims=True)
        lse[..., rows, :] = np.log(total) + top
        _put(out, rows, np.matmul(_merge(p), v[..., seen, :]))
        out[..., rows, :] /= total
    return out.reshape(q.shape), lse


_TILE = 128  # queries at a time: the scores of a tile stay in the cache


def _tiles(length):
    """Slices of queries, each with the slice of keys that they may see."""
    for start in range(0, length, _TILE):
        stop = min(start + _TILE, length)
        yield slice(start, stop), slice(0, stop)


def _merge(x):
    """(…, R, t, n) as (…, R·t, n): the heads of a group share their keys, so their queries make one matrix."""
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])


def _put(out, rows, x):
    """Write (…, R·t, c) to the rows of (…, R, T, c)."""
    target = out[..., rows, :]
    target[...] = x.reshape(target.shape)


def _scores(q, k, rows, seen, scale):
    """scale · q kᵀ of a tile, masked where the key comes after the query: (…, R, t, n)."""
    tile = q[..., rows, :] * scale
    s = np.matmul(_merge(tile), np.swapaxes(k[..., seen, :], -1, -2)).reshape(*tile.shape[:-1], seen.stop)
    size = tile.shape[-2]
    s[..., -size:] += _causal(size, np.real(s).dtype)
    return s


class _Attention:
    """What the reverse rules share: the weights p of a tile, computed again, and the cotangent of its scores."""

    def __init__(self, g, q, k, lse, scale):
        groups = k.shape[-3]
        self.g, self.q, self.k, self.lse, self.scale = _grouped(g, groups), _grouped(q, groups), k, lse, scale

    def weights(self, rows, seen):
        p = _scores(self.q, self.k, rows, seen, self.scale)
        p -= self.lse[..., rows, :]
        return np.exp(p, out=p)

    def score_cotangent(self, p, v, out, rows, seen):
        """p ∘ (g vᵀ − Σ g∘out) · scale, since Σ_j p_j (g vᵀ)_j = Σ g∘out."""
        g = self.g[..., rows, :]
        ds = np.matmul(_merge(g), np.swapaxes(v[..., seen, :], -1, -2)).reshape(p.shape)
        ds -= np.einsum("...i,...i->...", g, _grouped(out, self.k.shape[-3])[..., rows, :])[..., None]
        ds *= p
        ds *= self.scale
        return ds


def _through_twin(g, q, k, v, scale):
    """For a cotangent that is itself traced: the rules below write into plain arrays."""
    return vjp(lambda *args: _attention_twin(*args, scale=scale), q, k, v)[1](g)


@attention.vjp("q")
def _(g, q, k, v, out, lse, scale):
    if isinstance(g, Traced):
        return _through_twin(g, q, k, v, scale)[0]
    shared, gq = _Attention(g, q, k, lse, scale), np.empty_like(_grouped(q, k.shape[-3]))
    for rows, seen in _tiles(k.shape[-2]):
        ds = shared.score_cotangent(shared.weights(rows, seen), v, out, rows, seen)
        _put(gq, rows, np.matmul(_merge(ds), k[..., seen, :]))
    return gq.reshape(q.shape)


@attention.vjp("k")
def _(g, q, k, v, out, lse, scale):
    if isinstance(g, Traced):
        return _through_twin(g, q, k, v, scale)[1]
    shared, gk = _Attention(g, q, k, lse, scale), np.zeros_like(k)
    for rows, seen in _tiles(k.shape[-2]):
        ds = shared.score_cotangent(shared.weights(rows, seen), v, out, rows, seen)
        gk[..., seen, :] += np.matmul(np.swapaxes(_merge(ds), -1, -2), _merge(shared.q[..., rows, :]))
    return gk


@attention.vjp("v")
def _(g, q, k, lse, scale):
    if isinstance(g, Traced):  # attention is linear in v: its value does not matter
        return _through_twin(g, q, k, np.zeros_like(k), scale)[2]
    shared, gv = _Attention(g, q, k, lse, scale), np.zeros_like(k)
    for rows, seen in _tiles(k.shape[-2]):
        p = shared.weights(rows, seen)
        gv[..., seen, :] += np.matmul(np.swapaxes(_merge(p), -1, -2), _merge(shared.g[..., rows, :]))
    return gv


@attention.vjp("q", "k", "v")
def _(g, q, k, v, out, lse, scale):
    if isinstance(g, Traced):
        return _through_twin(g, q, k, v, scale)
    shared, gq = _Attention(g, q, k, lse, scale), np.empty_like(_grouped(q, k.shape[-3]))
    gk, gv = np.zeros_like(k), np.zeros_like(v)
    for rows, seen in _tiles(k.shape[-2]):
        p = shared.weights(rows, seen)
        gv[..., seen, :] += np.matmul(np.swapaxes(_merge(p), -1, -2), _merge(shared.g[..., rows, :]))
        ds = _merge(shared.score_cotangent(p, v, out, rows, seen))
        _put(gq, rows, np.matmul(ds, k[..., seen, :]))
        gk[..., seen, :] += np.matmul(np.swapaxes(ds, -1, -2), _merge(shared.q[..., rows, :]))
    return gq.reshape(q.shape), gk, gv
