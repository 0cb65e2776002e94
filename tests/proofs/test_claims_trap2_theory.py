"""TRAP-GRAD and TRAP-BOUNDED: the exact parts, what they say of tiny models, and that each check can fail."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from lockproofs.audit import rerun
from lockproofs.claim import Context, Verdict, settle
from lockproofs.claims import trap2_bounded as bounded
from lockproofs.claims import trap2_gradient as gradient
from lockproofs.subject import Subject
from lockref.locks.trap2 import WEIGHTINGS, Weighting, quadrature
from lockref.models.checkpoint_io import Checkpoint


@pytest.fixture
def context(tiny_qwen3):
    """A tiny random model and the one it was fine-tuned from."""
    loaded = {role: Checkpoint(Path(role), *tiny_qwen3(seed=s), {}, ()) for role, s in (("subject", 0), ("base", 1))}
    return Context(Subject(loaded, False), seed=0, cases=12)


@pytest.mark.parametrize("module", [gradient, bounded], ids=["TRAP-GRAD", "TRAP-BOUNDED"])
def test_the_recorded_verdict_is_found_on_another_model(context, module):
    (claim,) = module.CLAIMS
    evidence = settle(claim.kind, claim.check(context))
    assert evidence.verdict is claim.recorded, evidence.explanation
    if evidence.verdict is Verdict.REFUTED:
        assert rerun(claim, evidence.counterexample) == evidence.counterexample.got


@given(seed=st.integers(0, 2**32), shape=st.sampled_from(gradient.SHAPES), lora=st.booleans())
def test_the_expected_gradient_is_exact_with_the_methods_weight_alone(seed, shape, lora):
    def found(weighting):
        return gradient.exact_gradients(np.random.default_rng(seed), shape, lora=lora, weighting=weighting)

    got, want = found(gradient.METHOD)
    assert got == want
    for planted in (WEIGHTINGS["1/sqrt(s)"], gradient.UNWEIGHTED, Weighting(2.0, "planted")):
        other, _ = found(planted)
        assert other != want or not any(want), f"the weight {planted} went unseen"


def test_a_sampler_with_a_favorite_side_is_seen():
    for slope in (lambda s: s, lambda s: s**2):
        assert gradient.deviations(slope, np.random.default_rng(0)) < gradient.DEVIATIONS
        assert gradient.deviations(slope, np.random.default_rng(0), gradient.below_one) > gradient.DEVIATIONS


def test_a_clipped_mean_is_not_the_mean_of_the_clipped():
    assert gradient.clipped_means() == (Fraction(0), Fraction(1))


@given(
    nodes=st.integers(1, 6),
    interval=st.sampled_from([(0.05, 2.0, 0.05), (0.3, 1.2, 0.0), (0.5, 4.0, 0.25)]),
    data=st.data(),
)
def test_quadrature_is_exact_for_polynomials(nodes, interval, data):
    low, high, gap = interval
    scales, chances = quadrature(nodes, *interval)
    power = data.draw(st.integers(0, 2 * nodes - 1))
    total = (1 - gap - low) + (high - 1 - gap)
    ends = ((low, 1 - gap), (1 + gap, high))
    want = sum(b ** (power + 1) - a ** (power + 1) for a, b in ends) / (power + 1) / total
    assert len(scales) == 2 * nodes and np.all(chances > 0)
    # 2 · nodes products and their sum, all of them positive, and the powers' own roundings
    assert abs(float(np.dot(chances, scales**power)) - want) <= (2 * nodes + 2 * power + 10) * 2.0**-52 * want


def test_the_moments_of_the_published_law():
    s = sympy.symbols("s", positive=True)
    density = 1 / (sympy.Rational(19, 20) - sympy.Rational(1, 20) + 2 - sympy.Rational(21, 20))
    below, above = (s, sympy.Rational(1, 20), sympy.Rational(19, 20)), (s, sympy.Rational(21, 20), 2)
    mean = density * (sympy.integrate(s, below) + sympy.integrate(s, above))
    short = density * sympy.integrate(1 - s, below)
    assert str(mean) == str(bounded.expected_scale()) == "1519/1480"
    assert str(short) == str(bounded.expected_shortfall()) == "9/37"


def test_the_quadratic_theory_symbolically():
    """Theorem 2 from first principles, with the moments as free symbols."""
    x, goal, strength = sympy.symbols("x goal strength", real=True)
    m0, m1, m2 = sympy.symbols("m0 m1 m2", positive=True)  # E[w], E[ws], E[ws²]
    j = (x - goal) ** 2 / 2 - strength * (m2 * x**2 - 2 * m1 * x * goal + m0 * goal**2) / 2
    assert sympy.simplify(sympy.diff(j, x, 2) - (1 - strength * m2)) == 0
    (least,) = sympy.solve(sympy.diff(j, x), x)
    assert sympy.simplify(least - goal * (1 - strength * m1) / (1 - strength * m2)) == 0


def test_the_trainer_finds_the_optimum_and_the_bound_sees_one_that_is_not():
    distance, allowed = bounded.optimum(0.5)
    assert distance <= allowed + 1e-12 and allowed < 1e-4
    early, allowed_early = bounded.optimum(0.5, steps=3)
    assert early <= allowed_early + 1e-12 and early > 0.1  # far away, and the bound says so


def test_a_wrong_minimizer_is_seen(monkeypatch):
    monkeypatch.setattr(bounded, "expected_scale", lambda: bounded.fmpq(9, 10))
    distance, allowed = bounded.optimum(0.5)
    assert distance > 100 * allowed


def test_a_wrong_threshold_is_seen(monkeypatch):
    assert bounded.sides_of_the_threshold() == 0
    monkeypatch.setattr(bounded, "expected_scale", lambda: bounded.fmpq(1))  # J is constant at λ = 1 then
    assert bounded.sides_of_the_threshold() > 0


def test_the_hand_computed_losses():
    for t in (4.0, 400.0):
        one, half = bounded.losses(t)
        assert one == pytest.approx(np.log(2), abs=2**-51)
        assert half == pytest.approx(np.log1p(np.exp(-t / 4)) + t / 4, rel=2**-50)
