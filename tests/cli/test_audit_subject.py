"""`lockref audit SUBJECT` with its options: for each a true case, and a planted lie that must be found out."""

import json
import shlex
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest

from lockproofs.auditing import FORMS, storage, trap2
from lockproofs.auditing.storage import ledger as honest_ledger
from lockproofs.cli import main
from lockproofs.exit_codes import BAD_INPUT, DONE, NAMED
from lockref.locks import full
from lockref.locks.attention import TOPK, project, projections
from lockref.locks.full import Composition, Series
from lockref.locks.manifest import Manifest, write_locked
from lockref.locks.peers import merge_lock, params_lock
from lockref.locks.symmetries import permute_mlp, rotate_stream
from lockref.models.checkpoint_io import load_checkpoint, save_checkpoint
from lockref.models.dlrnet import DLRConfig, initialize
from lockref.models.skills import stdlib_bytes
from lockref.models.zoo import zoo_path

NET = DLRConfig(24, 5, 4, "rms")
PLANES = Composition(3)
ZOO = {name: shlex.quote(str(zoo_path(name))) for name in ("base", "add", "reverse", "dlr-16", "dlr-48")}


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_qwen3):
    """Directories of tiny models: plain, locked in every way, spoiled; and tokens of their vocabulary."""
    folder = tmp_path_factory.mktemp("models")
    config, weights = tiny_qwen3()
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab_size, (40, 9))
    np.save(folder / "tokens.npy", tokens)
    save_checkpoint(folder / "plain", config, weights)
    source = load_checkpoint(folder / "plain").files
    nets = {i: initialize(NET, rng, b_scale=0.5) for i in range(config.num_hidden_layers)}
    series = Composition(series=Series(5, "chebyshev"))
    flipped = full.flip_planes(weights, config, PLANES.planes)
    locked = {
        "flipped": (PLANES, flipped, "bfloat16"),
        "dlr": (Composition(net=NET), full.assembled(weights, nets), "bfloat16"),
        "both": (Composition(3, NET), full.assembled(flipped, nets), "bfloat16"),
        "taylor": (series, full.expand(weights, config, series.series, tokens), "float32"),
    }
    for name, (composition, tensors, dtype) in locked.items():
        said = Manifest(composition.parts(), source, "made", 0, {})
        write_locked(folder / name, config, tensors, said, dtype)
    order = np.stack([rng.permutation(config.intermediate_size) for _ in range(config.num_hidden_layers)])
    save_checkpoint(folder / "permuted", config, permute_mlp(weights, config, order))
    save_checkpoint(folder / "mixed", config, merge_lock(weights, config, rng).tensors)
    turned = project(weights, config, projections(weights, config, TOPK, 4))
    save_checkpoint(folder / "turned", config, turned)
    name = "model.layers.1.mlp.up_proj.weight"
    spoiled = weights[name].copy()
    spoiled[3, 2] += 1
    save_checkpoint(folder / "spoiled", config, {**weights, name: spoiled})
    peer = {n: w + 0.02 * rng.standard_normal(w.shape) for n, w in weights.items()}
    save_checkpoint(folder / "peer", config, peer)
    wide = replace(config, vocab_size=67)
    more = {n: np.concatenate([w, w[:6]]) if w.shape[0] == 61 else w for n, w in weights.items()}
    save_checkpoint(folder / "wide", wide, more)
    return folder


@pytest.fixture
def audit(models, tmp_path, monkeypatch, capsys):
    """Runs an audit in the models' directory: exit code, the report's claims by id, and the whole report."""
    monkeypatch.chdir(models)

    def run(line):
        code = main(["audit", *shlex.split(line), "--json", "-", "--out", str(tmp_path / "report")])
        report = json.loads(capsys.readouterr().out)
        return code, {claim["id"]: claim for claim in report["claims"]}, report

    return run


def skipped(report):
    return {s["id"]: s["reason"] for s in report["coverage"]["skipped"]}


