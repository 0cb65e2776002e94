"""TRAP-BOUNDED: whether the objective of Trap² has a minimum at all."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from flint import fmpq, fmpq_mpoly_ctx

from lockproofs.claim import Check, Claim, Context, Counterexample, Curve, Evidence, Grade, Plot, Source, Verdict
from lockproofs.claims.trap2_weight import LENGTH, PAPER, ROWS
from lockref.autodiff import ops, value_and_grad
from lockref.locks.dlr_training import Recipe, train
from lockref.locks.trap2 import WEIGHTINGS, objective, quadrature, scaled
from lockref.models import qwen3

METHOD = WEIGHTINGS["1/s"]
LOW, NEAR, BEYOND, HIGH = fmpq(1, 20), fmpq(19, 20), fmpq(21, 20), fmpq(2)  # the published intervals
STRENGTH = 0.005  # published for full updates
NODES = 8
REACHES = (100.0, 1000.0, 10_000.0)
GIVEN: dict[str, Any] = {"lambda": STRENGTH, "t": [1000, 10_000, 100_000]}
FEATURE, HEAD = np.array([[-1.0]]), np.zeros((1, 2))  # one hidden unit, two classes; the label is the first
BOWL = np.array([1.0, -2.0, 0.5])  # Δ* of the quadratic loss


def expected_scale() -> Any:
    """E[s] of the published law, exactly; with w = 1/s it is E[w s²], while E[w s] = 1."""
    return (NEAR**2 - LOW**2 + HIGH**2 - BEYOND**2) / (2 * (NEAR - LOW + HIGH - BEYOND))


def expected_shortfall() -> Any:
    """E[max(1 − s, 0)] of the published law, exactly."""
    return ((1 - LOW) ** 2 - (1 - NEAR) ** 2) / (2 * (NEAR - LOW + HIGH - BEYOND))


def network_loss(w: Mapping[str, Any]) -> Any:
    """Cross-entropy of logits feature · head at the first class."""
    return ops.cross_entropy(w["feature"] @ w["head"], targets=np.array([0]))


def losses(t: float) -> tuple[float, float]:
    """L(W₀ + sΔ_t) of the small network at s = 1 and s = 1/2, Δ_t = (1; t, 0)."""
    base, update = {"feature": FEATURE, "head": HEAD}, {"feature": -FEATURE, "head": np.array([[t, 0.0]])}
    one, half = (float(network_loss(scaled(base, update, s))) for s in (1.0, 0.5))
    return one, half


def rerun_bounded(given: dict[str, Any]) -> str:
    """The small network's losses, and the bound on J along Δ_t."""
    shortfall, said = expected_shortfall(), []
    for t in given["t"]:
        one, half = losses(t)
        bound = math.log(2) - given["lambda"] * t * float(shortfall)
        said.append(f"t = {t:,}: L = {one:.4f} at s = 1, {half:.1f} at s = 1/2, J ≤ {bound:.2f}")
    return "; ".join(said)


def broken_identity() -> int:
    """0 where, for one draw, ½(Δ−Δ*)² − λw½(sΔ−Δ*)² is the stated quadratic in Δ, as polynomials; else 1."""
    ring = fmpq_mpoly_ctx.get(["update", "goal", "strength", "w", "s"])
    x, goal, strength, w, s = ring.gens()
    half = ring.constant(fmpq(1, 2))
    drawn = half * (x - goal) ** 2 - strength * w * half * (s * x - goal) ** 2
    stated = (
        half * (1 - strength * w * s**2) * x**2
        - (1 - strength * w * s) * x * goal
        + half * (1 - strength * w) * goal**2
    )
    return int(drawn != stated)


def sides_of_the_threshold() -> int:
    """Of λ = ½, 1 and 2 times 1/E[w s²]: how often J does not do what the theorem says, in rational numbers.

    J(Δ) − J(0) along Δ* is ½(1 − λE[ws²])x² − (1 − λ)x for Δ = xΔ*, |Δ*| = 1: below the threshold it is least at
    (1 − λ)/(1 − λE[ws²]); at and above it, it falls below −n for every n.
    """
    m2, wrong = expected_scale(), 0

    def rise(strength: Any, x: Any) -> Any:
        return (1 - strength * m2) * x * x / 2 - (1 - strength) * x

    below = 1 / (2 * m2)
    least = (1 - below) / (1 - below * m2)
    wrong += not all(rise(below, least) < rise(below, least + step) for step in (fmpq(1, 1000), fmpq(-1, 1000)))
    for strength in (1 / m2, 2 / m2):
        wrong += not all(min(rise(strength, x), rise(strength, -x)) < -n for n in (10, 10**6) for x in [fmpq(10**9)])
    return wrong


