"""The stored runs of Trap² in one form, the zoo's and those of the network without attention, one for each seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lockproofs import trap_digits, trap_models
from lockproofs.experiments import trap_merge
from lockproofs.experiments.store import stored
from lockproofs.experiments.trap_merge import operators

MODELS = ("zoo", "digits")
KINDS = ("full", "lora")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Merge:
    """What an attacker would release: the operator and scale of least loss on problems of its own."""

    operator: str
    right: int  # answers on the expert's skill
    without: int  # those that the better of base and partner gets alone
    problems: int
    partner_gain: float  # on the partner's skill, over the better of base and expert, a share

    @property
    def gain(self) -> float:
        """On the expert's skill, as a share of the problems."""
        return (self.right - self.without) / self.problems


@dataclass(frozen=True)
class Run:
    """An expert of one seed."""

    seed: int
    right: int  # answers at s = 1 on its own skill
    problems: int
    loss: Mapping[float, float]  # on that skill, of W₀ + sΔ, by s
    merge: Merge | None = None


def runs(model: str, kind: str, strength: float, order: int = 0) -> list[Run]:
    """Seed by seed; for digits, `order` 1 are those that saw the batches in another order."""
    return _zoo(kind, strength) if model == "zoo" else _digits(kind, strength, order)


def strengths(model: str, kind: str) -> list[float]:
    """The λ above 0 that every seed was trained with, to the end."""
    rows: list[Row] = [*stored({"zoo": "trap_scale", "digits": "trap_digits"}[model]).where(kind=kind)]
    finished = {s: {row["seed"] for row in rows if row["strength"] == s and "stopped" not in row} for s in _tried(rows)}
    return [s for s, seeds in finished.items() if s > 0 and seeds == finished[0.0]]


def _tried(rows: list[Row]) -> list[float]:
    return sorted({row["strength"] for row in rows})


def _curve(row: Row) -> dict[float, float]:
    return dict(zip(row["scales"], row["loss"], strict=True))


def _zoo(kind: str, strength: float) -> list[Run]:
    merged = stored("trap_merge").where(kind=kind, strength=strength)
    found = []
    for row in stored("trap_scale").where(kind=kind, strength=strength):
        own = {m["operator"]: m for m in merged if m["seed"] == row["seed"]}
        names = [name for name in operators(kind) if name in own]
        merge = _merge(own, names, (trap_models.SKILL, trap_models.PARTNER), (trap_merge.PROBLEMS,) * 2)
        right = round(row["match"][row["scales"].index(1.0)] * trap_models.PROBLEMS)
        found.append(Run(row["seed"], right, trap_models.PROBLEMS, _curve(row), merge))
    return found


def _digits(kind: str, strength: float, order: int) -> list[Run]:
    found, skills = [], (trap_digits.SKILL, trap_digits.PARTNER)
    for row in stored("trap_digits").where(kind=kind, strength=strength, order=order):
        counts = tuple(row["images"][skill] for skill in skills)
        merge = _merge({**row["alone"], **row["merges"]}, operators(kind), skills, counts)
        right = round(row["match"][row["scales"].index(1.0)] * counts[0])
        found.append(Run(row["seed"], right, counts[0], _curve(row), merge))
    return found


def _merge(
    figures: Mapping[str, Row], names: tuple[str, ...] | list[str], skills: tuple[str, str], counts: tuple[int, ...]
) -> Merge | None:
    """The merge of least score among `names`; `figures` holds those of base, expert and partner too."""
    if not names:
        return None
    (skill, partner), chosen = skills, min(names, key=lambda name: float(figures[name]["score"]))
    without = max(figures[name][skill] for name in ("base", "partner"))
    kept = max(figures[name][partner] for name in ("base", "expert"))
    right, others = (round(share * counts[0]) for share in (figures[chosen][skill], without))
    return Merge(chosen, right, others, counts[0], figures[chosen][partner] - kept)
