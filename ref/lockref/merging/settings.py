"""The merging operators by name: each setting says where it is from and how it differs from its namesakes."""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

TASK_ARITHMETIC, TIES, DARE = "arXiv 2212.04089", "arXiv 2306.01708", "arXiv 2311.03099"
TSV, CART, KNOTS, CORE = "arXiv 2412.00081", "arXiv 2412.12153", "arXiv 2410.19735", "arXiv 2509.17786"
MERGEKIT, PEFT = "mergekit 0.1.5", "peft 0.21.2"

Space = Literal["full", "knots", "knots-basis", "core"]


@dataclass(frozen=True)
class Trim:
    """Which entries of an update stay, n of them being in scope (one tensor, or the whole model).

    largest: the ⌊density · n⌋ greatest magnitudes, the first ones where magnitudes are equal;
    at-least-one: the same, but one where that is none;
    threshold: every magnitude that reaches the (n − ⌊density · n⌋)-th smallest one, so one more, and all ties;
    random: each entry with probability `density`.
    rescale: nothing, by 1/density, or to the l1 norm from before (per member and scope).
    """

    rule: Literal["largest", "at-least-one", "threshold", "random"]
    density: float
    scope: Literal["tensor", "model"] = "tensor"
    rescale: Literal["nothing", "density", "l1"] = "nothing"

    def __post_init__(self) -> None:
        _between("density", self.density)


@dataclass(frozen=True)
class Elect:
    """The sign that each entry takes: members of the other sign, or at zero, leave the entry.

    by: mass, the sign of the sum; count, the sign of the sum of signs. weighted: the votes carry the weights.
    ties: where the vote is zero, +1, or the sign of the sum of all elected signs in scope (−1 if that is zero too).
    """

    by: Literal["mass", "count"]
    weighted: bool
    ties: Literal["positive", "overall"]


@dataclass(frozen=True)
class Entries:
    """scale · Σ_i w_i m_i r_i δ_i / divisor, entry by entry: trim (m, r), elect (m), combine (w, divisor), rescale.

    divide: by 1, by Σ w, by the weights of the members that are left in the entry, or by their number.
    """

    trim: Trim | None = None
    elect: Elect | None = None
    divide: Literal["nothing", "weights", "weights left", "members left"] = "nothing"
    scale: float = 1.0


@dataclass(frozen=True)
class Slerp:
    """Along the arc between two flattened tensors: [sin((1−t)Ω) x + sin(tΩ) y] / sin Ω, t = w_2/(w_1 + w_2).

    Straight where the cosine exceeds 1 − collinear in magnitude. Zeros are at a right angle to all else.
    """

    collinear: float


@dataclass(frozen=True)
class Tsv:
    """scale · U⊥ diag(σ) V⊥ᵀ from the ⌊min(m,n)/T⌋ leading triples of each of T updates, U⊥ and V⊥ polar factors.

    Tensors that are not matrices are averaged.
    """

    scale: float = 1.0


@dataclass(frozen=True)
class Cart:
    """mean + scale · Σ_i trunc_k(δ_i − mean), k a share of min(m,n), at least 1; rounding: of k, down or up.

    Tensors that are not matrices are averaged: without truncation the sum is zero.
    """

    rank: float
    scale: float
    rounding: Literal["down", "up"] = "down"

    def __post_init__(self) -> None:
        _between("rank", self.rank)


Rule = Entries | Slerp | Tsv | Cart


