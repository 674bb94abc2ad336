"""Data directories of stage 1: what an utterance is, how a set is written."""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet2_lamer.data.corpora import CORPORA, EVAL_DIR, PRETRAIN_DIR
from espnet2_lamer.fileio.atomic import atomic_dir
from espnet2_lamer.fileio.datadir import write_spk2utt, write_table

SPLITS = ("train", "dev", "test")


@dataclass(slots=True)
class Utterance:
    """One utterance of a corpus.

    Attributes:
        utt_id: Unique over all corpora, without spaces and slashes.
        path: Absolute path of the audio file.
        lang: ISO 639-3 code.
        split: ``train``, ``dev``, ``test``, or empty where nothing says.
        text: Transcript; empty where there is none.
        speaker: Speaker id; empty: every utterance is a speaker of its own.
        romanisation: Pronunciation, see ``evaluation.units``.
        source: Where it comes from; written to ``utt2source``.
        where: ``file:line``, for errors.
        seconds: Duration, where a column or a header tells it.
    """

    utt_id: str
    path: str
    lang: str
    split: str = ""
    text: str = ""
    speaker: str = ""
    romanisation: str = ""
    source: str = ""
    where: str = ""
    seconds: float | None = None


def write_set(directory: str | Path, utterances: Sequence[Utterance]) -> None:
    """Write one data directory by rename; tables without a line are left out."""
    with atomic_dir(directory) as temporary:
        write_table(temporary / "wav.scp", {u.utt_id: u.path for u in utterances})
        write_table(temporary / "utt2lang", {u.utt_id: u.lang for u in utterances})
        write_spk2utt(temporary, {u.utt_id: u.speaker or u.utt_id for u in utterances})
        for name, key in (
            ("text", "text"),
            ("romanisation", "romanisation"),
            ("utt2source", "source"),
        ):
            table = {u.utt_id: getattr(u, key) for u in utterances if getattr(u, key)}
            if table:
                write_table(temporary / name, table)


def remove_other_sets(
    output_dir: str | Path,
    langs: Iterable[str],
    sets: Iterable[str],
    corpora: Sequence[str] = (),
) -> None:
    """Remove what an earlier run with another corpus left, so that none is mixed in.

    Args:
        output_dir: Where stage 1 writes.
        langs: Languages in use; only their sets are looked at.
        sets: Names of sets that stay, such as ``train_eng``.
        corpora: Corpora whose own sets stay.
    """
    output_dir = Path(output_dir)
    stale = {output_dir / f"{s}_{lang}" for s in SPLITS for lang in langs}
    stale -= {output_dir / name for name in sets}
    # Sets of the embedded corpus: later stages would prefer them.
    stale |= {path.parent for path in output_dir.glob("*/mini.json")}
    for directory in stale:
        shutil.rmtree(directory, ignore_errors=True)
    remove_other_corpora(output_dir, corpora)


def remove_other_corpora(output_dir: str | Path, corpora: Sequence[str] = ()) -> None:
    """Remove the sets of the public corpora that are not in ``corpora``."""
    for kind in (PRETRAIN_DIR, EVAL_DIR):
        for name in set(CORPORA).difference(corpora):
            shutil.rmtree(Path(output_dir) / kind / name, ignore_errors=True)
