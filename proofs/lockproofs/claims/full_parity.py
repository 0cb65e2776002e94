"""FULL-PARITY: what NumPy and PyTorch were found to agree in, and NumPy's side of it computed again."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from lockproofs import parity_locks, resident
from lockproofs.claim import Check, Claim, Context, Deviation, Evidence, Grade, MissingInput, Source, Verdict
from lockproofs.experiments import full_parity as table
from lockproofs.experiments.store import Result, stored
from lockproofs.hub_sizes import HUB
from lockproofs.parity_cases import LOCKS, case, distance
from lockproofs.parity_locks import GRADIENTS, TARGET

LIVE = (*(("tiny", lock) for lock in LOCKS), ("base", "projection and dlr"))  # computed again in every audit
TRAP2 = {
    "trap2": (parity_locks.trap2_objective, parity_locks.trap2_update),
    "trap2 of LoRA": (parity_locks.lora_objective, parity_locks.lora_factors),
}
Row = dict[str, Any]


def result() -> Result:
    """The stored table. Raises MissingInput where it has other rows than this version compares."""
    found = stored("full_parity")
    same = [{name: row.get(name) for name in cell} for row, cell in zip(found.rows, table.cells(), strict=False)]
    if same != table.cells() or len(found.rows) != len(same):
        raise MissingInput("stored result full_parity has other rows; run python -m lockproofs.experiments full_parity")
    return found


def _most(name: str, statistic: str, values: Iterable[float], bound: float, unit: str, why: str) -> Check:
    found = list(values)
    return Check(
        name=name, statistic=statistic, unit=unit, value=max(found), bound=bound, cases=len(found), tolerance_from=why,
    )  # fmt: skip


def _same(name: str, statistic: str, differing: Iterable[int], unit: str) -> Check:
    found = list(differing)
    return Check(
        name=name, statistic=statistic, unit=unit, value=sum(found), bound=0, sense="==", cases=len(found),
        tolerance_from="integers: no tolerance",
    )  # fmt: skip


FIXED = "a fixed target; round-off is a few hundred times less"
SAMPLED = "the unit: round-off of that precision, sampled (lockproofs.rounding)"


def output_checks(found: Result) -> list[Check]:
    """Logits, losses and gradients in each precision; and that a planted fault stands out of each tolerance."""
    rows = found.where(layer="outputs")
    double = [r for r in rows if r["precision"] in ("float64", "twin")]
    lower = [r for r in rows if r["precision"] in ("float32", "bfloat16")]
    relative = "relative to the largest entry"
    return [
        _most("logits, float64", "official modules without casts, and the twin: max |torch − NumPy|",
              (r["logits"] for r in double), TARGET, relative, FIXED),
        _most("loss, float64", "|torch − NumPy| / loss", (r["loss"] for r in double), TARGET, "relative", FIXED),
        _most("gradients of every parameter, float64", "largest over parameters of max |torch − NumPy|",
              (r["gradients"] for r in double), GRADIENTS, relative, FIXED),
        _most("float32 and bfloat16, stock official modules", "largest error of logits, loss and gradients",
              (r["in_tolerances"] for r in lower), 1.0, "tolerances", SAMPLED),
        Check(
            name="a planted fault is seen in each precision", unit="tolerances", sense=">=", bound=1.0, cases=len(rows),
            statistic="least change of the logits where the gains of q_norm are left out",
            value=min(r["planted_in_tolerances"] for r in rows), tolerance_from=SAMPLED,
        ),
    ]  # fmt: skip


def byte_checks(found: Result) -> list[Check]:
    """Saved tensors against ledger and closed forms, to the byte."""
    models = found.where(layer="stored bytes") + found.where(layer="published bytes")
    attackers = found.where(layer="attackers")
    return [
        _same("stored bytes", "Σ |torch − (ledger + what the engine counts as plain data)|",
              (abs(r["torch_bytes"] - r["ledger_bytes"] - r["unnamed_bytes"]) for r in models), "bytes"),
        _same("attackers' bytes", "Σ |torch − closed form|, between the passes and at most",
              (abs(r["torch_bytes"] - r["predicted_bytes"])
               + abs(r["torch_bytes_at_most"] - r["predicted_bytes_at_most"]) for r in attackers), "bytes"),
        _most("attackers' gradients", "inversion and recomputation as autograd functions: max |torch − NumPy|",
              (r["gradients"] for r in attackers), GRADIENTS, "relative to the largest entry", FIXED),
    ]  # fmt: skip


DRIFT = "the unit: 8 times the drift of NumPy's own losses when the first weights move by their last bits"


def lock_checks(found: Result) -> list[Check]:
    """Keys, merges, distillation, fine-tuning and Trap²."""
    keys, distilled, tuned = (found.where(layer=layer) for layer in ("keys", "distillation", "fine-tuning"))
    trap2 = [row for layer in TRAP2 for row in found.where(layer=layer)]
    davis_kahan = "the unit: 4 c u ‖S‖ / gap at the cut (Davis & Kahan), of both eigendecompositions"
    return [
        _most("projection made by torch", "max |P_torch − P_NumPy|", (r["p"] / r["allowed_p"] for r in keys), 1.0,
              "tolerances", davis_kahan),
        _same("keys recovered", "models on which a keyless attack, NumPy's on torch's lock or torch's on NumPy's, "
              "finds a wrong k", (int(r[k] != [r["k"]]) for r in keys for k in ("k_found", "k_found_torch")), "models"),
        _most("weights recovered", "relative error of what either keyless attack returns",
              (r[side] / r["allowed_p"] for r in keys for side in ("recovered", "recovered_torch")), 1.0, "tolerances",
              davis_kahan),
        _most("merge results", "largest |torch − NumPy| in a tensor, over the largest change of the base there",
              (r["merged"] for r in found.where(layer="merges")), TARGET, "relative", FIXED),
        _most(f"distillation, {parity_locks.STEPS} steps", "either phase, any step: largest |loss_torch − loss_NumPy|",
              (r["losses"] / r["allowed_losses"] for r in distilled), 1.0, "tolerances", DRIFT),
        _most(f"fine-tuning, {parity_locks.STEPS} steps", "locked model, all or attention, any step: largest |gap|",
              (r["losses"] / r["allowed_losses"] for r in tuned), 1.0, "tolerances", DRIFT),
        _most("Trap² objective", "full updates, and LoRA by peft: |torch − NumPy| / |J|",
              (r["objective"] for r in trap2), TARGET, "relative", FIXED),
        _most("Trap² gradient", "largest over tensors of max |torch − NumPy|", (r["gradients"] for r in trap2),
              GRADIENTS, "relative to the largest entry", FIXED),
    ]  # fmt: skip


def size_checks() -> list[Check]:
    """A model of Qwen3-0.6B's shape on both sides. Raises MissingInput without its stored result."""
    found = stored("full_size")
    (forward,), (held,) = found.where(what="forward"), found.where(what="stored bytes")
    (memory,) = stored("full_memory").rows
    config = HUB[memory["model"]]
    predicted = memory["predicted_weights"] + memory["predicted_forward"]
    return [
        _most(f"logits of {found.settings['model']}'s shape, float32", "stock official modules: max |torch − NumPy|, "
              f"{forward['parameters']:,} random weights, {found.settings['tokens']} tokens",
              [forward["logits"] / forward["allowed_logits"]], 1.0, "tolerances", SAMPLED),
        _same("its stored bytes", "|torch − closed form|, allocated and on the meta device",
              (abs(held[n] - held["ledger_bytes"] - held["unnamed_bytes"]) for n in ("torch_bytes", "meta_bytes")),
              "bytes"),
        _most("its forward pass, arrays", "|traced peak − closed form|: logits, stream and norm, RoPE's tables",
              [abs(memory["traced"] - memory["predicted_forward"])], resident.OBJECTS, "bytes",
              "Python's objects: names and views of one layer's tensors"),
        _most("its forward pass, process", "|resident peak − (bare process + weights + closed form)|",
              [abs(memory["peak"] - memory["bare"] - predicted)], resident.pages_of(config) + resident.TOUCHED, "bytes",
              "two pages for each tensor, 1 MiB of code and BLAS's buffers first touched"),
    ]  # fmt: skip


