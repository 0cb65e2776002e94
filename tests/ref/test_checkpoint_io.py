"""Checkpoint directories: what is read is what was written, and nothing is written by halves."""

import hashlib
import os
import stat
import tracemalloc

import numpy as np
import pytest
from safetensors import deserialize, safe_open

from lockref.models.checkpoint_io import CheckpointError, load_checkpoint, save_checkpoint
from lockref.models.tensor_file import CHUNK

FILE = "model.safetensors"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
NORM, UP, DOWN = "model.norm.weight", "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"
KINDS = ("bfloat16", "float16", "float32", "float64")


def assert_same(tensors, weights):
    assert tensors.keys() == weights.keys()
    for name, w in weights.items():
        np.testing.assert_array_equal(tensors[name], w, err_msg=name)


# What is read is what was written.


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", KINDS)
def test_reads_what_the_library_wrote(tmp_path, tiny_qwen3, write_qwen3, dtype, shards, tied):
    config, weights = tiny_qwen3(tied)
    path = write_qwen3(tmp_path / "m", config, weights, dtype, shards)
    for wanted in (np.float32, np.float64):
        loaded = load_checkpoint(path, wanted)
        assert loaded.config == config
        assert_same(loaded.tensors, weights)
        assert {w.dtype for w in loaded.tensors.values()} == {np.dtype(wanted)}
        assert loaded.dtypes == dict.fromkeys(weights, dtype)
    content = {file.name: file.read_bytes() for file in path.iterdir()}
    assert {f.name: (f.sha256, f.bytes) for f in loaded.files} == {
        name: (hashlib.sha256(b).hexdigest(), len(b)) for name, b in content.items()
    }


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", KINDS)
def test_the_library_reads_what_we_write(tmp_path, tiny_qwen3, dtype, tied):
    config, weights = tiny_qwen3(tied)
    turned = {name: np.asfortranarray(w) for name, w in weights.items()}  # not in the order of the file
    save_checkpoint(tmp_path / "m", config, turned, dtype)
    assert sorted(os.listdir(tmp_path)) == ["m"]
    assert sorted(os.listdir(tmp_path / "m")) == ["config.json", FILE]
    loaded = load_checkpoint(tmp_path / "m")
    assert loaded.config == config
    assert_same(loaded.tensors, weights)
    with safe_open(tmp_path / "m" / FILE, framework="np") as file:
        assert file.metadata() == {"format": "pt"}
    raw = dict(deserialize((tmp_path / "m" / FILE).read_bytes()))
    assert_same({n: np.frombuffer(t["data"], dtype).reshape(t["shape"]) for n, t in raw.items()}, weights)


def test_tied_head_may_be_stored_and_is_not_loaded_twice(tmp_path, tiny_qwen3, write_qwen3):
    config, weights = tiny_qwen3(tied=True)
    loaded = load_checkpoint(write_qwen3(tmp_path / "m", config, weights | {HEAD: weights[EMBEDDING]}))
    assert HEAD in loaded.dtypes and HEAD not in loaded.tensors


def test_loading_needs_little_memory_besides_its_arrays(tmp_path, tiny_qwen3, write_qwen3):
    config, weights = tiny_qwen3(tied=True)
    big = type(config)(**{**vars(config), "vocab_size": 300_000})
    weights[EMBEDDING] = np.ones((big.vocab_size, big.hidden_size), np.float32)
    path = write_qwen3(tmp_path / "m", big, weights | {HEAD: weights[EMBEDDING]})
    del weights
    tracemalloc.start()
    loaded = load_checkpoint(path, np.float32)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    arrays = sum(w.nbytes for w in loaded.tensors.values())
    assert arrays > 6 * CHUNK
    # a chunk of bytes and its conversion to twice the width, once more while the next is read, and small change
    assert peak - arrays < 5 * CHUNK, f"{peak - arrays} bytes besides {arrays} of arrays; a chunk has {CHUNK}"


def test_values_beyond_the_wanted_dtype_are_refused(tmp_path, tiny_qwen3, write_qwen3):
    config, weights = tiny_qwen3()
    weights[NORM][3] = 1e300
    path = write_qwen3(tmp_path / "m", config, weights, "float64")
    assert load_checkpoint(path).tensors[NORM][3] == 1e300
    with pytest.raises(CheckpointError, match=r"too large for float32 at \(3,\)"):
        load_checkpoint(path, np.float32)
    with pytest.raises(CheckpointError, match="choose float32 or float64"):
        load_checkpoint(path, np.float16)


# Writing: all or nothing.


def test_a_failed_save_leaves_nothing(tmp_path, tiny_qwen3):
    config, weights = tiny_qwen3()

    class Stop(np.ndarray):
        def astype(self, *args, **kwargs):
            raise KeyboardInterrupt

    bad = {
        "missing": {n: w for n, w in weights.items() if n != UP},
        "unexpected": weights | {"extra": np.zeros(3)},
        "wrong shape": weights | {UP: weights[UP].T},
        "NaN, infinite": weights | {DOWN: np.full_like(weights[DOWN], np.nan)},
        "too large for bfloat16": weights | {DOWN: np.full_like(weights[DOWN], 1e39)},
    }
    for words, tensors in bad.items():
        with pytest.raises(CheckpointError, match=words) as caught:
            save_checkpoint(tmp_path / "m", config, tensors)
        assert len(str(caught.value).splitlines()) == 1 and ".tmp" not in str(caught.value)
        assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "m", config, weights | {DOWN: weights[DOWN].view(Stop)})
    with pytest.raises(CheckpointError, match="choose one of bfloat16"):
        save_checkpoint(tmp_path / "m", config, weights, "int8")
    with pytest.raises(CheckpointError, match="check that its parent exists"):
        save_checkpoint(tmp_path / "no" / "m", config, weights)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path, tiny_qwen3):
    config, weights = tiny_qwen3()
    (tmp_path / "m").mkdir()
    save_checkpoint(tmp_path / "m", config, weights)  # an empty directory may be filled
    before = (tmp_path / "m" / FILE).read_bytes()
    for taken in ("m", "m/config.json"):
        with pytest.raises(CheckpointError, match="already exists"):
            save_checkpoint(tmp_path / taken, *tiny_qwen3(seed=1))
    assert (tmp_path / "m" / FILE).read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["m"]


def test_a_saved_model_may_be_read_by_others(tmp_path, tiny_qwen3):
    save_checkpoint(tmp_path / "m", *tiny_qwen3())
    (tmp_path / "plain").write_text("")
    ordinary = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    for file in (tmp_path / "m").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == ordinary, f"{file.name}: not the mode of an ordinary new file"
