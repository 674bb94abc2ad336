"""What new languages gained and old ones kept or lost, as verdicts in five lines."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from espnet2_lamer.evaluation.runs import Task
from espnet2_lamer.evaluation.spread import Spread

GAINED, KEPT, LOST, UNTOLD = "gained", "kept", "lost", "cannot be told"
#: An old language is kept where a loss of more points than this is ruled out.
KEPT_WITHIN = 1.0
#: Of p where a test other than the interval's was made (McNemar's).
_LEVEL = 0.05
#: More of one kind than these are in results.csv and the picture alone.
_MOST = 6
_NOTHING = "nothing that can be told"
_SHORT = {
    "asr": "recognition",
    "multi_asr": "multilingual recognition",
    "lid": "identification",
    "asr_lid": "recognition with identification",
}


@dataclass(frozen=True)
class Question:
    """What a run is about: which system is to have learned what, and kept what.

    Attributes:
        references: What it is compared with, by name: the base, and the control.
        languages: Language of a task that has no part (monolingual heads).
        channel_confounded: Whether recordings tell the languages apart, so that
            identification says nothing about languages.
        spread: How far two runs of such a system lie apart.
    """

    system: str
    references: tuple[str, ...]
    new_langs: tuple[str, ...]
    old_langs: tuple[str, ...]
    languages: Mapping[Task, str] = field(default_factory=dict)
    channel_confounded: bool = False
    spread: Spread = field(default_factory=Spread)

    def spread_of(self, figure: Any) -> float | None:
        """Return the points by which two runs may differ in a figure of the system."""
        if figure.system != self.system or figure.task.group:
            return None
        return self.spread.of(_kind(figure), self.language_of(figure))

    def language_of(self, figure: Any) -> str:
        """Return the language that a figure is of, "" where it is of several."""
        task = figure.task
        lang = figure.label if figure.gain else task.part
        return "" if task.group else lang or self.languages.get(task, "")

    def as_dict(self) -> dict[str, Any]:
        """Return the fields but ``languages``: part of results.json.

        Of the spread, what it was measured with.
        """
        names = ("system", "references", "new_langs", "old_langs")
        named = {name: getattr(self, name) for name in names}
        fields = {n: [*v] if isinstance(v, tuple) else v for n, v in named.items()}
        return fields | {
            "channel_confounded": self.channel_confounded,
            "spread": dict(self.spread.runs) or None,
        }


@dataclass(frozen=True)
class Change:
    """A system minus what it is compared with, in points; positive is a gain.

    Attributes:
        task: What was tested, the same for all languages: "recognition, 1h".
        unit: What is counted in this language, "" where that says nothing.
        low: Lower end of the 95 % interval, None where there is none.
        high: Upper end, None likewise.
        p: Of a paired test.
        old: Whether the language is one that was to be kept.
        utterances: Number of test utterances.
        spread: By how much two runs of the system may differ, None if not known.
    """

    lang: str
    task: str
    unit: str
    reference: str
    value: float
    low: float | None
    high: float | None
    p: float | None
    old: bool
    utterances: int | None = None
    spread: float | None = None

    @property
    def verdict(self) -> str:
        """Gained, kept, lost, or cannot be told.

        Something was gained or lost where the interval leaves 0 out, and the test
        rejects equality at 5 %, too (few identifications that differ make a narrow
        interval). An old language was kept where neither can be told, but a loss of
        more than :data:`KEPT_WITHIN` points is outside the interval; an interval of
        width 0, because nothing differed, rules nothing out. Where the spread between
        runs is known, what lies inside it is neither gained nor lost, and a loss must
        be ruled out beyond it, too.
        """
        if self.low is None or self.high is None:
            return UNTOLD
        spread = self.spread or 0.0
        rejected = self.p is None or self.p < _LEVEL
        rejected = rejected and abs(self.value) > spread
        if rejected and self.low > 0:
            return GAINED
        if rejected and self.high < 0:
            return LOST
        lowest = min(self.low, self.value - spread)
        if self.old and self.low < self.high and lowest >= -KEPT_WITHIN:
            return KEPT
        return UNTOLD

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and the verdict: a row of results.json."""
        return asdict(self) | {"verdict": self.verdict}


