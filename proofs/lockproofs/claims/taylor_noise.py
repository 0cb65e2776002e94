"""MergeBarrier's Taylor layers (arXiv 2511.10712): the remainder taken as noise on outputs, and as privacy."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from flint import fmpq
from numpy.typing import NDArray
from scipy.stats import beta

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
from lockproofs.taylor_layers import PAPER, SWIGLU, Layer, observe, text_name
from lockref.attacks.query import least_squares, samples_needed
from lockref.attacks.result import relative_error
from lockref.autodiff import ops
from lockref.locks.bases import CHEBYSHEV, TAYLOR, Basis, Observed
from lockref.locks.taylor import reparameterize
from lockref.locks.taylor_model import ACTIVATION

Array = NDArray[np.float64]

ORDER = 8
UNKNOWNS, TRIALS, FAILURE = 32, 20, 1e-3  # of the integer instances
RATIOS = (1.0, 3.0, 9.0)  # σ_e / σ_a
PAIRS = (2, 4, 8)  # input/output pairs of the model's layer, per unknown
RUNS, CONFIDENCE, BUDGET = 2000, 0.999, 1.0  # of the privacy audit; its null has ε = 1


def integers_recovered(rng: np.random.Generator, ratio: float) -> tuple[int, float]:
    """Of TRIALS integer-LWE instances with as many samples as the bound asks, those solved; and the samples."""
    samples, solved = samples_needed(ratio, 1.0, UNKNOWNS, FAILURE) + UNKNOWNS, 0
    for _ in range(TRIALS):
        secret = rng.integers(-99, 100, (1, UNKNOWNS))
        a = rng.standard_normal((samples, UNKNOWNS))
        found = least_squares(a, a @ secret.T + ratio * rng.standard_normal((samples, 1)))
        solved += int(np.array_equal(np.rint(found.weight), secret))
    return solved, samples


def inputs(layer: Layer, rng: np.random.Generator, pairs: int) -> tuple[Array, Array]:
    """Chosen inputs of the layer: z uniform in each unit's observed range, u normal with the observed spread."""
    shape = (pairs, len(layer.center))
    return rng.uniform(layer.seen.low, layer.seen.high, shape), rng.standard_normal(shape) * layer.u.std(axis=0)


def from_pairs(layer: Layer, rng: np.random.Generator, basis: Basis, pairs: int) -> float:
    """Relative error of W_down, fitted to a locked layer's outputs by silu(z) ∘ u."""
    locked = reparameterize(layer.down, ACTIVATION, layer.seen, ORDER, basis)
    z, u = inputs(layer, rng, pairs)
    return relative_error(least_squares(ops.silu(z) * u, locked(z, u)).weight, layer.down)


def with_noise(layer: Layer, rng: np.random.Generator, pairs: int, noise: float) -> tuple[float, float]:
    """The same for the layer itself with independent Gaussian noise on its outputs; and ‖error‖² over its expectation.

    Given the inputs the error has covariance σ² (AᵀA)⁻¹ in each of d outputs, independently.
    """
    z, u = inputs(layer, rng, pairs)
    a = ops.silu(z) * u
    y = a @ layer.down.T
    found = least_squares(a, y + noise * rng.standard_normal(y.shape))
    expected = len(layer.down) * noise**2 * float(np.sum(found.factor))
    squared = float(np.sum((found.weight - layer.down) ** 2))
    return relative_error(found.weight, layer.down), squared / expected if noise else 0.0