def optimum(strength: float, steps: int = 300) -> tuple[float, float]:
    """The trainer on the quadratic loss: its distance from the stated minimizer, and the bound on it.

    J is (1 − λE[ws²])-strongly convex, so the distance is at most ‖∇J‖/(1 − λE[ws²]). The expectation over s is by
    quadrature, which is exact here: the gradient is a polynomial in s.
    """
    scales, chances = quadrature(2)

    def whole(params: Mapping[str, Any], rng: Any = None) -> Any:
        def loss(w: dict[str, Any]) -> Any:
            gap = w["x"] - BOWL
            return 0.5 * ops.sum(gap * gap)

        drawn = [objective(loss, {"x": 0 * BOWL}, params, s, METHOD, strength) for s in scales]
        return sum(p * j for p, j in zip(chances, drawn, strict=True))

    end = train(whole, {"x": np.zeros(3)}, Recipe(steps, 0.1, clip=10.0)).params
    slope = float(np.linalg.norm(value_and_grad(whole)(end)[1]["x"]))
    m2 = float(expected_scale())
    stated = BOWL * (1 - strength) / (1 - strength * m2)
    return float(np.linalg.norm(end["x"] - stated)), slope / (1 - strength * m2)


def model_path(ctx: Context) -> tuple[float, list[float]]:
    """On the audited model: its loss at s = 1, and J, both along Δ_t = (−gain of the last norm, −t · output head).

    At s the logits are (1 − s)(1 − s t) times what they were, where the head is not tied to the embedding.
    """
    model = ctx.subject.model
    head = "model.embed_tokens.weight" if model.config.tie_word_embeddings else "lm_head.weight"
    tokens = ctx.rng(5).integers(0, model.config.vocab_size, (ROWS, LENGTH))
    scales, chances = quadrature(NODES)

    def loss(s: float, t: float) -> float:
        update = {"model.norm.weight": -model.tensors["model.norm.weight"], head: -t * model.tensors[head]}
        return float(qwen3.loss(scaled(model.tensors, update, s), tokens, model.config))

    nominal = loss(1.0, REACHES[-1])
    found = []
    for t in REACHES:
        off = sum(p * METHOD(s) * loss(s, t) for s, p in zip(scales, chances, strict=True))
        found.append(nominal - STRENGTH * float(off))
    return nominal, found