# --- --reference -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "told"),
    [
        ("flipped", "planes flipped (3): 4 tensors, first model.layers.0.self_attn.q_proj.weight"),
        ("permuted", "units permuted: 6 tensors"),
        ("mixed", "values and outputs mixed by M: 4 tensors"),
    ],
)
def test_a_lawful_change_is_named_and_the_function_holds(audit, subject, told):
    code, found, _ = audit(f"{subject} --reference plain --claims FULL-FUNC")
    claim = found["FULL-FUNC"]
    assert (code, claim["verdict"]) == (DONE, "holds"), claim["explanation"]
    assert told in claim["explanation"]
    assert {c["name"]: c["value"] for c in claim["checks"]}["tensors accounted for"] == 0


def test_rounding_to_a_narrower_type_is_known(audit, models, tmp_path, tiny_qwen3):
    config, weights = tiny_qwen3()
    rng = np.random.default_rng(2)
    wide = {n: w * (1 + 1e-3 * rng.standard_normal(w.shape)) for n, w in weights.items()}
    save_checkpoint(tmp_path / "wide", config, wide, "float64")
    save_checkpoint(tmp_path / "narrow", config, full.flip_planes(wide, config, 2), "bfloat16")
    _, found, _ = audit(f"{tmp_path / 'narrow'} --reference {tmp_path / 'wide'} --claims FULL-FUNC")
    assert found["FULL-FUNC"]["verdict"] == "holds", found["FULL-FUNC"]["explanation"]
    assert "planes flipped (2): 4 tensors" in found["FULL-FUNC"]["explanation"]
    assert "rounded to bfloat16: " in found["FULL-FUNC"]["explanation"]


def test_one_changed_tensor_is_found(audit):
    code, found, _ = audit("flipped --reference spoiled --claims FULL-FUNC")
    claim = found["FULL-FUNC"]
    assert (code, claim["verdict"]) == (NAMED, "refuted")
    assert "another value: 1 tensors, first model.layers.1.mlp.up_proj.weight" in claim["explanation"]
    assert claim["counterexample"]["got"].startswith("logit ")


def test_flips_of_eigen_directions_are_named_and_refuted(audit):
    _, found, _ = audit("turned --reference plain --claims FULL-FUNC")
    assert found["FULL-FUNC"]["verdict"] == "refuted"
    assert "queries and keys turned by P (4)" in found["FULL-FUNC"]["explanation"]


def test_a_budget_decides_where_mlps_were_replaced(audit):
    line = "dlr --reference plain --claims FULL-FUNC "
    _, found, _ = audit(line)
    assert found["FULL-FUNC"]["verdict"] == "undecided" and "give --budget" in found["FULL-FUNC"]["explanation"]
    _, found, _ = audit(line + "--budget 9")
    assert found["FULL-FUNC"]["verdict"] == "undecided" and "give --data" in found["FULL-FUNC"]["explanation"]
    _, found, _ = audit(line + "--budget 9 --data tokens.npy")
    claim = found["FULL-FUNC"]
    assert claim["verdict"] == "holds" and "--budget allows 900.00%" in claim["explanation"]
    assert "DLR-Nets for MLPs (4)" in claim["explanation"]


def test_a_budget_that_is_not_kept_is_refuted(audit, experts):
    line = f"--reference {ZOO['base']} --data {experts / 'text.npy'} --claims FULL-FUNC"
    code, found, _ = audit(f"{ZOO['dlr-48']} --budget 0.001 {line}")
    assert (code, found["FULL-FUNC"]["verdict"]) == (NAMED, "refuted")
    assert found["FULL-FUNC"]["counterexample"]["got"].startswith("mean loss ")
    code, found, _ = audit(f"{ZOO['dlr-16']} {line}")
    assert (code, found["FULL-FUNC"]["verdict"]) == (DONE, "holds")
    assert "lock.json's loss_gap allows 2.80%" in found["FULL-FUNC"]["explanation"]


# --- --lock ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", ["flipped", "dlr", "both", "taylor"])
def test_a_true_manifest_holds(audit, subject):
    code, found, _ = audit(f"{subject} --reference plain --claims FULL-MANIFEST")
    assert (code, found["FULL-MANIFEST"]["verdict"]) == (DONE, "holds"), found["FULL-MANIFEST"]["explanation"]


def rewritten(models, tmp_path, subject, change):
    said = json.loads((models / subject / "lock.json").read_text())
    change(said)
    (tmp_path / "lie.json").write_text(json.dumps(said))
    return tmp_path / "lie.json"


