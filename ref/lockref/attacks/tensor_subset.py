"""Subset-of-tensors merge: attention, MLPs and the rest come from one expert, or from both, each at s = 1."""

from collections.abc import Iterator
from itertools import product

from lockref.attacks.merging_grid import Members, Score, best
from lockref.attacks.result import AttackResult, Tensors

SHARES = {"protected": (1.0, 0.0), "others": (0.0, 1.0), "both": (1.0, 1.0)}


def part_of(name: str) -> str:
    """attention, mlp or rest (norms, embedding, head)."""
    if ".self_attn." in name and "_proj" in name:
        return "attention"
    return "mlp" if ".mlp." in name else "rest"


def tensor_subset(members: Members, score: Score) -> AttackResult:
    """The best of all 3^parts ways; `found` holds the source of each part. Unscaled updates only."""
    parts = {name: part_of(name) for name in members.base}
    kinds = sorted(set(parts.values()))

    def candidates() -> Iterator[tuple[dict[str, str], Tensors]]:
        for sources in product(SHARES, repeat=len(kinds)):
            chosen = dict(zip(kinds, sources, strict=True))
            p, o = ({name: SHARES[chosen[part]][who] for name, part in parts.items()} for who in (0, 1))
            yield chosen, members.merged(p, o)

    return best("tensor-subset", score, candidates())
