"""MERGE-SCALE: does a merge multiply each member's update by a number?"""

from fractions import Fraction
from itertools import product
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockproofs.claim import (
    BadInput,
    Check,
    Claim,
    Context,
    Counterexample,
    Curve,
    Evidence,
    Grade,
    Plot,
    Source,
    Verdict,
)
from lockref.merging import SETTINGS, expected_scales, fitted_scales, merge, observed_scales
from lockref.merging.entries import combine
from lockref.merging.settings import Entries

PAPER = "arXiv 2601.21898"
Tensors = dict[str, NDArray[Any]]

LINEAR = ("linear-average", "task-arithmetic")
OTHERS = ("ties", "ties-peft", "dare", "slerp", "tsv")
WEIGHTS = (0.5, 0.25, 1.25)  # powers of two and a sum of 2: nothing rounds
DENSITIES = (0.1, 0.3, 0.6, 1.0)
TIES: dict[str, Any] = {"base": [0, 0, 0], "updates": [[1, 1, 1], [1, -3, 2]], "setting": "ties-peft", "density": 1.0}
# Updates for which no scales exist: rows of vectors, or of matrices, on a base.
PLANTED: dict[str, dict[str, Any]] = {
    "TIES": TIES,
    "trimming": {"base": [0, 0], "updates": [[2, 1], [0, 0]], "setting": "magnitude-prune", "density": 0.5},
    "SLERP": {"base": [0, 0, 1], "updates": [[1, 0, 0], [0, 1, 0]], "setting": "slerp"},
    "TSV": {"base": [[0] * 3] * 3, "updates": [[[2, 0, 0], [0, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 0], [0, 0, 3]]],
            "setting": "tsv"},
    "CART": {"base": [[0] * 3] * 3,
             "updates": [[[6, 0, 0], [0, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 9, 0], [0, 0, 1]], [[0] * 3] * 3],
             "setting": "cart"},
}  # fmt: skip


def merged_vector(given: dict[str, Any]) -> tuple[Tensors, list[Tensors], Any]:
    """The planted base, its members, and their merge."""
    setting = SETTINGS[given["setting"]]
    if "density" in given:
        setting = setting.tuned(density=given["density"])
    base = {"w": np.array(given["base"], float)}
    members = [{"w": base["w"] + np.array(update, float)} for update in given["updates"]]
    return base, members, merge(base, members, setting)


def rerun_scale(given: dict[str, Any]) -> str:
    """Merges, and finds the scales that come nearest."""
    base, members, merged = merged_vector(given)
    fit = fitted_scales(base, members, merged)
    update = [f"{x:g}" for x in (merged.tensors["w"] - base["w"]).ravel()]
    nearest = " and ".join(f"{s:.4f}" for s in fit.scales)
    return (
        f"merged update ({', '.join(update)}); the nearest scales, {nearest}, miss it by {fit.residual:.3f} of its norm"
    )


class _Chosen(np.random.Generator):
    """A generator whose uniform draws are given, so that every outcome of a drop can be listed."""

    def __init__(self, draws: NDArray[np.float64]) -> None:
        super().__init__(np.random.PCG64(0))
        self.draws = draws

    def random(self, *_: Any, **__: Any) -> Any:
        return self.draws


def drop_moments(density: Fraction, entries: int = 3) -> tuple[int, int]:
    """Entries whose mean or variance, over all outcomes of one DARE, is not 1 · δ or p/(1−p) · δ²; and all entries.

    density a power of two, so that 1/density and all sums are exact in float64.
    """
    setting = SETTINGS["dare"].tuned(density=float(density))
    assert isinstance(setting.rule, Entries)
    x = np.arange(1.0, 2 * entries + 1).reshape(2, entries)
    mean, square = [Fraction(0)] * (2 * entries), [Fraction(0)] * (2 * entries)
    for kept in product((True, False), repeat=2 * entries):
        draws = np.where(np.array(kept).reshape(x.shape), 0.0, 0.99)
        factors = combine(x, setting.rule, np.ones(2), _Chosen(draws)).factors.ravel()
        p = density ** sum(kept) * (1 - density) ** (2 * entries - sum(kept))
        mean = [m + p * Fraction(f) for m, f in zip(mean, factors, strict=True)]
        square = [s + p * Fraction(f) ** 2 for s, f in zip(square, factors, strict=True)]
    variance = (1 - density) / density
    wrong = [m != 1 or s - m * m != variance for m, s in zip(mean, square, strict=True)]
    return sum(wrong), len(wrong)


