"""FULL-PIPELINE: the full lock on a zoo expert, and an attacker who undoes it part by part, then merges.

The owner goes on training the expert "add" with Trap², flips half of the rotary planes, and puts DLR-Nets in place of
the MLPs. The attacker knows the released weights, the public base and the method: turns the planes back (keyless
attack, the base tells how many), distills the DLR-Nets into SwiGLUs that start from the base's own, so that they stay
in its basin, and merges with the public expert "reverse".
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockproofs.experiments.store import Cell, Experiment
from lockref.attacks.keyless import keyless
from lockref.autodiff.pages import keep_pages
from lockref.locks import full
from lockref.locks.attention import TOPK_PLANES
from lockref.locks.distillation import Phases, Student, distill, dlr_student, swiglu_student
from lockref.locks.dlr import PREFIX
from lockref.locks.dlr_run import data
from lockref.locks.dlr_training import Recipe, train
from lockref.locks.full import Composition
from lockref.locks.trap2 import WEIGHTINGS, objective, sample_scale
from lockref.models import dlrnet, qwen3, skills
from lockref.models.checkpoint_io import load_checkpoint
from lockref.models.evaluation import held_out_windows, text_loss
from lockref.models.qwen3_config import Qwen3Config
from lockref.models.zoo import zoo_path

Tensors = Mapping[str, NDArray[Any]]

SEED, LENGTH, ROWS = 0, 128, 8  # rows of so many tokens in a training batch
PROBLEMS, WINDOWS = 200, 32  # held out: problems of each skill, windows of text
DEPTH, STRENGTH = 16, 0.005  # λ for full updates, as published
TRAP = Recipe(80, 2e-4, SEED, betas=(0.9, 0.98), eps=1e-6)
LOCK = Phases(Recipe(300, 2e-2, SEED), Recipe(300, 2e-3, SEED), 256, 512, 4)
UNDO = Phases(Recipe(150, 2e-3, SEED + 1), Recipe(100, 5e-4, SEED + 1), 256, 512, 4)
AVERAGE = (0.5, 0.5)
SCALES = (AVERAGE, (0.3, 0.7), (0.7, 0.3), (0.7, 0.7), (1.0, 1.0), (1.0, 0.5), (0.5, 1.0))  # of both updates


@cache
def public(name: str) -> tuple[Tensors, Qwen3Config]:
    """A model of the zoo, float32, and its sizes."""
    keep_pages()
    found = load_checkpoint(zoo_path(name), np.float32)
    return found.tensors, found.config


def batch(rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows of tokens, three quarters sums, one quarter text."""
    text = skills.text_rows(skills.stdlib_bytes(), rng, ROWS // 4, LENGTH)
    return np.concatenate([skills.pack_lines("add", rng, ROWS - ROWS // 4, LENGTH), text]).astype(np.int64)


@cache
def trapped(recipe: Recipe = TRAP) -> Tensors:
    """The expert "add", its update trained on with Trap²."""
    (base, config), (expert, _) = public("base"), public("add")

    def loss(update: Mapping[str, Any], rng: np.random.Generator) -> Any:
        tokens, s = batch(rng.spawn(1)[0]), float(sample_scale(rng, 1)[0])
        return objective(lambda w: qwen3.loss(w, tokens, config), base, update, s, WEIGHTINGS["1/s"], STRENGTH)

    found = train(loss, {n: w - base[n] for n, w in expert.items()}, recipe).params
    return {n: w + found[n] for n, w in base.items()}


def composition(config: Qwen3Config) -> Composition:
    """Half of the planes, and DLR-Nets at parameter parity."""
    d, m = config.hidden_size, config.intermediate_size
    net = dlrnet.DLRConfig(d, dlrnet.parity(d, m, DEPTH, "rms").rank, DEPTH)
    return Composition(config.head_dim // 4, net)


@cache
def released() -> tuple[Tensors, list[float]]:
    """The fully locked expert, and the held-out error of each of its networks."""
    _, config = public("base")
    lock = composition(config)
    assert lock.net is not None
    flipped = full.flip_planes(trapped(), config, lock.planes)
    found = distill(flipped, config, swiglu_student(config), dlr_student(lock.net), LOCK, *tokens(SEED))
    return found.model, found.errors


def tokens(seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What the owner (seed 0) or the attacker (another one) distills on, and a few rows held out."""
    rng = np.random.default_rng([seed, 17])
    return data(1024, LENGTH, rng, False), data(32, LENGTH, rng, True)


@cache
def redistilled(start: str) -> Tensors:
    """The released DLR-Nets as SwiGLUs again: they start from the base's ("base"), or untrained ("fresh")."""
    _, config = public("base")
    lock = composition(config)
    assert lock.net is not None
    kind = swiglu_student(config) if start == "fresh" else from_base(config)
    return distill(released()[0], config, dlr_student(lock.net), kind, UNDO, *tokens(SEED + 1)).model


def from_base(config: Qwen3Config) -> Student:
    """A student whose layers, asked for in order, start from the base's MLPs."""
    base, _ = public("base")
    plain, layers = swiglu_student(config), iter(range(config.num_hidden_layers))

    def start(rng: np.random.Generator, dtype: Any) -> dict[str, NDArray[Any]]:
        own = qwen3.layer_weights(base, next(layers))
        return {n.removeprefix(PREFIX): np.array(w, dtype) for n, w in own.items() if n.startswith(PREFIX)}

    return Student(f"{plain.name} from the base", plain.width, start, plain.forward, plain.block)


def turned_back(tensors: Tensors, reference: Tensors, config: Qwen3Config) -> Tensors:
    """The keyless attack on the planes; the MLPs, whatever they are, stay."""
    return keyless(tensors, config, TOPK_PLANES, reference).guesses[0]


def scrambled(tensors: Tensors) -> Tensors:
    """A model of the same sizes and the same numbers, but of no common origin: every tensor shuffled."""
    rng = np.random.default_rng([SEED, 5])
    return {n: rng.permutation(w.reshape(-1)).reshape(w.shape) for n, w in tensors.items()}


@cache
def candidate(name: str) -> Tensors:
    """What somebody merges, with SwiGLUs: see CANDIDATES."""
    base, config = public("base")
    match name:
        case "unlocked":
            return public("add")[0]
        case "trapped":
            return trapped()
        case "planes":
            return full.flip_planes(public("add")[0], config, composition(config).planes)
        case "planes undone":
            return turned_back(candidate("planes"), base, config)
        case "redistilled, planes left":
            return redistilled("base")
        case "pipeline":
            return turned_back(redistilled("base"), base, config)
        case "pipeline, fresh MLPs":
            return turned_back(redistilled("fresh"), base, config)
        case _:
            raise KeyError(name)


CANDIDATES = {
    "unlocked": "null control: the expert without any lock",
    "trapped": "Trap² alone, nothing to undo",
    "planes": "planted weak lock: planes flipped, nothing else; merged as it is",
    "planes undone": "power control: the planted weak lock after the keyless attack",
    "redistilled, planes left": "full lock, DLR-Nets distilled back, planes left as released",
    "pipeline, fresh MLPs": "full lock, planes undone, DLR-Nets distilled back from untrained SwiGLUs",
    "pipeline": "full lock, planes undone, DLR-Nets distilled back from the base's SwiGLUs",
}


def solved(tensors: Tensors, config: Qwen3Config, block: qwen3.Block = qwen3.block) -> dict[str, Any]:
    """How many of PROBLEMS held-out problems of each skill are solved, and the loss on held-out text."""

    def next_bytes(rows: skills.Bytes) -> skills.Integers:
        got: skills.Integers = np.argmax(qwen3.forward(tensors, rows, config, block), axis=-1)
        return got

    found: dict[str, Any] = {}
    for place, name in enumerate(skills.SKILLS):
        drawn = skills.skill_problems(name, np.random.default_rng([SEED, 41, place]), PROBLEMS, held_out=True)
        found[name] = round(skills.exact_match(next_bytes, drawn) * PROBLEMS)
    return found | {"text": text_loss(tensors, held_out_windows(WINDOWS, LENGTH), config, block)}


def merged(member: Tensors, scales: tuple[float, float]) -> dict[str, NDArray[Any]]:
    """Base + a (member − base) + b (reverse − base)."""
    (base, _), (other, _) = public("base"), public("reverse")
    a, b = (np.float32(s) for s in scales)
    return {n: w + a * (member[n] - w) + b * (other[n] - w) for n, w in base.items()}


def measure(cell: Cell) -> dict[str, Any]:
    """The figures of one cell."""
    base, config = public("base")
    if cell["what"] == "lock":
        tensors, errors = released()
        lock = composition(config)
        before = {"unlocked": solved(public("add")[0], config), "trapped": solved(trapped(), config)}
        return before | {"locked": solved(tensors, config, lock.block), "relative_error": errors}
    if cell["what"] == "origin":
        tensors, _ = released()
        true = composition(config).planes
        found = {
            name: int(np.sum(keyless(tensors, config, TOPK_PLANES, model).found["k"] == true))
            for name, model in (("base", base), ("scrambled base", scrambled(base)))
        }
        return {"heads": config.num_hidden_layers * config.num_key_value_heads, "right": found}
    member = candidate(cell["of"])
    losses = {f"{a}, {b}": on_skills(merged(member, (a, b)), config) for a, b in SCALES}
    return {"alone": on_skills(member, config), "merged": losses, "average": solved(merged(member, AVERAGE), config)}


def on_skills(tensors: Tensors, config: Qwen3Config) -> float:
    """Mean loss in nats per byte on held-out lines of both skills, half of each."""
    rng = np.random.default_rng([SEED, 43])
    rows = [skills.pack_lines(name, rng, WINDOWS // 2, LENGTH, held_out=True) for name in skills.SKILLS]
    return text_loss(tensors, np.concatenate(rows), config)


EXPERIMENT = Experiment(
    name="full_pipeline",
    title="The full lock on a zoo expert, undone part by part, then merged",
    seed=SEED,
    settings={
        "candidates": CANDIDATES, "problems": PROBLEMS, "windows": WINDOWS, "scales": SCALES, "average": AVERAGE,
        "depth": DEPTH,
        "strength": STRENGTH, "trap_steps": TRAP.steps, "lock_steps": [LOCK.modules.steps, LOCK.model.steps],
        "undo_steps": [UNDO.modules.steps, UNDO.model.steps],
    },
    cells=[
        {"what": "lock", "of": "locked"},
        {"what": "origin", "of": "locked"},
        *({"what": "merge", "of": name} for name in CANDIDATES),
    ],
    measure=measure,
)  # fmt: skip
