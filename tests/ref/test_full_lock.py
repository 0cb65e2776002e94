"""The composed lock: flips keep every bit, the parts survive their manifest, and what does not fit is refused."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockref.locks import full
from lockref.locks.attention import TOPK, project, projections
from lockref.locks.full import Composition, Series
from lockref.locks.manifest import Manifest, write_locked
from lockref.models import dlrnet, qwen3
from lockref.models.dlrnet import DLRConfig
from lockref.models.tensor_file import CheckpointError

NET = DLRConfig(24, 5, 3, "rms_gain", "gelu_tanh")


def locked(config, weights, composition, tokens, rng):
    """Tensors of a composed lock whose DLR-Nets are random: what they compute does not matter here."""
    tensors = full.flip_planes(weights, config, composition.planes) if composition.planes else dict(weights)
    if composition.net:
        nets = {i: dlrnet.initialize(composition.net, rng, b_scale=0.5) for i in range(config.num_hidden_layers)}
        return full.assembled(tensors, nets)
    return full.expand(tensors, config, composition.series, tokens) if composition.series else tensors


compositions = st.builds(
    lambda planes, mlp: Composition(planes, **mlp),
    st.integers(0, 5),
    st.one_of(
        st.just({}),
        st.builds(lambda norm, place: {"net": DLRConfig(24, 5, 3, norm, placement=place)},
                  st.sampled_from(dlrnet.NORMS), st.sampled_from(dlrnet.PLACEMENTS)),
        st.builds(lambda order, basis: {"series": Series(order, basis)}, st.integers(0, 6),
                  st.sampled_from(sorted(full.BASES))),
    ),
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(composition=compositions, seed=st.integers(0, 9), dtype=st.sampled_from([np.float32, np.float64]))
def test_flips_keep_every_bit_whatever_stands_for_the_mlps(tiny_qwen3, composition, seed, dtype):
    config, weights = tiny_qwen3(seed=seed)
    weights = {n: w.astype(dtype) for n, w in weights.items()}
    tokens = np.random.default_rng(seed).integers(0, config.vocab_size, (2, 7))
    plain = Composition(0, composition.net, composition.series)
    one, two = (locked(config, weights, c, tokens, np.random.default_rng(seed)) for c in (composition, plain))
    got, want = (qwen3.forward(t, tokens, config, composition.block) for t in (one, two))
    assert np.array_equal(got, want)
    assert composition.planes == 0 or any(not np.array_equal(one[n], two[n]) for n in one if "q_proj" in n)
    shapes = composition.expected_tensors(config)
    assert {n: w.shape for n, w in one.items()} == shapes
    assert Composition.from_parts(json.loads(json.dumps(composition.parts()))) == composition


def test_flips_of_eigen_directions_do_not(tiny_qwen3):
    config, weights = tiny_qwen3()
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 7))
    turned = project(weights, config, projections(weights, config, TOPK, 4))
    assert not np.allclose(qwen3.forward(turned, tokens, config), qwen3.forward(weights, tokens, config), atol=1e-3)


@pytest.fixture
def written(tiny_qwen3, tmp_path):
    """A function that writes a locked directory of a composition, its parts changed as asked."""
    config, weights = tiny_qwen3()

    def write(composition, **changed):
        tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 7))
        tensors = locked(config, weights, composition, tokens, np.random.default_rng(0))
        said = Manifest({**composition.parts(), **changed}, (), "made", 0, {})
        write_locked(tmp_path / "locked", config, tensors, said, "float64")
        return tmp_path / "locked", tensors

    return write


@pytest.mark.parametrize(
    "composition", [Composition(2, NET), Composition(0, series=Series(4, "hermite")), Composition(5)]
)
def test_what_is_written_is_read_back(written, composition):
    path, tensors = written(composition, trap2={"strength": 0.5})
    got = full.load(path)
    assert got.composition == composition and got.manifest.parts["trap2"] == {"strength": 0.5}
    assert got.tensors.keys() == tensors.keys()
    assert all(np.array_equal(got.tensors[n], w) for n, w in tensors.items())


@pytest.mark.parametrize(
    ("composition", "kind", "seen"),
    [
        (Composition(2, NET), "lockref_qwen3", Composition(net=DLRConfig(24, 5, 3, "rms_gain"))),
        (Composition(0, DLRConfig(24, 4, 2, "none")), "lockref_qwen3", Composition(net=DLRConfig(24, 4, 2))),
        (Composition(0, series=Series(4, "hermite")), "lockref_qwen3", Composition(series=Series(4))),
        (Composition(5), "qwen3", Composition()),
    ],
)
def test_tensors_tell_what_stands_for_the_mlps_and_config_who_may_load_them(written, composition, kind, seen):
    path, tensors = written(composition)
    assert json.loads((path / "config.json").read_text())["model_type"] == kind
    assert full.carried(path) == seen
    assert full.load_as(path, seen).tensors.keys() == tensors.keys()
    with pytest.raises(CheckpointError, match=r"unexpected|missing|fewer|wrong shape"):
        full.load_as(path, Composition(net=DLRConfig(24, 7, 2)))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"dlr": {"net": {"width": 24, "rank": 5, "depth": 2}}}, "10 unexpected, first .*blocks.0.gain"),
        ({"dlr": {"net": {"width": 24, "rank": 5, "depth": 10**15}}}, "are fewer than"),
        ({"dlr": {"net": {"width": 24, "depth": 3}}}, "lock.json: dlr or taylor: settings are missing"),
        ({"dlr": {"net": {"width": 24, "rank": 5, "depth": 3, "norm": "batch"}}}, "lock.json.*'batch' is unknown"),
        ({"dlr": {}}, "lock.json: the setting 'net' is missing"),
        ({"taylor": {"order": 3, "basis": "taylor"}}, "lock.json: an MLP is replaced by .* choose one"),
        ({"attention": {"family": "topk", "planes": 2}}, "family 'topk' is unknown"),
        ({"attention": {"family": "topk-planes"}}, "'planes' is missing"),
        ({"attention": {"family": "topk-planes", "planes": -1}}, "planes is -1"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(written, changed, words):
    path, _ = written(Composition(2, NET), **changed)
    with pytest.raises(CheckpointError, match=words) as caught:
        full.load(path)
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(written, tmp_path):
    path, _ = written(Composition(2, NET))
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no \.safetensors file"):
        full.load(path)
    (path / "lock.json").unlink()
    with pytest.raises(CheckpointError, match="directory of a locked model"):
        full.load(path)


@pytest.mark.parametrize(("order", "basis", "words"), [(-1, "taylor", "order is -1"), (2, "fourier", "'fourier'")])
def test_series_that_are_none(order, basis, words):
    with pytest.raises(ValueError, match=words):
        Series(order, basis)
