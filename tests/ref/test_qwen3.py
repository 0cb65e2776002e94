"""The NumPy Qwen3 against its definition, written once more and slowly; its derivatives; its config."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockproofs.rounding import UNIT64, rounding_error
from lockref.autodiff import grad, jvp, saved, value_and_grad
from lockref.autodiff.gradcheck import gradcheck
from lockref.models import qwen3
from lockref.models.qwen3 import Qwen3Config

TOKENS = np.random.default_rng(7).integers(0, 61, (2, 9))


def definition(w, tokens, config):
    """Logits (T, V) by loops over positions and heads; RoPE as a product of complex numbers."""
    c = config.head_dim
    share = config.num_attention_heads // config.num_key_value_heads

    def norm(v, gain):
        return gain * v / np.sqrt(np.mean(v**2) + config.rms_norm_eps)

    def turn(v, t):
        z = (v[: c // 2] + 1j * v[c // 2 :]) * np.exp(1j * t * config.rope_theta ** (-2 * np.arange(c // 2) / c))
        return np.concatenate((z.real, z.imag))

    stream = [w["model.embed_tokens.weight"][t] for t in tokens]
    for i in range(config.num_hidden_layers):
        p = f"model.layers.{i}."
        q_w, k_w, v_w, o_w = (w[f"{p}self_attn.{s}_proj.weight"] for s in "qkvo")
        read = [norm(x, w[p + "input_layernorm.weight"]) for x in stream]
        for t in range(len(tokens)):
            mixed = []
            for h in range(config.num_attention_heads):
                own, key = slice(h * c, h * c + c), slice(h // share * c, h // share * c + c)
                q = turn(norm(q_w[own] @ read[t], w[p + "self_attn.q_norm.weight"]), t)
                k = [turn(norm(k_w[key] @ read[s], w[p + "self_attn.k_norm.weight"]), s) for s in range(t + 1)]
                odds = np.exp([q @ k_s / np.sqrt(c) for k_s in k])
                mixed.append(sum(o * (v_w[key] @ read[s]) for s, o in enumerate(odds)) / odds.sum())
            stream[t] = stream[t] + o_w @ np.concatenate(mixed)
        for t, x in enumerate(stream):
            h = norm(x, w[p + "post_attention_layernorm.weight"])
            z = w[p + "mlp.gate_proj.weight"] @ h
            stream[t] = x + w[p + "mlp.down_proj.weight"] @ (z / (1 + np.exp(-z)) * (w[p + "mlp.up_proj.weight"] @ h))
    head = w["model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"]
    return np.array([head @ norm(x, w["model.norm.weight"]) for x in stream])


@pytest.mark.parametrize("tied", [False, True])
def test_forward_is_the_definition(tiny_qwen3, qwen3_mutants, tied):
    config, weights = tiny_qwen3(tied)
    want = np.array([definition(weights, row, config) for row in TOKENS])
    error = rounding_error(
        lambda w: qwen3.forward(w, TOKENS, config), weights, unit=UNIT64, rng=np.random.default_rng(0)
    )
    tolerance = 2 * error  # both sides round
    got = np.max(np.abs(qwen3.forward(weights, TOKENS, config) - want))
    assert got <= tolerance, f"logits differ by {got:.2g}, sampled round-off allows {tolerance:.2g}"
    for name, mutant in qwen3_mutants.items():
        off = np.max(np.abs(mutant(weights, TOKENS, config) - want))
        assert off > tolerance, f"{name}: changes logits by {off:.2g}, which {tolerance:.2g} does not see"


def test_rows_of_a_batch_do_not_meet(tiny_qwen3):
    config, weights = tiny_qwen3()
    together = qwen3.forward(weights, TOKENS, config)
    error = rounding_error(
        lambda w: qwen3.forward(w, TOKENS, config), weights, unit=UNIT64, rng=np.random.default_rng(0)
    )
    for row, logits in zip(TOKENS, together, strict=True):
        np.testing.assert_allclose(qwen3.forward(weights, row, config), logits, rtol=0, atol=2 * error)
    losses = [qwen3.loss(weights, row, config) for row in TOKENS]
    np.testing.assert_allclose(qwen3.loss(weights, TOKENS, config), np.mean(losses), rtol=0, atol=2 * error)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_no_position_sees_what_comes_later(tiny_qwen3, data):
    config, weights = tiny_qwen3()
    at = data.draw(st.integers(1, 8))
    other = TOKENS[0].copy()
    other[at] = (other[at] + data.draw(st.integers(1, 60))) % 61
    before, after = (qwen3.forward(weights, row, config) for row in (TOKENS[0], other))
    np.testing.assert_array_equal(before[:at], after[:at])  # the same products in the same order
    assert np.min(np.max(np.abs(before[at:] - after[at:]), axis=1)) > 1e-6, "the past must be seen"


def test_loss_is_mean_next_token_nats(tiny_qwen3):
    config, weights = tiny_qwen3()
    logits = qwen3.forward(weights, TOKENS, config)
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    picked = [p[b, t, TOKENS[b, t + 1]] for b in range(2) for t in range(8)]
    error = rounding_error(
        lambda w: qwen3.forward(w, TOKENS, config), weights, unit=UNIT64, rng=np.random.default_rng(0)
    )  # a mean of log-sum-exps moves no more than the logits do, twice
    assert abs(qwen3.loss(weights, TOKENS, config) + np.mean(np.log(picked))) <= 4 * error


def test_walk_passes_through_forward(tiny_qwen3):
    config, weights = tiny_qwen3()
    layers = list(qwen3.walk(weights, TOKENS, config))
    assert len(layers) == config.num_hidden_layers
    w, x, middle = layers[-1]
    np.testing.assert_array_equal(middle, x + qwen3.attention(w, qwen3.attention_norm(w, x, config), config))
    last = middle + qwen3.mlp(w, qwen3.mlp_norm(w, middle, config))
    np.testing.assert_array_equal(qwen3.head(weights, last, config), qwen3.forward(weights, TOKENS, config))


def test_another_block_takes_the_place(tiny_qwen3):
    config, weights = tiny_qwen3()
    logits = qwen3.forward(weights, TOKENS, config, block=lambda w, x, c: x)
    np.testing.assert_array_equal(logits, qwen3.head(weights, qwen3.embed(weights, TOKENS, config), config))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_of_the_weights_is_kept(tiny_qwen3, dtype):
    config, weights = tiny_qwen3()
    weights = {n: w.astype(dtype) for n, w in weights.items()}
    assert type(qwen3.forward(weights, TOKENS, config)) is np.ndarray
    assert qwen3.forward(weights, TOKENS, config).dtype == dtype
    value, gradient = value_and_grad(lambda w: qwen3.loss(w, TOKENS, config))(weights)
    assert value.dtype == dtype and {g.dtype for g in gradient.values()} == {np.dtype(dtype)}
    assert {row.dtype for row in saved(lambda w: qwen3.loss(w, TOKENS, config), weights)} == {np.dtype(dtype).name}


@pytest.mark.parametrize("tied", [False, True])
def test_derivatives(tiny_qwen3, tied):
    config, weights = tiny_qwen3(tied)
    report = gradcheck(lambda w: qwen3.loss(w, TOKENS, config), weights, rng=np.random.default_rng(1), draws=2)
    assert report.oracle == "complex step", report
    assert grad(lambda w: qwen3.loss(w, TOKENS, config))(weights).keys() == weights.keys()


def test_forward_mode_of_the_logits(tiny_qwen3):
    """The tangent of the logits along the weights of one layer's MLP, against the complex step."""
    config, weights = tiny_qwen3()
    rng = np.random.default_rng(2)
    direction = {n: rng.standard_normal(w.shape) * ("layers.0.mlp" in n) for n, w in weights.items()}
    _, tangent = jvp(lambda w: qwen3.forward(w, TOKENS, config), (weights,), (direction,))
    step = {n: w + 1e-20j * direction[n] for n, w in weights.items()}
    want = qwen3.forward(step, TOKENS, config).imag / 1e-20
    error = rounding_error(
        lambda w: jvp(lambda v: qwen3.forward(v, TOKENS, config), (w,), (direction,))[1],
        weights,
        unit=UNIT64,
        rng=rng,
    )
    assert np.max(np.abs(tangent - want)) <= 2 * error < np.max(np.abs(want)) / 1e6


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ([0.5, 1.0], "float64 of shape"),
        ([[[1]]], r"shape \(1, 1, 1\)"),
        ([], "expected integers"),
        ([0, 61], "0 to 61; vocab_size is 61"),
        ([0, -1], "-1 to 0"),
    ],
)
def test_wrong_tokens_are_named(tiny_qwen3, tokens, words):
    config, weights = tiny_qwen3()
    with pytest.raises(ValueError, match=words):
        qwen3.forward(weights, tokens, config)


