"""Distillation in two phases: what makes a DLR-Lock (arXiv 2605.10777), and what an attacker does backwards.

The paper names a two-phase pipeline; its losses and settings were not readable to us, so these are ours:
  1. module by module: minimize the mean over tokens of ‖net(x) − mlp(x)‖² / ‖mlp(x)‖² on inputs captured from the
     running model;
  2. the assembled model: minimize the mean KL(teacher ‖ student) of next-token distributions, the networks alone
     training.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockref.autodiff import ops
from lockref.locks.dlr import PREFIX, Network, assembled, locked_block
from lockref.locks.dlr_training import Arrays, Follow, Recipe, State, train
from lockref.models import dlrnet, qwen3
from lockref.models.dlrnet import DLRConfig
from lockref.models.qwen3_config import Qwen3Config

Teacher = Callable[[Any], Any]  # tokens (B, T) -> logits (B, T, V)
Pairs = tuple[NDArray[Any], NDArray[Any]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Student:
    """A kind of network for the place of an MLP: its untrained tensors, named as in a layer behind "mlp.".

    `forward` is (params, x) -> y, on the normed stream, or with `on_stream` on the stream itself, x + mlp and all.
    """

    name: str
    width: int
    start: Callable[[np.random.Generator, Any], Arrays]
    forward: Network
    block: qwen3.Block
    on_stream: bool = False


def dlr_student(net: DLRConfig) -> Student:
    """A DLR-Net that starts as the identity (B_l = 0, A_l random)."""
    return Student(
        str(net), net.width, lambda rng, dtype: dlrnet.initialize(net, rng, dtype=dtype),
        lambda params, x: dlrnet.forward(params, x, net), locked_block(net), net.placement == "stream",
    )  # fmt: skip


def swiglu_student(config: Qwen3Config) -> Student:
    """The host's own MLP, untrained: gate and up N(0, 1/d), down 0."""
    d, m = config.hidden_size, config.intermediate_size

    def start(rng: np.random.Generator, dtype: Any) -> Arrays:
        drawn = {f"{n}_proj.weight": rng.standard_normal((m, d)) / d**0.5 for n in ("gate", "up")}
        return {n: w.astype(dtype) for n, w in {**drawn, "down_proj.weight": np.zeros((d, m))}.items()}

    def forward(params: Mapping[str, Any], x: Any) -> Any:
        return qwen3.mlp({PREFIX + n: w for n, w in params.items()}, x)

    return Student(f"SwiGLU({d}, {m})", d, start, forward, qwen3.block)


@dataclass(frozen=True)
class Phases:
    """How both phases train: recipes, rows of activations and of tokens in a step, rows of tokens that are captured."""

    modules: Recipe
    model: Recipe
    captured: int
    activations: int = 1024
    tokens: int = 8


@dataclass(frozen=True)
class Distilled:
    """What distillation made: the assembled model's tensors after each phase, and the held-out error of each module.

    `errors` are ‖net(x) − y‖² / ‖y‖² after phase 1, `row_errors` the mean of the same quotient over tokens.
    """

    modules: Arrays
    model: Arrays
    errors: list[float]
    row_errors: list[float]


