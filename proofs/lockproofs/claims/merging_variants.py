"""MERGE-VARIANTS: do codes that carry one name compute one thing?"""

from typing import Any

import numpy as np

from lockproofs.claim import (
    Check,
    Claim,
    Context,
    Control,
    Controls,
    Counterexample,
    Evidence,
    Grade,
    Source,
    Verdict,
)
from lockproofs.claims.merging_scale import experts
from lockref.merging import SETTINGS, Adapter, Merged, merge
from lockref.merging.spaces import factor_sum

PAPER = "arXiv 2306.01708"
FAMILIES = {
    "TIES": ("ties", "ties-mergekit", "ties-peft", "ties-peft-count", "ties-sum"),
    "DARE": ("dare", "dare-mergekit"),
    "DARE with TIES": ("dare-ties", "dare-ties-mergekit"),
    "linear": ("linear-average", "linear-sum", "task-arithmetic"),
    "SLERP": ("slerp", "slerp-updates"),
}
KTH: dict[str, Any] = {"updates": [list(range(1, 11)), [0] * 10], "density": 0.2, "settings": ["ties", "ties-mergekit"]}
# rows of updates on a base of zeros; two settings of one name; the merged updates that they give
PLANTED: dict[str, dict[str, Any]] = {
    "k-th value off by one": KTH | {"want": [[0] * 7 + [8, 9, 10], [0] * 8 + [9, 10]]},
    "magnitudes that tie": {"updates": [[2, 2, 2, 2, 1], [0] * 5], "density": 0.4, "settings": ["ties", "ties-peft"],
                            "want": [[2, 2, 2, 2, 0], [2, 2, 0, 0, 0]]},
    "a share below one entry": {"updates": [[1, 2, 3], [0, 0, 0]], "density": 0.2,
                                "settings": ["ties-mergekit", "ties-peft"], "want": [[0, 0, 3], [0, 0, 0]]},
    "a vote of zero": {"updates": [[1, -3], [-1, -3]], "density": 1.0, "settings": ["ties", "ties-peft"],
                       "want": [[-1, -3], [1, -3]]},
    "mass or count": {"updates": [[1], [1], [-3]], "density": 1.0, "settings": ["ties-peft", "ties-peft-count"],
                      "want": [[-3], [1]]},
    "weights vote": {"updates": [[2], [-3]], "weights": [1, 0.5], "density": 1.0,
                     "settings": ["ties-mergekit", "ties-peft"], "want": [[2], [-1.5]]},
    "weights divide": {"updates": [[3], [6]], "weights": [1, 0.5], "density": 1.0,
                       "settings": ["ties-mergekit", "ties-peft"], "want": [[4], [3]]},
    "mean or sum": {"updates": [[2], [4]], "density": 1.0, "settings": ["ties", "ties-sum"], "want": [[3], [6]]},
    "average or sum of models": {"base": [1], "updates": [[2], [4]], "settings": ["linear-average", "linear-sum"],
                                 "want": [[3], [7]]},
    "average or sum of updates": {"base": [1], "updates": [[2], [4]],
                                  "settings": ["linear-average", "task-arithmetic"], "want": [[3], [6]]},
    "SLERP of models or updates": {"base": [3, 0], "updates": [[0, 4], [0, 8]], "settings": ["slerp", "slerp-updates"],
                                   "want": None},
}  # fmt: skip


def both(given: dict[str, Any]) -> list[list[float]]:
    """The merged update under each of the two settings."""
    base = np.array(given.get("base", [0] * len(given["updates"][0])), float)
    members = [{"w": base + np.array(update, float)} for update in given["updates"]]
    found = []
    for name in given["settings"]:
        setting = SETTINGS[name].tuned(density=given["density"]) if "density" in given else SETTINGS[name]
        merged = merge({"w": base}, members, setting, weights=given.get("weights"))
        found.append([float(x) for x in merged.tensors["w"] - base])
    return found


def rerun_variants(given: dict[str, Any]) -> str:
    """What each code keeps of the first member."""
    one, two = both(given)
    names = given["settings"]
    return f"{np.count_nonzero(one)} entries kept by {names[0]}, {np.count_nonzero(two)} by {names[1]}"


def scopes() -> tuple[list[float], list[float]]:
    """Two tensors, (1, 2) and (10, 20), half of the entries kept: of each tensor, or of the model."""
    base = {n: np.zeros(2) for n in ("a", "b")}
    update = {"a": np.array([1.0, 2]), "b": np.array([10.0, 20])}
    found = []
    for scope in ("tensor", "model"):
        setting = SETTINGS["ties-mergekit"].tuned(density=0.5, scope=scope)
        found.append([float(x) for t in merge(base, [update, base], setting).tensors.values() for x in t])
    return found[0], found[1]