# Sizes and config.json.

QWEN3_06B = {  # the published config.json of Qwen3-0.6B
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def test_published_sizes():
    config = Qwen3Config.from_hub(QWEN3_06B)
    assert config == Qwen3Config(151936, 1024, 3072, 28, 16, 8, 128, 1e-6, 1e6, True, 40960)
    counts = {name: int(np.prod(shape)) for name, shape in qwen3.expected_tensors(config).items()}
    # 0.6 B parameters, 0.44 B without the embedding, says the model's card
    assert sum(counts.values()) == 596_049_920
    assert sum(counts.values()) - counts["model.embed_tokens.weight"] == 440_467_456
    assert Qwen3Config.from_hub(config.to_hub("bfloat16")) == config
    untied = qwen3.expected_tensors(replace(config, tie_word_embeddings=False))
    assert untied["lm_head.weight"] == (151936, 1024) and len(untied) == len(counts) + 1


NEWER = {k: v for k, v in QWEN3_06B.items() if k not in ("rope_theta", "rope_scaling")} | {
    "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"},
    "layer_types": ["full_attention"] * 28,
}


def test_rope_theta_where_newer_files_have_it():
    assert Qwen3Config.from_hub(NEWER).rope_theta == 5e5
    assert Qwen3Config.from_hub(NEWER | {"rope_theta": 500000}).rope_theta == 5e5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "qwen3_moe"}, "model_type is 'qwen3_moe'"),
        ({"model_type": None}, "model_type is None"),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, "architectures"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"use_sliding_window": True, "sliding_window": 8}, "use_sliding_window is True"),
        ({"layer_types": ["full_attention", "sliding_attention"] * 14}, "layer_types"),
        ({"layer_types": ["full_attention"] * 27}, "layer_types has 27 entries"),
        ({"layer_types": 28}, "layer_types is 28"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}}, "rope_parameters has"),
        ({"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}}, "rope_parameters has"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling has"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'"),
        ({"rope_theta": 1e4}, "rope_theta and rope_parameters.rope_theta disagree"),
        ({"rope_parameters": None}, "rope_theta is missing"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"auto_map": {"AutoModel": "modeling.Custom"}}, "auto_map"),
        ({"head_dim": 127}, "head_dim is 127; RoPE"),
        ({"num_key_value_heads": 3}, "multiple of num_key_value_heads, 3"),
        ({"num_key_value_heads": None}, "num_key_value_heads is None; it must be a positive integer"),
        ({"hidden_size": 1024.0}, "hidden_size is 1024.0; it must be a positive integer"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6'"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; it must be true or false"),
    ],
)
def test_settings_that_would_be_another_function(change, words):
    Qwen3Config.from_hub(NEWER)
    with pytest.raises(ValueError, match=words) as caught:
        Qwen3Config.from_hub(NEWER | change)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "head_dim", "num_key_value_heads"])
def test_a_missing_size_is_not_guessed(key):
    with pytest.raises(ValueError, match=f"{key} is missing"):
        Qwen3Config.from_hub({k: v for k, v in NEWER.items() if k != key})
