"""What a test set has in common with training, and what of it has no reading."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet2_lamer.data.overlap import normalised
from espnet2_lamer.evaluation.benchmark_sets import PLAIN_TEXT
from espnet2_lamer.evaluation.results import MeasureTable
from espnet2_lamer.evaluation.text_units import READ_UNITS, count_unread
from espnet2_lamer.fileio.text import text_lines
from espnet2_lamer.metrics.measure import Measure

_NOTE = (
    "How much of a test set training knew. A speaker or a sentence that was trained on "
    "is easier: where a share is high, the figures of that set flatter. What is not "
    "known (no speakers, no text) has no line."
)
_UNREAD = "tokens of {} without a reading"


@dataclass(frozen=True)
class TestSet:
    """What was trained and tested on: formatted data directories.

    Attributes:
        readings: Files of texts in pinyin or jyutping, by what they are of.
    """

    __test__ = False  # no test of pytest's

    train: Sequence[Path]
    test: Sequence[Path]
    readings: Mapping[str, Sequence[Path]]

    @classmethod
    def of_unit(
        cls, train: Sequence[Path], test: Sequence[Path], unit: str
    ) -> "TestSet":
        """Make one whose directories hold texts in a unit."""
        files = {"the test set": test, "training": train} if unit in READ_UNITS else {}
        return cls(train, test, {k: [d / "text" for d in v] for k, v in files.items()})


def set_table(
    sets: Mapping[str, TestSet], pretraining: Path | None = None
) -> MeasureTable | None:
    """Return shares by the label of a test set; None where nothing is known.

    ``pretraining`` is the data directory of pretraining, where there is one.
    """
    rows: dict[str, dict[str, Measure]] = {}
    heard = _speakers([pretraining] if pretraining else [])
    for label, known in sets.items():
        speakers, sentences = _speakers(known.test), _sentences(known.test)
        row = {}
        for name, of, found in (
            ("test speakers in training", speakers, _speakers(known.train)),
            ("test speakers in pretraining", speakers, heard),
            ("test sentences in training", sentences, _sentences(known.train)),
        ):
            if of and found:
                share = 100 * len(of & found) / len(of)
                row[name] = Measure(share, note=f"of {len(of)}")
        for what, files in known.readings.items():
            total, unread = count_unread(_values(files))
            if total:
                note = " ".join(
                    [f"of {total}:", *(t for t, _ in unread.most_common(3))]
                )
                share = 100 * unread.total() / total
                row[_UNREAD.format(what)] = Measure(share, note=note.rstrip(":"))
        rows |= {label: row} if row else {}
    return MeasureTable("Test sets", "share (%)", rows, note=_NOTE) if rows else None


def _values(files: Iterable[Path]) -> Iterable[str]:
    for file in files:
        for _, line in text_lines(file) if file.is_file() else ():
            yield line.strip().partition(" ")[2]


def _speakers(directories: Iterable[Path]) -> set[str]:
    """Return the known speakers: an utterance's own id is none."""
    files = (directory / "utt2spk" for directory in directories)
    lines = (ln for f in files if f.is_file() for _, ln in text_lines(f))
    pairs = (line.strip().partition(" ") for line in lines)
    return {speaker for utt, _, speaker in pairs if speaker != utt}


def _sentences(directories: Sequence[Path]) -> set[str]:
    texts = [directory / PLAIN_TEXT for directory in directories]
    return {normalised(text) for text in _values(texts)} - {""}
