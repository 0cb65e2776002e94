"""The stored trainings of Trap²: every cell is there, and the first steps come out again."""

import numpy as np
import pytest

from lockproofs.experiments import trap_merge, trap_scale, trap_strength, trap_train
from lockproofs.experiments.store import stored
from lockproofs.trap_models import (
    AS_PUBLISHED,
    RATES,
    SEEDS,
    STRENGTHS,
    WEAK,
    Plan,
    base,
    batch_loss,
    draw,
    figures,
    first_losses,
    parametrization,
    score,
)
from lockref.locks.trap2 import sample_scale
from lockref.locks.trap2_training import PUBLISHED, Protection, trap_loss
from lockref.merging import SETTINGS

EPS = float(np.finfo(np.float32).eps)


@pytest.mark.parametrize("module", [trap_train, trap_scale, trap_strength, trap_merge])
def test_a_stored_result_has_every_cell_in_its_order(module):
    rows = stored(module.EXPERIMENT.name).rows
    assert [{k: row[k] for k in cell} for row, cell in zip(rows, module.EXPERIMENT.cells, strict=True)] == list(
        module.EXPERIMENT.cells
    )
    assert len({str(cell) for cell in module.EXPERIMENT.cells}) == len(rows)


@pytest.mark.parametrize(("kind", "strength"), list(STRENGTHS.items()))
def test_the_first_steps_come_out_again(kind, strength):
    (row,) = stored("trap_train").where(kind=kind, skill="add", strength=strength, seed=0)
    plan = Plan(kind, "add", strength, 0)
    # Sums of some thousand float32 terms in another order: √(10⁴) roundings of a loss of the size of 1, and AdamW's
    # first steps of ± the rate move entries with a gradient of the size of round-off, which hardly move the loss.
    allowed = 100 * EPS * np.abs(row["first_losses"])
    assert np.all(np.abs(np.subtract(first_losses(plan, 2), row["first_losses"][:2])) <= allowed[:2])
    other = first_losses(Plan(kind, "add", strength + 0.05, 0), 1)  # planted: another λ
    assert abs(other[0] - row["first_losses"][0]) > allowed[0]


def test_before_the_first_step_every_scale_is_the_base():
    """Δ = 0: one draw of J is (1 − λ/s) L(W₀), in full space and with LoRA alike."""
    values = {}
    for kind in RATES:
        shape = parametrization(kind)
        start = shape.start(np.random.default_rng(0))
        for strength in (0.0, 0.05):
            loss = trap_loss(batch_loss, lambda rng: draw("add", rng), shape, Protection(strength))
            values[kind, strength] = float(loss(start, np.random.default_rng([0, 0])))
    s = Protection(0.05).draw(np.random.default_rng([0, 0]).spawn(2)[1])
    for kind in RATES:
        want = values[kind, 0.0] * (1 - 0.05 / s)
        assert abs(values[kind, 0.05] - want) <= 100 * EPS * values[kind, 0.0]


def test_the_planted_weak_lock_is_weaker_than_the_published_one():
    (published,) = (cell["strength"] for cell in AS_PUBLISHED if cell["kind"] == WEAK["kind"])
    assert WEAK["strength"] < published == PUBLISHED["lora"].strength < STRENGTHS["lora"] and len(SEEDS) > 2


def test_draws_below_1_alone_never_exceed_it():
    law = trap_strength.LAWS["below"](0.02)
    drawn = sample_scale(np.random.default_rng(0), 10_000, law.low, law.high, law.gap)
    assert drawn.max() <= 0.95 and drawn.min() >= 0.05
    usual = trap_strength.LAWS["published"](0.02)
    assert sample_scale(np.random.default_rng(0), 100, usual.low, usual.high, usual.gap).max() > 1.05


def test_what_is_the_same_in_another_space_is_the_setting():
    assert {s.space for s in trap_merge.ELSEWHERE.values()} == {"knots", "core"}
    for name, setting in trap_merge.ELSEWHERE.items():
        assert SETTINGS[name.split(" in ")[0]].rule == setting.rule


def test_the_base_scores_again_as_stored():
    """The one merge that needs no training: scale 0 of everything, by the attacker's score and on held-out problems."""
    row = stored("trap_merge").where(kind="full", operator="base")[0]
    assert {r["score"] for r in stored("trap_merge").where(operator="base")} == {row["score"]}
    assert abs(score(base().tensors) - row["score"]) <= 100 * EPS * row["score"]
    got = figures(base().tensors, count=trap_merge.PROBLEMS)
    for skill in ("add", "reverse"):
        assert abs(got[f"{skill}_loss"] - row[f"{skill}_loss"]) <= 100 * EPS * row[f"{skill}_loss"]
        assert got[skill] == row[skill]


def test_along_the_update_the_curve_passes_the_trained_point():
    """trap_scale at s = 1 measures the models of trap_train on the same problems."""
    for row in stored("trap_scale").rows:
        cell = {k: row[k] for k in ("kind", "strength", "seed")}
        (trained,) = stored("trap_train").where(skill="add", **cell)
        at = row["scales"].index(1.0)
        assert row["match"][at] == trained["add"] and row["loss"][at] == trained["add_loss"]
