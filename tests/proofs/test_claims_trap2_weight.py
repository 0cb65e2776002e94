"""TRAP-WEIGHT: the exact identities, the model's gradients, and that each of them can fail."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockproofs.claim import BadInput, Context, Grade, Verdict, settle
from lockproofs.claims import trap2_weight as claims
from lockproofs.subject import Subject, zoo_subject
from lockref.autodiff import grad
from lockref.locks.trap2 import WEIGHTINGS, Weighting, scaled
from lockref.models.checkpoint_io import Checkpoint

(CLAIM,) = claims.CLAIMS
EXACT, MILDER, BOTH, BITS, DRAWN, DRAWN_MILDER = range(6)  # the checks, in their order


@pytest.fixture
def context(tiny_qwen3):
    """A tiny random model, alone or with another one as the base it was fine-tuned from."""

    def build(base=False, seed=0, cases=8):
        roles = {"subject": 0} | ({"base": 1} if base else {})
        loaded = {role: Checkpoint(Path(role), *tiny_qwen3(seed=s), {}, ()) for role, s in roles.items()}
        return Context(Subject(loaded, False), seed, cases)

    return build


def run(context):
    return settle(CLAIM.kind, CLAIM.check(context))


def failed(evidence):
    return [i for i, check in enumerate(evidence.checks) if not check.passed]


@pytest.mark.parametrize("base", [False, True])
def test_it_holds_on_a_model_alone_and_on_one_with_its_base(context, base):
    evidence = run(context(base))
    assert evidence.verdict is CLAIM.recorded is Verdict.HOLDS, evidence.explanation
    assert evidence.grade is Grade.PROVED and len(evidence.checks) == 6
    assert ("fine-tuning its base" in evidence.explanation) is base
    assert evidence.checks[EXACT].cases == 8 and evidence.checks[BITS].cases == 5
    assert evidence.checks[DRAWN].value < evidence.checks[DRAWN].tolerance < 1e-12
    assert evidence.controls.power.value == evidence.controls.power.bound > 0


def test_on_the_zoo_the_weighted_gradient_keeps_its_size():
    evidence = run(Context(zoo_subject(), 0, 8))
    assert evidence.verdict is Verdict.HOLDS, evidence.explanation
    (plot,) = evidence.plots
    curves = {curve.name: curve for curve in plot.curves}
    assert set(curves) == {"no weighting", *WEIGHTINGS}
    s = np.array(curves["1/s"].x)
    assert np.allclose(np.array(curves["1/s"].y) * s, curves["no weighting"].y, rtol=1e-12, atol=0)
    assert np.allclose(np.array(curves["1/sqrt(s)"].y) * np.sqrt(s), curves["no weighting"].y, rtol=1e-12, atol=0)


def test_same_seed_same_evidence_another_seed_other_numbers(context):
    first, again, other = (CLAIM.check(context(seed=seed)).model_dump_json() for seed in (1, 1, 2))
    assert first == again != other


@given(
    seed=st.integers(0, 2**32),
    shape=st.sampled_from(claims.SHAPES),
    lora=st.booleans(),
    power=st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0]),
    left=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_an_identity_holds_exactly_where_the_powers_of_s_add_up(seed, shape, lora, power, left):
    broken, count = claims.broken_identities(
        np.random.default_rng(seed), shape, Weighting(power, "test"), lora=lora, left=left
    )
    assert count == (sum(shape[:2]) * shape[2] if lora else shape[0] * shape[1])
    assert broken == (0 if power + left == 1 else count)


@given(seed=st.integers(0, 2**32), shape=st.sampled_from(claims.SHAPES), power=st.sampled_from([0.5, 1.0, 2.0]))
def test_with_both_lora_factors_scaled_only_1_over_s_squared_compensates(seed, shape, power):
    rng = np.random.default_rng(seed)
    broken, count = claims.broken_identities(rng, shape, Weighting(power, "test"), lora=True, scaled_factors=2)
    assert broken == (0 if power == 2 else count)


def test_a_weighting_that_is_no_power_of_root_s_has_no_exact_identity():
    with pytest.raises(ValueError, match=r"s\^-0.75 is not a power of √s"):
        claims.broken_identities(np.random.default_rng(0), (1, 1, 1), Weighting(0.75, "test"), lora=False)


def scaled_twice(base, update, s):
    """W₀ + s²Δ in place of W₀ + sΔ."""
    return scaled(base, update, s * s)


def one_entry_off(f):
    """A gradient with one entry that is wrong by its last bit."""

    def wrong(x):
        found = grad(f)(x)
        if x["model.norm.weight"].dtype == np.float64 and np.abs(x["model.norm.weight"]).max() < 0.1:
            name = "model.norm.weight"
            found[name] = found[name].copy()
            found[name][0] = np.nextafter(found[name][0], np.inf)
        return found

    return wrong


@pytest.mark.parametrize(
    ("name", "fault", "caught"),
    [
        ("scaled", scaled_twice, {BITS, DRAWN, DRAWN_MILDER}),
        ("WEIGHTINGS", WEIGHTINGS | {"1/s": Weighting(1.5, "planted")}, {EXACT, BITS, DRAWN}),
        ("WEIGHTINGS", WEIGHTINGS | {"1/sqrt(s)": WEIGHTINGS["1/s"]}, {MILDER, DRAWN_MILDER}),
        ("WEIGHTINGS", WEIGHTINGS | {"1/s": Weighting(2.0, "planted")}, {EXACT, BOTH, BITS, DRAWN}),
        ("grad", one_entry_off, {BITS}),
    ],
)
def test_a_planted_fault_leaves_the_claim_undecided(context, monkeypatch, name, fault, caught):
    monkeypatch.setattr(claims, name, fault)
    evidence = run(context())
    assert evidence.verdict is Verdict.UNDECIDED and set(failed(evidence)) == caught


def test_a_power_control_that_plants_nothing_wrong_fails(context, monkeypatch):
    monkeypatch.setattr(claims, "PLANTED", WEIGHTINGS["1/s"])
    evidence = run(context())
    assert evidence.verdict is Verdict.UNDECIDED and not evidence.controls.power.passed
    assert evidence.controls.null.passed and not failed(evidence)


def test_a_base_of_another_shape_is_bad_input(tiny_qwen3):
    model, other = (Checkpoint(Path("m"), *tiny_qwen3(tied=tied), {}, ()) for tied in (False, True))
    with pytest.raises(BadInput, match="base and subject have different tensors") as caught:
        CLAIM.check(Context(Subject({"subject": model, "base": other}, False), 0, 1))
    assert "\n" not in str(caught.value)


def test_the_update_of_a_model_with_a_base_is_their_difference(context):
    found, origin = claims.measured(context(base=True))
    both = context(base=True).subject.checkpoints
    assert origin == "fine-tuning its base"
    for name, delta in found.update.items():
        assert np.array_equal(delta, both["subject"].tensors[name] - both["base"].tensors[name])
    alone, _ = claims.measured(context())
    for name, delta in alone.update.items():
        ratio = np.linalg.norm(delta) / np.linalg.norm(alone.base[name])
        assert 0.003 < ratio < 0.03  # a hundredth, for a normal draw of 10 entries or more
