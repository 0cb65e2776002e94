"""Closed forms for what a reverse pass keeps, in elements and bytes; the ledger counts the same by running.

Conventions of the ledger (`lockref.autodiff.saved`): inputs and parameters are owned elsewhere, every
other buffer counts once however many rules or views look at it. Nothing here runs a network.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Final, Self

from lockref.autodiff.schedules import Action, Drop, Pull, Record, Save
from lockref.models.dlrnet import DLRConfig
from lockref.models.qwen3_config import Qwen3Config

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


def dlr_inverted(config: DLRConfig, segments: int = 1) -> Storage:
    """A DLR-Net differentiated by h-only inversion: S d + r ⌈L/S⌉ for S segments, whatever norm and activation.

    One segment keeps h of every block and the last state. More of them keep the state before each but the
    first, which is owned elsewhere; the sweep then holds h and the last state of one segment at a time.
    """
    if not 1 <= segments <= config.depth:
        raise ValueError(f"storage.dlr_inverted: {segments} segments of {config.depth} blocks; take 1 … {config.depth}")
    return Storage(segments * config.width + config.rank * -(-config.depth // segments))


def dlr_scheduled(config: DLRConfig, actions: Sequence[Action], *, group: int = 1, inverted: bool = False) -> Storage:
    """The most that a checkpoint schedule over groups of blocks holds at once, without x_0 and the state at hand.

    Step i of the schedule is blocks i·group … (i+1)·group − 1, all weights training, fused; with `inverted`
    a recorded step keeps h of its blocks and its last state, otherwise what default reverse mode keeps.
    """
    folded = config.rank * config.width * group * (config.norm == "rms_gain") * (not inverted)
    column = config.rank + (config.norm != "none" and not inverted)
    most = 0
    for slots, records in held(actions):
        # one array for each state, whether slots or records refer to it; x_0 is owned elsewhere
        states = (slots | records | ({i + 1 for i in records} if inverted else set())) - {0}
        blocks = [min(group, config.depth - i * group) for i in records]
        inner = 0 if inverted else sum(blocks) - len(blocks)
        most = max(most, (len(states) + inner) * config.width + sum(blocks) * column)
    return Storage(most, folded)


def held(actions: Sequence[Action]) -> Iterator[tuple[set[int], set[int]]]:
    """After each action of a schedule: the states in slots, and the steps that are recorded."""
    slots: set[int] = set()
    records: set[int] = set()
    for action in actions:
        match action:
            case Save(i):
                slots.add(i)
            case Drop(i):
                slots.remove(i)
            case Record(i):
                records.add(i)
            case Pull(i):
                records.remove(i)
        yield slots, records


def qwen3_attention(config: Qwen3Config, *, trains: bool = True) -> Storage:
    """Norm, attention and addition of one layer, with the stream x that enters: H > 1 heads, more than one token.

    x, its 1/rms, q and k before their norms and rotated, v, the result and ln Σ e^score of every head; where the
    weights train also the normed stream and the heads side by side.
    """
    d, c = config.hidden_size, config.head_dim
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    always = d + 1 + heads * (3 * c + 2) + groups * (3 * c + 1)
    return Storage(always + (d + heads * c) * trains)


def qwen3_mlp_norm(config: Qwen3Config, *, keeps_output: bool) -> Storage:
    """The stream that enters a layer's MLP norm and its 1/rms; d more where the MLP keeps what it reads."""
    return Storage(config.hidden_size * (1 + keeps_output) + 1)


def qwen3_forward(config: Qwen3Config) -> Storage:
    """The most that one forward pass holds at once without a tape: max(V + 2d, 3d + 4m, 2d + (4H + 3G) c) a token.

    The head holds logits, stream and normed stream; a layer's MLP the stream twice, its norm, both pre-activations and
    two arrays of silu's; its attention the stream, its norm, and heads before and after norm, RoPE and transposition.
    Weights are owned elsewhere; scores come in tiles, which are not counted, nor are RoPE's tables (T, c).
    """
    return Storage(max(config.vocab_size + 2 * config.hidden_size, qwen3_layer(config).per_token))


def qwen3_layer(config: Qwen3Config) -> Storage:
    """The part of `qwen3_forward` that one layer holds."""
    d, m, c = config.hidden_size, config.intermediate_size, config.head_dim
    heads = 4 * config.num_attention_heads + 3 * config.num_key_value_heads
    return Storage(max(3 * d + 4 * m, 2 * d + heads * c))
