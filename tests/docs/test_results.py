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


def claims(page):
    """Return (difference, interval, verdict) of the claims that a table judges."""
    text = (DOCS / page).read_text(encoding="utf-8")
    section = text.partition("## What holds in small")[2].partition("\n## ")[0]
    rows = [
        line.strip("|").split("|")
        for line in section.splitlines()
        if line.startswith("|")
    ]
    return [(row[2], row[3], row[5]) for row in rows[2:]]


@pytest.mark.parametrize(
    ("table", "count"),
    [("replay", 1), ("systems", 2), ("ablations", 2), ("allocations", 4)],
)
def test_the_summary_repeats_the_first_claims_of_a_table(table, count):
    page = f"results/{table}.md"
    rows = [tuple(row) for found, *row in ROWS if found == page]
    assert len(rows) == count
    assert rows == claims(page)[:count]
