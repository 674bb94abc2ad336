"""The summary of the results says what the committed tables say."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROWS = re.findall(
    r"^\| .*\(\[\]\((results/\w+\.md)\)\) \|[^|]*"
    r"\| (\S+) \((\S+ to \S+)\) \| ([^|]+) \|$",
    (DOCS / "results.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


def test_the_summary_has_every_claim_of_the_paper_that_was_tried():
    tables = [Path(page).stem for page, *_ in ROWS]
    assert {name: tables.count(name) for name in tables} == {
        "replay": 1,
        "systems": 2,
        "ablations": 2,
        "allocations": 4,
    }


@pytest.mark.parametrize(("page", "difference", "interval", "verdict"), ROWS)
def test_a_row_of_the_summary_stands_in_its_table(page, difference, interval, verdict):
    claims = [
        line.strip("|").split("|")
        for line in (DOCS / page).read_text(encoding="utf-8").splitlines()
        if line.endswith(f"|{verdict}|")
    ]
    assert [c for c in claims if c[2:4] == [difference, interval]]
