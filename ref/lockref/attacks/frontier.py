"""The cost frontier: for a budget of operations, the least memory that any attacker of a list needs.

An attacker is a way to run reverse mode through a Qwen3 stack whose MLPs are SwiGLUs or DLR-Nets: what to train, a
checkpoint schedule over the layers, and a way with the MLPs. Memory is logical elements per token, from the closed
forms of `lockref.models.storage` (fused operations); operations are those of matrix products. Both leave out embedding
and output head, which the lock does not touch: what is left is where it can show.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import product
from math import isqrt
from typing import Final

from lockref.autodiff import schedules
from lockref.autodiff.schedules import Action
from lockref.models import storage
from lockref.models.dlrnet import DLRConfig, parity
from lockref.models.qwen3_config import Qwen3Config
from lockref.models.storage import DLR_WEIGHTS, SWIGLU_WEIGHTS, Storage

GOALS: Final = ("all", "attention")  # which weights train
NOTHING: Final = frozenset[str]()


@dataclass(frozen=True)
class MLPWay:
    """How one MLP is differentiated: recomputed from its input or not, by default rules or by inversion.

    `segments` > 1 of a DLR-Net: the state before each is kept, the rest computed again, one segment at a time.
    """

    recomputed: bool = False
    inverted: bool = False
    segments: int = 1

    @property
    def name(self) -> str:
        parts = ["MLPs recomputed"] * self.recomputed + ["h-only inversion"] * self.inverted
        parts += [f"{self.segments} segments of blocks checkpointed"] * (self.segments > 1)
        return ", ".join(parts)


@dataclass(frozen=True)
class Attacker:
    """One way to get the gradients, and its price."""

    name: str
    goal: str
    elements: int  # the most held at once, per token
    operations: float  # of one training step, relative to default reverse mode on the same network and goal


@dataclass(frozen=True)
class Stack:
    """A model of equal layers, locked (`dlr`) or not, at a context length in tokens."""

    config: Qwen3Config
    dlr: DLRConfig | None = None
    context: int = 1024

    @property
    def attention_operations(self) -> float:
        """Of one layer's attention, forward, per token: projections, scores and mixing over half the context."""
        c = self.config
        heads, groups, d = c.num_attention_heads, c.num_key_value_heads, c.hidden_size
        return 2 * d * c.head_dim * (2 * heads + 2 * groups) + 4 * heads * c.head_dim * (self.context + 1) / 2

    @property
    def mlp_operations(self) -> float:
        """Of one MLP or DLR-Net, forward, per token: two for each weight."""
        if self.dlr is None:
            return 6 * self.config.hidden_size * self.config.intermediate_size
        return 4 * self.dlr.width * self.dlr.rank * self.dlr.depth

    def mlp_storage(self, goal: str, way: MLPWay) -> Storage:
        """What one MLP keeps from the forward pass to its sweep, without its input."""
        if way.recomputed:
            return Storage(0)
        return self._starts(way) if way.segments > 1 else self._differentiated(goal, way)

    def mlp_peak(self, goal: str, way: MLPWay) -> Storage:
        """The most that one MLP holds while it is swept, without its input."""
        return self._starts(way) + self._differentiated(goal, way)

    def _starts(self, way: MLPWay) -> Storage:
        """The states before all segments but the first, whose start is the MLP's input."""
        return Storage((way.segments - 1) * self.config.hidden_size)

    def _differentiated(self, goal: str, way: MLPWay) -> Storage:
        """What the differentiated MLP, or one segment of it, holds besides its input."""
        trains = goal == "all"
        if self.dlr is None:
            return storage.swiglu(
                self.config.intermediate_size, fused=True, trains=SWIGLU_WEIGHTS if trains else NOTHING
            )
        part = replace(self.dlr, depth=-(-self.dlr.depth // way.segments))
        if way.inverted:
            return storage.dlr_inverted(part)
        return storage.dlr(part, fused=True, trains=DLR_WEIGHTS if trains else NOTHING)

    def reads_input(self, goal: str, way: MLPWay) -> bool:
        """Whether the normed stream stays for the MLP."""
        if way.recomputed or way.segments > 1:
            return True
        if self.dlr is None or way.inverted:
            return self.dlr is None and goal == "all"
        return goal == "all" or self.dlr.norm != "none"

    def operations(self, goal: str, way: MLPWay, forwards: float = 1.0) -> float:
        """Of one layer's training step with that many forward passes: two more for gradients, one where frozen.

        Inversion computes the product with B once more; recomputing costs a forward pass of the MLP each time.
        """
        mlp = self.mlp_operations
        again = way.recomputed + (way.segments > 1) + way.inverted / 2
        backward = 2 * self.attention_operations + (2 if goal == "all" else 1) * mlp
        return forwards * (self.attention_operations + mlp) + backward + again * mlp

    def held(self, goal: str, way: MLPWay, plan: "LayerPlan") -> int:
        """The most elements per token that are kept for later: states and recorded layers."""
        base = storage.qwen3_attention(self.config) + storage.qwen3_mlp_norm(
            self.config, keeps_output=self.reads_input(goal, way)
        )
        d = self.config.hidden_size
        record = base.per_token - d + self.mlp_storage(goal, way).per_token  # the stream that enters is a state
        return max(states * d + records * record for states, records in plan.held)

    def attacker(self, goal: str, way: MLPWay, plan: "LayerPlan") -> Attacker:
        """The attacker who treats every MLP that way and runs the layers by that plan."""
        again = self.mlp_peak(goal, way).per_token - self.mlp_storage(goal, way).per_token
        return Attacker(
            ", ".join(filter(None, (plan.name, way.name))) or "default reverse mode",
            goal,
            self.held(goal, way, plan) + again,
            self.operations(goal, way, plan.forwards) / self.operations(goal, MLPWay()),
        )

    def attackers(self, goal: str) -> tuple[Attacker, ...]:
        """Every combination of a way with the MLPs and a schedule over the layers, default reverse mode first."""
        if goal not in GOALS:
            raise ValueError(f"frontier: goal {goal!r} is unknown; choose from {', '.join(GOALS)}")
        return _attackers(self, goal, tuple(self.ways()))

    def ways(self) -> list[MLPWay]:
        """What an attacker can do with the MLPs; a DLR-Net of depth L in 1, 2, 4, √L or L segments."""
        if self.dlr is None:
            return [MLPWay(), MLPWay(recomputed=True)]
        segments = sorted({1, 2, 4, isqrt(self.dlr.depth), self.dlr.depth})
        return [
            MLPWay(again, inverts, s)
            for inverts, again, s in product((False, True), (False, True), segments)
            if s <= self.dlr.depth
        ]


@dataclass(frozen=True)
class LayerPlan:
    """A schedule over layers, as what it holds and runs."""

    name: str
    held: frozenset[tuple[int, int]]  # (states, recorded layers) that are held together at some time
    forwards: float  # forward passes


@lru_cache(maxsize=64)  # every budget asks again
def _attackers(stack: Stack, goal: str, ways: tuple[MLPWay, ...]) -> tuple[Attacker, ...]:
    layers = plans(stack.config.num_hidden_layers)
    return tuple(stack.attacker(goal, way, plan) for way, plan in product(ways, layers))


@cache
def plans(layers: int) -> tuple[LayerPlan, ...]:
    """Keeping everything, saving each k-th layer's input, and the binomial schedule for every number of slots."""
    found = {"": schedules.keep_all(layers)}
    found |= {f"every {k} layers checkpointed": schedules.every(layers, k) for k in range(1, layers)}
    found |= {f"binomial over layers, {s} slots": schedules.binomial(layers, s) for s in range(2, layers)}
    return tuple(_plan(name, actions, layers) for name, actions in found.items())


def _plan(name: str, actions: Sequence[Action], layers: int) -> LayerPlan:
    held = frozenset((len(slots | records), len(records)) for slots, records in storage.held(actions))
    return LayerPlan(name, held, schedules.cost(list(actions)).steps / layers)


def locked(config: Qwen3Config, depth: int, norm: str = "none", context: int = 1024) -> Stack:
    """The stack with DLR-Nets of parity rank for MLPs."""
    rank = parity(config.hidden_size, config.intermediate_size, depth, norm).rank
    return Stack(config, DLRConfig(config.hidden_size, rank, depth, norm), context)


def least(attackers: Iterable[Attacker], budget: float) -> Attacker:
    """The attacker of least memory whose operations stay within the budget; ValueError where none does."""
    within = [a for a in attackers if a.operations <= budget * (1 + 1e-12)]
    if not within:
        raise ValueError(f"frontier: no attacker stays within {budget:g} times the operations of default reverse mode")
    return min(within, key=lambda a: (a.elements, a.operations))


def amplification(plain: Stack, locked: Stack, goal: str, budget: float) -> tuple[float, Attacker, Attacker]:
    """Least memory with the lock over least memory without it, the budget counted in default steps without the lock."""
    scale = locked.operations(goal, MLPWay()) / plain.operations(goal, MLPWay())
    with_lock = [replace(a, operations=a.operations * scale) for a in locked.attackers(goal)]
    best, other = least(with_lock, budget), least(plain.attackers(goal), budget)
    return best.elements / other.elements, best, other
