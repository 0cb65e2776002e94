"""Fine-tuning as an attack: a fixed grid of learning rates, the best of them reported.

The attacker adapts a released model to a skill that it lacks. What trains is one of `TRAINED`; the rest is frozen:

    all          every tensor
    attention    the tensors of self-attention
    mlp          the MLPs, or the DLR-Nets in their place
    rest         everything but the MLPs: embedding, norms, attention, head
    lora         W + B A of rank 8 on the four projections of every attention (arXiv 2106.09685)

A locked and an unlocked model get the same data in the same order, the same grid, optimizer and steps.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lockref.attacks.result import AttackResult
from lockref.autodiff import ops, saved
from lockref.autodiff.count import Counter, wrap
from lockref.autodiff.tape import Tape
from lockref.locks.dlr_training import Arrays, Recipe, State, adamw, momentum, train
from lockref.models import qwen3, skills
from lockref.models.answers import Answers, answers, exact_match
from lockref.models.qwen3_config import Qwen3Config
from lockref.models.skills import Problem

TRAINED: Final = ("all", "attention", "mlp", "rest", "lora")
LORA_RANK: Final = 8
OPTIMIZERS: Final = {"adamw": adamw, "momentum": momentum}
ATTENTION, MLP = ".self_attn.", ".mlp."


@dataclass(frozen=True)
class Model:
    """A released model: its tensors, and the function that computes a layer from them."""

    tensors: Mapping[str, NDArray[Any]]
    config: Qwen3Config
    block: qwen3.Block = qwen3.block


def answer_loss(model: Model, tensors: Mapping[str, Any], given: Answers) -> Any:
    """Mean −ln p(byte of an answer), in nats: prompts are random and teach nothing.

    The head acts at every position, as in a common trainer, so that a step costs the attacker what it costs there.
    """
    logits = qwen3.forward(tensors, given.tokens[:, :-1], model.config, model.block)
    return ops.cross_entropy(logits[given.at], targets=given.targets)


def trainable(
    model: Model, trained: str, rng: np.random.Generator
) -> tuple[Arrays, Callable[[Mapping[str, Any]], dict[str, Any]]]:
    """What trains, as it starts, and the function that makes a full set of tensors of it.

    LoRA starts with A ~ N(0, 1/in) and B = 0. Raises ValueError for an unknown name, or where nothing would train.
    """
    if trained not in TRAINED:
        raise ValueError(f"finetune: {trained!r} is unknown; train one of {', '.join(TRAINED)}")
    if trained == "lora":
        return _adapters(model, rng)
    parts: dict[str, Callable[[str], bool]] = {
        "all": lambda name: True,
        "attention": lambda name: ATTENTION in name,
        "mlp": lambda name: MLP in name,
        "rest": lambda name: MLP not in name,
    }
    start = {name: np.array(w) for name, w in model.tensors.items() if parts[trained](name)}
    if not start:
        raise ValueError(f"finetune: the model has no tensor that belongs to {trained!r}")
    return start, lambda found: {**model.tensors, **found}


def _adapters(model: Model, rng: np.random.Generator) -> tuple[Arrays, Callable[[Mapping[str, Any]], dict[str, Any]]]:
    names = [n for n in model.tensors if ATTENTION in n and n.endswith("_proj.weight")]
    start: Arrays = {}
    for name in names:
        out, wide = model.tensors[name].shape
        dtype = model.tensors[name].dtype
        start[f"{name}.a"] = (rng.standard_normal((LORA_RANK, wide)) / math.sqrt(wide)).astype(dtype)
        start[f"{name}.b"] = np.zeros((out, LORA_RANK), dtype)

    def merged(found: Mapping[str, Any]) -> dict[str, Any]:
        return {**model.tensors, **{n: model.tensors[n] + found[f"{n}.b"] @ found[f"{n}.a"] for n in names}}

    return start, merged


def finetune(
    model: Model,
    skill: str,
    trained: str,
    recipe: Recipe,
    held_out: Sequence[Problem],
    *,
    optimizer: str = "adamw",
    batch: int = 16,
    every: int = 10,
    stop_after: int | None = None,
) -> AttackResult:
    """Trains on `batch` problems of a skill a step, and follows the loss of held-out answers every `every` steps.

    A run that diverges is a result, too: from then on its loss is infinite, and the model is the last one with finite
    weights. Found: "steps"; "held_out", the loss at each of them in nats; "exact_match" at the end; "diverged_at", a
    step or None. Raises ValueError for an unknown skill, optimizer or `trained`.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"finetune: optimizer {optimizer!r} is unknown; choose one of {', '.join(OPTIMIZERS)}")
    start, merged = trainable(model, trained, np.random.default_rng([recipe.seed, recipe.steps]))
    last = recipe.steps if stop_after is None else min(stop_after, recipe.steps)
    steps = sorted({*range(0, last, every), last})
    test = answers(held_out)
    losses: list[float] = []
    weights = start

    def look(state: State) -> None:
        nonlocal weights
        weights = state.params
        if state.step in steps:
            losses.append(_finite_or_infinite(answer_loss(model, merged(state.params), test)))

    def loss(params: Mapping[str, Any], rng: np.random.Generator) -> Any:
        drawn = skills.skill_problems(skill, rng, batch, held_out=False)
        return answer_loss(model, merged(params), answers(drawn))

    diverged_at = None
    with np.errstate(over="ignore", invalid="ignore"):
        losses.append(_finite_or_infinite(answer_loss(model, merged(start), test)))
        try:
            train(loss, start, recipe, update=OPTIMIZERS[optimizer], stop_after=stop_after, look=look)
        except FloatingPointError:
            diverged_at = steps[len(losses) - 1]
        found = merged(weights)
        exact = exact_match(found, held_out, model.config, model.block)
    losses += [math.inf] * (len(steps) - len(losses))
    return AttackResult(
        "finetune", ("released weights", f"problems of {skill}"), (found,),
        {"steps": steps, "held_out": losses, "exact_match": exact, "diverged_at": diverged_at},
    )  # fmt: skip


