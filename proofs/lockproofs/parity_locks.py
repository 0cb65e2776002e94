"""Rows of FULL-PARITY's table that are about the locks: attackers, keys, merges, distillation, Trap².

Each function measures one row; PyTorch is imported when it runs.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from lockproofs.parity_cases import TINY, case, random_tensors, small_net, with_nets, worst
from lockproofs.rounding import UNIT64
from lockref.attacks.keyless import keyless
from lockref.attacks.result import relative_error
from lockref.autodiff import value_and_grad, vjp
from lockref.locks import attention
from lockref.locks.distillation import captured, distill_model, distill_module, dlr_student, swiglu_student
from lockref.locks.dlr import locked_block
from lockref.locks.dlr_training import Recipe, train
from lockref.locks.trap2 import WEIGHTINGS, objective
from lockref.locks.trap2_training import PUBLISHED, LoRA
from lockref.merging import merge
from lockref.models import dlrnet, qwen3, storage
from lockref.models.checkpoint_io import load_checkpoint
from lockref.models.dlrnet import DLRConfig
from lockref.models.zoo import zoo_path

TARGET, GRADIENTS = 1e-12, 1e-11  # in float64, relative to the largest entry: of values, of gradients
OPERATORS = ("linear-average", "task-arithmetic", "ties", "ties-mergekit", "slerp-updates", "tsv", "cart", "dare",
             "dare-mergekit", "dare-ties", "dare-ties-mergekit")  # fmt: skip
STEPS, ROWS, BATCH = 20, 24, 5  # of distillation; in a step of phase 1, and of phase 2
TOKENS = 7  # of an attacked network
DROPS, DENSITY = 11, 0.1  # seed of what DARE drops, and the share that it keeps
RANK, ALPHA = 3, 6  # of LoRA
TUNED = {"all": None, "attention": {"self_attn"}}  # what an attacker trains of a locked model
STRENGTH = 0.005  # λ of Trap², as published for full updates


def attackers(cell: dict[str, Any]) -> dict[str, Any]:
    """Inversion and recomputation: gradients, bytes between the passes and at most."""
    from lockcross import parity_locks as peer

    net, tokens, segments = attacked_net(cell), TOKENS, cell["segments"]
    rng = np.random.default_rng(3)
    params = dlrnet.initialize(net, rng, b_scale=0.7)
    x, g = rng.standard_normal((2, tokens, net.width))
    got = peer.attacked(net, params, x, g, cell["way"], segments)
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
    """MergeBarrier on weights drawn by torch: the projection, and each side's keyless attack on the other's lock."""
    from lockcross import parity_locks as peer

    family, k = attention.FAMILIES[cell["family"]], 2 + cell["draw"] % 3
    tensors = peer.drawn(TINY, cell["draw"])
    got = peer.projected(TINY, tensors, k, planes=family.width == 2)
    want = attention.projections(tensors, TINY, family, k)
    values = np.linalg.eigvalsh(attention.governing(tensors, TINY))[..., ::-1]
    gap = float(np.min(values[..., k - 1] - values[..., k]))
    # Davis & Kahan: an error E of S turns the k leading directions by ‖E‖/gap; ‖E‖ ≤ c u ‖S‖, either side, P doubles
    turned = 4 * TINY.head_dim * UNIT64 * float(values.max()) / gap + 4 * TINY.head_dim**2.5 * np.finfo(float).eps
    found = keyless(got["tensors"], TINY, family, reference=tensors)
    torch_found = peer.keyless(TINY, attention.project(tensors, TINY, want), tensors, planes=family.width == 2)
    back = {"recovered": found.guesses[0], "recovered_torch": torch_found["tensors"], "released": got["tensors"]}
    return {
        "k": k,
        "p": float(np.max(np.abs(got["p"] - want))),
        "allowed_p": turned,
        "k_found": sorted(set(np.ravel(found.found["k"]).tolist())),
        "k_found_torch": sorted(set(np.ravel(torch_found["k"]).tolist())),
        **{what: max(relative_error(given[n], w) for n, w in tensors.items()) for what, given in back.items()},
    }


def merges(cell: dict[str, Any]) -> dict[str, Any]:
    """One operator on the zoo: base, and both experts with equal weights. DARE drops the same entries on both sides."""
    from lockcross import merges

    base, *members = (load_checkpoint(zoo_path(name)).tensors for name in ("base", "add", "reverse"))
    want = merge(base, members, cell["operator"], weights=[1.0, 1.0], rng=np.random.default_rng(DROPS)).tensors
    masks = dropped(base) if cell["operator"].startswith("dare") else None
    got = merges.merged(base, members, cell["operator"], masks)
    moved = {n: float(np.max(np.abs(want[n] - w))) or 1.0 for n, w in base.items()}
    return {
        "merged": max(float(np.max(np.abs(got[n] - want[n]))) / moved[n] for n in want),
        "allowed_merged": TARGET,
        "tensors": len(want),
    }


def dropped(base: Any, seed: int = DROPS) -> list[dict[str, Any]]:
    """Which entries of both members DARE keeps, with its density of 0.1: drawn tensor by tensor, as `merge` does."""
    rng = np.random.default_rng(seed)
    drawn = {n: (rng.random((2, w.size)) < DENSITY).reshape(2, *w.shape) for n, w in base.items()}
    return [{n: mask[i] for n, mask in drawn.items()} for i in range(2)]


def distillation(cell: dict[str, Any]) -> dict[str, Any]:
    """A phase of it on the tiny model, loss by loss."""
    return _modules(cell) if cell["phase"] == 1 else _model(cell)


def _modules(cell: dict[str, Any]) -> dict[str, Any]:
    from lockcross import parity_locks as peer

    given = case("tiny", "none")
    net = replace(small_net(given.config), norm=cell["norm"], rank=7)
    teacher = swiglu_student(given.config)
    x, y = next(captured(given.tensors, given.tokens, given.config, teacher=teacher))
    recipe, start = Recipe(STEPS, 5e-3, seed=1, weight_decay=0.1), dlrnet.initialize(net, np.random.default_rng(1))
    got = peer.distilled(start, x, y, net, recipe, ROWS)
    return _compared(got, lambda start: distilled(start, x, y, net, recipe), start)


def _model(cell: dict[str, Any]) -> dict[str, Any]:
    from lockcross import parity_locks as peer

    config, tensors, locked, net, tokens = healing(cell["norm"])
    recipe = Recipe(STEPS, 5e-3, seed=1, weight_decay=0.1)
    got = peer.healed(config, tensors, locked, net, tokens, recipe, BATCH)
    return _compared(got, lambda locked: healed(config, tensors, locked, net, tokens, recipe), locked)


def _compared(got: list[float], ours: Callable[[Any], list[float]], start: Any) -> dict[str, Any]:
    """torch's losses beside NumPy's, allowed 8 times the drift of NumPy's own from weights moved by their last bits."""
    want = ours(start)
    drift = [np.max(np.abs(np.subtract(ours(_nudged(start, seed)), want))) for seed in range(4)]
    return {
        "losses": float(np.max(np.abs(np.subtract(got, want)))),
        "allowed_losses": 8 * float(max(drift)),
        "steps": STEPS,
        "first": got[0],
        "last": got[-1],
    }


