"""The stored trainings of Trap²: every cell is there, and the first steps come out again."""

import numpy as np
import pytest

from lockproofs.experiments import trap_scale, trap_train
from lockproofs.experiments.store import stored
from lockproofs.trap_models import RATES, SEEDS, STRENGTH, SWEEP, Plan, batch_loss, draw, first_losses, parametrization
from lockref.locks.trap2_training import Protection, trap_loss

EPS = float(np.finfo(np.float32).eps)


@pytest.mark.parametrize("module", [trap_train, trap_scale])
def test_a_stored_result_has_every_cell_in_its_order(module):
    rows = stored(module.EXPERIMENT.name).rows
    assert [{k: row[k] for k in cell} for row, cell in zip(rows, module.EXPERIMENT.cells, strict=True)] == list(
        module.EXPERIMENT.cells
    )
    assert len({str(cell) for cell in module.EXPERIMENT.cells}) == len(rows)


@pytest.mark.parametrize(("kind", "strength"), [("full", STRENGTH), ("lora", 0.1)])
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
        for strength in (0.0, STRENGTH):
            loss = trap_loss(batch_loss, lambda rng: draw("add", rng), shape, Protection(strength))
            values[kind, strength] = float(loss(start, np.random.default_rng([0, 0])))
    s = Protection(STRENGTH).draw(np.random.default_rng([0, 0]).spawn(2)[1])
    for kind in RATES:
        want = values[kind, 0.0] * (1 - STRENGTH / s)
        assert abs(values[kind, STRENGTH] - want) <= 100 * EPS * values[kind, 0.0]


def test_the_sweep_holds_the_published_strengths():
    assert SWEEP == {"lora": (0.001, 0.1), "full": (0.005, 0.1)} and len(SEEDS) == 3


def test_along_the_update_the_curve_passes_the_trained_point():
    """trap_scale at s = 1 measures the models of trap_train on the same problems."""
    for row in stored("trap_scale").rows:
        cell = {k: row[k] for k in ("kind", "strength", "seed")}
        (trained,) = stored("trap_train").where(skill="add", **cell)
        at = row["scales"].index(1.0)
        assert row["match"][at] == trained["add"] and row["loss"][at] == trained["add_loss"]
