"""Lanczos against dense eigenvalues, curvature under rescaling, gradients on their way back."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockref.attacks import lanczos as module
from lockref.attacks.finetune import Model, answer_loss
from lockref.attacks.lanczos import lanczos
from lockref.attacks.landscape import curvature, gradient_flow, model_curvature
from lockref.autodiff import grad, ops
from lockref.models import qwen3, skills
from lockref.models.answers import answers
from lockref.models.qwen3 import Qwen3Config, expected_tensors

EPS = np.finfo(float).eps
# zero, repeated, negative, clustered and far-apart eigenvalues
SPECTRA = [
    [0.0] * 5,
    [3.0],
    [2.0, 2.0, 2.0, 0.0, 0.0, -1.0],
    [1e8, 1.0, 1.0 + 1e-9, 1e-8, 0.0, -5.0, -5.0],
    [*np.linspace(0, 1, 40), 100.0],
]


def with_spectrum(values: list[float], rng: np.random.Generator) -> Any:
    """A dense symmetric matrix with these eigenvalues, to round-off."""
    q = np.linalg.qr(rng.standard_normal((len(values), len(values))))[0]
    a = q @ np.diag(values) @ q.T
    return (a + a.T) / 2


def roundoff(a: Any) -> float:
    """n products and n orthogonalizations of length n, each relative to ‖A‖, twice over for the dense solver."""
    return 4 * len(a) ** 2 * EPS * float(np.linalg.norm(a, 2))


@pytest.mark.parametrize("values", SPECTRA, ids=lambda v: f"{len(v)} rows")
def test_all_steps_give_all_eigenvalues_as_often_as_they_occur(values: list[float]) -> None:
    rng = np.random.default_rng(3)
    a = with_spectrum(values, rng)
    got = lanczos(lambda v: a @ v, len(a), len(a), rng).values
    want = np.linalg.eigvalsh(a)[::-1]
    assert np.max(np.abs(got - want)) <= roundoff(a), f"Lanczos: got {got}, want {want}"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), values=st.lists(st.integers(-4, 4), min_size=1, max_size=12), data=st.data())
def test_an_eigenvalue_lies_within_the_residual_of_every_ritz_value(seed: int, values: list[int], data: Any) -> None:
    rng = np.random.default_rng(seed)
    a = with_spectrum([float(v) for v in values], rng)
    steps = data.draw(st.integers(1, len(a)))
    found = lanczos(lambda v: a @ v, len(a), steps, rng)
    exact = np.linalg.eigvalsh(a)
    for ritz, residual in zip(found.values, found.residuals, strict=True):
        gap = np.min(np.abs(exact - ritz))
        assert gap <= residual + roundoff(a), f"θ {ritz}: nearest eigenvalue {gap} away, residual {residual}"


def test_the_leading_values_converge_long_before_all_steps_are_done() -> None:
    rng = np.random.default_rng(5)
    a = with_spectrum([*np.linspace(0, 1, 300), 50.0, 90.0], rng)
    found = lanczos(lambda v: a @ v, len(a), 25, rng)
    assert np.allclose(found.values[:2], [90.0, 50.0], rtol=0, atol=roundoff(a))
    assert found.residuals[0] < 1e-9 < found.residuals[5]


def test_without_reorthogonalization_ghosts_appear(monkeypatch: pytest.MonkeyPatch) -> None:
    """The textbook's three-term recurrence finds a well-separated eigenvalue again and again."""

    def local(vector: Any, basis: Any) -> Any:
        return vector - basis[-2:].T @ (basis[-2:] @ vector) if len(basis) else vector

    def copies() -> int:
        rng = np.random.default_rng(7)
        a = np.diag([*np.linspace(0, 1, 120), 1000.0])
        values = lanczos(lambda v: a @ v, len(a), 60, rng).values
        return int(np.sum(np.abs(values - 1000.0) < 1e-6))

    assert copies() == 1
    monkeypatch.setattr(module, "orthogonalized", local)
    assert copies() > 1


@pytest.mark.parametrize("steps", [0, 4])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=r"lanczos: \d steps for 3 rows; take 1 … 3"):
        lanczos(lambda v: v, 3, steps, np.random.default_rng(0))


@pytest.mark.parametrize("bad", [lambda v: v * np.nan, lambda v: v[:1]])
def test_products_that_are_none_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="lanczos: product 0"):
        lanczos(bad, 3, 2, np.random.default_rng(0))


# --- landscapes ----------------------------------------------------------------------------------------------------


def quadratic(params: Any) -> Any:
    """(a b − 2)²/2."""
    gap = params["a"] * params["b"] - 2.0
    return ops.sum(gap * gap) * 0.5


