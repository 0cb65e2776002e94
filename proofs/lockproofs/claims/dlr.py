"""Claims about DLR-Lock (arXiv 2605.10777): what its deep low-rank networks cost whom."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, product
from typing import Any

import numpy as np

from lockproofs.claim import Check, Claim, Context, Control, Controls, Curve, Evidence, Grade, Plot, Source, Verdict
from lockproofs.claims.dlr_checkpoint import CHECKPOINT
from lockproofs.claims.dlr_common import FORMULA, PAPER, exact
from lockproofs.claims.dlr_cost import BACKWARD_COST
from lockproofs.claims.dlr_finetune import FINETUNE
from lockproofs.claims.dlr_frontier import FRONTIER
from lockproofs.claims.dlr_frozen import FROZEN
from lockproofs.claims.dlr_inversion import INVERSION
from lockproofs.claims.dlr_landscape import LANDSCAPE
from lockproofs.claims.dlr_latency import LATENCY
from lockproofs.claims.dlr_redistill import REDISTILL
from lockproofs.claims.dlr_size import INFER, PARITY
from lockproofs.claims.dlr_utility import UTILITY
from lockref.autodiff import Ledger, ops, saved
from lockref.models import dlrnet, storage
from lockref.models.dlrnet import DLRConfig

DEEPEST = 48
TOKENS = 2  # every buffer has T rows or none: two tell the kinds apart
DTYPES: tuple[type[np.floating[Any]], ...] = (np.float32, np.float64)
Network = Callable[[int], Ledger]  # depth -> ledger of a network of that depth


@dataclass(frozen=True)
class _Case:
    """One way to build and differentiate a DLR-Net of any depth."""

    config: DLRConfig
    fused: bool
    dtype: type[np.floating[Any]]

    def ledger(self, depth: int, rng: np.random.Generator, *, gradient: bool = True) -> Ledger:
        """What reverse mode keeps when all weights and the input need a gradient, or none does."""
        config = replace(self.config, depth=depth)
        params = dlrnet.initialize(config, rng, b_scale=0.5, dtype=self.dtype)
        x = rng.standard_normal((TOKENS, config.width)).astype(self.dtype)

        def network(params: Mapping[str, Any], x: Any) -> Any:
            return dlrnet.forward(params, x, config, fused=self.fused)

        return saved(network, params, x, argnums=(0, 1) if gradient else ())

    def closed_form(self, depth: int) -> int:
        """The same in bytes, from the formula."""
        config = replace(self.config, depth=depth)
        return storage.dlr(config, fused=self.fused).bytes(TOKENS, np.dtype(self.dtype).itemsize)


def _cases() -> Iterator[_Case]:
    for norm, activation, fused, dtype in product(dlrnet.NORMS, dlrnet.ACTIVATIONS, (True, False), DTYPES):
        yield _Case(DLRConfig(3, 2, DEEPEST, norm, activation), fused, dtype)


def bytes_by_depth(network: Network, also: int = 1) -> tuple[list[int], list[bool]]:
    """Bytes kept at depths 1 … 48, read off one run of depth 48, and which separate runs agree with it.

    The tape of a network cut after block l is a prefix of the tape of the deep one. That is not
    assumed: depths 1, 2, 48 and `also` are run on their own, and their rows compared with the prefix.
    """
    runs = {depth: network(depth).rows for depth in {1, 2, DEEPEST, also}}
    deep, first = runs[DEEPEST], len(runs[1])
    period = len(runs[2]) - first
    ends = [first + period * (depth - 1) for depth in range(1, DEEPEST + 1)]
    total = [0, *accumulate(r.bytes if r.owner == "activation" else 0 for r in deep)]
    agree = [rows == deep[: ends[depth - 1]] for depth, rows in runs.items()]
    return [total[min(end, len(deep))] for end in ends], agree


def bend(values: list[int]) -> int:
    """Largest second difference: 0 exactly where the values lie on a line."""
    return max(abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:], strict=False))


def planted_wedge(depth: int, rng: np.random.Generator) -> Ledger:
    """A network whose block l has rank l + 1, so that block l stores l columns more than a straight one."""
    blocks = [DLRConfig(3, rank, 1, "none", placement="output") for rank in range(1, depth + 1)]
    params = [dlrnet.initialize(config, rng, b_scale=0.5) for config in blocks]

    def network(params: list[Mapping[str, Any]], x: Any) -> Any:
        for weights, config in zip(params, blocks, strict=True):
            x = dlrnet.forward(weights, x, config)
        return x

    return saved(network, params, rng.standard_normal((TOKENS, 3)), argnums=(0, 1))


def _swiglu_bytes(tensors: Mapping[str, Any], rng: np.random.Generator) -> int:
    """What eager reverse mode keeps for the subject's own first MLP in float64, everything trained."""
    names = ("gate_proj", "up_proj", "down_proj")
    weights = [np.asarray(tensors[f"model.layers.0.mlp.{n}.weight"], np.float64) for n in names]

    def mlp(weights: list[Any], x: Any) -> Any:
        gate, up, down = (ops.transpose(w) for w in weights)
        hidden = ops.multiply(ops.silu(ops.matmul(x, gate)), ops.matmul(x, up))
        return ops.matmul(hidden, down)

    x = rng.standard_normal((TOKENS, weights[0].shape[1]))
    return saved(mlp, weights, x, argnums=(0, 1)).bytes()