LIES = {
    "planes": ("flipped", lambda s: s["parts"]["attention"].update(planes=2), "says 2 planes", "found 3 planes"),
    "no planes": ("dlr", lambda s: s["parts"].update(PLANES.parts()), "part attention: says 3 planes", "found none"),
    "planes untold": ("both", lambda s: s["parts"].pop("attention"), "says none", "found 3 planes flipped"),
    "depth": ("dlr", lambda s: s["parts"]["dlr"]["net"].update(depth=5), "says 5 blocks", "found 4 blocks"),
    "a fake DLR": ("flipped", lambda s: s["parts"].update(dlr={"net": asdict(NET)}), "part dlr: says 4 blocks",
                   "found none"),
    "order": ("taylor", lambda s: s["parts"]["taylor"].update(order=7), "says order 7", "found order 5"),
    "a file": ("flipped", lambda s: s["released"][1].update(sha256="0" * 64), "SHA-256 of model.safetensors", "000"),
    "a source": ("flipped", lambda s: s["source"][0].update(sha256="0" * 64), "the source's config.json", "000"),
    "a gap": ("dlr", lambda s: s.update(figures={"loss": {"original": 1.0, "locked": 1.5}, "loss_gap": 0.1}),
              "says 0.1", "found 0.5"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_in_a_manifest_is_refuted(audit, models, tmp_path, lie):
    subject, change, *words = LIES[lie]
    file = rewritten(models, tmp_path, subject, change)
    code, found, report = audit(f"{subject} --reference plain --lock {file} --claims FULL-MANIFEST")
    claim = found["FULL-MANIFEST"]
    assert (code, claim["verdict"]) == (NAMED, "refuted"), claim["explanation"]
    assert all(word in claim["explanation"] for word in words), claim["explanation"]
    assert claim["counterexample"]["got"] and report["subjects"][0]["files"][-1]["name"] == "lie.json"


def test_planes_other_than_the_heaviest_are_another_lock(audit, models, tmp_path, tiny_qwen3):
    config, weights = tiny_qwen3()
    signs = np.ones(config.head_dim)
    light = projections(weights, config, full.TOPK_PLANES, 5) @ projections(weights, config, full.TOPK_PLANES, 2)
    assert not np.allclose(light, np.diag(signs))  # the three lightest of five
    said = Manifest(PLANES.parts(), load_checkpoint(models / "plain").files, "made", 0, {})
    write_locked(tmp_path / "light", config, project(weights, config, light), said)
    _, found, _ = audit(f"{tmp_path / 'light'} --reference plain --claims FULL-MANIFEST")
    assert "not the heaviest" in found["FULL-MANIFEST"]["explanation"]
    assert found["FULL-MANIFEST"]["verdict"] == "refuted"


def test_stated_losses_are_measured_again(audit, models, tmp_path, capsys):
    quick = "--dlr-depth 3 --steps 2 --healing 2 --rows 16 --captured 8 --length 6 --data tokens.npy --quiet"
    assert main(["lock", "plain", str(tmp_path / "made"), *quick.split()]) == DONE
    line = f"{tmp_path / 'made'} --reference plain --data tokens.npy --claims FULL-MANIFEST"
    _, found, _ = audit(line)
    assert found["FULL-MANIFEST"]["verdict"] == "holds", found["FULL-MANIFEST"]["explanation"]
    assert "Not looked at: other figures: errors of single modules" in found["FULL-MANIFEST"]["explanation"]
    assert "loss, " not in found["FULL-MANIFEST"]["explanation"]
    said = json.loads((tmp_path / "made" / "lock.json").read_text())
    losses = said["figures"]["loss"]
    losses["locked"] += 1e-3
    said["figures"]["loss_gap"] = losses["locked"] / losses["original"] - 1
    (tmp_path / "lie.json").write_text(json.dumps(said))
    _, found, _ = audit(f"{line} --lock {tmp_path / 'lie.json'}")
    assert found["FULL-MANIFEST"]["verdict"] == "refuted"
    assert found["FULL-MANIFEST"]["counterexample"]["given"]["statement"] == "loss, locked"


def test_what_a_manifest_needs_is_said(audit):
    _, found, report = audit("plain --claims FULL-MANIFEST")
    assert skipped(report) == {"FULL-MANIFEST": "SUBJECT has no lock.json: needs --lock"}
    _, found, _ = audit("flipped --claims FULL-MANIFEST")
    assert found["FULL-MANIFEST"]["verdict"] == "undecided"
    assert "part attention: needs --reference" in found["FULL-MANIFEST"]["explanation"]


# --- --base, --peer --------------------------------------------------------------------------------------------


def test_the_release_itself_is_undone(audit):
    _, found, report = audit("flipped --reference plain --base peer --claims MB-KEYLESS,MB-ANCHOR")
    for claim in found.values():
        assert claim["verdict"] == "refuted" and "bit for bit the reference" in claim["explanation"]
        assert claim["controls"]["null"]["passed"] and claim["controls"]["power"]["passed"]
    assert [s["role"] for s in report["subjects"]] == ["subject", "base", "reference"]
    assert "the public base model (--base)" in report["threat_model"]["knows"]
    assert not any("--peer" in known for known in report["threat_model"]["knows"])


def test_a_turn_that_does_not_commute_stays_hidden_from_the_release_alone(audit, tmp_path, tiny_qwen3):
    config, weights = tiny_qwen3()
    shape = (config.num_hidden_layers, config.num_key_value_heads, config.head_dim, config.head_dim)
    turn = np.linalg.qr(np.random.default_rng(4).standard_normal(shape))[0]
    save_checkpoint(tmp_path / "haar", config, project(weights, config, turn))
    line = f"{tmp_path / 'haar'} --reference plain --base peer --claims MB-KEYLESS,MB-ANCHOR"
    _, found, _ = audit(line)
    assert found["MB-KEYLESS"]["verdict"] == "holds"  # as far as it goes: it is no lawful lock, see FULL-FUNC
    assert found["MB-ANCHOR"]["verdict"] == "refuted"


def test_needs_are_named(audit):
    _, _, report = audit(
        "flipped --claims MB-KEYLESS,MB-ANCHOR,MB-BARRIER,TRAP-MERGE,TRAP-COLLAPSE,FULL-FUNC,FULL-PARITY"
    )
    reasons = skipped(report)
    assert len(reasons) == 7
    for name, word in {
        "MB-KEYLESS": "needs --reference", "MB-ANCHOR": "needs --base", "MB-BARRIER": "needs --peer",
        "TRAP-MERGE": "needs --peer", "FULL-FUNC": "needs --reference", "TRAP-COLLAPSE": "names no trap2",
        "FULL-PARITY": "see lockref audit",
    }.items():  # fmt: skip
        assert word in reasons[name]


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """The zoo's expert on addition: flipped, and behind a lock that no attack here undoes; short rows of text."""
    folder, owner = tmp_path_factory.mktemp("experts"), load_checkpoint(zoo_path("add"))
    said = Manifest(Composition(8).parts(), owner.files, "made", 0, {})
    write_locked(folder / "flipped", owner.config, full.flip_planes(owner.tensors, owner.config, 8), said)
    save_checkpoint(
        folder / "units", owner.config, params_lock(owner.tensors, owner.config, np.random.default_rng(0)).tensors
    )
    d = owner.config.hidden_size
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((d, d)))[0]
    tensors, config = rotate_stream(owner.tensors, owner.config, turn)
    save_checkpoint(folder / "rotated", config, tensors, "float32")
    sums = "".join(f"{a}+{b}={a + b:03d}\n" for a in range(11, 60, 7) for b in range(12, 99)).encode()
    np.save(folder / "sums.npy", np.frombuffer(sums[:1600], np.uint8).reshape(-1, 40))
    np.save(folder / "text.npy", stdlib_bytes(held_out=True, limit=64 * 40).reshape(64, 40))
    base = load_checkpoint(zoo_path("base")).tensors
    save_checkpoint(folder / "half", owner.config, {n: w + 0.6 * (owner.tensors[n] - w) for n, w in base.items()})
    return folder


@pytest.mark.parametrize("subject", ["flipped", "units"])
def test_a_barrier_falls_to_an_attack(audit, experts, subject):
    code, found, report = audit(
        f"{experts / subject} --peer {ZOO['reverse']} --reference {ZOO['add']} --data {experts / 'sums.npy'} "
        "--claims MB-BARRIER"
    )
    claim = found["MB-BARRIER"]
    assert (code, claim["verdict"]) == (NAMED, "refuted")
    assert claim["counterexample"]["given"]["start"] != "as released"
    curves = {c["name"]: c["y"] for c in claim["plots"][0]["curves"]}
    assert curves["as released"][4] > curves["the unlocked reference"][4] + 0.5
    assert "other experts of the same base (--peer)" in report["threat_model"]["knows"]
    assert [(s["role"], s["name"]) for s in report["subjects"]][-1] == ("peer", "reverse")


def test_a_barrier_that_no_attack_takes_holds_only_with_its_controls(audit, experts):
    line = f"{experts / 'rotated'} --peer {ZOO['reverse']} --data {experts / 'sums.npy'} --claims MB-BARRIER"
    _, found, _ = audit(line)
    assert found["MB-BARRIER"]["verdict"] == "undecided"
    assert "a null and a power control are needed" in found["MB-BARRIER"]["explanation"]
    _, found, _ = audit(f"{line} --reference {ZOO['add']}")
    claim = found["MB-BARRIER"]
    assert claim["verdict"] == "holds" and all(claim["controls"][c]["passed"] for c in ("null", "power"))


def test_updates_are_merged_on_the_base(audit, experts):
    line = f"--peer {experts / 'half'} --base {ZOO['base']} --data {experts / 'sums.npy'} --claims TRAP-MERGE"
    _, found, _ = audit(f"{experts / 'flipped'} {line}")
    assert found["TRAP-MERGE"]["verdict"] == "refuted"
    assert found["TRAP-MERGE"]["counterexample"]["given"]["start"] == "plane signs from the base"
    line = f"--peer {ZOO['reverse']} --base {ZOO['base']} --data {experts / 'text.npy'} --claims TRAP-MERGE"
    _, _, report = audit(f"{ZOO['add']} {line}")  # on plain text neither expert gained anything
    assert "needs --data of what they were fine-tuned for" in skipped(report)["TRAP-MERGE"]


def test_polynomials_are_taken_apart_before_the_path(audit):
    _, found, _ = audit("taylor --peer peer --reference plain --data tokens.npy --claims MB-BARRIER")
    claim = found["MB-BARRIER"]
    assert claim["verdict"] == "refuted" and "as released there is no path" in claim["explanation"]
    curves = {c["name"]: c["y"] for c in claim["plots"][0]["curves"]}
    np.testing.assert_allclose(curves["coefficients taken apart"], curves["the unlocked reference"], rtol=1e-4)


def test_other_networks_have_no_path(audit):
    _, _, report = audit("dlr --peer peer --claims MB-BARRIER")
    assert "SUBJECT has DLR-Nets where peer has MLPs: no straight path" in skipped(report)["MB-BARRIER"]


# --- Networks for MLPs, Trap² ----------------------------------------------------------------------------------


def test_what_attackers_store_on_this_checkpoint(audit):
    names = ["DLR-PARITY", "DLR-STORAGE-TRAIN", "DLR-STORAGE-FROZEN", "DLR-CHECKPOINT", "DLR-INVERSION"]
    _, found, _ = audit(f"dlr --claims {','.join(names)}")
    assert [found[name]["verdict"] for name in names] == ["holds", "holds", "refuted", "refuted", "refuted"]
    assert "h-only inversion 44," in found["DLR-INVERSION"]["explanation"]  # r L + d = 5 · 4 + 24
    assert found["DLR-INVERSION"]["counterexample"]["got"].endswith("44 elements per token")
    _, _, report = audit("dlr --claims MB-T2A")
    assert "SUBJECT has DLR-Nets for its MLPs" in skipped(report)["MB-T2A"]


@pytest.mark.parametrize(
    ("name", "wrong"), [("gap", lambda ctx: (2.0, 1)), ("ledger", lambda *given: honest_ledger(*given) + 8)]
)
def test_gradients_or_ledgers_that_are_off_decide_nothing(audit, monkeypatch, name, wrong):
    monkeypatch.setattr(storage, name, wrong)
    _, found, _ = audit("dlr --claims DLR-INVERSION")
    assert found["DLR-INVERSION"]["verdict"] == "undecided"


def test_networks_that_nobody_describes_are_guessed_and_it_is_said(audit, models, tmp_path):
    shutil.copytree(models / "dlr", tmp_path / "mute")
    (tmp_path / "mute" / "lock.json").unlink()
    _, found, _ = audit(f"{tmp_path / 'mute'} --claims DLR-STORAGE-TRAIN")
    assert found["DLR-STORAGE-TRAIN"]["verdict"] == "holds"
    assert any("the defaults are assumed" in a for a in found["DLR-STORAGE-TRAIN"]["assumptions"])


def test_coefficients_are_taken_apart(audit):
    _, found, _ = audit("taylor --reference plain --claims TAYLOR-COEFF")
    assert found["TAYLOR-COEFF"]["verdict"] == "refuted"
    _, found, _ = audit("taylor --reference spoiled --claims FULL-FUNC,TAYLOR-COEFF")
    assert found["TAYLOR-COEFF"]["verdict"] == "refuted"  # up_proj was spoiled, not down_proj
    assert "another value: 1 tensors, first model.layers.1.mlp.up_proj" in found["FULL-FUNC"]["explanation"]


def trap(folder, models):
    said = json.loads((models / "flipped" / "lock.json").read_text()) | {"parts": {"trap2": {}}, "released": []}
    (folder / "trap.json").write_text(json.dumps(said))
    return f"--lock {folder / 'trap.json'} --claims TRAP-COLLAPSE"


def test_trap2_that_protects_nothing_is_refuted(audit, models, experts, tmp_path):
    line = f"{ZOO['add']} {trap(tmp_path, models)}"
    _, _, report = audit(line)
    assert "needs --base" in skipped(report)["TRAP-COLLAPSE"]
    line += f" --base {ZOO['base']} --data "
    _, _, report = audit(f"{line}{experts / 'text.npy'}")
    assert "needs --data of what it was fine-tuned for" in skipped(report)["TRAP-COLLAPSE"]
    _, found, _ = audit(f"{line}{experts / 'sums.npy'}")
    assert found["TRAP-COLLAPSE"]["verdict"] == "undecided" and len(found["TRAP-COLLAPSE"]["plots"]) == 1
    _, found, _ = audit(f"{line}{experts / 'sums.npy'} --reference {ZOO['add']}")
    assert found["TRAP-COLLAPSE"]["verdict"] == "refuted"


@pytest.mark.parametrize(("above", "below", "verdict"), [(1.5, 1.2, "holds"), (1.5, 1.0, "holds-if"), (1.0, 1.2, None)])
def test_a_curve_that_rises_holds_with_its_controls(
    audit, models, experts, tmp_path, monkeypatch, above, below, verdict
):
    honest = trap2.curve

    def raised(ctx, tensors):
        factors = np.interp(trap2.SCALES, [0, 0.5, 1, 2], [1, below, 1, above])
        own = tensors is ctx.subject.composed.tensors
        return (np.array(honest(ctx, tensors)) * (factors if own else 1)).tolist()

    monkeypatch.setattr(trap2, "curve", raised)
    line = f"{ZOO['add']} {trap(tmp_path, models)} --base {ZOO['base']} --reference {ZOO['add']}"
    _, found, _ = audit(f"{line} --data {experts / 'sums.npy'}")
    assert found["TRAP-COLLAPSE"]["verdict"] == (verdict or "undecided")


# --- Whole audits, bad input -----------------------------------------------------------------------------------


OWN = ",".join(["FULL-MANIFEST", "AD-ADJOINT", "MB-FUNC", "MERGE-SCALE", "TAYLOR-RADIUS", *FORMS])
FEW = "MB-FUNC,MB-BARRIER,TRAP-MERGE,TAYLOR-RADIUS,FULL-FUNC,MERGE-SCALE"


@pytest.mark.parametrize(("subject", "claims"), [("plain", FEW), ("dlr", OWN), ("taylor", OWN)])
def test_no_claim_crashes_on_any_kind_of_directory(audit, subject, claims):
    line = f"{subject} --base peer --reference plain --peer peer --data tokens.npy --cases 2"
    _, _, report = audit(f"{line} --claims {claims}")
    assert report["coverage"]["errored"] == []
    assert report["coverage"]["planned"] == report["coverage"]["run"] + len(report["coverage"]["skipped"])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("plain --peer wide", ["--peer wide", "vocab_size is 67, SUBJECT's is 61"]),
        ("plain --reference wide", ["--reference wide", "vocab_size"]),
        ("plain --peer plain", ["--peer plain", "SUBJECT itself"]),
        ("plain --reference dlr", ["--reference dlr", "DLR-Nets", "unlocked"]),
        ("plain --reference nowhere", ["nowhere", "does not exist"]),
        ("plain --peer peer --peer nan", ["nan", "NaN"]),
        ("plain --lock gone.json", ["gone.json", "No such file"]),
        ("plain --lock peer", ["peer", "is a directory"]),
        ("plain --lock wrong.json", ["wrong.json", "format 'other'"]),
        ("plain --lock topk.json", ["topk.json", "family 'topk' is unknown"]),
        ("plain --data gone.npy", ["gone.npy", "No such file"]),
        ("plain --data text.txt", ["text.txt", "vocabulary of 256"]),
        ("plain --data floats.npy", ["floats.npy", "float64"]),
        ("plain --data pickled.npy", ["pickled.npy", "array of integers"]),
        ("plain --data empty.npy", ["empty.npy", "array of integers"]),
        ("plain --data archive.npy", ["archive.npy", "an archive of arrays"]),
        ("plain --data large.npy --reference plain --claims FULL-FUNC", ["large.npy", "the vocabulary has 61"]),
        ("plain --data short.npy --reference plain --claims FULL-FUNC", ["short.npy", "too few"]),
        ("plain --budget -1", ["--budget -1", "at least 0"]),
        ("--reference plain", ["--reference needs a SUBJECT"]),
        ("--peer plain", ["--peer needs a SUBJECT"]),
    ],
)
def test_bad_input_is_one_line(line, words, models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(models)
    _write_bad_files(models)
    code = main(["audit", "--quiet", "--out", str(tmp_path / "report"), *line.split()])
    out, err = capsys.readouterr()
    assert (code, out) == (BAD_INPUT, "") and err.count("\n") == 1 and "Traceback" not in err, err
    assert all(word in err for word in words), err
    assert not (tmp_path / "report").exists()


def _write_bad_files(folder):
    if (folder / "nan").exists():
        return
    said = json.loads((folder / "flipped" / "lock.json").read_text())
    (folder / "wrong.json").write_text(json.dumps(said | {"format": "other"}))
    said["parts"]["attention"]["family"] = "topk"
    (folder / "topk.json").write_text(json.dumps(said))
    (folder / "text.txt").write_text("text " * 100)
    (folder / "empty.npy").write_bytes(b"")
    np.save(folder / "floats.npy", np.ones((9, 9)))
    np.save(folder / "large.npy", np.full((9, 9), 61))
    np.save(folder / "short.npy", np.zeros(3, np.int64))
    np.save(folder / "pickled.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    np.savez(folder / "archive.npz", np.ones(3, np.int64))
    (folder / "archive.npz").rename(folder / "archive.npy")
    (folder / "nan").mkdir()
    for file in (folder / "plain").iterdir():
        (folder / "nan" / file.name).write_bytes(file.read_bytes())
    raw = bytearray((folder / "nan" / "model.safetensors").read_bytes())
    raw[-2:] = b"\xc0\x7f"
    (folder / "nan" / "model.safetensors").write_bytes(raw)


def test_the_reproduce_line_names_every_option(audit):
    _, found, _ = audit(
        "flipped --reference plain --base peer --peer peer --data tokens.npy --budget 0.5 --claims FULL-FUNC"
    )
    line = found["FULL-FUNC"]["reproduce"]
    for words in ("flipped", "--reference plain", "--base peer", "--peer peer", "--data tokens.npy", "--budget 0.5"):
        assert words in line
    _, again, _ = audit(line.removeprefix("lockref audit "))
    assert again == found
