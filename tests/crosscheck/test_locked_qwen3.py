"""The locks on the official Qwen3: the NumPy functions, directories that load whole or not at all."""

import json
from dataclasses import asdict, replace

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM
from transformers.models.qwen3 import modeling_qwen3 as official

from lockcross import eager, float64
from lockcross import qwen3 as locked
from lockproofs.rounding import UNIT64, rounding_error
from lockref.autodiff import value_and_grad
from lockref.locks import attention, taylor_model
from lockref.locks.bases import BASES
from lockref.locks.dlr import assembled, locked_block
from lockref.locks.manifest import Manifest, write_locked
from lockref.models import dlrnet, qwen3
from lockref.models.dlrnet import DLRConfig
from lockref.models.tensor_file import CheckpointError, FileRecord
from lockref.models.zoo import LOCKED_ZOO, zoo_path

NETS = {
    f"{norm}, {activation}, {placement}": DLRConfig(24, 4, 3, norm, activation, placement)
    for norm, activation, placement in (
        ("none", "relu", "output"), ("rms", "silu", "difference"), ("rms_gain", "gelu_tanh", "stream"),
        ("rms_gain", "gelu_erf", "difference"), ("rms", "tanh", "stream"),
    )
}  # fmt: skip
TOKENS = np.random.default_rng(3).integers(0, 61, (2, 13))
TORCH_TOKENS = torch.from_numpy(TOKENS)


def with_nets(config, weights, net):
    """The tiny model with DLR-Nets whose gains are not 1."""
    rng = np.random.default_rng(7)
    nets = {}
    for i in range(config.num_hidden_layers):
        params = dlrnet.initialize(net, rng, b_scale=0.7)
        nets[i] = {n: w * rng.uniform(0.5, 2, w.shape) if n.endswith("gain") else w for n, w in params.items()}
    return assembled(weights, nets)


def with_series(config, weights, basis):
    seen = taylor_model.observe_model(weights, TOKENS, config)
    return taylor_model.lock_model(weights, config, seen, 6, BASES[basis], np.random.default_rng(0))


def projected(config, weights, family="topk-planes"):
    """q_proj and k_proj turned by flips of 3 planes, which keep the function."""
    return attention.project(weights, config, attention.projections(weights, config, attention.FAMILIES[family], 3))


def compare(tensors, config, mlp, block):
    """Logits, loss and gradients of torch in float64, casts patched, against NumPy to derived round-off."""
    model = locked.build(config, tensors, mlp, dtype=torch.float64)
    rng = np.random.default_rng(0)

    def both(w):
        return value_and_grad(lambda w: qwen3.loss(w, TOKENS, config, block))(w)

    with float64.uncast():
        logits = model(TORCH_TOKENS, use_cache=False).logits.detach()
        value = locked.loss(model, TORCH_TOKENS)
        value.backward()
    want = qwen3.forward(tensors, TOKENS, config, block)
    limit = 2 * rounding_error(lambda w: qwen3.forward(w, TOKENS, config, block), tensors, unit=UNIT64, rng=rng)
    again = float64.twin_logits({n: torch.from_numpy(w) for n, w in tensors.items()}, TORCH_TOKENS, config, mlp)
    assert np.max(np.abs(again.numpy() - want)) <= limit
    assert np.max(np.abs(logits.numpy() - want)) <= limit, f"logits; round-off, sampled, allows {limit:.2g}"
    loss, grads = both(tensors)
    loss_error, errors = rounding_error(both, tensors, unit=UNIT64, rng=rng)
    assert abs(value.item() - loss) <= 2 * loss_error
    for name, p in model.named_parameters():
        got = np.zeros(p.shape) if p.grad is None else p.grad.numpy()  # on the stream the MLP's norm is not read
        off = np.max(np.abs(got - grads[name]))
        assert off <= 2 * errors[name], f"gradient of {name} differs by {off:.2g}, allowed {2 * errors[name]:.2g}"
        assert np.max(np.abs(grads[name])) > 0 or name.endswith("post_attention_layernorm.weight")


@pytest.mark.parametrize("name", NETS)
def test_dlr_on_the_official_model(tiny_qwen3, name):
    config, weights = tiny_qwen3(tied="stream" in name)
    compare(with_nets(config, weights, NETS[name]), config, NETS[name], locked_block(NETS[name]))


@pytest.mark.parametrize("basis", BASES)
def test_taylor_on_the_official_model(tiny_qwen3, basis):
    config, weights = tiny_qwen3()
    compare(with_series(config, weights, basis), config, (6, basis), taylor_model.block(BASES[basis]))


