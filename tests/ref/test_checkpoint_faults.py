"""Damaged checkpoints: every fault is named in one line, nothing is executed, no bytes whatever do more."""

import json
import math
import os
import pickle
import re
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lockref.models.checkpoint_io import CheckpointError, load_checkpoint

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
NORM, UP, DOWN = "model.norm.weight", "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory, tiny_qwen3, write_qwen3):
    """Three sound directories: one file, three shards, and a tied model that stores its head too."""
    root = tmp_path_factory.mktemp("good")
    config, weights = tiny_qwen3()
    write_qwen3(root / "one", config, weights)
    write_qwen3(root / "shards", config, weights, shards=3)
    config, weights = tiny_qwen3(tied=True)
    write_qwen3(root / "tied", config, weights | {HEAD: weights[EMBEDDING]})
    return root


# Faults, each planted in a sound directory, with the words that its error must hold.


def edit_json(name, change):
    def plant(path):
        raw = json.loads((path / name).read_text())
        change(raw)
        (path / name).write_text(json.dumps(raw))

    return plant


def edit_header(change, name=FILE):
    """Change the parsed header of a tensor file and leave its data alone."""

    def plant(path):
        content = (path / name).read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:end])
        text = change(header)
        text = text if isinstance(text, bytes) else json.dumps(header).encode()
        (path / name).write_bytes(len(text).to_bytes(8, "little") + text + content[end:])

    return plant


def edit_bytes(change, name=FILE):
    def plant(path):
        content = (path / name).read_bytes()
        (path / name).write_bytes(change(content))

    return plant


def put(name, value):
    """Overwrite the last element of a bfloat16 tensor by two bytes."""

    def change(content):
        end = 8 + int.from_bytes(content[:8], "little")
        at = end + json.loads(content[8:end])[name]["data_offsets"][1]
        return content[: at - 2] + value + content[at:]

    return edit_bytes(change)


def both(*plants):
    return lambda path: [plant(path) for plant in plants]


def only_pickle(path):
    (path / FILE).rename(path / "pytorch_model.bin")


def fifo(name):
    def plant(path):
        (path / name).unlink()
        os.mkfifo(path / name)

    return plant


def set_entry(name, **changes):
    return edit_header(lambda header: header[name].update(changes))


def set_offsets(change):
    return edit_header(lambda header: header[UP].update(data_offsets=change(*header[UP]["data_offsets"])))


def swap_shape(header):
    header[UP]["shape"].reverse()


def twice(header):
    text = json.dumps(header)
    return f'{text[:-1]}, "{NORM}": {json.dumps(header[NORM])}}}'.encode()


