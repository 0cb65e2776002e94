"""The command that locks a model: it resumes, writes all or nothing, and what it writes loads as the same model."""

import json

import numpy as np
import pytest

from lockref.locks import distillation, dlr_run, full
from lockref.locks.dlr import locked_block
from lockref.locks.manifest import read_manifest
from lockref.models import qwen3
from lockref.models.tensor_file import CheckpointError

OPTIONS = ["--depth", "3", "--steps", "4", "--healing", "3", "--rows", "6", "--length", "8"]


@pytest.fixture
def source(tiny_qwen3, write_qwen3, tmp_path, monkeypatch):
    """A tiny model on disk, and random tokens of its vocabulary in place of bytes of text."""
    config, weights = tiny_qwen3()

    def tokens(rows, length, rng, held_out):
        return rng.integers(0, config.vocab_size, (rows, length))

    monkeypatch.setattr(dlr_run, "data", tokens)
    monkeypatch.setattr(dlr_run, "evaluate", lambda *_: {"add": 0.5, "reverse": 0.25, "text": 2.0})
    return write_qwen3(tmp_path / "source", config, weights)


def run(source, target, *options):
    return dlr_run.main([str(source), str(target), *OPTIONS, *options])


def test_it_locks_and_what_it_wrote_loads(source, tmp_path, capsys):
    assert run(source, tmp_path / "locked") == 0
    locked = full.load(tmp_path / "locked")
    assert locked.net.depth == 3 and locked.net.rank * 3 <= 60
    test = np.random.default_rng(1).integers(0, 61, (2, 7))
    assert np.isfinite(float(qwen3.loss(locked.tensors, test, locked.config, locked_block(locked.net))))
    manifest = read_manifest(tmp_path / "locked")
    assert len(manifest.figures["relative_error"]) == 2 and manifest.figures["loss_gap"] == 0
    assert manifest.parts["dlr"]["net"]["depth"] == 3 and len(manifest.source) == 2
    assert "--depth 3" in manifest.command and "--healing-rate" in manifest.command
    assert sorted(p.name for p in tmp_path.iterdir()) == ["locked", "source"]


def test_interrupted_it_goes_on_to_the_same_bytes(source, tmp_path, monkeypatch, capsys):
    run(source, tmp_path / "whole")
    honest = distillation.distill_model

    def interrupted(*args, **options):
        monkeypatch.setattr(distillation, "distill_model", honest)
        honest(*args, **options, stop_after=2)
        raise KeyboardInterrupt

    monkeypatch.setattr(distillation, "distill_model", interrupted)
    assert run(source, tmp_path / "again") == 130
    assert capsys.readouterr().err == "dlr_run: interrupted; the same command goes on\n"
    assert not (tmp_path / "again").exists()
    assert run(source, tmp_path / "again") == 0
    one, two = (tmp_path / name / "model.safetensors" for name in ("whole", "again"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--depth", "61"), "leaves less than rank 1"),
        (("--depth", "0"), "depth is 0"),
        (("--steps", "0"), "steps is 0"),
        (("--rate", "-1"), "learning_rate is -1"),
        (("--healing-rate", "nan"), "learning_rate is nan"),
        (("--rate", "1e30"), "lower the learning rate"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(source, tmp_path, capsys, options, words):
    assert run(source, tmp_path / "locked", *options) == 3
    err = capsys.readouterr().err
    assert words in err and len(err.splitlines()) == 1 and not (tmp_path / "locked").exists()


def test_it_does_not_write_over_anything(source, tmp_path, capsys):
    assert run(source, source) == 3 and "already exists" in capsys.readouterr().err
    assert run(tmp_path / "nowhere", tmp_path / "locked") == 3 and "does not exist" in capsys.readouterr().err


def test_what_does_not_fit_its_manifest_is_refused(source, tmp_path, capsys):
    run(source, tmp_path / "locked")
    file = tmp_path / "locked" / "lock.json"
    said = json.loads(file.read_text())
    net = said["parts"]["dlr"]["net"]
    for parts, words in (
        ({"dlr": {"net": net | {"depth": 2}}}, "4 unexpected, first .*blocks.2.a"),
        ({"dlr": {"net": net | {"depth": 0}}}, "depth is 0"),
        ({"dlr": {"net": {"depth": 2}}}, "settings are missing"),
        ({"dlr": {"net": 3}}, "settings are missing or unknown"),
        ({"attention": {"family": "topk-planes", "planes": 2}}, "unexpected, first .*blocks.0.a"),
    ):
        file.write_text(json.dumps(said | {"parts": parts}))
        with pytest.raises(CheckpointError, match=words):
            full.load(tmp_path / "locked")
    with pytest.raises(CheckpointError, match="does not exist"):
        full.load(tmp_path / "nowhere")


def test_weights_are_rounded_to_the_type_that_is_written(source, tmp_path, capsys):
    run(source, tmp_path / "half")
    run(source, tmp_path / "single", "--dtype", "float32")
    half, single = (full.load(tmp_path / name, np.float32).tensors for name in ("half", "single"))
    assert all(np.array_equal(dlr_run.rounded(w, "bfloat16"), half[name]) for name, w in single.items())
    assert not all(np.array_equal(w, half[name]) for name, w in single.items())
    assert run(source, tmp_path / "odd", "--dtype", "int8") == 3 and "cannot save as 'int8'" in capsys.readouterr().err


def test_it_says_how_long_is_left(monkeypatch):
    clock = iter([10.0, 20.0, 30.0])
    monkeypatch.setattr(distillation.time, "monotonic", lambda: next(clock))
    said = []
    follow = distillation.reporter("layer 0 of 2", 150, said.append)
    for step in range(51, 151):  # resumed at step 50: 51 … 100 took ten seconds
        follow(step, 0.5)
    assert said == [
        "layer 0 of 2: step 100 of 150, loss 0.5000, 10 s left", "layer 0 of 2: step 150 of 150, loss 0.5000, 0 s left"
    ]  # fmt: skip


def test_data_are_bytes_of_text_and_skills():
    tokens = dlr_run.data(16, 40, np.random.default_rng(0), True)
    assert tokens.shape == (16, 40) and tokens.max() < 128
    assert sum(ord("=") in row and ord("+") in row for row in tokens) >= 2  # an eighth each
    assert sum(ord(">") in row for row in tokens) >= 2
