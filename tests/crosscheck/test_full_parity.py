"""Cells of the stored parity table run again: the same figures where they are exact, and within their tolerances."""

import math

import numpy as np
import pytest
import torch

from lockcross import merges, parity
from lockproofs.experiments import full_parity as table
from lockproofs.experiments import full_size
from lockproofs.experiments.store import stored
from lockproofs.hub_sizes import HUB
from lockproofs.parity_cases import TINY
from lockref.merging import merge
from lockref.models.dlrnet import DLRConfig

AGAIN = [
    {"layer": "outputs", "model": "tiny", "lock": "projection and dlr", "precision": "float64"},
    {"layer": "outputs", "model": "tiny tied", "lock": "none", "precision": "twin"},
    {"layer": "outputs", "model": "tiny", "lock": "dlr on the stream", "precision": "bfloat16"},
    {"layer": "outputs", "model": "tiny", "lock": "taylor", "precision": "float32"},
    {"layer": "stored bytes", "model": "tiny tied", "lock": "dlr", "dtype": "float32", "trains": "attention"},
    {"layer": "attackers", "norm": "rms_gain", "activation": "tanh", "way": "inverted", "segments": 3},
    {"layer": "keys", "family": "topk", "draw": 3},
    {"layer": "keys", "family": "topk-planes", "draw": 1},
    {"layer": "merges", "operator": "ties"},
    {"layer": "distillation", "norm": "rms_gain"},
    {"layer": "trap2", "weighting": "1/sqrt(s)", "s": 0.5},
]
EXACT = ("tensors", "torch_bytes", "ledger_bytes", "unnamed_bytes", "predicted_bytes", "torch_bytes_at_most", "k",
         "k_found", "buffers", "steps")  # fmt: skip
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
    assert now.get("in_tolerances", 0) <= 1 <= now.get("planted_in_tolerances", 1)
    close = RELATIVE[cell.get("precision", "float64")]
    for name in ("torch_loss", "torch_objective", "last"):
        if name in now:
            assert math.isclose(now[name], row[name], rel_tol=close), name


def test_the_full_size_count_again_on_the_meta_device():
    (row,) = stored("full_size").where(what="stored bytes")
    assert parity.published_bytes(HUB[full_size.MODEL], full_size.TOKENS) == row["meta_bytes"] == row["torch_bytes"]


@pytest.mark.parametrize("name", sorted(merges.OPERATORS))
def test_merges_derived_twice_on_random_models(name):
    """Shapes that are not square, equal magnitudes, and tensors that one member leaves alone."""
    assert sorted(merges.OPERATORS) == sorted(table.OPERATORS)
    rng = np.random.default_rng(8)
    shapes = {"tall": (9, 4), "wide": (3, 11), "gain": (7,), "still": (2, 5)}
    base = {n: rng.standard_normal(s) for n, s in shapes.items()}
    members = [{n: w + rng.integers(-3, 4, w.shape) / 4 + 1e-3 * rng.standard_normal(w.shape) for n, w in base.items()}
               for _ in range(2)]  # fmt: skip
    if name not in ("tsv",):  # whose directions are not determined where an update is zero
        members[0]["still"] = base["still"].copy()
    want = merge(base, members, name, weights=[1.0, 1.0]).tensors
    got = merges.merged(base, members, name)
    for n, w in want.items():
        np.testing.assert_allclose(got[n], w, rtol=0, atol=1e-12)
    assert any(np.max(np.abs(got[n] - base[n])) > 0.1 for n in base)


def test_a_merge_that_forgets_the_majority_is_seen(monkeypatch):
    rng = np.random.default_rng(9)
    base = {"w": np.zeros((6, 6))}
    members = [{"w": rng.standard_normal((6, 6))} for _ in range(2)]
    monkeypatch.setattr(merges, "_mean_of_agreeing", lambda trimmed, sign: torch.stack(trimmed).mean(0))
    got = merges.merged(base, members, "ties-mergekit")["w"]
    assert np.max(np.abs(got - merge(base, members, "ties-mergekit", weights=[1.0, 1.0]).tensors["w"])) > 0.1


def test_a_projection_that_flips_the_other_end_is_seen(monkeypatch):
    tensors = parity.drawn(TINY, 0)
    honest = parity.projected(TINY, tensors, 2, planes=False)["p"]
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda s: eigh(-s))
    assert np.max(np.abs(parity.projected(TINY, tensors, 2, planes=False)["p"] - honest)) > 0.1


def test_a_wrong_step_of_adamw_is_seen():
    from dataclasses import replace

    from lockproofs.parity_locks import ROWS, distilled
    from lockref.locks.dlr_training import Recipe
    from lockref.models import dlrnet

    net, rng = DLRConfig(6, 3, 2), np.random.default_rng(0)
    start = dlrnet.initialize(net, rng, b_scale=0.5)
    x, y = rng.standard_normal((2, 40, 6))
    recipe = Recipe(6, 1e-2, weight_decay=0.1)
    want = distilled(start, x, y, net, recipe)
    np.testing.assert_allclose(parity.distilled(start, x, y, net, recipe, ROWS), want, rtol=1e-12)
    for wrong in (replace(recipe, weight_decay=0.0), replace(recipe, clip=0.5), replace(recipe, eps=1e-3)):
        off = np.max(np.abs(np.subtract(parity.distilled(start, x, y, net, wrong, ROWS), want)))
        assert off > 1e-8, wrong  # AdamW hardly sees a gradient's scale


def test_another_device_that_is_not_there_is_refused(capsys):
    if torch.cuda.is_available():
        assert {c["layer"] for c in table.cells("cuda")} == {"environment", "outputs", "stored bytes"}
    else:
        assert table.main(["--device", "cuda"]) == 3
        assert "there is no CUDA device here" in capsys.readouterr().err
