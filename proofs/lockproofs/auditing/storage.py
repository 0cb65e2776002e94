"""DLR-* on a directory: what attackers store for the DLR-Nets of this very checkpoint, closed form and ledger."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any

import numpy as np

from lockproofs.auditing.measure import again, where
from lockproofs.claim import (
    Check,
    Context,
    Control,
    Controls,
    Counterexample,
    Evidence,
    Grade,
    MissingInput,
    OnSubject,
    Verdict,
)
from lockproofs.claims.dlr_checkpoint import root_cost
from lockproofs.claims.dlr_common import FORMULA, exact
from lockproofs.claims.dlr_inversion import default_gradients, no_skip_error, replayed_gradients
from lockproofs.claims.dlr_trained import gap_in_tolerances
from lockref.attacks.inversion import inverted
from lockref.autodiff import saved
from lockref.locks.distillation import captured, dlr_student
from lockref.locks.dlr import PREFIX
from lockref.models import dlrnet, storage
from lockref.models.dlrnet import DLRConfig
from lockref.models.qwen3 import layer_weights

TOKENS = 4
STREAM = 15  # of random numbers
NOTHING: frozenset[str] = frozenset()
BYTES = "logical bytes of distinct buffers besides weights and the input"
LAYERS = 4  # at most, whose gradients are compared
GRADIENT_WORK = 2**21  # weights of a net whose round-off is sampled; larger nets' gradients are compared in a cut


@dataclass(frozen=True)
class Counted:
    """Elements per token for one DLR-Net by attacker, and how far the ledger of any layer is off, in bytes."""

    elements: dict[str, int]
    off: int
    layers: int


def closed_forms(net: DLRConfig, mlp_width: int) -> dict[str, int]:
    """Elements per token that each attacker stores for one MLP, without its input; fused operations."""
    return {
        "default reverse mode": storage.dlr(net, fused=True).per_token,
        "h-only inversion": storage.dlr_inverted(net).per_token,
        "checkpoints at √L": root_cost(net)[0],
        "frozen nets": storage.dlr(net, fused=True, trains=NOTHING).per_token,
        "unlocked MLP": storage.swiglu(mlp_width, fused=True).per_token,
        "unlocked MLP, frozen": storage.swiglu(mlp_width, fused=True, trains=NOTHING).per_token,
    }


def nets(ctx: Context) -> list[Mapping[str, Any]]:
    """The tensors of each layer's DLR-Net."""
    model = ctx.subject.composed
    layers = (layer_weights(model.tensors, i) for i in range(model.config.num_hidden_layers))
    return [{n.removeprefix(PREFIX): w for n, w in own.items() if n.startswith(PREFIX)} for own in layers]


def ledger(params: Mapping[str, Any], net: DLRConfig, way: str) -> int:
    """Bytes that the engine's tape keeps for one net, its weights and input excluded."""
    x = np.linspace(-1, 1, TOKENS * net.width).reshape(TOKENS, net.width)
    if way == "h-only inversion":
        return saved(inverted(net), params, x, argnums=(0, 1)).bytes()
    arguments: Any = {"argnums": 1, "parameters": 0} if way == "frozen nets" else {"argnums": (0, 1)}
    return saved(lambda p, x: dlrnet.forward(p, x, net), params, x, **arguments).bytes()


def counted(ctx: Context) -> Counted:
    """All layers. The closed forms, and their distance from the ledgers of the ways that the tape can show."""
    model, off = ctx.subject.composed, 0
    forms = {
        "default reverse mode": storage.dlr(model.net, fused=True),
        "h-only inversion": storage.dlr_inverted(model.net),
        "frozen nets": storage.dlr(model.net, fused=True, trains=NOTHING),
    }
    layers = nets(ctx)
    for params in layers:
        for way, form in forms.items():
            off = max(off, abs(ledger(params, model.net, way) - form.bytes(TOKENS, 8)))
    return Counted(closed_forms(model.net, model.config.intermediate_size), off, len(layers))


def survey(ctx: Context, found: Counted) -> str:
    """What each attacker stores, in words."""
    net, model = ctx.subject.composed.net, ctx.subject.composed
    told = ", ".join(f"{way} {count:,}" for way, count in found.elements.items())
    return (
        f"Each of {model.config.num_hidden_layers} MLPs is a DLR-Net of {net.depth} blocks of rank {net.rank} "
        f"(d = {net.width}, norm {net.norm}). Elements stored for a token and MLP: {told}."
    )


def _agrees(found: Counted) -> Check:
    return exact(
        "ledger = closed form", f"max |ledger − formula| over {found.layers} layers, three ways to differentiate",
        found.off, 0, cases=3 * found.layers,
    )  # fmt: skip


