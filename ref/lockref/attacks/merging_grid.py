"""What all merge attacks share: a score that the attacker can compute, and the best of a list of candidates."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lockref.attacks.result import AttackResult, Tensors

Score = Callable[[Tensors], float]  # a loss on the attacker's own data: lower is better

SCALES = tuple(round(0.1 * k, 1) for k in range(1, 11))  # of a shared scale, as task arithmetic is tuned
KNOWS = ("base", "protected expert", "other experts", "some problems of every skill")


@dataclass(frozen=True)
class Members:
    """The updates that are merged, by tensor: that of the protected expert, and those of the others."""

    base: Tensors
    protected: Tensors
    others: Sequence[Tensors]

    def __post_init__(self) -> None:
        if not self.others:
            raise ValueError("Members: no other expert; a merge needs at least two")
        for i, update in enumerate((self.protected, *self.others)):
            for name in update.keys() | self.base.keys():
                got, want = (np.shape(t[name]) if name in t else "missing" for t in (update, self.base))
                if got != want:
                    raise ValueError(f"Members: update {i} has {got} for {name}, the base {want}; they must agree")

    @classmethod
    def of_models(cls, base: Tensors, protected: Tensors, others: Sequence[Tensors]) -> "Members":
        """From whole models; raises ValueError where their tensors are not those of the base."""
        for i, model in enumerate((protected, *others)):
            if model.keys() != base.keys():
                odd = sorted(model.keys() ^ base.keys())[0]
                raise ValueError(f"Members: model {i} and the base differ in {odd}; give experts of this base")
        updates = [{n: m[n] - w for n, w in base.items()} for m in (protected, *others)]
        return cls(base, updates[0], updates[1:])

    @property
    def overlap(self) -> float:
        """ρ = ⟨Δ, Σ Δ_i⟩ / ⟨Δ, Δ⟩ over all tensors: what a sum of updates adds to the scale of Δ; 0 where Δ = 0."""
        own = sum(float(np.vdot(update, update)) for update in self.protected.values())
        shared = sum(float(np.vdot(self.protected[n], update[n])) for update in self.others for n in self.base)
        return shared / own if own else 0.0

    def merged(self, protected: float | Mapping[str, float], others: float | Mapping[str, float]) -> dict[str, Any]:
        """W₀ + p Δ + o Σ Δ_i; scales are shared by all tensors, or given for each by name."""

        def of(scale: float | Mapping[str, float], name: str, dtype: Any) -> Any:
            return dtype.type(scale[name] if isinstance(scale, Mapping) else scale)

        return {
            name: w
            + of(protected, name, w.dtype) * self.protected[name]
            + of(others, name, w.dtype) * sum(update[name] for update in self.others)
            for name, w in self.base.items()
        }


def best(
    attack: str, score: Score, candidates: Iterable[tuple[Mapping[str, Any], Tensors]], knows: Sequence[str] = KNOWS
) -> AttackResult:
    """The candidate of least score; `found` holds what made it, its score, and how many were tried.

    A score that is not finite counts as the worst. Raises ValueError where no candidate has a finite one.
    """
    least, chosen, tried = np.inf, None, 0
    for made, tensors in candidates:
        tried += 1
        value = score(tensors)
        if np.isfinite(value) and value < least:
            least, chosen = value, (made, tensors)
    if chosen is None:
        raise ValueError(f"{attack}: none of {tried} candidates has a finite score; look at the members and the score")
    return AttackResult(attack, tuple(knows), (chosen[1],), {**chosen[0], "score": float(least), "tried": tried})
