"""What every merge must satisfy, whatever its setting: copies, zeros, order, scale, spaces, accounts, refusals."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockref.merging import SETTINGS, Account, Adapter, Cart, Merged, Slerp, Tsv, merge
from lockref.merging.settings import Entries, Trim
from lockref.merging.spaces import core, factor_sum, knots
from lockref.merging.spectral import polar, slerp_coefficients, triples

EPS = float(np.finfo(float).eps)
SHAPES = {"w": (6, 4), "u": (3, 5), "gain": (5,)}
FULL = [name for name, s in SETTINGS.items() if s.space == "full"]
RANDOM = [name for name in FULL if isinstance(r := SETTINGS[name].rule, Entries) and r.trim and r.trim.rule == "random"]
FIXED = [name for name in FULL if name not in RANDOM]
AVERAGES = ["linear-average", "ties", "ties-mergekit", "ties-peft", "ties-peft-count"]


def draw(rng, members=2):
    base = {n: rng.standard_normal(s) for n, s in SHAPES.items()}
    return base, [{n: w + rng.standard_normal(w.shape) for n, w in base.items()} for _ in range(members)]


def untrimmed(name):
    setting = SETTINGS[name]
    return setting.tuned(density=1.0) if isinstance(setting.rule, Entries) and setting.rule.trim else setting


def adapters(rng, members=2, rank=2):
    names = ("w", "u")
    return [
        Adapter({n: rng.standard_normal((SHAPES[n][0], rank)) for n in names},
                {n: rng.standard_normal((rank, SHAPES[n][1])) for n in names}, 0.5)
        for _ in range(members)
    ]  # fmt: skip


def limit(*sizes, roundings=64):
    """`roundings` roundings of the greatest magnitude that occurs."""
    return roundings * EPS * max(1.0, *(float(np.max(np.abs(s))) for s in sizes))


def gap(got, want):
    return max(float(np.max(np.abs(got[n] - want[n]))) for n in want)


# --- Identities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*AVERAGES, "slerp", "slerp-updates", "cart"])
@settings(max_examples=10)
@given(seed=st.integers(0, 10**6), copies=st.integers(2, 4))
def test_copies_of_one_model_average_to_it(name, seed, copies):
    base, (one,) = draw(np.random.default_rng(seed), 1)
    copies = 2 if isinstance(SETTINGS[name].rule, Slerp) else copies
    got = merge(base, [one] * copies, untrimmed(name), weights=[2.0] * copies if name == "linear-average" else None)
    assert gap(got.tensors, one) <= limit(*one.values(), *base.values()), f"{name}: {copies} copies are not one"


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6), copies=st.integers(2, 3))
def test_copies_under_tsv_keep_their_share_of_triples(seed, copies):
    base, (one,) = draw(np.random.default_rng(seed), 1)
    got = merge(base, [one] * copies, "tsv").tensors["w"] - base["w"]
    u, s, v = triples(one["w"] - base["w"])
    k = 4 // copies
    want = (u[:, :k] * s[:k]) @ v[:k]
    assert np.max(np.abs(got - want)) <= limit(want, roundings=400), "U⊥ of repeated directions must be shared evenly"


@pytest.mark.parametrize("name", FULL)
def test_zero_updates_leave_the_base(name):
    base, _ = draw(np.random.default_rng(0))
    scale = 2 if name == "linear-sum" else 1  # which multiplies the base by the sum of weights
    got = merge(base, [base, base], name, rng=np.random.default_rng(0)).tensors
    assert gap(got, {n: scale * w for n, w in base.items()}) <= limit(*base.values(), roundings=4), name


@pytest.mark.parametrize("name", [n for n in FIXED if n != "slerp"])
@settings(max_examples=10)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(3)))
def test_the_order_of_members_does_not_matter(name, seed, order):
    base, members = draw(np.random.default_rng(seed), 3)
    if isinstance(SETTINGS[name].rule, Slerp):
        members, order = members[:2], sorted(order[:2], key=list(order).index) if set(order[:2]) == {0, 1} else [1, 0]
    weights = [1.0, 0.5, 0.75][: len(members)]
    one = merge(base, members, name, weights=weights).tensors
    two = merge(base, [members[i] for i in order], name, weights=[weights[i] for i in order]).tensors
    assert gap(one, two) <= limit(*one.values(), *base.values(), roundings=2000), f"{name}: order {order} matters"


@pytest.mark.parametrize("name", [n for n in FULL if n not in ("slerp", "linear-sum", "linear-average")])
@settings(max_examples=10)
@given(seed=st.integers(0, 10**6), power=st.integers(-3, 3))
def test_scaled_updates_give_a_scaled_merge(name, seed, power):
    """By a power of two, on a base of zeros: nothing rounds, so an elementwise merge is scaled bit for bit."""
    base, members = draw(np.random.default_rng(seed))
    zero = {n: np.zeros_like(w) for n, w in base.items()}
    c = 2.0**power
    one = merge(zero, members, name, rng=np.random.default_rng(0)).tensors
    two = merge(zero, [{n: c * w for n, w in m.items()} for m in members], name, rng=np.random.default_rng(0)).tensors
    allowed = 0 if isinstance(SETTINGS[name].rule, Entries) else c * limit(*one.values(), roundings=2000)
    assert gap(two, {n: c * w for n, w in one.items()}) <= allowed, f"{name}: not equivariant under scaling"


@pytest.mark.parametrize("name", [n for n in FULL if isinstance(SETTINGS[n].rule, Entries) and SETTINGS[n].rule.trim])
def test_density_one_trims_nothing(name):
    base, members = draw(np.random.default_rng(3))
    rule = SETTINGS[name].rule
    bare = replace(SETTINGS[name], rule=replace(rule, trim=None))
    got, want = (merge(base, members, s).tensors for s in (SETTINGS[name].tuned(density=1.0), bare))
    assert gap(got, want) == 0, f"{name}: density 1 changes something"


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), t=st.floats(0, 1), spread=st.sampled_from([1.0, 1e-3, 1e-7, 1e-9]))
def test_slerp_keeps_to_its_arc(seed, t, spread):
    """Endpoints at t = 0 and 1; between two vectors of length 1 the point has length 1, also nearly parallel ones."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(7)
    y = x + spread * rng.standard_normal(7)
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    c = slerp_coefficients(x, y, t, Slerp(collinear=5e-17))
    assert abs(np.linalg.norm(c[0] * x + c[1] * y) - 1) <= 1e3 * EPS
    assert np.allclose(slerp_coefficients(x, y, 0.0, Slerp(5e-17)), (1, 0), atol=4 * EPS)
    assert np.allclose(slerp_coefficients(x, y, 1.0, Slerp(5e-17)), (0, 1), atol=4 * EPS)


