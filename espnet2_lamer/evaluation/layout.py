"""The tables of RESULTS.md and of the report, from what results.json holds.

An experiment's page writes figures, differences and rows by the same functions. No
table has more than :data:`WIDEST` columns: what does not fit, and the full precision,
is in results.csv.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from espnet2_lamer.evaluation.runs import TRACKS
from espnet2_lamer.evaluation.scoring import BPE
from espnet2_lamer.metrics.tables import markdown_table, number, p_value, span

WIDEST = 6
#: More languages than these are in results.csv and results.json alone.
MANY = 12
_RATE_NAMES = {"char": "CER", BPE: "CER", "word": "WER"}
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Cells as text; the first row of cells is the header."""

    header: list[str]
    rows: list[list[str]]

    @property
    def markdown(self) -> str:
        """The table in Markdown."""
        return markdown_table(self.header, self.rows)


@dataclass
class Section:
    """A heading, sentences on how to read what follows, and its tables."""

    title: str
    notes: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def sections(data: Record) -> list[Section]:
    """Lay out every figure: tracks of heads first, then the further tables."""
    found = []
    for track, title in TRACKS.items():
        mine = [f for f in data["figures"] if f["track"] == track]
        if mine:
            found.append(_track_section(data, title, mine))
    for table in data["tables"]:
        mine = [
            f
            for f in data["figures"]
            if not f["track"] and f["table"] == table["title"]
        ]
        section = Section(table["title"], [table["note"]] if table["note"] else [])
        section.notes += _units(mine)
        first = "language" if table["gain"] else "what was measured"
        digits = 2 if table["measure"] == "CKA" else 1
        labels = [*dict.fromkeys(f["label"] for f in mine)]
        if table.get("systems_first") and 1 + len(labels) <= WIDEST:
            head = f"{table['measure']} by {data['column']}"
            section.tables.append(by_systems(mine, head, lambda f: f["label"]))
            found.append(section)
            continue
        made = _table(mine, table["references"], data, first, table["measure"], digits)
        section.tables.append(made)
        found.append(section)
    if data["parameters"]:
        found.append(Section("Parameters", tables=[_parameters(data["parameters"])]))
    return found


def _track_section(data: Record, title: str, figures: Sequence[Record]) -> Section:
    section = Section(title)
    parts = {f["part"] for f in figures}
    if len(parts) > MANY:
        figures = [f for f in figures if not f["part"] or f["group"]]
        section.notes.append(
            f"{len(parts) - 1} parts of the test sets are in results.csv."
        )
    section.notes += _heads(figures)
    for kind in ("error rate", "accuracy"):
        if mine := [f for f in figures if f["measure"] == kind]:
            section.notes += _units(mine)
            what = "test set", f"{kind} (%)"
            section.tables.append(_table(mine, data["baselines"], data, *what))
    return section


def _heads(figures: Sequence[Record]) -> list[str]:
    """Say once what heads read and were trained on, where that is the same in all."""
    said = []
    trained = {f["train"] for f in figures}
    if len(trained) == 1 and trained != {""}:
        said.append(f"Trained on {next(iter(trained))}.")
    heads: dict[str, dict[str, None]] = {}
    for f in figures:
        if f["head"]:
            heads.setdefault(f["head"], {})[f["system"]] = None
    if len(heads) == 1:
        said.append(f"Heads read {next(iter(heads))}.")
    elif heads:
        of = [f"{head} ({', '.join(systems)})" for head, systems in heads.items()]
        said.append(f"Heads read {'; '.join(of)}.")
    return said


def _units(figures: Sequence[Record]) -> list[str]:
    units = {f["unit"] for f in figures}
    if len(units) == 1 and (unit := next(iter(units))):
        return [f"Unit: {unit}."]
    return []


