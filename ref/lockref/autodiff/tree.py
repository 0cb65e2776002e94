"""Nested dicts, lists and tuples of arrays: the parameters of a model as one argument."""

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np

from lockref.autodiff.array import Traced


def flatten(tree: Any) -> tuple[list[Any], list[str], Callable[[Sequence[Any]], Any]]:
    """Leaves of a tree, their paths such as "[0]['w_q']", and a function that puts new leaves back."""
    leaves: list[Any] = []
    paths: list[str] = []
    _walk(tree, "", leaves, paths)
    skeleton = _rebuild(tree, repeat(0))  # the structure alone: holding the leaves would keep them in memory
    return leaves, paths, lambda new: _rebuild(skeleton, iter(new))


def _walk(tree: Any, path: str, leaves: list[Any], paths: list[str]) -> None:
    if isinstance(tree, dict):
        for key in tree:
            _walk(tree[key], f"{path}[{key!r}]", leaves, paths)
    elif isinstance(tree, list | tuple):
        for i, item in enumerate(tree):
            _walk(item, f"{path}[{i}]", leaves, paths)
    elif tree is not None:
        leaves.append(tree)
        paths.append(path)


def _rebuild(tree: Any, new: Iterator[Any]) -> Any:
    if isinstance(tree, dict):
        return {key: _rebuild(item, new) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        items = [_rebuild(item, new) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return None if tree is None else next(new)


def leaf_error(leaf: Any) -> str | None:
    """Why a leaf cannot carry a derivative, or None where it can."""
    if isinstance(leaf, Traced):
        return None
    dtype = np.asarray(leaf).dtype
    if dtype == np.float32 or dtype == np.float64:
        return None
    what = "integers have no derivative" if dtype.kind in "iub" else f"dtype {dtype} is not supported"
    return f"{what}; convert to float32 or float64, or leave it out of argnums"