ENTRY = ("dtype", "shape", "data_offsets", "else")
SHARD = "model-00002-of-00003.safetensors"
FAULTS = {
    "directory missing": ("one", shutil.rmtree, "does not exist"),
    "a file, not a directory": ("one", lambda p: (shutil.rmtree(p), p.write_text("x")), "not a directory"),
    "config missing": ("one", lambda p: (p / "config.json").unlink(), "config.json: missing"),
    "config a directory": ("one", lambda p: ((p / "config.json").unlink(), (p / "config.json").mkdir()), "not a file"),
    "config a pipe": ("one", fifo("config.json"), "config.json: missing, or not a file"),
    "config not JSON": ("one", lambda p: (p / "config.json").write_text("{'a': 1}"), "config.json.*does not parse"),
    "config not UTF-8": ("one", lambda p: (p / "config.json").write_bytes(b'{"\xff": 1}'), "config.json.*UTF-8"),
    "config a list": ("one", lambda p: (p / "config.json").write_text("[]"), "config.json.*not an object"),
    "config too deep": ("one", lambda p: (p / "config.json").write_text("[" * 10**5), "config.json.*does not parse"),
    "config of another model": ("one", edit_json("config.json", lambda c: c.update(model_type="llama")), "'llama'"),
    "absurd number of layers": (
        "one",
        edit_json("config.json", lambda c: c.update(num_hidden_layers=10**12)),
        "num_hidden_layers is 1000000000000",
    ),
    "no tensor file": ("one", lambda p: (p / FILE).unlink(), "no .safetensors"),
    "pickle only": ("one", only_pickle, "no .safetensors.*pytorch_model.bin.*run code"),
    "tensor file a directory": ("one", lambda p: ((p / FILE).unlink(), (p / FILE).mkdir()), "not a file"),
    "tensor file a pipe": ("one", fifo(FILE), "not a file"),
    "tensor file a broken link": ("one", lambda p: ((p / FILE).unlink(), (p / FILE).symlink_to("no")), "not a file"),
    "tensor file empty": ("one", edit_bytes(lambda b: b""), "cut short: it has 0 bytes"),
    "tensor file without header": ("one", edit_bytes(lambda b: b[:8]), "cut short: it has 8 bytes"),
    "tensor file a zip": ("one", edit_bytes(lambda b: b"PK\x03\x04" + b), "not a .safetensors file"),
    "tensor file a Git LFS pointer": ("one", edit_bytes(lambda b: b"version https://git-lfs"), "Git LFS"),
    "tensor file cut in its data": ("one", edit_bytes(lambda b: b[:-2]), "cut short: tensors end at byte"),
    "tensor file with a tail": ("one", edit_bytes(lambda b: b + b"x"), "too long: tensors end at byte"),
    "header too long": ("one", edit_bytes(lambda b: (2**40).to_bytes(8, "little") + b[8:]), "1099511627776"),
    "header not JSON": ("one", edit_header(lambda h: b"{nothing"), "does not parse"),
    "header not an object": ("one", edit_header(lambda h: b"[1, 2]"), "not an object"),
    "header names a tensor twice": ("one", edit_header(twice), f"'{NORM}' occurs twice"),
    "metadata not text": ("one", edit_header(lambda h: h.update(__metadata__={"x": 1})), "__metadata__ is {'x': 1}"),
    "NaN in the header": ("one", edit_header(lambda h: h.update(__metadata__=math.nan)), "NaN is not JSON"),
    "entry not an object": ("one", edit_header(lambda h: h.update({UP: 3})), f"{UP}.*must give dtype"),
    "entry without shape": ("one", edit_header(lambda h: h[UP].pop("shape") and None), f"{UP}.*must give dtype"),
    "entry with more": ("one", set_entry(UP, more=1), f"{UP}.*nothing else"),
    "entry with a negative size": ("one", set_entry(UP, shape=[-40, -24]), f"{UP}.*must give dtype"),
    "entry with a fraction": ("one", set_entry(UP, shape=[40.0, 24]), f"{UP}.*must give dtype"),
    "dtype unsupported": ("one", set_entry(UP, dtype="I16"), f"{UP}.*'I16'.*BF16, F16, F32, F64"),
    "dtype of another size": ("one", set_entry(UP, dtype="F32"), f"{UP}.*span 1920 bytes.*F32"),
    "shape of another size": ("one", set_entry(UP, shape=[40, 23]), f"{UP}.*span 1920 bytes"),
    "shape transposed": ("one", edit_header(swap_shape), re.escape(f"'{UP}' got (24, 40) want (40, 24)")),
    "offsets overlap": ("one", set_offsets(lambda a, b: [a - 2, b - 2]), "overlaps"),
    "offsets leave a hole": ("one", set_offsets(lambda a, b: [a + 2, b + 2]), "hole of 2 bytes"),
    "offsets reversed": ("one", set_offsets(lambda a, b: [b, a]), "span -1920 bytes"),
    "offsets beyond the file": ("one", set_offsets(lambda a, b: [a + 10**15, b + 10**15]), "hole of"),
    "tensor renamed": (
        "one",
        edit_header(lambda h: h.update({"extra": h.pop(UP)})),
        f"1 missing, first '{UP}'.*1 unexpected, first 'extra'",
    ),
    "name of many lines": ("one", edit_header(lambda h: h.update({"a\nb\u2028": h.pop(UP)})), r"first 'a\\nb\\u2028'"),
    "layer missing": ("one", edit_json("config.json", lambda c: c.update(num_hidden_layers=3)), "11 missing, first"),
    "layer too many": ("one", edit_json("config.json", lambda c: c.update(num_hidden_layers=1)), "11 unexpected"),
    "NaN": ("one", put(DOWN, b"\xc0\x7f"), rf"'{DOWN}' is NaN, infinite .* for float64 at \(23, 39\)"),
    "infinity": ("one", put(HEAD, b"\x80\xff"), rf"'{HEAD}' is NaN, infinite .* for float64 at \(60, 23\)"),
    "head not tied": ("tied", put(HEAD, b"\x80\x3f"), f"'{HEAD}' differs from the embedding"),
    "head not tied, first": ("tied", put(EMBEDDING, b"\x80\x3f"), f"'{HEAD}' differs from the embedding"),
    "tied head of another shape": ("tied", edit_header(lambda h: h[HEAD]["shape"].reverse()), r"got \(24, 61\) want"),
    "head missing": ("tied", both(
        edit_json("config.json", lambda c: c.update(tie_word_embeddings=False)),
        edit_header(lambda h: h.update({"head": h.pop(HEAD)})),
    ), f"1 missing, first '{HEAD}'"),
    "shard missing": ("shards", lambda p: (p / SHARD).unlink(), f"lists '{SHARD}'.*download"),
    "shard cut short": ("shards", edit_bytes(lambda b: b[:-1], SHARD), f"{SHARD}: cut short"),
    "shard outside": (
        "shards",
        edit_json(INDEX, lambda i: i["weight_map"].update({UP: "../one/model.safetensors"})),
        "lists '../one/model.safetensors', which the directory lacks",
    ),
    "shard twice": ("shards", lambda p: shutil.copy(p / SHARD, p / "copy.safetensors"), "is in copy.safetensors"),
    "file not listed": ("shards", lambda p: save_file({"a": np.zeros(1)}, p / "z.safetensors"), "omits tensor 'a'"),
    "index not JSON": ("shards", lambda p: (p / INDEX).write_text("{"), "index.json.*does not parse"),
    "index without map": ("shards", edit_json(INDEX, lambda i: i.pop("weight_map")), "weight_map is None"),
    "index lists too much": (
        "shards",
        edit_json(INDEX, lambda i: i["weight_map"].update({"more": SHARD})),
        f"'more' should be in {SHARD}, but is in no file",
    ),
    "index lists too little": ("shards", edit_json(INDEX, lambda i: i["weight_map"].pop(UP)), f"omits tensor '{UP}'"),
    "index confuses shards": (
        "shards",
        edit_json(INDEX, lambda i: i["weight_map"].update({n: SHARD for n in i["weight_map"]})),
        f"should be in {SHARD}, but is in model-0000",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_named(good, tmp_path, fault):
    which, plant, words = FAULTS[fault]
    path = tmp_path / "m"
    shutil.copytree(good / which, path)
    load_checkpoint(path)  # sound until the fault is planted
    plant(path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert re.search(words, message), message
    assert message.startswith(str(path)) and len(message.splitlines()) == 1, message


def test_nothing_is_unpickled(good, tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    shutil.copytree(good / "one", tmp_path / "m")
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    load_checkpoint(tmp_path / "m")  # beside a .safetensors file it is left alone
    (tmp_path / "m" / FILE).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match=r"not a \.safetensors file"):
        load_checkpoint(tmp_path / "m")
    (tmp_path / "m" / FILE).unlink()
    with pytest.raises(CheckpointError, match="unpickling can run code"):
        load_checkpoint(tmp_path / "m")
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(Trap()))
    assert (tmp_path / "sprung").exists()  # the trap works


# Whatever the bytes: one line or a sound model, and never more tolerant than the format's own library.


def outcome(path):
    try:
        loaded = load_checkpoint(path)
    except CheckpointError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 2000, str(error)
        return None
    assert all(np.isfinite(w).all() for w in loaded.tensors.values())
    return loaded


@pytest.fixture(scope="module")
def victim(tmp_path_factory, good):
    path = tmp_path_factory.mktemp("fuzz") / "m"
    shutil.copytree(good / "one", path)
    return path, (path / FILE).read_bytes(), json.loads((path / "config.json").read_text())


def compare_with_library(path):
    """True where both accept the file; the library must accept whatever we do."""
    loaded = outcome(path)
    if loaded is not None:
        with safe_open(path / FILE, framework="np") as file:
            assert set(file.keys()) == set(loaded.dtypes)
    return loaded is not None


NUMBERS = (0, 1, -1, 10, 24, 40, 61, 1920, 2**63, 10**400, 0.5, 1e6, 1e308, math.nan, math.inf, -math.inf)
WORDS = ("", "silu", "default", "F32", "BF16", "a\nb", "\u2028")
ODD = st.sampled_from([None, True, False, *NUMBERS, *WORDS, [], {}, {"x": "y"}, {"rope_type": "yarn", "factor": 2}])
JSON = ODD | st.lists(ODD, max_size=3) | st.dictionaries(st.sampled_from(["rope_type", "rope_theta", "x"]), ODD)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_tensor_files(victim, data):
    path, content, config = victim
    (path / "config.json").write_text(json.dumps(config))
    end = 8 + int.from_bytes(content[:8], "little")
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3), "flips")):
        damaged[data.draw(st.integers(0, end - 1), "at")] = data.draw(st.sampled_from(b'0123456789{}[]:,"BF -\xff\x00'))
    cut = data.draw(st.sampled_from([len(content), end + 1, end - 1, 7]), "length")
    (path / FILE).write_bytes(damaged[:cut])
    compare_with_library(path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_headers(victim, data):
    path, content, config = victim
    (path / "config.json").write_text(json.dumps(config))
    (path / FILE).write_bytes(content)
    keys = data.draw(st.sampled_from(["__metadata__ x", "__metadata__", UP, *(f"{UP} {k}" for k in ENTRY)]))
    value = data.draw(JSON)

    def change(header):
        *outer, last = keys.split()
        for key in outer:
            header = header[key]
        header[last] = value

    edit_header(change)(path)
    compare_with_library(path)


def test_the_comparison_with_the_library_sees_both_sides(victim):
    path, content, config = victim
    (path / "config.json").write_text(json.dumps(config))
    (path / FILE).write_bytes(content)
    edit_header(lambda header: header["__metadata__"].update(x="harmless"))(path)
    assert compare_with_library(path)
    edit_header(lambda header: header["__metadata__"].update(x=1))(path)
    assert not compare_with_library(path)
    with pytest.raises(SafetensorError):
        safe_open(path / FILE, framework="np").__enter__()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_configs(victim, data):
    path, content, config = victim
    (path / FILE).write_bytes(content)
    key = data.draw(st.sampled_from([*config, "layer_types", "rope_scaling", "quantization_config", "rope_theta"]))
    (path / "config.json").write_text(json.dumps(config | {key: data.draw(JSON)}))
    outcome(path)
