"""Files of the zoo: written whole or not at all, read without running anything from them."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import Qwen3ForCausalLM

Tensors = dict[str, torch.Tensor]

WEIGHTS = "model.safetensors"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    os.replace(temporary, path)


def write_bytes(path: Path, content: bytes) -> None:
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_tensors(path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(contiguous, temporary, metadata))


def read_tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        # clone: fresh memory, aligned like the original, so that kernels round as they did before
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return tensors, file.metadata()


def save_model(folder: Path, config: dict[str, Any], weights: Tensors) -> None:
    """A model directory as on the hub, in bfloat16, the dtype in which Qwen3 is released."""
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    write_tensors(folder / WEIGHTS, rounded, {"format": "pt"})


def load_model(folder: Path) -> Qwen3ForCausalLM:
    """The official class with a saved model's weights, widened to float32; every key must match."""
    loaded: Any = Qwen3ForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    model: Qwen3ForCausalLM = loaded[0]
    if wrong := {kind: keys for kind, keys in loaded[1].items() if keys}:
        raise ValueError(f"{folder} does not load cleanly: {wrong}")
    return model
