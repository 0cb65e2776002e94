"""The h-only inversion on locked models that were really trained: what DLR-INVERSION finds in the zoo."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lockproofs.claim import Check, Curve, Plot
from lockproofs.experiments.store import stored
from lockproofs.rounding import UNIT64, rounding_error
from lockref.attacks.fixed_point import lipschitz_bound
from lockref.attacks.inversion import Cell, blocks, inverted
from lockref.autodiff import saved, vjp
from lockref.locks import full
from lockref.locks.distillation import captured, dlr_student
from lockref.locks.dlr import PREFIX
from lockref.models.dlrnet import DLRConfig
from lockref.models.evaluation import held_out_windows
from lockref.models.qwen3 import layer_weights
from lockref.models.zoo import LOCKED_ZOO, zoo_path

TOKENS: Final = 8  # consecutive bytes of one held-out window: positions 0 … 7
DRAWS: Final = 2  # samples of round-off; fewer samples, a smaller tolerance
PRECISIONS: Final = (("float32", None), ("float32", "bfloat16"))
Way = Any  # (config, params, x, g) -> gradients


@dataclass(frozen=True)
class Trained:
    """What inversion does to one locked zoo model, the worst over its layers."""

    name: str
    config: DLRConfig
    layers: int
    stored: float  # elements per token and MLP
    gap: float  # |gradient − default| in units of derived round-off, float64
    state_error: dict[str, list[float]]  # by precision: relative error of each block's input, largest over layers
    expansive: list[int]  # blocks of each MLP that fail the contraction test


def examine(name: str, ways: tuple[Way, Way], rng: np.random.Generator) -> Trained:
    """Runs the attack on every MLP of a zoo model, at activations of held-out text and random cotangents.

    `ways` are default reverse mode and the replayed inversion, as `dlr_inversion` computes them.
    """
    model = full.load(zoo_path(name), np.float64)
    net = model.net
    tokens = held_out_windows(1, TOKENS - 1, seed=3)
    stored, gap, expansive = 0.0, 0.0, []
    errors = {held or dtype: np.zeros(net.depth) for dtype, held in PRECISIONS}
    for i, (x, _) in enumerate(captured(model.tensors, tokens, model.config, teacher=dlr_student(net))):
        own = layer_weights(model.tensors, i)
        params = {n.removeprefix(PREFIX): w for n, w in own.items() if n.startswith(PREFIX)}
        kept = saved(inverted(net), params, x, argnums=(0, 1)).bytes()
        stored = max(stored, kept / (TOKENS * x.itemsize))
        gap = max(gap, gap_in_tolerances(net, params, x, ways, rng))
        for dtype, held in PRECISIONS:
            key = held or dtype
            errors[key] = np.maximum(errors[key], state_errors(net, params, x, dtype, held))
        later = [out for out, _ in Cell(net).forward(blocks(params, net), x)]
        bounds = [lipschitz_bound(w, out, net) for w, out in zip(blocks(params, net), later, strict=True)]
        expansive.append(sum(not q < 1 for q in bounds))
    found = {key: error.tolist() for key, error in errors.items()}
    return Trained(name, net, len(expansive), stored, gap, found, expansive)


def gap_in_tolerances(
    net: DLRConfig, params: Mapping[str, Any], x: Any, ways: tuple[Way, Way], rng: np.random.Generator
) -> float:
    """Largest |difference| of any gradient between inversion and default reverse, in units of its round-off."""
    g = rng.standard_normal(x.shape)
    want, got = ways[0](net, params, x, g), vjp(inverted(net), params, x)[1](g)
    limits = [
        rounding_error(lambda p, x, way=way: way(net, p, x, g), params, x, unit=UNIT64, rng=rng, draws=DRAWS)
        for way in ways
    ]
    ratios = [np.max(np.abs(got[0][n] - want[0][n])) / (limits[0][0][n] + limits[1][0][n]) for n in params]
    return float(max(*ratios, np.max(np.abs(got[1] - want[1])) / (limits[0][1] + limits[1][1])))


def state_errors(net: DLRConfig, params: Mapping[str, Any], x: Any, dtype: str, held: str | None) -> Any:
    """‖x̂_l − x_l‖ / ‖x_l‖ of every block's input, l = 0 … L−1, in one precision."""
    cell = Cell(net, held)
    weights = [{n: w.astype(dtype) for n, w in block.items()} for block in blocks(params, net)]
    start = cell.rounded(x.astype(dtype))
    later, hidden = zip(*cell.forward(weights, start), strict=True)
    states = [start, *later]
    back = list(cell.states(weights, hidden, states[-1]))[::-1]
    pairs = zip(back, states, strict=False)
    return np.array([float(np.linalg.norm(b - s) / np.linalg.norm(s)) for b, s in pairs])


def all_trained(ways: tuple[Way, Way], rng: np.random.Generator) -> list[Trained]:
    """Every locked model of the zoo."""
    return [examine(name, ways, rng) for name in LOCKED_ZOO]


def trained_checks(found: list[Trained], seed: int) -> list[Check]:
    """The attack on the locked models of the zoo, worst over models and layers."""
    most = max(t.stored - (t.config.rank * t.config.depth + t.config.width) for t in found)
    names, layers = " and ".join(t.name for t in found), sum(t.layers for t in found)
    return [
        Check(
            name="trained models: storage", statistic=f"elements per token and MLP beyond r L + d, {names}",
            unit="elements", value=most, bound=0, cases=layers, tolerance_from="integers: no tolerance",
        ),
        Check(
            name="trained models: gradients", unit="tolerances", value=max(t.gap for t in found), bound=1.0,
            statistic=f"largest |gradient by inversion − default| over its tolerance, float64, {names}",
            tolerance_from="the unit: sampled round-off of both computations, unit 2⁻⁵³", cases=layers, seed=seed,
        ),
    ]  # fmt: skip


def trained_words(found: list[Trained]) -> str:
    """What the report says of the trained models, one sentence for each."""
    told = []
    for t in found:
        single, half = (max(t.state_error[key]) for key in ("float32", "bfloat16"))
        failing, all_blocks = sum(t.expansive), t.config.depth * t.layers
        told.append(
            f"On the trained {t.name} the attacker stores {t.stored:.0f} elements per token and MLP; the inputs of "
            f"blocks come back within {single:.1e} in float32 and {half:.1e} where states are held in bfloat16, and "
            f"{failing} of {all_blocks} blocks fail the contraction test of fixed-point inversion."
        )
    return " ".join(told)


def time_words() -> str:
    """What the stored times say, trained models first, drawn networks after them."""
    found = stored("dlr_inversion_time")
    models = [row["wall"][1] for row in found.rows if row["model"] is not None]
    nets = [row["wall"][1] for row in found.where(model=None)]
    return (
        f"In stored times a training step of the trained models takes {min(models):.2f} to {max(models):.2f} of "
        f"default reverse mode's, one of a network alone {min(nets):.2f} to {max(nets):.2f} (medians, "
        f"{len(found.rows)} cells of {found.settings['rounds']} rounds)."
    )


def trained_plot(found: list[Trained]) -> Plot:
    """Error of every block's input by precision and model."""
    return Plot(
        title="Error of the inputs of blocks by inversion, trained models, largest over layers", x_label="block",
        y_label="relative error", y_log=True,
        curves=[
            Curve(name=f"{t.name}, {key}", x=list(range(t.config.depth)), y=errors)
            for t in found for key, errors in t.state_error.items()
        ],
    )  # fmt: skip
