"""Key recovery at the size of Qwen3-0.6B: lock random weights, undo the lock from the release alone, time it.

One layer at a time: nothing of the attack looks beyond a layer, so peak memory is that of one layer.
    python -m benchmarks.attention_keys
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from lockref.attacks.keyless import keyless
from lockref.attacks.result import relative_error
from lockref.locks.attention import FAMILIES, Family, project, projections
from lockref.models.qwen3 import Qwen3Config, expected_tensors

LAYER = {"intermediate_size": 1, "num_hidden_layers": 1, "vocab_size": 1}  # what the attack never touches is left out
SIZES = {
    "qwen3-0.6b": (28, dict(hidden_size=1024, num_attention_heads=16, num_key_value_heads=8, head_dim=128)),
    "tiny": (2, dict(hidden_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=8)),
}
RELATED = 0.1  # a relative that names k differs by this share of the weights


def layers(config: Qwen3Config, count: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Attention weights of one layer after another: columns of uneven length, as trained ones have; random gains."""
    for _ in range(count):
        yield {
            name: rng.uniform(0.5, 1.5, shape) if "norm" in name
            else rng.standard_normal(shape) * rng.uniform(0.5, 2.0, (shape[0], 1)) / shape[1] ** 0.5
            for name, shape in expected_tensors(config).items()
            if "self_attn" in name
        }  # fmt: skip


def recover(config: Qwen3Config, count: int, family: Family, k: int, rng: np.random.Generator) -> dict[str, Any]:
    """Seconds of the attack alone, the worst error of key and weights, and on how many key heads a relative named k."""
    heads, seconds, worst_key, worst_weights, named = config.num_key_value_heads * count, 0.0, 0.0, 0.0, 0
    for owner in layers(config, count, rng):
        p = projections(owner, config, family, k)
        released = project(owner, config, p)
        relative = {n: w + RELATED * np.std(w) * rng.standard_normal(w.shape) for n, w in owner.items()}
        begin = time.perf_counter()
        guess = keyless(released, config, family).guesses[k]
        found = projections(released, config, family, k)
        chosen = keyless(released, config, family, reference=relative).found["k"]
        seconds += time.perf_counter() - begin
        worst_key = max(worst_key, *(relative_error(a, b) for a, b in zip(found[0], p[0], strict=True)))
        worst_weights = max(worst_weights, *(relative_error(guess[n], w) for n, w in owner.items() if "proj" in n))
        named += int(np.sum(chosen == k))
    return {"key_heads": heads, "seconds": seconds, "worst_key_error": worst_key, "worst_weight_error": worst_weights,
            "heads_where_a_relative_named_k": named}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention_keys", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="qwen3-0.6b")
    parser.add_argument("--family", choices=FAMILIES, default="topk")
    parser.add_argument("--k", type=int, help="flipped blocks of each key head (default: half of them)")
    parser.add_argument("--threads", type=int, default=1, help="of BLAS: the matrices of a head are small")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    count, sizes = SIZES[args.size]
    config, family = Qwen3Config(**LAYER, **sizes), FAMILIES[args.family]
    k = family.most(config.head_dim) // 2 if args.k is None else args.k
    try:
        with threadpool_limits(args.threads, user_api="blas"):
            found = recover(config, count, family, k, np.random.default_rng(args.seed))
    except ValueError as error:
        parser.error(str(error))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    setting = {"size": args.size, "layers": count, "family": args.family, "k": k, "threads": args.threads}
    print(json.dumps({**setting, **found, "peak_rss_bytes": peak}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