def find_changes(question: Question, figures: Iterable[Any]) -> list[Change]:
    """List what can be compared, per task, reference and language, new ones first.

    ``figures`` are of :func:`~espnet2_lamer.evaluation.results.collect_figures`.
    Identification is left out where recordings tell the languages apart.
    """
    order = [*question.new_langs, *question.old_langs]
    found = []
    for figure in figures:
        task, lang = figure.task, question.language_of(figure)
        if figure.system != question.system or lang not in order:
            continue
        identified = task.track == "lid" or figure.kind == "accuracy"
        if question.channel_confounded and identified and task.track:
            continue
        for c in figure.comparisons:
            if c.reference not in question.references:
                continue
            low, high = c.interval or (None, None)
            value = c.value
            if figure.kind == "error rate":
                value = -value
                low, high = (None if x is None else -x for x in (high, low))
            change = Change(
                lang,
                _task_name(figure),
                "" if identified else figure.unit,
                c.reference,
                value,
                low,
                high,
                c.p,
                lang in question.old_langs,
                figure.measure.count,
                question.spread_of(figure),
            )
            found.append(change)
    keys = dict.fromkeys((c.task, c.reference) for c in found)
    rank = {key: place for place, key in enumerate(keys)}
    return sorted(found, key=lambda c: (rank[c.task, c.reference], order.index(c.lang)))


def _kind(figure: Any) -> str:
    """Name what was measured, whatever the heads were trained on."""
    task = figure.task
    if not task.track:
        return figure.gain
    if task.track == "asr_lid" and figure.kind == "accuracy":
        return "identification with recognition"
    name = _SHORT[task.track]
    return f"{name} by {task.unit}" if task.track == "lid" else name


def _task_name(figure: Any) -> str:
    task = figure.task
    if not task.track:
        return figure.gain
    # What a head was trained on where that is more than all there is; of other
    # corpora's test sets, which.
    more = [task.train] if task.train not in ("", "all speech") else []
    if task.track == "asr" and "_" in task.test:
        more.append(f"tested on {task.test.partition('_')[2]}")
    return ", ".join([_kind(figure), *more])


@dataclass(frozen=True)
class Line:
    """One of the first lines of RESULTS.md and of the report.

    Attributes:
        verdict: The one whose changes it lists.
        heading: What the line says something of, e.g. "New languages gained".
        langs: Its languages, "" for all.
    """

    verdict: str
    heading: str
    langs: str
    text: str


def five_lines(data: Mapping[str, Any]) -> list[Line]:
    """Say what new languages gained and lost, old ones kept and lost, and what not.

    ``data`` is what results.json holds; without a question there is nothing to say.
    """
    question = data.get("question")
    if not question:
        return []
    changes = data["changes"]
    new = [c for c in changes if not c["old"]]
    old = [c for c in changes if c["old"]]
    newly, formerly = question["new_langs"], question["old_langs"]
    kept = _of(old, KEPT, "")
    if gained := _of(old, GAINED, ""):
        kept = f"{kept}; and gained: {gained}" if kept else f"gained: {gained}"
    if not formerly:
        kept = lost = "none was named, so nothing is said of them"
    else:
        kept, lost = kept or _NOTHING, _of(old, LOST)
    untold = _of(changes, UNTOLD, "none: every comparison gave an answer")
    if not changes:
        untold = "anything: there was nothing to compare with"
    return [
        Line(
            GAINED,
            _plural("New language", newly, "gained"),
            _some(newly),
            _of(new, GAINED),
        ),
        Line(
            LOST, _plural("New language", newly, "lost"), _some(newly), _of(new, LOST)
        ),
        Line(KEPT, _plural("Old language", formerly, "kept"), _some(formerly), kept),
        Line(LOST, _plural("Old language", formerly, "lost"), _some(formerly), lost),
        Line(UNTOLD, "Cannot be told", "", untold),
    ]


def how_sure(data: Mapping[str, Any]) -> str:
    """Say in a few sentences what the five lines rest on."""
    question, changes = data["question"], data["changes"]
    heads = {figure["seeds"] for figure in data["figures"] if figure["track"]}
    many = max(heads, default=1)
    runs = "The pretraining is one training run"
    if heads:
        each = f"each head was trained with {many} seeds"
        runs += f"; {each}" if many > 1 else ", and so is each head"
    sentences = [
        "In points, with 95 % intervals; + is a gain: fewer errors, or more right.",
        f"{runs}: the intervals cover the test utterances only, not the spread between "
        f"trainings. {_spread_text(question, changes)}",
        f"Kept: a loss of more than {KEPT_WITHIN:g} point is outside the interval.",
    ]
    control = [r for r in question["references"] if r != "base"]
    if control and any(c["reference"] in control for c in changes):
        sentences.append(
            f"The {control[0]} has the base's own states, so what is compared with the "
            "base is compared with it, too."
        )
    if len(changes) > 1:
        sentences.append(
            f"Of {len(changes)} comparisons about one in 20 would leave 0 out by "
            "chance."
        )
    return " ".join(sentences)


