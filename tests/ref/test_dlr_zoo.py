"""The locked models that ship with lockref are what their manifests and their card say."""

import hashlib
import shlex

import numpy as np
import pytest

from lockref.locks import dlr_run, dlr_zoo, full
from lockref.locks.distillation import captured, relative_error, swiglu_student
from lockref.locks.dlr import PREFIX, locked_block
from lockref.locks.manifest import read_manifest
from lockref.models import dlrnet
from lockref.models.checkpoint_io import WEIGHTS, load_checkpoint
from lockref.models.evaluation import held_out_windows, text_loss
from lockref.models.qwen3 import layer_weights
from lockref.models.zoo import LOCKED_ZOO, zoo_path

FOLDER = zoo_path("base").parent


@pytest.fixture(scope="module")
def base():
    return load_checkpoint(zoo_path("base"), np.float32)


def test_the_card_is_what_the_command_writes():
    assert (FOLDER / dlr_zoo.CARD).read_text() == dlr_zoo.render(FOLDER)


def test_the_command_keeps_what_is_there(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(dlr_zoo, "render", lambda folder: "card")
    monkeypatch.setattr(dlr_run, "main", lambda argv: made.append(argv) or 0)
    (tmp_path / LOCKED_ZOO[0]).mkdir()
    assert dlr_zoo.main([str(tmp_path)]) == 0 and (tmp_path / dlr_zoo.CARD).read_text() == "card"
    assert [argv[1] for argv in made] == [str(tmp_path / name) for name in LOCKED_ZOO[1:]]
    monkeypatch.setattr(dlr_run, "main", lambda argv: 3)
    assert dlr_zoo.main([str(tmp_path / "elsewhere")]) == 3


@pytest.mark.parametrize("name", LOCKED_ZOO)
def test_manifest_and_files_agree(name, base):
    manifest = read_manifest(zoo_path(name))
    assert manifest.source == base.files  # locked from the base that is here
    told = shlex.split(manifest.command)
    for option, value in zip(*[iter(shlex.split(dlr_zoo.OPTIONS[name]))] * 2, strict=True):
        assert float(told[told.index(option) + 1]) == float(value)
    content = (zoo_path(name) / WEIGHTS).read_bytes()
    assert len(content) < 2_000_000 and hashlib.sha256(content).hexdigest() in (FOLDER / dlr_zoo.CARD).read_text()
    net = full.load(zoo_path(name)).net
    sizes = base.config.hidden_size, base.config.intermediate_size
    assert net.rank == dlrnet.parity(*sizes, net.depth, net.norm).rank


@pytest.mark.parametrize("name", LOCKED_ZOO)
def test_what_is_not_an_mlp_is_the_base(name, base):
    locked = full.load(zoo_path(name), np.float32)
    others = [n for n in base.tensors if f".{PREFIX}" not in n]
    assert others and all(np.array_equal(locked.tensors[n], base.tensors[n]) for n in others)


@pytest.mark.parametrize("name", LOCKED_ZOO)
def test_the_loss_gap_is_seen_on_other_windows(name, base):
    """32 fresh windows: the mean of the paired differences within five standard errors of the manifest's gap."""
    locked, said = full.load(zoo_path(name), np.float32), read_manifest(zoo_path(name)).figures
    rows = held_out_windows(32, 96, seed=5)
    block = locked_block(locked.net)
    apart = [
        text_loss(locked.tensors, row[None], base.config, block) - text_loss(base.tensors, row[None], base.config)
        for row in rows
    ]
    error = float(np.std(apart, ddof=1)) / len(apart) ** 0.5
    want = said["locked"]["text"] - said["original"]["text"]
    assert abs(float(np.mean(apart)) - want) <= 5 * error


@pytest.mark.parametrize("name", LOCKED_ZOO)
def test_phase_two_moved_the_modules_no_further_than_doing_nothing(name, base):
    """After healing a module still is its MLP's likeness on fresh activations: an error below that of no MLP, 1."""
    locked = full.load(zoo_path(name), np.float32)
    tokens = dlr_run.data(8, 64, np.random.default_rng(7), True)
    kind = dlr_run.dlr_student(locked.net)
    for i, (x, y) in enumerate(captured(base.tensors, tokens, base.config, teacher=swiglu_student(base.config))):
        own = layer_weights(locked.tensors, i)
        params = {n.removeprefix(PREFIX): w for n, w in own.items() if n.startswith(PREFIX)}
        assert relative_error(params, x, y, kind) < 0.5
