"""The errors of all keyless guesses from squared distances, beside those of the guesses written out."""

import numpy as np

from lockproofs.attention_trials import head_errors
from lockproofs.auditing import undoing
from lockproofs.subject import Subject
from lockref.attacks import keyless
from lockref.locks.attention import TOPK, TOPK_PLANES, project, projections
from lockref.models.checkpoint_io import load_checkpoint
from lockref.models.zoo import zoo_path

SQRT_EPS = float(np.sqrt(np.finfo(float).eps))


def test_errors_by_distance_are_those_of_the_guesses(monkeypatch):
    """A squared distance errs by some c eps of the squared norm, its root by √(c eps): c = 64 for sums of 32 blocks."""
    want = Subject({"subject": load_checkpoint(zoo_path("add"))}, False).composed
    released = project(want.tensors, want.config, projections(want.tensors, want.config, TOPK, 5))
    subject = Subject({"subject": want}, False)
    got = undoing.keyless_errors(released, want, subject)
    assert len(got) == TOPK_PLANES.most(32) + 1 + TOPK.most(32) + 1
    for guess in (0, 3, 16, 17, 22, 49):
        made = undoing.keyless_guess(released, subject, guess)
        exact = float(np.max(head_errors(made, want.tensors, want.config)))
        assert abs(got[guess] - exact) <= 8 * SQRT_EPS, f"guess {guess}: by distance {got[guess]}, written out {exact}"
    assert int(np.argmin(got)) == 17 + 5
    monkeypatch.setattr(undoing, "farther", lambda *given: -keyless.farther(*given))  # planted: the other sign
    assert abs(undoing.keyless_errors(released, want, subject)[22] - got[22]) > 0.1