def one_entry_drop(name: str, draws: int = 64) -> set[float]:
    """Outcomes of DARE on a tensor of one entry, 8, dropped with probability 3/4."""
    base = {"w": np.zeros(1)}
    setting = SETTINGS[name].tuned(density=0.25)
    seen = [merge(base, [{"w": np.array([8.0])}, base], setting, rng=np.random.default_rng(i)) for i in range(draws)]
    return {float(m.tensors["w"][0]) for m in seen}


def cart_ranks() -> tuple[int, int]:
    """k for a share of 0.3 of five triples, rounded down and up."""
    base = {"w": np.zeros((5, 5))}
    members = [{"w": np.diag(np.arange(1.0, 6) * s)} for s in (1, 2, -1)]
    found = [merge(base, members, SETTINGS[n].tuned(rank=0.3, space="full")) for n in ("cart", "cart-core")]
    return found[0].accounting["w"].used[0], found[1].accounting["w"].used[0]


def knots_differ() -> float:
    """‖TIES of Σ Vᵀ − TIES of Vᵀ‖ for diag(4, 1) and [[0, 2], [1, 0]], one entry of four kept of each.

    U = I, Σ² = (20, 2). Of Σ Vᵀ the second keeps its 2, of Vᵀ = ((0, 1/√5), (1/√2, 0)) its 1: distance √(4 + 1).
    """
    base = {"w": np.zeros((2, 2))}
    members = [{"w": np.diag([4.0, 1.0])}, {"w": np.array([[0.0, 2.0], [1.0, 0.0]])}]
    spaces = [SETTINGS["knots-ties"].tuned(density=0.2, space=s) for s in ("knots", "knots-basis")]
    one, two = (merge(base, members, s).tensors["w"] for s in spaces)
    return float(np.linalg.norm(one - two))


def factor_terms() -> tuple[float, float]:
    """Two copies of the adapter b = a = 1 at weight 1/2: averaged as updates, and as factors."""
    one = Adapter({"w": np.ones((1, 1))}, {"w": np.ones((1, 1))})
    averaged = merge({"w": np.zeros((1, 1))}, [one, one], "linear-average").tensors["w"]
    return float(averaged[0, 0]), float(factor_sum([one, one], [0.5, 0.5]).update("w")[0, 0])


def distance(one: Merged, two: Merged, base: dict[str, Any]) -> float:
    """‖merged − merged'‖ relative to the greater of the two updates."""

    def norm(x: Any, y: Any) -> float:
        return float(np.sqrt(sum(float(np.sum(np.square(x[n] - y[n], dtype=np.float64))) for n in base)))

    return norm(one.tensors, two.tensors) / max(norm(one.tensors, base), norm(two.tensors, base))