def check_bounded(ctx: Context) -> Evidence:
    """A direction of descent without end, and the theory of the quadratic loss on both sides of its threshold.

    Theorem 1. Take one hidden unit a and a head (b, 0) with logits (ab, 0), cross-entropy at the first class, a₀ = −1,
    b₀ = 0. For every λ > 0 the objective J is not bounded below.

    Proof. Δ_t = (1, t), t > 0, gives logits ((s − 1)st, 0) at scale s. At s = 1 both are 0 and L = ln 2, whatever t.
    For s < 1, L = ln(1 + e^{(1−s)st}) ≥ (1 − s)st, and elsewhere L > 0. With w = 1/s
    J(Δ_t) ≤ ln 2 − λ t E[max(1 − s, 0)], and the expectation is positive. ∎

    The same direction exists in any model with a gain and an output head: remove the gain at s = 1, and let the head
    point away from the labels at s < 1.

    Theorem 2. For L(Δ) = ½‖Δ − Δ*‖², J is bounded below if and only if λE[ws²] < 1 (apart from λE[ws²] = λE[ws] = 1,
    where it is constant), and then its minimizer is unique: Δ*(1 − λE[ws])/(1 − λE[ws²]).

    Proof. One draw is ½(1 − λws²)‖Δ‖² − (1 − λws)⟨Δ, Δ*⟩ + ½(1 − λw)‖Δ*‖² (checked as polynomials); J is its
    expectation, which is linear in w, ws and ws². A quadratic function is bounded below where its leading coefficient
    is positive, with the stated vertex; otherwise it falls without end along ±Δ*, or is linear. ∎
    """
    m2 = expected_scale()
    distance, allowed = optimum(0.5)
    nominal, path = model_path(ctx)
    vocabulary = ctx.subject.model.config.vocab_size
    steepest = float(expected_shortfall())
    far = GIVEN["t"][-1]
    bound = math.log(2) - STRENGTH * far * steepest
    uniform = math.log(vocabulary)
    return Evidence(
        verdict=Verdict.REFUTED,
        grade=Grade.PROVED,
        explanation=(
            "For cross-entropy the objective has no least value, for any λ > 0: an update that is harmless at s = 1 "
            "can be made as bad as one likes at other scales, and each unit of that lowers J. On a network with one "
            f"hidden unit J falls by at least {STRENGTH * steepest:.4f} per unit of t at the published λ = "
            f"{STRENGTH:g}; on the audited model, with its last gain removed and its head turned, J reaches "
            f"{path[-1]:.0f}. Training is kept finite by its small λ, few steps and clipping, not by the objective. "
            f"For a quadratic loss the objective is well posed exactly below λ = 1/E[ws²], which is {m2.q}/{m2.p} = "
            f"{1 / float(m2):.4f} for w = 1/s and the published law of s, and the trainer finds the stated minimizer."
        ),
        checks=[
            Check(
                name="J falls below every bound", unit="nats", value=bound, bound=0.0,
                statistic=f"ln 2 − λ t E[max(1 − s, 0)] ≥ J(Δ_t) at t = {far:,}, λ = {STRENGTH:g}; losses are ≥ 0",
                tolerance_from="an upper bound that is proved; E[max(1 − s, 0)] is rational",
            ),
            Check(
                name="the small network at s = 1", unit="nats", value=max(losses(t)[0] for t in GIVEN["t"]),
                bound=math.log(2), tolerance=2.0**-51, cases=len(GIVEN["t"]),
                statistic="max L(W₀ + Δ_t) over t: it stays at ln 2", tolerance_from="two roundings near 1",
            ),
            Check(
                name="the small network at s = 1/2", unit="1", value=min(losses(t)[1] / (t / 4) for t in GIVEN["t"]),
                bound=1.0, sense=">=", tolerance=2.0**-51, cases=len(GIVEN["t"]),
                statistic="min L(W₀ + Δ_t/2)/(t/4): at least linear in t", tolerance_from="two roundings near 1",
            ),
            Check(
                name="the model: J along the turned head", unit="nats", value=path[-1], bound=0.0,
                statistic=f"J(Δ_t) at t = {REACHES[-1]:g}, λ = {STRENGTH:g}, {2 * NODES} scales by quadrature",
                tolerance_from="none: any value below zero shows a weighted loss that outweighs the nominal one",
                cases=len(REACHES), seed=ctx.seed,
            ),
            Check(
                name="the model at s = 1", unit="nats", value=nominal, bound=uniform, sense="==",
                tolerance=4 * uniform * 2.0**-52, seed=ctx.seed,
                statistic="L(W₀ + Δ_t): no gain, so equal logits: ln of the vocabulary's size",
                tolerance_from="logits are exactly 0; sum, logarithm and mean of equal numbers: 4 roundings",
            ),
            Check(
                name="quadratic loss: one draw", unit="identities", value=broken_identity(), bound=0, sense="==",
                statistic="polynomial identities in Δ, Δ*, λ, w, s that fail",
                tolerance_from="rational arithmetic: none",
            ),
            Check(
                name="quadratic loss: both sides of the threshold", unit="cases", value=sides_of_the_threshold(),
                bound=0, sense="==", statistic="cases of λ = ½, 1, 2 times 1/E[ws²] that do not do what Theorem 2 says",
                tolerance_from="rational arithmetic: none", cases=3,
            ),
            Check(
                name="quadratic loss: the trainer's optimum", unit="1", value=distance, bound=allowed, tolerance=1e-12,
                statistic="‖Δ − Δ*(1 − λ)/(1 − λE[s])‖ at λ = ½ after 300 steps of AdamW",
                tolerance_from="bound: ‖∇J‖/(1 − λE[s]) by strong convexity; 1e-12 for some thousand roundings near 1",
            ),
        ],
        counterexample=Counterexample(
            given=GIVEN,
            got=rerun_bounded(GIVEN),
            want="a value that J never falls below",
            by_hand=(
                "logits (a·b, 0), label 1, a₀ = −1, b₀ = 0, update (1, t): at scale s a = s − 1, b = s t\n"
                "s = 1: a = 0, logits (0, 0), L = ln 2 for every t\n"
                "s = 1/2: a·b = −t/4, L = ln(1 + e^{t/4}) ≥ t/4, and so on: L ≥ (1 − s) s t for s < 1\n"
                "w L = L/s ≥ (1 − s) t; its mean over s in [0.05, 0.95] ∪ [1.05, 2] is at least t · 0.45/1.85 = 9t/37\n"
                "J ≤ ln 2 − 0.005 · 9t/37: −0.52 at t = 1,000, −11.5 at 10,000, −121 at 100,000"
            ),
        ),
        assumptions=["J as it is stated: no weight decay, no bound on the update, no early stopping"],
        plots=[
            Plot(
                title="The objective along one direction of the audited model", x_label="t", y_label="J in nats",
                curves=[Curve(name=f"λ = {STRENGTH:g}", x=[*REACHES], y=[*path])],
            )
        ],
        fix="bound the second term (a ceiling on L(W₀ + sΔ), or its logarithm), or add a penalty on ‖Δ‖",
    )  # fmt: skip


CLAIMS = (
    Claim(
        id="TRAP-BOUNDED",
        title="The objective is a well-posed minimization",
        statement="J is a well-posed minimization.",
        source=Source(paper=PAPER, where="the training objective; worded by us"),
        kind="theorem",
        recorded=Verdict.REFUTED,
        would_change="A bounded loss, or an objective that bounds its second term.",
        check=check_bounded,
        rerun=rerun_bounded,
    ),
)
