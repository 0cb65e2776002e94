"""FULL-PARITY reads a stored table: every figure in it that goes wrong must cost the verdict."""

import copy

import numpy as np
import pytest

from lockproofs.claim import MissingInput, Verdict, settle
from lockproofs.claims import full_parity
from lockproofs.claims.full_parity import PARITY, output_gap
from lockproofs.experiments import full_parity as table
from lockproofs.experiments.store import stored
from lockproofs.parity_cases import LOCKS, MODELS, case, distance, worst


@pytest.fixture(scope="module")
def found():
    return stored("full_parity")


def verdict(monkeypatch, result):
    monkeypatch.setattr(full_parity, "stored", lambda name: result if name == "full_parity" else stored(name))
    monkeypatch.setattr(full_parity, "LIVE", (("tiny", "none"), ("tiny", "taylor")))
    return settle(PARITY.kind, PARITY.check(None))


def test_it_holds_as_recorded(monkeypatch, found):
    evidence = verdict(monkeypatch, found)
    assert evidence.verdict is PARITY.recorded is Verdict.HOLDS, [c for c in evidence.checks if not c.passed]
    assert sum(c.cases for c in evidence.checks) > len(found.rows)
    assert "No accelerator rows are stored" in evidence.explanation and "--device cuda" in evidence.explanation


# For each kind of row, figures that make it fail, whatever else it says.
FAULTS = [
    ("outputs", {"precision": "float64"}, {"logits": 2e-12}),
    ("outputs", {"precision": "twin"}, {"gradients": 2e-11}),
    ("outputs", {"precision": "twin", "lock": "taylor"}, {"logits": 2e-12}),
    ("outputs", {"precision": "float64"}, {"loss": 2e-12}),
    ("outputs", {"precision": "bfloat16"}, {"in_tolerances": 1.01}),
    ("outputs", {"precision": "float32"}, {"planted_in_tolerances": 0.9}),
    ("outputs", {"precision": "float64", "model": "tiny", "lock": "none"}, {"torch_loss": 4.7351}),
    ("outputs", {"precision": "float64", "model": "tiny", "lock": "taylor"}, {"torch_gradient": -4.825758300}),
    ("stored bytes", {"trains": "MLP"}, {"torch_bytes": 1}),
    ("stored bytes", {"lock": "taylor", "trains": "LoRA on q, v"}, {"torch_bytes": 1}),
    ("stored bytes", {"dtype": "bfloat16"}, {"unnamed_bytes": 0}),
    ("published bytes", {"model": "qwen3-8b"}, {"unnamed_bytes": 0}),
    ("attackers", {"way": "inverted"}, {"torch_bytes": 1}),
    ("attackers", {"way": "default"}, {"gradients": 1e-3}),
    ("keys", {"family": "topk"}, {"p": 1e-9}),
    ("keys", {"family": "topk-planes"}, {"k_found": [1, 2]}),
    ("keys", {"family": "topk"}, {"recovered": 1e-9}),
    ("keys", {"family": "topk"}, {"recovered_torch": 1e-9}),
    ("keys", {"family": "topk-planes"}, {"k_found_torch": [0]}),
    ("merges", {"operator": "tsv"}, {"merged": 1e-11}),
    ("merges", {"operator": "dare"}, {"merged": 1e-11}),
    ("distillation", {"phase": 1, "norm": "rms"}, {"losses": 1e-12}),
    ("distillation", {"phase": 2, "norm": "rms"}, {"losses": 1e-12}),
    ("fine-tuning", {"trains": "all"}, {"losses": 1e-10}),
    ("trap2", {"s": 0.5}, {"objective": 1e-11}),
    ("trap2", {"s": 0.5}, {"gradients": 1e-10}),
    ("trap2", {"s": 1.7}, {"torch_objective": 4.85}),
    ("trap2 of LoRA", {"s": 0.5}, {"objective": 1e-11}),
    ("trap2 of LoRA", {"s": 0.05}, {"gradients": 1e-10}),
    ("trap2 of LoRA", {"s": 1.7}, {"torch_objective": 4.85}),
]


@pytest.mark.parametrize(("layer", "where", "wrong"), FAULTS)
def test_a_row_that_disagrees_costs_the_verdict(monkeypatch, found, layer, where, wrong):
    rows = copy.deepcopy(found.rows)
    row = next(r for r in rows if r["layer"] == layer and all(r[k] == v for k, v in where.items()))
    assert wrong.keys() <= row.keys()
    row.update(wrong)
    evidence = verdict(monkeypatch, found.model_copy(update={"rows": rows}))
    assert evidence.verdict is Verdict.UNDECIDED
    assert 1 <= sum(not c.passed for c in evidence.checks) <= 2


