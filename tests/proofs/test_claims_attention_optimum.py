"""Theorem 2's other parts, relaxations, rotary models, anchors, barriers: every check and control can fail."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flint import fmpq

from lockproofs import anchor_trials, attention_trials, exact
from lockproofs.claim import Context, Evidence, Verdict, settle
from lockproofs.claims import (
    attention,
    attention_anchor,
    attention_barrier,
    attention_eq2,
    attention_optimum,
    attention_randomized,
    attention_relaxation,
    attention_rotary,
)
from lockproofs.subject import Subject
from lockref.attacks import anchor_model
from lockref.attacks.anchor import plane_signs
from lockref.locks.attention import TOPK, project
from lockref.locks.randomized import Leading
from lockref.models.checkpoint_io import Checkpoint
from lockref.models.qwen3 import Qwen3Config, expected_tensors

CLAIMS = {claim.id: claim for claim in attention.CLAIMS}
Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def subject() -> Subject:
    """A small random model with random gains and its base, half as far from it as the weights are long."""
    config = Qwen3Config(
        vocab_size=17, hidden_size=12, intermediate_size=5, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.uniform(0.5, 1.5, shape) if "norm" in name else rng.standard_normal(shape)
        for name, shape in expected_tensors(config).items()
    }
    near = {n: w + 0.05 * rng.standard_normal(w.shape) for n, w in tensors.items()}
    model, base = (Checkpoint(Path("m"), config, t, dict.fromkeys(t, "F64"), ()) for t in (tensors, near))
    return Subject({"subject": model, "base": base}, False)


def run(claim: str, subject: Subject) -> Evidence:
    return settle(CLAIMS[claim].kind, CLAIMS[claim].check(Context(subject, 0, 12)))


def stretch(patch: Patch) -> None:
    """P is orthogonal up to a factor of 1 + 10⁻⁹ only."""
    real = exact.random_orthogonal
    patch.setattr(exact, "random_orthogonal", lambda rng, n: real(rng, n) * fmpq(10**9 + 1, 10**9))


def replace(module: Any, name: str, value: Callable[[Any], Any]) -> Callable[[Patch], None]:
    """Puts `value(real)` in place of a module's name."""
    return lambda patch: patch.setattr(module, name, value(getattr(module, name)))


def wrong_sign(real: Any) -> Any:
    """−1 and +1 the other way round."""
    return lambda self, rng: real(self, rng) * -1


def half_a_certificate(real: Any) -> Any:
    return lambda self, p: real(self, p) / 2


def unconstrained(real: Any) -> Any:
    """The block on the null space is no longer orthogonal: it shrinks by half."""

    def maximizer(self: Any, rng: Any) -> Any:
        c = len(self.values)
        shrink = exact.diagonal([fmpq(1, 2) if x == 0 else 1 for x in self.values[:c]])
        return real(self, rng) * self.conjugate(shrink)

    return maximizer


def turned(real: Any) -> Any:
    """Vectors whose coordinates have moved by one place, with the residual of the right ones."""

    def worse(s: Any, k: int, rng: Any, **settings: Any) -> Leading:
        found = real(s, k, rng, **settings)
        return Leading(np.roll(found.vectors, 1, axis=-2), found.values, found.residual)

    return worse


def always_the_same(real: Any) -> Any:
    return lambda s, k, rng, **settings: real(s, k, np.random.default_rng(0), **settings)


def double(real: Any) -> Any:
    return lambda *a, **k: real(*a, **k) * 2


def half(real: Any) -> Any:
    return lambda *a, **k: real(*a, **k) / 4


def negated(real: Any) -> Any:
    """An attack that returns the opposite of what it should."""

    def attack(released: Any, config: Any, family: Any, reference: Any) -> Any:
        return real(*({n: -w for n, w in released.items()}, config, family, {n: -w for n, w in reference.items()}))

    return attack


def last_sign_lost(real: Any) -> Any:
    """The sign of the last plane is always +1."""

    def signs(released: Any, base: Any) -> Any:
        found = plane_signs(released, base)
        found[..., -1] = 1
        return found

    return signs


