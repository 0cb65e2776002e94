"""Merging operators against per-element loops written from the papers, and the identities that they must satisfy."""

from itertools import chain
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockref.merging import SETTINGS, merge
from lockref.merging.settings import Entries

EPS = float(np.finfo(float).eps)
ENTRIES = [name for name, s in SETTINGS.items() if isinstance(s.rule, Entries) and s.space == "full"]
RANDOM = [name for name in ENTRIES if (t := SETTINGS[name].rule.trim) and t.rule == "random"]
FULL = [name for name, s in SETTINGS.items() if s.space == "full"]
TWO_D = {"w": (6, 4), "u": (3, 5), "gain": (5,)}


def models(seed: int, members: int = 3, ties: bool = False):
    """A base and members; with `ties` from few integers, so that magnitudes repeat, signs clash and entries vanish."""
    rng = np.random.default_rng(seed)
    draw = (lambda s: rng.integers(-2, 3, s).astype(float)) if ties else rng.standard_normal
    base = {n: draw(s) for n, s in TWO_D.items()}
    return base, [{n: w + draw(w.shape) for n, w in base.items()} for _ in range(members)]


# --- A second derivation: one entry after another, lists and plain Python -----------------------------------------


def kept_by_sorting(row, trim, mask):
    n, order = len(row), sorted(range(len(row)), key=lambda j: (-abs(row[j]), j))
    if trim.rule == "random":
        return [j for j in range(n) if mask[j]]
    if trim.rule == "threshold":
        ascending = sorted(abs(v) for v in row)
        kth = n - floor(trim.density * n)  # counted from 1
        return [j for j in range(n) if abs(row[j]) >= ascending[max(kth, 1) - 1]]
    count = floor(trim.density * n)
    return order[: max(1, count) if trim.rule == "at-least-one" else count]


def by_hand(rows, rule, w, mask=None):
    """What reaches each entry, from lists of numbers."""
    t, n = len(rows), len(rows[0])
    value = [[0.0] * n for _ in range(t)]
    present = [[False] * n for _ in range(t)]
    for i, row in enumerate(rows):
        kept = range(n) if rule.trim is None else kept_by_sorting(row, rule.trim, None if mask is None else mask[i])
        factor = 1.0
        if rule.trim and rule.trim.rescale == "density":
            factor = 1 / rule.trim.density
        if rule.trim and rule.trim.rescale == "l1":
            before, after = sum(map(abs, row)), sum(abs(row[j]) for j in kept)
            factor = before / after if min(before, after) >= 1e-7 else 1.0
        for j in kept:
            value[i][j], present[i][j] = row[j] * factor, True
    out = []
    signs = []
    for j in range(n):
        votes = [(w[i] if rule.elect and rule.elect.weighted else 1) * value[i][j] for i in range(t)]
        total = sum(np.sign(v) for v in votes) if rule.elect and rule.elect.by == "count" else sum(votes)
        signs.append((np.sign(total), votes))
    majority = 1 if sum(s for s, _ in signs) > 0 else -1
    for j in range(n):
        sign, votes = signs[j]
        if rule.elect:
            sign = sign or (1 if rule.elect.ties == "positive" else majority)
            inside = [i for i in range(t) if np.sign(votes[i]) == sign]
        else:
            inside = [i for i in range(t) if present[i][j]]
        divisor = {"nothing": 1, "weights": sum(w), "weights left": sum(w[i] for i in inside),
                   "members left": len(inside)}[rule.divide] or 1  # fmt: skip
        out.append(rule.scale * sum(w[i] * value[i][j] for i in inside) / divisor)
    return out


def expected(base, members, setting, w, seed):
    """The merged tensors by the loops; random masks are drawn as documented: tensor by tensor, member by member."""
    rng, rule = np.random.default_rng(seed), setting.rule
    of = setting.of == "parameters"
    rows = {n: [(m[n] - (0 if of else base[n])).ravel().tolist() for m in members] for n in base}
    if rule.trim and rule.trim.scope == "model":
        whole = by_hand([list(chain.from_iterable(rows[n][i] for n in base)) for i in range(len(members))], rule, w)
        found, at = {}, 0
        for n, x in base.items():
            found[n], at = whole[at : at + x.size], at + x.size
    else:
        masks = {n: rng.random((len(members), x.size)) < rule.trim.density if rule.trim and rule.trim.rule == "random"
                 else None for n, x in base.items()}  # fmt: skip
        found = {n: by_hand(rows[n], rule, w, masks[n]) for n in base}
    return {n: np.reshape(found[n], x.shape) + (0 if of else x) for n, x in base.items()}


def close(got, want, base, members, weights, setting):
    """Round-off of T products, their sum, two subtractions and an addition, on the greatest magnitudes that occur."""
    top = max(np.max(np.abs(x)) for m in (base, *members) for x in m.values())
    raise_by = setting.rule.trim and setting.rule.trim.rescale != "nothing"
    amplitude = max(1, np.abs(weights).max()) * (40 / setting.rule.trim.density if raise_by else 1) * 2 * top
    limit = 4 * (len(members) + 4) * len(members) * EPS * amplitude / min(1, abs(sum(weights)) or 1)
    for name, x in want.items():
        gap = float(np.max(np.abs(got[name] - x)))
        assert gap <= limit, f"{setting.name}, tensor {name}: got and want differ by {gap}, round-off {limit}"


@pytest.mark.parametrize("name", ENTRIES)
@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6), members=st.integers(2, 4), ties=st.booleans(), density=st.sampled_from([0.2, 0.5, 1.0])
)
def test_every_entry_is_what_the_loops_find(name, seed, members, ties, density):
    base, experts = models(seed, members, ties)
    setting = SETTINGS[name] if SETTINGS[name].rule.trim is None else SETTINGS[name].tuned(density=density)
    weights = [1.0, 0.5, 2.0, 0.25][:members]
    got = merge(base, experts, setting, weights=weights, rng=np.random.default_rng(seed)).tensors
    close(got, expected(base, experts, setting, weights, seed), base, experts, np.array(weights), setting)
