"""FULL-FUNC: what the composed lock does to the function is what its parts do, one by one."""

from typing import Any

import numpy as np

from lockproofs.claim import Check, Claim, Context, Deviation, Evidence, Grade, MissingInput, Source, Verdict
from lockproofs.experiments.store import stored
from lockref.locks import full
from lockref.locks.attention import TOPK, project, projections
from lockref.locks.dlr import assembled
from lockref.locks.full import Composition, Series
from lockref.models import dlrnet, qwen3
from lockref.models.checkpoint_io import Checkpoint, load_checkpoint
from lockref.models.evaluation import held_out_windows, text_loss
from lockref.models.zoo import zoo_path

PAPERS = "DLR-Lock (arXiv 2605.10777), MergeBarrier (arXiv 2511.10712), Trap² (arXiv 2601.21898)"
LOCKED = "dlr-16"  # of the zoo: its base, distilled as long as the budget took
SERIES = Series(16, "chebyshev")
WINDOWS, LENGTH = 6, 64
BYTES = 256


def parts_alone(model: Checkpoint, rng: np.random.Generator) -> dict[str, tuple[Composition, dict[str, Any]]]:
    """The model with each kind of network for its MLPs, planes not flipped; DLR-Nets random, of little effect."""
    config = model.config
    tokens = held_out_windows(4, LENGTH)
    net = dlrnet.DLRConfig(config.hidden_size, 8, 6, "rms")
    nets = {i: dlrnet.initialize(net, rng, b_scale=0.3) for i in range(config.num_hidden_layers)}
    return {
        "SwiGLU": (Composition(), dict(model.tensors)),
        "DLR-Net": (Composition(net=net), assembled(model.tensors, nets)),
        "polynomial": (Composition(series=SERIES), full.expand(model.tensors, config, SERIES, tokens)),
    }