def linear_misses(ctx: Context) -> tuple[int, int]:
    """Entries of random integer models that a linear merge doesn't make θ_0 + Σ s_i δ_i exactly; and all entries."""
    rng, wrong, entries = ctx.rng(0), 0, 0
    for _ in range(ctx.cases):
        base = {"w": rng.integers(-99, 100, (3, 4)).astype(float)}
        members = [{"w": base["w"] + rng.integers(-99, 100, (3, 4))} for _ in WEIGHTS]
        for name in LINEAR:
            scales = expected_scales(name, len(members), WEIGHTS)
            assert scales is not None
            want = base["w"] + sum(s.mean * (m["w"] - base["w"]) for s, m in zip(scales, members, strict=True))
            got = merge(base, members, name, weights=WEIGHTS).tensors["w"]
            wrong, entries = wrong + int(np.sum(got != want)), entries + got.size
    return wrong, entries


def experts(ctx: Context) -> tuple[Tensors, list[Tensors], str]:
    """A base and two members: the zoo's; for another model its base and a peer, one random sibling, or two."""
    subject, others, rng = ctx.subject, ctx.subject.checkpoints, ctx.rng(1)
    if subject.is_zoo:
        return subject.model.tensors, [others[f"expert:{n}"].tensors for n in ("add", "reverse")], "the zoo's experts"
    base, tuned = others.get("base", subject.model).tensors, subject.model.tensors
    if {k: v.shape for k, v in base.items()} != {k: v.shape for k, v in tuned.items()}:
        raise BadInput("base and subject have different tensors: give the base that the subject was fine-tuned from")

    def sibling(tensors: Tensors) -> Tensors:
        return {n: w + 0.01 * float(np.std(w)) * rng.standard_normal(w.shape) for n, w in tensors.items()}

    peers = [peer.tensors for peer in subject.peers if not peer.composition.replaces]
    if "base" in others and peers:
        return base, [tuned, peers[0]], "the updates of the subject and a peer"
    first = tuned if "base" in others else sibling(base)
    return (
        base,
        [first, sibling(base)],
        "the subject's update and a random one" if "base" in others else "random updates",
    )


