"""DLR-FINETUNE and DLR-LANDSCAPE: that stored runs repeat, and that checks and controls can fail."""

import math
from dataclasses import replace

import numpy as np
import pytest

from lockproofs.claim import Context, Verdict, settle
from lockproofs.claims import dlr_finetune, dlr_landscape
from lockproofs.experiments import dlr_finetune as tuning
from lockproofs.experiments import dlr_landscape as curving
from lockproofs.experiments.store import stored
from lockproofs.finetune_runs import runs
from lockproofs.subject import Subject

UNIT32 = 2.0**-24


def settled(claim):
    return settle(claim.kind, claim.check(Context(Subject({}, True), 0, 3)))


def failed(found):
    bad = {check.name for check in found.checks if not check.passed}
    controls = {"null": found.controls.null, "power": found.controls.power}
    return bad | {name for name, control in controls.items() if control is not None and not control.passed}


def planted(monkeypatch, module, change):
    """The claim reads rows that `change` has edited."""
    found = stored(module.__name__.rsplit(".")[-1])
    edited = found.model_copy(update={"rows": [change(dict(row)) for row in found.rows]})
    for claims in (dlr_finetune, dlr_landscape):
        monkeypatch.setattr(claims, "stored", lambda name: edited if name == edited.experiment else stored(name))


@pytest.mark.parametrize("claim", [dlr_finetune.FINETUNE, dlr_landscape.LANDSCAPE], ids=lambda c: c.id)
def test_the_recorded_verdict_is_found(claim):
    found = settled(claim)
    assert found.verdict is claim.recorded
    assert failed(found) == set()
    assert found.controls.null is not None and found.controls.power is not None
    assert found.plots


def test_the_first_steps_of_a_stored_run_repeat(monkeypatch):
    """Ten steps again; other libraries round otherwise, by no more than weights moved by 64 roundings do."""
    (row,) = stored("dlr_finetune").where(model="original", trained="all", rate=tuning.RATES[3], seed=0)
    cell = {name: row[name] for name in ("model", "trained", "rate", "seed")}
    honest, rng = tuning.model("original"), np.random.default_rng(0)
    got = tuning.measure(cell, stop_after=10)
    assert {name: got[name] for name in ("tokens", "operations", "bytes", "sha256")} == {
        name: row[name] for name in ("tokens", "operations", "bytes", "sha256")
    }

    def moved():
        noise = {n: w * (1 + 64 * UNIT32 * rng.standard_normal(w.shape)).astype(w.dtype)
                 for n, w in honest.tensors.items()}  # fmt: skip
        monkeypatch.setattr(tuning, "model", lambda name: replace(honest, tensors=noise))
        return tuning.measure(cell, stop_after=10)["held_out"]

    tolerance = 2 * np.max([np.abs(np.subtract(moved(), got["held_out"])) for _ in range(2)], axis=0) + 1e-6
    gap = np.abs(np.subtract(got["held_out"], row["held_out"][:2]))
    assert np.all(gap <= tolerance), f"stored curve: got {got['held_out']}, want {row['held_out'][:2]} ± {tolerance}"


def test_a_stored_curvature_repeats_within_its_residual():
    (row,) = stored("dlr_landscape").where(model="original", seed=0)
    rng = np.random.default_rng([curving.SEED, 3, 0])
    short = curving.model_curvature(curving.model("original"), curving.given(0), "relative", 5, rng)
    gap = abs(short.values[0] - row["relative"][0])
    assert gap <= short.residuals[0] + row["relative_residuals"][0] + 1e-4 * row["relative"][0], (
        f"λ_max in 5 steps: got {short.values[0]}, want {row['relative'][0]} ± {short.residuals[0]}"
    )


def test_weak_locks_and_noise_are_seen(monkeypatch):
    def no_effect(row):
        if row["model"] == "planted":
            row["held_out"] = [0.1] * len(row["held_out"])
        return row

    planted(monkeypatch, tuning, no_effect)
    assert failed(settled(dlr_finetune.FINETUNE)) == {"power"}