def check_ilwe(ctx: Context) -> Evidence:
    """Least squares on integer instances at the sample bound, and on input/output pairs of the model's locked layers.

    *The bound.* b = As + e, rows of A independent with mean 0 and covariance σ_a² I, e independent of A with mean 0 and
    variance σ_e². Least squares errs by (AᵀA)⁻¹Aᵀe, whose covariance is σ_e² (AᵀA)⁻¹ ≈ σ_e²/(m σ_a²) I. For Gaussian e
    each of n coordinates is off by more than ½ with probability at most 2 exp(−m σ_a²/(8σ_e²)), so m ≥ 8 (σ_e/σ_a)²
    ln(2n/δ) samples give all integers with probability 1 − δ (Bootle et al., ASIACRYPT 2018, who prove it for
    subgaussian e with other constants). Polynomial in everything: without a modulus there is nothing to wrap around. ∎

    *The lock's own remainder* is a function of the input, neither independent of it nor of mean 0, so the estimate
    tends to W plus a bias: the regression of the remainder on the features. With the polynomials' values as features
    there is no remainder, and no bias (TAYLOR-LWE).
    """
    layers = observe(ctx)
    layer = min(layers, key=lambda item: float(np.max(item.share)))
    rng, n = ctx.rng(2), len(layer.center)
    solved = {ratio: integers_recovered(rng, ratio) for ratio in RATIOS}
    errors = {basis.name: [from_pairs(layer, rng, basis, k * n) for k in PAIRS] for basis in (TAYLOR, CHEBYSHEV)}
    noise = float(np.linalg.norm(layer.down) * 0.01)
    noisy = [with_noise(layer, rng, k * n, noise) for k in PAIRS]
    power, _ = with_noise(layer, rng, PAIRS[0] * n, 0.0)
    z, u = inputs(layer, rng, PAIRS[-1] * n)
    nothing = least_squares(ops.silu(z) * u, rng.standard_normal((len(z), len(layer.down))) * noise)
    null = relative_error(nothing.weight, layer.down)
    trials = TRIALS * len(RATIOS)
    instances = ", ".join(
        f"{count} of {TRIALS} cases from {m:,} samples at σ_e/σ_a = {r:g}" for r, (count, m) in solved.items()
    )
    return Evidence(
        verdict=Verdict.REFUTED,
        grade=Grade.MEASURED,
        explanation=(
            "Input/output pairs are samples of learning with errors without a modulus, and least squares solves "
            f"that: {UNKNOWNS} integers come back in {instances}. Of the model's layer with the least ranges, locked "
            f"at order {ORDER}, {PAIRS[-1] * n:,} pairs and the features silu(z) ∘ u give W_down to "
            f"{errors['taylor'][-1]:.1e} in the Taylor basis and {errors['chebyshev'][-1]:.1e} in Chebyshev's: the "
            "better the lock keeps the function, the better the attack. There the remainder, a fixed function of the "
            "input, leaves a bias that more pairs do not remove; independent noise averages out as 1/√m."
        ),
        checks=[
            Check(name="integer secrets at the sample bound: all come back", statistic="instances not solved",
                  unit="instances",
                  value=trials - sum(s for s, _ in solved.values()), bound=0, cases=trials, seed=ctx.seed, tolerance=1,
                  tolerance_from=f"each fails with probability at most {FAILURE:g}: two failures in {trials} have "
                                 "probability below 0.2 %"),
            Check(name="the model's layer behind its Chebyshev lock: W_down from pairs", unit="1",
                  value=errors["chebyshev"][-1],
                  statistic=f"relative error from {PAIRS[-1] * n:,} pairs", bound=0.1, cases=PAIRS[-1] * n,
                  seed=ctx.seed,
                  tolerance_from="none: a tenth counts as recovered here"),
            Check(name="independent noise: the error is what σ_e² (AᵀA)⁻¹ says, so that it falls as 1/√m",
                  statistic="greatest |‖error‖² / expectation − 1| over numbers of pairs", unit="1",
                  value=max(abs(share - 1) for _, share in noisy), bound=0.0,
                  tolerance=6 * math.sqrt(2 / len(layer.down)),
                  tolerance_from="six standard deviations of a mean of d squares, d outputs, if one direction "
                                 "dominates",
                  cases=len(PAIRS), seed=ctx.seed),
        ],
        controls=Controls(
            power=Control(what="a layer without a lock: relative error of W_down", passed=power <= 1e-6, value=power,
                          bound=1e-6, unit="1"),
            null=Control(what="outputs without W: relative error of what comes back", passed=null >= 0.9, value=null,
                         bound=0.9, unit="1"),
        ),
        counterexample=_one_pair(),
        assumptions=[
            "the attacker knows W_gate and W_up, which are released, so it can compute features and choose z and u "
            "of a layer",
            "the bound: independent samples of covariance σ_a² I, noise independent of them with mean 0; the "
            "remainder is neither",
            f"tokens of {text_name(ctx)} set the ranges",
        ],
        deviations=[SWIGLU],
        plots=[
            Plot(title="W_down from input/output pairs of one locked layer", x_label="pairs", y_label="relative error",
                 x_log=True,
                 y_log=True, curves=[
                     *(Curve(name=f"locked, {name}", x=[k * n for k in PAIRS], y=e) for name, e in errors.items()),
                     Curve(name="no lock, independent noise", x=[k * n for k in PAIRS], y=[e for e, _ in noisy])])
        ],
        severity="high",
        fix="None: outputs that are useful are outputs that W can be fitted to.",
    )  # fmt: skip


