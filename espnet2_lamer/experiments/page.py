"""The page of an experiment: verdicts, claims, an overview, and how it was run."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from espnet2_lamer.data.languages import named
from espnet2_lamer.evaluation.layout import (
    WIDEST,
    Table,
    by_systems,
    difference_text,
    figure_text,
)
from espnet2_lamer.experiments.figures import AVERAGE, Figure
from espnet2_lamer.experiments.measures import KINDS, Kind, Name
from espnet2_lamer.experiments.tables import (
    FAILS,
    HOLDS,
    NO_RESULT,
    NOT_RUN,
    ONE_SEED,
    UNSHOWN,
    UNTOLD,
    Tables,
)
from espnet2_lamer.metrics.bootstrap import Difference
from espnet2_lamer.metrics.tables import number, render


class Line(NamedTuple):
    """How many claims have a verdict; which, where it is one that tells something."""

    heading: str
    count: int
    claims: str


def write_page(tables: Tables, csv: str, picture: str | None = None) -> str:
    """Lay an experiment out as Markdown.

    Args:
        tables: What was found.
        csv: File beside the page with all figures in full.
        picture: File beside the page that
            :func:`~espnet2_lamer.experiments.plots.plot_differences` drew, if any.
    """
    definition = tables.definition
    counts = {tables.done(name) for name in definition.systems} - {0}
    return render(
        Path(__file__).with_name("page.md.jinja"),
        definition=definition,
        lines=[*_verdict_lines(tables)],
        claims=_claims(tables).markdown,
        systems=_systems(tables).markdown,
        overview=[table.markdown for table in _overview(tables)],
        uneven=len(counts) > 1,
        one_seed=counts == {1},
        transfer=_transfer(tables).markdown if definition.transfer else "",
        about=[line for line in tables.about if line[0] != NO_RESULT],
        missing=[text for name, text in tables.about if name == NO_RESULT],
        csv=csv,
        picture=picture,
    )


def _verdict_lines(tables: Tables) -> Iterator[Line]:
    for verdict in (HOLDS, FAILS, UNSHOWN, UNTOLD, ONE_SEED, NOT_RUN):
        mine = [v.claim.text for v in tables.verdicts if v.verdict == verdict]
        if mine:
            said = "; ".join(mine) if verdict in (HOLDS, FAILS) else ""
            yield Line(verdict.capitalize(), len(mine), said)


def _claims(tables: Tables) -> Table:
    rows = [
        [
            claim.text,
            f"{claim.measure}, {claim.system} minus {claim.than}",
            _difference(found, digits),
            verdict,
        ]
        for claim, verdict, found, digits in tables.verdicts
    ]
    return Table(["claim", "measured", "difference", "verdict"], rows)


def _systems(tables: Tables) -> Table:
    """Say what each system is, and its figures that are of no language."""
    kinds = [k for k in KINDS if _figures(tables, k) and not _by_language(tables, k)]
    rows = []
    for name, system in tables.definition.systems.items():
        done = tables.done(name)
        seeds = f"{done} of {len(system.seeds)}" if done else NOT_RUN
        found = (tables.figure(kind, name) for kind in kinds)
        values = (number(f and f.measure.value, digits=2) for f in found)
        rows.append([name, system.description, seeds, *values])
    return Table(["system", "what it is", "seeds", *kinds], rows)


def _figures(tables: Tables, kind: str) -> list[Figure]:
    """Return the figures of a kind but those of single layers, averages first."""
    found = [f for f in tables.figures if f.name.kind == kind and f.name.layer is None]
    return sorted(found, key=lambda f: f.name.label != AVERAGE)


def _by_language(tables: Tables, kind: str) -> bool:
    return any(f.name.label for f in _figures(tables, kind))


def _overview(tables: Tables) -> Iterator[Table]:
    """Yield a table per kind: a row per system, a column per language."""
    base = tables.definition.baseline
    order = [*tables.definition.systems]
    for name, kind in KINDS.items():
        if not _by_language(tables, name):
            continue
        mine = _figures(tables, name)
        for shown in _columns({f.name: None for f in mine}):
            records = [_record(f, base, kind) for f in mine if f.name in shown]
            records.sort(key=lambda r: order.index(r["system"]))
            better = "" if kind.better == "neither" else f", {kind.better} is better"
            yield by_systems(
                records,
                f"{name}{better}",
                lambda r: r["label"],
                lambda r: r["text"] if r else "-",
            )


def _columns(names: Iterable[Name]) -> Iterator[list[Name]]:
    """Divide what was measured into tables: by unit where a language has several."""
    names = [*names]
    several = len({name.label for name in names}) < len(names)
    for unit in dict.fromkeys(name.unit if several else "" for name in names):
        mine = [name for name in names if not several or name.unit == unit]
        for start in range(0, len(mine), WIDEST - 1):
            yield mine[start : start + WIDEST - 1]


def _record(figure: Figure, base: str, kind: Kind) -> dict[str, Any]:
    """Return a figure as the tables of results have it, and its cell."""
    words = [named(figure.name.label) or "all", figure.name.unit]
    record = {
        "system": figure.system,
        "label": ", ".join(filter(None, words)),
        "value": figure.measure.value,
        "interval": kind.possible(figure.measure.interval),
        # In the CSV; the interval is over seeds, too.
        "deviation": None,
        "note": "",
    }
    text = figure_text(record, kind.digits)
    if found := figure.differences.get(base):
        change = _difference(found, kind.digits, p=False)
        text += f"; **{change}**" if found.told else f"; {change}"
    return record | {"text": text}


def _difference(found: Difference | None, digits: int, p: bool = True) -> str:
    if found is None:
        return "-"
    values = {"difference": found.value, "interval": found.interval}
    return difference_text(values | {"p": found.p if p else None}, digits=digits)


def _transfer(tables: Tables) -> Table:
    """Put the value after each step beside what later steps did to it."""
    steps = tables.definition.transfer
    heads = [f"{step} ({lang})" for step, lang in steps.items()]
    rows = [
        [
            name,
            *(number(v, digits=entry["kind"].digits) for v in entry["steps"].values()),
            _difference(entry["backward"], entry["kind"].digits),
        ]
        for name, entry in tables.transfer().items()
    ]
    return Table(["measure", *heads, "backward transfer"], rows)
