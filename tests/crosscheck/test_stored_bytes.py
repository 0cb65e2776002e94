"""Bytes that torch keeps = ledger of the same operations = closed form, exactly; and each planted fault is seen."""

import contextlib
import warnings
from collections import Counter

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from lockcross import eager, float64, storage
from lockcross import qwen3 as locked
from lockcross.qwen3 import DLRNet
from lockproofs.hub_sizes import HUB
from lockref.autodiff import saved
from lockref.locks.dlr import assembled
from lockref.models import dlrnet
from lockref.models.dlrnet import DLRConfig
from lockref.models.storage import DLR_WEIGHTS, SWIGLU_WEIGHTS, Storage, dlr, swiglu

configs = st.builds(
    DLRConfig,
    width=st.integers(1, 6),
    rank=st.integers(1, 6),
    depth=st.integers(1, 5),
    norm=st.sampled_from(dlrnet.NORMS),
    activation=st.sampled_from(dlrnet.ACTIVATIONS),
    placement=st.sampled_from(dlrnet.PLACEMENTS),
)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])
batches = st.sampled_from([(1,), (5,), (2, 3), (2, 1, 2)])


def count(net, batch, width, dtype, trains, input_gradient):
    storage.trainable(net.to(dtype), trains)
    x = torch.randn(*batch, width, dtype=dtype, requires_grad=input_gradient)
    return storage.total(storage.kept(lambda: net(x), [*net.parameters(), x], net))


@settings(max_examples=150, deadline=None)
@given(configs, st.sets(st.sampled_from(sorted(DLR_WEIGHTS))), st.booleans(), batches, dtypes)
def test_dlr(config, trains, input_gradient, batch, dtype):
    net = DLRNet(config)
    for p in net.parameters():
        nn.init.normal_(p)
    got = count(net, batch, config.width, dtype, {f".{kind}" for kind in trains}, input_gradient)
    kept = dlr(config, fused=False, trains=trains, input_gradient=input_gradient)
    want = kept.bytes(int(np.prod(batch)), torch.finfo(dtype).bits // 8)
    assert got == want, f"{config}, {sorted(trains)} train, input {input_gradient}: torch {got}, formula {want}"


class SwiGLU(nn.Module):
    """The official MLP's operations without its config."""

    def __init__(self, d, m):
        super().__init__()
        self.gate, self.up = nn.Linear(d, m, bias=False), nn.Linear(d, m, bias=False)
        self.down = nn.Linear(m, d, bias=False)

    def forward(self, x):
        return self.down(functional.silu(self.gate(x)) * self.up(x))


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 7),
    st.sets(st.sampled_from(sorted(SWIGLU_WEIGHTS))),
    st.booleans(),
    batches,
    dtypes,
)
def test_swiglu(d, m, trains, input_gradient, batch, dtype):
    got = count(SwiGLU(d, m), batch, d, dtype, trains, input_gradient)
    want = swiglu(m, fused=False, trains=trains, input_gradient=input_gradient)
    assert got == want.bytes(int(np.prod(batch)), torch.finfo(dtype).bits // 8)


# The whole model against the ledger of its own operations.

NETS = {
    "swiglu": None,
    "dlr": DLRConfig(24, 4, 3, "rms_gain", "silu"),
    "dlr on the stream": DLRConfig(24, 3, 5, "rms", "tanh", "stream"),
    "dlr without norms": DLRConfig(24, 5, 2, "none", "gelu_erf", "output"),
}
TRAINS = (None, {"self_attn"}, {"mlp"}, {"layernorm"}, {"q_proj", "mlp.down", "blocks.1.a"}, {"embed_tokens"})


def model_and_tensors(tiny_qwen3, tied, net, dtype):
    config, tensors = tiny_qwen3(tied)
    if net is not None:
        rng = np.random.default_rng(5)
        tensors = assembled(tensors, {i: dlrnet.initialize(net, rng, b_scale=0.5) for i in range(2)})
    tensors = {n: w.astype(dtype) for n, w in tensors.items()}
    model = locked.build(config, tensors, net, dtype=getattr(torch, np.dtype(dtype).name))
    return config, tensors, model


def ledger(tensors, tokens, config, net, trains):
    moving = {n: w for n, w in tensors.items() if trains is None or any(part in n for part in trains)}
    still = {n: w for n, w in tensors.items() if n not in moving}
    return saved(lambda m, s, t: eager.loss({**m, **s}, t, config, net), moving, still, tokens, parameters=(0, 1))


def torch_rows(model, tokens, dtype):
    tokens = torch.from_numpy(tokens)
    with float64.uncast() if dtype == np.float64 else contextlib.nullcontext():
        return storage.kept(lambda: locked.loss(model, tokens), [*model.parameters(), tokens], model)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(
    ("batch", "dtype", "tied"), [(1, np.float32, False), (3, np.float32, True), (2, np.float64, False)]
)
def test_whole_model(tiny_qwen3, net, batch, dtype, tied):
    config, tensors, model = model_and_tensors(tiny_qwen3, tied, NETS[net], dtype)
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (batch, 12))
    for trains in TRAINS:
        storage.trainable(model, trains)
        rows = torch_rows(model, tokens, dtype)
        rest = storage.unnamed(batch, 12, np.dtype(dtype).itemsize)
        want = ledger(tensors, tokens, config, NETS[net], trains).bytes() + sum(rest.values())
        assert storage.total(rows) == want, f"{trains} train: torch {storage.total(rows)}, ledger and {rest}: {want}"
        assert all(row.operation for row in rows)


