"""DLR-PARITY and DLR-STORAGE-INFER: how large a DLR-Net may be, and what running it needs."""

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np

from lockproofs.claim import Check, Claim, Context, Control, Controls, Curve, Evidence, Grade, Plot, Source, Verdict
from lockproofs.claims.dlr_common import FORMULA, PAPER, exact
from lockref.autodiff import saved
from lockref.models import dlrnet
from lockref.models.dlrnet import DLRConfig

SIZES = {"Qwen3-0.6B": (1024, 3072), "Qwen3-8B": (4096, 12288), "Qwen3-32B": (5120, 25600)}
INFER_DEPTHS = (2, 3, 9, 48)
INFER_TOKENS = 2048


def _parities(sizes: Mapping[str, tuple[int, int]]) -> Iterator[tuple[int, int, int, dlrnet.Parity]]:
    """d, m, L and the parity at every depth that admits rank 1."""
    for d, m in sizes.values():
        for depth in range(1, 3 * m // 2 + 1):
            yield d, m, depth, dlrnet.parity(d, m, depth)


def check_parity(ctx: Context) -> Evidence:
    """Every depth of four layer sizes, in integers.

    Theorem. A SwiGLU has 3 d m weights, a DLR-Net of rank r and depth L without gains 2 d r L. They agree if and
    only if 2 r L = 3 m: there is such a rank if and only if 2 L divides 3 m, and then r L = 1.5 m, which does not
    depend on the depth. Otherwise the best rank r = ⌊3m/2L⌋ leaves between 1 and 2L − 1 times d weights unused, so
    that r L lies less than L below 1.5 m; for L > 1.5 m not even rank 1 fits.

    Proof. Divide by d; r is an integer; division with remainder. ∎

    The helper that finds the rank is compared with this at every depth, and its count of weights with tensors that
    were made.
    """
    model = ctx.subject.model.config
    sizes = SIZES | {"this model": (model.hidden_size, model.intermediate_size)}
    wrong = matched = depths = off_product = 0
    missed = [0.0]
    for d, m, depth, found in _parities(sizes):
        fits = 3 * m % (2 * depth) == 0
        depths, matched = depths + 1, matched + fits
        wrong += (found.remainder == 0) is not fits
        wrong += not 0 <= found.remainder < 2 * depth * d or found.parameters != 2 * d * found.rank * depth
        if fits:
            off_product = max(off_product, abs(2 * found.rank * depth - 3 * m))
        else:
            missed.append(found.remainder / found.target)
    beyond = sum(_no_rank(d, m) for d, m in sizes.values())
    made = max(abs(_made(norm, depth) - _counted(norm, depth)) for norm in dlrnet.NORMS for depth in (1, 5, 9))
    gained = len({dlrnet.parity(1024, 3072, depth, "rms_gain").rank * depth for depth in (1, 2, 4, 8)})
    return Evidence(
        verdict=Verdict.HOLDS_IF,
        grade=Grade.PROVED,
        condition="blocks have no gains and 2 L divides 3 m: then the counts agree exactly and r L = 1.5 m. Otherwise "
        "up to (2 L − 1) d weights stay unused; beyond L = 1.5 m no network fits",
        explanation=(
            f"Of the {depths:,} depths that four layer sizes admit, {matched} match the MLP's weights exactly; there "
            "r·L = 1.5 m. At every other depth an integer rank leaves a remainder, at worst "
            f"{max(missed):.0%} of the weights (just below half the greatest depth), and with gains inside the blocks "
            "r·L = (3 m − L)/2 falls with the depth."
        ),
        checks=[
            exact("r L where 2 L divides 3 m", "max |2 r L − 3 m|", off_product, 0, cases=matched, unit="columns"),
            exact(
                "theorem = helper", "depths at which remainder, range or count disagree", wrong, 0, cases=depths,
                unit="depths",
            ),
            Check(
                name="other side: 2 L does not divide 3 m", statistic="largest share of the weights that stays unused",
                unit="1", value=max(missed), bound=0.25, sense=">=", tolerance_from="integers: no tolerance",
                cases=depths - matched,
            ),
            exact(
                "other side: L > 1.5 m", "sizes at which depth 1.5 m + 1 is refused", beyond, len(sizes),
                cases=len(sizes), unit="sizes",
            ),
            Check(
                name="other side: gains", statistic="different r L over depths 1, 2, 4, 8 of Qwen3-0.6B", unit="values",
                value=gained, bound=2, sense=">=", tolerance_from="integers: no tolerance", cases=4,
            ),
            exact("weights that were made", "max |made − counted|, each norm", made, 0, cases=9, unit="weights"),
        ],
        deviations=[FORMULA],
    )  # fmt: skip


def _no_rank(d: int, m: int) -> bool:
    try:
        dlrnet.parity(d, m, 3 * m // 2 + 1)
    except ValueError:
        return True
    return False


def _made(norm: str, depth: int) -> int:
    rank = dlrnet.parity(4, 20, depth, norm).rank
    params = dlrnet.initialize(DLRConfig(4, rank, depth, norm), np.random.default_rng(0))
    return sum(w.size for w in params.values())


def _counted(norm: str, depth: int) -> int:
    return dlrnet.parity(4, 20, depth, norm).parameters


class Meter:
    """Bytes of arrays alive, and the most there were."""

    def __init__(self) -> None:
        self.alive = self.peak = 0

    def add(self, size: int) -> None:
        self.alive += size
        self.peak = max(self.peak, self.alive)


class Metered(np.ndarray[Any, Any]):
    """An array that tells a meter when it and whatever is computed from it come to life and die."""

    meter: Meter | None = None
    owns = False

    def __array_finalize__(self, parent: Any) -> None:
        self.meter = getattr(parent, "meter", None)
        self.owns = not isinstance(self.base, Metered)  # NumPy computes plain arrays and wraps them; views share
        if self.meter is not None and self.owns:
            self.meter.add(self.nbytes)

    def __del__(self) -> None:
        if self.meter is not None and self.owns:
            self.meter.add(-self.nbytes)


def peak_columns(run: Callable[[Any], Any], x: Any) -> int:
    """Most float64 columns of INFER_TOKENS rows alive while run(x) computes, its result among them, x not."""
    metered = np.array(x).view(Metered)
    metered.meter = meter = Meter()
    run(metered)
    return meter.peak // (8 * INFER_TOKENS)


def inference_columns(norm: str, fused: bool, depth: int, rng: np.random.Generator, *, hoard: bool = False) -> int:
    """Peak columns of one DLR-Net; with `hoard` of a planted one that holds every state."""
    config = DLRConfig(8, 2, depth, norm)
    params = dlrnet.initialize(config, rng, b_scale=0.5)
    x = rng.standard_normal((INFER_TOKENS, config.width))
    one = DLRConfig(8, 2, 1, norm, placement="output")

    def hoarding(x: Any) -> list[Any]:
        states = [x]
        for i in range(depth):
            block = {f"blocks.0.{n}": w for n, w in _block(params, i).items()}
            states.append(dlrnet.forward(block, states[-1], one, fused=fused))
        return states

    return peak_columns(hoarding if hoard else lambda x: dlrnet.forward(params, x, config, fused=fused), x)


def _block(params: Mapping[str, Any], i: int) -> dict[str, Any]:
    return {n.removeprefix(f"blocks.{i}."): w for n, w in params.items() if n.startswith(f"blocks.{i}.")}


def check_infer(ctx: Context) -> Evidence:
    """Measure the peak of allocated memory while networks of growing depth run.

    Theorem. Running a DLR-Net without derivatives needs at most the memory of one block besides its weights and
    input, at any depth.

    Proof. Block l reads x_l and its own weights and delivers x_{l+1}; no later block reads anything else of it. So
    when block l starts, x_0 (owned elsewhere) and x_l are all that is alive; while it runs, its own arrays, whose
    shapes do not depend on l; when it ends, x_{l+1} replaces x_l. The maximum over l is the maximum of one block. ∎
    """
    rng = ctx.rng()
    kinds = list(product(dlrnet.NORMS, (True, False)))
    peaks = {kind: [inference_columns(*kind, depth, rng) for depth in INFER_DEPTHS] for kind in kinds}
    spread = max(max(p) - min(p) for p in peaks.values())
    hoarded = [inference_columns("none", True, depth, rng, hoard=True) for depth in INFER_DEPTHS]
    config = DLRConfig(8, 2, INFER_DEPTHS[-1])
    params = dlrnet.initialize(config, rng)
    tape = saved(lambda p: dlrnet.forward(p, np.ones((2, 8)), config), params, argnums=()).bytes()
    names = {kind: f"norm {kind[0]}, {'fused' if kind[1] else 'eager'}" for kind in kinds}
    return Evidence(
        verdict=Verdict.HOLDS,
        grade=Grade.PROVED,
        explanation=(
            "A block needs its input and its own temporaries, and hands on one state. The measured peak is the same "
            f"at depths {', '.join(map(str, INFER_DEPTHS))}: {max(map(max, peaks.values()))} columns at most for "
            "d = 8 and r = 2. The same is true of everything that runs forward only: forward gradients and "
            "zeroth-order training pay no more than inference does."
        ),
        checks=[
            exact(
                "peak while it runs", f"largest difference between depths {INFER_DEPTHS[0]} and {INFER_DEPTHS[-1]}",
                spread, 0, cases=len(kinds) * len(INFER_DEPTHS), unit="columns",
            ),
            exact("tape", "bytes that reverse mode keeps where nothing needs a gradient", tape, 0, cases=1),
        ],
        controls=Controls(
            power=Control(
                what="a planted network that holds every state is seen to grow by d columns a block",
                passed=hoarded[-1] - hoarded[0] == 8 * (INFER_DEPTHS[-1] - INFER_DEPTHS[0]),
                value=hoarded[-1] - hoarded[0], bound=8 * (INFER_DEPTHS[-1] - INFER_DEPTHS[0]), unit="columns",
            ),
        ),
        assumptions=["memory of arrays, counted as they come to life and die; weights not counted"],
        deviations=[FORMULA],
        plots=[
            Plot(
                title="Peak memory of inference, d = 8, r = 2", x_label="depth L", y_label="columns of T numbers",
                curves=[Curve(name=names[k], x=list(INFER_DEPTHS), y=v) for k, v in peaks.items()],
            )
        ],
    )  # fmt: skip


PARITY = Claim(
    id="DLR-PARITY",
    title="At any depth a DLR-Net can match the MLP's size",
    statement="At any depth a DLR-Net can match the MLP's parameter count; then r·L does not depend on depth.",
    source=Source(paper=PAPER, where="about the same parameter count as the MLP it replaces"),
    kind="theorem",
    recorded=Verdict.HOLDS_IF,
    would_change="Ranks that differ between blocks, which make up most of the remainder.",
    check=check_parity,
)
INFER = Claim(
    id="DLR-STORAGE-INFER",
    title="Inference memory does not grow with depth",
    statement="Inference memory does not grow with depth.",
    source=Source(paper=PAPER, where="inference keeps one hidden state alive"),
    kind="theorem",
    recorded=Verdict.HOLDS,
    would_change="A block that reads states of blocks other than the one before it.",
    check=check_infer,
)
