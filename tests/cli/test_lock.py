"""`lockref lock`: what it writes is the model it measured, it resumes to the same bytes, bad input is one line."""

import json
import shlex
import shutil
import tracemalloc

import numpy as np
import pytest

from lockproofs import lock as command
from lockproofs.cli import main
from lockproofs.exit_codes import BAD_INPUT, DONE, INTERRUPTED
from lockref.locks import distillation, full, lock_memory
from lockref.locks.manifest import Manifest, write_locked
from lockref.models import qwen3
from lockref.models.checkpoint_io import load_config
from lockref.models.tensor_file import write_tensors
from lockref.models.zoo import zoo_path

QUICK = "--steps 4 --healing 3 --captured 4 --length 6 --dlr-depth 3 --data {data}"


@pytest.fixture
def here(tiny_qwen3, write_qwen3, tmp_path, monkeypatch):
    """A directory with a tiny model and tokens of its vocabulary."""
    config, weights = tiny_qwen3()
    write_qwen3(tmp_path / "source", config, weights)
    np.save(tmp_path / "tokens.npy", np.random.default_rng(1).integers(0, config.vocab_size, (40, 8)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, line, quick=QUICK):
    code = main(shlex.split(f"lock {line} {quick}".format(data="tokens.npy")))
    return code, *capsys.readouterr()


def held_out(here):
    return np.load(here / "tokens.npy")[-4:, :6]


@pytest.mark.parametrize(
    ("quick", "parts"),
    [
        (QUICK, ["attention", "dlr"]),
        ("--attention none " + QUICK, ["dlr"]),
        ("--taylor-order 5 --taylor-basis chebyshev --data {data} --length 6", ["attention", "taylor"]),
        ("--dlr-depth 0 --planes 3 --data {data} --length 6", ["attention"]),
    ],
)
def test_what_is_written_loads_as_the_model_that_was_measured(here, capsys, quick, parts):
    code, out, err = run(capsys, "source locked --dtype float32 --json -", quick)
    assert code == DONE, err
    said, locked = json.loads(out), full.load(here / "locked")
    assert sorted(said["parts"]) == parts == sorted(locked.manifest.parts)
    assert sorted(p.name for p in here.iterdir()) == ["locked", "source", "tokens.npy"]
    loss = qwen3.loss(locked.tensors, held_out(here), locked.config, locked.composition.block)
    assert abs(float(loss) - said["figures"]["loss"]["locked"]) <= 1e-4  # float64 against float32 of the same tensors
    if "attention" in parts:
        assert said["figures"]["loss"]["attention"] == said["figures"]["loss"]["original"]
    assert said["seed"] == 0 and "--dtype float32" in said["command"] and len(said["source"]) == 2


def test_a_locked_model_can_be_audited_but_not_locked_again(here, capsys):
    run(capsys, "source locked --quiet")
    assert main(["audit", "locked", "--reference", "source", "--claims", "FULL-MANIFEST", "--quiet"]) == DONE
    code, _, err = run(capsys, "locked again")
    assert code == BAD_INPUT and "is locked already (attention, dlr)" in err


def test_interrupted_it_leaves_its_work_and_goes_on_to_the_same_bytes(here, capsys, monkeypatch):
    run(capsys, "source whole --quiet")
    honest = distillation.distill_model

    def interrupted(*args, **options):
        honest(*args, **options, stop_after=2)
        raise KeyboardInterrupt

    monkeypatch.setattr(distillation, "distill_model", interrupted)
    code, out, err = run(capsys, "source again")
    assert (code, out) == (INTERRUPTED, "")
    assert "again.work: the same command goes on" in err and err.endswith("interrupted; nothing was written\n")
    assert sorted(p.name for p in here.iterdir()) == ["again.work", "source", "tokens.npy", "whole"]
    monkeypatch.setattr(distillation, "distill_model", honest)
    code, _, err = run(capsys, "source again --quiet --seed 1")
    assert code == BAD_INPUT and "made by another recipe" in err
    assert run(capsys, "source again --quiet") == (DONE, "", "")
    for name in ("model.safetensors", "config.json", "lock.json"):
        assert (here / "again" / name).read_bytes() == (here / "whole" / name).read_bytes()
    assert not (here / "again.work").exists()


def test_trap2_is_carried_on(here, capsys, tiny_qwen3):
    config, weights = tiny_qwen3()
    trained = Manifest({"trap2": {"strength": 0.005}}, (), "train", 0, {})
    write_locked(here / "trained", config, weights, trained)
    code, out, err = run(capsys, "trained locked --json -")
    assert code == DONE, err
    assert json.loads(out)["parts"]["trap2"] == {"strength": 0.005}
    assert full.load(here / "locked").composition.net.depth == 3


def test_a_budget_that_is_not_kept_writes_nothing(here, capsys):
    code, out, err = run(capsys, "source locked --budget 0 --quiet --dlr-norm none")
    line = "--budget 0: the held-out loss rose by"
    assert code == BAD_INPUT and out == "" and line in err and err.count("\n") == 1
    assert not (here / "locked").exists()
    assert run(capsys, "source wide --budget 9 --quiet")[0] == DONE
    assert json.loads((here / "wide" / "lock.json").read_text())["figures"]["budget"] == 9


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("source source", ["source", "already exists"]),
        ("nowhere locked", ["nowhere", "does not exist"]),
        ("source no/such/parent", ["no/such/parent.work", "check that the parent"]),
        ("source /proc/locked", ["/proc/locked.work", "check that the parent"]),
        ("short locked", ["short", "1 missing", "model.layers.1.mlp.up_proj.weight"]),
        ("wild locked", ["wild", "NaN", "model.norm.weight"]),
        ("source locked --dlr-depth 61", ["depth 61", "less than rank 1", "at most 60"]),
        ("source locked --dlr-norm batch", ["norm 'batch'", "choose from"]),
        ("source locked --planes 6", ["--planes 6", "5 rotary planes"]),
        ("source locked --planes 0", ["--planes 0", "choose 1 to 5"]),
        ("source locked --attention topk", ["MB-ROPE", "choose topk-planes"]),
        ("source locked --attention all", ["--attention 'all'"]),
        ("source locked --attention none --planes 2", ["--planes", "needs --attention topk-planes"]),
        ("source locked --attention none --dlr-depth 0", ["leave nothing to lock"]),
        ("source locked --taylor-order 3", ["--taylor-order and --dlr-depth", "choose one"]),
        ("source locked --taylor-basis hermite", ["--taylor-basis", "needs --taylor-order"]),
        ("source locked --engine jax", ["--engine 'jax'", "choose numpy or torch"]),
        ("source locked --engine torch --dlr-depth 0", ["--engine torch", "leave it out"]),
        ("source locked --device cuda", ["--device cuda", "needs --engine torch"]),
        ("source locked --parts 2", ["--parts", "needs --engine torch"]),
        ("source locked --length 1", ["--length 1", "at least 2"]),
        ("source locked --length 9", ["tokens.npy", "not two rows of 9"]),
        ("source locked --rate 0", ["learning_rate is 0"]),
        ("source locked --rate 1e30", ["loss", "at step", "lower the learning"]),
        ("source locked --budget -1", ["--budget -1"]),
        ("source locked --dtype int8", ["int8", "choose one of"]),
        ("source locked --data gone.npy", ["gone.npy", "name a file of tokens"]),
        ("source locked --data text.txt", ["text.txt", "vocabulary of 256", "61"]),
        ("source locked --data floats.npy", ["floats.npy", "float64", "array of integers"]),
        ("source locked --data pickled.npy", ["pickled.npy", "array of integers"]),
        ("source locked --data large.npy", ["large.npy", "the vocabulary has 61"]),
        ("source", ["DST"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(line, words, here, capsys, tiny_qwen3):
    _, weights = tiny_qwen3()
    for name in ("short", "wild"):
        shutil.copytree(here / "source", here / name)
    (here / "short" / "model.safetensors").unlink()
    kept = {n: w for n, w in weights.items() if n != "model.layers.1.mlp.up_proj.weight"}
    write_tensors(here / "short" / "model.safetensors", kept, "F32")
    raw = bytearray((here / "wild" / "model.safetensors").read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    at = start + json.loads(raw[8:start])["model.norm.weight"]["data_offsets"][0]
    raw[at : at + 2] = b"\xc0\x7f"  # a NaN in bfloat16
    (here / "wild" / "model.safetensors").write_bytes(raw)
    (here / "text.txt").write_text("text " * 100)
    np.save(here / "floats.npy", np.ones((9, 9)))
    np.save(here / "large.npy", np.full((9, 9), 61))
    np.save(here / "pickled.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    before = sorted(p.name for p in here.iterdir())
    quick = QUICK if "--data" not in line else QUICK.replace("--data {data}", "")
    quick = quick.replace("--dlr-depth 3", "") if "--dlr-depth" in line or "basis" in line else quick
    for option in ("--length", "--steps"):
        if option in line:
            quick = quick.replace(f"{option} 6", "")
    code, out, err = run(capsys, line, quick)
    assert (code, out) == (BAD_INPUT, ""), (code, out, err)
    assert err.splitlines()[-1].startswith("lockref: ") and "Traceback" not in err
    assert all(word in err for word in words), err
    left = {p.name for p in here.iterdir()} - set(before)
    assert left <= {"locked.work"}  # training that diverged keeps its last good state
    assert not (here / "locked").exists()


def test_quiet_prints_nothing_and_loud_says_what_is_left(here, capsys):
    assert run(capsys, "source locked --quiet") == (DONE, "", "")
    shutil.rmtree(here / "locked")
    code, out, err = run(capsys, "source locked")
    assert code == DONE and "attention and dlr: the loss rose by" in out
    assert "s left" in err and "4 held out" in err
    lines = [line for line in err.splitlines() if "peak memory" in line]
    assert len(lines) == 2 and "peak memory expected: " in lines[0] and " MiB expected" in lines[1]
    assert err.index(lines[0]) < err.index("layer 0") and lines[1] == err.splitlines()[-1]


def grown(options, path):
    """What `lock` expects to hold on top of the loaded model, and what its arrays took; in bytes."""
    wish = command.Wish(steps=2, healing=2, rows=64, length=64, **options)
    source = zoo_path("add")
    start = []

    def say(line):
        if line.startswith("peak memory expected"):
            tracemalloc.reset_peak()
            start.append(tracemalloc.get_traced_memory()[0])

    tracemalloc.start()
    try:
        command.lock(source, path / "locked", wish, say)
        took = tracemalloc.get_traced_memory()[1] - start[0]
    finally:
        tracemalloc.stop()
    config = load_config(source)
    tokens, test = command.rows_of(None, 256, wish.rows, wish.length, 0)
    rows = len(tokens), len(test)
    return lock_memory.numpy_peak(config, wish.composition(config), wish.phases, rows, wish.length), took


@pytest.mark.parametrize(
    "options", [{"captured": 48}, {"captured": 1}, {"taylor_order": 3, "captured": 48}, {"dlr_depth": 0}], ids=str
)
def test_memory_stays_below_what_was_expected_and_is_more_than_half_of_it(options, tmp_path):
    expected, took = grown(options, tmp_path)
    assert expected / 2 <= took <= expected, f"arrays took {took:,} bytes, expected at most {expected:,}"


def test_a_lock_that_captures_in_float64_exceeds_what_was_expected(tmp_path, monkeypatch):
    honest = distillation.captured
    monkeypatch.setattr(
        distillation, "captured",
        lambda tensors, *args, **options: honest({n: w.astype(float) for n, w in tensors.items()}, *args, **options),
    )  # fmt: skip
    expected, took = grown({"captured": 48}, tmp_path)
    assert took > expected


def test_the_numpy_engine_refuses_what_would_take_weeks(here, capsys, monkeypatch):
    monkeypatch.setattr(command, "NUMPY_LIMIT", 10)
    code, _, err = run(capsys, "source locked --quiet")
    assert code == BAD_INPUT and "too many for --engine numpy: take --engine torch" in err
