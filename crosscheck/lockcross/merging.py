"""mergekit beside lockref.merging: which of its methods is which of our settings, on directories and on tensors."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

with warnings.catch_warnings():  # of its dependencies, about each other
    warnings.simplefilter("ignore")
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.merge_methods.base import TensorGroup
    from mergekit.merge_methods.registry import get
    from mergekit.options import MergeOptions

# our name: its method, the parameters shared by all models, and whether the base is one of the two ends
METHODS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "linear-average": ("linear", {}),
    "linear-sum": ("linear", {"normalize": False}),
    "task-arithmetic": ("task_arithmetic", {}),
    "ties-mergekit": ("ties", {}),
    "dare-mergekit": ("dare_linear", {}),
    "dare-ties-mergekit": ("dare_ties", {}),
    "slerp": ("slerp", {}),
    "slerp-updates": ("nuslerp", {}),
}
DENSE = ("linear-average", "linear-sum", "task-arithmetic", "slerp", "slerp-updates")


def merge_directories(
    name: str, base: Path, members: Sequence[Path], out: Path, weights: Sequence[float], density: float, dtype: str
) -> None:
    """mergekit's own merge call on checkpoint directories, for one of our setting names."""
    method, shared = METHODS[name]
    models = [_model(path, name, w, density) for path, w in zip(members, weights, strict=True)]
    config: dict[str, Any] = {
        "merge_method": method,
        "dtype": "float32",
        "out_dtype": dtype,
        "parameters": dict(shared),
    }
    if name == "slerp":  # the first end is its "base", and t is shared
        models = [{"model": str(path)} for path in members]
        config |= {"base_model": str(members[0]), "parameters": {"t": weights[1] / sum(weights)}}
    elif not name.startswith("linear"):
        config["base_model"] = str(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("transformers").setLevel(logging.ERROR)
        options = MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False)
        run_merge(MergeConfiguration.model_validate({**config, "models": models}), str(out), options)


def _model(path: Path, name: str, weight: float, density: float) -> dict[str, Any]:
    trimmed = {} if name in DENSE else {"density": density}
    return {"model": str(path), "parameters": {"weight": weight, **trimmed}}


def merge_tensor(
    name: str, base: NDArray[Any], members: Sequence[NDArray[Any]], weights: Sequence[float], density: float
) -> NDArray[Any]:
    """One tensor by mergekit's kernel, in the tensor's dtype."""
    method, shared = METHODS[name]
    parts = [torch.from_numpy(np.ascontiguousarray(x)) for x in members]
    parameters: dict[str, Any] = dict(shared)
    if name == "slerp":
        group = TensorGroup.from_tensors(parts, base_index=0)
        parameters["t"] = weights[1] / sum(weights)
    elif name.startswith("linear"):
        group = TensorGroup.from_tensors(parts)
        parameters["weight"] = dict(enumerate(weights))
    else:
        group = TensorGroup.from_tensors([torch.from_numpy(np.ascontiguousarray(base)), *parts], base_index=0)
        parameters["weight"] = dict(enumerate(weights, 1))
        if name not in DENSE:
            parameters["density"] = dict.fromkeys(range(1, len(members) + 1), density)
    return np.asarray(get(method)([group], parameters=parameters)[0].numpy())