EQ2, OPT, TOP, RND = attention_eq2, attention_optimum, attention_relaxation, attention_randomized
ROT, ANC, BAR, TRI = attention_rotary, attention_anchor, attention_barrier, anchor_trials
S = attention_optimum.Spectral
PLANTS: list[tuple[str, str, Callable[[Patch], None]]] = [
    ("MB-EQ2", "the two forms agree, exactly", stretch),
    ("MB-EQ2", "the expansion for any square P, exactly", replace(EQ2, "expansion_breaks", lambda _: lambda p: True)),
    ("MB-EQ2", "P must be orthogonal, exactly", replace(EQ2, "fmpq", lambda _: lambda a, b: fmpq(1))),
    ("MB-EQ2", "the model's key heads in float64", replace(EQ2, "eq2_from_grams", double)),
    ("MB-T2B", "the gap to Σ|λ| is a sum of squares, exactly", replace(S, "certificate", half_a_certificate)),
    ("MB-T2B", "the gap to Σ|λ| is a sum of squares, exactly", stretch),
    ("MB-T2B", "reached if and only if the signs are those of (b), exactly", replace(S, "maximizer", wrong_sign)),
    ("MB-T2B", "the stated P reaches Σ|λ| on the model's heads", replace(OPT.np, "sign", lambda f: lambda x: -f(x))),
    ("MB-T2B", "no random P exceeds Σ|λ| on the model's heads",
     replace(OPT.np.linalg, "eigh", lambda f: lambda s: (f(s)[0] / 100, f(s)[1]))),
    ("MB-T2C", "one zero eigenvalue leaves ±1 only, exactly", replace(S, "maximizer", unconstrained)),
    ("MB-T2C", "Horn's inequalities, exactly",
     replace(OPT, "horn_breaks", lambda f: lambda d, proper: f(d, not proper))),
    ("MB-T2C", "two zeros allow entries between, exactly",
     replace(exact, "random_orthogonal", lambda _: lambda rng, n: exact.identity(n))),
    ("MB-TOPK", "another direction is better, exactly", replace(TOP, "eq2", double)),
    ("MB-TOPK", "P_k maximizes the surrogate, exactly", replace(TOP, "exact_surrogate", double)),
    ("MB-TOPK", "random pairs stay below the bound", replace(TOP, "eq2_from_grams", double)),
    ("MB-TOPK", "the model's key heads stay below the bound",
     replace(TOP, "strongest_flip", lambda f: lambda a, b, start, directions: f(a, b, start))),
    ("MB-RSVD", "the model's key heads", replace(RND, "leading_eigenvectors", turned)),
    ("MB-RSVD", "random matrices, with ties and small gaps", replace(RND, "leading_eigenvectors", turned)),
    ("MB-RSVD", "with a tie at the cut two runs disagree", replace(RND, "leading_eigenvectors", always_the_same)),
    ("MB-ROPE", "the published recipe changes the model, for each governing matrix",
     replace(ROT, "project", lambda _: lambda t, c, p: dict(t))),
    ("MB-ROPE", "plane-wise flips leave the loss alone", replace(ROT, "TOPK_PLANES", lambda _: TOPK)),
    ("MB-ROPE", "grouped queries with one shared P, exactly", stretch),
    ("MB-ROPE", "grouped queries with a P each, exactly",
     replace(exact, "diagonal", lambda f: lambda entries: f([abs(int(x)) for x in entries]))),
    ("MB-ROPE", "RoPE alone, exactly", replace(ROT, "rotary_breaks", lambda _: lambda p, q, k: False)),
    ("MB-ROPE", "gains alone, exactly",
     replace(exact, "reflection", lambda _: lambda v: exact.identity(len(v)))),
    ("MB-ANCHOR", "Procrustes: P within its bound", replace(TRI, "procrustes", lambda _: lambda a, b: np.eye(len(a)))),
    ("MB-ANCHOR", "Procrustes: the weights within twice the update",
     replace(TRI, "procrustes", lambda f: lambda a, b: -f(a, b))),
    ("MB-ANCHOR", "least squares: invertible transforms within the bound",
     replace(TRI, "least_squares_bound", half)),
    ("MB-ANCHOR", "signs are right where the bound says so", replace(TRI, "plane_signs", last_sign_lost)),
    ("MB-ANCHOR", "units are matched where the bound says so",
     replace(TRI, "match_rows", lambda f: lambda a, b: np.roll(f(a, b), 1))),
    ("MB-ANCHOR", "with an unrelated base nothing comes back: least relative error of a key head",
     replace(ANC, "head_errors", lambda _: lambda *a: np.zeros(2))),
    ("MB-ANCHOR", "a planted random P is undone with the very base: greatest relative error of a key head",
     replace(ANC, "head_errors", lambda _: lambda *a: np.ones(2))),
    ("MB-BARRIER", "the path after the attack: keyless, k from the other",
     replace(attention_trials, "project",
             lambda _: lambda t, c, p: project(t, c, np.linalg.qr(np.random.default_rng(0).normal(size=p.shape))[0]))),
    ("MB-BARRIER", "the path after the attack: plane signs from the other",
     replace(anchor_model, "plane_signs", last_sign_lost)),
    ("MB-BARRIER", "an unlocked model is left alone: tensors that an attack changes",
     replace(BAR, "keyless", negated)),
    ("MB-BARRIER", "a planted P = −I is undone bit for bit: tensors that stay wrong",
     replace(BAR, "project", lambda _: lambda t, c, p: {n: 2 * w for n, w in t.items()})),
]  # fmt: skip


