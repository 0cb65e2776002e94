"""`lockref memory`: what each attacker holds during one training step of a Qwen3 model, locked or not, and when.

Closed forms of `lockref.attacks.frontier`, which DLR-FRONTIER verifies on running models: logical activation memory of
the layers, without embedding, output head, weights and optimizer states.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from lockproofs.claim import BadInput, Curve, Plot
from lockproofs.hub_sizes import HUB
from lockref.attacks.frontier import GOALS, MLPWay, Stack, amplification, locked
from lockref.autodiff import schedules
from lockref.autodiff.schedules import Action, Pull, Record, Run
from lockref.models import dlrnet, storage
from lockref.models.qwen3_config import Qwen3Config
from lockref.models.tensor_file import parse_object

ITEMSIZE: Final = 2  # bfloat16
MLPS: Final = ("swiglu", "dlr")
BUDGETS: Final = (1.0, 4 / 3, 2.0, 3.0)


DEFAULT: Final = MLPWay()


@dataclass(frozen=True)
class Way:
    """An attacker of the table: what trains, how MLPs and layers are run; no `goal` means that nothing is kept."""

    goal: str | None
    mlp: MLPWay = DEFAULT
    by_layer: bool = False  # √n groups of layers are checkpointed


WAYS: Final = {
    "no-grad": Way(None),
    "reverse": Way("all"),
    "frozen": Way("attention"),
    "checkpoint": Way("all", by_layer=True),
    "inversion": Way("all", MLPWay(inverted=True)),
    "forward": Way(None),
    "frozen+inversion": Way("attention", MLPWay(inverted=True)),
    "checkpoint+inversion": Way("all", MLPWay(inverted=True), by_layer=True),
}
MEANINGS: Final = {
    "no-grad": "inference: one hidden state at a time",
    "reverse": "all weights train, default reverse mode",
    "frozen": "attention trains, MLPs are frozen",
    "checkpoint": "groups of about √n layers are recomputed",
    "inversion": "h-only inversion of the DLR-Nets, nothing else recomputed",
    "forward": "forward mode, one direction: an unbiased estimate of the gradient, of variance (n + 1) ‖∇f‖² for n "
    "weights",
    "frozen+inversion": "attention trains, frozen DLR-Nets are inverted",
    "checkpoint+inversion": "both",
}
DRAWN: Final = ("no-grad", "reverse", "frozen", "checkpoint", "inversion", "forward")


@dataclass(frozen=True)
class Row:
    """One attacker. Ratios are to the unlocked model attacked in the same way."""

    attacker: str
    meaning: str
    elements_per_token: int
    bytes: int
    operations: float  # of the step, relative to default reverse mode with all weights training
    times_unlocked: float | None


@dataclass(frozen=True)
class Budget:
    """The cost frontier at one budget: who needs the least memory, on this model and on the unlocked one."""

    goal: str  # which weights train
    budget: float  # operations, relative to default reverse mode with this goal on the unlocked model
    attacker: str
    elements_per_token: int
    bytes: int
    unlocked_attacker: str
    times_unlocked: float


@dataclass(frozen=True)
class Survey:
    """The table, the cost frontier and the timelines."""

    model: str
    mlp: str
    depth: int | None
    rank: int | None
    norm: str | None
    tokens: int
    rows: list[Row]
    frontier: list[Budget]
    timelines: list[Curve]

    def as_data(self) -> dict[str, Any]:
        """Plain JSON-able data."""
        return asdict(self) | {"timelines": [curve.model_dump(mode="json") for curve in self.timelines]}

    @property
    def title(self) -> str:
        lock = (
            f"DLR-Nets of depth {self.depth}, rank {self.rank}, norm {self.norm}"
            if self.mlp == "dlr"
            else "SwiGLU MLPs"
        )
        return f"{self.model} with {lock}, {self.tokens:,} tokens"

    @property
    def plots(self) -> list[Plot]:
        """Memory held against operations done, on a linear and on a logarithmic scale."""
        return [
            Plot(
                title=f"Memory held during one training step{scale}", x_label="operations, default step = 1",
                y_label="MB held", y_log=log, curves=self.timelines,
            )
            for scale, log in (("", False), (", logarithmic", True))
        ]  # fmt: skip


def model_config(name: str) -> tuple[str, Qwen3Config]:
    """Name and sizes of a published model, or of a checkpoint directory. Raises BadInput."""
    if name.lower() in HUB:
        return name.lower(), HUB[name.lower()]
    file = Path(name) / "config.json"
    if not file.is_file():
        raise BadInput(f"--config {name}: neither a directory with config.json nor one of {', '.join(HUB)}")
    try:
        return Path(name).resolve().name, Qwen3Config.from_hub(parse_object(file, file.read_bytes()))
    except (ValueError, OSError) as error:
        raise BadInput(f"--config {name}: {error}") from None


def survey(config: str, *, mlp: str, depth: int, norm: str, attackers: str, tokens: int) -> Survey:
    """The table for these choices; `attackers` is "all" or names with commas. Raises BadInput."""
    name, sizes = model_config(config)
    for option, value, known in (("--mlp", mlp, MLPS), ("--norm", norm, dlrnet.NORMS)):
        if value not in known:
            raise BadInput(f"{option} {value!r} is unknown: choose from {', '.join(known)}")
    plain = Stack(sizes, context=tokens)
    try:
        stack = locked(sizes, depth, norm, tokens) if mlp == "dlr" else plain
    except ValueError as error:
        raise BadInput(f"--depth {depth}: {error}") from None
    chosen = _chosen(attackers, stack)
    return Survey(
        name, mlp,
        stack.dlr.depth if stack.dlr else None, stack.dlr.rank if stack.dlr else None, norm if stack.dlr else None,
        tokens, [_row(stack, plain, attacker) for attacker in chosen],
        [_budget(stack, plain, goal, budget) for goal in GOALS for budget in BUDGETS],
        [timeline(stack, attacker) for attacker in chosen if attacker in DRAWN],
    )  # fmt: skip


def _chosen(attackers: str, stack: Stack) -> list[str]:
    possible = [name for name, way in WAYS.items() if stack.dlr is not None or not way.mlp.inverted]
    if attackers == "all":
        return possible
    wanted = {word.strip() for word in attackers.split(",")}
    if unknown := sorted(wanted - set(possible)):
        raise BadInput(f"--attacker {unknown[0]!r}: choose from all, {', '.join(possible)}")
    return [name for name in possible if name in wanted]


def _actions(stack: Stack, way: Way) -> list[Action]:
    n = stack.config.num_hidden_layers
    return schedules.square_root(n) if way.by_layer else schedules.every(n, n)


def _row(stack: Stack, plain: Stack, name: str) -> Row:
    way = WAYS[name]
    mine = _elements(stack, way)
    its = _elements(plain, Way(way.goal, by_layer=way.by_layer))
    times = mine / its if its and stack.dlr else None
    tokens = stack.context
    return Row(name, MEANINGS[name], mine, mine * tokens * ITEMSIZE, _operations(stack, name), times)


def _budget(stack: Stack, plain: Stack, goal: str, budget: float) -> Budget:
    times, best, other = amplification(plain, stack, goal, budget)
    size = best.elements * stack.context * ITEMSIZE
    return Budget(goal, budget, best.name, best.elements, size, other.name, times)


def _elements(stack: Stack, way: Way) -> int:
    """The most that is kept for later, per token."""
    if way.goal is None:
        return 0
    record = _record(stack, way)
    return max(_held(stack, record, slots | records, records) for slots, records in storage.held(_actions(stack, way)))


def _record(stack: Stack, way: Way) -> int:
    """What one recorded layer keeps besides the stream that enters it."""
    assert way.goal is not None
    base = storage.qwen3_attention(stack.config) + storage.qwen3_mlp_norm(
        stack.config, keeps_output=stack.reads_input(way.goal, way.mlp)
    )
    return base.per_token - stack.config.hidden_size + stack.mlp_storage(way.goal, way.mlp).per_token


def _held(stack: Stack, record: int, states: set[int], records: set[int]) -> int:
    return len(states) * stack.config.hidden_size + len(records) * record


def _operations(stack: Stack, name: str) -> float:
    whole = stack.operations("all", DEFAULT)
    forward = stack.attention_operations + stack.mlp_operations
    way = WAYS[name]
    if way.goal is None:  # forward mode carries a tangent of activations and one of weights beside every product
        return (3 if name == "forward" else 1) * forward / whole
    n = stack.config.num_hidden_layers
    return stack.operations(way.goal, way.mlp, schedules.cost(_actions(stack, way)).steps / n) / whole


def timeline(stack: Stack, name: str) -> Curve:
    """MB held, the state at hand included, against operations done (default reverse mode ends at 1)."""
    way, scale = WAYS[name], stack.context * ITEMSIZE / 1e6
    d, n = stack.config.hidden_size, stack.config.num_hidden_layers
    total = _operations(stack, name)
    if way.goal is None:
        states = 2 if name == "forward" else 1
        return Curve(name=name, x=[0.0, total], y=[states * d * scale] * 2)
    actions = _actions(stack, way)
    layer = (stack.attention_operations + stack.mlp_operations) / stack.operations("all", DEFAULT) / n
    steps = schedules.cost(actions).steps
    pull = (total - steps * layer) / n
    spent = list(accumulate(_price(action, layer, pull) for action in actions))
    record = _record(stack, way)
    kept = [_held(stack, record, slots | records, records) for slots, records in storage.held(actions)]
    x, y = [0.0], [d * scale]
    for time, elements in zip(spent, kept, strict=True):
        x, y = [*x, time], [*y, (elements + d) * scale]
    return Curve(name=name, x=x, y=y)


def _price(action: Action, layer: float, pull: float) -> float:
    match action:
        case Run(i, j):
            return (j - i) * layer
        case Record():
            return layer
        case Pull():
            return pull
    return 0.0


def write_page(found: Survey, file: Path) -> None:
    """One self-contained HTML page; complete or not at all. Raises BadInput where it cannot be written."""
    from lockproofs.render import environment

    text = environment().get_template("memory.html.j2").render(survey=found)
    try:
        handle, temporary = tempfile.mkstemp(prefix=".lockref-", dir=file.absolute().parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
            os.chmod(temporary, 0o644)
            os.replace(temporary, file)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise BadInput(f"--html {file}: {error.strerror}: choose another file") from None


def headings() -> Sequence[str]:
    """Of the table's columns."""
    return ("attacker", "per token", "in all", "operations", "unlocked = 1")


def cells(row: Row) -> Sequence[str]:
    """One line of the table, as text."""
    from lockproofs.render import size

    times = "–" if row.times_unlocked is None else f"{row.times_unlocked:.2f}"
    return (row.attacker, f"{row.elements_per_token:,}", size(row.bytes), f"{row.operations:.2f}", times)


def budget_headings() -> Sequence[str]:
    """Of the frontier's columns."""
    return ("trains", "budget", "per token", "in all", "unlocked = 1", "attacker")


def budget_cells(row: Budget) -> Sequence[str]:
    """One line of the frontier, as text."""
    from lockproofs.render import size

    numbers = (f"{row.budget:.2f}", f"{row.elements_per_token:,}", size(row.bytes), f"{row.times_unlocked:.2f}")
    return (row.goal, *numbers, row.attacker)