def healing(norm: str) -> tuple[Any, Any, Any, DLRConfig, Any]:
    """What phase 2 is given: sizes, the tiny model, the same with random networks, their shape, and tokens (40, 11)."""
    given = case("tiny", "none")
    net = replace(small_net(given.config), norm=norm, rank=7)
    tokens = np.random.default_rng(9).integers(0, given.config.vocab_size, (40, 11))
    return given.config, given.tensors, with_nets(given.config, given.tensors, net), net, tokens


def healed(config: Any, tensors: Any, locked: Any, net: DLRConfig, tokens: Any, recipe: Recipe) -> list[float]:
    """Losses of phase 2 from these weights, step by step."""
    losses: list[float] = []
    prefixes = [f"model.layers.{i}.mlp." for i in range(config.num_hidden_layers)]
    nets = {i: {n.removeprefix(p): w for n, w in locked.items() if n.startswith(p)} for i, p in enumerate(prefixes)}
    host = {n: w for n, w in locked.items() if n in tensors}
    distill_model(
        lambda batch: qwen3.forward(tensors, batch, config), {**tensors, **host}, nets, tokens, config,
        dlr_student(net), recipe, rows=BATCH, follow=lambda _, value: losses.append(value),
    )  # fmt: skip
    return losses


def tuning(cell: dict[str, Any]) -> dict[str, Any]:
    """The fine-tuning attack on the tiny model with networks, loss by loss."""
    from lockcross import parity_locks as peer

    config, _, locked, net, tokens = healing("rms_gain")
    recipe = Recipe(STEPS, 5e-3, seed=2)
    got = peer.tuned(config, locked, net, TUNED[cell["trains"]], tokens, recipe, BATCH)
    return _compared(got, lambda locked: tuned(config, locked, net, TUNED[cell["trains"]], tokens, recipe), locked)


