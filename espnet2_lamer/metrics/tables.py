"""Figures as text: Markdown tables, CSV, numbers of the tables."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


def render(template: Path, **values: Any) -> str:
    """Render a page of Markdown; its filters are the functions of this module.

    Blocks of the template take no line of the page; ``one_line`` joins lines.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "span": span, "p": p_value}
    environment.filters["one_line"] = lambda text: " ".join(text.split()) + "\n"
    page = environment.from_string(template.read_text(encoding="utf-8"))
    return page.render(**values).rstrip("\n") + "\n"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence]) -> str:
    """Return a Markdown table; None is a "-"."""
    lines = [header, ["---"] * len(header), *rows]
    cells = (["-" if cell is None else str(cell) for cell in line] for line in lines)
    return "".join("|" + "|".join(line) + "|\n" for line in cells)


def csv_text(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    about: Iterable[tuple[str, str]] = (),
) -> str:
    """Return rows as CSV; None is an empty cell.

    What ``about`` says of all rows stands above them in lines ``# name: value``.
    """
    from pandas import DataFrame

    # As objects: whole numbers stay whole beside empty cells.
    table = DataFrame([*rows], columns=[*columns], dtype=object)
    head = "".join(f"# {name}: {' '.join(value.split())}\n" for name, value in about)
    return head + table.to_csv(index=False, lineterminator="\n")


class CsvTable(NamedTuple):
    """A CSV: what is said of all rows, the names of the columns, and the rows."""

    about: list[tuple[str, str]]
    columns: list[str]
    rows: list[dict[str, str]]


def read_csv(path: str | Path) -> CsvTable:
    """Return what :func:`csv_text` wrote."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    count = next((n for n, line in enumerate(lines) if line[:1] != "#"), len(lines))
    said = (line[1:].partition(":") for line in lines[:count])
    about = [(name.strip(), value.strip()) for name, _, value in said]
    table = csv.DictReader(lines[count:])
    return CsvTable(about, [*(table.fieldnames or ())], [*table])


def number(value: float | None, sign: str = "", digits: int = 2) -> str:
    """Return a figure; "-" for one that is not there."""
    return "-" if value is None else f"{value:{sign}.{digits}f}"


def span(interval: tuple[float, float] | None, sign: str = "", digits: int = 2) -> str:
    """Return an interval; "-" for one that is not there."""
    if interval is None:
        return "-"
    return " to ".join(number(bound, sign, digits) for bound in interval)


def p_value(p: float | None, equals: str = "") -> str:
    """Return a p-value; no table says 0. ``equals`` stands before one that is told."""
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"{equals}{p:.3f}"
