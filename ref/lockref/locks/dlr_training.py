"""Training that can be interrupted: seeded steps, and a state file from which it goes on bit for bit."""

import hashlib
import json
import math
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockref.autodiff import value_and_grad
from lockref.models.tensor_file import CheckpointError, read_header, read_tensors, write_tensors

Arrays = dict[str, NDArray[Any]]
Loss = Callable[[Mapping[str, Any], np.random.Generator], Any]
Follow = Callable[[int, float], None]


@dataclass(frozen=True)
class Recipe:
    """How to train: linear warm-up, cosine to zero, clipped norm; and the settings of `adamw` and `momentum`."""

    steps: int
    learning_rate: float
    seed: int = 0
    warmup: float = 0.05  # share of the steps
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"Recipe: steps is {self.steps}; it must be at least 1")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"Recipe: learning_rate is {self.learning_rate}; it must be positive")
        if not 0 <= self.warmup < 1 or not self.clip > 0:
            raise ValueError(f"Recipe: warmup {self.warmup}, clip {self.clip}; want 0 ≤ warmup < 1 and clip > 0")

    def rate(self, step: int) -> float:
        """Learning rate of step 0 … steps − 1."""
        warm = math.ceil(self.warmup * self.steps)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))


@dataclass
class State:
    """Where training stands: steps done, weights, and the optimizer's two moments."""

    step: int
    params: Arrays
    first: Arrays
    second: Arrays


Update = Callable[[State, Arrays, Recipe], None]  # moves a state by a step along the clipped gradients
Look = Callable[[State], None]


def train(
    loss: Loss,
    params: Mapping[str, Any],
    recipe: Recipe,
    *,
    update: Update | None = None,
    about: str = "",
    file: Path | None = None,
    save_every: int = 100,
    stop_after: int | None = None,
    follow: Follow | None = None,
    look: Look | None = None,
) -> State:
    """Minimizes loss(params, rng) by `update`, AdamW where left out; step k draws from a generator seeded [seed, k].

    With `file` the state is written every `save_every` steps and at the end, and training goes on from it if it is
    there. `about` says what is trained: a file made for something else, or by another recipe, is refused with
    CheckpointError. `stop_after` ends early, as an interruption would. `follow` hears of each step and its loss,
    `look` sees the state after it. Raises FloatingPointError, naming the step, where loss or gradient stop being
    finite; the file then holds the last good state.
    """
    update = update or adamw
    state = State(0, {n: np.array(w) for n, w in params.items()}, _zeros(params), _zeros(params))
    mark = mark_of(recipe, f"{update.__name__}, {about}", params)
    if file is not None and file.exists():
        state = load_state(file, state, mark)
    last = recipe.steps if stop_after is None else min(stop_after, recipe.steps)
    while state.step < last:
        rng = np.random.default_rng([recipe.seed, state.step])
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is reported below, in one line
            value, grads = value_and_grad(lambda p, rng=rng: loss(p, rng))(state.params)
            norm = math.sqrt(sum(float(np.vdot(g, g)) for g in grads.values()))
        if not math.isfinite(float(value)) or not math.isfinite(norm):
            raise FloatingPointError(
                f"training: loss {float(value):g}, gradient norm {norm:g} at step {state.step}; lower the learning "
                f"rate ({recipe.learning_rate:g}) or look at the data"
            )
        scale = min(1.0, recipe.clip / max(norm, recipe.eps))
        update(state, {name: g * g.dtype.type(scale) for name, g in grads.items()}, recipe)
        state.step += 1
        if follow is not None:
            follow(state.step, float(value))
        if look is not None:
            look(state)
        if file is not None and (state.step % save_every == 0 or state.step == last):
            save_state(file, state, mark)
    return state


def adamw(state: State, grads: Arrays, recipe: Recipe) -> None:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101): w ← w − η (m̂ / (√v̂ + ε) + decay · w)."""
    rate, step = recipe.rate(state.step), state.step + 1
    b1, b2 = recipe.betas
    for name, w in state.params.items():
        g, m, v = grads[name], state.first[name], state.second[name]
        m += (1 - b1) * (g - m)
        v += (1 - b2) * (g * g - v)
        w -= rate * (m / (1 - b1**step) / (np.sqrt(v / (1 - b2**step)) + recipe.eps) + recipe.weight_decay * w)


def momentum(state: State, grads: Arrays, recipe: Recipe) -> None:
    """SGD with momentum: m ← β₁ m + g, w ← w − η m."""
    rate = recipe.rate(state.step)
    for name, w in state.params.items():
        m = state.first[name]
        m *= recipe.betas[0]
        m += grads[name]
        w -= rate * m


def _zeros(params: Mapping[str, Any]) -> Arrays:
    return {name: np.zeros_like(w) for name, w in params.items()}


def mark_of(recipe: Recipe, about: str, params: Mapping[str, Any]) -> bytes:
    """What a state file must carry to be gone on with: a digest of recipe, subject, and names, dtypes and shapes."""
    shapes = {name: [str(np.asarray(w).dtype), *np.shape(w)] for name, w in params.items()}
    return hashlib.sha256(json.dumps([asdict(recipe), about, shapes]).encode()).digest()


def _flat(state: State, mark: bytes) -> Arrays:
    """All of a state as tensors; the mark's bytes and the step are small integers."""
    groups = {"params": state.params, "first": state.first, "second": state.second}
    flat = {f"{group}.{name}": w for group, arrays in groups.items() for name, w in arrays.items()}
    return flat | {"step": np.array([state.step], float), "mark": np.frombuffer(mark, np.uint8).astype(float)}


def save_state(file: Path, state: State, mark: bytes) -> None:
    """Writes a state, whole or not at all. Raises CheckpointError where that is not possible."""
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        write_tensors(temporary, _flat(state, mark), "F64")  # float32 fits without loss
        os.replace(temporary, file)
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}; check that its directory exists and has room") from None
    finally:
        temporary.unlink(missing_ok=True)


def load_state(file: Path, like: State, mark: bytes) -> State:
    """The state in a file. Raises CheckpointError where it is of another training than `like` and `mark` say."""
    flat = _flat(like, mark)
    entries = read_header(file)
    want = {name: w.shape for name, w in flat.items()}
    if {name: entry.shape for name, entry in entries.items()} != want:
        raise CheckpointError(f"{file}: holds the state of another training; remove it or choose another file")
    found = {name: np.empty(w.shape, w.dtype) for name, w in flat.items()}
    read_tensors(file, entries, found)
    if not np.array_equal(found["mark"], flat["mark"]):
        raise CheckpointError(f"{file}: was made by another recipe or for other data; remove it or choose another file")
    parts = {group: {name: found[f"{group}.{name}"] for name in like.params} for group in ("params", "first", "second")}
    return State(int(found["step"][0]), parts["params"], parts["first"], parts["second"])
