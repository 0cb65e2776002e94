"""The TAYLOR claims other than TAYLOR-RADIUS: verdicts, counterexamples, and planted faults that must not go unseen."""

import re
from pathlib import Path

import mpmath as mp
import numpy as np
import pytest
from flint import fmpq

from lockproofs import taylor_layers
from lockproofs.claim import Context, Grade, MissingInput, Verdict, settle
from lockproofs.claims import taylor, taylor_attacks, taylor_bases, taylor_bounds, taylor_lwe, taylor_noise
from lockproofs.subject import Subject, zoo_subject
from lockref.attacks.taylor_coefficients import Found, _Curve
from lockref.locks.taylor import SeriesLayer
from lockref.models.checkpoint_io import Checkpoint

CLAIMS = {claim.id: claim for claim in taylor.CLAIMS if claim.id != "TAYLOR-RADIUS"}
everywhere = pytest.mark.parametrize("name", CLAIMS)
REFUTED = [name for name, claim in CLAIMS.items() if claim.recorded is Verdict.REFUTED]


@pytest.fixture(scope="module")
def build(tiny_qwen3):
    """A tiny model whose gates are scaled, so that its pre-activations reach as far as wanted."""

    def context(scale=0.5, seed=0, cases=6):
        config, weights = tiny_qwen3()
        gates = {k: scale * w for k, w in weights.items() if k.endswith("gate_proj.weight")}
        return Context(
            Subject({"subject": Checkpoint(Path("tiny"), config, weights | gates, {}, ())}, False), seed, cases
        )

    return context


@pytest.fixture(scope="module")
def zoo():
    return zoo_subject()


def run(name, context):
    return settle(CLAIMS[name].kind, CLAIMS[name].check(context))


@everywhere
def test_verdicts_on_the_zoo(name, zoo):
    evidence = run(name, Context(zoo, 0, 8))
    assert evidence.verdict is CLAIMS[name].recorded, evidence.explanation
    assert all(check.passed and check.cases >= 1 and check.tolerance_from + check.sense for check in evidence.checks)
    if CLAIMS[name].kind == "security":
        assert evidence.controls.null.passed and evidence.controls.power.passed


@everywhere
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_verdicts_on_tiny_models_within_the_radius_and_beyond(name, build, scale):
    evidence = run(name, build(scale))
    assert evidence.verdict is CLAIMS[name].recorded, evidence.explanation


