"""FULL-PARITY's table: PyTorch on the official Qwen3 beside NumPy, layer by layer.

Each row says how far the two are apart and what was allowed. float64 is held to fixed targets, bytes and keys to
equality, float32 and bfloat16 to the round-off that `lockproofs.rounding` samples. Needs the crosscheck extra; on an
accelerator: `python -m lockproofs.experiments.full_parity --device cuda`, which stores full_parity_cuda.
"""

import argparse
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lockproofs import parity_locks
from lockproofs.experiments.store import RESULTS, Experiment, run
from lockproofs.hub_sizes import HUB
from lockproofs.parity_cases import (
    LOCKS,
    MODELS,
    Answer,
    Case,
    Tensors,
    case,
    distance,
)
from lockproofs.parity_locks import ALPHA, GRADIENTS, OPERATORS, RANK, TARGET
from lockproofs.rounding import UNIT16, UNIT32, rounding_error
from lockref.autodiff import saved
from lockref.locks import attention
from lockref.locks.trap2 import WEIGHTINGS
from lockref.models import dlrnet, storage

PRECISIONS = ("float64", "twin", "float32", "bfloat16")
STORED = 1025  # tokens of a published model
TRAINS: dict[str, list[str] | None] = {"everything": None, "attention": ["self_attn"], "MLP": ["mlp."]}
FIRST = {"everything": "embedding", "attention": "attention", "MLP": "MLP"}  # of what trains, on the way through
ADAPTED = {"LoRA on q, v": ("q_proj", "v_proj"), "LoRA on attention": ("q_proj", "k_proj", "v_proj", "o_proj")}
BYTES = {"float32": 4, "float64": 8, "bfloat16": 2}
SAMPLE = 8  # logits that are stored as they came out of torch


def cells(device: str = "cpu", precisions: tuple[str, ...] = PRECISIONS) -> list[dict[str, Any]]:
    """What is compared; on another device than the CPU only what runs there."""
    short = ("none", "projection and dlr")
    found: list[dict[str, Any]] = [{"layer": "environment"}]
    found += [
        {"layer": "outputs", "model": model, "lock": lock, "precision": precision}
        for model in MODELS
        for lock in (LOCKS if model in ("tiny", "base") else short)
        for precision in precisions
        if not (precision == "twin" and device != "cpu")
    ]
    found += [
        {"layer": "stored bytes", "model": model, "lock": lock, "dtype": dtype, "trains": trains}
        for model in ("tiny", "tiny tied", "base")
        for lock in ("none", "dlr", "dlr on the stream", "taylor")
        for dtype in BYTES
        for trains in (*TRAINS, *(ADAPTED if dtype == "float32" else ()))
    ]
    if device != "cpu":
        return found
    found += [{"layer": "published bytes", "model": name} for name in sorted(HUB)]
    found += [
        {"layer": "attackers", "norm": norm, "activation": activation, "way": way, "segments": segments}
        for norm in dlrnet.NORMS
        for activation in ("silu", "tanh")
        for way in ("default", "inverted")
        for segments in (1, 3)
    ]
    found += [{"layer": "keys", "family": family, "draw": draw} for family in attention.FAMILIES for draw in range(5)]
    found += [{"layer": "merges", "operator": name} for name in OPERATORS]
    found += [{"layer": "distillation", "phase": phase, "norm": norm} for phase in (1, 2) for norm in dlrnet.NORMS]
    found += [
        {"layer": layer, "weighting": w, "s": s}
        for layer in ("trap2", "trap2 of LoRA")
        for w in WEIGHTINGS
        for s in (0.05, 0.5, 1.7)
    ]
    return found + [{"layer": "fine-tuning", "trains": trains} for trains in parity_locks.TUNED]


def measure(cell: dict[str, Any], device: str = "cpu") -> dict[str, Any]:
    """Figures of one row."""
    kind = cell["layer"]
    if kind in ("environment", "outputs", "stored bytes"):
        return {"environment": _environment, "outputs": _outputs, "stored bytes": _stored_bytes}[kind](cell, device)
    return {
        "published bytes": _published_bytes, "attackers": parity_locks.attackers, "keys": parity_locks.keys,
        "merges": parity_locks.merges, "distillation": parity_locks.distillation, "trap2": parity_locks.trap2,
        "trap2 of LoRA": parity_locks.trap2_lora, "fine-tuning": parity_locks.tuning,
    }[kind](cell)  # fmt: skip