def test_projection_with_dlr_on_the_official_model(tiny_qwen3):
    config, weights = tiny_qwen3()
    net = NETS["rms, silu, difference"]
    compare(projected(config, with_nets(config, weights, net)), config, net, locked_block(net))


def test_a_generic_projection_is_seen_to_change_the_function(tiny_qwen3):
    """Flips of eigen-directions do not commute with RoPE and QK-norm: both sides say so, by the same amount."""
    config, weights = tiny_qwen3()
    turned = projected(config, weights, "topk")
    with float64.uncast(), torch.no_grad():
        got = locked.build(config, turned, dtype=torch.float64)(TORCH_TOKENS).logits.numpy()
    change = np.max(np.abs(got - qwen3.forward(weights, TOKENS, config)))
    assert change > 0.01
    assert np.max(np.abs(got - qwen3.forward(turned, TOKENS, config))) < 1e-12 * change


@pytest.mark.parametrize("tied", [False, True])
def test_the_engine_s_eager_model_is_the_fused_one(tiny_qwen3, tied):
    config, weights = tiny_qwen3(tied)
    for net in (None, NETS["rms_gain, gelu_tanh, stream"], NETS["rms, silu, difference"]):
        tensors = weights if net is None else with_nets(config, weights, net)
        block = qwen3.block if net is None else locked_block(net)
        got = value_and_grad(lambda w, net=net: eager.loss(w, TOKENS, config, net))(tensors)
        fused = value_and_grad(lambda w, block=block: qwen3.loss(w, TOKENS, config, block))
        want = fused(tensors)
        loss_error, errors = rounding_error(fused, tensors, unit=UNIT64, rng=np.random.default_rng(0))
        assert abs(got[0] - want[0]) <= 2 * loss_error
        for name, g in got[1].items():
            assert np.max(np.abs(g - want[1][name])) <= 2 * errors[name], name


def test_uncast_leaves_the_official_modules_as_they_were(tiny_qwen3):
    before = official.Qwen3RMSNorm.forward, official.Qwen3RotaryEmbedding.forward, official.eager_attention_forward
    with pytest.raises(ZeroDivisionError), float64.uncast():
        assert official.Qwen3RMSNorm.forward is not before[0]
        raise ZeroDivisionError
    after = official.Qwen3RMSNorm.forward, official.Qwen3RotaryEmbedding.forward, official.eager_attention_forward
    assert after == before


# Directories.


def manifest(**parts):
    return Manifest(parts, (FileRecord("model.safetensors", "0" * 64, 1),), "made by a test", 0, {"numpy": "2"})


@pytest.fixture
def locked_path(tmp_path, tiny_qwen3):
    """A DLR-locked directory, written by torch in bfloat16."""
    config, weights = tiny_qwen3()
    net = NETS["rms_gain, gelu_erf, difference"]
    model = locked.build(config, with_nets(config, weights, net), net, dtype=torch.bfloat16)
    locked.save_locked(tmp_path / "locked", model, config, manifest(dlr={"net": asdict(net)}))
    return tmp_path / "locked"


def test_a_locked_directory_comes_back_to_the_bit(tmp_path, tiny_qwen3):
    for tied in (False, True):
        config, weights = tiny_qwen3(tied)
        net = NETS["rms_gain, gelu_tanh, stream"]
        cases = (
            (with_nets(config, weights, net), net, manifest(dlr={"net": asdict(net)})),
            (
                with_series(config, weights, "hermite"),
                (6, "hermite"),
                manifest(taylor={"order": 6, "basis": "hermite"}),
            ),
            (projected(config, weights), None, manifest(attention={"family": "topk-planes", "k": 3})),
        )
        for i, (tensors, mlp, said) in enumerate(cases):
            model = locked.build(config, tensors, mlp, dtype=torch.float64)
            path = tmp_path / f"{tied}{i}"
            locked.save_locked(path, model, config, said)
            again, sizes, read = locked.load_locked(path, dtype=torch.float64)
            assert (sizes, replace(read, released=())) == (config, said)
            assert {n: p.shape for n, p in again.named_parameters()} == {
                n: p.shape for n, p in model.named_parameters()
            }
            for (name, p), q in zip(again.named_parameters(), model.parameters(), strict=True):
                assert torch.equal(p, q) and p.requires_grad, name
            with torch.no_grad():
                assert torch.equal(again(TORCH_TOKENS).logits, model(TORCH_TOKENS).logits)


