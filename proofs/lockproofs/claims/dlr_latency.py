"""DLR-LATENCY: how long inference takes; times are stored, what explains them is counted live."""

from typing import Any

import numpy as np

from lockproofs.claim import (
    Check,
    Claim,
    Context,
    Control,
    Controls,
    Counterexample,
    Curve,
    Deviation,
    Evidence,
    Grade,
    Plot,
    Source,
    Verdict,
)
from lockproofs.claims.dlr_common import FORMULA, PAPER, exact
from lockproofs.experiments.dlr_latency import EXPERIMENT, SIZES, mlp
from lockproofs.experiments.store import Result, stored
from lockref.models import dlrnet
from lockref.models.dlrnet import DLRConfig

AS_FAST = 1.1  # our reading of the words: at most a tenth slower
DEEP = 48
GIVEN: dict[str, Any] = {"size": "qwen3-0.6b", "d": 1024, "m": 3072, "L": 48, "norm": "none"}
TIMES = Deviation(
    paper_says="where, and in which implementation, inference was timed was not readable to us",
    we_do="time NumPy on one processor thread in float32, and count what does not depend on a machine",
    why="an accelerator is not part of every auditor's machine",
    effect="on hardware that needs wide products and few launches thin sequential blocks cost more, not less",
)


class Chained(np.ndarray[Any, Any]):
    """An array that knows the longest chain of matrix products behind it, and tells a tally of each product."""

    chain = 0
    tally: list[int] | None = None  # scalar operations of every product so far

    def __array_finalize__(self, parent: Any) -> None:
        self.chain, self.tally = getattr(parent, "chain", 0), getattr(parent, "tally", None)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        plain = [np.asarray(x) for x in inputs]
        target = {} if out is None else {"out": tuple(np.asarray(o) for o in out)}
        found = np.asarray(getattr(ufunc, method)(*plain, **target, **kwargs)).view(Chained)
        found.tally = next(x.tally for x in inputs if isinstance(x, Chained))
        found.chain = max(getattr(x, "chain", 0) for x in inputs)
        if ufunc is np.matmul:
            found.chain += 1
            assert found.tally is not None
            found.tally.append(2 * found.size * plain[0].shape[-1])
        return found


def products(f: Any, x: Any) -> tuple[int, int, int]:
    """Of f(x): how many matrix products it takes, how many of them wait for each other, their scalar operations."""
    traced = np.asarray(x).view(Chained)
    traced.tally = tally = list[int]()
    out = f(traced)
    return len(tally), out.chain, sum(tally)


def both_products(d: int, m: int, depth: int, tokens: int = 1) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The same of the DLR-Net at parity without norms, and of the MLP: read off their runs."""
    x = np.ones((tokens, d))
    config = DLRConfig(d, dlrnet.parity(d, m, depth).rank, depth, "none", placement="output")
    params = {n: np.zeros(s) for n, s in dlrnet.expected_tensors(config).items()}
    weights = {n: np.zeros(s) for n, s in {"gate": (m, d), "up": (m, d), "down": (d, m)}.items()}
    return products(lambda x: dlrnet.forward(params, x, config), x), products(lambda x: mlp(weights, x), x)


def moved(d: int, m: int, depth: int | None, tokens: int) -> int:
    """Elements that a pass reads and writes if each product is one kernel that does the elementwise work, too.

    MLP: reads its weights and x, writes z and u, reads them, writes y. DLR-Net, every block: reads its weights and x,
    writes h, reads h and x, writes the next x.
    """
    if depth is None:
        return 3 * d * m + tokens * (2 * d + 4 * m)
    rank = dlrnet.parity(d, m, depth).rank
    return depth * (2 * d * rank + tokens * (3 * d + 2 * rank))


def rerun_latency(given: dict[str, Any]) -> str:
    """Counts both networks' products, and reads the stored times of these sizes."""
    mine, its = both_products(given["d"], given["m"], given["L"])
    rows = stored(EXPERIMENT.name).where(size=given["size"], norm=given["norm"])
    times = "; ".join(f"{row['tokens']:,} tokens {ratio(row, given['L']):.2f}" for row in rows)
    return (
        f"DLR-Net: {mine[2]:,} operations in {mine[0]} products, {mine[1]} one after the other; MLP: {its[2]:,} "
        f"operations in {its[0]} products, {its[1]} one after the other; processor time over the MLP's: {times}"
    )


