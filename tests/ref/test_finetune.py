"""Fine-tuning as an attack: what trains, what a step costs, which rate is reported, and runs that diverge."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockref.attacks import finetune as module
from lockref.attacks.finetune import (
    TRAINED,
    Model,
    answer_loss,
    best_of_grid,
    finetune,
    paired,
    step_cost,
    trainable,
)
from lockref.autodiff import value_and_grad
from lockref.locks.dlr import assembled, locked_block
from lockref.locks.dlr_training import Recipe, State, adamw, momentum
from lockref.models import dlrnet, qwen3, skills
from lockref.models.answers import answers, exact_match
from lockref.models.dlrnet import DLRConfig
from lockref.models.qwen3 import Qwen3Config, expected_tensors

CONFIG = Qwen3Config(
    vocab_size=256, hidden_size=12, intermediate_size=20, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, head_dim=6,
)  # fmt: skip
NET = DLRConfig(12, 5, 6)


def original(rng: np.random.Generator) -> Model:
    shapes = expected_tensors(CONFIG).items()
    tensors = {n: rng.standard_normal(s) * (0.3 if len(s) > 1 else 0.2) + (len(s) == 1) for n, s in shapes}
    return Model(tensors, CONFIG)


def locked(rng: np.random.Generator) -> Model:
    nets = {i: dlrnet.initialize(NET, rng, b_scale=0.5) for i in range(CONFIG.num_hidden_layers)}
    return Model(assembled(original(rng).tensors, nets), CONFIG, locked_block(NET))


MODELS = {"original": original, "locked": locked}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(8)


def held_out(skill: str = "add", n: int = 6) -> Any:
    return skills.skill_problems(skill, np.random.default_rng(1), n, held_out=True)


# --- the loss ------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_answers_alone(rng: np.random.Generator) -> None:
    """One problem after another, without padding and without the prompt's own bytes."""
    model, problems = original(rng), held_out("reverse")
    each, count = 0.0, 0
    for prompt, answer in problems:
        tokens = np.frombuffer(prompt + answer, np.uint8).astype(int)
        logits = qwen3.forward(model.tensors, tokens[:-1], CONFIG)[len(prompt) - 1 :]
        each -= sum(row[t] - np.log(np.sum(np.exp(row))) for row, t in zip(logits, tokens[len(prompt) :], strict=True))
        count += len(answer)
    got = float(answer_loss(model, model.tensors, answers(problems)))
    assert abs(got - each / count) <= 1e3 * np.finfo(float).eps * got, f"answer_loss: got {got}, want {each / count}"


def test_exact_match_counts_whole_answers(rng: np.random.Generator) -> None:
    assert exact_match(original(rng).tensors, held_out(), CONFIG) in [i / 6 for i in range(7)]


# --- what trains ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("kind", MODELS)
def test_only_what_trains_moves(trained: str, kind: str, rng: np.random.Generator) -> None:
    model = MODELS[kind](rng)
    found = finetune(model, "add", trained, Recipe(2, 1e-2), held_out(), batch=4).guesses[0]
    moved = {n for n, w in model.tensors.items() if not np.array_equal(w, found[n])}
    want = {
        "all": set(model.tensors),
        "attention": {n for n in model.tensors if "self_attn" in n},
        "mlp": {n for n in model.tensors if ".mlp." in n},
        "rest": {n for n in model.tensors if ".mlp." not in n},
        "lora": {n for n in model.tensors if "self_attn" in n and "proj" in n},
    }[trained]
    assert moved == want
    assert found.keys() == model.tensors.keys()