def check_scale(ctx: Context) -> Evidence:
    """Exact on integers where it holds, by counterexample where it does not, and fitted on trained models.

    Proof, for operators that are linear in the updates. Let θ' = Σ a_i θ_i with Σ a_i = 1; then
    θ' − θ_0 = Σ a_i (θ_i − θ_0), so member i is rescaled by a_i = w_i / Σ w. Task arithmetic is
    θ_0 + λ Σ w_i δ_i by definition: a scale of λ w_i. (Σ w θ without division also multiplies θ_0 by Σ w.)

    DARE drops entry j of member i with probability p and multiplies the others by 1/(1−p): its factor
    has mean 1 and variance p/(1−p). One merge is a rescaling only if all its factors are equal.

    TIES that averages the members left: in each entry their factors are 1/a each for the a that agree, so
    they add up to 1 in every entry that is kept. The mean over entries is a scale only on average.

    The other side: for each planted case the distance of the merged update from the span of the members'
    updates is positive, and on the models it is fitted by least squares over all tensors together.

    An operator of its own: CART of two members is their mean, since δ_1 − mean = −(δ_2 − mean) and
    so are the truncations, which cancel whatever c and k are.
    """
    wrong, entries = linear_misses(ctx)
    broken, moments = drop_moments(Fraction(1, 4))
    planted = {name: fitted_scales(*merged_vector(given)).residual for name, given in PLANTED.items()}
    base, members, origin = experts(ctx)
    fits = {
        name: fitted_scales(base, members, merge(base, members, name, rng=ctx.rng(2))) for name in (*LINEAR, *OTHERS)
    }
    fitted_linear = max(fits[name].residual for name in LINEAR)
    curves = ties_curves(base, members)
    agreed = ", ".join(f"{name} {fits[name].residual:.2f}" for name in ("ties", "dare", "slerp", "tsv"))
    least = min(fits[name].residual for name in OTHERS)
    kind = np.result_type(*base.values())
    unit, size = float(np.finfo(kind).eps), sqrt(sum(float(np.sum(np.square(w))) for w in base.values()))
    moved = sqrt(sum(float(np.sum(np.square(m[n] - w))) for m in members for n, w in base.items()))
    return Evidence(
        verdict=Verdict.HOLDS_IF,
        grade=Grade.PROVED,
        condition="the operator is linear in the updates: averages and task arithmetic, with scales w/Σw and λw; "
        "whatever trims, votes, drops, turns along an arc or makes singular vectors orthogonal is not a rescaling",
        explanation=f"Averages and sums multiply each update by a number that is known beforehand. On {origin}, the "
        f"nearest rescaling misses the merged update by this share of its norm: {agreed}. TIES multiplies entries by "
        "0, 1/2 or 1 as members agree, DARE at random by 0 or 1/(1−p), whose mean alone is 1; SLERP also moves "
        "entries that no member changed; TSV and CART drop directions. So a defense that looks at scales of the whole "
        "update has the linear merges in view, and the others only on average.",
        checks=[
            Check(name="linear operators: θ_0 + Σ s_i δ_i exactly", unit="entries", value=wrong, bound=0, sense="==",
                  statistic=f"entries that differ, of {entries:,}, integer models, {len(LINEAR)} operators",
                  tolerance_from="dyadic weights and integers: nothing rounds", cases=ctx.cases * len(LINEAR),
                  seed=ctx.seed),
            Check(name="DARE: mean 1, variance p/(1−p), over all its outcomes", unit="entries", value=broken, bound=0,
                  sense="==", statistic=f"entries with other moments, of {moments}, all 2^{moments} masks, p = 3/4",
                  tolerance_from="rational arithmetic: none", cases=2**moments),
            *(Check(name=f"{name}: no scales exist", unit="relative", value=residual, bound=1e-6, sense=">=",
                    statistic="distance of the planted merge from the span of the updates; far above round-off")
              for name, residual in planted.items()),
            Check(name="linear operators on the models", unit="relative", value=fitted_linear, bound=0.0,
                  statistic="distance from the nearest rescaling, worst of the linear operators",
                  tolerance=8 * unit * size / moved * len(members),
                  tolerance_from="eight roundings of parameters, relative to the norm of the updates",
                  cases=len(LINEAR)),
            Check(name="the others on the models", unit="relative", value=least, bound=0.01, sense=">=",
                  cases=len(OTHERS),
                  statistic="distance from the nearest rescaling, least of TIES (2), DARE, SLERP and TSV"),
        ],
        counterexample=Counterexample(
            given=TIES,
            got=rerun_scale(TIES),
            want="merged update s (1, 1, 1) + t (1, −3, 2) for some s and t",
            by_hand="Sums 2, −2, 3 elect +, −, +. Entry 1: both, (1 + 1)/2 = 1. Entry 2: −3 alone. "
            "Entry 3: both, 3/2.\nFrom entries 1 and 2, s + t = 1 and s − 3t = −3, so s = 0, t = 1, "
            "but entry 3 is then 2, not 3/2.",
        ),
        assumptions=["the base of the merge is the base of the updates", "for random dropping: independent entries"],
        plots=[
            Plot(title="What TIES multiplies a member's update by (divided by the members left)",
                 x_label="density kept by trimming", y_label="factor, mean over the update's entries", curves=curves)
        ],
    )  # fmt: skip


def ties_curves(base: Tensors, members: list[Tensors]) -> list[Curve]:
    """Mean factor of each member, and the share of its entries that is dropped, against density."""
    found = [observed_scales(base, members, SETTINGS["ties-peft"].tuned(density=d)) for d in DENSITIES]
    curves = []
    for i in range(len(members)):
        curves.append(Curve(name=f"member {i + 1}, mean factor", x=[*DENSITIES], y=[s[i].mean for s in found]))
        curves.append(Curve(name=f"member {i + 1}, share dropped", x=[*DENSITIES], y=[s[i].dropped for s in found]))
    return curves


CLAIMS = (
    Claim(
        id="MERGE-SCALE",
        title="A merge rescales each update",
        statement="Merging operators act on each member as a rescaling of its update.",
        source=Source(paper=PAPER, where="the premise of training against scales; worded by us"),
        kind="theorem",
        recorded=Verdict.HOLDS_IF,
        would_change="Nothing: linear operators are proved, and each other one has its counterexample.",
        check=check_scale,
        rerun=rerun_scale,
    ),
)
