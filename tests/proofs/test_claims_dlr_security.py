"""The other claims about DLR-Lock: their verdicts, and that each check and control can fail."""

import json
from pathlib import Path

import numpy as np
import pytest

from lockproofs.audit import rerun
from lockproofs.claim import Context, Verdict, settle
from lockproofs.claims import dlr, dlr_checkpoint, dlr_cost, dlr_frozen, dlr_inversion, dlr_size
from lockproofs.hub_sizes import HUB
from lockproofs.subject import Subject
from lockref.attacks import frontier
from lockref.attacks.frontier import Attacker, MLPWay, Stack, least, locked
from lockref.attacks.inversion import Cell
from lockref.autodiff import schedules
from lockref.models import dlrnet, storage
from lockref.models.checkpoint_io import Checkpoint
from lockref.models.qwen3 import Qwen3Config, expected_tensors
from lockref.models.storage import Storage

OTHERS = [claim for claim in dlr.CLAIMS if claim is not dlr.STORAGE_TRAIN]


def context(hidden=64, mlp=96, cases=6):
    config = Qwen3Config(
        vocab_size=11, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=4,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape) for name, shape in expected_tensors(config).items()}
    return Context(Subject({"subject": Checkpoint(Path("tiny"), config, tensors, {}, ())}, False), 0, cases)


def find(claim, **sizes):
    return settle(claim.kind, claim.check(context(**sizes)))


def failed(found):
    bad = {check.name for check in found.checks if not check.passed}
    controls = {"null": found.controls.null, "power": found.controls.power}
    return bad | {name for name, control in controls.items() if control is not None and not control.passed}


@pytest.fixture(scope="module")
def evidence():
    return {claim.id: find(claim) for claim in OTHERS}


@pytest.mark.parametrize("claim", OTHERS, ids=lambda c: c.id)
def test_the_recorded_verdict_is_found(claim, evidence):
    found = evidence[claim.id]
    assert failed(found) == set() and found.verdict is claim.recorded
    if claim.kind == "security":
        assert found.controls.null is not None and found.controls.power is not None
    if claim.recorded is Verdict.REFUTED:
        assert rerun(claim, found.counterexample) == found.counterexample.got != found.counterexample.want
        assert json.dumps(found.counterexample.given) and len(found.counterexample.by_hand.splitlines()) >= 2
    if claim.recorded is Verdict.HOLDS_IF:
        assert sum("other side" in check.name for check in found.checks) >= 2


@pytest.mark.parametrize("claim", OTHERS, ids=lambda c: c.id)
def test_same_seed_same_evidence(claim, evidence):
    assert find(claim) == evidence[claim.id]


@pytest.mark.parametrize("claim", [dlr.FROZEN, dlr.INFER, dlr.PARITY, dlr.FRONTIER, dlr.CHECKPOINT], ids=lambda c: c.id)
@pytest.mark.parametrize(("hidden", "mlp"), [(3, 1), (12, 21)])
def test_narrow_and_odd_models_can_be_audited(claim, hidden, mlp):
    assert find(claim, hidden=hidden, mlp=mlp).verdict is claim.recorded


def test_inversion_by_hand():
    config, params, x = dlr_inversion.integer_net(dlr_inversion.GIVEN)
    assert dlrnet.forward(params, x, config).tolist() == [[6, 2, 4]]
    assert dlr_inversion.rerun_inversion(dlr_inversion.GIVEN).startswith("6 stored numbers (h = [1, 3, 4]")


@pytest.mark.parametrize("fault", ["adds", "leaves out a block"])
def test_a_wrong_inversion_decides_nothing(fault, monkeypatch):
    honest = Cell.undone

    def undone(self, weights, hidden, out):
        if fault == "adds":
            yield from honest(self, weights, [-h for h in hidden], out)
        else:
            states = [x for x, _, _ in honest(self, weights, hidden, out)]
            yield from self.known(hidden, [out, *states[:-1]])

    monkeypatch.setattr(Cell, "undone", undone)
    found = find(dlr.INVERSION)
    assert found.verdict is Verdict.UNDECIDED
    assert {"integer networks", "float64 networks", "drift of the states", "power"} <= failed(found)


def test_an_inversion_that_stores_more_is_caught(monkeypatch):
    honest = Cell.run

    def hoarding(self, weights, x):
        out, kept = honest(self, weights, x)
        return out, {**kept, "more": [h + 0 for h in kept["hidden"]]}

    monkeypatch.setattr(Cell, "run", hoarding)
    assert "ledger = r L + d" in failed(find(dlr.INVERSION))


def test_a_block_that_gives_its_input_back_without_a_skip_fails_the_null_control(monkeypatch):
    monkeypatch.setattr(dlr_inversion, "no_skip_error", lambda rng: 0.0)
    assert failed(find(dlr.INVERSION)) == {"null"}