def test_adapters_start_as_nothing_and_have_their_rank(rng: np.random.Generator) -> None:
    model = original(rng)
    start, merged = trainable(model, "lora", rng)
    assert all(np.array_equal(w, model.tensors[n]) for n, w in merged(start).items())
    moved = merged({n: rng.standard_normal(w.shape) for n, w in start.items()})
    name = "model.layers.0.self_attn.q_proj.weight"
    assert np.linalg.matrix_rank(moved[name] - model.tensors[name]) == module.LORA_RANK


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trained": "heads"}, "finetune: 'heads' is unknown; train one of all, attention, mlp, rest, lora"),
        ({"optimizer": "lion"}, "finetune: optimizer 'lion' is unknown; choose one of adamw, momentum"),
        ({"skill": "sing"}, "skill 'sing' is unknown"),
    ],
)
def test_unknown_names_are_refused(change: dict[str, str], message: str, rng: np.random.Generator) -> None:
    call = {"skill": "add", "trained": "all", "optimizer": "adamw"} | change
    with pytest.raises(ValueError, match=message):
        finetune(
            original(rng), call["skill"], call["trained"], Recipe(1, 1e-3), held_out(), optimizer=call["optimizer"]
        )


# --- runs ----------------------------------------------------------------------------------------------------------


def test_a_run_follows_the_held_out_loss(rng: np.random.Generator) -> None:
    model, problems = original(rng), held_out()
    run = finetune(model, "add", "all", Recipe(25, 1e-2, seed=3), problems, batch=4, every=10)
    assert run.found["steps"] == [0, 10, 20, 25]
    assert run.found["held_out"][0] == float(answer_loss(model, model.tensors, answers(problems)))
    assert run.found["held_out"][-1] == float(answer_loss(model, run.guesses[0], answers(problems)))
    assert run.found["held_out"][-1] < run.found["held_out"][0]
    assert run.found["diverged_at"] is None


def test_a_run_cut_short_has_the_same_first_steps(rng: np.random.Generator) -> None:
    model = locked(rng)
    whole = finetune(model, "add", "mlp", Recipe(20, 1e-2), held_out(), batch=4, every=5)
    short = finetune(model, "add", "mlp", Recipe(20, 1e-2), held_out(), batch=4, every=5, stop_after=10)
    assert short.found["steps"] == [0, 5, 10]
    assert short.found["held_out"] == whole.found["held_out"][:3]


def test_two_models_see_the_same_data(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    honest = answers

    def spy(problems: Any) -> Any:
        seen.append(list(problems))
        return honest(problems)

    monkeypatch.setattr(module, "answers", spy)
    for model in (original(rng), locked(rng)):
        finetune(model, "reverse", "attention", Recipe(3, 1e-3, seed=5), held_out(), batch=4)
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]
    assert seen[1] != seen[2], "every step draws anew"


@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
def test_a_diverged_run_is_a_result_with_infinite_loss(optimizer: str, rng: np.random.Generator) -> None:
    run = finetune(original(rng), "add", "all", Recipe(30, 1e250, warmup=0.0), held_out(), optimizer=optimizer,
                   batch=4, every=10)  # fmt: skip
    assert run.found["steps"] == [0, 10, 20, 30]
    assert math.isfinite(run.found["held_out"][0])
    assert run.found["held_out"][1:] == [math.inf] * 3
    assert run.found["diverged_at"] is not None


def test_momentum_by_hand() -> None:
    """η = ½ at every step, β = 0.9, gradients 2 and 1: m = 2, 2.8; w = 1 − 1 − 1.4."""
    state = State(0, {"w": np.array([1.0])}, {"w": np.zeros(1)}, {"w": np.zeros(1)})
    recipe = Recipe(2, 0.5, warmup=0.0)
    rates = [recipe.rate(0), recipe.rate(1)]
    for g in (2.0, 1.0):
        momentum(state, {"w": np.array([g])}, recipe)
        state.step += 1
    assert np.allclose(state.params["w"], 1 - rates[0] * 2.0 - rates[1] * 2.8, rtol=4e-16)
    assert not np.any(state.second["w"]), "it has no second moment"


def test_adamw_takes_a_first_step_of_the_rate() -> None:
    state = State(0, {"w": np.array([1.0, 1.0])}, {"w": np.zeros(2)}, {"w": np.zeros(2)})
    adamw(state, {"w": np.array([1e-3, -50.0])}, Recipe(2, 0.5, warmup=0.0))
    assert np.allclose(state.params["w"], [0.5, 1.5], rtol=1e-5)  # g/(|g| + ε): ε/|g| = 1e-5


