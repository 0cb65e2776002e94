"""Training steps by h-only inversion over default reverse mode, in turns: each MLP alone, and whole zoo-sized models.

python -m benchmarks.dlr_inversion
"""

import argparse
import sys
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from lockproofs.dlr_stacks import network, running
from lockproofs.timing import Times, quartiles, take_turns
from lockref.attacks.frontier import MLPWay, Stack, locked
from lockref.autodiff import vjp
from lockref.autodiff.pages import keep_pages
from lockref.models import dlrnet
from lockref.models.dlrnet import DLRConfig
from lockref.models.qwen3_config import Qwen3Config

HOST = Qwen3Config(256, 128, 384, 4, 4, 2, 32)  # layers as in the zoo
WAYS = {"default": MLPWay(), "inversion": MLPWay(inverted=True)}
TARGET = 1.10


def mlp_step(config: DLRConfig, way: MLPWay, x: Any, rng: np.random.Generator) -> Any:
    """Forward pass and sweep of one DLR-Net, all weights and the input training."""
    params = dlrnet.initialize(config, rng, b_scale=config.depth**-0.5, dtype=x.dtype)
    return lambda: vjp(network(config, way), params, x)[1](x, release=True)


def stack_step(stack: Stack, way: MLPWay, x: Any, rng: np.random.Generator) -> Any:
    """The same of a stack of layers with attention."""
    model = running(stack, "all", way, rng, dtype=x.dtype)
    return partial(model.gradients, x)


def line(times: dict[str, Times]) -> str:
    """Milliseconds, the ratio with its quartiles, the ratio of processor times, and whether it meets the target."""
    mine, default = times["inversion"], times["default"]
    low, median, high = quartiles(mine.wall / default.wall)
    cpu = quartiles(mine.cpu / default.cpu)[1]
    met = "met" if median <= TARGET else "missed"
    return f"{1e3 * np.median(default.wall):8.1f} ms  {median:.3f} ({low:.3f}–{high:.3f})  CPU {cpu:.3f}  {met}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dlr_inversion", description=__doc__)
    parser.add_argument("--rounds", type=int, default=21, help="turns of each (default 21)")
    parser.add_argument("--tokens", type=int, default=512, help="of one step (default 512, in rows of 128 for models)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.tokens < 128 or args.tokens % 128:
        parser.error("--rounds must be at least 1, --tokens a multiple of 128")
    keep_pages()
    print(
        f"inversion ÷ default reverse mode, {args.tokens} tokens, target ≤ {TARGET:.2f}, {args.rounds} rounds, d = 128"
    )
    with threadpool_limits(1, user_api="blas"):
        for depth, norm, dtype in product((16, 48), dlrnet.NORMS, (np.float32, np.float64)):
            stack = locked(HOST, depth, norm, 128)
            assert stack.dlr is not None
            for what, of in (("MLP", partial(mlp_step, stack.dlr)), ("model", partial(stack_step, stack))):
                rng = np.random.default_rng(args.seed)
                x = rng.standard_normal((args.tokens // 128, 128, HOST.hidden_size)).astype(dtype)
                times = take_turns({name: of(way, x, rng) for name, way in WAYS.items()}, args.rounds, rng)
                print(f"L {depth:3}  {norm:8}  {np.dtype(dtype).name}  {what:5}  {line(times)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
