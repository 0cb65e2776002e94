"""TAYLOR-RADIUS: both sides of the condition, on models that meet it and on models that don't."""

from pathlib import Path

import mpmath as mp
import numpy as np
import pytest
from flint import fmpq

from lockproofs import balls, taylor_layers
from lockproofs.claim import Context, Grade, Verdict, settle
from lockproofs.claims import taylor_convergence as claims
from lockproofs.subject import Subject, zoo_subject
from lockref.locks import taylor_series as taylor
from lockref.models import qwen3
from lockref.models.checkpoint_io import Checkpoint

(CLAIM,) = claims.CLAIMS


@pytest.fixture
def context(tiny_qwen3):
    """A tiny model whose gates are scaled, so that its pre-activations reach as far as wanted."""

    def build(scale, seed=0, cases=6):
        config, weights = tiny_qwen3()
        gates = {k: scale * w for k, w in weights.items() if k.endswith("gate_proj.weight")}
        model = Checkpoint(Path("tiny"), config, weights | gates, {}, ())
        return Context(Subject({"subject": model}, False), seed, cases)

    return build


def run(context):
    return settle(CLAIM.kind, CLAIM.check(context))


def assert_decided(evidence):
    assert evidence.verdict is CLAIM.recorded is Verdict.HOLDS_IF, evidence.explanation
    assert evidence.grade is Grade.CERTIFIED
    assert "√(z0² + π²)" in evidence.condition


@pytest.mark.parametrize(("scale", "leaves", "checks"), [(0.02, False, 4), (0.8, True, 8), (3.0, True, 6)])
def test_the_verdict_is_the_same_whether_a_model_meets_the_condition_or_not(context, scale, leaves, checks):
    evidence = run(context(scale))
    assert_decided(evidence)
    assert (evidence.severity == "medium") is leaves and (evidence.fix is not None) is leaves
    assert len(evidence.checks) == checks
    assert all(check.passed and check.cases >= 1 for check in evidence.checks)
    senses = [check.sense for check in evidence.checks]
    assert "<=" in senses and ">=" in senses  # evidence on both sides


def test_on_the_zoo_a_higher_order_makes_real_layers_worse():
    evidence = run(Context(zoo_subject(), 0, 8))
    assert_decided(evidence)
    key = evidence.checks[0]
    assert key.name.startswith("units of the model that leave the radius") and key.value > 10
    (layers,) = [plot for plot in evidence.plots if plot.y_label.startswith("relative error")]
    assert len(layers.curves) == 4
    (shares,) = [plot for plot in evidence.plots if plot.y_label == "share of units"]
    assert 0 < max(shares.curves[0].y) <= 1


def test_same_seed_same_evidence_another_seed_other_numbers(context):
    first, again, other = (CLAIM.check(context(2.0, seed)).model_dump_json() for seed in (3, 3, 4))
    assert first == again != other


def test_the_counterexample_reruns_and_is_right():
    evidence = claims._counterexample()
    assert CLAIM.rerun(evidence.given) == evidence.got
    assert evidence.got == (
        "order 2 is wrong by at least 2 and at most 16/7; order 4 is wrong by at least 64/21 and at most 10/3"
    )
    assert fmpq(16, 7) < fmpq(64, 21)
    silu = mp.mpf(4) / (1 + mp.exp(-4))
    second, fourth = (
        mp.polyval([c / 1 for c in mp.taylor(lambda x: x / (1 + mp.exp(-x)), 0, n)][::-1], 4) for n in (2, 4)
    )
    assert second == pytest.approx(6) and fourth == pytest.approx(2 / 3)
    assert 2 <= abs(silu - second) <= mp.mpf(16) / 7 < mp.mpf(64) / 21 <= abs(silu - fourth) <= mp.mpf(10) / 3
    for figure in ("26/7", "16/7", "64/21", "2/3", "S₂ = 2 + 4 = 6"):
        assert figure in evidence.by_hand


def test_inside_the_radius_the_same_bounds_show_no_counterexample():
    got = CLAIM.rerun({"activation": "silu", "expansion_point": 0, "z": 1, "orders": [0, 2]})
    assert got == "order 0 is wrong by at least 5/7 and at most 1; order 2 is wrong by at least 0 and at most 1/4"


@pytest.mark.parametrize("other", [{"activation": "tanh"}, {"expansion_point": 1}, {"z": -4}])
def test_no_rational_bounds_are_claimed_where_there_are_none(other):
    with pytest.raises(ValueError, match="only silu about 0"):
        CLAIM.rerun(claims._counterexample().given | other)


def wrong_radius(activation, t):
    """π everywhere, as if every expansion point were 0."""
    return np.full(np.shape(t), np.pi)


def too_large_radius(activation, t):
    """As if the second pair of poles were the first."""
    return np.hypot(t, 3 * np.pi)


def without_the_last_term(activation, z, center, orders):
    """A reference that stops one order too early."""
    return RIGHT_SUMS(activation, z, center, [n - 1 for n in orders])


def same_at_every_order(activation, z, center, orders):
    """A reference whose error does not depend on the order."""
    return [s for _ in orders for s in RIGHT_SUMS(activation, z, center, orders[:1])]


RIGHT_SUMS, RIGHT_COEFFICIENTS = taylor.partial_sums, balls.coefficients


def with_a_factorial_too_many(activation, t, order):
    """Derivatives in place of normalized derivatives."""
    return [c * fmpq(int(mp.factorial(min(n, 20)))) for n, c in enumerate(RIGHT_COEFFICIENTS(activation, t, order))]


@pytest.mark.parametrize(
    ("where", "name", "fault", "caught_by"),
    [
        (taylor, "radius", wrong_radius, "reaching 1.25"),
        (taylor, "radius", too_large_radius, ""),
        (taylor, "partial_sums", without_the_last_term, "measured error against certified bound"),
        (taylor, "partial_sums", same_at_every_order, "measured error against certified bound"),
        (balls, "coefficients", with_a_factorial_too_many, "reaching 0.8"),
    ],
)
def test_a_planted_fault_leaves_the_claim_undecided(context, monkeypatch, where, name, fault, caught_by):
    monkeypatch.setattr(where, name, fault)
    try:
        evidence = run(context(0.8, cases=8))
    except ValueError as error:  # the certified bound refuses a range that it cannot prove to be inside
        assert fault is too_large_radius and "not within the radius" in str(error)
    else:
        assert evidence.verdict is Verdict.UNDECIDED
        assert any(caught_by in check.name for check in evidence.checks if not check.passed), evidence.explanation


def test_a_layer_restricted_to_some_units_errs_by_their_share(context):
    layers = taylor_layers.observe(context(2.0))
    layer = layers[1]
    some = np.arange(layer.z.shape[1]) % 3 == 0
    total = [layer.only(part) for part in (some, ~some)]
    want = qwen3.ops.silu(layer.z) * layer.u @ layer.down.T
    parts = sum(qwen3.ops.silu(part.z) * part.u @ part.down.T for part in total)
    # 40 products in another order, of size 40 at most
    assert np.max(np.abs(parts - want)) <= 40 * 2.3e-16 * np.max(np.abs(layer.z * layer.u)) * 40
    reach = layer.stretched(0.8)
    assert np.allclose(reach.share, 0.8, rtol=1e-12, atol=0)
