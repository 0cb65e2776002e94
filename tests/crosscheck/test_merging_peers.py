"""lockref.merging against mergekit and peft, on the zoo: to round-off, or the difference is named by a vector.

Updates between bfloat16 models tie in magnitude all the time. Which of the ties a code keeps is not specified, so
trimming is compared twice: on updates whose magnitudes all differ, and on the zoo as it is, up to such ties.
"""

import warnings

import numpy as np
import pytest
import torch

from lockcross.merging import DENSE, METHODS, merge_directories, merge_tensor
from lockref.merging import SETTINGS, Adapter, entry_factors, merge
from lockref.merging.settings import Entries
from lockref.merging.spaces import factor_sum
from lockref.models.checkpoint_io import load_checkpoint, save_checkpoint
from lockref.models.zoo import zoo_path

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mergekit import sparsify
    from peft import LoraConfig, get_peft_model
    from peft.utils import merge_utils

UNIT32, UNIT64 = 2.0**-24, 2.0**-53
DENSITY, WEIGHTS = 0.2, (1.0, 0.5)
PEFT = {
    "task-arithmetic": lambda x, w: merge_utils.task_arithmetic(x, w),
    "magnitude-prune": lambda x, w: merge_utils.magnitude_prune(x, w, DENSITY),
    "ties-peft": lambda x, w: merge_utils.ties(x, w, DENSITY),
    "ties-peft-count": lambda x, w: merge_utils.ties(x, w, DENSITY, "frequency"),
    "dare": lambda x, w: merge_utils.dare_linear(x, w, DENSITY),
    "dare-ties": lambda x, w: merge_utils.dare_ties(x, w, DENSITY),
}


@pytest.fixture(scope="module")
def zoo():
    base, *members = (load_checkpoint(zoo_path(name), np.float32).tensors for name in ("base", "add", "reverse"))
    return base, members


@pytest.fixture(scope="module")
def updates(zoo):
    """The zoo's updates on a base of zeros, moved apart by a thousandth so that no two magnitudes tie."""
    base, members = zoo
    rng = np.random.default_rng(0)

    def apart(update):
        size = 1e-3 * (np.std(update) or 1)
        return (update + size * rng.standard_normal(update.shape)).astype(np.float32)

    moved = [{n: apart(m[n] - w) for n, w in base.items()} for m in members]
    return {n: np.zeros_like(w) for n, w in base.items()}, moved


def tuned(name):
    rule = SETTINGS[name].rule
    return SETTINGS[name].tuned(density=DENSITY) if isinstance(rule, Entries) and rule.trim else SETTINGS[name]


@pytest.fixture
def same_masks(monkeypatch):
    """Lets the peer drop what our generator drops: both draw tensor by tensor, member by member."""

    def plant(seed, names, base, members):
        rng = np.random.default_rng(seed)
        masks = [mask for n in names for mask in rng.random((members, base[n].size)) < DENSITY]
        left = iter(masks)

        def bernoulli(input, **_):
            return torch.from_numpy(next(left).reshape(tuple(input.shape))).to(input.dtype)

        monkeypatch.setattr(torch, "bernoulli", bernoulli)

    return plant


def round_off(setting, base, members, unit, seed=0):
    """By tensor: both sides may err by (T + 5) roundings of Σ |f_i x_i|, and one of the sum with the base.

    Rescaling to the l1 norm divides two sums of n magnitudes: 2 √n roundings more (Higham & Mary 2019).
    """
    factors = entry_factors(base, members, setting, weights=WEIGHTS, rng=np.random.default_rng(seed))
    limits = {}
    for name, f in factors.items():
        start = 0 if setting.of == "parameters" else base[name]
        terms = sum(np.abs(k * (m[name] - start)) for k, m in zip(f, members, strict=True))
        norm = 2 * base[name].size ** 0.5 if setting.rule.trim and setting.rule.trim.rescale == "l1" else 0
        limits[name] = 2 * unit * ((len(members) + 5 + norm) * terms + np.abs(base[name]) + np.abs(start))
    return limits


