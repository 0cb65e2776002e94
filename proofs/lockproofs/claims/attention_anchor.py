"""MergeBarrier's attention projection (arXiv 2511.10712) against an attacker who has the public base model."""

from collections.abc import Sequence
from math import isqrt
from typing import Any

import numpy as np
from flint import fmpq

from lockproofs import exact
from lockproofs.anchor_trials import RATIOS, Estimate, Exact, estimates, known_origins, signs, units
from lockproofs.attention_trials import RECOVERED, head_errors, none_found
from lockproofs.claim import (
    Check,
    Claim,
    Context,
    Control,
    Controls,
    Counterexample,
    Curve,
    Evidence,
    Grade,
    Plot,
    Source,
    Verdict,
)
from lockproofs.claims.attention_attacks import FOREIGN
from lockproofs.claims.attention_function import GOVERNING, PAPER
from lockproofs.curves.recovery import base_by_precision, by_task_vector, mistakes
from lockref.attacks.anchor_model import anchor_projection
from lockref.locks.attention import project
from lockref.models.checkpoint_io import Checkpoint


def polar_2x2(m: exact.Matrix) -> exact.Matrix:
    """The orthogonal polar factor of an invertible 2 × 2 matrix: (m + |det m| m⁻ᵀ) over the root of its |det|."""
    total = m + m.inv().transpose() * abs(m.det())
    square = abs(total.det())
    top, bottom = isqrt(int(square.p)), isqrt(int(square.q))
    if fmpq(top * top, bottom * bottom) != square:
        raise ValueError(f"the polar factor has entries over the root of {square}, which is irrational")
    return total * fmpq(bottom, top)


def compared(given: dict[str, Any]) -> str:
    """P and the weights as computed from the base and the release."""
    base_q, base_k = (exact.matrix(given["base"][name]) for name in ("W_q", "W_k"))
    w_q, w_k = (exact.matrix(given["released"][name]) for name in ("W_q", "W_k"))
    p = polar_2x2(base_q.transpose() * w_q + base_k.transpose() * w_k)
    back = [exact.written(w * p.transpose())[0] for w in (w_q, w_k)]
    return f"P = {exact.written(p)}; W_q = ({' '.join(back[0])}), W_k = ({' '.join(back[1])})"


def _counterexample() -> Counterexample:
    given: dict[str, Any] = {
        "base": {"W_q": [[1, 0]], "W_k": [[0, 1]]},
        "released": {"W_q": [["6/5", "8/5"]], "W_k": [["-12/5", "9/5"]]},
    }
    return Counterexample(
        given=given,
        got=compared(given),
        want="no P and no weights: the owner fine-tuned to W_q = (2 0), W_k = (0 3), P = [[3/5, 4/5], [−4/5, 3/5]]",
        by_hand=(
            "C = W_0ᵀW' = (1 0)ᵀ(6/5 8/5) + (0 1)ᵀ(−12/5 9/5) = [[6/5, 8/5], [−12/5, 9/5]] = diag(2, 3) P\n"
            "with P = [[3/5, 4/5], [−4/5, 3/5]] orthogonal, diag(2, 3) positive definite: P is C's polar factor.\n"
            "(6/5 8/5) Pᵀ = (18/25 + 32/25, −24/25 + 24/25) = (2 0); (−12/5 9/5) Pᵀ = (0 3): the owner's weights,\n"
            "though fine-tuning doubled and tripled the base's."
        ),
    )