@pytest.mark.parametrize(
    ("what", "wrong"),
    [("forward", {"logits": 0.1}), ("stored bytes", {"torch_bytes": 1}), ("stored bytes", {"meta_bytes": 1})],
)
def test_a_full_size_row_that_disagrees_costs_the_verdict(monkeypatch, found, what, wrong):
    size = stored("full_size")
    rows = [{**row, **(wrong if row["what"] == what else {})} for row in size.rows]
    changed = {"full_parity": found, "full_size": size.model_copy(update={"rows": rows})}
    monkeypatch.setattr(full_parity, "stored", lambda name: changed.get(name) or stored(name))
    monkeypatch.setattr(full_parity, "LIVE", (("tiny", "none"),))
    evidence = settle(PARITY.kind, PARITY.check(None))
    assert evidence.verdict is Verdict.UNDECIDED and sum(not c.passed for c in evidence.checks) == 1


@pytest.mark.parametrize(("what", "fails"), [("traced", 1), ("peak", 1), ("predicted_forward", 2), ("bare", 1)])
def test_memory_that_was_not_predicted_costs_the_verdict(monkeypatch, found, what, fails):
    memory = stored("full_memory")
    rows = [{**row, what: row[what] + 5 * 2**20} for row in memory.rows]
    changed = {"full_parity": found, "full_memory": memory.model_copy(update={"rows": rows})}
    monkeypatch.setattr(full_parity, "stored", lambda name: changed.get(name) or stored(name))
    monkeypatch.setattr(full_parity, "LIVE", (("tiny", "none"),))
    evidence = settle(PARITY.kind, PARITY.check(None))
    assert evidence.verdict is Verdict.UNDECIDED and sum(not c.passed for c in evidence.checks) == fails


def test_every_kind_of_row_has_its_fault(found):
    assert {layer for layer, _, _ in FAULTS} | {"environment"} == {row["layer"] for row in found.rows}


@pytest.mark.parametrize("change", [lambda rows: rows[:-1], lambda rows: [*rows, rows[-1]], lambda rows: rows[::-1]])
def test_a_table_of_other_rows_is_not_read(monkeypatch, found, change):
    other = found.model_copy(update={"rows": change(found.rows)})
    with pytest.raises(MissingInput, match="other rows; run python"):
        verdict(monkeypatch, other)


def test_numpy_computed_now_agrees_with_torch_then_and_a_moved_gradient_shows(monkeypatch, found):
    (row,) = found.where(layer="outputs", model="tiny", lock="dlr on the stream", precision="float64")
    assert output_gap(row) <= 1
    honest = case("tiny", "dlr on the stream").answer()
    name = "model.layers.0.mlp.blocks.2.gain"
    moved = {**honest["gradients"], name: honest["gradients"][name] * (1 + 1e-6)}

    class Moved:
        def answer(self):
            return {**honest, "gradients": moved}

    monkeypatch.setattr(full_parity, "case", lambda *_: Moved())
    assert output_gap(row) > 1


def test_cases_are_the_same_twice_and_unknown_names_are_refused():
    for model, lock in (("tiny tied", "taylor"), ("tiny", "projection and dlr")):
        case.cache_clear()
        first = case(model, lock)
        case.cache_clear()
        again = case(model, lock)
        assert first.tensors.keys() == again.tensors.keys()
        assert all(np.array_equal(first.tensors[n], w) for n, w in again.tensors.items())
    for wrong in (("huge", "none"), ("tiny", "padlock")):
        with pytest.raises(KeyError, match="choose from"):
            case(*wrong)
    assert {(r["model"], r["lock"]) for r in table.cells() if r["layer"] == "outputs"} <= {
        (m, k) for m in MODELS for k in LOCKS
    }


def test_distances():
    assert distance([1.0, 2.0], [1.0, 4.0]) == 0.5
    assert distance([0.0], [0.0]) == 0 and distance([1.0], [0.0]) == np.inf
    assert worst({"a": [1.0], "b": [3.0]}, {"a": [1.0], "b": [4.0]}) == (0.25, "b")
    with pytest.raises(ValueError, match="arrays differ in b"):
        worst({"a": [1.0]}, {"a": [1.0], "b": [2.0]})
