"""`lockref memory`: the table, the JSON, the page, and one clear line for bad input."""

import json
from html.parser import HTMLParser

import pytest

from lockproofs.cli import main
from lockproofs.exit_codes import BAD_INPUT
from lockproofs.memory import DRAWN, WAYS, survey
from lockref.models import storage
from lockref.models.zoo import zoo_path


@pytest.fixture
def memory(capsys):
    """Runs the command: exit code, standard output, standard error."""

    def run(*options):
        code = main(["memory", *options])
        return code, *capsys.readouterr()

    return run


def test_json_and_nothing_else(memory):
    code, out, err = memory("--json", "-", "--depth", "16", "--tokens", "512")
    found = json.loads(out)
    assert (code, err) == (0, "") and found["rank"] * found["depth"] == 4608 and found["tokens"] == 512
    rows = {row["attacker"]: row for row in found["rows"]}
    assert set(rows) == set(WAYS)
    assert rows["reverse"]["operations"] == 1 and rows["no-grad"]["bytes"] == 0
    assert all(row["bytes"] == row["elements_per_token"] * 512 * 2 for row in found["rows"])
    # 28 layers, of which only the DLR-Net's part differs: states of 15 blocks and x_0 against one state
    assert rows["reverse"]["elements_per_token"] - rows["inversion"]["elements_per_token"] == 28 * 15 * 1024
    assert rows["inversion"]["times_unlocked"] < 1 < rows["reverse"]["times_unlocked"]


def test_the_frontier_is_the_least_of_all_attackers(memory):
    code, out, _ = memory("--json", "-", "--depth", "48", "--norm", "rms")
    rows = json.loads(out)["frontier"]
    assert code == 0 and [(r["goal"], round(r["budget"], 2)) for r in rows] == [
        (goal, budget) for goal in ("all", "attention") for budget in (1.0, 1.33, 2.0, 3.0)
    ]
    for goal in ("all", "attention"):
        sizes = [r["elements_per_token"] for r in rows if r["goal"] == goal]
        assert sizes == sorted(sizes, reverse=True)
    assert rows[0]["attacker"] == rows[0]["unlocked_attacker"] == "default reverse mode"
    assert all(r["bytes"] == r["elements_per_token"] * 1024 * 2 for r in rows)
    plain = survey("qwen3-0.6b", mlp="swiglu", depth=48, norm="none", attackers="all", tokens=1024)
    assert {row.times_unlocked for row in plain.frontier} == {1.0}


def test_a_checkpoint_directory_and_the_unlocked_model():
    found = survey(str(zoo_path("base")), mlp="swiglu", depth=48, norm="none", attackers="all", tokens=64)
    assert found.depth is None and "inversion" not in {row.attacker for row in found.rows}
    sizes = {row.attacker: row.elements_per_token for row in found.rows}
    assert sizes["reverse"] - sizes["frozen"] == 4 * (storage.swiglu(384, fused=True).per_token - 2 * 384 + 128)
    assert all(row.times_unlocked is None for row in found.rows)


@pytest.mark.parametrize("norm", ["none", "rms", "rms_gain"])
def test_timelines_end_where_the_table_says(norm):
    found = survey("qwen3-8b", mlp="dlr", depth=48, norm=norm, attackers="all", tokens=256)
    rows = {row.attacker: row for row in found.rows}
    assert [curve.name for curve in found.timelines] == [name for name in WAYS if name in DRAWN]
    for curve in found.timelines:
        row, state = rows[curve.name], 4096 * 256 * 2 / 1e6
        assert curve.x[-1] == pytest.approx(row.operations, rel=1e-9)
        assert all(a <= b for a, b in zip(curve.x, curve.x[1:], strict=False))
        if row.bytes:
            assert max(curve.y) == pytest.approx(row.bytes / 1e6 + state, rel=1e-9)
            assert curve.y[0] == curve.y[-1] == state


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href")]


def test_the_page_stands_alone(memory, tmp_path):
    page = tmp_path / "memory.html"
    code, out, _ = memory("--html", str(page), "--attacker", "reverse,inversion")
    assert code == 0 and "reverse" in out and "no-grad" not in out
    text, parser = page.read_text(), _Page()
    parser.feed(text)
    assert parser.tags.count("figure") == 2 and "svg" in parser.tags
    assert not parser.links and "script" not in parser.tags and "http" not in text.replace("http://www.w3.org", "")
    assert list(tmp_path.iterdir()) == [page]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--norm", "layer"), "--norm 'layer' is unknown: choose from none, rms, rms_gain"),
        (("--mlp", "moe"), "--mlp 'moe' is unknown: choose from swiglu, dlr"),
        (("--depth", "5000"), "--depth 5000: parity: depth 5000 leaves less than rank 1"),
        (("--config", "no/such"), "--config no/such: neither a directory with config.json nor one of qwen3-0.6b"),
        (("--attacker", "reverse,bogus"), "--attacker 'bogus': choose from all, no-grad"),
        (("--mlp", "swiglu", "--attacker", "inversion"), "--attacker 'inversion': choose from all"),
        (("--html", "no/such/page.html"), "--html no/such/page.html: No such file or directory"),
        (("--tokens", "0"), "--tokens"),
    ],
)
def test_bad_input_is_one_line(memory, options, words):
    code, out, err = memory(*options)
    assert code == BAD_INPUT and out == "" and words in err and len(err.splitlines()) == 1


def test_a_directory_with_a_broken_config(memory, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    code, _, err = memory("--config", str(tmp_path))
    assert code == BAD_INPUT and "only 'qwen3' is supported" in err
