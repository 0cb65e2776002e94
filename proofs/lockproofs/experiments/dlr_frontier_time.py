"""What every attacker's training step takes in time and in memory, side by side, on small stacks and on one large MLP.

A model's attackers take turns with default reverse mode on the same model and with the unlocked model's attackers, so
that every time is a ratio of the same round. Memory is the peak that tracemalloc sees, as elements per token: the
difference between twice as many tokens and as many, which takes out whatever does not grow with them. It is measured
where activations outweigh the weights' gradients: on more sequences, and on a small MLP instead of the large one.
"""

from collections.abc import Callable, Mapping
from functools import partial
from math import isqrt
from typing import Any

import numpy as np

from lockproofs.dlr_stacks import network, peak_bytes, running
from lockproofs.experiments.store import Cell, Experiment
from lockproofs.timing import Run, take_turns
from lockref.attacks import checkpointing, frontier
from lockref.attacks.fixed_point import fixed_point
from lockref.attacks.frontier import MLPWay, Stack, locked
from lockref.attacks.gradient_free import forward_gradient, zeroth_order
from lockref.autodiff import checkpoint, jvp, ops, schedules, vjp
from lockref.autodiff.pages import keep_pages
from lockref.models import dlrnet, storage
from lockref.models.dlrnet import DLRConfig
from lockref.models.qwen3_config import Qwen3Config

HOST = Qwen3Config(256, 128, 384, 4, 4, 2, 32)  # layers as in the zoo
MLP, SMALL_MLP = (1024, 3072), (64, 192)  # timed, the size of Qwen3-0.6B's; and measured
SEED, DEPTH, SLOTS = 0, 48, 3
CONTRACTION = 0.05  # for fixed-point inversion B is scaled by it: then blocks are contractions
SEQUENCES, LENGTH = 2, 128  # timed
MLP_LENGTH, SMALL_LENGTH = 64, 2048
DTYPE: Any = np.float32
Steps = dict[str, tuple[Callable[[Any], object], int | None]]  # name: (step at an input, closed form per token)
UNLOCKED = "unlocked: "


def stack_steps(cell: Cell) -> Steps:
    """Every way with the MLPs, alone and with every layer checkpointed; the unlocked model's are marked."""
    rng, steps = np.random.default_rng(SEED), Steps()
    plain = Stack(HOST, context=LENGTH)
    lock = locked(HOST, cell["depth"], cell["norm"], LENGTH)
    keep, each = frontier.plans(HOST.num_hidden_layers)[:2]
    for stack, mark in ((plain, UNLOCKED), (lock, "")):
        for by_layer, plan in ((False, keep), (True, each)):
            for way in stack.ways():
                if not timed(stack, way, by_layer):
                    continue
                model = running(stack, cell["goal"], way, rng, by_layer=by_layer, dtype=DTYPE)
                priced = stack.attacker(cell["goal"], way, plan)
                steps[mark + priced.name] = (model.gradients, priced.elements)
    return steps


def timed(stack: Stack, way: MLPWay, by_layer: bool) -> bool:
    """Whether a way is among those run: nothing recomputed twice over, segments of √L blocks, one block, or two."""
    if way.segments == 1:
        return not (way.recomputed and by_layer)
    assert stack.dlr is not None
    chosen = (2,) if way.inverted else (isqrt(stack.dlr.depth), stack.dlr.depth)
    return not (way.recomputed or by_layer) and way.segments in chosen


