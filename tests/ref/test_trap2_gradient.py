"""∇J of one draw, full updates and LoRA: adjoint identity, complex step, and the autograd package."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from lockref.autodiff import grad, gradcheck, ops
from lockref.locks.trap2 import WEIGHTINGS, low_rank_update, objective

STRENGTH, SCALE = 0.3, 0.35
METHOD = WEIGHTINGS["1/s"]
SIZES = {
    "full": {"up": (4, 3), "down": (5, 4)},
    "lora": {"A.up": (2, 3), "B.up": (4, 2), "A.down": (2, 4), "B.down": (5, 2)},
}


@pytest.fixture(params=SIZES)
def problem(request):
    """Base weights, an update's parameters, inputs, labels, and the update that the parameters stand for."""
    rng = np.random.default_rng(7)
    base = {name: rng.standard_normal(size) for name, size in SIZES["full"].items()}
    params = {name: rng.standard_normal(size) for name, size in SIZES[request.param].items()}
    x, labels = rng.standard_normal((6, 3)), rng.integers(0, 5, 6)

    def update(p):
        if request.param == "full":
            return dict(p)
        return low_rank_update({n: p[f"A.{n}"] for n in base}, {n: p[f"B.{n}"] for n in base}, 1.0)

    return base, params, x, labels, update


def engine_objective(base, x, labels, update, weighting=METHOD):
    def loss(w):
        return ops.cross_entropy(ops.tanh(x @ w["up"].T) @ w["down"].T, targets=labels)

    return lambda p: objective(loss, base, update(p), SCALE, weighting, STRENGTH)


def twin_objective(base, x, labels):
    """The same in autograd, written out."""

    def loss(w):
        logits = anp.dot(anp.tanh(anp.dot(x, w["up"].T)), w["down"].T)
        top = anp.max(logits, axis=1)
        return anp.mean(top + anp.log(anp.sum(anp.exp(logits - top[:, None]), axis=1)) - logits[range(6), labels])

    def at(p, s):
        change = {n: p[n] if n in p else anp.dot(p[f"B.{n}"], p[f"A.{n}"]) for n in base}
        return {n: w + s * change[n] for n, w in base.items()}

    return lambda p: loss(at(p, 1.0)) - STRENGTH / SCALE * loss(at(p, SCALE))


def largest_gap(got, want):
    return max(float(np.max(np.abs(got[n] - want[n]))) for n in want)


def test_adjoint_identity_and_complex_step(problem):
    base, params, x, labels, update = problem
    gradcheck(engine_objective(base, x, labels, update), params, rng=np.random.default_rng(0))


def test_autograd_agrees(problem):
    base, params, x, labels, update = problem
    got = grad(engine_objective(base, x, labels, update))(params)
    want = autograd.grad(twin_objective(base, x, labels))(params)
    # sums of at most 6 · 5 · 4 products of numbers of magnitude up to 10, twice
    tolerance = 240 * 10 * 2.0**-52
    assert largest_gap(got, want) <= tolerance
    planted = grad(engine_objective(base, x, labels, update, WEIGHTINGS["1/sqrt(s)"]))(params)
    assert largest_gap(planted, want) > 1e6 * tolerance, "a wrong weight went unseen"
