"""Data directories: what an utterance is, how a set is written."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet2_lamer.data.corpora import CORPORA, EVAL_DIR, OWN, PRETRAIN_DIR
from espnet2_lamer.data.segments import audio_tables, part_of
from espnet2_lamer.fileio.atomic import atomic_dir
from espnet2_lamer.fileio.datadir import read_table, write_spk2utt, write_table

SPLITS = ("train", "dev", "test")


@dataclass(slots=True)
class Utterance:
    """One utterance of a corpus; what is not known is empty."""

    utt_id: str  # unique over all corpora, without spaces and slashes
    path: str  # absolute
    lang: str  # ISO 639-3 code
    split: str = ""  # train, dev or test
    text: str = ""
    speaker: str = ""  # empty: a speaker of its own
    romanisation: str = ""  # pronunciation, see evaluation.text_units
    source: str = ""  # where it comes from; written to utt2source
    where: str = ""  # file:line, for errors
    seconds: float | None = None
    # Where it is in the recording `path`, in seconds; None: its beginning and end.
    start: float | None = None
    end: float | None = None

    @property
    def audio(self) -> str:
        """The file, or the part of one, see :func:`~.segments.part_of`."""
        return part_of(self.path, self.start or 0.0, self.end)


def write_set(directory: str | Path, utterances: Sequence[Utterance]) -> None:
    """Write one data directory by rename; tables without a line are left out."""
    with atomic_dir(directory) as temporary:
        write_tables(temporary, tables_of(utterances))


def tables_of(utterances: Sequence[Utterance]) -> dict[str, dict[str, str]]:
    """Return the tables of a data directory, without what is not known.

    Where an utterance is a part of a recording, ``wav.scp`` has a line per recording
    and ``segments`` says of every utterance where it is.
    """
    values = {
        **audio_tables({u.utt_id: u.audio for u in utterances}),
        "utt2spk": {u.utt_id: u.speaker or u.utt_id for u in utterances},
        "utt2lang": {u.utt_id: u.lang for u in utterances},
        "text": {u.utt_id: u.text for u in utterances},
        "romanisation": {u.utt_id: u.romanisation for u in utterances},
        "utt2source": {u.utt_id: u.source for u in utterances},
    }
    return {name: {u: v for u, v in t.items() if v} for name, t in values.items()}


def write_tables(directory: Path, tables: Mapping[str, Mapping[str, str]]) -> None:
    """Write the tables that have a line; ``utt2spk`` with its inverse."""
    for name, table in tables.items():
        if name == "utt2spk":
            write_spk2utt(directory, table)
        elif table:
            write_table(directory / name, table)


def read_if_there(path: Path) -> dict[str, str]:
    """Return a table that a data directory may lack; empty then."""
    return read_table(path) if path.is_file() else {}


def remove_other_sets(
    output_dir: str | Path,
    langs: Iterable[str],
    sets: Iterable[str],
    corpora: Sequence[str] = (),
) -> None:
    """Remove what an earlier run with another corpus left, so that none is mixed in.

    Only sets of ``langs`` are looked at; ``sets`` such as ``train_eng`` stay, and so do
    the own sets of ``corpora``.
    """
    output_dir = Path(output_dir)
    stale = {output_dir / f"{s}_{lang}" for s in SPLITS for lang in langs}
    stale -= {output_dir / name for name in sets}
    # Sets of the embedded corpus, which evaluation would prefer.
    stale |= {path.parent for path in output_dir.glob("*/mini.json")}
    for directory in stale:
        shutil.rmtree(directory, ignore_errors=True)
    remove_other_corpora(output_dir, corpora)


def remove_other_corpora(output_dir: str | Path, corpora: Sequence[str] = ()) -> None:
    """Remove the sets of joined corpora that are not in ``corpora``."""
    for kind in (PRETRAIN_DIR, EVAL_DIR):
        for name in {*CORPORA, *OWN}.difference(corpora):
            shutil.rmtree(Path(output_dir) / kind / name, ignore_errors=True)
