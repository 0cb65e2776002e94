"""One command that trains a protected expert: `python -m lockref.locks.trap2_zoo DIR --kind full`.

Trains an expert on addition from the zoo's base with Trap² (arXiv 2601.21898), writes DIR with config.json, the whole
model and lock.json, and prints what it is able to at every scale, beside other λ if some are named. Interrupted, the
same command goes on where it stopped: states lie in DIR.work until all is done.
"""

import argparse
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lockref.autodiff.pages import keep_pages
from lockref.locks.commands import answered, require_new
from lockref.locks.distillation import reporter
from lockref.locks.dlr_run import rounded
from lockref.locks.manifest import Manifest, write_locked
from lockref.locks.trap2_experts import (
    CEILING,
    LINES,
    RATES,
    REPLAYED,
    SKILL,
    STEPS,
    STRENGTHS,
    Arrays,
    Plan,
    parametrization,
    recipe,
    train_expert,
)
from lockref.locks.trap2_training import LoRA, Protection
from lockref.models import skills
from lockref.models.answers import answer_loss, answers, exact_match
from lockref.models.checkpoint_io import Checkpoint, load_checkpoint, tensor_code
from lockref.models.evaluation import EVALUATION, evaluate
from lockref.models.zoo import zoo_path

SAVED = 50  # steps between two states
SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
PROBLEMS = 300  # held out, along the scales


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when done, 3 with one line on standard error where input is wrong or training diverges."""
    parser = argparse.ArgumentParser(prog="python -m lockref.locks.trap2_zoo", description="Train a protected expert.")
    parser.add_argument("target", type=Path, metavar="DIR")
    parser.add_argument("--kind", choices=RATES, default="full")
    parser.add_argument("--strength", type=float, help="λ; 0 trains without protection")
    parser.add_argument("--beside", type=float, nargs="*", default=[], metavar="λ", help="trained for comparison alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--dtype", default="bfloat16", help="of the tensors that are written")
    given = parser.parse_args(argv)
    return answered("trap2_zoo", lambda: _run(given))


def _run(given: argparse.Namespace) -> None:
    keep_pages()
    require_new(given.target)
    if given.seed < 0:
        raise ValueError(f"seed {given.seed}: must be 0 or more")
    tensor_code(given.target, given.dtype)
    strength = STRENGTHS[given.kind] if given.strength is None else given.strength
    plans = [Plan(given.kind, SKILL, s, given.seed) for s in dict.fromkeys((strength, *given.beside))]
    said = [part(plan, given.steps) for plan in plans]  # raises for what cannot be trained
    base = load_checkpoint(zoo_path("base"), np.float32)
    work = given.target.with_name(given.target.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    shape = parametrization(given.kind, base.tensors)
    updates = {plan.strength: trained(base, plan, given.steps, work) for plan in plans}
    whole = shape.applied(updates[strength], 1.0)
    stored = {name: rounded(w, given.dtype) for name, w in whole.items()}
    curves = {s: along(base, shape, params) for s, params in updates.items()}
    manifest = Manifest(
        parts={"trap2": said[0] | lora(shape)},
        source=base.files,
        command=f"python -m lockref.locks.trap2_zoo DIR --kind {given.kind} --strength {strength:g} "
        f"--seed {given.seed} --steps {given.steps} --dtype {given.dtype}",
        seed=given.seed,
        versions={"python": platform.python_version(), "numpy": np.__version__},
        figures={
            "original": evaluate(base.tensors, base.config), "trained": evaluate(whole, base.config),
            "locked": evaluate(stored, base.config), "scales": list(SCALES), **curves[strength],
        },
    )  # fmt: skip
    write_locked(given.target, base.config, stored, manifest, given.dtype)
    print(report(curves, manifest.figures))
    shutil.rmtree(work)


def trained(base: Checkpoint, plan: Plan, steps: int, work: Path) -> Arrays:
    """An update's parameters, from the state in `work` or from the start."""
    follow = reporter(f"λ = {plan.strength:g}", steps, print)
    return train_expert(
        base, plan, recipe(plan, steps), Protection(plan.strength), file=work / f"{plan.strength:g}",
        save_every=SAVED, follow=follow,
    )  # fmt: skip


def lora(shape: Any) -> dict[str, Any]:
    """Rank and α where the update is an adapter, merged into the stored weights."""
    return {"lora": {"rank": shape.rank, "alpha": shape.alpha}} if isinstance(shape, LoRA) else {}


def part(plan: Plan, steps: int) -> dict[str, Any]:
    """What lock.json says of the lock: λ, the law of s, w, the recipe, and the data."""
    return {
        "kind": plan.kind,
        **asdict(Protection(plan.strength)),
        "recipe": asdict(recipe(plan, steps)),
        "ceiling": CEILING,
        "skill": plan.skill,
        "batch": {"skill": LINES, "other": REPLAYED[plan.skill]},
    }


def along(base: Checkpoint, shape: Any, params: Mapping[str, Any]) -> dict[str, list[float]]:
    """Held-out loss (nats per token) and exact match of the skill along W₀ + sΔ."""
    rng = np.random.default_rng([EVALUATION, list(skills.SKILLS).index(SKILL)])
    problems = skills.skill_problems(SKILL, rng, PROBLEMS, held_out=True)
    models = [shape.applied(params, s) for s in SCALES]
    return {
        "loss": [float(answer_loss(w, answers(problems), base.config)) for w in models],
        "match": [exact_match(w, problems, base.config) for w in models],
    }


def report(curves: Mapping[float, Mapping[str, Sequence[float]]], figures: Mapping[str, Any]) -> str:
    """The skill alone, before and after rounding; then for each λ exact match at s = 1 and the loss at every scale."""
    alone = ", ".join(f"{name} {figures[name][SKILL]:.1%}" for name in ("original", "trained", "locked"))
    lines = [
        f"{SKILL} alone: {alone}",
        " ".join(["λ".rjust(8), "alone".rjust(7), *(f"s={s:g}".rjust(8) for s in SCALES)]),
    ]
    for strength, found in sorted(curves.items()):
        row = [f"{strength:8g}", f"{found['match'][SCALES.index(1.0)]:7.1%}", *(f"{y:8.3f}" for y in found["loss"])]
        lines.append(" ".join(row))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
