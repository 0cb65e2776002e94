"""DLR-Lock's two phases in PyTorch, for models that are too large for the NumPy engine.

Losses, draws and update are those of `lockref.locks.distillation`, so both engines take the same steps. Layers are
shared out among the processes of a team; of each layer's activations one process holds one copy, on disk. Every state
lies in the directory `work`, which all processes must see, so an interrupted run goes on where it stopped, with the
same bits as one that was never interrupted, alone or in a team, on the same device with as many threads a process.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from lockcross.capture import BATCH, Seen, added, captured
from lockcross.qwen3 import DLRNet, build, logits
from lockcross.team import Team
from lockcross.training import Parameters, Tensors, gradients, train
from lockref.locks.distillation import Distilled, Phases, Say, dlr_student, reporter
from lockref.locks.dlr import PREFIX, assembled
from lockref.locks.dlr_training import Follow, State, load_state, mark_of
from lockref.models import dlrnet
from lockref.models.dlrnet import DLRConfig
from lockref.models.qwen3_config import Qwen3Config
from lockref.models.tensor_file import CheckpointError, parse_object


def distill(
    tensors: Tensors, config: Qwen3Config, net: DLRConfig, phases: Phases, tokens: NDArray[Any], test: NDArray[Any],
    work: Path, team: Team, *, parts: int = 1, say: Say = lambda line: None,
) -> Distilled:  # fmt: skip
    """Both phases, a DLR-Net in every layer of the model `tensors` (float32), as `distillation.distill`.

    A step of phase 2 is computed in `parts` equal parts, one process at a part: its memory falls as 1/parts. Raises
    ValueError for parts that do not divide the step or are fewer than processes, CheckpointError where `work` cannot
    be used, FloatingPointError where training stops being finite.
    """
    if parts < team.size or phases.tokens % parts:
        raise ValueError(
            f"phase 2: {phases.tokens} rows a step in {parts} parts on {team.size} processes; parts must divide the "
            "rows and be at least as many as processes"
        )
    about = f"{net}, {phases}, {digest(tokens, test, *tensors.values())}"
    files = [LayerFile(work / f"layer{i}", net, phases, f"phase 1, {about}") for i in range(config.num_hidden_layers)]
    work.mkdir(parents=True, exist_ok=True)
    left = [i for i, file in enumerate(files) if team.owns(i) and not file.finished()]
    seen = captured(
        tensors, config, net.placement == "stream", tokens[: phases.captured], test, work / f"rank{team.rank}",
        team.device, left,
    )  # fmt: skip
    for i, what_it_sees in seen:
        what = f"layer {i} of {config.num_hidden_layers}"
        distill_layer(what_it_sees, files[i], reporter(what, phases.modules.steps, say))
        files[i].finish(*what_it_sees.errors(files[i].params(), net))
        say(f"{what}: relative error {files[i].errors()[0]:.4f} held out, {files[i].errors()[1]:.4f} by rows")
    team.wait()
    modules = assembled(tensors, {i: file.params() for i, file in enumerate(files)})
    healed = distill_model(
        tensors, modules, tokens, config, net, phases, team, f"phase 2, {about}", work / "model", parts,
        reporter("model", phases.model.steps, say if team.leads else lambda line: None),
    )  # fmt: skip
    errors, row_errors = zip(*(file.errors() for file in files), strict=True)
    return Distilled(modules, {**modules, **healed.params}, list(errors), list(row_errors))


@dataclass(frozen=True)
class LayerFile:
    """The state file of a layer's training, and beside it, once that is over, its held-out errors."""

    file: Path
    net: DLRConfig
    phases: Phases
    about: str

    def params(self) -> dict[str, NDArray[Any]]:
        """The trained network. Raises CheckpointError where the file is missing or another training's."""
        if not self.file.exists():
            raise CheckpointError(f"{self.file}: missing; all processes must share the directory it lies in")
        like = {n: np.zeros(shape, np.float32) for n, shape in dlrnet.expected_tensors(self.net).items()}
        return load_state(self.file, State(0, like, like, like), mark_of(self.phases.modules, self.about, like)).params

    def finished(self) -> bool:
        """Whether the layer needs nothing more. Raises CheckpointError where the file is another training's."""
        return self._said.exists() and bool(self.params())

    def finish(self, *errors: float) -> None:
        """Notes the errors, whole or not at all."""
        temporary = self._said.with_name(f".{self._said.name}.tmp")
        temporary.write_text(json.dumps({"errors": errors}), encoding="utf-8")
        os.replace(temporary, self._said)

    def errors(self) -> tuple[float, float]:
        """Held-out errors of phase 1: of all rows together, and the mean over rows."""
        together, by_rows = parse_object(self._said, self._said.read_bytes())["errors"]
        return float(together), float(by_rows)

    @property
    def _said(self) -> Path:
        return self.file.with_name(f"{self.file.name}.json")


