"""Series for the figures: what is drawn together must belong together, and can be seen to differ."""

from dataclasses import replace

import numpy as np
import pytest

from lockproofs.curves import dlr, taylor, theorem2
from lockproofs.curves.recovery import DTYPES, unit
from lockref.attacks.frontier import Attacker


def by_name(plot):
    return {curve.name: dict(zip(curve.x, curve.y, strict=True)) for curve in plot.curves}


def off_ledger(width, mlp_width):
    """Attackers whose ledger differs from their closed form at any depth at which both are drawn."""
    curves = by_name(dlr.stored(width, mlp_width, np.random.default_rng(0)))
    forms = {name.removesuffix(": closed form"): c for name, c in curves.items() if name.endswith("closed form")}
    return {n for n, form in forms.items() if any(form[x] != ran for x, ran in curves[f"{n}: ledger"].items())}


@pytest.mark.parametrize(("width", "mlp_width"), [(10, 100), (24, 64)])
def test_ledger_and_closed_form_are_the_same_bytes(width, mlp_width):
    assert off_ledger(width, mlp_width) == set()


def test_a_wrong_closed_form_is_seen(monkeypatch):
    wrong = [replace(way, formula=lambda net, f=way.formula: f(net) + (net.depth == 48)) for way in dlr.WAYS]
    monkeypatch.setattr(dlr, "WAYS", wrong)
    assert off_ledger(10, 100) == {way.name for way in dlr.WAYS}


def test_the_staircase_holds_whom_nobody_beats():
    offers = [(1.0, 9), (1.2, 9), (1.5, 4), (1.4, 6), (1.5, 5), (2.0, 4), (3.0, 1)]
    x, y = dlr.staircase([Attacker(str(i), "all", e, o) for i, (o, e) in enumerate(offers)], 2.0)
    assert (x, y) == ([2.0, 2.8, 3.0, 6.0], [9, 6, 4, 1])


def test_the_unlocked_default_is_the_unit_of_every_frontier():
    for plot in dlr.cost_frontiers(8):
        curves = by_name(plot)
        for goal in ("all", "attention"):
            assert curves[f"unlocked, training {goal}: default"] == {1.0: 1.0}
            assert curves[f"unlocked, training {goal}"][1.0] == 1.0


def test_the_counterexample_over_the_circle():
    curves = by_name(theorem2.over_the_circle({"W_q": [[1, 0]], "W_k": [[0, 1]]}))
    turns = np.array(list(curves["rotation by φ: f"]))
    by_hand = {  # f = (sin φ / 2)² for reflections, 0 for rotations; g = 4 − 2 tr P
        "rotation by φ: f": 0 * turns,
        "rotation by φ: g": 4 - 4 * np.cos(turns),
        "reflection, axis at φ/2: f": np.sin(turns) ** 2 / 4,
        "reflection, axis at φ/2: g": 4 + 0 * turns,
    }
    for name, want in by_hand.items():
        np.testing.assert_allclose(list(curves[name].values()), want, atol=64 * 2.0**-52, err_msg=name)
    assert np.pi in turns and np.pi / 2 in turns


@pytest.mark.parametrize(
    ("error", "bound"),
    [(taylor.taylor_error, taylor.taylor_bound), (taylor.chebyshev_error, taylor.chebyshev_bound)],
)
def test_certified_errors_lie_between_what_is_attained_and_the_bound(error, bound):
    for order, reach in ((4, 1.0), (8, 2.5), (4, 4.0)):
        z = np.linspace(-reach, reach, 41)
        silu = z / (1 + np.exp(-z))
        fit = np.polynomial.Chebyshev.interpolate(lambda x: x / (1 + np.exp(-x)), order, domain=[-reach, reach])
        series = (0, 1 / 2, 1 / 4, 0, -1 / 48, 0, 1 / 480, 0, -17 / 80640)[: order + 1]
        tried = np.polynomial.Polynomial(series) if error is taylor.taylor_error else fit
        attained = np.max(np.abs(tried(z) - silu)) - 1e3 * 2.0**-52
        assert attained <= error(order, reach) <= min(bound(order, reach), np.inf)


def test_units_of_precision():
    assert [unit(d) for d in DTYPES] == [2.0**-53, 2.0**-24, 2.0**-11, 2.0**-8]
