"""DLR-STORAGE-FROZEN: what an attacker pays who trains something else."""

from collections.abc import Set
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from lockproofs.claim import Check, Claim, Context, Control, Controls, Counterexample, Evidence, Grade, Source, Verdict
from lockproofs.claims.dlr_common import FORMULA, PAPER, exact
from lockref.attacks.inversion import inverted
from lockref.autodiff import saved
from lockref.models import dlrnet, storage
from lockref.models.dlrnet import DLRConfig

TOKENS = 2
NOTHING: Set[str] = frozenset()
GIVEN: dict[str, Any] = {"d": 2, "m": 2, "depths": [1, 3]}


def frozen_bytes(config: DLRConfig, rng: np.random.Generator, *, fused: bool = True, attack: Any = None) -> int:
    """What reverse mode keeps when only the input needs a gradient, weights and input excluded."""
    params = dlrnet.initialize(config, rng, b_scale=0.5)
    x = rng.standard_normal((TOKENS, config.width))
    network = attack or (lambda p, x: dlrnet.forward(p, x, config, fused=fused))
    return saved(network, params, x, argnums=1, parameters=0).bytes()


def rerun_frozen(given: dict[str, Any]) -> str:
    """Builds a frozen network at parameter parity for each depth and reads its ledger."""
    rng = np.random.default_rng(0)
    lines = []
    for depth in given["depths"]:
        rank = dlrnet.parity(given["d"], given["m"], depth).rank
        kept = frozen_bytes(DLRConfig(given["d"], rank, depth, "none"), rng) // (8 * TOKENS)
        lines.append(f"depth {depth}, rank {rank}: {kept} numbers per token")
    return "; ".join(lines)


def _parity_depths(mlp_width: int) -> list[int]:
    """Depths up to 48 at which rank and depth multiply to 1.5 m exactly."""
    return [depth for depth in range(1, 49) if 3 * mlp_width % (2 * depth) == 0]


