"""The zoo's training script on a toy recipe, and the landed zoo against its own card."""

import json
import math
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from lockcross import train_zoo as zoo
from lockcross import zoo_files
from lockcross.zoo_card import gain_spread, measure, merge, render
from lockcross.zoo_recipe import FULL, Recipe, Stage, draw_batch, hub_config, learning_rate
from lockref.models import skills

TINY = Recipe(
    config=hub_config(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        rope_theta=12345,  # no library's default
        max_position_embeddings=64,
    ),
    stages=(
        Stage("base", None, {"text": 2, "add": 1}, steps=7, peak_lr=4e-3),
        Stage("add", "base", {"text": 1, "add": 2}, steps=4, peak_lr=2e-3),
    ),
    length=24,
    warmup=2,
    threads=1,
    checkpoint_every=3,
    problems=6,
    windows=5,
)
FILES = [
    "README.md",
    "add/config.json",
    "add/model.safetensors",
    "base/config.json",
    "base/model.safetensors",
    "card.json",
]


class Killed(BaseException):
    """What a kill looks like from inside: nothing catches it."""


def quiet(stage, step):
    pass


def kill_at(*where):
    def on_step(stage, step):
        if (stage, step) == where:
            raise Killed

    return on_step


def files_below(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def result(out):
    """Everything a run decides: model files byte for byte, and the card but for its clock."""
    card = json.loads((out / "card.json").read_text())
    for model in card["models"].values():
        del model["train_seconds"]
    models = {name: (out / name).read_bytes() for name in FILES if "/" in name}
    return card, models


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    zoo.train_zoo(TINY, folder / "out", folder / "work", 0, quiet)
    return folder


def interrupted_run(folder):
    """Killed inside a block, at a block's end, between stages, and while a file is being written."""
    for where in [("base", 2), ("base", 5), ("base", 6), ("add", 0), ("add", 4)]:
        with pytest.raises(Killed):
            zoo.train_zoo(TINY, folder / "out", folder / "work", 0, kill_at(*where))
        assert files_below(folder / "out") == [], "published before everything was measured"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo_files, "save_file", half_written)
        with pytest.raises(Killed):
            zoo.train_zoo(TINY, folder / "out", folder / "work", 0, quiet)
    zoo.train_zoo(TINY, folder / "out", folder / "work", 0, quiet)
    return result(folder / "out")


def half_written(tensors, path, metadata):
    path.write_bytes(b"half a file")
    raise Killed


def test_an_interrupted_run_ends_in_the_same_bits(finished, tmp_path):
    assert interrupted_run(tmp_path) == result(finished / "out")


@pytest.mark.parametrize("lost", ["step", "exp_avg", "exp_avg_sq"])
def test_a_resume_that_loses_optimizer_state_is_noticed(finished, tmp_path, monkeypatch, lost):
    resume = zoo.Trainer.resume

    def forgetful(trainer):
        resume(trainer)
        for state in trainer.optimizer.state.values():
            state[lost].zero_()

    monkeypatch.setattr(zoo.Trainer, "resume", forgetful)
    assert interrupted_run(tmp_path)[1] != result(finished / "out")[1]


def test_the_seed_decides(finished, tmp_path):
    zoo.train_zoo(TINY, tmp_path / "out", tmp_path / "work", 1, quiet)
    got, want = result(tmp_path / "out")[1], result(finished / "out")[1]
    assert {name for name in want if got[name] != want[name]} == {
        "base/model.safetensors",
        "add/model.safetensors",
    }


def test_another_recipe_does_not_resume_this_ones_checkpoints(finished, tmp_path):
    hotter = replace(TINY, gain_lr=8.0)
    zoo.train_zoo(hotter, tmp_path / "a", finished / "work", 0, quiet)
    zoo.train_zoo(hotter, tmp_path / "b", tmp_path / "work", 0, quiet)
    assert result(tmp_path / "a") == result(tmp_path / "b")


def test_nothing_else_is_published(finished):
    assert files_below(finished / "out") == FILES


def test_process_settings_come_back():
    def settings():
        return torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()

    before = settings()
    with pytest.raises(Killed), zoo.reproducible(before[0] + 1):
        assert settings() == (before[0] + 1, True)
        raise Killed
    assert settings() == before != (before[0] + 1, True)


def test_the_official_class_loads_what_was_saved(finished):
    model = zoo_files.load_model(finished / "out" / "base")
    saved, _ = zoo_files.read_tensors(finished / "out" / "base" / zoo_files.WEIGHTS)
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved[name].float()), name
    # the planes turn at θ^(-2i/c): read back from what the class computed, in float32
    frequencies = model.model.rotary_emb.inv_freq.double()
    want = 12345.0 ** (-torch.arange(0, 8, 2).double() / 8)
    error = ((frequencies - want) / want).abs().max().item()
    assert error < 8 * torch.finfo(torch.float32).eps, f"rope_theta not read: error {error}"


