"""Merge attacks on members whose best merge is known: each finds what it can reach, and only that."""

import numpy as np
import pytest

from lockref.attacks.layer_scales import group_of, layer_scales
from lockref.attacks.merging_grid import Members, best
from lockref.attacks.nominal_merge import nominal_merge
from lockref.attacks.operator_merge import operator_merge
from lockref.attacks.projected_merge import projected_merge
from lockref.attacks.recovery import recover
from lockref.attacks.shared_scale import shared_scale
from lockref.attacks.tensor_subset import part_of, tensor_subset
from lockref.locks.dlr_training import Recipe
from lockref.merging import SETTINGS, Adapter, Slerp, merge

EPS = float(np.finfo(np.float64).eps)
NAMES = ("embed", "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight")
RNG = np.random.default_rng(5)
BASE, PROTECTED, OTHER = ({n: RNG.standard_normal((2, 3)) for n in NAMES} for _ in range(3))
MEMBERS = Members(BASE, PROTECTED, (OTHER,))


def wants(scales):
    """A score whose least value is at base + p · protected + o · other, with (p, o) for each tensor."""
    want = {n: BASE[n] + p * PROTECTED[n] + o * OTHER[n] for n, (p, o) in scales.items()}
    return lambda t: float(sum(np.sum((t[n] - w) ** 2) for n, w in want.items()))


def everywhere(p, o):
    return wants(dict.fromkeys(NAMES, (p, o)))


def test_the_shared_scale_is_found_and_a_nominal_one_is_out_of_its_reach():
    found = shared_scale(MEMBERS, everywhere(0.4, 0.4))
    assert found.found["scale"] == 0.4 and found.found["score"] < 1e-20 and found.found["tried"] == 10
    assert shared_scale(MEMBERS, everywhere(1.0, 0.3)).found["score"] > 0.1
    nominal = nominal_merge(MEMBERS, everywhere(1.0, 0.3))
    assert nominal.found["scale"] == 0.3 and nominal.found["score"] < 1e-20
    assert nominal_merge(MEMBERS, everywhere(0.4, 0.4)).found["score"] > 0.1


def test_a_projected_merge_leaves_the_protected_direction_at_one():
    aligned = Members(BASE, PROTECTED, [{n: OTHER[n] + 0.6 * PROTECTED[n] for n in NAMES}])
    tensors = projected_merge(aligned, everywhere(0.8, 0.4)).guesses[0]
    change = {n: tensors[n] - BASE[n] for n in NAMES}
    own = sum(np.vdot(u, u) for u in PROTECTED.values())
    along = sum(np.vdot(change[n], PROTECTED[n]) for n in NAMES) / own
    assert abs(along - 1) <= 100 * EPS  # sums of 18 products, some of them cancelling, three times over
    nominal = nominal_merge(aligned, everywhere(0.8, 0.4)).guesses[0]
    assert abs(sum(np.vdot(nominal[n] - BASE[n], PROTECTED[n]) for n in NAMES) / own - 1) > 0.01
    rho = MEMBERS.overlap
    found = projected_merge(MEMBERS, everywhere(1 - 0.3 * rho, 0.3)).found
    assert found["scale"] == 0.3 and found["overlap"] == rho and found["score"] < 1e-20
    assert Members(BASE, {n: 0 * w for n, w in BASE.items()}, (OTHER,)).overlap == 0


def test_scales_of_layers_are_found_one_by_one():
    scales = dict(zip(NAMES, ((1.0, 0.0), (0.75, 0.5), (0.25, 1.0)), strict=True))
    found = layer_scales(MEMBERS, wants(scales), (0.5, 0.5), rounds=8)
    assert found.found["scales"] == {group_of(n): list(s) for n, s in scales.items()}
    assert found.found["score"] < 1e-20
    with pytest.raises(ValueError, match="score at the start"):
        layer_scales(MEMBERS, lambda _: float("nan"), (1.0, 1.0))


def test_the_protected_update_can_be_kept_where_it_is():
    scales = dict(zip(NAMES, ((1.0, 0.0), (0.75, 0.5), (0.25, 1.0)), strict=True))
    found = layer_scales(MEMBERS, wants(scales), (1.0, 0.5), rounds=8, moves=(1,)).found["scales"]
    assert [p for p, _ in found.values()] == [1.0] * len(found)
    assert {o for _, o in found.values()} != {0.5}