@everywhere
def test_same_seed_same_evidence_another_seed_other_numbers(name, build):
    first, again, other = (CLAIMS[name].check(build(1.0, seed, 3)).model_dump_json() for seed in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize("name", REFUTED)
def test_counterexamples_rerun(name, build):
    found = CLAIMS[name].check(build()).counterexample
    assert CLAIMS[name].rerun(found.given) == found.got != found.want
    with pytest.raises(ValueError, match=r"only .* not \{"):
        CLAIMS[name].rerun(found.given | {"activation": "gelu_erf"})


def test_the_midpoint_counterexample_is_right():
    found = taylor_bounds._counterexample()
    assert found.got == "about the midpoint the error is 1/2, about the other point 2/5"
    m, other = mp.atanh(0.5), mp.atanh(mp.mpf(2) / 5)
    assert 0 < other < 2 * m and mp.tanh(2 * m) == pytest.approx(0.8)
    z = [2 * m * k / 100 for k in range(101)]
    errors = [max(abs(mp.tanh(x) - mp.tanh(t)) for x in z) for t in (m, other)]
    assert errors[0] == pytest.approx(0.5) and errors[1] == pytest.approx(0.4)
    # another point that is worse, so that the sentence can come out the other way
    assert taylor_bounds.other_point(found.given | {"tanh_of_other_point": "3/5"}).endswith("other point 3/5")
    with pytest.raises(ValueError, match="in the range are needed"):
        taylor_bounds.other_point(found.given | {"tanh_of_other_point": "9/10"})


def test_the_coefficient_counterexample_is_right():
    t, h = mp.atanh(0.5), mp.mpf(10) ** -8
    assert 3 * mp.diff(mp.tanh, t) == pytest.approx(9 / 4)
    assert 3 * mp.diff(mp.tanh, t, 2) / 2 == pytest.approx(-9 / 8) and h
    assert taylor_attacks._counterexample().got == "tanh t = 1/2 and W = 3"
    w, tau = fmpq(-5, 7), fmpq(-1, 3)
    given = {"activation": "tanh", "order_1": str(w * (1 - tau**2)), "order_2": str(-w * tau * (1 - tau**2))}
    assert taylor_attacks.from_ratio(given) == "tanh t = -1/3 and W = -5/7"


def test_the_other_counterexamples_are_right():
    silu = mp.e / (1 + mp.e)
    assert mp.mpf(8) / 11 < silu < mp.mpf(3) / 4
    assert mp.diff(lambda x: x / (1 + mp.exp(-x)), 0) == pytest.approx(0.5)
    assert taylor_lwe._half().got == "W = 3"
    assert taylor_noise._one_pair().got == "y / silu(1) lies between 5 and 165/32, which round to 5 and 5"
    assert taylor_noise.nearest_integer(taylor_noise._one_pair().given | {"output": "-15/4"}).endswith("to -5 and -5")
    assert "3/4 and 3/2" in taylor_noise._two_answers().got
    same = taylor_noise._two_answers().given | {"secrets": [2, 2]}
    assert taylor_noise.answers(same).endswith("probability 1 and 1")


def test_lwe_prints_no_number_of_bits(build):
    report = CLAIMS["TAYLOR-LWE"].check(build()).model_dump_json()
    assert not re.search(r"\d[\d.,]*[ -]?bits?\b", report)
    assert all(word in report for word in ("independent", "modulus", "trivial attack 1", "trivial attack 2"))


@pytest.mark.parametrize(("name", "grade"), [("TAYLOR-BOUND", Grade.CERTIFIED), ("TAYLOR-MIDPOINT", Grade.PROVED)])
def test_grades(name, grade, build):
    assert run(name, build()).grade is grade


def _of_two_orders_more(right):
    return lambda activation, t, reach, order: right(activation, t, reach, order + 2)


def _useless(arrays, *args, **kwargs):
    units = np.shape(arrays)[2]
    return Found(np.ones(np.shape(arrays)[1:]), np.zeros(units), np.ones(units), np.zeros(units), np.ones(units) / 9)


def _sees_weights_everywhere(right):
    def recover(*args, **kwargs):
        found = right(*args, **kwargs)
        return Found(found.weight, found.points, found.signs, 0 * found.misfit, found.bound)

    return recover


def _noisy(right, rng):
    return lambda self, z, factor=1.0: right(self, z, factor) + rng.standard_normal()


def _zeros(right):
    def least_squares(a, y):
        found = right(a, y)
        return type(found)(0 * found.weight, found.noise, found.factor)

    return least_squares


def _shorter(right):
    return lambda activation, z, center, orders: right(activation, z, center, [orders[0] + 4])


def _of_higher_orders(right):
    return lambda activation, low, high, orders: right(activation, low, high, [40, 60])


def _always_of_order_eight(right):
    return lambda activation, low, high, order: right(activation, low, high, 8)


def _silent(right):
    return lambda self, z, factor=1.0: 0 * right(self, z, factor)


FAULTS = [
    ("TAYLOR-BOUND", taylor_bounds, "remainder_bound", _of_two_orders_more, "below the bound from the poles"),
    ("TAYLOR-BOUND", taylor_bounds, "lagrange_at_least", lambda right: lambda *a: 0.5 * right(*a), "Lagrange"),
    ("TAYLOR-BOUND", taylor_bounds, "partial_sums", _shorter, "hidden unit"),
    ("TAYLOR-MIDPOINT", taylor_bounds, "greatest_error", lambda right: lambda *a: (0.5, 1.0), "provably better"),
    ("TAYLOR-BASIS", taylor_bases, "chebyshev_bounds", _of_higher_orders, "4M"),
    ("TAYLOR-BASIS", taylor_bases, "chebyshev_interpolant", _always_of_order_eight, "more precise"),
    ("TAYLOR-UTILITY", taylor_bases, "LOSS_ORDERS", lambda right: (0, 1), "Chebyshev in every unit"),
    ("TAYLOR-COEFF", taylor_attacks, "recover", lambda right: _useless, "W comes back"),
    ("TAYLOR-COEFF", taylor_attacks, "recover", _sees_weights_everywhere, "random coefficients"),
    ("TAYLOR-COEFF", _Curve, "bound", lambda right: lambda *a: right(*a) / 100, "W comes back"),
    ("TAYLOR-LWE", taylor_lwe, "least_squares", _zeros, "trivial attack 2"),
    ("TAYLOR-LWE", SeriesLayer, "__call__", lambda right: _noisy(right, np.random.default_rng(0)), "missing: indep"),
    ("TAYLOR-ILWE", taylor_noise, "least_squares", _zeros, "integer secrets"),
    ("TAYLOR-ILWE", taylor_noise, "samples_needed", lambda right: lambda *a: right(*a) // 16, "integer secrets"),
    ("TAYLOR-DP", taylor_noise, "least_epsilon", lambda right: lambda *a: 1 + right(*a), "Laplace"),
    ("TAYLOR-DP", SeriesLayer, "__call__", _silent, "one question"),
]


@pytest.mark.parametrize(
    ("name", "where", "attribute", "fault", "caught_by"),
    FAULTS,
    ids=[f"{f[0]}-{f[2]}-{i}" for i, f in enumerate(FAULTS)],
)
def test_a_planted_fault_leaves_the_claim_undecided(build, monkeypatch, name, where, attribute, fault, caught_by):
    monkeypatch.setattr(where, attribute, fault(getattr(where, attribute)))
    evidence = run(name, build(2.0, cases=10))
    assert evidence.verdict is Verdict.UNDECIDED, "the fault went unseen"
    assert re.search(caught_by, evidence.explanation.split(". ")[0]), evidence.explanation


def test_an_honest_noise_mechanism_is_not_called_broken():
    rng = np.random.default_rng(5)
    for epsilon in (0.5, 1.0, 2.0):
        draws = [(shift + rng.laplace(scale=1 / epsilon, size=2000)).tolist() for shift in (0.0, 1.0)]
        assert taylor_noise.least_epsilon(*draws, lambda y: y < 0) <= epsilon
    assert taylor_noise.least_epsilon([0] * 50, [0] * 50, lambda y: y == 0) == 0
    assert taylor_noise.least_epsilon([1] * 50, [0] * 50, lambda y: y == 0) == 0


@pytest.mark.parametrize("name", ["TAYLOR-UTILITY", "TAYLOR-COEFF", "TAYLOR-LWE"])
def test_a_model_too_large_for_a_planted_lock_is_skipped(name, build, monkeypatch):
    monkeypatch.setattr(taylor_layers, "ROOM", 2**10)
    with pytest.raises(MissingInput, match=r"coefficients of order .* GiB"):
        CLAIMS[name].check(build())


def test_layers_are_observed_on_other_tokens_with_another_stream(build):
    one, two = (taylor_layers.tokens(build(), stream) for stream in (1, 4))
    assert one.shape == two.shape and not np.array_equal(one, two)