def test_half_precision_is_kept_in_the_file(locked_path):
    model, _, _ = locked.load_locked(locked_path, dtype=torch.bfloat16)
    stored = load_file(locked_path / "model.safetensors")
    assert {w.dtype for w in stored.values()} == {np.dtype(ml_dtypes.bfloat16)}
    for name, p in model.named_parameters():
        np.testing.assert_array_equal(p.detach().float().numpy(), stored[name].astype(np.float32))


def spoil(path, change):
    """Rewrites model.safetensors."""
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


NAME = "model.layers.1.mlp.blocks.2.a"
SPOILED = {
    "missing": lambda t: t.pop(NAME),
    "renamed": lambda t: t.update({NAME + "x": t.pop(NAME)}),
    "one more": lambda t: t.update({"model.layers.1.mlp.up_proj.weight": t[NAME].copy()}),
    "transposed": lambda t: t.update({NAME: t[NAME].T.copy()}),
    "norm missing": lambda t: t.pop("model.norm.weight"),
    "gain missing": lambda t: t.pop("model.layers.0.mlp.blocks.0.gain"),
    "a layer of the original": lambda t: t.update({"model.layers.2.mlp.gate_proj.weight": t[NAME].copy()}),
    "not finite": lambda t: t[NAME].__setitem__((0, 0), np.nan),
}


@pytest.mark.parametrize("fault", SPOILED)
def test_a_spoiled_directory_is_refused(locked_path, fault):
    spoil(locked_path, SPOILED[fault])
    with pytest.raises(CheckpointError) as caught:
        locked.load_locked(locked_path)
    assert "\n" not in str(caught.value) and str(locked_path) in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"dlr": {"net": asdict(DLRConfig(24, 4, 2, "rms_gain", "gelu_erf"))}}, "got .* want no such tensor"),
        ({"dlr": {"net": {"width": 24}}}, "missing"),
        ({"dlr": {"net": asdict(DLRConfig(24, 4, 3)) | {"rank": 0}}}, "rank is 0"),
        ({"attention": {"k": 3}}, "missing"),
        ({"taylor": {"order": 3, "basis": "fourier"}}, "basis 'fourier'"),
        ({"taylor": {"order": True, "basis": "taylor"}}, "order True"),
        ({"dlr": {}, "taylor": {}}, "keep one"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(locked_path, parts, message):
    said = json.loads((locked_path / "lock.json").read_text()) | {"parts": parts}
    (locked_path / "lock.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=message):
        locked.load_locked(locked_path)


def test_missing_weights_and_a_target_that_exists_are_refused(locked_path, tiny_qwen3):
    model, config, said = locked.load_locked(locked_path)
    with pytest.raises(CheckpointError, match="already exists"):
        locked.save_locked(locked_path, model, config, said)
    (locked_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: No such file"):
        locked.load_locked(locked_path)


def test_the_stock_loaders_refuse_where_mlps_were_replaced(locked_path):
    """Under a stock config.json, as the first locks had, the stock loader draws the MLPs anew, warns and goes on."""
    with pytest.raises(ValueError, match="lockref_qwen3"):
        AutoModelForCausalLM.from_pretrained(locked_path, local_files_only=True)
    with pytest.raises(KeyError, match="lockref"):
        Qwen3ForCausalLM.from_pretrained(locked_path, local_files_only=True)
    _, config, said = locked.load_locked(locked_path)
    (locked_path / "config.json").write_text(json.dumps(config.to_hub("bfloat16")))
    _, report = Qwen3ForCausalLM.from_pretrained(locked_path, output_loading_info=True, local_files_only=True)
    assert {n.split(".", 3)[3] for n in report["missing_keys"]} == {
        f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")
    }
    assert any(n.endswith("blocks.0.a") for n in report["unexpected_keys"])
    assert locked.load_locked(locked_path)[1:] == (config, said)


@pytest.mark.parametrize("name", LOCKED_ZOO)
def test_the_stock_loader_refuses_the_locked_zoo(name):
    with pytest.raises(ValueError, match="lockref_qwen3"):
        AutoModelForCausalLM.from_pretrained(zoo_path(name), local_files_only=True)


def test_the_stock_loader_takes_what_only_had_planes_flipped(tmp_path, tiny_qwen3):
    config, weights = tiny_qwen3()
    write_locked(tmp_path / "flipped", config, projected(config, weights), manifest(attention={"planes": 3}))
    _, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "flipped", output_loading_info=True, local_files_only=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
