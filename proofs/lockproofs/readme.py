"""What pages for readers take from the code: `python -m lockproofs.readme` writes it between their markers again.

Without arguments it refreshes README.md and docs/*.md of the checkout it stands in. On a page,

    <!-- verdicts -->    … <!-- /verdicts -->      is the table of all claims, and with ids' beginnings, as in
    <!-- verdicts MB TAYLOR --> … <!-- /verdicts -->   of these claims only;
    <!-- proofs MB TAYLOR -->   … <!-- /proofs -->     says how each of them is checked, or its proof;
    <!-- excerpt MB-T2A -->     … <!-- /excerpt -->    is what the published report, docs/report.json, found; and
    <!-- value MB-T2A: name of a check -->…<!-- /value -->   within a line is that check's value there;
    <!-- pages --> … <!-- /pages -->                   lists the pages beside this one by their titles.

The verdicts are the recorded ones, which every audit of the embedded models compares with what it finds. The published
report is made by `lockref audit --out DIR` and copied to docs/; figures and excerpts of the pages come from it.
"""

import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lockproofs.claim import Claim, Verdict
from lockproofs.claims import all_claims
from lockproofs.render import SYMBOLS, given, plain, quantity

BLOCK = re.compile(r"<!-- (verdicts|proofs|excerpt|pages)((?: [A-Z0-9-]+)*) -->\n(.*?)<!-- /\1 -->", re.DOTALL)
VALUE = re.compile(r"<!-- value ([A-Z0-9-]+): (.*?) -->(.*?)<!-- /value -->")
MARKER = re.compile(r"<!-- /?(?:verdicts|proofs|excerpt|pages|value)\b[^>]*-->")
CHECKOUT = Path(__file__).parents[2]

Claims = Mapping[str, Claim]


def verdict_table(claims: Sequence[Claim], page: Path, proofs: Mapping[str, Path]) -> str:
    """Markdown: each claim as it is claimed, and its verdict; ids lead to the page that proves them."""
    rows = [
        f"| {_linked(c.id, page, proofs)} | {plain(c.statement)} | {SYMBOLS[c.recorded]} {c.recorded.value} |"
        for c in claims
    ]
    return "\n".join(["| claim | as it is claimed | verdict |", "| :-- | :-- | :-- |", *rows])


def _linked(claim_id: str, page: Path, proofs: Mapping[str, Path]) -> str:
    target = proofs.get(claim_id)
    if target is None:
        return claim_id
    place = "" if target == page else os.path.relpath(target, page.parent).replace(os.sep, "/")
    return f"[{claim_id}]({place}#{claim_id.lower()})"


def proof_list(claims: Sequence[Claim], page: Path) -> str:
    """Markdown: what each claim says, where the paper says it, its verdict, and how it is checked or proved."""
    return "\n\n".join(_proof(claim, page) for claim in claims)


def _proof(claim: Claim, page: Path) -> str:
    file = inspect.getsourcefile(claim.check) or ""
    code = f"[`{claim.check.__name__}`]({os.path.relpath(file, page.parent).replace(os.sep, '/')})"
    return "\n".join(
        [
            f"### {claim.id}",
            "",
            f"{SYMBOLS[claim.recorded]} **{claim.recorded.value}**: {plain(claim.statement)} "
            f"({plain(claim.source.paper)}: {plain(claim.source.where)})",
            "",
            f"`lockref explain {claim.id}` runs {code}:",
            "",
            "```text",
            inspect.getdoc(claim.check) or "",
            "```",
        ]
    )


def page_list(page: Path) -> str:
    """Markdown: the other pages of the same folder, by their first headings."""
    others = [other for other in sorted(page.parent.glob("*.md")) if other != page]
    titles = [other.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for other in others]
    return "\n".join(f"* [{title}]({other.name})" for title, other in zip(titles, others, strict=True))


@cache
def published(checkout: Path = CHECKOUT) -> dict[str, dict[str, Any]]:
    """The claims of the published report by id."""
    report = json.loads((checkout / "docs" / "report.json").read_bytes())
    return {claim["id"]: claim for claim in report["claims"]}


