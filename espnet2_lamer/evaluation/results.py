"""All figures of a run and their comparisons, before they are laid out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.scoring import LidScore, Score
from espnet2_lamer.metrics.bootstrap import mcnemar_exact
from espnet2_lamer.metrics.measure import Measure

#: Tracks in the order of the tables, with their headings.
TRACKS = {
    "asr": "Monolingual speech recognition",
    "multi_asr": "Multilingual speech recognition",
    "lid": "Language identification",
    "asr_lid": "Speech recognition with language identification",
}


@dataclass(frozen=True)
class Task:
    """What heads were trained for and tested on; figures of one task compare.

    Attributes:
        track: One of :data:`TRACKS`.
        test: Name of the test set.
        unit: What is counted: the scoring unit, or for LID how the language is chosen.
        train: Training speech: corpus, amount and how it was mixed.
        part: Language or group of languages when only a part of the test set counts.
    """

    track: str
    test: str
    unit: str
    train: str = ""
    part: str = ""

    @property
    def label(self) -> str:
        """Name of what was tested."""
        return f"{self.test}: {self.part}" if self.part else self.test


@dataclass
class MeasureTable:
    """A further table of figures, such as masked accuracy or forgetting.

    Attributes:
        title: Heading of the table.
        measure: What the figures are, with their unit: "masked accuracy (%)".
        rows: ``rows[label][system]``; the label is a language, or what was measured.
        reference: Systems the others are compared with, e.g. "head-only control".
        note: A sentence below the heading that says how to read the figures.
        units: What is counted, by label, where it is not the same in all rows.
    """

    title: str
    measure: str
    rows: Mapping[str, Mapping[str, Measure]]
    reference: str | Sequence[str]
    note: str = ""
    units: Mapping[str, str] = field(default_factory=dict)

    @property
    def references(self) -> list[str]:
        """The systems the others are compared with."""
        if isinstance(self.reference, str):
            return [self.reference]
        return list(self.reference)


@dataclass
class Results:
    """What a recipe's scoring stage fills in and :func:`write_results` lays out.

    Attributes:
        systems: What each upstream is, by name; the order is the tables' order.
        baselines: Systems that the others are tested against.
        recognition: ``recognition[task][system][seed]``.
        identification: ``identification[task][system][seed]``.
        heads: How the heads of a task's system were made, where that differs between
            systems, such as "layer 22".
        tables: Masked accuracy, forgetting, figures over languages and the like.
        parameters: ``layers.parameter_report`` by model.
        environment: Lines of the "Environments" section, see
            :func:`espnet2_lamer.evaluation.tables.describe_environment`.
        notes: Caveats that a reader of the numbers must know, such as "synthetic
            formant speech" or "channel-confounded".
        column: What a system is called in the tables of recognition and
            identification.
    """

    systems: Mapping[str, str]
    baselines: Sequence[str] = ()
    recognition: Mapping[Task, Mapping[str, Mapping[int, Score]]] = field(
        default_factory=dict
    )
    identification: Mapping[Task, Mapping[str, Mapping[int, LidScore]]] = field(
        default_factory=dict
    )
    heads: Mapping[tuple[Task, str], str] = field(default_factory=dict)
    tables: Sequence[MeasureTable] = ()
    parameters: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    column: str = "upstream"


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
        unit: What is counted, see :class:`Task`; "" where the table says it.
        system: The upstream or model.
        measure: Value, interval, number of utterances, seeds.
        tokens: Number of reference tokens for recognition, None otherwise.
        comparisons: Against each baseline that has the same figure.
        kind: "error rate", "accuracy", or "" for further tables.
        task: The task of a head, None for further tables.
        head: See :attr:`Results.heads`.
        trainings: Value per seed, when several were averaged.
    """

    table: str
    label: str
    unit: str
    system: str
    measure: Measure
    tokens: int | None
    comparisons: tuple[Comparison, ...]
    kind: str = ""
    task: Task | None = None
    head: str = ""
    trainings: Mapping[int, float] = field(default_factory=dict)


def collect_figures(results: Results) -> list[Figure]:
    """List all figures with their comparisons, table by table, label by label.

    Raises:
        RecipeError: A baseline or a scored system is not among the systems, or two
            systems were scored on different utterances.
    """
    scored = [*results.recognition.values(), *results.identification.values()]
    for name in (*results.baselines, *(system for row in scored for system in row)):
        if name not in results.systems:
            raise RecipeError(
                f"results: system {name!r} is not described; expected one of "
                f"{', '.join(results.systems)}"
            )
    figures = []
    for track, title in TRACKS.items():
        for task, row in (
            *results.recognition.items(),
            *results.identification.items(),
        ):
            if task.track == track:
                figures += _scored(results, task, row, title)
    for table in results.tables:
        for label, measures in table.rows.items():
            figures += [
                Figure(
                    table=table.title,
                    label=label,
                    unit=table.units.get(label, ""),
                    system=system,
                    measure=measure,
                    tokens=None,
                    comparisons=_against(measures, system, table.references, label),
                )
                for system, measure in measures.items()
            ]
    return figures


def _scored(
    results: Results,
    task: Task,
    row: Mapping[str, Mapping[int, Score | LidScore]],
    title: str,
) -> list[Figure]:
    """Return a task's figure of every system that was scored on it."""
    measures = {
        system: Measure.of_seeds([_measure(score) for score in row[system].values()])
        for system in results.systems
        if system in row
    }
    figures = []
    for system, measure in measures.items():
        first = next(iter(row[system].values()))
        identified = isinstance(first, LidScore)
        figures.append(
            Figure(
                table=title,
                label=task.label,
                unit=task.unit,
                system=system,
                measure=measure,
                tokens=None if identified else first.ref_length,
                comparisons=_against(
                    measures, system, results.baselines, task.label, identified
                ),
                kind="accuracy" if identified else "error rate",
                task=task,
                head=results.heads.get((task, system), ""),
                trainings={
                    seed: _measure(score).value for seed, score in row[system].items()
                },
            )
        )
    return figures


def _measure(score: Score | LidScore) -> Measure:
    if isinstance(score, LidScore):
        return accuracy_measure(score)
    return error_measure(score)


def error_measure(score: Score) -> Measure:
    """Return an error rate as a figure."""
    return Measure(
        value=score.error_rate,
        interval=score.interval,
        count=score.utterances,
        parts={u: (c.errors, c.ref_length) for u, c in score.counts.items()},
    )


def accuracy_measure(score: LidScore) -> Measure:
    """Return an accuracy as a figure."""
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
    identified: bool = False,
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
        # McNemar's test counts right and wrong: not defined for means over seeds.
        if identified and row[system].seeds == row[reference].seeds == 1:
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
