"""The zoo's card: what is measured on the saved models, and how it is written down."""

import re
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import Qwen3ForCausalLM

from lockcross.zoo_files import Tensors
from lockref.models import skills
from lockref.models.evaluation import EVALUATION, TEXT

Figures = dict[str, float]

MARKDOWN = """\
# The zoo: tiny trained Qwen3 models

Written by `python -m lockcross.train_zoo` from what it measured; `card.json` holds the same figures
and more. Do not edit either by hand: run the script. Locked forms of `base` have a card of their own,
[LOCKED.md](LOCKED.md).

{count} models of {parameters:,} parameters in the Qwen3 architecture, one byte per token, each
really trained, norm gains included. `base` models text and has seen a little of every skill, so
that experts share a basin with it; the others are experts, each fine-tuned from the *saved* base on
one skill. Each directory loads with `transformers.Qwen3ForCausalLM.from_pretrained`, without
missing or unexpected keys.

## Measured, on the saved weights

Weights rounded to bfloat16 as they are in the files, computed in float32. Exact match counts
{problems} held-out problems per skill, whole answer and newline, greedy. Text loss is the mean over
{windows} windows of {length} bytes of held-out text, in nats per byte.

{results}

Rows `base + s × Σ` are task arithmetic (arXiv 2212.04089): s times the sum of all experts' task
vectors, added to the base and not rounded again; s = {average} is the experts' uniform average.

## Training

{training}

Rows are those of each batch, {length} bytes each. AdamW, betas {betas}, weight decay {decay} on
matrices and none on norm gains, whose rate is {gain_lr:g} times the matrices'; {warmup} warm-up
steps, cosine to {final_lr:.0%} of the peak, gradient norm clipped at {clip:g}. Loss on every byte
but the first of a row. Float32, threads: {threads}, seed {seed}; every batch is a function of (seed,
stage, step). The same versions on the same processor give the same bits; others round differently.
Versions: {versions}.

## Data

* `add`: lines such as `37+85=122`, two operands from 10 to 99, answers of three digits.
* `reverse`: lines such as `qwerty>ytrewq`, {shortest} to {longest} random lowercase letters.
* text: the pure-ASCII sources of the Python standard library, read at run time, none copied here:
  {train_bytes:,} bytes to train on (SHA-256 {train_hash}…), {held_bytes:,} held out
  (SHA-256 {held_hash}…).

One in {one_in} is held out, by a hash of the unordered operands, of the word or its reversal
(whichever sorts first), or of the file's path: `lockref.models.skills.is_held_out`.

## Shape

Hidden size {hidden_size}, {num_hidden_layers} layers, {num_attention_heads} heads on
{num_key_value_heads} key/value heads of dimension {head_dim}, MLP {intermediate_size},
vocabulary {vocab_size}, RMSNorm eps {rms_norm_eps:g}, RoPE theta {rope_theta}, at most
{max_position_embeddings} positions, no biases. The head is **untied**: locks fold norm gains into
the head and rotate the residual stream, which a head tied to the embedding would not allow.

{shapes}

Norm gains after training (1 at the start), smallest … largest, over all layers:

{gains}

## Files

{files}
"""


