"""Every attack that takes one released checkpoint, by name, ready to be run alone."""

from collections.abc import Callable
from dataclasses import dataclass

from lockref.attacks.anchor_model import (
    anchor_invertible,
    anchor_permutation,
    anchor_projection,
    anchor_signs,
    same_shapes,
)
from lockref.attacks.keyless import keyless
from lockref.attacks.result import AttackResult, Tensors
from lockref.locks.attention import TOPK, TOPK_PLANES
from lockref.models.qwen3_config import Qwen3Config

Run = Callable[[Tensors, Tensors | None, Qwen3Config], AttackResult]


@dataclass(frozen=True)
class Attack:
    """An attack on a release; `run` takes the release, a model of the same origin or None, and the config."""

    name: str
    undoes: str
    run: Run
    needs_base: bool

    def __call__(self, released: Tensors, config: Qwen3Config, base: Tensors | None = None) -> AttackResult:
        """Raises ValueError where a base is missing or is not one of this model."""
        if self.needs_base and base is None:
            raise ValueError(f"attack {self.name} compares the release with its base: give one")
        if base is not None:
            same_shapes(released, base)
        return self.run(released, base, config)


def _anchored(attack: Callable[[Tensors, Tensors, Qwen3Config], AttackResult]) -> Run:
    def run(released: Tensors, base: Tensors | None, config: Qwen3Config) -> AttackResult:
        assert base is not None  # Attack.__call__ has seen to it
        return attack(released, base, config)

    return run


ATTACKS = {
    attack.name: attack
    for attack in (
        Attack("keyless", "flips of leading eigen-directions; a base names their number",
               lambda released, base, config: keyless(released, config, TOPK, base), False),
        Attack("keyless-planes", "flips of leading rotary planes; a base names their number",
               lambda released, base, config: keyless(released, config, TOPK_PLANES, base), False),
        Attack("anchor", "any orthogonal matrix on each key head", _anchored(anchor_projection), True),
        Attack("anchor-signs", "any signs of rotary planes", _anchored(anchor_signs), True),
        Attack("anchor-invertible", "invertible pairs on V/O and Q/K (MergeLock)", _anchored(anchor_invertible), True),
        Attack("anchor-permutation", "permutations of MLP units (PaRaMS)", _anchored(anchor_permutation), True),
    )
}  # fmt: skip