def live_checks(found: Result) -> list[Check]:
    """NumPy's answers computed now against torch's numbers as they are stored."""
    outputs, attackers = [], []
    for model, lock in LIVE:
        (row,) = found.where(layer="outputs", model=model, lock=lock, precision="float64")
        outputs.append(output_gap(row))
    for row in found.where(layer="attackers"):
        want = parity_locks.attacker_bytes(parity_locks.attacked_net(row), row["way"], row["segments"])
        attackers.append(abs(row["torch_bytes"] - want[0]) + abs(row["torch_bytes_at_most"] - want[1]))
    trap2 = [
        abs(float(objective(row, given())) / row["torch_objective"] - 1)
        for layer, (objective, given) in TRAP2.items()
        for row in found.where(layer=layer)
    ]
    return [
        _most("computed again: outputs", "loss, sampled logits and one random contraction of all gradients, each "
              "against the number that torch gave", outputs, 1.0, "targets", FIXED),
        _same("computed again: bytes", "Σ |torch's stored count − closed form now|", attackers, "bytes"),
        _most("computed again: Trap²", "|J now / J of torch − 1|", trap2, TARGET, "relative", FIXED),
    ]  # fmt: skip


def output_gap(row: Row) -> float:
    """The largest distance of NumPy's loss, logits and gradients now from torch's stored ones, in targets."""
    now = case(row["model"], row["lock"]).answer()
    some = np.ravel(now["logits"])[: table.SAMPLE]
    size = table.probe({n: np.abs(g) for n, g in now["gradients"].items()}, np.abs)
    gaps = (
        abs(now["loss"] - row["torch_loss"]) / abs(now["loss"]) / TARGET,
        distance(row["torch_logits"], some) / TARGET,
        abs(table.probe(now["gradients"]) - row["torch_gradient"]) / size / GRADIENTS,
    )
    return float(max(gaps))