def test_a_subset_is_found_part_by_part():
    scales = dict(zip(NAMES, ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0)), strict=True))
    found = tensor_subset(MEMBERS, wants(scales)).found
    assert (found["rest"], found["attention"], found["mlp"]) == ("both", "protected", "others")
    assert found["tried"] == 27 and found["score"] < 1e-20
    assert part_of("model.layers.0.self_attn.q_norm.weight") == "rest"


def test_recovery_trains_every_tensor():
    want = {n: w + 0.1 for n, w in BASE.items()}

    def loss(params, target):
        return sum(np.sum((params[n] - target[n]) * (params[n] - target[n])) for n in target)

    found = recover(BASE, loss, lambda _: want, Recipe(100, 0.02))
    assert len(found.found["losses"]) == 100
    assert loss(found.guesses[0], want) < 0.01 * loss(BASE, want)
    assert all(np.array_equal(w, b) for w, b in zip(BASE.values(), MEMBERS.base.values(), strict=True))


def test_a_score_that_is_not_finite_never_wins():
    tries = [({"k": k}, {"x": np.array(v)}) for k, v in enumerate((np.nan, 2.0, -np.inf, 1.0, np.inf))]
    assert best("test", lambda t: float(t["x"]), tries).found == {"k": 3, "score": 1.0, "tried": 5}
    with pytest.raises(ValueError, match="none of 1 candidates has a finite score"):
        best("test", lambda t: float("nan"), tries[:1])


def test_members_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="no other expert"):
        Members(BASE, PROTECTED, ())
    with pytest.raises(ValueError, match="update 1 has missing for embed"):
        Members(BASE, PROTECTED, ({n: w for n, w in OTHER.items() if n != "embed"},))
    with pytest.raises(ValueError, match=r"update 0 has \(3, 2\) for embed"):
        Members(BASE, {**PROTECTED, "embed": np.ones((3, 2))}, (OTHER,))
    with pytest.raises(ValueError, match="differ in more"):
        Members.of_models(BASE, {**PROTECTED, "more": np.ones(1)}, [OTHER])


def test_models_and_updates_are_the_same_members():
    models = [{n: BASE[n] + u[n] for n in NAMES} for u in (PROTECTED, OTHER)]
    got = Members.of_models(BASE, models[0], models[1:]).merged(1.0, 0.5)
    for n, w in MEMBERS.merged(1.0, 0.5).items():
        assert np.allclose(got[n], w, rtol=0, atol=1e-14)  # a subtraction and an addition of numbers below 4


WIDE = {"a": (6, 5), "b": (4, 7)}


def drawn(rng):
    return {n: rng.standard_normal(size) for n, size in WIDE.items()}


def adapter(rng):
    b, a = (
        {n: rng.standard_normal((size[0], 2)) for n, size in WIDE.items()},
        {n: rng.standard_normal((2, size[1])) for n, size in WIDE.items()},
    )
    return Adapter(b, a, 0.5)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "linear-sum"])
def test_an_operator_is_merged_at_every_scale_as_merge_itself_does(name):
    """Scales enter affinely, so two merges give the others; random trims must not be drawn again between them."""
    rng, setting = np.random.default_rng(8), SETTINGS[name]
    base = drawn(rng)
    members = [adapter(rng) if setting.space != "full" else drawn(rng) for _ in range(2)]
    seen = []
    found = operator_merge(base, members, setting, lambda t: seen.append(t) or -len(seen), (0.3, 1.0, 1.7), seed=4)
    scaled = setting.of == "updates" and not isinstance(setting.rule, Slerp)
    scales = (0.3, 1.0, 1.7) if scaled else (1.0,)
    assert found.found["scale"] == scales[-1] and found.found["tried"] == len(seen) == len(scales)
    for s, got in zip(scales, seen, strict=True):
        tuned = setting.tuned(scale=s) if scaled else setting
        want = merge(base, members, tuned, rng=np.random.default_rng(4)).tensors
        for n, w in want.items():
            size = np.abs(base[n]).max() + np.abs(seen[-1][n]).max()
            assert np.max(np.abs(got[n] - w)) <= 64 * EPS * size, f"{name}, scale {s}: {n}"
