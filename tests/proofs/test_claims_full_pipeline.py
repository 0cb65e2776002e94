"""FULL-PIPELINE reads two stored experiments: figures that go wrong cost the verdict, and a cell comes out again."""

import copy
from dataclasses import replace

import numpy as np
import pytest

from lockproofs.claim import MissingInput, Verdict, settle
from lockproofs.claims import full_pipeline
from lockproofs.claims.full_pipeline import PIPELINE, given_by, recovered, rerun_pipeline
from lockproofs.claims.full_tuning import RECOVERED, Tuning, share
from lockproofs.experiments import full_finetune as tuning
from lockproofs.experiments import full_pipeline as undoing
from lockproofs.experiments.full_pipeline import measure
from lockproofs.experiments.store import stored
from lockref.locks.dlr import assembled
from lockref.models import dlrnet

AVERAGE = "0.5, 0.5"


@pytest.fixture(scope="module")
def found():
    return stored("full_pipeline")


@pytest.fixture(scope="module")
def tuned():
    return stored("full_finetune")


def settled(monkeypatch, *results):
    edited = {result.experiment: result for result in results}
    monkeypatch.setattr(full_pipeline, "stored", lambda name: edited.get(name) or stored(name))
    return settle(PIPELINE.kind, PIPELINE.check(None))


def changed(result, where, change):
    rows = copy.deepcopy(result.rows)
    for row in rows:
        if where.items() <= row.items():
            change(row)
    return result.model_copy(update={"rows": rows})


def ends_at(loss):
    def change(row):
        row["held_out"] = [*row["held_out"][:-1], loss + abs(np.log(row["rate"] / 2e-3)) / 100]  # best inside the grid

    return change


def test_it_is_as_recorded_and_its_counterexample_runs_again(monkeypatch, found, tuned):
    evidence = settled(monkeypatch, found, tuned)
    assert evidence.verdict is PIPELINE.recorded is Verdict.REFUTED
    assert evidence.counterexample.got == rerun_pipeline(evidence.counterexample.given)
    assert evidence.plots and "public base" in evidence.explanation


def merge_fails(row):
    row["merged"][AVERAGE] = 3.6


MERGE_FAULTS = [
    ({"what": "merge", "of": "pipeline"}, merge_fails),
    ({"what": "merge", "of": "planes undone"}, merge_fails),
    ({"what": "merge", "of": "planes"}, lambda row: row["merged"].update({AVERAGE: 1.0})),
    ({"what": "origin"}, lambda row: row["right"].update({"scrambled base": 8})),
    ({"what": "origin"}, lambda row: row["right"].update({"base": 7})),
]


@pytest.mark.parametrize(("where", "change"), MERGE_FAULTS)
def test_an_attack_or_a_control_that_fails_costs_the_verdict(where, change, monkeypatch, found, tuned):
    lost = changed(changed(tuned, {"model": "pipeline"}, ends_at(1.2)), {"model": "locked"}, ends_at(1.2))
    assert settled(monkeypatch, changed(found, where, change), lost).verdict is Verdict.UNDECIDED


# The half of fine-tuning, with merging out of the way.


def reached(monkeypatch, found, tuned):
    """The evidence where merging did not break the lock."""
    return settled(monkeypatch, changed(found, {"what": "merge", "of": "pipeline"}, merge_fails), tuned)


def broken(tuned):
    """The unlocked expert and the lock undone end at one loss, whatever the seed."""
    for name in ("unlocked", "pipeline", "planted, undone"):
        tuned = changed(tuned, {"model": name}, ends_at(0.2))
    return tuned


def test_fine_tuning_alone_refutes_where_its_whole_interval_does(monkeypatch, found, tuned):
    assert set(Tuning(broken(tuned)).shares("pipeline")) == {1.0}
    evidence = reached(monkeypatch, found, broken(tuned))
    assert evidence.verdict is Verdict.REFUTED
    assert evidence.checks[0].name == "fine-tuning"
    one = changed(
        changed(broken(tuned), {"model": "pipeline", "seed": 3}, ends_at(1.0)), {"model": "locked"}, ends_at(1.2)
    )
    one = changed(one, {"model": "pipeline", "seed": tuning.FRESH_SEEDS[0]}, ends_at(1.0))
    assert Tuning(one).reached.low < RECOVERED
    assert reached(monkeypatch, found, one).verdict is Verdict.UNDECIDED


def test_the_better_way_counts(tuned):
    lost = changed(broken(tuned), {"model": "locked"}, ends_at(1.0))
    assert len(Tuning(lost).deciding["attacked"]) in (len(tuning.SEEDS), len(tuning.FRESH_SEEDS))
    assert Tuning(lost).way == "pipeline" and Tuning(lost).broken
    other = changed(changed(lost, {"model": "pipeline"}, ends_at(1.0)), {"model": "locked"}, ends_at(0.2))
    assert Tuning(other).way == "locked" and Tuning(other).broken
    assert len(Tuning(other).deciding["attacked"]) == len(tuning.SEEDS), "no fresh seeds were run on the lock as it is"


