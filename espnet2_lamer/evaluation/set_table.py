"""What a test set has in common with training, and what of it has no reading."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from espnet2_lamer.data.overlap import normalised
from espnet2_lamer.evaluation.benchmark_sets import PLAIN_TEXT
from espnet2_lamer.evaluation.results import MeasureTable
from espnet2_lamer.evaluation.text_units import READ_UNITS, count_unread
from espnet2_lamer.fileio.text import text_lines
from espnet2_lamer.metrics.measure import Measure

_NOTE = (
    "How much of a test set training knew: where a share is high, the set's figures "
    "flatter. What is not known (no speakers, no text) has no line."
)
#: Data directories of training and of the test set, and the unit of their texts.
Sets = tuple[Sequence[Path], Sequence[Path], str]


def set_table(
    sets: Mapping[str, Sets], pretraining: Sequence[Path] = ()
) -> MeasureTable | None:
    """Return shares by the label of a test set; None where nothing is known."""
    rows: dict[str, dict[str, Measure]] = {}
    heard = _speakers(pretraining)
    for label, (train, test, unit) in sets.items():
        speakers, sentences = _speakers(test), _sentences(test)
        row = {}
        for name, of, found in (
            ("test speakers in training", speakers, _speakers(train)),
            ("test speakers in pretraining", speakers, heard),
            ("test sentences in training", sentences, _sentences(train)),
        ):
            if of and found:
                share = 100 * len(of & found) / len(of)
                row[name] = Measure(share, note=f"of {len(of)}")
        for part, folders in {"test": test, "training": train}.items():
            texts = (text for _, text in _pairs(folders, "text"))
            total, unread = count_unread(texts if unit in READ_UNITS else ())
            if total:
                note = ", ".join(
                    [f"of {total}", *(t for t, _ in unread.most_common(3))]
                )
                measure = Measure(100 * unread.total() / total, note=note)
                row[f"{part} tokens without a reading"] = measure
        rows |= {label: row} if row else {}
    return MeasureTable("Test sets", "share (%)", rows, note=_NOTE) if rows else None


def _pairs(folders: Iterable[Path], name: str) -> Iterator[tuple[str, str]]:
    for file in (folder / name for folder in folders):
        for _, line in text_lines(file) if file.is_file() else ():
            utt, _, value = line.strip().partition(" ")
            yield utt, value


def _speakers(folders: Iterable[Path]) -> set[str]:
    # An utterance's own id says that its speaker is not known.
    return {value for utt, value in _pairs(folders, "utt2spk") if value != utt}


def _sentences(folders: Iterable[Path]) -> set[str]:
    return {normalised(text) for _, text in _pairs(folders, PLAIN_TEXT)} - {""}
