"""The loss landscape around a model: curvature by Lanczos on Hessian-vector products, and how gradients travel.

Plain curvature λ_max(H) says nothing by itself: rescaling weights without changing the function changes it at will. For
f(a, b) = (a b − 2)²/2 at a b = 2 the function does not see a ← c a, b ← b/c, but H = [[b², 2], [2, a²]] has
λ_max = a² + b². Relative curvature λ_max(D H D), D = diag |w|, measures steps in units of each weight (adaptive
sharpness, Kwon et al., arXiv 2102.11600): D H D = [[4, 4], [4, 4]] at every c, λ_max = 8.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lockref.attacks.finetune import ATTENTION, MLP, Model, answer_loss
from lockref.attacks.lanczos import Spectrum, Vector, lanczos
from lockref.autodiff import grad, hvp, ops
from lockref.models import qwen3
from lockref.models.answers import Answers

METRICS: Final = ("plain", "relative")


def curvature(
    f: Callable[[Any], Any], params: Mapping[str, NDArray[Any]], metric: str, steps: int, rng: np.random.Generator
) -> Spectrum:
    """Spectrum of the Hessian H of f ("plain"), or of D H D with D = diag |w| ("relative"), at float64 weights."""
    if metric not in METRICS:
        raise ValueError(f"curvature: metric {metric!r} is unknown; choose from {', '.join(METRICS)}")
    point = {name: np.asarray(w, np.float64) for name, w in params.items()}
    flat = np.concatenate([w.ravel() for w in point.values()])
    scale = np.abs(flat) if metric == "relative" else np.ones_like(flat)
    along = hvp(f)

    def product(v: Vector) -> Vector:
        found = along(point, _unflattened(scale * v, point))
        return np.asarray(scale * np.concatenate([np.ravel(found[name]) for name in point]))

    return lanczos(product, flat.size, min(steps, flat.size), rng)


def _unflattened(flat: Vector, like: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    ends = np.cumsum([w.size for w in like.values()])[:-1]
    return {n: part.reshape(w.shape) for (n, w), part in zip(like.items(), np.split(flat, ends), strict=True)}


@dataclass(frozen=True)
class Flow:
    """Norms of the gradient of one loss.

    `stream[i]`: with respect to the residual stream before layer i, the last one after all layers. `attention`, `mlp`:
    root mean square over those weights.
    """

    stream: tuple[float, ...]
    attention: float
    mlp: float

    @property
    def amplification(self) -> float:
        """How much larger the gradient is where it leaves the layers, going backward, than where it enters them."""
        return self.stream[0] / self.stream[-1]


def gradient_flow(model: Model, given: Answers) -> Flow:
    """The gradient of the answer loss on its way back: additions of zero to the stream read it off."""
    shape = (len(given.tokens), given.tokens.shape[1] - 1, model.config.hidden_size)
    layers = model.config.num_hidden_layers
    zeros = {str(i): np.zeros(shape, next(iter(model.tensors.values())).dtype) for i in range(layers + 1)}

    def loss(tensors: Mapping[str, Any], probes: Mapping[str, Any]) -> Any:
        x = ops.add(qwen3.embed(tensors, given.tokens[:, :-1], model.config), probes["0"])
        for i in range(layers):
            x = ops.add(model.block(qwen3.layer_weights(tensors, i), x, model.config), probes[str(i + 1)])
        logits = qwen3.head(tensors, x, model.config)
        return ops.cross_entropy(logits[given.at], targets=given.targets)

    weights, stream = grad(loss, (0, 1))(dict(model.tensors), zeros)
    return Flow(tuple(float(np.linalg.norm(g)) for g in stream.values()), _rms(weights, ATTENTION), _rms(weights, MLP))


def _rms(gradients: Mapping[str, Any], part: str) -> float:
    chosen = [g for name, g in gradients.items() if part in name]
    return float(np.sqrt(sum(np.sum(g * g) for g in chosen) / sum(g.size for g in chosen)))


def model_curvature(model: Model, given: Answers, metric: str, steps: int, rng: np.random.Generator) -> Spectrum:
    """`curvature` of the answer loss with respect to all tensors of a model."""
    return curvature(lambda tensors: answer_loss(model, tensors, given), model.tensors, metric, steps, rng)
