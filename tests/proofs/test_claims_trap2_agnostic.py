"""TRAP-AGNOSTIC: its rule on planted rows, one stored row measured again, and the page's table."""

import json
from pathlib import Path

import numpy as np
import pytest

from lockproofs import trap_digits, trap_models, trap_runs
from lockproofs.claim import MissingInput, Verdict
from lockproofs.claims import trap2_agnostic, trap2_cases
from lockproofs.claims.trap2_agnostic import CLAIMS, QUESTIONS
from lockproofs.digits import PARTS, images
from lockproofs.experiments import trap_digits as experiment
from lockproofs.experiments.store import stored
from lockproofs.experiments.trap_merge import operators
from lockproofs.trap_digits import PARTNER, SEEDS, SKILL, STRENGTHS, Plan
from lockref.locks.trap2_training import PUBLISHED

from .recorded import assert_recorded, settled

(CLAIM,) = CLAIMS
PAGE = Path(__file__).parents[2] / "docs" / "trap2.md"


def run():
    return settled(CLAIM)


def test_it_is_what_is_recorded_and_its_counterexample_reruns():
    assert_recorded(CLAIM)


def test_by_the_first_rule_no_case_says_no_to_merge():
    """As the assumptions say: it asked for 0.9 of the gain in every seed, at every λ."""
    assert "By the first rule no case says no to merge" in trap2_agnostic.SINCE
    for cases in trap2_cases.tried().values():
        assert len(cases) < trap2_cases.ENOUGH or min(min(case.quotients("merge")) for case in cases) < 0.9


def plain_of(result, row, **more):
    """The unprotected row of the same kind and seed."""
    (found,) = result.where(kind=row["kind"], seed=row["seed"], strength=0.0, **more)
    return found


def lost(row, plain, factor):
    """The unprotected row's curve, `factor` times as high off the nominal scale."""
    off = [loss * (1 if s in (0, 1) else factor) for s, loss in zip(plain["scales"], plain["loss"], strict=True)]
    row.update(scales=plain["scales"], loss=off, match=plain["match"])


def planted(factor, merged, but=()):
    """Every protected row as if curves rose by `factor` and merges had this share of right answers on the skill.

    `but` names (model, kind) pairs, or (model, kind, strength), in which protection does nothing at all.
    """
    results = {name: stored(name).model_copy(deep=True) for name in ("trap_scale", "trap_merge", "trap_digits")}

    def idle(model, row):
        return bool({(model, row["kind"]), (model, row["kind"], row["strength"])} & set(but))

    for row in results["trap_scale"].rows:
        if row["strength"]:
            lost(row, plain_of(results["trap_scale"], row), 1.0 if idle("zoo", row) else factor)
    for row in results["trap_merge"].rows:
        if row["strength"] and row["operator"] in operators(row["kind"]):
            same = plain_of(results["trap_merge"], row, operator=row["operator"])
            share = same[trap_models.SKILL] if idle("zoo", row) else merged
            row.update(
                {trap_models.SKILL: share, trap_models.PARTNER: same[trap_models.PARTNER], "score": same["score"]}
            )
    for row in results["trap_digits"].rows:
        if row["strength"] and "stopped" not in row:
            plain = plain_of(results["trap_digits"], row, order=0)
            lost(row, plain, 1.0 if idle("digits", row) else factor)
            row.update(json.loads(json.dumps({name: plain[name] for name in ("alone", "merges")})))
            for name in operators(row["kind"]) if not idle("digits", row) else ():
                row["merges"][name][SKILL] = merged
    return results


def use(monkeypatch, results):
    for module in (trap_runs, trap2_agnostic):
        monkeypatch.setattr(module, "stored", results.__getitem__)


NOTHING = [(model, kind) for model in trap_runs.MODELS for kind in trap_runs.KINDS]
AS_PUBLISHED = [("digits", kind, published.strength) for kind, published in PUBLISHED.items()]


@pytest.mark.parametrize(
    ("factor", "merged", "but", "want"),
    [
        (5.0, 0.0, [], Verdict.HOLDS),
        (5.0, 0.0, AS_PUBLISHED, Verdict.HOLDS_IF),
        (5.0, 0.0, AS_PUBLISHED[:1], Verdict.HOLDS_IF),
        (5.0, 0.0, [("digits", "full")], Verdict.REFUTED),
        (5.0, 0.0, [("digits", "lora")], Verdict.REFUTED),
        (5.0, 0.0, [("digits", "lora"), ("digits", "full")], Verdict.REFUTED),
        (5.0, 0.0, [("zoo", "lora")], Verdict.UNDECIDED),  # too few λ for a no
        (5.0, 0.95, [("digits", "full")], Verdict.REFUTED),  # by the curve alone
        (5.0, 0.0, NOTHING, Verdict.UNDECIDED),  # alike, but protection does nothing
        (1.0, 0.0, [], Verdict.UNDECIDED),  # merges fail, the curve does not say why
    ],
)
def test_the_rule_on_planted_rows(monkeypatch, factor, merged, but, want):
    use(monkeypatch, planted(factor, merged, but))
    evidence = run()
    assert evidence.verdict is want, evidence.explanation
    assert all(control.passed for control in (evidence.controls.null, evidence.controls.power))
    if want is Verdict.REFUTED:
        found = evidence.counterexample
        assert {side["case"] for side in found.given["no"]} <= {", ".join(case) for case in but}
        assert CLAIM.rerun(json.loads(json.dumps(found.given))) == found.got