def ratio(row: dict[str, Any], depth: int) -> float:
    """Median of the processor time of the net of that depth over the MLP's; wall time on an idle machine."""
    found: float = next(net for net in row["nets"] if net["depth"] == depth)["over_mlp"]["cpu"]
    return found


def _medians(result: Result, size: str, depths: list[int]) -> list[float]:
    return [ratio(row, depth) for row in result.where(size=size) for depth in depths]


def _plot(result: Result, size: str) -> Plot:
    depths = result.settings["depths"]
    rows = {norm: result.where(size=size, norm=norm) for norm in ("none", "rms")}
    curves = [
        Curve(name=f"L = {depth}, norm {norm}", x=[r["tokens"] for r in found], y=[ratio(r, depth) for r in found])
        for depth in depths
        for norm, found in rows.items()
    ]
    d, m = SIZES[size]
    return Plot(
        title=f"Time of inference over the MLP's, medians (d = {d}, m = {m}, parity, float32, one thread)",
        x_label="tokens of the prompt", y_label="times", x_log=True, y_log=True, curves=curves,
    )  # fmt: skip


def check_latency(ctx: Context) -> Evidence:
    """Read the stored times, and count live what explains them.

    Times come from the experiment `dlr_latency`: both networks in one process on one thread, in turns and in random
    order, ratios of the same round, medians; the MLP also against itself. They are the thread's processor time, which
    on an idle machine is the time on the wall; both are stored, the latter with quartiles. Nothing is timed during an
    audit, whose report is the same bytes for the same seed.

    What does not depend on a machine: at parity both networks take 2 operations for each weight and token, 6 d m.
    (i) The MLP's three products wait for one another once: two steps. Block l of a DLR-Net reads x_l, which block l − 1
    delivers, and its second product reads its first: 2 L steps, each of which is a kernel launch at least. (ii) The
    smaller dimension of each product is r = 1.5 m / L instead of d. (iii) If every product is one kernel that does the
    elementwise work, too, a DLR-Net reads and writes L (3 d + 2 r) numbers for a token and the MLP 2 d + 4 m, besides
    equally many weights: fewer operations for each byte moved, the deeper the fewer.
    """
    result = stored(EXPERIMENT.name)
    depths: list[int] = result.settings["depths"]
    deep = [depth for depth in depths if depth >= DEEP]
    config = ctx.subject.model.config
    d, m = config.hidden_size, config.intermediate_size + config.intermediate_size % 2  # odd: no exact parity
    counted = {k: both_products(d, m, k) for k in (1, *depths) if 3 * m % (2 * k) == 0}
    off = sum(abs(mine[2] - its[2]) for mine, its in counted.values())
    chains = [mine[1] - 2 * k for k, (mine, _) in counted.items()] + [its[1] - 2 for _, its in counted.values()]
    slowest = {size: max(_medians(result, size, [depths[-1]])) for size in SIZES}
    least = {size: _medians(result, size, deep) for size in SIZES}
    shallow = _medians(result, "qwen3-0.6b", [depths[0]])
    itself = [row["mlp_over_itself"]["cpu"] for row in result.where(size="qwen3-0.6b")]
    noise = max(abs(np.log(v)) for v in itself)
    planted = products(lambda x: x @ np.ones((2, 2)) @ np.ones((2, 2)) @ np.ones((2, 2)), np.ones((1, 2)))[1]
    big, deepest = SIZES["qwen3-0.6b"], depths[-1]
    traffic = {k: moved(*big, k, 1024) / moved(*big, None, 1024) for k in depths}
    intensity = {k: 6 * big[0] * big[1] * 1024 / (4 * moved(*big, k, 1024)) for k in (None, *depths)}
    one = result.where(size="qwen3-0.6b", tokens=1)
    return Evidence(
        verdict=Verdict.REFUTED,
        grade=Grade.MEASURED,
        explanation=(
            f"At d = {big[0]} and depth {DEEP} or more inference takes {min(least['qwen3-0.6b']):.2f} to "
            f"{slowest['qwen3-0.6b']:.1f} times as long as through the MLP of the same size, over prompts of 1 to "
            f"{max(r['tokens'] for r in result.rows):,} tokens and norms; for one "
            f"token {min(ratio(r, DEEP) for r in one):.2f} at depth {DEEP} and "
            f"{max(ratio(r, deepest) for r in one):.1f} at depth {deepest}. At depth {depths[0]} it is "
            f"{min(shallow):.2f} to {max(shallow):.2f}, and for narrow layers (d = {SIZES['zoo'][0]}) up to "
            f"{slowest['zoo']:.0f} times. The operations are the same: what costs "
            f"time is 2 L products one after the other instead of 2, of rank 1.5 m / L, and the state that every block "
            f"reads and writes: at 1,024 tokens {traffic[DEEP]:.1f} (depth {DEEP}) and {traffic[deepest]:.0f} (depth "
            f"{deepest}) times the MLP's traffic in float32, {intensity[DEEP]:.0f} and {intensity[deepest]:.1f} "
            f"operations for each byte instead of {intensity[None]:.0f}. Stored times: {result.environment.cpu}, NumPy "
            f"{result.environment.packages['numpy']}, made by `{result.command}`."
        ),
        checks=[
            Check(
                name=f"d = 1024, depth {DEEP} and more", unit="times", value=min(least["qwen3-0.6b"]), bound=AS_FAST,
                sense=">=", cases=len(least["qwen3-0.6b"]), seed=result.seed,
                statistic="least median of processor time over the MLP's, every prompt length and norm; claimed: 1",
                tolerance_from="the bound is our reading of as fast: at most a tenth slower",
            ),
            Check(
                name=f"d = 128, depth {DEEP} and more", unit="times", value=min(least["zoo"]), bound=AS_FAST,
                sense=">=", cases=len(least["zoo"]), seed=result.seed,
                statistic="the same for layers of the size of the zoo's",
                tolerance_from="the bound is our reading of as fast: at most a tenth slower",
            ),
            exact(
                "the same work", "operations of the net's products − those of the MLP's, this model's layer at parity",
                off, 0, cases=len(counted), unit="operations",
            ),
            exact(
                "one after the other", "steps of the net − 2 L, steps of the MLP − 2, read off running networks",
                sum(map(abs, chains)), 0, cases=len(chains), unit="products",
            ),
            Check(
                name="traffic", unit="times", value=traffic[DEEP], bound=AS_FAST, sense=">=", cases=1,
                statistic=f"numbers moved at 1,024 tokens over the MLP's, d = 1024, depth {DEEP}, closed form",
                tolerance_from="integers: no tolerance",
            ),
        ],
        controls=Controls(
            null=Control(
                what="the MLP timed against itself in the same turns differs by less than the claim's margin",
                passed=bool(noise < np.log(min(least["qwen3-0.6b"]))), value=float(np.exp(noise)),
                bound=min(least["qwen3-0.6b"]), unit="times, the farthest median from 1",
            ),
            power=Control(
                what="a planted chain of three products is seen to be one", passed=planted == 3, value=planted, bound=3,
                unit="products",
            ),
        ),
        counterexample=Counterexample(
            given=GIVEN,
            got=rerun_latency(GIVEN),
            want=f"at most {AS_FAST} times the MLP's time at every prompt length",
            by_hand=(
                "d = 1024, m = 3072, L = 48, r = 96: 3·1024·3072 = 2·1024·96·48 = 9,437,184 weights each, two\n"
                "operations a weight. x_48 needs x_47, which needs x_46 …: 48 blocks of two products, 96 steps; the\n"
                "MLP's gate and up read the same x, down reads both: 2 steps. A token's traffic: 48·(3·1024 + 2·96) =\n"
                f"156,672 numbers against 2·1024 + 4·3072 = 14,336. The times: {EXPERIMENT.command}"
            ),
        ),
        assumptions=[
            "one layer alone, its weights in the cache that all cores share; attention, the same in both, is left out",
            "float32, one thread, NumPy's matrix products and lockref's fused blocks",
        ],
        deviations=[FORMULA, TIMES],
        plots=[_plot(result, size) for size in SIZES],
    )  # fmt: skip


LATENCY = Claim(
    id="DLR-LATENCY",
    title="At equal size inference is as fast",
    statement="At parameter parity inference is as fast as with the MLP it replaces.",
    source=Source(paper=PAPER, where="that honest users are not burdened; worded by us"),
    kind="cost",
    recorded=Verdict.REFUTED,
    would_change="A kernel that runs all blocks of a DLR-Net at once, with the state in registers, as fast as two "
    "products of full rank.",
    check=check_latency,
    rerun=rerun_latency,
)
