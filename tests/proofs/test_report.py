"""The report is valid, reproducible, self-contained, and says the same in all three files."""

import copy
import json
import math
import re
from html.parser import HTMLParser

import jsonschema
import pytest

from lockproofs.audit import audit
from lockproofs.claim import BadInput
from lockproofs.render import given, requirement, size, write_reports
from lockproofs.report import SCHEMA_FILE, report_schema, staged, to_json

NOT_REPRODUCED = ("effort", "environment", "tool")


@pytest.fixture
def report(subject, registry):
    return audit(subject, list(registry.values()), seed=7, cases=5)


@pytest.fixture
def files(report, tmp_path):
    write_reports(report, tmp_path)
    return {file.suffix[1:]: file.read_text(encoding="utf-8") for file in tmp_path.iterdir()}


def test_the_published_schema_is_that_of_the_models():
    assert SCHEMA_FILE.read_text(encoding="utf-8") == to_json(report_schema()), "run: python -m lockproofs.report"
    jsonschema.Draft202012Validator.check_schema(report_schema())


def at(data, *path):
    for step in path:
        data = data[step]
    return data


def test_report_json_is_valid_and_the_schema_sees_faults(files):
    data = json.loads(files["json"], parse_constant=lambda word: pytest.fail(f"{word} in JSON"))
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))
    validator.validate(data)
    faults = [
        (("claims", 0, "verdict"), "maybe"),
        (("claims", 0, "grade"), "certain"),
        (("claims", 0, "kind"), "rumour"),
        (("claims", 0, "checks", 0, "value"), "0.5"),
        (("claims", 0, "checks", 0, "cases"), 0),
        (("claims", 0, "recorded"), None),
        (("coverage", "planned"), "6"),
        (("subjects", 0, "files", 0, "bytes"), 1.5),
    ]
    for path, value in faults:
        broken = copy.deepcopy(data)
        at(broken, *path[:-1])[path[-1]] = value
        assert not validator.is_valid(broken), f"{path} = {value!r} passes"
    for path in [(), ("tool",), ("coverage",), ("claims", 0), ("claims", 0, "checks", 0)]:
        for key in at(data, *path):
            broken = copy.deepcopy(data)
            del at(broken, *path)[key]
            assert not validator.is_valid(broken), f"{path} without {key} passes"
        more = copy.deepcopy(data)
        at(more, *path)["later"] = "added"
        assert validator.is_valid(more), f"{path} with an addition does not pass"


def test_report_json_has_the_names_of_the_interface(files):
    data = json.loads(files["json"])
    promised = {
        (): "schema tool environment effort subjects threat_model coverage claims deviations artifacts",
        ("tool",): "name version commit dirty",
        ("environment",): "python platform cpu blas threads packages",
        ("effort",): "wall_s cpu_s peak_rss_bytes seed",
        ("subjects", 0): "role name files parameters dtypes",
        ("subjects", 0, "files", 0): "name sha256 bytes",
        ("threat_model",): "knows can cannot break_definition",
        ("coverage",): "planned run skipped errored",
        ("claims", 0): "id title statement source kind verdict grade condition recorded checks controls "
        "counterexample assumptions deviations severity fix reproduce",
        ("claims", 0, "source"): "paper where",
        ("claims", 0, "checks", 0): "name statistic unit value bound tolerance margin cases seed",
        ("claims", 1, "controls"): "null power",
        ("deviations", 0): "paper_says we_do why effect",
    }
    for path, names in promised.items():
        assert set(names.split()) <= at(data, *path).keys(), f"{path} lacks a name"
    assert data["subjects"][0] | {"files": []} == {
        "role": "subject",
        "name": "model",
        "files": [],
        "parameters": 10,
        "dtypes": {"BF16": 6, "F32": 4},
    }
    assert data["deviations"][0]["claim"] == "X-HOLDS"


def test_the_same_seed_gives_the_same_bytes(subject, registry):
    def text(seed):
        data = audit(subject, list(registry.values()), seed=seed, cases=5).as_data()
        return to_json({key: value for key, value in data.items() if key not in NOT_REPRODUCED})

    assert text(7) == text(7)
    assert text(7) != text(8)


def test_to_json_refuses_what_json_has_not():
    with pytest.raises(ValueError, match="JSON"):
        to_json({"x": math.nan})


