"""Distillation into DLR-Nets: tiny runs, resumed bit for bit, with clear errors and no half-written file."""

from itertools import pairwise

import numpy as np
import pytest

from lockref.locks import dlr_training
from lockref.locks.distillation import (
    Phases,
    captured,
    distill,
    distill_model,
    distill_module,
    divergence,
    dlr_student,
    relative_error,
    row_error,
    swiglu_student,
)
from lockref.locks.dlr import assembled, locked_block
from lockref.locks.dlr_training import Recipe, train
from lockref.models import dlrnet, qwen3
from lockref.models.dlrnet import DLRConfig
from lockref.models.tensor_file import CheckpointError

NET = DLRConfig(24, 5, 3, "rms")
STUDENT = dlr_student(NET)
RECIPE = Recipe(12, 0.01, seed=4)


@pytest.fixture
def model(tiny_qwen3):
    config, weights = tiny_qwen3()
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (12, 9))
    return config, weights, tokens


@pytest.fixture
def pairs(model):
    config, weights, tokens = model
    return list(captured(weights, tokens, config, teacher=swiglu_student(config)))


def same(a, b):
    return all(np.array_equal(a[n], b[n]) for n in a) and set(a) == set(b)


def test_captured_pairs_are_what_the_mlp_reads_and_gives(model, pairs):
    config, weights, tokens = model
    assert len(pairs) == config.num_hidden_layers and pairs[0][0].shape == (tokens.size, 24)
    for i, (x, y) in enumerate(pairs):
        again = qwen3.mlp(qwen3.layer_weights(weights, i), x.reshape(*tokens.shape, 24))
        assert np.array_equal(again.reshape(y.shape), y)  # the same products of the same shapes
    (stream, after), *_ = captured(weights, tokens, config, teacher=swiglu_student(config), on_stream=True)
    assert np.max(np.abs(after - stream - pairs[0][1])) <= 2 * 2.0**-53 * np.max(np.abs(after))  # two roundings


@pytest.mark.parametrize("norm", dlrnet.NORMS)
@pytest.mark.parametrize("placement", dlrnet.PLACEMENTS)
def test_a_network_that_is_the_mlp_has_no_error_and_no_divergence(norm, placement, model):
    """Teacher = student: a DLR-Net in place of itself; and the wrong placement is seen."""
    config, weights, tokens = model
    net = DLRConfig(24, 3, 2, norm, placement=placement)
    nets = {i: dlrnet.initialize(net, np.random.default_rng(i), b_scale=0.5) for i in range(2)}
    whole, block = assembled(weights, nets), locked_block(net)
    assert not any(".mlp." in n and "blocks" not in n for n in whole)
    logits = qwen3.forward(whole, tokens, config, block)
    assert abs(float(divergence(whole, logits, tokens, config, block))) <= 1e-12
    other = dlrnet.PLACEMENTS[(dlrnet.PLACEMENTS.index(placement) + 1) % 3]
    wrong = locked_block(DLRConfig(24, 3, 2, norm, placement=other))
    assert float(divergence(whole, logits, tokens, config, wrong)) > 1e-3
    x = np.random.default_rng(1).standard_normal((6, 24))
    assert relative_error(nets[0], x, dlrnet.forward(nets[0], x, net), dlr_student(net)) == 0


@pytest.mark.parametrize("teacher", ["SwiGLU", *dlrnet.PLACEMENTS])
@pytest.mark.parametrize("on_stream", [False, True])
def test_pairs_of_any_teacher_are_what_stands_in_the_model(teacher, on_stream, model):
    """Captured from a locked model, x and y are such that the layer's own network maps one to the other."""
    config, weights, tokens = model
    kind = swiglu_student(config) if teacher == "SwiGLU" else dlr_student(DLRConfig(24, 3, 2, placement=teacher))
    rng = np.random.default_rng(2)
    drawn = {i: {n: w + rng.normal(0, 0.2, w.shape) for n, w in kind.start(rng, float).items()} for i in range(2)}
    whole = assembled(weights, drawn)
    layers = list(captured(whole, tokens, config, teacher=kind, on_stream=on_stream))
    streams = list(captured(whole, tokens, config, teacher=kind, on_stream=True))
    logits = qwen3.head(whole, streams[-1][1].reshape(*tokens.shape, 24), config)
    assert np.max(np.abs(logits - qwen3.forward(whole, tokens, config, kind.block))) <= 1e-12
    for i, (x, y) in enumerate(layers):
        if on_stream == kind.on_stream:  # on the stream a subtraction and an addition more, each rounded
            again = kind.forward(drawn[i], x.reshape(*tokens.shape, 24)).reshape(y.shape)
            assert np.max(np.abs(again - y)) <= 3 * 2.0**-53 * np.max(np.abs(y)) * on_stream
        assert np.array_equal(y if on_stream else streams[i][0] + y, streams[i][1])


