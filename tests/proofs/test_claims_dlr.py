"""DLR-STORAGE-TRAIN: the verdict, and that each of its checks and controls can fail."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from lockproofs.claim import Context, Verdict, settle
from lockproofs.claims import dlr
from lockproofs.subject import Subject
from lockref.autodiff import Ledger, ops
from lockref.models import dlrnet, storage
from lockref.models.checkpoint_io import Checkpoint
from lockref.models.qwen3 import Qwen3Config, expected_tensors


def context(hidden=12, mlp=20, seed=0):
    """An untrained model: bytes depend on shapes alone."""
    config = Qwen3Config(
        vocab_size=11, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=4,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    tensors = {name: rng.standard_normal(shape) for name, shape in expected_tensors(config).items()}
    return Context(Subject({"subject": Checkpoint(Path("tiny"), config, tensors, {}, ())}, False), seed, 10)


def evidence(**sizes):
    return settle("theorem", dlr.check_storage_train(context(**sizes)))


def failed(found):
    return {check.name for check in found.checks if not check.passed}


@pytest.fixture(scope="module")
def found():
    return evidence()


@pytest.fixture
def shallow(monkeypatch):
    """The same checks on networks of at most 9 blocks: for what does not need the full grid."""
    monkeypatch.setattr(dlr, "DEEPEST", 9)


def test_it_holds_and_says_how_often_it_looked(found):
    assert found.verdict is Verdict.HOLDS and failed(found) == set()
    by_name = {check.name: check for check in found.checks}
    grid = len(dlrnet.NORMS) * len(dlrnet.ACTIVATIONS) * 2 * 2
    assert by_name["second difference in depth"].cases == by_name["ledger = closed form"].cases == 48 * grid
    assert all(check.tolerance == 0 and check.sense == "==" for check in found.checks)
    assert dlr.STORAGE_TRAIN.recorded is Verdict.HOLDS


def test_same_seed_same_evidence(found):
    assert evidence() == found


@pytest.mark.parametrize(("hidden", "mlp"), [(12, 21), (4, 1), (8, 5), (3, 100)])
def test_any_shape_of_model_can_be_audited(hidden, mlp, shallow):
    """Odd widths leave a remainder at parity, narrow ones stop at a smaller depth."""
    assert evidence(hidden=hidden, mlp=mlp).verdict is Verdict.HOLDS


def test_figures_of_a_layer_of_the_zoo():
    """d = 128, m = 384 at depth 48, r = 12 (11 with gains): multiply out the table by hand."""
    layer = dlr._Layer(context(hidden=128, mlp=384), np.random.default_rng(0))
    assert layer.unlocked == 1536
    assert {norm: kept[-1] for norm, kept in layer.kept.items()} == {
        "none": 48 * (128 + 24) - 128,
        "rms": 48 * (257 + 24) - 128,
        "rms_gain": 48 * (385 + 22) - 128,
    }
    assert layer.frozen == [2 * dlrnet.parity(128, 384, depth).rank * depth // 2 for depth in layer.depths]
    assert all(check.passed for check in layer.checks)


def test_the_plot_draws_straight_lines_and_flat_ones(found):
    (plot,) = found.plots
    steps = {c.name: {b - a for a, b in pairwise(c.y)} for c in plot.curves}
    assert steps["SwiGLU (unlocked)"] == {0}
    # at parity r L stays below 1.5 m by a remainder smaller than 2 L columns: no exact line except where 2L | 3m
    frozen = next(c.y for c in plot.curves if c.name == "DLR-Net, no norm, frozen")
    assert max(frozen) == 4 * 30 and min(steps["DLR-Net, norms with gain"]) > 0


def test_controls_report_both_sides(found):
    assert found.controls.null.value == 0 and found.controls.null.passed
    assert found.controls.power.value == dlr.TOKENS * 8 and found.controls.power.passed


def test_the_wedge_bends_by_one_column_at_each_depth():
    rng = np.random.default_rng(0)
    values = [dlr.planted_wedge(depth, rng).bytes() for depth in range(1, 8)]
    assert set(np.diff(values, 2)) == {dlr.TOKENS * 8}
    assert dlr.bend([3, 5, 7, 9]) == 0 and dlr.bend([3, 5, 7, 10]) == 1


def test_a_lock_that_skips_every_second_block_is_caught(monkeypatch, shallow):
    """A network whose later blocks are checkpointed away stores less than a line."""
    honest = dlr._Case.ledger

    def half(self, depth, rng, **choices):
        return honest(self, (depth + 1) // 2, rng, **choices)

    monkeypatch.setattr(dlr._Case, "ledger", half)
    spoiled = evidence()
    assert spoiled.verdict is Verdict.UNDECIDED
    assert {"ledger = closed form", "a cut network's tape is a prefix"} <= failed(spoiled)


def test_rows_that_come_in_another_order_are_caught(monkeypatch, shallow):
    """The prefix lemma is checked, not assumed: here deep tapes begin with their last row."""
    honest = dlr._Case.ledger

    def rotated(self, depth, rng, **choices):
        rows = honest(self, depth, rng, **choices).rows
        return Ledger(rows[-1:] + rows[:-1]) if depth == dlr.DEEPEST else Ledger(rows)

    monkeypatch.setattr(dlr._Case, "ledger", rotated)
    assert "a cut network's tape is a prefix" in failed(evidence())


def test_a_formula_off_by_one_column_is_caught(monkeypatch, shallow):
    honest = storage.dlr
    monkeypatch.setattr(storage, "dlr", lambda config, **k: honest(config, **k) + storage.Storage(1))
    spoiled = evidence()
    assert spoiled.verdict is Verdict.UNDECIDED
    assert failed(spoiled) == {"ledger = closed form", "parameter parity", "a layer of this size"}


def test_an_mlp_that_keeps_more_is_caught(monkeypatch, shallow):
    monkeypatch.setattr(ops, "silu", lambda x: x * ops.sigmoid(x))  # keeps σ(x) besides x
    assert failed(evidence()) == {"the MLP it replaces"}


def test_inference_that_keeps_something_is_caught(monkeypatch, shallow):
    honest = dlr._Case.ledger
    monkeypatch.setattr(dlr._Case, "ledger", lambda self, depth, rng, gradient=True: honest(self, depth, rng))
    spoiled = evidence()
    assert not spoiled.controls.null.passed and spoiled.verdict is Verdict.UNDECIDED


def test_a_wedge_that_does_not_bend_is_caught(monkeypatch, shallow):
    case = next(dlr._cases())
    monkeypatch.setattr(dlr, "planted_wedge", lambda depth, rng: case.ledger(depth, rng))
    spoiled = evidence()
    assert not spoiled.controls.power.passed and spoiled.verdict is Verdict.UNDECIDED
