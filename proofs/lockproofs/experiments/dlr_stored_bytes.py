"""What PyTorch keeps of a DLR-Net against its depth, for every attacker that DLR-FRONTIER draws."""

from math import isqrt
from typing import Any, Final

from lockproofs.experiments.store import Cell, Experiment
from lockref.models import dlrnet

WIDTH, MLP_WIDTH, TOKENS, SEED = 128, 384, 2, 0  # the zoo's layers
DEPTHS: Final = (1, 2, 4, 8, 16, 32, 48)
SLOTS: Final = 3
WAYS: Final = (  # by the names that DLR-FRONTIER's plot gives them
    "default reverse mode",
    "each block checkpointed",
    "groups of √L checkpointed",
    f"binomial, {SLOTS} slots",
    "h-only inversion",
    "frozen nets",
    "fixed-point inversion",
)


def measure(cell: Cell) -> dict[str, Any]:
    """Bytes of distinct tensors that autograd's graphs hold, per token, float32: between the passes, and the most.

    Closed forms and ledger say what is kept between the passes; of a checkpoint schedule, the most, which is in its
    sweep. Fixed-point inversion's sweep holds h of one block besides, for its own small graph: r elements.
    """
    import torch

    from lockcross import attackers, storage
    from lockcross.qwen3 import DLRNet

    depth, way = cell["depth"], cell["way"]
    rank = dlrnet.parity(WIDTH, MLP_WIDTH, depth).rank
    net = DLRNet(dlrnet.DLRConfig(WIDTH, rank, depth, "none", placement="output"))
    rng = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(0, 0.02, generator=rng)
    net.requires_grad_(way != "frozen nets")
    x = torch.randn(TOKENS, WIDTH, generator=rng).requires_grad_()
    run = {
        "each block checkpointed": attackers.grouped(1),
        "groups of √L checkpointed": attackers.grouped(max(1, isqrt(depth))),
        f"binomial, {SLOTS} slots": attackers.binomial(SLOTS),
        "h-only inversion": attackers.inverted,
        "fixed-point inversion": attackers.fixed_point,
    }.get(way, attackers.default)

    def forward() -> Any:
        return attackers.segmented(net, x, 1, run)

    owned = [*net.parameters(), x]
    between = storage.total(storage.kept(forward, owned))
    most = storage.most_kept(lambda: forward().sum().backward(), owned)
    return {
        "rank": rank,
        "between_per_token": between / TOKENS,
        "bytes_per_token": (between if way == "fixed-point inversion" else most) / TOKENS,
        "most_per_token": most / TOKENS,
        "torch": torch.__version__,
    }


EXPERIMENT = Experiment(
    name="dlr_stored_bytes",
    title="Bytes that PyTorch keeps of a DLR-Net at parameter parity",
    seed=SEED,
    settings={"width": WIDTH, "mlp_width": MLP_WIDTH, "norm": "none", "tokens": TOKENS, "dtype": "float32"},
    cells=[{"way": way, "depth": depth} for way in WAYS for depth in DEPTHS],
    measure=measure,
)