def _less(found: Counted, way: str, bound: int, broken: bool) -> Check:
    return Check(
        name=way, statistic="elements per token and MLP", unit="elements", value=found.elements[way], bound=bound,
        sense="<=" if broken else ">=", tolerance_from="integers: no tolerance", cases=found.layers,
    )  # fmt: skip


def _example(ctx: Context, way: str, want: str, by_hand: str) -> Counterexample:
    given = where(ctx.subject) | {"way": way, "layer": 0, "tokens": TOKENS}
    return Counterexample(given=given, got=rerun(given), want=want, by_hand=by_hand)


def rerun(given: dict[str, Any]) -> str:
    """The ledger of one layer's net, or the closed form of a way that needs a schedule."""
    ctx = again(given, 0)
    net = ctx.subject.composed.net
    if given["way"] == "parity":
        return f"{net.parameters} parameters in a net"
    if given["way"] == "checkpoints at √L":
        few, all_blocks = (root_cost(replace(net, depth=n))[0] for n in (net.depth // 4, net.depth))
        return f"{few} elements per token at {net.depth // 4} blocks, {all_blocks} at {net.depth}"
    kept = ledger(nets(ctx)[given["layer"]], net, given["way"])
    return f"{kept} bytes for {given['tokens']} tokens in float64: {kept // (8 * given['tokens'])} elements per token"


def check_parity(ctx: Context) -> Evidence:
    """Count the parameters of this checkpoint's nets and of the MLPs that they replace."""
    net, m = ctx.subject.composed.net, ctx.subject.composed.config.intermediate_size
    target = 3 * net.width * m
    more = net.parameters > target
    given = where(ctx.subject) | {"way": "parity"}
    return Evidence(
        verdict=Verdict.REFUTED if more else Verdict.HOLDS,
        grade=Grade.MEASURED,
        explanation=f"A net of {net.depth} blocks of rank {net.rank} has {net.parameters:,} parameters, the "
        f"MLP that it replaces {target:,}; r L = {net.rank * net.depth}, 1.5 m = {1.5 * m:g}.",
        checks=[
            Check(name="parameters", statistic="of a net", unit="parameters", value=net.parameters, bound=target,
                  sense=">=" if more else "<=", tolerance_from="integers: no tolerance")
        ],
        counterexample=Counterexample(
            given=given, got=rerun(given), want=f"at most 3 d m = {target}", by_hand="2 d r L, and L d gains if any."
        ) if more else None,
    )  # fmt: skip


def check_train(ctx: Context) -> Evidence:
    """Cut this checkpoint's nets after every block and read the tape: bytes must lie on a line in depth."""
    found, net = counted(ctx), ctx.subject.composed.net
    depths, params = range(1, net.depth + 1), nets(ctx)[0]
    kept = []
    for depth in depths:
        cut = {n: w for n, w in params.items() if int(n.split(".")[1]) < depth}
        kept.append(ledger(cut, replace(net, depth=depth), "default reverse mode"))
    bend = max((abs(a - 2 * b + c) for a, b, c in zip(kept, kept[1:], kept[2:], strict=False)), default=0)
    return Evidence(
        verdict=Verdict.HOLDS,
        grade=Grade.MEASURED,
        explanation=survey(ctx, found),
        checks=[
            exact("second difference in depth", "max |S(l+1) − 2S(l) + S(l−1)|, net of layer 0 cut after block l",
                  bend, 0, cases=len(kept)),
            _agrees(found),
        ],
        assumptions=[BYTES, *ctx.subject.assumed],
        deviations=[FORMULA],
    )  # fmt: skip


def check_frozen(ctx: Context) -> Evidence:
    """Count what a pass through frozen nets keeps, by default and by inversion, beside the frozen MLP."""
    found, net = counted(ctx), ctx.subject.composed.net
    bare = net.norm == "none"
    way = "frozen nets" if bare else "h-only inversion"
    bound = found.elements["frozen nets" if bare else "default reverse mode"]
    return Evidence(
        verdict=Verdict.REFUTED,
        grade=Grade.MEASURED,
        explanation=survey(ctx, found)
        + (" Without norms frozen nets keep r L, which parameter parity fixes whatever the depth." if bare else
           " With norms default reverse mode through frozen nets grows with depth; inversion keeps r L + d."),
        checks=[_less(found, way, bound, True), _agrees(found)],
        counterexample=_example(
            ctx, way, "memory that grows with depth at parameter parity",
            f"r L{'' if bare else ' + d'} = {net.rank} · {net.depth}{'' if bare else f' + {net.width}'} = "
            f"{found.elements[way]}, and 2 d r L weights are as many at every depth.",
        ),
        assumptions=[BYTES, *ctx.subject.assumed],
        deviations=[FORMULA],
        severity="high",
    )  # fmt: skip


def check_checkpoint(ctx: Context) -> Evidence:
    """Count what the √L attacker holds for this net and for its first quarter: four times the memory, or less?"""
    found, net = counted(ctx), ctx.subject.composed.net
    if net.depth < 4:
        raise MissingInput(f"SUBJECT's nets have {net.depth} blocks: too few to see how memory grows")
    few, whole = (root_cost(replace(net, depth=n))[0] for n in (net.depth // 4, net.depth))
    straight = [storage.dlr(replace(net, depth=n), fused=True).per_token for n in (net.depth // 4, net.depth)]
    growth, linear = whole / few, straight[1] / straight[0]
    broken = growth < linear
    return Evidence(
        verdict=Verdict.REFUTED if broken else Verdict.UNDECIDED,
        grade=Grade.MEASURED,
        explanation=f"{survey(ctx, found)} From {net.depth // 4} blocks to {net.depth} default reverse mode's memory "
        f"grows {linear:.2f} times, that of √L checkpoints {growth:.2f} times (root: {isqrt(net.depth)} groups).",
        checks=[
            Check(name="growth, a quarter of the blocks to all", statistic="memory of √L checkpoints", unit="times",
                  value=growth, bound=linear, sense="<=", tolerance_from="integers: no tolerance"),
            _agrees(found),
        ],
        counterexample=_example(
            ctx, "checkpoints at √L", f"{linear:.2f} times as many",
            "Save the state before each group of √L blocks, compute one group again at a time.",
        ) if broken else None,
        assumptions=[BYTES, *ctx.subject.assumed],
        deviations=[FORMULA],
        severity="medium" if broken else None,
    )  # fmt: skip


def gap(ctx: Context) -> tuple[float, int]:
    """Largest |gradient by inversion − default| in derived round-off, at real activations; and the layers tried."""
    model, rng = ctx.subject.composed, ctx.rng(STREAM)
    tokens = ctx.tokens(2, TOKENS, STREAM)[:1]
    ways = (default_gradients, replayed_gradients)
    gaps = []
    seen = captured(model.tensors, tokens, model.config, teacher=dlr_student(model.net))
    for params, (x, _) in zip(nets(ctx)[:LAYERS], seen, strict=False):
        depth = max(1, min(model.net.depth, GRADIENT_WORK // (2 * model.net.width * model.net.rank)))
        cut = {n: w for n, w in params.items() if int(n.split(".")[1]) < depth}
        gaps.append(gap_in_tolerances(replace(model.net, depth=depth), cut, x, ways, rng))
    return max(gaps), len(gaps)


def check_inversion(ctx: Context) -> Evidence:
    """Run h-only inversion on this checkpoint's nets, at activations of real tokens: what it keeps, and its gradients.

    Refuted where it keeps less than d elements per token and block and its gradients are those of default reverse mode
    to sampled round-off.
    """
    found, net = counted(ctx), ctx.subject.composed.net
    worst, layers = gap(ctx)
    way, bound = "h-only inversion", net.width * net.depth
    broken = found.elements[way] < bound and worst <= 1
    lost = no_skip_error(ctx.rng(STREAM + 1))
    return Evidence(
        verdict=Verdict.REFUTED if broken else Verdict.HOLDS,
        grade=Grade.MEASURED,
        explanation=f"{survey(ctx, found)} Inverted gradients differ from default ones by at most {worst:.2f} of what "
        f"round-off explains, on {layers} layers ({ctx.subject.text}).",
        checks=[
            _less(found, way, bound, broken),
            Check(name="gradients", statistic="largest |by inversion − default| over its tolerance, float64",
                  unit="tolerances", value=worst, bound=1.0, sense="<=", cases=layers, seed=ctx.seed,
                  tolerance_from="the unit: sampled round-off of both computations, unit 2⁻⁵³"),
            _agrees(found),
        ],
        controls=Controls(
            power=Control(what="the nets of this checkpoint are inverted: tolerances used", passed=worst <= 1,
                          value=worst, bound=1.0, unit="tolerances"),
            null=Control(what="a block without the skip connection does not give its input back", passed=lost >= 0.5,
                         value=lost, bound=0.5, unit="relative error"),
        ),
        counterexample=_example(
            ctx, way, f"about d L = {bound} elements per token",
            f"keep h of every block and the last state: r L + d = {net.rank} · {net.depth} + {net.width} = "
            f"{found.elements[way]}",
        ) if broken else None,
        assumptions=[BYTES, *ctx.subject.assumed],
        deviations=[FORMULA],
        severity="high" if broken else None,
    )  # fmt: skip


def _has_nets(subject: Any) -> bool:
    return subject.composed.composition.net is not None


FORMS = {
    name: OnSubject(applies=_has_nets, check=check, rerun=rerun)
    for name, check in (
        ("DLR-PARITY", check_parity),
        ("DLR-STORAGE-TRAIN", check_train),
        ("DLR-STORAGE-FROZEN", check_frozen),
        ("DLR-CHECKPOINT", check_checkpoint),
        ("DLR-INVERSION", check_inversion),
    )
}