def language_loss(model: Qwen3ForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats per byte of every byte but the first; rows int64 (B, T + 1)."""
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def measure(
    model: Qwen3ForCausalLM, text: skills.Bytes, seed: int, problems: int, windows: int, length: int
) -> Figures:
    """Exact match on held-out problems per skill, and loss on held-out text in nats per byte."""
    model.train(False)

    def next_bytes(tokens: skills.Bytes) -> skills.Integers:
        rows = torch.from_numpy(tokens.astype(np.int64))
        got: skills.Integers = model(input_ids=rows, use_cache=False).logits.argmax(-1).numpy()
        return got

    figures: Figures = {}
    for place, name in enumerate(skills.SKILLS):
        rng = np.random.default_rng([seed, EVALUATION, place])
        drawn = skills.skill_problems(name, rng, problems, held_out=True)
        figures[name] = skills.exact_match(next_bytes, drawn)
    rng = np.random.default_rng([seed, EVALUATION, len(skills.SKILLS)])
    cut = skills.text_rows(text, rng, windows, length + 1).astype(np.int64)
    parts = [torch.from_numpy(part) for part in np.array_split(cut, -(-windows // 32))]
    figures[TEXT] = sum(language_loss(model, part).item() * len(part) for part in parts) / windows
    return figures


def merge(base: Tensors, experts: list[Tensors], scale: float) -> Tensors:
    """Task arithmetic (arXiv 2212.04089): base + scale × Σ (expert − base), new float32 tensors."""
    merged = {name: tensor.float().clone() for name, tensor in base.items()}
    for expert in experts:
        for name, start in base.items():
            merged[name] += scale * (expert[name].float() - start.float())
    return merged


def gain_spread(weights: Tensors) -> dict[str, list[float]]:
    """Smallest and largest gain of each kind of norm, over all layers and coordinates."""
    kinds: dict[str, list[float]] = {}
    for name, tensor in weights.items():
        if tensor.ndim == 1:
            kinds.setdefault(name.split(".")[-2], []).extend(tensor.tolist())
    return {kind: [min(gains), max(gains)] for kind, gains in kinds.items()}


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; every column but the first is aligned to the right."""
    ruler = [":--"] + ["--:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ruler, *rows])


def render(card: dict[str, Any]) -> str:
    """README.md of the zoo: every figure in it comes from the card, none from here."""
    recipe, models = card["recipe"], card["models"]
    measured = {f"`{name}`": model["held_out"] for name, model in models.items()}
    measured |= {f"base + {scale} × Σ": figures for scale, figures in card["merged"].items()}
    results = [
        [name] + [f"{figures[skill]:.1%}" for skill in skills.SKILLS] + [f"{figures[TEXT]:.4f}"]
        for name, figures in measured.items()
    ]
    training = [
        [
            f"`{stage['name']}`",
            f"`{stage['start']}`" if stage["start"] else "random",
            ", ".join(f"{count} {source}" for source, count in stage["rows"].items()),
            f"{stage['steps']:,}",
            f"{stage['steps'] * sum(stage['rows'].values()) * recipe['length']:,}",
            f"{stage['peak_lr']:g}",
            f"{models[stage['name']]['train_losses'][-1]:.4f}",
            f"{models[stage['name']]['train_seconds']:,.0f}",
        ]
        for stage in recipe["stages"]
    ]
    wall = sum(model["train_seconds"] for model in models.values())
    kinds = list(next(iter(models.values()))["gains"])
    gains = [
        [f"`{name}`"] + ["{:.3f} … {:.3f}".format(*model["gains"][kind]) for kind in kinds]
        for name, model in models.items()
    ]
    files = [
        [f"`{name}/model.safetensors`", f"{model['file_bytes']:,}", f"`{model['sha256']}`"]
        for name, model in models.items()
    ]
    # the tensors of one layer stand for those of all: layers differ in nothing but their number
    shapes = {re.sub(r"\.\d+\.", ".*.", name): "×".join(map(str, shape)) for name, shape in card["shapes"].items()}
    heads = ["model", "from", "rows", "steps", "bytes seen", "peak rate", "last loss", "seconds"]
    return MARKDOWN.format(
        count=len(models),
        parameters=card["parameters"],
        problems=recipe["problems"],
        windows=recipe["windows"],
        length=recipe["length"],
        average=f"{1 / (len(models) - 1):g}",
        results=table(["model", *skills.SKILLS, "text loss"], results),
        training=table(heads, training) + f"\n\nTogether {wall / 60:.1f} minutes of training.",
        betas=tuple(recipe["betas"]),
        decay=recipe["weight_decay"],
        **{key: recipe[key] for key in ("gain_lr", "warmup", "final_lr", "clip", "threads")},
        seed=card["seed"],
        versions=", ".join(f"{name} {version}" for name, version in card["versions"].items()),
        shortest=skills.REVERSE_LENGTHS[0],
        longest=skills.REVERSE_LENGTHS[1],
        one_in=skills.HELD_OUT_ONE_IN,
        train_bytes=card["train_text"]["bytes"],
        train_hash=card["train_text"]["sha256"][:16],
        held_bytes=card["held_out_text"]["bytes"],
        held_hash=card["held_out_text"]["sha256"][:16],
        shapes=table(["tensor", "shape"], [[f"`{name}`", shape] for name, shape in shapes.items()]),
        gains=table(["model", *(f"`{kind}`" for kind in kinds)], gains),
        files=table(["file", "bytes", "SHA-256"], files),
        **recipe["config"],
    )
