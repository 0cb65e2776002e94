"""Trains the zoo, a base model and two experts: `python -m lockcross.train_zoo`.

The official Qwen3 class, float32, one seed. Every batch is a function of (seed, stage, step), and a
checkpoint is one file that holds weights, optimizer and step, so a run may be killed at any moment
and started again: it goes on from the last checkpoint and ends in the same bits.
"""

import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import transformers
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError
from transformers import Qwen3Config, Qwen3ForCausalLM

from lockcross.zoo_card import gain_spread, language_loss, measure, merge, render
from lockcross.zoo_files import (
    WEIGHTS,
    Tensors,
    load_model,
    read_tensors,
    save_model,
    sha256,
    write_bytes,
    write_tensors,
    write_text,
)
from lockcross.zoo_recipe import FULL, Recipe, draw_batch, learning_rate
from lockref.models import skills

OnStep = Callable[[str, int], None]

ZOO = Path(skills.__file__).parent / "zoo"
WORK = Path.home() / ".cache" / "lockref" / "train_zoo"


@contextmanager
def reproducible(threads: int) -> Iterator[None]:
    """Deterministic kernels on a fixed number of threads; what was set before comes back."""
    before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.set_num_threads(before[1])


def describe(text: skills.Bytes) -> dict[str, Any]:
    return {"bytes": len(text), "sha256": sha256(text.tobytes())}


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


class Trainer:
    """One stage: model, optimizer, step, and the file that holds all three."""

    def __init__(self, recipe: Recipe, seed: int, index: int, work: Path) -> None:
        self.recipe, self.seed, self.index = recipe, seed, index
        self.stage = recipe.stages[index]
        self.file = work / f"{self.stage.name}.checkpoint.safetensors"
        self.step, self.seconds, self.losses = 0, 0.0, list[float]()
        if self.stage.start is None:
            with torch.random.fork_rng():  # initialization is the one draw that torch makes
                torch.manual_seed(seed)
                self.model = Qwen3ForCausalLM(Qwen3Config(**recipe.config))
        else:
            self.model = load_model(work / self.stage.start)
        self.parameters = dict(self.model.named_parameters())
        gains = [p for p in self.parameters.values() if p.ndim == 1]
        matrices = [p for p in self.parameters.values() if p.ndim > 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "factor": 1.0, "weight_decay": recipe.weight_decay},
                {"params": gains, "factor": recipe.gain_lr, "weight_decay": 0.0},
            ],
            betas=recipe.betas,
            fused=True,
        )
        if self.file.exists():
            self.resume()

    def save(self) -> None:
        tensors: Tensors = {f"weight.{name}": p for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            for moment in ("exp_avg", "exp_avg_sq"):
                tensors[f"{moment}.{name}"] = self.optimizer.state[p][moment]
        progress = {"step": self.step, "seconds": self.seconds, "losses": self.losses}
        write_tensors(self.file, tensors, {"progress": json.dumps(progress)})

    def resume(self) -> None:
        tensors, metadata = read_tensors(self.file)
        progress = json.loads(metadata["progress"])
        self.step, self.seconds = progress["step"], progress["seconds"]
        self.losses = progress["losses"]
        for name, p in self.parameters.items():
            p.data.copy_(tensors[f"weight.{name}"])
            self.optimizer.state[p] = {
                "step": torch.tensor(float(self.step)),
                "exp_avg": tensors[f"exp_avg.{name}"],
                "exp_avg_sq": tensors[f"exp_avg_sq.{name}"],
            }

    def update(self, text: skills.Bytes) -> float:
        rate = learning_rate(self.recipe, self.stage, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        rows = draw_batch(self.recipe, self.seed, self.index, self.step, text)
        loss = language_loss(self.model, rows)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.step += 1
        return loss.item()

    def run(self, text: skills.Bytes, on_step: OnStep) -> None:
        """Train to the last step; a checkpoint closes each block of `checkpoint_every` steps."""
        self.model.train()
        on_step(self.stage.name, self.step)
        while self.step < self.stage.steps:
            started, block = time.perf_counter(), list[float]()
            stop = min(self.step + self.recipe.checkpoint_every, self.stage.steps)
            while self.step < stop:
                block.append(self.update(text))
                on_step(self.stage.name, self.step)
            self.losses.append(sum(block) / len(block))
            self.seconds += time.perf_counter() - started
            self.save()


def train_zoo(recipe: Recipe, out: Path, work: Path, seed: int, on_step: OnStep) -> None:
    """Train every stage of the recipe, measure, and publish models and card into `out`.

    Work in progress lives below `work`, in a folder named by a hash of all that decides the result;
    nothing appears in `out` before everything is trained and measured. on_step(stage, step) is
    called once when a stage starts or resumes and after each of its steps.
    """
    train, held_out = skills.stdlib_bytes(), skills.stdlib_bytes(held_out=True)
    identity = {"recipe": asdict(recipe), "seed": seed, "versions": versions()} | {
        "train_text": describe(train),
        "held_out_text": describe(held_out),
    }
    run = work / sha256(json.dumps(identity).encode())[:16]
    out.mkdir(parents=True, exist_ok=True)
    models, saved = {}, {}
    with reproducible(recipe.threads):
        for index, stage in enumerate(recipe.stages):
            trainer = Trainer(recipe, seed, index, run)
            trainer.run(train, on_step)
            save_model(run / stage.name, recipe.config, trainer.model.state_dict())
            model, file = load_model(run / stage.name), run / stage.name / WEIGHTS
            saved[stage.name], _ = read_tensors(file)
            models[stage.name] = {
                "held_out": measure(model, held_out, seed, *recipe.measured),
                "train_losses": trainer.losses,
                "train_seconds": round(trainer.seconds, 1),
                "gains": gain_spread(saved[stage.name]),
                "file_bytes": file.stat().st_size,
                "sha256": sha256(file.read_bytes()),
            }
        merged = {}
        base, *experts = saved.values()
        for scale in recipe.scales:
            model.load_state_dict(merge(base, experts, scale))
            merged[str(scale)] = measure(model, held_out, seed, *recipe.measured)
    card = identity | {
        "models": models,
        "merged": merged,
        "parameters": sum(tensor.numel() for tensor in base.values()),
        "shapes": {name: list(tensor.shape) for name, tensor in base.items()},
    }
    for stage in recipe.stages:
        for name in ("config.json", WEIGHTS):
            write_bytes(out / stage.name / name, (run / stage.name / name).read_bytes())
    write_text(out / "card.json", json.dumps(card, indent=1) + "\n")
    write_text(out / "README.md", render(card))


def main(
    out: Annotated[Path, typer.Option(file_okay=False, help="Where the zoo is published.")] = ZOO,
    work: Annotated[Path, typer.Option(file_okay=False, help="Where checkpoints live.")] = WORK,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Train the zoo's models from nothing and write their card. A killed run resumes."""
    talk: Any = transformers.utils.logging
    talk.disable_progress_bar()  # one bar is enough
    starts, total = {}, 0
    for stage in FULL.stages:
        starts[stage.name] = total
        total += stage.steps
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, speed_estimate_period=60, console=Console(stderr=True))
    task = progress.add_task("starting", total=total)

    def on_step(stage: str, step: int) -> None:
        progress.update(task, description=stage, completed=starts[stage] + step)

    try:
        with progress:
            train_zoo(FULL, out, work, seed, on_step)
    except (OSError, ValueError, SafetensorError) as error:
        typer.echo(f"train_zoo: {error}", err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