def _environment(cell: dict[str, Any], device: str) -> dict[str, Any]:
    from lockcross import parity

    return parity.environment(device)


def _outputs(cell: dict[str, Any], device: str) -> dict[str, Any]:
    from lockcross import parity

    given, precision = case(cell["model"], cell["lock"]), cell["precision"]
    if precision == "twin":
        got = parity.twin(given.config, given.tensors, given.mlp, given.tokens)
    else:
        got = parity.official(given.config, given.tensors, given.mlp, given.tokens, precision, device)
    want = answer(cell["model"], cell["lock"], "float32" if precision == "float32" else "float64")
    limits = allowed(given, want, precision)
    gaps = {
        "logits": distance(got["logits"], want["logits"]),
        "loss": abs(got["loss"] - want["loss"]) / abs(want["loss"]),
    }
    gradients = {n: distance(g, want["gradients"][n]) for n, g in got["gradients"].items()}
    flat = {n: w if not n.endswith("q_norm.weight") else np.ones_like(w) for n, w in given.tensors.items()}
    planted = distance(given.logits(flat), want["logits"])
    return {
        **gaps,
        "gradients": max(gradients.values()),
        "in_tolerances": max(
            *(gaps[n] / limits[n] for n in gaps), *(gradients[n] / limits["gradients"][n] for n in gradients if any(
                np.ravel(want["gradients"][n])
            )),
        ),
        "allowed_logits": limits["logits"],
        "allowed_gradients": max(limits["gradients"].values()),
        "planted_in_tolerances": planted / limits["logits"],
        "tensors": len(gradients),
        "torch_loss": got["loss"],
        "torch_logits": np.ravel(got["logits"])[:SAMPLE].astype(float).tolist(),
        "torch_gradient": probe(got["gradients"]),
    }  # fmt: skip


@lru_cache(maxsize=2)
def answer(model: str, lock: str, dtype: str) -> Answer:
    """NumPy's."""
    return case(model, lock).answer(np.dtype(dtype))


def allowed(given: Case, want: Answer, precision: str) -> dict[str, Any]:
    """Tolerances relative to the largest entry: the targets, or what rounding in that precision was sampled to do."""
    if precision in ("float64", "twin"):
        return {"logits": TARGET, "loss": TARGET, "gradients": dict.fromkeys(want["gradients"], GRADIENTS)}
    rng, both = np.random.default_rng(0), 1 if precision == "bfloat16" else 2  # NumPy rounds too, in float32
    options: dict[str, Any] = {"unit": UNIT16, "wide": UNIT32} if precision == "bfloat16" else {"unit": UNIT32}
    logits = rounding_error(given.logits, given.tensors, rng=rng, **options)
    loss, grads = rounding_error(given.loss_and_gradients, given.tensors, rng=rng, **options)
    sizes = {n: float(np.max(np.abs(g))) or 1.0 for n, g in want["gradients"].items()}
    return {
        "logits": both * logits / float(np.max(np.abs(want["logits"]))),
        "loss": both * loss / abs(want["loss"]),
        "gradients": {n: both * grads[n] / sizes[n] for n in grads},
    }


def probe(gradients: dict[str, Any], seen: Callable[[Any], Any] = lambda r: r) -> float:
    """Σ g ∘ seen(r) over all tensors for one random r: a single number that every entry moves."""
    rng = np.random.default_rng(4)
    drawn = {n: seen(rng.standard_normal(np.shape(gradients[n]))) for n in sorted(gradients)}
    return float(sum(np.vdot(r, gradients[n]) for n, r in drawn.items()))


