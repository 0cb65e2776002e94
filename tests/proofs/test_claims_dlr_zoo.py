"""Claims that read trained locked models and stored experiments: each check and control can fail."""

from pathlib import Path

import numpy as np
import pytest

from lockproofs.claim import Context, Verdict, settle
from lockproofs.claims import dlr_inversion, dlr_redistill, dlr_trained, dlr_utility
from lockproofs.experiments import dlr_distill as distill_experiment
from lockproofs.experiments import dlr_redistill as redistill_experiment
from lockproofs.experiments.store import stored
from lockproofs.subject import Subject
from lockref.attacks import redistill
from lockref.attacks.inversion import Cell
from lockref.locks.distillation import Phases, distill, dlr_student, swiglu_student
from lockref.locks.dlr_training import Recipe
from lockref.models import qwen3
from lockref.models.checkpoint_io import Checkpoint
from lockref.models.dlrnet import DLRConfig
from lockref.models.zoo import LOCKED_ZOO

WAYS = (dlr_inversion.default_gradients, dlr_inversion.replayed_gradients)


@pytest.fixture
def context(tiny_qwen3):
    config, weights = tiny_qwen3()
    return Context(Subject({"subject": Checkpoint(Path("tiny"), config, weights, {}, ())}, False), 0, 4)


def find(claim, context):
    found = settle(claim.kind, claim.check(context))
    bad = {check.name for check in found.checks if not check.passed}
    controls = {"null": found.controls.null, "power": found.controls.power}
    return found.verdict, bad | {name for name, control in controls.items() if control and not control.passed}


@pytest.mark.parametrize(
    ("module", "experiment"), [(distill_experiment, "dlr_distill"), (redistill_experiment, "dlr_redistill")]
)
def test_the_first_steps_of_a_stored_run_come_out_again(module, experiment):
    """Four steps from the same weights and rows, float32 on another processor: sums of 1024 rows of 128 numbers.

    A loss near 1 and a gradient, clipped to norm 1, carry relative rounding errors of at most √131072 · 2⁻²⁴; AdamW
    divides by the gradient's size, so a step may move by about that share of the learning rate, four times.
    """
    cell, row = module.EXPERIMENT.cells[0], stored(experiment).rows[0]
    assert all(row[name] == value for name, value in cell.items())
    got = module.first_losses(cell)
    assert np.max(np.abs(np.subtract(got, row["first_losses"]))) <= 4 * 131072**0.5 * 2.0**-24 * 10
    assert np.ptp(row["first_losses"]) > 100 * 4 * 131072**0.5 * 2.0**-24  # other steps would be seen


@pytest.mark.parametrize(
    ("module", "experiment"), [(distill_experiment, "dlr_distill"), (redistill_experiment, "dlr_redistill")]
)
def test_stored_results_are_those_of_the_code(module, experiment):
    found = stored(experiment)
    assert len(found.rows) == len(module.EXPERIMENT.cells) and found.settings == dict(module.EXPERIMENT.settings)
    assert [{n: row[n] for n in cell} for row, cell in zip(found.rows, module.EXPERIMENT.cells, strict=True)] == list(
        module.EXPERIMENT.cells
    )


def test_inversion_of_trained_models_by_a_wrong_rule_is_seen(monkeypatch):
    honest = Cell.undone
    monkeypatch.setattr(
        Cell, "undone", lambda self, w, hidden, out: honest(self, w, [h * (1 + 1e-6) for h in hidden], out)
    )
    assert dlr_trained.examine(LOCKED_ZOO[0], WAYS, np.random.default_rng(0)).gap > 1


def test_inversion_of_trained_models_that_hoards_is_seen(monkeypatch):
    honest = Cell.run

    def hoarding(self, weights, x):
        out, kept = honest(self, weights, x)
        return out, {**kept, "more": kept["hidden"][0] + 0}

    monkeypatch.setattr(Cell, "run", hoarding)
    found = dlr_trained.examine(LOCKED_ZOO[0], WAYS, np.random.default_rng(0))
    assert found.stored == found.config.rank * (found.config.depth + 1) + found.config.width


def test_states_drift_more_the_less_precisely_they_are_held():
    found = dlr_trained.examine(LOCKED_ZOO[0], WAYS, np.random.default_rng(0))
    assert 0 < 1000 * max(found.state_error["float32"]) < max(found.state_error["bfloat16"])
    assert found.state_error["float32"][-1] < found.state_error["float32"][0]  # the last state is stored


def changed(monkeypatch, module, field, change):
    """The stored result that a claim reads, with `change` made to `field` wherever it is."""
    honest = module.stored

    def planted(name):
        found = honest(name)
        rows = [{**row, field: change(row[field])} if field in row else row for row in found.rows]
        return found.model_copy(update={"rows": rows})

    monkeypatch.setattr(module, "stored", planted)