def differing_logits(model: Checkpoint, rng: np.random.Generator) -> tuple[int, int, int]:
    """Logits that flips of planes change, logits looked at, and models: every kind of MLP, every number of planes."""
    config, rows = model.config, held_out_windows(1, LENGTH)
    changed = seen = models = 0
    for composition, tensors in parts_alone(model, rng).values():
        want = qwen3.forward(tensors, rows, config, composition.block)
        for planes in range(1, config.head_dim // 2 + 1, 1 if composition == Composition() else 5):
            flipped = full.flip_planes(tensors, config, planes)
            got = qwen3.forward(flipped, rows, config, composition.block)
            changed, seen, models = changed + int(np.sum(got != want)), seen + got.size, models + 1
    return changed, seen, models


def composed_gap(planes: int, rows: Any) -> tuple[float, float, int]:
    """Relative rise of the zoo base's loss over rows, DLR-locked and flipped; the same unflipped; bits changed."""
    base, locked = load_checkpoint(zoo_path("base")), full.load(zoo_path(LOCKED))
    both = full.flip_planes(locked.tensors, locked.config, planes)
    start, block = text_loss(base.tensors, rows, base.config), locked.composition.block
    alone, whole = (text_loss(tensors, rows, base.config, block) for tensors in (locked.tensors, both))
    one, two = (qwen3.forward(tensors, rows[:1], base.config, block) for tensors in (locked.tensors, both))
    return whole / start - 1, alone / start - 1, int(np.sum(one != two))


def by_default(row: dict[str, Any]) -> str:
    """What one run of the command with its default options cost, and left of a trapped expert."""
    was, now = row["original"], row["locked"]
    low, high = row["load"]
    skills = ", ".join(f"{name} {now[name]:.1%} of {was[name]:.1%}" for name in ("add", "reverse"))
    put = " and ".join(part for part in row["parts"] if part != "trap2")
    return (
        f"`lockref lock` with its default options puts {put} on the zoo's expert {row['source']}, which carries Trap²: "
        f"{row['cpu_seconds']:.0f} processor seconds of one thread, what an idle core takes (two could at best "
        f"halve it), and {row['wall_seconds']:.0f} s by the clock at a load of {low:.1f} to {high:.1f} on two cores; "
        f"{row['peak_mib']:,} MiB at most, {row['expected_mib']:,} MiB were expected. Held out: {skills}, text "
        f"{now['text']:.3f} nats per byte where it was {was['text']:.3f}."
    )


def check_function(ctx: Context) -> Evidence:
    """Compose the parts on this model and compare every logit; add flips to a distilled lock and measure the whole.

    Theorem. Let the lock be plane flips on attention and networks f_i in place of the MLPs, and L any function of the
    logits. Then L(locked) − L(original) = L(f alone) − L(original), to the last bit: the budget of the whole is that of
    its MLPs alone.

    Proof. A flip multiplies two coordinates of every query and key of a head by −1. Negation is exact, the RMS norm
    squares its input, a gain scales each coordinate, RoPE takes (x, y) to (x cos − y sin, x sin + y cos): each commutes
    with the sign without any rounding, in whatever order sums are taken over coordinates, as every term of q kᵀ has
    both signs. So the scores are the same bits, whatever the stream is. By induction over the layers so are the
    streams, the inputs of the f_i, and the logits. ∎

    The other side: flips of eigen-directions, as they are published, do not commute with RoPE and QK-norm.
    """
    model = ctx.subject.model
    if model.config.vocab_size != BYTES:
        raise MissingInput(f"the held-out text is bytes, and the vocabulary has {model.config.vocab_size} tokens")
    rng = ctx.rng()
    changed, seen, models = differing_logits(model, rng)
    config, rows = model.config, held_out_windows(WINDOWS, LENGTH)
    start = text_loss(model.tensors, rows, config)
    turned = project(model.tensors, config, projections(model.tensors, config, TOPK, config.head_dim // 4))
    published = text_loss(turned, rows, config) / start - 1
    composition, tensors = parts_alone(model, rng)["polynomial"]
    series = text_loss(full.flip_planes(tensors, config, 4), rows, config, composition.block) / start - 1
    whole, alone, moved = composed_gap(config.head_dim // 4, rows)
    said = full.load(zoo_path(LOCKED)).manifest.figures
    budget = float(said["loss_gap"])
    quick = stored("full_lock_time")
    return Evidence(
        verdict=Verdict.HOLDS_IF,
        grade=Grade.MEASURED,
        condition="attention is turned by signs of whole rotary planes, and the budget is stated as what the networks "
        "that replace the MLPs cost on held-out data",
        explanation=(
            f"Flips of planes change not one of {seen:,} logits under any of the networks, so nothing is added to what "
            f"the networks themselves cost, and budgets compose by addition. The zoo's base with distilled DLR-Nets "
            f"({LOCKED}) states a budget of {budget:.2%} of the held-out loss; with half of its planes flipped too, "
            f"{whole:.2%} on the windows read here, the same with and without flips ({alone:.2%}). Its skills: "
            f"{said['locked']['add']:.1%} of sums right where {said['original']['add']:.1%} were. A polynomial of "
            f"order {SERIES.order} ({SERIES.basis}) for the MLPs costs {series:.1%} on this model, and a budget must "
            f"say so; flips add nothing to it either. Flips of eigen-directions, as published, cost {published:.0%}: "
            f"with them no budget for the networks holds for the whole. {by_default(quick.rows[0])}"
        ),
        checks=[
            Check(
                name="flips under every network", statistic="logits that change when planes are flipped", unit="logits",
                value=changed, bound=0, sense="==", tolerance_from="bits are compared: no tolerance", cases=models,
                seed=ctx.seed,
            ),
            Check(
                name="composed and distilled alone", statistic="logits of the zoo's DLR-lock that flips change",
                unit="logits", value=moved, bound=0, sense="==", tolerance_from="bits are compared: no tolerance",
            ),
            Check(
                name="flips of eigen-directions", unit="of the loss", value=published, bound=0.05, sense=">=",
                statistic="relative rise of the held-out loss: the other side of the condition", cases=WINDOWS,
            ),
        ],
        assumptions=[
            "held-out loss on text is what the budget is stated in; a skill can suffer more than the mean loss does",
            f"time, memory and utility of the default command are those of one stored run: {quick.command}",
            "Trap² is part of training: the function to preserve is that of the update it protects",
            "the random DLR-Nets stand for any: the proof does not ask what they compute",
        ],
        deviations=[
            Deviation(
                paper_says="capability is kept (DLR-Lock), accuracy loss is negligible (MergeBarrier); no budget was "
                "readable to us",
                we_do="state the budget of a lock as the relative rise of held-out loss, in lock.json",
                why="it is a number that anybody with the data can measure again",
                effect="how much is acceptable is the reader's judgment, not ours",
            )
        ],
    )  # fmt: skip


FUNCTION = Claim(
    id="FULL-FUNC",
    title="The composed lock preserves the function within its budget",
    statement="The composed lock preserves the function within the stated budget.",
    source=Source(paper=PAPERS, where="each lock's claim of utility, composed; worded by us"),
    kind="utility",
    recorded=Verdict.HOLDS_IF,
    would_change="A part whose effect depends on the others: a turn that is no sign of whole planes, for instance.",
    check=check_function,
)
