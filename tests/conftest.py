"""Claims made up for the tests of the audit, and tiny random models that hide no mistake."""

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from threadpoolctl import threadpool_limits

from lockproofs.claim import (
    BadInput,
    Check,
    Claim,
    Context,
    Control,
    Controls,
    Counterexample,
    Curve,
    Deviation,
    Evidence,
    Grade,
    MissingInput,
    Plot,
    Source,
    Verdict,
)
from lockproofs.subject import Subject
from lockref.models import qwen3
from lockref.models.checkpoint_io import Checkpoint, FileRecord
from lockref.models.qwen3 import Qwen3Config, expected_tensors

# NumPy's and torch's thread pools slow each other down when they share a process: one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for what is loaded later, and for processes that tests start


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


Registry = dict[str, Claim]


def _check(value: float = 0.5, **changes: Any) -> Check:
    given: dict[str, Any] = {
        "name": "distance",
        "statistic": "max |x − y|",
        "unit": "1",
        "value": value,
        "bound": 1.0,
        "tolerance": 2.0**-52,
        "tolerance_from": "one rounding",
        "cases": 3,
    }
    return Check(**(given | changes))


def _controls(power: bool = True, null: bool = True) -> Controls:
    return Controls(
        power=Control(what="planted lock", passed=power, value=9.0, bound=1.0, unit="nats"),
        null=Control(what="random weights", passed=null, value=0.0, bound=1.0, unit="nats"),
    )


def _holds(context: Context) -> Evidence:
    """Draws numbers and compares them; <b>not</b> bold, [red]not red[/red]."""
    x = context.rng(1).random(context.cases)
    curves = [
        Curve(name=name, x=[1.0, 10.0, 100.0], y=[k * 1e-12, math.nan, k * 3.0])
        for k, name in enumerate(("zero", "one & only", "two"))
    ]
    return Evidence(
        verdict=Verdict.HOLDS,
        grade=Grade.TESTED,
        explanation="It holds: 1 < 2 & 2 > 1.",
        checks=[_check(float(x.max()), cases=context.cases, seed=context.seed)],
        assumptions=["the sun rises"],
        deviations=[Deviation(paper_says="a", we_do="b", why="c", effect="d|e")],
        plots=[Plot(title="A <plot>", x_label="x", y_label="y", x_log=True, y_log=True, curves=curves)],
    )


def _holds_if(context: Context) -> Evidence:
    """Looks on both sides of the condition."""
    return Evidence(
        verdict=Verdict.HOLDS_IF,
        grade=Grade.MEASURED,
        condition="x > 0",
        explanation="Only on one side.",
        checks=[_check(), _check(5.0, name="other side", sense=">=", seed=context.seed)],
        controls=_controls(),
        severity="medium",
        fix="stay on one side",
    )


def _square(given: dict[str, Any]) -> str:
    return f"{np.square(given['x']).sum()}"


def _refuted(context: Context) -> Evidence:
    """Squares the numbers."""
    given = {"x": [[1.0, 2.0], [3.0, 4.0]]}
    return Evidence(
        verdict=Verdict.REFUTED,
        grade=Grade.PROVED,
        explanation="The sum of squares is not 10.",
        checks=[_check(30.0, sense=">=")],
        counterexample=Counterexample(
            given=given, got=_square(given), want="10.0", by_hand="1 + 4 + 9 + 16 = 30\n30 ≠ 10"
        ),
    )


def _undecided(context: Context) -> Evidence:
    """Cannot say."""
    return Evidence(verdict=Verdict.UNDECIDED, grade=Grade.MEASURED, explanation="Nobody knows.", checks=[_check()])


def _crashes(context: Context) -> Evidence:
    raise ZeroDivisionError("a division\nby zero")


def _lacks(context: Context) -> Evidence:
    raise MissingInput("needs --base")


def _bad_input(context: Context) -> Evidence:
    raise BadInput("data.txt: no such file: give another")


def _interrupted(context: Context) -> Evidence:
    raise KeyboardInterrupt


