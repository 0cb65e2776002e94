"""One call for every merging operator: merge(base, members, setting), with an account of every tensor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockref.merging.entries import Combined, combine
from lockref.merging.inputs import Member, Tensors, check_members, check_weights
from lockref.merging.settings import SETTINGS, Cart, Entries, Setting, Slerp
from lockref.merging.spaces import Adapter, Coordinates, coordinates
from lockref.merging.spectral import cart, slerp_coefficients, tsv


@dataclass(frozen=True)
class Account:
    """What happened to one tensor: the rule, and of each member how many units there were, and how many were used."""

    rule: str
    unit: str
    given: tuple[int, ...]
    used: tuple[int, ...]


@dataclass(frozen=True)
class Merged:
    """The merged model, and one account for each of its tensors."""

    tensors: dict[str, NDArray[Any]]
    accounting: dict[str, Account]

    def __post_init__(self) -> None:
        if self.tensors.keys() != self.accounting.keys():
            raise ValueError("a tensor is without account")

    def totals(self) -> dict[str, int]:
        """How many tensors each rule combined."""
        rules = [account.rule for account in self.accounting.values()]
        return {rule: rules.count(rule) for rule in dict.fromkeys(rules)}


def merge(
    base: Tensors,
    members: Sequence[Member],
    setting: Setting | str,
    *,
    weights: Sequence[float] | None = None,
    rng: np.random.Generator | None = None,
) -> Merged:
    """θ_0 + operator(w_1, θ_1 − θ_0, …), or the operator on the θ_i themselves, as the setting says.

    base: arrays by name, all of one float dtype, which is that of the result. members: models with the same names
    and shapes, or Adapters that all change the same matrices; a tensor that no adapter changes is the base's.
    weights: one for each member, 1 by default. rng: for settings that drop at random.
    Raises ValueError, on one line that names the tensor, for whatever does not fit (`lockref.merging.inputs`).
    """
    setting = named(setting)
    check_members(base, members, setting)
    w = check_weights(weights, len(members), setting)
    spaces = _coordinates(base, members, setting)
    found = _combined(spaces, setting, w, rng)
    tensors, accounting = {}, {}
    for name, tensor in base.items():
        if name in found:
            value, accounting[name] = found[name]
            value = spaces[name].back(value)
            tensors[name] = (tensor + value if setting.of == "updates" else value).astype(tensor.dtype, copy=False)
        else:
            tensors[name], accounting[name] = tensor.copy(), Account("no adapter changes it", "entries", (), ())
    return Merged(tensors, accounting)


def entry_factors(
    base: Tensors,
    members: Sequence[Member],
    setting: Setting | str,
    *,
    weights: Sequence[float] | None = None,
    rng: np.random.Generator | None = None,
) -> dict[str, NDArray[Any]]:
    """Of an elementwise setting, by tensor: what each entry of each member's coordinates is multiplied by.

    Arrays (members, …); same arguments and errors as `merge`, and ValueError for a setting that is not elementwise.
    """
    setting = named(setting)
    if not isinstance(setting.rule, Entries):
        raise ValueError(f"{setting.name}: is not elementwise, its entries have no factors; see fitted_scales")
    check_members(base, members, setting)
    w = check_weights(weights, len(members), setting)
    spaces = _coordinates(base, members, setting)
    combined = _entries(spaces, setting.rule, w, rng)
    return {n: c.factors.reshape(len(members), *spaces[n].members[0].shape) for n, c in combined.items()}


def named(setting: Setting | str) -> Setting:
    """A setting, or the one of that name; ValueError for an unknown name."""
    if isinstance(setting, Setting):
        return setting
    if setting not in SETTINGS:
        raise ValueError(f"no merging operator {setting!r}; choose from {', '.join(SETTINGS)}")
    return SETTINGS[setting]


def _coordinates(base: Tensors, members: Sequence[Member], setting: Setting) -> dict[str, Coordinates]:
    """By tensor, what is combined: parameters, or updates in the setting's space."""
    first = members[0]
    names = [name for name in base if not isinstance(first, Adapter) or name in first.b]
    found = {}
    for name in names:
        theta = base[name]
        updates = [m.update(name) if isinstance(m, Adapter) else m[name] - theta for m in members]
        factors = [m.factors(name) for m in members if isinstance(m, Adapter)] or None
        if setting.of == "parameters":
            models = [theta + u if isinstance(m, Adapter) else m[name] for m, u in zip(members, updates, strict=True)]
            found[name] = coordinates("full", models, None)
        else:
            found[name] = coordinates(setting.space, updates, factors)
    return found


def _combined(
    spaces: Mapping[str, Coordinates], setting: Setting, w: NDArray[Any], rng: np.random.Generator | None
) -> dict[str, tuple[NDArray[Any], Account]]:
    rule = setting.rule
    if isinstance(rule, Entries):
        return {name: _entry_account(spaces[name], c) for name, c in _entries(spaces, rule, w, rng).items()}
    return {name: _whole(c.members, rule, w) for name, c in spaces.items()}


def _entries(
    spaces: Mapping[str, Coordinates], rule: Entries, w: NDArray[Any], rng: np.random.Generator | None
) -> dict[str, Combined]:
    """The elementwise operator, tensor by tensor, or on all of them as one vector."""
    rows = {name: np.stack([m.ravel() for m in c.members]) for name, c in spaces.items()}
    if rule.trim is None or rule.trim.scope == "tensor":
        return {name: combine(x, rule, w, rng) for name, x in rows.items()}
    whole = combine(np.concatenate(list(rows.values()), axis=1), rule, w, rng)
    cuts = np.cumsum([x.shape[1] for x in rows.values()])[:-1]
    totals, factors = np.split(whole.total, cuts), np.split(whole.factors, cuts, axis=1)
    return {name: Combined(t, f) for name, t, f in zip(rows, totals, factors, strict=True)}


def _entry_account(space: Coordinates, found: Combined) -> tuple[NDArray[Any], Account]:
    given = tuple(int(np.count_nonzero(m)) for m in space.members)
    return found.total.reshape(space.members[0].shape), Account("entry by entry", "entries", given, found.used)


def _whole(x: list[NDArray[Any]], rule: Any, w: NDArray[Any]) -> tuple[NDArray[Any], Account]:
    """An operator on whole tensors; those that are not matrices are averaged by the spectral ones."""
    sizes = tuple(m.size for m in x)
    if isinstance(rule, Slerp):
        c = slerp_coefficients(x[0], x[1], float(w[1] / w.sum()), rule)
        return sum(x[0].dtype.type(k) * m for k, m in zip(c, x, strict=True)), Account("arc", "entries", sizes, sizes)
    if x[0].ndim != 2:
        mean = np.mean([k * m for k, m in zip(w.astype(x[0].dtype), x, strict=True)], axis=0, dtype=x[0].dtype)
        scale = 1.0 if isinstance(rule, Cart) else rule.scale
        return scale * mean, Account("mean: not a matrix", "entries", sizes, sizes)
    found, used = cart(x, rule, w) if isinstance(rule, Cart) else tsv(x, rule, w)
    what = "centered low-rank sum" if isinstance(rule, Cart) else "singular vectors made orthogonal"
    return found, Account(what, "singular triples", (min(x[0].shape),) * len(x), used)
