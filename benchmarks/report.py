"""RESULTS.md: named sections, each with its own command, machine and date."""

import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path

from espnet2_lamer.fileio.atomic import write_text

INTRODUCTION = """\
# Benchmarks

Written by `python -m benchmarks` (or `make bench`). A section is measured in one run on
one machine and replaced as a whole when it is measured again. Times are medians over
rounds in which all forms take turns; a ratio is the median over rounds of the ratio
within a round, with quartiles, and the ratio of the two fastest runs (`min`). Targets
are the project's own; the program computes whether they are met.
"""
HEADING = re.compile(r"^## ([a-z0-9_-]+): ", re.MULTILINE)
COMPARISONS = {
    "<=": lambda value, limit: value <= limit,
    ">=": lambda value, limit: value >= limit,
    ">": lambda value, limit: value > limit,
}


@dataclass
class Table:
    """A table with a title; cells are text."""

    title: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)

    def __str__(self) -> str:
        """Format as markdown."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"### {self.title}\n\n{body}"


@dataclass
class Section:
    """One measurement: ``facts`` are shown as a list, then text and tables."""

    name: str
    title: str
    facts: dict[str, str]
    blocks: list[str | Table]

    def __str__(self) -> str:
        """Format as markdown, without a trailing newline."""
        facts = "\n".join(f"- {key}: {value}" for key, value in self.facts.items())
        blocks = [f"## {self.name}: {self.title}", facts, *map(str, self.blocks)]
        return "\n\n".join(blocks)


def verdict(value: float, comparison: str, limit: float) -> str:
    """Say whether a figure meets its target, e.g. ``<= 1.15: met``."""
    met = COMPARISONS[comparison](value, limit)
    return f"{comparison} {limit:g}: {'met' if met else 'missed'}"


def megabytes(size: float) -> str:
    """Format bytes as MB (10^6), with few digits."""
    return f"{size / 1e6:.0f}" if size >= 1e8 else f"{size / 1e6:.3g}"


def update(path: Path, section: Section) -> None:
    """Put a section into RESULTS.md; the others stay as they are, in their order."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    parts: dict[str, str] = {}
    starts = list(HEADING.finditer(text))
    for match, after in itertools.zip_longest(starts, starts[1:]):
        end = after.start() if after else len(text)
        parts[match[1]] = text[match.start() : end].strip()
    parts[section.name] = str(section)
    write_text(path, "\n\n".join([INTRODUCTION.strip(), *parts.values()]) + "\n")