def excerpt(claim: Mapping[str, Any]) -> str:
    """What the published report says of a claim: verdict, finding, and the counterexample with its lines by hand."""
    verdict = Verdict(claim["verdict"])
    lines = [
        f"> **{claim['id']}** {SYMBOLS[verdict]} **{verdict.value}** ({claim['grade']}): {plain(claim['statement'])}"
    ]
    lines += [">", f"> {plain(claim['explanation'])}"]
    if found := claim["counterexample"]:
        text = f"{given(found['given'])}\n\n{found['by_hand']}\n\n{found['got']}"
        lines += [">", "> ```text", *(f"> {line}".rstrip() for line in text.splitlines()), "> ```"]
    return "\n".join(lines)


def value(claim_id: str, check: str) -> str:
    """The value of a check in the published report, with its unit. Raises ValueError where there is none."""
    for found in published().get(claim_id, {"checks": []})["checks"]:
        if found["name"] == check:
            return quantity(found["value"], found["unit"])
    raise ValueError(f"docs/report.json has no check {check!r} of {claim_id}: make the published report again")


def chosen(claims: Claims, beginnings: str) -> list[Claim]:
    """The claims whose id begins so, all without any. Raises ValueError for a beginning that no id has."""
    wanted = beginnings.split()
    if lost := [word for word in wanted if not any(_begins(i, word) for i in claims)]:
        raise ValueError(f"no claim's id begins with {lost[0]}: take the letters before an id's hyphen, or a whole id")
    return [claim for i, claim in claims.items() if not wanted or any(_begins(i, word) for word in wanted)]


def _begins(claim_id: str, word: str) -> bool:
    return f"{claim_id}-".startswith(f"{word}-")


def proof_pages(pages: Mapping[Path, str], claims: Claims) -> dict[str, Path]:
    """The page that proves each claim, where there is one."""
    return {
        claim.id: page
        for page, text in pages.items()
        for kind, words, _ in BLOCK.findall(text)
        if kind == "proofs"
        for claim in chosen(claims, words)
    }


def refreshed(page: Path, text: str, claims: Claims, proofs: Mapping[str, Path]) -> str:
    """The page's text with everything between its markers written again. Raises ValueError for lone markers."""
    write: dict[str, Callable[[list[Claim]], str]] = {
        "verdicts": lambda some: verdict_table(some, page, proofs),
        "proofs": lambda some: proof_list(some, page),
        "pages": lambda _: page_list(page),
        "excerpt": lambda some: "\n\n".join(excerpt(published()[claim.id]) for claim in some),
    }

    def block(found: re.Match[str]) -> str:
        kind, words, _ = found.groups()
        return f"<!-- {kind}{words} -->\n{write[kind](chosen(claims, words))}\n<!-- /{kind} -->"

    def number(found: re.Match[str]) -> str:
        claim_id, check, _ = found.groups()
        return f"<!-- value {claim_id}: {check} -->{value(claim_id, check)}<!-- /value -->"

    if lone := MARKER.findall(VALUE.sub("", BLOCK.sub("", text))):
        raise ValueError(f"{page}: {lone[0]} has no partner: a block is <!-- NAME … -->, a line, <!-- /NAME -->")
    return VALUE.sub(number, BLOCK.sub(block, text))


def pages(checkout: Path = CHECKOUT) -> dict[Path, str]:
    """README.md and docs/*.md, as they are."""
    return {page: page.read_text(encoding="utf-8") for page in (checkout / "README.md", *_docs(checkout))}


def _docs(checkout: Path) -> list[Path]:
    return sorted((checkout / "docs").glob("*.md"))


def stale(checkout: Path = CHECKOUT) -> dict[Path, str]:
    """The pages that differ from what the code says, as they should be."""
    found, claims = pages(checkout), all_claims()
    proofs = proof_pages(found, claims)
    fresh = {page: refreshed(page, text, claims, proofs) for page, text in found.items()}
    return {page: text for page, text in fresh.items() if text != found[page]}


def main() -> None:
    """Rewrites each stale page as a whole."""
    for page, text in stale().items():
        temporary = page.with_name(f".{page.name}.tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, page)
        print(f"wrote {page}")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1:] != ["README.md"]:
        sys.exit("python -m lockproofs.readme takes no arguments: it refreshes README.md and docs/*.md")
    main()
