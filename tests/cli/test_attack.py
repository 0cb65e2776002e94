"""`lockref attack`: what it writes loads again, is the owner's model, and bad input is one line."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lockproofs.cli import main
from lockproofs.exit_codes import BAD_INPUT, DONE
from lockref.attacks.registry import ATTACKS
from lockref.locks.attention import TOPK, TOPK_PLANES, project, projections
from lockref.locks.peers import params_lock
from lockref.models.checkpoint_io import load_checkpoint, save_checkpoint
from lockref.models.zoo import zoo_path


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A zoo expert, locked in three ways and saved."""
    folder, owner = tmp_path_factory.mktemp("released"), load_checkpoint(zoo_path("add"))
    locks = {
        "planes": project(owner.tensors, owner.config, projections(owner.tensors, owner.config, TOPK_PLANES, 5)),
        "topk": project(owner.tensors, owner.config, projections(owner.tensors, owner.config, TOPK, 9)),
        "units": params_lock(owner.tensors, owner.config, np.random.default_rng(0)).tensors,
    }
    for name, tensors in locks.items():
        save_checkpoint(folder / name, owner.config, tensors, "float64")
    return folder


def run(capsys, *argv):
    code = main(["attack", *map(str, argv)])
    return code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("name", "lock"),
    [("keyless-planes", "planes"), ("anchor-signs", "planes"), ("keyless", "topk"), ("anchor", "topk")],
)
def test_the_owners_model_comes_back(name, lock, released, tmp_path, capsys):
    base = zoo_path("base")
    code, out, err = run(capsys, name, released / lock, "--base", base, "--out", tmp_path / "back", "--json", "-")
    said, owner = json.loads(out), load_checkpoint(zoo_path("add"))
    assert (code, err, said["guesses"], said["residual_bits"]) == (DONE, "", 1, 0)
    assert json.loads((tmp_path / "back" / "attack.json").read_text()) == said
    back = load_checkpoint(tmp_path / "back")
    error = max(np.linalg.norm(back.tensors[n] - w) / np.linalg.norm(w) for n, w in owner.tensors.items())
    # Procrustes returns the weights to twice the update's norm; the other three are exact, or exact to round-off.
    update = max(
        np.linalg.norm(w - load_checkpoint(base).tensors[n]) / np.linalg.norm(w) for n, w in owner.tensors.items()
    )
    assert error <= {"anchor": 4 * update, "keyless": 1e-10}.get(name, 0)
    if name.startswith("keyless"):
        assert np.all(np.array(said["found"]["k"]["values"]) == (5 if lock == "planes" else 9))
    assert said["changed_tensors"] and all("_proj" in n for n in said["changed_tensors"])


def test_without_a_base_the_tails_or_the_user_choose(released, tmp_path, capsys):
    code, out, _ = run(capsys, "keyless", released / "topk", "--guess", 9, "--out", tmp_path / "nine", "--json", "-")
    said = json.loads(out)
    assert code == DONE and said["guesses"] == 33 and said["chosen_by"] == "--guess"
    owner, back = load_checkpoint(zoo_path("add")), load_checkpoint(tmp_path / "nine")
    assert max(np.max(np.abs(back.tensors[n] - w)) for n, w in owner.tensors.items()) <= 1e-9
    code, out, _ = run(capsys, "keyless", released / "topk", "--out", tmp_path / "tails")
    assert code == DONE and "chosen by the heaviest tails" in out and "33 guesses" in out


def test_units_come_back_and_the_key_is_written(released, tmp_path, capsys):
    out = tmp_path / "deep" / "back"
    code, said, _ = run(capsys, "anchor-permutation", released / "units", "--base", zoo_path("base"), "--out", out,
                        "--quiet")  # fmt: skip
    assert (code, said) == (DONE, "")
    owner, back = load_checkpoint(zoo_path("add")), load_checkpoint(out)
    assert all(np.array_equal(back.tensors[n], w) for n, w in owner.tensors.items() if "mlp" in n)
    with np.load(out / "key.npz", allow_pickle=False) as key:
        assert key["order"].shape == (owner.config.num_hidden_layers, owner.config.intermediate_size)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("frobnicate {zoo}", ["unknown attack 'frobnicate'", "choose from keyless"]),
        ("anchor {zoo}", ["--base"]),
        ("keyless nowhere", ["nowhere", "does not exist"]),
        ("keyless {zoo} --guess 33", ["--guess 33", "from 0 to 32"]),
        ("keyless {zoo} --out taken", ["taken", "already exists"]),
        ("keyless {zoo} --out taken/file/below", ["taken/file/below", "choose another"]),
        ("keyless {zoo} --base small", ["small", "config differs"]),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(line, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    base = load_checkpoint(zoo_path("base"))
    save_checkpoint(tmp_path / "small", replace(base.config, rope_theta=99.0), base.tensors)
    code, out, err = run(capsys, *line.format(zoo=zoo_path("base")).split())
    assert (code, out) == (BAD_INPUT, "") and err.count("\n") == 1 and "Traceback" not in err
    assert all(word in err for word in words), err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small", "taken"]
    assert [p.name for p in (tmp_path / "taken").iterdir()] == ["file"]


def test_the_registry_says_what_each_attack_needs():
    owner = load_checkpoint(zoo_path("add"))
    for attack in ATTACKS.values():
        assert attack.undoes and ATTACKS[attack.name] is attack
        if attack.needs_base:
            with pytest.raises(ValueError, match="give one"):
                attack(owner.tensors, owner.config)
    missing = {n: w for n, w in owner.tensors.items() if "q_proj" not in n}
    with pytest.raises(ValueError, match="is missing"):
        ATTACKS["anchor"](owner.tensors, owner.config, missing)