def disagreeing(got, want, limits):
    return sum(int(np.sum(np.abs(got[n] - want[n]) > limits[n])) for n in want)


ELEMENTWISE = [name for name in METHODS if "slerp" not in name]


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_mergekit_computes_the_same_where_magnitudes_differ(name, updates, same_masks):
    base, members = updates
    setting = tuned(name)
    want = merge(base, members, setting, weights=WEIGHTS, rng=np.random.default_rng(0)).tensors
    same_masks(0, list(base), base, 2)
    got = {n: merge_tensor(name, base[n], [m[n] for m in members], WEIGHTS, DENSITY) for n in base}
    wrong = disagreeing(got, want, round_off(setting, base, members, UNIT32))
    assert not wrong, f"{name}: {wrong} entries of mergekit's and ours differ by more than round-off"


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_mergekit_computes_the_same_on_the_zoo_but_for_magnitudes_that_tie(name, zoo, same_masks):
    base, members = zoo
    setting = tuned(name)
    want = merge(base, members, setting, weights=WEIGHTS, rng=np.random.default_rng(0)).tensors
    limits = round_off(setting, base, members, UNIT32)
    same_masks(0, list(base), base, 2)
    tied = 0
    for n, x in base.items():
        got = merge_tensor(name, x, [m[n] for m in members], WEIGHTS, DENSITY)
        off = np.abs(got - want[n]) > limits[n]
        if name == "ties-mergekit":
            at = np.zeros(x.shape, bool)
            for m in members:
                size = np.abs(m[n] - x)
                count = max(1, int(DENSITY * x.size))
                at |= size == np.partition(size.ravel(), x.size - count)[x.size - count]
            tied += int(np.sum(off & at))
            off &= ~at
        assert not off.any(), f"{name}, tensor {n}: {int(off.sum())} entries differ by more than round-off"
    if name == "ties-mergekit":
        assert tied, "the zoo's updates tie in magnitude; where mergekit keeps others of them, this must be seen"


def arc_round_off(setting, base, members, unit):
    """By tensor: a cosine errs by √n roundings (Higham & Mary 2019), its angle and coefficients by that over sin Ω."""
    limits = {}
    for n, x in base.items():
        ends = [m[n] - (x if setting.of == "updates" else 0) for m in members]
        sine = max((1 - min(1.0, cosine(*ends) ** 2)) ** 0.5, 0.03)  # 0.9995 and above are straight, to mergekit
        limits[n] = unit * (4 * x.size**0.5 / sine**2 * (np.abs(ends[0]) + np.abs(ends[1])) + 4 * np.abs(x))
    return limits


def cosine(x, y):
    return float(np.vdot(x, y) / (np.linalg.norm(x) * np.linalg.norm(y) or 1))


@pytest.mark.parametrize("name", ["slerp", "slerp-updates"])
def test_mergekit_takes_the_same_arc(name, zoo):
    """In float64."""
    base, members = ({n: w.astype(float) for n, w in zoo[0].items()}, [{n: w.astype(float) for n, w in m.items()}
                                                                      for m in zoo[1]])  # fmt: skip
    want = merge(base, members, name, weights=WEIGHTS).tensors
    limits, arcs = arc_round_off(SETTINGS[name], base, members, UNIT64), 0
    for n, x in base.items():
        got = merge_tensor(name, x, [m[n] for m in members], WEIGHTS, DENSITY)
        arcs += abs(cosine(*(m[n] - (x if name == "slerp-updates" else 0) for m in members))) < 0.9995
        assert np.all(np.abs(got - want[n]) <= limits[n]), f"{name}, tensor {n}: {np.max(np.abs(got - want[n]))}"
    assert arcs, "no tensor was on an arc"


@pytest.fixture(scope="module")
def directories(updates, tmp_path_factory):
    """`updates` as checkpoint directories in float32: the base of zeros first."""
    (base, members), config = updates, load_checkpoint(zoo_path("base")).config
    folder = tmp_path_factory.mktemp("members")
    for name, tensors in zip(("base", "0", "1"), (base, *members), strict=True):
        save_checkpoint(folder / name, config, tensors, "float32")
    return folder / "base", [folder / "0", folder / "1"]