def check_frozen(ctx: Context) -> Evidence:
    """Run reverse mode through frozen DLR-Nets of every depth at parity, and count what it keeps.

    Theorem. Let no weight of the network need a gradient, only its input. Without norms default reverse mode keeps
    r L elements per token: 1.5 m at parameter parity, whatever the depth. With norms it keeps
    r L + L + (L − 1) d, and by h-only inversion r L + d.

    Proof. Without a norm the block's rule for its input, g ↦ g + Aᵀ(σ'(h) ∘ Bᵀg), reads weights and h: r columns for
    each block (σ(h) instead of h for tanh and relu, the same buffer size). The norm's rule also reads x_l and 1/rms:
    d + 1 columns more, d less for x_0, which is owned elsewhere. Inversion: see DLR-INVERSION. At parity
    2 d r L = 3 d m. ∎
    """
    rng = ctx.rng()
    model = ctx.subject.model.config
    d, m = model.hidden_size, model.intermediate_size + model.intermediate_size % 2  # odd widths have no exact parity
    plain = off = inverse = 0
    runs = 0
    for depth, activation, fused in product((1, 2, 7, 48), dlrnet.ACTIVATIONS, (True, False)):
        config = DLRConfig(3, 2, depth, "none", activation)
        plain = max(plain, abs(frozen_bytes(config, rng, fused=fused) - 2 * depth * TOKENS * 8))
        for norm in dlrnet.NORMS:
            normed = replace(config, norm=norm)
            want = storage.dlr(normed, fused=fused, trains=NOTHING).bytes(TOKENS, 8)
            off = max(off, abs(frozen_bytes(normed, rng, fused=fused) - want))
            kept = frozen_bytes(normed, rng, attack=inverted(normed))
            inverse = max(inverse, abs(kept - (2 * depth + 3) * TOKENS * 8))
            runs += 1
    depths = _parity_depths(m)
    nets = [DLRConfig(d, dlrnet.parity(d, m, depth).rank, depth, "none") for depth in depths]
    spread = {storage.dlr(c, fused=True, trains=NOTHING).per_token for c in nets}
    ends = [replace(c, norm="rms") for c in (nets[0], nets[-1])]
    grown = [storage.dlr(c, fused=True, trains=NOTHING).per_token for c in ends]
    unlocked = storage.swiglu(m, fused=True, trains=NOTHING).per_token
    inference = saved(
        lambda p, x: dlrnet.forward(p, x, DLRConfig(3, 2, 5)),
        dlrnet.initialize(DLRConfig(3, 2, 5), rng),
        np.ones((2, 3)),
        argnums=(),
    ).bytes()
    return Evidence(
        verdict=Verdict.REFUTED,
        grade=Grade.PROVED,
        explanation=(
            "Who trains attention, or an adapter elsewhere, only passes a cotangent through the DLR-Nets. Without "
            "norms that reads h alone: r L elements per token, which parameter parity fixes at 1.5 m for every depth. "
            f"For this model's layers that is {max(spread):,} elements, against {unlocked:,} for the frozen MLP that "
            "the net replaced: the lock makes this attack cheaper. With norms default reverse mode does grow, by "
            f"d + r + 1 per block ({grown[0]:,} at depth {depths[0]}, {grown[1]:,} at depth {depths[-1]}), and "
            "inversion brings it back to r L + d."
        ),
        checks=[
            exact(
                "frozen at parity, no norm", f"different storages over {len(depths)} depths 1 … {depths[-1]} at parity",
                len(spread), 1, cases=len(depths), unit="values",
            ),
            exact("ledger = r L, no norm", "max |ledger − r L T · 8|", plain, 0, cases=runs // len(dlrnet.NORMS)),
            exact("ledger = closed form, every norm", "max |ledger − formula|", off, 0, cases=runs),
            exact("inverted: ledger = r L + d, every norm", "max |ledger − (r L + d) T · 8|", inverse, 0, cases=runs),
            Check(
                name="against the frozen MLP", statistic="r L / 2m, this model's layer", unit="times",
                value=max(spread) / unlocked, bound=1.0, tolerance_from="integers: no tolerance",
            ),
        ],
        controls=Controls(
            power=Control(
                what="the same count sees growth where there is growth: norms, default reverse mode",
                passed=grown[1] > grown[0], value=grown[1] - grown[0], bound=0, unit="elements per token",
            ),
            null=Control(
                what="inference through a network keeps nothing", passed=inference == 0, value=inference, bound=0,
                unit="bytes",
            ),
        ),
        counterexample=Counterexample(
            given=GIVEN,
            got=rerun_frozen(GIVEN),
            want="more numbers at depth 3 than at depth 1",
            by_hand=(
                "an MLP with d = m = 2 has 3·2·2 = 12 weights, a DLR-Net 4 r L: depth 1, rank 3 or depth 3, rank 1.\n"
                "Frozen, block l passes g ↦ g + Aᵀ(σ'(h) ∘ Bᵀg): it needs h, r numbers. 1 · 3 = 3 · 1 = 3"
            ),
        ),
        assumptions=[
            "no norm inside the blocks for the first figure; with norms the attacker inverts",
            "logical bytes of distinct buffers besides weights and the input",
        ],
        deviations=[FORMULA],
        severity="high",
        fix="norms inside every block stop the default attacker, not one with a backward rule of its own",
    )  # fmt: skip


FROZEN = Claim(
    id="DLR-STORAGE-FROZEN",
    title="Training around frozen DLR-Nets pays growing memory",
    statement="Training other parts of the model through frozen DLR-Nets still pays memory that grows with depth.",
    source=Source(paper=PAPER, where="cost amplification of adaptation; worded by us"),
    kind="security",
    recorded=Verdict.REFUTED,
    would_change="A block whose rule for its input reads d columns that its hidden columns do not determine.",
    check=check_frozen,
    rerun=rerun_frozen,
)