def _controls(model: Checkpoint, rng: np.random.Generator) -> Controls:
    """A Haar-random P on the base itself must come back; with an unrelated base nothing must."""
    config = model.config
    shape = (config.num_hidden_layers, config.num_key_value_heads, config.head_dim, config.head_dim)
    released = project(model.tensors, config, np.linalg.qr(rng.standard_normal(shape))[0])
    attention = (name for name in model.tensors if name.endswith(("q_proj.weight", "k_proj.weight")))
    stranger = {name: rng.standard_normal(model.tensors[name].shape) for name in attention}
    power, null = (
        head_errors(anchor_projection(released, base, config).guesses[0], model.tensors, config)
        for base in (model.tensors, stranger)
    )
    return Controls(
        power=Control(what="a planted random P is undone with the very base: greatest relative error of a key head",
                      passed=bool(np.max(power) <= RECOVERED), value=float(np.max(power)), bound=RECOVERED, unit="1"),
        null=Control(what="with an unrelated base nothing comes back: least relative error of a key head",
                     passed=bool(np.min(null) >= FOREIGN), value=float(np.min(null)), bound=FOREIGN, unit="1"),
    )  # fmt: skip


def _contained(name: str, statistic: str, found: Sequence[float], seed: int) -> Check:
    derived = "inside the bound: Gram matrix and decomposition in float64, for a transform times cond(W_0)²"
    return Check(
        name=name, statistic=statistic, unit="1", value=max(found), bound=1, cases=len(found), seed=seed,
        tolerance_from=derived,
    )  # fmt: skip


def _plot(turns: dict[str, list[Estimate]]) -> Plot:
    curves = []
    for name, found in turns.items():
        at = [[e for e in found if e.ratio == ratio] for ratio in RATIOS]
        curves += [
            Curve(name=f"{name} update: bound", x=list(RATIOS), y=[max(e.bound for e in part) for part in at]),
            Curve(name=f"{name} update: error", x=list(RATIOS), y=[max(e.error for e in part) for part in at]),
        ]
    return Plot(title="P recovered with the public base: worst key head", x_label="‖τ‖/‖W_0‖, size of the fine-tuning",
                y_label="‖P̂ − P‖_F", curves=curves)  # fmt: skip