@pytest.mark.parametrize("name", METHODS)
def test_mergekits_own_call_on_directories_gives_the_same_model(name, updates, directories, monkeypatch, tmp_path):
    """From directories to a directory; where entries are dropped at random, both drop the same ones."""
    base, members = updates
    rng = np.random.default_rng(0)
    dropped = {m[n].tobytes(): rng.random(w.size) < DENSITY for n, w in base.items() for m in members}
    rescaled = sparsify.rescaled_masked_tensor

    def same(tensor, mask, norm):
        if name.startswith("dare"):
            mask = torch.from_numpy(dropped[tensor.numpy().tobytes()].reshape(mask.shape)).to(mask.dtype)
        return rescaled(tensor, mask, norm)

    monkeypatch.setattr(sparsify, "rescaled_masked_tensor", same)
    theirs, paths = directories
    merge_directories(name, theirs, paths, tmp_path / "out", WEIGHTS, DENSITY, "float32")
    got = load_checkpoint(tmp_path / "out", np.float32).tensors
    setting = tuned(name)
    want = merge(base, members, setting, weights=WEIGHTS, rng=np.random.default_rng(0)).tensors
    assert got.keys() == want.keys()
    bound = arc_round_off if "slerp" in name else round_off
    limits = bound(setting, base, members, UNIT32)
    assert not disagreeing(got, want, limits)
    fault = "slerp-updates" if name in ("linear-average", "linear-sum", "task-arithmetic") else "task-arithmetic"
    assert disagreeing(merge(base, members, fault, weights=WEIGHTS).tensors, want, limits) > 100, fault


@pytest.mark.parametrize("name", PEFT)
def test_peft_computes_the_same_where_magnitudes_differ(name, updates, same_masks):
    base, members = updates
    setting = tuned(name)
    want = merge(base, members, setting, weights=WEIGHTS, rng=np.random.default_rng(0)).tensors
    same_masks(0, list(base), base, 2)
    got = {
        n: PEFT[name]([torch.from_numpy(m[n]) for m in members], torch.tensor(WEIGHTS, dtype=torch.float32)).numpy()
        for n in base
    }
    wrong = disagreeing(got, want, round_off(setting, base, members, UNIT32))
    assert not wrong, f"{name}: {wrong} entries of peft's and ours differ by more than round-off"


def test_a_wrong_variant_is_seen(updates):
    """Each TIES disagrees with mergekit's outside round-off but its own namesake setting."""
    base, members = updates
    got = {n: merge_tensor("ties-mergekit", base[n], [m[n] for m in members], WEIGHTS, DENSITY) for n in base}
    limits = round_off(tuned("ties-mergekit"), base, members, UNIT32)
    for name in ("ties", "ties-sum", "ties-peft", "ties-peft-count", "magnitude-prune"):
        assert disagreeing(got, merge(base, members, tuned(name), weights=WEIGHTS).tensors, limits) > 100, name


# --- The vectors that name the differences: the peers compute what their settings say ------------------------------


def ours(name, rows, weights, density):
    setting = SETTINGS[name]
    setting = setting.tuned(density=density) if setting.rule.trim else setting
    zero = np.zeros(len(rows[0]))
    return merge({"w": zero}, [{"w": np.array(r, float)} for r in rows], setting, weights=weights).tensors["w"]


def by_mergekit(rows, weights, density):
    rows = [np.array(r, float) for r in rows]
    return merge_tensor("ties-mergekit", np.zeros_like(rows[0]), rows, weights, density)


def by_peft(rows, weights, density, votes="total"):
    x = [torch.tensor(r, dtype=torch.float64) for r in rows]
    return merge_utils.ties(x, torch.tensor(weights, dtype=torch.float64), density, votes).numpy()


