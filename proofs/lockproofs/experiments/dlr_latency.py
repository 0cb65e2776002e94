"""How long inference takes through a DLR-Net and through the MLP of the same size, from one token to long prompts.

Both in float32 on one thread, taking turns; beside them their bare matrix products, the floor that no fusion of the
rest gets below.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from lockproofs.experiments.store import Cell, Experiment
from lockproofs.timing import Run, take_turns
from lockref.autodiff import ops
from lockref.autodiff.pages import keep_pages
from lockref.models import dlrnet
from lockref.models.dlrnet import DLRConfig

SIZES = {"zoo": (128, 384), "qwen3-0.6b": (1024, 3072)}  # d and m
DEPTHS = (16, 48, 288)
TOKENS = (1, 16, 128, 1024)
SEED, TURN = 0, 0.01
Arrays = Mapping[str, Any]


def mlp(w: Arrays, x: Any) -> Any:
    """The SwiGLU MLP that is replaced."""
    return ops.swiglu(x @ w["gate"].T, x @ w["up"].T) @ w["down"].T


def mlp_products(w: Arrays, x: Any) -> Any:
    """Its matrix products alone."""
    _ = x @ w["gate"].T
    return (x @ w["up"].T) @ w["down"].T


def net_products(w: Arrays, x: Any) -> Any:
    """Those of a DLR-Net, each block's from the same x: without the skip connections a chain would fade to nothing."""
    for a, b in zip(list(w.values())[::2], list(w.values())[1::2], strict=True):
        y = (x @ a.T) @ b.T
    return y


def rivals(d: int, m: int, norm: str, tokens: int, depths: tuple[int, ...], seed: int = SEED) -> dict[str, Run]:
    """What is timed, by name: the MLP, the net of each depth at parity, and the products of each."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, d)).astype(np.float32)
    shapes = {"gate": (m, d), "up": (m, d), "down": (d, m)}
    weights = {n: (rng.standard_normal(s) / s[1] ** 0.5).astype(np.float32) for n, s in shapes.items()}
    runs: dict[str, Run] = {
        "mlp": partial(mlp, weights, x),
        "mlp again": partial(mlp, weights, x),
        "mlp products": partial(mlp_products, weights, x),
    }
    for depth in depths:
        config = DLRConfig(d, dlrnet.parity(d, m, depth).rank, depth, norm)
        params = dlrnet.initialize(config, rng, b_scale=depth**-0.5, dtype=np.float32)
        runs[f"net {depth}"] = partial(dlrnet.forward, params, x, config)
        runs[f"net {depth} products"] = partial(net_products, params, x)
    return runs


def measure(cell: Cell, most: int | None = None, depths: tuple[int, ...] = DEPTHS) -> dict[str, Any]:
    """Milliseconds of the MLP; for each depth the ratio of the net's time to the MLP's, whole and products alone."""
    keep_pages()
    d, m = SIZES[cell["size"]]
    runs = rivals(d, m, cell["norm"], cell["tokens"], depths)
    times = take_turns(runs, most or cell["rounds"], np.random.default_rng(SEED), turn=TURN)
    return {
        "mlp_ms": float(f"{1e3 * np.median(times['mlp'].wall):.4g}"),
        "mlp_over_itself": times["mlp again"].over(times["mlp"]),
        "nets": [
            {
                "depth": depth,
                "rank": dlrnet.parity(d, m, depth).rank,
                "over_mlp": times[f"net {depth}"].over(times["mlp"]),
                "products_over_mlp_products": times[f"net {depth} products"].over(times["mlp products"]),
            }
            for depth in depths
        ],
    }


EXPERIMENT = Experiment(
    name="dlr_latency",
    title="Inference time of DLR-Nets and of the MLP they replace, at parameter parity",
    seed=SEED,
    settings={"dtype": "float32", "activation": "silu", "sizes": SIZES, "depths": DEPTHS, "turn_s": TURN},
    cells=[
        {"size": size, "norm": norm, "tokens": tokens, "rounds": 15 if tokens < max(TOKENS) else 5}
        for size in SIZES
        for norm in ("none", "rms")
        for tokens in TOKENS
    ],
    measure=measure,
)