def distill(
    tensors: Mapping[str, Any],
    config: Qwen3Config,
    teacher: Student,
    student: Student,
    phases: Phases,
    tokens: NDArray[Any],
    test: NDArray[Any],
    *,
    work: Path | None = None,
    say: Say = lambda line: None,
) -> Distilled:
    """Both phases: a student in every layer of the model `tensors`, in which `teacher` stands now.

    `tokens` (rows, T) are learned from, `test` held out. With the directory `work` it resumes bit for bit after an
    interruption. Raises what the phases raise.
    """
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)

    def file(name: str) -> Path | None:
        return work / name if work is not None else None

    seen = (
        captured(tensors, rows, config, teacher=teacher, on_stream=student.on_stream)
        for rows in (tokens[: phases.captured], test)
    )
    nets: dict[int, Any] = {}
    errors, row_errors = [], []
    for i, ((x, y), (tx, ty)) in enumerate(zip(*seen, strict=True)):
        what = f"layer {i} of {config.num_hidden_layers}"
        nets[i] = distill_module(
            x, y, student, phases.modules, rows=phases.activations, file=file(f"layer{i}"),
            follow=reporter(what, phases.modules.steps, say),
        ).params  # fmt: skip
        errors.append(relative_error(nets[i], tx, ty, student))
        row_errors.append(float(row_error(nets[i], tx, ty, student)))
        say(f"{what}: relative error {errors[-1]:.4f} held out, {row_errors[-1]:.4f} by rows")

    def taught(batch: Any) -> Any:
        return qwen3.forward(tensors, batch, config, teacher.block)

    healed = distill_model(
        taught, tensors, nets, tokens, config, student, phases.model, rows=phases.tokens, file=file("model"),
        follow=reporter("model", phases.model.steps, say),
    )  # fmt: skip
    whole = assembled(tensors, nets)
    return Distilled(whole, {**whole, **healed.params}, errors, row_errors)


def reporter(what: str, steps: int, say: Say, every: int = 50) -> Follow:
    """Says the loss and the remaining time of a training, every so many steps."""
    begun: list[tuple[int, float]] = []  # the first step of this run: a resumed one starts late

    def follow(step: int, value: float) -> None:
        if not begun:
            begun.append((step, time.monotonic()))
        if step % every == 0 or step == steps:
            (first, start), now = begun[0], time.monotonic()
            left = (now - start) / (step - first) * (steps - step) if step > first else 0.0
            say(f"{what}: step {step} of {steps}, loss {value:.4f}, {left:.0f} s left")

    return follow


def captured(
    tensors: Mapping[str, Any], tokens: Any, config: Qwen3Config, *, teacher: Student, on_stream: bool = False
) -> Iterator[Pairs]:
    """For each layer what a student reads and should deliver, (tokens, d) each, on `tokens` (T,) or (B, T).

    `teacher` is the kind of network that stands in the layers of `tensors` now; `on_stream` the student's choice.
    """
    x = qwen3.embed(tensors, tokens, config)
    for i in range(config.num_hidden_layers):
        w = qwen3.layer_weights(tensors, i)
        middle = x + qwen3.attention(w, qwen3.attention_norm(w, x, config), config)
        params = {n.removeprefix(PREFIX): v for n, v in w.items() if n.startswith(PREFIX)}
        normed = qwen3.mlp_norm(w, middle, config)
        added = teacher.forward(params, middle) - middle if teacher.on_stream else teacher.forward(params, normed)
        x = middle + added
        read, want = (middle, x) if on_stream else (normed, added)
        yield read.reshape(-1, x.shape[-1]), want.reshape(-1, x.shape[-1])


def relative_error(params: Mapping[str, Any], x: Any, y: Any, student: Student) -> float:
    """‖net(x) − y‖² / ‖y‖² over all rows: how far a network is from its MLP, large outputs first."""
    gap, added = student.forward(params, x) - y, _added(x, y, student)
    return float(np.vdot(gap, gap) / np.vdot(added, added))


def row_error(params: Mapping[str, Any], x: Any, y: Any, student: Student) -> Any:
    """Mean over rows of ‖net(x) − y‖² / ‖y‖²: the loss of phase 1, in which every token counts the same.

    The squared lengths of a model's MLP outputs differ by factors of hundreds from token to token; a quotient of sums
    would teach the network the largest of them alone.
    """
    added = _added(x, y, student)
    size = np.sum(added * added, axis=-1)
    gap = ops.subtract(student.forward(params, x), y)
    weight = 1 / np.maximum(size, np.finfo(size.dtype).tiny)
    return ops.mean(ops.multiply(ops.sum(ops.multiply(gap, gap), axis=-1), weight))


def _added(x: Any, y: Any, student: Student) -> Any:
    """What the MLP adds: on the stream, y − x."""
    return y - x if student.on_stream else y


