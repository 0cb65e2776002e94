"""The benchmarks compare like with like: every engine computes the same value and gradients as lockref."""

import json
from dataclasses import replace

import numpy as np
import pytest
from benchmarks import __main__ as command
from benchmarks import report
from benchmarks.engines import ENGINES, Autograd, Lockref, Products, Steps, version
from benchmarks.worker import Worker
from benchmarks.workloads import WORKLOADS, Problem

from lockref import autodiff

PEERS = [n for n, e in ENGINES.items() if n not in ("lockref", "products") and version(e.package)]
ROUNDINGS = 16  # per recorded operation, beside its sums: no step of any engine rounds one number more often


def outcome(engine):
    """Value and gradients as NumPy arrays."""
    value, gradients = engine.both()
    return [np.asarray(x) for x in (value, *gradients)]


def tolerances(workload):
    """Relative normwise error that two right answers may show, per array: roundings × conditioning × eps.

    Each rounding acts like a relative perturbation of an intermediate result; what such perturbations do
    to each array is measured, in float64, by perturbing every leaf and dividing by the perturbation.
    """
    problem = workload.problem(0, tiny=True, dtype="float64")
    tape = autodiff.vjp(Lockref(problem).function, problem.leaves)[1].tape
    sums = sum(x.shape[-2] + x.shape[-1] + y.shape[-1] for x, y, _ in Products(problem).ahead)
    base, size, rng = outcome(Lockref(problem)), 1e-6, np.random.default_rng(1)
    conditioning = np.ones(len(base))
    for _ in range(5):
        leaves = [x * (1 + size * rng.choice((-1, 1), x.shape)) for x in problem.leaves]
        moved = outcome(Lockref(Problem(problem.function, leaves, problem.constants, problem.cotangent)))
        conditioning = np.maximum(conditioning, [relative(a, b) / size for a, b in zip(moved, base, strict=True)])
    return (ROUNDINGS * len(tape.records) + sums) * conditioning * np.finfo(workload.dtype).eps


def relative(got, want):
    return np.linalg.norm(got.astype(float) - want) / np.linalg.norm(want)


def complaints(engine, workload):
    """Where an engine's outcome differs from lockref's."""
    want = outcome(Lockref(workload.problem(0, tiny=True)))
    got = outcome(engine)
    lines = []
    for i, (g, w, tolerance) in enumerate(zip(got, want, tolerances(workload), strict=True)):
        what = f"{workload.name}, {engine.name}, " + (f"gradient of leaf {i - 1}" if i else "value")
        if g.shape != w.shape or g.dtype != w.dtype:
            lines.append(f"{what}: got {g.dtype}{g.shape}, want {w.dtype}{w.shape}")
        elif not relative(g, w) <= tolerance:
            lines.append(f"{what}: relative error {relative(g, w):.2e}, tolerance {tolerance:.2e}")
    return lines


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("engine", PEERS)
def test_engines_compute_the_same(engine, name):
    workload = WORKLOADS[name]
    assert complaints(ENGINES[engine](workload.problem(0, tiny=True)), workload) == []


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("engine", PEERS)
def test_forward_is_the_value_of_both(engine, name):
    runner = ENGINES[engine](WORKLOADS[name].problem(0, tiny=True))
    np.testing.assert_allclose(np.asarray(runner.forward()), outcome(runner)[0], rtol=1e-5)


class ReversedRope(Steps):
    def rope(self, x, cos, sin):
        return super().rope(x, cos, -sin)


class FullAttention(Steps):
    def attention(self, q, k, v, mask):
        return super().attention(q, k, v, 0 * np.isfinite(mask))


class SwappedHeads(Steps):
    def attention(self, q, k, v, mask):
        return super().attention(q, k[::-1], v[::-1], mask)


class NoGain(Steps):
    def rms_norm(self, x, gain):
        return self.normalize(x) + 0 * gain


class WrongSlope(Steps):
    def silu(self, x):
        return x / (1 + self.xp.exp(-1.001 * x))


@pytest.mark.parametrize("steps", [ReversedRope, FullAttention, SwappedHeads, NoGain, WrongSlope])
def test_a_different_workload_is_rejected(steps):
    workload = replace(WORKLOADS["qwen3-block"], dtype="float64")
    engine = Autograd(workload.problem(0, tiny=True))
    engine.steps = steps(engine.steps.xp)
    assert complaints(engine, workload)


def test_floor_holds_every_product_forward_and_backward():
    problem = WORKLOADS["mlp"].problem(0, tiny=True)
    products = Products(problem)
    assert len(products.ahead) == 3
    assert [out.shape for *_, out in products.back[::2]] == [x.shape for x, *_ in products.ahead]
    assert [out.shape for *_, out in products.back[1::2]] == [y.shape for _, y, _ in products.ahead]
    assert Products(WORKLOADS["scalar-chain"].problem(0, tiny=True)).ahead == []