# --- cost ----------------------------------------------------------------------------------------------------------


def test_a_step_that_trains_less_costs_less(rng: np.random.Generator) -> None:
    for kind in MODELS.values():
        cost = {t: step_cost(kind(rng), "add", t, 4) for t in ("all", "rest", "attention")}
        assert cost["all"]["operations"] > cost["rest"]["operations"] > cost["attention"]["operations"] > 0
        assert cost["all"]["bytes"] >= cost["rest"]["bytes"] >= cost["attention"]["bytes"] > 0
        assert cost["all"]["tokens"] == 4 * 9  # "37+85=122\n" without its last byte


def test_counting_operations_does_not_change_them(rng: np.random.Generator) -> None:
    """Twice the problems, twice the products: what is left over is the weights' own sums."""
    model = original(rng)
    one, two = (step_cost(model, "add", "all", n)["operations"] for n in (64, 128))
    assert 1.9 < two / one <= 2.0


# --- the best of a grid --------------------------------------------------------------------------------------------


def test_the_best_rate_is_the_one_of_least_mean_and_keeps_its_seeds() -> None:
    best = best_of_grid({1e-3: [0.5, 0.7], 2e-3: [0.2, 0.3], 4e-3: [0.1, 0.9]})
    assert (best.rate, best.losses, best.at_edge) == (2e-3, (0.2, 0.3), False)
    assert best.mean == 0.25


def test_a_grid_that_ends_at_its_best_rate_is_unreliable() -> None:
    assert best_of_grid({1e-3: [0.1], 2e-3: [0.2], 4e-3: [0.3]}).at_edge
    assert best_of_grid({1e-3: [0.3], 2e-3: [0.2], 4e-3: [0.1]}).at_edge


def test_a_diverged_seed_is_not_dropped() -> None:
    assert best_of_grid({1e-3: [0.5, 0.6], 2e-3: [0.1, math.inf], 4e-3: [0.8, 0.9], 5e-4: [0.9, 0.9]}).rate == 1e-3


@pytest.mark.parametrize("grid", [{}, {1.0: [1.0], 2.0: [1.0]}, {1.0: [1.0], 2.0: [1.0, 2.0], 3.0: [1.0]}])
def test_a_grid_with_holes_is_refused(grid: dict[float, list[float]]) -> None:
    with pytest.raises(ValueError, match="best_of_grid"):
        best_of_grid(grid)


@given(
    st.lists(st.lists(st.floats(0, 5), min_size=3, max_size=3), min_size=3, max_size=6),
    st.lists(st.floats(0, 5), min_size=3, max_size=3),
)
def test_no_rate_of_the_grid_beats_the_best(rows: list[list[float]], other: list[float]) -> None:
    grid = {10.0**-i: row for i, row in enumerate(rows)}
    best = best_of_grid(grid)
    assert all(best.mean <= float(np.mean(row)) for row in rows)
    gap = paired(best.losses, other)
    assert gap.low <= gap.mean <= gap.high


def test_the_interval_is_student_s() -> None:
    """Differences 1, 2, 3: mean 2, s = 1; with ν = 2 the quantile is t(p) = (2p − 1)/√(2p(1 − p)), 4.3027 at 0.975."""
    gap = paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert gap.mean == 2.0
    quantile = 0.95 / math.sqrt(2 * 0.975 * 0.025)
    assert abs(gap.high - 2.0 - quantile / math.sqrt(3)) < 1e-9  # SciPy states no more digits of a quantile
    assert abs(gap.low + gap.high - 4.0) <= 4 * np.finfo(float).eps


def test_gradients_flow_through_the_whole_locked_model(rng: np.random.Generator) -> None:
    model = locked(rng)
    start, merged = trainable(model, "mlp", rng)
    _, grads = value_and_grad(lambda p: answer_loss(model, merged(p), answers(held_out())))(start)
    assert all(np.any(g) for g in grads.values())