ONE_TO_TEN = [list(range(1, 11)), [0] * 10]
PLANTED = {
    # rows, weights, density; the entry to look at; mergekit, peft, peft by frequency, and the authors' variant
    "one tensor of ten, the greatest fifth": (ONE_TO_TEN, (1, 1), 0.2, 7, 0, 0, 0, 8),
    "a fifth of three entries is none": ([[1, 2, 3], [0, 0, 0]], (1, 1), 0.2, 2, 3, 0, 0, 3),
    "weights vote": ([[2.0, 1], [-3.0, 1]], (1, 0.5), 1.0, 0, 2, -1.5, 2, -1.5),
    "weights divide": ([[2.0, 1], [4.0, 1]], (1, 0.5), 1.0, 0, 8 / 3, 2, 2, 2),
    "mass or count": ([[1.0, 1], [1.0, 1], [-3.0, 1]], (1, 1, 1), 1.0, 0, -3, -3, 1, -3),
    "the sign of a tie": ([[1.0, -3], [-1.0, -3]], (1, 1), 1.0, 0, 1, 1, 1, -1),
}


@pytest.mark.filterwarnings("ignore:The density")
@pytest.mark.parametrize("case", PLANTED)
def test_the_peers_differ_where_the_settings_say(case):
    rows, weights, density, at, *want = PLANTED[case]
    found = [
        (by_mergekit(rows, weights, density)[at], ours("ties-mergekit", rows, weights, density)[at]),
        (by_peft(rows, weights, density)[at], ours("ties-peft", rows, weights, density)[at]),
        (by_peft(rows, weights, density, "frequency")[at], ours("ties-peft-count", rows, weights, density)[at]),
    ]
    for who, (theirs, mine), expected in zip(("mergekit", "peft", "peft by count"), found, want, strict=False):
        assert abs(theirs - expected) <= 4 * UNIT64 * abs(expected), f"{case}: {who} gives {theirs}, want {expected}"
        assert abs(mine - expected) <= 4 * UNIT64 * abs(expected), f"{case}: our {who} gives {mine}, want {expected}"
    author = ours("ties", rows, weights, density)[at]
    assert abs(author - want[3]) <= 4 * UNIT64 * abs(want[3]), f"{case}: the authors' variant gives {author}"


def test_pefts_linear_adds_up_factors_not_updates():
    class One(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 3, bias=False)

        def forward(self, x):
            return self.layer(x)

    rng = np.random.default_rng(0)
    adapters = [Adapter({"w": rng.standard_normal((3, 2))}, {"w": rng.standard_normal((2, 4))}, 0.5) for _ in range(2)]
    config = LoraConfig(r=2, lora_alpha=1, target_modules=["layer"])
    model = get_peft_model(One().double(), config, adapter_name="0")
    model.add_adapter("1", config)
    layer = model.base_model.model.layer
    for name, adapter in zip(("0", "1"), adapters, strict=True):
        layer.lora_A[name].weight.data = torch.from_numpy(adapter.a["w"])
        layer.lora_B[name].weight.data = torch.from_numpy(adapter.b["w"])
    model.add_weighted_adapter(["0", "1"], [1.0, -0.5], "sum", combination_type="linear")
    got = (layer.scaling["sum"] * layer.lora_B["sum"].weight @ layer.lora_A["sum"].weight).detach().numpy()
    want = factor_sum(adapters, [1.0, -0.5]).update("w")
    linear = adapters[0].update("w") - 0.5 * adapters[1].update("w")
    sizes = [
        abs(w * 0.5) ** 0.5 * np.abs(x) for w, m in zip((1, -0.5), adapters, strict=True) for x in (m.b["w"], m.a["w"])
    ]
    limit = 2 * UNIT32 * (sizes[0] + sizes[2]) @ (sizes[1] + sizes[3])  # peft rounds √w to float32, for B and for A
    assert np.all(np.abs(got - want) <= limit), f"got {got}, want {want}"
    assert np.max(np.abs(got - linear)) > 0.1, "here the factors' sum is not the updates' sum"


def test_the_dense_settings_are_the_ones_without_density():
    assert all(
        (name in DENSE) == (not isinstance(r := SETTINGS[name].rule, Entries) or r.trim is None) for name in METHODS
    )
