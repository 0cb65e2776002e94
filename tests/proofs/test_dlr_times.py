"""Stored times of DLR-Lock: the helpers can be wrong and are seen to be; stored rows come out of running code again."""

from functools import partial
from typing import Any

import numpy as np
import pytest

from lockproofs.claim import MissingInput, Verdict
from lockproofs.claims import dlr, dlr_frontier_time, dlr_latency
from lockproofs.dlr_stacks import peak_bytes
from lockproofs.experiments import dlr_frontier_time as frontier_experiment
from lockproofs.experiments import dlr_inversion_time as inversion_time
from lockproofs.experiments import dlr_latency as latency_experiment
from lockproofs.experiments import store
from lockproofs.timing import Times, quartiles, take_turns
from lockref.models import dlrnet

from .test_claims_dlr_security import failed, find

LATENCY, FRONTIER = (store.stored(name) for name in ("dlr_latency", "dlr_frontier_time"))


def test_everybody_gets_one_turn_in_every_round() -> None:
    calls: list[str] = []
    runs = {name: partial(calls.append, name) for name in "abc"}
    times = take_turns(runs, 5, np.random.default_rng(0))
    timed = [calls[6:][i : i + 3] for i in range(0, 15, 3)]  # two calls of each before, to warm up and to calibrate
    assert all(sorted(turn) == ["a", "b", "c"] for turn in timed) and len(set(map(tuple, timed))) > 1
    assert times.keys() == runs.keys() and all(len(t.wall) == len(t.cpu) == 5 for t in times.values())


def test_short_runs_repeat_within_their_turn() -> None:
    calls: list[int] = []
    take_turns({"short": lambda: calls.append(1)}, 2, np.random.default_rng(0), turn=0.001)
    assert len(calls) > 4


def test_ratios_are_of_the_same_round() -> None:
    slow, fast = (Times(np.array(s), np.array(s)) for s in ([2.0, 4.0, 40.0], [1.0, 2.0, 20.0]))
    assert slow.over(fast) == {"wall": [2.0, 2.0, 2.0], "cpu": 2.0}
    assert quartiles(np.array([1.0, 2.0, 3.0])) == [1.5, 2.0, 2.5]


def test_stored_results_are_of_the_experiments_as_they_stand() -> None:
    for result, module in ((LATENCY, latency_experiment), (FRONTIER, frontier_experiment)):
        experiment = module.EXPERIMENT
        assert (result.command, result.seed) == (experiment.command, experiment.seed)
        cells = [{name: row[name] for name in cell} for row, cell in zip(result.rows, experiment.cells, strict=True)]
        assert cells == list(experiment.cells)
        assert result.settings.keys() == experiment.settings.keys()


def test_a_cell_of_the_latencies_runs_again() -> None:
    """Shapes and names only: what a clock says is never asserted."""
    row = LATENCY.where(size="zoo", norm="rms", tokens=16)[0]
    again = latency_experiment.measure({n: row[n] for n in ("size", "norm", "tokens", "rounds")}, 1, (16,))
    assert again["nets"][0]["rank"] == row["nets"][0]["rank"] == dlrnet.parity(128, 384, 16).rank
    assert again["nets"][0].keys() == row["nets"][0].keys()


def test_memory_of_a_stored_cell_comes_out_again() -> None:
    """The same arrays are allocated again: peaks per token agree to a few Python objects, here a tenth of a column."""
    row = FRONTIER.where(kind="stack", depth=16, norm="rms")[0]
    steps = frontier_experiment.stack_steps(row)
    x = frontier_experiment.draw(np.random.default_rng(0), 8, 128, 128)
    stored_rows = {(a["locked"], a["name"]): a for a in row["attackers"]}
    for locked, name in ((False, "default reverse mode"), (True, "h-only inversion"), (True, "MLPs recomputed")):
        step, closed = steps[name if locked else frontier_experiment.UNLOCKED + name]
        want = stored_rows[locked, name]
        assert closed == want["elements"] == want["memory"]["closed_form"]
        assert abs(frontier_experiment.per_token(step, x) - want["memory"]["measured"]) <= 12.8


def test_a_peak_is_seen_where_there_is_one() -> None:
    def hoards(n: int) -> int:
        return len([np.ones(1000) for _ in range(n)])

    assert peak_bytes(lambda: hoards(50)) - peak_bytes(lambda: hoards(10)) == pytest.approx(40 * 8000, rel=0.05)