@pytest.mark.parametrize(("claim", "name", "plant"), PLANTS, ids=[f"{claim}: {name}" for claim, name, _ in PLANTS])
def test_a_planted_fault_leaves_the_claim_undecided(
    claim: str, name: str, plant: Callable[[Patch], None], subject: Subject, monkeypatch: Patch
) -> None:
    plant(monkeypatch)
    evidence = run(claim, subject)
    controls = [c for c in (evidence.controls.null, evidence.controls.power) if c]
    failed = {c.name for c in evidence.checks if not c.passed} | {c.what for c in controls if not c.passed}
    assert name in failed, f"failed: {failed}"
    assert evidence.verdict is Verdict.UNDECIDED


def test_every_check_and_control_has_a_fault_that_it_sees(subject: Subject) -> None:
    planted = {(claim, name) for claim, name, _ in PLANTS}
    for claim in {claim for claim, _, _ in PLANTS}:
        evidence = run(claim, subject)
        controls = [c for c in (evidence.controls.null, evidence.controls.power) if c]
        for name in [c.name for c in evidence.checks] + [c.what for c in controls]:
            rest = {
                "no random P exceeds Σ|λ| on the model's heads",
                "the path after the attack: plane signs from the other",
            }
            assert (claim, name) in planted or name in rest, (claim, name)


def test_counterexamples_say_what_they_say() -> None:
    got = {
        "MB-T2C": OPT._counterexample().got,
        "MB-TOPK": TOP.better_flip(TOP.FLIPS),
        "MB-RSVD": RND.two_answers(RND.TIED),
        "MB-ROPE": ROT._counterexample().got,
        "MB-BARRIER": BAR._counterexample().got,
    }
    assert got == {
        "MB-T2C": "P_12² = 0, so the second column has squared length 1/4, not 1",
        "MB-TOPK": "leading direction: g = 16, f = 0; other direction: g = 10, f = 1",
        "MB-RSVD": "squared residuals 0 and 0, ‖P − P'‖² = 128/25",
        "MB-ROPE": "score -8/5 without the lock, 8/5 with it",
        "MB-BARRIER": "loss half way: 81/4 as released, 0 after the attack",
    }
    assert "W_q = (2 0), W_k = (0 3)" in ANC._counterexample().got


def test_helpers_refuse_what_is_irrational() -> None:
    with pytest.raises(ValueError, match="irrational"):
        ANC.polar_2x2(exact.matrix([[1, 1], [0, 1]]))
    with pytest.raises(ValueError, match="not the square"):
        ROT.normed(exact.matrix([[1, 2]]))