def nearest_integer(given: dict[str, Any]) -> str:
    """The integers W that one output y = W S₂(1) of silu about 0 allows, from 8/11 < silu(1) < 3/4."""
    if (given["activation"], given["expansion_point"], given["order"], given["z"]) != (ACTIVATION, 0, 2, 1):
        raise ValueError(f"only silu about 0 at order 2 and z = 1 has these rational bounds, not {given}")
    y = fmpq(*map(int, given["output"].split("/")))
    low, high = sorted((y / fmpq(3, 4), y / fmpq(8, 11)))
    nearest = [fmpq(int(((2 * x + 1) / 2).floor())) for x in (low, high)]
    return f"y / silu(1) lies between {low} and {high}, which round to {nearest[0]} and {nearest[1]}"


def _one_pair() -> Counterexample:
    given = {"activation": ACTIVATION, "expansion_point": 0, "order": 2, "z": 1, "output": "15/4"}
    return Counterexample(
        given=given,
        got=nearest_integer(given),
        want="an integer W cannot be told from input/output pairs",
        by_hand="silu about 0 at order 2 is S₂(z) = z/2 + z²/4; S₂(1) = 3/4. The owner's W = 5 answers z = 1 with "
        "15/4.\n"
        "e > 1 + 1 + 1/2 + 1/6 = 8/3 and e < 3, so silu(1) = e/(e + 1) lies between 8/11 and 3/4.\n"
        "One pair: W is near y/silu(1), between (15/4)/(3/4) = 5 and (15/4)/(8/11) = 165/32 < 5.2. Rounded: 5.",
    )


def least_epsilon(first: Sequence[Any], second: Sequence[Any], event: Callable[[Any], bool]) -> float:
    """A lower confidence bound of ε from runs on two neighbors: ln(P(event)/P'(event)), Clopper-Pearson on both."""
    hits, others = sum(map(event, first)), sum(map(event, second))
    alpha = (1 - CONFIDENCE) / 2
    low = float(beta.ppf(alpha, hits, len(first) - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - alpha, others + 1, len(second) - others)) if others < len(second) else 1.0
    return max(0.0, math.log(low / high)) if low > 0 else 0.0


def neighbors_told_apart(layers: Sequence[Layer], rng: np.random.Generator, cases: int) -> int:
    """Pairs of secrets that differ by one bfloat16 step in one weight, and whose answers to one question differ."""
    apart = 0
    for i in range(cases):
        layer = layers[i % len(layers)]
        row, unit = rng.choice(np.argwhere(layer.down))
        token = int(np.argmax(np.abs(ops.silu(layer.z[:, unit]) * layer.u[:, unit])))
        neighbor = layer.down.copy()
        neighbor[row, unit] *= 1 + float(ml_dtypes.finfo("bfloat16").eps)  # type: ignore[no-untyped-call]
        few = layer.down[row] != 0  # a lock refuses columns of zeros
        seen = Observed(*(value[few] for value in vars(layer.seen).values()))
        locked = [reparameterize(w[row : row + 1, few], ACTIVATION, seen, ORDER) for w in (layer.down, neighbor)]
        said = [float(x(layer.z[token, few], layer.u[token, few])[0]) for x in locked]
        apart += said[0] != said[1]
    return apart