class Page(HTMLParser):
    """Collects what a page holds, and that its elements are closed in order."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text, self.headings = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in self.VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_self_contained_and_well_formed(files):
    page = Page(files["html"])
    loads = {"script", "link", "img", "iframe", "object", "embed", "base", "form", "video", "audio"}
    assert not loads & set(page.tags)
    assert not re.search(r"url\(|@import|https?:|javascript:", files["html"])
    ids = [value for _, name, value in page.attributes if name == "id"]
    links = [value for _, name, value in page.attributes if name in ("href", "src", "xlink:href")]
    assert len(ids) == len(set(ids))
    assert set(links) <= {f"#{i}" for i in ids}
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_the_page_can_be_read_by_everybody(files):
    page = Page(files["html"])
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    steps = zip(page.headings, page.headings[1:], strict=False)
    assert all(after <= before + 1 for before, after in steps), "a level of headings is left out"
    assert ("html", "lang", "en") in page.attributes
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert labels == ["A <plot>: y against x; curves: zero, one & only, two"]
    # Never by color alone: each curve has a dash and a marker of its own.
    dashes = {v for tag, name, v in page.attributes if (tag, name) == ("path", "stroke-dasharray")}
    assert len(dashes) == 3


def test_no_text_of_a_claim_is_markup(files):
    page = Page(files["html"])
    text = "".join(page.text)
    for said in ("for all [x], <i>x</i> = x", "It holds: 1 < 2 & 2 > 1.", "<b>not</b> bold", "one & only"):
        assert said in text
    assert "<i>" not in re.sub(r"\\<", "", files["md"])


def test_page_and_markdown_say_what_json_says(report, files):
    page = " ".join("".join(Page(files["html"]).text).split())
    markdown = " ".join(files["md"].replace("\\", "").split())
    for text in (page, markdown):
        for claim in report.claims:
            said = [claim.id, claim.title, claim.statement, claim.explanation, claim.would_change]
            said += [claim.reproduce, claim.verdict.value, claim.source.paper, *claim.assumptions]
            said += [part for check in claim.checks for part in (check.name, check.statistic)]
            said += [requirement(check) for check in claim.checks]
            said += [value for d in claim.deviations for _, value in d]
            if claim.counterexample:
                said += [claim.counterexample.got, claim.counterexample.want]
                said += [claim.counterexample.by_hand, given(claim.counterexample.given)]
            said += [claim.condition] * bool(claim.condition) + [claim.fix] * bool(claim.fix)
            for words in said:
                assert " ".join(words.split()) in text, f"{claim.id}: {words!r} is not said"
        assert "claims: 6 planned, 4 run, 1 skipped, 1 errored" in text
        assert "needs --base" in text and "a division by zero" in text
        assert "recorded: holds" in text, "a changed verdict is not shown"


def test_tables_of_markdown_have_their_columns(files):
    lines = files["md"].splitlines()
    rows = [line for line in lines if line.startswith("|")]
    for block in re.split(r"\n(?!\|)", files["md"]):
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines() if row.startswith("|")}
        assert len(widths) <= 1, f"uneven table: {block}"
    assert len(rows) > 20


@pytest.mark.parametrize(
    ("sense", "text"),
    [("<=", "≤ 1 + 2.22×10⁻¹⁶"), (">=", "≥ 1 − 2.22×10⁻¹⁶"), ("==", "= 1 ± 2.22×10⁻¹⁶")],
)
def test_a_tolerance_widens_its_bound(make_check, sense, text):
    assert requirement(make_check(sense=sense)) == text
    assert requirement(make_check(sense=sense, tolerance=0.0)) == text[:3]


def test_what_is_counted_and_measured_reads_well():
    assert [size(n) for n in (None, 12, 1_500, 2_000_000, 3_400_000_000)] == [
        "–",
        "12 bytes",
        "1.5 kB",
        "2.0 MB",
        "3.4 GB",
    ]
    assert given({"x": 1, "m": [[1, 2], [3, 4]]}) == "x = 1\nm = [[1, 2],\n    [3, 4]]"


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("out", ["new", "deep/er/new"])
def test_staged_files_appear_together(tmp_path, out):
    with staged(tmp_path / out) as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / out).exists()
    assert [path.name for path in (tmp_path / out).iterdir()] == ["a"]
    assert len(list(tmp_path.iterdir())) == 1, "something is left beside it"
    assert (tmp_path / out / "a").read_text() == "1"
    (tmp_path / "made").mkdir()
    assert (tmp_path / out).stat().st_mode == (tmp_path / "made").stat().st_mode, "a private directory"


def test_staged_files_replace_theirs_and_leave_the_others(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "notes").write_text("mine")
    with staged(tmp_path) as folder:
        (folder / "a").write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert everything(tmp_path) == ["a", "notes"]
    assert (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("exists", [True, False])
def test_an_error_leaves_nothing_behind(tmp_path, error, exists):
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    before = everything(tmp_path)
    with pytest.raises(error), staged(out) as folder:
        (folder / "a").write_text("half")
        raise error
    assert everything(tmp_path) == before


def test_a_file_in_the_way_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full" / "a").mkdir(parents=True)
    for out in ("file", "file/below"):
        with pytest.raises(BadInput, match="is a file: choose"), staged(tmp_path / out):
            pytest.fail("staged all the same")
    with pytest.raises(BadInput, match="choose another directory"), staged(tmp_path / "full") as folder:
        (folder / "a").write_text("a directory has this name")
    assert everything(tmp_path) == ["file", "full", "full/a"]
