"""Verdicts of the attention claims, and that every check behind them can fail."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from flint import fmpq
from hypothesis import given
from hypothesis import strategies as st

from lockproofs import attention_trials, exact
from lockproofs.claim import Claim, Context, Evidence, MissingInput, Verdict, settle
from lockproofs.claims import attention, attention_attacks, attention_function, attention_theorem2
from lockproofs.subject import Subject, zoo_subject
from lockref.locks.attention import TOPK, eq2_from_grams, grams, project
from lockref.models.checkpoint_io import Checkpoint
from lockref.models.qwen3 import Qwen3Config, expected_tensors

CLAIMS = {claim.id: claim for claim in attention.CLAIMS}
REFUTABLE = {name: claim for name, claim in CLAIMS.items() if claim.rerun}
CASES = 6
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def zoo() -> Subject:
    return zoo_subject()


@pytest.fixture(scope="module")
def stranger() -> Subject:
    """A small random model with random gains, more query heads than key heads, and no relatives."""
    config = Qwen3Config(
        vocab_size=17, hidden_size=12, intermediate_size=5, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.uniform(0.5, 1.5, shape) if "norm" in name else rng.standard_normal(shape)
        for name, shape in expected_tensors(config).items()
    }
    return Subject({"subject": Checkpoint(Path("m"), config, tensors, dict.fromkeys(tensors, "F64"), ())}, False)


@pytest.fixture(scope="module")
def tuned(stranger: Subject) -> Subject:
    """The same model with the base that it was fine-tuned from."""
    rng, model = np.random.default_rng(1), stranger.model
    near = {n: w + 1e-3 * rng.standard_normal(w.shape) for n, w in model.tensors.items()}
    base = Checkpoint(model.path, model.config, near, model.dtypes, ())
    return Subject({"subject": model, "base": base}, False)


def run(claim: Claim, subject: Subject, seed: int = 0) -> Evidence:
    return settle(claim.kind, claim.check(Context(subject, seed, CASES)))


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_the_zoo_gives_the_recorded_verdict_again_and_again(claim: Claim, zoo: Subject) -> None:
    evidence = run(claim, zoo)
    assert evidence.verdict is claim.recorded, evidence.explanation
    assert evidence.model_dump_json() == run(claim, zoo).model_dump_json()
    assert run(claim, zoo, seed=1).verdict is claim.recorded


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_a_random_model_gives_the_same_verdict_alone_or_with_its_base(
    claim: Claim, stranger: Subject, tuned: Subject
) -> None:
    evidence = run(claim, tuned)
    assert evidence.verdict is claim.recorded, evidence.explanation
    if claim.id == "MB-BARRIER":
        with pytest.raises(MissingInput, match="needs --peer"):
            run(claim, stranger)
    else:
        assert run(claim, stranger).verdict is claim.recorded


@pytest.mark.parametrize("claim", REFUTABLE.values(), ids=REFUTABLE)
def test_counterexamples_come_out_again_from_their_json(claim: Claim, tuned: Subject) -> None:
    found = run(claim, tuned).counterexample
    assert found is not None and claim.rerun is not None
    assert claim.rerun(json.loads(json.dumps(found.given))) == found.got
    assert found.got != found.want


def test_counterexamples_say_what_they_say() -> None:
    func, t2a, keyless = (run_counterexample(CLAIMS[i]) for i in ("MB-FUNC", "MB-T2A", "MB-KEYLESS"))
    assert func == "score -8/5 without P, 8/5 with P"
    assert t2a == "maximizer of g: g = 8, f = 0; other: g = 4, f = 1/4"
    assert "k = 1: W_q = (1 2), W_k = (2 1)" in keyless


def run_counterexample(claim: Claim) -> str:
    module = {"MB-FUNC": attention_function, "MB-T2A": attention_theorem2, "MB-KEYLESS": attention_attacks}[claim.id]
    assert claim.rerun is not None
    return claim.rerun(module._counterexample().given)


def test_a_relative_is_used_where_there_is_one(tuned: Subject) -> None:
    checks = {check.name: check for check in run(CLAIMS["MB-KEYLESS"], tuned).checks}
    assert checks["the base names k"].value == 1
    assert checks["unlocked heads are left alone"].cases == 8


# --- Every check can fail ---------------------------------------------------------------------------------------

Patch = pytest.MonkeyPatch


def planes_become_directions(patch: Patch) -> None:
    """Where the plane-wise lock should be, there is the eigen-direction lock."""
    real = attention_trials.projections
    patch.setattr(attention_trials, "projections", lambda t, c, _, k: real(t, c, TOPK, k))


def lock_nothing(patch: Patch) -> None:
    patch.setattr(attention_trials, "project", lambda tensors, config, p: dict(tensors))


def stretch(patch: Patch) -> None:
    """P is orthogonal up to a factor of 1 + 10⁻⁹ only."""
    real = exact.random_orthogonal
    patch.setattr(exact, "random_orthogonal", lambda rng, n: real(rng, n) * fmpq(10**9 + 1, 10**9))


def forget_gains(patch: Patch) -> None:
    real = attention_function.rotary_breaks
    patch.setattr(attention_function, "rotary_breaks", lambda p, q, k: real(p, [1] * p.nrows(), [1] * p.nrows()))


def mirror_planes(patch: Patch) -> None:
    """The check of lawful turns is fed with reflections inside planes."""
    real = attention_function.rotary_breaks

    def mirrored(p: exact.Matrix, q: Sequence[int], k: Sequence[int]) -> bool:
        return real(p * exact.reflection([1] + [0] * (p.nrows() - 1)), q, k)

    patch.setattr(attention_function, "rotary_breaks", mirrored)


def drift(patch: Patch) -> None:
    """Every other evaluation of plain attention is off by 10⁻⁹."""
    real, calls = attention_function.plain_attention, iter(range(10**6))
    patch.setattr(attention_function, "plain_attention", lambda *a: real(*a) * (1 + 1e-9 * (next(calls) % 2)))


def double_eq2(patch: Patch) -> None:
    """1/8 in place of 1/16."""
    patch.setattr(attention_theorem2, "eq2_from_grams", lambda a, b, p: 2 * eq2_from_grams(a, b, p))


def double_exact_eq2(patch: Patch) -> None:
    real = attention_theorem2.eq2
    patch.setattr(attention_theorem2, "eq2", lambda w_q, w_k, p: real(w_q, w_k, p) * 2)


def random_lock(patch: Patch) -> None:
    """The owner's P does not commute with S."""
    rng = np.random.default_rng(0)
    patch.setattr(attention_trials, "project", lambda t, c, p: project(t, c, np.linalg.qr(rng.normal(size=p.shape))[0]))


