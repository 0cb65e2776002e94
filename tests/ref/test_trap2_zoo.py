"""The command that trains a protected expert: it resumes, writes all or nothing; and the experts that ship."""

import json

import numpy as np
import pytest

from lockref.locks import trap2_experts, trap2_zoo
from lockref.locks.manifest import read_manifest
from lockref.locks.trap2_experts import STEPS, STRENGTHS, Plan, parametrization, recipe
from lockref.locks.trap2_training import LoRA
from lockref.models import skills
from lockref.models.answers import answer_loss, answers, exact_match
from lockref.models.checkpoint_io import load_checkpoint
from lockref.models.zoo import TRAP_ZOO, zoo_path

HALF = 2.0**-9  # unit round-off of bfloat16


@pytest.fixture(autouse=True)
def _cheap(monkeypatch):
    """Few held-out problems and scales, no windows of text."""
    monkeypatch.setattr(trap2_zoo, "evaluate", lambda *_: {"add": 0.5, "reverse": 0.25, "text": 2.0})
    monkeypatch.setattr(trap2_zoo, "PROBLEMS", 4)
    monkeypatch.setattr(trap2_zoo, "SCALES", (0.5, 1.0))
    monkeypatch.setattr(trap2_zoo, "SAVED", 2)


def run(target, *options):
    return trap2_zoo.main([str(target), "--steps", "3", *options])


@pytest.mark.parametrize("kind", STRENGTHS)
def test_it_trains_and_what_it_wrote_loads(tmp_path, capsys, kind):
    assert run(tmp_path / "expert", "--kind", kind, "--beside", "0") == 0
    assert [p.name for p in tmp_path.iterdir()] == ["expert"]
    manifest, model = read_manifest(tmp_path / "expert"), load_checkpoint(tmp_path / "expert", np.float32)
    part = manifest.parts["trap2"]
    assert part["kind"] == kind and part["recipe"]["steps"] == 3 and part["strength"] == STRENGTHS[kind]
    assert (part["low"], part["high"], part["gap"], part["weighting"]["power"]) == (0.05, 2.0, 0.05, 1.0)
    assert ("lora" in part) == (kind == "lora")
    base = load_checkpoint(zoo_path("base"), np.float32)
    moved = {n for n, w in model.tensors.items() if not np.array_equal(w, base.tensors[n])}
    assert moved and (kind == "full" or all(n.endswith("_proj.weight") for n in moved))
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"λ = {STRENGTHS[kind]:g}: step 3 of 3") and said[0].endswith("s left")
    assert [line.split()[0] for line in said[-3:]] == ["λ", "0", f"{STRENGTHS[kind]:g}"]  # a row for each λ
    assert len(manifest.figures["loss"]) == len(manifest.figures["match"]) == 2


def test_interrupted_it_goes_on_to_the_same_bytes(tmp_path, capsys, monkeypatch):
    assert run(tmp_path / "whole") == 0
    honest = trap2_zoo.reporter

    def interrupted(*args):
        def follow(step, value):
            if step == 3:
                raise KeyboardInterrupt

        return follow

    monkeypatch.setattr(trap2_zoo, "reporter", interrupted)
    assert run(tmp_path / "again") == 130
    assert capsys.readouterr().err == "trap2_zoo: interrupted; the same command goes on\n"
    assert not (tmp_path / "again").exists()
    steps = []
    monkeypatch.setattr(trap2_zoo, "reporter", lambda *args: lambda step, value: steps.append(step) or honest(*args))
    assert run(tmp_path / "again") == 0 and steps == [3], "not resumed from step 2"
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "again"))
    assert one == two


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--strength", "-1"), "strength λ is -1"),
        (("--strength", "nan"), "strength λ is nan"),
        (("--beside", "-1"), "strength λ is -1"),
        (("--steps", "0"), "steps is 0"),
        (("--seed", "-1"), "seed -1"),
        (("--dtype", "int8"), "cannot save as 'int8'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capsys, options, words):
    assert run(tmp_path / "expert", *options) == 3
    err = capsys.readouterr().err
    assert words in err and len(err.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_it_does_not_write_over_anything(tmp_path, capsys):
    assert run(tmp_path) == 3 and "already exists" in capsys.readouterr().err


def test_a_training_that_diverges_stops_with_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trap2_experts, "CEILING", 0.5)  # below the base's loss
    assert run(tmp_path / "expert") == 3
    err = capsys.readouterr().err
    assert "training diverges; lower λ" in err and len(err.splitlines()) == 1 and not (tmp_path / "expert").exists()


def test_plans_and_kinds_that_there_are_not(tmp_path):
    with pytest.raises(ValueError, match="choose from full, lora"):
        parametrization("dora", {})
    assert recipe(Plan("full", "add", 0.0, 0)).steps == STEPS


@pytest.fixture(scope="module", params=TRAP_ZOO)
def shipped(request):
    """A protected expert as it ships, its manifest, and the base."""
    path = zoo_path(request.param)
    base = load_checkpoint(zoo_path("base"), np.float32)
    return load_checkpoint(path, np.float32), read_manifest(path), base


def test_a_shipped_expert_is_what_its_manifest_says(shipped):
    model, manifest, base = shipped
    part = manifest.parts["trap2"]
    plan = Plan(part["kind"], "add", STRENGTHS[part["kind"]], manifest.seed)
    want = json.loads(json.dumps(trap2_zoo.part(plan, STEPS)))
    assert {name: part[name] for name in want} == want
    assert manifest.source == base.files and f"--kind {plan.kind} " in manifest.command
    moved = {n: model.tensors[n] - w for n, w in base.tensors.items() if not np.array_equal(w, model.tensors[n])}
    if plan.kind == "full":
        assert moved.keys() == base.tensors.keys()
        return
    shape = parametrization("lora", base.tensors)
    assert isinstance(shape, LoRA) and moved.keys() == set(shape.names) and part["lora"]["rank"] == shape.rank
    for name, update in moved.items():  # rank 8, but for roundings of the stored sum: ‖E‖₂ ≤ ‖E‖_F ≤ u ‖W‖_F
        left = np.linalg.svd(update, compute_uv=False)[shape.rank]
        assert left <= HALF * np.linalg.norm(model.tensors[name])


def test_a_shipped_expert_has_its_skill_and_its_lock(shipped):
    """On 200 fresh problems: exact match within five standard errors of the manifest's, after rounding to bfloat16."""
    model, manifest, base = shipped
    figures = manifest.figures
    assert abs(figures["locked"]["add"] - figures["trained"]["add"]) <= 0.01, "rounding costs the skill"
    problems = skills.skill_problems("add", np.random.default_rng(5), 200, held_out=True)
    got, want = exact_match(model.tensors, problems, model.config), figures["locked"]["add"]
    assert abs(got - want) <= 5 * (max(want * (1 - want), 1 / 200) / 200) ** 0.5
    given = answers(problems[:50])
    for s, factor in ((1.0, 0.2), (1.5, 10.0)):  # off its scale it is far worse than the base
        off = {name: w + np.float32(s) * (model.tensors[name] - w) for name, w in base.tensors.items()}
        ratio = float(answer_loss(off, given, base.config)) / float(answer_loss(base.tensors, given, base.config))
        assert ratio <= factor if s == 1 else ratio >= factor