def _table(
    figures: Sequence[Record],
    references: Sequence[str],
    data: Record,
    first: str,
    value: str,
    digits: int = 1,
) -> Table:
    """Put systems side by side where they fit, else below each other."""
    systems = list(dict.fromkeys(f["system"] for f in figures))
    rows: dict[str, dict[str, Record]] = {}
    for f in figures:
        rows.setdefault(_row_name(f, figures, data), {})[f["system"]] = f
    main = _main(data, systems, references)
    tested = any(f["comparisons"] for f in figures)
    # Results of an earlier version have no such count.
    counted = any(f.get("sclite") is not None for f in figures)
    room = WIDEST - counted
    if 1 + len(systems) <= room and (main or not tested):
        # Everything is better than random weights: results.csv says by how much.
        versus = [r for r in references if tested and r in systems and r != "random"]
        versus = versus[: room - 1 - len(systems)]
        header = [f"{value} by {first}", *systems, *(f"{main} - {r}" for r in versus)]
        cells = [
            [
                name,
                *(figure_text(row.get(s), digits) for s in systems),
                *(_versus(row.get(main), r) for r in versus),
                *([" / ".join(_sclite_rate(row.get(s)) for s in systems)] * counted),
            ]
            for name, row in rows.items()
        ]
        return Table(header + ["sclite"] * counted, cells)
    versus = [r for r in reversed(references) if r in systems][: room - 3]
    header = [first, data["column"], value, *(f"minus {r}" for r in versus)]
    cells = [
        [
            name,
            system,
            figure_text(f, digits),
            *(_versus(f, r) for r in versus),
            *([_sclite_rate(f)] * counted),
        ]
        for name, row in rows.items()
        for system, f in row.items()
    ]
    return Table(header + ["sclite"] * counted, cells)


def by_systems(
    figures: Sequence[Record],
    head: str,
    name: Callable[[Record], str],
    text: Callable[[Record | None], str] = lambda f: figure_text(f, 1),
) -> Table:
    """Put what was measured side by side, systems below each other.

    ``name`` gives the column of a figure, ``text`` its cell; ``head`` stands above the
    systems.
    """
    rows: dict[str, dict[str, Record]] = {}
    for f in figures:
        rows.setdefault(f["system"], {})[name(f)] = f
    columns = [*dict.fromkeys(map(name, figures))]
    cells = [
        [system, *(text(row.get(column)) for column in columns)]
        for system, row in rows.items()
    ]
    return Table([head, *columns], cells)


def _main(
    data: Record, systems: Sequence[str], references: Sequence[str]
) -> str | None:
    """Return the one system whose differences a table has columns for, if any."""
    question = data["question"]
    if question and question["system"] in systems:
        others = {question["system"], "random", *references}
        return question["system"] if {*systems} <= others else None
    compared = [s for s in systems if s not in references]
    return compared[0] if len(compared) == 1 else None


def _row_name(figure: Record, figures: Sequence[Record], data: Record) -> str:
    """Name what was measured: label, and what differs between rows of the table."""
    words = [data.get("names", {}).get(figure["label"], figure["label"])]
    # Of "language" nobody asks what is counted.
    if len({f["unit"] for f in figures}) > 1 and figure["unit"] != "language":
        words.append(figure["unit"])
    if len({f["train"] for f in figures}) > 1:
        words.append(figure["train"])
    counts = {f["utterances"] for f in figures if f["label"] == figure["label"]}
    if len(counts) == 1 and (count := next(iter(counts))):
        words.append(f"{count} utt.")
    return ", ".join(filter(None, words))


def figure_text(figure: Record | None, digits: int) -> str:
    """Write a figure, in brackets its interval and what else qualifies it."""
    if figure is None:
        return "-"
    text = number(figure["value"], digits=digits)
    inside = [figure["note"]] if figure["note"] else []
    if figure["interval"]:
        inside.append(span(figure["interval"], digits=digits))
    if figure["deviation"] is not None:
        spread = number(figure["deviation"], digits=digits)
        inside.append(f"sd {spread}, {figure['seeds']} seeds")
    return text + (f" ({'; '.join(inside)})" if inside else "")