@pytest.mark.parametrize("c", [1.0, 4.0, 32.0])
def test_rescaling_changes_plain_curvature_and_not_the_relative_one(c: float) -> None:
    """H = [[b², 2], [2, a²]] at a b = 2: λ = a² + b² and 0; D H D = [[4, 4], [4, 4]]: λ = 8 and 0."""
    a, b = 2.0 * c, 1.0 / c
    point = {"a": np.array([a]), "b": np.array([b])}
    rng = np.random.default_rng(0)
    for metric, want in (("plain", [a * a + b * b, 0.0]), ("relative", [8.0, 0.0])):
        got = curvature(quadratic, point, metric, 2, rng).values
        assert np.allclose(got, want, rtol=0, atol=16 * EPS * want[0]), f"{metric} at c = {c}: got {got}, want {want}"


def tiny(rng: np.random.Generator) -> Model:
    config = Qwen3Config(
        vocab_size=256, hidden_size=6, intermediate_size=10, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=4,
    )  # fmt: skip
    tensors = {n: rng.standard_normal(s) * (0.3 if len(s) > 1 else 1.0) for n, s in expected_tensors(config).items()}
    return Model(tensors, config)


def test_curvature_of_a_model_is_that_of_its_dense_hessian() -> None:
    rng = np.random.default_rng(1)
    model = tiny(rng)
    some = answers(skills.skill_problems("add", rng, 3, held_out=False))
    name = "model.layers.1.mlp.gate_proj.weight"

    def f(params: Any) -> Any:
        return answer_loss(model, {**model.tensors, **params}, some)

    def gradient(flat: Any) -> Any:
        return grad(f)({name: flat.reshape(model.tensors[name].shape)})[name].reshape(-1)

    flat = model.tensors[name].ravel()
    step = 1e-5
    columns = [(gradient(flat + step * e) - gradient(flat - step * e)) / (2 * step) for e in np.eye(flat.size)]
    dense = (np.array(columns) + np.array(columns).T) / 2
    for metric, d in (("plain", np.ones_like(flat)), ("relative", np.abs(flat))):
        want = np.linalg.eigvalsh(dense * np.outer(d, d))[::-1]
        got = curvature(f, {name: model.tensors[name]}, metric, flat.size, rng).values
        # central differences: step² f⁗/6 ~ 1e-10 and ε/step ~ 2e-11 an entry, times the rows
        assert np.max(np.abs(got - want)) <= flat.size * 2e-10, f"{metric}: got {got[:3]}, want {want[:3]}"


def test_gradient_flow_is_the_gradient_of_what_it_says() -> None:
    rng = np.random.default_rng(2)
    model = tiny(rng)
    some = answers(skills.skill_problems("reverse", rng, 3, held_out=False))
    flow = gradient_flow(model, some)
    tokens = some.tokens[:, :-1]

    def above(x: Any) -> Any:
        """The loss as a function of the stream that enters the last layer."""
        x = qwen3.block(qwen3.layer_weights(model.tensors, 1), x, model.config)
        logits = qwen3.head(model.tensors, x, model.config)[some.at]
        return ops.cross_entropy(logits, targets=some.targets)

    entering = qwen3.block(
        qwen3.layer_weights(model.tensors, 0), qwen3.embed(model.tensors, tokens, model.config), model.config
    )
    want = float(np.linalg.norm(grad(above)(entering)))
    assert len(flow.stream) == 3
    assert abs(flow.stream[1] - want) <= 1e3 * EPS * want, f"got {flow.stream[1]}, want {want}"
    assert flow.amplification == flow.stream[0] / flow.stream[2]
    weights = grad(lambda t: answer_loss(model, t, some))(dict(model.tensors))
    parts = np.concatenate([g.ravel() for n, g in weights.items() if ".mlp." in n])
    assert abs(flow.mlp - np.sqrt(np.mean(parts**2))) <= 1e3 * EPS * flow.mlp


def test_a_model_out_of_scale_looks_sharp_and_is_not() -> None:
    rng = np.random.default_rng(4)
    model = tiny(rng)
    some = answers(skills.skill_problems("add", rng, 3, held_out=False))
    scales = {"up_proj": 1 / 16, "down_proj": 16.0}
    moved = {n: w * next((s for part, s in scales.items() if part in n), 1.0) for n, w in model.tensors.items()}
    other = Model(moved, model.config)
    plain, relative = (
        [model_curvature(m, some, metric, 6, np.random.default_rng(0)).values[0] for m in (model, other)]
        for metric in ("plain", "relative")
    )
    assert plain[1] > 4 * plain[0]
    assert relative[1] == relative[0], "powers of two round nothing"


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="metric 'flat' is unknown; choose from plain, relative"):
        curvature(quadratic, {"a": np.ones(1), "b": np.ones(1)}, "flat", 1, np.random.default_rng(0))