def half_a_matrix(patch: Patch) -> None:
    """The attacker forgets the keys in S."""
    real = attention_trials.keyless
    patch.setattr(attention_trials, "keyless", lambda *a, **k: real(*a, **k, matrix=lambda q, _: grams(q, _)[0]))


def overshoot(patch: Patch) -> None:
    """I − 3 U Uᵀ is no involution."""
    real = exact.flip
    patch.setattr(exact, "flip", lambda s, k: real(s, k) * fmpq(3, 2) - exact.identity(s.nrows()) * fmpq(1, 2))


def guess_directions(patch: Patch) -> None:
    patch.setattr(attention_attacks, "TOPK_PLANES", TOPK)


def told_all(patch: Patch) -> None:
    """An attack that always succeeds has something wrong with it."""
    patch.setattr(attention_attacks, "told", lambda released, model: np.zeros(2))


def told_nothing(patch: Patch) -> None:
    patch.setattr(attention_attacks, "told", lambda released, model: np.ones(2))


NULL = "a random P, which does not commute with S, stays hidden: least error of the best guess"
PLANTS: list[tuple[str, Callable[[Patch], None], set[str]]] = [
    ("MB-FUNC", planes_become_directions, {"plane-wise signs change nothing"}),
    ("MB-FUNC", lock_nothing, {"generic projection changes a RoPE + QK-norm model"}),
    ("MB-FUNC", stretch, {"plain scores, exactly"}),
    ("MB-FUNC", forget_gains, {"rotary scores outside the condition, exactly"}),
    ("MB-FUNC", mirror_planes, {"rotary scores inside the condition, exactly"}),
    ("MB-FUNC", drift, {"plain attention in float64"}),
    ("MB-T2A", double_eq2, {"random pairs stay below the bound", "the model's key heads stay below the bound"}),
    ("MB-T2A", double_exact_eq2, {"another P beats the maximizer of g, exactly",
                                  "the exact condition's identity, exactly",
                                  "f ≤ Σ λ↓(A) λ↓(B), with equality at −I as stated, exactly"}),
    ("MB-KEYLESS", random_lock, {"top-k projection undone from the release alone",
                                 "plane-wise flip undone from the release alone"}),
    ("MB-KEYLESS", half_a_matrix, {"top-k projection undone from the release alone",
                                   "top-k projection undone from a bfloat16 release"}),
    ("MB-KEYLESS", overshoot, {"locking again undoes the lock, exactly"}),
    ("MB-KEYLESS", guess_directions, {"all guesses at a plane-wise lock are one function"}),
    ("MB-KEYLESS", told_all, {NULL}),
    ("MB-KEYLESS", told_nothing, {"a planted P = −I is undone on every key head: greatest relative error"}),
]  # fmt: skip