def _sclite_rate(figure: Record | None) -> str:
    return number(figure.get("sclite") if figure else None, digits=1)


def _versus(figure: Record | None, reference: str) -> str:
    for c in figure["comparisons"] if figure else ():
        if c["reference"] == reference:
            spread = None if reference == "random" else figure.get("spread")
            return difference_text(c, spread)
    return "-"


def difference_text(
    comparison: Record, spread: float | None = None, digits: int = 2
) -> str:
    """Write a difference, its interval, how far runs lie apart, and p, where known."""
    text = number(comparison["difference"], "+", digits)
    if comparison["interval"]:
        text += f" ({span(comparison['interval'], '+', digits)})"
    if spread is not None:
        text += f", runs ±{spread:.1f}"
    p = comparison["p"]
    return text + ("" if p is None else f", p {p_value(p)}")


def _parameters(reports: Record) -> Table:
    keys = dict.fromkeys(key for report in reports.values() for key in report)
    if 1 + len(reports) <= WIDEST:
        rows = [
            [key.replace("_", " "), *(_count(r.get(key)) for r in reports.values())]
            for key in keys
        ]
        return Table(["count", *reports], rows)
    rows = [
        [name, key.replace("_", " "), _count(report[key])]
        for name, report in reports.items()
        for key in report
    ]
    return Table(["model", "count", "value"], rows)


def _count(value: float | None) -> str:
    return f"{value:,}" if isinstance(value, int) else number(value)


def by_system(data: Record) -> dict[str, list[Section]]:
    """Return every system's error rates in sclite's columns and its confusions."""
    found: dict[str, list[Section]] = {}
    parts: dict[tuple[str, str], set[str]] = {}
    for row in [*data["counts"], *data["confusion"]]:
        parts.setdefault((row["track"], row["test"]), set()).add(row["part"])
    seeds = {row["seed"] for row in [*data["counts"], *data["confusion"]]}
    rates: dict[tuple[str, str], Table] = {}
    for row in data["counts"]:
        if row["part"] and len(parts[row["track"], row["test"]]) > MANY:
            continue
        heading = f"{_RATE_NAMES.get(row['unit'], 'TER')} (unit: {row['unit']})"
        key = row["system"], heading
        if key not in rates:
            header = "dataset Snt Wrd Corr Sub Del Ins Err S.Err".split()
            rates[key] = Table(header, [])
            section = Section(heading, tables=[rates[key]])
            found.setdefault(row["system"], []).append(section)
        rates[key].rows.append(_sclite(row, len(seeds) > 1))
    for row in data["confusion"]:
        if row["part"] or len(row["confusion"]) > MANY:
            continue
        title = f"LID: {_training(row, len(seeds) > 1)}, {row['unit']}"
        section = Section(title, tables=[_confusion(row["confusion"])])
        found.setdefault(row["system"], []).append(section)
    return found


def _sclite(row: Record, seeds: bool) -> list[str]:
    total = row["sclite"]
    length = total["sub"] + total["dele"] + total["cor"]
    errors = total["sub"] + total["dele"] + total["ins"]
    counts = total["cor"], total["sub"], total["dele"], total["ins"], errors
    return [
        _training(row, seeds),
        str(row["utterances"]),
        str(length),
        *(number(100 * count / length, digits=1) for count in counts),
        number(row["sentence_error_rate"], digits=1),
    ]


def _training(row: Record, seeds: bool) -> str:
    words = [row["label"]]
    words += [] if row["track"] in ("asr", "lid") else [f"({row['track']})"]
    words += [f"trained on {row['train']}"] if row["train"] else []
    words += [f"seed {row['seed']}"] if seeds else []
    return " ".join(words)


def _confusion(rows: Record) -> Table:
    found = [*rows, *sorted({f for row in rows.values() for f in row} - {*rows})]
    body = [[t, *(str(row.get(f, 0)) for f in found)] for t, row in rows.items()]
    return Table(["true \\ found", *found], body)