def _spread_text(question: Mapping[str, Any], changes: Sequence[Mapping]) -> str:
    known = question.get("spread")
    if not known:
        return "How far two runs lie apart was not measured for these options."
    sources = "; ".join(f"{count} runs, {path}" for path, count in known.items())
    text = (
        "Runs ±: two runs of this system lie no further apart in 95 of 100 pairs "
        f"({sources}); what lies inside that is neither called gained nor lost."
    )
    missing = dict.fromkeys(c["task"] for c in changes if c.get("spread") is None)
    return text + (f" Not measured for {', '.join(missing)}." if missing else "")


def _plural(what: str, langs: Sequence[str], verdict: str) -> str:
    return f"{what}{'' if len(langs) == 1 else 's'} {verdict}"


def _some(langs: Sequence[str]) -> str:
    return ", ".join(langs[:_MOST]) + ", ..." * (len(langs) > _MOST)


def _of(
    changes: Sequence[Mapping[str, Any]],
    verdict: str,
    nothing: str = _NOTHING,
) -> str:
    """List the changes with a verdict, the largest of too many."""
    mine = [c for c in changes if c["verdict"] == verdict]
    if not mine:
        return nothing
    shown = mine
    if len(mine) > _MOST:
        largest = sorted(mine, key=lambda c: -abs(c["value"]))[:_MOST]
        shown = [c for c in mine if c in largest]
    groups: dict[tuple[str, str], list[str]] = {}
    for c in shown:
        key = c["task"], c["reference"]
        groups.setdefault(key, []).append(f"{c['lang']} {in_points(c)}")
    text = "; ".join(
        f"{task} vs {reference}: {', '.join(entries)}"
        for (task, reference), entries in groups.items()
    )
    more = len(mine) - len(shown)
    return text + (f"; and {more} more, smaller ones" if more else "")


def in_points(change: Mapping[str, Any]) -> str:
    """Write a change and its interval."""
    value = short(change["value"])
    if change["low"] is None:
        return f"{value} (no interval)"
    spread = change.get("spread")
    runs = "" if spread is None else f"; runs ±{spread:.1f}"
    return f"{value} ({_end(change['low'])} to {_end(change['high'])}{runs})"


def short(value: float) -> str:
    """Write points to a tenth; no zero has a minus."""
    return f"{round(value, 1) + 0.0:+.1f}"


def _end(value: float) -> str:
    """Round an end of an interval to a tenth, but never to a 0 that it is not."""
    if value == 0:
        return "0.0"
    return f"{value:+.1f}" if round(value, 1) else f"{value:+.2f}"


def text_picture(changes: Sequence[Mapping[str, Any]], width: int = 41) -> str:
    """Draw every change with its interval, each task on its own scale, as text."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for c in changes:
        groups.setdefault((c["task"], c["reference"]), []).append(c)
    lines = []
    for (task, reference), rows in groups.items():
        reach = scale([rows])
        left, right = f"-{reach:g}", f"+{reach:g}"
        middle = (width - 1) // 2
        axis = f"{left:<{middle}}0{right:>{width - middle - 1}}"
        lines += ["", f"{task} vs {reference}", f"  {'':14} {axis}  points"]
        for c in rows:
            age = "old" if c["old"] else "new"
            name = f"{c['lang']} ({age})"
            bar = _bar(c, reach, width)
            lines.append(f"  {name:14} {bar}  {short(c['value']):>5}  {c['verdict']}")
    return "\n".join(lines[1:])


def scale(groups: Iterable[Sequence[Mapping[str, Any]]]) -> float:
    """Return a round number of points that holds all intervals."""
    ends = [
        abs(end)
        for rows in groups
        for c in rows
        for end in (c["value"], c["low"], c["high"])
        if end is not None
    ]
    largest = max(ends, default=0.0)
    for power in range(-1, 4):
        for step in (1, 2, 3, 4, 5, 6, 8):
            if step * 10.0**power >= largest:
                return step * 10.0**power
    return largest


def _bar(change: Mapping[str, Any], reach: float, width: int) -> str:
    def place(value: float) -> int:
        return round((value / reach + 1) / 2 * (width - 1))

    cells = [" "] * width
    cells[place(0)] = "|"
    if change["low"] is not None:
        low, high = place(change["low"]), place(change["high"])
        for k in range(low, high + 1):
            cells[k] = "-" if cells[k] == " " else "+"
        # Never drawn over 0 that it leaves out.
        cells[low], cells[high] = "[", "]"
        if change["low"] > 0 or change["high"] < 0:
            cells[place(0)] = "|"
    cells[place(change["value"])] = "o"
    return "".join(cells)