def check_dp(ctx: Context) -> Evidence:
    """Point masses: an exact counterexample, neighbors told apart on the model, and an audit with both controls.

    *Lemma.* A deterministic mechanism M that is not constant on neighbors is (ε, δ)-private for no ε < ∞ and δ < 1.
    Proof. Let D, D' be neighbors with M(D) ≠ M(D'), S = {M(D)}. Then P(M(D) ∈ S) = 1 and P(M(D') ∈ S) = 0, and
    1 ≤ e^ε · 0 + δ needs δ ≥ 1. ∎
    The Taylor lock is deterministic: its remainder W R_N(z) is fixed by W and z, whatever is taken to be the private
    data (the weights, what they were trained on, the input). And it is not constant.
    """
    layers, rng = observe(ctx), ctx.rng(2)
    apart = neighbors_told_apart(layers, rng, ctx.cases)
    layer = layers[0]
    locked = reparameterize(layer.down, ACTIVATION, layer.seen, ORDER)
    other = reparameterize(layer.down * (1 + 2.0**-7), ACTIVATION, layer.seen, ORDER)
    first, second = (float(x(layer.z[:1], layer.u[:1])[0, 0]) for x in (locked, other))
    seen = least_epsilon([first] * RUNS, [second] * RUNS, lambda y: y == first)
    laplace = [value + rng.laplace(scale=1 / BUDGET, size=RUNS) for value in (0.0, 1.0)]
    null = least_epsilon(laplace[0].tolist(), laplace[1].tolist(), lambda y: y < 0)
    bare = [float((ops.silu(layer.z[:1]) * layer.u[:1] @ w.T)[0, 0]) for w in (layer.down, layer.down * (1 + 2.0**-7))]
    power = least_epsilon([bare[0]] * RUNS, [bare[1]] * RUNS, lambda y: y == bare[0])
    most = least_epsilon([0] * RUNS, [1] * RUNS, lambda y: y == 0)
    return Evidence(
        verdict=Verdict.REFUTED,
        grade=Grade.PROVED,
        explanation=(
            "Differential privacy compares probabilities, and the remainder has none: the same weights and input "
            "give the same output each time. Two secrets whose outputs differ are told apart with certainty, so no "
            f"finite ε holds, with any δ < 1. On the model, {apart} of {ctx.cases} pairs of secrets that differ by a "
            f"single bfloat16 step in one weight give different answers to one question. An audit of {RUNS:,} runs "
            f"puts ε above {seen:.1f}, all that as many runs can show."
        ),
        checks=[
            Check(name="secrets one rounding step apart are told apart by one question", statistic="pairs that are not",
                  unit="pairs",
                  value=ctx.cases - apart, bound=0, sense="==", cases=ctx.cases, seed=ctx.seed),
            Check(name=f"audited ε of the locked layer ({CONFIDENCE:.1%} confidence)",
                  statistic="lower bound of ln(P/P') for the "
                  "event 'the answer is that of the first secret'", unit="nats", value=seen, bound=most, sense=">=",
                  cases=2 * RUNS, seed=ctx.seed,
                  tolerance_from="none: the bound is what a perfect distinguisher shows in as many runs"),
        ],
        controls=Controls(
            power=Control(what="a layer without a lock: audited ε", passed=power >= most, value=power, bound=most,
                          unit="nats"),
            null=Control(what=f"Laplace noise that is private at ε = {BUDGET:g}: audited ε", passed=null <= BUDGET,
                         value=null, bound=BUDGET,
                         unit="nats"),
        ),
        counterexample=_two_answers(),
        assumptions=["neighbors are secrets that differ in one weight; any other choice fails as well, by the lemma"],
        deviations=[SWIGLU],
        severity="medium",
        fix="Add fresh noise of a stated distribution, calibrated to a stated sensitivity, and prove ε for that.",
    )  # fmt: skip


def answers(given: dict[str, Any]) -> str:
    """What two secrets answer: W S₂(z) for silu about 0, in rational arithmetic."""
    if (given["activation"], given["expansion_point"], given["order"]) != (ACTIVATION, 0, 2):
        raise ValueError(f"only silu about 0 at order 2 has this rational polynomial, not {given}")
    z = fmpq(given["z"])
    first, second = (w * (z / 2 + z * z / 4) for w in given["secrets"])
    chance = int(first == second)
    return f"the secrets answer {first} and {second}: the answer {first} has probability 1 and {chance}"


def _two_answers() -> Counterexample:
    given = {"activation": ACTIVATION, "expansion_point": 0, "order": 2, "z": 1, "secrets": [1, 2]}
    return Counterexample(
        given=given,
        got=answers(given),
        want="for some ε, no answer is more than e^ε times likelier under one secret than under its neighbor",
        by_hand="silu about 0 at order 2 is S₂(z) = z/2 + z²/4, and S₂(1) = 3/4.\n"
        "W = 1 answers 3/4, each time; W = 2 answers 3/2, each time.\n"
        "The answer 3/4 has probability 1 under W = 1 and 0 under W = 2; 1 ≤ e^ε · 0 holds for no ε.",
    )


CLAIMS = (
    Claim(
        id="TAYLOR-ILWE",
        title="Input/output pairs do not reveal the weights",
        statement="With input/output pairs alone, recovering W is infeasible.",
        source=Source(
            paper=PAPER, where="the security argument for re-parameterized feed-forward layers, read for outputs"
        ),
        kind="security",
        recorded=Verdict.REFUTED,
        would_change="Outputs reduced modulo some q, or so noisy that the bound exceeds the queries that anyone "
        "can make.",
        check=check_ilwe,
        rerun=nearest_integer,
    ),
    Claim(
        id="TAYLOR-DP",
        title="The remainder gives differential privacy",
        statement="The remainder gives differential privacy.",
        source=Source(paper=PAPER, where="as readers have it; we have not seen the paper claim it"),
        kind="security",
        recorded=Verdict.REFUTED,
        would_change="Random noise with a proven ε.",
        check=check_dp,
        rerun=answers,
    ),
)
