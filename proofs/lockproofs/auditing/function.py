"""FULL-FUNC on a directory: does SUBJECT compute what its unlocked reference computes, within the stated budget?"""

from typing import Any

import numpy as np

from lockproofs.auditing.difference import EXACT, Change, changes, summary
from lockproofs.auditing.measure import ROWS, Gap, again, losses, rows, storage_unit, where
from lockproofs.claim import Check, Context, Counterexample, Evidence, Grade, OnSubject, Verdict
from lockproofs.rounding import UNIT64, rounding_error
from lockproofs.subject import Subject
from lockref.locks.full import Composed
from lockref.models import qwen3

STREAM, NOISE = 11, 12  # of random numbers
LOGITS = 16  # tokens whose logits are compared one by one
DRAWS = 4  # samples of round-off
WIDE = 0.1  # of the loss: less is known of it than a budget needs; ours
WHAT = "the unlocked model that it claims to equal"


def budget(subject: Subject) -> tuple[float, str] | None:
    """The share by which the loss may rise, and who says so; None where nobody does."""
    if subject.budget is not None:
        return subject.budget, "--budget"
    figures = subject.lock.manifest.figures if subject.lock else {}
    for key in ("budget", "loss_gap"):
        value = figures.get(key)
        if isinstance(value, int | float):
            return max(0.0, float(value)), f"lock.json's {key}"
    return None


def logits(model: Composed, tokens: Any) -> Any:
    """Of one row."""
    return qwen3.forward(model.tensors, tokens, model.config, model.composition.block)


def round_off(ctx: Context, model: Composed, found: list[Change], tokens: Any) -> float:
    """How far logits may be apart: what float64 rounds in both, and what storing changed tensors rounded, sampled."""
    rng, block = ctx.rng(NOISE), model.composition.block

    def run(tensors: Any) -> Any:
        return qwen3.forward(tensors, tokens, model.config, block)

    computed = 2 * rounding_error(run, model.tensors, unit=UNIT64, rng=rng, draws=DRAWS)
    mixed = {n for c in found if c.known and c.kind not in EXACT for n in c.tensors}
    if not mixed:
        return float(computed)
    want, stored = run(model.tensors), 0.0
    for _ in range(DRAWS):
        noisy = {
            n: w * (1 + storage_unit(model, n) * rng.standard_normal(w.shape)) if n in mixed else w
            for n, w in model.tensors.items()
        }
        stored = max(stored, float(np.max(np.abs(run(noisy) - want))))
    return float(computed) + stored


def check_function(ctx: Context) -> Evidence:
    """Compare SUBJECT with the unlocked reference: tensor by tensor, logit by logit, and in loss.

    Where no MLP was replaced the function must be the same: logits may differ by round-off alone, in float64 and in the
    type that changed tensors are stored in, sampled. Where MLPs were replaced, the loss may rise by the stated budget
    (--budget, else what lock.json states) and three standard errors of the mean; rows are paired. Tensors that differ
    by no known transformation leave the claim undecided even where the losses agree: rows that were not read may tell.
    """
    subject, reference = ctx.subject.composed, ctx.subject.need("reference", WHAT)
    found = changes(subject, reference)
    by_budget = bool(subject.composition.replaces) or ctx.subject.budget is not None
    return (_within if by_budget else _same)(ctx, subject, reference, found)


def _accounted(found: list[Change]) -> Check:
    odd = [name for change in found if not change.known for name in change.tensors]
    return Check(
        name="tensors accounted for", statistic="tensors that differ from the reference by no known transformation",
        unit="tensors", value=len(odd), bound=0, sense="==", tolerance_from="bits are compared, storage rounding aside",
    )  # fmt: skip


def _same(ctx: Context, subject: Composed, reference: Composed, found: list[Change]) -> Evidence:
    """No MLP was replaced: every logit, to round-off."""
    tokens = ctx.tokens(2, LOGITS, STREAM)[0]
    apart = np.abs(logits(subject, tokens) - logits(reference, tokens))
    allowed, worst = round_off(ctx, subject, found, tokens), float(np.max(apart))
    at = [int(i) for i in np.unravel_index(int(np.argmax(apart)), apart.shape)]
    differs = not worst <= allowed
    texts = rows(ctx, STREAM, ROWS)
    gap = Gap.between(losses(ctx, subject, texts), losses(ctx, reference, texts))
    given = where(ctx.subject) | {"tokens": tokens.tolist(), "logit": at}
    return Evidence(
        verdict=Verdict.REFUTED if differs else Verdict.HOLDS,
        grade=Grade.MEASURED,
        explanation=f"{summary(found)} No MLP was replaced, so the function must stay: logits differ by at most "
        f"{worst:.2g} (round-off explains {allowed:.2g}), and on {len(texts)} rows ({ctx.subject.text}) the loss "
        f"differs by {gap.value:.2%} ± {gap.error:.2%}.",
        checks=[
            Check(name="logits", statistic="largest |logit of SUBJECT − of the reference|", unit="1", value=worst,
                  bound=allowed, sense=">=" if differs else "<=", cases=apart.size, seed=ctx.seed,
                  tolerance_from="the bound: sampled round-off of float64 and of the stored type"),
            *([] if differs else [_accounted(found)]),
        ],
        counterexample=Counterexample(
            given=given, got=rerun_logit(given), want=f"logits at most {allowed:.2g} apart",
            by_hand=f"Load both directories, run both on these tokens, look at logit {at[1]} after token {at[0] + 1}.\n"
            + summary(found),
        ) if differs else None,
        assumptions=[f"measured on {ctx.subject.text}", *ctx.subject.assumed],
        severity="high" if differs else None,
    )  # fmt: skip