def test_fresh_seeds_alone_decide(tuned):
    seeds = tuning.FRESH_SEEDS
    rows = [row for row in broken(tuned).rows if row["seed"] not in seeds]
    add = [{**row, "seed": seed} for row in rows if row["seed"] == 0 and row["rate"] == 2e-3 for seed in seeds]
    fresh = tuned.model_copy(update={"rows": rows + [r for r in add if r["model"] in ("unlocked", "pipeline")]})
    assert Tuning(fresh).broken and len(Tuning(fresh).deciding["attacked"]) == len(seeds)
    worse = changed(fresh, {"model": "pipeline", "seed": seeds[-1]}, ends_at(1.4))
    assert not Tuning(worse).broken and set(Tuning(worse).shares("pipeline")) == {1.0}


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ({"model": "planted"}, ends_at(0.2)),
        ({"model": "shuffled"}, ends_at(0.2)),
        ({"model": "planted, undone"}, ends_at(0.7)),
        ({"model": "pipeline", "rate": tuning.RATES[-1]}, ends_at(0.1)),
    ],
    ids=["a weak lock that hinders nothing", "data alone", "a weak lock not undone", "best at the edge"],
)
def test_a_control_that_fails_takes_fine_tuning_out(where, change, monkeypatch, found, tuned):
    wrong = changed(broken(tuned), where, change)
    assert not Tuning(wrong).broken
    evidence = reached(monkeypatch, found, wrong)
    assert evidence.verdict is Verdict.UNDECIDED and "this decides nothing" in evidence.explanation
    whole = settled(monkeypatch, found, wrong)
    assert whole.verdict is Verdict.REFUTED and [c.name for c in whole.checks] == ["merging", "planes"]


def test_a_model_without_its_grid_is_missing(tuned):
    rows = [row for row in tuned.rows if row["model"] != "base"]
    with pytest.raises(MissingInput, match="no grid for base; run python -m"):
        Tuning(tuned.model_copy(update={"rows": rows})).of("base")


def test_shares_by_hand():
    assert recovered({"average": {"unlocked": 1.0, "locked": 3.0, "attacked": 1.5}}) == 0.75
    assert share(1.5, 0.5, 0.75) == 0.75


def test_a_cell_comes_out_again(found, tuned):
    """float32 sums of at most m = 384 terms in each of 4 layers: 4 · 384 · 2⁻²⁴ of the loss, on any machine."""
    got = measure({"what": "merge", "of": "planes"})["merged"]
    (want,) = found.where(what="merge", of="planes")
    assert got == pytest.approx(want["merged"], rel=4 * 384 * 2.0**-24)
    given = given_by(found, Tuning(tuned))
    assert given["average"]["unlocked"] < given["average"]["locked"]


# The runs themselves.


@pytest.fixture
def quickly_locked(monkeypatch):
    """A lock and its undoing that need no training: random networks, and the expert itself."""
    expert, config = undoing.public("add")
    net = replace(undoing.composition(config).net, depth=2, rank=3)
    rng = np.random.default_rng(0)
    nets = {i: dlrnet.initialize(net, rng, b_scale=0.1, dtype=np.float32) for i in range(config.num_hidden_layers)}
    monkeypatch.setattr(undoing, "released", lambda: (assembled(expert, nets), []))
    monkeypatch.setattr(undoing, "composition", lambda config: replace(honest(config), net=net))
    monkeypatch.setattr(undoing, "redistilled", lambda start: expert)
    tuning.model.cache_clear()
    tuning._fixed.cache_clear()
    yield
    tuning.model.cache_clear()
    tuning._fixed.cache_clear()


honest = undoing.composition


@pytest.mark.parametrize("name", tuning.MODELS)
def test_every_model_of_the_cells_can_be_trained(name, quickly_locked):
    """A first version knew models with SwiGLUs only, and stopped with a KeyError at the first cell of the lock."""
    cell = next(cell for cell in tuning.EXPERIMENT.cells if cell["model"] == name)
    got = tuning.measure(cell, stop_after=1)
    assert len(got["held_out"]) == 2 and all(np.isfinite(got["held_out"])) and got["diverged_at"] is None
    assert got["held_out"][0] != got["held_out"][1]


def test_cells_name_models_that_there_are():
    assert {cell["model"] for cell in tuning.EXPERIMENT.cells} == set(tuning.MODELS)
    with pytest.raises(KeyError, match="choose from unlocked"):
        tuning.model("sealed")


def test_the_planted_weak_lock_keeps_the_bits_and_is_scaled_back_to_them():
    expert, base = tuning.model("unlocked"), undoing.public("base")[0]
    planted = tuning.model("planted")
    moved = [n for n, w in expert.tensors.items() if not np.array_equal(planted.tensors[n], w)]
    assert len(moved) == 4 * len(tuning.PLANTED)
    back = tuning.scaled_back(planted.tensors, base)
    assert all(np.array_equal(back[n], w) for n, w in expert.tensors.items())


def test_the_first_steps_of_a_stored_run_repeat(tuned, monkeypatch):
    """Twenty steps again; other libraries round otherwise, by no more than weights moved by 64 roundings do."""
    (row,) = tuned.where(model="unlocked", rate=1e-3, seed=0)
    cell, model = {name: row[name] for name in ("model", "trained", "rate", "seed")}, tuning.model("unlocked")
    got, rng = tuning.measure(cell, stop_after=tuning.EVERY), np.random.default_rng(0)
    counts = ("tokens", "operations", "bytes")
    assert {name: got[name] for name in counts} == {name: row[name] for name in counts}

    def moved():
        noise = {n: w * (1 + 64 * 2.0**-24 * rng.standard_normal(w.shape)).astype(w.dtype)
                 for n, w in model.tensors.items()}  # fmt: skip
        monkeypatch.setattr(tuning, "model", lambda name: replace(model, tensors=noise))
        return tuning.measure(cell, stop_after=tuning.EVERY)["held_out"]

    tolerance = 2 * np.max([np.abs(np.subtract(moved(), got["held_out"])) for _ in range(2)], axis=0) + 1e-6
    gap = np.abs(np.subtract(got["held_out"], row["held_out"][:2]))
    assert np.all(gap <= tolerance), f"stored curve: got {got['held_out']}, want {row['held_out'][:2]} ± {tolerance}"
