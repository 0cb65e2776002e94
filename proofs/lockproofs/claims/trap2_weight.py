"""TRAP-WEIGHT: what the weighting of Trap² (arXiv 2601.21898) does to the gradient."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from flint import fmpq, fmpq_mpoly, fmpq_mpoly_ctx
from numpy.typing import NDArray

from lockproofs.claim import (
    BadInput,
    Check,
    Claim,
    Context,
    Control,
    Controls,
    Curve,
    Evidence,
    Grade,
    Plot,
    Source,
    Verdict,
)
from lockref.autodiff import grad
from lockref.locks.trap2 import WEIGHTINGS, Weighting, sample_scale, scaled
from lockref.models import qwen3
from lockref.models.skills import pack_lines

Tensors = dict[str, NDArray[Any]]

PAPER = "Trap² (arXiv 2601.21898)"
SHAPES = ((1, 1, 1), (2, 2, 1), (2, 3, 1), (2, 2, 2))  # (rows, columns, LoRA rank) of the exact cases
TERMS, DEGREE = 6, 4  # of the random polynomial losses
ROWS, LENGTH = 2, 32  # tokens of the measured loss
EXACT_SCALES = (0.0625, 0.125, 0.25, 0.5, 2.0)  # powers of two: scaling by them rounds nothing
DRAWN = 4  # scales drawn from the published interval
GRID = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.95, 1.05, 1.4, 2.0)  # of the plot, over that interval
UNWEIGHTED = Weighting(0.0, "no weighting")
PLANTED = Weighting(2.0, "planted: one power of s too many")


def _fraction(rng: np.random.Generator) -> fmpq:
    return fmpq(int(rng.integers(1, 10)) * int(rng.choice([-1, 1])), int(rng.integers(1, 7)))


def _polynomial(rng: np.random.Generator, ring: Any) -> fmpq_mpoly:
    """A random polynomial over the rationals, linear in every variable so that no derivative is zero."""
    variables = ring.gens()
    total: fmpq_mpoly = ring.constant(0)
    for chosen in [[i] for i in range(len(variables))] + [
        rng.integers(0, len(variables), rng.integers(2, DEGREE + 1)).tolist() for _ in range(TERMS)
    ]:
        total += math.prod((variables[i] for i in chosen), start=ring.constant(_fraction(rng)))
    return total


def _product(free: Sequence[fmpq_mpoly], rows: int, columns: int, rank: int) -> list[fmpq_mpoly]:
    """The entries of BA, row after row; the free variables are B's and then A's."""
    b, a = free[: rows * rank], free[rows * rank :]
    return [
        sum((b[i * rank + k] * a[k * columns + j] for k in range(1, rank)), b[i * rank] * a[j])
        for i, j in product(range(rows), range(columns))
    ]


def broken_identities(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    weighting: Weighting,
    *,
    lora: bool,
    left: float = 0.0,
    scaled_factors: int = 1,
) -> tuple[int, int]:
    """How many components of ∇_θ[w(s) L(W₀ + sM)] = s^left ∇_θ M · ∇L(W₀ + sM) fail, and of how many.

    Polynomial identities in every parameter θ and in √s, so each holds for all of them at once: M is Δ
    itself or BA, L a random polynomial. With `scaled_factors` 2, both LoRA factors carry s.
    """
    rows, columns, rank = shape
    count = (rows + columns) * rank if lora else rows * columns
    outer = fmpq_mpoly_ctx.get([f"w{i}" for i in range(rows * columns)])
    ring = fmpq_mpoly_ctx.get([*(f"p{i}" for i in range(count)), "root_s"])
    *free, root = ring.gens()
    loss = _polynomial(rng, outer)
    update = _product(free, rows, columns, rank) if lora else free
    point = [_fraction(rng) + root ** (2 * scaled_factors) * m for m in update]
    composed = loss.compose(*point, ctx=ring)
    pulled = [loss.derivative(j).compose(*point, ctx=ring) for j in range(len(point))]
    power = 2 * (weighting.power + left)  # of √s in the weight; both sides are multiplied by it
    if power != int(power):
        raise ValueError(f"the weighting s^-{weighting.power:g} is not a power of √s; no exact identity to check")
    wanted = (sum(m.derivative(i) * g for m, g in zip(update, pulled, strict=True)) for i in range(count))
    return sum(composed.derivative(i) != root ** int(power) * want for i, want in enumerate(wanted)), count


def exactly(ctx: Context, weighting: Weighting, **how: Any) -> tuple[int, int, int]:
    """Broken identities, all identities, and all losses, over every shape, full updates and LoRA."""
    rng, kinds = ctx.rng(0), list(product(SHAPES, (True,) if "scaled_factors" in how else (False, True)))
    rounds = -(-ctx.cases // len(kinds))
    found = [broken_identities(rng, shape, weighting, lora=lora, **how) for shape, lora in kinds * rounds]
    return sum(b for b, _ in found), sum(n for _, n in found), len(found)


def _exact_check(name: str, statistic: str, ctx: Context, weighting: Weighting, *, wrong: bool, **how: Any) -> Check:
    broken, identities, losses = exactly(ctx, weighting, **how)
    return Check(
        name=name,
        statistic=f"polynomial identities that fail, of {identities:,}: {statistic}",
        unit="identities",
        value=broken,
        bound=identities if wrong else 0,
        sense="==",
        tolerance_from="rational arithmetic: none",
        cases=losses,
        seed=ctx.seed,
    )


@dataclass(frozen=True)
class Measured:
    """The engine's gradients of a model's loss around a base with an update."""

    base: Tensors
    update: Tensors
    tokens: NDArray[np.integer[Any]]
    config: qwen3.Qwen3Config

    def weighted(self, s: float, weighting: Weighting) -> Tensors:
        """∇_Δ[w(s) L(W₀ + sΔ)]."""

        def objective(update: Tensors) -> Any:
            return weighting(s) * qwen3.loss(scaled(self.base, update, s), self.tokens, self.config)

        return dict(grad(objective)(self.update))

    def plain(self, s: float, dtype: Any = np.float64) -> Tensors:
        """∇L at W₀ + sΔ, computed in `dtype`."""
        point = {k: v.astype(dtype) for k, v in scaled(self.base, self.update, s).items()}
        return dict(grad(lambda p: qwen3.loss(p, self.tokens, self.config))(point))


def measured(ctx: Context) -> tuple[Measured, str]:
    """The audited model with an update, and where the update is from.

    The zoo's is what fine-tuning on addition changed; a model with a base has its own; any other gets a
    random one of a hundredth of each tensor's norm. Raises BadInput where base and model differ in shape.
    """
    model, others, rng = ctx.subject.model, ctx.subject.checkpoints, ctx.rng(1)
    if ctx.subject.is_zoo:
        tokens = pack_lines("add", rng, ROWS, LENGTH, held_out=True).astype(np.int64)
        base, tuned, origin = model.tensors, others["expert:add"].tensors, "fine-tuning on addition"
    else:
        tokens = rng.integers(0, model.config.vocab_size, (ROWS, LENGTH))
        base, tuned, origin = others.get("base", model).tensors, model.tensors, "fine-tuning its base"
    if {k: v.shape for k, v in base.items()} != {k: v.shape for k, v in tuned.items()}:
        raise BadInput("base and subject have different tensors: give the base that the subject was fine-tuned from")
    if "base" in others or ctx.subject.is_zoo:
        update = {k: tuned[k] - v for k, v in base.items()}
    else:
        origin = "a random draw, a hundredth of each tensor's norm"
        update = {k: 0.01 * _norm({k: v}) / np.sqrt(v.size) * rng.standard_normal(v.shape) for k, v in base.items()}
    return Measured(base, update, tokens, model.config), origin


def _norm(tensors: Tensors) -> float:
    return float(np.sqrt(sum(np.sum(np.square(t, dtype=np.float64)) for t in tensors.values())))


def _distance(x: Tensors, y: Tensors, factor: float = 1.0) -> float:
    """‖x − factor · y‖ / ‖factor · y‖ over all tensors together."""
    wanted = {k: factor * v for k, v in y.items()}
    return _norm({k: x[k] - v for k, v in wanted.items()}) / _norm(wanted)


def _differing(x: Tensors, y: Tensors) -> int:
    return sum(int(np.sum(x[k] != v)) for k, v in y.items())


def _float_checks(ctx: Context, model: Measured) -> list[Check]:
    """Bit for bit where scaling rounds nothing; elsewhere to the round-off of the model's gradient."""
    method, milder = WEIGHTINGS["1/s"], WEIGHTINGS["1/sqrt(s)"]
    entries = sum(d.size for d in model.update.values())
    different = sum(_differing(model.weighted(s, method), model.plain(s)) for s in EXACT_SCALES)
    # A gradient's relative error is its amplification times the unit round-off, in either precision.
    units = float(np.finfo(np.float64).eps / np.finfo(np.float32).eps)
    far, far_milder, allowed = 0.0, 0.0, 0.0
    for s in sample_scale(ctx.rng(2), DRAWN):
        plain = model.plain(s)
        far = max(far, _distance(model.weighted(s, method), plain))
        far_milder = max(far_milder, _distance(model.weighted(s, milder), plain, s**0.5))
        single = _distance(model.plain(s, np.float32), plain)
        allowed = max(allowed, 2 * units * single + 3 * float(np.finfo(np.float64).eps))
    reason = (
        "two gradients, each as far from exact as its float32 version is from it, times the ratio of the two "
        "precisions; three roundings by s and w"
    )

    def near(name: str, statistic: str, value: float) -> Check:
        return Check(
            name=name, statistic=statistic, unit="relative", value=value, bound=0.0,
            tolerance=allowed, tolerance_from=reason, cases=DRAWN, seed=ctx.seed,
        )  # fmt: skip

    return [
        Check(
            name="1/s on the model, s a power of two: the gradients are the same bits",
            statistic=f"entries that differ, of {entries:,} at each of {len(EXACT_SCALES)} scales",
            unit="entries",
            value=different,
            bound=0,
            sense="==",
            tolerance_from="powers of two scale without rounding: none",
            cases=len(EXACT_SCALES),
        ),
        near(
            "1/s on the model, s drawn as published: the gradient is ∇L at W₀ + sΔ",
            "‖∇_Δ[L(W₀ + sΔ)/s] − ∇L‖ / ‖∇L‖, worst scale",
            far,
        ),
        near(
            "1/√s on the model: a factor √s is left",
            "‖∇_Δ[L(W₀ + sΔ)/√s] − √s ∇L‖ / ‖√s ∇L‖, worst scale",
            far_milder,
        ),
    ]


