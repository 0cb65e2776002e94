"""Claims about one checkpoint: how a claim is checked on the directory that a user names.

A module for each question of an auditor. `FORMS` says which claims they answer; for all others a subject's weights are
one more sample.
"""

from lockproofs.auditing import barrier, function, merges, storage, taylor, trap2, undoing
from lockproofs.claim import Context, Evidence, MissingInput, OnSubject

# Claims that read stored runs of the embedded models: these runs say nothing of a directory.
STORED = (
    "DLR-LATENCY", "DLR-LANDSCAPE", "DLR-UTILITY", "DLR-FINETUNE", "DLR-REDISTILL", "TRAP-UTILITY",
    "TRAP-NOMINAL", "FULL-PIPELINE", "FULL-PARITY",
)  # fmt: skip


def _elsewhere(ctx: Context) -> Evidence:
    """Read from stored runs of the embedded models: `lockref audit`, without a directory, gives the verdict."""
    raise MissingInput("rests on stored runs of the embedded models, which say nothing of SUBJECT: see lockref audit")


FORMS: dict[str, OnSubject] = {
    **{name: OnSubject(applies=lambda _: True, check=_elsewhere, rerun=lambda _: "") for name in STORED},
    **function.FORMS,
    **undoing.FORMS,
    **barrier.FORMS,
    **merges.FORMS,
    **storage.FORMS,
    **taylor.FORMS,
    **trap2.FORMS,
}
