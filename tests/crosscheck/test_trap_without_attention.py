"""Trap² on the network without attention, in torch: logits and ∇J of one draw, full updates and LoRA."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from lockproofs.rounding import UNIT64
from lockref.autodiff import value_and_grad
from lockref.locks.trap2 import WEIGHTINGS
from lockref.locks.trap2_training import Full, LoRA, Protection, trap_loss
from lockref.models import convnet
from lockref.models.convnet import ConvNet

NET = ConvNet(side=6, kernel=3, channels=2, hidden=5, classes=4)
STRENGTH, COUNT = 0.3, 7
KINDS = {"full": Full, "lora": lambda base: LoRA(base, NET.matrices, rank=2, alpha=3.0)}


def problem(kind):
    """A base with biases, parameters of an update that is not small, images and labels."""
    rng = np.random.default_rng(11)
    base = {n: w + 0.1 * rng.standard_normal(w.shape) for n, w in convnet.initialize(NET, rng).items()}
    shape = KINDS[kind](base)
    params = {n: 0.3 * rng.standard_normal(w.shape) for n, w in shape.start(rng).items()}
    return shape, params, rng.random((COUNT, NET.side, NET.side)), rng.integers(0, NET.classes, COUNT)


def torch_loss(weights, images, labels):
    """With torch's own convolution; its features are channel by channel, ours patch by patch."""
    kernels = weights["conv.weight"].reshape(NET.channels, 1, NET.kernel, NET.kernel)
    h = functional.relu(functional.conv2d(torch.from_numpy(images)[:, None], kernels, weights["conv.bias"]))
    z = functional.relu(
        functional.linear(h.permute(0, 2, 3, 1).flatten(1), weights["hidden.weight"], weights["hidden.bias"])
    )
    logits = functional.linear(z, weights["head.weight"], weights["head.bias"])
    return functional.cross_entropy(logits, torch.from_numpy(labels))


def torch_objective(shape, params, images, labels, s, weighting):
    """J of one draw and its gradient, the update written out."""
    p = {n: torch.from_numpy(w).requires_grad_() for n, w in params.items()}

    def at(scale):
        weights = {n: torch.from_numpy(w) for n, w in shape.base.items()}
        if isinstance(shape, LoRA):
            update = {n: shape.alpha / shape.rank * p[f"B.{n}"] @ p[f"A.{n}"] for n in shape.names}
        else:
            update = p
        return {n: w + scale * update[n] if n in update else w for n, w in weights.items()}

    value = torch_loss(at(1.0), images, labels) - STRENGTH * weighting(s) * torch_loss(at(s), images, labels)
    grads = torch.autograd.grad(value, list(p.values()))
    return value.item(), {n: g.numpy() for n, g in zip(p, grads, strict=True)}


def gap(got, want):
    """Over all tensors the largest difference in an entry, in units of that tensor's largest entry."""
    return max(float(np.max(np.abs(got[n] - w)) / np.max(np.abs(w))) for n, w in want.items())


@pytest.mark.parametrize("kind", KINDS)
def test_the_objective_and_its_gradient_are_torchs(kind):
    shape, params, images, labels = problem(kind)
    protection, step = Protection(STRENGTH), [3, 1]
    rows = convnet.patches(images, NET)
    loss = trap_loss(lambda w, b: convnet.loss(w, *b), lambda rng: (rows, labels), shape, protection)
    value, got = value_and_grad(lambda p: loss(p, np.random.default_rng(step)))(params)
    s = protection.draw(np.random.default_rng(step).spawn(2)[1])
    want_value, want = torch_objective(shape, params, images, labels, s, protection.weighting)
    # An entry is a sum over images and over a chain of products as long as the layers are wide; each side rounds every
    # term once or twice, and J subtracts two losses of like size: 4 units for each of the terms.
    terms = COUNT * (NET.kernel**2 + NET.channels * (NET.side - NET.kernel + 1) ** 2 + NET.hidden + NET.classes)
    allowed = 4 * terms * UNIT64
    assert abs(float(value) - want_value) <= allowed * abs(want_value), f"got {value}, want {want_value}"
    assert gap(got, want) <= allowed, f"{kind}: got {gap(got, want):.2e} of the largest entry, want {allowed:.2e}"
    _, planted = torch_objective(shape, params, images, labels, s, WEIGHTINGS["1/sqrt(s)"])
    assert gap(got, planted) > 1e6 * allowed, "a wrong weight went unseen"
