"""What PyTorch keeps of a DLR-Net against its depth, for the attackers whose ledger DLR-FRONTIER draws."""

from typing import Any, Final

from lockproofs.experiments.store import Cell, Experiment
from lockref.models import dlrnet

WIDTH, MLP_WIDTH, TOKENS, SEED = 128, 384, 2, 0  # the zoo's layers
DEPTHS: Final = (1, 2, 4, 8, 16, 32, 48)
WAYS: Final = ("default reverse mode", "frozen nets", "h-only inversion")


def measure(cell: Cell) -> dict[str, Any]:
    """Bytes of distinct tensors that autograd's graph holds between the passes, per token, float32."""
    import torch

    from lockcross import attackers, storage
    from lockcross.qwen3 import DLRNet

    depth = cell["depth"]
    rank = dlrnet.parity(WIDTH, MLP_WIDTH, depth).rank
    net = DLRNet(dlrnet.DLRConfig(WIDTH, rank, depth, "none", placement="output"))
    rng = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(0, 0.02, generator=rng)
    net.requires_grad_(cell["way"] != "frozen nets")
    run = attackers.inverted if cell["way"] == "h-only inversion" else attackers.default
    x = torch.randn(TOKENS, WIDTH, generator=rng).requires_grad_()
    kept = storage.kept(lambda: attackers.segmented(net, x, 1, run), [*net.parameters(), x])
    return {"rank": rank, "bytes_per_token": storage.total(kept) / TOKENS, "torch": torch.__version__}


EXPERIMENT = Experiment(
    name="dlr_stored_bytes",
    title="Bytes that PyTorch keeps of a DLR-Net at parameter parity",
    seed=SEED,
    settings={"width": WIDTH, "mlp_width": MLP_WIDTH, "norm": "none", "tokens": TOKENS, "dtype": "float32"},
    cells=[{"way": way, "depth": depth} for way in WAYS for depth in DEPTHS],
    measure=measure,
)