def test_errors_by_hand():
    """Rows (3, 4) and (0, 1) missed by (0, 1) and (0, 1): 2/26 over all, (1/25 + 1)/2 by rows."""
    student = dlr_student(DLRConfig(2, 1, 1, "none", placement="output"))
    params = {"blocks.0.a": np.zeros((1, 2)), "blocks.0.b": np.zeros((2, 1))}  # the identity
    y = np.array([[3.0, 4.0], [0.0, 1.0]])
    x = y + np.array([[0, 1], [0, 1]])
    assert relative_error(params, x, y, student) == pytest.approx(2 / 26)
    assert float(row_error(params, x, y, student)) == pytest.approx((1 / 25 + 1) / 2)
    with_silence = float(row_error(params, np.zeros((1, 2)), np.zeros((1, 2)), student))
    assert with_silence == 0  # a row in which the MLP adds nothing, matched


def test_phase_one_learns_and_resumes_bit_for_bit(pairs, tmp_path):
    x, y = pairs[0]
    file = tmp_path / "layer0.state"
    seen = []
    whole = distill_module(x, y, STUDENT, RECIPE, rows=40, follow=lambda k, loss: seen.append((k, loss)))
    distill_module(x, y, STUDENT, RECIPE, rows=40, file=file, stop_after=5)
    resumed = distill_module(x, y, STUDENT, RECIPE, rows=40, file=file)
    assert same(whole.params, resumed.params) and same(whole.second, resumed.second) and resumed.step == 12
    assert [k for k, _ in seen] == list(range(1, 13))
    start = STUDENT.start(np.random.default_rng(RECIPE.seed), x.dtype)
    assert relative_error(start, x, y, STUDENT) == 1.0 and relative_error(whole.params, x, y, STUDENT) < 0.9
    assert [p.name for p in tmp_path.iterdir()] == ["layer0.state"]


def test_phase_two_brings_the_models_together_and_resumes(model, pairs, tmp_path):
    config, weights, tokens = model
    nets = {i: STUDENT.start(np.random.default_rng(i), x.dtype) for i, (x, _) in enumerate(pairs)}
    block, file = locked_block(NET), tmp_path / "phase2"

    def teacher(batch):
        return qwen3.forward(weights, batch, config)

    want = qwen3.forward(weights, tokens, config)
    before = float(divergence(assembled(weights, nets), want, tokens, config, block))
    whole = distill_model(teacher, weights, nets, tokens, config, STUDENT, RECIPE, rows=4)
    distill_model(teacher, weights, nets, tokens, config, STUDENT, RECIPE, rows=4, file=file, stop_after=7)
    resumed = distill_model(teacher, weights, nets, tokens, config, STUDENT, RECIPE, rows=4, file=file)
    assert same(whole.params, resumed.params)
    locked = {**assembled(weights, nets), **whole.params}
    assert float(divergence(locked, want, tokens, config, block)) < 0.9 * before
    assert all(np.array_equal(locked[n], weights[n]) for n in locked if "blocks" not in n)


