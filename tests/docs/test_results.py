"""The committed pages are those of their CSVs; the summary says what they say."""

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from espnet2_lamer.experiments.definition import read_definition
from espnet2_lamer.experiments.measures import CellMeasure
from espnet2_lamer.experiments.page import write_page
from espnet2_lamer.experiments.records import read_records
from espnet2_lamer.experiments.tables import Tables

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TABLES = sorted((DOCS / "results").glob("*.csv"))
RECORDS = sorted((DOCS / "results").glob("*.jsonl"))
ROWS = re.findall(
    r"^\| .*\(\[\]\((results/\w+\.md)\)\) \|[^|]*"
    r"\| (\S+ \(\S+ to \S+\)) \| ([^|]+) \|$",
    (DOCS / "results.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


def claims(page):
    """Return (difference with interval, verdict) of the claims of a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    section = text.partition("## Claims")[2].partition("\n## ")[0]
    rows = [
        line.strip("|").split("|")
        for line in section.splitlines()
        if line.startswith("|")
    ]
    return [(row[2].partition(", p ")[0], row[3]) for row in rows[2:]]


@pytest.mark.parametrize(
    ("table", "count"),
    [("replay", 1), ("systems", 2), ("ablations", 2), ("allocations", 4)],
)
def test_the_summary_repeats_the_first_claims_of_a_table(table, count):
    page = f"results/{table}.md"
    rows = [tuple(row) for found, *row in ROWS if found == page]
    assert len(rows) == count
    assert rows == claims(page)[:count]


def tables_of(csv):
    definition = read_definition(ROOT / f"conf/experiments/{csv.stem}.yaml")
    return Tables.of_csv(definition, csv)


@pytest.mark.parametrize("csv", TABLES, ids=lambda path: path.stem)
def test_a_page_is_what_its_definition_and_csv_print(csv):
    tables = tables_of(csv)
    page = csv.with_suffix(".md").read_text(encoding="utf-8")
    assert write_page(tables, csv.name, f"{csv.stem}.png") == page
    assert tables.as_csv().count("\n") == csv.read_text(encoding="utf-8").count("\n")


@pytest.mark.parametrize("records", RECORDS, ids=lambda path: path.stem)
def test_committed_cells_have_the_means_of_their_table(records):
    values = defaultdict(list)
    for record in read_records(records):
        for found in record["measures"]:
            measure = CellMeasure.from_dict(found)
            values[measure.name, record["system"]].append(measure.value)
    tables = tables_of(records.with_suffix(".csv"))
    compared = 0
    for (name, system), seeds in values.items():
        figure = tables.figure(name, system)
        assert len(figure.seeds) == len(seeds)
        assert figure.measure.value == pytest.approx(np.mean(seeds), rel=1e-9)
        compared += 1
    assert compared >= 10 * len({system for _, system in values})


@pytest.mark.parametrize("csv", TABLES, ids=lambda path: path.stem)
def test_figures_keep_the_command_commit_and_machine_of_their_run(csv):
    about = dict(tables_of(csv).about)
    assert about["command"].startswith("python -m espnet2_lamer.bin.experiment ")
    assert re.fullmatch("[0-9a-f]{40}", about["commit"])
    for machine in about["cells ran on"].split("; "):
        assert re.fullmatch(r"[^;]+ \([0-9a-f, ]+\)", machine)
    assert about["seeds"]


@pytest.mark.parametrize("csv", TABLES, ids=lambda path: path.stem)
def test_a_page_fits_two_screens_or_three(csv):
    assert len(csv.with_suffix(".md").read_text().splitlines()) <= 120