def test_a_locked_model_that_tunes_as_well_leaves_the_landscape_undecided(monkeypatch):
    def better(row):
        if row["model"] == "dlr-16":
            row["held_out"] = [*row["held_out"][:-1], row["held_out"][-1] - 0.2]
        return row

    planted(monkeypatch, tuning, better)
    found = settled(dlr_landscape.LANDSCAPE)
    assert found.verdict is Verdict.UNDECIDED
    assert failed(found) == {"equal steps: locked − original"}


def test_a_locked_model_that_tunes_as_well_in_any_way_refutes(monkeypatch):
    """One attacker is enough, and the counterexample is computed from the stored losses again."""

    def lora_works(row):
        if (row["model"], row["trained"]) == ("dlr-16", "lora"):
            row["held_out"] = [*row["held_out"][:-1], 0.05 + row["rate"] ** 2]
        return row

    planted(monkeypatch, tuning, lora_works)
    evidence = dlr_finetune.FINETUNE.check(Context(Subject({}, True), 0, 3))
    assert evidence.verdict is Verdict.REFUTED
    assert dlr_finetune.rerun_finetune(evidence.counterexample.given) == evidence.counterexample.got
    assert dlr_finetune.best_way(dlr_finetune.stored("dlr_finetune"))[0].attacker == "lora"


def test_an_attacker_that_was_not_run_leaves_it_undecided(monkeypatch):
    found = stored("dlr_finetune")
    fewer = [row for row in found.rows if (row["model"], row["trained"]) != ("dlr-16", "mlp")]
    edited = found.model_copy(update={"rows": fewer})
    monkeypatch.setattr(dlr_finetune, "stored", lambda name: edited if name == edited.experiment else stored(name))
    evidence = settled(dlr_finetune.FINETUNE)
    assert evidence.verdict is Verdict.UNDECIDED and "MLPs or DLR-Nets alone" in evidence.explanation


def test_a_sharp_lock_is_seen(monkeypatch):
    def sharp(row):
        if row["model"] == "dlr-16":
            row["relative"] = [2 * v for v in row["relative"]]
        return row

    planted(monkeypatch, curving, sharp)
    assert failed(settled(dlr_landscape.LANDSCAPE)) == {"other side: relative curvature"}


def test_a_best_rate_at_the_edge_is_flagged(monkeypatch):
    def falling(row):
        if row["trained"] == "all" and row["model"] == "dlr-16":
            row["held_out"] = [*row["held_out"][:-1], row["rate"]]
        return row

    planted(monkeypatch, tuning, falling)
    fresh = [tuning.RATES[0]]
    found = stored("dlr_finetune")
    rows = [row for row in found.rows if row["seed"] in tuning.SEEDS or row["rate"] in fresh]
    monkeypatch.setattr(dlr_finetune, "EVERY_SEED", tuning.SEEDS)
    edited = found.model_copy(update={"rows": [falling(dict(row)) for row in rows]})
    monkeypatch.setattr(dlr_finetune, "stored", lambda name: edited if name == edited.experiment else stored(name))
    monkeypatch.setattr(dlr_finetune, "controls", lambda found: dlr_finetune.Controls())
    assert "best rates inside the grid" in failed(settled(dlr_finetune.FINETUNE))


def test_a_mean_over_rates_instead_of_the_best_would_be_another_figure():
    found = stored("dlr_finetune")
    one = runs(found, "original", "all", tuning.SEEDS)
    mean = float(np.mean(list(one.at(one.steps).values())))
    assert one.best.mean < mean
    assert one.best.mean == min(float(np.mean(v)) for v in one.at(one.steps).values())


def test_a_diverged_stored_run_counts_as_infinite():
    found = stored("dlr_finetune")
    rows = [dict(row) for row in found.rows]
    rows[0]["held_out"] = [rows[0]["held_out"][0], *[None] * (len(rows[0]["held_out"]) - 1)]
    edited = found.model_copy(update={"rows": rows})
    one = runs(edited, "original", "all", tuning.SEEDS)
    assert math.isinf(one.at(one.steps)[tuning.RATES[0]][0])
    assert one.best.rate != tuning.RATES[0]
    assert runs(edited, "dlr-99", "all", tuning.SEEDS) is None
