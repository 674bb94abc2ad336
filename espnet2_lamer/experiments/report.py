"""RESULTS.md of an experiment: claims, overview, details, what is missing."""

from collections.abc import Sequence

from espnet2_lamer.experiments.statistics import Difference, Summary
from espnet2_lamer.experiments.tables import NOT_RUN, Row, Tables

_HOW_TO_READ = (
    "Mean and sd are over seeds; all systems of one seed share data and test sets. "
    "Intervals are 95 %, by a hierarchical bootstrap: each of 10,000 resamples draws "
    "seeds, and the same utterances for all of them; what varies with the seed is "
    "stretched to Student's interval of so many seeds. Differences are paired by seed "
    "and utterance; p is two-sided, of that bootstrap; p (seeds) is of a paired t test "
    "over the seeds alone, d their mean difference over its sd. No p is corrected for "
    "the number of tests. Figures marked with a star need no downstream head."
)
_DIRECTIONS = {
    "higher": "Higher is better.",
    "lower": "Lower is better.",
    "neither": "Neither direction is better.",
}
# Figures that lie between 0 and 1.
_FINE = ("CKA", "expert-language information")


def markdown(tables: Tables, picture: str | None = None) -> str:
    """Lay an experiment out as a page.

    Args:
        tables: All figures.
        picture: File beside the page that
            :func:`~espnet2_lamer.experiments.plots.plot_differences` drew, if any.
    """
    head = tables.head()
    lines = [f"# {head['title']}", ""]
    if head["source"]:
        lines += [f"Source of the question: {head['source']}.", ""]
    lines += [f"- {name}: `{value}`" for name, value in head["header"].items()]
    lines += ["", _HOW_TO_READ, ""]
    if tables.definition.note:
        lines += [tables.definition.note, ""]
    lines += _claims(tables)
    if picture:
        lines += [f"![Differences to {tables.definition.baseline}]({picture})", ""]
    lines += _compared(tables) + _overview(tables)
    lines += _transfer(tables)
    for name in tables.names:
        lines += _details(tables, name)
    lines += _missing(tables)
    return "\n".join(lines).rstrip("\n") + "\n"


def _claims(tables: Tables) -> list[str]:
    if not tables.verdicts:
        return []
    header = ["claim", "measured", "difference", "95 % interval", "p", "verdict"]
    rows = [
        [
            v.claim.text,
            f"{v.claim.measure}, {v.claim.system} minus {v.claim.than}",
            *_difference(v.difference, v.claim.measure)[:3],
            v.verdict,
        ]
        for v in tables.verdicts
    ]
    return ["## What holds in small", "", *_table(header, rows)]


def _compared(tables: Tables) -> list[str]:
    rows = [
        [name, system.description, f"{tables.done(name)} of {len(system.seeds)}"]
        for name, system in tables.definition.systems.items()
    ]
    return [
        "## What was compared",
        "",
        *_table(["system", "what it is", "seeds run"], rows),
    ]


def _overview(tables: Tables) -> list[str]:
    systems = list(tables.definition.systems)
    rows = []
    for measure in tables.names:
        # Layer by layer is for the details.
        if "layer" not in measure:
            found = [tables.row(measure, name) for name in systems]
            rows.append([_star(tables, measure), *(_value(tables, r) for r in found)])
    if not rows:
        return []
    told = (
        f"Mean ± sd over seeds. Bold: differs from {tables.definition.baseline}, the "
        "95 % interval of the difference leaves 0 out."
    )
    if len({tables.done(name) for name in systems} - {0}) > 1:
        told += (
            " Not all systems have the same seeds: compare them by their differences, "
            "which are of common seeds, not by these means."
        )
    return [
        "## Overview",
        "",
        told,
        "",
        *_table(["measure", *systems], rows),
    ]


def _value(tables: Tables, row: Row) -> str:
    if row.summary is None:
        return _absent(tables, row)
    value = _mean(row.summary, row.measure)
    return f"**{value}**" if row.difference and row.difference.told else value


def _details(tables: Tables, name: str) -> list[str]:
    rows = [row for row in tables.rows if row.measure == name]
    header = ["system", "seeds", "mean", "sd", "95 % interval"]
    header += [f"minus {tables.definition.baseline}", "95 % interval", "p", "d"]
    header += ["p (seeds)"]
    with_null = any(row.null is not None for row in rows)
    header += ["by chance"] if with_null else []
    cells = []
    for row in rows:
        s = row.summary
        line = [row.system]
        if s is None:
            line += ["0", _absent(tables, row), "-", "-"]
        else:
            line += [str(len(s.seeds)), _number(s.mean, name)]
            line += [_number(s.deviation, name), _span(s.interval, name)]
        line += _difference(row.difference, name)
        line += [_number(row.null, name)] if with_null else []
        cells.append(line)
    title, direction = _star(tables, name), _DIRECTIONS[rows[0].better]
    return [f"## {title}", "", direction, "", *_table(header, cells)]


def _transfer(tables: Tables) -> list[str]:
    steps = tables.definition.transfer
    if not steps:
        return []
    rows = []
    for measure, entry in tables.transfer().items():
        values = [entry["steps"].get(step) for step in steps]
        cells = [NOT_RUN if v is None else _number(v, measure) for v in values]
        transfer = _difference(entry["backward_transfer"], measure)[:3]
        rows.append([measure, *cells, *transfer])
    header = [f"{step} ({lang})" for step, lang in steps.items()]
    header += ["backward transfer", "95 % interval", "p"]
    return [
        "## Transfer matrix",
        "",
        "Each step continues the one before; in brackets what it learnt. Backward "
        "transfer is the value after the last step minus that after the step that "
        "learnt the language: what later languages did to it. Phones: higher is "
        "better; errors: lower is.",
        "",
        *_table(["measure", *header], rows),
    ]


def _missing(tables: Tables) -> list[str]:
    lines = [
        f"- {system}, seed {seed}: {status.state}"
        + (f": {status.why}" if status.why else "")
        + (f"; log `{status.log}`" if status.log else "")
        for (system, seed), status in tables.statuses.items()
        if status.state != "done"
    ]
    return ["## Cells without a result", "", *lines, ""] if lines else []


def _absent(tables: Tables, row: Row) -> str:
    """What stands for a figure that is not there; "" for one that is."""
    if row.summary is not None:
        return ""
    return "none" if tables.done(row.system) else NOT_RUN


def _star(tables: Tables, name: str) -> str:
    free = next(row.heads_free for row in tables.rows if row.measure == name)
    return f"{name} \\*" if free else name


def _difference(difference: Difference | None, name: str) -> list[str]:
    if difference is None:
        return ["-"] * 5
    d = difference
    return [
        _number(d.mean, name, "+"),
        _span(d.interval, name, "+"),
        _p(d.p),
        _number(d.effect, ""),
        _p(d.p_seeds),
    ]


def _mean(summary: Summary, name: str) -> str:
    mean = _number(summary.mean, name)
    if summary.deviation is None:
        return mean
    return f"{mean} ± {_number(summary.deviation, name)}"


def _number(value: float | None, name: str, sign: str = "") -> str:
    digits = 3 if name.startswith(_FINE) else 2
    return "-" if value is None else f"{value:{sign}.{digits}f}"


def _span(interval: tuple[float, float] | None, name: str, sign: str = "") -> str:
    if interval is None:
        return "-"
    return " to ".join(_number(bound, name, sign) for bound in interval)


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["|" + "|".join(line) + "|" for line in lines] + [""]
