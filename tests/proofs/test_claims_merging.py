"""The claims on merging: each check sees its planted fault, each planted vector is what hand computation gives."""

from dataclasses import replace

import numpy as np
import pytest

from lockproofs.claim import Context, Verdict, settle
from lockproofs.claims import merging, merging_scale, merging_spaces, merging_variants
from lockproofs.claims.merging_variants import PLANTED, both
from lockproofs.subject import zoo_subject
from lockref.merging import SETTINGS, expected_scales, fitted_scales, merge, observed_scales

CLAIMS = {claim.id: claim for claim in merging.CLAIMS}


@pytest.fixture(scope="module")
def evidence():
    context = Context(zoo_subject(), seed=0, cases=20)
    return {name: settle(claim.kind, claim.check(context)) for name, claim in CLAIMS.items()}


@pytest.mark.parametrize("name", CLAIMS)
def test_the_verdict_is_the_recorded_one(name, evidence):
    found = evidence[name]
    assert found.verdict is CLAIMS[name].recorded, found.explanation
    assert all(check.passed for check in found.checks), [c.name for c in found.checks if not c.passed]


@pytest.mark.parametrize("name", [n for n, c in CLAIMS.items() if c.recorded is Verdict.REFUTED])
def test_the_counterexample_reruns(name, evidence):
    example = evidence[name].counterexample
    assert CLAIMS[name].rerun(example.given) == example.got


@pytest.mark.parametrize("case", [n for n, given in PLANTED.items() if given["want"]])
def test_planted_vectors_are_those_computed_by_hand(case):
    assert both(PLANTED[case]) == [[float(x) for x in want] for want in PLANTED[case]["want"]]


def test_a_code_without_the_difference_leaves_the_claim_undecided(monkeypatch):
    """If the authors trimmed as mergekit does, the first planted pair would agree."""
    same = replace(SETTINGS["ties-mergekit"], name="ties")
    monkeypatch.setitem(SETTINGS, "ties", same)
    found = CLAIMS["MERGE-VARIANTS"].check(Context(zoo_subject(), 0, 5))
    assert settle("theorem", found).verdict is Verdict.UNDECIDED


def test_a_biased_drop_is_seen(monkeypatch):
    from fractions import Fraction

    assert merging_scale.drop_moments(Fraction(1, 4))[0] == 0
    biased = SETTINGS["dare"].tuned(rescale="nothing")
    monkeypatch.setitem(SETTINGS, "dare", biased)
    assert merging_scale.drop_moments(Fraction(1, 4))[0] > 0


def test_a_scale_that_is_wrong_is_seen(monkeypatch):
    wrong = merging_scale.expected_scales
    monkeypatch.setattr(merging_scale, "expected_scales", lambda name, n, w: wrong(name, n, w[::-1]))
    assert merging_scale.linear_misses(Context(zoo_subject(), 0, 3))[0] > 0


def test_a_space_that_loses_something_is_seen(monkeypatch):
    lossy = merging_spaces.core
    monkeypatch.setattr(merging_spaces, "core", lambda factors: lossy([(b[:, :1], a[:1]) for b, a in factors]))
    found = CLAIMS["MERGE-SPACES"].check(Context(zoo_subject(), 0, 10))
    assert [c.name for c in found.checks if not c.passed] == ["every space gives each update back"]


def test_tiess_factors_add_up_to_one_where_something_is_kept():
    """Also the mean over entries of all members together is then the share of entries that are kept."""
    rng = np.random.default_rng(0)
    base = {"w": rng.standard_normal((20, 10))}
    members = [{"w": base["w"] + rng.standard_normal((20, 10))} for _ in range(3)]
    setting = SETTINGS["ties-peft"].tuned(density=0.5)
    kept = np.mean(merge(base, members, setting).tensors["w"] != base["w"])
    scales = observed_scales(base, members, setting)
    assert abs(sum(s.mean for s in scales) - kept) < 1e-12
    fit = fitted_scales(base, members, merge(base, members, "task-arithmetic", weights=[1, 2, -3]))
    assert np.allclose(fit.scales, (1, 2, -3)) and fit.residual < 1e-12
    assert expected_scales("ties", 2) is None and expected_scales("tsv", 2) is None


def test_dares_observed_moments_are_the_expected_ones():
    """n independent entries: five standard errors of the mean, and of the variance.

    An entry is 0 with probability p, else v: its variance errs by (p (1−p) (1−2p)² v⁴ / n)^½ (delta method).
    """
    base = {"w": np.zeros((400, 500))}
    members = [{"w": np.ones((400, 500))}] * 2
    for rescale in ("density", "nothing"):
        setting = SETTINGS["dare"].tuned(density=0.25, scale=2.0, rescale=rescale)
        want = expected_scales(setting, 2, [1, 0.5])
        got = observed_scales(base, members, setting, weights=[1, 0.5], rng=np.random.default_rng(0))
        n, p = 200_000, 0.75
        for w, g in zip(want, got, strict=True):
            v = w.mean / (1 - p)
            assert abs(g.mean - w.mean) < 5 * (w.variance / n) ** 0.5
            assert abs(g.dropped - p) < 5 * (p * (1 - p) / n) ** 0.5
            assert abs(g.variance - w.variance) < 5 * abs(1 - 2 * p) * (p * (1 - p) / n) ** 0.5 * v * v


def test_variants_names_are_settings():
    assert all(n in SETTINGS for names in merging_variants.FAMILIES.values() for n in names)
