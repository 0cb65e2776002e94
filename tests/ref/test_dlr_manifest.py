"""lock.json: what is written is read again; whatever it may not say is refused in one line; nothing is half written."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockref.locks import manifest as subject
from lockref.locks.manifest import LOCK, PARTS, Manifest, read_manifest, write_locked
from lockref.models.tensor_file import CheckpointError, FileRecord

texts = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=9)
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(texts, values, max_size=3)
hashes = st.binary(min_size=32, max_size=32).map(bytes.hex)
manifests = st.builds(
    Manifest,
    parts=st.dictionaries(st.sampled_from(PARTS), objects, min_size=1),
    source=st.lists(st.builds(FileRecord, texts, hashes, st.integers(0, 2**40)), max_size=2).map(tuple),
    command=texts,
    seed=st.integers(0, 2**32),
    versions=st.dictionaries(texts, texts, max_size=2),
    figures=objects,
    released=st.lists(st.builds(FileRecord, texts, hashes, st.integers(0, 2**40)), max_size=2).map(tuple),
)
GOOD = Manifest({"dlr": {"net": {"depth": 3}}}, (FileRecord("a", "0" * 64, 7),), "make it", 0, {"numpy": "2"})


@pytest.fixture
def locked(tiny_qwen3, tmp_path):
    config, weights = tiny_qwen3()
    path = tmp_path / "locked"
    write_locked(path, config, weights, GOOD)
    return path, config, weights


@given(manifests)
def test_what_is_written_is_read_again(tmp_path_factory, manifest):
    path = tmp_path_factory.mktemp("lock")
    (path / LOCK).write_text(json.dumps(subject.to_json(manifest)), encoding="utf-8")
    assert read_manifest(path) == manifest


def test_a_locked_directory_holds_three_files(locked):
    path, *_ = locked
    assert sorted(p.name for p in path.iterdir()) == ["config.json", "lock.json", "model.safetensors"]
    said = read_manifest(path)
    assert replace(said, released=()) == GOOD
    for file in said.released:
        content = (path / file.name).read_bytes()
        assert (file.sha256, file.bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    assert [file.name for file in said.released] == ["config.json", "model.safetensors"]
    assert json.loads((path / "config.json").read_text())["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "other"}, "format 'other', version 1; only 'lockref-lock', version 1"),
        ({"version": 2}, "version 2; only"),
        ({"parts": {}}, "parts is {}; it must be an object for one or more of dlr, attention, taylor, trap2"),
        ({"parts": {"magic": {}}}, "parts is"),
        ({"parts": {"dlr": 3}}, "parts is"),
        ({"parts": ["dlr"]}, "parts is"),
        ({"source": {}}, "source is {}; it must be files"),
        ({"source": [{"name": "a"}]}, "source is"),
        ({"released": [{"name": "a"}]}, "released is"),
        ({"released": None}, "released is"),
        ({"source": [{"name": "a", "sha256": "f" * 63, "bytes": 1}]}, "source is"),
        ({"source": [{"name": "a", "sha256": "f" * 64, "bytes": -1}]}, "source is"),
        ({"source": [{"name": "a", "sha256": "f" * 64, "bytes": True}]}, "source is"),
        ({"command": 3}, "command is 3"),
        ({"command": "two\nlines"}, "command is"),
        ({"seed": -1}, "seed is -1; it must be an integer of at least 0"),
        ({"seed": True}, "seed is True"),
        ({"versions": {"numpy": 2}}, "versions is"),
        ({"figures": []}, r"figures is \[\]; it must be an object"),
        ({"figures": {"loss": float("nan")}}, "NaN is not JSON"),
        ({"more": 1}, "the key 'more' is unknown"),
        ({"seed": None}, "seed is None"),
    ],
)
def test_what_it_may_not_say_is_refused_in_one_line(locked, change, words):
    file = locked[0] / LOCK
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=words) as caught:
        read_manifest(locked[0])
    assert str(file) in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("key", ["parts", "source", "command", "seed", "versions", "figures"])
def test_every_key_is_needed(locked, key):
    file = locked[0] / LOCK
    said = json.loads(file.read_text())
    del said[key]
    file.write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=f"the key '{key}' is missing"):
        read_manifest(locked[0])


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"seed": 1, "seed": 2}'])
def test_what_is_no_object_is_refused(locked, content):
    (locked[0] / LOCK).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"its JSON"):
        read_manifest(locked[0])


def test_no_manifest_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="give the directory of a locked model"):
        read_manifest(tmp_path)


def test_figures_that_json_cannot_hold_are_refused_before_anything_is_written():
    for value in (np.float32(1), float("inf"), {1: 2}, object()):
        with pytest.raises(ValueError, match="something else than finite numbers"):
            Manifest(GOOD.parts, GOOD.source, "make it", 0, {}, {"loss": value})


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_nothing(locked, tmp_path, monkeypatch, stop):
    _, config, weights = locked

    def halfway(path, tensors, code):
        path.write_bytes(b"half")
        raise stop

    monkeypatch.setattr(subject, "write_tensors", halfway)
    with pytest.raises((KeyboardInterrupt, CheckpointError)):
        write_locked(tmp_path / "other", config, weights, GOOD)
    assert [p.name for p in tmp_path.iterdir()] == ["locked"]


def test_it_writes_over_nothing_and_only_what_it_can(locked, tmp_path):
    path, config, weights = locked
    with pytest.raises(CheckpointError, match="already exists"):
        write_locked(path, config, weights, GOOD)
    with pytest.raises(CheckpointError, match="cannot save as 'int8'"):
        write_locked(tmp_path / "other", config, weights, GOOD, "int8")
    with pytest.raises(CheckpointError, match="is NaN"):
        write_locked(tmp_path / "other", config, {"w": np.array([np.nan])}, GOOD)
    assert [p.name for p in tmp_path.iterdir()] == ["locked"]
