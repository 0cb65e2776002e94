"""What may be merged: every refusal names the tensor and the member, on one line."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockref.merging.settings import Entries, Setting, Slerp
from lockref.merging.spaces import Adapter

Tensors = Mapping[str, NDArray[Any]]
Member = Tensors | Adapter


def check_members(base: Tensors, members: Sequence[Member], setting: Setting) -> None:
    """Raises ValueError unless all members fit the base, are finite floats, and are as many as the rule takes."""
    if len(members) < 2:
        raise ValueError(f"{setting.name}: {len(members)} member; merging needs at least two")
    if isinstance(setting.rule, Slerp) and len(members) != 2:
        raise ValueError(f"{setting.name}: {len(members)} members; an arc has two ends, give two")
    adapters = [isinstance(m, Adapter) for m in members]
    if any(adapters) and not all(adapters):
        raise ValueError(f"member {adapters.index(False)} is a model, another an Adapter; give all in one form")
    if setting.space == "core" and not all(adapters):
        raise ValueError(f"{setting.name}: core space needs the factors B and A of every member; give Adapters")
    _check_tensors(base, "base")
    for i, member in enumerate(members):
        if isinstance(member, Adapter):
            _check_adapter(base, members[0], member, i)
        else:
            _check_model(base, member, i)


def check_weights(weights: Sequence[float] | None, members: int, setting: Setting) -> NDArray[np.float64]:
    """The weights, 1 each by default. Raises ValueError for a wrong number, for NaN, and where a divisor sums to 0."""
    found = np.ones(members) if weights is None else np.asarray(weights, dtype=np.float64)
    if found.shape != (members,):
        raise ValueError(f"weights of shape {found.shape} for {members} members; give one for each")
    if not np.all(np.isfinite(found)):
        raise ValueError(f"weight of member {int(np.argmin(np.isfinite(found)))} is not finite; give a number")
    divides = isinstance(setting.rule, Slerp) or (
        isinstance(setting.rule, Entries) and "weights" in setting.rule.divide
    )
    if divides and found.sum() == 0:
        raise ValueError(f"{setting.name}: weights {found.tolist()} sum to 0, which they are divided by; change one")
    return found


def _check_tensors(tensors: Tensors, who: str) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, np.ndarray) or not np.issubdtype(tensor.dtype, np.floating):
            raise ValueError(f"tensor {name!r} of {who}: {_kind(tensor)}; give a float array")
        if not np.isfinite(tensor).all():
            raise ValueError(f"tensor {name!r} of {who}: not finite; nothing can be merged with it")


def _kind(tensor: object) -> str:
    return f"dtype {tensor.dtype}" if isinstance(tensor, np.ndarray) else type(tensor).__name__


def _check_model(base: Tensors, member: Tensors, i: int) -> None:
    for name, tensor in base.items():
        if name not in member:
            raise ValueError(f"tensor {name!r}: member {i} lacks it; every member needs every tensor of the base")
        got, want = np.shape(member[name]), np.shape(tensor)
        if got != want:
            vocabulary = len(got) == len(want) == 2 and got[1:] == want[1:] and ("embed" in name or "lm_head" in name)
            why = "different vocabularies; extend both to one" if vocabulary else "members must be of one architecture"
            raise ValueError(f"tensor {name!r}: member {i} has shape {got}, base {want}: {why}")
    if extra := [name for name in member if name not in base]:
        raise ValueError(f"tensor {extra[0]!r}: member {i} has it, the base does not; remove it or add it to the base")
    _check_tensors(member, f"member {i}")


def _check_adapter(base: Tensors, first: Member, member: Adapter, i: int) -> None:
    assert isinstance(first, Adapter)
    if odd := sorted((member.b.keys() ^ member.a.keys()) | (member.b.keys() ^ first.b.keys())):
        raise ValueError(f"tensor {odd[0]!r}: not every adapter has B and A for it (member {i}); give a zero update")
    for name in member.b:
        got = (np.shape(member.b[name])[:1], np.shape(member.a[name])[1:])
        if name not in base or got[0] + got[1] != np.shape(base[name]):
            have = np.shape(base[name]) if name in base else "no such tensor"
            raise ValueError(f"tensor {name!r}: B A of member {i} has shape {got[0] + got[1]}, base: {have}")
        if np.shape(member.b[name])[1:] != np.shape(member.a[name])[:1]:
            raise ValueError(f"tensor {name!r}: ranks of B and A of member {i} differ; give factors of one adapter")
    _check_tensors(member.b, f"B of member {i}")
    _check_tensors(member.a, f"A of member {i}")