@pytest.mark.parametrize("stop", ["layer0", "layer1", "model"])
def test_both_phases_resume_bit_for_bit_wherever_they_stopped(stop, model, tmp_path, monkeypatch):
    config, weights, tokens = model
    phases = Phases(Recipe(4, 0.02), Recipe(3, 0.01), captured=8, activations=16, tokens=3)
    given = (weights, config, swiglu_student(config), STUDENT, phases, tokens[:9], tokens[9:])
    whole = distill(*given)
    honest = dlr_training.train

    def interrupted(loss, params, recipe, *, file, **options):
        if file.name == stop:
            honest(loss, params, recipe, file=file, **{**options, "stop_after": 2})
            raise KeyboardInterrupt
        return honest(loss, params, recipe, file=file, **options)

    monkeypatch.setattr("lockref.locks.distillation.train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distill(*given, work=tmp_path / "work")
    monkeypatch.setattr("lockref.locks.distillation.train", honest)
    again = distill(*given, work=tmp_path / "work")
    assert same(whole.model, again.model) and same(whole.modules, again.modules)
    assert (whole.errors, whole.row_errors) == (again.errors, again.row_errors)


def test_distillation_goes_both_ways(model):
    """A DLR-Net learns from the MLP, then an MLP from that DLR-Net, by the same function."""
    config, weights, tokens = model
    phases = Phases(Recipe(40, 0.03), Recipe(2, 0.001), captured=12, activations=64, tokens=3)
    swiglu = swiglu_student(config)
    locked = distill(weights, config, swiglu, STUDENT, phases, tokens, tokens)
    back = distill(locked.model, config, STUDENT, swiglu, phases, tokens, tokens)
    assert max(locked.errors) < 0.9 and max(back.errors) < 0.9
    assert set(back.model) == set(weights) and all(back.model[n].shape == w.shape for n, w in weights.items())
    assert all(np.array_equal(back.model[n], w) for n, w in weights.items() if ".mlp." not in n)


def test_another_recipe_data_or_network_is_refused(pairs, tmp_path):
    (x, y), file = pairs[0], tmp_path / "state"
    distill_module(x, y, STUDENT, RECIPE, file=file, stop_after=2)
    kept = file.read_bytes()
    for change in (
        lambda: distill_module(x, y, STUDENT, Recipe(13, 0.01, seed=4), file=file),
        lambda: distill_module(x, 2 * y, STUDENT, RECIPE, file=file),
        lambda: distill_module(x, y, STUDENT, RECIPE, rows=7, file=file),
    ):
        with pytest.raises(CheckpointError, match="was made by another recipe or for other data"):
            change()
    with pytest.raises(CheckpointError, match="holds the state of another training"):
        distill_module(x, y, dlr_student(DLRConfig(24, 4, 3, "rms")), RECIPE, file=file)
    file.write_bytes(kept[:-9])
    with pytest.raises(CheckpointError, match="cut short"):
        distill_module(x, y, STUDENT, RECIPE, file=file)


def test_an_interrupted_write_leaves_the_last_state_whole(pairs, tmp_path, monkeypatch):
    (x, y), file = pairs[0], tmp_path / "state"
    distill_module(x, y, STUDENT, RECIPE, file=file, stop_after=3)
    kept = file.read_bytes()

    def stop(path, tensors, code):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(dlr_training, "write_tensors", stop)
    with pytest.raises(KeyboardInterrupt):
        distill_module(x, y, STUDENT, RECIPE, file=file)
    assert file.read_bytes() == kept and list(tmp_path.iterdir()) == [file]


def test_a_directory_that_is_not_there_is_named(pairs, tmp_path):
    x, y = pairs[0]
    with pytest.raises(CheckpointError, match="check that its directory exists"):
        distill_module(x, y, STUDENT, RECIPE, file=tmp_path / "no" / "state", stop_after=1)


def test_training_that_diverges_stops_with_the_step():
    with pytest.raises(
        FloatingPointError, match=r"training: loss nan, gradient norm nan at step 0; lower the learning"
    ):
        train(lambda p, rng: (p["w"] * np.nan).sum(), {"w": np.ones(2)}, RECIPE)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, y: distill_module(x[:, :-1], y, STUDENT, RECIPE), r"x \(108, 23\), y \(108, 24\); want two arrays"),
        (lambda x, y: distill_module(x[:0], y[:0], STUDENT, RECIPE), r"want two arrays \(rows, 24\)"),
        (
            lambda x, y: distill_module(np.where(x == x[3, 2], np.nan, x), y, STUDENT, RECIPE),
            "x is not finite in row 3",
        ),
        (lambda x, y: distill_module(x, 0 * y, STUDENT, RECIPE), "y is zero everywhere"),
        (lambda x, y: DLRConfig(24, 0, 3), "rank is 0"),
        (lambda x, y: DLRConfig(24, 3, 0), "depth is 0"),
        (lambda x, y: dlrnet.parity(24, 40, 61), "leaves less than rank 1"),
        (lambda x, y: distill_model(None, {}, {0: {}}, x, Sizes, STUDENT, RECIPE), r"layers \[1\] have no network"),
        (lambda x, y: Recipe(0, 0.1), "steps is 0"),
        (lambda x, y: Recipe(3, -1.0), "learning_rate is -1.0"),
        (lambda x, y: Recipe(3, 0.1, warmup=1.0), "warmup 1.0"),
    ],
)
def test_bad_input_is_named(call, words, pairs):
    with pytest.raises(ValueError, match=words):
        call(*pairs[0])


class Sizes:
    num_hidden_layers = 2


def test_the_learning_rate_warms_up_and_ends_near_zero():
    recipe = Recipe(100, 1.0, warmup=0.1)
    rates = [recipe.rate(k) for k in range(100)]
    assert rates[0] == 0.1 and rates[9] == rates[10] == 1.0 and rates[-1] < 1e-3
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_adamw_by_hand():
    """One step from zero moments moves every weight by the rate, against the sign of its gradient; decay besides."""
    recipe = Recipe(1, 0.5, warmup=0.0, weight_decay=0.1, clip=1e9)
    state = train(lambda p, rng: (p["w"] * np.array([3.0, -7.0])).sum(), {"w": np.array([1.0, 2.0])}, recipe)
    assert np.allclose(state.params["w"], [1 - 0.5 * (1 + 0.1), 2 - 0.5 * (-1 + 0.2)], rtol=1e-8)