def distill_layer(seen: Seen, result: LayerFile, follow: Follow) -> State:
    """Phase 1 for one MLP, as `distillation.distill_module`: the mean over rows of ‖net(x) − y‖² / ‖y‖²."""
    net, recipe = DLRNet(result.net).to(seen.device), result.phases.modules
    start = dlr_student(result.net).start(np.random.default_rng(recipe.seed), np.float32)

    def gradient(params: Parameters, step: int) -> tuple[float, Parameters]:
        rng = np.random.default_rng([recipe.seed, step])
        x, y = seen.pair(rng.integers(0, seen.train, min(result.phases.activations, seen.train)))
        gap = (functional_call(net, params, x) - y).pow(2).sum(-1)
        size = added(x, y, result.net).pow(2).sum(-1).clamp(min=torch.finfo(y.dtype).tiny)
        value = (gap / size).mean()
        return float(value.detach()), gradients(value, params)

    return train(gradient, start, recipe, seen.device, about=result.about, file=result.file, follow=follow)


def distill_model(
    tensors: Tensors, modules: Tensors, tokens: NDArray[Any], config: Qwen3Config, net: DLRConfig, phases: Phases,
    team: Team, about: str, file: Path, parts: int, follow: Follow,
) -> State:  # fmt: skip
    """Phase 2, as `distillation.distill_model`: the networks of `modules` together, everything else frozen."""
    teacher = build(config, tensors, device=team.device).requires_grad_(False)
    student = build(config, modules, net, device=team.device).requires_grad_(False)
    shared = dict(teacher.named_parameters())
    for name, p in student.named_parameters():
        if name in shared:
            p.data = shared[name].data  # one copy of what both have
    start = {n: w for n, w in modules.items() if f".{PREFIX}" in n}

    def gradient(params: Parameters, step: int) -> tuple[float, Parameters]:
        rng = np.random.default_rng([phases.model.seed, step])
        chosen = tokens[rng.integers(0, len(tokens), phases.tokens)]
        pieces = torch.from_numpy(chosen).to(team.device).chunk(parts)

        def part(k: int) -> Tensor:
            value = divergence(student, params, teacher, pieces[k]) / parts
            found = gradients(value, params)
            return torch.cat([*(found[n].flatten() for n in params), value.detach()[None]])

        total = team.ordered_sum(part, parts)
        split = torch.split(total[:-1], [p.numel() for p in params.values()])
        return float(total[-1]), {n: g.view_as(p) for (n, p), g in zip(params.items(), split, strict=True)}

    return train(
        gradient, start, phases.model, team.device, about=about, file=file, follow=follow, writes=team.leads
    )  # fmt: skip


def divergence(student: nn.Module, params: Parameters, teacher: nn.Module, batch: Tensor) -> Tensor:
    """Mean over positions of KL(teacher ‖ student) of the next token, in nats."""
    with torch.no_grad():
        log_p = functional.log_softmax(teacher(batch, use_cache=False).logits, dim=-1)
    got = functional_call(student, params, (batch,), {"use_cache": False}).logits
    each = functional.kl_div(functional.log_softmax(got, dim=-1), log_p, reduction="none", log_target=True)
    return each.sum(-1).mean()


@torch.no_grad()
def mean_loss(
    tensors: Tensors, config: Qwen3Config, net: DLRConfig | None, rows: NDArray[Any], device: torch.device
) -> float:
    """Mean −ln p(next token) in nats over rows of tokens (B, T), a few rows at a time."""
    model = build(config, tensors, net, device=device)
    total = 0.0
    for at in range(0, len(rows), BATCH):
        batch = torch.from_numpy(rows[at : at + BATCH]).to(device)
        got = logits(model, batch[:, :-1])
        total += float(functional.cross_entropy(got.flatten(0, 1), batch[:, 1:].flatten())) * len(batch)
    return total / len(rows)


def digest(*arrays: NDArray[Any]) -> str:
    """SHA-256 of arrays: dtypes, shapes, bytes."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