def test_chains_of_products_by_hand() -> None:
    w = np.ones((2, 2))
    assert dlr_latency.products(lambda x: (x @ w) + (x @ w) @ w, np.ones((3, 2))) == (3, 2, 3 * 2 * 3 * 2 * 2)
    mine, its = dlr_latency.both_products(4, 12, 6)
    assert mine == (12, 12, 2 * 3 * 4 * 12) and its == (3, 2, 2 * 3 * 4 * 12)


def test_traffic_by_hand() -> None:
    assert dlr_latency.moved(1024, 3072, 48, 1) - dlr_latency.moved(1024, 3072, None, 1) == 156_672 - 14_336


def with_rows(monkeypatch: pytest.MonkeyPatch, module: Any, result: store.Result, change: Any) -> None:
    spoiled = result.model_copy(update={"rows": [change(row) for row in result.model_copy(deep=True).rows]})
    monkeypatch.setattr(module, "stored", lambda name: spoiled)


def test_equal_times_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def equal(row: dict[str, Any]) -> dict[str, Any]:
        nets = [{**net, "over_mlp": {"wall": [1.0, 1.0, 1.0], "cpu": 1.0}} for net in row["nets"]]
        return {**row, "nets": nets}

    with_rows(monkeypatch, dlr_latency, LATENCY, equal)
    found = find(dlr.LATENCY)
    assert found.verdict is Verdict.UNDECIDED
    assert {"d = 1024, depth 48 and more", "d = 128, depth 48 and more", "null"} <= failed(found)


def test_a_machine_on_which_the_mlp_differs_from_itself_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = {"wall": [1.0, 1.0, 1.0], "cpu": 9.0}
    with_rows(monkeypatch, dlr_latency, LATENCY, lambda row: {**row, "mlp_over_itself": noisy})
    assert failed(find(dlr.LATENCY)) == {"null"}


def test_without_stored_times_the_claims_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> store.Result:
        raise MissingInput(f"no stored result {name}")

    for module, claim in ((dlr_latency, dlr.LATENCY), (dlr_frontier_time, dlr.FRONTIER)):
        monkeypatch.setattr(module, "stored", missing)
        with pytest.raises(MissingInput, match="no stored result"):
            find(claim)


def test_an_attacker_who_is_never_done_is_left_out() -> None:
    row = FRONTIER.where(kind="stack")[0]
    assert dlr_frontier_time.least_in_time(row, 0.0, locked=True) is None
    assert dlr_frontier_time.amplification_in_time(row, 0.0) is None
    fast = dlr_frontier_time.least_in_time(row, 1e9, locked=True)
    assert fast is not None and fast["elements"] == min(a["elements"] for a in row["attackers"] if a["locked"])


def test_a_peak_below_its_closed_form_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def lower(row: dict[str, Any]) -> dict[str, Any]:
        for attacker in row["attackers"]:
            attacker["memory"]["measured"] -= 1280
        return row

    with_rows(monkeypatch, dlr_frontier_time, FRONTIER, lower)
    assert "no peak below its closed form" in failed(find(dlr.FRONTIER))


def test_growing_workspace_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def larger(row: dict[str, Any]) -> dict[str, Any]:
        for attacker in row["attackers"]:
            attacker["memory"]["measured"] *= 2
        return row

    with_rows(monkeypatch, dlr_frontier_time, FRONTIER, larger)
    assert "no peak far above it" in failed(find(dlr.FRONTIER))


def test_inversion_is_timed_on_what_it_says():
    """A short cell again: both rivals compute the same gradients, and the ratio is of the same order."""
    cell = {"model": None, "depth": 16, "norm": "none", "dtype": "float64"}
    default, inverse = (inversion_time.net_step(cell, way)() for way in inversion_time.WAYS.values())
    for name, want in default[0].items():
        # states come back within 2 L u of the largest, and each gradient is a sum over 512 tokens of magnitude ~ itself
        limit = 512 * 2 * 16 * 2.0**-53 * max(1.0, float(np.max(np.abs(want))))
        gap = float(np.max(np.abs(inverse[0][name] - want)))
        assert gap <= limit, f"{name}: got {gap:.2e} off default reverse mode, want at most {limit:.2e}"
    (row,) = store.stored("dlr_inversion_time").where(**cell)
    low, middle, high = row["wall"]
    assert 0 < low <= middle <= high and row["milliseconds"] > 0