def test_slerp_of_special_vectors():
    straight = Slerp(collinear=5e-17)
    x = np.array([3.0, 4.0])
    assert slerp_coefficients(x, 2 * x, 0.25, straight) == (0.75, 0.25), "parallel: straight"
    assert slerp_coefficients(x, -x, 0.25, straight) == (0.75, 0.25), "antipodal: no arc is meant, straight"
    half = slerp_coefficients(np.array([1.0, 0]), np.array([0, 5.0]), 0.5, straight)
    assert np.allclose(half, np.sqrt(0.5), atol=2 * EPS), "a right angle, whatever the lengths"
    assert np.allclose(slerp_coefficients(x, 0 * x, 0.5, straight), np.sqrt(0.5), atol=2 * EPS), "zero: a right angle"


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_tsv_adds_up_low_rank_updates_in_orthogonal_directions(seed):
    """Two updates of rank 2 with orthogonal column and row spaces lose nothing: U⊥ = U, V⊥ = V."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((n, 4)))[0] for n in (6, 5))
    parts = [(u[:, k] * rng.uniform(1, 2, 2)) @ v[:, k].T for k in (slice(0, 2), slice(2, 4))]
    base = {"w": np.zeros((6, 5))}
    got = merge(base, [{"w": p} for p in parts], "tsv").tensors["w"]
    assert np.max(np.abs(got - sum(parts))) <= limit(got, roundings=400)


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6), members=st.integers(2, 4))
def test_cart_of_full_rank_or_of_two_members_is_the_mean(seed, members):
    base, models = draw(np.random.default_rng(seed), members)
    mean = {n: np.mean([m[n] for m in models], axis=0) for n in base}
    assert gap(merge(base, models, SETTINGS["cart"].tuned(rank=1.0, scale=3.0)).tensors, mean) <= limit(
        *mean.values(), roundings=2000
    ), "Σ (δ_i − mean) = 0"
    two = merge(base, models[:2], SETTINGS["cart"].tuned(scale=3.0)).tensors["w"]
    want = (models[0]["w"] + models[1]["w"]) / 2
    assert np.max(np.abs(two - want)) <= limit(want, roundings=2000), "δ_1 − mean = −(δ_2 − mean), and so are the cuts"


@given(seed=st.integers(0, 10**6), rank=st.integers(1, 3))
@settings(max_examples=10)
def test_polar_factors_are_partial_isometries(seed, rank):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((6, rank)) @ rng.standard_normal((rank, 4))
    p = polar(x)
    assert np.max(np.abs(p @ p.T @ p - p)) <= limit(p, roundings=400)
    assert abs(np.vdot(p, x) - triples(x)[1].sum()) <= limit(triples(x)[1], roundings=400), "⟨P, X⟩ is the nuclear norm"


# --- Spaces -------------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), members=st.integers(2, 4), rank=st.integers(1, 3))
def test_every_space_gives_the_updates_back(seed, members, rank):
    rng = np.random.default_rng(seed)
    found = adapters(rng, members, rank)
    updates = [a.update("w") for a in found]
    for space in (knots(updates), knots(updates, basis=True), core([a.factors("w") for a in found])):
        for coordinates, update in zip(space.members, updates, strict=True):
            assert np.max(np.abs(space.back(coordinates) - update)) <= limit(update, roundings=400)


@pytest.mark.parametrize("name", ["task-arithmetic", "linear-average"])
@pytest.mark.parametrize("space", ["knots", "knots-basis", "core"])
def test_what_is_linear_is_the_same_in_every_space(name, space):
    rng = np.random.default_rng(1)
    base, _ = draw(rng)
    found = adapters(rng, 3)
    setting = replace(SETTINGS[name], of="updates")
    one, two = (merge(base, found, setting.tuned(space=s), weights=[1, 2, -0.5]).tensors for s in ("full", space))
    assert gap(one, two) <= limit(*one.values(), roundings=400)


def test_a_trimmed_vote_depends_on_the_space():
    rng = np.random.default_rng(1)
    base, _ = draw(rng)
    found, setting = adapters(rng, 3), SETTINGS["core-ties"]
    merged = [merge(base, found, setting.tuned(space=s)).tensors["w"] for s in ("full", "knots", "knots-basis", "core")]
    gaps = [float(np.max(np.abs(x - y))) for i, x in enumerate(merged) for y in merged[:i]]
    assert min(gaps) > 0.01, gaps


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_knots_sees_updates_and_core_sees_their_factors(seed):
    """(B G)(G⁻¹ A) is the same update: KnOTS merges it alike, Core space does not."""
    rng = np.random.default_rng(seed)
    base, _ = draw(rng)
    found = adapters(rng)
    g = np.diag([16.0, 1.0])  # exact to invert
    moved = Adapter({n: b @ g for n, b in found[0].b.items()},
                    {n: np.linalg.inv(g) @ a for n, a in found[0].a.items()}, found[0].scale)  # fmt: skip
    pairs = [merge(base, [first, found[1]], "knots-ties").tensors["w"] for first in (found[0], moved)]
    assert np.max(np.abs(pairs[0] - pairs[1])) <= limit(pairs[0], roundings=2000)
    cores = [core([m.factors("w") for m in (first, found[1])]) for first in (found[0], moved)]
    assert np.max(np.abs(cores[0].back(cores[0].members[0]) - cores[1].back(cores[1].members[0]))) <= limit(
        found[0].update("w"), roundings=2000
    )
    assert np.max(np.abs(np.abs(cores[0].members[0]) - np.abs(cores[1].members[0]))) > 1e-3, "other coordinates"


def test_factor_sum_has_cross_terms():
    """Two copies of b a = 1 at weight 1/2: the updates average to 1, the factors √½(1 + 1) each multiply to 2."""
    one = Adapter({"w": np.ones((1, 1))}, {"w": np.ones((1, 1))})
    assert abs(factor_sum([one, one], [0.5, 0.5]).update("w")[0, 0] - 2) <= 4 * EPS
    with pytest.raises(ValueError, match="tensor 'w': factors are added entry by entry"):
        factor_sum([one, Adapter({"w": np.ones((1, 2))}, {"w": np.ones((2, 1))})], [1, 1])


# --- Accounts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FULL)
def test_every_tensor_is_accounted_for(name):
    base, members = draw(np.random.default_rng(0))
    merged = merge(base, members, name, rng=np.random.default_rng(0))
    assert list(merged.accounting) == list(merged.tensors) == list(base)
    assert sum(merged.totals().values()) == len(base)
    for n, account in merged.accounting.items():
        assert len(account.given) == len(account.used) == 2, f"{name}, {n}: an account for each member"
        assert all(0 <= u <= g for u, g in zip(account.used, account.given, strict=True)), f"{name}, {n}: {account}"


def test_tensors_that_no_adapter_changes_are_said_to_be_the_bases():
    rng = np.random.default_rng(0)
    base, _ = draw(rng)
    merged = merge(base, adapters(rng), "core-ties")
    assert merged.accounting["gain"] == Account("no adapter changes it", "entries", (), ())
    assert np.array_equal(merged.tensors["gain"], base["gain"]) and merged.tensors["gain"] is not base["gain"]


def test_a_tensor_without_account_is_refused():
    with pytest.raises(ValueError, match="without account"):
        Merged({"w": np.zeros(1)}, {})


def test_an_account_counts_what_reached_the_merge():
    rows = [[9.0, 1.0, 8.0, 0.0], [-7.0, 6.0, 1.0, 0.0]]
    merged = merge({"w": np.zeros(4)}, [{"w": np.array(r)} for r in rows], SETTINGS["ties-peft"].tuned(density=0.5))
    # Kept: 9, 8 and −7, 6. Votes: +2, 6, 8, 0. The second member's −7 is voted down.
    assert merged.accounting["w"] == Account("entry by entry", "entries", (3, 3), (2, 1))
    assert merged.tensors["w"].tolist() == [9, 6, 8, 0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FULL)
def test_the_result_has_the_bases_dtype_and_nobodys_memory(name, dtype):
    base, members = draw(np.random.default_rng(0))
    base, *members = ({n: w.astype(dtype) for n, w in m.items()} for m in (base, *members))
    before = [{n: w.copy() for n, w in m.items()} for m in (base, *members)]
    merged = merge(base, members, name, rng=np.random.default_rng(0)).tensors
    for n, w in merged.items():
        assert w.dtype == dtype and w.shape == base[n].shape
        w += 1
    for now, then in zip((base, *members), before, strict=True):
        assert all(np.array_equal(now[n], then[n]) for n in now), f"{name} wrote into its input"


# --- Refusals -----------------------------------------------------------------------------------------------------


def bad_inputs():
    base, (one, two) = draw(np.random.default_rng(0))
    lora = adapters(np.random.default_rng(0))
    odd = Adapter(lora[0].b, {**lora[0].a, "w": np.ones((3, 4))}, 1.0)
    embed = {"embed_tokens": np.zeros((10, 3))}
    avg = "linear-average"
    return {
        "one member": (base, [one], avg, {}, "1 member; merging needs at least two"),
        "no member": (base, [], avg, {}, "0 member"),
        "three ends of an arc": (base, [one, two, one], "slerp", {}, "3 members; an arc has two ends"),
        "missing": (base, [one, {n: w for n, w in two.items() if n != "u"}], avg, {}, "tensor 'u': member 1 lacks it"),
        "unexpected": (base, [{**one, "x": one["w"]}, two], avg, {}, "tensor 'x': member 0 has it"),
        "shape": (base, [{**one, "w": np.zeros((4, 6))}, two], avg, {}, "tensor 'w': member 0 has shape (4, 6), base"),
        "vocabulary": (embed, [embed, {"embed_tokens": np.zeros((11, 3))}], avg, {}, "different vocabularies"),
        "not finite": (base, [one, {**two, "u": two["u"] * np.nan}], avg, {}, "tensor 'u' of member 1: not finite"),
        "infinite base": ({**base, "w": base["w"] / 0.0}, [one, two], avg, {}, "tensor 'w' of base: not finite"),
        "integers": (base, [one, {**two, "gain": np.zeros(5, int)}], avg, {}, "tensor 'gain' of member 1: dtype int64"),
        "weights": (base, [one, two], avg, {"weights": [1]}, "weights of shape (1,) for 2 members"),
        "weight": (base, [one, two], avg, {"weights": [1, np.inf]}, "weight of member 1 is not finite"),
        "sum": (base, [one, two], avg, {"weights": [1, -1]}, "sum to 0"),
        "arc": (base, [one, two], "slerp", {"weights": [1, -1]}, "sum to 0"),
        "generator": (base, [one, two], "dare", {}, "pass rng="),
        "name": (base, [one, two], "tie", {}, "no merging operator 'tie'"),
        "core of models": (base, [one, two], "core-ties", {}, "give Adapters"),
        "mixed": (base, [lora[0], two], avg, {}, "member 1 is a model"),
        "ranks": (base, [lora[0], odd], "core-ties", {}, "tensor 'w': ranks of B and A of member 1 differ"),
        "half an adapter": (base, [lora[0], Adapter({"w": lora[1].b["w"]}, {"w": lora[1].a["w"]})], avg, {},
                            "tensor 'u': not every adapter has B and A for it (member 1)"),
        "foreign adapter": ({"u": base["u"]}, lora, avg, {}, "tensor 'w': B A of member 0 has shape (6, 4), base: no"),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("case", range(21))
def test_bad_input_is_refused_in_one_line_that_names_it(case):
    with np.errstate(divide="ignore", invalid="ignore"):
        what, (base, members, setting, options, message) = list(bad_inputs().items())[case]
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        merge(base, members, setting, **options)
    assert "\n" not in str(caught.value), what


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, float("nan")])
def test_densities_outside_the_unit_interval_are_refused(density):
    for make in (lambda d: Trim("largest", d), lambda d: Cart(d, 1.0), lambda d: SETTINGS["ties"].tuned(density=d)):
        with pytest.raises(ValueError, match=r"outside \(0, 1\]"):
            make(density)


def test_tuning_what_a_setting_does_not_have_is_refused():
    with pytest.raises(ValueError, match="linear-average: has no density to tune"):
        SETTINGS["linear-average"].tuned(density=0.5)
    with pytest.raises(ValueError, match="only updates have a space"):
        SETTINGS["slerp"].tuned(space="knots")
    with pytest.raises(ValueError, match="no space 'moon'"):
        SETTINGS["ties"].tuned(space="moon")
    assert SETTINGS["ties"].tuned(scale=0.3, density=0.5).rule.trim.density == 0.5
    assert isinstance(SETTINGS["tsv"].tuned(space="core").rule, Tsv)


def test_large_finite_values_are_not_called_infinite():
    base = {"w": np.full(3, 1e308)}
    assert np.isfinite(merge(base, [base, base], "linear-average").tensors["w"]).all()
