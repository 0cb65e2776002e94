"""What pages for readers take from the code: `python -m lockproofs.readme` writes it between their markers again.

Without arguments it refreshes README.md and docs/*.md of the checkout it stands in. On a page,

    <!-- verdicts -->    … <!-- /verdicts -->      is the table of all claims, and with ids' beginnings, as in
    <!-- verdicts MB TAYLOR --> … <!-- /verdicts -->   of these claims only;
    <!-- proofs MB TAYLOR -->   … <!-- /proofs -->     says how each of them is checked, or its proof;
    <!-- excerpt MB-T2A -->     … <!-- /excerpt -->    is what the published report, docs/report.json, found; and
    <!-- value MB-T2A: name of a check -->…<!-- /value -->   within a line is that check's value there;
    <!-- pages --> … <!-- /pages -->                   lists the pages of docs/ with what each says it is about:
    <!-- about: what PyTorch keeps -->                 below a page's title.

A link [`symbol`](../path/file.py) to what a module defines gets the line of the definition: file.py#L42.

The verdicts are the recorded ones, which every audit of the embedded models compares with what it finds. The published
report is made by `lockref audit --out DIR` and copied to docs/; figures and excerpts of the pages come from it.
"""

import ast
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lockproofs.claim import Claim, Verdict
from lockproofs.claims import all_claims
from lockproofs.render import SYMBOLS, given, plain, quantity

BLOCK = re.compile(r"<!-- (verdicts|proofs|excerpt|pages)((?: [A-Z0-9-]+)*) -->\n(.*?)<!-- /\1 -->", re.DOTALL)
VALUE = re.compile(r"<!-- value ([A-Z0-9-]+): (.*?) -->(.*?)<!-- /value -->")
ABOUT = re.compile(r"<!-- about: (.+?) -->\n")
LINK = re.compile(r"\[`([\w.]+)`\]\(([^)#:\s]+\.py)(?:#L\d+)?\)")
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
    place = "" if target == page else _from(page, target)
    return f"[{claim_id}]({place}#{claim_id.lower()})"


def _from(page: Path, target: Path | str) -> str:
    """The target as a link on the page reads."""
    return os.path.relpath(target, page.parent).replace(os.sep, "/")


def proof_list(claims: Sequence[Claim], page: Path) -> str:
    """Markdown: what each claim says, where the paper says it, its verdict, and how it is checked or proved."""
    return "\n\n".join(_proof(claim, page) for claim in claims)


def _proof(claim: Claim, page: Path) -> str:
    file = inspect.getsourcefile(claim.check) or ""
    code = f"[`{claim.check.__name__}`]({_from(page, file)})"
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


def page_list(page: Path, checkout: Path = CHECKOUT) -> str:
    """Markdown: the other pages of docs/, each with what it is about. Raises ValueError where one does not say it."""
    return "\n".join(
        f"* [{title(text)}]({_from(page, other)}): {about(other, text)}"
        for other in _docs(checkout)
        if other != page and other.name != "README.md"
        for text in [other.read_text(encoding="utf-8")]
    )


def title(text: str) -> str:
    """A page's first heading."""
    return text.partition("\n")[0].removeprefix("# ")


def about(page: Path, text: str) -> str:
    """What a page says it is about. Raises ValueError where it does not."""
    if not (found := ABOUT.search(text)):
        raise ValueError(f"{page}: it is in the index; say in a line below its title <!-- about: … -->")
    return found[1]


def anchored(page: Path, text: str) -> str:
    """The text, its links to symbols with the lines of today. Raises ValueError for a symbol that is not there."""

    def link(found: re.Match[str]) -> str:
        symbol, target = found.groups()
        file = page.parent / target
        if symbol == file.name:
            return found[0]
        if (line := definitions(file).get(symbol)) is None:
            raise ValueError(f"{page}: [`{symbol}`]({target}): {file.name} does not define it; mend the link")
        return f"[`{symbol}`]({target}#L{line})"

    return LINK.sub(link, text)


@cache
def definitions(file: Path) -> dict[str, int]:
    """Line of everything that a module defines at its top, and of its classes' members as Class.member."""
    try:
        return dict(_defined(ast.parse(file.read_text(encoding="utf-8")).body))
    except OSError:
        return {}


def _defined(body: Sequence[ast.stmt], inside: str = "") -> Iterator[tuple[str, int]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield inside + node.name, node.lineno
        if isinstance(node, ast.ClassDef):
            yield from _defined(node.body, f"{inside}{node.name}.")
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        yield from ((inside + t.id, node.lineno) for t in targets if isinstance(t, ast.Name))


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
    return anchored(page, VALUE.sub(number, BLOCK.sub(block, text)))


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
    try:
        fresh = stale()
    except ValueError as error:
        sys.exit(str(error))
    for page, text in fresh.items():
        temporary = page.with_name(f".{page.name}.tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, page)
        print(f"wrote {page}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit("python -m lockproofs.readme takes no arguments: it refreshes README.md and docs/*.md")
    main()
