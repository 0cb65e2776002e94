"""Distillation in torch: the NumPy engine's losses and steps, and the same bits alone, in a team, and after a kill."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lockcross import distill as torch_side
from lockcross import storage, training
from lockcross.engine import TorchEngine
from lockcross.qwen3 import build
from lockcross.team import Team, team
from lockproofs.cli import main
from lockproofs.exit_codes import BAD_INPUT, DONE
from lockref.locks import distillation, dlr_training, full
from lockref.locks.dlr import assembled
from lockref.locks.dlr_training import Recipe, State
from lockref.locks.full import Composition
from lockref.locks.lock_memory import FLOAT
from lockref.locks.lock_memory import weights as weights_of
from lockref.models.dlrnet import DLRConfig
from lockref.models.qwen3 import Qwen3Config, expected_tensors

UNIT = 2.0**-24  # of float32
CONFIG = Qwen3Config(
    vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=6, rope_theta=1e4,
)  # fmt: skip
NET = DLRConfig(16, 7, 3, "rms_gain")
PHASES = distillation.Phases(Recipe(150, 2e-2), Recipe(6, 1e-3), 12, 64, 4)
ALONE = Team(0, 1, torch.device("cpu"))


def inputs():
    """Weights with random gains, tokens to learn from, tokens held out."""
    rng = np.random.default_rng(0)
    weights = {
        n: (rng.uniform(0.3, 2, s) if len(s) == 1 else rng.normal(0, s[1] ** -0.5, s)).astype(np.float32)
        for n, s in expected_tensors(CONFIG).items()
    }
    return weights, rng.integers(0, 61, (16, 10)), rng.integers(0, 61, (8, 10))


def traced(module, monkeypatch):
    """The losses that a module's reporters are told."""
    losses = {}
    monkeypatch.setattr(
        module, "reporter", lambda what, steps, say: lambda step, value: losses.setdefault(what, []).append(value)
    )
    return losses


def both(net, phases, tmp_path, monkeypatch):
    weights, tokens, test = inputs()
    want_losses, got_losses = traced(distillation, monkeypatch), traced(torch_side, monkeypatch)
    kinds = distillation.swiglu_student(CONFIG), distillation.dlr_student(net)
    want = distillation.distill(weights, CONFIG, *kinds, phases, tokens, test)
    got = torch_side.distill(weights, CONFIG, net, phases, tokens, test, tmp_path, ALONE, parts=2)
    return (want, want_losses), (got, got_losses)


@pytest.mark.parametrize("placement", ["difference", "output", "stream"])
def test_the_first_losses_are_those_of_the_numpy_engine(placement, tmp_path, monkeypatch):
    phases = replace(PHASES, modules=Recipe(1, 2e-2), model=Recipe(1, 1e-3))
    (want, want_losses), (got, got_losses) = both(replace(NET, placement=placement), phases, tmp_path, monkeypatch)
    assert got_losses.keys() == want_losses.keys() == {"layer 0 of 2", "layer 1 of 2", "model"}
    # Before the first update: a relative loss near 1, from sums of at most d + r products in each of L blocks.
    tolerance = 8 * NET.depth * (NET.width + NET.rank) * UNIT
    for what in ("layer 0 of 2", "layer 1 of 2"):
        (g,), (w,) = got_losses[what], want_losses[what]
        assert abs(g - w) <= tolerance * w, f"{what}: got loss {g}, want {w}, tolerance {tolerance * w:.1g}"
    assert np.allclose(got.row_errors, want.row_errors, rtol=0.01) and np.allclose(got.errors, want.errors, rtol=0.01)


def test_a_step_of_adamw_is_that_of_the_numpy_engine():
    rng = np.random.default_rng(3)
    recipe = Recipe(50, 0.1, weight_decay=0.03)
    draw = {n: rng.standard_normal((5, 3)).astype(np.float32) for n in ("params", "first", "grad")}
    second = rng.random((5, 3)).astype(np.float32)
    want = State(7, *({"w": a.copy()} for a in (draw["params"], draw["first"], second)))
    got = training.Live(7, *({"w": torch.from_numpy(a.copy())} for a in (draw["params"], draw["first"], second)))
    dlr_training.adamw(want, {"w": draw["grad"] * np.float32(0.7)}, recipe)
    want.step += 1
    training.update(got, {"w": torch.from_numpy(draw["grad"])}, 0.7, recipe)
    assert got.step == want.step == 8
    for name in ("params", "first", "second"):  # about ten operations, each rounded once, on numbers below 8
        g, w = getattr(got, name)["w"].numpy(), getattr(want, name)["w"]
        assert np.max(np.abs(g - w)) <= 10 * 8 * UNIT, name


SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {path!r}
from test_distill import CONFIG, NET, PHASES, inputs, torch_side, team
weights, tokens, test = inputs()
def say(line):
    if {kill} and line.startswith("layer 1 of 2: step 150"):
        os.kill(os.getpid(), signal.SIGKILL)
with team("cpu") as on:
    done = torch_side.distill(weights, CONFIG, NET, PHASES, tokens, test, Path({work!r}), on, parts=2, say=say)
    if on.leads:
        print(torch_side.digest(*done.modules.values(), *done.model.values()), done.errors + done.row_errors)
