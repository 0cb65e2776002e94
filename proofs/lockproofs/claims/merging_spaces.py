"""MERGE-SPACES: does it matter in which coordinates adapters are merged?"""

from dataclasses import replace
from typing import Any

import numpy as np

from lockproofs.claim import Check, Claim, Context, Deviation, Evidence, Grade, Source, Verdict
from lockref.merging import SETTINGS, Adapter, merge
from lockref.merging.settings import Space
from lockref.merging.spaces import Coordinates, core, knots

PAPER = "arXiv 2509.17786"
SPACES: tuple[Space, ...] = ("full", "knots", "knots-basis", "core")
ROWS, COLUMNS, RANK, MEMBERS = 7, 6, 2, 3
WEIGHTS = (0.5, 2.0, -0.75)


def adapters(rng: np.random.Generator) -> list[Adapter]:
    """Random adapters of rank 2 for one matrix."""
    return [
        Adapter({"w": rng.standard_normal((ROWS, RANK))}, {"w": rng.standard_normal((RANK, COLUMNS))})
        for _ in range(MEMBERS)
    ]


def spaces(members: list[Adapter]) -> list[Coordinates]:
    """All coordinates that are not the updates themselves."""
    updates = [m.update("w") for m in members]
    return [knots(updates), knots(updates, basis=True), core([m.factors("w") for m in members])]


def gap(x: Any, y: Any) -> float:
    """max |x − y|, relative to the greatest entry."""
    return float(np.max(np.abs(x - y)) / np.max(np.abs(y)))


def regauged(adapter: Adapter) -> Adapter:
    """(B G)(G⁻¹ A), G = diag(16, 1/16): the same update bit for bit, other factors."""
    g = np.array([16.0, 1 / 16])
    return Adapter({"w": adapter.b["w"] * g}, {"w": adapter.a["w"] / g[:, None]})


def check_spaces(ctx: Context) -> Evidence:
    """Exact facts about the spaces, to round-off on random adapters; the verdict waits for protected adapters.

    Facts. Every space loses nothing: Δ_i = U Σ V_iᵀ by the SVD of [Δ_1 … Δ_T]; and Δ_i = U_B U_Bᵀ B_i A_i V_A V_Aᵀ,
    since the columns of B_i lie in the span of U_B and the rows of A_i in that of V_A. So what is linear in the
    updates is the same in every space: the way back is linear, and it returns Σ c_i Δ_i from Σ c_i of the
    coordinates. Trimming and voting are not linear, they depend on the coordinates, and TIES merges to another
    update in each space. Core space sees factors, not updates: (B G)(G⁻¹ A) is the same adapter, and merges to
    another update there, whereas KnOTS merges it alike.
    """
    rng, cases = ctx.rng(0), max(1, ctx.cases // 10)
    back = linear = ties = gauge_knots = gauge_core = 0.0
    least = float("inf")
    average = replace(SETTINGS["task-arithmetic"], name="sum")
    for _ in range(cases):
        members, base = adapters(rng), {"w": rng.standard_normal((ROWS, COLUMNS))}
        for space in spaces(members):
            pairs = zip(space.members, members, strict=True)
            back = max(back, *(gap(space.back(x), m.update("w")) for x, m in pairs))
        one = merge(base, members, average, weights=WEIGHTS).tensors["w"]
        linear = max(
            linear,
            *(gap(merge(base, members, average.tuned(space=s), weights=WEIGHTS).tensors["w"], one) for s in SPACES[1:]),
        )
        zero = {"w": np.zeros((ROWS, COLUMNS))}
        found = [merge(zero, members, SETTINGS["core-ties"].tuned(density=0.3, space=s)).tensors["w"] for s in SPACES]
        apart = [gap(x, y) for i, x in enumerate(found) for y in found[:i]]
        ties, least = max(ties, *apart), min(least, *apart)
        moved = [regauged(members[0]), *members[1:]]
        for s in ("knots", "core"):
            setting = SETTINGS["core-ties"].tuned(density=0.3, space=s)
            off = gap(merge(zero, moved, setting).tensors["w"], merge(zero, members, setting).tensors["w"])
            gauge_knots, gauge_core = (
                (max(gauge_knots, off), gauge_core) if s == "knots" else (gauge_knots, max(gauge_core, off))
            )
    # Two SVDs, each backward stable to a few units times its size; the coordinates are of the size of the updates.
    allowed = 64 * (ROWS + MEMBERS * COLUMNS) * float(np.finfo(float).eps)
    reason = "backward error of the SVDs: 64 units round-off times the rows and columns of the stacked updates"

    def same(name: str, statistic: str, value: float) -> Check:
        return Check(name=name, statistic=statistic, unit="relative", value=value, bound=0.0, tolerance=allowed,
                     tolerance_from=reason, cases=cases, seed=ctx.seed)  # fmt: skip

    return Evidence(
        verdict=Verdict.UNDECIDED,
        grade=Grade.TESTED,
        explanation="The spaces themselves are settled: all of them are lossless, averages and sums come out the same "
        f"in each, and TIES never does (the two nearest spaces differ by {least:.2f} of the greatest entry, the two "
        f"farthest by {ties:.2f}). So against linear merges a lock is worth the same in every space, and against TIES "
        "an attacker has four merges for one. In Core space the same adapter with other factors merges differently, "
        f"by up to {gauge_core:.2f}: its owner's choice of factors, which the function does not see, is part of the "
        "result. Whether a protected adapter that collapses in one space survives in another has to be measured on "
        "adapters trained with the lock; that measurement is missing here.",
        checks=[
            same("every space gives each update back", "max |back − Δ|", back),
            same("linear merges are the same in every space", "max |merged in a space − merged in full|", linear),
            Check(name="TIES is another merge in every space", unit="relative", value=least, bound=1e-3, sense=">=",
                  statistic="least distance between the merges of two of the four spaces", cases=cases, seed=ctx.seed),
            same("KnOTS sees updates: other factors, same merge",
                 "max |merged − merged with (B G)(G⁻¹ A)|", gauge_knots),
            Check(name="Core space sees factors: other factors, other merge", unit="relative", value=gauge_core,
                  bound=1e-3, sense=">=", statistic="max |merged − merged with (B G)(G⁻¹ A)|", cases=cases,
                  seed=ctx.seed),
        ],
        assumptions=["coordinates that round-off cannot decide, such as those of equal singular values, do not occur"],
        deviations=[
            Deviation(
                paper_says="singular values below 1e-5 are dropped (in the published codes)",
                we_do="those below max(m, n) times the unit round-off times the greatest are dropped",
                why="an absolute bound depends on the unit of the weights",
                effect="none unless an update has directions between the two bounds",
            )
        ],
    )  # fmt: skip


CLAIMS = (
    Claim(
        id="MERGE-SPACES",
        title="Protection in every space",
        statement="Protection does not depend on the space (full, KnOTS, Core) in which one merges.",
        source=Source(
            paper=PAPER, where="merging in Core space, set against the lock of arXiv 2601.21898; worded by us"
        ),
        kind="security",
        recorded=Verdict.UNDECIDED,
        would_change="Adapters trained with the lock, merged in each space: their losses decide it.",
        check=check_spaces,
    ),
)
