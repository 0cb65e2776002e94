"""Cells of the stored parity table run again: the same figures where they are exact, and within their tolerances."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lockcross import float64, merges, parity, parity_locks
from lockcross import qwen3 as locked
from lockproofs.experiments import full_parity as table
from lockproofs.experiments import full_size
from lockproofs.experiments.store import stored
from lockproofs.hub_sizes import HUB
from lockproofs.parity_cases import ORDER, TINY, case
from lockproofs.parity_locks import BATCH, GRADIENTS, ROWS, TARGET, distilled, dropped, healed, healing, tuned
from lockref.locks import trap2_training
from lockref.locks.dlr_training import Recipe
from lockref.merging import merge
from lockref.models import dlrnet
from lockref.models.dlrnet import DLRConfig

AGAIN = [
    {"layer": "outputs", "model": "tiny", "lock": "projection and dlr", "precision": "float64"},
    {"layer": "outputs", "model": "tiny tied", "lock": "none", "precision": "twin"},
    {"layer": "outputs", "model": "tiny", "lock": "dlr on the stream", "precision": "bfloat16"},
    {"layer": "outputs", "model": "tiny", "lock": "taylor", "precision": "float32"},
    {"layer": "outputs", "model": "tiny", "lock": "taylor", "precision": "twin"},
    {"layer": "stored bytes", "model": "tiny tied", "lock": "dlr", "dtype": "float32", "trains": "attention"},
    {"layer": "stored bytes", "model": "tiny", "lock": "taylor", "dtype": "float64", "trains": "everything"},
    {"layer": "stored bytes", "model": "tiny", "lock": "taylor", "dtype": "float32", "trains": "LoRA on attention"},
    {"layer": "stored bytes", "model": "tiny", "lock": "dlr on the stream", "dtype": "bfloat16", "trains": "MLP"},
    {"layer": "stored bytes", "model": "tiny tied", "lock": "none", "dtype": "bfloat16", "trains": "attention"},
    {"layer": "attackers", "norm": "rms_gain", "activation": "tanh", "way": "inverted", "segments": 3},
    {"layer": "keys", "family": "topk", "draw": 3},
    {"layer": "keys", "family": "topk-planes", "draw": 1},
    {"layer": "merges", "operator": "ties"},
    {"layer": "merges", "operator": "dare"},
    {"layer": "merges", "operator": "dare-ties-mergekit"},
    {"layer": "distillation", "phase": 1, "norm": "rms_gain"},
    {"layer": "distillation", "phase": 2, "norm": "rms_gain"},
    {"layer": "fine-tuning", "trains": "attention"},
    {"layer": "trap2 of LoRA", "weighting": "1/s", "s": 1.7},
    {"layer": "trap2", "weighting": "1/sqrt(s)", "s": 0.5},
]
EXACT = ("tensors", "torch_bytes", "ledger_bytes", "unnamed_bytes", "predicted_bytes", "torch_bytes_at_most", "k",
         "k_found", "k_found_torch", "unnamed", "buffers", "steps")  # fmt: skip
RELATIVE = {"float64": 1e-12, "twin": 1e-12, "float32": 1e-4, "bfloat16": 0.1}  # of torch's own numbers
ALLOWED = ("gradients", "p", "merged", "losses", "objective")


@pytest.mark.parametrize("cell", AGAIN, ids=lambda cell: " ".join(map(str, cell.values())))
def test_a_cell_of_the_stored_table(cell):
    (row,) = stored("full_parity").where(**cell)
    now = table.measure(cell)
    assert {*now} | {*cell} | {"seconds"} == {*row}
    for name in EXACT:
        assert now.get(name) == row.get(name), name
    for name in ALLOWED:
        if f"allowed_{name}" in now:
            assert now[name] <= now[f"allowed_{name}"], name
    assert now.get("recovered_torch", 0) <= now.get("allowed_p", 0)
    if cell["layer"] == "stored bytes":
        assert now["torch_bytes"] == now["ledger_bytes"] + now["unnamed_bytes"]
    assert now.get("in_tolerances", 0) <= 1 <= now.get("planted_in_tolerances", 1)
    close = RELATIVE[cell.get("precision", "float64")]
    for name in ("torch_loss", "torch_objective", "last"):
        if name in now:
            assert math.isclose(now[name], row[name], rel_tol=close), name


def test_the_full_size_count_again_on_the_meta_device():
    (row,) = stored("full_size").where(what="stored bytes")
    assert parity.published_bytes(HUB[full_size.MODEL], full_size.TOKENS) == row["meta_bytes"] == row["torch_bytes"]


@pytest.mark.parametrize("name", sorted(merges.OPERATORS | merges.DROPPING))
def test_merges_derived_twice_on_random_models(name):
    """Shapes that are not square, equal magnitudes, and tensors that one member leaves alone."""
    assert sorted(merges.OPERATORS | merges.DROPPING) == sorted(table.OPERATORS)
    rng = np.random.default_rng(8)
    shapes = {"tall": (9, 4), "wide": (3, 11), "gain": (7,), "still": (2, 5)}
    base = {n: rng.standard_normal(s) for n, s in shapes.items()}
    members = [{n: w + rng.integers(-3, 4, w.shape) / 4 + 1e-3 * rng.standard_normal(w.shape) for n, w in base.items()}
               for _ in range(2)]  # fmt: skip
    if name not in ("tsv",):  # whose directions are not determined where an update is zero
        members[0]["still"] = base["still"].copy()
    want = merge(base, members, name, weights=[1.0, 1.0], rng=np.random.default_rng(5)).tensors
    masks = [dropped(base, seed) if name in merges.DROPPING else None for seed in (5, 6)]
    got = merges.merged(base, members, name, masks[0])
    for n, w in want.items():
        np.testing.assert_allclose(got[n], w, rtol=0, atol=1e-12)
    assert any(np.max(np.abs(got[n] - base[n])) > 0.1 for n in base)
    if name in merges.DROPPING:
        other = merges.merged(base, members, name, masks[1])
        assert any(np.max(np.abs(other[n] - want[n])) > 0.1 for n in base), "other masks make no difference"


@pytest.mark.parametrize("name", sorted(merges.DROPPING))
def test_a_merge_of_another_density_is_seen_and_masks_belong_to_dare(name, monkeypatch):
    rng = np.random.default_rng(8)
    base, members = {"w": np.zeros((9, 9))}, [{"w": rng.standard_normal((9, 9))} for _ in range(2)]
    want = merge(base, members, name, weights=[1.0, 1.0], rng=np.random.default_rng(5)).tensors["w"]
    monkeypatch.setattr(merges, "DARE_DENSITY", 0.2)
    monkeypatch.setattr(merges, "_same_norm", lambda updates, left: [u * m for u, m in zip(updates, left, strict=True)])
    assert np.max(np.abs(merges.merged(base, members, name, dropped(base, 5))["w"] - want)) > 0.1
    with pytest.raises(ValueError, match="needs masks"):
        merges.merged(base, members, name)
    with pytest.raises(ValueError, match="takes no masks"):
        merges.merged(base, members, "cart", dropped(base))


def test_a_merge_that_forgets_the_majority_is_seen(monkeypatch):
    rng = np.random.default_rng(9)
    base = {"w": np.zeros((6, 6))}
    members = [{"w": rng.standard_normal((6, 6))} for _ in range(2)]
    monkeypatch.setattr(merges, "_mean_of_agreeing", lambda trimmed, sign: torch.stack(trimmed).mean(0))
    got = merges.merged(base, members, "ties-mergekit")["w"]
    assert np.max(np.abs(got - merge(base, members, "ties-mergekit", weights=[1.0, 1.0]).tensors["w"])) > 0.1


def test_a_projection_that_flips_the_other_end_is_seen(monkeypatch):
    tensors = parity_locks.drawn(TINY, 0)
    honest = parity_locks.projected(TINY, tensors, 2, planes=False)["p"]
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda s: eigh(-s))
    assert np.max(np.abs(parity_locks.projected(TINY, tensors, 2, planes=False)["p"] - honest)) > 0.1


def test_a_wrong_step_of_adamw_is_seen():
    net, rng = DLRConfig(6, 3, 2), np.random.default_rng(0)
    start = dlrnet.initialize(net, rng, b_scale=0.5)
    x, y = rng.standard_normal((2, 40, 6))
    recipe = Recipe(6, 1e-2, weight_decay=0.1)
    want = distilled(start, x, y, net, recipe)
    np.testing.assert_allclose(parity_locks.distilled(start, x, y, net, recipe, ROWS), want, rtol=1e-12)
    for wrong in (replace(recipe, weight_decay=0.0), replace(recipe, clip=0.5), replace(recipe, eps=1e-3)):
        off = np.max(np.abs(np.subtract(parity_locks.distilled(start, x, y, net, wrong, ROWS), want)))
        assert off > 1e-8, wrong  # AdamW hardly sees a gradient's scale


def test_a_wrong_phase_2_is_seen():
    config, tensors, locked, net, tokens = healing("rms_gain")
    recipe = Recipe(5, 5e-3, seed=1, weight_decay=0.1)
    want = healed(config, tensors, locked, net, tokens, recipe)

    def off(tensors, recipe):
        got = parity_locks.healed(config, tensors, locked, net, tokens, recipe, BATCH)
        return np.max(np.abs(np.subtract(got, want)))

    assert off(tensors, recipe) < 1e-13
    gains = {n: w * 1.001 if n == "model.norm.weight" else w for n, w in tensors.items()}
    for wrong in ((gains, recipe), (tensors, replace(recipe, weight_decay=0.0)), (tensors, replace(recipe, seed=2))):
        assert off(*wrong) > 1e-8


def test_a_wrong_fine_tune_is_seen():
    config, _, locked, net, tokens = healing("rms_gain")
    recipe = Recipe(5, 5e-3, seed=2)
    want = tuned(config, locked, net, {"self_attn"}, tokens, recipe)

    def off(trains, recipe):
        got = parity_locks.tuned(config, locked, net, trains, tokens, recipe, BATCH)
        return np.max(np.abs(np.subtract(got, want)))

    assert off({"self_attn"}, recipe) < 1e-13
    for wrong in ((None, recipe), ({"mlp"}, recipe), ({"self_attn"}, replace(recipe, seed=1))):
        assert off(*wrong) > 1e-8


def test_an_adapter_scaled_in_both_factors_is_seen(monkeypatch):
    cell, both = {"weighting": "1/s", "s": 0.5}, trap2_training.low_rank_update
    honest = table.measure({"layer": "trap2 of LoRA", **cell})
    assert honest["objective"] <= TARGET and honest["gradients"] <= GRADIENTS
    monkeypatch.setattr(
        trap2_training, "low_rank_update", lambda a, b, s: both({n: s / 2 * w for n, w in a.items()}, b, s)
    )  # α/r = 2 belongs to B alone
    wrong = table.measure({"layer": "trap2 of LoRA", **cell})
    assert wrong["objective"] > 1e6 * TARGET and wrong["gradients"] > 1e6 * GRADIENTS


@pytest.mark.parametrize("planes", [False, True])
def test_a_reference_of_another_origin_tells_torch_no_key(planes):
    tensors = parity_locks.drawn(TINY, 0)
    released = parity_locks.projected(TINY, tensors, 2, planes=planes)["tensors"]
    assert np.all(parity_locks.keyless(TINY, released, tensors, planes=planes)["k"] == 2)
    other = parity_locks.keyless(TINY, released, parity_locks.drawn(TINY, 1), planes=planes)
    assert np.any(other["k"] != 2) and set(other["tensors"]) == set(tensors)


@pytest.mark.parametrize("basis", sorted(locked.POLYNOMIALS))
def test_the_twin_s_polynomials_are_the_module_s_and_another_basis_is_seen(basis):
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[None]
    for n, phi in zip(range(9), locked.POLYNOMIALS[basis](x), strict=False):
        own = np.polynomial.polynomial.polyval(x.numpy(), float64._POWERS[basis](n))
        assert np.max(np.abs(own - phi.numpy())) <= 1e-12 * max(1, np.max(np.abs(own)))
    given = case("tiny", "taylor")
    want = given.answer()["logits"]
    gap = parity.twin(given.config, given.tensors, (ORDER, basis), given.tokens)["logits"] - want
    assert (np.max(np.abs(gap)) <= TARGET * np.max(np.abs(want))) == (basis == given.mlp[1])


def bytes_of(lock, dtype, trains):
    row = table.measure({"layer": "stored bytes", "model": "tiny", "lock": lock, "dtype": dtype, "trains": trains})
    return row["torch_bytes"] - row["ledger_bytes"] - row["unnamed_bytes"]


def test_a_recurrence_that_keeps_other_products_is_seen(monkeypatch):
    def powers_of_twice(x):
        before, now = x, torch.ones_like(x)
        while True:
            yield now
            before, now = now, 2 * (x * now) - before

    monkeypatch.setitem(locked.POLYNOMIALS, "chebyshev", powers_of_twice)
    assert bytes_of("taylor", "float32", "everything") < 0


def test_a_softmax_in_bfloat16_is_seen(monkeypatch):
    assert bytes_of("none", "bfloat16", "everything") == 0
    monkeypatch.setattr(float64.official, "eager_attention_forward", float64._attention)
    assert bytes_of("none", "bfloat16", "everything") == -4 * 2 * 2 * 6 * 30**2  # layers, rows, heads, positions


def test_an_adapter_more_is_seen(monkeypatch):
    honest = parity.with_adapters
    monkeypatch.setattr(parity, "with_adapters", lambda m, names, *args: honest(m, (*names, "k_proj"), *args))
    assert bytes_of("none", "float32", "LoRA on q, v") > 0


def test_another_device_that_is_not_there_is_refused(capsys):
    if torch.cuda.is_available():
        assert {c["layer"] for c in table.cells("cuda")} == {"environment", "outputs", "stored bytes"}
    else:
        assert table.main(["--device", "cuda"]) == 3
        assert "there is no CUDA device here" in capsys.readouterr().err
