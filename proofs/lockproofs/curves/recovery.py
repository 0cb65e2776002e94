"""How far off recovered weights are: against the size of the task vector, and the precision of the release."""

from collections.abc import Iterable, Sequence

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lockproofs.anchor_trials import RATIOS, Estimate, Exact, Origin, round_off
from lockproofs.attention_trials import release, undo_saved
from lockproofs.claim import Curve, Plot
from lockref.attacks.anchor import procrustes, procrustes_bound
from lockref.locks.attention import TOPK
from lockref.models.checkpoint_io import Checkpoint

Array = NDArray[np.float64]

DTYPES = ("float64", "float32", "float16", "bfloat16")
BY_DTYPE = "unit round-off of the release"


def unit(dtype: str) -> float:
    """u = ε/2 of a dtype."""
    return float(ml_dtypes.finfo(dtype).eps) / 2  # type: ignore[no-untyped-call]


def by_task_vector(turns: Iterable[Estimate], transforms: Iterable[Estimate]) -> Plot:
    """Worst relative error over heads and updates, and the worst of its bounds, for every size of the task vector."""
    weights = [(e.ratio, e.weights_error, e.weights_bound + e.weights_round_off) for e in turns]
    mixes = [(e.ratio, e.error, e.bound + e.round_off) for e in transforms]
    curves = []
    for name, found in (("Procrustes: weights", weights), ("least squares: transform", mixes)):
        for part, what in ((1, "error"), (2, "bound")):
            y = [max(row[part] for row in found if row[0] == ratio) for ratio in RATIOS]
            curves.append(Curve(name=f"{name}, {what}", x=list(RATIOS), y=y))
    return Plot(
        title="Recovered with the public base: worst key head and update",
        x_label="‖τ‖/‖W_0‖, size of the fine-tuning",
        y_label="relative error",
        curves=curves,
    )


def mistakes(planes: Sequence[Exact], units: Sequence[Exact]) -> Plot:
    """Share of plane signs and of MLP units that come back wrong, for every size of the task vector."""
    curves = []
    for name, found in (("plane signs", planes), ("order of MLP units", units)):
        sizes = sorted({e.ratio for e in found if e.ratio is not None})
        wrong = [float(np.mean([not e.right for e in found if e.ratio == ratio])) for ratio in sizes]
        curves.append(Curve(name=name, x=sizes, y=wrong))
    return Plot(
        title="What comes back exactly or not at all, with the public base",
        x_label="‖τ‖/‖W_0‖, size of the fine-tuning",
        y_label="share that is wrong",
        curves=curves,
    )


def by_precision(model: Checkpoint, k: int) -> Plot:
    """The keyless attack on a top-k release saved in four precisions: worst key head, and the worst of its bounds."""
    released = release(model, TOPK, k)
    found = [undo_saved(model, released, k, dtype) for dtype in DTYPES]
    return _precision(
        f"Undone from the release alone (top-{k}), by the precision it is saved in",
        "keyless",
        [(float(np.max(error)), float(np.max(bound))) for error, bound in found],
    )


def base_by_precision(origins: Sequence[Origin], rng: np.random.Generator) -> Plot:
    """Procrustes with the very base, the release saved in four precisions: its rounding is all the task vector."""
    rows = []
    for dtype in DTYPES:
        pairs = [_rounded_turn(base, dtype, rng) for base, _ in origins[0].heads]
        rows.append((max(error for error, _ in pairs), max(bound for _, bound in pairs)))
    return _precision("P recovered with the very base, by the precision of the release", "Procrustes: P", rows)


def _rounded_turn(base: Array, dtype: str, rng: np.random.Generator) -> tuple[float, float]:
    turn = np.linalg.qr(rng.standard_normal((len(base), len(base))))[0]
    released = (turn @ base).astype(np.dtype(getattr(ml_dtypes, dtype, dtype))).astype(np.float64)
    bound = float(procrustes_bound(base, turn.T @ released - base)) + round_off(base)
    return float(np.linalg.norm(procrustes(released, base) - turn)), bound


def _precision(title: str, name: str, rows: Sequence[tuple[float, float]]) -> Plot:
    x = [unit(dtype) for dtype in DTYPES]
    curves = [
        Curve(name=f"{name}, {what}", x=x, y=list(values))
        for what, values in zip(("error", "bound"), zip(*rows, strict=True), strict=True)
    ]
    return Plot(title=title, x_label=BY_DTYPE, y_label="error", x_log=True, y_log=True, curves=curves)
