"""Closed forms for what a reverse pass keeps, in elements and bytes; the ledger counts the same by running.

Conventions of the ledger (`lockref.autodiff.saved`): inputs and parameters are owned elsewhere, every
other buffer counts once however many rules or views look at it. Nothing here runs a network.
"""

from collections.abc import Set
from dataclasses import dataclass
from typing import Final, Self

from lockref.models.dlrnet import DLRConfig

SWIGLU_WEIGHTS: Final = frozenset({"gate", "up", "down"})
DLR_WEIGHTS: Final = frozenset({"a", "b", "gain"})
KEEPS_OUTPUT: Final = frozenset({"relu", "tanh"})  # their derivative is a function of the output alone


@dataclass(frozen=True)
class Storage:
    """Elements kept: so many for every token, and so many once (weights that were combined on the way)."""

    per_token: int
    fixed: int = 0

    def __add__(self, other: Self) -> "Storage":
        return Storage(self.per_token + other.per_token, self.fixed + other.fixed)

    def __mul__(self, times: int) -> "Storage":
        return Storage(self.per_token * times, self.fixed * times)

    def bytes(self, tokens: int, itemsize: int) -> int:
        """Exact bytes for a number of tokens and an element size, all arrays of one dtype."""
        return (self.per_token * tokens + self.fixed) * itemsize


def swiglu(mlp_width: int, *, fused: bool, trains: Set[str] = SWIGLU_WEIGHTS, input_gradient: bool = True) -> Storage:
    """SwiGLU y = (silu(z) ∘ u) W_downᵀ, z = x W_gateᵀ, u = x W_upᵀ: 4m eager, 3m fused, 3m and 2m frozen.

    Without the input x, which is owned elsewhere. `trains` names the weights that need a gradient;
    `input_gradient` says whether x needs one.
    """
    _require_known("swiglu", trains, SWIGLU_WEIGHTS)
    z, u = input_gradient or "gate" in trains, input_gradient or "up" in trains
    # z's cotangent reads z and u; u's reads silu(z), which the fused rule computes from z again
    inner = (z or u) + z if fused else z + z + u
    return Storage(mlp_width * (inner + ("down" in trains)))


def dlr(config: DLRConfig, *, fused: bool, trains: Set[str] = DLR_WEIGHTS, input_gradient: bool = True) -> Storage:
    """A DLR-Net of depth L: S = first block + (L − 1) · any later block, without the input x_0.

    `trains` names the kinds of weights that need a gradient ("gain" says nothing where there is none);
    `input_gradient` says whether x_0 needs one. Eager, all training, silu, no norm: L(d + 2r) − d.
    """
    first, later = dlr_blocks(config, fused=fused, trains=trains, input_gradient=input_gradient)
    return first + later * (config.depth - 1)


def dlr_blocks(
    config: DLRConfig, *, fused: bool, trains: Set[str] = DLR_WEIGHTS, input_gradient: bool = True
) -> tuple[Storage, Storage]:
    """What the first and what each later block of a DLR-Net keeps.

    They differ twice: the first block's x is owned elsewhere, and needs a gradient only if the network's
    input does; a later x also needs one as soon as any weight before it trains.
    """
    _require_known("dlr", trains, DLR_WEIGHTS)
    kinds = trains if config.norm == "rms_gain" else trains - {"gain"}
    block = _fused_block if fused else _eager_block
    first = block(config, kinds, live=input_gradient, x_columns=0)
    later = block(config, kinds, live=input_gradient or bool(kinds), x_columns=config.width)
    return first, later


def _eager_block(config: DLRConfig, trains: Set[str], *, live: bool, x_columns: int) -> Storage:
    """One line for each buffer; `live` says whether x needs a gradient."""
    d, r, normed = config.width, config.rank, config.norm != "none"
    hidden_live = live or "a" in trains or "gain" in trains
    per_token = 0
    if normed:
        per_token += (x_columns + 1) * live  # x and 1/rms, for the norm's two products
        per_token += d * ("gain" in trains)  # x/rms
        per_token += d * ("a" in trains)  # A's input
    else:
        per_token += x_columns * ("a" in trains)
    if config.activation in KEEPS_OUTPUT:
        per_token += r * (hidden_live or "b" in trains)  # σ(h), for σ and for B: one buffer
    else:
        per_token += r * hidden_live + r * ("b" in trains)  # h for σ, σ(h) for B
    return Storage(per_token)


def _fused_block(config: DLRConfig, trains: Set[str], *, live: bool, x_columns: int) -> Storage:
    """Keeps h, never σ(h); 1/rms is one column."""
    r, normed = config.rank, config.norm != "none"
    weight_in = "a" in trains or "gain" in trains  # the gain is folded into A
    reads_x = weight_in or (normed and live)
    per_token = x_columns * reads_x + (normed and reads_x) + r * (live or bool(trains))
    folded = r * config.width if config.norm == "rms_gain" and live else 0
    return Storage(per_token, folded)


def _require_known(where: str, trains: Set[str], known: Set[str]) -> None:
    if unknown := trains - known:
        raise ValueError(
            f"storage.{where}: no weight called {', '.join(sorted(unknown))}; choose from {', '.join(sorted(known))}"
        )