def _between(what: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{what} {value:g} is outside (0, 1]; give the share that is to be kept")


@dataclass(frozen=True)
class Setting:
    """A rule under a name. `of`: what is combined, updates θ_i − θ_0 or the parameters θ_i themselves."""

    name: str
    rule: Rule
    source: str
    differs: str
    of: Literal["updates", "parameters"] = "updates"
    space: Space = "full"

    def tuned(self, **values: Any) -> Self:
        """The same with another scale, density, rank, rescale, scope or space; ValueError for what it does not have."""
        space = values.pop("space", self.space)
        if space not in ("full", "knots", "knots-basis", "core"):
            raise ValueError(f"{self.name}: no space {space!r}; choose full, knots, knots-basis or core")
        if space != "full" and (self.of == "parameters" or isinstance(self.rule, Slerp)):
            raise ValueError(f"{self.name}: combines parameters or along an arc; only updates have a space {space}")
        rule = self.rule
        trim = rule.trim if isinstance(rule, Entries) else None
        inner = {k: v for k, v in values.items() if trim and k in {f.name for f in fields(Trim)}}
        outer = {k: v for k, v in values.items() if k not in inner}
        if unknown := set(outer) - {f.name for f in fields(rule)}:
            raise ValueError(f"{self.name}: has no {', '.join(sorted(unknown))} to tune")
        if trim and isinstance(rule, Entries) and inner:
            rule = replace(rule, trim=replace(trim, **inner))
        return replace(self, rule=replace(rule, **outer), space=space)


_KTH = Trim("threshold", 0.2, "model")
_AUTHORS = Elect("mass", weighted=False, ties="overall")
_PLAIN, _COUNT = Elect("mass", False, "positive"), Elect("count", False, "positive")
_WEIGHTED = Elect("mass", True, "positive")

_ALL = (
    Setting("linear-average", Entries(divide="weights"), f"{MERGEKIT}, linear; arXiv 2203.05482",
            "Σ w θ / Σ w: each update times w/Σw, the base untouched", of="parameters"),
    Setting("linear-sum", Entries(), f"{MERGEKIT}, linear with normalize: false",
            "Σ w θ: the base comes out times Σ w, which no one asks for unless Σ w = 1", of="parameters"),
    Setting("task-arithmetic", Entries(), f"{TASK_ARITHMETIC}; {MERGEKIT}, task_arithmetic",
            "base + λ Σ w δ: the sum of updates, not divided by anything"),
    Setting("magnitude-prune", Entries(Trim("largest", 0.2)), f"{PEFT}, magnitude_prune",
            "task arithmetic of trimmed updates; may keep nothing of a small tensor"),
    Setting("ties", Entries(_KTH, _AUTHORS, "members left"), f"{TIES}; the authors' code, topk, mass, dis-mean",
            "one trim for the whole model, one entry more than the share, and all that tie with it; "
            "a vote of zero takes the model's majority"),
    Setting("ties-sum", Entries(_KTH, _AUTHORS), f"{TIES}; the authors' code, topk, mass, dis-sum",
            "as ties, but members that agree are added up, not averaged"),
    Setting("ties-mergekit", Entries(Trim("at-least-one", 0.2), _WEIGHTED, "weights left"), f"{MERGEKIT}, ties",
            "trims each tensor, exactly the share but at least one; weights vote and divide; a vote of zero is +"),
    Setting("ties-peft", Entries(Trim("largest", 0.2), _PLAIN, "members left"), f"{PEFT}, ties_svd (full updates)",
            "trims each tensor, exactly the share or nothing; weights neither vote nor divide; a vote of zero is +"),
    Setting("ties-peft-count", Entries(Trim("largest", 0.2), _COUNT, "members left"),
            f"{PEFT}, ties_svd with majority_sign_method frequency", "as ties-peft, but members vote, not magnitudes"),
    Setting("dare", Entries(Trim("random", 0.1, rescale="density")), f"{DARE}; {PEFT}, dare_linear_svd",
            "kept entries times 1/density: the mean is the update"),
    Setting("dare-mergekit", Entries(Trim("random", 0.1, rescale="l1")), f"{MERGEKIT}, dare_linear",
            "kept entries rescaled to the tensor's l1 norm: the mean is not the update"),
    Setting("dare-ties", Entries(Trim("random", 0.1, rescale="density"), _PLAIN, "members left"),
            f"{DARE}; {PEFT}, dare_ties_svd", "drops at random instead of trimming; averages what agrees"),
    Setting("dare-ties-mergekit", Entries(Trim("random", 0.1, rescale="l1"), _WEIGHTED), f"{MERGEKIT}, dare_ties",
            "rescales to the l1 norm; adds up what agrees"),
    Setting("slerp", Slerp(collinear=0.0005), f"{MERGEKIT}, slerp",
            "of whole tensors; straight above a cosine of 0.9995, so two experts of one base are averaged",
            of="parameters"),
    Setting("slerp-updates", Slerp(collinear=5e-17), f"{MERGEKIT}, nuslerp with a base",
            "of updates; straight only where they are collinear"),
    Setting("tsv", Tsv(), f"{TSV}; the authors' code",
            "equal directions share one polar factor; the authors' code leaves them to LAPACK"),
    Setting("cart", Cart(rank=0.08, scale=1.0), f"{CART}; the authors' code",
            "k = max(1, ⌊rank · min(m,n)⌋) of every matrix, in the authors' code of attention and MLP only; "
            "of two members, their mean"),
    Setting("cart-core", Cart(rank=0.04, scale=0.1, rounding="up"), f"{CORE}; its authors' code",
            "k = ⌈rank · min(m,n)⌉", space="core"),
    Setting("knots-ties", Entries(_KTH, _AUTHORS, "members left"), f"{KNOTS}; the authors' code",
            "TIES of Σ Vᵀ: rows carry the singular values, one trim for all layers", space="knots"),
    Setting("knots-ties-basis", Entries(Trim("threshold", 0.1), _AUTHORS, "members left"),
            f"{CORE}; its authors' code, merge_space knots",
            "TIES of Vᵀ: rows of weak directions weigh as much as strong ones, one trim for each layer",
            space="knots-basis"),
    Setting("core-average", Entries(divide="weights"), CORE, "equals the average in full space", space="core"),
    Setting("core-ties", Entries(Trim("threshold", 0.1), _AUTHORS, "members left"), f"{CORE}; its authors' code",
            "TIES of the core matrices; depends on how an update is split into B A", space="core"),
    Setting("core-tsv", Tsv(), f"{CORE}; its authors' code", "TSV of the core matrices", space="core"),
)  # fmt: skip
SETTINGS: dict[str, Setting] = {setting.name: setting for setting in _ALL}
