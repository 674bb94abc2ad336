"""All figures of a run and their comparisons, before they are laid out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.bootstrap import mcnemar_exact
from espnet2_lamer.evaluation.measure import Measure
from espnet2_lamer.evaluation.scoring import LidScore, Score

T = TypeVar("T")

RECOGNITION = "Speech recognition"
IDENTIFICATION = "Language identification"


@dataclass
class MeasureTable:
    """A further table of figures, such as masked accuracy or forgetting.

    Attributes:
        title: Heading of the table.
        measure: What the figures are, with their unit: "masked accuracy (%)".
        rows: ``rows[label][system]``; the label is a language, or what was measured.
        reference: The system the others are compared with, e.g. "head-only control".
        note: A sentence below the heading that says how to read the figures.
    """

    title: str
    measure: str
    rows: Mapping[str, Mapping[str, Measure]]
    reference: str
    note: str = ""


@dataclass
class Results:
    """What a recipe's scoring stage fills in and :func:`write_results` lays out.

    Attributes:
        systems: What each upstream is, by name; the order is the tables' order.
        baselines: Systems that the others are tested against.
        recognition: ``recognition[system][test_set]``; a test set is named by its
            language, followed by its corpus when there are several.
        identification: ``identification[system][test_set]``.
        tables: Masked accuracy, forgetting and the like.
        parameters: ``layers.parameter_report`` by model.
        environment: Lines of the "Environments" section, see
            :func:`espnet2_lamer.evaluation.tables.describe_environment`.
        notes: Caveats that a reader of the numbers must know, such as "synthetic
            formant speech" or "channel-confounded".
    """

    systems: Mapping[str, str]
    baselines: Sequence[str] = ()
    recognition: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)
    identification: Mapping[str, Mapping[str, LidScore]] = field(default_factory=dict)
    tables: Sequence[MeasureTable] = ()
    parameters: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Comparison:
    """A figure against a reference system's; differences in the figure's own unit.

    Attributes:
        reference: The system compared with.
        difference: Figure minus the reference's figure.
        interval: 95 % interval of the difference, or None.
        p: Two-sided p-value, or None when there are no per-utterance figures.
        test: Name of the test that gave ``p``.
    """

    reference: str
    difference: float
    interval: tuple[float, float] | None = None
    p: float | None = None
    test: str = ""


@dataclass(frozen=True)
class Figure:
    """One number of the results with everything that qualifies it.

    Attributes:
        table: Title of its table.
        label: Test set, language or what was measured.
        unit: Scoring unit for recognition, "" otherwise.
        system: The upstream or model.
        measure: Value, interval, number of utterances.
        tokens: Number of reference tokens for recognition, None otherwise.
        comparisons: Against each baseline that has the same figure.
    """

    table: str
    label: str
    unit: str
    system: str
    measure: Measure
    tokens: int | None
    comparisons: tuple[Comparison, ...]


def collect_figures(results: Results) -> list[Figure]:
    """List all figures with their comparisons, table by table, label by label.

    Raises:
        RecipeError: A baseline or a scored system is not among the systems, or two
            systems were scored in different units or on different utterances.
    """
    for name in (*results.baselines, *results.recognition, *results.identification):
        if name not in results.systems:
            raise RecipeError(
                f"results: system {name!r} is not described; expected one of "
                f"{', '.join(results.systems)}"
            )
    figures = _recognition(results) + _identification(results)
    for table in results.tables:
        for label, row in table.rows.items():
            figures += [
                Figure(
                    table=table.title,
                    label=label,
                    unit="",
                    system=system,
                    measure=measure,
                    tokens=None,
                    comparisons=_against(row, system, [table.reference], label),
                )
                for system, measure in row.items()
            ]
    return figures


def _recognition(results: Results) -> list[Figure]:
    figures = []
    for label in _labels(results.recognition):
        scores = _column(results, results.recognition, label)
        units = {score.unit for score in scores.values()}
        if len(units) > 1:
            raise RecipeError(
                f"results: test set {label!r} is scored in units "
                f"{', '.join(sorted(units))}; score all systems in one unit"
            )
        row = {system: _error_rate(score) for system, score in scores.items()}
        figures += [
            Figure(
                table=RECOGNITION,
                label=label,
                unit=score.unit,
                system=system,
                measure=row[system],
                tokens=score.ref_length,
                comparisons=_against(row, system, results.baselines, label),
            )
            for system, score in scores.items()
        ]
    return figures


def _identification(results: Results) -> list[Figure]:
    figures = []
    for label in _labels(results.identification):
        scores = _column(results, results.identification, label)
        row = {system: _accuracy(score) for system, score in scores.items()}
        figures += [
            Figure(
                table=IDENTIFICATION,
                label=label,
                unit="",
                system=system,
                measure=row[system],
                tokens=None,
                comparisons=_against(
                    row, system, results.baselines, label, mcnemar=True
                ),
            )
            for system in scores
        ]
    return figures


def _labels(by_system: Mapping[str, Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(label for row in by_system.values() for label in row))


def _column(
    results: Results, by_system: Mapping[str, Mapping[str, T]], label: str
) -> dict[str, T]:
    return {
        system: by_system[system][label]
        for system in results.systems
        if label in by_system.get(system, {})
    }


def _error_rate(score: Score) -> Measure:
    return Measure(
        value=score.error_rate,
        interval=score.interval,
        count=score.utterances,
        parts={u: (c.errors, c.ref_length) for u, c in score.counts.items()},
    )


def _accuracy(score: LidScore) -> Measure:
    return Measure(
        value=score.accuracy,
        interval=score.interval,
        count=score.utterances,
        parts={u: (int(right), 1) for u, right in score.correct.items()},
    )


def _against(
    row: Mapping[str, Measure],
    system: str,
    references: Sequence[str],
    label: str,
    mcnemar: bool = False,
) -> tuple[Comparison, ...]:
    comparisons = []
    for reference in references:
        if reference == system or reference not in row:
            continue
        try:
            test = row[system].compare(row[reference])
        except ValueError as error:
            raise RecipeError(
                f"results: {label}: {system!r} and {reference!r} do not compare: "
                f"{error}; score both on the same test set"
            ) from error
        difference = row[system].value - row[reference].value
        if test is None:
            comparisons.append(Comparison(reference, difference))
            continue
        p, name = test.p_two_sided, "paired bootstrap"
        if mcnemar:
            utts = sorted(row[system].parts)
            p, name = (
                mcnemar_exact(
                    [row[system].parts[u][0] for u in utts],
                    [row[reference].parts[u][0] for u in utts],
                ),
                "McNemar",
            )
        low, high = test.interval
        comparisons.append(
            Comparison(reference, difference, (100 * low, 100 * high), p, name)
        )
    return tuple(comparisons)