def check_parity(ctx: Context) -> Evidence:
    """Read the stored table of `python -m lockproofs.experiments full_parity`, and compute NumPy's side again in part.

    PyTorch runs the official Qwen3 classes with the locks as modules of their own. The table compares logits, losses
    and the gradients of every parameter, in float64 with the official casts to float32 taken out and with a twin that
    shares no code, and in float32 and bfloat16 as published; the bytes of saved tensors, counted storage by storage,
    with the ledger of the same operations; projections, keys, merges, both phases of distillation and fine-tuning step
    by step, and Trap²'s objective with second implementations. An audit has no torch: it recomputes NumPy's answers
    and holds them against torch's.
    """
    found = result()
    (where,) = found.where(layer="environment")
    checks = [*output_checks(found), *byte_checks(found), *lock_checks(found), *size_checks(), *live_checks(found)]
    holds = all(check.passed for check in checks)
    return Evidence(
        verdict=Verdict.HOLDS if holds else Verdict.UNDECIDED,
        grade=Grade.TESTED,
        explanation=(
            f"{len(found.rows) - 1} comparisons on {where['device_name']}, torch {where['torch']}, transformers "
            f"{where['transformers']}. In float64 NumPy and PyTorch agree to {checks[0].value:.1g} in logits and "
            f"{checks[2].value:.1g} in gradients; stored bytes differ by {checks[5].value:.0f} over {checks[5].cases} "
            "settings, Qwen3-0.6B, 8B and 32B among them, in float32, float64 and bfloat16, and with LoRA by peft. Not "
            "counted by the engine, and named instead: targets and a scalar, which are plain data to it, and what the "
            f"official norms and softmax keep in float32 beside bfloat16. {_accelerator()}"
        ),
        checks=checks,
        assumptions=[
            f"the stored tables, made by: {found.command}; {stored('full_size').command}; "
            f"{stored('full_memory').command}",
            f"rows of one device: {where['device_name']}. {_accelerator()}",
            "eager attention and eager operations; compiled or fused kernels of torch keep other buffers",
            "DARE drops the same entries on both sides: masks are the generator's; tsv is compared where no two "
            "directions repeat",
        ],
        deviations=[
            Deviation(
                paper_says="the official modules compute norms, softmax and RoPE in float32 in every precision",
                we_do="take these casts out for the comparison in float64",
                why="they hide every difference below 1e-7",
                effect="stock float32 and bfloat16 are compared too, within sampled round-off",
            )
        ],
    )  # fmt: skip


def _accelerator() -> str:
    """Which rows of an accelerator there are; none is guessed."""
    try:
        found = stored("full_parity_cuda")
    except MissingInput:
        return (
            "No accelerator rows are stored, so nothing is said of one; where there is one, run python -m "
            "lockproofs.experiments.full_parity --device cuda."
        )
    (where,) = found.where(layer="environment")
    return f"{len(found.rows) - 1} rows of outputs and bytes on {where['device_name']} are stored beside it."


PARITY = Claim(
    id="FULL-PARITY",
    title="NumPy and PyTorch agree",
    statement="The NumPy reference and the PyTorch implementation agree in outputs, gradients, stored bytes, keys and "
    "merges.",
    source=Source(paper="lockref", where="what every other figure of this report stands on; worded by us"),
    kind="theorem",
    recorded=Verdict.HOLDS,
    would_change="A version of torch or transformers, a device or a kernel with which some row leaves its tolerance.",
    check=check_parity,
)
