"""Distillation into DLR-Nets: tiny runs, resumed bit for bit, with clear errors and no half-written file."""

from itertools import pairwise

import numpy as np
import pytest

from lockref.locks import dlr_training
from lockref.locks.dlr import (
    assembled,
    captured,
    distill_model,
    distill_module,
    divergence,
    locked_block,
    relative_error,
    warm_start,
)
from lockref.locks.dlr_training import Recipe, train
from lockref.models import dlrnet, qwen3
from lockref.models.dlrnet import DLRConfig
from lockref.models.tensor_file import CheckpointError

NET = DLRConfig(24, 5, 3, "rms")
RECIPE = Recipe(12, 0.01, seed=4)


@pytest.fixture
def model(tiny_qwen3):
    config, weights = tiny_qwen3()
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (12, 9))
    return config, weights, tokens


@pytest.fixture
def pairs(model):
    config, weights, tokens = model
    return list(captured(weights, tokens, config))


def same(a, b):
    return all(np.array_equal(a[n], b[n]) for n in a) and set(a) == set(b)


def test_captured_pairs_are_what_the_mlp_reads_and_gives(model, pairs):
    config, weights, tokens = model
    assert len(pairs) == config.num_hidden_layers and pairs[0][0].shape == (tokens.size, 24)
    for i, (x, y) in enumerate(pairs):
        again = qwen3.mlp(qwen3.layer_weights(weights, i), x.reshape(*tokens.shape, 24))
        assert np.array_equal(again.reshape(y.shape), y)  # the same products of the same shapes
    (stream, after), *_ = captured(weights, tokens, config, "stream")
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
    assert float(relative_error(nets[0], x, dlrnet.forward(nets[0], x, net), net)) == 0


@pytest.mark.parametrize("norm", dlrnet.NORMS)
@pytest.mark.parametrize("placement", dlrnet.PLACEMENTS)
def test_the_warm_start_is_nearer_than_doing_nothing(norm, placement, model):
    config, weights, tokens = model
    x, y = next(iter(captured(weights, tokens, config, "stream" if placement == "stream" else "difference")))
    net = DLRConfig(24, 8, 3, norm, placement=placement)
    start = warm_start(x, y, net, np.random.default_rng(0))
    still = dlrnet.initialize(net, np.random.default_rng(0))  # B = 0
    assert float(relative_error(start, x, y, net)) < 0.9 * float(relative_error(still, x, y, net))


def test_phase_one_learns_and_resumes_bit_for_bit(pairs, tmp_path):
    x, y = pairs[0]
    file = tmp_path / "layer0.state"
    seen = []
    whole = distill_module(x, y, NET, RECIPE, rows=40, follow=lambda k, loss: seen.append((k, loss)))
    distill_module(x, y, NET, RECIPE, rows=40, file=file, stop_after=5)
    resumed = distill_module(x, y, NET, RECIPE, rows=40, file=file)
    assert same(whole.params, resumed.params) and same(whole.second, resumed.second) and resumed.step == 12
    assert [k for k, _ in seen] == list(range(1, 13))
    start = warm_start(x, y, NET, np.random.default_rng(RECIPE.seed))
    assert float(relative_error(whole.params, x, y, NET)) < float(relative_error(start, x, y, NET))
    assert [p.name for p in tmp_path.iterdir()] == ["layer0.state"]


def test_phase_two_brings_the_models_together_and_resumes(model, pairs, tmp_path):
    config, weights, tokens = model
    nets = {i: warm_start(x, y, NET, np.random.default_rng(i)) for i, (x, y) in enumerate(pairs)}
    block, file = locked_block(NET), tmp_path / "phase2"
    want = qwen3.forward(weights, tokens, config)
    before = float(divergence(assembled(weights, nets), want, tokens, config, block))
    whole = distill_model(weights, nets, tokens, config, NET, RECIPE, rows=4)
    distill_model(weights, nets, tokens, config, NET, RECIPE, rows=4, file=file, stop_after=7)
    resumed = distill_model(weights, nets, tokens, config, NET, RECIPE, rows=4, file=file)
    assert same(whole.params, resumed.params)
    locked = {**assembled(weights, nets), **whole.params}
    assert float(divergence(locked, want, tokens, config, block)) < 0.9 * before
    assert all(np.array_equal(locked[n], weights[n]) for n in locked if "blocks" not in n)


def test_another_recipe_data_or_network_is_refused(pairs, tmp_path):
    (x, y), file = pairs[0], tmp_path / "state"
    distill_module(x, y, NET, RECIPE, file=file, stop_after=2)
    kept = file.read_bytes()
    for change in (
        lambda: distill_module(x, y, NET, Recipe(13, 0.01, seed=4), file=file),
        lambda: distill_module(x, 2 * y, NET, RECIPE, file=file),
        lambda: distill_module(x, y, NET, RECIPE, rows=7, file=file),
    ):
        with pytest.raises(CheckpointError, match="was made by another recipe or for other data"):
            change()
    with pytest.raises(CheckpointError, match="holds the state of another training"):
        distill_module(x, y, DLRConfig(24, 4, 3, "rms"), RECIPE, file=file)
    file.write_bytes(kept[:-9])
    with pytest.raises(CheckpointError, match="cut short"):
        distill_module(x, y, NET, RECIPE, file=file)


def test_an_interrupted_write_leaves_the_last_state_whole(pairs, tmp_path, monkeypatch):
    (x, y), file = pairs[0], tmp_path / "state"
    distill_module(x, y, NET, RECIPE, file=file, stop_after=3)
    kept = file.read_bytes()

    def stop(path, tensors, code):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(dlr_training, "write_tensors", stop)
    with pytest.raises(KeyboardInterrupt):
        distill_module(x, y, NET, RECIPE, file=file)
    assert file.read_bytes() == kept and list(tmp_path.iterdir()) == [file]


def test_a_directory_that_is_not_there_is_named(pairs, tmp_path):
    x, y = pairs[0]
    with pytest.raises(CheckpointError, match="check that its directory exists"):
        distill_module(x, y, NET, RECIPE, file=tmp_path / "no" / "state", stop_after=1)


def test_training_that_diverges_stops_with_the_step():
    with pytest.raises(
        FloatingPointError, match=r"training: loss nan, gradient norm nan at step 0; lower the learning"
    ):
        train(lambda p, rng: (p["w"] * np.nan).sum(), {"w": np.ones(2)}, RECIPE)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, y: distill_module(x[:, :-1], y, NET, RECIPE), r"x \(108, 23\), y \(108, 24\); want two arrays"),
        (lambda x, y: distill_module(x[:0], y[:0], NET, RECIPE), r"want two arrays \(rows, 24\)"),
        (lambda x, y: distill_module(np.where(x == x[3, 2], np.nan, x), y, NET, RECIPE), "x is not finite in row 3"),
        (lambda x, y: distill_module(x, 0 * y, NET, RECIPE), "y is zero everywhere"),
        (lambda x, y: DLRConfig(24, 0, 3), "rank is 0"),
        (lambda x, y: DLRConfig(24, 3, 0), "depth is 0"),
        (lambda x, y: dlrnet.parity(24, 40, 61), "leaves less than rank 1"),
        (lambda x, y: distill_model({}, {0: {}}, x, Sizes, NET, RECIPE), r"layers \[1\] have no DLR-Net"),
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
