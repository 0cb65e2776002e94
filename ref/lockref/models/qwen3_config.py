"""The sizes of a Qwen3 model, and the config.json of the hub from which they are read."""

import reprlib
import sys
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

STOCK, LOCKED = "qwen3", "lockref_qwen3"
# Who may load it. A model whose MLPs were replaced has names of its own: the stock classes would draw its MLPs anew
# and only warn. They know neither the type nor, loaded by name, the activation, and so they refuse.
_NAMES: dict[str, dict[str, Any]] = {
    STOCK: {"architectures": ["Qwen3ForCausalLM"], "hidden_act": "silu"},
    LOCKED: {"architectures": ["LockrefQwen3ForCausalLM"], "hidden_act": "lockref"},
}
# Keys of config.json that change what Qwen3ForCausalLM computes or how it is loaded, with the only value
# that qwen3.py computes. A key that is absent or null means this value too.
_FIXED = {
    "attention_bias": False,
    "use_sliding_window": False,
    "quantization_config": None,
    "auto_map": None,
}


@dataclass(frozen=True)
class Qwen3Config:
    """Sizes of a Qwen3 decoder, named as in config.json; ValueError names the first one that cannot be."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 40960

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if problem := _problem(value, field.type):
                raise ValueError(f"{field.name} is {reprlib.repr(value)}; it must be {problem}")
            if field.type is float:  # JSON writes 1000000 for 1e6
                object.__setattr__(self, field.name, float(value))
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; RoPE pairs its coordinates, so it must be even")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads}; "
                f"it must be a multiple of num_key_value_heads, {self.num_key_value_heads}"
            )

    @classmethod
    def from_hub(cls, raw: Mapping[str, Any]) -> "Qwen3Config":
        """The config that a parsed config.json describes.

        Raises ValueError, in one line, for a missing size and for every setting under which the official
        model would compute something else than `lockref.models.qwen3` does.
        """
        kind = raw.get("model_type")
        if kind not in (STOCK, LOCKED):
            raise ValueError(f"model_type is {reprlib.repr(kind)}; only {STOCK!r} is supported, and {LOCKED!r}")
        for key, only in (_NAMES[kind] | _FIXED).items():
            if raw.get(key) is not None and raw[key] != only:
                raise ValueError(f"{key} is {reprlib.repr(raw[key])}; only {only!r} is supported")
        layers = raw.get("layer_types")
        if layers is not None and not (isinstance(layers, list) and set(map(str, layers)) <= {"full_attention"}):
            raise ValueError(f"layer_types is {reprlib.repr(layers)}; only 'full_attention' is supported")
        given = {f.name: raw[f.name] for f in fields(cls) if f.name in raw} | {"rope_theta": _rope_theta(raw)}
        if missing := [f.name for f in fields(cls) if f.name not in given and f.default is MISSING]:
            raise ValueError(f"{missing[0]} is missing; add it, as in the config.json of the original model")
        config = cls(**given)
        if layers is not None and len(layers) != config.num_hidden_layers:
            raise ValueError(
                f"layer_types has {len(layers)} entries for {config.num_hidden_layers} layers; make them agree"
            )
        return config

    def to_hub(self, dtype: str, kind: str = STOCK) -> dict[str, Any]:
        """A config.json; `dtype` names the type of the saved tensors.

        Of kind STOCK, the official classes load it; of kind LOCKED, for replaced MLPs, they refuse to.
        """
        fixed = {key: value for key, value in (_NAMES[kind] | _FIXED).items() if value is not None}
        return {"model_type": kind, **fixed, **asdict(self), "rope_scaling": None, "torch_dtype": dtype}


def _problem(value: Any, kind: Any) -> str | None:
    """What a size should have been, or None where it is fine."""
    if kind is bool:
        return None if type(value) is bool else "true or false"
    if kind is int:
        return None if type(value) is int and 1 <= value <= sys.maxsize else "a positive integer"
    fits = type(value) in (int, float) and 0 < value <= sys.float_info.max
    return None if fits else "a positive finite number"


def _rope_theta(raw: Mapping[str, Any]) -> Any:
    """theta from the top level (older files) or from rope_parameters (newer ones)."""
    thetas = {"rope_theta": raw.get("rope_theta")}
    for key in ("rope_scaling", "rope_parameters"):
        rope = raw.get(key) or {}
        if not isinstance(rope, dict):
            raise ValueError(f"{key} is {reprlib.repr(rope)}; it must be an object or null")
        settings = {k: v for k, v in rope.items() if k != "rope_theta" and v is not None}
        if any(k not in ("rope_type", "type") or v != "default" for k, v in settings.items()):
            raise ValueError(f"{key} has {reprlib.repr(settings)}; only rope_type 'default' is supported")
        thetas[f"{key}.rope_theta"] = rope.get("rope_theta")
    found = {key: theta for key, theta in thetas.items() if theta is not None}
    if not found:
        raise ValueError("rope_theta is missing, at the top level and in rope_parameters; add it")
    first, *others = found.values()
    if any(theta != first for theta in others):
        raise ValueError(f"{' and '.join(found)} disagree: {reprlib.repr([first, *others])}; keep one")
    return first