def distill_module(
    x: NDArray[Any],
    y: NDArray[Any],
    student: Student,
    recipe: Recipe,
    *,
    rows: int = 1024,
    file: Path | None = None,
    stop_after: int | None = None,
    follow: Follow | None = None,
) -> State:
    """Phase 1 for one MLP: x and y (rows, d) of one float dtype, `rows` of them drawn for a step.

    Starts from weights drawn with the recipe's seed. Resumes from `file` bit for bit. Raises ValueError where shapes
    do not fit the network, or values are not finite.
    """
    _require_pairs(x, y, student)

    def loss(params: Mapping[str, Any], rng: np.random.Generator) -> Any:
        chosen = rng.integers(0, len(x), min(rows, len(x)))
        return row_error(params, x[chosen], y[chosen], student)

    start = student.start(np.random.default_rng(recipe.seed), x.dtype)
    about = f"phase 1, {student.name}, {rows} of {_digest(x, y)}"
    return train(loss, start, recipe, about=about, file=file, stop_after=stop_after, follow=follow)


def distill_model(
    teacher: Teacher,
    tensors: Mapping[str, Any],
    nets: Mapping[int, Mapping[str, Any]],
    tokens: NDArray[Any],
    config: Qwen3Config,
    student: Student,
    recipe: Recipe,
    *,
    rows: int = 8,
    file: Path | None = None,
    stop_after: int | None = None,
    follow: Follow | None = None,
) -> State:
    """Phase 2: the networks of all layers together, `rows` rows of tokens (B, T) a step, everything else frozen.

    `tensors` hold the host's other weights, `nets` the networks of phase 1 by layer. The result's tensors are named as
    in the assembled model. Raises ValueError where a layer has no network.
    """
    if missing := set(range(config.num_hidden_layers)) - set(nets):
        raise ValueError(f"distill_model: layers {sorted(missing)} have no network; run phase 1 for each layer")
    whole = assembled(tensors, nets)
    trained = {n: w for n, w in whole.items() if f".{PREFIX}" in n}
    frozen = {n: w for n, w in whole.items() if n not in trained}

    def loss(params: Mapping[str, Any], rng: np.random.Generator) -> Any:
        batch = tokens[rng.integers(0, len(tokens), min(rows, len(tokens)))]
        return divergence({**frozen, **params}, teacher(batch), batch, config, student.block)

    about = f"phase 2, {student.name}, {rows} of {_digest(tokens)}"
    return train(loss, trained, recipe, about=about, file=file, stop_after=stop_after, follow=follow)


def divergence(params: Mapping[str, Any], want: Any, tokens: Any, config: Qwen3Config, block: qwen3.Block) -> Any:
    """Mean over positions of KL(softmax(want) ‖ softmax(logits)) in nats, for the original's logits `want`."""
    logits = qwen3.forward(params, tokens, config, block)
    p = _log_softmax(want)
    shifted = ops.subtract(logits, ops.max(logits, axis=-1, keepdims=True))
    log_q = ops.subtract(shifted, ops.log(ops.sum(ops.exp(shifted), axis=-1, keepdims=True)))
    each = ops.sum(ops.multiply(np.exp(p), ops.subtract(p, log_q)), axis=-1)
    return ops.mean(each)


def _log_softmax(x: Any) -> Any:
    shifted = x - np.max(x, axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


def _require_pairs(x: NDArray[Any], y: NDArray[Any], student: Student) -> None:
    if x.ndim != 2 or x.shape != y.shape or x.shape[1] != student.width or not len(x):
        raise ValueError(f"distill_module: x {x.shape}, y {y.shape}; want two arrays (rows, {student.width})")
    for name, values in (("x", x), ("y", y)):
        if not np.all(np.isfinite(values)):
            row = int(np.argmin(np.isfinite(values).all(axis=1)))
            raise ValueError(f"distill_module: {name} is not finite in row {row}; look at the model that made it")
    if not np.any(y):
        raise ValueError("distill_module: y is zero everywhere; a relative error means nothing then")


def _digest(*arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