def check_variants(ctx: Context) -> Evidence:
    """Planted vectors of small integers on which settings of one name differ, and the trained models' distance.

    Each setting names the code that it follows; the tests run mergekit and peft themselves on the models and
    on these vectors and compare with the settings. The authors' codes of TIES, KnOTS, Core space, TSV and CART
    are not distributed as packages: their settings are from reading them.

    The null control: without trimming, with unit weights and no vote of zero, all five TIES but the sum compute
    the same, so what differs elsewhere is these choices and nothing else.
    """
    found = {name: both(given) for name, given in PLANTED.items()}
    as_planted = sum(pair == PLANTED[n]["want"] if PLANTED[n]["want"] else True for n, pair in found.items())
    differing = sum(pair[0] != pair[1] for pair in found.values())
    tensor, model = scopes()
    unbiased, norm = one_entry_drop("dare"), one_entry_drop("dare-mergekit")
    down, up = cart_ranks()
    averaged, factors = factor_terms()
    base, members, origin = experts(ctx)
    apart: dict[str, list[float]] = {}
    for family, names in FAMILIES.items():
        merged = [merge(base, members, n, rng=ctx.rng(3)) for n in names]
        apart[family] = [distance(x, y, base) for i, x in enumerate(merged) for y in merged[:i]]
    same = agreement(ctx)
    text = ", ".join(f"{family} {max(values):.2f}" for family, values in apart.items())
    equal, pairs = sum(v == 0 for values in apart.values() for v in values), sum(map(len, apart.values()))
    return Evidence(
        verdict=Verdict.REFUTED,
        grade=Grade.PROVED,
        explanation="One name stands for several functions. Of ten entries the greatest fifth is three in the authors' "
        "TIES and two in mergekit and peft; ties in the vote, the scope of trimming, whether weights vote and divide, "
        "and whether dropped mass comes back by 1/(1−p) or by the tensor's norm differ as well. Adapters averaged "
        f"factor by factor are not averaged at all. On {origin}, with unit weights, the two farthest of one name are "
        f"this far apart, relative to the merged update: {text}; of {pairs} pairs {equal} merge to the same model "
        "there. A merged result means nothing without its variant.",
        checks=[
            Check(name="pairs of one name that differ on planted vectors", unit="pairs", value=differing,
                  bound=len(found), sense="==", statistic=f"of {len(found)} pairs, each for one difference",
                  tolerance_from="integers: none", cases=len(found)),
            Check(name="the merged vectors are the ones computed by hand", unit="pairs", value=as_planted,
                  bound=len(found), sense="==", statistic=f"of {len(found)} pairs", tolerance_from="integers: none",
                  cases=len(found)),
            Check(name="scope of trimming", unit="entries",
                  value=sum(a != b for a, b in zip(tensor, model, strict=True)),
                  bound=2, sense="==", statistic=f"differing entries: {tensor} by tensor, {model} by model"),
            Check(name="DARE by the l1 norm does not return what it drops", unit="outcomes", sense="==", bound=1,
                  value=unbiased == {0.0, 32.0} and norm == {0.0, 8.0}, cases=64,
                  statistic="one entry 8 at density 1/4 becomes 0 or 32, or 0 or 8: means 8 and 2"),
            Check(name="rank of CART", unit="triples", value=up - down, bound=1, sense="==",
                  statistic=f"0.3 of five triples: {down} and {up}"),
            Check(name="KnOTS with singular values or without", unit="norm", value=knots_differ(),
                  bound=0.1, sense=">=",
                  statistic="distance of TIES of ΣVᵀ and of Vᵀ on two 2 × 2 updates"),
            Check(name="factors are not updates", unit="multiple of the adapter", value=factors, bound=2.0, sense="==",
                  tolerance=8 * float(np.finfo(float).eps), tolerance_from="two square roots and four products",
                  statistic=f"two copies at weight 1/2, factor by factor; as updates {averaged:g}"),
            *(Check(name=f"{family} on the models", unit="relative", value=max(values), bound=1e-3, sense=">=",
                    statistic="greatest distance of two variants", cases=len(values), seed=ctx.seed)
              for family, values in apart.items()),
        ],
        controls=Controls(
            null=Control(what="without trimming and ties, unit weights: entries in which TIES variants differ",
                         passed=same == 0, value=same, bound=0, unit="entries"),
        ),
        counterexample=Counterexample(
            given=KTH,
            got=rerun_variants(KTH),
            want="the same number of entries",
            by_hand="Update 1, 2, …, 10, density 0.2: k = 2. The authors' code takes the (10 − 2)-th smallest one, "
            "8, and keeps what reaches it: 8, 9, 10. The others keep the two greatest: 9, 10.",
        ),
        assumptions=["mergekit 0.1.5, peft 0.21.2, and the authors' repositories as of 2026"],
        severity="medium",
        fix="Name the code, its version and every option beside each merged result.",
    )  # fmt: skip


def agreement(ctx: Context) -> int:
    """Entries in which untrimmed TIES variants (but the sum) differ on random updates of odd integers, two members.

    Members (odd, odd multiple of 4 in magnitude) never tie; halves are exact.
    """
    rng, off = ctx.rng(4), 0
    names = [n for n in FAMILIES["TIES"] if n not in ("ties-sum", "ties-peft-count")]
    for _ in range(ctx.cases):
        base = {"w": np.zeros((4, 5))}
        small = (2 * rng.integers(0, 2, (4, 5)) - 1).astype(float)
        members = [{"w": small}, {"w": 4.0 * (2 * rng.integers(-3, 3, (4, 5)) + 1)}]
        merged = [merge(base, members, SETTINGS[n].tuned(density=1.0)).tensors["w"] for n in names]
        off += sum(int(np.sum(m != merged[0])) for m in merged[1:])
    return off


CLAIMS = (
    Claim(
        id="MERGE-VARIANTS",
        title="One name, one operator",
        statement="Operators of one name compute the same thing in the common implementations.",
        source=Source(paper=PAPER, where="the common implementations of it and of its successors; worded by us"),
        kind="theorem",
        recorded=Verdict.REFUTED,
        would_change="Codes that agree on the k-th value, ties, scope, weights and rescaling.",
        check=check_variants,
        rerun=rerun_variants,
    ),
)
