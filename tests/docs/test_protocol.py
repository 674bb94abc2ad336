"""The comparison with the official recipe is whole, and names options that exist."""

import re
from pathlib import Path

from espnet2_lamer.bin.recipe import get_parser

PAGE = Path(__file__).resolve().parents[2] / "docs" / "protocol.md"
#: What is known to differ; a row's first cell names it.
DIFFERENCES = (
    "the paper's tasks",
    "unit of Cantonese",
    "unit of Mandarin",
    "unit of Japanese",
    "text normalisation",
    "frozen upstream",
    "errors",
    "features",
    "padding and group norm",
    "end mark",
)


def rows():
    text = PAGE.read_text(encoding="utf-8").partition("## What differs")[2]
    lines = [ln for ln in text.partition("\n## ")[0].splitlines() if ln[:1] == "|"]
    return [[cell.strip() for cell in ln.strip("|").split("|")] for ln in lines[2:]]


def test_every_difference_has_both_values_and_an_effect():
    found = {cells[0]: cells[1:] for cells in rows()}
    for name in DIFFERENCES:
        assert [key for key in found if key.startswith(name)], name
    for name, cells in found.items():
        assert len(cells) == 3 and all(cells), name


def test_its_options_exist():
    known = {*get_parser()._option_string_actions}
    named = {*re.findall(r"--\w+", PAGE.read_text(encoding="utf-8"))}
    assert named and named <= known | {"--"}
