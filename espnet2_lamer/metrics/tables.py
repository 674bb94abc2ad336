"""Figures as text: Markdown tables, CSV, numbers of the tables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table, and an empty one."""
    lines = [header, ["---"] * len(header), *rows]
    return ["|" + "|".join(line) + "|" for line in lines] + [""]


def markdown_records(
    rows: Sequence[Mapping[str, str]], columns: Iterable[str]
) -> list[str]:
    """Return the lines of a Markdown table of cells by column.

    Columns that no row has are left out; what one row lacks is a "-".
    """
    present = [name for name in columns if any(name in row for row in rows)]
    body = [[row.get(name, "-") for name in present] for row in rows]
    return markdown_table(present, body)


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Return rows as CSV; None is an empty cell."""
    from pandas import DataFrame

    # As objects: whole numbers stay whole beside empty cells.
    table = DataFrame([*rows], columns=[*columns], dtype=object)
    return table.to_csv(index=False, lineterminator="\n")


def bounds(interval: tuple[float, float] | None) -> tuple[float | None, float | None]:
    """Return the two ends of an interval, None where it was not estimated."""
    return interval or (None, None)


def number(value: float | None, sign: str = "", digits: int = 2) -> str:
    """Return a figure; "-" for one that is not there."""
    return "-" if value is None else f"{value:{sign}.{digits}f}"


def span(interval: tuple[float, float] | None, sign: str = "", digits: int = 2) -> str:
    """Return an interval; "-" for one that is not there."""
    if interval is None:
        return "-"
    return " to ".join(number(bound, sign, digits) for bound in interval)


def p_value(p: float | None, equals: str = "") -> str:
    """Return a p-value; no table says 0.

    Args:
        p: The value, or None.
        equals: What stands before a value that is not below 0.001.
    """
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"{equals}{p:.3f}"