@pytest.mark.parametrize(("claim", "plant", "names"), PLANTS, ids=[plant.__name__ for _, plant, _ in PLANTS])
def test_a_planted_fault_leaves_the_claim_undecided(
    claim: str, plant: Callable[[Patch], None], names: set[str], stranger: Subject, monkeypatch: Patch
) -> None:
    plant(monkeypatch)
    evidence = run(CLAIMS[claim], stranger)
    controls = (evidence.controls.null, evidence.controls.power)
    failed = {c.name for c in evidence.checks if not c.passed} | {c.what for c in controls if c and not c.passed}
    assert names <= failed, f"failed: {failed}"
    assert evidence.verdict is Verdict.UNDECIDED


def test_a_base_that_is_no_relative_is_noticed(stranger: Subject) -> None:
    model = stranger.model
    negative = {n: -w for n, w in model.tensors.items()}
    base = Checkpoint(model.path, model.config, negative, model.dtypes, ())
    evidence = run(CLAIMS["MB-KEYLESS"], Subject({"subject": model, "base": base}, False))
    assert {c.name for c in evidence.checks if not c.passed} == {"the base names k", "unlocked heads are left alone"}


# --- Rational matrices ------------------------------------------------------------------------------------------


@given(SEEDS, st.integers(1, 5))
def test_random_orthogonal_matrices_are_orthogonal(seed: int, n: int) -> None:
    p = exact.random_orthogonal(np.random.default_rng(seed), n)
    assert p * p.transpose() == exact.identity(n)
    assert exact.matrix(exact.written(p)) == p


@given(SEEDS, st.lists(st.integers(-2, 3), min_size=1, max_size=4))
def test_eigenspaces_put_the_matrix_together_again(seed: int, values: list[int]) -> None:
    n = len(values)
    q = exact.random_orthogonal(np.random.default_rng(seed), n)
    s = q * exact.diagonal(values) * q.transpose()
    spaces = exact.eigenspaces(s)
    assert [value for value, _ in spaces] == sorted(set(values), reverse=True)
    total = exact.diagonal([0] * n)
    for value, projector in spaces:
        assert projector * projector == projector
        assert exact.trace(projector) == values.count(int(value))
        total = total + projector * value
    assert total == s
    leading = values.count(max(values))
    assert exact.flip(s, leading) == exact.identity(n) - spaces[0][1] * 2


def test_rational_helpers_refuse_what_is_not_determined() -> None:
    with pytest.raises(ValueError, match="irrational"):
        exact.eigenspaces(exact.matrix([[0, 1], [1, 1]]))
    with pytest.raises(ValueError, match="not symmetric"):
        exact.eigenspaces(exact.matrix([[0, 1], [2, 1]]))
    for k in (1, 3):
        with pytest.raises(ValueError, match=f"no {k} leading eigenvectors"):
            exact.flip(exact.identity(2), k)
    with pytest.raises(ValueError, match="direction other than zero"):
        exact.reflection([0, 0])
    for rows in ([[1, 2], [3]], []):
        with pytest.raises(ValueError, match="rows of one length"):
            exact.matrix(rows)