def _finite_or_infinite(loss: Any) -> float:
    return float(loss) if math.isfinite(float(loss)) else math.inf


def step_cost(model: Model, skill: str, trained: str, batch: int = 16, seed: int = 0) -> dict[str, int]:
    """What one step costs by default reverse mode: "tokens", counted "operations", and "bytes" stored for the sweep."""
    rng = np.random.default_rng(seed)
    given = answers(skills.skill_problems(skill, rng, batch, held_out=False))
    counter = Counter()
    counted = replace(model, tensors={name: wrap(w, counter) for name, w in model.tensors.items()})
    start, merged = trainable(counted, trained, rng)
    values = [wrap(w, counter) for w in start.values()]
    tape = Tape(values)
    out = answer_loss(model, merged(dict(zip(start, tape.variables(values), strict=True))), given)
    tape.sweep({out.node: wrap(np.ones((), out.value.dtype), counter)}, release=True)

    def of(params: Mapping[str, Any], frozen: Mapping[str, Any]) -> Any:
        return answer_loss(model, trainable_of(frozen)[1](params), given)

    def trainable_of(frozen: Mapping[str, Any]) -> Any:
        return trainable(replace(model, tensors=frozen), trained, rng)

    kept = saved(of, trainable_of(model.tensors)[0], model.tensors, argnums=0, parameters=(0, 1)).bytes()
    return {"tokens": int(given.tokens[:, :-1].size), "operations": counter.operations, "bytes": kept}


@dataclass(frozen=True)
class Best:
    """The best learning rate of a grid, by the mean loss over seeds, and the losses it reached, seed by seed.

    A diverged seed makes its rate's mean infinite. `at_edge` says that the grid ends there: a rate beyond it may be
    better, so the figure is unreliable until the grid is extended.
    """

    rate: float
    losses: tuple[float, ...]
    at_edge: bool

    @property
    def mean(self) -> float:
        return float(np.mean(self.losses))


def best_of_grid(losses: Mapping[float, Sequence[float]]) -> Best:
    """The best of {learning rate: final losses, one for each seed}. Raises ValueError where seeds are missing."""
    counts = {len(values) for values in losses.values()}
    if len(losses) < 3 or counts in ({0}, set()) or len(counts) > 1:
        raise ValueError(
            f"best_of_grid: {len(losses)} rates with {sorted(counts)} seeds; want 3 rates or more, the same seeds each"
        )
    rates = sorted(losses)
    means = [float(np.mean(losses[rate])) for rate in rates]
    at = int(np.argmin(means))
    return Best(rates[at], tuple(losses[rates[at]]), at in (0, len(rates) - 1))


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences with its Student interval."""

    mean: float
    low: float
    high: float


def paired(locked: Sequence[float], original: Sequence[float], level: float = 0.95) -> Difference:
    """locked − original, seed by seed: both saw the same data; Student's interval of that level.

    Raises ValueError for fewer than two pairs.
    """
    if len(locked) != len(original) or len(locked) < 2:
        raise ValueError(f"paired: {len(locked)} and {len(original)} losses; want the same seeds, two or more")
    gaps = np.subtract(locked, original)
    half = float(stats.t.ppf((1 + level) / 2, len(gaps) - 1) * np.std(gaps, ddof=1)) / math.sqrt(len(gaps))
    mean = float(np.mean(gaps))
    return Difference(mean, mean - half, mean + half)