def _growth_checks(rng: np.random.Generator) -> list[Check]:
    """Every depth up to 48, for every norm, activation, dtype, fused and eager."""
    ledgers = off_formula = off_line = 0
    agree: list[bool] = []
    for i, case in enumerate(_cases()):
        values, same = bytes_by_depth(partial(case.ledger, rng=rng), also=1 + i % DEEPEST)
        wanted = [case.closed_form(depth) for depth in range(1, DEEPEST + 1)]
        ledgers += len(values)
        agree += same
        off_line = max(off_line, bend(values))
        off_formula = max(off_formula, *(abs(v - w) for v, w in zip(values, wanted, strict=True)))
    return [
        exact("second difference in depth", "max |S(L+1) − 2S(L) + S(L−1)|", off_line, 0, cases=ledgers),
        exact("ledger = closed form", f"max |ledger − formula|, depths 1 … {DEEPEST}", off_formula, 0, cases=ledgers),
        exact(
            "a cut network's tape is a prefix", "separate runs that differ from the prefix of the deep run",
            agree.count(False), 0, cases=len(agree), unit="runs",
        ),
    ]  # fmt: skip


class _Layer:
    """What training keeps for one MLP of the subject, in elements per token, and its checks."""

    def __init__(self, ctx: Context, rng: np.random.Generator) -> None:
        model = ctx.subject.model
        self.width, self.mlp_width = model.config.hidden_size, model.config.intermediate_size
        self.depths = range(1, min(DEEPEST, self.mlp_width) + 1)  # deeper, and gains leave no room for rank 1
        self.unlocked = storage.swiglu(self.mlp_width, fused=False).per_token
        nets = {norm: [self._at_parity(norm, depth) for depth in self.depths] for norm in dlrnet.NORMS}
        self.kept = {norm: [storage.dlr(c, fused=False).per_token for c in nets[norm]] for norm in nets}
        self.frozen = [storage.dlr(c, fused=False, trains=frozenset()).per_token for c in nets["none"]]
        deepest = [nets[norm][-1] for norm in nets]
        off_formula = max(
            abs(run.bytes() - self.kept[config.norm][-1] * TOKENS * 4)
            for config in deepest
            for run in [_Case(config, False, np.float32).ledger(config.depth, rng)]
        )
        mlp_bytes = _swiglu_bytes(model.tensors, rng)
        self.checks = [
            exact(
                "parameter parity", "max |elements per token − (3m − ρ/d − d + slope · L)|", self._off_corollary(), 0,
                cases=len(self.depths) * len(nets), unit="elements",
            ),
            exact(
                "a layer of this size", f"max |ledger − formula| at depth {self.depths[-1]}, each norm", off_formula, 0,
                cases=len(nets),
            ),
            exact(
                "the MLP it replaces", f"what this model's first SwiGLU keeps for {TOKENS} tokens: 4m each",
                mlp_bytes, TOKENS * 4 * self.mlp_width * 8, cases=1,
            ),
        ]  # fmt: skip

    def _at_parity(self, norm: str, depth: int) -> DLRConfig:
        rank = dlrnet.parity(self.width, self.mlp_width, depth, norm).rank
        return DLRConfig(self.width, rank, depth, norm)

    def _off_corollary(self) -> int:
        """Largest distance of the closed form from the line that the corollary gives."""
        d, m = self.width, self.mlp_width
        slopes = {"none": d, "rms": 2 * d + 1, "rms_gain": 3 * d}
        return max(
            abs(got - (3 * m - dlrnet.parity(d, m, depth, norm).remainder // d - d + slope * depth))
            for norm, slope in slopes.items()
            for depth, got in zip(self.depths, self.kept[norm], strict=True)
        )

    def explanation(self) -> str:
        kept = {norm: values[-1] for norm, values in self.kept.items()}
        return (
            f"For this model's layers (d = {self.width}, m = {self.mlp_width}) at depth {self.depths[-1]} a trainable "
            f"DLR-Net keeps {kept['none']:,} elements per token without norms, {kept['rms']:,} with norms and "
            f"{kept['rms_gain']:,} with norms and gains, against {self.unlocked:,} for the MLP: "
            f"{kept['none'] / self.unlocked:.2f}, {kept['rms'] / self.unlocked:.2f} and "
            f"{kept['rms_gain'] / self.unlocked:.2f} times as much."
        )

    def plot(self) -> Plot:
        curves = {
            "DLR-Net, norms with gain": self.kept["rms_gain"],
            "DLR-Net, norms": self.kept["rms"],
            "DLR-Net, no norm": self.kept["none"],
            "SwiGLU (unlocked)": [self.unlocked] * len(self.depths),
            "DLR-Net, no norm, frozen": self.frozen,
        }
        return Plot(
            title=f"What training keeps for one MLP (d = {self.width}, m = {self.mlp_width}), float32",
            x_label="depth L at parameter parity",
            y_label="bytes per token",
            curves=[Curve(name=n, x=list(self.depths), y=[4 * v for v in values]) for n, values in curves.items()],
        )


def _controls(rng: np.random.Generator) -> Controls:
    """Inference must keep nothing, and the wedge must bend the line by a column of T float64 at each depth."""
    case = _Case(DLRConfig(3, 2, DEEPEST, "rms_gain"), False, np.float64)
    inference = max(case.ledger(depth, rng, gradient=False).bytes() for depth in range(1, DEEPEST + 1))
    wedge = bend(bytes_by_depth(partial(planted_wedge, rng=rng))[0])
    return Controls(
        null=Control(
            what="inference through the same networks keeps nothing, at any depth",
            passed=inference == 0, value=inference, bound=0, unit="bytes",
        ),
        power=Control(
            what="a planted network whose block l keeps l more columns fails the second-difference check",
            passed=wedge >= TOKENS * 8, value=wedge, bound=TOKENS * 8, unit="bytes",
        ),
    )  # fmt: skip


def check_storage_train(ctx: Context) -> Evidence:
    """Bytes that default reverse mode keeps for a trainable DLR-Net: exactly affine in the depth.

    Theorem. Fix width d, rank r, norm N, activation σ, T tokens and an element size of b bytes. Let
    reverse mode keep, for every operation, exactly the arrays that the derivative rules of its
    arguments needing a gradient name; let S(L) be the bytes of the distinct kept buffers that are
    neither weights nor the input x_0. If all weights of a DLR-Net of depth L need a gradient (and x_0
    too), then for every L ≥ 1

        S(L) = S(1) + (L − 1) Δ   with   Δ − S(1) = b T d   and   Δ = b (T s + f) > 0,

    where s counts a block's columns and f its combined weights:
        eager  s = 2r or r (σ = tanh, relu), plus d (none), 2d + 1 (rms), 3d + 1 (rms with gain); f = 0
        fused  s = r, plus d (none) or d + 1 (rms, with gain or without); f = r d with a gain, else 0.

    Proof. *Rows of a block.* Block l is a fixed sequence of operations on x_l, its own weights and
    intermediates that it makes itself. Which arrays an operation puts on the tape depends on which of
    its arguments need a gradient, never on values or on l. In every block all weights and x_l need one:
    x_0 by assumption, x_{l+1} because it depends on the weights of block l. So the blocks keep arrays
    of the same names, shapes and dtype; reading the rules in execution order gives the table:
      eager, norm        x·x keeps x (d columns); rsqrt keeps its result ρ (1); x·ρ keeps x and ρ again
      eager, gain        γ·n keeps n = xρ (d) and the weight γ
      eager, A           the product keeps its input (d: x itself without a norm, else n or γn) and A
      eager, σ           silu and gelu keep h (r); tanh and relu keep σ(h) (r)
      eager, B           the product keeps σ(h) (r; with tanh and relu the buffer just counted) and B
      fused              x (d), h (r), with a norm ρ (1), and A, which with a gain is A diag(γ) (r d)
      both, additions    keep nothing.
    *Buffers are distinct.* An intermediate is a newly allocated buffer, the tape holds every buffer
    that it keeps until the sweep, so no two of them share memory, within a block or across blocks;
    views of weights lie in buffers owned elsewhere. The one array that two blocks touch is x_l for
    l ≥ 1: block l − 1 makes it by an addition, which keeps nothing, so it is counted once, in block l.
    *Induction.* L = 1: block 0 keeps the same rows, but x_0 is owned elsewhere: S(1) = Δ − b T d. Step:
    cutting the network after block L − 1 leaves the tape of the shallower network (the final
    subtraction of x_0 keeps nothing), and block L adds Δ new bytes: S(L+1) = S(L) + Δ. ∎

    Corollary (parameter parity). A SwiGLU of width m has 3 d m weights; L (2r + γ) d of them fit into
    the net, γ = 1 with a gain, and ρ = 3 d m − L (2r + γ) d ≥ 0 are left over. So 2 r L = 3m − γL − ρ/d
    does not grow: an eager silu net keeps 3m − ρ/d − d + L·{d, 2d + 1, 3d} elements per token for the
    norms none, rms, rms with gain, beside the eager SwiGLU's 4m.
    """
    rng = ctx.rng()
    layer = _Layer(ctx, rng)
    return Evidence(
        verdict=Verdict.HOLDS,
        grade=Grade.PROVED,
        explanation=(
            "By induction (written out with the check): every block after the first appends the same rows to the "
            "tape, so the bytes are S(1) + (L − 1)Δ: affine in the depth, though not proportional to it. The ledger "
            f"of the running networks agrees to the byte at every depth up to {DEEPEST}. At parameter parity the rank "
            "falls as the depth grows (r·L = 1.5 m), so only the copies of the hidden state add up: without norms, "
            f"d elements per token and block. {layer.explanation()} This is what an attacker pays who trains "
            "everything by default; frozen and without norms, the same network's storage does not grow at all."
        ),
        checks=[*_growth_checks(rng), *layer.checks],
        controls=_controls(rng),
        assumptions=[
            "default reverse mode: each operation keeps what the derivative rules of its trained arguments read, "
            "and recomputes nothing else (checkpointing and inversion are other attackers)",
            "logical bytes of distinct buffers; weights, and the input that the network shares with its host, "
            "are not counted",
            "one dtype throughout, and one rank for all blocks of a network",
        ],
        deviations=[FORMULA],
        plots=[layer.plot()],
    )


STORAGE_TRAIN = Claim(
    id="DLR-STORAGE-TRAIN",
    title="Training memory grows linearly with depth",
    statement="Default reverse mode through a trainable DLR-Net stores bytes that grow exactly linearly with depth.",
    source=Source(paper=PAPER, where="the lock's central mechanism; constants derived here"),
    kind="theorem",
    recorded=Verdict.HOLDS,
    would_change="A norm, activation or fused block whose kept arrays depend on its position in the network.",
    check=check_storage_train,
)

CLAIMS = (
    PARITY,
    STORAGE_TRAIN,
    INFER,
    LATENCY,
    FROZEN,
    CHECKPOINT,
    INVERSION,
    BACKWARD_COST,
    LANDSCAPE,
    UTILITY,
    FINETUNE,
    REDISTILL,
    FRONTIER,
)
