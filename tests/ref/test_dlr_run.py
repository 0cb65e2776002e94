"""The command that locks a model: it resumes, writes all or nothing, and what it writes loads as the same model."""

import json

import numpy as np
import pytest

from lockref.locks import dlr_run
from lockref.locks.dlr import locked_block
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
    return write_qwen3(tmp_path / "source", config, weights)


def run(source, target, *options):
    return dlr_run.main([str(source), str(target), *OPTIONS, *options])


def test_it_locks_and_what_it_wrote_loads(source, tmp_path, capsys):
    assert run(source, tmp_path / "locked") == 0
    locked = dlr_run.load(tmp_path / "locked")
    assert locked.net.depth == 3 and locked.net.rank * 3 <= 60
    test = np.random.default_rng(1).integers(0, 61, (2, 7))
    assert np.isfinite(float(qwen3.loss(locked.tensors, test, locked.config, locked_block(locked.net))))
    card = json.loads((tmp_path / "locked" / "card.json").read_text())
    assert len(card["figures"]["relative_error"]) == 2 and card["plan"]["depth"] == 3 and card["files"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["locked", "source"]


def test_interrupted_it_goes_on_to_the_same_bytes(source, tmp_path, monkeypatch, capsys):
    run(source, tmp_path / "whole")
    honest = dlr_run.distill_model

    def interrupted(*args, **options):
        monkeypatch.setattr(dlr_run, "distill_model", honest)
        honest(*args, **options, stop_after=2)
        raise KeyboardInterrupt

    monkeypatch.setattr(dlr_run, "distill_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "again")
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
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(source, tmp_path, capsys, options, words):
    assert run(source, tmp_path / "locked", *options) == 3
    err = capsys.readouterr().err
    assert words in err and len(err.splitlines()) == 1 and not (tmp_path / "locked").exists()


def test_it_does_not_write_over_anything(source, tmp_path, capsys):
    assert run(source, source) == 3 and "already exists" in capsys.readouterr().err
    assert run(tmp_path / "nowhere", tmp_path / "locked") == 3 and "does not exist" in capsys.readouterr().err


def test_what_does_not_fit_its_card_is_refused(source, tmp_path, capsys):
    run(source, tmp_path / "locked")
    card = tmp_path / "locked" / "card.json"
    said = json.loads(card.read_text())
    card.write_text(json.dumps(said | {"net": said["net"] | {"depth": 2}}))
    with pytest.raises(CheckpointError, match=r"not those that card\.json describes"):
        dlr_run.load(tmp_path / "locked")
    card.write_text(json.dumps(said | {"net": {"depth": 2}}))
    with pytest.raises(CheckpointError, match="missing"):
        dlr_run.load(tmp_path / "locked")
    with pytest.raises(CheckpointError, match="give a directory of a locked model"):
        dlr_run.load(tmp_path / "nowhere")


def test_data_are_bytes_of_text_and_skills():
    rng = np.random.default_rng(0)
    tokens = dlr_run.data(6, 40, rng, True)
    assert tokens.shape == (6, 40) and tokens.max() < 128
    assert ord("=") in tokens[:2] and ord(">") in tokens[2:4]
