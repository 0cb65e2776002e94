"""Bad input: exit code 3, one clear line on standard error, nothing written. A crash of ours: 4."""

import json
import shlex
import shutil
import struct

import pytest

from lockproofs.cli import main
from lockref.models.zoo import zoo_path

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def says_one_line(capsys, code, *words):
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lockref: ") and err.count("\n") == 1 and "Traceback" not in err
    for word in words:
        assert word in err, err
    return code


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("audit nowhere", ["nowhere", "does not exist"]),
        ("audit a-file", ["a-file", "directory"]),
        ("audit empty", ["config.json"]),
        ("audit {zoo} --base nowhere", ["nowhere", "does not exist"]),
        ("audit --base {zoo}", ["--base needs a SUBJECT"]),
        ("audit {zoo} --fail-on changed", ["--fail-on changed", "embedded models"]),
        ("audit --claims NO-SUCH,X-HOLDS", ["'NO-SUCH'", "choose from X-HOLDS, X-IF"]),
        ("audit --claims ''", ["''", "choose from X-HOLDS"]),
        ("audit --claims", ["--claims"]),
        ("audit --cases 0", ["--cases"]),
        ("audit --cases many", ["--cases", "integer"]),
        ("audit --seed -1", ["--seed"]),
        ("audit --fail-on sometimes", ["--fail-on", "sometimes", "changed"]),
        ("audit --out a-file", ["a-file", "is a file", "choose a directory"]),
        ("audit --out a-file/below", ["a-file", "is a file", "choose a directory"]),
        ("audit --out /proc/lockref", ["/proc/lockref", "cannot write", "choose another"]),
        ("audit --json report.json", ["--json", "standard output"]),
        ("audit --no-such-option", ["--no-such-option"]),
        ("audit one two", ["two"]),
        ("audit --claims X-BAD", ["data.txt: no such file: give another"]),
        ("explain NO-SUCH", ["'NO-SUCH'", "choose from X-HOLDS"]),
        ("explain", ["ID"]),
        ("frobnicate", ["frobnicate", "lockref --help"]),
    ],
)
def test_one_line_and_exit_code_3(line, words, decided, stops, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("not a directory")
    (tmp_path / "empty").mkdir()
    argv = shlex.split(line.format(zoo=shlex.quote(str(zoo_path("base")))))
    code = main([argv[0], *["--quiet"] * (argv[0] == "audit"), *argv[1:]], claims=lambda: decided | stops)
    assert says_one_line(capsys, code, *words) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-file", "empty"]
    assert (tmp_path / "a-file").read_text() == "not a directory"


def reshaped(change):
    """A fault in the header, whose length is kept right."""

    def fault(folder):
        raw = (folder / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        data = change(header, bytearray(raw[8 + length :]))
        text = json.dumps(header).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data)

    return fault


def first(header):
    return next(name for name in header if name != "__metadata__")


def lies_about_sizes(header, data):
    header[first(header)]["data_offsets"][1] += 2
    return data


def has_another_name(header, data):
    header["unexpected.weight"] = header.pop(first(header))
    return data


def has_another_shape(header, data):
    header[first(header)]["shape"] = [*header[first(header)]["shape"][::-1], 1]
    return data


def is_not_a_number(header, data):
    begin = header["model.norm.weight"]["data_offsets"][0]
    data[begin : begin + 2] = b"\xc0\x7f"  # NaN in bfloat16, little-endian
    return data


def truncate(folder):
    raw = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(raw[: len(raw) // 2])


FAULTS = {
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "no config": lambda folder: (folder / CONFIG).unlink(),
    "config is not JSON": lambda folder: (folder / CONFIG).write_text("{"),
    "not safetensors": lambda folder: (folder / WEIGHTS).write_bytes(b"PK\x03\x04 something else"),
    "empty file": lambda folder: (folder / WEIGHTS).write_bytes(b""),
    "truncated": truncate,
    "lying header": reshaped(lies_about_sizes),
    "missing and unexpected tensor": reshaped(has_another_name),
    "wrong shape": reshaped(has_another_shape),
    "NaN": reshaped(is_not_a_number),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_checkpoint_is_named_in_one_line(fault, decided, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(zoo_path("base"), tmp_path / "broken")
    assert main(["audit", "broken", "--quiet", "--claims", "X-HOLDS"], claims=lambda: decided) == 0
    shutil.rmtree(tmp_path / "lockref-report")
    FAULTS[fault](folder)
    code = main(["audit", "broken", "--quiet", "--claims", "X-HOLDS"], claims=lambda: decided)
    assert says_one_line(capsys, code, "broken") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_crash_of_ours_is_4_with_a_hint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def broken():
        raise LookupError("two\nlines")

    code = main(["audit"], claims=broken)
    assert says_one_line(capsys, code, "internal error: LookupError: two lines", "LOCKREF_DEBUG=1") == 4
    monkeypatch.setenv("LOCKREF_DEBUG", "1")
    assert main(["audit"], claims=broken) == 4
    assert "Traceback" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