def mlp_steps(cell: Cell, d: int, m: int) -> Steps:
    """The attackers of one DLR-Net; those of the MLP that it replaces are marked."""
    rng = np.random.default_rng(SEED)
    net = DLRConfig(d, dlrnet.parity(d, m, cell["depth"], cell["norm"]).rank, cell["depth"], cell["norm"])
    root, depth = isqrt(net.depth), net.depth
    params = dlrnet.initialize(net, rng, b_scale=depth**-0.5, dtype=DTYPE)
    small = {n: w * DTYPE(CONTRACTION) if n.endswith(".b") else w for n, w in params.items()}
    weights = [(rng.standard_normal(s) / s[1] ** 0.5).astype(DTYPE) for s in ((m, d), (m, d), (d, m))]
    forward = partial(dlrnet.forward, config=net)

    def mlp(w: Any, x: Any) -> Any:
        return ops.swiglu(x @ w[0].T, x @ w[1].T) @ w[2].T

    def reverse(f: Any, w: Any, argnums: Any = (0, 1)) -> Callable[[Any], object]:
        return lambda x: vjp(f, w, x, argnums=argnums)[1](x, release=True)

    def following(actions: Any, group: int) -> Callable[[Any], object]:
        return lambda x: checkpointing.scheduled(params, x, x, net, actions, group=group)

    def loss(x: Any) -> Callable[[Any], Any]:
        return lambda p: ops.sum(ops.multiply(forward(p, x), x))

    def way(**choices: Any) -> Any:
        return network(net, MLPWay(**choices), frozen=False)

    frozen = network(net, MLPWay(inverted=True), frozen=True)
    per_block, binomial = schedules.per_block(depth), schedules.binomial(depth, SLOTS)
    roots = schedules.per_block(checkpointing.steps(net, root))
    scheduled, nothing = partial(storage.dlr_scheduled, net), frontier.NOTHING
    fresh = np.random.default_rng
    return {
        UNLOCKED + "default reverse mode": (reverse(mlp, weights), storage.swiglu(m, fused=True).per_token),
        UNLOCKED + "recomputed": (reverse(checkpoint(mlp), weights), storage.swiglu(m, fused=True).per_token),
        UNLOCKED + "frozen": (reverse(mlp, weights, 1), storage.swiglu(m, fused=True, trains=nothing).per_token),
        "default reverse mode": (reverse(forward, params), storage.dlr(net, fused=True).per_token),
        "frozen": (reverse(forward, params, 1), storage.dlr(net, fused=True, trains=nothing).per_token),
        "frozen, h-only inversion": (reverse(frozen, params, 1), storage.dlr_inverted(net).per_token),
        "each block checkpointed": (following(per_block, 1), scheduled(per_block).per_token),
        "groups of √L blocks checkpointed": (following(roots, root), scheduled(roots, group=root).per_token),
        f"binomial, {SLOTS} slots": (following(binomial, 1), scheduled(binomial).per_token),
        "h-only inversion": (reverse(way(inverted=True), params), storage.dlr_inverted(net).per_token),
        f"h-only inversion, {root} segments": (
            reverse(way(inverted=True, segments=root), params), storage.dlr_inverted(net, root).per_token - d,
        ),
        "fixed-point inversion of contractions": (reverse(fixed_point(net), small), d),
        "forward gradient, one direction": (lambda x: forward_gradient(loss(x), params, fresh(SEED)), None),
        "zeroth order, one direction": (lambda x: zeroth_order(loss(x), params, fresh(SEED)), None),
        "directional derivative alone": (lambda x: jvp(loss(x), (params,), (params,)), None),
    }  # fmt: skip


def measure(cell: Cell, rounds: int | None = None) -> dict[str, Any]:
    """Each attacker's time over default reverse mode's, of the same and of the unlocked model, and its memory."""
    keep_pages()
    rng = np.random.default_rng(SEED)
    if cell["kind"] == "stack":
        steps = measured = stack_steps(cell)
        x, more = (draw(rng, n * SEQUENCES, LENGTH, HOST.hidden_size) for n in (1, 4))
    else:
        steps, measured = mlp_steps(cell, *MLP), mlp_steps(cell, *SMALL_MLP)
        x, more = draw(rng, 1, MLP_LENGTH, MLP[0]), draw(rng, 2, SMALL_LENGTH, SMALL_MLP[0])
    held = {name: per_token(step, more) for name, (step, _) in measured.items()}
    runs: Mapping[str, Run] = {name: partial(step, x) for name, (step, _) in steps.items()}
    times = take_turns(runs, rounds or cell["rounds"], rng)
    default, plain = times["default reverse mode"], times[UNLOCKED + "default reverse mode"]
    return {
        "default_ms": float(f"{1e3 * np.median(default.wall):.4g}"),
        "attackers": [
            {
                "name": name.removeprefix(UNLOCKED),
                "locked": not name.startswith(UNLOCKED),
                "elements": closed_form,
                "memory": {"closed_form": measured[name][1], "measured": held[name]},
                "over_unlocked_default": times[name].over(plain),
                "over_default": times[name].over(default),
            }
            for name, (_, closed_form) in steps.items()
        ],
    }


def draw(rng: np.random.Generator, *shape: int) -> Any:
    """Standard normal numbers in the type of the experiment."""
    return rng.standard_normal(shape).astype(DTYPE)


def per_token(step: Callable[[Any], object], x: Any) -> float:
    """Elements per token of the peak: that with all sequences of x less that with half of them."""
    half = x[: len(x) // 2]
    both, one = (peak_bytes(partial(step, part)) for part in (x, half))
    return round((both - one) / int(half[..., 0].size * x.itemsize), 1)


EXPERIMENT = Experiment(
    name="dlr_frontier_time",
    title="Time and peak memory of every attacker on DLR-Lock, over default reverse mode",
    seed=SEED,
    settings={
        "dtype": "float32", "layers": HOST.num_hidden_layers, "d": HOST.hidden_size, "m": HOST.intermediate_size,
        "sequences": SEQUENCES, "length": LENGTH, "mlp": MLP, "mlp_length": MLP_LENGTH, "small_mlp": SMALL_MLP,
        "contraction_scale": CONTRACTION,
    },
    cells=[
        *(
            {"kind": "stack", "depth": depth, "norm": norm, "goal": goal, "rounds": 9}
            for depth, goal in ((16, "all"), (DEPTH, "all"), (DEPTH, "attention")) for norm in ("none", "rms")
        ),
        *({"kind": "mlp", "depth": DEPTH, "norm": norm, "goal": "all", "rounds": 5} for norm in ("none", "rms")),
    ],
    measure=measure,
)  # fmt: skip