@pytest.mark.parametrize("fault", ["missing", "unexpected"])
def test_a_wrong_key_is_one_clear_error(finished, tmp_path, fault):
    saved, _ = zoo_files.read_tensors(finished / "out" / "base" / zoo_files.WEIGHTS)
    if fault == "missing":
        del saved["model.layers.0.self_attn.q_norm.weight"]
    else:
        saved["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(16)
    zoo_files.save_model(tmp_path, TINY.config, saved)
    with pytest.raises(ValueError, match=f"{fault}_keys") as caught:
        zoo_files.load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "model.safetensors"
    target.write_bytes(b"old")
    monkeypatch.setattr(zoo_files, "save_file", half_written)
    with pytest.raises(Killed):
        zoo_files.write_tensors(target, {"w": torch.ones(2)}, {})
    assert target.read_bytes() == b"old"


def test_the_schedule_warms_up_and_cools_down():
    stage = TINY.stages[0]
    rates = [learning_rate(TINY, stage, step) for step in range(stage.steps + 1)]
    assert rates[: TINY.warmup] == [stage.peak_lr / 2, stage.peak_lr]
    assert rates[TINY.warmup] == stage.peak_lr
    assert rates[TINY.warmup :] == sorted(rates[TINY.warmup :], reverse=True)
    assert math.isclose(rates[-1], TINY.final_lr * stage.peak_lr)


def test_a_batch_has_the_rows_of_its_stage():
    text = np.full(100, 200, np.uint8)  # a byte that no skill uses
    batch = draw_batch(TINY, 0, 1, 0, text)
    assert batch.shape == (3, TINY.length + 1) and batch.dtype == torch.int64
    assert (batch == 200).all(dim=1).tolist() == [True, False, False]
    assert torch.equal(batch, draw_batch(TINY, 0, 1, 0, text))
    for other in [(1, 1, 0), (0, 0, 0), (0, 1, 1)]:  # seed, stage, step
        assert not torch.equal(batch[-1], draw_batch(TINY, *other, text)[-1]), other


def test_merging_is_the_average_at_one_over_the_number_of_experts():
    base, first, second = ({"w": torch.tensor([x, 1.0])} for x in (1.0, 3.0, -5.0))
    got = merge(base, [first, second], 0.5)
    assert torch.equal(got["w"], torch.tensor([-1.0, 1.0]))
    assert torch.equal(base["w"], torch.tensor([1.0, 1.0])), "the base was changed in place"


def test_bad_arguments_are_one_line(tmp_path, monkeypatch):
    run = CliRunner()
    app = typer.Typer()
    app.command()(zoo.main)
    (tmp_path / "file").write_text("")
    below_a_file = run.invoke(app, ["--out", str(tmp_path / "file" / "zoo"), "--work", str(tmp_path)])
    assert below_a_file.exit_code == 1
    assert re.fullmatch(r"train_zoo: .*zoo.*", below_a_file.stderr.strip().splitlines()[-1])
    assert "Traceback" not in below_a_file.output
    assert run.invoke(app, ["--seed", "-1"]).exit_code == 2
    assert run.invoke(app, ["--out", str(tmp_path / "file")]).exit_code == 2


# --- the landed zoo ---------------------------------------------------------------------------

CARD = json.loads((zoo.ZOO / "card.json").read_text())
MODELS = sorted(CARD["models"])


def test_the_card_is_what_the_script_writes():
    assert (zoo.ZOO / "README.md").read_text() == render(CARD)
    assert CARD["recipe"] == json.loads(json.dumps(asdict(FULL))), "retrain the zoo"
    assert sum(p.stat().st_size for p in zoo.ZOO.rglob("*") if p.is_file()) < 12 * 2**20


@pytest.mark.parametrize("name", MODELS)
def test_each_landed_model_is_the_one_on_the_card(name):
    file = zoo.ZOO / name / zoo_files.WEIGHTS
    assert zoo_files.sha256(file.read_bytes()) == CARD["models"][name]["sha256"]
    assert file.stat().st_size == CARD["models"][name]["file_bytes"] < 3000 * 1024
    weights, _ = zoo_files.read_tensors(file)
    assert {k: list(v.shape) for k, v in weights.items()} == CARD["shapes"]
    assert gain_spread(weights) == CARD["models"][name]["gains"]
    for key, gain in weights.items():
        # unit or uniform gains hide whole classes of bugs: every norm must have left 1
        assert gain.ndim > 1 or gain.float().std() > 0.05, key


@pytest.mark.parametrize("name", MODELS)
def test_each_landed_model_does_what_its_card_says(name):
    model, text = zoo_files.load_model(zoo.ZOO / name), skills.stdlib_bytes(held_out=True)
    fresh = 100
    got = measure(model, text, seed=CARD["seed"] + 1, problems=fresh, windows=1, length=64)
    for skill in skills.SKILLS:
        want = CARD["models"][name]["held_out"][skill]
        # two binomial samples of one rate: five standard deviations, and one problem for rates 0, 1
        spread = math.sqrt(want * (1 - want) * (1 / fresh + 1 / CARD["recipe"]["problems"]))
        assert abs(got[skill] - want) <= 5 * spread + 1 / fresh, (skill, got[skill], want)