def _claim(
    claim_id: str,
    check: Callable[[Context], Evidence],
    recorded: Verdict,
    rerun: Callable[[dict[str, Any]], str] | None = None,
    **changes: Any,
) -> Claim:
    given: dict[str, Any] = {
        "id": claim_id,
        "title": f"a claim that {check.__name__.strip('_').replace('_', ' ')}",
        "statement": "for all [x], <i>x</i> = x",
        "source": Source(paper="arXiv 0000.00000", where="eq. (1)"),
        "kind": "theorem",
        "recorded": recorded,
        "would_change": "a different world",
        "check": check,
        "rerun": rerun,
    }
    return Claim(**(given | changes))


@pytest.fixture
def make_claim() -> Callable[..., Claim]:
    """Builds a claim around a check."""
    return _claim


@pytest.fixture
def make_check() -> Callable[..., Check]:
    """Builds a check that passes, unless told otherwise."""
    return _check


@pytest.fixture
def make_controls() -> Callable[..., Controls]:
    """Builds a pair of controls."""
    return _controls


@pytest.fixture
def decided() -> Registry:
    """One claim for each verdict, each as recorded."""
    claims = [
        _claim("X-HOLDS", _holds, Verdict.HOLDS),
        _claim("X-IF", _holds_if, Verdict.HOLDS_IF, kind="security"),
        _claim("X-REFUTED", _refuted, Verdict.REFUTED, _square),
        _claim("X-UNDECIDED", _undecided, Verdict.UNDECIDED),
    ]
    return {claim.id: claim for claim in claims}


@pytest.fixture
def registry(decided: Registry) -> Registry:
    """The same, and a claim that crashes and one that lacks an input."""
    more = [_claim("X-CRASH", _crashes, Verdict.HOLDS), _claim("X-LACKS", _lacks, Verdict.UNDECIDED)]
    return decided | {claim.id: claim for claim in more}


@pytest.fixture
def stops() -> Registry:
    """Claims that end the whole audit: bad input, and an impatient user."""
    claims = [_claim("X-BAD", _bad_input, Verdict.HOLDS), _claim("X-STOP", _interrupted, Verdict.HOLDS)]
    return {claim.id: claim for claim in claims}


@pytest.fixture
def subject() -> Subject:
    """A subject of one small checkpoint that claims to be embedded."""
    return Subject({"subject": _checkpoint("model"), "expert:one": _checkpoint("one")}, True)


def _checkpoint(name: str) -> Checkpoint:
    return Checkpoint(
        path=Path("somewhere") / name,
        config=None,
        tensors={"a": np.zeros((2, 3)), "b": np.zeros(4)},
        dtypes={"a": "BF16", "b": "F32"},
        files=[FileRecord(name="model.safetensors", sha256="0" * 64, bytes=28)],
    )


Weights = dict[str, np.ndarray[Any, Any]]


def _tiny_qwen3(tied: bool = False, seed: int = 0) -> tuple[Qwen3Config, Weights]:
    config = Qwen3Config(
        vocab_size=61,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=6,  # 3 heads for each of 2 keys: h // 3 and h % 2 differ
        num_key_value_heads=2,
        head_dim=10,
        rope_theta=10000.0,
        tie_word_embeddings=tied,
    )
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in expected_tensors(config).items():
        w = rng.uniform(0.3, 2.0, shape) if len(shape) == 1 else rng.normal(0, shape[1] ** -0.5, shape)
        weights[name] = w.astype(ml_dtypes.bfloat16).astype(np.float64)  # so that each dtype saves it exactly
    return config, weights


def _write_qwen3(path: Path, config: Qwen3Config, weights: Weights, dtype: str = "bfloat16", shards: int = 1) -> Path:
    path.mkdir()
    sizes = {k: v for k, v in vars(config).items() if k != "rope_theta"}
    rope = {"rope_theta": config.rope_theta, "rope_type": "default"}
    hub = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu", **sizes}
    (path / "config.json").write_text(json.dumps(hub | {"rope_parameters": rope, "dtype": dtype}))
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    files = {name: names[i % shards] for i, name in enumerate(weights)}
    if shards == 1:
        names = ["model.safetensors"]
        files = dict.fromkeys(weights, names[0])
    else:
        index = {"metadata": {"total_size": 0}, "weight_map": files}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in names:
        part = {k: np.ascontiguousarray(w.astype(dtype)) for k, w in weights.items() if files[k] == name}
        save_file(part, path / name, metadata={"format": "pt"})
    return path