def test_run_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ENGINES["jax"], "package", "no-such-package")
    monkeypatch.setattr(command, "DOCS", tmp_path / "benchmarks.md")
    (tmp_path / "benchmarks.md").write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    names = ["lockref", "torch", "jax", "products"]  # one of them is missing, and the chain has no products
    engines = [part for name in names for part in ("--engine", name)]
    out = tmp_path / "out.json"
    workloads = ["--workload", "mlp", "--workload", "scalar-chain"]
    assert command.main(["--quick", *workloads, *engines, "--json", str(out), "--write-docs"]) == 0
    found = json.loads(out.read_text())["workloads"]
    assert found["scalar-chain"]["engines"]["products"] == {"note": "not measured: no matrix products here"}
    rows = found["mlp"]["engines"]
    assert list(rows) == names
    assert rows["jax"] == {"note": "not measured: no-such-package is not installed"}
    for name in ("lockref", "torch", "products"):
        assert all(len(rows[name][mode]) == 3 and min(rows[name][mode]) > 0 for mode in report.MODES)
    # gradients of all leaves are alive at the end; nothing tiny comes near a megabyte
    gradients = sum(x.nbytes for x in WORKLOADS["mlp"].problem(0, tiny=True).leaves)
    assert all(gradients <= rows[name]["memory"]["peak"] < 1e6 for name in ("lockref", "torch"))
    text = (tmp_path / "benchmarks.md").read_text()
    assert text == f"before\n{report.BEGIN}\n{capsys.readouterr().out}{report.END}\nafter\n"
    assert not list(tmp_path.glob("*.new"))


def test_worker_that_fails_says_why():
    worker = Worker("lockref", "mlp", seed=0, threads=1, tiny=True, keep_pages=True)
    with pytest.raises(RuntimeError, match="has no attribute 'nonsense'"):
        worker.ask("nonsense")
    worker.close()


def synthetic(subject, other):
    rows = {
        "lockref": {"forward": subject, "both": subject, "memory": {"peak": 2**20, "stored": 2**19}},
        "torch": {"forward": other, "both": other, "memory": {}},
        "jax": {"note": "not measured"},
    }
    result = {
        "command": "c",
        "cpu": "p",
        "threads": 2,
        "allocator": "keep",
        "rounds": 3,
        "seed": 0,
        "quick": False,
        "versions": {"numpy": "2"},
    }
    return {**result, "workloads": {"scalar-chain": {"title": "t", "engines": rows}}}


def test_table_pairs_the_times_of_a_round():
    # per round 0.5, 0.4, 0.6, though the medians alone would say 0.4
    result = synthetic([0.001, 0.004, 0.003], [0.002, 0.010, 0.005])
    row = next(line for line in report.table(result).splitlines() if line.startswith("| torch"))
    times, ratios = "5.00 (3.50–7.50) | " * 2, "0.50 (0.45–0.55) | " * 2
    assert row == f"| torch eager | {times}{ratios}≤ 0.50 met | not measured |"
    assert "≤ 0.50 missed" in report.table(synthetic([0.0051], [0.01]))
    assert "≤" not in report.table({**result, "quick": True})
    assert "| 1.0 (stored 0.5) |" in report.table(result)
    assert "| JAX, operation by operation | not measured | " in report.table(result)


def test_document_without_markers_is_left_alone(tmp_path):
    path = tmp_path / "benchmarks.md"
    path.write_text("no markers")
    with pytest.raises(ValueError, match="the tables go between lines"):
        report.write_docs(path, synthetic([1], [1]))
    assert path.read_text() == "no markers"
    with pytest.raises(ValueError, match="the tables go between lines"):
        report.write_docs(tmp_path / "absent.md", synthetic([1], [1]))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--rounds", "0"], "'0' is not a whole number of at least 1"),
        (["--threads", "two"], "'two' is not a whole number of at least 1"),
        (["--seed", "-1"], "'-1' is not a whole number of at least 0"),
        (["--engine", "fast"], "invalid choice: 'fast'"),
        (["--json", "/no/such/folder/out.json"], "there is no such folder"),
        (["--write-docs"], "the tables go between lines"),
    ],
)
def test_bad_options_end_before_the_run(options, reason, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "DOCS", tmp_path / "absent.md")
    with pytest.raises(SystemExit, match="2"):
        command.main(["--quick", *options])
    assert reason in capsys.readouterr().err


def test_a_target_below_the_floor_is_called_out_of_reach():
    rows = {"products": {"both": [0.009, 0.008]}}
    assert report.missed(rows, {"both": [0.010, 0.010]}, 0.5) == "out of reach: the bare products take 0.85"
    assert report.missed(rows, {"both": [0.020, 0.020]}, 0.5) == "missed"
    assert report.missed({}, {"both": [0.010]}, 0.5) == "missed"
