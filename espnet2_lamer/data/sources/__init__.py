"""Speech as people keep it: one reader per form, each gives rows of one manifest."""

import logging
from collections.abc import Callable, Sequence

from espnet2_lamer.data.sets import Utterance
from espnet2_lamer.data.sources import (
    folder,
    hub_datasets,
    kaldi,
    lhotse_cuts,
    tsv,
    webdataset,
)
from espnet2_lamer.data.sources.rows import Reading, check_unique
from espnet2_lamer.data.sources.source import Source

#: How each of ``source.KINDS`` is read.
READERS: dict[str, Callable[[Source, Reading], list[Utterance]]] = {
    "tsv": tsv.read,
    "folder": folder.read,
    "kaldi": kaldi.read,
    "datasets": hub_datasets.read,
    "lhotse": lhotse_cuts.read,
    "webdataset": webdataset.read,
}
# Kinds whose split is none, or said of each row.
_STATED = ("tsv", "folder")


def read_sources(
    sources: Sequence[Source], reading: Reading, joined: bool = False
) -> list[Utterance]:
    """Read all sources; of several, rows that do not say theirs are named after it.

    ``joined``: whether other corpora come to them.

    Raises:
        RecipeError: A source cannot be read, or two of them share an id.
    """
    rows: list[Utterance] = []
    loose: list[Utterance] = []
    for source in sources:
        how = source.path, source.kind, source.known_by
        logging.info("%s: read as %s (%s)", *how)
        own = READERS[source.kind](source, reading)
        said = source.settings
        unnamed = source.name if joined or len(sources) > 1 else ""
        for row in own:
            row.split = said.get("split", row.split)
            row.source = said.get("source") or row.source or unnamed
            if prefix := said.get("prefix"):
                row.utt_id = f"{prefix}_{row.utt_id}"
                row.speaker = row.speaker and f"{prefix}_{row.speaker}"
        check_unique(own)
        logging.info("%s: %d utterances", source.path, len(own))
        rows += own
        # What a name of a file says is less than what a column says.
        loose += own if source.kind not in _STATED and "split" not in said else []
    check_unique(rows)
    _loosen(rows, loose)
    return rows


def _loosen(rows: Sequence[Utterance], loose: Sequence[Utterance]) -> None:
    """Let a language be divided whose rows are all of train by a mere name."""
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row.lang, set()).add(row.split)
    whole = {lang for lang, found in splits.items() if found == {"train"}}
    whole = {row.lang for row in loose if row.lang in whole}
    for row in loose:
        if row.lang in whole:
            row.split = ""
    for lang in sorted(whole):
        text = "%s: all of it is called train: dev and test are taken out of it "
        logging.info(text + "(SOURCE,split=train keeps it whole)", lang)
