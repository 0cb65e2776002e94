"""Every figure of the published report, drawn once."""

import json

import pytest

from lockproofs.cli import main
from lockproofs.readme import CHECKOUT

REPORT = CHECKOUT / "docs" / "report.json"


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """Every figure, drawn once."""
    folder = tmp_path_factory.mktemp("figures")
    assert main(["figures", str(folder), "--report", str(REPORT), "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def report():
    return json.loads(REPORT.read_bytes())