def _controls(ctx: Context, model: Measured) -> Controls:
    """A wrong weighting must break every identity; at s = 1, where all weightings are 1, it must not show."""
    broken, identities, _ = exactly(ctx, PLANTED)
    different = _differing(model.weighted(1.0, PLANTED), model.plain(1.0))
    return Controls(
        power=Control(
            what="1/s² in place of 1/s: every exact identity must fail",
            passed=broken == identities,
            value=broken,
            bound=identities,
            unit="identities",
        ),
        null=Control(
            what="1/s² at s = 1, where it is right: no entry of the model's gradient may differ",
            passed=different == 0,
            value=different,
            bound=0,
            unit="entries",
        ),
    )


def check_weight(ctx: Context) -> Evidence:
    """Exact polynomial identities for random losses, and the engine's gradients on the model.

    Proof. Let L be differentiable at W₀ + sΔ, s > 0 fixed, F(Δ) = w(s) L(W₀ + sΔ). For a direction H,
    the chain rule gives DF(Δ)[H] = w(s) DL(W₀ + sΔ)[sH] = w(s) s ⟨∇L(W₀ + sΔ), H⟩, by linearity, so
    ∇F(Δ) = w(s) s ∇L(W₀ + sΔ); with w(s) = 1/s the factor is 1, with 1/√s it is √s, and it is the same for
    all s only where w(s) is a constant times 1/s.

    LoRA with B scaled: W = W₀ + (sB)A. DW[δB] = s δB A and DW[δA] = s B δA, so with G = ∇L(W)
    ∇_B = w s G Aᵀ and ∇_A = w s Bᵀ G: the same factor on both, and 1/s removes it. With both factors
    scaled, W = W₀ + s²BA, the factor is w s², and 1/s would leave s. ∎

    The exact checks state each component as a polynomial identity in the parameters and √s, over the
    rationals. On the model, s = 2^k scales every cotangent without rounding, so the two gradients must
    agree bit for bit; elsewhere to a tolerance that the model's own float32 gradient gives.
    """
    model, origin = measured(ctx)
    named = {"no weighting": UNWEIGHTED, **WEIGHTINGS}
    norms = {name: [_norm(model.weighted(s, w)) for s in GRID] for name, w in named.items()}
    least, plain, mended = GRID[0], norms["no weighting"][0], norms["1/s"][0]
    return Evidence(
        verdict=Verdict.HOLDS,
        grade=Grade.PROVED,
        explanation="The chain rule puts a factor s on the gradient with respect to the update, for a full update and, "
        "with B alone scaled, for both LoRA factors; 1/s removes exactly that factor, and up to a constant no other "
        f"weighting does. On the model (update: {origin}) at s = {least:g} the gradient's norm is {plain:.3g} "
        f"unweighted and {mended:.3g} weighted. What is compensated is the factor: the gradient that remains, "
        "∇L(W₀ + sΔ), still depends on s.",
        checks=[
            _exact_check("1/s: ∇_Δ[w L] is ∇L, full updates and LoRA with B scaled",
                         "∇_θ[w(s) L(W₀ + sM)] = ∇_θ M · ∇L", ctx, WEIGHTINGS["1/s"], wrong=False),
            _exact_check("1/√s: a factor √s is left",
                         "∇_θ[w(s) L(W₀ + sM)] = √s ∇_θ M · ∇L", ctx, WEIGHTINGS["1/sqrt(s)"], wrong=False, left=0.5),
            _exact_check("1/s with both LoRA factors scaled: not compensated, every identity fails",
                         "∇_θ[w(s) L(W₀ + s²BA)] = ∇_θ(BA) · ∇L", ctx, WEIGHTINGS["1/s"], wrong=True,
                         scaled_factors=2),
            *_float_checks(ctx, model),
        ],
        controls=_controls(ctx, model),
        assumptions=[
            "the loss is differentiable at W₀ + sΔ",
            "the gradient before clipping and before the optimizer rescales it",
        ],
        plots=[
            Plot(
                title="The gradient of the weighted loss with respect to the update, on the model",
                x_label="scale s",
                y_label="‖∇_Δ[w(s) L(W₀ + sΔ)]‖",
                x_log=True,
                y_log=True,
                curves=[Curve(name=name, x=[*GRID], y=[*y]) for name, y in norms.items()],
            )
        ],
    )  # fmt: skip


CLAIMS = (
    Claim(
        id="TRAP-WEIGHT",
        title="The weighting 1/s compensates the shrinking gradient",
        statement="w(s) = 1/s exactly compensates the shrinking gradient at small s.",
        source=Source(paper=PAPER, where="the objective's weighting w(s)"),
        kind="theorem",
        recorded=Verdict.HOLDS,
        would_change="Scaling both LoRA factors, or a loss that is not differentiable on the path W₀ + sΔ.",
        check=check_weight,
    ),
)