def _within(ctx: Context, subject: Composed, reference: Composed, found: list[Change]) -> Evidence:
    """MLPs were replaced: the loss, within the budget."""
    stated, texts = budget(ctx.subject), rows(ctx, STREAM, ROWS)
    gap = Gap.between(losses(ctx, subject, texts), losses(ctx, reference, texts))
    lacking = _lacking(ctx.subject, gap, stated)
    least = gap.value - gap.slack
    broken = stated is not None and not lacking and least > stated[0]
    verdict = Verdict.UNDECIDED if lacking else Verdict.REFUTED if broken else Verdict.HOLDS
    given = where(ctx.subject) | {"seed": ctx.seed}
    told = f"{stated[1]} allows {stated[0]:.2%}. " if stated else ""
    return Evidence(
        verdict=verdict,
        grade=Grade.MEASURED,
        explanation=f"{summary(found)} On {len(texts)} rows ({ctx.subject.text}) the mean loss rises by "
        f"{gap.value:.2%} ± {gap.error:.2%} (standard error, rows paired). {told}{lacking}",
        checks=[
            Check(name="rise of the loss", statistic="mean loss of SUBJECT / of the reference − 1", unit="of the loss",
                  value=least if broken else gap.value, bound=stated[0] if stated else 0.0,
                  sense=">=" if broken else "<=", tolerance=0.0 if broken else gap.slack, cases=len(texts),
                  seed=ctx.seed, tolerance_from="three standard errors of the mean over rows"),
            *([] if broken else [_accounted(found)]),
        ],
        counterexample=Counterexample(
            given=given,
            got=rerun_gap(given),
            want=f"a rise of at most {stated[0]:.2%}, give or take {gap.slack:.2%}" if stated else "",
            by_hand="The mean of −ln p(next token) over the rows that `seed` draws, for both directories, and their "
            "ratio.",
        ) if broken else None,
        assumptions=[f"measured on {ctx.subject.text}: a skill can suffer more than the mean loss does",
                     *ctx.subject.assumed],
        severity="high" if broken else None,
    )  # fmt: skip


def _lacking(subject: Subject, gap: Gap, stated: tuple[float, str] | None) -> str:
    """What keeps a budget from being judged; empty where nothing does."""
    if stated is None:
        return "No budget is stated: give --budget."
    if not subject.has_text:
        return "Random tokens say little about text: give --data."
    if subject.budget is None and subject.data is None and subject.lock and "--data" in subject.lock.manifest.command:
        return "It was stated on a file of its owner's: give --data."
    if gap.slack > WIDE:
        return f"Three standard errors are {gap.slack:.1%}, too wide to judge: give more rows with --data."
    return ""


def rerun_logit(given: dict[str, Any]) -> str:
    """One logit of both models, after the given tokens."""
    ctx = again(given, 0, "reference")
    tokens, (position, token) = np.array(given["tokens"]), given["logit"]
    pair = (ctx.subject.composed, ctx.subject.need("reference", WHAT))
    got, want = (float(logits(model, tokens)[position, token]) for model in pair)
    return f"logit {token} after token {position + 1}: SUBJECT {got:.6g}, reference {want:.6g}"


def rerun_gap(given: dict[str, Any]) -> str:
    """The rise of the mean loss, on the same rows."""
    ctx = again(given, given["seed"], "reference")
    texts = rows(ctx, STREAM, ROWS)
    pair = (ctx.subject.composed, ctx.subject.need("reference", WHAT))
    got, want = (float(np.mean(losses(ctx, model, texts))) for model in pair)
    return f"mean loss {got:.6f} where the reference has {want:.6f}: {got / want - 1:.2%} more"


def _rerun(given: dict[str, Any]) -> str:
    return rerun_logit(given) if "logit" in given else rerun_gap(given)


FORMS = {
    "FULL-FUNC": OnSubject(
        applies=lambda subject: subject.has("reference") or subject.lock is not None,
        check=check_function,
        rerun=_rerun,
    )
}