def test_rows_name_the_module_and_the_operation(tiny_qwen3):
    _, _, model = model_and_tensors(tiny_qwen3, False, None, np.float32)
    rows = torch_rows(model, np.arange(24).reshape(2, 12), np.float32)
    who = Counter((row.module.removeprefix("model.layers.1."), row.operation) for row in rows)
    assert who["self_attn.q_norm", "rsqrt"] == who["mlp.act_fn", "silu"] == who["self_attn", "softmax"] == 1
    assert who["mlp", "mul"] == 2 and who["self_attn", "matmul"] == 3  # silu(z) and u; q, k and v


def test_closed_form_of_the_whole_model(tiny_qwen3):
    for name in ("swiglu", "dlr", "dlr without norms"):
        net = NETS[name]
        config, tensors, _ = model_and_tensors(tiny_qwen3, False, net, np.float32)
        mlp = swiglu(config.intermediate_size, fused=False) if net is None else dlr(net, fused=False)
        for batch, length in ((1, 2), (1, 12), (2, 5)):
            tokens = np.ones((batch, length), int)
            want = ledger(tensors, tokens, config, net, None).bytes()
            assert storage.model_bytes(config, batch, length, 4, mlp) == want, (name, batch, length)


@pytest.mark.parametrize("name", sorted(HUB))
def test_published_sizes_are_counted_without_allocating_them(name):
    """Meta tensors: the whole model with 1,024 predictions, and its MLP as a DLR-Net at parity, training and frozen."""
    config = HUB[name]
    model = locked.skeleton(config)
    tokens = torch.zeros((1, 1025), dtype=torch.int64, device="meta")
    rows = storage.kept(lambda: locked.loss(model, tokens), [*model.parameters(), tokens], model)
    want = storage.model_bytes(config, 1, 1025, 4, swiglu(config.intermediate_size, fused=False))
    assert storage.total(rows) == want + sum(storage.unnamed(1, 1025, 4).values())
    rank = dlrnet.parity(config.hidden_size, config.intermediate_size, 48).rank
    for norm in dlrnet.NORMS:
        net = DLRConfig(config.hidden_size, rank, 48, norm)
        with torch.device("meta"):
            module = DLRNet(net)
            x = torch.empty(1024, config.hidden_size, requires_grad=True)
        for trains in (DLR_WEIGHTS, frozenset()):
            storage.trainable(module, {f".{kind}" for kind in trains})
            got = storage.total(storage.kept(lambda m=module, x=x: m(x), [*module.parameters(), x]))
            assert got == dlr(net, fused=False, trains=trains).bytes(1024, 4)


# LoRA.


@pytest.mark.parametrize("net", ["swiglu", "dlr", "dlr without norms"])
@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj")])
def test_lora_by_peft(tiny_qwen3, net, targets):
    """Adapters on attention, everything else frozen: what the ledger predicts, with gradients through the lock."""
    config, tensors, model = model_and_tensors(tiny_qwen3, False, NETS[net], np.float32)
    tokens, rank, alpha = np.random.default_rng(2).integers(0, config.vocab_size, (2, 12)), 3, 6
    setup = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a property under its old name
        wrapped = peft.get_peft_model(model, setup)
    rows = torch_rows(wrapped, tokens, np.float32)
    adapters = {}
    for i in range(config.num_hidden_layers):
        for target in targets:
            prefix = f"model.layers.{i}.self_attn.{target}"
            out, inner = tensors[f"{prefix}.weight"].shape
            adapters[f"{prefix}.lora_A"] = np.ones((rank, inner), np.float32)
            adapters[f"{prefix}.lora_B"] = np.ones((out, rank), np.float32)
    scales = {n.replace("lora_A", "lora_scale"): alpha / rank for n in adapters if n.endswith("lora_A")}
    found = saved(
        lambda a, w, t: eager.loss({**a, **w, **scales}, t, config, NETS[net]), adapters, tensors, tokens,
        parameters=(0, 1),
    )  # fmt: skip
    assert storage.total(rows) == found.bytes() + sum(storage.unnamed(2, 12, 4).values())


# Faults.


def test_a_block_that_keeps_more_is_seen(monkeypatch):
    monkeypatch.setitem(locked.ACTIVATIONS, "silu", lambda h: h * torch.sigmoid(h))
    config = DLRConfig(5, 3, 4, "none")
    net = DLRNet(config)
    assert count(net, (7,), 5, torch.float32, None, True) == dlr(config, fused=False).bytes(7, 4) + 4 * 3 * 7 * 4


def test_a_buffer_that_the_graph_let_go_is_not_counted():
    x = torch.randn(5, requires_grad=True)

    def f():
        (x * x.exp()).sum()
        return x.exp()

    assert storage.total(storage.kept(f, [x])) == 5 * 4


def test_two_views_of_a_buffer_count_once_and_whole():
    x = torch.randn(6, requires_grad=True)

    def f():
        y = x * 2.0
        return y[:2] * y[2:4] + y[:2].exp() * y[1:3]

    rows = storage.kept(f, [x])
    assert [row.bytes for row in rows] == [6 * 4, 2 * 4]


def test_storage_of_nothing():
    assert storage.kept(lambda: torch.zeros(3).exp(), []) == ()
    assert storage.most_kept(lambda: torch.zeros(3).exp(), []) == 0
    assert Storage(0).bytes(3, 4) == 0


def test_peak_is_measured_on_accelerators_only():
    assert storage.peak(lambda: None, torch.device("cpu")) is None
