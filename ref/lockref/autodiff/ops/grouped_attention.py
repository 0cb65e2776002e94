"""Causal grouped-query attention, fused: works tile by tile and keeps q, k, v, the result and a number per query."""

import numpy as np

from lockref.autodiff.ops import reduce
from lockref.autodiff.ops.activations import exp
from lockref.autodiff.ops.linalg import matmul
from lockref.autodiff.ops.shape import reshape, transpose
from lockref.autodiff.primitive import primitive


def softmax(x, axis=-1):
    """eˣ / Σ eˣ along one axis, shifted by the maximum so that nothing overflows."""
    e = exp(x - reduce.max(x, axis=axis, keepdims=True))
    return e / reduce.sum(e, axis=axis, keepdims=True)


def _causal(length, dtype):
    """0 where a query may look at a key; where the key comes later, as low as the dtype goes without infinity."""
    return np.triu(np.full((length, length), np.finfo(dtype).min / 4, dtype), 1)  # −∞ · complex would be NaN


def _swap(x):
    axes = list(range(len(x.shape)))
    axes[-1], axes[-2] = axes[-2], axes[-1]
    return transpose(x, axes=tuple(axes))


def _attention_twin(q, k, v, *, scale):
    *batch, groups, length, width = k.shape
    one = (*batch, groups, 1, length, width)
    grouped = reshape(q, shape=(*batch, groups, q.shape[-3] // groups, length, width))
    scores = matmul(grouped, _swap(reshape(k, shape=one))) * scale
    p = softmax(scores + _causal(length, np.float32))
    return reshape(matmul(p, reshape(v, shape=one)), shape=q.shape)


@primitive(residuals=("lse",), twin=_attention_twin)
def attention(q, k, v, *, scale):
    """Causal softmax(scale · q kᵀ) v with grouped keys: q (…, H, T, c), k and v (…, G, T, c), G | H.

    Works on a tile of queries of one group and the keys that they may see. Keeps ln Σ e^score of each query
    instead of the T × T weights, which the reverse rules compute again (FlashAttention, arXiv 2205.14135).
    """
    if q.shape[-3] % k.shape[-3] or k.shape != v.shape or q.shape[-2:] != k.shape[-2:]:
        raise ValueError(
            f"attention: q {q.shape}, k {k.shape}, v {v.shape}; want (…, H, T, c) and twice (…, G, T, c), G dividing H"
        )
    out = np.empty(q.shape, np.result_type(q, k, v))
    lse = np.empty((*q.shape[:-1], 1), np.result_type(q, k))
    ks, vs = _keys(k, v)
    qs, outs, lses = _queries(ks, q, out, lse)
    for i, rows, seen in _tiles(ks):
        p = _scores(qs[i, :, rows], ks[i, seen], scale)
        top = np.max(np.real(p), axis=-1, keepdims=True)
        p -= top
        np.exp(p, out=p)
        total = np.sum(p, axis=-1, keepdims=True)
        lses[i, :, rows] = np.log(total) + top
        np.divide(_mix(p, vs[i, seen]), total, out=outs[i, :, rows])
    return out, lse


_TILE = 128  # queries at a time: the scores of a tile stay in the cache
_MASK = _causal(_TILE, np.float32)


def _keys(*arrays):
    """(…, G, T, c) as (key heads, T, c)."""
    return [x.reshape(-1, *x.shape[-2:]) for x in arrays]


def _queries(ks, *arrays):
    """(…, H, T, c) as (key heads, H/G, T, c): the query heads that share a key head."""
    return [x.reshape(len(ks), -1, *x.shape[-2:]) for x in arrays]


def _tiles(ks):
    """For each key head slices of queries, and of the keys that these may see."""
    length = ks.shape[-2]
    for i in range(len(ks)):
        for start in range(0, length, _TILE):
            stop = min(start + _TILE, length)
            yield i, slice(start, stop), slice(0, stop)


def _rows(x):
    """(H/G, t, n) as one matrix (H/G · t, n): the heads share their keys, so one product serves all."""
    return x.reshape(-1, x.shape[-1])


def _scores(q, k, scale):
    """scale · q kᵀ of a tile, masked where the key comes after the query: (H/G, t, n)."""
    s = (_rows(q * scale) @ k.T).reshape(*q.shape[:-1], len(k))
    size = q.shape[-2]
    s[..., -size:] += _MASK[:size, :size]
    return s


def _weights(q, k, lse, scale):
    """The attention weights of a tile, computed again from their normalization."""
    p = _scores(q, k, scale)
    p -= lse
    return np.exp(p, out=p)


def _mix(p, v):
    """p v: (H/G, t, c)."""
    return (_rows(p) @ v).reshape(*p.shape[:-1], -1)


def _gather(p, x):
    """Σ over query heads of pᵀ x: (n, c), what a key or value receives from all queries that it serves."""
    return _rows(p).T @ _rows(x)


def _score_cotangent(g, p, v, out, scale):
    """p ∘ (g vᵀ − Σ g∘out) · scale, since Σ_j p_j (g vᵀ)_j = Σ g∘out."""
    ds = (_rows(g) @ v.T).reshape(p.shape)
    ds -= np.vecdot(g.conj(), out)[..., None]
    ds *= p
    ds *= scale
    return ds


@attention.vjp("q")
def _(g, q, k, v, out, lse, scale):
    gq = np.empty(q.shape, q.dtype)
    ks, vs = _keys(k, v)
    gs, qs, outs, lses, gqs = _queries(ks, g, q, out, lse, gq)
    for i, rows, seen in _tiles(ks):
        p = _weights(qs[i, :, rows], ks[i, seen], lses[i, :, rows], scale)
        ds = _score_cotangent(gs[i, :, rows], p, vs[i, seen], outs[i, :, rows], scale)
        gqs[i, :, rows] = _mix(ds, ks[i, seen])
    return gq


@attention.vjp("k")
def _(g, q, k, v, out, lse, scale):
    gk = np.zeros(k.shape, k.dtype)
    ks, vs, gks = _keys(k, v, gk)
    gs, qs, outs, lses = _queries(ks, g, q, out, lse)
    for i, rows, seen in _tiles(ks):
        p = _weights(qs[i, :, rows], ks[i, seen], lses[i, :, rows], scale)
        ds = _score_cotangent(gs[i, :, rows], p, vs[i, seen], outs[i, :, rows], scale)
        gks[i, seen] += _gather(ds, qs[i, :, rows])
    return gk


@attention.vjp("v")
def _(g, q, k, lse, scale):
    gv = np.zeros(k.shape, k.dtype)
    ks, gvs = _keys(k, gv)
    gs, qs, lses = _queries(ks, g, q, lse)
    for i, rows, seen in _tiles(ks):
        p = _weights(qs[i, :, rows], ks[i, seen], lses[i, :, rows], scale)
        gvs[i, seen] += _gather(p, gs[i, :, rows])
    return gv


@attention.vjp("q", "k", "v")
def _(g, q, k, v, out, lse, scale):
    gq, gk, gv = np.empty(q.shape, q.dtype), np.zeros(k.shape, k.dtype), np.zeros(v.shape, v.dtype)
    ks, vs, gks, gvs = _keys(k, v, gk, gv)
    gs, qs, outs, lses, gqs = _queries(ks, g, q, out, lse, gq)
    for i, rows, seen in _tiles(ks):
        p = _weights(qs[i, :, rows], ks[i, seen], lses[i, :, rows], scale)
        ds = _score_cotangent(gs[i, :, rows], p, vs[i, seen], outs[i, :, rows], scale)
        gqs[i, :, rows] = _mix(ds, ks[i, seen])
        gks[i, seen] += _gather(ds, qs[i, :, rows])
        gvs[i, seen] += _gather(p, gs[i, :, rows])
    return gq, gk, gv