@pytest.fixture(scope="session")
def tiny_qwen3() -> Callable[..., tuple[Qwen3Config, Weights]]:
    """(tied=False, seed=0) -> config and float64 weights: random gains, G < H, nothing square."""
    return _tiny_qwen3


@pytest.fixture(scope="session")
def write_qwen3() -> Callable[..., Path]:
    """Writes a model directory as the hub's own library does, in one file or in shards with an index."""
    return _write_qwen3


def _block_with_rope_before_norm(w: Weights, x: Any, config: Qwen3Config) -> Any:
    plain = w | {f"self_attn.{s}_norm.weight": np.ones(config.head_dim) for s in "qk"}
    q, k, v = qwen3.queries_keys_values(plain, qwen3.attention_norm(w, x, config), config)
    q, k = (qwen3.rotate(y, config) * w[f"self_attn.{s}_norm.weight"] for s, y in (("q", q), ("k", k)))
    x = x + qwen3.attend(q, k, v) @ w["self_attn.o_proj.weight"].T
    return x + qwen3.mlp(w, qwen3.mlp_norm(w, x, config))


def _edited(suffixes: tuple[str, ...], edit: Callable[..., Any]) -> Callable[..., Any]:
    """The model with `edit(tensor, config)` in place of every tensor whose name ends so."""

    def run(weights: Weights, tokens: Any, config: Qwen3Config) -> Any:
        changed = {n: edit(w, config).astype(w.dtype) if n.endswith(suffixes) else w for n, w in weights.items()}
        return qwen3.forward(changed, tokens, config)

    return run


def _interleaved(w: Any, config: Qwen3Config) -> Any:
    """Rotating these rows in halves turns the pairs (2i, 2i + 1) of the given ones."""
    heads = w.reshape(-1, config.head_dim, *w.shape[1:])
    return np.concatenate((heads[:, ::2], heads[:, 1::2]), axis=1).reshape(w.shape)


def _dealt_in_turn(w: Any, config: Qwen3Config) -> Any:
    """Query heads in the order in which head h meets key head h mod G, not h div (H / G)."""
    h, g = config.num_attention_heads, config.num_key_value_heads
    order = np.arange(h).reshape(-1, g).T.reshape(-1)
    if w.shape[0] == h * config.head_dim:
        return w.reshape(h, config.head_dim, -1)[order].reshape(w.shape)
    return w.reshape(-1, h, config.head_dim)[:, order].reshape(w.shape)


def _configured(change: Callable[[Qwen3Config], Qwen3Config]) -> Callable[..., Any]:
    return lambda weights, tokens, config: qwen3.forward(weights, tokens, change(config))


@pytest.fixture(scope="session")
def qwen3_mutants() -> dict[str, Callable[..., Any]]:
    """Plausible mistakes, each a function (weights, tokens, config) -> logits."""
    return {
        "RoPE before QK-norm": lambda w, t, c: qwen3.forward(w, t, c, _block_with_rope_before_norm),
        "QK-norm without gains": _edited(("q_norm.weight", "k_norm.weight"), lambda w, c: np.ones_like(w)),
        "norms without gains": _edited(("layernorm.weight", "model.norm.weight"), lambda w, c: np.ones_like(w)),
        "interleaved RoPE": _edited(("q_proj.weight", "k_proj.weight", "q_norm.weight", "k_norm.weight"), _interleaved),
        "heads dealt in turn": _edited(("q_proj.weight", "o_proj.weight"), _dealt_in_turn),
        "scores not scaled": _edited(("q_norm.weight",), lambda w, c: w * c.head_dim**0.5),
        "MLP dropped": _edited(("down_proj.weight",), lambda w, c: 0 * w),
        "RoPE base off by 1 %": _configured(lambda c: replace(c, rope_theta=1.01 * c.rope_theta)),
        "eps of 1e-5": _configured(lambda c: replace(c, rms_norm_eps=1e-5)),
    }
