"""The NumPy Qwen3 against the official one (transformers, eager attention): logits, losses, gradients, files.

Each comparison allows what sampled round-off allows, `lockproofs.rounding`, and must reject every mutant.
Three precisions:
  float32   both in float32;
  float64   the official model in float64, whose norms, softmax and RoPE tables stay in float32 all the
            same: agreement has a floor there, whatever we compute;
  patched   with these three in float64 too: seven digits more, enough to see those casts themselves.
"""

import warnings
from functools import cached_property

import numpy as np
import pytest
import torch
from transformers import Qwen3ForCausalLM

from lockcross.float64 import uncast
from lockproofs.rounding import UNIT32, UNIT64, rounding_error
from lockref.autodiff import value_and_grad
from lockref.models import qwen3
from lockref.models.checkpoint_io import load_checkpoint, save_checkpoint
from lockref.models.zoo import ZOO, zoo_path

# Official float64 rounds these to float32. The matrix products inside attention are in float64, so this allows
# a little too much.
IN_FLOAT32 = {"rms_norm": UNIT32, "attention": UNIT32, "rope": UNIT32}
SUBJECTS = ("tiny", "tiny tied", *ZOO)


def load_official(path, dtype=torch.float32):
    model, report = Qwen3ForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation="eager", output_loading_info=True, local_files_only=True
    )
    assert not any(report.values()), f"{path} does not load cleanly: {report}"
    return model.eval()


class Subject:
    """A model on both sides, tokens for it, and what round-off allows between the sides."""

    def __init__(self, path, tokens):
        self.path, self.tokens = path, tokens
        loaded = load_checkpoint(path)
        self.config, self.weights = loaded.config, loaded.tensors
        self.weights32 = load_checkpoint(path, np.float32).tensors

    def logits(self, weights):
        return qwen3.forward(weights, self.tokens, self.config)

    def loss_and_grad(self, weights):
        return value_and_grad(lambda w: qwen3.loss(w, self.tokens, self.config))(weights)

    def error(self, f, unit, inside=None):
        return rounding_error(f, self.weights, unit=unit, inside=inside, rng=np.random.default_rng(0))

    @cached_property
    def tolerances(self):
        """Sum of what either side may have rounded off."""
        single, double = self.error(self.logits, UNIT32), self.error(self.logits, UNIT64)
        mixed = self.error(self.logits, UNIT64, IN_FLOAT32)
        return {"float32": 2 * single, "float64": mixed + double, "patched": 2 * double}


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request, tmp_path_factory, tiny_qwen3, write_qwen3):
    name = request.param
    if name in ZOO:
        text = b"def add(a, b):\n    return a + b  # 17+25=42\n" * 2
        return Subject(zoo_path(name), np.frombuffer(text, np.uint8).astype(np.int64).reshape(2, -1))
    config, weights = tiny_qwen3(tied=name == "tiny tied")
    path = write_qwen3(tmp_path_factory.mktemp("official") / "m", config, weights)
    return Subject(path, np.random.default_rng(3).integers(0, config.vocab_size, (2, 31)))


def official_logits(model, tokens):
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.numpy()


def compare(subject, precision, mutants):
    """Ours agrees, mutants do not: the same subtraction, the same tolerance."""
    dtype = torch.float32 if precision == "float32" else torch.float64
    weights = subject.weights32 if precision == "float32" else subject.weights
    want = official_logits(load_official(subject.path, dtype), subject.tokens)
    tolerance = subject.tolerances[precision]
    got = np.max(np.abs(subject.logits(weights) - want))
    assert got <= tolerance, f"{precision} logits differ by {got:.2g}; round-off, sampled, allows {tolerance:.2g}"
    for name, mutant in mutants.items():
        off = np.max(np.abs(mutant(weights, subject.tokens, subject.config) - want))
        assert off > tolerance, f"{name}: {precision} logits differ by {off:.2g}, unseen under {tolerance:.2g}"
    return got


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_logits(subject, qwen3_mutants, precision):
    got = compare(subject, precision, qwen3_mutants)
    assert got > subject.tolerances["patched"], "the casts to float32 are gone: compare without the patch"


def test_logits_without_casts(subject, qwen3_mutants):
    with uncast():
        compare(subject, "patched", qwen3_mutants)


def test_loss_and_gradients(subject):
    model = load_official(subject.path)
    tokens = torch.from_numpy(subject.tokens)
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    want = {name: p.grad.numpy() for name, p in model.named_parameters()}
    got_loss, got = subject.loss_and_grad(subject.weights32)
    assert got.keys() == want.keys()
    loss_error, errors = subject.error(subject.loss_and_grad, UNIT32)
    assert abs(got_loss - loss.item()) <= 2 * loss_error, f"losses {got_loss} and {loss.item()}, {loss_error:.2g}"
    for name, g in got.items():
        off, tolerance = np.max(np.abs(g - want[name])), 2 * errors[name]
        assert off <= tolerance, f"gradient of {name} differs by {off:.2g}; round-off, sampled, allows {tolerance:.2g}"
        planted = np.max(np.abs(1.01 * g - want[name]))
        assert planted > tolerance, f"gradient of {name}: an error of 1 % is unseen under {tolerance:.2g}"


# Files: each side reads what the other wrote.


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("tied", [False, True])
def test_official_loads_what_we_save(tmp_path, tiny_qwen3, dtype, tied):
    config, weights = tiny_qwen3(tied)
    save_checkpoint(tmp_path / "m", config, weights, dtype)
    model = load_official(tmp_path / "m", dtype=None)
    assert model.dtype == getattr(torch, dtype)
    names = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}
    names |= {"num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings"}
    assert {n: getattr(model.config, n) for n in names} == {n: getattr(config, n) for n in names}
    assert model.config.rope_parameters == {"rope_theta": config.rope_theta, "rope_type": "default"}
    for name, p in model.named_parameters():
        np.testing.assert_array_equal(p.detach().double().numpy(), weights[name], err_msg=name)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", ["1GB", "10KB"])
def test_we_load_what_official_saves(tmp_path, tiny_qwen3, write_qwen3, tied, size):
    config, weights = tiny_qwen3(tied)
    model = load_official(write_qwen3(tmp_path / "m", config, weights))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        model.save_pretrained(tmp_path / "again", max_shard_size=size)
    loaded = load_checkpoint(tmp_path / "again")
    assert loaded.config == config and set(loaded.dtypes.values()) == {"float32"}
    assert (len([f for f in loaded.files if f.name.endswith(".safetensors")]) > 1) == (size == "10KB")
    for name, w in weights.items():
        np.testing.assert_array_equal(loaded.tensors[name], w, err_msg=name)
