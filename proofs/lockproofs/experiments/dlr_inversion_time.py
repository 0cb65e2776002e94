"""A training step by h-only inversion over one by default reverse mode: each kind of DLR-Net alone, and locked models.

The two take turns; every ratio is of one round. Products alone allow 14/12 for a net (one more product of the size of B
in 12 of a block), and nothing more for the rest of a model.
"""

from functools import partial
from itertools import product
from typing import Any

import numpy as np

from lockproofs.dlr_stacks import network
from lockproofs.experiments.store import Cell, Experiment
from lockproofs.timing import Run, take_turns
from lockref.attacks.frontier import MLPWay
from lockref.autodiff import value_and_grad, vjp
from lockref.autodiff.pages import keep_pages
from lockref.locks import full
from lockref.locks.dlr import locked_block
from lockref.models import dlrnet, qwen3
from lockref.models.dlrnet import DLRConfig
from lockref.models.evaluation import held_out_windows
from lockref.models.zoo import LOCKED_ZOO, zoo_path

SEED, ROUNDS = 0, 21
WIDTH, MLP_WIDTH, DEPTHS = 128, 384, (16, 48)  # as in the zoo
SEQUENCES, LENGTH = 4, 128
WAYS = {"default": MLPWay(), "inversion": MLPWay(inverted=True)}


def net_step(cell: Cell, way: MLPWay) -> Run:
    """Forward pass and sweep of one DLR-Net with drawn weights; all of them and the input train."""
    rng, norm, depth = np.random.default_rng(SEED), cell["norm"], cell["depth"]
    net = DLRConfig(WIDTH, dlrnet.parity(WIDTH, MLP_WIDTH, depth, norm).rank, depth, norm)
    params = dlrnet.initialize(net, rng, b_scale=depth**-0.5, dtype=cell["dtype"])
    x = rng.standard_normal((SEQUENCES, LENGTH, WIDTH)).astype(cell["dtype"])
    return lambda: vjp(network(net, way), params, x)[1](x, release=True)


def model_step(cell: Cell, way: MLPWay) -> Run:
    """Loss and gradients of all weights of a trained locked model of the zoo, on held-out text."""
    model = full.load(zoo_path(cell["model"]), cell["dtype"])
    tokens: Any = held_out_windows(SEQUENCES, LENGTH, seed=SEED)
    block = locked_block(model.net, network(model.net, way))
    return partial(value_and_grad(lambda p: qwen3.loss(p, tokens, model.config, block)), model.tensors)


def measure(cell: Cell) -> dict[str, Any]:
    """Quartiles of the ratio of wall times of one round, and the median ratio of processor times."""
    keep_pages()
    step = net_step if cell["model"] is None else model_step
    times = take_turns({name: step(cell, way) for name, way in WAYS.items()}, ROUNDS, np.random.default_rng(SEED))
    return {"milliseconds": round(1e3 * float(np.median(times["default"].wall)), 2),
            **times["inversion"].over(times["default"])}  # fmt: skip


EXPERIMENT = Experiment(
    name="dlr_inversion_time",
    title="Training steps by h-only inversion over default reverse mode",
    seed=SEED,
    settings={"rounds": ROUNDS, "width": WIDTH, "mlp_width": MLP_WIDTH, "sequences": SEQUENCES, "length": LENGTH},
    cells=[
        {"model": None, "depth": depth, "norm": norm, "dtype": dtype}
        for depth, norm, dtype in product(DEPTHS, dlrnet.NORMS, ("float32", "float64"))
    ]
    + [
        {"model": name, "depth": int(name.removeprefix("dlr-")), "norm": "rms", "dtype": dtype}
        for name, dtype in product(LOCKED_ZOO, ("float32", "float64"))
    ],
    measure=measure,
)