def test_utility_with_a_manifest_that_says_too_much_is_undecided(context, monkeypatch):
    honest = dlr_utility.read_manifest

    class Planted:
        def __init__(self, path):
            said = honest(path)
            self.parts, text = said.parts, said.figures["original"]["text"] - 0.05
            self.figures = {**said.figures, "locked": {**said.figures["locked"], "text": text}}

    monkeypatch.setattr(dlr_utility, "read_manifest", Planted)
    verdict, failed = find(dlr_utility.UTILITY, context)
    assert verdict is Verdict.UNDECIDED and "computed again" in failed


def test_utility_with_a_margin_that_nothing_exceeds_fails_its_power_control(context, monkeypatch):
    monkeypatch.setattr(dlr_utility, "broken_gap", lambda: 0.0)
    assert find(dlr_utility.UTILITY, context) == (Verdict.UNDECIDED, {"power"})


def test_utility_without_another_side_is_undecided(context, monkeypatch):
    original = stored("dlr_distill").rows[0]["original"]
    changed(monkeypatch, dlr_utility, "model", lambda found: original)
    verdict, failed = find(dlr_utility.UTILITY, context)
    assert verdict is Verdict.UNDECIDED and sum(name.startswith("other side") for name in failed) >= 2


def test_redistillation_that_fails_refutes_nothing(context, monkeypatch):
    changed(monkeypatch, dlr_redistill, "attacker", lambda found: {**found, "text": 2 * found["text"]})
    verdict, failed = find(dlr_redistill.REDISTILL, context)
    assert verdict is Verdict.UNDECIDED and "loss of the attacker's model" in failed


def test_redistillation_dearer_than_the_lock_refutes_nothing(context, monkeypatch):
    changed(monkeypatch, dlr_redistill, "operations", lambda found: 1000 * found)
    verdict, failed = find(dlr_redistill.REDISTILL, context)
    assert verdict is Verdict.UNDECIDED and "cost of undoing the lock" in failed


def test_a_student_that_learns_nothing_fails_the_power_control(context, monkeypatch):
    monkeypatch.setattr(dlr_redistill, "RECIPE", Recipe(1, 1e-9))
    assert find(dlr_redistill.REDISTILL, context) == (Verdict.UNDECIDED, {"power"})


def test_a_student_that_knows_the_answers_fails_the_null_control(context, monkeypatch):
    honest = dlr_redistill.module_error
    monkeypatch.setattr(dlr_redistill, "module_error", lambda teacher, rng, shuffled=False: honest(teacher, rng))
    assert find(dlr_redistill.REDISTILL, context) == (Verdict.UNDECIDED, {"null"})


def test_the_attack_hands_back_a_plain_model_nearer_to_the_lock(tiny_qwen3):
    config, weights = tiny_qwen3()
    net, rng = DLRConfig(24, 5, 3), np.random.default_rng(0)
    kind, tokens = dlr_student(net), rng.integers(0, config.vocab_size, (12, 9))
    drawn = {i: {n: w + rng.normal(0, 0.3, w.shape) for n, w in kind.start(rng, float).items()} for i in range(2)}
    locked = redistill.assembled(weights, drawn)
    phases = Phases(Recipe(40, 0.02), Recipe(10, 0.002), captured=12, activations=64, tokens=4)
    result = redistill.redistill(locked, config, net, phases, tokens, tokens)
    (guess,) = result.guesses
    assert {n: w.shape for n, w in guess.items()} == qwen3.expected_tensors(config)
    assert max(result.found["errors"]) < 0.8 and "original" not in " ".join(result.knows)


def test_costs_are_counted_and_grow_with_every_setting(tiny_qwen3):
    """One more step of each kind, one more captured row: the differences are a step's and a row's operations."""
    config, weights = tiny_qwen3()
    kinds = swiglu_student(config), dlr_student(DLRConfig(24, 5, 3))

    def cost(modules=2, model=3, captured=4, kinds=kinds):
        phases = Phases(Recipe(modules, 1e-3), Recipe(model, 1e-3), captured, activations=16, tokens=2)
        return redistill.cost(weights, config, *kinds, phases, 8)

    assert cost(modules=4) - cost() == 2 * (cost(modules=3) - cost()) > 0
    assert cost(model=5) - cost() == 2 * (cost(model=4) - cost()) > 0
    row = cost(captured=5) - cost()
    assert 0 < row < cost(model=4) - cost()
    # a forward pass has two products for each weight of a matrix but the embedding, and attention besides
    matrices = sum(w.size for n, w in weights.items() if w.ndim == 2 and "embed" not in n)
    assert 8 * 2 * matrices < row < 8 * 4 * matrices


def test_distilling_a_model_into_itself_is_what_the_reference_does(tiny_qwen3):
    config, weights = tiny_qwen3()
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (8, 6))
    phases = Phases(Recipe(30, 0.02), Recipe(2, 1e-3), captured=8, activations=32, tokens=2)
    kind = swiglu_student(config)
    found = distill(weights, config, kind, kind, phases, tokens, tokens)
    assert max(found.errors) < 0.9 and set(found.model) == set(weights)