def _stored_bytes(cell: dict[str, Any], device: str) -> dict[str, Any]:
    from lockcross import parity
    from lockcross import storage as torch_storage

    given, trains, dtype = case(cell["model"], cell["lock"]), cell["trains"], cell["dtype"]
    adapters = (ADAPTED[trains], RANK, ALPHA) if trains in ADAPTED else None
    rows = parity.stored_bytes(
        given.config, given.tensors, given.mlp, given.tokens, TRAINS.get(trains), dtype, device, adapters
    )
    peak = parity.peak_bytes(given.config, given.tensors, given.mlp, given.tokens, dtype, device)
    batch, length = given.tokens.shape
    rest = torch_storage.unnamed(batch, length, BYTES[dtype])
    if dtype == "bfloat16":
        stream = given.net is not None and given.net.placement == "stream"
        rest |= torch_storage.casts(given.config, batch, length, first=FIRST[trains], stream=stream)
    return {
        "torch_bytes": torch_storage.total(rows),
        "ledger_bytes": ledger_bytes(given, trains, dtype),
        "unnamed_bytes": sum(rest.values()),
        "unnamed": {name: size for name, size in rest.items() if size},
        "buffers": len(rows),
        **({} if peak is None else {"peak_bytes": peak}),
    }


def ledger_bytes(given: Case, trains: str, dtype: str) -> int:
    """What the engine keeps for the same operations; in bfloat16 two bytes for each number that it keeps."""
    from lockcross import eager

    run = np.dtype("float32" if dtype == "bfloat16" else dtype)
    tensors, parts = {n: w.astype(run) for n, w in given.tensors.items()}, TRAINS.get(trains)
    moving = {n: w for n, w in tensors.items() if parts is None or any(part in n for part in parts)}
    scales: dict[str, float] = {}
    if trains in ADAPTED:
        moving, scales = adapters_of(tensors, ADAPTED[trains])
    still = {n: w for n, w in tensors.items() if n not in moving}
    kept = saved(
        lambda m, s, t: eager.loss({**m, **s, **scales}, t, given.config, given.mlp), moving, still, given.tokens,
        parameters=(0, 1),
    ).bytes()  # fmt: skip
    return kept * BYTES[dtype] // run.itemsize


def adapters_of(tensors: Tensors, projections: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, float]]:
    """LoRA's factors for the named projections of every layer, and what each product of them is multiplied by."""
    factors, scales = {}, {}
    for name, w in tensors.items():
        layer = name.removesuffix(".weight")
        if layer.endswith(projections):
            factors[f"{layer}.lora_A"] = np.ones((RANK, w.shape[1]), w.dtype)
            factors[f"{layer}.lora_B"] = np.ones((w.shape[0], RANK), w.dtype)
            scales[f"{layer}.lora_scale"] = ALPHA / RANK
    return factors, scales


def _published_bytes(cell: dict[str, Any]) -> dict[str, Any]:
    from lockcross import parity
    from lockcross import storage as torch_storage

    config = HUB[cell["model"]]
    mlp = storage.swiglu(config.intermediate_size, fused=False)
    return {
        "tokens": STORED,
        "torch_bytes": parity.published_bytes(config, STORED),
        "ledger_bytes": torch_storage.model_bytes(config, 1, STORED, 4, mlp),
        "unnamed_bytes": sum(torch_storage.unnamed(1, STORED, 4).values()),
    }


def experiment(device: str = "cpu", precisions: tuple[str, ...] = PRECISIONS) -> Experiment:
    """The table of one device."""
    return Experiment(
        name="full_parity" if device == "cpu" else f"full_parity_{device}",
        title=f"NumPy and PyTorch, layer by layer ({device})",
        seed=0,
        settings={"device": device, "logits": TARGET, "gradients": GRADIENTS},
        cells=cells(device, precisions),
        measure=lambda cell: measure(cell, device),
    )


EXPERIMENT = experiment()


def main(argv: list[str] | None = None) -> int:
    """The command for another device; 0 when done, 3 where there is no such device."""
    parser = argparse.ArgumentParser(prog="python -m lockproofs.experiments.full_parity")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=PRECISIONS, action="append", help="default: all")
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of the stored result")
    given = parser.parse_args(argv)
    from lockcross import parity

    if not parity.available(given.device):
        print("full_parity: there is no CUDA device here; leave --device out", file=sys.stderr)
        return 3
    chosen = experiment(given.device, tuple(given.dtype or PRECISIONS))
    run(chosen, given.out, given.out, lambda done, of: print(f"{chosen.name}: {done} of {of}", file=sys.stderr))
    return 0


if __name__ == "__main__":
    sys.exit(main())
