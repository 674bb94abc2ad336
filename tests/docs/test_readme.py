"""README and install page say what the committed tables and settings say."""

import configparser
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
INSTALL = (ROOT / "docs/install.md").read_text(encoding="utf-8")


def rows(text):
    """Return the cells of every table row of a page."""
    lines = (line for line in text.splitlines() if line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_it_has_at_most_120_lines():
    assert len(README.splitlines()) <= 120


#: What the README says was measured, and what the table calls it.
MEASURED = {
    "masked accuracy, Mandarin": "masked accuracy cmn, lamer minus base",
    "error rate, English": "ASR error eng (char), lamer minus full_finetuning",
    "error rate, mean of three languages": "ASR error average, lamer minus base",
}


def test_its_figures_are_those_of_the_committed_table():
    table = (ROOT / "docs/results/systems.md").read_text(encoding="utf-8")
    judged = [row[1:3] for row in rows(table.partition("## Overview")[0])]
    found = {row[1]: row[2:] for row in rows(README) if len(row) == 4}
    for text, measure in MEASURED.items():
        difference, interval = found[text]
        told = f"{difference} ({interval}), p "
        assert any(m == measure and d.startswith(told) for m, d in judged)


def test_the_command_beside_them_is_the_one_that_made_the_table():
    table = (ROOT / "docs/results/systems.md").read_text(encoding="utf-8")
    command = re.search(r"- command: `(.+)`", table)[1]
    assert f"\n{command}\n" in README


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_lead_to_files(name):
    links = re.findall(
        r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text(encoding="utf-8")
    )
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_install_page_has_every_extra_and_every_python():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    first_cells = " ".join(row[0] for row in rows(INSTALL))
    for extra in setup["options.extras_require"]:
        assert f"`{extra}`" in first_cells, extra
    for path in (ROOT / "constraints").glob("*.txt"):
        assert f"`constraints/{path.name}`" in INSTALL
