"""The network without attention: a convolution written out, its derivatives, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockref.autodiff import gradcheck, ops
from lockref.models import convnet
from lockref.models.convnet import ConvNet

EPS = float(np.finfo(np.float64).eps)


@st.composite
def nets(draw):
    kernel = draw(st.integers(1, 4))
    sizes = [draw(st.integers(1, 4)) for _ in range(2)]
    return ConvNet(kernel + draw(st.integers(0, 3)), kernel, *sizes, classes=draw(st.integers(2, 4)))


def weights(net, rng):
    return {n: w + 0.1 * rng.standard_normal(w.shape) for n, w in convnet.initialize(net, rng).items()}


@given(nets(), st.integers(0, 99))
def test_it_is_a_convolution_a_hidden_layer_and_a_head(net, seed):
    rng = np.random.default_rng(seed)
    params, images = weights(net, rng), rng.random((3, net.side, net.side))
    steps = net.side - net.kernel + 1
    want = []
    for image in images:
        h = [
            np.sum(image[i : i + net.kernel, j : j + net.kernel].ravel() * params["conv.weight"], axis=1)
            + params["conv.bias"]
            for i in range(steps)
            for j in range(steps)
        ]
        z = np.maximum(params["hidden.weight"] @ np.maximum(h, 0).ravel() + params["hidden.bias"], 0)
        want.append(params["head.weight"] @ z + params["head.bias"])
    got = convnet.logits(params, convnet.patches(images, net))
    # Both sum the same products in other orders: a rounding for each term of three sums, of what absolute values give.
    size = convnet.logits({n: np.abs(w) for n, w in params.items()}, convnet.patches(images, net))
    terms = sum(shape[1] + 2 for shape in net.shapes.values() if len(shape) == 2)
    assert np.all(np.abs(got - want) <= terms * EPS * size)


def test_its_derivatives_are_right():
    rng = np.random.default_rng(3)
    net = ConvNet(4, 2, 3, 5, 3)
    rows, labels = convnet.patches(rng.random((6, 4, 4)), net), rng.integers(0, 3, 6)
    gradcheck(lambda p: convnet.loss(p, rows, labels), weights(net, rng), rng=rng)


def test_the_loss_is_that_of_the_logits():
    rng = np.random.default_rng(4)
    net = ConvNet()
    params, rows, labels = weights(net, rng), convnet.patches(rng.random((5, 8, 8)), net), rng.integers(0, 10, 5)
    assert convnet.loss(params, rows, labels) == ops.cross_entropy(convnet.logits(params, rows), targets=labels)


def test_shapes_and_matrices():
    net = ConvNet(5, 3, 2, 7, 4)
    assert net.shapes == {
        "conv.weight": (2, 9), "conv.bias": (2,), "hidden.weight": (7, 18), "hidden.bias": (7,),
        "head.weight": (4, 7), "head.bias": (4,),
    }  # fmt: skip
    assert net.matrices == ("conv.weight", "hidden.weight", "head.weight")


@pytest.mark.parametrize("sizes", [{"kernel": 9}, {"hidden": 0}, {"classes": -1}])
def test_sizes_that_make_no_net_are_refused(sizes):
    with pytest.raises(ValueError, match="every size must be at least 1"):
        ConvNet(**sizes)


@pytest.mark.parametrize("shape", [(8, 8), (2, 8, 7), (2, 64)])
def test_images_of_another_size_are_refused(shape):
    with pytest.raises(ValueError, match=r"want \(B, 8, 8\)"):
        convnet.patches(np.zeros(shape), ConvNet())