def check_anchor(ctx: Context) -> Evidence:
    """Four estimates against their bounds, for trained and random updates from 0 to the size of the weights.

    Rows are head coordinates here: the base is W_0 (c × n), queries and keys of a head side by side; the owner has W =
    W_0 + τ and releases T W. H = W_0W_0ᵀ, E = τW_0ᵀ. Estimates turn with T, so let T = I, estimated by O or I + F.

    *Orthogonal T* (Procrustes: O is a polar factor of W W_0ᵀ = H + E, and minimizes ‖W − O W_0‖_F).
    (1) ‖W − O W_0‖_F ≤ ‖W − W_0‖_F = ‖τ‖_F. So ‖(O − I)W_0‖_F ≤ 2‖τ‖_F, hence ‖O − I‖_F ≤ 2‖τ‖_F/σ_min(W_0); and the
        weights that come back are right to ‖OᵀW − W‖_F = ‖W − OW‖_F ≤ ‖W − OW_0‖_F + ‖O(W_0 − W)‖_F ≤ 2‖τ‖_F, whatever
        σ_min is.
    (2) Let H + E = OK with K ⪰ 0, and D = O − I. Then DK + HD = OK − K + HO − H = E − EᵀO, as Eᵀ = KOᵀ − H gives EᵀO
        = K − HO. The map D ↦ DK + HD shrinks no norm by more than σ_min(H) + σ_min(K), so ‖D‖_F ≤ 2‖E‖_F/(σ_min(H) +
        σ_min(H + E)) (Li 1995). Two orthogonal matrices are never more than 2√c apart. ∎

    *Invertible T* (ridge least squares). I + F = (H + E)(H + ρ)⁻¹, so F = (E − ρ)(H + ρ)⁻¹ and ‖F‖_F ≤ ‖E(H + ρ)⁻¹‖_F +
    ρ‖(H + ρ)⁻¹‖_F. For ρ = 0 it is τW_0⁺, at most ‖τ‖_F/σ_min(W_0). ∎

    *Signs* s on planes. ⟨s(W_0 + τ), W_0⟩ = s(‖W_0‖² + ⟨τ, W_0⟩) on the plane, and |⟨τ, W_0⟩| ≤ ‖τ‖‖W_0‖ < ‖W_0‖² where
    ‖τ‖ < ‖W_0‖. ∎

    *Permutations.* Let t bound the rows of τ, and any two rows of W_0 be more than 2t apart. Assigning unit σ(i) to i ≠
    σ(i) costs ‖w_σ(i) − w⁰_i‖ ≥ ‖w⁰_σ(i) − w⁰_i‖ − t > t ≥ ‖τ_σ(i)‖, so every permutation that moves something costs
    more than the identity, Σ‖τ_i‖². The least cost is the greatest sum of inner products (Hungarian method). ∎
    """
    origins = known_origins(ctx)
    turns, transforms = estimates(origins, ctx.rng(0))
    every = [e for found in turns.values() for e in found]
    planes, order = list(signs(origins, ctx.rng(1))), list(units(origins, ctx.rng(2)))
    given = len(origins) > 1
    at_ten = max(e.weights_error for e in every if e.ratio == RATIOS[1])
    whom = "Of the fine-tuned models at hand" if given else "Of a model with planted updates of a tenth of its weights"
    return Evidence(
        verdict=Verdict.REFUTED,
        grade=Grade.MEASURED,
        explanation=(
            "Fine-tuning moves weights a little and the lock moves them a lot, so the base tells the two apart. "
            f"{whom} {_right(planes, None)} plane signs and {_right(order, None)} MLP units come back exactly; signs "
            f"still do in {_right(planes, RATIOS[-1])} cases where the update is as large as the weights. A rotation "
            "comes back to round-off from the base itself; after updates of a tenth of the weights, the weights "
            f"behind it come back to {at_ten:.1%}. No error exceeded its bound, for updates from nothing to the size "
            "of the weights."
        ),
        checks=[
            _contained("Procrustes: P within its bound", "max ‖P̂ − P‖_F over its bound", [e.share for e in every],
                       ctx.seed),
            _contained("Procrustes: the weights within twice the update", "max ‖Ŵ − W‖_F over 2‖τ‖_F",
                       [e.weights_share for e in every], ctx.seed),
            _contained("least squares: invertible transforms within the bound", "max ‖T⁻¹T̂ − I‖_F over its bound",
                       [e.share for e in transforms], ctx.seed),
            none_found("signs are right where the bound says so", "wrong signs on planes with ‖τ‖ < ‖W_0‖",
                       [e.safe and not e.right for e in planes], ctx.seed),
            none_found("units are matched where the bound says so", "wrong units where all rows are far apart",
                       [e.safe and not e.right for e in order], ctx.seed),
        ],
        controls=_controls(ctx.subject.model, ctx.rng(3)),
        counterexample=_counterexample(),
        assumptions=["the attacker knows the public base, and nothing of the recipe but its kind"],
        deviations=[GOVERNING.model_copy(update={"effect": "none: the attack asks for any orthogonal P"})],
        plots=[
            _plot(turns), by_task_vector(every, transforms), mistakes(planes, order),
            base_by_precision(origins, ctx.rng(4)),
        ],
        severity="high",
        fix="None that keeps the base public: any transform of few parameters for each head is overdetermined.",
    )  # fmt: skip


def _right(found: Sequence[Exact], ratio: float | None) -> str:
    part = [e.right for e in found if e.ratio == ratio]
    return f"{sum(part)} of {len(part)}"


CLAIMS = (
    Claim(
        id="MB-ANCHOR",
        title="The public base keeps the secret",
        statement="Knowing the public base model does not reveal P.",
        source=Source(paper=PAPER, where="attention projection, threat model"),
        kind="security",
        recorded=Verdict.REFUTED,
        would_change="A base that is not public, or fine-tuning that moves weights further than they are long.",
        check=check_anchor,
        rerun=compared,
    ),
)
