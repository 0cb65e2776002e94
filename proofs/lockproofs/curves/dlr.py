"""What each attacker of a DLR-Net stores against its depth, when, and at which price in operations."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lockproofs import memory
from lockproofs.claim import Curve, Plot
from lockproofs.claims.dlr_checkpoint import root_groups
from lockproofs.hub_sizes import HUB
from lockref.attacks.checkpointing import nested, steps
from lockref.attacks.fixed_point import fixed_point
from lockref.attacks.frontier import Attacker, MLPWay, Stack, locked
from lockref.attacks.inversion import blocks, inverted
from lockref.autodiff import checkpoint, saved, schedules
from lockref.models import dlrnet, storage
from lockref.models.dlrnet import DLRConfig

SLOTS = 3
RUN = (1, 2, 4, 8, 16, 32, 48)  # depths at which networks run and the ledger is read
TOKENS, ITEMSIZE = 2, 4  # float32
STORED_TITLE = "Bytes that each attacker stores for one MLP"
SCALE = 0.01  # of B: small enough that every block is a contraction, for fixed-point inversion
Net = DLRConfig
Formula = Callable[[Net], int]
Run = Callable[[Net, Any, Any], int]


@dataclass(frozen=True)
class Way:
    """An attacker: elements per token by the closed form, and bytes by the ledger of a running network."""

    name: str
    formula: Formula
    run: Run


def _whole(network: Callable[[Net], Any], *, frozen: bool = False) -> Run:
    """Everything that reverse mode through the network keeps, in bytes."""

    def run(net: Net, params: Any, x: Any) -> int:
        which: Any = {"argnums": 1, "parameters": 0} if frozen else {"argnums": (0, 1)}
        return saved(network(net), params, x, **which).bytes()

    return run


def _groups(size: Callable[[Net], int]) -> Run:
    """While group i is recorded, the states before groups 1 … i and its record are held: the most is at the end."""

    def run(net: Net, params: Any, x: Any) -> int:
        group, weights = size(net), blocks(params, net)
        parts = [weights[i : i + group] for i in range(0, net.depth, group)]

        def part(part: Any, x: Any) -> Any:
            named = {f"blocks.{i}.{n}": w for i, block in enumerate(part) for n, w in block.items()}
            return dlrnet.forward(named, x, Net(net.width, net.rank, len(part), net.norm, placement="output"))

        def chain(parts: Any, x: Any) -> Any:
            for p in parts:
                x = checkpoint(part)(p, x)
            return x

        def held(i: int) -> int:
            pairs: Any = ((chain, parts[: i + 1]), (part, parts[i]))
            return sum(saved(f, weights, x, argnums=(0, 1)).bytes() for f, weights in pairs)

        return max(held(i) for i in range(max(0, len(parts) - 2), len(parts)))  # the last group may be short

    return run


def _default(fused: bool) -> Callable[[Net], Any]:
    return lambda net: lambda params, x: dlrnet.forward(params, x, net, fused=fused)


def _scheduled(group: Callable[[Net], int]) -> Formula:
    return lambda net: (
        storage.dlr_scheduled(net, schedules.per_block(steps(net, group(net))), group=group(net)).per_token
    )


WAYS = (
    Way("default reverse mode", lambda net: storage.dlr(net, fused=False).per_token, _whole(_default(False))),
    Way("each block checkpointed", _scheduled(lambda _: 1), _groups(lambda _: 1)),
    Way("groups of √L checkpointed", _scheduled(lambda net: root_groups(net)[0]), _groups(lambda n: root_groups(n)[0])),
    Way("h-only inversion", lambda net: storage.dlr_inverted(net).per_token, _whole(inverted)),
    Way(
        "frozen nets",
        lambda net: storage.dlr(net, fused=True, trains=frozenset()).per_token,
        _whole(_default(True), frozen=True),
    ),
    Way(
        f"binomial, {SLOTS} slots",
        lambda net: storage.dlr_scheduled(net, schedules.binomial(net.depth, SLOTS)).per_token,
        _whole(lambda net: nested(net, SLOTS)),
    ),
    Way("fixed-point inversion", lambda net: net.width, _whole(fixed_point)),
)


def stored(width: int, mlp_width: int, rng: np.random.Generator) -> Plot:
    """Closed form at every depth up to 48 at parameter parity, ledger at some; bytes per token in float32."""
    deepest = min(RUN[-1], 3 * mlp_width // 2)  # deeper, and there is no room for rank 1
    depths, runs = range(1, deepest + 1), [depth for depth in RUN if depth <= deepest]
    nets = {
        depth: Net(width, dlrnet.parity(width, mlp_width, depth).rank, depth, "none", placement="output")
        for depth in depths
    }
    x = rng.standard_normal((TOKENS, width)).astype(np.float32)
    curves = [Curve(name="unlocked MLP", x=[1, deepest], y=[storage.swiglu(mlp_width, fused=False).per_token * 4] * 2)]
    for way in WAYS:
        y = [ITEMSIZE * way.formula(net) for net in nets.values()]
        curves.append(Curve(name=f"{way.name}: closed form", x=list(depths), y=y))
        ran = []
        for depth in runs:
            params = dlrnet.initialize(nets[depth], rng, b_scale=SCALE, dtype=np.float32)
            ran.append(way.run(nets[depth], params, x) / TOKENS)
        curves.append(Curve(name=f"{way.name}: ledger", x=list(runs), y=ran))
    return Plot(
        title=f"{STORED_TITLE} (d = {width}, m = {mlp_width}, no norm), float32",
        x_label="depth L at parameter parity", y_label="bytes per token", y_log=True, curves=curves,
    )  # fmt: skip


def timelines(model: str, depth: int, tokens: int) -> Plot:
    """Memory over one forward and backward pass of the locked model, and of the unlocked one by default."""
    drawn = ",".join(memory.DRAWN)
    locked = memory.survey(model, mlp="dlr", depth=depth, norm="none", attackers=drawn, tokens=tokens)
    plain = memory.survey(model, mlp="swiglu", depth=depth, norm="none", attackers="reverse", tokens=tokens)
    (unlocked,) = plain.timelines
    plot = locked.plots[0]
    curves = [unlocked.model_copy(update={"name": "unlocked, reverse"}), *plot.curves]
    return plot.model_copy(update={"title": f"Memory over one training step: {locked.title}", "curves": curves})


def staircase(attackers: Iterable[Attacker], scale: float) -> tuple[list[float], list[int]]:
    """Attackers that no other beats in both, by operations: operations × scale, and elements per token."""
    x: list[float] = []
    y: list[int] = []
    for a in sorted(attackers, key=lambda a: (a.operations, a.elements)):
        if not y or a.elements < y[-1]:
            x, y = [*x, a.operations * scale], [*y, a.elements]
    return x, y


def cost_frontiers(depth: int, most: float = 4.0) -> list[Plot]:
    """Least elements per token against operations up to `most` steps, both relative to the unlocked default step."""
    return [_frontier(name, depth, most) for name in HUB]


def _frontier(name: str, depth: int, most: float) -> Plot:
    plain = Stack(HUB[name])
    stacks = {
        "unlocked": plain,
        "locked, no norm": locked(HUB[name], depth),
        "locked, norms": locked(HUB[name], depth, "rms"),
    }
    curves = []
    for goal in ("all", "attention"):
        found = {label: stack.attackers(goal) for label, stack in stacks.items()}
        unit = found["unlocked"][0].elements  # the default attacker's
        for label, stack in stacks.items():
            scale = stack.operations(goal, MLPWay()) / plain.operations(goal, MLPWay())
            x, y = staircase(found[label], scale)
            kept = [(at, value / unit) for at, value in zip(x, y, strict=True) if at <= most]
            curves.append(
                Curve(name=f"{label}, training {goal}", x=[at for at, _ in kept], y=[value for _, value in kept])
            )
            default = found[label][0].elements / unit
            curves.append(Curve(name=f"{label}, training {goal}: default", x=[scale], y=[default]))
    return Plot(
        title=f"Cost frontier, {name}, depth {depth}", x_label="operations, unlocked default step = 1",
        y_label="least memory, unlocked default = 1", y_log=True, curves=curves,
    )  # fmt: skip