def tuned(config: Any, locked: Any, net: DLRConfig, trains: Any, tokens: Any, recipe: Recipe) -> list[float]:
    """Losses of a fine-tune from these weights, step by step."""
    losses: list[float] = []
    moving = {n: w for n, w in locked.items() if trains is None or any(part in n for part in trains)}

    def loss(params: Any, rng: np.random.Generator) -> Any:
        batch = tokens[rng.integers(0, len(tokens), min(BATCH, len(tokens)))]
        return qwen3.loss({**locked, **params}, batch, config, locked_block(net))

    train(loss, moving, recipe, follow=lambda _, value: losses.append(value))
    return losses


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
    from lockcross import parity_locks as peer

    given, update = case("tiny", "none"), trap2_update()
    value, gradient = value_and_grad(lambda d: trap2_objective(cell, d))(update)
    power = WEIGHTINGS[cell["weighting"]].power
    got = peer.trap2(given.config, given.tensors, update, given.tokens, cell["s"], power, STRENGTH)
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


def trap2_lora(cell: dict[str, Any]) -> dict[str, Any]:
    """One draw of the objective for LoRA on every projection, and its gradient with respect to A and B."""
    from lockcross import parity_locks as peer

    given, factors = case("tiny", "none"), lora_factors()
    value, gradient = value_and_grad(lambda f: lora_objective(cell, f))(factors)
    power = WEIGHTINGS[cell["weighting"]].power
    got = peer.trap2_adapters(
        given.config, given.tensors, factors, ALPHA, given.tokens, cell["s"], power, PUBLISHED["lora"].strength
    )
    return {
        "objective": abs(got["objective"] - float(value)) / abs(float(value)),
        "allowed_objective": TARGET,
        "gradients": worst(got["gradient"], gradient)[0],
        "allowed_gradients": GRADIENTS,
        "torch_objective": got["objective"],
    }


def _adapted() -> LoRA:
    tensors = case("tiny", "none").tensors
    return LoRA(tensors, tuple(n for n in tensors if n.endswith("_proj.weight")), RANK, ALPHA)


def lora_factors() -> dict[str, Any]:
    """A and B of every projection, both random: a B of zero would hide A's gradient."""
    rng, kind = np.random.default_rng(7), _adapted()
    return {n: rng.standard_normal(w.shape) / w.shape[1] ** 0.5 for n, w in kind.start(rng).items()}


def lora_objective(cell: dict[str, Any], factors: Any) -> Any:
    """One draw of LoRA's objective by NumPy."""
    given, kind, strength = case("tiny", "none"), _adapted(), PUBLISHED["lora"].strength
    nominal, off = (given.loss(kind.applied(factors, s)) for s in (1.0, cell["s"]))
    return nominal - strength * WEIGHTINGS[cell["weighting"]](cell["s"]) * off
