"""Operator at its best scale: a merge by one named setting, its scale chosen by the attacker."""

from collections.abc import Iterator, Sequence

import numpy as np

from lockref.attacks.merging_grid import SCALES, Score, best
from lockref.attacks.result import AttackResult, Tensors
from lockref.merging import Adapter, Setting, Slerp, merge


def operator_merge(
    base: Tensors,
    members: Sequence[Tensors | Adapter],
    setting: Setting,
    score: Score,
    scales: Sequence[float] = SCALES,
    seed: int = 0,
) -> AttackResult:
    """The setting's merge of models or adapters at the scale of least score; `found` holds scale.

    A setting without a scale, or of parameters, which a scale would shrink, is merged once, at 1. `seed` is that of
    settings that drop at random, the same at every scale. Raises ValueError for members that `merge` refuses.
    """

    def at(tuned: Setting) -> Tensors:
        return merge(base, members, tuned, rng=np.random.default_rng(seed)).tensors

    def candidates() -> Iterator[tuple[dict[str, float], Tensors]]:
        if setting.of == "parameters" or isinstance(setting.rule, Slerp):
            yield {"scale": 1.0}, at(setting)
            return
        none, whole = at(setting.tuned(scale=0.0)), at(setting.tuned(scale=1.0))
        for s in scales:  # which enters affinely
            yield {"scale": s}, {name: w + w.dtype.type(s) * (whole[name] - w) for name, w in none.items()}

    return best(setting.name, score, candidates())