"""


def torchrun(folder, work, kill):
    """Two processes; with `kill`, the one that trains layer 1 dies at its step 150, after its state of step 100."""
    script = folder / "run.py"
    script.write_text(SCRIPT.format(path=[str(Path(__file__).parent), *sys.path], work=str(work), kill=kill))
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=300, env=environment)


def test_two_processes_one_of_them_killed_give_the_bits_of_a_single_one(tmp_path):
    weights, tokens, test = inputs()
    work = tmp_path / "work"
    alone = torch_side.distill(weights, CONFIG, NET, PHASES, tokens, test, tmp_path / "alone", ALONE, parts=2)
    killed = torchrun(tmp_path, work, kill=True)
    assert killed.returncode != 0 and (work / "layer1").exists()
    assert not (work / "model").exists() and not (work / "layer1.json").exists()
    again = torchrun(tmp_path, work, kill=False)
    assert again.returncode == 0, again.stderr
    digest, errors = again.stdout.split(maxsplit=1)
    assert digest == torch_side.digest(*alone.modules.values(), *alone.model.values())
    assert json.loads(errors) == alone.errors + alone.row_errors
    assert sorted(p.name for p in work.iterdir()) == ["layer0", "layer0.json", "layer1", "layer1.json", "model"]


@pytest.mark.parametrize("parts", [1, 2])
def test_the_engine_expects_what_phase_2_keeps(parts):
    """The closed form counts as if everything trained: what the frozen host keeps is less, and more than a tenth."""
    weights, tokens, _ = inputs()
    net = replace(NET, norm="rms")
    start = distillation.dlr_student(net).start(np.random.default_rng(0), np.float32)
    teacher = build(CONFIG, weights).requires_grad_(False)
    student = build(CONFIG, assembled(weights, {0: start, 1: start}), net).requires_grad_(False)
    params = {n: p.detach().requires_grad_() for n, p in student.named_parameters() if ".mlp." in n}
    batch = torch.from_numpy(tokens[: PHASES.tokens // parts])
    owned = [*teacher.parameters(), *student.parameters(), *params.values(), batch]
    kept = storage.total(storage.kept(lambda: torch_side.divergence(student, params, teacher, batch), owned))
    made = Composition(net=net)
    expected = TorchEngine(ALONE, parts).memory(CONFIG, made, PHASES, (len(tokens), 8), tokens.shape[1])
    assert kept <= expected - FLOAT * weights_of(CONFIG, made) and kept > expected / 10


def test_parts_are_added_in_their_order_whoever_makes_them():
    seen = []

    def part(k):
        seen.append(k)
        return torch.tensor([1e8, 1.0, -1e8][k])

    assert float(ALONE.ordered_sum(part, 3)) == 0.0 and seen == [0, 1, 2]  # (1e8 + 1) − 1e8 in float32


def test_what_cannot_be_is_said(tmp_path, monkeypatch):
    weights, tokens, test = inputs()
    with pytest.raises(ValueError, match="4 rows a step in 3 parts on 1 processes"):
        torch_side.distill(weights, CONFIG, NET, PHASES, tokens, test, tmp_path, ALONE, parts=3)
    with pytest.raises(ValueError, match="device 'tpu' is unknown"), team("tpu"):
        pass
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="finds no GPU"), team("cuda"):
        pass
    wild = weights | {"model.layers.1.mlp.down_proj.weight": np.full((16, 24), 1e38, np.float32)}
    with pytest.raises(ValueError, match="layer 1: its activations are not finite"):
        quick = replace(PHASES, modules=Recipe(1, 1e-3))
        torch_side.distill(wild, CONFIG, NET, quick, tokens, test, tmp_path / "wild", ALONE)
    absent = torch_side.LayerFile(tmp_path / "layer9", NET, PHASES, "")
    with pytest.raises(ValueError, match="layer9: missing; all processes must share"):
        absent.params()


def test_the_command_locks_with_torch(tmp_path, monkeypatch, capsys, write_qwen3):
    weights, tokens, test = inputs()
    write_qwen3(tmp_path / "source", CONFIG, weights, "float32")
    np.save(tmp_path / "tokens.npy", np.concatenate([tokens, test]))
    monkeypatch.chdir(tmp_path)
    quick = "--engine torch --dlr-depth 3 --steps 5 --healing 3 --length 10 --data tokens.npy".split()  # noqa: SIM905
    assert main(["lock", "source", "locked", *quick, "--json", "-"]) == DONE
    said = json.loads(capsys.readouterr().out)
    locked = full.load(tmp_path / "locked", np.float32)
    held = np.concatenate([tokens, test])[-2:]
    loss = full.qwen3.loss(locked.tensors, held, CONFIG, locked.composition.block)
    # Two float32 implementations of one model: logits are sums over d = 16, at most m = 24 and V = 61 terms.
    assert abs(float(loss) - said["figures"]["loss"]["locked"]) <= 1000 * UNIT * float(loss)
    assert said["versions"]["torch"] == torch.__version__
    assert main(["lock", "source", "other", *quick, "--parts", "3"]) == BAD_INPUT
    assert "in 3 parts" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "lockcross.engine", None)
    assert main(["lock", "source", "other", *quick]) == BAD_INPUT
    assert "lockref[crosscheck]" in capsys.readouterr().err
