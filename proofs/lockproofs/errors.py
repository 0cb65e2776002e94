"""What stops a check or a command on account of its input."""


class MissingInput(Exception):
    """Raised by a check that needs what this subject does not have; the claim is skipped for that reason."""


class BadInput(Exception):
    """Something the user gave is wrong: one line saying what, where, what to do. Exit code 3."""
