"""Rows of FULL-PARITY's table that are about the locks: attackers, keys, merges, distillation, Trap².

Each function measures one row; PyTorch is imported when it runs.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from lockproofs.parity_cases import TINY, case, random_tensors, small_net, worst
from lockproofs.rounding import UNIT64
from lockref.attacks.keyless import keyless
from lockref.attacks.result import relative_error
from lockref.autodiff import value_and_grad, vjp
from lockref.locks import attention
from lockref.locks.distillation import captured, distill_module, dlr_student, swiglu_student
from lockref.locks.dlr_training import Recipe
from lockref.locks.trap2 import WEIGHTINGS, objective
from lockref.merging import merge
from lockref.models import dlrnet, storage
from lockref.models.checkpoint_io import load_checkpoint
from lockref.models.dlrnet import DLRConfig
from lockref.models.zoo import zoo_path

TARGET, GRADIENTS = 1e-12, 1e-11  # in float64, relative to the largest entry: of values, of gradients
OPERATORS = ("linear-average", "task-arithmetic", "ties", "ties-mergekit", "slerp-updates", "tsv", "cart")
STEPS, ROWS, TOKENS = 20, 24, 7  # of distillation, and in a step; of an attacked network
STRENGTH = 0.005  # λ of Trap², as published for full updates


def attackers(cell: dict[str, Any]) -> dict[str, Any]:
    """Inversion and recomputation: gradients, bytes between the passes and at most."""
    from lockcross import parity

    net, tokens, segments = attacked_net(cell), TOKENS, cell["segments"]
    rng = np.random.default_rng(3)
    params = dlrnet.initialize(net, rng, b_scale=0.7)
    x, g = rng.standard_normal((2, tokens, net.width))
    got = parity.attacked(net, params, x, g, cell["way"], segments)
    grads, gx = vjp(lambda p, x: dlrnet.forward(p, x, net), params, x)[1](g)
    between, most = attacker_bytes(net, cell["way"], segments)
    return {
        "gradients": worst(got["gradients"], {**grads, "x": gx})[0],
        "allowed_gradients": GRADIENTS,
        "torch_bytes": got["bytes between"],
        "predicted_bytes": between,
        "torch_bytes_at_most": got["bytes at most"],
        "predicted_bytes_at_most": most,
    }


def attacked_net(cell: dict[str, Any]) -> DLRConfig:
    """The network of a row."""
    return DLRConfig(12, 5, 9, cell["norm"], cell["activation"])


def attacker_bytes(net: DLRConfig, way: str, segments: int) -> tuple[int, int]:
    """What an attacker holds between the passes, and at most, by closed forms: eager, `TOKENS` tokens in float64."""
    starts = storage.Storage((segments - 1) * net.width)
    part = replace(net, depth=-(-net.depth // segments))
    inner = storage.dlr_inverted(part) if way == "inverted" else storage.dlr(part, fused=False)
    between, most = starts if segments > 1 else inner, starts + inner
    if way == "inverted":  # and a workspace: one block's activation and norm are differentiated on the spot
        _, block = storage.dlr_blocks(net, fused=False, trains={"gain"})
        held = 0 if net.activation in storage.KEEPS_OUTPUT else net.rank
        most = most + storage.Storage(block.per_token - held)
    return between.bytes(TOKENS, 8), most.bytes(TOKENS, 8)


def keys(cell: dict[str, Any]) -> dict[str, Any]:
    """MergeBarrier on weights drawn by torch: the projection, and what the keyless attack finds."""
    from lockcross import parity

    family, k = attention.FAMILIES[cell["family"]], 2 + cell["draw"] % 3
    tensors = parity.drawn(TINY, cell["draw"])
    got = parity.projected(TINY, tensors, k, planes=family.width == 2)
    want = attention.projections(tensors, TINY, family, k)
    values = np.linalg.eigvalsh(attention.governing(tensors, TINY))[..., ::-1]
    gap = float(np.min(values[..., k - 1] - values[..., k]))
    # Davis & Kahan: an error E of S turns the k leading directions by ‖E‖/gap; ‖E‖ ≤ c u ‖S‖, either side, P doubles
    turned = 4 * TINY.head_dim * UNIT64 * float(values.max()) / gap + 4 * TINY.head_dim**2.5 * np.finfo(float).eps
    found = keyless(got["tensors"], TINY, family, reference=tensors)
    return {
        "k": k,
        "p": float(np.max(np.abs(got["p"] - want))),
        "allowed_p": turned,
        "k_found": sorted(set(np.ravel(found.found["k"]).tolist())),
        "recovered": max(relative_error(found.guesses[0][n], w) for n, w in tensors.items()),
        "released": max(relative_error(got["tensors"][n], w) for n, w in tensors.items()),
    }


def merges(cell: dict[str, Any]) -> dict[str, Any]:
    """One operator on the zoo: base, and both experts with equal weights."""
    from lockcross import merges

    base, *members = (load_checkpoint(zoo_path(name)).tensors for name in ("base", "add", "reverse"))
    want = merge(base, members, cell["operator"], weights=[1.0, 1.0]).tensors
    got = merges.merged(base, members, cell["operator"])
    moved = {n: float(np.max(np.abs(want[n] - w))) or 1.0 for n, w in base.items()}
    return {
        "merged": max(float(np.max(np.abs(got[n] - want[n]))) / moved[n] for n in want),
        "allowed_merged": TARGET,
        "tensors": len(want),
    }


def distillation(cell: dict[str, Any]) -> dict[str, Any]:
    """Phase 1 on the tiny model, loss by loss."""
    from lockcross import parity

    given = case("tiny", "none")
    net = replace(small_net(given.config), norm=cell["norm"], rank=7)
    teacher = swiglu_student(given.config)
    x, y = next(captured(given.tensors, given.tokens, given.config, teacher=teacher))
    recipe, start = Recipe(STEPS, 5e-3, seed=1, weight_decay=0.1), dlrnet.initialize(net, np.random.default_rng(1))
    want = distilled(start, x, y, net, recipe)
    got = parity.distilled(start, x, y, net, recipe, ROWS)
    drift = [np.max(np.abs(np.subtract(distilled(_nudged(start, s), x, y, net, recipe), want))) for s in range(4)]
    return {
        "losses": float(np.max(np.abs(np.subtract(got, want)))),
        "allowed_losses": 8 * float(max(drift)),
        "steps": STEPS,
        "first": got[0],
        "last": got[-1],
    }


def distilled(start: Any, x: Any, y: Any, net: DLRConfig, recipe: Recipe) -> list[float]:
    """Losses of phase 1 from these weights, step by step."""
    losses: list[float] = []
    student = replace(dlr_student(net), start=lambda rng, dtype: start)
    distill_module(x, y, student, recipe, rows=ROWS, follow=lambda _, value: losses.append(value))
    return losses


def _nudged(start: Any, seed: int) -> Any:
    """Weights moved by their last few bits, as the round-off of one gradient does."""
    rng = np.random.default_rng(seed)
    return {n: w * (1 + 16 * UNIT64 * rng.standard_normal(w.shape)) for n, w in start.items()}


def trap2(cell: dict[str, Any]) -> dict[str, Any]:
    """One draw of the objective, and its gradient with respect to the update."""
    from lockcross import parity

    given, update = case("tiny", "none"), trap2_update()
    value, gradient = value_and_grad(lambda d: trap2_objective(cell, d))(update)
    power = WEIGHTINGS[cell["weighting"]].power
    got = parity.trap2(given.config, given.tensors, update, given.tokens, cell["s"], power, STRENGTH)
    return {
        "objective": abs(got["objective"] - float(value)) / abs(float(value)),
        "allowed_objective": TARGET,
        "gradients": worst(got["gradient"], gradient)[0],
        "allowed_gradients": GRADIENTS,
        "torch_objective": got["objective"],
    }


def trap2_update() -> dict[str, Any]:
    """A random update of everything in the tiny model's layers but the norms between them."""
    drawn = random_tensors(case("tiny", "none").config, np.random.default_rng(6))
    return {n: 0.1 * w for n, w in drawn.items() if "self_attn" in n or "mlp" in n}


def trap2_objective(cell: dict[str, Any], update: Any) -> Any:
    """One draw of Trap²'s objective by NumPy."""
    given, weighting = case("tiny", "none"), WEIGHTINGS[cell["weighting"]]
    return objective(given.loss, given.tensors, update, cell["s"], weighting, STRENGTH)