def test_a_schedule_that_forgets_a_state_is_caught(monkeypatch):
    monkeypatch.setattr(
        dlr_checkpoint, "scheduled", lambda p, x, g, c, plan, **k: ({n: w * 0 for n, w in p.items()}, g)
    )
    assert {"exact gradients", "power"} <= failed(find(dlr.CHECKPOINT))


def test_schedules_that_keep_everything_are_seen_to_be_linear(monkeypatch):
    keep = lambda config: (config.depth, schedules.keep_all(1))  # noqa: E731
    monkeypatch.setattr(dlr_checkpoint, "root_groups", keep)
    assert "√L attacker, four times the depth" in failed(find(dlr.CHECKPOINT))


def test_frozen_blocks_that_keep_their_input_are_caught(monkeypatch):
    honest = dlr_frozen.frozen_bytes
    monkeypatch.setattr(dlr_frozen, "frozen_bytes", lambda c, rng, **k: honest(c, rng, **k) + 24 * c.depth)
    found = failed(find(dlr.FROZEN))
    assert {"ledger = r L, no norm", "ledger = closed form, every norm"} <= found


def test_parity_off_by_one_rank_is_caught(monkeypatch):
    honest = dlrnet.parity

    def generous(d, m, depth, norm="none"):
        found = honest(d, m, depth, norm)
        return dlrnet.Parity(found.rank + 1, found.parameters + 2 * d * depth, found.target)

    monkeypatch.setattr(dlrnet, "parity", generous)
    assert {"theorem = helper", "r L where 2 L divides 3 m"} <= failed(find(dlr.PARITY))


def test_inference_that_hoards_is_caught(monkeypatch):
    honest = dlr_size.inference_columns
    monkeypatch.setattr(
        dlr_size,
        "inference_columns",
        lambda norm, fused, depth, rng, hoard=False: honest(norm, fused, depth, rng, hoard=True),
    )
    assert "peak while it runs" in failed(find(dlr.INFER))


def test_a_dear_backward_pass_is_caught(monkeypatch):
    honest = dlr_cost.dlr_passes

    def dear(config, tokens, rng):
        forward, backward = honest(config, tokens, rng)
        return forward, 2 * backward

    monkeypatch.setattr(dlr_cost, "dlr_passes", dear)
    assert {"backward/forward against the MLP's", "at the size of Qwen3-0.6B"} <= failed(find(dlr.BACKWARD_COST))


def test_a_closed_form_off_by_one_column_is_caught(monkeypatch):
    honest = storage.qwen3_attention
    monkeypatch.setattr(storage, "qwen3_attention", lambda config: honest(config) + Storage(1))
    assert failed(find(dlr.FRONTIER)) == {"ledger = closed form"}


def test_without_inversion_the_frontier_would_show_an_amplification(monkeypatch):
    monkeypatch.setattr(Stack, "ways", lambda self: [MLPWay(), MLPWay(recomputed=True)])
    assert "everything trains, twice the operations" in failed(find(dlr.FRONTIER))


def test_frontier_figures_by_hand():
    hub = HUB["qwen3-0.6b"]
    plain, lock = Stack(hub), locked(hub, 48)
    assert lock.dlr.rank * 48 == 4608 and lock.mlp_operations == plain.mlp_operations == 6 * 1024 * 3072
    attention = 1024 + 1 + 3 * 2048 + 2 * 16 + 3 * 1024 + 8 + 1024 + 2048
    assert plain.attackers("all")[0].elements == 28 * (attention + 2 * 1024 + 1 + 3 * 3072)
    assert lock.attackers("all")[0].elements == 28 * (attention + 2 * 1024 + 1 + 47 * 1024 + 4608)
    inverting = next(a for a in lock.attackers("all") if a.name == "h-only inversion")
    assert inverting.elements == 28 * (attention + 1024 + 1 + 4608 + 1024)
    step = 3 * (plain.attention_operations + plain.mlp_operations)
    assert inverting.operations == pytest.approx(1 + plain.mlp_operations / 2 / step, rel=1e-12)


def test_the_least_attacker_stays_in_its_budget():
    some = [Attacker("a", "all", 10, 1.0), Attacker("b", "all", 5, 2.0), Attacker("c", "all", 5, 1.5)]
    assert least(some, 1.0).name == "a" and least(some, 3.0).name == "c"
    with pytest.raises(ValueError, match=r"no attacker stays within 0\.5 times"):
        least(some, 0.5)
    with pytest.raises(ValueError, match="goal 'lora' is unknown; choose from all, attention"):
        Stack(HUB["qwen3-8b"]).attackers("lora")
    assert all(a.operations >= 1 - 1e-12 for g in frontier.GOALS for a in locked(HUB["qwen3-0.6b"], 16).attackers(g))