def test_strengths_that_cost_the_skill_do_not_count(monkeypatch):
    results = planted(5.0, 0.0, [("digits", "lora")])
    for row in results["trap_digits"].where(kind="lora"):
        if row["strength"] > 0.01 and "stopped" not in row:
            row["match"] = [0.5] * len(row["match"])
    use(monkeypatch, results)
    assert run().verdict is Verdict.UNDECIDED  # two λ are too few for a no


def test_what_holds_needs_one_strength_for_all_questions(monkeypatch):
    """Small λ raise the curve and leave merges as they are; larger ones spoil merges alone."""
    results = planted(5.0, 0.0)
    for row in results["trap_digits"].where(kind="full"):
        if row["strength"] and "stopped" not in row:
            plain = plain_of(results["trap_digits"], row, order=0)
            if row["strength"] < 0.1:
                row["merges"] = json.loads(json.dumps(plain["merges"]))
            else:
                lost(row, plain, 1.0)
    use(monkeypatch, results)
    assert run().verdict is Verdict.UNDECIDED


def test_controls_can_fail(monkeypatch):
    results = planted(5.0, 0.0)
    for row in results["trap_digits"].where(kind="full", order=1):
        lost(row, plain_of(results["trap_digits"], row, order=0), 5.0)
    use(monkeypatch, results)
    assert not run().controls.null.passed and run().verdict is Verdict.UNDECIDED
    results = planted(5.0, 0.0)
    for row in results["trap_digits"].where(kind="full", strength=0.0):
        for merge in row["merges"].values():
            merge[SKILL] = 0.0
    use(monkeypatch, results)
    assert not run().controls.power.passed and run().verdict is Verdict.UNDECIDED


def test_a_strength_at_which_a_seed_diverged_does_not_count(monkeypatch):
    kind, strength = "full", trap_runs.strengths("digits", "full")[-1]
    result = stored("trap_digits").model_copy(deep=True)
    result.where(kind=kind, strength=strength, seed=SEEDS[2])[0]["stopped"] = "diverged"
    use(monkeypatch, {"trap_digits": result})
    assert strength not in trap_runs.strengths("digits", kind)


def test_a_stored_row_comes_out_again(monkeypatch):
    """The whole training of one protected adapter; what a change of 10⁻¹⁰ in its base does bounds what rounding may."""
    (row,) = stored("trap_digits").where(kind="lora", strength=0.05, seed=SEEDS[0], order=0)
    plan, at = Plan("lora", 0.05, SEEDS[0]), (4, 8, 16)

    def measured():
        trap_digits.trained.cache_clear()
        found = [trap_digits.figures(trap_digits.at_scale(plan, experiment.GRID[k])) for k in at]
        return np.array([f[f"{SKILL}_loss"] for f in found]), [f[SKILL] for f in found]

    want, shares = np.array([row["loss"][k] for k in at]), [row["match"][k] for k in at]
    got, right = measured()
    base, rng = trap_digits.base(SEEDS[0]), np.random.default_rng(0)
    nearby = {n: w * (1 + 1e-10 * rng.standard_normal(w.shape)) for n, w in base.items()}
    monkeypatch.setattr(trap_digits, "base", lambda seed: nearby)
    moved = np.abs(measured()[0] - got)
    trap_digits.trained.cache_clear()
    assert np.all(np.abs(got - want) <= moved), f"got {got}, want {want} ± {moved}"
    assert right == shares
    (other,) = stored("trap_digits").where(kind="lora", strength=0.02, seed=SEEDS[0], order=0)  # planted: another λ
    assert np.all(np.abs(got - [other["loss"][k] for k in at]) > moved)


def test_the_split_has_every_image_once():
    rows = np.concatenate([images(part).patches.reshape(-1, 36 * 9) for part in PARTS])
    assert len(rows) == sum(PARTS.values()) == 1797 and len(np.unique(rows, axis=0)) > 1790
    held = images("held out")
    counts = {name: len(held.of(digits).labels) for name, digits in trap_digits.DIGITS.items()}
    assert {json.dumps(r["images"]) for r in stored("trap_digits").rows if "stopped" not in r} == {json.dumps(counts)}


def test_without_scikit_learn_the_digits_say_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    images.cache_clear()
    with pytest.raises(MissingInput, match="scikit-learn"):
        images("training")


def table():
    """What the page must contain: λ by λ what it costs, how far losses rise, and what a merge keeps."""
    lines = ["| update | λ | right at s = 1, of 0-4 | loss at s = 2, times | the most below, times | merge keeps |"]
    lines += ["| :-- | --: | --: | --: | --: | --: |"]
    cases = trap2_cases.tried()
    for kind, strengths in STRENGTHS.items():
        finished = {case.strength: case for case in cases[f"digits, {kind}"]}
        drop = finished[strengths[0]].drop
        lines.append(f"| {kind} | 0 | {drop.plain} of {drop.problems} | 1 | 1 | 1 |")
        for strength in strengths:
            if strength not in finished:
                stopped = sum("stopped" in row for row in stored("trap_digits").where(kind=kind, strength=strength))
                lines.append(f"| {kind} | {strength:g} | diverges in {stopped} of {len(SEEDS)} seeds | | | |")
                continue
            case = finished[strength]
            spans = [f"{min(q):.3g} … {max(q):.3g}" for q in map(case.quotients, QUESTIONS)]
            lines.append(f"| {kind} | {strength:g} | {case.drop.protected} | {' | '.join(spans)} |")
    return lines


def test_the_page_shows_the_rows():
    text = PAGE.read_text(encoding="utf-8").splitlines()
    missing = [line for line in table() if line not in text]
    assert not missing, f"docs/trap2.md lacks or misquotes: {missing[0]}"


def test_partners_are_of_the_same_kind_and_base():
    assert trap_digits.partner(Plan("lora", 0.1, 3)) == Plan("lora", 0.0, 3, PARTNER)
